"""What a scene corpus holds, measured again on the motions as they are stored, and a sheet of pictures to look at."""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from vadis.data.corpus import Clip, Corpus
from vadis.data.scenes.judge import facing, walks_to
from vadis.data.scenes.layout import COLOURS, Thing
from vadis.data.scenes.render import Camera
from vadis.errors import MissingExtra, VadisError
from vadis.files import atomic_write
from vadis.images import load_image
from vadis.metrics.physical import ground_quality
from vadis.motion import Motion
from vadis.places import inside
from vadis.records import checked
from vadis.representations import representation

Rows = list[dict[str, Any]]
QUALITY = ("skate", "hover", "penetration", "acceleration", "jerk")


def scene_report(corpus: Corpus) -> dict[str, Any]:
    """Figures of a scene corpus by kind of task. Raises VadisError when it isn't one.

    Directions in degrees, distances in metres. `chance` is the share of clips whose target another room's target would
    match within 30 degrees: what a model reaches that takes no notice of the picture.
    """
    rep = representation(corpus.representation)
    rows: dict[str, Rows] = {}
    for clip in corpus:
        if "things" not in clip.extra:
            raise VadisError(f"{corpus.path} is not a scene corpus. Make one with `vadis data scenes`.")
        facts = scene_facts(corpus, clip)
        rows.setdefault(facts["task"], []).append(_measure(rep.decode(clip.features), facts))
    made = {kind: _summary(found) for kind, found in sorted(rows.items())}
    rejected = sum(corpus.about.get("rejected", {}).values())
    rooms = len(set(corpus.column("group")))
    return {
        "clips": len(corpus),
        "rooms": rooms,
        "rejected_share": rejected / (rooms + rejected),
        "collisions": sum(kind["collisions"] for kind in made.values()),
        "chance": _chance([row["direction"] for kind in ("walk", "around", "sit") for row in rows.get(kind, [])]),
        "kinds": made,
    }


class SceneFacts(TypedDict):
    """What is read of a clip's `extra` in a scene corpus."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # type: ignore[misc]
    task: str
    image: str
    colour: Literal[tuple(COLOURS)]  # type: ignore[valid-type]
    azimuth: float
    direction: float
    target: tuple[float, float]
    things: Annotated[list[Thing], Field(min_length=1, max_length=1000)]


def scene_facts(corpus: Corpus, clip: Clip) -> SceneFacts:
    """What a scene corpus says of a clip; raises FileError naming clip and field."""
    return checked(SceneFacts, clip.extra, f"{corpus.path / 'index.parquet'}, clip {clip.id!r:.60}, extra")


def _measure(motion: Motion, extra: SceneFacts) -> dict[str, float]:
    target = extra["target"]
    arrival = walks_to(motion, target)
    path = motion.root[:, [2, 0]].double().numpy()
    gaps = [thing.clearance(path) for thing in extra["things"] if math.dist(thing.place, target) > 1e-3]
    quality = ground_quality(motion.positions.numpy()[None], fps=motion.fps).mean()
    return {
        "direction": extra["direction"],
        "direction_error": math.degrees(arrival.direction_error),
        "end_distance": arrival.distance_left,
        "facing_error": math.degrees(facing(motion, target)),
        "clearance": min(gaps),
        "seconds": motion.seconds,
        **{name: quality[name] for name in QUALITY},
    }


def _summary(rows: Rows) -> dict[str, Any]:
    """Median and 95th percentile of every figure; of clearances the least and the median."""
    result: dict[str, Any] = {"clips": len(rows), "collisions": sum(row["clearance"] <= 0 for row in rows)}
    for name in ("direction_error", "end_distance", "facing_error", "seconds", *QUALITY):
        values = [row[name] for row in rows]
        result[name] = [round(float(np.percentile(values, share)), 4) for share in (50, 95)]
    gaps = [row["clearance"] for row in rows]
    return result | {"clearance": [round(min(gaps), 4), round(float(np.median(gaps)), 4)]}


def _chance(directions: list[float], within: float = math.radians(30)) -> float:
    """Share of pairs of directions that lie within an angle of each other."""
    if len(directions) < 2:
        return math.nan
    angles = torch.tensor(directions, dtype=torch.float64)
    apart = torch.remainder(angles[:, None] - angles + math.pi, 2 * math.pi) - math.pi
    near = (apart.abs() < within).sum() - len(angles)
    return float(near) / (len(angles) * (len(angles) - 1))


def scene_sheet(corpus: Corpus, path: str | Path, rooms: int = 8, columns: int = 4, scale: int = 2) -> Path:
    """Draw the first rooms of a scene corpus into one picture file, with the ways that the clips go and their instructions.

    Ways have the colours of their targets. Raises MissingExtra without pillow.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra("pictures need pillow: pip install 'vadis[scenes]'") from error
    rep, groups = representation(corpus.representation), Counter(corpus.column("group"))
    tiles = []
    for group in list(groups)[:rooms]:
        clips = list(corpus.subset(group=group))
        place = inside(corpus.path, scene_facts(corpus, clips[0])["image"], f"{corpus.path}, a clip's image")
        small = load_image(place)
        width, height = small.width * scale, small.height * scale
        tile = Image.new("RGB", (width, height + 14 * len(clips) + 6), "white")
        tile.paste(small.resize((width, height), Image.Resampling.LANCZOS))
        pen = ImageDraw.Draw(tile)
        for line, clip in enumerate(clips):
            facts = scene_facts(corpus, clip)
            colour = tuple(round(255 * v) for v in COLOURS[facts["colour"]])
            root = rep.decode(clip.features).root[::3]
            ground = np.stack([root[:, 2], root[:, 0], np.zeros(len(root))], axis=1)
            dots = Camera(azimuth=facts["azimuth"]).project(ground, width, height)
            for x, y in dots[np.isfinite(dots).all(1)]:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
            pen.text((4, height + 2 + 14 * line), clip.captions[0].text[: width // 6], fill=colour)
        tiles.append(tile)
    return _tiled(tiles, columns, Path(path))


def _tiled(tiles: list[Any], columns: int, path: Path) -> Path:
    from PIL import Image

    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    count = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * (width + 4), count * (height + 4)), "white")
    for k, tile in enumerate(tiles):
        sheet.paste(tile, (k % columns * (width + 4), k // columns * (height + 4)))
    with atomic_write(path) as temporary:
        sheet.save(temporary)
    return path
