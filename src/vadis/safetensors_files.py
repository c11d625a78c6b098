"""safetensors files: their headers, checked against the file before a weight is read, and their tensors."""

import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from vadis.errors import FileError
from vadis.records import first_problem, parse_json

MAX_HEADER = 100_000_000
"""Bytes of a header, as in the library."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Numbers of the tensor."""
        return math.prod(self.shape)


_Size = Annotated[int, Field(ge=0, lt=2**48, strict=True)]


class _Stated(NamedTuple):
    dtype: str
    shape: Annotated[tuple[_Size, ...], Field(max_length=16)]
    data_offsets: tuple[_Size, _Size]


def read_header(path: str | Path) -> dict[str, Entry]:
    """Type and shape of each tensor in a safetensors file; no weights are read.

    Raises FileError where the header is damaged, or where the tensors that it states don't fill the file exactly.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(head := file.read(8), "little")
            whole = path.stat().st_size
            if len(head) < 8 or not 2 <= size <= min(whole - 8, MAX_HEADER):
                raise _damaged(path, f"its header of {size:,} bytes does not fit into {whole:,}")
            text = file.read(size)
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}.") from error
    page = parse_json(text, f"the header of {path}")
    if not isinstance(page, dict):
        raise _damaged(path, "its header is not a JSON object")
    page.pop("__metadata__", None)
    found: dict[str, Entry] = {}
    places: list[tuple[int, int, str]] = []
    for name, stated in page.items():
        try:
            dtype, shape, (start, end) = _ENTRY.validate_python(stated)
        except ValidationError as problem:
            raise _damaged(path, f"{name:.80}: {first_problem(problem)}") from None
        entry = Entry(DTYPES.get(dtype, torch.uint8), shape)
        if dtype not in DTYPES:
            raise _damaged(path, f"{name:.80} has the unknown type {dtype!r:.40}")
        if end - start != entry.count * entry.dtype.itemsize:
            raise _damaged(path, f"{name:.80} has {end - start:,} bytes, which are not {dtype} {list(shape)}")
        found[name] = entry
        places.append((start, end, name))
    last = 0
    for start, end, name in sorted(places):
        if start != last:
            raise _damaged(path, f"{name:.80} begins at byte {start:,} instead of {last:,}")
        last = end
    if last != whole - 8 - size:
        raise _damaged(path, f"its tensors take {last:,} bytes, it has {whole - 8 - size:,} for them")
    return found


def read_safetensors(path: str | Path, header: dict[str, Entry] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the CPU, which read the file when used; `header` where it is known.

    Raises FileError for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    names = read_header(path) if header is None else header
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}.") from error


def _damaged(path: Path, what: Any) -> FileError:
    return FileError(f"{path} is not a whole safetensors file ({what}): download it again.")


_ENTRY: TypeAdapter[_Stated] = TypeAdapter(_Stated)
