"""Seeded rewrites of a valid file that change nothing it says: order of keys, spaces, how a number is written."""

import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import yaml

ORDERED = {"phases": 1, "axes": 2, "variants": 2}
"""Settings whose keys follow one another, and for how many levels down: phases of a training; a study's axes or tables,
and the levels or variants within them, which are the columns and rows of what it prints."""


def rewrite_file(path: Path, rng: random.Random) -> str | None:
    """Rewrite the file at `path` in place; what was done, or None when files of its kind have no such freedom."""
    data = path.read_bytes()
    rewrite = {".json": _json, ".jsonl": _json_lines, ".yaml": _yaml, ".glb": _glb, ".bvh": _numbers}.get(
        path.suffix.lower()
    )
    if rewrite is None:
        return None
    path.write_bytes(rewrite(data, rng))
    return "written otherwise"


def _json(data: bytes, rng: random.Random, lines: bool = False) -> bytes:
    value = _shuffled(json.loads(data, parse_float=_Number), rng)
    whole = not (isinstance(value, dict) and "model_type" in value)  # transformers wants 1.0 where it wrote 1.0
    spaces = rng.choice((None, 1, 4)) if not lines else None
    separators = rng.choice(((",", ":"), (" , ", " : ")))
    text = json.dumps(_marked(value, rng, whole), indent=spaces, separators=separators, ensure_ascii=rng.random() < 0.5)
    text = re.sub(r'"\\u0000number:([^"]*)"', r"\1", text)
    return (text + ("" if lines else rng.choice(("", "\n", "\r\n", " \n\n")))).encode("utf-8", "surrogatepass")


def _json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = [_json(line, rng, lines=True) for line in data.split(b"\n") if line.strip()]
    return rng.choice((b"\n", b"\r\n", b"\n\n")).join(lines) + rng.choice((b"", b"\n"))


def _yaml(data: bytes, rng: random.Random) -> bytes:
    value = _plain_floats(yaml.safe_load(data))
    flow = rng.choice((None, True, False))
    text = yaml.safe_dump(_shuffled(value, rng), sort_keys=False, default_flow_style=flow, width=rng.choice((60, 1000)))
    return (rng.choice(("", "# a remark\n", "---\n")) + text + rng.choice(("", "\n\n"))).encode()


def _plain_floats(value: Any) -> Any:
    """1e-4 as the number that it is: YAML 1.1 takes it for a text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain_floats(inner) for key, inner in value.items()}
    return [_plain_floats(inner) for inner in value] if isinstance(value, list) else value


def _glb(data: bytes, rng: random.Random) -> bytes:
    size = struct.unpack("<I", data[12:16])[0]
    text, rest = _json(data[20 : 20 + size], rng), data[20 + size :]
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def _numbers(data: bytes, rng: random.Random) -> bytes:
    text = re.sub(r"(?<![\w.])-?\d+\.\d+(?![\w.])", lambda found: written(found[0], rng), data.decode())
    text = re.sub(r"(?<=\S) (?=\S)", lambda _: rng.choice((" ", " ", "  ", "\t")), text)
    return text.replace("\n", rng.choice(("\n", "\r\n", " \n"))).encode() + rng.choice((b"", b"\n", b"\n\n"))


class _Number(str):
    """A number with a point, as it was written."""


def written(number: str, rng: random.Random, whole: bool = True) -> str:
    """The same number in another way: 0.5 as 5e-1 or 0.50, 1.0 as 1 or 1e0."""
    value = float(number)
    ways = [number, f"{value!r}", f"{value:.17e}"]
    if "e" not in number and "E" not in number:
        ways += [number + "0", number + "00e0"]
    if whole and value == int(value) and abs(value) < 1e15:
        ways.append(f"{int(value)}" if value or not number.startswith("-") else number)
    return rng.choice(ways)


def _marked(value: Any, rng: random.Random, whole: bool) -> Any:
    """Numbers with a point as texts that `_json` takes out of their quotes; `whole`: 1.0 may become 1."""
    if isinstance(value, _Number):
        return "\0number:" + written(value, rng, whole)
    if isinstance(value, dict):
        return {key: _marked(inner, rng, whole) for key, inner in value.items()}
    return [_marked(inner, rng, whole) for inner in value] if isinstance(value, list) else value


def _shuffled(value: Any, rng: random.Random, ordered: int = 0) -> Any:
    """The same with its keys in another order, except for the first `ordered` levels, where their order says something."""
    if isinstance(value, dict):
        keys = list(value)
        if not ordered:
            rng.shuffle(keys)
        return {key: _shuffled(value[key], rng, max(ordered - 1, ORDERED.get(key, 0))) for key in keys}
    return [_shuffled(inner, rng) for inner in value] if isinstance(value, list) else value
