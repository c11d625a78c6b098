"""Reading and writing motion files; the suffix decides the format."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vadis.errors import FileError, VadisError
from vadis.motion import Motion

READERS = {
    ".bvh": "vadis.io.bvh:load_bvh",
    ".amc": "vadis.io.asf_amc:load_amc",
    ".asf": "vadis.io.asf_amc:load_asf",
    ".json": "vadis.io.deepmimic:load_deepmimic",
    ".npz": "vadis.io.amass:load_amass",
    ".npy": "vadis.io.npy:load_npy",
    ".glb": "vadis.io.gltf:load_glb",
}
WRITERS = {
    ".bvh": "vadis.io.bvh_writer:save_bvh",
    ".npz": "vadis.io.amass:save_amass",
    ".npy": "vadis.io.npy:save_npy",
    ".glb": "vadis.io.gltf_writer:save_glb",
}


def _find(table: dict[str, str], path: Path, what: str, options: dict[str, Any]) -> Callable[..., Any]:
    """The function for the suffix of `path`; FileError when there is none or it doesn't know one of the options."""
    suffix = path.suffix.lower()
    if suffix not in table:
        raise FileError(f"can't {what} {path.name}: the suffix {suffix!r} is unknown; use one of {', '.join(table)}.")
    module, name = table[suffix].split(":")
    function = getattr(import_module(module), name)
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return function
    known = [p for p in parameters if p not in ("path", "motion")]
    for option in options:
        if option not in known:
            raise FileError(f"{what} {suffix}: there is no option {option!r}; known are {', '.join(known)}.")
    return function


def load_motion(path: str | Path, **options: Any) -> Motion:
    """Read any supported motion file; options are those of the format's reader.

    Raises FileError for an unknown suffix or option, a missing or damaged file; every error names the file.
    """
    path = Path(path)
    reader = _find(READERS, path, "read", options)
    if not path.is_file():
        raise FileError(f"no file {path}: check the path.")
    try:
        motion = reader(path, **options)
    except VadisError as error:
        if path.name in str(error):
            raise
        raise type(error)(f"{path.name}: {error}") from error
    _check_rotations(motion, path)
    return motion


def _check_rotations(motion: Motion, path: Path) -> None:
    """Raise FileError unless every joint's matrix is a rotation, to a thousandth: whatever the format, it was read as one."""
    x, y, z = motion.rotations.permute(2, 3, 0, 1).contiguous()  # rows, each (3, T, J): plain sums beat small matrices
    wrong = ((x * x).sum(0) - 1).abs() + ((y * y).sum(0) - 1).abs() + (x * y).sum(0).abs() > 1e-3
    wrong |= (torch.linalg.cross(x, y, dim=0) - z).abs().amax(0) > 1e-3
    if wrong.any():
        frame, joint = wrong.nonzero()[0].tolist()
        raise FileError(
            f"{path.name}: frame {frame} has no rotation for {motion.skeleton.names[joint]} but a matrix that flattens, "
            "mirrors or shears: the file is damaged, or holds something else."
        )


def save_motion(motion: Motion, path: str | Path, **options: Any) -> Path:
    """Write a motion in the format of the suffix and return the path; options are those of the writer. Raises FileError."""
    path = Path(path)
    _find(WRITERS, path, "write", options)(motion, path, **options)
    return path
