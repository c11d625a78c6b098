"""Training a kinematic planner: from the sentence and the length of a segment to a distribution over its plan."""

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT
from vadis.data.encoded_corpus import EncodedCorpus
from vadis.errors import ModelError
from vadis.generators.planner import KinematicPlanner, KinematicPlannerConfig
from vadis.training.config import Batch, Frames, Recipe
from vadis.training.task import Task


@dataclass(frozen=True, config=STRICT)
class PlanData:
    """Segments of an encoded corpus with a random sentence each."""

    corpus: str
    """Folder made by `vadis data encode`, with plans."""
    batch: Batch = 128
    """Segments a process and batch."""
    max_steps: Frames | None = None
    """Longer segments (in token steps) are left out. Plans are in units of what remains: leave out here what the
    generator leaves out."""
    kind_weights: dict[str, float] = Field(default_factory=dict)
    """How likely sentences of a kind are (whole, detailed, label, automatic…); 1 when not named."""
    train_split: str | None = "train"
    validation_split: str | None = "val"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PlannerRecipe(Recipe):
    """Train a kinematic planner on an encoded corpus."""

    task: Literal["planner"] = "planner"
    data: PlanData
    model: KinematicPlannerConfig = Field(default_factory=KinematicPlannerConfig)


class PlannerTask(Task):
    """Likelihood of plans and the match of sentences with plans; normalised by mean and deviation over the train split, as the generator's are."""

    recipe_class = PlannerRecipe
    model: KinematicPlanner

    def __init__(self, recipe: PlannerRecipe) -> None:
        super().__init__(recipe)
        data, model, corpus = recipe.data, recipe.model, EncodedCorpus.open(recipe.data.corpus)
        self.train = corpus.subset(data.train_split, max_steps=data.max_steps)
        self.held_out = corpus.subset(data.validation_split, max_steps=data.max_steps)
        plans = self.train.plans()
        shape = (model.rows, len(model.attributes))
        if tuple(plans.shape[1:]) != shape or corpus.text_dim != model.text_dim:
            raise ModelError(
                f"the model does not fit {data.corpus}: it is for plans {shape} and text of {model.text_dim} values, the "
                f"data have {tuple(plans.shape[1:])} and {corpus.text_dim}."
            )
        self.model = KinematicPlanner(model)
        longest, places = corpus.about["longest_text"], len(self.model.place)
        if longest > places:
            raise ModelError(f"the longest sentence of {data.corpus} has {longest} tokens; a planner reads {places}.")
        self.model.set_statistics(plans)
        if model.bank_size > len(plans):
            raise ModelError(
                f"model.bank_size {model.bank_size} is more than the {len(plans)} plans of "
                f"{data.corpus}: set model.bank_size={len(plans)} or less."
            )
        if model.bank_size:
            every = torch.linspace(0, len(plans) - 1, model.bank_size).long()
            self.model.bank.copy_(plans[every])

    def _draw(self, corpus: EncodedCorpus, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        batch = corpus.batch(corpus.draw(data.batch, generator), generator, data.kind_weights)
        return {name: batch[name] for name in ("text", "text_lengths", "text_ids", "seconds", "plan")}

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self._draw(self.train, generator)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        text, lengths, plans, said = batch["text"], batch["text_lengths"], batch["plan"], batch["text_ids"]
        likelihood = self.model.loss(text, lengths, batch["seconds"], plans)
        match = self.model.match_loss(text, lengths, plans, said[:, None] == said)
        return {"total": likelihood + match, "likelihood": likelihood, "match": match}

    def validate(self) -> dict[str, float]:
        """The loss, the mean error in deviations of the data, and the share of values that a sentence determines."""
        rows = []
        for generator in self.held_out_batches():
            batch = {k: v.to(self.device) for k, v in self._draw(self.held_out, generator).items()}
            mean, determined = self.model.plan(batch["text"], batch["text_lengths"], batch["seconds"])
            error = (mean - self.model.normalize(batch["plan"])).abs().mean()
            rows.append([float(self.loss(batch)["total"]), float(error), float(determined.float().mean())])
        columns = torch.tensor(rows).mean(0).tolist()
        return dict(zip(("loss", "error", "determined"), columns, strict=True))
