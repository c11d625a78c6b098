"""Choosing token ids from logits, reproducibly for each row: the same seed gives a row the same ids in any batch."""

import secrets

import numpy as np
import torch
from torch import Tensor

from vadis.errors import VadisError

Seed = int | list[int] | torch.Generator | None


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise VadisError for settings that mean nothing."""
    if not 0 <= temperature < float("inf"):
        raise VadisError(f"temperature {temperature} must be 0 (greedy) or a positive number.")
    if top_k is not None and top_k < 1:
        raise VadisError(f"top_k {top_k} must be at least 1, or None for all codes.")
    if top_p is not None and not 0 < top_p <= 1:
        raise VadisError(f"top_p {top_p} must be in (0, 1].")


def choose(
    logits: Tensor,
    uniform: Tensor | None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Ids `(B,)` from logits `(B, K)`: the best one at temperature 0, else by inverting the distribution at `uniform` `(B,)`."""
    if temperature == 0 or uniform is None:
        return logits.argmax(dim=-1)
    logits = logits.double() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probability = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probability.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        kept = torch.zeros_like(probability).scatter(1, order, ordered * (before < top_p))
        probability = kept
    edges = probability.cumsum(dim=-1)
    ids = (edges <= uniform[:, None].double() * edges[:, -1:]).sum(dim=-1)
    return ids.clamp_max(logits.shape[-1] - 1)


class RowNoise:
    """Uniform numbers that depend on a row's own seed, its sample number and the step only.

    `seed`: one for all rows, one a row, a torch generator to draw them from, or None for fresh ones.
    """

    def __init__(self, seed: Seed, rows: int, samples_per_row: int = 1) -> None:
        if seed is None:
            seeds = [secrets.randbits(32) for _ in range(rows)]
        elif isinstance(seed, torch.Generator):
            seeds = torch.randint(2**62, (rows,), generator=seed, device=seed.device).tolist()
        elif isinstance(seed, int):
            seeds = [seed] * rows
        else:
            seeds = [int(value) for value in seed]
        if len(seeds) != rows or min(seeds, default=0) < 0:
            raise VadisError(f"seeds {seeds} must be {rows} numbers >= 0, one a prompt.")
        self.sources = [
            np.random.Generator(np.random.PCG64([value, sample]))
            for value in seeds
            for sample in range(samples_per_row)
        ]

    def draw(self, count: int) -> Tensor:
        """The next `(rows, count)` float64 numbers in [0, 1)."""
        return torch.from_numpy(np.stack([source.random(count) for source in self.sources]))

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        self.sources = [self.sources[row] for row in rows]
