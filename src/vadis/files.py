"""Writing without half-written results: work is done under a hidden name beside the target and renamed when it is whole.

    .NAME.vadis-lock       who is writing the folder NAME now (`vadis.locks`)
    .NAME.vadis-partial/   a folder in the making; with `work` what a later run goes on with
    .NAME.vadis-old/       the older folder while it is replaced, on systems that can't exchange two folders in one step
    .NAME.vadis-0/         a file in the making

All are gone after a run that ended well. What a killed run leaves is recognised by these names and by nobody holding the
lock, and removed or continued by the next run that writes the same target.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from vadis.errors import FileError, VadisError
from vadis.locks import acquire, beside, only_run, release

WORK = ".work"
"""Folder inside a folder in the making for what only a later run needs; it never gets into the result."""
_NUMPY = re.compile(r"\d+ requested and \d+ written|problem writing element \d+ to file")
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextmanager
def writing(path: str | Path, *places: Path) -> Iterator[None]:
    """Turn what a full, read-only or broken disk raises in the block into FileError that names `path`.

    `places` are where the block writes: any trouble of the system with a file there counts. Other errors pass through.
    """
    try:
        yield
    except VadisError:
        raise
    except Exception as error:
        why = _disk_problem(error, places or (Path(path),))
        if why is None:
            raise
        shown = Path(*(re.sub(r"^\.(.+)\.vadis-partial$", r"\1", part) for part in Path(path).parts))
        raise FileError(
            f"can't write {shown}: {why}. Free space, or choose a folder that you may write to; what was there is unharmed."
        ) from error


def _disk_problem(error: BaseException | None, places: tuple[Path, ...]) -> str | None:
    """What was wrong with the disk, in words; None when it is something else. Writers in C++ and Rust hide it in a chain."""
    name = error.filename if isinstance(error, OSError) else None
    if isinstance(name, str | os.PathLike) and any(Path(name).is_relative_to(place) for place in places):
        return getattr(error, "strerror", None) or str(error)
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, OSError):
            if error.filename is None and error.errno in _DISK:
                return error.strerror or str(error)
            if _NUMPY.fullmatch(str(error)):  # which gives no number of the system's
                return f"not all of an array could be written ({error}); the disk may be full"
        elif number := re.search(r"\(os error (\d+)\)", str(error)):  # Rust
            return os.strerror(int(number[1]))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same name; on a clean exit it replaces `path`, on an error it is removed.

    Raises FileError when the folder can't be made or written, or the disk is full.
    """
    path = Path(path)
    with writing(path, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _own_folder(path)
    made, mark = folder / path.name, folder / "lock"
    try:
        with writing(path, folder, path):
            yield made
            os.chmod(made, stat.S_IMODE(os.stat(mark).st_mode))  # as any new file; some writers make private ones
            os.replace(made, path)
    finally:
        for rest in folder.iterdir():
            if rest != mark:
                _remove(rest)
        release(mark, lock)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _own_folder(path: Path) -> tuple[Path, int]:
    """A hidden folder beside `path` that no other living writer has, emptied, and the descriptor of its lock."""
    for number in count():
        folder = beside(path, str(number))
        while True:
            folder.mkdir(exist_ok=True)
            try:
                lock = acquire(folder / "lock")
            except FileNotFoundError:  # its holder has just removed it
                continue
            break
        if lock is not None:
            for rest in folder.iterdir():  # of a writer that was killed
                if rest.name != "lock":
                    _remove(rest)
            return folder, lock
    raise AssertionError  # count() has no end


@contextmanager
def atomic_folder(path: str | Path, work: str | None = None, ours: str | None = None) -> Iterator[Path]:
    """Yield a work folder beside `path`; on a clean exit it takes the place of `path` (an older folder is replaced).

    The lock of `path` is held meanwhile (`vadis.locks.only_run`).

    Args:
        work: says what is being made. Then an error or a kill leaves the work folder, and the next call with the same text
            goes on in it; notes for that belong into its subfolder WORK. Any other work found there is removed.
        ours: name of a file that the folder must hold to be replaced, so that a mistyped path costs nobody their files.

    Raises FileError when another run writes there, `path` holds other files, it can't be written, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    with only_run(path):
        with writing(path, path.parent):
            recover(path)
            if ours and path.exists() and not (path / ours).exists() and (path.is_file() or any(path.iterdir())):
                raise FileError(
                    f"{path} exists and has no {ours}: name another folder, this one will not be overwritten."
                )
            folder = _work_folder(path, work)
        try:
            with writing(path, folder, path):
                yield folder
                _settle(folder)
                _remove(folder / WORK)
                _take_place(folder, path)
        except BaseException:
            if work is None:
                _remove(folder)
            raise


@contextmanager
def kept_work(path: str | Path, work: str) -> Iterator[Path]:
    """Yield a work folder beside the file `path` that is removed on a clean exit, and otherwise continued as by
    `atomic_folder`: for files that are made of many finished parts. The lock of `path` is held meanwhile.
    """
    path = Path(os.path.realpath(path))
    with only_run(path), writing(path, path.parent):
        folder = _work_folder(path, work)
        yield folder
        _remove(folder)


def _work_folder(path: Path, work: str | None) -> Path:
    """The folder in the making of `path`: that of the same work which was killed, else an empty one. Needs the lock."""
    folder = beside(path, "partial")
    title = folder / WORK / "title"
    if work is not None:
        work = hashlib.sha256(work.encode()).hexdigest()
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if title.read_text(encoding="utf-8") == work:
                return folder
    _remove(folder)
    folder.mkdir()
    if work is not None:
        title.parent.mkdir()
        title.write_text(work, encoding="utf-8")
    return folder


def apart(output: str | Path, *inputs: str | Path) -> None:
    """Raise FileError where writing `output` would change or swallow one of the files or folders that it is made from."""
    place = Path(output).resolve()
    for given in inputs:
        source = Path(given).resolve()
        if not source.exists():
            continue
        if place == source or (place.exists() and place.samefile(source)):
            raise FileError(f"{output} is what is read: name another place to write to, so that the original stays.")
        if source.is_dir() and place.is_relative_to(source):
            raise FileError(f"{output} lies in {given}, which is read: name a place outside it.")
        if place.is_dir() and source.is_relative_to(place):
            raise FileError(f"{output} holds {given}, which is read: name a place that doesn't.")


def free_folder(folder: str | Path, *ours: str) -> None:
    """Raise FileError where a folder holds something, and none of the files or folders `ours` by which it is known."""
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).exists() for name in ours):
        return
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise FileError(f"{folder} holds other files: name a new folder.")


def stamp(*paths: str | Path) -> list[list[str | int]]:
    """Name, size and time of files, of folders of all files below: says whether partial work still belongs to its inputs.

    Raises FileError for one that is missing.
    """
    found: list[list[str | int]] = []
    for path in map(Path, paths):
        for place in sorted(path.rglob("*")) if path.is_dir() else [path]:
            try:
                facts = place.stat()
            except OSError as error:
                raise FileError(f"can't read {place}: {error.strerror or error}.") from error
            if stat.S_ISREG(facts.st_mode):
                found.append([os.path.abspath(place), facts.st_size, facts.st_mtime_ns])
    return found


def recover(path: Path) -> None:
    """Put back the folder `path` that a killed run had moved aside, or remove what it had replaced. Needs the lock."""
    old = beside(path, "old")
    if old.exists() and not path.exists():
        os.replace(old, path)
    _remove(old)


def _settle(folder: Path) -> None:
    """Have everything in `folder` on the disk before it gets its name; so a disk that is full says so now, not later."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for root, _, names in os.walk(folder):
        for name in names:
            place = Path(root) / name
            if place.is_symlink():
                continue
            os.chmod(place, mode)  # as any new file; some writers make private ones
            with place.open("rb+") as file:
                os.fsync(file.fileno())


def _take_place(new: Path, path: Path) -> None:
    if not path.exists():
        os.replace(new, path)
    elif _exchange(new, path):
        _remove(new)  # which is the older one now
    else:
        old = beside(path, "old")
        os.replace(path, old)
        os.replace(new, path)
        _remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change names in one step; False where the system or its file system can't."""
    try:
        if sys.platform == "linux":
            call, here = ctypes.CDLL(None).renameat2, -100  # AT_FDCWD
            return call(here, os.fsencode(a), here, os.fsencode(b), ctypes.c_uint(2)) == 0  # RENAME_EXCHANGE
        if sys.platform == "darwin":
            return ctypes.CDLL(None).renamex_np(os.fsencode(a), os.fsencode(b), ctypes.c_uint(2)) == 0  # RENAME_SWAP
    except AttributeError:  # an old C library
        pass
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
