"""One run at a time in an output folder.

The lock is a small file beside the folder (`.NAME.vadis-lock`), held with the operating system's own lock: it is free as
soon as its process ends, however it ends. The file says who holds it and is removed at the end.
"""

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vadis.errors import FileError

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_held = threading.local()


def beside(path: Path, what: str) -> Path:
    """A hidden name beside `path` that is ours alone: `.NAME.vadis-WHAT`. The same for the same path."""
    name = path.name
    if len(name.encode()) > 200:  # names end at 255 bytes
        name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return path.parent / f".{name}.vadis-{what}"


@contextmanager
def only_run(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the output folder `folder` while the block runs; inside the block it may be asked for again.

    With `wait` another run is waited for (for caches, which it fills for both of us). Raises FileError that says who
    holds it, when another run does, or when the lock can't be written there.
    """
    folder = Path(os.path.realpath(folder))
    mine: set[Path] = _held.__dict__.setdefault("folders", set())
    if folder in mine:
        yield
        return
    path = beside(folder, "lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := acquire(path)) is None and wait:
            time.sleep(0.2)
    except OSError as error:
        raise FileError(
            f"can't write beside {folder}: {error.strerror or error}. Choose a folder that you may write to."
        ) from error
    if descriptor is None:
        raise FileError(
            f"{folder} is being written by {_holder(path)}: wait until it has ended, or choose another folder."
        )
    mine.add(folder)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a signature
            _sign(descriptor)
        yield
    finally:
        mine.discard(folder)
        release(path, descriptor)


def acquire(path: Path) -> int | None:
    """Lock the file `path`, made when missing; a descriptor for `release`, None while another process or thread has it."""
    from filelock import lock_descriptor

    while True:
        # Never through a link: whoever may write here could let the signature land in a file of theirs or yours.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _locked(lock_descriptor, descriptor):
                os.close(descriptor)
                return None
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it while we opened it: the name is another file's now


def release(path: Path, descriptor: int) -> None:
    """Remove the lock file and give the lock back."""
    if os.name == "nt":  # an open file can't be removed there
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _locked(lock_descriptor: Any, descriptor: int) -> bool:
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno in _NO_LOCKS:  # some network disks have none; refusing to write there would help nobody
            return True
        raise


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
