"""Reading `.npy` and `.npz` files that others made: no pickles, and nothing is allocated that the file doesn't hold."""

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from vadis.errors import FileError

MAX_STATISTICS = 64 << 20
"""Bytes of a .npy file of statistics."""
_HINT = "Files with Python objects can run code and are refused: save plain arrays with numpy.save or numpy.savez."


def _read_header(file: IO[bytes], size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, type and count of the values of an array in a stream of `size` bytes."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if not all(type(n) is int for n in shape):  # True and False pass for numbers in NumPy's own check
            raise ValueError("a shape of something else than numbers")
        count = int(np.prod(shape, dtype=object)) if shape else 1
    except Exception as error:  # the header is a Python literal: a damaged one raises almost anything
        raise FileError(f"{name} is not a NumPy array, or its header is damaged.") from error
    if dtype.hasobject:
        raise FileError(f"{name} holds Python objects instead of numbers. {_HINT}")
    if dtype.kind not in "fiubUS" or dtype.itemsize == 0 or len(shape) > 8:
        raise FileError(f"{name} holds {dtype} values; expected numbers.")
    if count < 0 or count * dtype.itemsize > size or max(shape, default=0) >= 1 << 48:  # the last of nothing at all
        raise FileError(f"{name} promises {count} values but the file is too short: it is cut off.")
    return shape, fortran, dtype, count


def _read_array(file: IO[bytes], size: int, name: str) -> np.ndarray:
    """One array in `.npy` form from a stream that holds `size` bytes."""
    shape, fortran, dtype, count = _read_header(file, size, name)
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise FileError(f"{name} is cut off: {count} values promised, {len(data) // dtype.itemsize} found.")
    if dtype.kind == "U":  # NumPy would fail on a code point that there isn't, as late as when the text is used
        codes = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise FileError(f"{name} holds text with code points that are no characters.")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def read_npy(path: Path, max_bytes: int = 4 << 30) -> np.ndarray:
    """The array in an `.npy` file; FileError for a damaged or too large file or one with Python objects."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise FileError(f"{path.name} has {size} bytes, more than {max_bytes}: pass max_bytes if that is right.")
        with path.open("rb") as file:
            return _read_array(file, size, path.name)
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}.") from error


def map_npy(path: Path) -> np.ndarray:
    """The array in an `.npy` file, mapped instead of read; FileError as `read_npy`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            shape, fortran, dtype, count = _read_header(file, size, path.name)
            start = file.tell()
            if start + count * dtype.itemsize > size:
                raise FileError(f"{path.name} is cut off: it has {size - start} bytes for {count} values.")
            if not count:
                return np.zeros(shape, dtype)
            mapped = np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
            return np.asarray(mapped)  # a plain view: indexing objects of np.memmap costs more
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}.") from error


class Npz:
    """An `.npz` file whose arrays are read when asked for; a context manager.

    Raises FileError when the file is damaged, an array is too large, or one that is asked for holds Python objects.
    """

    def __init__(self, path: Path, max_bytes: int = 4 << 30):
        self.path, self.max_bytes = path, max_bytes
        try:
            self.zip = zipfile.ZipFile(path)
        except OSError as error:
            raise FileError(f"can't read {path}: {error.strerror or error}.") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise FileError(f"{path.name} is not an .npz file, or it is damaged ({error}).") from error
        self.members = {info.filename.removesuffix(".npy"): info for info in self.zip.infolist()}

    def __enter__(self) -> "Npz":
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def __contains__(self, key: str) -> bool:
        return key in self.members

    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(self.members)

    def __getitem__(self, key: str) -> np.ndarray:
        info = self.members[key]
        name = f"{self.path.name}, array {key!r}"
        if info.file_size > self.max_bytes:
            raise FileError(
                f"{name} has {info.file_size} bytes, more than {self.max_bytes}: pass max_bytes if that is right."
            )
        try:
            with self.zip.open(info) as file:
                return _read_array(file, info.file_size, name)
        except FileError:
            raise
        except Exception as error:  # zipfile and zlib raise a dozen kinds for damaged, encrypted or truncated members
            raise FileError(f"{name} is damaged ({error}).") from error

    def numbers(self, *keys: str) -> np.ndarray | None:
        """The first of `keys` that is there, as float64; None when none is. FileError for text or non-finite values."""
        for key in keys:
            if key in self:
                return finite(self[key], f"{self.path.name}, array {key!r}")
        return None

    def text(self, key: str) -> str | None:
        """A string, or the first of an array of strings; None when absent or not text."""
        if key not in self:
            return None
        try:
            value: Any = self[key]
        except FileError:
            return None
        if value.dtype.kind not in "US" or value.size == 0:
            return None
        first = value.reshape(-1)[0]
        return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)


def finite(array: np.ndarray, name: str) -> np.ndarray:
    """The array as float64; FileError when it isn't numeric or a value isn't finite."""
    if array.dtype.kind not in "fiub":
        raise FileError(f"{name} holds {array.dtype} values; expected numbers.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all() or (array.size and np.abs(array).max() > 1e9):
        bad = np.argwhere(~np.isfinite(array) | (np.abs(array) > 1e9))
        place = ", ".join(map(str, bad[0].tolist())) if bad.shape[1] else "it"
        raise FileError(
            f"{name} holds {len(bad)} NaN, infinite or absurdly large values, the first at index ({place})."
        )
    return array


def read_array(path: str | Path) -> np.ndarray:
    """A float array from a .npy file; raises FileError for damaged files and values that aren't finite."""
    path = Path(path)
    return finite(read_npy(path, MAX_STATISTICS), str(path))
