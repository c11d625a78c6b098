"""What a reader gave back: is it sound, and is it the same as before? Both walk through whatever it is."""

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from vadis.errors import VadisError
from vadis.motion import Motion

MAX_FPS = 10_000
HALF = re.compile("[\ud800-\udfff]")


class Wrong(AssertionError):
    """A reader accepted what it should have refused."""


@dataclass
class Made:
    """What a model made; weights that came damaged may make anything, so only its equality counts."""

    value: Any

    @classmethod
    def by(cls, make: Callable[[], Any]) -> "Made":
        """What `make` returns, or that it refused: a model that loads may still be none for the inputs at hand."""
        try:
            return cls(make())
        except VadisError:
            return cls("refused")


def expect(condition: bool, text: str) -> None:
    """Raise Wrong with `text` unless `condition`."""
    if not condition:
        raise Wrong(text)


def check(value: Any, name: str = "it") -> None:
    """Raise Wrong when something in `value` can't be: NaN, matrices that don't rotate, no frame rate, half a character."""
    if isinstance(value, Motion):
        _check_motion(value, name)
    elif isinstance(value, torch.nn.Module | Made):
        return  # weights are what they are
    elif isinstance(value, torch.Tensor):
        expect(not value.is_floating_point() or bool(torch.isfinite(value).all()), f"{name} has NaN or infinite values")
    elif isinstance(value, np.ndarray):
        expect(value.dtype != object, f"{name} is an array of objects")
        expect(value.dtype.kind != "f" or bool(np.isfinite(value).all()), f"{name} has NaN or infinite values")
    elif isinstance(value, float | np.floating):
        expect(math.isfinite(value), f"{name} is {value}")
    elif isinstance(value, str):
        expect(value.isascii() or not HALF.search(value), f"{name} holds half of a surrogate pair")
    else:
        if is_dataclass(value) and not isinstance(value, type):
            _check_types(value, name)
        for key, inner in parts(value):
            check(inner, f"{name}.{key}"[-120:])


def _check_types(value: Any, name: str) -> None:
    """Every field of a dataclass holds what its annotation says."""
    for field, adapter in _adapters(type(value)):
        try:
            adapter.validate_python(getattr(value, field), strict=True)
        except ValidationError as error:
            raise Wrong(f"{name}.{field} is {getattr(value, field)!r:.60}: {error.errors()[0]['msg']}") from None


@cache
def _adapters(kind: type) -> list[tuple[str, TypeAdapter[Any]]]:
    try:
        hints = get_type_hints(kind)
    except NameError:  # annotations of names that are only imported for type checkers
        return []
    found = []
    for field in fields(kind):
        hint = hints[field.name]
        config = None if is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)
        with contextlib.suppress(PydanticSchemaGenerationError):  # a dataclass of tensors: its own fields are checked
            found.append((field.name, TypeAdapter(hint, config=config)))
    return found


def _check_motion(motion: Motion, name: str) -> None:
    expect(0 < motion.fps <= MAX_FPS, f"{name}: {motion.fps} frames/s")
    for what in ("root", "rotations", "positions"):
        expect(bool(torch.isfinite(getattr(motion, what)).all()), f"{name}: {what} are not finite")
    turned = motion.rotations.double()
    off = (turned @ turned.mT - torch.eye(3, dtype=torch.float64)).abs().amax()
    expect(
        float(off) < 1e-3 and float(torch.linalg.det(turned).min()) > 0,
        f"{name}: rotations that are none ({float(off):.2g})",
    )
    check(motion.meta, name + ".meta")


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What is inside a container, a dataclass or an object, by name."""
    if isinstance(value, Mapping):
        yield from ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(number), inner) for number, inner in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))


def digest(value: Any, root: Path) -> str:
    """A short mark of `value`; equal for what is equal, though numbers were written in another way."""
    found = hashlib.sha256()
    _feed(found, value, root)
    return found.hexdigest()[:16]


def _feed(found: Any, value: Any, root: Path) -> None:
    if isinstance(value, Motion):
        value = {"names": value.skeleton.names, "parents": value.skeleton.parents, "offsets": value.skeleton.offsets,
                 "root": value.root, "rotations": value.rotations, "fps": value.fps, "meta": value.meta}  # fmt: skip
    if isinstance(value, torch.nn.Module):
        value = {"config": getattr(value, "config", None), "state": dict(value.state_dict())}
    if isinstance(value, torch.Tensor):
        value = value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, bool | None) or not isinstance(value, int | float | str | Path):
        found.update(f"<{type(value).__name__}>".encode() if not isinstance(value, bool) else str(value).encode())
        inner = sorted(parts(value)) if isinstance(value, Mapping) else parts(value)
        for key, part in inner:
            found.update(key.encode())
            _feed(found, part, root)
    else:
        text = repr(float(value)) if isinstance(value, int | float) else str(value).replace(str(root), "")
        found.update(text.encode("utf-8", "surrogatepass"))
