"""The convolutional auto-encoder that VQ, RVQ, MG-VQ, 1-D LFQ and FSQ tokenizers share, around any quantiser.

T2M-GPT's network (Zhang et al., 2023); not causal, zero padding at the ends of a clip. State names are the published
ones (`encoder.model.N…`, `decoder.model.N…`). Layers work channels first; everything else on `(B, S, C)`.
"""

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import load_strictly
from vadis.errors import ModelError
from vadis.sizes import CONFIG, Depth, Dropout, FrameRate, Growth, Kernel, Name, Stages, Stride, Width, check_reach
from vadis.tokenizers.base import Tokenizer, TokenizerOutput
from vadis.tokenizers.layers import (
    Activation,
    BinomialSmoothing,
    HaarPatcher,
    HaarUnpatcher,
    Norm,
    PatchMethod,
    ResidualStack,
)


@dataclass(frozen=True, config=CONFIG)
class ConvConfig:
    """The network of T2M-GPT on HumanML3D-263: 4 frames per step, width 512."""

    representation: Name = "hml263"
    fps: FrameRate = 20.0
    feature_dim: Width = 263
    width: Width = 512
    """Channels of the convolutions."""
    code_dim: Width = 512
    """Width of the encoder's output and the decoder's input."""
    down_t: Stages = 2
    """Stages, each shortening time by `stride_t`."""
    stride_t: Stride = 2
    depth: Depth = 3
    """Residual blocks a stage."""
    dilation_growth_rate: Growth = 3
    activation: Activation = "relu"
    norm: Norm | None = None
    kernel_size: Kernel = 3
    dropout: Dropout = 0.0
    """In the residual blocks, while training."""
    use_patcher: bool = False
    patch_size: int = Field(default=1, ge=1, le=256)
    """Frames folded into channels before the first convolution; a power of two. 1: nothing is folded."""
    patch_method: PatchMethod = "haar"
    smoothing: int = Field(default=0, ge=0, le=8)
    """Radius in frames of a fixed binomial filter over the decoder's output; 0 as published: none."""

    def __post_init__(self) -> None:
        if self.patch_size & (self.patch_size - 1) or (self.patch_size > 1 and not self.use_patcher):
            raise ModelError(f"patch_size {self.patch_size} must be a power of two, and 1 without the patcher.")
        if self.kernel_size % 2 == 0 or self.stride_t % 2:
            raise ModelError(f"kernel_size {self.kernel_size} must be odd and stride_t {self.stride_t} even.")
        check_reach(self.down_t, self.stride_t, self.depth, self.dilation_growth_rate)
        if self.norm == "GN" and self.width % 32:
            raise ModelError(f"norm GN needs a width that is a multiple of 32, not {self.width}.")


class ConvEncoder(nn.Module):
    """Features `(B, D, T)` to latents `(B, code_dim, S)`."""

    def __init__(self, c: ConvConfig) -> None:
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
        layers.append(nn.Conv1d(c.width, c.code_dim, c.kernel_size, padding=c.kernel_size // 2))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ConvDecoder(nn.Module):
    """Latents `(B, code_dim, S)` to features `(B, D, S * frames_per_token)`."""

    def __init__(self, c: ConvConfig) -> None:
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


def _stack(c: ConvConfig) -> ResidualStack:
    return ResidualStack(c.width, c.depth, c.dilation_growth_rate, c.kernel_size, c.activation, c.norm, c.dropout)


class ConvTokenizer(Tokenizer):
    """The auto-encoder around a quantiser, which a family makes in `_quantizer`.

    The quantiser is a module with `forward(latent (B, S, C)) -> Quantized`, `dequantize(tokens) -> (B, S, C)` and
    `vocab_size`.
    """

    config: Any

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.encoder = ConvEncoder(self.config)
        self.decoder = ConvDecoder(self.config)
        self.quantizer: Any = self._quantizer()

    def _quantizer(self) -> nn.Module:
        raise NotImplementedError

    @property
    def frames_per_token(self) -> int:
        return self.config.stride_t**self.config.down_t * self.config.patch_size

    @property
    def vocab_size(self) -> int:
        return self.quantizer.vocab_size

    @property
    def encoder_context(self) -> tuple[int, int] | None:
        c, half = self.config, self.config.kernel_size // 2
        if c.norm == "GN":  # its statistics run over all of time
            return None
        step, reach = c.patch_size, half * c.patch_size  # in frames
        for _ in range(c.down_t):
            reach += step * c.stride_t // 2
            step *= c.stride_t
            reach += step * self._dilations * half
        if not c.down_t:
            reach += step * self._dilations * half
        steps = math.ceil((reach + step * half) / self.frames_per_token)
        return steps, steps

    @property
    def decoder_context(self) -> tuple[int, int] | None:
        c, step = self.config, 1.0  # in token steps
        if c.norm == "GN":
            return None
        half = c.kernel_size // 2
        reach = step * half
        for _ in range(c.down_t):
            reach += step * self._dilations * half
            step /= c.stride_t
            reach += step  # the convolution after an upsampling always has 3 taps
        if not c.down_t:
            reach += self._dilations * half
        steps = math.ceil(reach + 2 * step * half + c.smoothing / self.frames_per_token)
        return steps, steps

    @property
    def _dilations(self) -> int:
        return sum(self.config.dilation_growth_rate**i for i in range(self.config.depth))

    def latent(self, x: Tensor) -> Tensor:
        """Normalised features `(B, T, D)` to the encoder's output `(B, S, code_dim)`."""
        return self.encoder(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: Tensor) -> TokenizerOutput:
        """Normalised features `(B, T, D)` through the whole model; straight-through gradients."""
        latent = self.latent(x)
        vectors, tokens, losses = self._quantize(latent)
        return TokenizerOutput(self._decode_vectors(vectors), tokens, latent, losses)

    def _quantize(self, latent: Tensor) -> Any:
        with torch.autocast(latent.device.type, enabled=False):
            return self.quantizer(latent.float())

    def _encode(self, x: Tensor) -> Tensor:
        c = self.config
        if c.patch_size > 1 and c.patch_method == "rearrange":
            x = x[:, : x.shape[1] // c.patch_size * c.patch_size]
        return self._quantize(self.latent(x)).tokens

    def _decode(self, tokens: Tensor) -> Tensor:
        return self._decode_vectors(self.quantizer.dequantize(tokens))

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors.to(self._dtype).transpose(1, 2)).transpose(1, 2)


def infer_conv(state: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """Config fields that the tensors of a published auto-encoder tell; raises ModelError where they are missing."""
    patched = "encoder.model.0.wavelets" in state
    first = 1 if patched else 0
    stages = {n.split(".")[2] for n in state if n.startswith("encoder.model.") and n.split(".")[3] == "0"}
    block = f"encoder.model.{first + 2}.1.model"
    try:
        conv = state[f"encoder.model.{first}.weight"]
        found: dict[str, Any] = {
            "width": conv.shape[0],
            "feature_dim": conv.shape[1] // int(options.get("patch_size", 1)),
            "use_patcher": patched,
            "code_dim": state["decoder.model.0.weight"].shape[1],
            "down_t": len(stages),
            "kernel_size": conv.shape[2],
        }
        if stages:
            found["stride_t"] = state[f"encoder.model.{first + 2}.0.weight"].shape[2] // 2
            found["depth"] = len({n.split(".")[5] for n in state if n.startswith(f"{block}.")})
            found["norm"] = "LN" if f"{block}.0.norm1.weight" in state else None
            found["norm"] = "BN" if f"{block}.0.norm1.running_mean" in state else found["norm"]
    except (KeyError, IndexError) as error:
        raise ModelError(f"not a checkpoint of this family: {error} is missing.") from error
    return found


def load_published(
    tokenizer: Any,
    state: dict[str, Tensor],
    mean: Tensor | np.ndarray | None,
    std: Tensor | np.ndarray | None,
) -> Any:
    """`tokenizer` with the weights of `state`, strictly, and the statistics, which the state does not hold; in eval mode."""
    if (mean is None) != (std is None):
        raise ModelError("give both mean and std, or neither.")
    if mean is not None and std is not None:
        tokenizer.set_statistics(mean, std)
    load_strictly(tokenizer, {**state, "mean": tokenizer.mean, "std": tokenizer.std})
    return tokenizer.eval()
