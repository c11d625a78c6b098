"""Rooms laid out around motions: the target of a walk is put where it ends, everything else where nobody walks."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vadis.data.scenes.judge import facing, walks_to
from vadis.data.scenes.layout import BODY, BRIGHT, SIZES, Thing, ahead, between, seat, somewhere
from vadis.data.scenes.motions import SEAT_TO_PELVIS, Route, Walker
from vadis.data.scenes.render import Camera, Look

_LAYOUTS = 40
_ROUTES = 6
_NEAR = 0.7
"""Metres from the start to the near side of a target, at least."""
_ASIDE = 0.25
"""Radians between the way to the end of a walk and the way to its target, or from a body's front to it, at most."""
_BEARING = math.radians(30)
"""Radians between the directions of the two targets of a room, at least."""
_SEAT_ROOM = 0.08
"""Metres that legs need before a seat."""


@dataclass(frozen=True, eq=False)
class Task:
    """What one clip of a room shows: a route, the thing it leads to, and the obstacle it goes around, if any."""

    route: Route
    target: Thing
    obstacle: Thing | None = None

    @property
    def kind(self) -> str:
        return self.route.kind

    @property
    def path(self) -> np.ndarray:
        return self.route.path.double().numpy()


@dataclass(frozen=True, eq=False)
class Room:
    """Things on a floor and the tasks that can be done there; `things` begins with the targets of the tasks."""

    tasks: tuple[Task, ...]
    things: tuple[Thing, ...]
    camera: Camera
    look: Look

    def clearance(self, task: Task) -> float:
        """Least distance in metres from the pelvis on its way to any thing but the target, none beyond the footprints."""
        return min(thing.clearance(task.path) for thing in self.things if thing is not task.target)


def plan_room(
    rng: random.Random, walker: Walker, kinds: Mapping[str, float], most_turn: float, azimuth: float
) -> Room | None:
    """Two motions and a room for both; None when no layout worked out.

    Args:
        kinds: weight of each kind of motion, see `Walker.kinds`.
        most_turn: radians that a walk is bent at most.
        azimuth: radians that the camera may stand to either side of the point behind the body.
    """
    camera, look = Camera(azimuth=rng.uniform(-1, 1) * azimuth), _look(rng)
    wanted = rng.choices(list(kinds), list(kinds.values()), k=2)
    if wanted == ["around", "around"]:
        wanted[0] = "walk"  # one obstacle to name is enough
    for _ in range(_LAYOUTS):
        tasks = _two_tasks(rng, walker, wanted, most_turn, look)
        if tasks is None:
            continue
        things = [task.target for task in tasks]
        things += [task.obstacle for task in tasks if task.obstacle]
        spare = [colour for colour in BRIGHT if colour not in {thing.colour for thing in things}]
        if rng.random() < 0.5:
            _place(rng, things, tasks, rng.choice(list(SIZES)), rng.choice(spare), look)
        named = {task.obstacle.shape for task in tasks if task.obstacle}
        shapes = [shape for shape in ("box", "cylinder") if shape not in named]
        for _ in range(rng.randint(0, 2) if shapes else 0):
            _place(rng, things, tasks, rng.choice(shapes), "grey", look)
        return Room(tasks, tuple(things), camera, look)
    return None


def _look(rng: random.Random) -> Look:
    def tint(low: float, high: float) -> tuple[float, float, float]:
        base = rng.uniform(low, high)
        return (base + rng.uniform(-0.05, 0.05), base, base + rng.uniform(-0.07, 0.03))

    return Look(tint(0.5, 0.8), tint(0.6, 0.9), rng.uniform(5.2, 7.0), rng.uniform(3.8, 5.0), rng.uniform(0.6, 0.9))


def _two_tasks(
    rng: random.Random, walker: Walker, kinds: Sequence[str], most_turn: float, look: Look
) -> tuple[Task, Task] | None:
    first = rng.choice(walker.library.starts)  # the picture shows one first pose
    shape = rng.choice(list(SIZES))
    shapes = (shape, shape if rng.random() < 0.6 else rng.choice(list(SIZES)))
    tasks: list[Task] = []
    for kind, shape, colour in zip(kinds, shapes, rng.sample(BRIGHT, 2), strict=True):
        for _ in range(_ROUTES):
            route = walker.draw(kind, rng, most_turn, first)
            task = route and _task(rng, route, shape, colour)
            if task and _possible(task, look) and all(_together(task, other) for other in tasks):
                tasks.append(task)
                break
        else:
            return None
    cleaned = tuple(replace(task, route=task.route.cleaned()) for task in tasks)
    return (cleaned[0], cleaned[1]) if all(_possible(task, look) for task in cleaned) and _together(*cleaned) else None


def _task(rng: random.Random, route: Route, shape: str, colour: str) -> Task:
    """Put the target where a route leads."""
    if route.kind == "sit":
        return Task(route, seat(route.end, float(route.motion.root[-1, 1]) - SEAT_TO_PELVIS, colour))
    if route.kind == "turn":
        return Task(route, ahead(rng, route.end, shape, colour, gap=(0.8, 3.2)))
    target = ahead(rng, route.end, shape, colour)
    return Task(
        route, target, between(rng, target, rng.choice(("box", "cylinder"))) if route.kind == "around" else None
    )


def _possible(task: Task, look: Look) -> bool:
    """Whether a task shows what its instruction says, inside the room and without anybody walking through things."""
    thing, path, motion = task.target, task.path, task.route.motion
    free = thing.radius + 0.3
    inside = -1.5 < thing.forward < look.front - free and abs(thing.left) < look.side - free
    if not inside or thing.distance - thing.radius < _NEAR:
        return False
    if task.kind == "turn":
        return facing(motion, thing.place) < _ASIDE
    if walks_to(motion, thing.place).direction_error > _ASIDE:
        return False
    if thing.clearance(path) < (_SEAT_ROOM if task.kind == "sit" else 0.15):
        return False
    other = task.obstacle
    return other is None or (other.clearance(path) >= BODY and other.apart_from(thing) and other.distance > 0.7)


def _together(one: Task, other: Task) -> bool:
    """Whether two tasks fit into one room: targets apart and in different directions, nothing in the other's way."""
    turned = abs(math.remainder(one.target.direction - other.target.direction, 2 * math.pi))
    mine, theirs = ([t for t in (task.target, task.obstacle) if t] for task in (one, other))
    return (
        turned > _BEARING
        and not (one.obstacle and other.obstacle)
        and all(a.apart_from(b) for a in mine for b in theirs)
        and all(a.clearance(other.path) >= BODY for a in mine)
        and all(b.clearance(one.path) >= BODY for b in theirs)
    )


def _place(
    rng: random.Random, things: list[Thing], tasks: tuple[Task, ...], shape: str, colour: str, look: Look
) -> None:
    """Add a thing that is in nobody's way, if a few tries find a place for it."""
    for _ in range(20):
        thing = somewhere(rng, shape, colour, look.front - 1, look.side - 1)
        if all(thing.clearance(task.path) >= BODY for task in tasks) and all(thing.apart_from(t) for t in things):
            things.append(thing)
            return
