"""Motion–text pairs for training evaluators: captioned stretches of a corpus, its held-out groups, its sentences.

Letters: B pairs, T frames, D features, L text tokens, N sentences.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT
from vadis.data.augment import AugmentOptions, augment_corpus
from vadis.data.captions import mirror_text
from vadis.data.corpus import Corpus
from vadis.errors import VadisError
from vadis.evaluators.losses import near_duplicates
from vadis.representations import Representation, representation
from vadis.training.config import Batch, Frames


@dataclass(frozen=True, config=STRICT)
class PairData:
    """Captioned stretches of a corpus, a random sentence each."""

    corpus: str
    """Folder made by `vadis data build`."""
    batch: Batch = 256
    """Pairs a process and batch."""
    train_split: str | None = "train"
    validation_split: str | None = "val"
    split_seed: int | None = None
    """Split the corpus's groups anew by a hash with this seed, instead of by its own splits; nothing is written."""
    held_out_every: int = Field(default=5, ge=2, le=1_000_000)
    """With `split_seed`: every n-th group is held out."""
    min_frames: Frames = 20
    """Shorter stretches are left out."""
    max_frames: Frames | None = None
    """Longer ones are entered at a random place. Null: taken whole."""
    unit: Frames = 4
    """Lengths are multiples of this; with `shorten` one unit less."""
    shorten: float = Field(default=1 / 3, ge=0, le=1)
    """Probability of taking one unit less; what is left over is at a random end."""
    kind_weights: dict[str, float] = Field(default_factory=dict)
    """How likely sentences of a kind are (whole, detailed, label, automatic…); 1 when not named, 0 never."""
    mirror: float = Field(default=0.0, ge=0, le=1)
    """Probability of the mirrored motion with left and right swapped in its sentence."""
    mirrored_negatives: int = Field(default=0, ge=0, le=1_000_000)
    """Up to that many pairs of a batch whose sentence names a side come a second time, mirrored: the hardest negatives."""
    drawn: int = Field(default=0, ge=0, le=100_000_000)
    """Clips to draw from the training recordings once (`vadis data augment`), kept in the run's folder."""
    drawn_share: float = Field(default=0.5, ge=0, le=1)
    """Their share of a batch."""
    drawn_options: dict[str, Any] = Field(default_factory=dict)
    """Further options of drawing them (`downweight`, `automatic`, …)."""


@plain(frozen=True, eq=False)
class Stretch:
    """Frames `first` to `stop` of a clip, with the sentences about them."""

    corpus: Corpus
    row: int
    first: int
    stop: int
    texts: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def frames(self) -> int:
        return self.stop - self.first

    def features(self, first: int = 0, stop: int | None = None) -> Tensor:
        """(T, D) in physical units."""
        return self.corpus.frames_of(self.row, self.first + first, self.stop if stop is None else self.first + stop)


def split_groups(groups: Sequence[str], seed: int, every: int) -> list[str]:
    """ "val" for every n-th of the different groups in the order of a hash of seed and name, "train" for the others."""
    order = sorted(set(groups), key=lambda g: hashlib.sha256(f"{seed}/{g}".encode()).hexdigest())
    held_out = set(order[every - 1 :: every])
    return ["val" if g in held_out else "train" for g in groups]


def stretches(corpus: Corpus, data: PairData) -> list[Stretch]:
    """The captioned stretches of all clips, those with no sentence of a wanted kind left out."""
    found = []
    for row, (captions, frames) in enumerate(zip(corpus.column("captions"), corpus.frames.tolist(), strict=True)):
        spans: dict[tuple[int, int], list[tuple[str, float]]] = {}
        for caption in captions:
            weight = data.kind_weights.get(caption["kind"], 1.0)
            first, stop = int(caption["start"] * corpus.fps), min(int(caption["end"] * corpus.fps), frames)
            if weight > 0 and stop - first >= data.min_frames:
                spans.setdefault((first, stop), []).append((caption["text"], weight))
        for (first, stop), texts in spans.items():
            found.append(Stretch(corpus, row, first, stop, *zip(*texts, strict=True)))  # type: ignore[arg-type]
    if not found:
        raise VadisError(f"no captioned stretch of at least {data.min_frames} frames in {corpus.path}: add captions.")
    return found


class Sentences:
    """All sentences of a training and their mirrored forms, with what a text encoder reads and what tells near-duplicates.

    Args:
        texts: the sentences, repeated as they come.
        read: sentences to an input each, token ids (L,) or token features (L, C).
        vectors: (sentences, inputs) to unit vectors (N, C); their products say how alike two sentences are. None: no two
            are.
    """

    def __init__(
        self,
        texts: Sequence[str],
        read: Callable[[list[str]], list[Tensor]],
        vectors: Callable[[list[str], list[Tensor]], Tensor] | None = None,
    ) -> None:
        both = list(dict.fromkeys([*texts, *map(mirror_text, texts)]))
        self.number = {text: i for i, text in enumerate(both)}
        self.mirrored = torch.tensor([self.number.get(mirror_text(text), i) for i, text in enumerate(both)])
        self.inputs = read(both)
        self.vectors = torch.empty(len(both), 0) if vectors is None else vectors(both, self.inputs)

    def hidden(self, numbers: Tensor, stretch: Tensor, threshold: float, upper: float | None) -> Tensor:
        """(B, B) bool: pairs that mustn't count as wrong, because the sentences are alike or the motion is the same.

        A sentence and its mirrored form, nearly the same words, are never hidden from each other.
        """
        rows = self.vectors[numbers]
        own = torch.eye(len(numbers), dtype=torch.bool)
        alike = near_duplicates(rows @ rows.T, threshold, upper) | ((stretch[:, None] == stretch) & ~own)
        opposite = (self.mirrored[numbers][:, None] == numbers) & (numbers[:, None] != numbers)
        return alike & ~opposite & ~opposite.T

    def batch(self, numbers: Tensor) -> dict[str, Tensor]:
        """`text`, padded with zeros (B, L) or (B, L, C), and `text_lengths` (B,)."""
        rows = [self.inputs[i] for i in numbers.tolist()]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return {"text": padded.float() if padded.is_floating_point() else padded, "text_lengths": lengths}


class Pairs:
    """Training and held-out stretches of a corpus as `PairData` asks, and random pairs of them."""

    def __init__(self, data: PairData, run: str | Path, seed: int) -> None:
        corpus = Corpus.open(data.corpus)
        if data.split_seed is not None:
            corpus = corpus.with_splits(split_groups(corpus.column("group"), data.split_seed, data.held_out_every))
        self.data, self.corpus = data, corpus
        self.rep: Representation = representation(corpus.representation)
        self.train = stretches(corpus.subset(data.train_split), data)
        self.held_out = stretches(corpus.subset(data.validation_split), data)
        self.drawn: list[Stretch] = []
        if data.drawn:
            self.drawn = stretches(self._draw_clips(Path(run) / "drawn", seed), data)

    def _draw_clips(self, folder: Path, seed: int) -> Corpus:
        train = self.data.train_split or "train"
        if (folder / "corpus.json").exists():
            return Corpus.open(folder).subset(train)
        options: dict[str, Any] = {
            "clips": self.data.drawn,
            "validation_clips": 0,
            "seed": seed,
        } | self.data.drawn_options
        source = self.corpus if train == "train" else self.corpus.with_splits(["train"] * len(self.corpus))
        try:
            wanted = AugmentOptions(**options)
        except TypeError as error:
            raise VadisError(
                f"data.drawn_options: {error}; known are {', '.join(AugmentOptions.__dataclass_fields__)}."
            ) from None
        return augment_corpus(source, folder, wanted, progress=False)

    def texts(self) -> list[str]:
        """All sentences, repeated as they come."""
        return [text for part in (self.train, self.drawn, self.held_out) for item in part for text in item.texts]

    def draw(self, sentences: Sentences, generator: torch.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
        """Features (T, D) of random pairs in physical units, their sentences' numbers (B,), their stretches' (B,)."""
        data = self.data
        drawn = round(data.batch * data.drawn_share) if self.drawn else 0
        rows = torch.cat([
            torch.randint(len(self.train), (data.batch - drawn,), generator=generator),
            len(self.train) + torch.randint(max(len(self.drawn), 1), (drawn,), generator=generator),
        ])  # fmt: skip
        chance = torch.rand(data.batch, 4, generator=generator).tolist()
        clips, numbers, extra = [], [], []
        for row, (which, cut, where, side) in zip(rows.tolist(), chance, strict=True):
            item = self.train[row] if row < len(self.train) else self.drawn[row - len(self.train)]
            shares = np.cumsum(item.weights)
            text = sentences.number[item.texts[int(np.searchsorted(shares, which * shares[-1], side="right"))]]
            clip, other = self._crop(item, cut, where), int(sentences.mirrored[text])
            if side < data.mirror:
                clip, text, other = self.rep.mirror(clip), other, text
            clips.append(clip)
            numbers.append(text)
            if other != text and len(extra) < data.mirrored_negatives:
                extra.append((self.rep.mirror(clip), other, row))
        clips += [clip for clip, _, _ in extra]
        numbers += [text for _, text, _ in extra]
        return (
            clips,
            torch.tensor(numbers),
            torch.cat([rows, torch.tensor([row for *_, row in extra], dtype=torch.long)]),
        )

    def _crop(self, item: Stretch, cut: float, where: float) -> Tensor:
        data = self.data
        frames = min(item.frames, data.max_frames or item.frames)
        shorter = data.unit if cut < data.shorten and frames >= data.min_frames + data.unit else 0
        length = max(frames // data.unit * data.unit - shorter, data.unit)
        first = int(where * (item.frames - length + 1))
        return item.features(first, first + length)
