"""Slide, Float, Jitter, Dynamic and Penet: whether motions look physical, from joint positions alone.

The definitions and the table's scale are those of Motius' leaderboard, after the motion-quality part of MBench. In mode
"compat" values are per frame, so they compare at one frame rate only (30 in the published table), and the floor is the
lowest toe of the whole clip. Mode "native" puts every clip at 30 frames/s first, takes a floor that single frames don't
move, and reports metres and seconds. `ground_quality` measures the same questions without those definitions' blind spots.

Shapes: B clips, T frames, J joints.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vadis.errors import VadisError
from vadis.metrics.clips import UP_AXES, BodyParts, Clips, Up, pack, resample
from vadis.metrics.feet import lowest_toe, watch_feet
from vadis.skeleton import Skeleton

Mode = Literal["compat", "native"]
PerClip = NDArray[np.float64]
RATE = 30.0
"""Frames per second at which the thresholds of the published definitions are meant."""
FLOOR_QUANTILE = 0.05
"""The native floor: the height that the lower toe is below in this share of the frames."""


def up_axis(up: str) -> int:
    """Index of the height axis named "x", "y" or "z"; raises VadisError."""
    if up not in UP_AXES:
        raise VadisError(f"up={up!r}: name the axis that points up, x, y or z.")
    return UP_AXES[up]


def ground_axes(up: int) -> tuple[int, int]:
    """The two horizontal axes."""
    first, second = (axis for axis in range(3) if axis != up)
    return first, second


@dataclass(frozen=True, eq=False)
class Physical:
    """One value a clip `(B,)` of each metric; `mean` averages clips without weights, `table` scales as published.

    slide: horizontal movement of feet in contact. floating: share of frames with implausible feet, may exceed 1.
    jitter: mean length of the second differences of joints, in the world plus relative to the root. dynamic: the same of
    first differences; closest to real motion is best. penetration: mean depth of toes more than 5 mm under the floor.

    "compat": metres a frame (slide, dynamic), metres a frame² (jitter). "native": metres a second, metres a second².
    """

    slide: PerClip
    floating: PerClip
    jitter: PerClip
    dynamic: PerClip
    penetration: PerClip
    mode: Mode

    def mean(self) -> dict[str, float]:
        """Mean over clips of every metric."""
        return {f.name: float(getattr(self, f.name).mean()) for f in fields(self) if f.name != "mode"}

    def table(self) -> dict[str, float]:
        """Means by published name and scale: Slide, Jitter, Dynamic, Penet × 1000 (native: × 1), Float in percent."""
        scale = 1000.0 if self.mode == "compat" else 1.0
        mean = self.mean()
        return {"Slide": scale * mean["slide"], "Float": 100 * mean["floating"], "Jitter": scale * mean["jitter"],
                "Dynamic": scale * mean["dynamic"], "Penet": scale * mean["penetration"]}  # fmt: skip


def physical_metrics(joints: Any, lengths: Any = None, *, fps: float = RATE, mode: Mode = "compat",
                     parts: BodyParts | Skeleton | None = None, up: Up = "y") -> Physical:  # fmt: skip
    """Slide, Float, Jitter, Dynamic and Penet of clips of joint positions in metres.

    Args:
        joints: `(T, J, 3)`, a list of clips, or padded `(B, T, J, 3)` with `lengths`; T >= 4.
        fps: frames per second of the positions. "compat" takes 30 only: at other rates its numbers compare with nothing.
        mode: "compat" gives the published numbers, "native" those in metres and seconds; see the module.
        parts: root and toes, or the skeleton to find them in; None is SMPL's order.
        up: the height axis.

    Raises ShapeError, VadisError (NaN with clip and frames, another rate in "compat") or SkeletonError.
    """
    axis = up_axis(up)
    clips = pack(joints, lengths, parts, minimum=4)
    if mode == "compat":
        if abs(fps - RATE) > 1e-3:
            raise VadisError(
                f"the published definitions are per frame at {RATE:g} frames/s; these clips have {fps:g}. Resample them "
                "(motion.resample(30)), or use mode='native'."
            )
        floor = lowest_toe(clips, axis)
    elif mode == "native":
        clips = resample(clips, fps, RATE)
        floor = lowest_toe(clips, axis, FLOOR_QUANTILE)
    else:
        raise VadisError(f"mode={mode!r}: use compat (published numbers) or native (metres and seconds).")
    feet = watch_feet(clips, axis, floor)
    slide = feet.sliding(ground_axes(axis))
    dynamic, jitter = clips.mean_differences((1, 2))
    if mode == "native":
        slide, jitter, dynamic = RATE * slide, RATE**2 * jitter, RATE * dynamic
    return Physical(slide, feet.floating(), jitter, dynamic, feet.penetration(), mode)


SKATE_HEIGHT = 0.05
"""Metres above its own lowest standing height below which a toe's horizontal speed counts as skating."""
FLIGHT_HEIGHT = 0.10
"""Metres above the standing toe that the lowest joint must reach for nothing to carry the body."""
_FLIGHT_ACCELERATION = 4.0  # m/s²: a body that nothing carries falls with 9.81; half of it forgives noise


@dataclass(frozen=True, eq=False)
class GroundQuality:
    """What the published metrics don't see, one value a clip `(B,)`, in SI units.

    skate: m/s, horizontal toe speed weighted by `2 - 2^(h / 5 cm)` while a toe is within 5 cm of the floor (Zhang et al.,
        2018), over those frames. hover: metres of air under the lower toe in its lowest twentieth of frames; negative is
        sunk. penetration: deepest toe under the floor, metres. unsupported: share of frames with every joint more than
        10 cm up while the body doesn't fall as a free one would. contact: share of frames with a toe within 5 cm.
    acceleration: m/s², jerk: m/s³, mean over joints of the lengths of second and third differences.
    """

    skate: PerClip
    hover: PerClip
    penetration: PerClip
    unsupported: PerClip
    contact: PerClip
    acceleration: PerClip
    jerk: PerClip

    def mean(self) -> dict[str, float]:
        """Mean over clips of every metric."""
        return {f.name: float(getattr(self, f.name).mean()) for f in fields(self)}


def ground_quality(joints: Any, lengths: Any = None, *, fps: float, floor: float = 0.0, toe: float = 0.0,
                   parts: BodyParts | Skeleton | None = None, up: Up = "y") -> GroundQuality:  # fmt: skip
    """Skating, hovering, sinking, unsupported frames, acceleration and jerk of clips in metres; T >= 4.

    Args:
        joints: as for `physical_metrics`.
        fps: frames per second; the clips are put at 30 first.
        floor: height of the floor, the same for all clips: a hover can't be seen against a floor taken from the clip.
        toe: height of a toe joint above the floor in standing, metres.
    """
    axis = up_axis(up)
    clips = resample(pack(joints, lengths, parts, minimum=4), fps, RATE)
    feet = watch_feet(clips, axis, floor + toe)
    first, second = ground_axes(axis)
    speed = RATE * np.hypot(feet.step[..., first], feet.step[..., second])
    near = feet.height < SKATE_HEIGHT
    weight = np.where(near, np.clip(2 - 2.0 ** (feet.height / SKATE_HEIGHT), 0, 1), 0)
    low = feet.height.min(1)
    above = clips.joints[..., axis].min(1) - (floor + toe)
    deepest = np.minimum.reduceat(low, clips.starts).astype(np.float64)
    acceleration, jerk = clips.mean_differences((2, 3), local=False)
    return GroundQuality(
        skate=clips.total((speed * weight).sum(1)) / np.maximum(clips.total(near.sum(1)), 1),
        hover=lowest_toe(clips, axis, FLOOR_QUANTILE) - floor - toe,
        penetration=np.maximum(-deepest, 0.0),
        unsupported=clips.total((above > FLIGHT_HEIGHT) & ~_falling(clips, axis)) / clips.lengths,
        contact=clips.total(near.any(1)) / clips.lengths,
        acceleration=RATE**2 * acceleration,
        jerk=RATE**3 * jerk,
    )


def _falling(clips: Clips, up: int) -> NDArray[np.bool_]:
    """Frames in which the mean of the joints accelerates downwards like a body in free flight."""
    height = clips.joints[..., up].mean(1, dtype=np.float64)
    acceleration = np.zeros(len(height))
    if len(height) > 2:
        acceleration[1:-1] = RATE**2 * (height[2:] - 2 * height[1:-1] + height[:-2])
    edges = np.concatenate([clips.starts, clips.starts + clips.lengths - 1])
    inner = np.concatenate([clips.starts + 1, clips.starts + clips.lengths - 2])
    acceleration[edges] = acceleration[inner]
    return acceleration < -_FLIGHT_ACCELERATION
