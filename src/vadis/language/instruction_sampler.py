"""Instructions drawn from tokenised corpora: which clip, which task, what is said, in which words.

A draw depends on the random generator it is given and nothing else, so training is repeatable step by step. Captions are
drawn by levels: the whole body, the whole body and its halves, or some halves (kinds "upper" and "lower"). Letters: N
segments, S token steps, G groups.
"""

import random
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from vadis.config import STRICT
from vadis.data.share import nested_share
from vadis.errors import VadisError, about
from vadis.language.instructions import InstructionItem, MotionSpan, given_parts, instruction
from vadis.language.templates import PART_QUESTIONS, TEMPLATES, templates_of, usable
from vadis.language.token_corpus import TokenCorpus, source_names

HALVES = ("upper", "lower")
FILE_KINDS = {"cmu-index": 0.0, "folder-name": 0.0, "file-name": 0.0}
PREDICTION_SHARE = 0.2
"""Share of the steps that a prediction is given."""
OUTER_SHARE = 0.25
"""Share of the steps at each end that an in-between is given."""


@dataclass(frozen=True, config=STRICT)
class TokenSource:
    """One tokenised corpus of a mixture: real recordings, drawn (synthetic) ones, static poses…"""

    path: str
    """Folder of tokens."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the items, relative to the other corpora of the mixture."""
    split: str | None = "train"
    """Only clips of this split; null: all."""


@dataclass(frozen=True, config=STRICT)
class InstructionData:
    """What instructions are drawn from and how."""

    corpora: tuple[TokenSource, ...] = Field(min_length=1)
    tasks: dict[str, float] = Field(default_factory=lambda: {"text_to_motion": 1.0})
    """Task → its share of the items."""
    caption_levels: tuple[float, float, float] = (0.5, 0.3, 0.2)
    """Shares of: a sentence about the whole body, that and one about each half, sentences about some halves only. Clips
    without sentences about halves always get the first."""
    kind_weights: dict[str, float] = Field(default_factory=lambda: dict(FILE_KINDS))
    """How likely sentences of a kind are among those about the whole body; 1 when not named, 0 never."""
    captioned: float = Field(default=0.5, ge=0, le=1)
    """Share of predictions, in-betweens and completions that are told the caption too."""
    paraphrases: bool = True
    """Draw among all wordings; otherwise always the first that fits."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Draw from this share of the tokens of every corpus, whole groups of clips; a smaller share lies inside a larger one.
    Not for another split than the corpora's own, so held-out clips stay the same."""
    unseen_sources: str | None = None
    """Text file of source names, one a line, that are kept out of training (a test of what was never seen)."""

    def __post_init__(self) -> None:
        for task, weight in self.tasks.items():
            templates_of(task)
            if weight < 0:
                raise VadisError(f"tasks.{task} is {weight}: a share is 0 or more.")
        if not sum(self.tasks.values()) > 0:
            raise VadisError("tasks: at least one needs a share greater than 0.")
        if min(self.caption_levels) < 0 or not sum(self.caption_levels) > 0:
            raise VadisError("caption_levels: three shares of 0 or more, not all 0.")


class Instructions:
    """Items drawn from a mixture of corpora.

    Args:
        data: what to draw from.
        split: this split of every corpus instead of its own.
        unseen: only the sources of `data.unseen_sources`, instead of all others.

    Raises VadisError when a task has no clip to draw from (prediction and in-between need steps, so not DSFT; part
    completion a tokenizer with parts; text tasks captions), when the corpora have different tokenizers, or for a name in
    `unseen_sources` that no corpus has.
    """

    def __init__(self, data: InstructionData, *, split: str | None = None, unseen: bool = False) -> None:
        self.data = data
        corpora = [TokenCorpus.open(source.path) for source in data.corpora]
        if len({c.facts.sha256 for c in corpora}) > 1:
            raise VadisError("the corpora of a mixture must be tokenised by the same tokenizer; these differ.")
        names = self._unseen_names(corpora, unseen)
        self.sources: list[TokenCorpus] = []
        weights: list[float] = []
        for corpus, source in zip(corpora, data.corpora, strict=True):
            if unseen and not names & set(corpus.column("source")):
                continue
            rows = corpus.subset(split or source.split, only=names if unseen else None, without=() if unseen else names)
            if data.share < 1 and split is None and not unseen:
                rows = rows.take(nested_share(rows.column("group"), rows.steps, data.share))
            self.sources.append(rows)
            weights.append(source.weight)
        self._possible = [self._tasks_of(corpus) for corpus in self.sources]
        for task in self._wanted:
            if not any(possible[task].any() for possible in self._possible):
                raise VadisError(f"no clip allows the task {task!r}: {_NEEDS[task]}. Give it no share.")
        self._cumulative = [self._row_shares(c, p) for c, p in zip(self.sources, self._possible, strict=True)]
        alive = [w if shares[-1] > 0 else 0.0 for w, shares in zip(weights, self._cumulative, strict=True)]
        self._source_shares = list(accumulate(alive))

    def __len__(self) -> int:
        """Segments of all corpora together."""
        return sum(map(len, self.sources))

    @property
    def facts(self) -> Any:
        """Facts of the tokenizer that made the tokens."""
        return self.sources[0].facts

    def check(self, vocabulary: Any) -> None:
        """Raise ModelError unless a language model's vocabulary is that of the tokens."""
        self.sources[0].check(vocabulary)

    # ---- drawing

    def at(self, seed: int, step: int, count: int, process: int = 0) -> list[InstructionItem]:
        """The items of a training step: the same for the same numbers, whatever was drawn before."""
        rng = random.Random(f"{seed}/{step}/{process}")
        return [self.draw(rng) for _ in range(count)]

    def draw(self, rng: random.Random) -> InstructionItem:
        """One item: a corpus by its weight, a segment by its weight, a task by its share among those it allows."""
        which = _pick(self._source_shares, rng)
        row = _pick(self._cumulative[which], rng)
        possible = self._possible[which]
        tasks = [task for task in self._wanted if possible[task][row]]
        task = rng.choices(tasks, [self.data.tasks[t] for t in tasks])[0]
        with about(self.sources[which].path):
            return self.item(self.sources[which], row, task, rng)

    def fixed(self, task: str = "text_to_motion", limit: int | None = None) -> Iterator[InstructionItem]:
        """An item of every segment that allows the task, in order, with the first wording and the first sentence about the
        whole body: for measuring. With `limit` an evenly spaced choice of so many."""
        rows = [
            (corpus, int(row))
            for corpus in self.sources
            for row in np.flatnonzero(self._tasks_of(corpus, [task])[task])
        ]
        if limit is not None and limit < len(rows):
            rows = [rows[i * len(rows) // limit] for i in range(limit)]
        for corpus, row in rows:
            yield self.item(corpus, row, task, None)

    def item(self, corpus: TokenCorpus, row: int, task: str, rng: random.Random | None) -> InstructionItem:
        """An item of one segment; without `rng` with the first wording and the first sentence about the whole body."""
        make = _MAKERS[task]
        with about(corpus.path):  # a sentence may be empty
            template, values, answer = make(self, corpus, row, rng)
            made = instruction(task, template=template, answer=answer, **values)
        place = {name: corpus.value(name, row) for name in ("source", "clip")}
        return InstructionItem(made.prompt, made.answer, task, frames=int(corpus.frames[row]), **place)

    def captions(self, corpus: TokenCorpus, row: int, rng: random.Random | None) -> dict[str, str]:
        """What is said of a segment at a drawn level: fields caption, upper and lower, as far as there are sentences."""
        whole = self._whole(corpus, row)
        halves = {half: [text for kind, text in corpus.sentences(row) if kind == half] for half in HALVES}
        present = [half for half in HALVES if halves[half]]
        if rng is None:
            return {"caption": whole[0][0]} if whole else {half: halves[half][0] for half in present}
        level = rng.choices(("whole", "both", "halves"), self.data.caption_levels)[0]
        if not present or not whole:
            level = "halves" if present else "whole"
        if level == "halves":
            present = rng.choice([[half] for half in present] + [present] * (len(present) > 1))
        said = {} if level == "halves" else {"caption": _choice(whole, rng)}
        return said | ({} if level == "whole" else {half: rng.choice(halves[half]) for half in present})

    def _whole(self, corpus: TokenCorpus, row: int) -> list[tuple[str, float]]:
        """Sentences about the whole body with their weights; those of weight 0 only where there are no others."""
        said = [
            (text, self.data.kind_weights.get(kind, 1.0)) for kind, text in corpus.sentences(row) if kind not in HALVES
        ]
        return [(text, weight) for text, weight in said if weight > 0] or [(text, 1.0) for text, _ in said]

    # ---- what each task needs

    @property
    def _wanted(self) -> list[str]:
        return [task for task, share in self.data.tasks.items() if share > 0]

    def _tasks_of(self, corpus: TokenCorpus, tasks: list[str] | None = None) -> dict[str, np.ndarray]:
        """Which segments (N,) allow each task."""
        captioned = np.array([bool(corpus.kinds(row)) for row in range(len(corpus))])
        steps = np.zeros(len(corpus), dtype=int) if corpus.streams else corpus.steps
        allowed = {
            "text_to_motion": captioned,
            "motion_to_text": captioned,
            "prediction": steps >= 2,
            "in_between": steps >= 3,
            "part_completion": np.full(len(corpus), len(corpus.parts) > 1),
            "unconditional": np.ones(len(corpus), dtype=bool),
        }
        return {task: allowed[task] for task in tasks or self._wanted}

    def _row_shares(self, corpus: TokenCorpus, possible: Mapping[str, np.ndarray]) -> list[float]:
        some = np.logical_or.reduce(list(possible.values()))
        return np.cumsum(corpus.weights * some).tolist()

    def _unseen_names(self, corpora: list[TokenCorpus], unseen: bool) -> frozenset[str]:
        if self.data.unseen_sources is None:
            if unseen:
                raise VadisError("there is no list of unseen sources: set unseen_sources to a file of names.")
            return frozenset()
        names = source_names(self.data.unseen_sources)
        present = [names & set(corpus.column("source")) for corpus in corpora]
        if missing := names - frozenset().union(*present):
            there = sorted({s for corpus in corpora for s in corpus.column("source")})
            raise VadisError(f"no clip is of the source {min(missing)!r}. Sources: {', '.join(there[:20])}.")
        for corpus, found in zip(corpora, present, strict=True):
            if not found and not unseen:
                warnings.warn(
                    f"{corpus.path} names none of the unseen sources: if its clips were drawn from recordings of them, "
                    "they are seen after all.",
                    stacklevel=3,
                )
        return names

    # ---- tasks: (template, its fields, answer)

    def _template(self, choices: tuple[str, ...], rng: random.Random | None) -> str:
        return rng.choice(choices) if rng is not None and self.data.paraphrases else choices[0]

    def _length(self, corpus: TokenCorpus, frames: int) -> dict[str, Any]:
        return {"frames": frames, "seconds": frames / corpus.facts.fps} if frames > 0 else {}

    def _text_to_motion(self, corpus: TokenCorpus, row: int, rng: random.Random | None) -> "_Made":
        values: dict[str, Any] = dict(self.captions(corpus, row, rng))
        length = self._length(corpus, int(corpus.frames[row]))
        choices = usable("text_to_motion", frozenset(values), frozenset(length))
        return self._template(choices, rng), values | length, MotionSpan(corpus.tokens(row))

    def _motion_to_text(self, corpus: TokenCorpus, row: int, rng: random.Random | None) -> "_Made":
        said = self.captions(corpus, row, rng)
        halves = [half for half in HALVES if half in said]
        asked = "caption" if "caption" in said else rng.choice(halves) if rng else halves[0]
        questions = TEMPLATES["motion_to_text"] if asked == "caption" else PART_QUESTIONS[asked]
        return self._template(questions, rng), {"motion": MotionSpan(corpus.tokens(row))}, said[asked]

    def _prediction(self, corpus: TokenCorpus, row: int, rng: random.Random | None) -> "_Made":
        tokens = corpus.tokens(row)
        start = prediction_steps(len(tokens))
        values = {"start": MotionSpan(tokens[:start])} | self._steps(corpus, len(tokens) - start)
        return self._with_caption("prediction", corpus, row, values, rng, MotionSpan(tokens[start:]))

    def _in_between(self, corpus: TokenCorpus, row: int, rng: random.Random | None) -> "_Made":
        tokens = corpus.tokens(row)
        outer = in_between_steps(len(tokens))
        ends = {"start": MotionSpan(tokens[:outer]), "end": MotionSpan(tokens[-outer:])}
        values = ends | self._steps(corpus, len(tokens) - 2 * outer)
        return self._with_caption("in_between", corpus, row, values, rng, MotionSpan(tokens[outer:-outer]))

    def _part_completion(self, corpus: TokenCorpus, row: int, rng: random.Random | None) -> "_Made":
        tokens, count = corpus.tokens(row), len(corpus.parts)
        given = sorted(rng.sample(range(count), rng.randint(1, count - 1))) if rng else list(range(count - 1))
        values: dict[str, Any] = {"given": given_parts(tokens, corpus.parts, given)}
        values |= self._length(corpus, int(corpus.frames[row]))
        return self._with_caption("part_completion", corpus, row, values, rng, MotionSpan(tokens))

    def _unconditional(self, corpus: TokenCorpus, row: int, rng: random.Random | None) -> "_Made":
        length = self._length(corpus, int(corpus.frames[row]))
        choices = usable("unconditional", frozenset(), frozenset(length))
        return self._template(choices, rng), length, MotionSpan(corpus.tokens(row))

    def _steps(self, corpus: TokenCorpus, steps: int) -> dict[str, Any]:
        return self._length(corpus, steps * (corpus.facts.frames_per_token or 0))

    def _with_caption(
        self, task: str, corpus: TokenCorpus, row: int, values: dict[str, Any], rng: random.Random | None, answer: Any
    ) -> "_Made":
        """The wording of a task that may be told the caption of the whole body."""
        if rng is not None and rng.random() < self.data.captioned and (whole := self._whole(corpus, row)):
            values = values | {"caption": _choice(whole, rng)}
        choices = usable(task, frozenset(values) & {"caption"}, frozenset(values))
        return self._template(choices, rng), values, answer


_Made = tuple[str, dict[str, Any], Any]
_MAKERS = {task: getattr(Instructions, f"_{task}") for task in TEMPLATES}
_NEEDS = {
    "text_to_motion": "it needs clips with captions",
    "motion_to_text": "it needs clips with captions",
    "prediction": "it needs clips of two token steps or more, so not DSFT, whose tokens stand for the whole clip",
    "in_between": "it needs clips of three token steps or more, so not DSFT, whose tokens stand for the whole clip",
    "part_completion": "it needs a tokenizer that codes parts of the body by themselves (lfq2d)",
    "unconditional": "there are no clips",
}


def prediction_steps(steps: int) -> int:
    """How many of `steps` token steps a prediction is given: a fifth, at least one, and one at least stays to be made."""
    return max(1, min(round(steps * PREDICTION_SHARE), steps - 1))


def in_between_steps(steps: int) -> int:
    """How many of `steps` token steps an in-between is given at each end: a quarter, at least one; one at least is made."""
    return max(1, min(round(steps * OUTER_SHARE), (steps - 1) // 2))


def _pick(shares: list[float], rng: random.Random) -> int:
    """An index in proportion to the steps of the cumulative `shares`; never one without a share."""
    place = bisect_right(shares, rng.random() * shares[-1])
    return place if place < len(shares) else bisect_right(shares, shares[-1] * (1 - 1e-12))


def _choice(weighted: list[tuple[str, float]], rng: random.Random) -> str:
    return rng.choices([text for text, _ in weighted], [weight for _, weight in weighted])[0]
