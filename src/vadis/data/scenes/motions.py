"""Walks to a place, put together from recorded pieces, and how to judge a motion that ought to get there.

A route is drawn first and the scene is laid out around it (`vadis.data.scenes.layout`): no path has to be stretched to fit a
goal, every step is as long as it was recorded. Only its direction is changed, by bending the path while the body walks.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vadis import rotation
from vadis.data import compose
from vadis.data.scenes.pieces import Course, Library, Piece, course
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.motion_editing import clean_feet

SEAM = 0.33
"""Metres at a seam (see `compose.join`) above which pieces don't fit together."""
WALK_FRAMES = (30, 100)
"""Frames of walking between setting off and stopping, fewest and most."""
STAND_FRAMES = 62
REST_FRAMES = 12
"""Frames that a body stands at the end of a route."""
TURN_RATE = 1.5
"""Radians a second that a walking body turns at most."""


@dataclass(frozen=True, eq=False)
class Route:
    """A motion that sets off at the origin facing +Z and ends standing."""

    motion: Motion
    turned: float
    """Radians that the path was bent, left positive."""
    pieces: tuple[Piece, ...]
    seams: tuple[float, ...]
    """Distance at each seam, metres."""

    def cleaned(self) -> "Route":
        """The same route with feet that don't slide; it ends a few centimetres elsewhere at most."""
        return replace(self, motion=clean_feet(self.motion, smooth=None).canonicalize())

    @property
    def path(self) -> Tensor:
        """Pelvis over the floor `(T, 2)`: forward, left, in metres."""
        return self.motion.root[:, [2, 0]]

    @property
    def end(self) -> tuple[float, float, float]:
        """Where the body stands at the end, (forward, left) in metres, and its heading in radians."""
        forward, left = self.path[-1].tolist()
        return forward, left, float(self.motion.heading[-1] - self.motion.heading[0])


class Arrival(NamedTuple):
    """How a motion ends with respect to a target."""

    direction_error: float
    """Radians between the way gone (start to end) and the way to the target; pi for a body that stays where it is."""
    distance_left: float
    """Metres over the floor from the body to the middle of the target at the end."""


def walks_to(motion: Motion, target: tuple[float, float], least: float = 0.3) -> Arrival:
    """Judge a motion that should go to `target`, (forward, left) in metres in the frame of its first pose.

    A body that gets less than `least` metres away from its start has no direction: its error is pi.
    Raises VadisError for a target at the start.
    """
    goal = torch.tensor([float(v) for v in target], dtype=torch.float64)
    if not torch.isfinite(goal).all() or goal.norm() < 1e-6:
        raise VadisError(f"the target {tuple(target)} must be a finite place away from the start, (forward, left).")
    gone = _gone(motion)
    left = float((goal - gone).norm())
    if gone.norm() < least:
        return Arrival(math.pi, left)
    cosine = float((gone @ goal) / (gone.norm() * goal.norm()))
    return Arrival(math.acos(max(-1.0, min(1.0, cosine))), left)


def facing(motion: Motion, target: tuple[float, float]) -> float:
    """Radians in [0, pi] between where the body faces at the end and the way to `target` from its place there."""
    way = torch.tensor([float(v) for v in target], dtype=torch.float64) - _gone(motion)
    angle = float(motion.heading[-1] - motion.heading[0]) - math.atan2(float(way[1]), float(way[0]))
    return abs(math.remainder(angle, 2 * math.pi))


def _gone(motion: Motion) -> Tensor:
    """Displacement (forward, left) of the root from first to last frame, seen from the first pose, float64."""
    step = rotation.yaw(-motion.heading[0]) @ (motion.root[-1] - motion.root[0])
    return step[[2, 0]].double()


class Walker:
    """Draws routes from a library of pieces."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def draw(self, rng: random.Random, angle: float, first: Piece, tries: int = 20) -> Route | None:
        """A route that sets off as `first` does and whose path turns by about `angle` radians, left positive.

        Its feet are not cleaned yet, see `Route.cleaned`. None when no pieces fitted together.
        """
        for _ in range(tries):
            made = self._assemble(rng, first)
            if made is None:
                continue
            motion, pieces, seams = made
            rate = turning(course(motion), motion.fps, angle, rng)
            if rate is None:
                continue
            motion = settled(compose.bend(motion, rate)).canonicalize()
            return Route(motion, angle, pieces, seams)
        return None

    def _assemble(self, rng: random.Random, first: Piece) -> tuple[Motion, tuple[Piece, ...], tuple[float, ...]] | None:
        """Setting off, walking for a while, slowing down to a stand."""
        middle, last = rng.choice(self.library.walks), rng.choice(self.library.stands)
        frames = rng.randint(*WALK_FRAMES)
        walk = compose.loop(middle.motion.retime(rng.uniform(0.9, 1.1)), frames)
        if walk is None:
            return None
        motion, _, setting_off = compose.join(first.motion, walk, search=1.2, blend=0.4)
        still = compose.hold(last.motion, STAND_FRAMES)
        motion, _, stopping = compose.join(slow_down(motion), still, search=1.0, blend=0.6)
        seams = (setting_off, stopping)
        return (motion, (first, middle, last), seams) if max(seams) <= SEAM else None


def slow_down(motion: Motion, frames: int = 20, speed: float = 0.45) -> Motion:
    """The motion with its last `frames` played ever slower, down to `speed` of the rate: how a walk comes to an end."""
    count = round(2 * frames / (1 + speed))
    u = torch.arange(count + 1) / count
    begin = motion.num_frames - 1 - frames
    where = torch.cat([torch.arange(begin), begin + frames * (u - (1 - speed) * u * u / 2) * 2 / (1 + speed)])
    low = where.floor().long().clamp(0, motion.num_frames - 2)
    weight = where - low
    root = torch.lerp(motion.root[low], motion.root[low + 1], weight[:, None])
    turned = rotation.slerp(motion.rotations[low], motion.rotations[low + 1], weight[:, None])
    return motion.replace(root=root, rotations=turned)


def settled(motion: Motion) -> Motion:
    """The motion up to a moment after it has come to rest."""
    moving = (course(motion).speed > 0.1).nonzero()[:, 0]
    return motion.crop(0, min(motion.num_frames, int(moving[-1]) + REST_FRAMES)) if len(moving) else motion


def turning(m: Course, fps: float, angle: float, rng: random.Random) -> Tensor | None:
    """Radians a second `(T,)` that turn a walk by `angle` soon after setting off; None where the walk is too short.

    A body turns while it walks only: turning on planted feet would twist them.
    """
    moving = ((m.speed - 0.25) / 0.5).clamp(0, 1)
    first = int((moving > 0.5).nonzero()[0]) if bool((moving > 0.5).any()) else 0
    width = max(0.7, abs(angle) / TURN_RATE * 1.4) * rng.uniform(1.0, 1.3)  # seconds
    t = (torch.arange(len(moving)) - first) / fps
    bump = moving * torch.sin((t / width).clamp(0, 1) * math.pi) ** 2
    total = float(bump.sum()) / fps
    if total < 0.2 or abs(angle) * float(bump.max()) / total > 1.6 * TURN_RATE:
        return None
    return angle * bump / total
