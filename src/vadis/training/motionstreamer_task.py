"""Training MotionStreamer's latent generator: text to motion, and continuations of what came before (arXiv 2503.15451)."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT
from vadis.data.latent_corpus import MIN_FRAMES, PLAN_STRIDE, LatentCorpus, extract_latents, latents_key
from vadis.errors import FileError, ModelError, VadisError
from vadis.generators.motionstreamer import MotionStreamer, MotionStreamerConfig
from vadis.generators.planner import KinematicPlanner, with_plan
from vadis.loading import load
from vadis.training.config import Batch, Frames, Recipe
from vadis.training.task import Task


@dataclass(frozen=True, config=STRICT)
class LatentData:
    """Segments of latents with a random sentence each; extracted at the start of the first session."""

    tokenizer: str
    """Folder, bundled name or Hub id of the auto-encoder."""
    corpora: dict[str, float]
    """Folders of feature corpora and their shares."""
    latents: str
    """Folder that holds, or will hold, their latents and sentence vectors."""
    text_encoder: str = "sentence-t5-xxl"
    stage: Literal["text", "stream"] = "text"
    """stream: a segment follows the one before it in its clip, which stays true and is not measured."""
    batch: Batch = 256
    """Segments a process and batch. Published: 256 over all processes, whose gradients were not synchronised; on N of them
    that is imitated by 256 / N on one process."""
    bucket: Batch = 1
    """A batch is a slice of this many batches sorted by length, so that little is padding; 1: no sorting."""
    trim: float = Field(default=1 / 3, ge=0, le=1)
    """Probability of dropping the first or the last latent, equally likely; only of text to motion."""
    text_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of every batch that reads the empty string, for guidance."""
    max_history: Frames | None = None
    """Latents of the segment before that are kept, at least one. Null: all, and rows that are too long are left out."""
    slide: float = Field(default=0.0, ge=0, le=1)
    """Share of segments that begin somewhere inside, after a history of their own: what a stream reads when its row is full."""
    no_history: float = Field(default=0.0, ge=0, le=1)
    """Share of segments that begin from nothing although something came before."""
    longest: Frames | None = None
    """Latents of a segment that are read at most, from its beginning, which is where the text tells most. Null: all."""
    planner: str | None = None
    """Folder or bundled name of a kinematic planner (the text-to-motion bundle that holds one will do): its plan is read
    beside the sentence (`vadis.generators.planner.PlannedSentences`); in training the true one, in its normalisation."""
    plan_seconds: float = Field(default=4.0, gt=0, le=86_400)
    """A plan tells of this time at most, from the first latent that is measured on."""
    plan_dropout: float = Field(default=0.3, ge=0, le=1)
    """Probability that the whole plan is hidden; otherwise each value is, at a rate drawn per row."""
    plan_noise: float = Field(default=0.2, ge=0)
    """Standard deviation of noise on plan values, in units of the training data: a planner's values are not exact."""
    kind_weights: dict[str, float] = Field(default_factory=lambda: {"history": 0.0})
    """How likely sentences of a kind are; 1 when not named. A segment of which all are 0 only serves as history."""
    min_frames: int = Field(default=MIN_FRAMES, ge=4, le=1_000_000)
    """Shorter clips are left out."""
    train_split: str | None = "train"
    validation_split: str | None = "val"

    def __post_init__(self) -> None:
        if not self.corpora or any(share <= 0 for share in self.corpora.values()):
            raise VadisError("data.corpora must name at least one corpus, every share greater than 0")


@dataclass(frozen=True, config=STRICT)
class TwoForwardLoss:
    """The only loss: squared error of the noise, each position measured several times."""

    repeats: int = Field(default=4, ge=1, le=10_000)
    replace: bool = True
    """The head's own estimates replace ever more input latents (Two-Forward); false: never."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MotionStreamerRecipe(Recipe):
    """Train the latent generator."""

    task: Literal["motionstreamer"] = "motionstreamer"
    data: LatentData
    model: MotionStreamerConfig = Field(default_factory=MotionStreamerConfig)
    loss: TwoForwardLoss = Field(default_factory=TwoForwardLoss)
    start: str | None = None
    """Folder of a saved generator of the same config whose weights training starts from (text stage, then stream)."""


class MotionStreamerTask(Task):
    """The latent generator on segments of latents that a causal auto-encoder made."""

    recipe_class = MotionStreamerRecipe
    model: MotionStreamer

    def __init__(self, recipe: MotionStreamerRecipe) -> None:
        super().__init__(recipe)
        data = recipe.data
        corpus = open_latents(data)
        self.planner = None if data.planner is None else load_planner(data.planner)
        told = 0 if self.planner is None else 2 * len(self.planner.config.attributes)
        width = {"latent_dim": corpus.latents.shape[1], "text_dim": corpus.vectors.shape[1] + told}
        for name, value in width.items():
            if getattr(recipe.model, name) != value:
                raise ModelError(f"model.{name} is {getattr(recipe.model, name)}; {data.latents} has {value}.")
        self.room = recipe.model.block_size - 1
        keep = self._fitting(corpus)
        wanted = {"train": data.train_split, "held out": data.validation_split}
        parts = {k: keep if s is None else keep & (corpus.splits == s) for k, s in wanted.items()}
        for split, chosen in parts.items():
            if not chosen.any():
                raise VadisError(f"no segment to use as {split} among the splits {sorted(set(corpus.splits))}.")
        self.train, self.held_out = (corpus.subset(chosen) for chosen in parts.values())
        self.null, self.end = torch.nn.functional.pad(corpus.null_vector.float(), (0, told)), corpus.end_latent.float()
        self.model = MotionStreamer(recipe.model)
        self.model.set_end_latent(self.end)
        if recipe.start is not None:
            saved = load(recipe.start)
            if not isinstance(saved, MotionStreamer) or saved.config != recipe.model:
                raise ModelError(f"{recipe.start} holds another model than the recipe's.")
            self.model.load_state_dict(saved.state_dict())

    def _fitting(self, corpus: LatentCorpus) -> np.ndarray:
        """Which segments can be rows (N,)."""
        data = self.recipe.data
        weights = data.kind_weights
        keep = np.array([corpus.sentence_weights(row, weights).sum() > 0 for row in range(len(corpus))])
        if data.stage == "stream":
            lengths = corpus.stop - corpus.first + 1  # the end latent
            if data.max_history is None:
                lengths = lengths + corpus.first - corpus.before
            keep &= lengths <= self.room
        return keep

    # ---- batches

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        batch = self._draw(self.train, generator)
        dropped = torch.randperm(len(batch["text"]), generator=generator)[: int(data.text_dropout * data.batch)]
        batch["text"][dropped] = self.null
        batch["progress"] = torch.tensor(step / self.recipe.steps if self.recipe.loss.replace else 0.0)
        return batch

    def _draw(self, corpus: LatentCorpus, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        weights = torch.from_numpy(corpus.weights)
        rows = torch.multinomial(weights, data.batch * data.bucket, replacement=True, generator=generator)
        draws = torch.rand(len(rows), 5, generator=generator, dtype=torch.float64).tolist()
        items = [self._row(corpus, int(row), draw) for row, draw in zip(rows, draws, strict=True)]
        if self.planner is not None:
            items = self._told(self.planner, corpus, items, generator)
        items.sort(key=lambda item: len(item[0]))
        start = data.batch * int(torch.randint(data.bucket, (), generator=generator))
        items = items[start : start + data.batch]
        return {
            "latents": torch.nn.utils.rnn.pad_sequence([item[0] for item in items], batch_first=True),
            "lengths": torch.tensor([len(item[0]) for item in items]),
            "history": torch.tensor([item[1] for item in items]),
            "text": torch.stack([item[2] for item in items]),
        }

    def _told(self, planner: Any, corpus: LatentCorpus, items: list[Any], generator: torch.Generator) -> list[Any]:
        """The rows with their plans after the sentence vectors, partly hidden and not exact."""
        data = self.recipe.data
        values = torch.from_numpy(np.stack([corpus.plans[item[3]] for item in items]))
        values = planner.normalize_rows(values)
        values = values + data.plan_noise * torch.randn(values.shape, generator=generator)
        rate = torch.rand(len(items), 1, generator=generator)
        mask = torch.rand(values.shape, generator=generator) >= rate
        mask &= torch.rand(len(items), 1, generator=generator) >= data.plan_dropout
        vectors = with_plan(torch.stack([item[2] for item in items]), values, mask)
        return [(latents, history, vector) for (latents, history, _, _), vector in zip(items, vectors, strict=True)]

    def _row(self, corpus: LatentCorpus, row: int, draw: list[float]) -> tuple[Tensor, int, Tensor, int]:
        """Latents `(S, C)` with what came before, how many of them came before, a sentence vector and the plan's row."""
        data = self.recipe.data
        a, b, before = int(corpus.first[row]), int(corpus.stop[row]), int(corpus.before[row])
        vector = torch.from_numpy(corpus.vectors[corpus.sentence(row, draw[0], data.kind_weights)].astype(np.float32))
        ends = bool(corpus.ends[row]) or data.stage == "stream"
        if data.stage == "text":
            latents = self._latents(corpus, a, b, ends)
            if draw[1] < data.trim and len(latents) > 1:
                latents = latents[:-1] if draw[2] < 0.5 else latents[1:]
            return latents[: self.room], 0, vector, int(corpus.plan[row])
        window = 0
        if draw[1] < data.slide and b - a > PLAN_STRIDE:
            window = 1 + int(draw[2] * ((b - a - 1) // PLAN_STRIDE))
            a += window * PLAN_STRIDE  # where there are plans
        window += int(corpus.plan[row])
        if data.longest is not None and b - a > data.longest:
            b, ends = a + data.longest, False
        if data.max_history is None:
            return self._latents(corpus, before, b, ends), a - before, vector, window
        most = min(a - before, data.max_history, self.room - (b - a) - ends)
        history = 0 if draw[3] < data.no_history else min(most, 1 + int(draw[4] * data.max_history * 1.5))
        return self._latents(corpus, a - history, b, ends), history, vector, window

    def _latents(self, corpus: LatentCorpus, start: int, stop: int, ends: bool) -> Tensor:
        latents = torch.from_numpy(corpus.latents[start:stop].copy())
        return torch.cat([latents, self.end[None]]) if ends else latents

    # ---- loss

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = dict(batch)
        progress = float(batch.pop("progress"))
        return self.model.loss(batch, progress=progress, repeats=self.recipe.loss.repeats)

    def validate(self) -> dict[str, float]:
        """The loss on true latents, the one on its own estimates ("loss_fed") and the one without the text."""
        rows = []
        for number, generator in enumerate(self.held_out_batches()):
            batch = {k: v.to(self.device) for k, v in self._draw(self.held_out, generator).items()}
            without = batch | {"text": self.null.to(self.device).expand_as(batch["text"])}
            cases: dict[str, tuple[Any, float]] = {"loss": (batch, 0.0), "loss_fed": (batch, 1.0)}
            cases["loss_without_text"] = (without, 0.0)
            row = {}
            for name, (case, progress) in cases.items():
                noise = torch.Generator().manual_seed(1000 + number)  # the same for all cases
                row[name] = float(self.model.loss(case, progress=progress, generator=noise)["total"])
            rows.append(row)
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def open_latents(data: LatentData) -> LatentCorpus:
    """The latents of a recipe, extracted if they are not there. Raises FileError for latents made from something else."""
    from vadis.text_encoders import text_encoder

    tokenizer = load(data.tokenizer)
    options: dict[str, Any] = {
        "min_frames": data.min_frames,
        "plan_seconds": None if data.planner is None else data.plan_seconds,
    }
    key = latents_key(data.corpora, tokenizer, data.text_encoder, **options)
    if (Path(data.latents) / "latents.json").is_file():
        corpus = LatentCorpus.open(data.latents)
        if corpus.about["key"] != key:
            raise FileError(
                f"{data.latents} was made from other corpora, by another auto-encoder or text encoder: remove it, or "
                "choose another folder with data.latents."
            )
        return corpus
    return extract_latents(data.corpora, tokenizer, text_encoder(data.text_encoder), data.latents, **options)


def load_planner(source: str | Path) -> KinematicPlanner:
    """The planner at a folder or bundled name, or the one in the bundle there. Raises ModelError when it holds none."""
    found = load(source)
    found = getattr(found, "planner", None) or found
    if not isinstance(found, KinematicPlanner):
        raise ModelError(f"{source} holds a {type(found).__name__} and no kinematic planner.")
    return found
