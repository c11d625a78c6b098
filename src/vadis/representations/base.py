"""What every representation offers: `Motion` to features and back, named slices, mirroring, statistics.

Features are physical quantities, never normalised here; a model carries the mean and std it was trained with.

Shapes: B clips, T frames, D features per frame, J joints.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vadis.errors import ShapeError, SkeletonError, VadisError
from vadis.motion import Motion
from vadis.skeleton import Skeleton

Source = Literal["rotations", "positions"]


class Representation(ABC):
    """One way to write a frame of motion as D numbers.

    Attributes:
        name: what `vadis.representation` calls it.
        dim: D, numbers per frame.
        fps: the frame rate that published models of this representation expect.
        slices: name -> columns; together they cover every column once.
        groups: columns that share one standard deviation in the published statistics.
    """

    name: str
    dim: int
    fps: float
    slices: Mapping[str, slice]
    groups: tuple[slice, ...]
    description: ClassVar[str] = ""

    @abstractmethod
    def encode(self, motion: Motion, **options: Any) -> Tensor:
        """Features `(T, D)` float32 of a motion."""

    @abstractmethod
    def decode(self, features: Tensor, source: Source = "rotations", **options: Any) -> Motion:
        """The motion that features `(T, D)` describe."""

    @abstractmethod
    def positions(self, features: Tensor) -> Tensor:
        """World joint positions `(..., T, J, 3)` in metres from the position columns of features `(..., T, D)`."""

    @abstractmethod
    def mirror(self, features: Tensor) -> Tensor:
        """The features of the left-right mirrored motion."""

    def check(self, features: Tensor | np.ndarray, ndim: int | None = None) -> Tensor:
        """The features as a tensor; ShapeError when their width (or number of axes) doesn't fit."""
        x: Tensor = torch.from_numpy(features) if isinstance(features, np.ndarray) else features
        if x.ndim < 2 or x.shape[-1] != self.dim or (ndim is not None and x.ndim != ndim):
            wanted = "(T, " if ndim == 2 else "(..., T, "
            raise ShapeError(
                f"{self.name} features have the shape {wanted}{self.dim}); this array is {tuple(x.shape)}."
                f"{width_hint(x.shape[-1] if x.ndim else 0, self.dim)}"
            )
        if x.shape[-2] == 0:
            raise ShapeError(f"{self.name} features need at least one frame; this array is {tuple(x.shape)}.")
        return x if x.is_floating_point() else x.float()

    def check_motion(self, motion: Motion, skeleton: Skeleton) -> None:
        """Raise the error that tells the user how to make `motion` fit this representation."""
        if not motion.skeleton.same_tree(skeleton):
            raise SkeletonError(
                f"{self.name} describes the {skeleton.num_joints} joints of {skeleton.name}; this motion has "
                f"{motion.skeleton}. Convert it first: vadis.retarget(motion, {skeleton.name!r})."
            )
        if abs(motion.fps - self.fps) > 1e-3 * self.fps:
            raise VadisError(
                f"{self.name} stores motion at {self.fps:g} frames/s; this motion has {motion.fps:g}. "
                f"Convert it first: motion.resample({self.fps:g})."
            )

    def statistics(self, clips: Iterable[Tensor | np.ndarray]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(D,)` float64 over all frames of all clips, as published statistics are made.

        The mean is per column; the (population) deviation is per column first and then averaged inside each of
        `groups`, so constant columns can't cause a division by zero. Clips with NaN are skipped.

        Raises VadisError when no clip is left.
        """
        count, mean, squares = 0, torch.zeros(self.dim, dtype=torch.float64), torch.zeros(self.dim, dtype=torch.float64)
        for clip in clips:
            x = self.check(clip).double().reshape(-1, self.dim)
            if torch.isnan(x).any():
                continue
            frames, average = len(x), x.mean(0)
            shift = average - mean  # merge of two means and sums of squares (Chan et al., 1979)
            squares += (x - average).square().sum(0) + shift.square() * (count * frames / (count + frames))
            mean += shift * (frames / (count + frames))
            count += frames
        if count == 0:
            raise VadisError(f"no clip without NaN to take {self.name} statistics from.")
        std = (squares / count).sqrt()
        for group in self.groups:
            std[group] = std[group].mean()
        return mean, std

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.dim} features at {self.fps:g}/s)"


def frozen(slices: dict[str, slice]) -> Mapping[str, slice]:
    """A read-only view, since representations are shared."""
    return MappingProxyType(slices)


def width_hint(width: int, expected: int) -> str:
    known = {263: "hml263", 251: "kit251", 272: "ms272", 276: "vimogen276", 135: "smpl135"}
    if width == expected or width not in known:
        return ""
    return f" {width} values look like {known[width]}: use vadis.representation({known[width]!r})."
