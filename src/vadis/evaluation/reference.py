"""What a model is measured against: recorded motion with captions, from a corpus or a folder, or a file of prompts.

An item is a clip, or a captioned part of one. A draw is what one seed makes of an item: a caption, a length and a place.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from typing_extensions import TypedDict

from vadis.data.corpus import MAX_SECONDS, Corpus
from vadis.errors import FileError, VadisError
from vadis.evaluation.protocol import Protocol
from vadis.io.arrays import map_npy
from vadis.records import MAX_BYTES, checked, parse_json, read_bytes, read_json_lines, read_lines, read_rows
from vadis.representations import representation

WHOLE = 0.15  # seconds by which a caption's span may miss the ends of a clip and still be about all of it


@dataclass(frozen=True)
class Text:
    """A caption, and its `word/POS` tokens where the data has them."""

    text: str
    tokens: str = ""


@dataclass(frozen=True)
class Item:
    """Frames `first` to `first + frames` of a clip and the captions about exactly these; a stream has several parts."""

    id: str
    clip: int
    first: int
    frames: int
    captions: tuple[tuple[Text, ...], ...]
    """Captions of every part; one part but for streams."""
    parts: tuple[int, ...]
    """Frames of every part."""
    group: str = ""
    """The dimension of a prompt file that it serves."""
    options: tuple[str, ...] = ()
    """Wrong labels that a judge chooses among."""


@dataclass(frozen=True)
class Draw:
    """What one seed asks for: the texts, the frames of every part, and where the recording starts."""

    item: Item
    texts: tuple[Text, ...]
    parts: tuple[int, ...]
    first: int

    @property
    def frames(self) -> int:
        return sum(self.parts)


@dataclass(frozen=True, eq=False)
class Reference:
    """Items, how to read their recordings, and what identifies them."""

    name: str
    representation: str
    fps: float
    items: tuple[Item, ...]
    read: Callable[[int, int, int], Tensor] | None
    """Clip row, first and last frame → features (T, D); None for prompts."""
    identity: str
    notes: tuple[str, ...] = ()
    source: Any = None
    """The corpus, for baselines that look things up in its train split."""
    left_out: dict[str, int] = field(default_factory=dict)

    def features(self, draw: Draw) -> Tensor:
        """The recording (T, D) of a draw."""
        if self.read is None:
            raise VadisError(f"{self.name} has prompts only, no recorded motion: give a corpus as data.")
        return self.read(draw.item.clip, draw.first, draw.first + draw.frames)

    def draws(self, protocol: Protocol, seed: int) -> list[Draw]:
        """One draw of every item, in the order of the items; seed and item decide, not the company."""
        return [_draw(item, protocol, seed) for item in self.items]


def _draw(item: Item, protocol: Protocol, seed: int) -> Draw:
    rng = random.Random(f"{seed}/{item.id}")
    pick = (lambda n: rng.randrange(n)) if protocol.caption == "random" else (lambda n: 0)
    texts = tuple(options[pick(len(options))] for options in item.captions if options)
    if len(item.parts) > 1 or protocol.unit == 1:
        return Draw(item, texts, item.parts, item.first)
    frames = item.frames // protocol.unit * protocol.unit
    if rng.random() < protocol.shorten and frames - protocol.unit >= protocol.unit:
        frames -= protocol.unit
    first = item.first + (rng.randrange(item.frames - frames + 1) if protocol.shorten else 0)
    return Draw(item, texts, (frames,), first)


# ---- items


def _spans(clip_id: str, row: int, frames: int, fps: float, captions: Sequence[tuple[Text, float, float]],
           protocol: Protocol) -> list[Item]:  # fmt: skip
    """Items of one clip: all of it, and its captioned parts when the protocol counts them."""
    spans: dict[tuple[int, int], list[Text]] = {}
    for text, start, end in captions:
        a, b = round(start * fps), min(round(end * fps), frames)
        if start <= WHOLE and b >= frames - WHOLE * fps:
            a, b = 0, frames
        spans.setdefault((a, b), []).append(text)
    if protocol.task == "reconstruction":
        spans = {(0, frames): spans.get((0, frames), [])}
    elif protocol.items == "clips":
        spans = {(0, frames): spans[0, frames]} if (0, frames) in spans else {}
    ordered = sorted(spans.items())
    if protocol.task == "stream":
        pairs = [(one, two) for one in ordered if (two := _next(one[0][1], ordered)) is not None]
        return [
            Item(f"{clip_id}@{a[0]}-{a[1]}-{b[1]}", row, a[0], b[1] - a[0], (tuple(s), tuple(t)), (a[1] - a[0], b[1] - a[1]))
            for (a, s), (b, t) in pairs
        ]  # fmt: skip
    found = []
    for (a, b), texts in ordered:
        for first, last in _pieces(a, b, protocol):
            whole = (first, last) == (0, frames)
            name = clip_id if whole else f"{clip_id}@{first}-{last}"
            found.append(Item(name, row, first, last - first, (tuple(texts),), (last - first,)))
    return found


def _next(frame: int, ordered: list[tuple[tuple[int, int], list[Text]]]) -> tuple[tuple[int, int], list[Text]] | None:
    """The captioned part that begins where another ended."""
    return next((span for span in ordered if abs(span[0][0] - frame) <= 2), None)


def _pieces(first: int, last: int, protocol: Protocol) -> list[tuple[int, int]]:
    frames = last - first
    if protocol.long == "drop" or frames <= protocol.max_frames:
        return [(first, last)]
    edges = np.linspace(first, last, -(-frames // protocol.max_frames) + 1).round().astype(int).tolist()
    return list(zip(edges, edges[1:], strict=False))


def _fitting(items: Sequence[Item], protocol: Protocol) -> tuple[list[Item], dict[str, int]]:
    """Items with parts of the right length, and how many were left out for what reason."""
    kept, out = [], {"shorter": 0, "longer": 0}
    for item in items:
        if min(item.parts) < protocol.min_frames:
            out["shorter"] += 1
        elif max(item.parts) > protocol.max_frames:
            out["longer"] += 1
        else:
            kept.append(item)
    return kept, {reason: n for reason, n in out.items() if n}


def _make(name: str, kind: str, fps: float, items: list[Item], read: Any, digest: Any, protocol: Protocol,
          source: Any = None, notes: Sequence[str] = ()) -> Reference:  # fmt: skip
    if kind != protocol.representation:
        raise VadisError(
            f"protocol {protocol.name} measures {protocol.representation} features; {name} holds {kind}. Convert it "
            f"(`vadis convert IN OUT --to {protocol.representation}`), or take a protocol of {kind}."
        )
    expected = representation(kind).fps
    if abs(fps - expected) > 1e-3:
        raise VadisError(f"{name} has {fps:g} frames/s; {kind} is measured at {expected:g}. Build it at that rate.")
    kept, out = _fitting(items, protocol)
    if not kept:
        what = "two adjacent captioned parts" if protocol.task == "stream" else "a caption"
        reasons = ", ".join(f"{n} {why}" for why, n in out.items()) or f"no clip has {what}"
        raise VadisError(
            f"nothing of {name} fits protocol {protocol.name}: it takes items of {protocol.min_frames} to "
            f"{protocol.max_frames} frames ({reasons}). Choose another split, `kinds` of captions, or protocol."
        )
    digest.update(repr([(i.id, i.first, i.frames, i.captions) for i in kept]).encode())
    return Reference(name, kind, fps, tuple(kept), read, digest.hexdigest()[:16], tuple(notes), source, out)


# ---- where they come from


def from_corpus(corpus: Corpus, protocol: Protocol, split: str | None = None, kinds: Sequence[str] = ("whole",)) -> Reference:  # fmt: skip
    """Items of a corpus' split: "test" or "val" unless one is named, "all" for everything.

    Raises VadisError for another representation, an unknown split, and when nothing fits.
    """
    there = set(corpus.column("split"))
    chosen = split or next((s for s in ("test", "val") if s in there), None)
    if chosen is None:
        raise VadisError(f"{corpus.path} has no test and no val split (it has: {', '.join(sorted(there))}): name one, or all.")  # fmt: skip
    part = corpus if chosen == "all" else corpus.subset(chosen)
    name = f"{corpus.path.resolve().name}/{chosen}"
    known = {caption["kind"] for captions in part.column("captions") for caption in captions}
    if protocol.task != "reconstruction" and kinds and known and not known & set(kinds):
        raise VadisError(
            f"no caption of {name} is of the kind {' or '.join(kinds)}; there are: {', '.join(sorted(known))}. Choose with kinds=."
        )
    items, digest = [], hashlib.sha256()
    for row, (clip, captions) in enumerate(zip(part.ids, part.column("captions"), strict=True)):
        texts = [(Text(c["text"]), c["start"], c["end"]) for c in captions if not kinds or c["kind"] in kinds]
        items += _spans(clip, row, int(part.frames[row]), part.fps, texts, protocol)
        if row % max(1, len(part) // 200) == 0:
            digest.update(part.frames_of(row, 0, 1).numpy().tobytes())
    return _make(name, part.representation, part.fps, items, part.frames_of, digest, protocol, corpus)


def from_folder(folder: Path, protocol: Protocol) -> Reference:
    """Items of a folder of `<id>.npy` features and their captions: `<id>.txt` beside them or in `texts/` (HumanML3D's
    lines `caption#tokens#start#end`, or plain sentences), or `captions.jsonl` with `id` and `text`.

    Raises FileError for arrays that don't fit, VadisError for captions without motion, naming their ids.
    """
    rep = representation(protocol.representation)
    paths = {p.stem: p for p in sorted(folder.glob("*.npy"))}
    if not paths:
        raise FileError(
            f"{folder} has no corpus.json and no .npy files: give a corpus, or a folder of <id>.npy features."
        )
    captions = _captions(folder)
    if missing := sorted(set(captions) - set(paths)):
        raise VadisError(f"{len(missing)} captions of {folder} have no motion: {_some(missing)}. Add their .npy files, or remove the captions.")  # fmt: skip
    sizes = {}
    for clip, path in paths.items():
        array = read_array(path)
        if array.ndim != 2 or array.shape[1] != rep.dim:
            hint = f"convert them with `vadis convert {path.name} OUT.npy --to {rep.name}`"
            raise FileError(f"{path} is {array.shape}; protocol {protocol.name} needs {rep.name} features (T, {rep.dim}): {hint}.")  # fmt: skip
        sizes[clip] = len(array)
    order, items, digest = list(paths), [], hashlib.sha256()
    for row, clip in enumerate(order):
        texts = [(Text(t, k), a, b or sizes[clip] / rep.fps) for t, k, a, b in captions.get(clip, [])]
        items += _spans(clip, row, sizes[clip], rep.fps, texts or [(Text(""), 0, sizes[clip] / rep.fps)], protocol)
    digest.update(paths[order[0]].read_bytes())

    def read(row: int, first: int, last: int) -> Tensor:
        x = torch.from_numpy(np.array(read_array(paths[order[row]])[first:last], np.float32))
        if not torch.isfinite(x).all():
            raise VadisError(f"{paths[order[row]]} has values that are not finite: repair or remove the clip.")
        return x

    bare = sum(not captions.get(clip) for clip in order)
    notes = [f"{bare} clips have no caption."] if 0 < bare < len(order) else []
    if bare == len(order):
        items = [Item(i.id, i.clip, i.first, i.frames, ((),), i.parts) for i in items]
    elif bare:
        items = [i for i in items if captions.get(order[i.clip])]
    return _make(folder.resolve().name, rep.name, rep.fps, items, read, digest, protocol, None, notes)


Name = Annotated[str, Field(min_length=1, max_length=1000)] | int
Seconds = Annotated[float, Field(ge=0, lt=MAX_SECONDS)]


class CaptionRow(TypedDict):
    """A line of a folder's `captions.jsonl`."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # type: ignore[misc]
    id: Name
    text: str
    tokens: NotRequired[str]
    start: NotRequired[Seconds]
    end: NotRequired[Seconds]


class PromptRow(TypedDict):
    """An entry of a prompt file."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # type: ignore[misc]
    prompt: NotRequired[str]
    text: NotRequired[str]
    motion_duration: NotRequired[float]
    seconds: NotRequired[float]
    global_id: NotRequired[Name]
    id: NotRequired[Name]
    dimension: NotRequired[str]
    auxiliary_info: NotRequired[list[Any] | None]


def _captions(folder: Path) -> dict[str, list[tuple[str, str, float, float]]]:
    """Captions by id: (text, tokens, start, end); an end of 0 is that of the clip."""
    found: dict[str, list[tuple[str, str, float, float]]] = {}
    if (folder / "captions.jsonl").is_file():
        for number, row in read_rows(CaptionRow, folder / "captions.jsonl"):
            start, end = _span(
                row.get("start", 0.0), row.get("end", 0.0), f"{folder / 'captions.jsonl'}, line {number}"
            )
            found.setdefault(str(row["id"]), []).append((row["text"], row.get("tokens", ""), start, end))
        return found
    texts = next((p for p in (folder / "texts", folder.parent / "texts", folder) if any(p.glob("*.txt"))), None)
    for path in sorted(texts.glob("*.txt")) if texts else []:
        if texts == folder.parent / "texts" and not (folder / f"{path.stem}.npy").exists():
            continue  # published folders hold the texts of all splits
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            try:
                parts = line.decode("utf-8").strip().split("#")
            except UnicodeDecodeError:
                raise FileError(f"{where} is not UTF-8 text.") from None
            if parts[0]:
                start, end = (_seconds(parts[k], where) if len(parts) > k else 0.0 for k in (2, 3))
                start, end = _span(start, end, where)
                found.setdefault(path.stem, []).append((parts[0], parts[1] if len(parts) > 1 else "", start, end))
    return found


def _seconds(text: str, where: str) -> float:
    """A published time; `nan` and nothing are read as 0."""
    try:
        value = float(text or 0)
    except ValueError:
        raise FileError(f"{where}: {text!r:.40} is not a time; expected `caption#tokens#start#end`.") from None
    return 0.0 if math.isnan(value) else value


def _span(start: float, end: float, where: str) -> tuple[float, float]:
    """Times of a caption that can be: from 0 on, and an end after the start, or 0 for the clip's."""
    if not 0 <= start < MAX_SECONDS or not (end == 0 or start < end < MAX_SECONDS):
        raise FileError(
            f"{where}: from {start:g} to {end:g} s; a caption begins at 0 or later and ends after that, or at 0: the clip's end."
        )
    return start, end


def from_prompts(path: Path, protocol: Protocol) -> Reference:
    """Items of a prompt file: a JSON list (or lines) of objects with `prompt` (or `text`), `global_id` or `id`, and
    `motion_duration` or `seconds`; `dimension` groups them. Raises FileError naming the entry that doesn't fit."""
    text = read_bytes(path, MAX_BYTES)
    rows = parse_json(text, path) if text.lstrip().startswith(b"[") else [row for _, row in read_json_lines(path)]
    if not isinstance(rows, list):
        raise FileError(f"{path} holds a {type(rows).__name__}; expected a list of prompts.")
    fps = representation(protocol.representation).fps
    items: dict[str, Item] = {}
    for number, page in enumerate(rows):
        where = f"{path} entry {number}"
        row = checked(PromptRow, page, where)
        prompt, seconds = row.get("prompt", row.get("text")), row.get("motion_duration", row.get("seconds"))
        if prompt is None or seconds is None:
            raise FileError(f"{where}: expected prompt and motion_duration (seconds), found {str(page)[:80]}.")
        prompt, name = prompt.strip(), str(row.get("global_id", row.get("id", number)))
        others = tuple(map(str, row.get("auxiliary_info") or ()))
        if not prompt or not 0.2 <= seconds <= 600:
            raise FileError(f"{where}: a prompt is a sentence of 0.2 to 600 seconds; found {str(page)[:80]}.")
        if name in items:
            raise FileError(f"{path}: the id {name} occurs twice. Give every prompt its own id.")
        frames = max(4, round(seconds * fps))
        items[name] = Item(name, -1, 0, frames, ((Text(prompt),),), (frames,), str(row.get("dimension", "")), others)
    if not items:
        raise FileError(f"{path} holds no prompts.")
    digest = hashlib.sha256(repr(sorted(items.items())).encode()).hexdigest()[:16]
    return Reference(path.name, protocol.representation, fps, tuple(items.values()), None, digest)


def read_array(path: Path) -> np.ndarray:
    """A mapped float array of a .npy file; raises FileError."""
    array = map_npy(path)
    if not np.issubdtype(array.dtype, np.floating):
        raise FileError(f"{path} holds {array.dtype}; expected floating point features.")
    return array


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
