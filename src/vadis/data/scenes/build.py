"""A corpus of motions in rooms: for every clip a picture of the room, an instruction and the motion that follows it.

`vadis data scenes CORPUS OUT` draws walks from the pieces of a corpus, lays a room out around two of them, draws it once and
writes both as clips: the same picture with another instruction, and the same instruction in another room, ask for another
motion. The result is an ordinary corpus with a folder `images` beside the shards.
"""

import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.scenes.layout import COLOURS, SIZES, Thing, clearance, in_front, somewhere
from vadis.data.scenes.motions import Route, Walker, facing, walks_to
from vadis.data.scenes.phrases import instructions
from vadis.data.scenes.pieces import Library
from vadis.data.scenes.render import Camera, Look, SceneRenderer
from vadis.errors import MissingExtra, VadisError
from vadis.files import atomic_write
from vadis.representations import representation

_TRIES = 40
_NEAR = 0.9
"""Metres from the start to the near side of a target, at least."""
_ASIDE = 0.25
"""Radians between the way to the end of a walk and the way to its target, at most."""
_BEARING = math.radians(30)
"""Radians between the directions of the two targets of a room, at least."""


@dataclass(frozen=True)
class SceneOptions:
    """How many rooms are made and how."""

    rooms: int = 750
    """Rooms; each gives two clips."""
    seed: int = 0
    width: int = 160
    """Pixels."""
    height: int = 128
    """Pixels."""
    captions: int = 6
    """Wordings of the instruction a clip."""
    val_share: float = 0.08
    """Share of the rooms in the split "val"."""
    test_share: float = 0.12
    """Share of the rooms in the split "test"."""
    most_turn: float = 2.0
    """Radians that a walk is bent at most."""
    camera_azimuth: float = 0.0
    """Radians that the camera may stand to either side of the point behind the body."""

    def __post_init__(self) -> None:
        if self.rooms < 1 or self.captions < 1:
            raise VadisError(f"a scene corpus needs rooms and captions; got {self.rooms} and {self.captions}.")
        if self.val_share < 0 or self.test_share < 0 or self.val_share + self.test_share >= 1:
            raise VadisError(
                f"val_share {self.val_share} and test_share {self.test_share} must be shares that leave training rooms."
            )


@dataclass(frozen=True, eq=False)
class Task:
    """What one clip of a room shows: a route and the thing it leads to."""

    kind: str
    route: Route
    target: Thing


@dataclass(frozen=True, eq=False)
class Room:
    """Things on a floor and the tasks that can be done there; `things` begins with the targets of the tasks."""

    number: int
    tasks: tuple[Task, ...]
    things: tuple[Thing, ...]
    camera: Camera
    look: Look

    @property
    def clearance(self) -> float:
        """Least distance in metres from any route to any thing that is not its target, radius included."""
        gaps = [
            clearance(task.route.path.double().numpy(), thing)
            for task in self.tasks
            for thing in self.things
            if thing is not task.target
        ]
        return min(gaps)


def plan_room(number: int, walker: Walker, options: SceneOptions) -> Room | None:
    """Routes and a layout for room `number`, the same for the same seed; None when `_TRIES` layouts failed."""
    rng = random.Random(f"{options.seed}-room-{number}")
    azimuth = rng.uniform(-1, 1) * options.camera_azimuth
    look = _look(rng)
    for _ in range(_TRIES):
        tasks = _two_tasks(rng, walker, options, look)
        if tasks is None:
            continue
        things = [task.target for task in tasks]
        taken = {thing.colour for thing in things}
        spare = [colour for colour in COLOURS if colour not in taken]
        for _ in range(rng.randint(0, 1)):
            _place(rng, things, tasks, rng.choice(list(SIZES)), rng.choice(spare), look)
        for _ in range(rng.randint(0, 2)):
            _place(rng, things, tasks, rng.choice(("box", "cylinder")), "grey", look)
        return Room(number, tasks, tuple(things), Camera(azimuth=azimuth), look)
    return None


def _look(rng: random.Random) -> Look:
    def tint(low: float, high: float) -> tuple[float, float, float]:
        base = rng.uniform(low, high)
        return (base + rng.uniform(-0.05, 0.05), base, base + rng.uniform(-0.07, 0.03))

    return Look(tint(0.5, 0.8), tint(0.6, 0.9), rng.uniform(5.2, 7.0), rng.uniform(3.8, 5.0), rng.uniform(0.6, 0.9))


def _two_tasks(rng: random.Random, walker: Walker, options: SceneOptions, look: Look) -> tuple[Task, ...] | None:
    shape = rng.choice(list(SIZES))
    shapes = (shape, shape if rng.random() < 0.6 else rng.choice(list(SIZES)))
    first = rng.choice(walker.library.starts)  # the picture shows one first pose
    tasks: list[Task] = []
    for shape, colour in zip(shapes, rng.sample(list(COLOURS), 2), strict=True):
        for _ in range(6):
            route = walker.draw(rng, rng.uniform(-options.most_turn, options.most_turn), first)
            if route is None:
                continue
            task = Task("walk", route, in_front(rng, route.end, shape, colour))
            straight = walks_to(route.motion, task.target.place).direction_error < _ASIDE
            if straight and _inside(task.target, look) and all(_together(task, other) for other in tasks):
                tasks.append(task)
                break
        else:
            return None
    return tuple(Task(task.kind, task.route.cleaned(), task.target) for task in tasks)


def _inside(thing: Thing, look: Look) -> bool:
    free = thing.radius + 0.3
    return (
        thing.distance - thing.radius > _NEAR
        and thing.forward < look.front - free
        and abs(thing.left) < look.side - free
    )


def _together(one: Task, other: Task) -> bool:
    """Whether two tasks fit into one room: their targets apart and in different directions, neither in the other's way."""
    between = abs(math.remainder(one.target.direction - other.target.direction, 2 * math.pi))
    return (
        between > _BEARING
        and one.target.apart_from(other.target)
        and one.target.clear_of(other.route.path.double().numpy())
        and other.target.clear_of(one.route.path.double().numpy())
    )


def _place(
    rng: random.Random, things: list[Thing], tasks: tuple[Task, ...], shape: str, colour: str, look: Look
) -> None:
    """Add a thing that is in nobody's way, if a few tries find a place for it."""
    for _ in range(20):
        thing = somewhere(rng, shape, colour, (-0.5, look.front - 1, look.side - 1))
        free = all(thing.clear_of(task.route.path.double().numpy()) for task in tasks)
        if free and all(thing.apart_from(other) for other in things):
            things.append(thing)
            return


def build_scenes(corpus: Corpus, out: str | Path, options: SceneOptions | None = None, progress: bool = True) -> Corpus:
    """Write the scene corpus `out` from walking recorded in `corpus`.

    Deterministic in (corpus, options); interrupted work is taken up again. Raises VadisError when the corpus has no
    walking or nothing can be drawn here, MissingExtra without mujoco or pillow.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("writing pictures needs pillow: pip install 'vadis[scenes]'") from error
    options = options or SceneOptions()
    rep = representation(corpus.representation)
    walker = Walker(Library(corpus))
    about = {"from": corpus.path.name, "scenes": asdict(options)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        SceneRenderer(options.width, options.height) as renderer,
        CorpusWriter(out, rep.name, rep.fps, about, resume=True) as writer,
        Progress(*columns, disable=not progress, transient=True) as bar,
    ):
        (writer.folder / "images").mkdir(exist_ok=True)
        for number in bar.track(range(options.rooms), description="rooms"):
            name = f"room-{number:06d}"
            if f"{name}-1" in writer or name in writer:
                continue
            room = plan_room(number, walker, options)
            if room is None:
                writer.reject(name, "no layout worked out")
                continue
            picture = renderer.draw(room.things, room.tasks[0].route.motion, room.camera, room.look)
            if min(renderer.seen(len(room.tasks))) < _least_pixels(options):
                writer.reject(name, "a target is hidden or out of the picture")
                continue
            with atomic_write(writer.folder / "images" / f"{name}.png") as temporary:
                Image.fromarray(picture).save(temporary, optimize=True)
            for k, task in enumerate(room.tasks):
                if f"{name}-{k}" not in writer:
                    writer.add(f"{name}-{k}", rep.encode(task.route.motion), **_row(room, task, options))
    return Corpus.open(out)


def _least_pixels(options: SceneOptions) -> int:
    """A target shows at least this many pixels: 40 in a picture of 160 × 128."""
    return round(options.width * options.height / 512)


def _split(number: int, options: SceneOptions) -> str:
    draw = random.Random(f"{options.seed}-split-{number}").random()
    if draw < options.test_share:
        return "test"
    return "val" if draw < options.test_share + options.val_share else "train"


def _row(room: Room, task: Task, options: SceneOptions) -> dict[str, Any]:
    """Everything about a clip but its features."""
    target, motion, pieces = task.target, task.route.motion, task.route.pieces
    rng = random.Random(f"{options.seed}-words-{room.number}-{target.colour}")
    texts = instructions(task.kind, target.colour, target.shape, rng, options.captions)
    arrival = walks_to(motion, target.place)
    return {
        "captions": [Caption(text, 0.0, motion.seconds) for text in texts],
        "split": _split(room.number, options),
        "group": f"room-{room.number:06d}",
        "source": "; ".join(sorted({piece.source for piece in pieces})),
        "licence": "; ".join(sorted({piece.licence for piece in pieces})),
        "image": f"images/room-{room.number:06d}.png",
        "task": task.kind,
        "colour": target.colour,
        "shape": target.shape,
        "target": [round(v, 4) for v in target.place],
        "direction": round(target.direction, 4),
        "distance": round(target.distance, 4),
        "end_direction_error": round(arrival.direction_error, 4),
        "end_distance": round(arrival.distance_left, 4),
        "end_facing_error": round(facing(motion, target.place), 4),
        "clearance": round(room.clearance, 4),
        "turned": round(task.route.turned, 4),
        "seams": [round(s, 3) for s in task.route.seams],
        "pieces": [piece.clip for piece in pieces],
        "things": [{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(t).items()} for t in room.things],
        "camera": asdict(room.camera),
        "seed": options.seed,
    }
