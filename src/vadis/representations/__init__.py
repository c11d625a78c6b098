"""Representations by name: `vadis.representation("ms272")`.

A new one is a module here with a `Representation` subclass and one line in `REPRESENTATIONS`, or an entry point of another
package (group `vadis.representations`).
"""

from functools import cache

from vadis.errors import VadisError
from vadis.plugins import Table
from vadis.representations.base import Representation, Source
from vadis.representations.guess import Guess, guess

__all__ = ["Guess", "Representation", "Source", "guess", "names", "representation"]

REPRESENTATIONS = Table(
    "vadis.representations",
    {
        "ms272": "vadis.representations.ms272:MS272",
        "ms272_absroot": "vadis.representations.ms272:MS272",
        "hml263": "vadis.representations.hml263:HumanML",
        "kit251": "vadis.representations.hml263:HumanML",
        "vimogen276": "vadis.representations.vimogen276:ViMoGen276",
        "smpl135": "vadis.representations.smpl135:SMPL135",
        "motionclip135": "vadis.representations.smpl135:SMPL135",
    },
)
"""Name → class, or a function without arguments that makes one."""
_OPTIONS: dict[str, dict[str, str]] = {
    "ms272_absroot": {"root": "absolute"},
    "kit251": {"layout": "kit251"},
    "smpl135": {"name": "smpl135"},
    "motionclip135": {"name": "motionclip135"},
}
"""Of classes that make more than one."""


def names() -> list[str]:
    """All known representation names."""
    return sorted(REPRESENTATIONS)


@cache
def representation(name: str) -> Representation:
    """The representation called `name`; VadisError lists the known ones otherwise."""
    if name not in REPRESENTATIONS:
        raise VadisError(f"no representation {name!r}; known are {', '.join(names())}.")
    return REPRESENTATIONS[name](**_OPTIONS.get(name, {}))
