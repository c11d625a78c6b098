"""The motion- and pose-quality metrics of MBench (ViMoGen): jitter, dynamics, foot sliding and floating, penetration.

The published program reads axis 2 as the height, axes 0 and 1 as the ground and 0 as the floor, per frame, whatever the
data: mode "compat". Its own export writes height into axis 1, so the published table may measure "height" along the
facing direction; that is what "compat" gives for clips with Y up. Mode "native" takes the true height axis, puts every
clip at 20 frames/s, for which the thresholds are meant, and may take the floor from the clip; for clips with Z up at 20
frames/s on a floor at 0 both modes agree.

Shapes: B clips, T frames, J joints.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vadis.errors import VadisError
from vadis.metrics.clips import BodyParts, Up, pack, resample
from vadis.metrics.feet import lowest_toe, watch_feet
from vadis.metrics.physical import FLOOR_QUANTILE, Mode, PerClip, ground_axes, up_axis
from vadis.skeleton import Skeleton

RATE = 20.0
"""Frames per second of every published value."""
NAMES = {
    "jitter": "Jitter_Degree",
    "dynamic": "Dynamic_Degree",
    "foot_floating": "Foot_Floating",
    "foot_sliding": "Foot_Sliding",
    "ground_penetration": "Ground_Penetration",
}
"""Field → published name."""


@dataclass(frozen=True, eq=False)
class MBench:
    """One value a clip `(B,)` of each joint metric, per frame at 20 frames/s; NaN where a clip is too short to tell.

    jitter: metres a frame², mean second difference in the world plus relative to the root. dynamic: metres a frame, the
    same of first differences. foot_floating: share of frames with implausible feet, may exceed 1. foot_sliding: metres a
    frame. ground_penetration: mean depth in metres of the toe samples more than 5 mm down, `ground_share` their share.
    contact: `(N, 2)` flags of all clips end to end.
    """

    jitter: PerClip
    dynamic: PerClip
    foot_floating: PerClip
    foot_sliding: PerClip
    ground_penetration: PerClip
    ground_share: PerClip
    contact: NDArray[np.bool_]
    mode: Mode

    def table(self) -> dict[str, dict[str, float]]:
        """Published name → mean, population standard deviation, number of clips counted and left out."""
        return {name: aggregate(getattr(self, field)) for field, name in NAMES.items()}


def aggregate(values: Iterable[float | None]) -> dict[str, float]:
    """Mean and population standard deviation over clips; None and NaN are left out and counted.

    Raises VadisError when nothing is left.
    """
    array = np.asarray([np.nan if value is None else value for value in values], np.float64)
    kept = array[np.isfinite(array)]
    if not len(kept):
        raise VadisError("no clip has a value: they are too short for this metric, or there are none.")
    return {"mean": float(kept.mean()), "std": float(kept.std()), "num_samples": len(kept),
            "left_out": len(array) - len(kept)}  # fmt: skip


def mbench_metrics(joints: Any, lengths: Any = None, *, fps: float, mode: Mode = "native", up: Up = "y",
                   floor: float | Literal["lowest", "robust"] = 0.0,
                   parts: BodyParts | Skeleton | None = None) -> MBench:  # fmt: skip
    """MBench's metrics of joint positions in metres.

    Args:
        joints: `(T, J, 3)`, a list of clips, or padded `(B, T, J, 3)` with `lengths`. All given joints are averaged.
        fps: frames per second of the positions; "compat" takes 20 only.
        mode: "compat" or "native", see the module; "compat" knows no `up` and no `floor`.
        up: the height axis.
        floor: its height in metres, or from each clip: "lowest" toe, or "robust", the 5th percentile of the lower toe.
        parts: root and toes, or the skeleton to find them in; None is SMPL's order.

    Raises ShapeError, VadisError (NaN with clip and frames, another rate in "compat") or SkeletonError.
    """
    clips = pack(joints, lengths, parts)
    if mode == "compat":
        if abs(fps - RATE) > 1e-3:
            raise VadisError(
                f"MBench's values are per frame at {RATE:g} frames/s; these clips have {fps:g}. Resample them "
                "(motion.resample(20)), or use mode='native', which does."
            )
        axis, level = 2, 0.0
    elif mode == "native":
        clips = resample(clips, fps, RATE)
        axis = up_axis(up)
        if isinstance(floor, str):
            if floor not in ("lowest", "robust"):
                raise VadisError(f"floor={floor!r}: give a height in metres, 'lowest' or 'robust'.")
            level = lowest_toe(clips, axis, 0.0 if floor == "lowest" else FLOOR_QUANTILE)
        else:
            level = float(floor)
    else:
        raise VadisError(f"mode={mode!r}: use compat (as published) or native (right axes and rate).")
    feet = watch_feet(clips, axis, level)
    dynamic, jitter = clips.mean_differences((1, 2))
    single = clips.lengths == 1
    sunk = clips.total((feet.height < -0.005).sum(1))
    return MBench(
        jitter=jitter,
        dynamic=dynamic,
        foot_floating=np.where(single, np.nan, feet.floating()),
        foot_sliding=np.where(single, np.nan, feet.sliding(ground_axes(axis))),
        ground_penetration=feet.penetration(),
        ground_share=sunk / (2 * clips.lengths),
        contact=feet.contact,
        mode=mode,
    )
