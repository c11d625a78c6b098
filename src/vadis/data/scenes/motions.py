"""Motions in a room, put together from recorded pieces: walking to a place, around something, turning, sitting down.

A motion is drawn first and the room is laid out around it (`vadis.data.scenes.rooms`): no path has to be stretched to fit a
goal, every step is as long as it was recorded. Only directions are changed, by bending the path while the body moves.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from vadis.data import compose
from vadis.data.scenes.pieces import Library, Piece, course
from vadis.data.scenes.shaping import append, settled, sit_down, slow_down, turning
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.motion_editing import clean_feet

SEAM = 0.33
"""Metres at a seam (see `compose.join`) above which pieces don't fit together."""
WALK_FRAMES = (30, 100)
"""Frames of walking between setting off and stopping, fewest and most."""
SEAT = (0.50, 0.58)
"""Metres of the pelvis over the floor when a body sits, least and most."""
SEAT_TO_PELVIS = 0.1
"""Metres from a seat to the pelvis joint of a body that sits on it."""
_STAND_FRAMES = 62  # what a cross-fade needs


@dataclass(frozen=True, eq=False)
class Route:
    """A motion that begins at the origin facing +Z and ends standing or sitting."""

    kind: str
    """walk, around, turn or sit."""
    motion: Motion
    pieces: tuple[Piece, ...]
    seams: tuple[float, ...]
    """Distance at each seam, metres."""
    arrived: int
    """Frame from which the body is at its place: before it only walks, after it sits down."""

    def cleaned(self) -> "Route":
        """The same with feet that don't slide; it ends a few centimetres elsewhere at most."""
        return replace(self, motion=clean_feet(self.motion, smooth=None).canonicalize())

    @property
    def path(self) -> Tensor:
        """Pelvis over the floor until it arrives `(T, 2)`: forward, left, in metres."""
        return self.motion.root[: self.arrived, [2, 0]]

    @property
    def end(self) -> tuple[float, float, float]:
        """Where the body is at the end, (forward, left) in metres, and its heading in radians."""
        forward, left = self.motion.root[-1, [2, 0]].tolist()
        return forward, left, float(self.motion.heading[-1] - self.motion.heading[0])


class Walker:
    """Draws routes from a library of pieces; everything random comes from the given generator."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._routes: dict[str, Callable[[random.Random, float, Piece], Route | None]] = {
            "walk": self._walk, "around": self._around, "turn": self._turn, "sit": self._sit,
        }  # fmt: skip

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of routes that the library has pieces for."""
        lib = self.library
        have = {
            "walk": True,
            "around": True,
            "turn": bool(lib.turns),
            "sit": bool(lib.squats and (lib.returns or lib.turns)),
        }
        return tuple(kind for kind, there in have.items() if there)

    def draw(self, kind: str, rng: random.Random, most_turn: float, first: Piece, tries: int = 12) -> Route | None:
        """A route that begins as `first` does and whose path bends by up to `most_turn` radians to either side.

        Its feet are not cleaned yet, see `Route.cleaned`. None when no pieces fitted together. Raises VadisError for a
        kind that the library has no pieces for.
        """
        if kind not in self.kinds:
            raise VadisError(f"no route of the kind {kind!r} can be drawn here; there are: {', '.join(self.kinds)}.")
        for _ in range(tries):
            try:
                route = self._routes[kind](rng, most_turn, first)
            except VadisError:  # parts too short to be joined: another draw will do
                continue
            if route is not None and max(route.seams) <= SEAM:
                return route
        return None

    def _walk(self, rng: random.Random, most_turn: float, first: Piece) -> Route | None:
        """Setting off, turning while walking, slowing down to a stand."""
        route = self._gait(rng, first, rng.randint(*WALK_FRAMES))
        if route is None:
            return None
        motion, pieces, seams = route
        angle = rng.uniform(-most_turn, most_turn)
        return self._stop(rng, "walk", motion, pieces, seams, [(0.0, angle)])

    def _around(self, rng: random.Random, most_turn: float, first: Piece) -> Route | None:
        """A walk that bows out to one side and comes back."""
        route = self._gait(rng, first, rng.randint(80, 130))
        if route is None:
            return None
        motion, pieces, seams = route
        side, out = rng.choice((-1, 1)), rng.uniform(0.6, 1.1)
        back = -out - rng.uniform(0.5, 1.1)
        return self._stop(
            rng, "around", motion, pieces, seams, [(0.0, side * out), (rng.uniform(0.35, 0.45), side * back)]
        )

    def _turn(self, rng: random.Random, most_turn: float, first: Piece) -> Route:
        """Standing, turning in place, standing."""
        before = compose.hold(first.motion.crop(0, 8), rng.randint(44, 60))
        motion, pieces, seams = self._pivot(rng, before, rng.uniform(0.45, 1.2))
        motion = settled(motion).canonicalize()
        return Route("turn", motion, (first, *pieces), seams, motion.num_frames)

    def _sit(self, rng: random.Random, most_turn: float, first: Piece) -> Route | None:
        """Walking up to a seat, turning the back to it, sitting down."""
        if self.library.returns and (rng.random() < 0.4 or not self.library.turns):  # turning around out of the walk
            route = self._gait(rng, first, rng.randint(*WALK_FRAMES))
            if route is None:
                return None
            motion, pieces, seams = route
            turned, last = rng.choice(self.library.returns), rng.choice(self.library.stands)
            motion, arriving = append(motion, turned.motion, 1.0, 0.4)
            motion, resting = append(motion, compose.hold(last.motion, _STAND_FRAMES), 0.5, 0.5)
            rate = turning(course(motion), motion.fps, [(0.0, rng.uniform(-most_turn, most_turn))], rng)
            if rate is None:
                return None
            motion = compose.bend(motion, rate)
            pieces, seams = (*pieces, turned, last), (*seams, arriving, resting)
        else:  # stopping beside it first
            walk = self._walk(rng, most_turn, first)
            if walk is None:
                return None
            motion, pivot, more = self._pivot(rng, walk.motion, rng.uniform(0.9, 1.25))
            pieces, seams = (*walk.pieces, *pivot), (*walk.seams, *more)
        motion = settled(motion)
        arrived = motion.num_frames
        squat = rng.choice(self.library.squats)
        motion, lowering = append(motion, sit_down(squat.motion, rng.uniform(*SEAT)), 0.4, 0.4)
        return Route(
            "sit", motion.canonicalize(), (*pieces, squat), (*seams, lowering), min(arrived, motion.num_frames)
        )

    def _pivot(
        self, rng: random.Random, before: Motion, share: float
    ) -> tuple[Motion, tuple[Piece, ...], tuple[float, ...]]:
        """Turn in place after `before` by `share` of what was recorded, then stand; the arms are those of standing."""
        piece, last = rng.choice(self.library.turns), rng.choice(self.library.stands)
        still = compose.hold(last.motion, max(_STAND_FRAMES, piece.motion.num_frames))
        middle = compose.borrow_arms(piece.motion, still.crop(0, piece.motion.num_frames), ("left", "right"))
        middle = compose.bend(middle, course(middle).turning * (share - 1))
        motion, entering = append(before, middle, 0.5, 0.3)
        motion, leaving = append(motion, still, 0.4, 0.4)
        return motion, (piece, last), (entering, leaving)

    def _gait(
        self, rng: random.Random, first: Piece, frames: int
    ) -> tuple[Motion, tuple[Piece, ...], tuple[float, ...]] | None:
        """Setting off as `first` does and walking straight ahead for about `frames` more frames."""
        middle = rng.choice(self.library.walks)
        walk = compose.loop(middle.motion.retime(rng.uniform(0.9, 1.1)), frames)
        if walk is None:
            return None
        motion, seam = append(first.motion, walk, 1.2, 0.4)
        return motion, (first, middle), (seam,)

    def _stop(
        self, rng: random.Random, kind: str, motion: Motion, pieces: tuple[Piece, ...], seams: tuple[float, ...],
        bends: list[tuple[float, float]],
    ) -> Route | None:  # fmt: skip
        """Slow a walk down to a stand, and bend its path."""
        last = rng.choice(self.library.stands)
        motion, seam = append(slow_down(motion), compose.hold(last.motion, _STAND_FRAMES), 1.0, 0.6)
        rate = turning(course(motion), motion.fps, bends, rng)
        if rate is None:
            return None
        motion = settled(compose.bend(motion, rate)).canonicalize()
        return Route(kind, motion, (*pieces, last), (*seams, seam), motion.num_frames)
