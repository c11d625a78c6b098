"""The diffusion head of MotionStreamer (after MAR, Li et al., 2024): a small network that draws one latent given a state.

A residual MLP predicts the noise in a latent; 50 steps on a cosine schedule (Nichol & Dhariwal, 2021). Its state names are
the published ones. Besides the published ancestral sampler two deterministic ones need fewer steps on the same weights:
DDIM (Song et al., 2021) and DPM-Solver++(2M) (Lu et al., 2022).

Shapes: N latents, C numbers each, H width of the state, W width of the head, S sampler steps.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vadis.errors import ShapeError, VadisError

Sampler = Literal["ancestral", "ddim", "dpm"]
SAMPLERS = ("ancestral", "ddim", "dpm")
Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS = ("float32", "bfloat16", "int8")
ROWS_AT_ONCE = 256  # rows whose modulation is computed in one product: reads the weights once for many steps


class Schedule:
    """The cosine schedule of `steps` steps, float64 arrays indexed by the step number (0: nearly clean).

    `betas`, `alphas_cumprod`, and those of the posterior: `posterior_variance`, its logarithm with the first (minus infinite)
    one replaced, `posterior_mean_coef1` (of x0) and `posterior_mean_coef2` (of x).
    """

    def __init__(self, steps: int = 50) -> None:
        self.steps = steps

        def kept(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        self.betas = np.array([min(1 - kept((i + 1) / steps) / kept(i / steps), 0.999) for i in range(steps)])
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        before = np.append(1.0, self.alphas_cumprod[:-1])
        self.sqrt_recip_alphas_cumprod = np.sqrt(1 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / self.alphas_cumprod - 1)
        self.posterior_variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        variance = np.append(self.posterior_variance[1], self.posterior_variance[1:]) if steps > 1 else np.ones(1)
        self.posterior_log_variance_clipped = np.log(variance)
        self.posterior_mean_coef1 = self.betas * np.sqrt(before) / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - before) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Latents `(N, C)` at steps `t` `(N,)`."""
        return _rows(np.sqrt(self.alphas_cumprod), t, x0) * x0 + _rows(np.sqrt(1 - self.alphas_cumprod), t, x0) * noise

    def remove_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Estimate of the clean latents from `x` at steps `t` and the predicted noise."""
        return _rows(self.sqrt_recip_alphas_cumprod, t, x) * x - _rows(self.sqrt_recipm1_alphas_cumprod, t, x) * noise

    def times(self, sampler: Sampler, steps: int | None = None) -> list[int]:
        """Step numbers that a sampler visits, falling. Raises VadisError for a sampler or count that doesn't exist.

        The few-step samplers start where a little signal is left (step 47 of 50): at the very last one an estimate of the
        clean latent multiplies the head's error by a thousand. Towards the end their steps get shorter. The ancestral one
        takes all steps, as published, or with 48 starts there too, which a small model under strong guidance needs.
        """
        if sampler not in SAMPLERS:
            raise VadisError(f"unknown sampler {sampler!r}: use one of {', '.join(SAMPLERS)}.")
        first = int((self.alphas_cumprod >= 0.003).sum()) - 1
        if sampler == "ancestral":
            if not first + 1 <= (count := self.steps if steps is None else steps) <= self.steps:
                raise VadisError(
                    f"the ancestral sampler takes all {self.steps} steps, or the last {first + 1} and more; for {steps} use dpm "
                    "or ddim."
                )
            return list(range(count))[::-1]
        count = 10 if steps is None else steps
        if not 1 <= count <= first + 1:
            raise VadisError(f"{count} steps: {sampler} takes 1 to {first + 1}.")
        times = [round(first * (1 - k / max(count - 1, 1)) ** 1.5) for k in range(count)]
        return [max(t, count - 1 - k) for k, t in enumerate(times)]  # all different


def _rows(values: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)[t].to(like.dtype)[:, None]


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Steps `(...)` to `(..., W)`: cosines, then sines, of 128 frequencies."""
        frequency = torch.exp(-math.log(10000) / 128 * torch.arange(128, dtype=torch.float32, device=t.device))
        angle = t[..., None].float() * frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=-1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class _Denoiser(nn.Module):
    """The published `net.…` names."""

    def __init__(self, latent_dim: int, state_dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.time_embed = _TimeEmbedding(width)
        self.cond_embed = nn.Linear(state_dim, width)
        self.input_proj = nn.Linear(latent_dim, width)
        self.res_blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(layers))
        self.final_layer = _FinalLayer(width, latent_dim)


class DiffusionHead(nn.Module):
    """Noise prediction for latents `(N, C)` at steps `(N,)` given states `(N, H)`, and sampling with it."""

    def __init__(self, latent_dim: int, state_dim: int, width: int = 1792, layers: int = 9, steps: int = 50) -> None:
        super().__init__()
        self.net = _Denoiser(latent_dim, state_dim, width, layers)
        self.latent_dim, self.schedule = latent_dim, Schedule(steps)
        self._compiled: Callable[[Tensor, list[Tensor]], Tensor] | None = None
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if "time_embed" in name:
                    nn.init.normal_(module.weight, std=0.02)
                if "adaLN_modulation" in name or name.endswith("final_layer.linear"):
                    nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        modulations = self._modulate(self.net.time_embed(t, self._dtype) + self.net.cond_embed(state.to(self._dtype)))
        return self._denoise(x, modulations)

    @property
    def _dtype(self) -> torch.dtype:
        return cast(_ResidualBlock, self.net.res_blocks[0]).in_ln.weight.dtype  # of the parts that int8 leaves alone

    def _modulate(self, y: Tensor) -> list[Tensor]:
        """Shifts, scales and gates of every block for conditions `(..., W)`."""
        blocks = cast(list[_ResidualBlock], [*self.net.res_blocks, self.net.final_layer])
        return [block.adaLN_modulation(y) for block in blocks]

    def _denoise(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """Predicted noise, float32; fewer rows of `x` than of the modulations are repeated (branches of guidance)."""
        hidden = self.net.input_proj(x.to(self._dtype))
        if len(modulations[0]) > len(x):
            hidden = hidden.repeat(len(modulations[0]) // len(x), 1)
        for block, modulation in zip(self.net.res_blocks, modulations, strict=False):
            hidden = block(hidden, modulation)
        return self.net.final_layer(hidden, modulations[-1]).float()

    def lower_precision(self, precision: Precision) -> None:
        """Change the network's precision for sampling, in place; it can't be trained or saved as float32 afterwards.

        "bfloat16" halves the memory and suits GPUs; "int8" weights (CPU only) make one or few streams about 3 times faster.
        Raises VadisError for another name.
        """
        if precision not in PRECISIONS:
            raise VadisError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
        if precision == "bfloat16":
            self.net.to(torch.bfloat16)
        elif precision == "int8":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # announces that this is to move to another package
                self.net = torch.ao.quantization.quantize_dynamic(self.net, {nn.Linear}, dtype=torch.qint8)

    def compile_steps(self) -> None:
        """Compile the network of a sampling step (`torch.compile`), on a GPU into CUDA graphs, which spare the launches that few
        rows mostly wait for. Choose the precision first. The first step of every number of rows takes long (on a CPU it needs
        a C++ compiler); the numbers stay the same within rounding.
        """
        gpu = next(self.parameters()).is_cuda
        self._compiled = torch.compile(self._denoise, mode="reduce-overhead" if gpu else "default", dynamic=False)

    # ---- training

    def loss(self, x0: Tensor, state: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of the noise, mean over a latent `(N,)`, and the one-step estimate of the clean latents `(N, C)`."""
        x = self.schedule.add_noise(x0, t, noise)
        predicted = self(x, t, state)
        return (predicted - noise).square().mean(dim=-1), self.schedule.remove_noise(x, t, predicted)

    # ---- sampling

    @torch.no_grad()
    def sample(
        self,
        state: Tensor,
        noise: Tensor,
        *,
        guidance_scale: float | Tensor = 1.0,
        sampler: Sampler = "ancestral",
        steps: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw latents `(N, C)` float32.

        Args:
            state: (N, H), or with guidance (2 N, H): the conditional states, then the unconditional ones.
            noise: (N, 1 + S, C) standard normal numbers: the start, then those of the ancestral sampler's steps.
            guidance_scale: noise = unconditional + scale * (conditional - unconditional), one number or (N,).
            temperature: factor of the ancestral steps' noise.
        """
        times = self.schedule.times(sampler, steps)
        if temperature != 1 and sampler != "ancestral":
            raise VadisError(f"{sampler} adds no noise that a temperature could scale: leave it at 1.")
        branches = len(state) // max(len(noise), 1)
        if branches not in (1, 2) or len(state) != branches * len(noise) or noise.shape[-1] != self.latent_dim:
            raise ShapeError(
                f"noise {tuple(noise.shape)} does not fit {len(state)} states and latents of {self.latent_dim}."
            )
        if sampler == "ancestral" and noise.shape[1] < len(times) + 1:
            raise ShapeError(f"the ancestral sampler needs {len(times) + 1} noises a latent, not {noise.shape[1]}.")
        if isinstance(guidance_scale, Tensor):
            guidance_scale = guidance_scale[:, None].to(noise)
        x, earlier, step = noise[:, 0], None, self._compiled or self._denoise
        for k, modulations in enumerate(self._modulations(state, times)):
            predicted = step(x, modulations)
            if branches == 2:
                with_text, without = predicted.chunk(2)
                predicted = without + guidance_scale * (with_text - without)
            t, after = times[k], times[k + 1] if k + 1 < len(times) else None
            s = self.schedule
            x0 = s.sqrt_recip_alphas_cumprod[t] * x - s.sqrt_recipm1_alphas_cumprod[t] * predicted
            if sampler == "ancestral":
                x = s.posterior_mean_coef1[t] * x0 + s.posterior_mean_coef2[t] * x
                if t > 0:
                    x = x + math.exp(0.5 * s.posterior_log_variance_clipped[t]) * noise[:, k + 1] * temperature
            elif after is None:
                x = x0
            elif sampler == "ddim":
                x = self._level(after)[0] * x0 + self._level(after)[1] * predicted
            else:
                x, earlier = self._dpm_step(x, x0, earlier, times[k - 1] if k else None, t, after), x0
        return x

    def _level(self, t: int) -> tuple[float, float]:
        """Factors of signal and noise at a step."""
        kept = float(self.schedule.alphas_cumprod[t])
        return math.sqrt(kept), math.sqrt(1 - kept)

    def _dpm_step(
        self, x: Tensor, x0: Tensor, earlier: Tensor | None, before: int | None, t: int, after: int
    ) -> Tensor:
        """One step of DPM-Solver++(2M): the estimate is carried on linearly in the logarithm of signal over noise."""
        (signal, sigma), (signal_after, sigma_after) = self._level(t), self._level(after)
        step = math.log(signal_after / sigma_after) - math.log(signal / sigma)
        if earlier is not None and before is not None:
            past = math.log(signal / sigma) - math.log(self._level(before)[0] / self._level(before)[1])
            x0 = x0 + step / (2 * past) * (x0 - earlier)
        return sigma_after / sigma * x - signal_after * math.expm1(-step) * x0

    def _modulations(self, state: Tensor, times: list[int]) -> Iterator[list[Tensor]]:
        """Modulations of each step; those of many steps are computed together, since only the step number differs."""
        condition = self.net.cond_embed(state.to(self._dtype))
        size = max(1, ROWS_AT_ONCE // len(state))
        for start in range(0, len(times), size):
            t = torch.tensor(times[start : start + size], device=state.device)
            made = self._modulate(self.net.time_embed(t, self._dtype)[:, None] + condition)  # (steps, N, …)
            for k in range(len(t)):
                yield [modulation[k] for modulation in made]
