"""What several verbs share: parsing with one-line errors, checks of the values that users type, messages."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from vadis.errors import FileError, VadisError

Command = TypeVar("Command")
_RULE = re.compile("─{4,}╯?|-{4,}")


def parse(kind: type[Command], prog: str, words: Sequence[str]) -> Command:
    """The dataclass `kind` filled from command-line words; VadisError in one sentence for words that don't fit.

    Raises SystemExit(0) after printing help.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=prog, args=_settings_first(kind, list(words)))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise VadisError(_flatten(complaint.getvalue(), prog)) from None


def _settings_first(kind: Any, words: list[str]) -> list[str]:
    """The words of a verb with KEY=VALUE settings, flags last: tyro ends a list of settings at the first flag."""
    if "settings" not in {field.name for field in dataclasses.fields(kind)}:
        return words
    hints = typing.get_type_hints(kind)
    plain, flags, taken = [], [], 0  # `taken`: how many of the next words are values of the flag before them
    for word in words:
        if word.startswith("-"):
            name, equals, _ = word.lstrip("-").partition("=")
            hint = hints.get(name.removeprefix("no-").replace("-", "_"))
            taken = 0 if equals or hint is bool else len(words) if typing.get_origin(hint) is tuple else 1
            flags.append(word)
        elif taken:
            taken -= 1
            flags.append(word)
        else:
            plain.append(word)
    return [*plain, *flags]


def _flatten(box: str, prog: str) -> str:
    """tyro's framed message as one sentence, with the flag it suggests."""
    lines = [line[2:].rstrip(" │") for line in box.splitlines()[1:]]  # without the title
    if lines and _RULE.fullmatch(lines[0].strip()):  # the frame of a terminal without box characters
        lines = lines[1:]
    rule = next((i for i, line in enumerate(lines) if _RULE.fullmatch(line.strip())), len(lines))
    message = " ".join(line.strip() for line in lines[:rule] if line.strip()).rstrip(".")
    if message.startswith("Missing from"):  # each name stands alone, its help below it is indented further
        names = [line.strip() for line in lines[:rule] if re.match(r" {4}\S", line)]
        message = f"missing: {', '.join(names)}"
    elif found := re.match(r"Missing value for argument '(.+?)'\. Expected (\d+)", message):
        message = f"{found[1]} needs {'a value' if found[2] == '1' else found[2] + ' values'}"
    elif found := re.match(r"invalid choice '(.*)' for argument '(.+?)'\. Expected one of \((.*)\)", message):
        choices = sorted(word for word in re.findall(r"'(.+?)'", found[3]) if word != "None")
        message = f"{found[2]} {found[1]!r}: use one of {', '.join(choices)}"
    elif found := re.match(r"Error parsing (\S+?): (.*\b(int|float)\b.*)", message, re.IGNORECASE):
        kind = "whole number" if found[3].lower() == "int" else "number"
        many = len(re.findall(r", (?:int|float)\b", found[2]))  # of a pair: "typing.Tuple[int, int]"
        wanted = f"{many + 1} {kind}s" if many else f"a {kind}"
        given = re.search(r"\[(.*?)\]", found[2]) or re.search(r"('[^']*')$", found[2])
        message = f"{found[1]} takes {wanted}" + (f"; got {given[1]}" if given else "")
    elif found := re.fullmatch(r"Unrecognized options: ([^-].*)", message):
        message = f"more arguments than expected: {found[1]}"
    near = re.search(r"Perhaps you meant:\s*(--[\w-]+)", " ".join(lines))
    hint = f" Did you mean {near.group(1)}?" if near else ""
    return f"{message[:1].lower() + message[1:]}.{hint} See `{prog} --help`."


def in_flags(message: str, command: Any) -> str:
    """An error of the package in the words of the command line: `fps=` becomes `--fps`, `seconds=0.1:` `--seconds 0.1:`.

    `python_names` of a command says which flag stands for an argument of another name.
    """
    from tyro.conf import Positional

    kind, positional = type(command), typing.get_args(Positional[str])[-1]
    if hasattr(command, "settings"):  # there key=value is what a user writes
        return message
    if hasattr(command, "option"):
        return re.sub(r"(?<![\w.-])(?<!--option )([a-z_]+=)", r"--option \1", message)
    name_joint = r"--joint \1 NAME" if hasattr(command, "joint") else r"vadis retarget FILE NEW.bvh --joint \1 NAME"
    message = re.sub(r"joints=\{'(\w+)': 'name in the file', …\}", name_joint, message)
    message = message.replace(
        "vadis.retarget(motion, 'smpl22', joints=…)", "vadis retarget FILE NEW.bvh --joint left_hip NAME"
    )
    hints = typing.get_type_hints(kind, include_extras=True)
    flags = {
        name: "--" + name.replace("_", "-")
        for name in vars(command)
        if positional not in getattr(hints[name], "__metadata__", ())
    }
    if dataclasses.is_dataclass(nested := getattr(command, "options", None)):
        flags |= {name: "--" + name.replace("_", "-") for name in vars(nested)}
    flags |= getattr(kind, "python_names", {})
    for name, flag in flags.items():
        value = r"""=(?:(?P<quote>['"])(?P<text>[^'"]*)(?P=quote)|(?P<plain>True|[\w./-]*\w))?"""
        message = re.sub(rf"(?<![\w-]){name}{value}", lambda found, flag=flag: _flag(flag, found), message)
    return message


def _flag(flag: str, found: re.Match[str]) -> str:
    value = found["text"] or found["plain"]
    return flag if value in (None, "True") else f"{flag} {value}"


_quiet: ContextVar[bool] = ContextVar("vadis_quiet", default=False)


@contextlib.contextmanager
def quietly(on: bool) -> Iterator[None]:
    """Inside, `say` says nothing if `on`; results and errors are printed all the same."""
    token = _quiet.set(on)
    try:
        yield
    finally:
        _quiet.reset(token)


def say(text: str) -> None:
    """A line of progress, to stderr."""
    if not _quiet.get():
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
    """The path, when its suffix is one of `suffixes` and a file can be written there; FileError otherwise."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise FileError(f"can't write {path.name!r}: its suffix must be one of {', '.join(suffixes)}.")
    if path.is_dir():
        raise FileError(f"can't write {path}: it is a folder.")
    _check_place(path)
    return path


def check_output_folder(path: str | Path) -> Path:
    """The path, when it is a folder that can be written or that can be made; FileError otherwise."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileError(f"can't write the folder {path}: a file of that name is in its place.")
    _check_place(path)
    return path


def _check_place(path: Path) -> None:
    """Raise FileError now when `path` couldn't be written later, after minutes of work."""
    for folder in path.absolute().parents:
        if folder.exists():
            if not folder.is_dir():
                raise FileError(f"can't write {path}: {folder} is a file, not a folder.")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise FileError(f"can't write {path}: the folder {folder} can't be written to. Choose another.")
            return


def output_folder(target: str | None, out: Sequence[str], verb: str) -> Path:
    """The one folder that a verb writes, named as by `outputs` and checked as by `check_output_folder`."""
    return check_output_folder(outputs(target, out, verb)[0])


def check_apart(output: str | Path, *inputs: str | Path) -> None:
    """FileError where writing `output` would change one of the inputs."""
    from vadis.files import apart

    apart(output, *inputs)


def outputs(target: str | None, out: Sequence[str], verb: str = "") -> list[str]:
    """Where to write: `OUT` as the last argument, `-o OUT`, or both; VadisError for neither.

    With `verb`, the verb writes one result, and a second name is refused.
    """
    names = [*([target] if target is not None else []), *out]
    if not names:
        raise VadisError("nowhere to write: name the output as the last argument, or with -o OUT.")
    if verb and len(names) > 1:
        raise VadisError(f"{verb} writes one result; got {len(names)} names for it: {', '.join(names)}.")
    return names


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
