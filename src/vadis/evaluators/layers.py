"""Blocks of the TMR family (Petrovich et al., 2023; after ACTOR, Petrovich et al., 2021): a transformer that turns a
sequence into a normal distribution, and one that turns a vector back into a sequence.

Shapes: B clips, S steps, H width, E values of a latent vector.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normal(NamedTuple):
    """A diagonal normal distribution."""

    mean: Tensor
    """(B, E)."""
    std: Tensor
    """(B, E)."""

    def sample(self) -> Tensor:
        """(B, E), differentiable in both."""
        return self.mean + self.std * torch.randn_like(self.std)


def sinusoids(steps: int, width: int) -> Tensor:
    """Positional table (steps, width): sine on even, cosine on odd channels."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(steps)[:, None] * rate
    table = torch.zeros(steps, width)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()[:, : width // 2]
    return table


def inside(lengths: Tensor, steps: int) -> Tensor:
    """(B, steps) bool: steps before the end of each sequence."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def moments(x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C) over the visible steps of sequences (B, S, C)."""
    count = visible.sum(1, keepdim=True).clamp_min(1)
    mean = (x * visible[..., None]).sum(1) / count
    variance = ((x - mean[:, None]).square() * visible[..., None]).sum(1) / count
    return mean, (variance + 1e-8).sqrt()


class DistributionEncoder(nn.Module):
    """A sequence (B, S, H) to a normal distribution: two learned vectors go in front, what becomes of them is read.

    They take the first two positions. `out` values come through a linear layer; None: H values, as published. Names of
    tensors are those of the published checkpoint.
    """

    def __init__(self, width: int, layers: int, heads: int, ff: int, dropout: float, out: int | None = None) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.mu_token = nn.Parameter(torch.randn(width))
        self.logvar_token = nn.Parameter(torch.randn(width))
        layer = nn.TransformerEncoderLayer(width, heads, ff, dropout, F.gelu, batch_first=True)  # post-norm
        self.seqTransEncoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, out) if out else nn.Identity()

    def read(self, x: Tensor, visible: Tensor, shift: Tensor | float = 0.0) -> Normal:
        """`visible` (B, S) bool marks the steps of each sequence, `shift` (B, E) is added to the mean.

        The amount of padding makes no difference.
        """
        tokens = torch.stack([self.mu_token, self.logvar_token]).expand(len(x), -1, -1)
        x = torch.cat([tokens, x], dim=1)  # (B, 2 + S, H)
        x = F.dropout(x + sinusoids(x.shape[1], self.width).to(x), self.dropout, self.training)
        y = self.seqTransEncoder(x, src_key_padding_mask=~F.pad(visible, (2, 0), value=True))
        return Normal(self.out(y[:, 0]) + shift, torch.exp(0.5 * self.out(y[:, 1])))


class SequenceDecoder(nn.Module):
    """A vector (B, H) to features (B, T, D): positions ask, the vector is all they can look at."""

    def __init__(self, width: int, layers: int, heads: int, ff: int, dropout: float, features: int) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        layer = nn.TransformerDecoderLayer(width, heads, ff, dropout, F.gelu, batch_first=True)
        self.seqTransDecoder = nn.TransformerDecoder(layer, layers)
        self.final_layer = nn.Linear(width, features)

    def forward(self, z: Tensor, lengths: Tensor) -> Tensor:
        """Features as long as the longest clip, zero after each clip's length (B,)."""
        frames = int(lengths.max())
        queries = sinusoids(frames, self.width).to(z).expand(len(z), -1, -1)
        queries = F.dropout(queries, self.dropout, self.training)
        visible = inside(lengths, frames)
        y = self.seqTransDecoder(queries, z[:, None], tgt_key_padding_mask=~visible)
        return self.final_layer(y) * visible[..., None]
