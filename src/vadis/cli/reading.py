"""Motion files as the verbs read them: flags that a format has no use for are refused, and frame rates are never guessed."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadis.cli.common import check_input, check_number, say
from vadis.errors import FileError, VadisError

if TYPE_CHECKING:
    from vadis.motion import Motion

_FLAGS = {"unit": "--unit", "up": "--up", "representation": "--from", "source": "--source"}


def read_motion(
    path: str | Path, *, fps: float | None = None, strict_fps: bool = True, **options: Any
) -> "Motion":  # fmt: skip
    """A motion from any supported file.

    Args:
        path: the file.
        fps: frame rate to take, whatever the file says.
        strict_fps: a file that doesn't say its frame rate is an error; otherwise a warning.
        options: `unit`, `up`, `representation`, `source`; None means not given.

    Raises VadisError for a flag that the format has no use for, FileError for a file that can't be read.
    """
    from vadis.io import function_of, load_motion, suffixes

    path = check_input(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder: name one motion file, or convert all of its files with `vadis convert`.")
    if fps is not None:
        check_number("--fps", fps, 1, 1000, "frames/s")
    reader = function_of(path.suffix.lower(), "read")
    if reader is None:
        raise FileError(
            f"can't read {path.name}: its suffix must be one of {', '.join(suffixes('read'))}. `vadis info` may know more."
        )
    known = inspect.signature(reader).parameters
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            raise VadisError(f"{_FLAGS.get(name, name)} means nothing for {path.suffix} files; leave it out.")
    if fps is not None and "fps" in known:
        given["fps"] = fps
    motion = load_motion(path, **given)
    if fps is not None and "fps" not in known:
        motion = motion.replace(fps=fps)
    if fps is None and motion.meta.get("fps_assumed"):
        message = f"{path.name} doesn't say its frame rate ({motion.fps:g} is usual for {motion.meta.get('representation', 'such files')})"
        if strict_fps:
            raise VadisError(f"{message}; say it with --fps.")
        say(f"{message}; taking {motion.fps:g}. Use --fps to say another.")
    return motion


def on_model_skeleton(motion: "Motion", fps: float | None = None) -> "Motion":
    """The motion on the 22 joints and, with `fps`, at that rate; what was done is said on stderr."""
    from vadis.retargeting import retarget
    from vadis.skeleton import smpl22

    if not motion.skeleton.same_tree(smpl22()):
        say(f"retargeting {motion.skeleton} to the 22-joint skeleton")
        motion = retarget(motion, "smpl22")
    if fps is not None and abs(motion.fps - fps) > 1e-3 * fps:
        say(f"resampling {motion.fps:g} → {fps:g} frames/s")
        motion = motion.resample(fps)
    return motion
