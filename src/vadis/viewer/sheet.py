"""Contact sheets: a motion on one picture, poses of the mannequin from left to right and the path seen from above."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vadis.body.mannequin import Mannequin, build_mannequin
from vadis.body.raster import Camera, render
from vadis.body.surface import Array, vec
from vadis.errors import MissingExtra, VadisError
from vadis.files import atomic_write
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES

_PAPER = (0.955, 0.958, 0.962)
_INK, _FAINT = "#2b2f36", "#8a9099"
_GAP = 0.10  # metres of air between two figures


def contact_sheet(motion: Motion | Sequence[Motion], path: str | Path, title: str | Sequence[str] | None = None,
                  poses: int = 9, angle: float | None = None, width: int = 1800) -> Path:  # fmt: skip
    """Draw one or several motions as rows of poses over time, each with its root path from above, into a picture file.

    Args:
        motion: one motion or a list, a row each; other skeletons than smpl22 are retargeted to it.
        path: `.png` (or another suffix that matplotlib writes).
        title: one per motion; None takes captions from `motion.meta`.
        poses: at most this many figures a row, evenly spread over the motion; fewer when they would overlap.
        angle: view in degrees from straight in front (0) towards the body's left (90), relative to the heading of the
            first frame; None chooses by the movement: from its right, so that it walks to the right, when it travels, three-quarter otherwise.
        width: pixels of the picture.

    Raises MissingExtra without matplotlib, VadisError when there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("contact sheets need matplotlib: pip install 'vadis[export]'") from error
    motions = [on_smpl22(m) for m in ([motion] if isinstance(motion, Motion) else motion)]
    if not motions:
        raise VadisError("nothing to draw: give at least one motion.")
    titles = titles_of(motions, title)
    rows = [_row(m, poses, angle, int(width * 0.83)) for m in motions]
    strip = [0.40 + image.shape[0] / 100 for image, _ in rows]  # inches at 100 dots
    figure = Figure(figsize=(width / 100, sum(strip)), dpi=100, facecolor=_PAPER)
    y = sum(strip)
    for (image, picked), m, text, height in zip(rows, motions, titles, strip, strict=True):
        y -= height
        total = sum(strip)
        axes = figure.add_axes((0, y / total, 0.83, (height - 0.40) / total))
        axes.imshow(image, aspect="auto", interpolation="none")
        axes.axis("off")
        figure.text(0.012, (y + height - 0.20) / total, text, fontsize=12, color=_INK, va="center")
        note = f"{m.seconds:.1f} s · {m.fps:g} frames/s"
        figure.text(0.820, (y + height - 0.20) / total, note, fontsize=9, color=_FAINT, va="center", ha="right")
        side = min(0.155, (height - 0.55) / (width / 100) * 0.95)
        box = (0.915 - side / 2, (y + 0.28) / total, side, max(height - 0.66, 0.5) / total)
        _path(figure.add_axes(box), m, picked)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, facecolor=_PAPER)
    return Path(path)


def on_smpl22(motion: Motion) -> Motion:
    """The motion on smpl22 bones, ready for the mannequin."""
    if motion.skeleton.names == SMPL22_NAMES:
        return motion
    from vadis.retargeting import retarget

    return retarget(motion, "smpl22")


def titles_of(motions: Sequence[Motion], given: str | Sequence[str] | None) -> list[str]:
    """One line of text a motion: the given one, else its caption, its source file or its number."""
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        if len(names) != len(motions):
            raise VadisError(f"{len(names)} titles for {len(motions)} motions: give one for each.")
        return names
    keys = ("caption", "text", "prompt", "name", "source")
    found = [next((str(m.meta[k]) for k in keys if m.meta.get(k)), f"motion {i + 1}") for i, m in enumerate(motions)]
    return [" ".join(text.split())[:140] for text in found]


def floor_height(motion: Motion, body: Mannequin) -> float:
    """Where the floor lies for this motion: at height 0, or right below the lowest sole when that's far from 0."""
    thickness = float(motion.skeleton.rest_positions[:, 1].min()) - body.sole
    low = float(motion.positions[..., 1].min()) - thickness
    return low if abs(low + thickness) > 0.05 else -thickness


def _row(motion: Motion, poses: int, angle: float | None, width: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    body = build_mannequin(motion.skeleton)
    floor = floor_height(motion, body)
    if angle is None:
        travel = motion.root[-1] - motion.root[0]
        angle = -60.0 if float(torch.hypot(travel[0], travel[2])) > 0.8 else 35.0
    yaw = float(motion.heading[0]) + np.radians(angle)
    right = vec([np.cos(yaw), 0, -np.sin(yaw)])
    height = max(int(width / 5.4), 160)
    low, high = floor, float(motion.positions[..., 1].max()) + 0.22
    tall = max(high - low, 1.9)
    scale = height * 0.86 / tall  # pixels a metre
    for count in range(max(1, min(poses, motion.num_frames)), 0, -1):
        picked = np.unique(np.linspace(0, motion.num_frames - 1, count).round().astype(np.int64))
        vertices, normals = body.pose(motion, picked)
        across = vertices @ right
        spans = across.max(1) - across.min(1)
        if (spans.sum() + _GAP * (len(picked) + 1)) * scale * 1.04 <= width or count == 1:
            break
    free = (width / scale / 1.04 - spans.sum()) / (len(picked) + 1)
    edge = -width / scale / 1.04 / 2
    placed = []
    for k, pose in enumerate(vertices):
        edge += free
        centre = motion.positions[picked[k], 0].numpy() * vec([1, 0, 1])  # the figure stands where its slot is
        start = across[k].min() - centre @ right
        placed.append(pose - centre + right * (edge - start))
        edge += spans[k]
    points, shade = np.concatenate(placed), np.concatenate(normals)
    count = len(body.vertices)
    faces = np.concatenate([body.faces + k * count for k in range(len(placed))])
    colors = np.tile(body.colors, (len(placed), 1))
    toward = vec([np.sin(yaw), 0, np.cos(yaw)])
    fov = 6.0  # a long lens: figures at the edges are seen from the same side as those in the middle
    distance = height / scale / 2 / np.tan(np.radians(fov) / 2)
    target = vec([0, floor + tall * 0.47, 0])
    eye = target + toward * distance + vec([0, distance * 0.13, 0])
    image = render(points, shade, faces, colors, Camera(tuple(eye), tuple(target), fov), width, height, floor=floor,
                   background=_PAPER)  # fmt: skip
    return _label(image, motion, picked, placed, right, scale), picked


def _label(image: NDArray[np.uint8], motion: Motion, picked: NDArray[np.int64], placed: list[Array], right: Array,
           scale: float) -> NDArray[np.uint8]:  # fmt: skip
    """Times below the figures, drawn through matplotlib so that no second text renderer is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.figimage(image)
    for frame, pose in zip(picked, placed, strict=True):
        x = 0.5 + float((pose @ right).mean()) * scale / width
        figure.text(x, 0.018, f"{frame / motion.fps:.1f} s", fontsize=8, color=_FAINT, ha="center", va="bottom")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _path(axes, motion: Motion, picked: NDArray[np.int64]) -> None:
    """The root from above with +X to the left, as someone sees it who the body walks away from."""
    x, z = motion.root[:, 0].numpy(), motion.root[:, 2].numpy()
    reach = max(float(np.ptp(x)), float(np.ptp(z)), 1.0) * 0.68
    centre = ((x.max() + x.min()) / 2, (z.max() + z.min()) / 2)
    step = next(s for s in (0.5, 1, 2, 5, 10, 50, 1e9) if reach / s <= 2.5)
    grid = np.arange(np.ceil((min(centre) - 4 * reach) / step), np.floor((max(centre) + 4 * reach) / step) + 1) * step
    for g in grid[:200]:
        axes.axvline(g, color="#e1e4e8", lw=0.7, zorder=0)
        axes.axhline(g, color="#e1e4e8", lw=0.7, zorder=0)
    axes.plot(x, z, color="#9aa3ad", lw=1.2, zorder=1)
    time = picked / max(motion.num_frames - 1, 1)
    axes.scatter(x[picked], z[picked], c=time, cmap="viridis", s=16, zorder=3, vmin=0, vmax=1.1)
    heading = motion.heading[torch.as_tensor(picked)].numpy()
    axes.quiver(x[picked], z[picked], np.sin(heading), np.cos(heading), time, cmap="viridis", clim=(0, 1.1), zorder=2,
                angles="xy", scale_units="xy", scale=1 / (reach * 0.22), width=0.012, headwidth=4, headlength=4.5)  # fmt: skip
    axes.set_xlim(centre[0] + reach, centre[0] - reach)
    axes.set_ylim(centre[1] - reach, centre[1] + reach)
    axes.set_aspect("equal")
    axes.set_facecolor("#fbfbfc")
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_color("#d5d9de")
    axes.set_xlabel(f"from above, grid {step:g} m", fontsize=7.5, color=_FAINT, labelpad=4)
