"""Representations by name: `vadis.representation("ms272")`.

A new one is a module here with a `Representation` subclass and one line in `_MAKERS`.
"""

from functools import cache
from importlib import import_module

from vadis.errors import VadisError
from vadis.representations.base import Representation, Source
from vadis.representations.guess import Guess, guess

__all__ = ["Guess", "Representation", "Source", "guess", "names", "representation"]

_MAKERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "ms272": ("ms272", "MS272", {}),
    "ms272_absroot": ("ms272", "MS272", {"root": "absolute"}),
    "hml263": ("hml263", "HumanML", {}),
    "kit251": ("hml263", "HumanML", {"layout": "kit251"}),
    "vimogen276": ("vimogen276", "ViMoGen276", {}),
    "smpl135": ("smpl135", "SMPL135", {"name": "smpl135"}),
    "motionclip135": ("smpl135", "SMPL135", {"name": "motionclip135"}),
}


def names() -> list[str]:
    """All known representation names."""
    return sorted(_MAKERS)


@cache
def representation(name: str) -> Representation:
    """The representation called `name`; VadisError lists the known ones otherwise."""
    if name not in _MAKERS:
        raise VadisError(f"no representation {name!r}; known are {', '.join(names())}.")
    module, kind, options = _MAKERS[name]
    return getattr(import_module(f"vadis.representations.{module}"), kind)(**options)
