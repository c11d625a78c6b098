"""What the captions of a corpus are made of: how many, how long, which words, and how fast new words keep coming.

Words are runs of letters, digits and inner apostrophes of the lower-cased text; two captions are the same text when
their words are, whatever the capitals, spaces and punctuation.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vadis.errors import VadisError

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
GROWTH_POINTS = 12


def words_of(text: str) -> list[str]:
    """The words of a caption, in order, lower-cased."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class TextStats:
    """Counts over a set of captions; tables are sorted with the largest first."""

    captions: int
    different: int
    """Captions that differ in their words."""
    clips: int
    clips_without: int
    """Clips that have no caption."""
    words: int
    """Running words of all captions."""
    vocabulary: int
    """Different words."""
    once: int
    """Words that occur once only."""
    mean_length: float
    """Words in a caption."""
    lengths: dict[int, int]
    """Words in a caption → captions of that length, from short to long."""
    top_words: tuple[tuple[str, int], ...]
    top_bigrams: tuple[tuple[str, int], ...]
    growth: tuple[tuple[int, int], ...]
    """(captions read, different words met), captions in a seeded random order."""

    def markdown(self, title: str = "Captions") -> str:
        """The statistics as a Markdown section."""
        lines = [
            f"## {title}\n",
            f"{self.captions:,} captions ({self.different:,} different) of {self.clips:,} clips, "
            f"{self.clips_without:,} clips have none. {self.words:,} words, {self.vocabulary:,} different, "
            f"{self.once:,} of them once only; {self.mean_length:.1f} words a caption.\n",
            "| most frequent words | | most frequent pairs | |\n| --- | ---: | --- | ---: |",
        ]
        rows = max(len(self.top_words), len(self.top_bigrams))
        for i in range(rows):
            word, pair = (table[i] if i < len(table) else ("", 0) for table in (self.top_words, self.top_bigrams))
            lines.append(f"| {word[0]} | {word[1] or ''} | {pair[0]} | {pair[1] or ''} |")
        lines += ["\n| words in a caption | captions | |\n| ---: | ---: | --- |"]
        for label, count in length_bins(self.lengths):
            lines.append(f"| {label} | {count} | {'█' * round(40 * count / max(1, self.captions))} |")
        lines += ["\n| captions read | different words met |\n| ---: | ---: |"]
        lines += [f"| {read:,} | {met:,} |" for read, met in self.growth]
        return "\n".join(lines) + "\n"


def length_bins(lengths: dict[int, int]) -> list[tuple[str, int]]:
    """The length table in at most about twelve bins of one width."""
    if not lengths:
        return []
    longest = max(lengths)
    width = next(w for w in (1, 2, 5, 10, 20, 50, 100, 10**9) if longest / w <= 14)
    bins: Counter[int] = Counter()
    for length, count in lengths.items():
        bins[length // width] += count
    return [
        (str(k * width) if width == 1 else f"{k * width}–{(k + 1) * width - 1}", bins[k]) for k in range(max(bins) + 1)
    ]


def text_stats(captions_of_clips: Iterable[Sequence[str]], top: int = 20, seed: int = 0) -> TextStats:
    """Statistics of captions, given as one sequence of sentences a clip (empty for a clip without).

    Raises VadisError when there is no clip at all.
    """
    clips = without = running = 0
    different: set[tuple[str, ...]] = set()
    words: Counter[str] = Counter()
    bigrams: Counter[tuple[str, str]] = Counter()
    lengths: Counter[int] = Counter()
    texts: list[list[str]] = []
    for sentences in captions_of_clips:
        clips += 1
        without += not sentences
        for sentence in sentences:
            found = words_of(sentence)
            texts.append(found)
            different.add(tuple(found))
            words.update(found)
            bigrams.update(zip(found, found[1:], strict=False))
            lengths[len(found)] += 1
            running += len(found)
    if not clips:
        raise VadisError("no clip to take text statistics of; check the corpus and the split.")
    return TextStats(
        captions=len(texts),
        different=len(different),
        clips=clips,
        clips_without=without,
        words=running,
        vocabulary=len(words),
        once=sum(n == 1 for n in words.values()),
        mean_length=round(running / max(1, len(texts)), 2),
        lengths=dict(sorted(lengths.items())),
        top_words=tuple(_most(words, top)),
        top_bigrams=tuple(_most({" ".join(pair): n for pair, n in bigrams.items()}, top)),
        growth=tuple(_growth(texts, seed)),
    )


def _most(counts: dict[str, int], top: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]


def _growth(texts: list[list[str]], seed: int) -> list[tuple[int, int]]:
    """(captions, words) at about evenly spaced points of a logarithmic scale that ends with all captions."""
    if not texts:
        return []
    points = sorted({round(x) for x in np.geomspace(1, len(texts), GROWTH_POINTS)})
    seen: set[str] = set()
    found = []
    for read, i in enumerate(np.random.default_rng(seed).permutation(len(texts)), start=1):
        seen.update(texts[i])
        if read == points[len(found)]:
            found.append((read, len(seen)))
    return found


@dataclass(frozen=True)
class Unknown:
    """Words of the tested captions that the reference captions never use."""

    words: int
    """Running words that are unknown."""
    share: float
    """… of all running words."""
    vocabulary: int
    """Different unknown words."""
    vocabulary_share: float
    """… of all different words."""
    captions_share: float
    """Captions with at least one unknown word, of all captions."""
    top: tuple[tuple[str, int], ...]


def unknown_words(reference: Iterable[str], tested: Iterable[str], top: int = 20) -> Unknown:
    """Out-of-vocabulary rate of the `tested` captions against the `reference` captions."""
    known = {word for text in reference for word in words_of(text)}
    counts: Counter[str] = Counter()
    captions = touched = 0
    for text in tested:
        found = words_of(text)
        counts.update(found)
        captions += 1
        touched += any(word not in known for word in found)
    missing = {word: n for word, n in counts.items() if word not in known}
    return Unknown(
        words=sum(missing.values()),
        share=sum(missing.values()) / max(1, sum(counts.values())),
        vocabulary=len(missing),
        vocabulary_share=len(missing) / max(1, len(counts)),
        captions_share=touched / max(1, captions),
        top=tuple(_most(missing, top)),
    )


def corpus_texts(corpus: Any, kinds: Sequence[str] = ()) -> list[list[str]]:
    """The captions of every clip of a `vadis.data.corpus.Corpus`, only of the given kinds if any are named.

    Raises VadisError for a kind that no caption has.
    """
    column = corpus.column("captions")
    there = {caption["kind"] for captions in column for caption in captions}
    if missing := set(kinds) - there:
        raise VadisError(
            f"no caption of kind {', '.join(sorted(missing))}; there are: {', '.join(sorted(there)) or 'no captions'}."
        )
    return [[c["text"] for c in captions if not kinds or c["kind"] in kinds] for captions in column]
