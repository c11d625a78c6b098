"""Writing without half-written results: a temporary name beside the target, renamed when everything is on disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vadis.errors import FileError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it replaces `path`, on an error it is removed.

    The temporary name keeps the suffix of `path`, so writers that look at the suffix work unchanged.
    Raises FileError when the folder can't be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise FileError(
            f"can't write {path}: {error.strerror or error}. Choose a folder that you may write to."
        ) from error
    os.close(handle)
    os.chmod(name, 0o644)  # mkstemp makes private files; results are meant to be shared
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it takes the place of `path` (an older one is replaced)."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}-", dir=path.parent))
    except OSError as error:
        raise FileError(
            f"can't write {path}: {error.strerror or error}. Choose a folder that you may write to."
        ) from error
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        if path.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}-old-", dir=path.parent))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
