"""Rooms: coloured things and grey obstacles on a floor, laid out around the walks that lead to them.

Places are (forward, left) in metres seen from the first pose of the body, which stands at the origin.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (0.82, 0.10, 0.10), "green": (0.10, 0.62, 0.18), "blue": (0.12, 0.25, 0.85), "yellow": (0.95, 0.82, 0.10),
    "purple": (0.55, 0.15, 0.70), "orange": (0.98, 0.48, 0.05),
}  # fmt: skip
SIZES = {  # half width, half height
    "box": (0.25, 0.25), "block": (0.3, 0.21), "cylinder": (0.24, 0.45), "ball": (0.28, 0.28), "pillar": (0.14, 0.75),
}  # fmt: skip
"""Shape → least half width and half height in metres; rooms vary both a little."""
OBSTACLE = (0.42, 0.42, 0.44)
BODY = 0.3
"""Metres around the pelvis that a walk keeps free of things."""
_APART = 0.25


@dataclass(frozen=True)
class Thing:
    """Something that stands on the floor of a room."""

    shape: str
    colour: str
    """Name of a colour, or "grey" for an obstacle."""
    forward: float
    left: float
    half_width: float
    half_height: float
    turned: float = 0.0
    """Radians about the vertical."""

    @property
    def place(self) -> tuple[float, float]:
        return self.forward, self.left

    @property
    def radius(self) -> float:
        """Metres from its middle to the farthest point of its footprint."""
        return self.half_width * (math.sqrt(2) if self.shape in ("box", "block") else 1.0)

    @property
    def direction(self) -> float:
        """Radians from straight ahead, left positive."""
        return math.atan2(self.left, self.forward)

    @property
    def distance(self) -> float:
        """Metres from the body's start to its middle."""
        return math.hypot(self.forward, self.left)

    def clear_of(self, path: NDArray[np.float64], margin: float = BODY) -> bool:
        """Whether no point of a path `(T, 2)` comes nearer than `margin` metres to its footprint."""
        return clearance(path, self) >= margin

    def apart_from(self, other: "Thing") -> bool:
        return math.dist(self.place, other.place) >= self.radius + other.radius + _APART


def clearance(path: NDArray[np.float64], thing: Thing) -> float:
    """Least distance in metres between the points of a path `(T, 2)` and the circle around a thing's footprint."""
    return float(np.hypot(path[:, 0] - thing.forward, path[:, 1] - thing.left).min()) - thing.radius


def sized(rng: random.Random, shape: str) -> tuple[float, float]:
    """Half width and half height of a thing."""
    width, height = SIZES[shape]
    return width * rng.uniform(1.0, 1.2), height * rng.uniform(0.95, 1.15)


def in_front(
    rng: random.Random, end: tuple[float, float, float], shape: str, colour: str, gap: tuple[float, float] = (0.3, 0.5)
) -> Thing:
    """A thing before a body that stands at `end` (forward, left, heading), `gap` metres from pelvis to its near side."""
    half_width, half_height = sized(rng, shape)
    forward, left, heading = end
    angle = heading + rng.uniform(-0.12, 0.12)
    thing = Thing(shape, colour, 0.0, 0.0, half_width, half_height)
    reach = thing.radius + rng.uniform(*gap)
    place = (forward + reach * math.cos(angle), left + reach * math.sin(angle))
    return Thing(shape, colour, *place, half_width, half_height, angle + rng.uniform(-0.15, 0.15))


def somewhere(rng: random.Random, shape: str, colour: str, limits: tuple[float, float, float]) -> Thing:
    """A thing anywhere within `limits`: least and most forward, most to either side."""
    half_width, half_height = sized(rng, shape)
    back, front, side = limits
    return Thing(
        shape, colour, rng.uniform(back, front), rng.uniform(-side, side), half_width, half_height, rng.uniform(0, 1.5)
    )
