"""Where a file may point: names and links that stay in their folder, and the few other places that a file may name."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from vadis.errors import ModelError

MAX_ENTRIES = 100_000
"""Files and folders that a model folder may hold."""


def relative_name(name: str) -> str:
    """A relative name that stays in its folder; raises ModelError for any other."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts):
        raise ModelError(
            f"the name {name!r} leads out of the model's folder: the folder is damaged or hostile, don't use it."
        )
    return name


def check_links(folder: Path, only: Path | None = None) -> None:
    """Raise ModelError where a symbolic link in a folder, or `only` that one file in it, leads out of it.

    The folder itself may be a link. In a snapshot of the Hub's cache links lead to the files of the same model.
    """
    root = folder.resolve()
    homes = [root, *_blobs(root)]
    left = MAX_ENTRIES
    waiting = [root] if only is None else []
    if only is not None:
        _check_link(only, homes)
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    raise ModelError(f"{folder} holds more than {MAX_ENTRIES:,} files: it is no folder of a model.")
                link, inner = entry.is_symlink(), entry.is_dir()
                if link or inner:  # Windows' junctions are folders that say nothing of being links
                    _check_link(Path(entry.path), homes)
                if inner and not link:
                    waiting.append(Path(entry.path))


def _check_link(path: Path, homes: list[Path]) -> None:
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # a loop
        raise ModelError(f"{path} is a link that can't be followed ({error}): don't use this folder.") from error
    if not any(real.is_relative_to(home) for home in homes):
        raise ModelError(
            f"{path} is a link that leads out of its folder, to {real}: put the file itself there, or don't use this folder."
        )


def _blobs(root: Path) -> list[Path]:
    """Where the files of a snapshot in the Hub's cache are: …/models--owner--name/snapshots/COMMIT[/…] → …/blobs."""
    for inner, outer in zip((root, *root.parents), root.parents, strict=False):
        if outer.name == "snapshots" and outer.parent.name.startswith("models--") and re.fullmatch(_COMMIT, inner.name):
            return [outer.parent / "blobs"]
    return []


_COMMIT = r"[0-9a-f]{40}"
