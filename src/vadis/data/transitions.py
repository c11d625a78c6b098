"""Pairs of motions, one going over into the other, where no corpus has enough of them: cross-faded and marked so.

A streaming generator learns from what came before and a new text. `join_pairs` lays a captioned clip behind a stretch of
another one where the two are most alike and writes a corpus of them with timed captions.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vadis.data import compose
from vadis.data.corpus import Caption, Clip, Corpus, CorpusWriter
from vadis.errors import VadisError
from vadis.representations import representation

HISTORY = "history"
"""Kind of the captions of the first part, which is cut anywhere: not a motion to learn, only one to go on from."""

TRIES = 8  # second clips looked at for one first clip


def join_pairs(
    corpus: Corpus,
    out: str | Path,
    count: int,
    *,
    validation_count: int = 0,
    seconds_before: tuple[float, float] = (1.6, 5.0),
    blend: float = 0.4,
    limit: float = 0.6,
    seed: int = 0,
) -> Corpus:
    """Write `count` pairs of training clips of `corpus`, and `validation_count` of its validation clips, to `out`.

    Args:
        seconds_before: least and most of the first clip, cut at a random place.
        blend: seconds of cross-fade.
        limit: pairs further apart at the seam (see `compose.join`) are not made.

    The same arguments give the same corpus. Raises VadisError when a split has fewer than two captioned clips.
    """
    rep, options = representation(corpus.representation), (seconds_before, blend, limit)
    about = {"from": corpus.path.name, "seed": seed, "blend": blend, "limit": limit}
    with CorpusWriter(out, rep.name, corpus.fps, about, resume=True) as writer:
        for split, wanted in (("train", count), ("val", validation_count)):
            if not wanted:
                continue
            clips = corpus.subset(split)
            rows = [i for i, captions in enumerate(clips.column("captions")) if captions]
            if len(rows) < 2:
                raise VadisError(f"split {split!r} of {corpus.path} has fewer than two captioned clips to join.")
            for number in range(wanted):
                name = f"{split}-pair-{number:06d}"
                if name not in writer:
                    _add(writer, name, clips, rows, options, random.Random(f"{seed}-{name}"))
    return Corpus.open(out)


def _add(
    writer: CorpusWriter,
    name: str,
    clips: Corpus,
    rows: Sequence[int],
    options: tuple[tuple[float, float], float, float],
    rng: random.Random,
) -> None:
    (least, most), blend, limit = options
    rep, fps = representation(clips.representation), clips.fps
    for _ in range(TRIES):
        a, b = (clips[rng.choice(rows)] for _ in range(2))
        frames = round(rng.uniform(least, most) * fps)
        if a.features.shape[0] < frames or b.features.shape[0] < round(least * fps):
            continue
        start = rng.randrange(a.features.shape[0] - frames + 1)
        first, second = rep.decode(a.features).crop(start, start + frames), rep.decode(b.features)
        joined, seam, distance = compose.join(first, second, blend=blend)
        if distance > limit:
            continue
        made = _captions(a, HISTORY, 0, seam / fps, fps)
        made += _captions(b, None, seam / fps, joined.num_frames / fps, fps)
        facts: dict[str, Any] = {
            "split": a.split,
            "group": name,
            "source": "joined",
            "licence": "see the source corpus",
        }
        writer.add(name, rep.encode(joined), made, **facts, joined=[a.id, b.id], distance=round(distance, 3))
        return
    writer.reject(name, "no pair is alike enough")


def _captions(clip: Clip, kind: str | None, start: float, end: float, fps: float) -> list[Caption]:
    """Captions of a whole clip as those of a part of another; a `history` needs one only."""
    whole = [c for c in clip.captions if c.end - c.start >= 0.8 * len(clip.features) / fps] or list(clip.captions)
    chosen = whole[:1] if kind else whole
    return [Caption(c.text, start, end, kind or c.kind) for c in chosen]
