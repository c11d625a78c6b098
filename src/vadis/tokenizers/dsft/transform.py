"""The part of DSFT that needs no codec: z-score, split into streams, cosine transform, rounding, and the way back.

Shapes: B clips, T frames, D features, K coefficients, d columns of a stream.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.representations import names, representation
from vadis.representations.base import width_hint
from vadis.sizes import CONFIG, FrameRate, Name
from vadis.tokenizers.dsft.split import SplitSpec, split_for
from vadis.tokenizers.frequency import cosine_basis

CLAMP = 10.0
"""Decoded values stay within this many standard deviations of the mean, or the range that the fitted clips have."""
RANGE_MARGIN = 1.25
"""By how much a decoded value may pass the largest distance from the mean that the fitted clips have."""
INTEGRATED = {"root_velocity", "heading_velocity", "root_yaw_velocity", "root_linear_velocity"}
"""Slices whose values are summed up along a clip when it is decoded."""
MAX_FRAMES = 1_000_000
Count = Annotated[int, Field(le=MAX_FRAMES)]
Scale = Annotated[float, Field(le=1_000_000)]


@dataclass(frozen=True, config=CONFIG)
class DSFTConfig:
    """MotionVLA's numbers with our codec and normalisation."""

    type: Literal["dsft"] = "dsft"
    representation: Name = "vimogen276"
    fps: FrameRate = 20.0
    split: SplitSpec = split_for("vimogen276")
    """Columns of the two streams."""
    K: tuple[Count, Count] = (5, 25)
    """Coefficients kept of Base and Phys."""
    scale: tuple[Scale, Scale] = (10.0, 10.0)
    """Integers per unit of a coefficient."""
    codec: Literal["integer", "bytelevel"] = "integer"
    normalize: Literal["zscore", "none"] = "zscore"
    root_precision: float = 1.0
    """How much finer the steps of the root's rates are, which add up along a clip to where the body is."""
    row_bounded: bool = False
    """No token crosses from one frequency to the next: easier to interpret, a few percent longer."""
    window: int | None = Field(default=None, le=10_000_000)
    """Frames of a piece in which longer clips are coded by `reconstruct` and `bits`; None: clips are coded whole."""

    def __post_init__(self) -> None:
        if min(self.K) < 1 or not min(*self.scale, self.root_precision) > 0:
            raise ValueError("K must be at least 1; scale and root_precision must be positive")
        if self.window is not None and self.window < 2:
            raise ValueError("window must be at least 2 frames")

    @property
    def feature_dim(self) -> int:
        """D, features of a frame."""
        return self.split.dim


class DSFTTransform:
    """Features `(T, D)` in physical units to the integers of two streams and back, as `config` says.

    Args:
        config: what to do.
        mean, std: `(D,)` normalisation and clamp; None where nothing is known (then nothing is clamped).
        reach: `(D,)` how far from the mean decoded values may lie; by default 10 std.
    """

    config: DSFTConfig

    def __init__(
        self,
        config: DSFTConfig,
        mean: Tensor | np.ndarray | None = None,
        std: Tensor | np.ndarray | None = None,
        reach: Tensor | np.ndarray | None = None,
    ) -> None:
        self.config = config
        self.has_statistics = mean is not None and std is not None
        if config.normalize == "zscore" and not self.has_statistics:
            raise VadisError('normalize="zscore" needs mean and std: give them, or normalize="none".')
        self.mean, self.std = torch.zeros(config.feature_dim), torch.ones(config.feature_dim)
        self.reach = CLAMP * self.std
        if mean is not None and std is not None:
            self.set_statistics(mean, std, reach)
        self._set_gains()

    @property
    def representation(self) -> str:
        """Name of the representation of the features."""
        return self.config.representation

    @property
    def fps(self) -> float:
        """Frames per second of the features."""
        return self.config.fps

    def set_statistics(
        self, mean: Tensor | np.ndarray, std: Tensor | np.ndarray, reach: Tensor | np.ndarray | None = None
    ) -> None:
        """Set mean, std and reach (by default 10 std), `(D,)` each; std below 1e-6 counts as 1.

        Raises ShapeError or VadisError for unusable ones.
        """
        given = {"mean": mean, "std": std} | ({} if reach is None else {"reach": reach})
        for name, value in given.items():
            value = torch.as_tensor(value).detach().cpu().float()
            if value.shape != (self.config.feature_dim,):
                raise ShapeError(
                    f"{name} has shape {tuple(value.shape)}; this tokenizer needs ({self.config.feature_dim},)."
                )
            if not torch.isfinite(value).all() or (name != "mean" and bool((value < 0).any())):
                raise VadisError(f"{name} holds values that can't normalise (not finite, or below 0): recompute it.")
            setattr(self, name, torch.where(value < 1e-6, 1.0, value) if name == "std" else value.clone())
        if reach is None:
            self.reach = CLAMP * self.std
        self.has_statistics = True
        self._set_gains()

    def _set_gains(self) -> None:
        c = self.config
        zscore = c.normalize == "zscore"
        self._offset = self.mean.numpy() if zscore else np.zeros(c.feature_dim, dtype=np.float32)
        spread = self.std.numpy() if zscore else np.ones(c.feature_dim, dtype=np.float32)
        finer = np.ones(c.feature_dim, dtype=np.float32)
        if c.representation in names() and c.root_precision != 1:
            slices = representation(c.representation).slices
            for name in INTEGRATED & set(slices):
                finer[slices[name]] = c.root_precision
        self._gains = [np.float32(s) * (finer / spread)[i] for s, i in zip(c.scale, self._columns, strict=True)]

    @property
    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        return self.config.split.columns

    def integer_shapes(self, T: int) -> list[tuple[int, int]]:
        """(rows, columns) of the integers of Base and of Phys of a clip of T frames."""
        return [(min(k, T), len(c)) for k, c in zip(self.config.K, self._columns, strict=True)]

    def transform(self, x: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """The integers of a clip `(T, D)`: Base `(min(K, T), d)` and Phys, int64, before any coding."""
        base, phys = self._integers(self._array(x)[None])
        return torch.from_numpy(base[0]), torch.from_numpy(phys[0])

    def inverse_transform(self, integers: Sequence[Tensor | np.ndarray], T: int) -> Tensor:
        """The clip `(T, D)` float32 of the integers of both streams. Raises ShapeError where they don't fit T."""
        arrays = [np.asarray(rows)[None] for rows in integers]
        sizes = [a.shape[1:] for a in arrays]
        if sizes != self.integer_shapes(whole_frames(T)):
            raise ShapeError(f"integers of {T} frames have the shapes {self.integer_shapes(T)}; got {sizes}.")
        return torch.from_numpy(self._features(arrays, T)[0])

    def _integers(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Integers `(B, K, d)` int64 of both streams of clips `(B, T, D)`."""
        T = x.shape[1]
        sizes = self.integer_shapes(T)
        coefficients = cosine_basis(T, max(k for k, _ in sizes)) @ x
        coefficients[:, 0] -= np.float32(math.sqrt(T)) * self._offset
        base, phys = (
            np.rint(np.concatenate([coefficients[:, :k, a:b] for a, b in slices or ((0, 0),)], axis=2) * gain)
            for (k, _), slices, gain in zip(sizes, self.config.split.slices, self._gains, strict=True)
        )
        return base.astype(np.int64), phys.astype(np.int64)

    def _features(self, integers: Sequence[np.ndarray], T: int) -> np.ndarray:
        """Clips `(B, T, D)` float32 of integers `(B, K, d)` of both streams."""
        sizes = self.integer_shapes(T)
        rows = max(k for k, _ in sizes)
        coefficients = np.zeros((len(integers[0]), rows, self.config.feature_dim), dtype=np.float32)
        for values, (k, _), slices, gain in zip(integers, sizes, self.config.split.slices, self._gains, strict=True):
            scaled, start = values.astype(np.float32) * (1 / gain), 0
            for a, b in slices:
                coefficients[:, :k, a:b] = scaled[:, :, start : start + b - a]
                start += b - a
        clamp = self.has_statistics and self.config.codec == "integer"
        wild = self._may_leave(coefficients, T) if clamp else []
        coefficients[:, 0] += np.float32(math.sqrt(T)) * self._offset
        x = cosine_basis(T, rows).T @ coefficients
        if len(wild):
            mean, reach = self.mean.numpy()[wild], self.reach.numpy()[wild]
            x[..., wild] = np.clip(x[..., wild], mean - reach, mean + reach)
        return x

    def _may_leave(self, coefficients: np.ndarray, T: int) -> np.ndarray:
        """Columns whose coefficients `(B, K, D)` are large enough for some frame to leave the range; most need no clamp."""
        farthest = np.abs(coefficients).sum(axis=1) * np.float32(math.sqrt(2 / T))
        room = self.reach.numpy() - np.abs(self.mean.numpy() - self._offset)
        return np.flatnonzero((farthest > room).any(axis=0))

    def windows(self, clip: Tensor | np.ndarray | Motion) -> list[np.ndarray]:
        """A clip `(T, D)` in the pieces in which it is coded, float32: the whole of it without `config.window`."""
        x = self._array(clip)
        size = self.config.window or len(x)
        return [x[i : i + size] for i in range(0, len(x), size)]

    def _array(self, clip: Any) -> np.ndarray:
        """One clip `(T, D)` as float32; raises ShapeError or VadisError for anything else."""
        if isinstance(clip, Motion):
            clip = representation(self.representation).encode(clip)
        x = clip.detach().cpu().numpy() if isinstance(clip, Tensor) else np.asarray(clip)
        if x.ndim != 2 or x.shape[1] != self.config.feature_dim or not len(x):
            width = x.shape[-1] if x.ndim else 0
            raise ShapeError(
                f"{self.representation} features have the shape (T >= 1, {self.config.feature_dim}); this array is {x.shape}."
                f"{width_hint(width, self.config.feature_dim)}"
            )
        x = x.astype(np.float32, copy=False)
        if not np.isfinite(x).all():
            bad = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise VadisError(f"frame {bad} holds values that are not finite: repair or cut the clip.")
        return x


def clip_statistics(name: str, clips: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, std and largest distance from the mean of each column over all frames, float64. Raises VadisError for no clips.

    A std is no smaller than the mean one of the columns that belong together (`groups` of a known representation), so columns
    that hardly move do not turn noise into tokens.
    """
    count, total, squares, low, high, shift = 0, 0.0, 0.0, np.inf, -np.inf, None
    for x in clips:
        shift = x[0].astype(np.float64) if shift is None else shift  # against cancellation far from the origin
        moved = x - shift
        count, total, squares = count + len(x), total + moved.sum(axis=0), squares + np.square(moved).sum(axis=0)
        low, high = np.minimum(low, moved.min(axis=0)), np.maximum(high, moved.max(axis=0))
    if shift is None:
        raise VadisError("there is nothing to fit on: give at least one clip.")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    if name in names():
        for group in representation(name).groups:
            std[group] = np.maximum(std[group], std[group].mean())
    return mean + shift, np.where(std < 1e-6, 1.0, std), np.maximum(high - mean, mean - low)


def whole_frames(T: Any) -> int:
    if isinstance(T, bool) or int(T) != T or not 1 <= T <= MAX_FRAMES:
        raise VadisError(f"T must be a whole number of frames from 1 to {MAX_FRAMES}; got {T}.")
    return int(T)


def fps_of(name: str) -> float:
    from vadis.representations import names, representation

    if name not in names():
        raise VadisError(f"the frame rate of {name!r} features is not known: give fps=.")
    return float(representation(name).fps)
