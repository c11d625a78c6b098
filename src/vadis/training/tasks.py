"""What can be trained: the register of tasks, and the generator's. A task owns a model and says what batch, loss and
validation are; the loop does the rest.

To add one: a recipe dataclass, a `Task` subclass with that `recipe_class`, and an entry in `TASKS`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT, apply_overrides, as_dict, build, chosen_by_type, parse_setting, read_recipe
from vadis.data.encoded_corpus import EncodedCorpus
from vadis.errors import ModelError, VadisError
from vadis.generators.decoding import Decoding
from vadis.generators.motionmillion import MotionMillionConfig
from vadis.loading import component_classes
from vadis.training.config import Batch, Frames, Recipe
from vadis.training.evaluator_task import EvaluatorTask
from vadis.training.guo_task import GuoTask
from vadis.training.language_task import LanguageTask
from vadis.training.motionstreamer_task import MotionStreamerTask
from vadis.training.planner_task import PlannerTask
from vadis.training.scene_task import SceneTask
from vadis.training.task import Task
from vadis.training.tokenizer_task import TokenizerTask


@dataclass(frozen=True, config=STRICT)
class TokenData:
    """Segments of an encoded corpus with a random sentence each."""

    corpus: str
    """Folder made by `vadis data encode`."""
    batch: Batch = 32
    """Segments a process and batch."""
    max_steps: Frames | None = None
    """Longer segments are left out. Null: those that fit the model's row beside the longest sentence and the plan."""
    bucket: Batch = 8
    """A batch is a slice of this many batches sorted by length, so that little is padding; 1: no sorting."""
    kind_weights: dict[str, float] = Field(default_factory=dict)
    """How likely sentences of a kind are (whole, detailed, label, automatic…); 1 when not named."""
    trim: float = Field(default=0.0, ge=0, le=1)
    """Probability of dropping the first or the last step, equally likely (published: one third)."""
    text_dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability of the null prompt, for guidance."""
    plan_dropout: float = Field(default=0.3, ge=0, le=1)
    """Probability that the whole plan is hidden; otherwise each value is, at a rate drawn per row."""
    plan_dropout_without_text: float = Field(default=0.5, ge=0, le=1)
    """The same for rows with the null prompt, so that guidance can be against nothing or against the plan alone."""
    plan_noise: float = Field(default=0.0, ge=0)
    """Standard deviation of noise on plan values, in units of the training data: a planner's values are not exact."""
    length_dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability that a row does not know its length."""
    corrupt: float = Field(default=0.0, ge=0, le=1)
    """Input tokens are replaced by random ones at a rate drawn per row up to this."""
    corrupt_fixed: bool = False
    """The rate is `corrupt` in every row, as T2M-GPT published."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    train_split: str | None = "train"
    validation_split: str | None = "val"
    share: float = Field(default=1.0, gt=0, le=1)
    """Train on this share of the training tokens, whole groups of clips; a smaller share lies inside a larger one."""


GENERATORS: dict[str, Any] = {name: cls for name, cls in component_classes().items() if issubclass(cls, Decoding)}
GeneratorConfig = chosen_by_type({name: cls.config_class for name, cls in GENERATORS.items()}, "motionmillion")
"""The config of a generator that writes tokens, chosen by `type`."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GeneratorRecipe(Recipe):
    """Train an autoregressive text-to-motion model on an encoded corpus; `model.type` says its family."""

    task: Literal["generator"] = "generator"
    data: TokenData
    model: GeneratorConfig = Field(default_factory=MotionMillionConfig)  # type: ignore[valid-type]


class GeneratorTask(Task):
    """Next-token prediction after a text prefix, with the plan in units of the train split's mean and deviation."""

    recipe_class = GeneratorRecipe
    can_shard = True
    model: Any

    def __init__(self, recipe: GeneratorRecipe) -> None:
        super().__init__(recipe)
        data, model, corpus = recipe.data, recipe.model, EncodedCorpus.open(recipe.data.corpus)
        facts = {"nb_code": corpus.vocab_size, "groups": corpus.groups, "clip_dim": corpus.text_dim}
        if model.plan_dim:
            facts["plan_tokens"], facts["plan_dim"] = corpus.plan_shape or (0, 0)
        wrong = [
            f"model.{k} is {getattr(model, k)}, the data need {v}" for k, v in facts.items() if getattr(model, k) != v
        ]
        if wrong:
            raise ModelError(f"the model does not fit {data.corpus}: {'; '.join(wrong)}.")
        if data.text_dropout and not model.null_text:
            raise ModelError("data.text_dropout needs model.null_text: true.")
        if data.length_dropout and not model.length_conditioning:
            raise ModelError("data.length_dropout needs model.length_conditioning: true.")
        longest = corpus.about["longest_text"]
        if model.type == "t2mgpt" and longest > 1:
            raise ModelError(
                f"{data.corpus} has up to {longest} text vectors a sentence, t2mgpt reads one: encode the corpus with "
                "--text-encoder clip-vit-b32."
            )
        room = model.block_size - longest - model.plan_tokens
        limit = min(room, data.max_steps or room)
        self.train = corpus.subset(data.train_split, max_steps=limit, share=data.share)
        self.held_out = corpus.subset(data.validation_split, max_steps=limit)
        if model.plan_dim:
            plans = self.train.plans()
            self.center, self.scale = plans.mean(0), plans.std(0).clamp_min(1e-3)  # as the planner's normalisation
        self.model = GENERATORS[model.type](model)

    def _draw(self, corpus: EncodedCorpus, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        rows = corpus.draw(data.batch * data.bucket, generator)
        rows = rows[np.argsort(corpus.steps[rows], kind="stable")]
        start = data.batch * int(torch.randint(data.bucket, (1,), generator=generator))
        batch = corpus.batch(rows[start : start + data.batch], generator, data.kind_weights)
        batch["lengths"] = batch.pop("token_lengths")
        if self.recipe.model.plan_dim:
            batch["plan"] = ((batch["plan"] - self.center) / self.scale).clamp(-5, 5)
        else:
            batch = {k: v for k, v in batch.items() if not k.startswith("plan")}
        return batch

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        batch = self._draw(self.train, generator)
        rows = len(batch["lengths"])
        if data.trim:
            cut = (torch.rand(rows, generator=generator) < data.trim) & (batch["lengths"] > 1)
            head = cut & (torch.rand(rows, generator=generator) < 0.5)
            shifted = torch.cat([batch["tokens"][:, 1:], batch["tokens"][:, :1]], dim=1)
            batch["tokens"] = torch.where(head.view(-1, *[1] * (batch["tokens"].ndim - 1)), shifted, batch["tokens"])
            batch["lengths"] = batch["lengths"] - cut.long()
        no_text = torch.rand(rows, generator=generator) < data.text_dropout
        if data.text_dropout:
            batch["drop_text"] = no_text
        if "plan_mask" in batch:
            shape = batch["plan_mask"].shape
            hidden = torch.rand(shape, generator=generator) < torch.rand(rows, 1, 1, generator=generator)
            batch["plan_mask"] = batch["plan_mask"] & ~hidden
            if data.plan_noise:
                batch["plan"] = batch["plan"] + data.plan_noise * torch.randn(shape, generator=generator)
            share = torch.where(no_text, data.plan_dropout_without_text, data.plan_dropout)
            batch["drop_plan"] = torch.rand(rows, generator=generator) < share
        return batch

    def data_facts(self) -> dict[str, int]:
        tokens = int(self.train.steps.sum()) * self.train.groups
        return {"items": len(self.train), "tokens": tokens, "items_per_step": self.recipe.data.batch}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        data = self.recipe.data
        options: dict[str, Any] = {
            "corrupt": data.corrupt,
            "corrupt_fixed": data.corrupt_fixed,
            "label_smoothing": data.label_smoothing,
        }
        if data.length_dropout:
            options["length_dropout"] = data.length_dropout
        return self.model.loss(batch, **options)

    def validate(self) -> dict[str, float]:
        """Loss and accuracy with full conditions, and the loss without the text (how much the text tells)."""
        rows = []
        for generator in self.held_out_batches():
            batch = {k: v.to(self.device) for k, v in self._draw(self.held_out, generator).items()}
            row = {"loss" if k == "total" else k: float(v) for k, v in self.model.loss(batch).items()}
            if self.recipe.model.null_text:
                every = torch.ones_like(batch["lengths"], dtype=torch.bool)
                row["loss_without_text"] = float(
                    self.model.loss(batch | {"drop_text": every, "drop_plan": ~every})["total"]
                )
            if "plan" in batch:
                every = torch.ones_like(batch["lengths"], dtype=torch.bool)
                row["loss_without_plan"] = float(self.model.loss(batch | {"drop_plan": every})["total"])
            rows.append(row)
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


TASKS: dict[str, type[Task]] = {
    "tokenizer": TokenizerTask,
    "generator": GeneratorTask,
    "planner": PlannerTask,
    "evaluator": EvaluatorTask,
    "guo-evaluator": GuoTask,
    "motionstreamer": MotionStreamerTask,
    "language": LanguageTask,
    "motionvla": SceneTask,
}


def load_recipe(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file or a `Recipe`, with `key=value` overrides; raises VadisError naming the wrong path.

    Without `run` the folder is `runs/NAME`, after the file.
    """
    phases = load_phases(recipe, overrides)
    if len(phases) > 1:
        names = ", ".join(Path(phase.run).name for phase in phases)
        raise VadisError(f"{recipe} has phases ({names}): train it, or read it with load_phases.")
    return phases[0]


def load_phases(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipes of a training in phases: each entry of `phases` laid over what is common to all; of others just the one.

    Each phase runs in a folder RUN/NAME of its own, and `model.start` of all but the first is the model of the one before.
    Overrides hold in all phases, or, as `phases.NAME.key=value`, in one.
    """
    if isinstance(recipe, Recipe):
        return [_built(apply_overrides(as_dict(recipe), overrides), "recipe")]
    raw, where = read_recipe(recipe), Path(recipe).name
    raw.setdefault("run", f"runs/{Path(recipe).stem}")
    phases = raw.pop("phases", None)
    if phases is None:
        return [_built(apply_overrides(raw, overrides), where)]
    if not isinstance(phases, dict) or not all(isinstance(phase, dict) for phase in phases.values()) or not phases:
        raise VadisError(f"{where}: phases must be names with groups of settings.")
    if not isinstance(raw["run"], str) or not all(re.fullmatch(r"[\w.-]*\w[\w.-]*", name) for name in phases):
        raise VadisError(f"{where}: run must be a folder, and the names of phases letters, digits, ., - and _.")
    own = [text for text in overrides if text.startswith("phases.")]
    if unknown := [text for text in own if parse_setting(text)[0].split(".")[1] not in phases]:
        raise VadisError(f"{where}: no phase is meant by {unknown[0]!r}; there are {', '.join(phases)}.")
    phases = apply_overrides({"phases": phases}, own)["phases"]
    result: list[Recipe] = []
    for name, phase in phases.items():
        page = apply_overrides(_over(raw, phase), [text for text in overrides if text not in own])
        if result and isinstance(page.setdefault("model", {}), dict):
            page["model"]["start"] = f"{result[-1].run}/model"
        result.append(_built(page | {"run": f"{page['run']}/{name}"}, f"{where}, phase {name}"))
    return result


def _built(raw: dict[str, Any], where: str) -> Recipe:
    if not isinstance(raw.get("task"), str) or raw["task"] not in TASKS:
        raise VadisError(f"{where}: task {raw.get('task')!r:.60} is unknown; expected one of {', '.join(TASKS)}.")
    return build(TASKS[raw["task"]].recipe_class, raw, where)


def _over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, group by group."""
    both = {k: _over(under[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(under.get(k), dict)}
    return under | over | both
