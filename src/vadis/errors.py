"""Errors that speak to the user: what was wrong, what was expected, what to do. The CLI prints them without a traceback."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

MAX_MESSAGE = 300
"""Characters of a message; a longer one loses its middle, since the end says what to do."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# C0 and C1 controls, the marks that turn the direction of writing, and surrogates, which can't be printed at all.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+")


def one_line(text: object, limit: int = MAX_MESSAGE) -> str:
    """`text` on one line of at most `limit` characters, without anything that a terminal would obey.

    Messages quote what stands in files; a name or value made by a stranger must not move the cursor or hide a line.
    """
    line = " ".join(_CONTROLS.sub(" ", _ESCAPES.sub("", str(text))).split())
    if len(line) <= limit:
        return line
    tail = (limit - 3) // 2
    return f"{line[: limit - 3 - tail]} … {line[len(line) - tail :]}"


class VadisError(ValueError):
    """Base of every error that a user's input can cause. Its message is one line of at most MAX_MESSAGE characters."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


@contextmanager
def about(where: object) -> Iterator[None]:
    """Errors of ours that are raised inside begin with `where` (a file or folder), unless they name it already."""
    try:
        yield
    except VadisError as error:
        if str(where) not in str(error):
            place = str(where)
            error.args = (one_line(f"{place if len(place) <= 120 else '…' + place[-119:]}: {error}"),)
        raise


class FileError(VadisError):
    """A file that is missing, damaged, too large, or not what its name says."""


class ShapeError(VadisError):
    """An array whose shape does not fit what was asked of it."""


class SkeletonError(VadisError):
    """A joint tree that can't be understood or mapped."""


class ModelError(VadisError):
    """A model folder, checkpoint or configuration that can't be used."""


class MissingExtra(VadisError):
    """An optional package is not installed; the message names the extra to install."""
