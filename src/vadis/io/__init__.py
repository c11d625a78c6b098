"""Reading and writing motion files; the suffix decides the format.

A new one is a module here and a line in READERS or WRITERS; another package adds one by an entry point `vadis.formats`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vadis.errors import FileError, VadisError
from vadis.motion import Motion
from vadis.plugins import Table, resolve

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
    ".png": "vadis.viewer.sheet:contact_sheet",
    ".html": "vadis.viewer.page:write_page",
    ".gif": "vadis.viewer.film:save_film",
    ".mp4": "vadis.viewer.film:save_film",
}
"""Suffix → function of a motion and a path. Pictures are named, not imported: they are drawn by a room above this one."""
PICTURES = (".png", ".html", ".gif", ".mp4")
"""Suffixes of files that are looked at, and can't be read again."""


@dataclass(frozen=True)
class Format:
    """A format of another package: what its entry point in the group `vadis.formats` names. The point's name is the suffix."""

    load: Callable[..., Motion] | None = None
    """Of a path and options."""
    save: Callable[..., Any] | None = None
    """Of a motion, a path and options."""


def _check_format(name: str, found: Any) -> None:
    if not isinstance(found, Format):
        raise FileError(f"{found!r:.60} is not a vadis.io.Format")


FORMATS = Table("vadis.formats", {}, _check_format)
"""Formats of other packages by suffix, without the dot."""


def suffixes(what: Literal["read", "write"]) -> tuple[str, ...]:
    """The suffixes that can be read or written, those of other packages included."""
    own = READERS if what == "read" else WRITERS
    side = "load" if what == "read" else "save"
    added = (f".{name}" for name, found in FORMATS.usable() if getattr(found, side) is not None)
    return (*own, *(suffix for suffix in added if suffix not in own))


def function_of(suffix: str, what: Literal["read", "write"]) -> Callable[..., Any] | None:
    """The reader or writer of a suffix; None where there is none. VadisError for a package's that can't be imported."""
    own = READERS if what == "read" else WRITERS
    if suffix in own:
        return resolve(own[suffix])
    found = FORMATS.get(suffix.removeprefix("."))
    return found and (found.load if what == "read" else found.save)


def _find(path: Path, what: Literal["read", "write"], options: dict[str, Any]) -> Callable[..., Any]:
    """The function for the suffix of `path`; FileError when there is none or it doesn't know one of the options."""
    suffix = path.suffix.lower()
    function = function_of(suffix, what)
    if function is None:
        known = ", ".join(suffixes(what))
        raise FileError(f"can't {what} {path.name}: the suffix {suffix!r} is unknown; use one of {known}.")
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
    reader = _find(path, "read", options)
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
    _find(path, "write", options)(motion, path, **options)
    return path
