"""A corpus of motions in rooms: for every clip a picture of the room, an instruction and the motion that follows it.

`vadis data scenes CORPUS OUT` draws motions from the pieces of a corpus, lays a room out around two of them, draws it once
and writes both as clips: the same picture with another instruction, and the same instruction in another room, ask for
another motion. The result is an ordinary corpus with a folder `images` beside the shards.
"""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.scenes.judge import facing, walks_to
from vadis.data.scenes.motions import Walker
from vadis.data.scenes.phrases import PHRASES, instructions
from vadis.data.scenes.pieces import Library
from vadis.data.scenes.render import SceneRenderer
from vadis.data.scenes.rooms import Room, Task, plan_room
from vadis.errors import MissingExtra, VadisError
from vadis.files import atomic_write, stamp
from vadis.representations import representation

KINDS = {"walk": 0.55, "around": 0.1, "turn": 0.15, "sit": 0.2}
"""Share of each kind of motion that is asked for; kinds that fit into few rooms come out rarer."""


@dataclass(frozen=True)
class SceneOptions:
    """How many rooms are made and how."""

    rooms: int = 750
    """Rooms; each gives two clips."""
    seed: int = 0
    """The same seed makes the same rooms."""
    width: int = 160
    """Of the pictures, in pixels."""
    height: int = 128
    """Of the pictures, in pixels."""
    captions: int = 6
    """Wordings of the instruction per clip."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(KINDS))
    """Weight of each kind of motion: walk, around, turn, sit."""
    val_share: float = 0.08
    """Share of the rooms in the split "val"."""
    test_share: float = 0.12
    """Share of the rooms in the split "test"."""
    most_turn: float = 2.0
    """Largest angle by which a walk is bent, in radians."""
    camera_azimuth: float = 0.0
    """Largest angle of the camera to either side of the point behind the body, in radians."""

    def __post_init__(self) -> None:
        if self.rooms < 1 or self.captions < 1:
            raise VadisError(f"a scene corpus needs rooms and captions; got {self.rooms} and {self.captions}.")
        if self.val_share < 0 or self.test_share < 0 or self.val_share + self.test_share >= 1:
            raise VadisError(
                f"val_share {self.val_share} and test_share {self.test_share} must be shares that leave training rooms."
            )
        unknown = sorted(set(self.kinds) - set(PHRASES))
        if unknown or not self.kinds or min(self.kinds.values()) < 0 or sum(self.kinds.values()) <= 0:
            raise VadisError(f"kinds={self.kinds}: give weights of {', '.join(PHRASES)}, at least one above zero.")
        if not (0 <= self.most_turn <= 3.2 and 0 <= self.camera_azimuth <= 3.2):
            raise VadisError(
                f"angles are 0 to 3.2 radians; got most_turn {self.most_turn}, camera_azimuth {self.camera_azimuth}."
            )


def build_scenes(corpus: Corpus, out: str | Path, options: SceneOptions | None = None, progress: bool = True) -> Corpus:
    """Write the scene corpus `out` from what was recorded in `corpus`.

    Deterministic in (corpus, options); interrupted work is resumed. Raises VadisError when the corpus lacks what
    the wanted kinds need or nothing can be drawn here, MissingExtra without mujoco or pillow.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    options = options or SceneOptions()
    rep = representation(corpus.representation)
    with SceneRenderer(options.width, options.height) as renderer:
        walker = Walker(Library(corpus))
        lacking = [k for k, weight in options.kinds.items() if weight > 0 and k not in walker.kinds]
        if lacking:
            raise VadisError(
                f"{corpus.path} has no recordings for {', '.join(lacking)}; leave them out: kinds of "
                f"{', '.join(walker.kinds)} can be made."
            )
        about = {"from": corpus.path.name, "scenes": asdict(options)}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            CorpusWriter(out, rep.name, rep.fps, about, resume=True, inputs=[stamp(corpus.path), corpus.ids]) as writer,
            Progress(*columns, disable=not progress, transient=True) as bar,
        ):
            (writer.folder / "images").mkdir(exist_ok=True)
            for number in bar.track(range(options.rooms), description="rooms"):
                name = f"room-{number:06d}"
                if name not in writer and f"{name}-1" not in writer:
                    _add_room(writer, name, walker, renderer, options)
    return Corpus.open(out)


def _add_room(writer: CorpusWriter, name: str, walker: Walker, renderer: SceneRenderer, options: SceneOptions) -> None:
    """Write the clips of one room, or say why there are none."""
    rng = random.Random(f"{options.seed}-{name}")
    room = plan_room(rng, walker, options.kinds, options.most_turn, options.camera_azimuth)
    if room is None:
        writer.reject(name, "no layout worked out")
        return
    picture = renderer.draw(room.things, room.tasks[0].route.motion, room.camera, room.look)
    named = len(room.tasks) + sum(task.obstacle is not None for task in room.tasks)
    if min(renderer.seen(named)) < options.width * options.height / 512:  # 40 pixels of 160 × 128
        writer.reject(name, "a thing that the instruction names is hidden or out of the picture")
        return
    _save(picture, writer.folder / "images" / f"{name}.png")
    draw = rng.random()
    split = "test" if draw < options.test_share else "val" if draw < options.test_share + options.val_share else "train"
    rep = representation(writer.representation)
    for k, task in enumerate(room.tasks):
        row = _row(room, task, rng, options)
        if f"{name}-{k}" not in writer:
            writer.add(
                f"{name}-{k}", rep.encode(task.route.motion), split=split, group=name, image=f"images/{name}.png", **row
            )


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("writing pictures needs pillow: pip install 'vadis[scenes]'") from error
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, optimize=True)


def _row(room: Room, task: Task, rng: random.Random, options: SceneOptions) -> dict[str, Any]:
    """Everything about a clip but its features, its picture and its room."""
    target, route = task.target, task.route
    texts = instructions(task.kind, target.name, task.obstacle.name if task.obstacle else "", rng, options.captions)
    arrival = walks_to(route.motion, target.place)
    measured = {
        "direction": target.direction,
        "distance": target.distance,
        "end_direction_error": arrival.direction_error,
        "end_distance": arrival.distance_left,
        "end_facing_error": facing(route.motion, target.place),
        "clearance": room.clearance(task),
        "azimuth": room.camera.azimuth,
    }
    return {
        "captions": [Caption(text, 0.0, route.motion.seconds) for text in texts],
        "source": "; ".join(sorted({piece.source for piece in route.pieces})),
        "licence": "; ".join(sorted({piece.licence for piece in route.pieces})),
        "task": task.kind,
        "colour": target.colour,
        "shape": target.shape,
        "target": [round(v, 4) for v in target.place],
        **{name: round(value, 4) for name, value in measured.items()},
        "seams": [round(s, 3) for s in route.seams],
        "pieces": [piece.clip for piece in route.pieces],
        "things": [{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(t).items()} for t in room.things],
        "seed": options.seed,
    }
