"""Reading torch's own files (.pt, .pth, .ckpt, .bin) without running anything that stands in them.

Both formats are read, the zip archive of today and the file of pickles of torch 1.5 and before. The pickle goes through
a reader of our own that makes tensors, containers and numbers; objects of training libraries (Lightning, DeepSpeed,
OmegaConf…) become placeholders that keep nothing, and any other name is refused. Nothing of torch's or Python's loading
is called by a name in the file, and no size stated in it is believed before it is compared with the file.
"""

import collections
import io
import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vadis.errors import FileError, ModelError

MAX_PICKLE = 64 << 20
"""Bytes of a pickle, which holds names and shapes; the numbers of tensors lie outside it."""
MAX_MEMBERS = 200_000
"""Files in an archive: there is one a tensor."""
MAX_SPREAD = 16 << 20
"""Elements by which all tensors together may exceed what is stored (one stored row may stand for many)."""
MAX_COPIED = 4 << 20
"""Items that the containers of a pickle may copy from one another."""

_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
_LEFTOVERS = (
    "deepspeed", "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "yacs", "argparse", "numpy",
    "torch.optim", "typing", "pathlib",
)  # fmt: skip
"""Libraries whose objects training programs leave in their files."""
_PLAIN = {"int", "float", "complex", "bool", "str", "bytes", "bytearray", "object", "Any"}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Refused(Exception):
    """A name that no checkpoint needs."""


class _Inert:
    """Stands for an object of a training library: takes any arguments and any state, keeps nothing, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        pass


class _Storage(NamedTuple):
    """Bytes that tensors are views of."""

    bytes: torch.UntypedStorage
    dtype: torch.dtype


class _Unpickler(pickle._Unpickler):  # in Python, since the one in C allocates what an opcode states
    """Makes tensors, containers and numbers; `storage(key, dtype, count)` gives the bytes of a tensor."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]
    for _code in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4,
                  pickle.INST, pickle.OBJ):  # fmt: skip
        del dispatch[_code[0]]

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int, Any], torch.UntypedStorage]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.storage, self.copied, self.spread = storage, 0, 0
        self.names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self._ordered,
            ("collections", "defaultdict"): self._mapping_after_factory,
            ("collections", "Counter"): self._mapping,
            ("_codecs", "encode"): _encoded,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_type,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch._utils", "_rebuild_parameter_with_state"): _first,
            ("torch._tensor", "_rebuild_from_type_v2"): _rebuilt,
            ("torch", "Size"): self._tuple,
            ("torch", "device"): _Inert,
            ("torch", "Tensor"): _Inert,
            ("torch.nn.parameter", "Parameter"): _Inert,
        }
        for name, make in (("dict", self._mapping), ("list", self._list), ("tuple", self._tuple), ("set", self._set),
                           ("frozenset", self._frozenset)):  # fmt: skip
            self.names["builtins", name] = self.names["__builtin__", name] = make

    # ---- names

    def find_class(self, module: str, name: str) -> Any:
        if found := self.names.get((module, name)):
            return found
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return _Inert
        if module in ("torch", "torch.cuda", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if any(module == m or module.startswith(m + ".") for m in _LEFTOVERS):
            return _Inert
        raise _Refused(f"it asks to import {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a tensor names no storage")
        if type(count) is not int or count < 0:
            raise pickle.UnpicklingError(f"a storage of {count!r:.40} numbers")
        return _Storage(self.storage(key, dtype, count, view[0] if view else None), dtype)

    def _build(self) -> None:
        """State of an object: kept by nothing. `_metadata` of a module's weights comes so."""
        self.stack.pop()  # pyright: ignore[reportAttributeAccessIssue]

    dispatch[pickle.BUILD[0]] = _build

    # ---- containers

    def _count(self, items: Iterable[Any]) -> Iterable[Any]:
        if not isinstance(items, list | tuple | set | frozenset | dict):
            raise pickle.UnpicklingError("a container of something that is none")
        self.copied += len(items)
        if self.copied > MAX_COPIED:
            raise pickle.UnpicklingError("its containers copy one another too often")
        return items

    def _ordered(self, items: Any = ()) -> dict[Any, Any]:
        return collections.OrderedDict(self._count(items))  # type: ignore[arg-type]

    def _mapping(self, items: Any = ()) -> dict[Any, Any]:
        return dict(self._count(items))  # type: ignore[call-overload]

    def _mapping_after_factory(self, _: Any = None, items: Any = ()) -> dict[Any, Any]:
        return self._mapping(items)

    def _list(self, items: Any = ()) -> list[Any]:
        return list(self._count(items))

    def _tuple(self, items: Any = ()) -> tuple[Any, ...]:
        return tuple(self._count(items))

    def _set(self, items: Any = ()) -> set[Any]:
        return set(self._count(items))

    def _frozenset(self, items: Any = ()) -> frozenset[Any]:
        return frozenset(self._count(items))

    # ---- tensors

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return self._view(storage.bytes, storage.dtype, offset, size, stride)

    def _tensor_of_type(
        self, storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
    ) -> Tensor:
        if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a tensor without a storage")
        return self._view(storage.bytes, dtype, offset, size, stride)

    def _view(self, storage: torch.UntypedStorage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise pickle.UnpicklingError(f"a tensor of the impossible size {size!r:.60}, strides {stride!r:.60}")
        have, count = storage.nbytes() // dtype.itemsize, math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
        if count and last >= have:
            raise pickle.UnpicklingError(f"a tensor reads number {last} of a storage of {have}")
        self.spread += max(0, count - have)
        if self.spread > MAX_SPREAD:
            raise pickle.UnpicklingError(f"a tensor of {count:,} elements is stored as {have:,}")
        return torch.empty(0, dtype=dtype).set_(storage, offset, tuple(size), tuple(stride))  # type: ignore[call-overload]


def _encoded(text: Any, _: Any = "latin1") -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes of something that is not text")
    return text.encode("latin1")


def _first(value: Any, *_: Any) -> Any:
    """A parameter as the plain tensor that it holds."""
    return value


def _rebuilt(make: Any, _: Any, arguments: Any, __: Any = None) -> Any:
    return make(*arguments)


# ---- the two formats


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, torch's format of today."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_torch(path: str | Path) -> Any:
    """What a torch file holds: containers, numbers, texts, and tensors on the CPU that read the file when used.

    Raises FileError where the file is missing or damaged, ModelError where it asks for anything but such values.
    """
    path = Path(path)
    try:
        return _read_archive(path) if is_archive(path) else _read_pickles(path)
    except _Refused as error:
        raise ModelError(
            f"{path} was refused: {error}. Only tensors are read; save its weights as safetensors."
        ) from error
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}.") from error


def _damaged(path: Path, what: object) -> FileError:
    return FileError(f"{path} can't be read as a torch file ({what}): download it again.")


def _unpickled(
    path: Path, file: IO[bytes], storage: Callable[[str, torch.dtype, int, Any], torch.UntypedStorage]
) -> Any:
    try:
        return _Unpickler(file, storage).load()
    except (_Refused, FileError):
        raise
    except Exception as error:  # a damaged stream of opcodes may call anything with anything
        raise _damaged(path, str(error) or type(error).__name__) from error


def _read_archive(path: Path) -> Any:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            by_name = _checked_members(path, members, size)
            page = next((name for name in by_name if name.count("/") == 1 and name.endswith("/data.pkl")), None)
            if page is None:
                raise _damaged(path, "an archive without data.pkl")
            root = page.removesuffix("data.pkl")
            if f"{root}constants.pkl" in by_name:
                raise ModelError(f"{path} holds a TorchScript program, which is not run: save its state dict instead.")
            order = by_name.get(f"{root}byteorder")
            if order and order.file_size < 16 and archive.read(order) != sys.byteorder.encode():
                raise _damaged(path, "its numbers have another byte order than this machine")
            if by_name[page].file_size > MAX_PICKLE:
                raise _damaged(path, f"its data.pkl has {by_name[page].file_size:,} bytes, more than {MAX_PICKLE:,}")
            pickled = archive.read(page)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, RuntimeError, struct.error) as error:
        if isinstance(error, FileError | ModelError):
            raise
        raise _damaged(path, error) from error
    try:
        whole = torch.UntypedStorage.from_file(str(path), False, size)
    except RuntimeError as error:
        raise _damaged(path, f"it can't be mapped into memory: {error}") from error
    found: dict[str, torch.UntypedStorage] = {}

    def storage(key: str, dtype: torch.dtype, count: int, _: Any) -> torch.UntypedStorage:
        if key not in found:
            info = by_name.get(f"{root}data/{key}")
            if info is None:
                raise _damaged(path, f"it has no record {key[:40]!r}")
            start = _start(path, info)
            part: Any = whole[start : start + info.file_size]
            found[key] = part.clone() if start % 16 else part  # torch aligns what it writes, other archivers don't
        if count * dtype.itemsize != found[key].nbytes():
            stated = f"{count:,} numbers of {dtype}"
            raise _damaged(path, f"record {key[:40]!r} has {found[key].nbytes():,} bytes, which are not {stated}")
        return found[key]

    return _unpickled(path, io.BytesIO(pickled), storage)


def _checked_members(path: Path, members: list[zipfile.ZipInfo], size: int) -> Mapping[str, zipfile.ZipInfo]:
    """The members by name, once their sizes are known to be those of the file."""
    if len(members) > MAX_MEMBERS:
        raise _damaged(path, f"an archive of {len(members):,} files")
    for info in members:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise _damaged(path, f"{info.filename!r:.60} in it is compressed or encrypted, which torch never writes")
    total, by_name = sum(info.file_size for info in members), {info.filename: info for info in members}
    if total > size or len(by_name) != len(members):
        raise _damaged(path, f"its {len(members)} records state {total:,} bytes, it has {size:,}")
    return by_name


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin, behind its own header."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            raise _damaged(path, f"the record {info.filename[:60]!r} is not where the archive says")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        if start + info.file_size > path.stat().st_size:
            raise _damaged(path, f"the record {info.filename[:60]!r} is cut off")
        return start


def _read_pickles(path: Path) -> Any:
    """The format of torch 1.5 and before: pickles of a mark, the values and the storages' names, then the storages."""
    size = path.stat().st_size
    stated: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}
    total = 0

    def none(*_: Any) -> Any:
        raise pickle.UnpicklingError("a tensor before the values")

    def storage(key: str, dtype: torch.dtype, count: int, view: Any) -> torch.UntypedStorage:
        nonlocal total
        if key not in stated:
            total += count * dtype.itemsize
            if total > size:
                raise _damaged(path, f"its tensors take {total:,} bytes, it has {size:,}")
            stated[key] = torch.UntypedStorage(count * dtype.itemsize), dtype
        whole, own = stated[key]
        if own != dtype or count * dtype.itemsize != whole.nbytes():
            raise _damaged(path, f"the storage {key[:40]!r} is stated in two ways")
        if view is None:
            return whole
        _, start, length = view
        if not (type(start) is int and type(length) is int and 0 <= start <= start + length <= count):
            raise _damaged(path, f"a part of the storage {key[:40]!r} lies outside it")
        return whole[start * dtype.itemsize : (start + length) * dtype.itemsize]

    with path.open("rb") as file:
        limited = _Limited(file)
        if _unpickled(path, limited, none) != _MAGIC or _unpickled(path, limited, none) != _PROTOCOL:
            raise _damaged(path, "it has not torch's mark")
        about = _unpickled(path, limited, none)
        if isinstance(about, dict) and about.get("little_endian", True) != (sys.byteorder == "little"):
            raise _damaged(path, "its numbers have another byte order than this machine")
        value, keys = _unpickled(path, limited, storage), _unpickled(path, limited, none)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(stated):
            raise _damaged(path, "its list of storages is not that of its tensors")
        for key in keys:
            whole, dtype = stated[key]
            count = int.from_bytes(file.read(8), "little")
            if count * dtype.itemsize != whole.nbytes():
                raise _damaged(path, f"the storage {key[:40]!r} has {count:,} numbers, not as many as its tensors")
            data = torch.empty(0, dtype=torch.uint8).set_(whole)  # type: ignore[call-overload]
            if whole.nbytes() and file.readinto(memoryview(data.numpy())) != whole.nbytes():
                raise _damaged(path, "it is cut off")
    return value


class _Limited:
    """A file whose pickles end after MAX_PICKLE bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, MAX_PICKLE

    def _take(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise pickle.UnpicklingError(f"more than {MAX_PICKLE:,} bytes of names and shapes")
        return data

    def read(self, count: int) -> bytes:
        return self._take(self.file.read(min(count, self.left + 1)))

    def readline(self) -> bytes:
        return self._take(self.file.readline(self.left + 1))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
