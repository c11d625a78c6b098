"""What can be trained. A task owns a model and says what batch, loss and validation are; the loop does the rest.

To add one: a recipe dataclass, a `Task` subclass with that `recipe_class`, and an entry in `TASKS`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.data.corpus import Corpus
from vadis.errors import ModelError, VadisError
from vadis.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from vadis.training.config import STRICT, Recipe, apply_overrides, as_dict, build, read_yaml


class Task:
    """The interface; `model` is trained and exported."""

    recipe_class: ClassVar[type[Recipe]] = Recipe
    model: nn.Module

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A training batch on the CPU, a pure function of `generator`."""
        raise NotImplementedError

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar terms of a batch on the model's device; "total" is minimised."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Numbers on held-out data, the same every time; called without gradients, average weights in the model."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the model as a component folder."""
        self.model.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def held_out_batches(self) -> list[torch.Generator]:
        """Generators of the validation batches, apart from any used in training."""
        return [torch.Generator().manual_seed(i + 1) for i in range(self.recipe.validation_batches)]


@dataclass(frozen=True, config=STRICT)
class WindowData:
    """Random windows of a feature corpus."""

    corpus: str
    """Folder made by `vadis data build`."""
    window: int = Field(96, ge=2)
    """Frames; shorter clips are left out."""
    batch: int = Field(64, ge=1)
    """Windows a process and batch."""
    mirror: float = Field(0.0, ge=0, le=1)
    """Probability of a left-right mirrored window."""
    train_split: str | None = "train"
    """Null: all clips."""
    validation_split: str | None = "val"


@dataclass(frozen=True, config=STRICT)
class ReconstructionLoss:
    """Weights of `vadis.tokenizers.losses.reconstruction_losses`."""

    position_weight: float = 0.5
    velocity_weight: float = 0.0
    acceleration_weight: float = 0.0
    root_weight: float = 0.0
    path_weight: float = 0.0
    heading_weight: float = 0.0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TokenizerRecipe(Recipe):
    """Train an FSQ tokenizer on windows of a corpus."""

    task: Literal["tokenizer"] = "tokenizer"
    data: WindowData
    model: FSQTokenizerConfig = Field(default_factory=FSQTokenizerConfig)
    loss: ReconstructionLoss = Field(default_factory=ReconstructionLoss)


class TokenizerTask(Task):
    """FSQ tokenizer: windows, z-normalised with the corpus' statistics, which travel with the model."""

    recipe_class = TokenizerRecipe
    model: FSQTokenizer

    def __init__(self, recipe: TokenizerRecipe) -> None:
        from vadis.representations import representation

        super().__init__(recipe)
        data, corpus = recipe.data, Corpus.open(recipe.data.corpus)
        self.train, self.held_out = corpus.subset(data.train_split), corpus.subset(data.validation_split)
        if corpus.representation != recipe.model.representation or corpus.fps != recipe.model.fps:
            raise ModelError(
                f"{data.corpus} holds {corpus.representation} at {corpus.fps:g} fps; the recipe's model is for "
                f"{recipe.model.representation} at {recipe.model.fps:g} fps. "
                "Set model.representation and model.fps, or data.corpus."
            )
        self.representation = representation(corpus.representation)
        self.model = FSQTokenizer(recipe.model)
        self.model.set_statistics(corpus.mean, corpus.std)
        self.weights = as_dict(recipe.loss)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        features = self.train.windows(data.batch, data.window, generator)
        if data.mirror:
            chosen = torch.rand(data.batch, generator=generator) < data.mirror
            if chosen.any():
                features[chosen] = self.representation.mirror(features[chosen])
        return {"features": features}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms, _ = self.model.loss((batch["features"] - self.model.mean) / self.model.std, **self.weights)
        return terms

    def validate(self) -> dict[str, float]:
        """Loss terms, error of the local joint positions in mm, codebook perplexity and share of codes used."""
        data, rows, tokens = self.recipe.data, [], []
        where = self.representation.slices.get("joint_positions")
        for generator in self.held_out_batches():
            features = self.held_out.windows(data.batch, data.window, generator).to(self.device)
            terms, output = self.model.loss((features - self.model.mean) / self.model.std, **self.weights)
            row = {("loss" if name == "total" else name): float(value) for name, value in terms.items()}
            if where is not None:
                made = output.reconstruction.float() * self.model.std + self.model.mean
                error = (made - features[:, : made.shape[1]])[..., where].unflatten(-1, (-1, 3)).norm(dim=-1)
                row["position_mm"] = 1000 * float(error.mean())
            rows.append(row)
            tokens.append(output.tokens)
        result = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        result["perplexity"], result["codes_used"] = self.model.quantizer.usage(torch.cat(tokens))
        return result


TASKS: dict[str, type[Task]] = {"tokenizer": TokenizerTask}


def load_recipe(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file or a `Recipe`, with `key=value` overrides; raises VadisError naming the wrong path.

    Without `run` the folder is `runs/NAME`, after the file.
    """
    if isinstance(recipe, Recipe):
        raw, where = as_dict(recipe), "recipe"
    else:
        raw, where = read_yaml(recipe), Path(recipe).name
        raw.setdefault("run", f"runs/{Path(recipe).stem}")
    raw = apply_overrides(raw, overrides)
    if raw.get("task") not in TASKS:
        raise VadisError(f"{where}: task {raw.get('task')!r} is unknown; expected one of {', '.join(TASKS)}.")
    return build(TASKS[raw["task"]].recipe_class, raw, where)
