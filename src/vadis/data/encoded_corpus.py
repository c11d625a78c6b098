"""A corpus as a generator reads it: motion tokens, text features and kinematic plans, computed once and memory-mapped.

    encoded/tokens.npy     (all steps, G) uint16 (uint32 above 65,536 codes)
    encoded/text.npy       (all text tokens, H) float16, each different sentence once
    encoded/plan.npy, plan_mask.npy   (N, P, A) float32 and bool, with a plan function
    encoded/index.parquet  a row a segment: clip, frames, where its tokens are, split, weight, its sentences
    encoded/texts.parquet  the sentences and where their features are
    encoded/encoded.json   facts of the tokenizer, the text encoder and the corpus

A segment is a stretch of a clip that captions speak of: the whole clip, or the span of a caption about a part of it. It
is tokenised as if it were a clip of its own. Letters: B rows, N segments, S token steps, G groups, L text tokens, H
text width, P plan rows, A plan attributes.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vadis.data.corpus import HEADER, Corpus, npy_header
from vadis.data.parts import Parts
from vadis.data.segments import (
    ProgressBars,
    Segment,
    features_of,
    find_segments,
    fingerprint,
    plain_values,
    work_key,
    write_tokens,
)
from vadis.data.share import nested_share
from vadis.data.tables import Kind, check_spans, is_finite, read_array, read_lists, read_page, read_table
from vadis.errors import FileError, ShapeError, VadisError
from vadis.files import WORK, apart, atomic_folder

VERSION = 1

PlanFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (T, D) in physical units to values (P, A) and a mask (P, A) of those that are known."""


def encode_corpus(
    corpus: Corpus,
    tokenizer: Any,
    text_encoder: Any,
    out: str | Path,
    plan: PlanFunction | None = None,
    *,
    min_seconds: float = 0.4,
    max_seconds: float | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> "EncodedCorpus":
    """Tokenise every captioned segment of a corpus; the folder `out` appears, or is replaced, when all is done.

    Interrupted work is taken up again by the same call.

    Args:
        tokenizer: a discrete tokenizer of the corpus' representation and frame rate.
        text_encoder: has `name`, `dim`, `max_tokens` and `encode_each`.
        plan: makes the plan of a segment from its features.
        min_seconds, max_seconds: segments outside are left out and counted in `encoded.json`.
        about: free facts for `encoded.json`.

    Raises VadisError when the tokenizer does not fit the corpus or nothing is left.
    """
    apart(out, corpus.path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    if tokenizer.representation != corpus.representation or tokenizer.fps != corpus.fps:
        raise VadisError(
            f"the tokenizer reads {tokenizer.representation} at {tokenizer.fps:g} fps; the corpus {corpus.path} holds "
            f"{corpus.representation} at {corpus.fps:g} fps. Build the corpus for this tokenizer."
        )
    per_token = int(tokenizer.frames_per_token)
    least = max(per_token, 8, round(min_seconds * corpus.fps))
    most = round(max_seconds * corpus.fps) if max_seconds else None
    texts, segments, left_out = find_segments(corpus, least, most)
    if not segments:
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "it has no clips"
        raise VadisError(f"nothing of {corpus.path} can be encoded: {reasons}.")
    steps = [s.frames // per_token for s in segments]
    firsts = np.concatenate([[0], np.cumsum(steps)])
    probes = [next(iter(text_encoder.encode_each(texts[:1])))[1].cpu().numpy()]  # other weights, other numbers
    if plan is not None:
        probes += [value.numpy() for value in plan(features_of(corpus, segments[0]))]
    work = work_key(corpus, segments, texts, fingerprint(tokenizer), text_encoder.name, *probes)
    with atomic_folder(out, work, "encoded.json") as folder, ProgressBars(progress) as show:
        write_tokens(corpus, tokenizer, segments, steps, firsts, folder, show)
        places = _write_texts(text_encoder, texts, folder, show)
        if plan is not None:
            _write_plans(corpus, plan, segments, folder, show)
        shares = Counter(s.row for s in segments)
        columns = {name: corpus.column(name) for name in ("clip", "split", "group", "source", "licence", "weight")}
        rows = [
            {name: values[s.row] for name, values in columns.items() if name != "weight"}
            | {"weight": columns["weight"][s.row] / shares[s.row], "first_frame": s.first, "frames": s.frames}
            | {"row": i, "first": int(firsts[i]), "steps": steps[i], "texts": list(s.texts), "kinds": list(s.kinds)}
            for i, s in enumerate(segments)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "index.parquet", compression="zstd")
        sentences = [{"text": t, "first": a, "tokens": n} for t, (a, n) in zip(texts, places, strict=True)]
        pq.write_table(pa.Table.from_pylist(sentences), folder / "texts.parquet", compression="zstd")
        page = {
            "format": "vadis-encoded",
            "version": VERSION,
            "representation": corpus.representation,
            "fps": corpus.fps,
            "frames_per_token": per_token,
            "vocab_size": int(tokenizer.vocab_size),
            "groups": int(tokenizer.tokens_per_step),
            "tokenizer": {"config": plain_values(tokenizer.config), "sha256": fingerprint(tokenizer)},
            "text_encoder": {"name": text_encoder.name, "dim": int(text_encoder.dim)},
            "plan": plan is not None,
            "segments": len(segments),
            "steps": int(firsts[-1]),
            "sentences": len(texts),
            "longest_steps": max(steps),
            "longest_text": max(n for _, n in places),
            "corpus": {k: corpus.about.get(k) for k in ("clips", "frames", "about")},
            "left_out": left_out,
            "about": dict(about or {}),
        }
        (folder / "encoded.json").write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return EncodedCorpus.open(out)


def _write_texts(encoder: Any, texts: list[str], folder: Path, show: Any) -> list[tuple[int, int]]:
    """Write the features in the order they come; returns (first, tokens) of every sentence."""
    path, journal = folder / "text.npy", folder / WORK / "texts"
    for place in (path, journal):
        place.touch()
    done = np.fromfile(journal, np.int64)[: journal.stat().st_size // 16 * 2].reshape(-1, 2)  # text, tokens
    room = (path.stat().st_size - HEADER) // (2 * encoder.dim)
    done = done[np.cumsum(done[:, 1]) <= room]  # what a kill cut is made again
    places: list[tuple[int, int]] = [(0, 0)] * len(texts)
    total = 0
    for i, tokens in done.tolist():
        places[i] = (total, tokens)
        total += tokens
    with path.open("r+b") as file, journal.open("r+b") as notes:
        file.truncate(HEADER + total * 2 * encoder.dim)
        notes.truncate(16 * len(done))
        file.seek(0, 2)
        notes.seek(0, 2)
        rest = encoder.encode_each(texts, len(done)) if len(done) else encoder.encode_each(texts)
        for i, features in show(rest, "sentences", len(texts) - len(done)):
            places[i] = (total, len(features))
            total += len(features)
            file.write(np.ascontiguousarray(features.cpu().numpy(), dtype="<f2").tobytes())
            file.flush()  # first the numbers, then what says that they are there
            notes.write(np.array([i, len(features)], np.int64).tobytes())
            notes.flush()
        file.seek(0)
        file.write(npy_header(total, encoder.dim))
    return places


def _write_plans(corpus: Corpus, plan: PlanFunction, segments: list[Segment], folder: Path, show: Any) -> None:
    def make(segment: Segment) -> list[np.ndarray]:
        value, mask = plan(features_of(corpus, segment))
        return [np.ascontiguousarray(x.numpy(), kind) for x, kind in ((value, np.float32), (mask, bool))]

    with (
        Parts(folder, "plans") as parts,
        (folder / "plan.npy").open("wb") as values,
        (folder / "plan_mask.npy").open("wb") as masks,
    ):
        shape: tuple[int, ...] = ()
        for number, segment in enumerate(show(segments, "plans")):
            made = parts.take(lambda segment=segment: make(segment))
            shape = shape or made[0].shape
            if not made[0].shape == made[1].shape == shape:
                raise ShapeError(f"plan {number}: {made[0].shape} values, {made[1].shape} mask; the first has {shape}.")
            for file, array in zip((values, masks), made, strict=True):
                if not number:
                    page = np.lib.format.header_data_from_array_1_0(array)
                    np.lib.format.write_array_header_1_0(file, page | {"shape": (len(segments), *array.shape)})
                file.write(array.tobytes())


_AGAIN = "Encode the corpus again."
ENCODED_COLUMNS: dict[str, Any] = {
    "clip": "text", "split": "text", "group": "text", "source": "text", "licence": "text", "weight": "number", "row": "whole",
    "first_frame": "whole", "frames": "whole", "first": "whole", "steps": "whole", "texts": "wholes", "kinds": "texts",
}  # fmt: skip
"""Columns of the index of an encoded corpus."""


@dataclass(frozen=True)
class _EncodedBy:
    config: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class _ReadBy:
    name: str
    dim: Annotated[int, Field(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class EncodedPage:
    """What must stand in `encoded.json`."""

    representation: str
    fps: Annotated[float, Field(gt=0, le=10_000)]
    frames_per_token: Annotated[int, Field(ge=1, le=100_000)]
    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)]
    groups: Annotated[int, Field(ge=1, le=1000)]
    tokenizer: _EncodedBy
    text_encoder: _ReadBy
    plan: bool
    segments: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    sentences: Annotated[int, Field(ge=0)]


class EncodedCorpus:
    """Segments opened for reading; made by `EncodedCorpus.open`. Subsets share the mapped arrays."""

    def __init__(
        self, path: Path, about: dict[str, Any], index: Any, texts: Any, arrays: dict[str, np.ndarray]
    ) -> None:
        self.path, self.about, self._index, self._texts, self._arrays = path, about, index, texts, arrays
        self.fps: float = about["fps"]
        self.frames_per_token: int = about["frames_per_token"]
        self.vocab_size: int = about["vocab_size"]
        self.groups: int = about["groups"]
        self.text_dim: int = about["text_encoder"]["dim"]
        self._row, self._first, self.steps, self.frames, self.weights = (
            index.column(name).to_numpy() for name in ("row", "first", "steps", "frames", "weight")
        )
        self._text_first, self._text_tokens = (texts.column(name).to_numpy() for name in ("first", "tokens"))
        self._said, self._kinds = read_lists(path / "index.parquet", index, "texts", "kinds", len(texts), _AGAIN)

    @classmethod
    def open(cls, path: str | Path) -> "EncodedCorpus":
        """Open a folder made by `encode_corpus`; raises FileError when it is missing, damaged or of another version."""
        path = Path(path)
        if not (path / "encoded.json").is_file():
            raise FileError(f"no encoded corpus at {path} (no encoded.json there). Make one with `vadis data encode`.")
        about = read_page(path / "encoded.json", EncodedPage, "vadis-encoded", VERSION, _AGAIN)
        index = read_table(path / "index.parquet", ENCODED_COLUMNS, about["segments"], _AGAIN)
        columns: dict[str, Kind] = {"text": "text", "first": "whole", "tokens": "whole"}
        texts = read_table(path / "texts.parquet", columns, about["sentences"], _AGAIN)
        arrays = {"tokens": read_array(path / "tokens.npy", "u", (about["steps"], about["groups"]), _AGAIN)}
        arrays["text"] = read_array(path / "text.npy", "f", (None, about["text_encoder"]["dim"]), _AGAIN)
        if about["plan"]:
            plan = arrays["plan"] = read_array(path / "plan.npy", "f", (about["segments"], None, None), _AGAIN)
            arrays["plan_mask"] = read_array(path / "plan_mask.npy", "b", plan.shape, _AGAIN)
        corpus = cls(path, about, index, texts, arrays)
        corpus._check()
        return corpus

    def _check(self) -> None:
        """Raise FileError unless index, texts and arrays fit one another."""
        place = self.path / "index.parquet"
        check_spans(place, "tokens", self._first, self.steps, self.about["steps"], _AGAIN)
        check_spans(
            self.path / "texts.parquet",
            "features",
            self._text_first,
            self._text_tokens,
            len(self._arrays["text"]),
            _AGAIN,
        )
        if len(self) and (
            min(self.steps.min(), self.frames.min(), *map(len, self._said)) < 1 or self.weights.min() < 0
        ):
            raise FileError(f"{place}: a segment has steps, frames, a sentence, and a weight of 0 or more. {_AGAIN}")
        if len(self) and self._row.max() >= self.about["segments"]:
            raise FileError(f"{place}: row {self._row.max()} of {self.about['segments']} plans. {_AGAIN}")

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def plan_shape(self) -> tuple[int, int] | None:
        """(P, A), or None without plans."""
        return self._arrays["plan"].shape[1:] if "plan" in self._arrays else None  # type: ignore[return-value]

    @property
    def seconds(self) -> np.ndarray:
        """Length of every segment (N,)."""
        return self.frames / self.fps

    def column(self, name: str) -> list[Any]:
        """One column of the index."""
        return self._index.column(name).to_pylist()

    def plans(self) -> Tensor:
        """All plans (N, P, A) float32; raises VadisError without plans."""
        if "plan" not in self._arrays:
            raise VadisError(f"{self.path} was encoded without plans. Encode the corpus again with a plan function.")
        return self._finite("plan", torch.from_numpy(self._arrays["plan"][self._row].copy()))

    def _finite(self, name: str, values: Tensor) -> Tensor:
        if not is_finite(values.numpy()):
            raise FileError(f"{self.path / f'{name}.npy'} holds values that are not finite. {_AGAIN}")
        return values

    def subset(self, split: str | None = None, *, max_steps: int | None = None, share: float = 1.0) -> "EncodedCorpus":
        """The segments of a split, no longer than `max_steps` token steps, and of those a nested share of all steps by
        whole groups (`vadis.data.share`). Raises VadisError when there is none."""
        keep = np.ones(len(self), dtype=bool)
        if split is not None:
            keep &= np.array(self.column("split"), dtype=object) == split
        if max_steps is not None:
            keep &= self.steps <= max_steps
        if not keep.any():
            limit = f" of at most {max_steps} steps" if max_steps else ""
            raise VadisError(
                f"no segment with split {split!r}{limit} in {self.path}. Splits: {sorted(set(self.column('split')))}."
            )
        if share != 1:
            groups = np.array(self.column("group"), dtype=object)
            keep[keep] = nested_share(groups[keep].tolist(), self.steps[keep], share)
        return EncodedCorpus(self.path, self.about, self._index.filter(keep), self._texts, self._arrays)

    def draw(self, count: int, generator: torch.Generator | None = None) -> np.ndarray:
        """Random rows (count,), each in proportion to its weight, with replacement."""
        weights = torch.from_numpy(self.weights.astype(np.float64))
        return torch.multinomial(weights, count, replacement=True, generator=generator).numpy()

    def sentences(self, row: int) -> list[str]:
        """What is said of a segment."""
        column = self._texts.column("text")
        return [column[i].as_py() for i in self._said[row]]

    def batch(
        self,
        rows: Sequence[int] | np.ndarray,
        generator: torch.Generator | None = None,
        kind_weights: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """Padded tensors of segments, each with one of its sentences drawn at random.

        Returns tokens (B, S) or (B, S, G) int64 padded with -1, token_lengths (B,), text (B, L, H) float32 padded with
        0, text_lengths (B,), text_ids (B,), seconds (B,) and, if there are plans, plan (B, P, A) and plan_mask bool.
        `kind_weights` makes sentences of some kinds more or less likely (1 when not named; all 0: as if all were 1).
        """
        rows = np.asarray(rows)
        draws = torch.rand(len(rows), generator=generator, dtype=torch.float64).tolist()
        said = np.array([self._choose(row, draw, kind_weights) for row, draw in zip(rows, draws, strict=True)])
        tokens = _padded(self._arrays["tokens"], self._first[rows], self.steps[rows], np.int64, -1)
        if (highest := int(tokens.max())) >= self.vocab_size:
            raise FileError(f"{self.path / 'tokens.npy'} holds token {highest}; there are {self.vocab_size}. {_AGAIN}")
        text = _padded(self._arrays["text"], self._text_first[said], self._text_tokens[said], np.float32, 0)
        self._finite("text", text)
        result = {
            "tokens": tokens if self.groups > 1 else tokens[..., 0],
            "token_lengths": torch.from_numpy(self.steps[rows].astype(np.int64)),
            "text": text,
            "text_lengths": torch.from_numpy(self._text_tokens[said].astype(np.int64)),
            "text_ids": torch.from_numpy(said.astype(np.int64)),
            "seconds": torch.from_numpy(self.seconds[rows].astype(np.float32)),
        }
        if "plan" in self._arrays:
            places = self._row[rows]
            result["plan"] = self._finite("plan", torch.from_numpy(self._arrays["plan"][places]))
            result["plan_mask"] = torch.from_numpy(self._arrays["plan_mask"][places])
        return result

    def _choose(self, row: int, draw: float, kind_weights: Mapping[str, float] | None) -> int:
        said = self._said[row]
        weights = np.array([(kind_weights or {}).get(kind, 1.0) for kind in self._kinds[row]], dtype=np.float64)
        if weights.sum() <= 0:
            weights[:] = 1.0
        shares = np.cumsum(weights)
        return said[min(int(np.searchsorted(shares, draw * shares[-1], side="right")), len(said) - 1)]


def _padded(array: np.ndarray, firsts: np.ndarray, lengths: np.ndarray, kind: Any, fill: int) -> Tensor:
    """Stretches of `array` (n, width) as (B, longest, width)."""
    out = np.full((len(firsts), int(lengths.max()), array.shape[1]), fill, dtype=kind)
    for i, (first, length) in enumerate(zip(firsts.tolist(), lengths.tolist(), strict=True)):
        out[i, :length] = array[first : first + length]
    return torch.from_numpy(out)
