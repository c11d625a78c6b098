"""The clip store: float16 `.npy` shards read through a memory map, a Parquet index and a JSON page of facts.

    corpus/shard-00000.npy   (frames, D) float16, clips one after another, at most `shard_bytes` each
    corpus/index.parquet     a row a clip: clip, shard, first, frames, split, group, source, licence, captions…
    corpus/corpus.json       representation, fps, skeleton, mean and std (train split), origin, refusals

Features are stored as a representation makes them (physical units, not normalised). Float16 costs under a millimetre
(0.5 mm worst on positions, 0.03 degrees on rotations) and halves the reading; computing is in float32. A training
batch is one fancy index on the mapped array in the main process: measured faster than any number of loader workers.

Letters: B clips, T frames, D features a frame.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from vadis.data.tables import Kind, Single, check_spans, is_finite, read_array, read_page, read_table
from vadis.errors import FileError, ShapeError, VadisError
from vadis.files import WORK, atomic_folder, atomic_write
from vadis.records import checked, parse_json, read_lines

VERSION = 1
MAX_SECONDS = 1_000_000
"""Of a caption's times."""
HEADER = 128  # bytes before the data of a shard: room for any shape, so the header can be rewritten in place
STATISTICS_FRAMES = (
    200_000  # mean and std are taken over about this many frames, evenly picked clips of the train split
)


@dataclass(frozen=True)
class Caption:
    """A sentence about a clip, or about a part of it."""

    text: str
    start: float
    """Seconds into the clip."""
    end: float
    """Seconds into the clip; 0: its end."""
    kind: str = "whole"
    """What the sentence is: whole, detailed, upper, lower, label, automatic…"""


@dataclass(frozen=True, eq=False)
class Clip:
    """One row of the corpus with its features (T, D) float32."""

    id: str
    features: Tensor
    captions: tuple[Caption, ...]
    split: str
    group: str
    source: str
    licence: str
    weight: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)


def npy_header(frames: int, dim: int) -> bytes:
    """A version-1 `.npy` header of exactly HEADER bytes for a (frames, dim) float16 array."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({int(frames)}, {int(dim)}), }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


class CorpusWriter:
    """Write a corpus clip by clip; nothing appears at `path` before everything is on disk.

    Used as a context manager, which holds the folder's lock. Work goes to a folder beside `path` that takes its place on
    a clean exit (`vadis.files.atomic_folder`). On an error that folder is removed, unless `resume` is true: then it stays,
    and a later writer with `resume=True` and the same `about` carries on after the last clip (`clip_id in writer` is true
    for what needs no second visit, kept or rejected alike). The same calls in the same order give the same bytes.

    Args:
        path: folder of the corpus; an older corpus there is replaced.
        representation: name of the features.
        fps: frames per second of the features.
        about: free facts for `corpus.json` (recipe, command, data sets).
        resume: keep and continue partial work.
        inputs: what the clips are made of beyond `about` (e.g. `vadis.files.stamp`); partial work from others is dropped.
        shard_bytes: upper bound of a shard's size.

    Raises VadisError for repeated ids, ShapeError for features that are not (T, D) or not finite in float16, FileError
    when `path` is another run's or no corpus, can't be written, or the disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        representation: str = "ms272",
        fps: float = 30,
        about: Mapping[str, Any] | None = None,
        resume: bool = False,
        shard_bytes: int = 2_000_000_000,
        inputs: Any = None,
    ) -> None:
        self.path = Path(path)
        self.representation, self.fps, self.about = representation, float(fps), dict(about or {})
        self.resume, self.shard_bytes, self.inputs = resume, shard_bytes, inputs
        self.dim = 0
        self.rejected: Counter[str] = Counter()
        self._rows: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        self._shard: BinaryIO | None = None
        self._shard_frames = 0
        self._shards = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        work = {"representation": self.representation, "fps": self.fps, "about": self.about, "inputs": self.inputs}
        title = json.dumps(work, sort_keys=True, default=str) if self.resume else None
        with ExitStack() as stack:
            self._folder = stack.enter_context(atomic_folder(self.path, title, ours="corpus.json"))
            if self.resume:
                journal = self._folder / WORK / "journal.jsonl"
                if journal.exists():
                    self._recover(journal)
                self._journal = stack.enter_context(journal.open("a", encoding="utf-8"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._stack:  # the work folder takes its place at the very end
            try:
                if error is not None:
                    raise error
                self._close_shard()
                self._finish()
            finally:
                if self._shard is not None:
                    with suppress(OSError):  # a full disk, of which the error in hand speaks already
                        self._shard.close()

    @property
    def folder(self) -> Path:
        """Where to put files that belong beside the shards; it becomes `path` on a clean exit."""
        return self._folder

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._seen

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        clip_id: str,
        features: Tensor | np.ndarray,
        captions: Sequence[Caption] = (),
        *,
        split: str,
        group: str,
        source: str,
        licence: str,
        weight: float = 1.0,
        **extra: Any,
    ) -> None:
        """Append a clip: features (T, D) of any float type; `extra` is kept as JSON beside it."""
        array = np.asarray(features)
        if array.ndim != 2 or not len(array) or (self.dim and array.shape[1] != self.dim):
            raise ShapeError(
                f"clip {clip_id!r}: features of shape {array.shape}; expected (T, {self.dim or 'D'}), T > 0."
            )
        if clip_id in self._seen:
            raise VadisError(f"clip {clip_id!r} was added before; every clip of a corpus needs its own id.")
        if not weight > 0:
            raise VadisError(
                f"clip {clip_id!r}: weight {weight}; a weight is greater than zero. Leave the clip out instead."
            )
        for c in captions:
            if not 0 <= c.start < MAX_SECONDS or not (c.end == 0 or c.start <= c.end < MAX_SECONDS):
                raise VadisError(
                    f"clip {clip_id!r:.80}: a caption from {c.start} to {c.end} s; times are seconds into the clip, the end "
                    "after the start, or 0 for the clip's."
                )
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype="<f2")
        if not np.isfinite(array).all():
            raise ShapeError(
                f"clip {clip_id!r} has values that are not finite or above 65,504. Check its units (metres expected)."
            )
        self.dim = int(array.shape[1])
        if self._shard is not None and (self._shard_frames + len(array)) * self.dim * 2 + HEADER > self.shard_bytes:
            self._close_shard()
        if self._shard is None:
            self._shard = (self._folder / f"shard-{self._shards:05d}.npy").open("wb")
            self._shard.write(npy_header(0, self.dim))
            self._shards, self._shard_frames = self._shards + 1, 0
        self._shard.write(array.tobytes())
        row = {
            "clip": clip_id,
            "shard": self._shards - 1,
            "first": self._shard_frames,
            "frames": len(array),
            "split": split,
            "group": group,
            "source": source,
            "licence": licence,
            "weight": float(weight),
            "captions": [asdict(c) for c in captions],
            "extra": json.dumps(extra, sort_keys=True, ensure_ascii=False),
        }
        self._shard_frames += len(array)
        self._rows.append(row)
        self._seen.add(clip_id)
        self._note({"dim": self.dim, **row})

    def reject(self, clip_id: str, reason: str) -> None:
        """Count a clip that was looked at and left out; the counts by reason go to `corpus.json`."""
        if clip_id not in self._seen:
            self._seen.add(clip_id)
            self.rejected[reason] += 1
            self._note({"rejected": clip_id, "reason": reason})

    def _note(self, entry: dict[str, Any]) -> None:
        """Hand a clip over to the system, so that a kill can't take it: data first, then the line that speaks of them."""
        if self.resume:
            if self._shard is not None:
                self._shard.flush()
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.seek(0)
            self._shard.write(npy_header(self._shard_frames, self.dim))
            self._shard.close()
            self._shard = None

    def _recover(self, journal: Path) -> None:
        """Read back the journal, believing only lines whose data are wholly on disk."""
        kept: list[str] = []
        for _, data in read_lines(journal):
            try:
                line, entry = data.decode("utf-8").rstrip("\n"), parse_json(data, journal)
                checked(_Note, entry, journal)
            except (FileError, UnicodeDecodeError):  # cut by the kill, or what a power failure left there
                break
            if "rejected" in entry:
                self.rejected[entry["reason"]] += 1
                self._seen.add(entry["rejected"])
            else:
                dim = int(entry.pop("dim"))
                shard = self._folder / f"shard-{entry['shard']:05d}.npy"
                end = HEADER + (entry["first"] + entry["frames"]) * dim * 2
                if not shard.exists() or shard.stat().st_size < end:
                    break
                self.dim = dim
                self._rows.append(entry)
                self._seen.add(entry["clip"])
            kept.append(line)
        with atomic_write(journal) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        if self._rows:
            last = self._rows[-1]
            self._shards, self._shard_frames = last["shard"] + 1, last["first"] + last["frames"]
            self._shard = (self._folder / f"shard-{last['shard']:05d}.npy").open("r+b")
            self._shard.truncate(HEADER + self._shard_frames * self.dim * 2)
            self._shard.seek(0, 2)

    def _finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            reasons = ", ".join(f"{n} {why}" for why, n in self.rejected.most_common(5)) or "no clip was offered"
            raise VadisError(f"the corpus {self.path} would be empty ({reasons}). Check the sources and the filters.")
        pq.write_table(
            pa.Table.from_pylist(self._rows, schema=_schema()), self._folder / "index.parquet", compression="zstd"
        )
        mean, std = self._statistics()
        page = {
            "format": "vadis-corpus",
            "version": VERSION,
            "representation": self.representation,
            "fps": self.fps,
            "dim": self.dim,
            "clips": len(self._rows),
            "frames": sum(r["frames"] for r in self._rows),
            "shards": self._shards,
            "splits": dict(sorted(Counter(r["split"] for r in self._rows).items())),
            "skeleton": _skeleton_page(),
            "mean": mean,
            "std": std,
            "about": self.about,
            "rejected": dict(sorted(self.rejected.items())),
        }
        (self._folder / "corpus.json").write_text(
            json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        for stray in self._folder.glob("shard-*.npy"):  # from a resumed run that had got further than its journal
            if int(stray.stem[6:]) >= self._shards:
                stray.unlink()

    def _statistics(self) -> tuple[list[float], list[float]]:
        """Mean and std (D,) by the representation's own rule, over evenly picked train clips (or all clips)."""
        from vadis.representations import representation

        rows = [r for r in self._rows if r["split"] == "train"] or self._rows
        step = max(1, sum(r["frames"] for r in rows) // STATISTICS_FRAMES)
        shards = [_open_shard(self._folder, i, self.dim) for i in range(self._shards)]
        spans = ((shards[r["shard"]], r["first"], r["first"] + r["frames"]) for r in rows[::step])
        picked = (torch.from_numpy(shard[a:b].astype(np.float32)) for shard, a, b in spans)
        mean, std = representation(self.representation).statistics(picked)
        return torch.as_tensor(mean).float().tolist(), torch.as_tensor(std).float().tolist()


class _RejectedNote(TypedDict):
    """A line of the journal: a clip that was left out."""

    rejected: str
    reason: str


class _ClipNote(TypedDict):
    """A line of the journal: a row of the index."""

    dim: Annotated[int, Field(ge=1)]
    clip: str
    shard: Annotated[int, Field(ge=0, le=100_000)]
    first: Annotated[int, Field(ge=0)]
    frames: Annotated[int, Field(ge=1)]
    split: str
    group: str
    source: str
    licence: str
    weight: float
    captions: list[Caption]
    extra: str


_Note: Any = _RejectedNote | _ClipNote
_AGAIN = "Copy the corpus again or rebuild it."
_CAPTION: dict[str, Kind] = {"text": "text", "start": "number", "end": "number", "kind": "text"}
_COLUMNS: dict[str, Any] = {
    "clip": "text", "shard": "whole", "first": "whole", "frames": "whole", "split": "text", "group": "text", "source": "text",
    "licence": "text", "weight": "number", "captions": _CAPTION, "extra": "text",
}  # fmt: skip


@dataclass(frozen=True)
class _Page:
    """What must stand in `corpus.json`."""

    representation: str
    fps: Annotated[float, Field(gt=0, le=10_000)]
    dim: Annotated[int, Field(ge=1, le=100_000)]
    clips: Annotated[int, Field(ge=0)]
    frames: Annotated[int, Field(ge=0)]
    shards: Annotated[int, Field(ge=0, le=100_000)]
    splits: dict[str, int]
    mean: list[Single]
    std: list[Annotated[Single, Field(ge=0)]]
    about: dict[str, Any]
    rejected: dict[str, int]


def _schema() -> Any:
    import pyarrow as pa

    caption = pa.struct([("text", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("kind", pa.string())])
    columns = [("clip", pa.string()), ("shard", pa.int32()), ("first", pa.int64()), ("frames", pa.int32())]
    columns += [(name, pa.string()) for name in ("split", "group", "source", "licence")]
    return pa.schema([*columns, ("weight", pa.float64()), ("captions", pa.list_(caption)), ("extra", pa.string())])


def _skeleton_page() -> dict[str, Any]:
    from vadis.skeleton import smpl22

    skeleton = smpl22()
    offsets = [[round(float(v), 6) for v in row] for row in skeleton.offsets]
    return {"name": skeleton.name, "names": list(skeleton.names), "parents": list(skeleton.parents), "offsets": offsets}


def _open_shard(folder: Path, number: int, dim: int) -> np.ndarray:
    """Map a shard (frames, D) float16; raises FileError when it is missing, cut or of another width."""
    path = folder / f"shard-{number:05d}.npy"
    if not path.is_file():
        raise FileError(f"{path} is missing although the index names it. {_AGAIN}")
    array = read_array(path, "f", (None, dim), _AGAIN)
    if array.dtype != np.float16:
        raise FileError(f"{path} holds {array.dtype}; expected float16. {_AGAIN}")
    return array


class Corpus:
    """A corpus opened for reading: a sequence of `Clip`. Made by `Corpus.open`; subsets share the mapped data."""

    def __init__(self, path: Path, about: dict[str, Any], table: Any, shards: list[np.ndarray]) -> None:
        self.path, self.about, self._table, self._shards = path, about, table, shards
        self._index = str(path / "index.parquet")
        self.representation: str = about["representation"]
        self.fps: float = about["fps"]
        self.dim: int = about["dim"]
        self.mean = torch.tensor(about["mean"], dtype=torch.float32)
        """(D,) over the train split."""
        self.std = torch.tensor(about["std"], dtype=torch.float32)
        """(D,) over the train split, by the representation's rule."""
        self.frames, self.weights = (table.column(n).to_numpy() for n in ("frames", "weight"))
        self._shard_of, self._first = (table.column(n).to_numpy() for n in ("shard", "first"))
        self._rows_by_id: dict[str, int] | None = None
        self._cumulative: dict[int, np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Corpus":
        """Open a corpus folder; raises FileError when it is missing, damaged or of another version."""
        path = Path(path)
        if not (path / "corpus.json").is_file():
            raise FileError(f"no corpus at {path} (no corpus.json there). Build one with `vadis data build`.")
        about = read_page(path / "corpus.json", _Page, "vadis-corpus", VERSION, "Rebuild the corpus.")
        if not len(about["mean"]) == len(about["std"]) == about["dim"]:
            raise FileError(f"{path / 'corpus.json'}: mean and std need {about['dim']} values each. {_AGAIN}")
        table = read_table(path / "index.parquet", _COLUMNS, about["clips"], _AGAIN)
        shards = [_open_shard(path, i, about["dim"]) for i in range(about["shards"])]
        corpus = cls(path, about, table, shards)
        sizes = np.array([len(s) for s in shards], dtype=np.int64)
        if (corpus._shard_of >= len(sizes)).any():
            raise FileError(f"{path / 'index.parquet'} names shards that {path} doesn't have. {_AGAIN}")
        check_spans(path / "index.parquet", "frames", corpus._first, corpus.frames, sizes[corpus._shard_of], _AGAIN)
        if len(table) and (corpus.frames.min() < 1 or not corpus.weights.min() > 0):
            raise FileError(f"{path / 'index.parquet'}: a clip has at least a frame and a weight above 0. {_AGAIN}")
        corpus._check_times()
        return corpus

    @cached_property
    def ids(self) -> list[str]:
        """The clips' names. Raises FileError when one comes twice."""
        ids = self._table.column("clip").to_pylist()
        if len(set(ids)) < len(ids):
            twice = next(name for name, count in Counter(ids).items() if count > 1)
            raise FileError(f"{self.path / 'index.parquet'}: the clip {twice!r:.80} is there twice. {_AGAIN}")
        return ids

    def _check_times(self) -> None:
        """Raise FileError for a caption of times that can't be."""
        import pyarrow.compute as pc

        column = self._table.column("captions")
        said = pc.call_function("list_flatten", [column])
        start, end = (
            pc.call_function("struct_field", [said], pc.StructFieldOptions(name)).to_numpy()
            for name in ("start", "end")
        )
        wrong = (start < 0) | (start >= MAX_SECONDS) | (end >= MAX_SECONDS) | ((end < start) & (end != 0))
        if wrong.any():
            place = int(wrong.argmax())
            clip = self.ids[pc.call_function("list_parent_indices", [column])[place].as_py()]
            raise FileError(
                f"{self.path / 'index.parquet'}, clip {clip!r:.60}: a caption from {start[place]:g} to {end[place]:g} s. {_AGAIN}"
            )

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> Clip:
        if not -len(self) <= row < len(self):
            raise IndexError(f"clip {row} of a corpus of {len(self)}")
        r = self._table.slice(row % len(self), 1).to_pylist()[0]
        captions = tuple(Caption(**c) for c in r["captions"])
        facts = {k: r[k] for k in ("split", "group", "source", "licence", "weight")}
        extra = self._extra(r["clip"], r["extra"]) if r["extra"] != "{}" else {}
        return Clip(r["clip"], self.frames_of(row % len(self)), captions, **facts, extra=extra)

    def _extra(self, clip: str, text: str) -> dict[str, Any]:
        where = f"{self._index}, clip {clip!r:.60}, extra"
        extra = parse_json(text, where)
        if not isinstance(extra, dict):
            raise FileError(f"{where}: expected a JSON object, not a {type(extra).__name__}. {_AGAIN}")
        return extra

    def frames_of(self, row: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Frames `start` to `stop` of a clip (T, D) float32, without reading the rest."""
        first = int(self._first[row])
        last = first + min(int(self.frames[row]), self.frames[row] if stop is None else stop)
        return self._features(self._shard_of[row], slice(first + start, last))

    def _features(self, shard: int, frames: Any) -> Tensor:
        """Frames of a shard as float32, which must be finite."""
        array = self._shards[shard][frames].astype(np.float32)
        if not is_finite(array):
            raise FileError(f"{self.path / f'shard-{shard:05d}.npy'} holds NaN or infinite values. {_AGAIN}")
        return torch.from_numpy(array)

    def __iter__(self) -> Iterator[Clip]:
        return (self[i] for i in range(len(self)))

    @property
    def hours(self) -> float:
        """Length of all clips together."""
        return float(self.frames.sum()) / self.fps / 3600

    def column(self, name: str) -> list[Any]:
        """One column of the index (split, group, source, licence, captions…) without touching the features."""
        if name not in self._table.column_names:
            raise VadisError(f"the corpus has no column {name!r}. It has: {', '.join(self._table.column_names)}.")
        return self._table.column(name).to_pylist()

    def find(self, clip_id: str) -> Clip:
        """The clip of that id; raises VadisError when there is none."""
        if self._rows_by_id is None:
            self._rows_by_id = {name: i for i, name in enumerate(self.ids)}
        if clip_id not in self._rows_by_id:
            raise VadisError(f"no clip {clip_id!r} among the {len(self)} of {self.path}. Ids look like {self.ids[:1]}.")
        return self[self._rows_by_id[clip_id]]

    def subset(self, split: str | None = None, *, source: str | None = None, group: str | None = None) -> "Corpus":
        """The clips whose split, source and group match; same statistics. Raises VadisError when none does."""
        keep = np.ones(len(self), dtype=bool)
        for name, wanted in (("split", split), ("source", source), ("group", group)):
            if wanted is not None:
                values = np.array(self.column(name), dtype=object)
                keep &= values == wanted
                if not keep.any():
                    there = ", ".join(sorted(set(values))[:20])
                    hint = " Hold clips out with `vadis data build … --validation-every N`." if wanted == "val" else ""
                    raise VadisError(f"no clip with {name} {wanted!r} in {self.path}. There are: {there}.{hint}")
        return Corpus(self.path, self.about, self._table.filter(keep), self._shards)

    def with_splits(self, splits: Sequence[str]) -> "Corpus":
        """The same clips with other splits, one a clip; nothing is written. Statistics stay those of the file."""
        import pyarrow as pa

        place = self._table.column_names.index("split")
        table = self._table.set_column(place, "split", pa.array(list(splits), pa.string()))
        return Corpus(self.path, self.about, table, self._shards)

    def windows(self, batch: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """Random windows (B, length, D) float32.

        A clip comes up in proportion to weight × number of positions a window can take in it; then every position is
        equally likely. Clips shorter than `length` never do. Raises VadisError when all are shorter.
        """
        positions = self.frames - length + 1
        if length not in self._cumulative:
            shares = np.cumsum(np.maximum(positions, 0) * self.weights)
            if not len(shares) or shares[-1] <= 0:
                longest = self.frames.max(initial=0)
                raise VadisError(
                    f"no clip of {self.path} has {length} frames (longest: {longest}). Use a shorter window."
                )
            self._cumulative[length] = shares
        shares = self._cumulative[length]
        draws = torch.rand(batch, 2, generator=generator, dtype=torch.float64).numpy()
        highest = np.searchsorted(shares, shares[-1])  # the last clip with a share, should rounding reach the very end
        clips = np.minimum(np.searchsorted(shares, draws[:, 0] * shares[-1], side="right"), highest)
        starts = self._first[clips] + np.minimum(
            (draws[:, 1] * positions[clips]).astype(np.int64), positions[clips] - 1
        )
        frames = starts[:, None] + np.arange(length)  # (B, length)
        shard_of = self._shard_of[clips]
        if (shard_of == shard_of[0]).all():
            return self._features(int(shard_of[0]), frames)
        out = torch.empty(batch, length, self.dim)
        for shard in np.unique(shard_of):
            mine = shard_of == shard
            out[torch.from_numpy(mine)] = self._features(int(shard), frames[mine])
        return out
