"""Things on the floor of a room and the room they leave for a path.

Places are (forward, left) in metres seen from the first pose of the body, which stands at the origin.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (0.82, 0.10, 0.10), "green": (0.10, 0.62, 0.18), "blue": (0.12, 0.25, 0.85), "yellow": (0.95, 0.82, 0.10),
    "purple": (0.55, 0.15, 0.70), "orange": (0.98, 0.48, 0.05), "grey": (0.42, 0.42, 0.44),
}  # fmt: skip
"""Name → red, green, blue. Grey is for obstacles, the others for things to go to."""
BRIGHT = tuple(name for name in COLOURS if name != "grey")
SIZES = {
    "box": (0.25, 0.25), "block": (0.3, 0.21), "cylinder": (0.24, 0.45), "ball": (0.28, 0.28), "pillar": (0.14, 0.75),
}  # fmt: skip
"""Shape → least half width and half height in metres; rooms vary both a little."""
BODY = 0.3
"""Metres around the pelvis that a walk keeps free of things."""
_APART = 0.25
Path = NDArray[np.float64]


@dataclass(frozen=True)
class Thing:
    """Something that stands on the floor of a room."""

    shape: str
    colour: str
    forward: float
    left: float
    half_width: float
    half_height: float
    turned: float = 0.0
    """Radians about the vertical."""

    @property
    def name(self) -> str:
        return f"the {self.colour} {self.shape}"

    @property
    def place(self) -> tuple[float, float]:
        return self.forward, self.left

    @property
    def square(self) -> bool:
        """Whether its footprint is a square and not a circle."""
        return self.shape in ("box", "block")

    @property
    def radius(self) -> float:
        """Metres from its middle to the farthest point of its footprint."""
        return self.half_width * (math.sqrt(2) if self.square else 1.0)

    @property
    def direction(self) -> float:
        """Radians from straight ahead, left positive."""
        return math.atan2(self.left, self.forward)

    @property
    def distance(self) -> float:
        """Metres from the body's start to its middle."""
        return math.hypot(self.forward, self.left)

    def clearance(self, path: Path) -> float:
        """Least distance in metres between the points of a path `(T, 2)` and its footprint; 0 for a path through it."""
        away = path - np.array(self.place)
        if not self.square:
            return max(0.0, float(np.hypot(*away.T).min()) - self.half_width)
        c, s = math.cos(self.turned), math.sin(self.turned)
        own = away @ np.array([[c, -s], [s, c]])
        return float(np.hypot(*np.maximum(np.abs(own) - self.half_width, 0.0).T).min())

    def apart_from(self, other: "Thing") -> bool:
        return math.dist(self.place, other.place) >= self.radius + other.radius + _APART


def sized(rng: random.Random, shape: str) -> tuple[float, float]:
    """Half width and half height of a thing."""
    width, height = SIZES[shape]
    return width * rng.uniform(1.0, 1.2), height * rng.uniform(0.95, 1.15)


def ahead(
    rng: random.Random, end: tuple[float, float, float], shape: str, colour: str, gap: tuple[float, float] = (0.3, 0.5)
) -> Thing:
    """A thing before a body that stands at `end` (forward, left, heading), `gap` metres from pelvis to its near side."""
    half_width, half_height = sized(rng, shape)
    forward, left, heading = end
    angle = heading + rng.uniform(-0.12, 0.12)
    reach = rng.uniform(*gap) + half_width * (1.2 if shape in ("box", "block") else 1.0)
    place = (forward + reach * math.cos(angle), left + reach * math.sin(angle))
    return Thing(shape, colour, *place, half_width, half_height, angle + rng.uniform(-0.15, 0.15))


def seat(end: tuple[float, float, float], height: float, colour: str, back: float = 0.15) -> Thing:
    """A block of `height` metres under a body that sits at `end`; its middle is `back` metres behind the pelvis."""
    forward, left, heading = end
    place = (forward - back * math.cos(heading), left - back * math.sin(heading))
    return Thing("block", colour, *place, 0.24, height / 2, heading)


def between(rng: random.Random, target: Thing, shape: str) -> Thing:
    """A grey obstacle on the straight way to a target."""
    share = rng.uniform(0.4, 0.6)
    place = (target.forward * share, target.left * share)
    return Thing(shape, "grey", *place, *sized(rng, shape), target.direction + rng.uniform(-0.3, 0.3))


def somewhere(rng: random.Random, shape: str, colour: str, front: float, side: float) -> Thing:
    """A thing anywhere from beside the body to `front` metres ahead, at most `side` metres to either side."""
    half_width, half_height = sized(rng, shape)
    place = (rng.uniform(-0.5, front), rng.uniform(-side, side))
    return Thing(shape, colour, *place, half_width, half_height, rng.uniform(0, math.pi / 2))
