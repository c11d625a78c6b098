"""MotionStreamer's generator (arXiv 2503.15451): a causal transformer over latents whose states feed a diffusion head.

One text vector stands at position 0 and the latents of a causal auto-encoder follow; the state at position i conditions
latent i, which the head draws. Queries and keys have unit length (QK-norm) and are rotated afterwards, so the logits are
scaled by a constant of the block size instead of by the head size.

`generate` and the live `streams` are in `vadis.generators.latent_streams`.

Shapes: B rows, S latents, C = latent_dim, H = n_embd, A heads, N positions, E = H / A.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import load_strictly
from vadis.component import Component
from vadis.config import build_config
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators.diffusion import DiffusionHead
from vadis.generators.latent_streams import Generating, RowCache
from vadis.generators.layers import GatedMLP, RMSNorm, apply_rope, mlp_width, rope_table
from vadis.sizes import CONFIG, Dropout, Heads, Layers, NotNegative, Row, Width

END_LATENT = (
    -0.03545712, -0.11705846, -0.05517992, 0.00844862, 0.04809663, 0.00272764, 0.18799046, -0.02028011,
    0.01018141, 0.03007844, -0.03314216, -0.03098543, 0.02590478, 0.00261714, 0.01297793, -0.10481539,
)  # fmt: skip
"""The published end latent of the HumanML3D checkpoint: the auto-encoder's latent of four frames of zeros, drawn once."""


@dataclass(frozen=True, config=CONFIG)
class MotionStreamerConfig:
    """The defaults are the released text-to-motion model."""

    type: Literal["motionstreamer"] = "motionstreamer"
    n_layer: Layers = 12
    n_head: Heads = 12
    n_embd: Width = 768
    block_size: Row = 78
    """Positions: the text and block_size - 1 latents."""
    text_dim: Width = 768
    """Width of the text vector."""
    latent_dim: Width = 16
    head_layers: Layers = 9
    head_width: Width = 1792
    diffusion_steps: int = Field(default=50, ge=2, le=100_000)
    stop_threshold: NotNegative = 0.1
    """A latent nearer than this to the end latent ends the motion."""
    dropout: Dropout = 0.0
    text_everywhere: bool = False
    """The text is added to every latent's vector too, which binds small models to it (published: it only stands first)."""

    def __post_init__(self) -> None:
        if self.n_embd % (2 * self.n_head):
            raise ModelError(f"n_embd {self.n_embd} must be an even multiple of n_head {self.n_head}.")


class Draws(NamedTuple):
    """Random numbers of one Two-Forward loss: steps, noise and order of positions."""

    t_first: Tensor
    """(B * S,) int64, one a position."""
    noise_first: Tensor
    """(B * S, C)."""
    order: Tensor
    """(S,): positions, of which the first ones are replaced in all rows."""
    t_second: Tensor
    """(repeats * V,) int64 for the V positions that count, row by row, all of them `repeats` times over."""
    noise_second: Tensor
    """(repeats * V, C)."""


class _Attention(nn.Module):
    def __init__(self, c: MotionStreamerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = c.n_head, c.dropout
        self.scale = math.log2(c.block_size**2 - c.block_size)
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=False)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: RowCache | None, layer: int) -> Tensor:
        qkv = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, A, N, E)
        query, key = apply_rope(F.normalize(qkv[:2], dim=-1), rope).unbind(0)
        value = qkv[2]
        if cache is not None:
            key, value = cache.write(layer, key, value)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=self.scale
        )
        return self.c_proj(out.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, c: MotionStreamerConfig) -> None:
        super().__init__()
        self.dropout = c.dropout
        self.rms_1, self.rms_2 = RMSNorm(c.n_embd), RMSNorm(c.n_embd)
        self.attn = _Attention(c)
        self.mlp = GatedMLP(c.n_embd, mlp_width(c.n_embd))

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: RowCache | None, layer: int) -> Tensor:
        x = x + F.dropout(self.attn(self.rms_1(x), rope, mask, cache, layer), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.rms_2(x)), self.dropout, self.training)


class _Trunk(nn.Module):
    """The published `transformer.…` names."""

    def __init__(self, c: MotionStreamerConfig) -> None:
        super().__init__()
        self.wte = nn.Linear(c.latent_dim, c.n_embd)
        self.cond_embed = nn.Linear(c.text_dim, c.n_embd)
        self.text_added = nn.Linear(c.text_dim, c.n_embd, bias=False) if c.text_everywhere else None
        self.h = nn.ModuleList(_Block(c) for _ in range(c.n_layer))
        self.ln_f = RMSNorm(c.n_embd)


class MotionStreamer(Generating, Component):
    """A text vector and earlier latents to the next latent. `generate` and `streams` are in `Generating`."""

    kind = "generator"
    config_class = MotionStreamerConfig
    meta_safe = True
    may_be_unset = ("end_latent",)
    config: MotionStreamerConfig
    end_latent: Tensor
    """(C,): ends a motion; NaN while it is not known, and then nothing ends."""

    def __init__(self, config: MotionStreamerConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or MotionStreamerConfig()
        self.transformer = _Trunk(c)
        self.out_proj = nn.Linear(c.n_embd, c.n_embd)
        self.diff_loss = DiffusionHead(c.latent_dim, c.n_embd, c.head_width, c.head_layers, c.diffusion_steps)
        self.register_buffer("end_latent", torch.full((c.latent_dim,), math.nan))
        self._rope: Tensor | None = None  # float32, never saved nor cast

    @property
    def head(self) -> DiffusionHead:
        """The diffusion head."""
        return self.diff_loss

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer."""
        return self.out_proj.weight.dtype

    def set_end_latent(self, latent: Tensor | np.ndarray) -> None:
        """Set the latent that ends a motion, `(C,)` or `(1, C)`. Raises ShapeError."""
        value = torch.as_tensor(latent).float().flatten()
        if value.shape != self.end_latent.shape:
            raise ShapeError(
                f"the end latent has {len(value)} numbers; this model's latents have {len(self.end_latent)}."
            )
        self.end_latent.copy_(value)

    def embed(self, text: Tensor, latents: Tensor) -> Tensor:
        """Text vectors `(B, text_dim)` and latents `(B, S, C)` as input vectors `(B, S + 1, H)`."""
        first = self.transformer.cond_embed(text.to(self.dtype))[:, None]
        return torch.cat([first, self.embed_latents(text, latents)], dim=1)

    def embed_latents(self, text: Tensor, latents: Tensor) -> Tensor:
        """Latents `(B, S, C)` made for texts `(B, text_dim)` as input vectors `(B, S, H)`."""
        x = self.transformer.wte(latents.to(self.dtype))
        added = self.transformer.text_added
        return x if added is None else x + added(text.to(self.dtype))[:, None]

    def trunk(self, x: Tensor, positions: Tensor | None = None, cache: RowCache | None = None) -> Tensor:
        """Input vectors `(B, n, H)` to states `(B, n, H)`.

        With a cache `positions` (B, n) say where the vectors stand in their rows; everything before them is in the cache.
        """
        if self._rope is None or self._rope.device != x.device:
            self._rope = rope_table(self.config.block_size, self.config.n_embd // self.config.n_head, x.device)
        if cache is None or positions is None:
            rope, mask = self._rope[: x.shape[1]], None
        else:
            rope, mask = self._rope[positions][:, None], cache.enter(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, rope, mask, cache, layer)
        return self.out_proj(self.transformer.ln_f(x))

    def forward(self, text: Tensor, latents: Tensor) -> Tensor:
        """States `(B, S + 1, H)`, state i conditioning latent i, of text `(B, text_dim)` and latents `(B, S, C)`.

        Raises ShapeError for rows longer than the model.
        """
        c = self.config
        if text.ndim != 2 or text.shape[-1] != c.text_dim:
            raise ShapeError(f"text must be (B, {c.text_dim}); this array has shape {tuple(text.shape)}.")
        if latents.ndim != 3 or latents.shape[-1] != c.latent_dim or len(latents) != len(text):
            raise ShapeError(
                f"latents must be ({len(text)}, S, {c.latent_dim}); these have shape {tuple(latents.shape)}."
            )
        if latents.shape[1] >= c.block_size:
            raise ShapeError(
                f"{latents.shape[1]} latents; the model has room for {c.block_size - 1}: keep the last ones."
            )
        return self.trunk(self.embed(text, latents))

    # ---- training

    def loss(
        self,
        batch: Mapping[str, Tensor],
        *,
        progress: float = 0.0,
        repeats: int = 4,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> dict[str, Tensor]:
        """The Two-Forward loss: {"total", "replaced"}.

        The head's own estimates replace a share of the input latents, 0 at the start of training and all at its end
        (`progress` in [0, 1], on a cosine); the same positions in all rows. Every position that counts is then measured
        `repeats` times with a step and noise of its own.

        `batch`: text (B, text_dim), latents (B, S, C), lengths (B,) and, for continuations, history (B,): the first
        latents, which stay true and do not count. `generator` (CPU) makes the draws repeatable; `draws` gives them.
        """
        latents, lengths = batch["latents"].float(), batch["lengths"]
        rows, steps = latents.shape[:2]
        if steps >= self.config.block_size:
            latents, steps = latents[:, : self.config.block_size - 1], self.config.block_size - 1
        history = batch.get("history", torch.zeros_like(lengths))[:, None]
        column = torch.arange(steps, device=latents.device)
        counts = (column < lengths[:, None]) & (column >= history)
        if not bool(counts.any()):
            raise VadisError("no position of this batch counts: lengths must be greater than history.")
        if draws is None:
            draws = self.draw(rows, steps, repeats * int(counts.sum()), generator)
        device, text = latents.device, batch["text"]
        replaced = torch.zeros(steps, dtype=torch.bool, device=device)
        replaced[draws.order[: int(steps * 0.5 * (1 - math.cos(math.pi * progress)))].to(device)] = True
        mixed = latents
        if bool(replaced.any()):
            with torch.no_grad():
                state = self(text, latents[:, :-1]).flatten(0, 1)
                noise = draws.noise_first.to(device)
                _, guess = self.head.loss(latents.flatten(0, 1), state, draws.t_first.to(device), noise)
            mixed = torch.where((replaced & (column >= history))[..., None], guess.view_as(latents), latents)
        state = self(text, mixed[:, :-1])[counts].repeat(repeats, 1)
        target = latents[counts].repeat(repeats, 1)
        errors, _ = self.head.loss(target, state, draws.t_second.to(device), draws.noise_second.to(device))
        return {"total": errors.mean(), "replaced": replaced.float().mean()}

    def draw(self, rows: int, steps: int, counted: int, generator: torch.Generator | None = None) -> Draws:
        """Random numbers of one loss, on the CPU."""
        c = self.config
        return Draws(
            torch.randint(c.diffusion_steps, (rows * steps,), generator=generator),
            torch.randn(rows * steps, c.latent_dim, generator=generator),
            torch.randperm(steps, generator=generator),
            torch.randint(c.diffusion_steps, (counted,), generator=generator),
            torch.randn(counted, c.latent_dim, generator=generator),
        )


def from_motionstreamer(
    state: dict[str, Tensor], *, end_latent: Tensor | np.ndarray | str | None = None, **options: Any
) -> MotionStreamer:
    """Build the generator from a published MotionStreamer state dict (`transformer.…`, `diff_loss.…`), every name used once.

    Sizes are read off the tensors, the block size off the logit scale. `n_head` is 12 for the released width and must be given
    for others. `end_latent`: array or .npy file; without it a model of the released latents gets the published one. The
    tensors are taken over, in their own precision. Raises ModelError for names that are missing or left over.
    """
    state = dict(state)
    scales = {float(state.pop(name)) for name in list(state) if name.endswith(".attn.scale")}
    config = build_config(MotionStreamerConfig, _infer(state, scales, options) | options, "options")
    if any(abs(scale - math.log2(config.block_size**2 - config.block_size)) > 1e-6 for scale in scales):
        raise ModelError(f"attention scales {sorted(scales)} do not belong to the block size {config.block_size}.")
    if isinstance(end_latent, str):
        from vadis.io.arrays import read_array

        end_latent = read_array(end_latent)
    if end_latent is None and config.latent_dim == len(END_LATENT):
        end_latent = torch.tensor(END_LATENT)
    with torch.device("meta"):
        model = MotionStreamer(config)
    load_strictly(model, state | {"end_latent": torch.full((config.latent_dim,), math.nan)}, assign=True)
    if end_latent is not None:
        model.set_end_latent(end_latent)
    return model.eval()


def _infer(state: dict[str, Tensor], scales: set[float], options: dict[str, Any]) -> dict[str, Any]:
    """Config fields that the tensors tell."""
    net = "diff_loss.net"
    try:
        found: dict[str, Any] = {
            "n_layer": len({n.split(".")[2] for n in state if n.startswith("transformer.h.")}),
            "n_embd": state["transformer.wte.weight"].shape[0],
            "latent_dim": state["transformer.wte.weight"].shape[1],
            "text_dim": state["transformer.cond_embed.weight"].shape[1],
            "head_layers": len({n.split(".")[3] for n in state if n.startswith(f"{net}.res_blocks.")}),
            "head_width": state[f"{net}.input_proj.weight"].shape[0],
        }
    except (KeyError, IndexError) as error:
        raise ModelError(f"not a MotionStreamer AR checkpoint: {error} is missing.") from error
    if len(scales) == 1:  # b² - b = 2^scale
        found["block_size"] = round((1 + math.sqrt(1 + 4 * 2 ** next(iter(scales)))) / 2)
    if "n_head" not in options and found["n_embd"] != MotionStreamerConfig.n_embd:
        raise ModelError(f"the tensors do not tell the number of heads of width {found['n_embd']}: give n_head=….")
    return found
