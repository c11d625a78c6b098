"""Seeded damage to a file: what any file can suffer (bytes), what text can, and what trees of values can.

Every function takes a `random.Random` and returns the damaged value with a few words about what was done. The damage is
generic: nothing here is aimed at a known weakness of any program.
"""

import math
import random
import re
from typing import Any

_DOUBLED, _NESTED, _RAW = "\0doubled:", "\0nested:", "\0raw:"  # see `finish`
LONG = "x" * 1_000_000
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 1000, 10**6, 10**9, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, -1.5, 1e-300, 1e9, 1e39, 1e300,
    math.nan, math.inf, -math.inf,
)  # fmt: skip
TEXTS = ("", " ", "x", "0", "1", "true", "null", "ä", "\u2028", "a\u2028b", "a\nb", "\x1b[31mred", "\x00", "\ud800", "../x",
         "x/y", "C:\\x", "-", "*", "{", "%s", LONG)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [0], [[]], [None], {"x": 1}, ["x", 1], f"{_RAW}1e999",
                           f"{_RAW}-0")  # fmt: skip
WORDS = ("-1", "0", "1e9", "1e300", "nan", "inf", "-inf", "9" * 30, "", "x", "-", "1.5", "1e-300", "\x1b[2J", "\u2028", "ROOT",
         "{", "}")  # fmt: skip


# ---- bytes


def damage_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bits flipped, bytes set, blocks cut, doubled, moved, overwritten or inserted."""
    if not data:
        return rng.randbytes(rng.randint(1, 64)), "bytes in an empty file"
    size = len(data)
    at, length = rng.randrange(size), min(size, rng.choice((1, 2, 4, 8, 16, 64, 256, 4096)))
    block, kind = data[at : at + length], rng.randrange(8)
    if kind == 0:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
            out[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(out), "bits flipped"
    if kind == 1:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            out[rng.randrange(size)] = rng.choice((0, 1, 0x20, 0x30, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        return bytes(out), "bytes set"
    if kind == 2:
        return data[:at], f"cut off at {at}"
    if kind == 3:
        return data[:at] + data[at + length :], f"{length} bytes at {at} dropped"
    if kind == 4:
        return data[: at + length] + block * rng.choice((1, 1, 2, 50)) + data[at + length :], f"block at {at} doubled"
    if kind == 5:
        return data[:at] + rng.randbytes(length) + data[at:], f"{length} bytes inserted at {at}"
    if kind == 6:
        to = rng.randrange(size)
        rest = data[:at] + data[at + length :]
        return rest[:to] + block + rest[to:], f"block at {at} moved to {to}"
    fill = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80"))
    return data[:at] + fill * len(block) + data[at + length :], f"{len(block)} bytes at {at} set to {fill!r}"


# ---- text


def damage_text(text: str, rng: random.Random) -> tuple[str, str]:
    """Words and numbers exchanged, lines dropped, doubled, exchanged or cut."""
    lines = text.split("\n")
    at, kind = rng.randrange(len(lines)), rng.randrange(9)
    if kind <= 4:  # most files are lines of words: one of them is another
        for _ in range(20):
            words = lines[at].split()
            if words:
                break
            at = rng.randrange(len(lines))
        else:
            return text + rng.choice(WORDS), "word appended"
        which, word = rng.randrange(len(words)), rng.choice(WORDS)
        indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        lines[at] = indent + " ".join([*words[:which], word, *words[which + 1 :]])
        return "\n".join(lines), f"line {at + 1}, word {which + 1} → {word!r:.40}"
    if kind == 5:
        del lines[at]
        return "\n".join(lines), f"line {at + 1} dropped"
    if kind == 6:
        lines[at:at] = [lines[at]] * rng.choice((1, 1, 2, 300))
        return "\n".join(lines), f"line {at + 1} doubled"
    if kind == 7:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
        return "\n".join(lines), f"lines {at + 1} and {other + 1} exchanged"
    lines[at] = lines[at][: rng.randint(0, len(lines[at]))] + rng.choice(("", LONG, " 1" * 1000, "\r", "\x0b", "#"))
    return "\n".join(lines), f"line {at + 1} cut or prolonged"


# ---- trees of values


def damage_tree(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy of a JSON-like value with one value, key or item changed."""
    tree = _copy(tree)
    holder, key, path = _somewhere(tree, rng)
    if holder is None:
        value = _other(tree, rng)
        return value, f"$ → {_short(value)}"
    kind = rng.randrange(10)
    if kind == 0:
        del holder[key]
        return tree, f"{path} dropped"
    if kind == 1 and isinstance(holder, dict):
        name = rng.choice(("x", "", key + "_", key.upper(), key[:-1], LONG))
        holder[name] = holder.pop(key)
        return tree, f"{path} renamed {name!r:.30}"
    if kind == 2 and isinstance(holder, dict):
        holder[_DOUBLED + key] = _other(holder[key], rng) if rng.random() < 0.5 else holder[key]
        return tree, f"{path} given twice"
    if kind == 1 and isinstance(holder, list):
        holder[key:key] = [holder[key]] * rng.choice((1, 1, 2, 300))
        return tree, f"{path} doubled"
    if kind == 2 and isinstance(holder, list):
        holder.append(rng.choice((*OTHERS, *NUMBERS, *TEXTS)))
        return tree, f"an item more beside {path}"
    if kind == 3 and len(holder) > 1:
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
        return tree, f"{path} exchanged with {other!r:.30}"
    if kind == 4 and rng.random() < 0.2:
        depth = rng.choice((50, 150, 3000))
        holder[key] = f"{_NESTED}{depth}"
        return tree, f"{path} nested {depth} deep"
    holder[key] = _other(holder[key], rng)
    return tree, f"{path} → {_short(holder[key])}"


def _somewhere(tree: Any, rng: random.Random) -> tuple[Any, Any, str]:
    """A holder in the tree and a key of it; the deeper the less likely, so that long tables don't take it all."""
    holder, key, path = None, None, "$"
    while isinstance(tree, dict | list) and tree and (holder is None or rng.random() < 0.7):
        holder, key = tree, rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        path += f".{key:.40}" if isinstance(key, str) else f"[{key}]"
        tree = tree[key]
    return holder, key, path


def _other(value: Any, rng: random.Random) -> Any:
    """Another value: mostly an extreme of the same type, else one of another type."""
    if rng.random() < 0.3:
        return rng.choice((*OTHERS, *NUMBERS, *TEXTS))
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, 0, 1, "true", [], 2.5))
    if isinstance(value, int | float):
        scaled = rng.choice(
            (-value, value + 1, value - 1, value * 1000, value / 3, str(value), int(value), float(value))
        )
        return rng.choice((scaled, *NUMBERS))
    if isinstance(value, str):
        shuffled = "".join(rng.sample(value, len(value))) if len(value) < 1000 else value
        return rng.choice((value * 2, value[: len(value) // 2], value.upper(), shuffled, *TEXTS))
    if isinstance(value, list):
        return rng.choice(
            (value[:-1], value * 2, value[::-1], [value], [], {str(i): v for i, v in enumerate(value[:50])}, None)
        )
    return rng.choice(([value], list(value), {}, None, dict(list(value.items())[1:])))


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    return (
        f"{value!r:.40}"
        if not isinstance(value, dict | list) or len(value) < 20
        else f"{type(value).__name__} of {len(value)}"
    )


def finish(text: str) -> str:
    """The written tree with its marks resolved: keys given twice, and lists nested deeper than writers go."""
    text = re.sub(r'"\\(?:u0000|0)raw:([^"]*)"', r"\1", text)
    text = re.sub(r'"\\(?:u0000|0)nested:(\d+)"', lambda found: "[" * int(found[1]) + "1" + "]" * int(found[1]), text)
    return re.sub(r'"\\(?:u0000|0)doubled:', '"', text)
