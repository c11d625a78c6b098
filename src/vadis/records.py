"""JSON, JSON Lines and YAML that others wrote: bounded, strict, and checked against a schema as they come in.

Everything raises FileError (or the class given) with the file, and where there is one the line and the field. Numbers
are finite, keys are given once, texts are real Unicode, and a file is no larger and no deeper than stated here.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from vadis.errors import FileError, VadisError

MAX_BYTES = 64 << 20
"""Of a JSON page."""
MAX_LINE_BYTES = 16 << 20
"""Of a line of JSON Lines."""
BLOCK = 1 << 20
"""Bytes that are read at once of JSON Lines."""
MAX_DEPTH = 100
"""Of lists and objects inside one another."""
MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 100_000
"""Of a YAML file once its aliases are followed."""

Record = TypeVar("Record")


# ---- JSON


def read_bytes(path: str | Path, max_bytes: int, error: type[VadisError] = FileError) -> bytes:
    """What is in a file of at most `max_bytes`; raises `error` when it is missing or larger."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"can't read {path}: {problem.strerror or problem}.") from problem
    if len(data) > max_bytes:
        raise error(f"{path} has more than {max_bytes:,} bytes; that is not a {path.suffix or 'such'} file of vadis.")
    return data


def parse_json(data: bytes | str, where: object, error: type[VadisError] = FileError, *, finite: bool = True) -> Any:
    """The value of one JSON text; raises `error` with `where` for anything that strict JSON doesn't allow.

    NaN, Infinity and numbers beyond a float (unless `finite` is false, for logs of ours), a key given twice, halves of
    surrogate pairs, and nesting beyond MAX_DEPTH are refused.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        suspect = finite and _may_be_infinite(
            data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        )
        value = (_FINITE if suspect else _ANY).decode(text)
    except RecursionError:
        raise error(f"{where} is nested too deeply: at most {MAX_DEPTH} levels are read.") from None
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not UTF-8 text (byte {problem.start}).") from None
    except ValueError as problem:
        raise error(f"{where} is not valid JSON ({problem}): download or save it as JSON again.") from None
    if (text.count("[") + text.count("{")) > MAX_DEPTH:  # else it can't be that deep
        _check_depth(value, where, error)
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise error(f"{where} holds half of a surrogate pair, which is not a character.") from None
    return value


_DIGITS = bytes(ord("0") if chr(i) in "123456789" else ord("e") if chr(i) == "E" else i for i in range(256))


def _may_be_infinite(data: bytes) -> bool:
    """Whether numbers that are none, or beyond a float, may stand in JSON; far quicker than a look at every number."""
    if b"NaN" in data or b"Infinity" in data:
        return True
    plain = data.translate(_DIGITS, b"+")
    return b"0e000" in plain or b"0" * 300 in plain


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number:.40} is beyond what a number may be")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    page = dict(pairs)
    if len(page) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:60]!r} is given twice")
            seen.add(key)
    return page


_ANY = json.JSONDecoder(object_pairs_hook=_once)
_FINITE = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)


def _check_depth(value: Any, where: object, error: type[VadisError]) -> None:
    """Level by level, so that a deep value doesn't exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return
    raise error(f"{where} is nested too deeply: at most {MAX_DEPTH} levels are read.")


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES, error: type[VadisError] = FileError) -> dict[str, Any]:
    """The JSON object in a file; raises `error` for anything else."""
    page = parse_json(read_bytes(path, max_bytes, error), path, error)
    if not isinstance(page, dict):
        raise error(f"{path} must hold a JSON object, not a {type(page).__name__}.")
    return page


def read_json_lines(
    path: str | Path, *, max_line: int = MAX_LINE_BYTES, error: type[VadisError] = FileError
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that isn't blank. Lines end at "\\n" only: U+2028 and the like belong to texts."""
    for number, line in read_lines(path, max_line=max_line, error=error):
        where = f"{path}, line {number}"
        row = parse_json(line, where, error)
        if not isinstance(row, dict):
            raise error(f"{where}: expected a JSON object, not a {type(row).__name__}.")
        yield number, row


def read_lines(
    path: str | Path, *, max_line: int = MAX_LINE_BYTES, error: type[VadisError] = FileError
) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that isn't blank; raises `error` for a file that can't be read or a longer line."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(max_line + 1):
                number += 1
                if len(line) > max_line:
                    raise error(f"{path}, line {number}: more than {max_line:,} bytes; JSON Lines have a row a line.")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a mark that some editors put first
                if line.strip():
                    yield number, line
    except OSError as problem:
        raise error(f"can't read {path}: {problem.strerror or problem}.") from problem


# ---- YAML


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                raise yaml.MarkedYAMLError(problem="a key must be a word or number", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: object, error: type[VadisError] = FileError) -> Any:
    """The value of one YAML text; raises `error` with `where`.

    What aliases stand for counts each time: a text whose nodes are more than MAX_YAML_NODES, or deeper than MAX_DEPTH,
    is refused before anything is built of it, and so is one that holds itself.
    """
    if len(text) > MAX_YAML_BYTES:
        raise error(f"{where} has more than {MAX_YAML_BYTES:,} characters.")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count_nodes(node, where, error)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise error(f"{where} is nested too deeply: at most {MAX_DEPTH} levels are read.") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError, KeyError) as problem:
        if isinstance(problem, VadisError):
            raise
        # Values such as 2026-13-45 or 0b look like dates and numbers to YAML's resolver, and then aren't.
        raise error(f"{where} is not valid YAML: {problem}.") from None
    return value


def _count_nodes(root: yaml.Node, where: object, error: type[VadisError]) -> None:
    level, total = [root], 0
    for _ in range(MAX_DEPTH + 1):
        total += len(level)
        if total > MAX_YAML_NODES:
            raise error(f"{where} holds more than {MAX_YAML_NODES:,} values once its aliases are followed.")
        inner: list[yaml.Node] = []
        for node in level:
            if isinstance(node, yaml.MappingNode):
                inner += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner += node.value
        if not inner:
            return
        level = inner
    raise error(f"{where} is nested too deeply, or an alias holds itself: at most {MAX_DEPTH} levels are read.")


def read_yaml(path: str | Path, error: type[VadisError] = FileError) -> dict[str, Any]:
    """The mapping in a YAML file; raises `error` for anything else."""
    try:
        text = read_bytes(path, MAX_YAML_BYTES, error).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text (byte {problem.start}).") from None
    page = parse_yaml(text, path, error)
    if not isinstance(page, dict):
        raise error(f"{path} holds {'nothing' if page is None else type(page).__name__}; expected keys and values.")
    return page


# ---- schemas


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: type[Record], value: Any, where: object, error: type[VadisError] = FileError) -> Record:
    """A JSON value as an instance of `kind` (a pydantic dataclass, TypedDict or any type); `error` names the wrong field.

    The check is strict: a number written as text, or a truth value for a number, is refused and not converted. Only
    what JSON makes counts, so an object fills a dataclass and a list a tuple.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as problem:
        raise error(f"{where}: {first_problem(problem)}") from None


def read_rows(
    kind: type[Record],
    path: str | Path,
    what: str = "",
    *,
    max_line: int = MAX_LINE_BYTES,
    error: type[VadisError] = FileError,
) -> Iterator[tuple[int, Record]]:
    """Number and record of every line of JSON Lines that isn't blank, parsed and checked in one go (see `checked`).

    Twice as fast as `read_json_lines` and `checked`; of a key given twice the last one counts. `what` leads the message
    about a wrong line, e.g. "not a caption row: ".
    """
    validate, number = _adapter(kind).validate_json, 0
    for block in _blocks(path, max_line, error):
        suspect = _may_be_infinite(block)
        for line in block.removesuffix(b"\n").split(b"\n"):
            number += 1
            try:
                record = validate(line, strict=True)
            except ValidationError as problem:
                if not line.strip():
                    continue
                raise error(f"{path}, line {number}: {what}{first_problem(problem)}") from None
            if suspect and _may_be_infinite(line):  # pydantic lets these pass where the kind says Any
                parse_json(line, f"{path}, line {number}", error)
            yield number, record


def _blocks(path: str | Path, max_line: int, error: type[VadisError]) -> Iterator[bytes]:
    """A file in blocks of whole lines, none longer than `max_line`."""
    number = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                if not block.endswith(b"\n"):
                    block += file.readline(max_line + 1)
                if len(block) > max_line:  # else no line can be
                    for k, line in enumerate(block.split(b"\n")):
                        if len(line) > max_line:
                            raise error(
                                f"{path}, line {number + k + 1}: more than {max_line:,} bytes; JSON Lines have a row a line."
                            )
                number, first = number + block.count(b"\n"), not number
                yield block.removeprefix(b"\xef\xbb\xbf") if first else block  # a mark that some editors put first
    except OSError as problem:
        raise error(f"can't read {path}: {problem.strerror or problem}.") from problem


def first_problem(problem: ValidationError) -> str:
    """The first field that a ValidationError complains of, as `field: what is wrong (it is VALUE).`"""
    first = problem.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] != "value_error":  # one of pydantic's own, not of a check of ours
        message = message[:1].lower() + message[1:]
    silent = not name or first["type"].startswith(("missing", "json")) or isinstance(first["input"], dict)
    given = "" if silent else f" (it is {first['input']!r:.60})"
    return f"{name + ': ' if name else ''}{message}{given}."
