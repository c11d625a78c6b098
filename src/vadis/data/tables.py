"""What the folder of a corpus holds, read strictly: a page of facts, tables and arrays that may come from a stranger.

Everything raises FileError with the file and what is wrong there. What is read is whole and of its kind: no cell is empty,
numbers are finite, counts are those that the page states, and nothing is read that is larger than it may be.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vadis.errors import FileError
from vadis.io.arrays import map_npy
from vadis.records import checked, read_json

Kind = Literal["text", "whole", "number", "flag", "texts", "wholes"]
"""Of a column: texts, whole numbers from 0, finite numbers, true or false, and lists of the first two."""
Single = Annotated[float, Field(gt=-3e38, lt=3e38)]
"""A number that float32 holds too."""
MAX_ROWS = 100_000_000
MAX_TABLE_BYTES = 16 << 30
"""Of a table when it is unpacked."""


def read_page(path: Path, kind: Any, format: str, version: int, again: str) -> dict[str, Any]:
    """The JSON page at `path`, which must be `format` of that version and have the fields of `kind`; `again` says what to do."""
    page = read_json(path)
    if page.get("format") != format or page.get("version") != version:
        found = f"{page.get('format')!r} version {page.get('version')!r}"
        raise FileError(f"{path} is {found:.100}; expected {format} {version}. {again}")
    checked(kind, page, path)
    return page


def read_table(path: Path, columns: Mapping[str, Kind | Mapping[str, Kind]], rows: int, again: str) -> Any:
    """The Parquet table at `path`: it has `rows` rows and all of `columns`, each of its kind. Other columns are kept.

    A mapping instead of a kind is a list of records with these fields.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileError(f"{path.parent} has no {path.name}. {again}")
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            facts = file.metadata
            stated = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
            if facts.num_rows != rows or rows > MAX_ROWS or stated > MAX_TABLE_BYTES:
                raise FileError(
                    f"{path} has {facts.num_rows:,} rows of {stated:,} bytes; expected {rows:,} rows. {again}"
                )
            table = file.read(use_threads=rows > 100_000)
        for name, column in zip(table.column_names, table.columns, strict=True):
            column.validate(full=name not in columns)
    except FileError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:  # what Arrow's errors are or become
        raise FileError(f"{path} is damaged ({str(error)[:100]}). {again}") from error
    for name, kind in columns.items():
        if table.column_names.count(name) != 1:
            raise FileError(
                f"{path} has {table.column_names.count(name)} columns named {name!r}; it needs one. {again}"
            )
        if wrong := _wrong(table.column(name), kind):
            raise FileError(f"{path}, column {name!r}: {wrong}. {again}")
    return table


def _wrong(column: Any, kind: Kind | Mapping[str, Kind]) -> str | None:
    """What keeps a column from being of its kind."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_a, sort = pa.types, column.type
    if column.null_count:
        return f"{column.null_count} cells are empty"
    if isinstance(kind, Mapping) or kind in ("texts", "wholes"):
        if not (is_a.is_list(sort) or is_a.is_large_list(sort)):
            return f"holds {sort}; expected lists"
        inner = pc.call_function("list_flatten", [column])
        if not isinstance(kind, Mapping):
            return _wrong(inner, "text" if kind == "texts" else "whole")
        if not is_a.is_struct(inner.type) or {inner.type.field(i).name for i in range(inner.type.num_fields)} != set(
            kind
        ):
            return f"holds {inner.type}; expected records of {', '.join(kind)}"
        for name, one in kind.items():
            if wrong := _wrong(pc.call_function("struct_field", [inner], pc.StructFieldOptions(name)), one):
                return f"{name}: {wrong}"
        return f"{inner.null_count} records are empty" if inner.null_count else None
    fits = {"text": is_a.is_string(sort) or is_a.is_large_string(sort), "whole": is_a.is_integer(sort),
            "number": is_a.is_floating(sort), "flag": is_a.is_boolean(sort)}  # fmt: skip
    if not fits[kind]:
        return f"holds {sort}; expected {'a ' if kind in ('text', 'flag') else ''}{kind}{'' if kind in ('text', 'flag') else 's'}"
    if not len(column):
        return None
    if kind == "text" and not all(map(_is_unicode, column.chunks)):
        return "holds text that is not UTF-8"
    if kind == "whole":
        values = column.to_numpy()
        if int(values.min()) < 0 or int(values.max()) >= 1 << 53:
            return f"holds {values.min() if values.min() < 0 else values.max()}; expected whole numbers from 0"
    if kind == "number" and not np.isfinite(column.to_numpy()).all():
        return "holds values that are not finite"
    return None


def _is_unicode(texts: Any) -> bool:
    """Whether an array of texts holds real ones, which Arrow doesn't ask; at once where all is ASCII."""
    import pyarrow as pa

    data = texts.buffers()[2]
    if data is None or np.frombuffer(data, np.uint8).max(initial=0) < 128:
        return True
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def read_array(path: Path, kinds: str, shape: tuple[int | None, ...], again: str) -> np.ndarray:
    """The array at `path`, mapped: its type is among NumPy's `kinds`, its shape is `shape` (None: any)."""
    array = map_npy(path)
    fits = len(array.shape) == len(shape) and all(w is None or w == n for w, n in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in kinds or not array.dtype.isnative or not fits:  # torch takes native byte order only
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise FileError(f"{path} holds {array.dtype} {array.shape}; expected ({wanted}) of kind {kinds!r}. {again}")
    return array


def check_spans(
    path: Path, what: str, first: np.ndarray, count: np.ndarray, size: np.ndarray | int, again: str
) -> None:
    """Raise FileError unless every stretch of `count` from `first` on lies within `size`."""
    wrong = (first > size) | (count > size - np.minimum(first, size))
    if wrong.any():
        raise FileError(f"{path}, row {int(wrong.argmax())}: the {what} lie beyond the end. {again}")


def read_lists(
    path: Path, table: Any, said: str, kinds: str, sentences: int, again: str
) -> tuple[list[list[int]], list[list[str]]]:
    """The columns of the numbers of a row's sentences and of their kinds: as many of each, and numbers that there are."""
    numbers, names = table.column(said).to_pylist(), table.column(kinds).to_pylist()
    for row, (those, kind) in enumerate(zip(numbers, names, strict=True)):
        if len(those) != len(kind) or (those and max(those) >= sentences):
            raise FileError(
                f"{path}, row {row}: {said} {those!r:.60} and {kinds} don't fit {sentences} sentences. {again}"
            )
    return numbers, names


def is_finite(array: np.ndarray) -> bool:
    """Whether all values are finite: their sum says so in one quick pass, unless it is just too large."""
    return math.isfinite(array.sum()) or bool(np.isfinite(array).all())
