"""MotionStreamer's causal temporal auto-encoder (arXiv 2503.15451): continuous latents that can be made and read live.

An encoder and a decoder of causal convolutions around a normal distribution of `latent_dim` numbers every
`frames_per_token` frames. Nothing depends on later frames, so clips of different lengths share a batch and both sides
run as streams.

Shapes: B clips, T frames, D features, S token steps, C = latent_dim.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.config import build_config
from vadis.errors import ModelError, VadisError
from vadis.sizes import CONFIG, Depth, FrameRate, Growth, Name, Stride, Width, check_reach
from vadis.tokenizers.base import Clips, Tokenizer, TokenizerOutput
from vadis.tokenizers.causal import CausalConv1d, CausalSequential, CausalStack, Memory, StreamDecoder, StreamEncoder
from vadis.tokenizers.conv import load_published
from vadis.tokenizers.kinematic_loss import KINEMATIC_WEIGHTS, kinematic_losses
from vadis.tokenizers.layers import Activation, Norm
from vadis.tokenizers.losses import BLOCKS

BRANCHES, FIRST_LOG_VARIANCE = 0.1, -4.0
"""Of `init_balanced`: factor of the last weights of residual branches and output, and where the log-variances begin."""


@dataclass(frozen=True, config=CONFIG)
class CausalTAEConfig:
    """The defaults are the released MotionStreamer models: 4 frames a latent of 16 numbers."""

    type: Literal["causal_tae"] = "causal_tae"
    representation: Name = "ms272"
    fps: FrameRate = 30.0
    feature_dim: Width = 272
    width: Width = 1024
    """Channels of the convolutions."""
    latent_dim: Width = 16
    down_t: int = Field(default=2, ge=1, le=12)
    """Stages, each shortening time by `stride_t`."""
    stride_t: Stride = 2
    depth: Depth = 3
    """Residual blocks a stage."""
    dilation_growth_rate: Growth = 3
    activation: Activation = "relu"
    norm: Norm | None = None
    """GN looks over the whole clip: with it the model is not causal and can't stream."""
    log_variance_range: tuple[float, float] = (-30.0, 20.0)

    def __post_init__(self) -> None:
        check_reach(self.down_t, self.stride_t, self.depth, self.dilation_growth_rate)
        if self.norm == "GN" and self.width % 32:
            raise ModelError(f"norm GN needs a width that is a multiple of 32, not {self.width}.")
        if self.log_variance_range[0] >= self.log_variance_range[1]:
            raise ModelError(f"log_variance_range {self.log_variance_range} must rise.")


class CausalEncoder(nn.Module):
    """Features `(B, D, T)` to mean and log-variance, both in `(B, 2 C, S)`."""

    def __init__(self, c: CausalTAEConfig) -> None:
        super().__init__()
        stages = [
            CausalSequential(CausalConv1d(c.width, c.width, 2 * c.stride_t, stride=c.stride_t), _stack(c))
            for _ in range(c.down_t)
        ]
        first, last = CausalConv1d(c.feature_dim, c.width, 3), CausalConv1d(c.width, c.width, 3)
        self.model = CausalSequential(first, nn.ReLU(), *stages, last)
        self.proj = nn.Linear(c.width, 2 * c.latent_dim)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.proj(self.model(x, memory).transpose(1, 2)).transpose(1, 2)


class CausalDecoder(nn.Module):
    """Projected latents `(B, width, S)` to features `(B, D, S * frames_per_token)`."""

    def __init__(self, c: CausalTAEConfig) -> None:
        super().__init__()
        stages = [
            CausalSequential(_stack(c), nn.Upsample(scale_factor=c.stride_t), CausalConv1d(c.width, c.width, 3))
            for _ in range(c.down_t)
        ]
        ends = [CausalConv1d(c.width, c.width, 3), nn.ReLU(), CausalConv1d(c.width, c.feature_dim, 3)]
        self.model = CausalSequential(CausalConv1d(c.width, c.width, 3), nn.ReLU(), *stages, *ends)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.model(x, memory)


def _stack(c: CausalTAEConfig) -> CausalStack:
    return CausalStack(c.width, c.depth, c.dilation_growth_rate, c.activation, c.norm)


class CausalTAE(Tokenizer):
    """The causal σ-VAE. Tokens are latents `(S, C)`: the means, or draws where `sample=True` is asked for."""

    config_class = CausalTAEConfig
    config: CausalTAEConfig
    continuous = True

    def __init__(self, config: CausalTAEConfig | None = None) -> None:
        super().__init__(config)
        self.encoder = CausalEncoder(self.config)
        self.decode_proj = nn.Linear(self.config.latent_dim, self.config.width)
        self.decoder = CausalDecoder(self.config)

    @property
    def frames_per_token(self) -> int:
        return self.config.stride_t**self.config.down_t

    @property
    def latent_dim(self) -> int:
        """Numbers of one latent."""
        return self.config.latent_dim

    @property
    def vocab_size(self) -> int:
        raise ModelError("latents have no vocabulary: ask `continuous` first.")

    @property
    def bits_per_second(self) -> float:
        raise ModelError("latents have no fixed rate: measure it on data with kl_bits_per_second(features).")

    @property
    def causal(self) -> bool:
        return self.config.norm != "GN"

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.decode_proj.weight.dtype

    @property
    def encoder_context(self) -> tuple[int, int] | None:
        c, step, reach = self.config, 1, 2  # in frames
        if not self.causal:
            return None
        for _ in range(c.down_t):
            reach += step * c.stride_t
            step *= c.stride_t
            reach += 2 * step * self._dilations
        return math.ceil((reach + 2 * step) / step), 0

    @property
    def decoder_context(self) -> tuple[int, int] | None:
        c, step = self.config, self.frames_per_token  # in frames
        if not self.causal:
            return None
        reach = 2 * step
        for _ in range(c.down_t):
            reach += 2 * step * self._dilations
            step //= c.stride_t
            reach += 2 * step
        return math.ceil((reach + 4) / self.frames_per_token), 0

    @property
    def _dilations(self) -> int:
        return sum(self.config.dilation_growth_rate**i for i in range(self.config.depth))

    def stream_encoder(self, rows: int = 1) -> StreamEncoder:
        """Live encoding of `rows` independent streams. Raises ModelError where the norm is GN."""
        return StreamEncoder(self, self.encoder, rows)

    def stream_decoder(self, rows: int = 1) -> StreamDecoder:
        """Live decoding of `rows` independent streams. Raises ModelError where the norm is GN."""
        return StreamDecoder(self, self.decoder, rows)

    @torch.no_grad()
    def init_balanced(self) -> None:
        """Random weights that carry a signal through: torch's usual ones shrink it at every layer of a model without norms.

        He's gain at convolutions, residual branches and output near zero, and latents with little noise in the beginning.
        """
        for name, layer in self.named_modules():
            if isinstance(layer, CausalConv1d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if name.endswith("model.0") else "relu")
                nn.init.zeros_(layer.bias)
                if name.endswith("conv2") or layer.out_channels == self.config.feature_dim:
                    layer.weight.mul_(BRANCHES)
        for layer in (self.encoder.proj, self.decode_proj):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
        c = self.config.latent_dim
        self.encoder.proj.weight[c:].mul_(BRANCHES)
        self.encoder.proj.bias[c:].fill_(FIRST_LOG_VARIANCE)

    # ---- on the normalised scale

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-variance, `(B, S, C)` float32 each, of normalised features `(B, T, D)`."""
        return self.split_moments(self.encoder(x.transpose(1, 2)).transpose(1, 2))

    def split_moments(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output `(..., 2 C)` as mean and clamped log-variance."""
        mean, log_variance = both.float().chunk(2, dim=-1)
        return mean, log_variance.clamp(*self.config.log_variance_range)

    def forward(
        self, x: Tensor, *, sample: bool | None = None, generator: torch.Generator | None = None
    ) -> TokenizerOutput:
        """Normalised features `(B, T, D)` through the whole model; `sample` (default: while training) draws the latents."""
        mean, log_variance = self.moments(x)
        drawn = self.training if sample is None else sample
        latents = draw(mean, log_variance, generator) if drawn else mean
        losses = {"kl": kl_divergence(mean, log_variance).sum(dim=(1, 2)).mean()}
        return TokenizerOutput(self._decode(latents), latents, mean, losses)

    def loss(self, x: Tensor, **weights: Any) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """σ-VAE loss of normalised windows `(B, T, D)`: reconstruction + `kl_weight` (1) KL + `root_weight` (7) root.

        The reconstruction is summed over the batch and the KL averaged, as published: a larger batch weighs the KL less.
        Latents are drawn while training and their means otherwise; `generator` makes the draws repeatable. "total" is the
        one to minimise, "sigma" and "root_sigma" are the deviations that fit best. The weights of `kinematic_losses`, which
        the published model does not use, add terms in the same unit: a term of weight 1 counts as much as all features.
        Raises ModelError for another weight.
        """
        root_weight, kl_weight = weights.pop("root_weight", 7.0), weights.pop("kl_weight", 1.0)
        kinematic = {name: w for name in KINEMATIC_WEIGHTS if (w := weights.pop(name, 0.0))}
        output = self(x, generator=weights.pop("generator", None))
        if weights:
            raise ModelError(f"CausalTAE has no {', '.join(weights)}: its loss takes root_weight and kl_weight.")
        made = output.reconstruction.float()
        target = x[:, : made.shape[1]].float()
        features, sigma = sigma_loss(target, made)
        terms = {"features": features, "kl": output.losses["kl"], "sigma": sigma}
        terms["total"] = features + kl_weight * terms["kl"]
        if root_weight:
            if self.representation not in BLOCKS:
                raise ModelError(f"the root of {self.representation} is not known here: set root_weight to 0.")
            root = BLOCKS[self.representation].root
            terms["root"], terms["root_sigma"] = sigma_loss(target[..., root], made[..., root])
            terms["total"] = terms["total"] + root_weight * terms["root"]
        if kinematic:
            found = kinematic_losses(target, made, self.mean, self.std, self.representation, **kinematic)
            del found["total"]
            for weight, (name, error) in zip(kinematic.values(), found.items(), strict=True):
                terms[name] = error
                terms["total"] = terms["total"] + weight * target.numel() * 0.5 * (error + 1e-6).log()
        return terms, output

    # ---- what a user calls

    @torch.no_grad()
    def encode(
        self,
        features: Clips,
        lengths: Tensor | list[int] | None = None,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Any:
        """Features `(T, D)` or `(B, T, D)` in physical units to latents `(S, C)` / `(B, S, C)`, float32; see Tokenizer.encode.

        The latents are the means, or with `sample=True` draws from the encoder's distribution (`generator` or `seed` make
        them repeatable), which is how the published model was trained and measured.
        """
        if not sample:
            return super().encode(features, lengths, **options)
        if seed is not None:
            generator = torch.Generator(self.device).manual_seed(seed)
        found = super().encode(features, lengths, moments=True, **options)
        many = isinstance(found, list)
        drawn = []
        for row in found if many else [found]:
            mean, log_variance = row.chunk(2, dim=-1)
            drawn.append(draw(mean, log_variance, generator))
        if not many and lengths is not None:
            for row, frames in enumerate(lengths):
                drawn[0][row, int(frames) // self.frames_per_token :] = 0
        return drawn if many else drawn[0]

    def kl_bits_per_second(self, features: Clips, lengths: Tensor | list[int] | None = None) -> float:
        """Rate of the latents on this data: the mean KL divergence from N(0, 1) in bits a second (bits-back coding).

        The counterpart of a discrete tokenizer's `bits_per_second`.
        """
        found = super().encode(features, lengths, moments=True)
        rows = found if isinstance(found, list) else list(found if found.ndim == 3 else found[None])
        if lengths is not None:
            rows = [r[: int(n) // self.frames_per_token] for r, n in zip(rows, lengths, strict=True)]
        moments = torch.cat(rows).double()
        mean, log_variance = moments.chunk(2, dim=-1)
        nats = kl_divergence(mean, log_variance).sum() / len(moments)
        return float(nats) / math.log(2) * self.fps / self.frames_per_token

    def _encode(self, x: Tensor, *, moments: bool = False) -> Tensor:
        mean, log_variance = self.moments(x)
        return torch.cat([mean, log_variance], dim=-1) if moments else mean

    def _decode(self, tokens: Tensor) -> Tensor:
        x = self.decode_proj(tokens.to(self.dtype)).transpose(1, 2)
        return self.decoder(x).transpose(1, 2)

    def _check_tokens(self, batch: Tensor, steps: list[int]) -> Tensor:
        batch = batch.float().clone()
        for row, count in enumerate(steps):
            batch[row, count:] = 0
            if not bool(torch.isfinite(batch[row]).all()):
                raise VadisError(f"the latents of clip {row} hold values that are not finite: make them again.")
        return batch


def draw(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """`mean + exp(log_variance / 2) * noise`."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + (log_variance / 2).exp() * noise


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Nats of every number against N(0, 1)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


def sigma_loss(target: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian negative log-likelihood, summed over everything, at the one deviation that fits best, and that deviation.

    Rybkin et al., 2021; the logarithm of the deviation is softly kept above -6. The gradient flows through it.
    """
    log_sigma = (target - output).square().mean().sqrt().log()
    log_sigma = -6 + F.softplus(log_sigma + 6)
    errors = (target - output) / log_sigma.exp()
    return (0.5 * errors.square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(), log_sigma.exp()


def from_motionstreamer(
    state: dict[str, Tensor],
    *,
    mean: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    **options: Any,
) -> CausalTAE:
    """Build the auto-encoder from a published MotionStreamer state dict (names `tae.…`), every name used once.

    Sizes are read off the tensors. `options` are fields of CausalTAEConfig that they don't tell (`activation`,
    `dilation_growth_rate`, `norm` "LN" or "GN"), or `hidden_size`, the published name of `width`. Raises ModelError.
    """
    strange = [name for name in state if not name.startswith("tae.")]
    if strange or not state:
        raise ModelError(f"not a MotionStreamer TAE checkpoint: unexpected names {strange[:10] or '(no tae.…)'}.")
    state = {name.removeprefix("tae.").replace(".conv.", "."): value for name, value in state.items()}
    if "hidden_size" in options:
        options["width"] = options.pop("hidden_size")
    config = build_config(CausalTAEConfig, _infer(state, options) | options, "options")
    return load_published(CausalTAE(config), state, mean, std)


def _infer(state: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """Config fields that the tensors tell."""
    stages = {name.split(".")[2] for name in state if name.startswith("encoder.model.") and ".1.model." in name}
    blocks = {name.split(".")[5] for name in state if name.startswith("encoder.model.2.1.model.")}
    try:
        found: dict[str, Any] = {
            "width": state["encoder.model.0.weight"].shape[0],
            "feature_dim": state["encoder.model.0.weight"].shape[1],
            "latent_dim": state["decode_proj.weight"].shape[1],
            "down_t": len(stages),
            "stride_t": state["encoder.model.2.0.weight"].shape[2] // 2,
            "depth": len(blocks),
        }
    except (KeyError, IndexError) as error:
        raise ModelError(f"not a MotionStreamer TAE checkpoint: {error} is missing.") from error
    norm = "encoder.model.2.1.model.0.norm1"
    if f"{norm}.running_mean" in state:
        found["norm"] = "BN"
    elif f"{norm}.weight" in state and not options.get("norm"):
        raise ModelError("the tensors do not tell LayerNorm from GroupNorm: give norm='LN' or norm='GN'.")
    return found
