"""What several verbs share: parsing with one-line errors, checks of the values that users type, messages."""

import contextlib
import io
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from vadis.errors import FileError, VadisError

Command = TypeVar("Command")
_FRAME = re.compile(r"[╭╮╰╯│─]+")


def parse(kind: type[Command], prog: str, words: Sequence[str]) -> Command:
    """The dataclass `kind` filled from command-line words; VadisError in one sentence for words that don't fit.

    Raises SystemExit(0) after printing help.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=prog, args=list(words))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise VadisError(_flatten(complaint.getvalue(), prog)) from None


def _flatten(box: str, prog: str) -> str:
    """tyro's framed message as one sentence: its first paragraph and the suggested flag."""
    lines = [_FRAME.sub("", line).strip() for line in box.splitlines()[1:]]
    rules = [i for i, line in enumerate(box.splitlines()[1:]) if "──" in line] or [len(lines)]
    message = " ".join(line for line in lines[: rules[0]] if line).rstrip(".")
    near = re.search(r"Perhaps you meant:\s*(--[\w-]+)", " ".join(lines))
    hint = f" Did you mean {near.group(1)}?" if near else ""
    return f"{message[:1].lower() + message[1:]}.{hint} See `{prog} --help`."


def say(text: str) -> None:
    """A line of progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """A machine-readable result, to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def check_number(name: str, value: float, low: float, high: float, unit: str = "") -> float:
    """`value` when it lies in [low, high]; VadisError otherwise, for NaN too."""
    if math.isnan(value) or not low <= value <= high:
        raise VadisError(f"{name} must be between {low:g} and {high:g}{unit and ' ' + unit}; got {value:g}.")
    return value


def check_output(path: str | Path, suffixes: Sequence[str]) -> Path:
    """The path, when its suffix is one of `suffixes` and it isn't a folder; FileError otherwise."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise FileError(f"can't write {path.name!r}: its suffix must be one of {', '.join(suffixes)}.")
    if path.is_dir():
        raise FileError(f"can't write {path}: it is a folder.")
    return path


def check_input(path: str | Path) -> Path:
    """The path, when there is a file or folder; FileError otherwise."""
    path = Path(path)
    if not path.exists():
        raise FileError(f"no file {path}.")
    return path


def call_settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings of a call from NAME=VALUE words: numbers, true, false, null, or text."""
    settings: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise VadisError(f"--set {word!r:.80}: write NAME=VALUE, such as temperature=0.8.")
        if name in settings:
            raise VadisError(f"--set {name} is given twice: keep one.")
        try:
            settings[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            settings[name] = value
    return settings


def numbered(path: Path, number: int, count: int) -> Path:
    """`walk.bvh` → `walk-1.bvh` … when there are several results; the path itself for one."""
    return path if count == 1 else path.with_name(f"{path.stem}-{number + 1:0{len(str(count))}d}{path.suffix}")
