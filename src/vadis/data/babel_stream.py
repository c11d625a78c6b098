"""BABEL-stream, MotionStreamer's format of pairs: a motion, what it does first, what it does then, and where that begins.

    train_stream/seq1.npy (or seq_1.npy)         frames of both parts (T, D)
    train_stream_text/seq1.txt (or seq_1.txt)    `first text*second text#frames of the first part`, a line a wording

Between the second text and the length there may be `#`-separated tokens, which are ignored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vadis.data.corpus import Caption, Clip, Corpus, CorpusWriter
from vadis.data.transitions import HISTORY
from vadis.errors import FileError, ShapeError, VadisError, about
from vadis.io.arrays import read_npy
from vadis.records import MAX_BYTES, read_bytes
from vadis.representations import representation as find_representation

SPLITS = {"train": "train", "val": "val"}
"""Our split by theirs, the part of a folder's name before `_stream`."""

MAX_FRAMES = 10_000_000
_NAME = re.compile(r"seq_?(\d+)(_\w+)?")
_GAP = 0.5  # seconds between two captions' spans that still follow each other


@dataclass(frozen=True)
class PairText:
    """What a text file says."""

    texts: tuple[tuple[str, str], ...]
    """First and second text of every wording."""
    first_frames: int
    """Frames of the first part."""


def parse_pair(content: str, name: str = "text") -> PairText:
    """Read the lines of a text file; of several lengths the last counts. Raises FileError when no line can be used."""
    texts: list[tuple[str, str]] = []
    frames = 0
    for number, line in enumerate(content.split("\n"), start=1):
        where = f"{name}, line {number}"
        before, star, rest = line.partition("*")
        second, *others = rest.split("#")
        if not star or not second.strip():
            continue
        if not others:
            raise FileError(f"{where}: no length in {line[:80]!r}; expected `first*second#frames of the first part`.")
        try:
            frames = int(float(others[-1]))
        except (ValueError, OverflowError) as error:
            raise FileError(f"{where}: the length {others[-1][:20]!r} in {line[:80]!r} is not a number.") from error
        if not 0 <= frames <= MAX_FRAMES:
            raise FileError(f"{where}: the first part has {frames} frames; it can't have fewer than 0 or so many.")
        texts.append((before.strip(), second.strip()))
    if not texts:
        raise FileError(f"{name}: no line says what is done second; expected `first*second#frames of the first part`.")
    return PairText(tuple(texts), frames)


def format_pair(pair: PairText) -> str:
    """The lines of a text file. Raises VadisError for texts that hold the format's own signs."""
    for text in (text for texts in pair.texts for text in texts):
        if any(sign in text for sign in "*#\n\r"):
            raise VadisError(
                f"{text[:80]!r} holds *, # or a line break, which separate the parts of a BABEL-stream line."
            )
    return "".join(f"{a}*{b}#{pair.first_frames}\n" for a, b in pair.texts)


def read_babel_stream(
    folder: str | Path, out: str | Path, *, representation: str = "ms272", fps: float = 30.0, licence: str = "unknown"
) -> Corpus:
    """Make a corpus of a BABEL-stream folder: a clip a pair, its captions timed, those of the first part of kind "history".

    Files of other names are left alone. Raises FileError for a motion without text, or one shorter than its first part.
    """
    folder, dim = Path(folder), find_representation(representation).dim
    with CorpusWriter(out, representation, fps, {"from": "BABEL-stream"}) as writer:
        for name, split in SPLITS.items():
            for path in sorted((folder / f"{name}_stream").glob("seq*.npy"), key=_number):
                if not _NAME.fullmatch(path.stem):
                    continue
                page = folder / f"{name}_stream_text" / f"{path.stem}.txt"
                if not page.is_file():
                    raise FileError(f"{path.name} has no text: {page} is missing.")
                pair = parse_pair(_text(page), str(page))
                frames = read_npy(path)
                if frames.ndim != 2 or frames.shape[1] != dim or frames.dtype.kind != "f":
                    raise ShapeError(
                        f"{path} has {frames.dtype} {frames.shape}; expected {representation} features (T, {dim})."
                    )
                if pair.first_frames >= len(frames):
                    raise FileError(
                        f"{path.name}: {len(frames)} frames, of which the first part has {pair.first_frames}."
                    )
                seam, end = pair.first_frames / fps, len(frames) / fps
                captions = [Caption(a, 0, seam, HISTORY) for a, _ in pair.texts if a and seam]
                captions += [Caption(b, seam, end) for _, b in pair.texts]
                clip = f"{name}-{path.stem}"
                with about(path):
                    writer.add(clip, frames, captions, split=split, group=clip, source="BABEL-stream", licence=licence)
        if not len(writer):
            raise FileError(f"no seq*.npy in {', '.join(f'{n}_stream' for n in SPLITS)} of {folder}.")
    return Corpus.open(out)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text (byte {error.start}).") from None


def write_babel_stream(corpus: Corpus, folder: str | Path, *, underscore: bool = False) -> int:
    """Write every two segments of `corpus` that follow each other as a BABEL-stream pair; returns how many.

    Names are `seq1`, or with `underscore` `seq_1`, which the published loader knows. Raises VadisError when no clip has
    two captioned segments in a row, or has a split BABEL-stream has no folder for.
    """
    folder, count = Path(folder), 0
    names = {split: name for name, split in SPLITS.items()}
    for clip in corpus:
        for start, seam, stop, texts in segment_pairs(clip, corpus.fps):
            if clip.split not in names:
                raise VadisError(
                    f"clip {clip.id!r}: BABEL-stream has no split {clip.split!r}, only {', '.join(names)}."
                )
            count += 1
            stem, name = f"seq{'_' if underscore else ''}{count}", names[clip.split]
            page = folder / f"{name}_stream_text" / f"{stem}.txt"
            for place in (page.parent, folder / f"{name}_stream"):
                place.mkdir(parents=True, exist_ok=True)
            page.write_text(format_pair(PairText(texts, seam - start)), encoding="utf-8")
            np.save(folder / f"{name}_stream" / f"{stem}.npy", clip.features[start:stop].numpy())
    if not count:
        raise VadisError(f"no clip of {corpus.path} has two captioned segments in a row: nothing was written.")
    return count


def segment_pairs(clip: Clip, fps: float) -> Iterator[tuple[int, int, int, tuple[tuple[str, str], ...]]]:
    """Pairs of segments in a row: start, seam and end in frames, and the texts of both, a wording of each at a time."""
    spans: dict[tuple[float, float], list[str]] = {}
    for caption in clip.captions:
        spans.setdefault((caption.start, caption.end), []).append(caption.text)
    ordered = sorted(spans)
    for a, b in _in_a_row(ordered):
        start, seam, stop = (round(t * fps) for t in (a[0], b[0], b[1]))
        stop = min(stop, len(clip.features))
        if start < seam < stop:
            first, second = spans[a], spans[b]
            texts = tuple((first[i % len(first)], text) for i, text in enumerate(second))
            yield start, seam, stop, texts


def _in_a_row(spans: list[tuple[float, float]]) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    for i, a in enumerate(spans):
        following = [b for b in spans[i + 1 :] if abs(b[0] - a[1]) <= _GAP]
        if following:
            yield a, min(following)


def _number(path: Path) -> tuple[int, str]:
    match = _NAME.fullmatch(path.stem)
    return (int(match[1]) if match else 0, path.stem)
