"""Reading and writing motion files; the suffix decides the format."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from vadis.errors import FileError
from vadis.motion import Motion

READERS = {
    ".bvh": "vadis.io.bvh:load_bvh",
    ".amc": "vadis.io.asf_amc:load_amc",
    ".asf": "vadis.io.asf_amc:load_asf",
    ".json": "vadis.io.deepmimic:load_deepmimic",
    ".npz": "vadis.io.amass:load_amass",
    ".npy": "vadis.io.npy:load_npy",
}
WRITERS = {
    ".bvh": "vadis.io.bvh_writer:save_bvh",
    ".npz": "vadis.io.amass:save_amass",
    ".npy": "vadis.io.npy:save_npy",
    ".glb": "vadis.io.gltf:save_glb",
}


def _find(table: dict[str, str], path: Path, what: str) -> Callable[..., Any]:
    suffix = path.suffix.lower()
    if suffix not in table:
        raise FileError(f"can't {what} {path.name}: the suffix {suffix!r} is unknown; use one of {', '.join(table)}.")
    module, name = table[suffix].split(":")
    return getattr(import_module(module), name)


def load_motion(path: str | Path, **options: Any) -> Motion:
    """Read any supported motion file; options are those of the format's reader. Raises FileError."""
    path = Path(path)
    reader = _find(READERS, path, "read")
    if not path.is_file():
        raise FileError(f"no file {path}.")
    return reader(path, **options)


def save_motion(motion: Motion, path: str | Path, **options: Any) -> Path:
    """Write a motion in the format of the suffix; options are those of the writer. Raises FileError."""
    path = Path(path)
    _find(WRITERS, path, "write")(motion, path, **options)
    return path
