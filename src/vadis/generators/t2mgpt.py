"""T2M-GPT's transformer (Zhang et al., 2023, arXiv 2301.06052): one text vector, then motion tokens, GPT blocks over both.

Position 0 holds the projected text feature; sinusoidal positions are added to every slot. The published model runs 9 "base"
and 9 "head" blocks in series, which are 18 blocks here. `generate` and `stream` come from `Decoding`, with a key-value cache.

Ids: codes 0 … nb_code - 1, END = nb_code, PAD = nb_code + 1 (input only).

Shapes: B rows, S token steps, N = 1 + S positions, C text feature, H width, K = nb_code.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import load_strictly
from vadis.component import Component
from vadis.config import build_config
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators.decoding import Decoding, Step
from vadis.generators.layers import KVCache
from vadis.sizes import CONFIG, Codes, Dropout, Heads, Layers, Row, Width


@dataclass(frozen=True, config=CONFIG)
class T2MGPTConfig:
    """The defaults are the released model: 228 M parameters over 512 codes and CLIP ViT-B/32 text features."""

    type: Literal["t2mgpt"] = "t2mgpt"
    n_layer: Layers = 18
    """Blocks, those that are published as base and as head together."""
    n_head: Heads = 16
    n_embd: Width = 1024
    mlp_ratio: int = Field(default=4, ge=1, le=64)
    block_size: Row = 51
    """Longest row: the text vector and the motion tokens."""
    clip_dim: Width = 512
    """Width of the text feature."""
    nb_code: Codes = 512
    """Motion codes."""
    dropout: Dropout = 0.1

    groups: ClassVar[int] = 1
    plan_dim: ClassVar[int] = 0
    plan_tokens: ClassVar[int] = 0
    length_conditioning: ClassVar[bool] = False
    null_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n_embd % 2 or self.n_embd % self.n_head:
            raise ModelError(f"n_embd {self.n_embd} must be even and a multiple of n_head {self.n_head}.")


class _Block(nn.Module):
    """`x += attention(norm(x)); x += mlp(norm(x))`, with biases; queries, keys and values are one product."""

    def __init__(self, c: T2MGPTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = c.n_head, c.dropout
        self.norm_1 = nn.LayerNorm(c.n_embd)
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.out = nn.Linear(c.n_embd, c.n_embd)
        self.norm_2 = nn.LayerNorm(c.n_embd)
        self.mlp_in = nn.Linear(c.n_embd, c.mlp_ratio * c.n_embd)
        self.mlp_out = nn.Linear(c.mlp_ratio * c.n_embd, c.n_embd)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        query, key, value = (
            t.transpose(1, 2) for t in self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        )
        if cache is not None:
            key, value = cache.extend(layer, key, value)
        rate = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)  # (B, heads, N, E)
        x = x + F.dropout(self.out(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm_2(x)))), self.dropout, self.training)


def position_table(length: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Sines (even columns) and cosines (odd ones) `(length, width)` of position / 10000^(2i / width), float32."""
    frequency = torch.exp(-math.log(10000) / width * torch.arange(0, width, 2, dtype=torch.float64))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(device, torch.float32)


class T2MGPT(Decoding, Component):
    """A text feature `(B, C)` to motion tokens."""

    kind = "generator"
    config_class = T2MGPTConfig
    meta_safe = True
    config: T2MGPTConfig
    length_proj: None = None  # for `Decoding`: positions are not told how many steps are left

    def __init__(self, config: T2MGPTConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or T2MGPTConfig()
        self.text_projection = nn.Linear(c.clip_dim, c.n_embd)
        self.token_embedding = nn.Embedding(c.nb_code + 2, c.n_embd)
        self.blocks = nn.ModuleList(_Block(c) for _ in range(c.n_layer))
        self.norm = nn.LayerNorm(c.n_embd)
        self.logits = nn.Linear(c.n_embd, c.nb_code + 1, bias=False)
        self._positions: Tensor | None = None  # float32, never saved nor cast
        self._int8 = False
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def end_id(self) -> int:
        """The id that ends a motion."""
        return self.config.nb_code

    @property
    def pad_id(self) -> int:
        """The id that fills rows; never predicted."""
        return self.config.nb_code + 1

    # ---- the pieces of a row

    def embed(self, tokens: Tensor) -> Tensor:
        """Motion ids `(B, S)` to input vectors `(B, S, H)`."""
        return self.token_embedding(tokens)

    def embed_prefix(self, text: Tensor, text_lengths: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The text feature `(B, 1, C)` as vectors `(B, 1, H)`, its length, and no plan `(B, 0, H)`."""
        vectors = self.text_projection(text.to(self.text_projection.weight.dtype))
        return vectors, text_lengths, vectors[:, :0]

    def trunk(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None = None) -> Tensor:
        """Vectors `(B, N, H)` at `positions` (B, N) through all blocks and the last norm; `mask` (B, 1, N, M) true = may see."""
        if self._positions is None or self._positions.device != x.device:
            self._positions = position_table(self.config.block_size, self.config.n_embd, x.device)
        x = (x + self._positions[positions]).to(x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.column += x.shape[1]
        return self.norm(x)

    def head(self, state: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Logits `(..., K + 1)` of the next token or END."""
        del earlier  # one token a step
        return self.logits(state)

    # ---- whole rows

    def forward(self, text: Tensor, tokens: Tensor) -> Tensor:
        """Logits `(B, S + 1, K + 1)` of a text feature `(B, C)` or `(B, 1, C)` and the ids `(B, S)` after it.

        Row s predicts token s. Raises ShapeError for rows that are too long or features of another width.
        """
        text = self._check_text(text)
        if tokens.ndim != 2 or len(tokens) != len(text) or tokens.shape[1] >= self.config.block_size:
            raise ShapeError(
                f"tokens must be ({len(text)}, S) with S < {self.config.block_size}; these are {tuple(tokens.shape)}."
            )
        vectors, _, _ = self.embed_prefix(text, tokens)
        x = torch.cat([vectors, self.embed(tokens)], dim=1)
        column = torch.arange(x.shape[1], device=x.device)
        return self.head(self.trunk(x, column[None], column <= column[:, None]))

    def _check_text(self, text: Tensor) -> Tensor:
        """The features as `(B, 1, C)`."""
        whole = text[:, None] if text.ndim == 2 else text
        if whole.ndim != 3 or whole.shape[1:] != (1, self.config.clip_dim) or not len(whole):
            raise ShapeError(
                f"text features must be (B, {self.config.clip_dim}), one vector a prompt; these are {tuple(text.shape)}."
            )
        if not torch.isfinite(whole).all():
            raise VadisError("the text features hold values that are not finite: encode the prompts again.")
        return whole

    def stream(self, text: Tensor | None, text_lengths: Any = None, **options: Any) -> Iterator[Step]:
        """As `Decoding.stream`, with `text` (B, C) or (B, 1, C). END can't be the first token unless `may_be_empty`."""
        options.setdefault("may_be_empty", False)
        yield from super().stream(None if text is None else self._check_text(text), text_lengths, **options)

    def loss(
        self,
        batch: Mapping[str, Tensor],
        *,
        corrupt: float = 0.0,
        corrupt_fixed: bool = False,
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy of the next token and END, averaged within each row, then over rows: {"total", "accuracy"}.

        `batch`: text (B, 1, C), tokens (B, S), lengths (B,); ids beyond `lengths` are ignored. `corrupt`: input ids are
        replaced by random codes at a rate drawn per row up to this, or at just this rate with `corrupt_fixed` (published:
        0.5). `generator` (CPU) makes the draws repeatable.
        """
        tokens, lengths = batch["tokens"], batch["lengths"]
        device, codes = tokens.device, self.config.nb_code
        valid = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        if not bool(((tokens >= 0) & (tokens < codes))[valid].all()):
            raise VadisError(f"motion tokens must be codes 0 … {codes - 1} within lengths; END and PAD are added here.")
        tokens = torch.where(valid, tokens, self.pad_id)
        inputs = tokens
        if corrupt:
            rate = corrupt * (1.0 if corrupt_fixed else torch.rand(len(tokens), 1, generator=generator))
            wrong = (torch.rand(tokens.shape, generator=generator) < rate).to(device) & valid
            inputs = torch.where(wrong, torch.randint(codes, tokens.shape, generator=generator).to(device), tokens)
        logits = self(batch["text"], inputs).float()
        target = F.pad(tokens, (0, 1), value=self.pad_id).scatter(1, lengths[:, None], self.end_id)
        known = target != self.pad_id
        losses = F.cross_entropy(
            logits.transpose(1, 2), target.masked_fill(~known, -100), reduction="none", label_smoothing=label_smoothing
        )
        hits = (logits.detach().argmax(-1) == target)[known].float()
        return {"total": (losses.sum(1) / known.sum(1)).mean(), "accuracy": hits.mean()}

    # ---- int8

    def lower_precision(self, precision: Literal["int8"] = "int8") -> None:
        """Hold the blocks' matrices in int8, for generating on a CPU: a quarter of the memory, two to three times as fast.

        Activations are quantised by the range of the whole call, so a row's tokens depend a little on its companions. There
        is no way back, and the model can't be saved nor trained. Raises VadisError for another precision or device.
        """
        if precision != "int8" or self.device.type != "cpu" or self.logits.weight.dtype != torch.float32:
            raise VadisError(f"{precision} on {self.device}: only float32 weights on the CPU can be lowered, to int8.")
        if self._int8:
            return
        from torch.ao.quantization import quantize_dynamic
        from torch.ao.quantization.qconfig import per_channel_dynamic_qconfig as recipe

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # announces that this is to move to another package
            for i, block in enumerate(self.blocks):  # one at a time: both copies of all blocks never exist together
                self.blocks[i] = quantize_dynamic(block, {nn.Linear: recipe}, inplace=True)
        self.eval()
        self._int8 = True

    def save_pretrained(self, folder: str | Path) -> None:
        """As every component; raises ModelError for a model lowered to int8."""
        if self._int8:
            raise ModelError("the weights are int8 now: save the float32 model, and lower it after loading.")
        super().save_pretrained(folder)


def from_t2mgpt(state: dict[str, Tensor], **options: Any) -> T2MGPT:
    """Build the model from a published T2M-GPT state dict (`trans_base.…`, `trans_head.…`), every name used once.

    Sizes are read off the tensors; the head count is 16 at the published width and must be given otherwise (`n_head`), as may
    be any other field of T2MGPTConfig. Causal masks and the table of positions must be the published ones; the position
    embedding is dropped, since the program never reads it. Raises ModelError for names that are missing or left over.
    """
    state = dict(state)
    try:
        counts = [
            len({name.split(".")[2] for name in state if name.startswith(f"{part}.blocks.")})
            for part in ("trans_base", "trans_head")
        ]
        rows, width = state["trans_base.tok_emb.weight"].shape
        found: dict[str, Any] = {
            "n_layer": sum(counts),
            "n_embd": width,
            "nb_code": rows - 2,
            "clip_dim": state["trans_base.cond_emb.weight"].shape[1],
            "block_size": len(state["trans_base.pos_embedding.weight"]),
            "mlp_ratio": len(state["trans_base.blocks.0.mlp.0.weight"]) // width,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"not a T2M-GPT transformer: {error} is missing.") from error
    if "n_head" not in options and width != T2MGPTConfig().n_embd:
        raise ModelError(f"width {width} is not the published {T2MGPTConfig().n_embd}: give n_head=….")
    config = build_config(T2MGPTConfig, found | options, "options")
    with torch.device("meta"):
        model = T2MGPT(config)
    load_strictly(model, _renamed(state, counts, config), assign=True)
    return model.eval()


def _renamed(state: dict[str, Tensor], counts: list[int], config: T2MGPTConfig) -> dict[str, Tensor]:
    """Our names; what is constant is checked and dropped, what is unknown stays and is refused later."""
    size = config.block_size
    table = position_table(size, config.n_embd)[:, None]
    _drop(state, "trans_base.pos_embed.embed", table)
    _drop(state, "trans_base.pos_embedding.weight", None)
    names = {
        "trans_base.tok_emb.weight": "token_embedding.weight",
        "trans_base.cond_emb.weight": "text_projection.weight",
        "trans_base.cond_emb.bias": "text_projection.bias",
        "trans_head.ln_f.weight": "norm.weight",
        "trans_head.ln_f.bias": "norm.bias",
        "trans_head.head.weight": "logits.weight",
    }
    layers = [(part, i) for part, count in zip(("trans_base", "trans_head"), counts, strict=True) for i in range(count)]
    parts = {"ln1": "norm_1", "attn.proj": "out", "ln2": "norm_2", "mlp.0": "mlp_in", "mlp.2": "mlp_out"}
    for layer, (part, i) in enumerate(layers):
        theirs, ours = f"{part}.blocks.{i}.", f"blocks.{layer}."
        _drop(state, f"{theirs}attn.mask", torch.ones(size, size).tril()[None, None])
        for end in ("weight", "bias"):
            names |= {f"{theirs}{old}.{end}": f"{ours}{new}.{end}" for old, new in parts.items()}
            split = [f"{theirs}attn.{name}.{end}" for name in ("query", "key", "value")]
            if all(name in state for name in split):
                state[f"{ours}qkv.{end}"] = torch.cat([cast(Tensor, state.pop(name)) for name in split])
    return {names.get(name, name): value for name, value in state.items()}


def _drop(state: dict[str, Tensor], name: str, expected: Tensor | None) -> None:
    """Remove a tensor that the model doesn't need; raises ModelError where it is missing or not what it should be."""
    value = state.pop(name, None)
    if value is None:
        raise ModelError(f"not a T2M-GPT transformer: {name} is missing.")
    if expected is not None and (
        value.shape != expected.shape or not torch.allclose(value.float(), expected, atol=1e-4)
    ):
        raise ModelError(
            f"{name} is not the published constant, so the model would behave differently: it isn't T2M-GPT."
        )
