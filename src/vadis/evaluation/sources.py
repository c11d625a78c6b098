"""What is evaluated: a pipeline, a tokenizer, or a folder of predictions, behind one call `predict(draws, seed)`."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired
from urllib.parse import quote

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from vadis.errors import FileError, VadisError
from vadis.evaluation.protocol import Protocol
from vadis.evaluation.reference import Draw, Name, Reference, Text, read_array
from vadis.pipelines.base import Pipeline
from vadis.records import read_rows
from vadis.representations import representation


class Source(ABC):
    """Something that gives a motion for every draw.

    `random`: every seed gives other motions. `paired`: what it gives corresponds to the recording frame by frame.
    `stored`: it reads files, so that nothing needs to be kept a second time. `own_length`: never cut or held.
    """

    random: bool = False
    paired: bool = False
    stored: bool = False
    own_length: bool = False
    name: str
    identity: str
    notes: Sequence[str] = ()
    seeds: int | None = None
    """How many sets of predictions there are; None: as many as asked for."""

    @abstractmethod
    def predict(self, draws: Sequence[Draw], seed: int, start: int) -> list[Tensor]:
        """Features (T, D) in physical units for draws number `start`, `start + 1`, … of a seed."""

    def at_once(self, batch: int) -> int:
        """How many draws are worth handing over together, at most `batch`: what is made together is lost together."""
        return batch

    def prepare(self, draws: Sequence[Draw], seed: int) -> list[Draw]:
        """The draws as this source answers them: stored predictions bring their own texts and lengths."""
        return list(draws)

    def tokens(self, draws: Sequence[Draw]) -> tuple[Tensor, int] | None:
        """Tokens of all draws `(N,)` or `(N, G)` and the size of the codebook, where there is one."""
        return None


def quoted(item_id: str) -> str:
    """A file name of an id."""
    return quote(item_id, safe="@-_.,() +")


def model_identity(*modules: Any) -> str:
    """A hash of configurations and of a sample of every weight: another checkpoint has another."""
    digest = hashlib.sha256()
    for module in modules:
        if isinstance(module, nn.Module):
            digest.update(model_identity(getattr(module, "config", None)).encode())
            for name, tensor in sorted(module.state_dict().items()):
                flat = tensor.detach().flatten()
                some = flat[:: max(1, flat.numel() // 32)][:33].to("cpu", torch.float64)
                digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
        elif is_dataclass(module) and not isinstance(module, type):
            digest.update(json.dumps(asdict(module), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def check_fit(what: str, kind: str, protocol: Protocol) -> None:
    """VadisError unless features of `kind` are what the protocol measures."""
    if kind != protocol.representation:
        raise VadisError(
            f"protocol {protocol.name} measures {protocol.representation}; {what} makes {kind}. Write its motions to a "
            f"folder, convert them (`vadis convert IN OUT --to {protocol.representation}`) and evaluate the folder."
        )


class PipelineSource(Source):
    """A text-to-motion pipeline."""

    random = True

    def __init__(
        self, pipe: Pipeline, protocol: Protocol, name: str = "", settings: dict[str, Any] | None = None
    ) -> None:
        self.pipe, self.settings, self.protocol = pipe, dict(settings or {}), protocol
        check_fit(type(pipe).__name__, pipe.representation.name, protocol)
        if protocol.task == "reconstruction":
            raise VadisError(f"protocol {protocol.name} measures a tokenizer: give that part, e.g. pipe.tokenizer.")
        self.name = name or type(pipe).__name__
        self.ends_itself = protocol.length == "own" and pipe.capabilities.ends_itself
        asked = "is asked for" if protocol.task == "prompts" else "the recordings do"
        self.notes = [
            "motions end where the model ends them." if self.ends_itself else f"motions last as long as {asked}."
        ]
        self.cleans = bool(self.settings.get("clean_feet", pipe.config.clean_feet))
        if self.cleans and protocol.task != "stream":
            self.notes.append(
                "motions are measured as they are handed out, feet cleaned; features as decoded: clean_feet=False."
            )
        self.identity = model_identity(*pipe.networks, pipe.config) + json.dumps(
            self.settings, sort_keys=True, default=str
        )

    def predict(self, draws: Sequence[Draw], seed: int, start: int) -> list[Tensor]:
        fps, first = self.pipe.fps, 1_000_003 * seed + start
        if self.protocol.task == "stream":
            return [self._stream(d, fps, first + i) for i, d in enumerate(draws)]
        texts = [d.texts[0].text for d in draws]
        seconds = None if self.ends_itself else [d.frames / fps for d in draws]
        out = self.pipe(texts, seconds=seconds, seed=first, **self.settings)
        if not self.cleans:
            return list(out.features)
        rep = representation(self.protocol.representation)
        return [rep.encode(motion) for motion in out.motion]

    def at_once(self, batch: int) -> int:
        return batch if self.protocol.task != "stream" and self.pipe.capabilities.together else 1

    def _stream(self, draw: Draw, fps: float, seed: int) -> Tensor:
        texts, seconds = [t.text for t in draw.texts], [n / fps for n in draw.parts]
        chunks = self.pipe.stream(texts, seconds=seconds, seed=seed, **self.settings)
        return torch.cat([chunk.features for chunk in chunks])[: draw.frames]


class TokenizerSource(Source):
    """A tokenizer: the recording, encoded and decoded."""

    paired = True

    def __init__(self, tokenizer: Any, protocol: Protocol, reference: Reference, name: str = "") -> None:
        check_fit(type(tokenizer).__name__, tokenizer.representation, protocol)
        self.tokenizer, self.reference = tokenizer, reference
        self.name = name or type(tokenizer).__name__
        self.identity = model_identity(tokenizer)

    def predict(self, draws: Sequence[Draw], seed: int, start: int) -> list[Tensor]:
        clips = [self.reference.features(d) for d in draws]
        return [self.tokenizer.decode(t).float().cpu() for t in self.tokenizer.encode(clips)]

    def tokens(self, draws: Sequence[Draw]) -> tuple[Tensor, int] | None:
        if self.tokenizer.continuous:
            return None
        rows = self.tokenizer.encode([self.reference.features(d) for d in draws])
        return torch.cat([torch.as_tensor(r) for r in rows]), int(self.tokenizer.vocab_size)


class FolderSource(Source):
    """A folder of `<id>.npy` features (or joints, for prompts); several sets as folders `seed-000`, `seed-001`, ….

    A `prompts.jsonl` in a set tells which text each prediction was made for; without it, it is the item's first caption.
    Raises VadisError listing ids that are missing or unknown, FileError for arrays that don't fit.
    """

    stored = True

    def __init__(self, folder: Path, protocol: Protocol, reference: Reference, partial: bool = False) -> None:
        sets = sorted(p for p in folder.glob("seed-*") if p.is_dir()) or [folder]
        self.sets, self.protocol, self.name = sets, protocol, folder.resolve().name
        self.paired = protocol.task == "reconstruction"
        self.seeds = len(sets)
        wanted = {quoted(i.id): i for i in reference.items}
        digest, common = hashlib.sha256(), set(wanted)
        self.extra: list[str] = []
        for one in sets:
            found = {p.stem: p for p in one.glob("*.npy")}
            common &= set(found)
            missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
            if not partial and (missing or extra):
                raise VadisError(_mismatch(one, missing, extra, len(wanted)))
            self.extra = extra
            digest.update(
                repr([(n, p.stat().st_size, p.stat().st_mtime_ns) for n, p in sorted(found.items())]).encode()
            )
        if not common:
            raise VadisError(
                f"{folder} has no <id>.npy of any of the {len(wanted)} items of {reference.name}; ids there look like "
                f"{', '.join(list(wanted)[:3])}."
            )
        self.ids = {wanted[n].id for n in common}
        self.identity = digest.hexdigest()[:16]
        self.texts = [_stored_texts(one) for one in sets]

    def prepare(self, draws: Sequence[Draw], seed: int) -> list[Draw]:
        texts, answered = self.texts[seed % len(self.sets)], []
        for d in draws:
            if d.item.id not in self.ids:
                continue
            first = tuple(options[0] for options in d.item.captions if options)
            if d.item.id not in texts:
                answered.append(Draw(d.item, first, d.parts, d.first))
                continue
            stored, frames, start = texts[d.item.id]
            known = {t.text: t for options in d.item.captions for t in options}
            place = start if start is not None else d.first
            end = d.item.first + d.item.frames if start is not None else place + d.item.frames
            same = len(frames) == len(d.item.parts) and d.item.first <= place and place + sum(frames) <= end
            answered.append(
                Draw(
                    d.item,
                    tuple(known.get(t, Text(t)) for t in stored),
                    frames if same else d.parts,
                    place if same else d.first,
                )
            )
        return answered

    def predict(self, draws: Sequence[Draw], seed: int, start: int) -> list[Tensor]:
        folder = self.sets[seed % len(self.sets)]
        return [self._read(folder / f"{quoted(d.item.id)}.npy") for d in draws]

    def _read(self, path: Path) -> Tensor:
        array, rep = read_array(path), representation(self.protocol.representation)
        joints = array.ndim == 3 and array.shape[1:] == (22, 3) and self.protocol.task == "prompts"
        if not joints and (array.ndim != 2 or array.shape[1] != rep.dim or len(array) < 4):
            raise FileError(
                f"{path} is {array.shape}; expected {rep.name} features (T >= 4, {rep.dim}) for protocol "
                f"{self.protocol.name}. Convert it: `vadis convert {path.name} OUT.npy --to {rep.name}`."
            )
        x = torch.from_numpy(np.array(array, np.float32))
        if not torch.isfinite(x).all():
            bad = (~x.flatten(1).isfinite().all(1)).nonzero()[:, 0]
            raise VadisError(
                f"{path} has NaN or infinite values in {len(bad)} frames, the first is frame {int(bad[0])}."
            )
        return x


def _mismatch(folder: Path, missing: list[str], extra: list[str], wanted: int) -> str:
    def some(names: list[str]) -> str:
        return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

    parts = [f"{len(missing)} of {wanted} items have no prediction ({some(missing)})"] if missing else []
    parts += [f"{len(extra)} predictions belong to no item ({some(extra)})"] if extra else []
    return (
        f"{folder}: {' and '.join(parts)}. The sets must be the same; to evaluate what both have, and say so in the report, "
        "pass partial (--partial)."
    )


Stored = tuple[tuple[str, ...], tuple[int, ...], int | None]


Frames = Annotated[int, Field(ge=1, le=10_000_000)]


class StoredRow(TypedDict):
    """A line of a set's `prompts.jsonl`."""

    id: Name
    text: str | list[str]
    frames: Frames | list[Frames]
    first: NotRequired[Annotated[int, Field(ge=0, le=2**40)] | None]


def _stored_texts(folder: Path) -> dict[str, Stored]:
    """Id → texts, frames of the parts and first frame, from `prompts.jsonl`."""
    path = folder / "prompts.jsonl"
    if not path.is_file():
        return {}
    found: dict[str, Stored] = {}
    for number, row in read_rows(StoredRow, path):
        text, frames, name = row["text"], row["frames"], str(row["id"])
        if name in found:
            raise FileError(f"{path}, line {number}: the id {name!r:.80} is given twice.")
        texts = (text,) if isinstance(text, str) else tuple(text)
        found[name] = (texts, (frames,) if isinstance(frames, int) else tuple(frames), row.get("first"))
    return found


_NO_TURN = {"heading_velocity": (1.0, 0, 0, 0, 1.0, 0), "root_rotation_velocity": (1.0, 0, 0, 1.0, 0, 0)}
"""Slices that hold a rotation as 6D (rows, and columns interleaved) and its identity."""


def fit_length(features: Tensor, frames: int, kind: str) -> Tensor:
    """Features (T, D) cut to `frames`, or made longer by holding the last pose: its velocities are those of standing."""
    if len(features) >= frames:
        return features[:frames]
    last = features[-1:].clone()
    for name, columns in representation(kind).slices.items():
        if name in _NO_TURN:
            last[:, columns] = torch.tensor(_NO_TURN[name])
        elif "velocit" in name:
            last[:, columns] = 0
    return torch.cat([features, last.expand(frames - len(features), -1)])
