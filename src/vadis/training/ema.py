"""Exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vadis.training.sharding import local, split_as, whole


class EMA:
    """Average of the trained parameters in float32; buffers and frozen weights follow the model.

    The decay is ramped, min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.shadow: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in self._trained()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (counted from 0)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        weights = [local(p).float() for _, p in self._trained()]
        shadow = [local(value) for value in self.shadow.values()]
        torch._foreach_lerp_(shadow, weights, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for the length of a `with` block."""
        own = {n: p.detach().clone() for n, p in self._trained()}
        try:
            self._copy(self.shadow)
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, source: dict[str, Tensor]) -> None:
        for name, parameter in self._trained():
            parameter.copy_(source[name])

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def state_dict(self, keep: bool = True) -> dict[str, Tensor]:
        """Whole tensors; where weights are split every process must ask, and gets empty ones without `keep`."""
        return {name: whole(value, keep).contiguous() for name, value in self.shadow.items()}  # as files want them

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.shadow.items():
            value.copy_(split_as(state[name], value))
