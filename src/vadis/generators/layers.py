"""Transformer blocks in the LLaMA manner, with a key-value cache: RMSNorm, rotary positions, gated MLP.

Parameter names follow the published MotionMillion state dict. The rotary table is always float32: built from half-precision
angles it is wrong by up to 1.7 at row 300.

Shapes: B rows, N positions, H hidden, A heads, E = H / A.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """`scale * x / rms(x)` over the last axis, eps 1e-5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, eps=1e-5)


def rope_table(length: int, head_dim: int, device: torch.device | str | None = None) -> Tensor:
    """Cosines and sines `(length, head_dim / 2, 2)` of position / 10000^(2i / head_dim), float32."""
    frequency = 1.0 / 10000 ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the interleaved pairs of `(B, A, N, E)` by rows `(N, E/2, 2)` or `(B, 1, N, E/2, 2)` of the table."""
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd, cos, sin = pairs[..., 0], pairs[..., 1], table[..., 0], table[..., 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class KVCache:
    """Keys and values of every layer for rows that all write at the same column; memory is taken once."""

    def __init__(self, layers: int, rows: int, heads: int, columns: int, head_dim: int, like: Tensor) -> None:
        self.data = like.new_zeros(layers, 2, rows, heads, columns, head_dim)
        self.column = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write `(B, A, n, E)` at the current column; return everything up to and with it."""
        stop = self.column + key.shape[2]
        keys, values = self.data[layer, 0, :, :, :stop], self.data[layer, 1, :, :, :stop]
        keys[:, :, self.column :] = key
        values[:, :, self.column :] = value
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.data = self.data.index_select(2, rows)


class Attention(nn.Module):
    """Multi-head attention with rotary positions; one fused projection, rows query, key, value."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        qkv = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, A, N, E)
        query, key = apply_rope(qkv[:2], rope).unbind(0)
        value = qkv[2]
        if cache is not None:
            key, value = cache.extend(layer, key, value)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.c_proj(out.transpose(1, 2).flatten(2))


def mlp_width(width: int) -> int:
    """Hidden width of the published MLP: two thirds of 4 H, rounded up to a multiple of 256."""
    return -(-int(8 * width / 3) // 256) * 256


class GatedMLP(nn.Module):
    """`c_proj(silu(c_fc1 x) * c_fc2 x)`, no biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc1 = nn.Linear(width, hidden, bias=False)
        self.c_fc2 = nn.Linear(width, hidden, bias=False)
        self.c_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.silu(self.c_fc1(x)) * self.c_fc2(x))


class Block(nn.Module):
    """`x += attention(norm(x)); x += mlp(norm(x))`."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.rms_1 = RMSNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.rms_2 = RMSNorm(width)
        self.mlp = GatedMLP(width, mlp_width(width))

    def forward(
        self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        x = x + F.dropout(self.attn(self.rms_1(x), rope, mask, cache, layer), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.rms_2(x)), self.dropout, self.training)


class DepthHead(nn.Module):
    """Logits of one further group of a step, given the state and the step's earlier groups."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm_tokens = RMSNorm(width)
        self.norm_1 = RMSNorm(width)
        self.mlp = GatedMLP(width, hidden)
        self.norm_2 = RMSNorm(width)

    def forward(self, state: Tensor, earlier: Tensor) -> Tensor:
        """State and summed embeddings of the earlier groups, both `(..., H)`, to the head's input `(..., H)`."""
        x = state + self.norm_tokens(earlier)
        return self.norm_2(x + self.mlp(self.norm_1(x)))


def sinusoids(value: Tensor, width: int = 64) -> Tensor:
    """Smooth features `(..., width)` of a number of steps, wavelengths about 3 to 3,000."""
    frequency = torch.logspace(0.3, -2.7, width // 2, device=value.device)
    angle = value.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
