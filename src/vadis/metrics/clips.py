"""Joint positions of many clips as one long array, so that metrics of thousands of clips take a few array operations.

Clips come as one `(T, J, 3)` array, a list of them, or a padded `(B, T, J, 3)` array with `lengths`; metres throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError, SkeletonError, VadisError
from vadis.metrics.arrays import listed, to_numpy
from vadis.skeleton import Skeleton

Float32 = NDArray[np.float32]
UP_AXES = {"x": 0, "y": 1, "z": 2}
Up = Literal["x", "y", "z"]
_BLOCK = 1024


@dataclass(frozen=True)
class BodyParts:
    """Which joints are the root and the toes (left, right); the default is SMPL's order."""

    root: int = 0
    toes: tuple[int, int] = (10, 11)

    @classmethod
    def of(cls, skeleton: Skeleton) -> "BodyParts":
        """The parts of any skeleton whose joints can be recognised by name; the ankles stand in for missing toes.

        Raises SkeletonError when feet can't be found.
        """
        from vadis.retargeting import recognize_skeleton

        mapping = recognize_skeleton(skeleton)
        found = mapping.joints if mapping else {}
        toes = []
        for side in ("left", "right"):
            name = found.get(f"{side}_foot") or found.get(f"{side}_ankle")
            if name is None:
                raise SkeletonError(
                    f"no {side} foot found among {', '.join(skeleton.names[:60])}: pass BodyParts(root, (left, right)) "
                    "with the numbers of the toe joints."
                )
            toes.append(skeleton.index(name))
        root = skeleton.index(found["pelvis"]) if "pelvis" in found else 0
        return cls(root, (toes[0], toes[1]))


@dataclass(frozen=True, eq=False)
class Clips:
    """B clips end to end: `joints` `(N, J, 3)` float32 metres and the `lengths` `(B,)` that add up to N frames."""

    joints: Float32
    lengths: NDArray[np.int64]
    parts: BodyParts

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First frame of every clip."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """Clip of every frame `(N,)`."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def differences_from(self, order: int) -> NDArray[np.bool_]:
        """Frames `(N,)` whose clip goes on for at least `order` more, so that a difference of that order exists."""
        left = np.repeat(self.starts + self.lengths, self.lengths) - np.arange(len(self.joints))
        return left > order

    def total(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over time of frame values `(N,)`, one a clip."""
        return np.bincount(self.owner, values, minlength=len(self.lengths))

    def mean_differences(self, orders: Sequence[int], local: bool = True) -> list[NDArray[np.float64]]:
        """Mean length over frames and joints of the joints' differences of each order, one a clip `(B,)`.

        With `local`, the same mean of positions relative to the root is added, as both published sets of metrics do.
        NaN for clips that are too short. Frames are taken in blocks, so that nothing large leaves the cache.
        """
        count, joints = self.joints.shape[:2]
        frames = np.zeros((len(orders), count), np.float32)
        share = np.full(joints, 1 / joints, np.float32)
        for start in range(0, count, _BLOCK):
            world = self.joints[start : start + _BLOCK + max(orders)]
            for points in (world, world - world[:, self.parts.root, None])[: 1 + local]:
                step, order = points, 0
                for row, wanted in enumerate(orders):  # ascending, each from the one before
                    step, order = np.diff(step, n=wanted - order, axis=0), wanted
                    lengths = norm(step[:_BLOCK]) @ share
                    frames[row, start : start + len(lengths)] += lengths
        result = []
        for row, order in enumerate(orders):
            sums = self.total(np.where(self.differences_from(order), frames[row], 0))  # no step from clip to clip
            result.append(np.where(self.lengths > order, sums / np.maximum(self.lengths - order, 1), np.nan))
        return result


def norm(x: NDArray[Any]) -> NDArray[Any]:
    """Euclidean length of the last axis, of three values; faster than numpy's own for so few."""
    return np.sqrt(x[..., 0] * x[..., 0] + x[..., 1] * x[..., 1] + x[..., 2] * x[..., 2])


def pack(joints: Any, lengths: Any = None, parts: BodyParts | Skeleton | None = None, minimum: int = 1) -> Clips:
    """Check joint positions and lay the clips end to end.

    Args:
        joints: `(T, J, 3)`, a list of such arrays, or `(B, T, J, 3)`; NumPy or torch.
        lengths: real frames of each padded clip; what lies behind is ignored and may be anything.
        parts: which joints are root and toes, or the skeleton to find them in; None is SMPL's order.
        minimum: frames that a clip must have.

    Raises ShapeError for other shapes or shorter clips, VadisError for NaN or infinite values with clip and frames.
    """
    clips = _as_list(joints, lengths)
    parts = BodyParts.of(parts) if isinstance(parts, Skeleton) else parts or BodyParts()
    count = max(parts.root, *parts.toes) + 1
    for b, clip in enumerate(clips):
        if clip.ndim != 3 or clip.shape[1] < count or clip.shape[2] != 3 or clip.shape[1] != clips[0].shape[1]:
            raise ShapeError(
                f"clip {b} must be joint positions (T, J >= {count}, 3) with one J for all; got {clip.shape}. "
                "Features are decoded first: representation(name).decode(x).positions."
            )
        if len(clip) < minimum:
            raise ShapeError(f"clip {b} has {len(clip)} frames; these metrics need at least {minimum}.")
    flat = np.concatenate(clips).astype(np.float32, copy=False) if len(clips) > 1 else clips[0].astype(np.float32)
    packed = Clips(flat, np.asarray([len(clip) for clip in clips], np.int64), parts)
    if not np.isfinite(flat).all():
        bad = np.flatnonzero(~np.isfinite(flat).all((1, 2)))
        clip = int(packed.owner[bad[0]])
        frames = bad[packed.owner[bad] == clip] - packed.starts[clip]
        raise VadisError(f"clip {clip} holds NaN or infinite positions in frames {listed(frames)}: repair or drop it.")
    return packed


def _as_list(joints: Any, lengths: Any) -> list[NDArray[Any]]:
    if isinstance(joints, Sequence) and not isinstance(joints, str):
        if lengths is not None:
            raise ShapeError("a list of clips brings its own lengths: leave lengths out.")
        clips = [to_numpy(clip) for clip in joints]
    else:
        array = to_numpy(joints)
        if array.ndim == 3 and lengths is None:
            return [array]
        if array.ndim != 4:
            raise ShapeError(f"joint positions must be (T, J, 3) or (B, T, J, 3) with lengths; got {array.shape}.")
        if lengths is None:
            clips = list(array)
        else:
            sizes = to_numpy(lengths).astype(np.int64)
            if sizes.shape != (len(array),) or (len(sizes) and (sizes.min() < 1 or sizes.max() > array.shape[1])):
                raise ShapeError(
                    f"lengths must be {len(array)} numbers from 1 to {array.shape[1]}; got {sizes.tolist()[:8]}."
                )
            clips = [clip[:size] for clip, size in zip(array, sizes, strict=True)]
    if not clips:
        raise ShapeError("no clips to measure: give at least one.")
    return clips


def resample(clips: Clips, fps: float, target: float) -> Clips:
    """The clips at another frame rate: every k-th frame where that fits, else a cubic spline through each coordinate.

    A straight line between frames would add kinks, which acceleration and jitter see.
    """
    if not 0 < fps < 100_000:
        raise VadisError(f"fps={fps}: give the frames per second of the positions.")
    if abs(fps - target) < 1e-6 * target:
        return clips
    parts = [_resample(x, fps / target) for x in np.split(clips.joints, clips.starts[1:])]
    return Clips(np.concatenate(parts), np.asarray([len(p) for p in parts], np.int64), clips.parts)


def _resample(x: Float32, step: float) -> Float32:
    count = int((len(x) - 1) / step + 1e-4) + 1
    where = np.arange(count) * step
    nearest = np.minimum(np.round(where).astype(np.int64), len(x) - 1)
    if np.abs(where - nearest).max() < 1e-3:
        return x[nearest]
    from scipy.interpolate import make_interp_spline

    spline = make_interp_spline(np.arange(len(x)), x.astype(np.float64), k=min(3, len(x) - 1))
    return spline(np.minimum(where, len(x) - 1)).astype(np.float32)
