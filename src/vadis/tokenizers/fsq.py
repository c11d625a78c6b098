"""MotionMillion's tokenizer: a convolutional encoder, finite scalar quantisation and the mirror decoder.

Go to Zero (arXiv 2507.07095); FSQ after Mentzer et al., 2023: the codebook is a grid, so nothing has to be looked up. A
token is the mixed-radix number of its channels, first channel fastest, as in the published checkpoints. With `groups` > 1
consecutive channels make one token each, so a step holds G tokens of a small vocabulary instead of one of a large one.

Shapes: B clips, T frames, D features, S token steps, G groups, C = len(levels) channels.
"""

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.config import build_config
from vadis.errors import ModelError
from vadis.sizes import CONFIG, FrameRate, Groups, Name, Stages, Width
from vadis.tokenizers.base import Quantized, Quantizer, grid_vectors
from vadis.tokenizers.conv import ConvConfig, ConvTokenizer, infer_conv, load_published
from vadis.tokenizers.layers import Norm

LEVELS = {
    256: (8, 6, 5),
    512: (8, 8, 8),
    1024: (8, 5, 5, 5),
    2048: (8, 8, 6, 5),
    4096: (7, 5, 5, 5, 5),
    16384: (8, 8, 8, 6, 5),
    65536: (8, 8, 8, 5, 5, 5),
}
"""Levels by the published name of a codebook; its true size is their product (65536 -> 64000)."""


class FSQ(Quantizer):
    """Round each channel to a fixed grid.

    Args:
        levels: values per channel, all groups one after the other.
        dim: width of the input; a linear layer on either side when it differs from len(levels).
        groups: tokens per step; the groups must have equal vocabularies.

    Shape:
        x (B, S, dim) -> vectors (B, S, dim), tokens (B, S) or (B, S, G) int64 in [0, vocab_size).

    Straight-through: the gradient of the codes is that of the squashing alone. Always float32, also under autocast:
    half precision moves values across rounding boundaries.
    """

    _levels: Tensor
    _basis: Tensor
    _half: Tensor
    _offset: Tensor
    _shift: Tensor

    def __init__(self, levels: tuple[int, ...], dim: int | None = None, groups: int = 1) -> None:
        super().__init__()
        self.levels, self.groups = tuple(levels), groups
        per_group = len(levels) // groups
        sizes = {math.prod(levels[g * per_group : (g + 1) * per_group]) for g in range(groups)}
        if per_group * groups != len(levels) or len(sizes) != 1:
            raise ModelError(f"levels {list(levels)} can't be split into {groups} groups of one vocabulary size.")
        self.vocab_size = sizes.pop()
        dim = len(levels) if dim is None else dim
        self.project_in = nn.Linear(dim, len(levels)) if dim != len(levels) else nn.Identity()
        self.project_out = nn.Linear(len(levels), dim) if dim != len(levels) else nn.Identity()
        count = torch.tensor(levels)
        basis = [math.prod(levels[i - i % per_group : i]) for i in range(len(levels))]
        half = (count - 1) * (1 + 1e-3) / 2
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        constants = {"_levels": count, "_basis": torch.tensor(basis), "_half": half, "_offset": offset}
        for name, value in (constants | {"_shift": torch.atanh(offset / half)}).items():
            self.register_buffer(name, value, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Squash `(..., C)` so that rounding gives `levels[i]` integers on channel i; 0 stays 0."""
        return torch.tanh(z + self._shift) * self._half - self._offset

    def quantize(self, z: Tensor) -> Tensor:
        """Codes `(..., C)` in [-1, 1], multiples of 1 / (level // 2); straight-through gradient."""
        bounded = self.bound(z)
        return (bounded + (bounded.round() - bounded).detach()) / (self._levels // 2)

    def level_indices(self, tokens: Tensor) -> Tensor:
        """Tokens `(...)` (groups > 1: `(..., G)`) to digits `(..., C)`, digit i in [0, levels[i])."""
        if self.groups > 1:
            tokens = tokens.repeat_interleave(len(self.levels) // self.groups, dim=-1)
        else:
            tokens = tokens[..., None]
        return tokens // self._basis % self._levels

    def code_vectors(self) -> list[Tensor]:
        """The grid (K, d) of each group."""
        return grid_vectors(self)

    def codes_from_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens to codes `(..., C)`, the exact inverse of `tokens_from_codes`."""
        half = self._levels // 2
        return (self.level_indices(tokens) - half) / half

    def tokens_from_codes(self, codes: Tensor) -> Tensor:
        """Codes `(..., C)` to tokens `(...)` or `(..., G)`, int64."""
        half = self._levels // 2
        digits = (codes.detach() * half + half).round().long() * self._basis
        return digits.unflatten(-1, (self.groups, -1)).sum(-1) if self.groups > 1 else digits.sum(-1)

    def forward(self, x: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            codes = self.quantize(self.project(x))
            return Quantized(_linear32(self.project_out, codes), self.tokens_from_codes(codes))

    def project(self, x: Tensor) -> Tensor:
        """Values `(B, S, C)` before squashing and rounding."""
        return _linear32(self.project_in, x)

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Tokens `(B, S)` or `(B, S, G)` to vectors `(B, S, dim)`."""
        with torch.autocast(tokens.device.type, enabled=False):
            return _linear32(self.project_out, self.codes_from_tokens(tokens))


def _linear32(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())
    return x.float()


@dataclass(frozen=True, config=CONFIG)
class FSQTokenizerConfig(ConvConfig):
    """The defaults are the released MotionMillion tokenizer: 2 frames a token, 64,000 codes."""

    type: Literal["fsq"] = "fsq"
    representation: Name = "ms272"
    fps: FrameRate = 30.0
    feature_dim: Width = 272
    down_t: Stages = 1
    norm: Norm | None = "LN"
    use_patcher: bool = True
    """With the published patch_size 1 nothing is folded."""
    levels: Annotated[tuple[int, ...], Field(max_length=4096)] = (8, 8, 8, 5, 5, 5)
    """Values per channel, all groups one after the other."""
    groups: Groups = 1
    """Tokens per step; the vocabulary is the product of one group's levels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or min(self.levels) < 2 or max(self.levels) > 1_000_000 or math.prod(self.levels) >= 2**62:
            raise ModelError(f"levels {list(self.levels)} make no codebook: each must be at least 2.")


class FSQTokenizer(ConvTokenizer):
    """The convolutional auto-encoder around FSQ."""

    config_class = FSQTokenizerConfig
    config: FSQTokenizerConfig

    def _quantizer(self) -> FSQ:
        return FSQ(self.config.levels, self.config.code_dim, self.config.groups)

    @property
    def tokens_per_step(self) -> int:
        return self.config.groups


def from_motionmillion(
    state: dict[str, Tensor],
    *,
    mean: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    **options: Any,
) -> FSQTokenizer:
    """Build the tokenizer from a published MotionMillion state dict (names `vqvae.…`), every name used once.

    Sizes are read off the tensors. What they do not tell may be given as `options` (fields of FSQTokenizerConfig: `levels`,
    `activation`, `dilation_growth_rate`, `norm` "GN", `patch_size`, …, or `nb_code`, the published codebook name).
    Raises ModelError for names that are missing or left over and where the levels are ambiguous.
    """
    prefix = "vqvae."
    strange = [name for name in state if not name.startswith(prefix)]
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if strange or not state:
        raise ModelError(f"not a MotionMillion FSQ checkpoint: unexpected names {strange[:10] or '(no vqvae.…)'}.")
    options.pop("output_emb_width", None)  # published configs repeat code_dim under this name
    config = build_config(FSQTokenizerConfig, infer_conv(state, options) | _levels(state, options) | options, "options")
    return load_published(FSQTokenizer(config), state, mean, std)


def _levels(state: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """The levels that the codebook's name or the tensors tell; removes `nb_code` from `options`."""
    if (name := options.pop("nb_code", None)) is not None:
        if name not in LEVELS:
            raise ModelError(f"unknown codebook name {name}: use one of {', '.join(map(str, LEVELS))}, or give levels.")
        return {"levels": LEVELS[name]}
    if "levels" in options:
        return {}
    into = state.get("quantizer.project_in.weight")
    channels = len(state["decoder.model.0.weight"][0]) if into is None else len(into)
    fitting = [levels for levels in LEVELS.values() if len(levels) == channels]
    if len(fitting) != 1:
        choices = " or ".join(str(list(levels)) for levels in fitting) or "its levels"
        raise ModelError(f"the levels of a codebook with {channels} channels are ambiguous: give levels={choices}.")
    return {"levels": fitting[0]}
