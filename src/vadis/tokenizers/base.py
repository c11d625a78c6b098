"""What every tokenizer shares: checks, normalisation, batches of different lengths, long clips in pieces, losses.

A family is a subclass with a config (`representation`, `fps`, `feature_dim` and its own fields) and four small methods:
`_encode` and `_decode` on the normalised scale, `forward` for training, and how far each side looks
(`encoder_context`, `decoder_context`). Everything a user calls is here.

Shapes: B clips, T frames, D features, S token steps, G tokens a step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from vadis.cancel import stop_if_cancelled
from vadis.checkpoint import MIN_STD
from vadis.component import Component, MotionTokenizer
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.motion import Motion
from vadis.tokenizers.kinematic_loss import KINEMATIC_WEIGHTS, kinematic_losses
from vadis.tokenizers.losses import reconstruction_losses

KNOWN_DIMS = {263: "hml263", 251: "kit251", 272: "ms272", 276: "vimogen276", 135: "smpl135"}
Clips = Tensor | np.ndarray | Motion | Sequence[Tensor | np.ndarray | Motion]


class TokenizerOutput(NamedTuple):
    """What a forward pass gives, all on the normalised scale."""

    reconstruction: Tensor
    """(B, T', D), T' = S * frames_per_token."""
    tokens: Tensor
    """(B, S) or (B, S, G) int64; a continuous tokenizer's latents (B, S, C)."""
    latent: Tensor
    """(B, S, C) encoder output before quantisation."""
    losses: Mapping[str, Tensor] = {}
    """Scalars of the quantiser: commitment, entropy…"""


class Quantized(NamedTuple):
    """What a quantiser gives for latents (B, S, C)."""

    vectors: Tensor
    """(B, S, C), with a straight-through gradient."""
    tokens: Tensor
    """(B, S) or (B, S, G) int64."""
    losses: Mapping[str, Tensor] = {}


class Quantizer(nn.Module):
    """Latents (B, S, C) to codes: `quantizer` of a discrete tokenizer."""

    def code_vectors(self) -> list[Tensor]:
        """The vectors (K, d) of each codebook (group, level or part), float32 on the CPU; one where all share it."""
        raise NotImplementedError


def grid_vectors(quantizer: Any) -> list[Tensor]:
    """`code_vectors` of codes that are a grid: those of every token, a book for each of its groups."""
    every, groups = torch.arange(quantizer.vocab_size), quantizer.groups
    tokens = every[:, None].expand(-1, groups) if groups > 1 else every
    codes = quantizer.codes_from_tokens(tokens).float().cpu()
    return list(codes.unflatten(-1, (groups, -1)).unbind(1))


class Tokenizer(MotionTokenizer, Component):
    """Features `(T, D)` of one representation at one frame rate to tokens and back.

    `mean` and `std` travel as buffers. A lower precision asked for with `.to` leaves them and the quantiser in float32.
    """

    keep_float32 = True
    chunk_frames: ClassVar[int] = 4096
    """Longer clips are coded in pieces of this many frames, with the context that makes them equal to the whole."""
    full_precision: ClassVar[tuple[str, ...]] = ("quantizer",)
    """Parts that stay float32 in half precision: rounding would move values across the borders of codes."""
    mean: Tensor
    std: Tensor

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = self.config_class() if config is None else config
        self.register_buffer("mean", torch.zeros(self.config.feature_dim))
        self.register_buffer("std", torch.ones(self.config.feature_dim))

    # ---- what a family says

    @property
    def frames_per_token(self) -> int:
        """Frames that one token step covers."""
        raise NotImplementedError

    @property
    def tokens_per_step(self) -> int:
        """Tokens at one step in time."""
        return 1

    @property
    def vocab_size(self) -> int:
        """Number of codes (of one group, level or part)."""
        raise NotImplementedError

    @property
    def encoder_context(self) -> tuple[int, int] | None:
        """Steps before and after its own that a token can depend on; None: the whole clip."""
        raise NotImplementedError

    @property
    def decoder_context(self) -> tuple[int, int] | None:
        """Steps before and after its own that a decoded frame can depend on; None: the whole clip."""
        raise NotImplementedError

    def _encode(self, x: Tensor) -> Tensor:
        """Normalised features `(B, T, D)` to tokens `(B, S)`, `(B, S, G)` or latents `(B, S, C)`."""
        raise NotImplementedError

    def _decode(self, tokens: Tensor) -> Tensor:
        """The inverse of `_encode`, normalised `(B, S * frames_per_token, D)`."""
        raise NotImplementedError

    @property
    def causal(self) -> bool:
        """No token and no decoded frame depends on anything later, so clips of any lengths share a batch."""
        return False

    # ---- what follows

    @property
    def representation(self) -> str:
        """Name of the representation of the features."""
        return self.config.representation

    @property
    def fps(self) -> float:
        """Frames per second of the features."""
        return self.config.fps

    @property
    def bits_per_second(self) -> float:
        """Bits of the tokens of one second, all codes counted as equally likely."""
        return self.tokens_per_step * math.log2(self.vocab_size) * self.fps / self.frames_per_token

    def set_statistics(self, mean: Tensor | np.ndarray, std: Tensor | np.ndarray) -> None:
        """Set the normalisation, `(D,)` each. Raises ShapeError on another size, VadisError where std is not positive."""
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value).float()
            if value.shape != (self.config.feature_dim,):
                raise ShapeError(
                    f"{name} has shape {tuple(value.shape)}; this tokenizer needs ({self.config.feature_dim},)."
                )
            if not torch.isfinite(value).all() or (name == "std" and not bool((value >= MIN_STD).all())):
                raise VadisError(f"{name} holds values that can't normalise (not finite, or std <= 0): recompute it.")
            getattr(self, name).copy_(value)

    def loss(self, x: Tensor, **weights: Any) -> tuple[dict[str, Tensor], TokenizerOutput]:
        """Training loss of normalised windows `(B, T, D)`.

        `weights` are those of `reconstruction_losses` and `kinematic_losses` (the defaults are the published sum of
        MotionMillion and T2M-GPT) and one `NAME_weight` for each of the quantiser's own losses. Returns the terms
        ("total" is the one to minimise) and the output they were computed from. Raises ModelError for the weight of a
        loss that this family does not have.
        """
        output = self(x)
        own = {name: weights.pop(f"{name}_weight", 0.0) for name in ("commitment", "entropy", "perceptual")}
        lacking = [name for name, weight in own.items() if weight and name not in output.losses]
        if lacking:
            raise ModelError(f"{type(self).__name__} has no {', '.join(lacking)} loss: leave its weight at 0.")
        made = output.reconstruction.float()
        target = x[:, : made.shape[1]].float()
        posed = {name: weights.pop(name) for name in KINEMATIC_WEIGHTS if name in weights}
        terms = reconstruction_losses(target, made, self.representation, mean=self.mean, std=self.std, **weights)
        if any(posed.values()):
            further = kinematic_losses(target, made, self.mean, self.std, self.representation, **posed)
            terms = terms | further | {"total": terms["total"] + further["total"]}
        total = terms["total"] + sum(own[name] * value for name, value in output.losses.items() if own.get(name))
        return terms | dict(output.losses) | {"total": total}, output

    @torch.no_grad()
    def encode(
        self,
        features: Clips,
        lengths: Tensor | list[int] | None = None,
        *,
        fps: float | None = None,
        representation: str | None = None,
        chunk_frames: int | None = None,
        **options: Any,
    ) -> Any:
        """Features `(T, D)` or `(B, T, D)` in physical units to tokens `(S,)` / `(B, S)`, with groups `(…, S, G)`, int64.

        A `Motion` is brought into the representation first; a list of clips gives a list of tokens. With `lengths`
        (frames per clip) each clip is coded as if alone and rows are padded with -1 (latents: 0). Frames beyond the last
        whole token are dropped. `fps` and `representation`, where known, are checked. Clips longer than `chunk_frames`
        are coded in pieces that overlap by what tokens depend on, so memory is bounded and the tokens are those of the
        whole. Raises ShapeError for a wrong width or a clip shorter than one token, VadisError for values that are not
        finite, another frame rate or another representation.
        """
        self._check_source(fps, representation)
        if isinstance(features, Sequence):
            return self._encode_list(features, chunk_frames=chunk_frames, **options)
        array = self._features(features) if isinstance(features, Motion) else torch.as_tensor(features)
        if array.ndim not in (2, 3):
            raise ShapeError(f"features must be (T, D) or (B, T, D); this array has shape {tuple(array.shape)}.")
        self._check_width(array.shape[-1])
        batch = array if array.ndim == 3 else array[None]
        frames = check_lengths(lengths, batch.shape[0], batch.shape[1], "frames")
        self._check_values(batch, frames)
        if self.causal and min(frames) < batch.shape[1]:  # what a caller left in the padding must not be computed with
            inside = torch.arange(batch.shape[1]) < torch.tensor(frames)[:, None]
            batch = batch.masked_fill(~inside[..., None].to(batch.device), 0)
        empty, chunk = 0 if self.continuous else -1, chunk_frames or self.chunk_frames
        longest = max(frames) // self.frames_per_token
        coded: list[tuple[list[int], Tensor]] = [
            (rows, self._encode_in_pieces(batch, rows, count, chunk, options))
            for count, rows in _batches(frames, chunk, self.causal)
        ]
        tokens = coded[0][1].new_full((len(frames), longest, *coded[0][1].shape[2:]), empty)
        for rows, made in coded:
            tokens[rows, : made.shape[1]] = made
            for row in rows:
                tokens[row, frames[row] // self.frames_per_token :] = empty
        return tokens if array.ndim == 3 else tokens[0]

    def _encode_list(self, clips: Sequence[Tensor | np.ndarray | Motion], **options: Any) -> list[Tensor]:
        """Tokens of each clip; clips of one length share a call."""
        arrays = [self._features(c) if isinstance(c, Motion) else torch.as_tensor(c) for c in clips]
        if not arrays or any(a.ndim != 2 for a in arrays):
            raise ShapeError(f"a list must hold at least one clip (T, D); got {[tuple(a.shape) for a in arrays][:5]}.")
        for a in arrays:
            self._check_width(a.shape[-1])
        frames = [len(a) for a in arrays]
        tokens = self.encode(torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True), frames, **options)
        return [row[: count // self.frames_per_token] for row, count in zip(tokens, frames, strict=True)]

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
        lengths: Tensor | list[int] | None = None,
        *,
        chunk_frames: int | None = None,
    ) -> Any:
        """Tokens `(S,)` / `(B, S)`, with groups `(…, S, G)`, to features `(T, D)` / `(B, T, D)` in physical units, float32.

        With `lengths` (steps per clip) each clip is decoded as if alone and rows are padded with zeros; a list gives a
        list. Raises ShapeError for a wrong shape and VadisError for ids outside [0, vocab_size).
        """
        if isinstance(tokens, Sequence):
            return [self.decode(row, chunk_frames=chunk_frames) for row in tokens]
        array = torch.as_tensor(tokens).to(self.mean.device)
        rank = self._token_rank
        self._check_token_shape(array)
        batch = array if array.ndim == rank + 1 else array[None]
        steps = check_lengths(lengths, batch.shape[0], batch.shape[1], "steps")
        batch = self._check_tokens(batch, steps)
        chunk = chunk_frames or self.chunk_frames
        features = torch.zeros(len(steps), max(steps) * self.frames_per_token, self.config.feature_dim).to(self.device)
        for count, rows in _batches(steps, max(chunk // self.frames_per_token, 1), self.causal):
            if count:
                stop_if_cancelled()
                made = self._decode_in_pieces(batch[rows, :count], chunk)
                features[rows, : made.shape[1]] = made
                for row in rows:
                    features[row, steps[row] * self.frames_per_token :] = 0
        return features if array.ndim == rank + 1 else features[0]

    def reconstruct(self, features: Tensor | np.ndarray, lengths: Tensor | list[int] | None = None) -> Tensor:
        """Features through the tokens and back: `(T, D)` or `(B, T, D)`, cut to whole tokens."""
        steps = None if lengths is None else [int(n) // self.frames_per_token for n in lengths]
        return self.decode(self.encode(features, lengths), steps)

    def _encode_in_pieces(
        self, batch: Tensor, rows: list[int], frames: int, chunk: int, options: Mapping[str, Any]
    ) -> Tensor:
        """Tokens of whole steps of `rows`; pieces see all that their tokens depend on, and real ends stay ends."""
        step, context = self.frames_per_token, self.encoder_context
        steps = frames // step

        def run(start: int, stop: int) -> Tensor:
            x = (batch[rows, start:stop].to(self.mean) - self.mean) / self.std
            return self._encode(x.to(self._dtype), **options)

        return _in_pieces(
            lambda a, b: run(a * step, b * step if b < steps else frames), steps, chunk // step, context
        )  # fmt: skip

    def _decode_in_pieces(self, tokens: Tensor, chunk: int) -> Tensor:
        step = self.frames_per_token

        def run(start: int, stop: int) -> Tensor:
            return self._decode(tokens[:, start:stop]).float() * self.std + self.mean

        return _in_pieces(run, tokens.shape[1], chunk // step, self.decoder_context, scale=step)

    # ---- checks

    @property
    def _dtype(self) -> torch.dtype:
        """Precision of the network."""
        names = (n for n in self.named_parameters() if not n[0].startswith(self.full_precision))
        return next(iter(names), ("", self.mean))[1].dtype

    @property
    def grouped(self) -> bool:  # type: ignore[override]
        return self._token_rank == 2

    @property
    def _token_rank(self) -> int:
        return 2 if self.tokens_per_step > 1 or self.continuous else 1

    def _features(self, motion: Motion) -> Tensor:
        from vadis.representations import representation

        if abs(motion.fps - self.fps) > 1e-3:
            raise VadisError(
                f"the motion has {motion.fps:g} frames per second, this tokenizer needs {self.fps:g}: use "
                f"motion.resample({self.fps:g})."
            )
        return representation(self.representation).encode(motion)

    def _check_source(self, fps: float | None, representation: str | None) -> None:
        if representation is not None and representation != self.representation:
            raise VadisError(
                f"the features are {representation}, this tokenizer needs {self.representation}: convert with "
                f"`vadis convert --to {self.representation}`."
            )
        if fps is not None and abs(fps - self.fps) > 1e-3:
            raise VadisError(
                f"the features have {fps:g} frames per second, this tokenizer needs {self.fps:g}: resample the motion "
                f"before encoding it (`vadis convert --resample {self.fps:g}`)."
            )

    def _check_values(self, batch: Tensor, frames: list[int]) -> None:
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

    def _check_token_shape(self, tokens: Tensor) -> None:
        rank, last = self._token_rank, self.config.latent_dim if self.continuous else self.tokens_per_step
        if tokens.ndim not in (rank, rank + 1) or (rank == 2 and tokens.shape[-1] != last):
            wanted = f"(S, {last}) or (B, S, {last})" if rank == 2 else "(S,) or (B, S)"
            raise ShapeError(f"tokens must be {wanted}; this array has shape {tuple(tokens.shape)}.")
        if not self.continuous and (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool):
            raise VadisError(f"tokens must be integers, not {tokens.dtype}.")

    def _check_tokens(self, batch: Tensor, steps: list[int]) -> Tensor:
        """The batch in the type of `_decode`; raises VadisError for ids outside the vocabulary."""
        batch = batch.long()
        for row, count in enumerate(steps):
            ids = batch[row, :count]
            if count and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
                bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise VadisError(
                    f"token {bad} in clip {row} is outside 0 … {self.vocab_size - 1}: remove END and PAD ids."
                )
        return batch

    def _check_width(self, width: int) -> None:
        expected, name = self.config.feature_dim, self.representation
        if width == expected:
            return
        hint = f"give {name} features."
        if width in KNOWN_DIMS and KNOWN_DIMS[width] != name:
            hint = f"{width} values look like {KNOWN_DIMS[width]}: convert with `vadis convert --to {name}`."
        raise ShapeError(f"{name} features have {expected} values per frame; this array has {width}. {hint}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        if recurse:
            for name, child in self.named_children():
                child._apply(keep if name in self.full_precision else fn)
        nn.Module._apply(self, keep, recurse=False)
        return self


def _in_pieces(
    run: Callable[[int, int], Tensor], steps: int, size: int, context: tuple[int, int] | None, scale: int = 1
) -> Tensor:
    """`run(0, steps)` along axis 1 in pieces of `size` steps; a step of the result has `scale` rows."""
    size = max(size, 1)
    if context is None or steps <= size:
        return run(0, steps)[:, : steps * scale]
    left, right = context
    parts = []
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        a, b = max(0, start - left), min(steps, stop + right)
        parts.append(run(a, b)[:, (start - a) * scale : (stop - a) * scale])
    return torch.cat(parts, dim=1)


def check_lengths(lengths: Tensor | list[int] | None, rows: int, longest: int, unit: str) -> list[int]:
    """One length a row, each within the array. Raises ShapeError."""
    if rows == 0:
        raise ShapeError("the batch is empty: give at least one clip.")
    values = [longest] * rows if lengths is None else [int(n) for n in lengths]
    if len(values) != rows or min(values) < 0 or max(values) > longest:
        raise ShapeError(f"lengths {values} do not fit {rows} rows of {longest} {unit}.")
    return values


def _batches(lengths: list[int], budget: int, mixed: bool = False) -> list[tuple[int, list[int]]]:
    """(length, rows) of rows of equal length, so that each clip meets zero padding at its own ends only.

    With `mixed` rows of different lengths go together and `length` is the longest. No batch holds more than four times
    `budget` frames or steps, unless it is one clip.
    """
    groups: dict[int, list[int]] = {}
    for row, length in sorted(enumerate(lengths), key=lambda pair: -pair[1]) if mixed else enumerate(lengths):
        groups.setdefault(-1 if mixed else length, []).append(row)
    result = []
    for rows in groups.values():
        while rows:
            longest = lengths[rows[0]]
            size = max(1, 4 * budget // max(longest, 1))
            result.append((longest, rows[:size]))
            rows = rows[size:]
    return result
