"""Building blocks of the convolutional tokenizers: Haar patches and dilated residual stacks.

All blocks work channels first, `(B, C, T)`; layer numbers follow the published MotionMillion state dict.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PatchMethod = Literal["haar", "rearrange"]
Norm = Literal["LN", "GN", "BN"]
Activation = Literal["relu", "silu", "gelu"]


def activation(name: Activation) -> nn.Module:
    """The named non-linearity; `gelu` is the exact one."""
    return {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}[name]()


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of `(B, C, T)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def normalization(name: Norm | None, channels: int) -> nn.Module:
    """The named normalisation over `channels`; None does nothing."""
    if name == "LN":
        return ChannelLayerNorm(channels, eps=1e-5)
    if name == "GN":
        return nn.GroupNorm(32, channels, eps=1e-6)
    if name == "BN":
        return nn.BatchNorm1d(channels, eps=1e-6)
    return nn.Identity()


class _HaarBase(nn.Module):
    """Shared state of the two Haar modules: the published checkpoints carry both buffers even where no level is used."""

    wavelets: Tensor

    def __init__(self, patch_size: int = 1, method: PatchMethod = "haar") -> None:
        super().__init__()
        self.patch_size, self.method = patch_size, method
        self.levels = int(math.log2(patch_size))
        self.register_buffer("wavelets", torch.full((2,), 0.5**0.5))
        self.register_buffer("_arange", torch.arange(2))


class HaarPatcher(_HaarBase):
    """Fold time into channels: `(B, C, T)` to `(B, C * patch_size, ceil(T / patch_size))`.

    `haar` applies log2(patch_size) wavelet levels (each pads an odd T by reflection); `rearrange` only reshapes and
    needs T to be a multiple of `patch_size`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.method == "rearrange":
            return x.unflatten(-1, (-1, self.patch_size)).transpose(-1, -2).flatten(1, 2)
        scale = self.wavelets[0] / 2
        for _ in range(self.levels):
            if x.shape[-1] % 2:
                x = F.pad(x, (0, 1), mode="reflect")
            even, odd = x[..., 0::2], x[..., 1::2]
            x = torch.cat([(even + odd) * scale, (even - odd) * scale], dim=1)
        return x


class HaarUnpatcher(_HaarBase):
    """The inverse of `HaarPatcher`: `(B, C * patch_size, S)` to `(B, C, S * patch_size)`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.method == "rearrange":
            return x.unflatten(1, (-1, self.patch_size)).transpose(-1, -2).flatten(-2)
        scale = self.wavelets[0] * 2
        for _ in range(self.levels):
            low, high = x.chunk(2, dim=1)
            x = torch.stack([(low + high) * scale, (low - high) * scale], dim=-1).flatten(-2)
        return x


class ResidualBlock(nn.Module):
    """`x + drop(conv2(act(norm(conv1(act(norm(x)))))))`: a dilated convolution and a pointwise one."""

    def __init__(
        self, width: int, kernel_size: int, dilation: int, act: Activation, norm: Norm | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = normalization(norm, width)
        self.norm2 = normalization(norm, width)
        self.activation1 = activation(act)
        self.activation2 = activation(act)
        padding = dilation * (kernel_size - 1) // 2
        self.conv1 = nn.Conv1d(width, width, kernel_size, padding=padding, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.activation1(self.norm1(x)))
        return x + self.dropout(self.conv2(self.activation2(self.norm2(hidden))))


class ResidualStack(nn.Module):
    """`depth` residual blocks, widest dilation first (9, 3, 1 as published, in encoder and decoder alike)."""

    def __init__(
        self,
        width: int,
        depth: int,
        growth: int,
        kernel_size: int = 3,
        act: Activation = "relu",
        norm: Norm | None = "LN",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dilations = [growth**i for i in reversed(range(depth))]
        self.model = nn.Sequential(*(ResidualBlock(width, kernel_size, d, act, norm, dropout) for d in dilations))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class BinomialSmoothing(nn.Module):
    """A fixed low-pass filter over time with binomial weights, `(B, C, T)` to the same shape; ends are repeated outward.

    In the loop while training, it bounds the jitter of whatever a decoder puts out.
    """

    kernel: Tensor

    def __init__(self, radius: int) -> None:
        super().__init__()
        weights = torch.tensor([math.comb(2 * radius, k) for k in range(2 * radius + 1)], dtype=torch.float64)
        self.radius = radius
        self.register_buffer("kernel", (weights / weights.sum()).float()[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = F.pad(x.flatten(0, 1)[:, None], (self.radius, self.radius), mode="replicate")
        return F.conv1d(flat, self.kernel.to(x.dtype)).view(x.shape)
