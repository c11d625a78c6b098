"""Whether a motion, recorded or generated, gets to a place: direction, distance left, facing.

Places are (forward, left) in metres in the frame of the first pose of the motion.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.motion import Motion

Place = tuple[float, float]


class Arrival(NamedTuple):
    """How a motion ends with respect to a target."""

    direction_error: float
    """Radians between the way gone (start to end) and the way to the target; pi for a body that stays where it is."""
    distance_left: float
    """Metres over the floor from the body to the middle of the target at the end."""


def walks_to(motion: Motion, target: Place, least: float = 0.3) -> Arrival:
    """Judge a motion that should go to `target`.

    A body that gets less than `least` metres away from its start has no direction: its error is pi.
    Raises VadisError for a target at the start, or one that isn't two finite numbers.
    """
    goal = _place(target)
    if goal.norm() < 1e-6:
        raise VadisError("the target lies where the body starts: it has no direction. Give (forward, left) in metres.")
    gone = displacement(motion)
    left = float((goal - gone).norm())
    if gone.norm() < least:
        return Arrival(math.pi, left)
    cosine = float((gone @ goal) / (gone.norm() * goal.norm()))
    return Arrival(math.acos(max(-1.0, min(1.0, cosine))), left)


def facing(motion: Motion, target: Place) -> float:
    """Radians in [0, pi] between where the body faces at the end and the way to `target` from its place there."""
    way = _place(target) - displacement(motion)
    angle = float(motion.heading[-1] - motion.heading[0]) - math.atan2(float(way[1]), float(way[0]))
    return abs(math.remainder(angle, 2 * math.pi))


def displacement(motion: Motion) -> Tensor:
    """Way `(2,)` of the root from first to last frame, (forward, left) seen from the first pose, float64."""
    step = rotation.yaw(-motion.heading[0]) @ (motion.root[-1] - motion.root[0])
    return step[[2, 0]].double()


def _place(target: Place) -> Tensor:
    goal = torch.as_tensor(target, dtype=torch.float64)
    if goal.shape != (2,) or not torch.isfinite(goal).all():
        raise VadisError(f"a target is a place (forward, left) in metres, two finite numbers; got {target!r}.")
    return goal
