"""What two parts of the data have in common, captions and motion: a test set that was trained on measures memory.

With one corpus the report tells what is repeated inside it. With a reference (train) and a tested part it tells what of
the tested part occurs in the reference. Captions are compared by their words; motion as `motion_overlap` describes.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from vadis.data.corpus import Corpus
from vadis.data.minhash import near_pairs
from vadis.data.motion_overlap import MotionPair, motion_pairs
from vadis.data.text_stats import TextStats, Unknown, corpus_texts, text_stats, unknown_words, words_of

COPY_MM = 5.0
"""Mean joint distance in millimetres below which two stretches are one recording: repeated takes of one walk by one
person differ by 10 mm and more."""


@dataclass(frozen=True)
class SameText:
    """A caption that occurs more than once, with the clips that have it on either side (second: the tested part)."""

    text: str
    first: tuple[str, ...]
    second: tuple[str, ...] = ()


@dataclass(frozen=True)
class NearText:
    """Two captions with nearly the same words, and the clips that have them."""

    jaccard: float
    first_text: str
    second_text: str
    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass(frozen=True)
class OverlapReport:
    """Everything `overlap` finds. In a report on one corpus `second` is empty and shares are of the corpus itself."""

    first_name: str
    second_name: str
    first: TextStats
    second: TextStats | None
    jaccard: float
    millimetres: float
    seconds: float
    same_texts: tuple[SameText, ...]
    near_texts: tuple[NearText, ...]
    same_share: float
    """Captions whose words occur in another clip (of the reference), of all (tested) captions."""
    near_share: float
    """… or nearly so: word sets at least `jaccard` alike."""
    unknown: Unknown | None
    motion: tuple[MotionPair, ...] | None
    """None when motion was not compared."""
    copied_clips: int
    """(Tested) clips of which a stretch is copied: closer than COPY_MM."""
    near_clips: int
    """(Tested) clips in any motion pair: a stretch in which every `seconds` are closer than `millimetres`."""
    across: int
    """Motion pairs whose clips belong to different splits."""

    def markdown(self, most: int = 40) -> str:
        """The report as a Markdown page with at most `most` rows a list."""
        return _markdown(self, most)


def overlap(
    first: Corpus,
    second: Corpus | None = None,
    *,
    names: tuple[str, str] = ("train", "test"),
    kinds: Sequence[str] = (),
    jaccard: float = 0.8,
    millimetres: float = 20.0,
    seconds: float = 2.0,
    mirrored: bool = False,
    motion: bool = True,
) -> OverlapReport:
    """Compare the captions and the motion of two parts, or of one corpus with itself.

    Args:
        first: the reference, usually the train split.
        second: the tested part; None looks for repetitions inside `first`.
        names: what the report calls the two.
        kinds: only captions of these kinds; all by default.
        jaccard: see `minhash.near_pairs`. millimetres, seconds, mirrored: see `motion_overlap.motion_pairs`.
        motion: False compares captions only.

    Raises VadisError for limits out of range or a kind that no caption has.
    """
    parts: list[list[list[str]]] = [corpus_texts(first, kinds)] + (
        [corpus_texts(second, kinds)] if second is not None else []
    )
    clips = [_clips_of(texts, c.ids) for texts, c in zip(parts, (first, second), strict=False) if c is not None]
    same = _same_texts(clips)
    near = _near_texts(clips, jaccard)
    pairs = motion_pairs(first, second, millimetres, seconds, mirrored) if motion else None
    tested = clips[-1]
    hit = {s.text for s in same}
    side = {t for n in near for t in ((n.second_text,) if second is not None else (n.first_text, n.second_text))}
    count = max(1, sum(len(found) for found in tested.values()))
    of_split = {id: split for c in (first, second) if c for id, split in zip(c.ids, c.column("split"), strict=True)}
    return OverlapReport(
        first_name=names[0],
        second_name=names[1] if second is not None else "",
        first=text_stats(parts[0]),
        second=text_stats(parts[1]) if second is not None else None,
        jaccard=jaccard,
        millimetres=millimetres,
        seconds=seconds,
        same_texts=tuple(same),
        near_texts=tuple(near),
        same_share=sum(len(tested[t]) for t in hit) / count,
        near_share=sum(len(tested[t]) for t in hit | side) / count,
        unknown=unknown_words(chain.from_iterable(parts[0]), chain.from_iterable(parts[1]))
        if second is not None
        else None,
        motion=tuple(pairs) if pairs is not None else None,
        copied_clips=len(_touched(pairs, second is None, COPY_MM)),
        near_clips=len(_touched(pairs, second is None, float("inf"))),
        across=sum(of_split[p.first] != of_split[p.second] for p in pairs or ())
        if second is None
        else len(pairs or ()),
    )


def _clips_of(texts: list[list[str]], ids: Sequence[str]) -> dict[str, list[str]]:
    """Words of a caption, joined → the clip of every caption with these words; captions without words are left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for clip, sentences in zip(ids, texts, strict=True):
        for sentence in sentences:
            if words := words_of(sentence):
                found[" ".join(words)].append(clip)
    return dict(found)


def _same_texts(clips: list[dict[str, list[str]]]) -> list[SameText]:
    if len(clips) == 2:
        found = [SameText(t, _once(clips[0][t]), _once(c)) for t, c in clips[1].items() if t in clips[0]]
    else:
        found = [SameText(t, _once(c)) for t, c in clips[0].items() if len(set(c)) > 1]
    return sorted(found, key=lambda s: (-len(s.first) - len(s.second), s.text))


def _near_texts(clips: list[dict[str, list[str]]], threshold: float) -> list[NearText]:
    """Different texts with nearly the same words, in different clips."""
    reference, tested = clips[0], clips[-1]
    texts = list(reference)
    side = None
    if len(clips) == 2:
        texts += [t for t in tested if t not in reference]
        side = np.arange(len(texts)) >= len(reference)
    pairs, index = near_pairs(texts, threshold, side)
    found = []
    for (a, b), value in zip(pairs.tolist(), index.tolist(), strict=True):
        first, second = _once(reference[texts[a]]), _once(tested[texts[b]])
        if len(clips) == 2 or len({*first, *second}) > 1:  # paraphrases of one clip are no finding
            found.append(NearText(round(value, 3), texts[a], texts[b], first, second))
    return sorted(found, key=lambda n: (-n.jaccard, n.first_text, n.second_text))


def _once(clips: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(clips))


def _touched(pairs: Sequence[MotionPair] | None, both: bool, limit: float) -> set[str]:
    close = [p for p in pairs or () if p.mean_mm <= limit]
    return {p.second for p in close} | ({p.first for p in close} if both else set())


def _markdown(r: OverlapReport, most: int) -> str:
    two = r.second is not None
    what = f"captions of {r.second_name}" if two else "captions"
    where = f"in {r.first_name}" if two else "in another clip"
    title = f"{r.second_name} against {r.first_name}" if two else f"inside {r.first_name}"
    lines = [f"# Overlap: {title}\n", "| | |\n| --- | ---: |"]
    lines.append(f"| {what} whose words occur {where} | {100 * r.same_share:.2f} % |")
    lines.append(f"| … or nearly (Jaccard ≥ {r.jaccard:g}) | {100 * r.near_share:.2f} % |")
    if r.unknown is not None:
        u = r.unknown
        lines.append(f"| running words of {r.second_name} unknown to {r.first_name} | {100 * u.share:.2f} % |")
        lines.append(f"| {what} with an unknown word | {100 * u.captions_share:.2f} % |")
    if r.motion is not None:
        clips = f"clips of {r.second_name}" if two else "clips"
        total = r.second.clips if r.second is not None else r.first.clips
        lines.append(
            f"| {clips} with {r.seconds:g} s or more copied (≤ {COPY_MM:g} mm) | {r.copied_clips} of {total} |"
        )
        lines.append(f"| … or nearly the same (≤ {r.millimetres:g} mm) | {r.near_clips} of {total} |")
        if not two:
            lines.append(f"| such pairs of clips across splits | {r.across} of {len(r.motion)} |")
    lines += ["", *_text_lists(r, two, most)]
    if r.motion is not None:
        lines += [f"## Motion: {len(r.motion)} pairs\n"]
        lines += ["| mean mm | seconds | of the shorter | first | at | second | at | |"] if r.motion else ["None."]
        lines += ["| ---: | ---: | ---: | --- | ---: | --- | ---: | --- |"] if r.motion else []
        for p in r.motion[:most]:
            flip = "mirrored" if p.mirrored else ""
            lines.append(
                f"| {p.mean_mm:.1f} | {p.seconds:.2f} | {100 * p.share:.0f} % | {p.first} | {p.first_start:.2f} s "
                f"| {p.second} | {p.second_start:.2f} s | {flip} |"
            )
        lines += [_rest(len(r.motion), most)]
    if r.unknown is not None and r.unknown.top:
        lines += ["## Unknown words\n", ", ".join(f"{word} ({n})" for word, n in r.unknown.top) + "\n"]
    lines += [r.first.markdown(f"Captions of {r.first_name}")]
    lines += [r.second.markdown(f"Captions of {r.second_name}")] if r.second is not None else []
    return "\n".join(lines)


def _text_lists(r: OverlapReport, two: bool, most: int) -> list[str]:
    lines = [f"## Same words: {len(r.same_texts)} captions\n"]
    if r.same_texts:
        lines += [f"| caption | {r.first_name} | {r.second_name} |", "| --- | --- | --- |"]
    lines += [f"| {_cell(s.text)} | {_list(s.first)} | {_list(s.second)} |" for s in r.same_texts[:most]]
    lines += [_rest(len(r.same_texts), most), f"## Nearly the same words: {len(r.near_texts)} pairs\n"]
    if r.near_texts:
        names = (r.first_name, r.second_name) if two else ("one", "other")
        lines += [f"| Jaccard | {names[0]} | {names[1]} | clips |", "| ---: | --- | --- | --- |"]
    for n in r.near_texts[:most]:
        clips = f"{_list(n.first)} · {_list(n.second)}"
        lines.append(f"| {n.jaccard:.2f} | {_cell(n.first_text)} | {_cell(n.second_text)} | {clips} |")
    return [*lines, _rest(len(r.near_texts), most)]


def _rest(count: int, most: int) -> str:
    return f"\n… and {count - most} more; all of them with `-o report.json`.\n" if count > most else ""


def _list(clips: Sequence[str]) -> str:
    return ", ".join(clips[:3]) + (f" and {len(clips) - 3} more" if len(clips) > 3 else "")


def _cell(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if len(text) <= 160 else text[:157] + "…"


def as_json(report: OverlapReport) -> dict[str, Any]:
    """The report as plain values, lists in full."""
    from dataclasses import asdict

    return asdict(report)
