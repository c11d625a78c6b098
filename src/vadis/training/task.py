"""The interface between the training loop and what it trains."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vadis.component_files import save_pretrained
from vadis.training.config import Recipe


class Task:
    """The interface; `model` is trained and exported."""

    recipe_class: ClassVar[type[Recipe]] = Recipe
    can_shard: ClassVar[bool] = False
    """Whether `shard: true` works: the loss must call every block of the model by its forward pass."""
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
        save_pretrained(self.model, folder)

    def data_facts(self) -> dict[str, int]:
        """How much there is to train on: "items", their motion "tokens", and the "items_per_step" of one batch of one
        process; empty where a task can't say. For studies (`study.py`) and budgets in epochs."""
        return {}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def held_out_batches(self) -> list[torch.Generator]:
        """Generators of the validation batches, apart from any used in training."""
        return [torch.Generator().manual_seed(i + 1) for i in range(self.recipe.validation_batches)]
