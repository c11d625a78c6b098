"""Films: the mannequin walking through a motion, as `.mp4` or `.gif`, drawn without a GPU or a display."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.body.mannequin import build_mannequin
from vadis.body.raster import Camera, render
from vadis.cancel import stop_if_cancelled
from vadis.errors import MissingExtra, VadisError
from vadis.files import atomic_write
from vadis.motion import Motion
from vadis.viewer.sheet import floor_height, on_smpl22

MAX_FRAMES = 9000
"""Five minutes at 30 frames per second."""
MAX_SIZE = 2160
_PAPER = (0.955, 0.958, 0.962)


def save_film(
    motion: Motion | Sequence[Motion],
    path: str | Path,
    *,
    fps: float | None = None,
    size: int = 480,
    angle: float = 35.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Film a motion, or several one after the other. The camera keeps its direction and follows the body.

    Args:
        motion: other skeletons than smpl22 are retargeted to it.
        path: `.mp4` or `.gif`.
        fps: of the film, at most that of the motion; by default 30 for `.mp4` and 15 for `.gif`, which are large.
        size: width and height in pixels, 64 to 2160.
        angle: view in degrees from straight in front (0) towards the body's left (90), relative to the first heading.
        progress: called with the frames drawn and all frames.

    Raises MissingExtra without imageio-ffmpeg (`.mp4`) or Pillow (`.gif`), VadisError for films above five minutes.
    """
    path = Path(path)
    motions = [on_smpl22(m) for m in ([motion] if isinstance(motion, Motion) else motion)]
    if not motions:
        raise VadisError("nothing to film: give at least one motion.")
    if not 64 <= size <= MAX_SIZE:
        raise VadisError(f"size={size}: a film has 64 to {MAX_SIZE} pixels a side.")
    wanted = (15.0 if path.suffix.lower() == ".gif" else 30.0) if fps is None else fps
    if not 1 <= wanted <= 120:
        raise VadisError(f"fps={wanted:g}: a film has 1 to 120 frames per second.")
    rate = min(wanted, min(m.fps for m in motions))
    motions = [m if m.fps == rate else m.resample(rate) for m in motions]
    count = sum(m.num_frames for m in motions)
    if count > MAX_FRAMES:
        raise VadisError(
            f"the film would have {count:,} frames; at most {MAX_FRAMES:,} are drawn. Cut it: motion[:900]."
        )
    size -= size % 2  # video needs even sides
    pictures = (picture for m in motions for picture in _pictures(m, size, angle))
    shown = _counted(pictures, count, progress)
    write = _gif if path.suffix.lower() == ".gif" else _mp4
    with atomic_write(path) as temporary:
        write(shown, temporary, rate, size)
    return path


def _pictures(motion: Motion, size: int, angle: float) -> Iterator[NDArray[np.uint8]]:
    body = build_mannequin(motion.skeleton)
    floor, yaw = floor_height(motion, body), float(motion.heading[0]) + np.radians(angle)
    tall = max(float(motion.positions[..., 1].max()) + 0.25 - floor, 1.9)
    distance = tall * 1.9
    toward = np.array([np.sin(yaw), 0.0, np.cos(yaw)])
    path = motion.root.numpy().astype(np.float64)
    window = max(1, round(motion.fps / 2)) | 1
    padded = np.pad(path, ((window // 2, window // 2), (0, 0)), "edge")
    calm = np.stack([np.convolve(padded[:, k], np.ones(window) / window, "valid") for k in range(3)], 1)
    for frame in range(motion.num_frames):
        stop_if_cancelled()
        vertices, normals = body.pose(motion, [frame])
        target = np.array([calm[frame, 0], floor + tall * 0.46, calm[frame, 2]])
        eye = target + toward * distance + np.array([0.0, distance * 0.16, 0.0])
        camera = Camera((eye[0], eye[1], eye[2]), (target[0], target[1], target[2]), 34.0)
        ground = _ground(camera, size, floor)
        yield render(
            vertices[0], normals[0], body.faces, body.colors, camera, size, size, floor=floor, background=ground
        )


def _ground(camera: Camera, size: int, floor: float) -> NDArray[np.float32]:
    """The floor as the camera sees it `(size, size, 3)`, a line every half metre, so that one sees the body travel."""
    reach = np.tan(np.radians(camera.fov) / 2)
    across = (np.arange(size) + 0.5) / size * 2 - 1
    right, up, back = camera.axes()
    rays = across[None, :, None] * reach * right - across[:, None, None] * reach * up - back
    distance = (floor - camera.position[1]) / np.minimum(rays[..., 1], -1e-4)
    x, z = (camera.position[k] + distance * rays[..., k] for k in (0, 2))
    width = np.maximum(distance * 2 * reach / size, 0.004)  # metres that a pixel covers
    lines = [np.clip(1.5 - np.abs((v / 0.5 + 0.5) % 1 - 0.5) * 0.5 / width, 0, 1) for v in (x, z)]
    strength = 0.12 * np.maximum(*lines) * np.clip(1.6 - distance / 9.0, 0, 1) * (rays[..., 1] < 0)
    return (np.asarray(_PAPER) * (1 - strength[..., None])).astype(np.float32)


def _counted(
    pictures: Iterator[NDArray[np.uint8]], count: int, progress: Callable[[int, int], None] | None
) -> Iterator[NDArray[np.uint8]]:
    for number, picture in enumerate(pictures, 1):
        yield picture
        if progress:
            progress(number, count)


def _mp4(pictures: Iterator[NDArray[np.uint8]], path: Path, fps: float, size: int) -> None:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingExtra("films need imageio-ffmpeg: pip install 'vadis[export]'") from error
    options = ["-f", "mp4", "-movflags", "+faststart"]  # the name of a file in the making says no format
    writer: Any = imageio_ffmpeg.write_frames(
        str(path), (size, size), fps=fps, quality=5, macro_block_size=2, output_params=options, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
    finally:
        writer.close()


def _gif(pictures: Iterator[NDArray[np.uint8]], path: Path, fps: float, size: int) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("films need Pillow: pip install 'vadis[export]'") from error
    first = Image.fromarray(next(pictures))
    palette = first.quantize(128)
    rest = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    # A GIF counts in hundredths of a second, and browsers slow down what is shown for less than two.
    ends = [round(100 * (k + 1) / fps) for k in range(len(rest) + 1)]
    spans = [10 * max(2, b - a) for a, b in zip([0, *ends], ends, strict=False)]
    palette.save(path, "GIF", save_all=True, append_images=rest, duration=spans, loop=0, optimize=False)
