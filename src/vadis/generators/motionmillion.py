"""MotionMillion's text-to-motion model ("Go to Zero", arXiv 2507.07095): a LLaMA-style decoder over motion tokens.

The text features are projected to the model's width and put in front as a bidirectional prefix; everything after is causal.
The defaults are the published model; its extensions here are off unless configured: several tokens a step (`groups`), a
prefix of known numbers (`plan`), the number of steps left (`length_conditioning`), a null prompt for guidance (`null_text`).

Ids: codes 0 … nb_code - 1, END = nb_code (group 0 only), PAD = nb_code + 1 (input only).

Shapes: B rows, L text length, P plan positions, S steps, G groups, N row length, H hidden, K = nb_code.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import load_strictly
from vadis.component import Component
from vadis.config import build_config
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators.decoding import Decoding
from vadis.generators.layers import Block, DepthHead, KVCache, RMSNorm, rope_table, sinusoids
from vadis.sizes import CONFIG, Codes, Dropout, Groups, Heads, Layers, Positive, Row, Width

SIZES = {
    "44M": (8, 8, 512),
    "111M": (12, 12, 768),
    "343M": (24, 16, 1024),
    "775M": (36, 20, 1280),
    "1B": (48, 24, 1536),
    "3B": (24, 32, 3200),
    "5B": (24, 32, 4096),
    "6B": (28, 32, 4096),
    "7B": (36, 32, 4096),
    "13B": (40, 40, 5120),
    "30B": (60, 52, 6656),
    "65B": (80, 64, 8192),
}
"""Layers, heads and width by published name. Weights of 3B and 7B were released."""


@dataclass(frozen=True, config=CONFIG)
class MotionMillionConfig:
    """The defaults are the released 3B model; `from_size` gives the others."""

    type: Literal["motionmillion"] = "motionmillion"
    n_layer: Layers = 24
    n_head: Heads = 32
    n_embd: Width = 3200
    block_size: Row = 301
    """Longest row: text, plan and motion steps together."""
    clip_dim: Width = 2048
    """Width of the text features."""
    nb_code: Codes = 64000
    """Motion codes of one group."""
    groups: Groups = 1
    """Tokens a step; later groups are predicted from the state and the step's earlier groups."""
    plan_dim: int = Field(default=0, ge=0, le=65_536)
    """Numbers in one plan position; 0 for no plan."""
    plan_tokens: int = Field(default=0, ge=0, le=65_536)
    """Plan positions after the text."""
    length_conditioning: bool = False
    """Tell every position how many steps are left."""
    null_text: bool = False
    """A learned prefix that stands for no text; needed for guidance."""
    dropout: Dropout = 0.0
    tie_weights: bool = False
    """Heads share the embeddings' weights."""
    depth_width: Width | None = None
    """Hidden width of the heads of groups after the first; None is 2 * n_embd."""
    init_std: Positive | None = None
    """Standard deviation of new weights (output projections less); None leaves the library's defaults, as published."""

    def __post_init__(self) -> None:
        if self.n_embd % (2 * self.n_head):
            raise ModelError(f"n_embd {self.n_embd} must be an even multiple of n_head {self.n_head}.")
        if (self.plan_dim > 0) != (self.plan_tokens > 0):
            raise ModelError(f"plan_dim {self.plan_dim} and plan_tokens {self.plan_tokens}: set both or neither.")

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> Self:
        """The config of a published size, e.g. "7B". Raises ModelError for an unknown name."""
        if size not in SIZES:
            raise ModelError(f"unknown size {size!r}: use one of {', '.join(SIZES)}.")
        return build_config(cls, dict(zip(("n_layer", "n_head", "n_embd"), SIZES[size], strict=True)) | changes)


class _Trunk(nn.Module):
    """The published `transformer.…` names."""

    def __init__(self, c: MotionMillionConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(c.nb_code + 2, c.n_embd)
        self.h = nn.ModuleList(Block(c.n_embd, c.n_head, c.dropout) for _ in range(c.n_layer))
        self.ln_f = RMSNorm(c.n_embd)


class MotionMillion(Decoding, Component):
    """Text features, and optionally a plan and a length, to motion tokens. `generate` and `stream` are in `Decoding`."""

    kind = "generator"
    config_class = MotionMillionConfig
    meta_safe = True
    config: MotionMillionConfig

    def __init__(self, config: MotionMillionConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or MotionMillionConfig()
        self.transformer = _Trunk(c)
        self.lm_head = None if c.tie_weights else nn.Linear(c.n_embd, c.nb_code + 1, bias=False)
        self.llama_proj = nn.Linear(c.clip_dim, c.n_embd)
        self.group_embeddings = nn.ModuleList(nn.Embedding(c.nb_code + 2, c.n_embd) for _ in range(c.groups - 1))
        self.depth = nn.ModuleList(DepthHead(c.n_embd, c.depth_width or 2 * c.n_embd) for _ in range(c.groups - 1))
        self.group_heads = nn.ModuleList(
            nn.Linear(c.n_embd, c.nb_code, bias=False) for _ in range(0 if c.tie_weights else c.groups - 1)
        )
        self.plan_proj = nn.Linear(2 * c.plan_dim, c.n_embd) if c.plan_dim else None
        self.plan_embedding = nn.Embedding(c.plan_tokens, c.n_embd) if c.plan_dim else None
        self.length_proj = nn.Linear(64, c.n_embd) if c.length_conditioning else None
        self.null_text = nn.Parameter(torch.randn(c.n_embd) * 0.02) if c.null_text else None
        self._rope: Tensor | None = None  # float32, never saved nor cast
        if c.init_std is not None:
            self._initialise(c.init_std)

    def _initialise(self, std: float) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith("c_proj")
                nn.init.normal_(module.weight, std=std / (2 * self.config.n_layer) ** 0.5 if last else std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def end_id(self) -> int:
        """The id that ends a motion, group 0."""
        return self.config.nb_code

    @property
    def pad_id(self) -> int:
        """The id that fills rows; never predicted."""
        return self.config.nb_code + 1

    # ---- the pieces of a row

    def embed(self, tokens: Tensor) -> Tensor:
        """Motion ids `(B, S)` or `(B, S, G)` to input vectors `(B, S, H)`, summed over groups."""
        if self.config.groups == 1:
            return self.transformer.wte(tokens)
        return self._sum_groups(tokens)

    def _sum_groups(self, tokens: Tensor) -> Tensor:
        total = self.transformer.wte(tokens[..., 0])
        for g in range(1, tokens.shape[-1]):
            total = total + self.group_embeddings[g - 1](tokens[..., g])
        return total

    def embed_length(self, remaining: Tensor) -> Tensor:
        """Steps left `(...)` to vectors `(..., H)`; a negative number means unknown."""
        assert self.length_proj is not None
        features = sinusoids(remaining) * (remaining >= 0)[..., None]
        return self.length_proj(features.to(self.length_proj.weight.dtype))

    def embed_prefix(
        self,
        text: Tensor,
        text_lengths: Tensor,
        plan: Tensor | None = None,
        plan_mask: Tensor | None = None,
        drop_text: Tensor | None = None,
        drop_plan: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text `(B, L, H)`, its lengths `(B,)` and plan `(B, P, H)` as vectors.

        Rows in `drop_text` (B,) bool get the null prefix of one position, and no plan unless `drop_plan` says otherwise.
        """
        dtype = self.llama_proj.weight.dtype
        vectors = self.llama_proj(text.to(dtype))
        if drop_text is not None:
            if self.null_text is None:
                raise ModelError("this model has no null prompt (config null_text): it can't drop text or be guided.")
            null = self.null_text.expand(vectors.shape[0], 1, -1)
            vectors = torch.cat([torch.where(drop_text[:, None, None], null, vectors[:, :1]), vectors[:, 1:]], dim=1)
            text_lengths = torch.where(drop_text, 1, text_lengths)
        batch, count, width = len(text), self.config.plan_tokens, self.config.plan_dim
        if self.plan_proj is None or self.plan_embedding is None:
            return vectors, text_lengths, vectors[:, :0]
        numbers = vectors.new_zeros(batch, count, width) if plan is None else plan
        known = torch.full_like(numbers, plan is not None, dtype=torch.bool)
        if plan is not None and plan_mask is not None:
            known = plan_mask.bool()
        drop = drop_text if drop_plan is None else drop_plan
        if drop is not None:
            known = known & ~drop[:, None, None]
        values = torch.where(known, numbers, torch.zeros_like(numbers))  # not a product: unknown values may be NaN
        plan_vectors = self.plan_proj(torch.cat([values, known.to(values.dtype)], dim=-1).to(dtype))
        return vectors, text_lengths, plan_vectors + self.plan_embedding.weight

    def trunk(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None = None) -> Tensor:
        """Vectors `(B, N, H)` at `positions` (B, N) through all layers and the last norm; `mask` (B, 1, N, M) true = may see."""
        if self._rope is None or self._rope.device != x.device:
            head_dim = self.config.n_embd // self.config.n_head
            self._rope = rope_table(self.config.block_size, head_dim, x.device)
        rope = self._rope[positions][:, None]
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, rope, mask, cache, layer)
        if cache is not None:
            cache.column += x.shape[1]
        return self.transformer.ln_f(x)

    def head(self, state: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Logits of the next group: `(..., K + 1)` of group 0, else `(..., K)` given ids `earlier` (..., g) of the step."""
        if earlier is None:
            if self.lm_head is None:
                return F.linear(state, self.transformer.wte.weight[: self.end_id + 1])
            return self.lm_head(state)
        further = earlier.shape[-1] - 1
        state = self.depth[further](state, self._sum_groups(earlier))
        if self.config.tie_weights:
            return F.linear(state, cast(nn.Embedding, self.group_embeddings[further]).weight[: self.end_id])
        return self.group_heads[further](state)

    # ---- training

    def states(
        self,
        text: Tensor,
        text_lengths: Tensor,
        tokens: Tensor,
        lengths: Tensor | None = None,
        plan: Tensor | None = None,
        plan_mask: Tensor | None = None,
        drop_text: Tensor | None = None,
        drop_plan: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States `(B, N, H)` of whole rows (prefix, then motion ids `tokens`) and the prefix lengths `(B,)`.

        `lengths` (B,) steps of each motion, used by length conditioning only. Raises ShapeError for a row that is too long.
        """
        vectors, counts, plan_vectors = self.embed_prefix(text, text_lengths, plan, plan_mask, drop_text, drop_plan)
        motion = self.embed(tokens)
        prefix = counts + self.config.plan_tokens
        size = int(prefix.max()) + tokens.shape[1]
        if size > self.config.block_size:
            raise ShapeError(
                f"text, plan and motion make {size} positions; the model has {self.config.block_size}: shorten one of them."
            )
        if self.length_proj is not None:
            total = torch.full_like(counts, -1) if lengths is None else lengths
            left = total[:, None] - 1 - torch.arange(tokens.shape[1], device=counts.device)
            motion = motion + self.embed_length(torch.where(total[:, None] < 0, -1, left.clamp_min(0)))
        x = self.join(vectors, counts, plan_vectors, motion, torch.zeros_like(prefix), size)
        if self.length_proj is not None:
            rows = torch.arange(len(x), device=x.device)
            x = x.index_put((rows, prefix - 1), self.embed_length(total), accumulate=True)
        column = torch.arange(size, device=x.device)
        inside = column < prefix[:, None]
        mask = (column <= column[:, None]) | (inside[:, :, None] & inside[:, None, :])
        return self.trunk(x, column.expand(len(x), -1), mask[:, None]), prefix

    def forward(self, text: Tensor, text_lengths: Tensor, tokens: Tensor, **conditions: Any) -> Tensor:
        """Logits `(B, N, K + 1)` of group 0 at every position of the rows; arguments as in `states`."""
        return self.head(self.states(text, text_lengths, tokens, **conditions)[0])

    def loss(
        self,
        batch: Mapping[str, Tensor],
        *,
        corrupt: float = 0.0,
        corrupt_fixed: bool = False,
        text_dropout: float = 0.0,
        length_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy of the next token and END: {"total", "accuracy"}, with groups also "group_0", "group_1", ….

        `batch`: text (B, L, C), text_lengths (B,), tokens (B, S) or (B, S, G), lengths (B,) and, where used, plan, plan_mask,
        drop_text, drop_plan. Ids beyond `lengths` are ignored. `corrupt`: input ids are replaced by random codes at a rate
        drawn per row up to this, or at just this rate with `corrupt_fixed`. `text_dropout`: share of rows with the null prefix (where drop_text isn't given).
        `length_dropout`: share of rows that don't know their length. `generator` (CPU) makes the draws repeatable.
        """
        c = self.config
        tokens, lengths = batch["tokens"], batch["lengths"]
        device, rows, steps = tokens.device, tokens.shape[0], tokens.shape[1]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(device)

        grouped = tokens if c.groups > 1 else tokens[..., None]
        valid = torch.arange(steps, device=device) < lengths[:, None]
        if not bool(((grouped >= 0) & (grouped < c.nb_code))[valid].all()):
            raise VadisError(
                f"motion tokens must be codes 0 … {c.nb_code - 1} within lengths; END and PAD are added here."
            )
        grouped = torch.where(valid[..., None], grouped, self.pad_id)
        inputs = grouped
        if corrupt:
            rate = corrupt if corrupt_fixed else uniform(rows, 1, 1) * corrupt
            noise = torch.randint(c.nb_code, tuple(grouped.shape), generator=generator).to(device)
            inputs = torch.where((uniform(*grouped.shape) < rate) & valid[..., None], noise, grouped)
        drop_text = batch.get("drop_text")
        if drop_text is None and text_dropout:
            drop_text = uniform(rows) < text_dropout
        told = torch.where(uniform(rows) < length_dropout, -1, lengths) if length_dropout else lengths
        states, prefix = self.states(
            batch["text"],
            batch["text_lengths"],
            inputs if c.groups > 1 else inputs[..., 0],
            lengths=told,
            plan=batch.get("plan"),
            plan_mask=batch.get("plan_mask"),
            drop_text=drop_text,
            drop_plan=batch.get("drop_plan"),
        )
        # The state of the last prefix position predicts step 0, that of step S-1 predicts END.
        column = prefix[:, None] - 1 + torch.arange(steps + 1, device=device)
        states = states.gather(1, column[..., None].expand(-1, -1, c.n_embd))
        first = F.pad(grouped[..., 0], (0, 1), value=self.pad_id).scatter(1, lengths[:, None], self.end_id)
        chosen = torch.arange(steps + 1, device=device) <= lengths[:, None]
        losses, hits = [], []
        for g in range(c.groups):
            if g == 0:
                logits, target = self.head(states[chosen]), first[chosen]
            else:
                logits, target = self.head(states[:, :-1][valid], grouped[valid][:, :g]), grouped[valid][:, g]
            losses.append(F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing))
            hits.append((logits.detach().argmax(-1) == target).float().mean())
        terms = {"total": torch.stack(losses).mean(), "accuracy": torch.stack(hits).mean()}
        if c.groups > 1:
            terms |= {f"group_{g}": value.detach() for g, value in enumerate(losses)}
        return terms


def from_motionmillion(state: dict[str, Tensor], **options: Any) -> MotionMillion:
    """Build the model from a published MotionMillion state dict (`transformer.h.N…`), every name used once.

    Sizes are read off the tensors; the head count comes from the published size with these layers and width, or from
    `options` (fields of MotionMillionConfig: `n_head`, `block_size`, …). The tensors are taken over, in their own precision.
    Raises ModelError for names that are missing or left over.
    """
    try:
        layers = {int(name.split(".")[2]) for name in state if name.startswith("transformer.h.")}
        codes, width = state["transformer.wte.weight"].shape
        found: dict[str, Any] = {
            "n_layer": len(layers),
            "n_embd": width,
            "nb_code": codes - 2,
            "clip_dim": state["llama_proj.weight"].shape[1],
            "tie_weights": "lm_head.weight" not in state,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"not a MotionMillion AR checkpoint: {error} is missing.") from error
    heads = {(size[0], size[2]): size[1] for size in SIZES.values()}
    if "n_head" not in options:
        if (len(layers), width) not in heads:
            raise ModelError(f"{len(layers)} layers of width {width} are no published size: give n_head=….")
        found["n_head"] = heads[len(layers), width]
    config = build_config(MotionMillionConfig, found | options, "options")
    with torch.device("meta"):
        model = MotionMillion(config)
    load_strictly(model, state, assign=True)
    return model.eval()
