"""Causal convolutions over `(B, C, T)`, whole or as a stream whose layers carry their own left context.

The first steps of a stream see zeros at every layer, so a stream gives what one pass over everything gives.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vadis.errors import ModelError, ShapeError, VadisError
from vadis.tokenizers.layers import Activation, Norm, activation, normalization

Memory = dict[nn.Module, Tensor]
"""The last inputs `(B, C, reach)` of every convolution of a stream."""


class CausalConv1d(nn.Conv1d):
    """A convolution whose outputs never see later inputs: all padding is on the left.

    With stride r, output t sees the inputs up to r t + r - 1 and `reach` = (kernel - 1) * dilation + 1 - r before r t.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(channels, out, kernel, stride=stride, dilation=dilation)
        self.reach = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        if memory is None:
            return super().forward(F.pad(x, (self.reach, 0)) if self.reach else x)
        if self.reach:
            x = torch.cat([memory[self], x], dim=-1)
            memory[self] = x[..., x.shape[-1] - self.reach :]
        # as a product: several times faster than a dilated convolution of a few steps
        span = (self.kernel_size[0] - 1) * self.dilation[0] + 1
        seen = x.unfold(-1, span, self.stride[0])[..., :: self.dilation[0]]  # (B, C, n, kernel)
        return F.linear(seen.transpose(1, 2).flatten(2), self.weight.flatten(1), self.bias).transpose(1, 2)


class CausalBlock(nn.Module):
    """`x + conv2(act(norm(conv1(act(norm(x))))))`: a dilated causal convolution and a pointwise one."""

    def __init__(self, width: int, dilation: int, act: Activation, norm: Norm | None) -> None:
        super().__init__()
        self.norm1, self.activation1 = normalization(norm, width), activation(act)
        self.conv1 = CausalConv1d(width, width, 3, dilation=dilation)
        self.norm2, self.activation2 = normalization(norm, width), activation(act)
        self.conv2 = CausalConv1d(width, width, 1)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        hidden = self.conv1(self.activation1(self.norm1(x)), memory)
        return x + self.conv2(self.activation2(self.norm2(hidden)), memory)


class CausalSequential(nn.Sequential):
    """Layers one after the other; those that look back get the memory of a stream."""

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        for layer in self:
            looks_back = isinstance(layer, CausalConv1d | CausalBlock | CausalStack | CausalSequential)
            x = layer(x, memory) if looks_back else layer(x)
        return x


class CausalStack(nn.Module):
    """`depth` residual blocks, widest dilation first (9, 3, 1 as published)."""

    def __init__(self, width: int, depth: int, growth: int, act: Activation, norm: Norm | None) -> None:
        super().__init__()
        dilations = [growth**i for i in reversed(range(depth))]
        self.model = CausalSequential(*(CausalBlock(width, dilation, act, norm) for dilation in dilations))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.model(x, memory)


class _Stream:
    """The carried context of `rows` independent streams through one network."""

    def __init__(self, tokenizer: Any, network: nn.Module, rows: int) -> None:
        if tokenizer.config.norm == "GN":
            raise ModelError(
                "GroupNorm looks over the whole clip, so a model with norm GN can't stream: use LN or none."
            )
        if rows < 1:
            raise VadisError(f"a stream needs at least one row, not {rows}.")
        self.tokenizer, self.network, self.rows = tokenizer, network, rows
        like = tokenizer.mean.new_zeros((), dtype=tokenizer.dtype)
        self.memory: Memory = {
            layer: like.new_zeros(rows, layer.in_channels, layer.reach)
            for layer in network.modules()
            if isinstance(layer, CausalConv1d) and layer.reach
        }

    def reset(self, rows: list[int] | None = None) -> None:
        """Start these rows (default: all) anew, as if nothing had been pushed; the others go on."""
        chosen = self._chosen(rows)
        for context in self.memory.values():
            context[chosen] = 0

    def _chosen(self, rows: list[int] | None) -> list[int]:
        chosen = list(range(self.rows)) if rows is None else [int(row) for row in rows]
        if len(set(chosen)) != len(chosen) or not all(0 <= row < self.rows for row in chosen):
            raise VadisError(f"rows {chosen} must be different numbers in 0 … {self.rows - 1}.")
        return chosen

    def _batch(self, values: Any, rows: list[int], width: int, what: str) -> Tensor:
        """`(R, n, width)` from what was pushed, checked."""
        values = torch.as_tensor(values)
        batch = values[None] if values.ndim == 2 else values
        if batch.ndim != 3 or batch.shape[-1] != width or len(batch) != len(rows):
            raise ShapeError(
                f"this stream takes {what} ({len(rows)}, n, {width}), or (n, {width}) for one row; this array has shape "
                f"{tuple(values.shape)}."
            )
        if not bool(torch.isfinite(batch).all()):
            raise VadisError(f"the {what} hold values that are not finite: nothing was pushed.")
        return batch.to(self.tokenizer.mean)

    def _advance(self, x: Tensor, rows: list[int]) -> Tensor:
        """`(R, C, n)` through the network, with the context of `rows`."""
        if rows == list(range(self.rows)):
            memory = dict(self.memory)
            y = self.network(x, memory)
            self.memory = memory  # only now: a failure leaves the stream as it was
            return y
        memory = {layer: context[rows] for layer, context in self.memory.items()}
        y = self.network(x, memory)
        for layer, context in memory.items():
            self.memory[layer][rows] = context
        return y


class StreamDecoder(_Stream):
    """Latents in, frames out, `rows` streams at once; made by `CausalTAE.stream_decoder`."""

    @torch.no_grad()
    def push(self, latents: Any, rows: list[int] | None = None) -> Tensor:
        """Frames `(R, n * frames_per_token, D)` in physical units of the next latents `(R, n, C)`; `(n, C)` gives one row.

        `rows`: which streams go on (default: all); the others wait. Raises ShapeError, VadisError for what isn't finite.
        """
        tokenizer, chosen = self.tokenizer, self._chosen(rows)
        batch = self._batch(latents, chosen, tokenizer.config.latent_dim, "latents")
        if batch.shape[1]:
            x = tokenizer.decode_proj(batch.to(tokenizer.dtype)).transpose(1, 2)
            y = self._advance(x, chosen).transpose(1, 2).float()
        else:
            y = batch.new_zeros(len(chosen), 0, tokenizer.config.feature_dim)
        frames = y * tokenizer.std + tokenizer.mean
        return frames[0] if torch.as_tensor(latents).ndim == 2 else frames


class StreamEncoder(_Stream):
    """Frames in, latents (their means) out, `rows` streams at once; made by `CausalTAE.stream_encoder`.

    Frames that do not fill a token yet are kept for the next push.
    """

    def __init__(self, tokenizer: Any, network: nn.Module, rows: int) -> None:
        super().__init__(tokenizer, network, rows)
        self._waiting = [tokenizer.mean.new_zeros(0, tokenizer.config.feature_dim) for _ in range(rows)]

    def reset(self, rows: list[int] | None = None) -> None:
        super().reset(rows)
        for row in self._chosen(rows):
            self._waiting[row] = self._waiting[row][:0]

    @torch.no_grad()
    def push(self, features: Any, rows: list[int] | None = None) -> Tensor:
        """Latents `(R, n, C)` that the next frames `(R, T, D)` in physical units complete; `(T, D)` gives one row.

        `rows`: which streams go on (default: all); they must wait for equally many frames. Raises ShapeError, VadisError.
        """
        tokenizer, chosen = self.tokenizer, self._chosen(rows)
        batch = self._batch(features, chosen, tokenizer.config.feature_dim, "features")
        waiting = [self._waiting[row] for row in chosen]
        if len({len(kept) for kept in waiting}) > 1:
            raise VadisError("these rows wait for different numbers of frames: push them one by one.")
        batch = torch.cat([torch.stack(waiting), batch], dim=1)
        whole = batch.shape[1] // tokenizer.frames_per_token * tokenizer.frames_per_token
        for row, rest in zip(chosen, batch[:, whole:], strict=True):
            self._waiting[row] = rest.clone()
        if whole:
            x = ((batch[:, :whole] - tokenizer.mean) / tokenizer.std).to(tokenizer.dtype)
            latents = tokenizer.split_moments(self._advance(x.transpose(1, 2), chosen).transpose(1, 2))[0]
        else:
            latents = batch.new_zeros(len(chosen), 0, tokenizer.config.latent_dim)
        return latents[0] if torch.as_tensor(features).ndim == 2 else latents
