"""Where a file may point: names and links that stay in their folder, and the few other places that a file may name."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from vadis.errors import ModelError

MAX_NAME = 255
"""Characters of a name in a file; file systems take no more."""
MAX_ENTRIES = 100_000
"""Files and folders that a model folder may hold."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


# ---- names


def relative_name(name: str) -> str:
    """A relative name that stays in its folder; raises ModelError for any other."""
    if not stays_inside(name):
        raise ModelError(
            f"the name {name!r:.80} is none, or leads out of the model's folder: the folder is damaged or hostile, don't use it."
        )
    return name


def stays_inside(name: str) -> bool:
    """Whether a name is relative, not too long and never goes up, on any system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    up = ".." in (*posix.parts, *windows.parts)
    return 0 < len(name) <= MAX_NAME and not (posix.is_absolute() or windows.drive or windows.root or up)


@dataclass(frozen=True)
class HubName:
    """A model of the Hub that a file names and the user allows to fetch; never a folder, whatever lies where we are."""

    id: str
    revision: str | None = None
    """The commit that was fetched, or is to be."""

    def __str__(self) -> str:
        return self.id

    def entry(self) -> dict[str, str]:
        """As files say it."""
        return {"hub": self.id} | ({"revision": self.revision} if self.revision else {})


def named_in_file(
    name: object,
    where: str,
    *,
    known: Collection[str] = (),
    folder: Path | None = None,
    revision: object = None,
    allow_download: bool = False,
    otherwise: str = "",
) -> str | Path | HubName:
    """What a name in a file may stand for: one of the `known`, a folder inside `folder`, or a model of the Hub.

    Args:
        where: the file and its field, for messages.
        revision: the commit that the file says beside the name.
        allow_download: the user wants what the file names on the Hub.
        otherwise: what the user can do instead, for messages ("name the model with --model").

    Raises ModelError for anything else, above all for paths that lead out of the folder.
    """
    cure = f" {otherwise[:1].upper()}{otherwise[1:]}." if otherwise else ""
    if not isinstance(name, str):
        raise ModelError(f"{where} is {name!r:.60}; expected a name.")
    if name in known:
        return name
    if not stays_inside(name):
        raise ModelError(f"{where} is {name!r:.80}, which leads out of the folder: a file can't name that.{cure}")
    if folder is not None and (folder / name).is_dir():
        check_links(folder, only=folder / name)
        return folder / name
    if not HUB_ID.fullmatch(name):
        ours = f"one of {', '.join(sorted(known))} or " if known else ""
        raise ModelError(f"{where} is {name!r:.60}; expected {ours}a Hub id.{cure}")
    if revision is not None and not (isinstance(revision, str) and _COMMIT.fullmatch(revision)):
        raise ModelError(f"{where}: the revision is {revision!r:.60}; expected a commit of 40 hexadecimal digits.")
    if not allow_download:
        raise ModelError(
            f"{where} is {name} on the Hub, which a file can't have fetched by itself. If you trust it, say "
            f"allow_download=True{otherwise and ', or ' + otherwise}."
        )
    return HubName(name, revision)


def commit_of(path: str | Path) -> str | None:
    """The commit of a folder in a snapshot of the Hub's cache, None for other folders."""
    return next((p for p, outer in _parents(Path(path)) if outer == "snapshots" and _COMMIT.fullmatch(p)), None)


def _parents(path: Path) -> list[tuple[str, str]]:
    return list(zip(path.parts[:0:-1], path.parts[-2::-1], strict=True))


# ---- links


def inside(folder: Path, name: object, where: str) -> Path:
    """The path of a file that another file in `folder` names; raises ModelError where it leads out, also by a link."""
    if not isinstance(name, str) or not stays_inside(name):
        raise ModelError(f"{where} is {name!r:.80}; expected the name of a file in {folder}.")
    check_links(folder, only=folder / name)
    return folder / name


def check_links(folder: Path, only: Path | None = None) -> None:
    """Raise ModelError where a symbolic link in a folder, or `only` that one file in it, leads out of it.

    The folder itself may be a link. In a snapshot of the Hub's cache links lead to the files of the same model.
    """
    root = folder.resolve()
    if not root.is_dir():
        return
    homes = [root, *_blobs(root)]
    left = MAX_ENTRIES
    waiting = [root] if only is None else []
    if only is not None:
        _check_link(only, homes)
    while waiting:
        for entry in _entries(waiting.pop()):
            left -= 1
            if left < 0:
                raise ModelError(f"{folder} holds more than {MAX_ENTRIES:,} files: it is not a model folder.")
            link, inner = entry.is_symlink(), entry.is_dir(follow_symlinks=False)
            if link or inner:  # Windows' junctions are folders that say nothing of being links
                _check_link(Path(entry.path), homes)
            if inner:
                waiting.append(Path(entry.path))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ModelError(f"can't look into {folder}: {error.strerror or error}.") from error


def _check_link(path: Path, homes: list[Path]) -> None:
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # a loop
        raise ModelError(f"{path} is a link that can't be followed ({error}): don't use this folder.") from error
    if not any(real.is_relative_to(home) for home in homes):
        raise ModelError(
            f"{path} is a link that leads out of its folder: put the file itself there, or don't use this folder."
        )


def _blobs(root: Path) -> list[Path]:
    """Where the files of a snapshot in the Hub's cache are: …/models--owner--name/snapshots/COMMIT[/…] → …/blobs."""
    for inner, outer in zip((root, *root.parents), root.parents, strict=False):
        if outer.name == "snapshots" and outer.parent.name.startswith("models--") and _COMMIT.fullmatch(inner.name):
            return [outer.parent / "blobs"]
    return []
