"""MotionMillion's tokenizer: a convolutional encoder, finite scalar quantisation and the mirror decoder.

Go to Zero (arXiv 2507.07095); FSQ after Mentzer et al., 2023: the codebook is a grid, so nothing has to be looked up. A
token is the mixed-radix number of its channels, first channel fastest, as in the published checkpoints. With `groups` > 1
consecutive channels make one token each, so a step holds G tokens of a small vocabulary instead of one of a large one.

Shapes: B clips, T frames, D features, S token steps, G groups, C = len(levels) channels.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import load_strictly
from vadis.component import Component, build_config
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.tokenizers.kinematic_loss import KINEMATIC_WEIGHTS, kinematic_losses
from vadis.tokenizers.layers import (
    Activation,
    BinomialSmoothing,
    HaarPatcher,
    HaarUnpatcher,
    Norm,
    PatchMethod,
    ResidualStack,
)
from vadis.tokenizers.losses import reconstruction_losses

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

KNOWN_DIMS = {263: "hml263", 251: "kit251", 272: "ms272", 276: "vimogen276", 135: "smpl135"}


class FSQ(nn.Module):
    """Round each channel to a fixed grid.

    Args:
        levels: values per channel, all groups one after the other.
        dim: width of the input; a linear layer on either side when it differs from len(levels).
        groups: tokens per step; the groups must have equal vocabularies.

    Shape:
        x (B, S, dim) -> quantised (B, S, dim), tokens (B, S) or (B, S, G) int64 in [0, vocab_size), projected (B, S, C).

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

    def codes_from_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens to codes `(..., C)`, the exact inverse of `tokens_from_codes`."""
        half = self._levels // 2
        return (self.level_indices(tokens) - half) / half

    def tokens_from_codes(self, codes: Tensor) -> Tensor:
        """Codes `(..., C)` to tokens `(...)` or `(..., G)`, int64."""
        half = self._levels // 2
        digits = (codes.detach() * half + half).round().long() * self._basis
        return digits.unflatten(-1, (self.groups, -1)).sum(-1) if self.groups > 1 else digits.sum(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            projected = _linear32(self.project_in, x)
            codes = self.quantize(projected)
            return _linear32(self.project_out, codes), self.tokens_from_codes(codes), projected

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Tokens `(B, S)` or `(B, S, G)` to vectors `(B, S, dim)`."""
        with torch.autocast(tokens.device.type, enabled=False):
            return _linear32(self.project_out, self.codes_from_tokens(tokens))

    def usage(self, tokens: Tensor) -> tuple[float, float]:
        """Perplexity and share of the vocabulary seen in `tokens`; the mean over groups."""
        results = []
        for row in tokens.reshape(-1, self.groups).T:
            count = torch.bincount(row, minlength=self.vocab_size).double()
            p = count / count.sum()
            results.append((math.exp(-(p * (p + 1e-7).log()).sum().item()), (count > 0).double().mean().item()))
        return tuple(float(np.mean(column)) for column in zip(*results, strict=True))  # type: ignore[return-value]


def _linear32(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())
    return x.float()


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FSQTokenizerConfig:
    """The defaults are the released MotionMillion tokenizer: 2 frames a token, 64,000 codes."""

    type: Literal["fsq"] = "fsq"
    representation: str = "ms272"
    fps: float = Field(default=30.0, gt=0)
    feature_dim: int = Field(default=272, ge=1)
    width: int = Field(default=512, ge=1)
    """Channels of the convolutions."""
    code_dim: int = Field(default=512, ge=1)
    """Width of the decoder's input."""
    output_emb_width: int = Field(default=512, ge=1)
    """Width of the encoder's output; equal to `code_dim`."""
    down_t: int = Field(default=1, ge=0)
    """Stages, each shortening time by `stride_t`."""
    stride_t: int = Field(default=2, ge=2)
    depth: int = Field(default=3, ge=1)
    """Residual blocks a stage."""
    dilation_growth_rate: int = Field(default=3, ge=1)
    activation: Activation = "relu"
    norm: Norm | None = "LN"
    kernel_size: int = Field(default=3, ge=1)
    use_patcher: bool = True
    patch_size: int = Field(default=1, ge=1)
    """Frames folded into channels before the first convolution; a power of two. 1 as published: nothing is folded."""
    patch_method: PatchMethod = "haar"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Values per channel, all groups one after the other."""
    groups: int = Field(default=1, ge=1)
    """Tokens per step; the vocabulary is the product of one group's levels."""
    smoothing: int = Field(default=0, ge=0, le=8)
    """Radius in frames of a fixed binomial filter over the decoder's output; 0 as published: none."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) >= 2**62:
            raise ModelError(f"levels {list(self.levels)} make no codebook: each must be at least 2.")
        if self.output_emb_width != self.code_dim:
            raise ModelError(f"output_emb_width {self.output_emb_width} must equal code_dim {self.code_dim}.")
        if self.patch_size & (self.patch_size - 1) or (self.patch_size > 1 and not self.use_patcher):
            raise ModelError(f"patch_size {self.patch_size} must be a power of two, and 1 without the patcher.")
        if self.kernel_size % 2 == 0 or self.stride_t % 2:
            raise ModelError(f"kernel_size {self.kernel_size} must be odd and stride_t {self.stride_t} even.")
        if self.norm == "GN" and self.width % 32:
            raise ModelError(f"norm GN needs a width that is a multiple of 32, not {self.width}.")


class _Encoder(nn.Module):
    def __init__(self, c: FSQTokenizerConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [HaarPatcher(c.patch_size, c.patch_method)] if c.use_patcher else []
        layers += [
            nn.Conv1d(c.feature_dim * c.patch_size, c.width, c.kernel_size, padding=c.kernel_size // 2),
            nn.ReLU(),
        ]
        for _ in range(c.down_t):
            down = nn.Conv1d(c.width, c.width, 2 * c.stride_t, stride=c.stride_t, padding=c.stride_t // 2)
            layers.append(nn.Sequential(down, _stack(c)))
        if not c.down_t:  # all shortening is the patcher's; the published layout would have no residual blocks then
            layers.append(_stack(c))
        layers.append(nn.Conv1d(c.width, c.output_emb_width, c.kernel_size, padding=c.kernel_size // 2))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Decoder(nn.Module):
    def __init__(self, c: FSQTokenizerConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(c.code_dim, c.width, c.kernel_size, padding=c.kernel_size // 2), nn.ReLU()]
        for _ in range(c.down_t):
            up = nn.Upsample(scale_factor=c.stride_t, mode="nearest")
            layers.append(nn.Sequential(_stack(c), up, nn.Conv1d(c.width, c.width, 3, padding=1)))
        if not c.down_t:
            layers.append(_stack(c))
        layers += [nn.Conv1d(c.width, c.width, c.kernel_size, padding=c.kernel_size // 2), nn.ReLU()]
        layers.append(nn.Conv1d(c.width, c.feature_dim * c.patch_size, c.kernel_size, padding=c.kernel_size // 2))
        layers += [HaarUnpatcher(c.patch_size, c.patch_method)] if c.use_patcher else []
        layers += [BinomialSmoothing(c.smoothing)] if c.smoothing else []
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _stack(c: FSQTokenizerConfig) -> ResidualStack:
    return ResidualStack(c.width, c.depth, c.dilation_growth_rate, c.kernel_size, c.activation, c.norm)


class FSQOutput(NamedTuple):
    """What a forward pass gives: all on the normalised scale."""

    reconstruction: Tensor
    """(B, T', D), T' = S * frames_per_token."""
    tokens: Tensor
    """(B, S) or (B, S, G) int64."""
    projected: Tensor
    """(B, S, C) values before squashing and rounding."""
    latent: Tensor
    """(B, code_dim, S) encoder output."""


class FSQTokenizer(Component):
    """Features `(T, D)` to tokens and back; not causal, zero padding at the ends of a clip.

    A decoded frame depends on at most `receptive_tokens` tokens to either side. `mean` and `std` travel as buffers.
    """

    kind = "tokenizer"
    config_class = FSQTokenizerConfig
    keep_float32 = True
    mean: Tensor
    std: Tensor

    def __init__(self, config: FSQTokenizerConfig | None = None) -> None:
        super().__init__()
        self.config = config or FSQTokenizerConfig()
        self.encoder = _Encoder(self.config)
        self.decoder = _Decoder(self.config)
        self.quantizer = FSQ(self.config.levels, self.config.code_dim, self.config.groups)
        self.register_buffer("mean", torch.zeros(self.config.feature_dim))
        self.register_buffer("std", torch.ones(self.config.feature_dim))

    @property
    def representation(self) -> str:
        """Name of the representation of the features."""
        return self.config.representation

    @property
    def fps(self) -> float:
        """Frames per second of the features."""
        return self.config.fps

    @property
    def frames_per_token(self) -> int:
        """Frames that one token step covers."""
        return self.config.stride_t**self.config.down_t * self.config.patch_size

    @property
    def vocab_size(self) -> int:
        """Number of codes (of one group)."""
        return self.quantizer.vocab_size

    @property
    def groups(self) -> int:
        """Tokens per step."""
        return self.config.groups

    @property
    def receptive_tokens(self) -> int:
        """Tokens on either side that a decoded frame can depend on (16 in the released model)."""
        c, step = self.config, 1.0
        half = c.kernel_size // 2
        reach = step * half
        for _ in range(c.down_t):
            reach += step * sum(c.dilation_growth_rate**i for i in range(c.depth)) * half
            step /= c.stride_t
            reach += step  # the convolution after an upsampling always has 3 taps
        if not c.down_t:
            reach += sum(c.dilation_growth_rate**i for i in range(c.depth)) * half
        return math.ceil(reach + 2 * step * half + c.smoothing / self.frames_per_token)

    def set_statistics(self, mean: Tensor | np.ndarray, std: Tensor | np.ndarray) -> None:
        """Set the normalisation, `(D,)` each. Raises ShapeError on another size, VadisError where std is not positive."""
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value).float()
            if value.shape != (self.config.feature_dim,):
                raise ShapeError(
                    f"{name} has shape {tuple(value.shape)}; this tokenizer needs ({self.config.feature_dim},)."
                )
            if not torch.isfinite(value).all() or (name == "std" and not bool((value > 0).all())):
                raise VadisError(f"{name} holds values that can't normalise (not finite, or std <= 0): recompute it.")
            getattr(self, name).copy_(value)

    def forward(self, x: Tensor) -> FSQOutput:
        """Normalised features `(B, T, D)` through the whole model; straight-through gradients."""
        latent = self.encoder(x.transpose(1, 2))
        quantised, tokens, projected = self.quantizer(latent.transpose(1, 2))
        return FSQOutput(self._decode(quantised), tokens, projected, latent)

    def _decode(self, quantised: Tensor) -> Tensor:
        return self.decoder(quantised.to(self.mean.dtype).transpose(1, 2)).transpose(1, 2)

    def loss(self, x: Tensor, **weights: Any) -> tuple[dict[str, Tensor], FSQOutput]:
        """Reconstruction loss of normalised windows `(B, T, D)`; the published one unless `weights` say otherwise.

        `weights` are those of `reconstruction_losses` and `kinematic_losses`. Returns the terms ("total" is the one to
        minimise) and the output they were computed from.
        """
        output = self(x)
        made = output.reconstruction.float()
        target = x[:, : made.shape[1]].float()
        posed = {name: weights.pop(name) for name in KINEMATIC_WEIGHTS if name in weights}
        terms = reconstruction_losses(target, made, self.representation, mean=self.mean, std=self.std, **weights)
        if any(posed.values()):
            further = kinematic_losses(target, made, self.mean, self.std, self.representation, **posed)
            terms = terms | further | {"total": terms["total"] + further["total"]}
        return terms, output

    @torch.no_grad()
    def encode(self, features: Tensor | np.ndarray, lengths: Tensor | list[int] | None = None) -> Tensor:
        """Features `(T, D)` or `(B, T, D)` in physical units to tokens `(S,)` / `(B, S)` (with groups `(..., S, G)`), int64.

        With `lengths` (frames per clip) each clip is coded as if alone and rows are padded with -1. Frames beyond the last
        whole token are dropped. Raises ShapeError for a wrong width or a clip shorter than one token, VadisError for
        values that are not finite.
        """
        features = torch.as_tensor(features).to(self.mean.device, self.mean.dtype)
        if features.ndim not in (2, 3):
            raise ShapeError(f"features must be (T, D) or (B, T, D); this array has shape {tuple(features.shape)}.")
        self._check_width(features.shape[-1])
        batch = features if features.ndim == 3 else features[None]
        frames = _check_lengths(lengths, batch.shape[0], batch.shape[1], "frames")
        for row, count in enumerate(frames):
            if count < self.frames_per_token:
                raise ShapeError(
                    f"clip {row} has {count} frame{'s' * (count != 1)}, fewer than the {self.frames_per_token} of one token: "
                    "use a longer clip."
                )
            bad = ~torch.isfinite(batch[row, :count]).all(dim=-1)
            if bad.any():
                first = int(bad.nonzero()[0])
                raise VadisError(
                    f"frame {first} of clip {row} holds values that are not finite: repair or cut the clip."
                )
        steps = [count // self.frames_per_token for count in frames]
        shape = (len(frames), max(steps)) + ((self.groups,) if self.groups > 1 else ())
        tokens = torch.full(shape, -1, dtype=torch.long, device=batch.device)
        for count, rows in _by_length(frames).items():
            count_used = count // self.config.patch_size * self.config.patch_size
            used = count_used if self.config.patch_method == "rearrange" else count
            x = (batch[rows, :used] - self.mean) / self.std
            latent = self.encoder(x.transpose(1, 2)).transpose(1, 2)
            tokens[rows, : count // self.frames_per_token] = self.quantizer(latent)[1][
                :, : count // self.frames_per_token
            ]
        return tokens if features.ndim == 3 else tokens[0]

    @torch.no_grad()
    def decode(self, tokens: Tensor | np.ndarray, lengths: Tensor | list[int] | None = None) -> Tensor:
        """Tokens `(S,)` / `(B, S)` (with groups `(..., S, G)`) to features `(T, D)` / `(B, T, D)` in physical units, float32.

        With `lengths` (steps per clip) each clip is decoded as if alone and rows are padded with zeros. Raises ShapeError
        for a wrong shape and VadisError for ids outside [0, vocab_size).
        """
        tokens = torch.as_tensor(tokens).to(self.mean.device)
        rank = 2 if self.groups > 1 else 1
        if tokens.ndim not in (rank, rank + 1) or (self.groups > 1 and tokens.shape[-1] != self.groups):
            wanted = f"(S, {self.groups}) or (B, S, {self.groups})" if self.groups > 1 else "(S,) or (B, S)"
            raise ShapeError(f"tokens must be {wanted}; this array has shape {tuple(tokens.shape)}.")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise VadisError(f"tokens must be integers, not {tokens.dtype}.")
        batch = tokens.long() if tokens.ndim == rank + 1 else tokens.long()[None]
        steps = _check_lengths(lengths, batch.shape[0], batch.shape[1], "steps")
        for row, count in enumerate(steps):
            ids = batch[row, :count]
            if count and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
                bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise VadisError(
                    f"token {bad} in clip {row} is outside 0 … {self.vocab_size - 1}: remove END and PAD ids."
                )
        features = self.mean.new_zeros(len(steps), max(steps) * self.frames_per_token, self.config.feature_dim)
        for count, rows in _by_length(steps).items():
            if count:
                made = self._decode(self.quantizer.dequantize(batch[rows, :count]))
                features[rows, : made.shape[1]] = made * self.std + self.mean
        features = features.float()
        return features if tokens.ndim == rank + 1 else features[0]

    def _check_width(self, width: int) -> None:
        expected, name = self.config.feature_dim, self.representation
        if width == expected:
            return
        hint = f"give {name} features."
        if width in KNOWN_DIMS and KNOWN_DIMS[width] != name:
            hint = f"{width} values look like {KNOWN_DIMS[width]}: convert with `vadis convert --to {name}`."
        raise ShapeError(f"{name} features have {expected} values a frame; this array has {width}. {hint}")


def _check_lengths(lengths: Tensor | list[int] | None, rows: int, longest: int, unit: str) -> list[int]:
    """One length a row, each within the array."""
    if rows == 0:
        raise ShapeError("the batch is empty: give at least one clip.")
    values = [longest] * rows if lengths is None else [int(n) for n in lengths]
    if len(values) != rows or min(values) < 0 or max(values) > longest:
        raise ShapeError(f"lengths {values} do not fit {rows} rows of {longest} {unit}.")
    return values


def _by_length(lengths: list[int]) -> dict[int, list[int]]:
    """Rows of equal length, so that each clip meets zero padding at its own ends only."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length, []).append(row)
    return groups


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
    config = build_config(FSQTokenizerConfig, _infer(state, options) | options, "options")
    tokenizer = FSQTokenizer(config)
    if (mean is None) != (std is None):
        raise ModelError("give both mean and std, or neither.")
    if mean is not None and std is not None:
        tokenizer.set_statistics(mean, std)
    load_strictly(tokenizer, {**state, "mean": tokenizer.mean, "std": tokenizer.std})
    return tokenizer.eval()


def _infer(state: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """Config fields that the tensors tell; removes `nb_code` from `options`."""
    patched = "encoder.model.0.wavelets" in state
    first = 1 if patched else 0
    stages = {int(n.split(".")[2]) for n in state if n.startswith("encoder.model.") and n.split(".")[3] == "0"}
    block = f"encoder.model.{first + 2}.1.model"
    try:
        conv = state[f"encoder.model.{first}.weight"]
        rows = state["quantizer.project_in.weight"].shape[0] if "quantizer.project_in.weight" in state else None
        code_dim = state["decoder.model.0.weight"].shape[1]
        found: dict[str, Any] = {
            "width": conv.shape[0],
            "feature_dim": conv.shape[1] // int(options.get("patch_size", 1)),
            "use_patcher": patched,
            "code_dim": code_dim,
            "output_emb_width": code_dim,
            "down_t": len(stages),
            "kernel_size": conv.shape[2],
        }
        if stages:
            found["stride_t"] = state[f"encoder.model.{first + 2}.0.weight"].shape[2] // 2
            found["depth"] = len({n.split(".")[5] for n in state if n.startswith(f"{block}.")})
            found["norm"] = "LN" if f"{block}.0.norm1.weight" in state else None
            found["norm"] = "BN" if f"{block}.0.norm1.running_mean" in state else found["norm"]
    except (KeyError, IndexError) as error:
        raise ModelError(f"not a MotionMillion FSQ checkpoint: {error} is missing.") from error
    if (name := options.pop("nb_code", None)) is not None:
        if name not in LEVELS:
            raise ModelError(f"unknown codebook name {name}: use one of {', '.join(map(str, LEVELS))}, or give levels.")
        found["levels"] = LEVELS[name]
    elif "levels" not in options:
        fitting = [levels for levels in LEVELS.values() if len(levels) == (code_dim if rows is None else rows)]
        if len(fitting) != 1:
            choices = " or ".join(str(list(levels)) for levels in fitting) or "its levels"
            raise ModelError(
                f"the levels of a codebook with {rows or code_dim} channels are ambiguous: give levels={choices}."
            )
        found["levels"] = fitting[0]
    return found
