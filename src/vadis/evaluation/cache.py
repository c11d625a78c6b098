"""Work kept beside a report, so that an interrupted evaluation goes on where it stopped, and never mixes settings.

    FOLDER/work/settings.json            what the work belongs to: protocol, model, evaluator, data
    FOLDER/work/predictions/seed-000/    <id>.npy float32 features and prompts.jsonl; itself a folder to evaluate
    FOLDER/work/embeddings/seed-000.npz  text, real and made embeddings

Every file appears whole or not at all. Without a folder everything is kept in memory.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis.errors import FileError, VadisError
from vadis.evaluation.reference import Draw, read_array
from vadis.evaluation.sources import Source, quoted
from vadis.files import atomic_write
from vadis.io.arrays import Npz
from vadis.records import read_json

Progress = Callable[[str, int, int], None]
"""Stage, done, of how many."""


class Work:
    """Predictions and embeddings of one evaluation, on disk or in memory.

    Raises VadisError when the folder holds work of other settings, naming what differs.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.folder = None if folder is None else folder / "work"
        self._memory: dict[tuple[int, int], list[Tensor]] = {}
        if self.folder is None:
            return
        page = self.folder / "settings.json"
        plain = json.loads(json.dumps(settings, default=str))
        if page.is_file():
            try:
                old = read_json(page)
            except FileError:  # damaged: as if it was another's
                old = {}
            differing = [k for k in plain if old.get(k) != plain[k]]
            if differing and not overwrite:
                raise VadisError(
                    f"{folder} holds work of another evaluation ({', '.join(differing)} differ). Choose another folder, or "
                    "pass overwrite (--overwrite) to start over there."
                )
            if differing or overwrite:
                shutil.rmtree(self.folder)
        with atomic_write(page) as temporary:
            temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")

    def predictions(
        self, source: Source, draws: Sequence[Draw], seed: int, batch: int, progress: Progress | None
    ) -> "Predictions":
        """Make what is not there yet, in batches, and give access to all of it."""
        batch = source.at_once(batch)
        if source.stored:
            return Predictions(lambda i: source.predict([draws[i]], seed, i)[0], len(draws))
        if self.folder is None:
            made: list[Tensor] = []
            for a in range(0, len(draws), batch):
                made += source.predict(draws[a : a + batch], seed, a)
                if progress:
                    progress("predictions", len(made), len(draws))
            return Predictions(made.__getitem__, len(draws))
        folder = self.folder / "predictions" / f"seed-{seed:03d}"
        paths = [folder / f"{quoted(d.item.id)}.npy" for d in draws]
        self._write_prompts(folder, draws)
        for a in range(0, len(draws), batch):
            if all(p.is_file() for p in paths[a : a + batch]):
                continue
            made = source.predict(draws[a : a + batch], seed, a)
            for path, x in zip(paths[a : a + batch], made, strict=True):
                with atomic_write(path) as temporary:
                    np.save(temporary, x.numpy().astype(np.float32))
            if progress:
                progress("predictions", min(a + batch, len(draws)), len(draws))
        return Predictions(lambda i: torch.from_numpy(np.array(_kept(read_array(paths[i]), 2, paths[i]))), len(draws))

    @staticmethod
    def _write_prompts(folder: Path, draws: Sequence[Draw]) -> None:
        rows = [
            {"id": d.item.id, "text": [t.text for t in d.texts], "frames": list(d.parts), "first": d.first}
            for d in draws
        ]
        with atomic_write(folder / "prompts.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")

    def embeddings(self, seed: int, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Named arrays of a seed, made once."""
        if self.folder is None:
            return make()
        path = self.folder / "embeddings" / f"seed-{seed:03d}.npz"
        if path.is_file():
            with Npz(path) as kept:
                return {name: np.array(_kept(kept[name], None, f"{path}, {name}")) for name in kept.keys()}  # noqa: SIM118
        found = make()
        with atomic_write(path) as temporary:
            np.savez(temporary, **found)  # type: ignore[arg-type]
        return found


def _kept(array: np.ndarray, ndim: int | None, where: object) -> np.ndarray:
    """An array that an earlier run kept; raises FileError when it was damaged since."""
    if (ndim is not None and array.ndim != ndim) or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise FileError(
            f"{where} is damaged: it holds {array.dtype} {array.shape} or values that aren't finite. Pass overwrite (--overwrite) to make it again."
        )
    return array


class Predictions(Sequence[Tensor]):
    """A sequence of features (T, D), read when asked for."""

    def __init__(self, read: Callable[[int], Tensor], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
        if not 0 <= i < self._count:
            raise IndexError(i)
        return self._read(i)
