"""One run at a time in an output folder.

The lock is a small file beside the folder (`.NAME.lock`), held with the operating system's own lock: it is free as soon
as its process ends, however it ends. The file says who holds it and is removed at the end.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vadis.errors import FileError


@contextmanager
def only_run(folder: str | Path) -> Iterator[None]:
    """Hold the lock of the output folder `folder` while the block runs.

    Raises FileError that says who holds it, when another run does, or when the lock can't be written there.
    """
    from filelock import lock_descriptor, unlock_descriptor

    folder = Path(os.path.abspath(folder))
    path = folder.parent / f".{folder.name[:200]}.lock"
    while True:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise FileError(
                f"can't write beside {folder}: {error.strerror or error}. Choose a folder that you may write to."
            ) from error
        try:
            if not lock_descriptor(descriptor, blocking=False):
                raise FileError(
                    f"{folder} is being written by {_holder(path)}: wait until it has ended, or choose another folder."
                )
            if _is_still(path, descriptor):
                break
            unlock_descriptor(descriptor)  # its holder removed it while we opened it: the name is another file's now
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        _sign(descriptor)
        yield
    finally:
        if os.name == "nt":  # an open file can't be removed there
            unlock_descriptor(descriptor)
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            with contextlib.suppress(OSError):
                path.unlink()
            unlock_descriptor(descriptor)
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` names the file that is open as `descriptor`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    page = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
    }
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(page).encode())


def _holder(path: Path) -> str:
    """Who signed the lock at `path`."""
    try:
        page = json.loads(path.read_bytes()[:4096])
        return f"process {int(page['process'])} on {page['host']} since {page['since']} ({page['command'][:80]})"
    except (OSError, ValueError, KeyError, TypeError):  # not signed yet, or locked against reading (Windows)
        return "another run"
