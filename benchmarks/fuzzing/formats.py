"""Damage that keeps a format's frame whole, so that it reaches what lies behind the first check of a reader."""

import contextlib
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuzzing.mutate import damage_bytes, damage_text, damage_tree, finish

Damage = tuple[bytes, str]
_FLOATS = (np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-30, 0.0, -1.0, 1e6)
_DTYPES = ("<f8", "<f2", ">f4", "<i8", "|i1", "|b1", "<U4", "|V8", "|O", "<c8", "<M8[s]", "f", "")


def damage_file(path: Path, rng: random.Random) -> str:
    """Damage the file at `path` in place; what was done, in a few words."""
    if rng.random() < 0.03:
        return _damage_entry(path, rng)
    data, suffix = path.read_bytes(), "".join(path.suffixes[-2:]) if path.name.endswith(".tar.gz") else path.suffix
    inner = STRUCTURED.get(suffix.lower())
    try:
        text = suffix.lower() in TEXTS and rng.random() < 0.25
        if inner and not text and rng.random() < 0.85:
            data, done = inner(data, rng)
        elif suffix.lower() in TEXTS and rng.random() < 0.7:
            changed, done = damage_text(data.decode(), rng)
            data = changed.encode("utf-8", "surrogatepass")
        else:
            data, done = damage_bytes(data, rng)
    except (
        ValueError,
        KeyError,
        IndexError,
        struct.error,
        zipfile.BadZipFile,
    ) as problem:  # a small file that hasn't the part that was to be damaged
        data, done = damage_bytes(data, rng)
        done += f" (not otherwise: {type(problem).__name__})"
    path.write_bytes(data)
    return done


def _damage_entry(path: Path, rng: random.Random) -> str:
    """The file is gone, empty, a folder, or what another file of its folder is."""
    kind = rng.choice(("removed", "emptied", "replaced by a folder", "replaced by its neighbor"))
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    if kind == "emptied" or (kind == "replaced by its neighbor" and not others):
        path.write_bytes(b"")
        return "emptied"
    if kind == "replaced by its neighbor":
        other = rng.choice(others)
        path.write_bytes(other.read_bytes())
        return f"replaced by {other.name}"
    path.unlink()
    if kind == "replaced by a folder":
        path.mkdir()
    return kind


# ---- texts


def _json(data: bytes, rng: random.Random) -> Damage:
    tree, done = damage_tree(json.loads(data), rng)
    return finish(json.dumps(tree, indent=rng.choice((None, 2)))).encode("utf-8", "surrogatepass"), done


def _json_lines(data: bytes, rng: random.Random) -> Damage:
    lines = data.decode().removesuffix("\n").split("\n")
    at = rng.randrange(len(lines))
    tree, done = damage_tree(json.loads(lines[at]), rng)
    lines[at] = finish(json.dumps(tree, ensure_ascii=rng.random() < 0.5))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"), f"line {at + 1}: {done}"


def _yaml(data: bytes, rng: random.Random) -> Damage:
    tree, done = damage_tree(json.loads(json.dumps(yaml.safe_load(data))), rng)
    return finish(yaml.safe_dump(tree, sort_keys=False, width=200)).encode("utf-8", "surrogatepass"), done


# ---- arrays


def _floats(data: bytes, start: int, rng: random.Random, kind: str = "<f4") -> Damage:
    """Numbers in a block of them, from `start` on, are set to extremes, reversed, or repeated."""
    values = np.frombuffer(
        data[start : start + (len(data) - start) // np.dtype(kind).itemsize * np.dtype(kind).itemsize], kind
    ).copy()
    if not len(values):
        return damage_bytes(data, rng)
    at, count = rng.randrange(len(values)), rng.choice((1, 1, 4, 64, len(values)))
    how = rng.randrange(4)
    if how == 0:
        values[at : at + count] = values[at : at + count][::-1]
        done = "reversed"
    elif how == 1:
        values[at : at + count] *= np.asarray(rng.choice((-1, 0, 2, 100))).astype(kind)
        done = "scaled"
    else:
        value = rng.choice(_FLOATS)
        with np.errstate(all="ignore"):
            values[at : at + count] = np.asarray(value).astype(kind)
        done = f"set to {value}"
    return data[:start] + values.tobytes() + data[start + values.nbytes :], f"{count} numbers at {at} {done}"


def _npy(data: bytes, rng: random.Random) -> Damage:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    shape, fortran, dtype = (
        np.lib.format.read_array_header_1_0(file) if version == (1, 0) else np.lib.format.read_array_header_2_0(file)
    )
    start = file.tell()
    if dtype == np.uint8 and data[start : start + 1] == b"{" and rng.random() < 0.7:  # a JSON page within an array
        page, done = _json(data[start:], rng)
        return _with_header({"descr": "|u1", "fortran_order": False, "shape": (len(page),)}, page), done
    if rng.random() < 0.4:
        return _floats(data, start, rng, dtype.str) if dtype.kind in "fiu" else damage_bytes(data, rng)
    header: dict[str, Any] = {"descr": dtype.str, "fortran_order": fortran, "shape": list(shape)}
    if rng.random() < 0.3:
        header["descr"] = rng.choice(_DTYPES)
        done = f"dtype {header['descr']!r}"
    else:
        header, done = damage_tree(header, rng)
    if isinstance(header, dict) and isinstance(header.get("shape"), list):
        header["shape"] = tuple(header["shape"])
    return _with_header(header, data[start:]), f"header: {done}"


def _with_header(header: Any, data: bytes) -> bytes:
    text = repr(header).encode("utf-8", "backslashreplace")[:60_000] + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _npz(data: bytes, rng: random.Random) -> Damage:
    return _members(data, rng, lambda name: _npy if name.endswith(".npy") else damage_bytes)


# ---- archives


def _zip(data: bytes, rng: random.Random) -> Damage:
    return _members(data, rng, lambda name: STRUCTURED.get(Path(name).suffix.lower(), damage_bytes))


def _members(data: bytes, rng: random.Random, damage_of: Callable[[str], Callable[..., Damage]]) -> Damage:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        members = [(info.filename, packed.read(info), info.compress_type) for info in packed.infolist()]
    members, done = _damage_members(members, rng, damage_of)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, content, method in members:
            packed.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue(), done


def _tar_gz(data: bytes, rng: random.Random) -> Damage:
    with tarfile.open(fileobj=io.BytesIO(data)) as packed:
        members = [(info.name, file.read(), 0) for info in packed if (file := packed.extractfile(info))]
    members, done = _damage_members(members, rng, lambda name: damage_bytes)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, content, _ in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return out.getvalue(), done


def _damage_members(
    members: list[tuple[str, bytes, int]], rng: random.Random, damage_of: Callable[..., Any]
) -> tuple[list[Any], str]:
    at, kind = rng.randrange(len(members)), rng.randrange(10)
    name, content, method = members[at]
    if kind == 0:
        return members[:at] + members[at + 1 :], f"{name} dropped"
    if kind == 1:
        other = rng.choice(("x", "x/" + name, name.upper(), "../" + name, name + ".npy", "ä", ""))
        members[at] = (other or "_", content, method)
        return members, f"{name} renamed {other!r}"
    if kind == 2:
        return [*members, members[at]] if len(members) < 50 else members[:2], f"{name} given twice"
    if kind == 3:
        members[at] = (name, content, zipfile.ZIP_DEFLATED if method == zipfile.ZIP_STORED else zipfile.ZIP_STORED)
        return members, f"{name} compressed otherwise"
    content, done = damage_of(name)(content, rng)
    members[at] = (name, content, method)
    return members, f"{name}: {done}"


# ---- models


def _safetensors(data: bytes, rng: random.Random) -> Damage:
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.15:
        return _floats(data, 8 + size, rng)
    if rng.random() < 0.1:
        size = rng.choice((0, size - 1, size + 8, 2**31, 2**63))
        return struct.pack("<Q", size) + data[8:], f"length of the header {size}"
    header, done = damage_tree(json.loads(data[8 : 8 + size]), rng)
    text = finish(json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :], f"header: {done}"


def _glb(data: bytes, rng: random.Random) -> Damage:
    size = struct.unpack("<I", data[12:16])[0]
    text, rest = data[20 : 20 + size], data[20 + size :]
    if rng.random() < 0.25:
        rest, done = _floats(rest, 8, rng)
    elif rng.random() < 0.1:
        cut = 8 + rng.randrange(len(rest) - 8) // 4 * 4
        rest, done = struct.pack("<I", cut - 8) + rest[4:cut], f"binary chunk cut at {cut}"
    else:
        tree, done = damage_tree(json.loads(text), rng)
        text = finish(json.dumps(tree)).encode("utf-8", "surrogatepass")
        text += b" " * (-len(text) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest, done


def _parquet(data: bytes, rng: random.Random) -> Damage:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data), use_threads=False)
    name, kind = rng.choice(table.column_names), rng.randrange(7)
    at = table.column_names.index(name)
    done = f"column {name} "
    if kind == 0:
        table, done = table.drop_columns([name]), done + "dropped"
    elif kind == 1:
        table, done = (
            table.rename_columns([*table.column_names[:at], name + "_", *table.column_names[at + 1 :]]),
            done + "renamed",
        )
    elif kind == 2:
        sort = rng.choice(
            (pa.string(), pa.float64(), pa.int8(), pa.null(), pa.bool_(), pa.list_(pa.int64()), pa.timestamp("s"))
        )
        column = pa.array([None] * len(table), sort)
        with contextlib.suppress(pa.ArrowException):  # such a column can only be empty
            column = table.column(name).cast(sort)
        table, done = table.set_column(at, name, column), done + f"as {sort}"
    elif kind == 3:
        order = [rng.randrange(len(table)) for _ in range(rng.randrange(2 * len(table) + 1))]
        table, done = table.take(pa.array(order, pa.int64())), f"{len(order)} rows drawn"
    else:
        rows = table.column(name).to_pylist()
        row = rng.randrange(len(rows))
        changed, what = damage_tree([rows[row]], rng)
        try:
            column = pa.array([*rows[:row], *changed[:1], *rows[row + 1 :]], table.column(name).type)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeError):  # the column can't hold it
            column, what = pa.array([*rows[:row], None, *rows[row + 1 :]], table.column(name).type), "null"
        table, done = table.set_column(at, name, column), done + f"row {row}: {what}"
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue(), done


TEXTS = (".bvh", ".amc", ".asf", ".txt", ".csv", ".json", ".jsonl", ".yaml", ".yml", ".model", ".jinja")
STRUCTURED: dict[str, Callable[[bytes, random.Random], Damage]] = {
    ".json": _json, ".jsonl": _json_lines, ".yaml": _yaml, ".npy": _npy, ".npz": _npz, ".zip": _zip, ".tar.gz": _tar_gz,
    ".pt": _zip, ".pth": _zip, ".ckpt": _zip, ".bin": _zip, ".tar": _zip, ".safetensors": _safetensors, ".glb": _glb, ".parquet": _parquet,
}  # fmt: skip
