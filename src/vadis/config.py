"""Settings: frozen dataclasses filled from strict YAML or Python values, with `key=value` overrides and errors that name the path."""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_type_hints

from pydantic import ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from vadis.errors import FileError, ModelError, VadisError
from vadis.records import first_problem, parse_yaml, read_yaml

RECIPES = Path(__file__).parent / "recipes"
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def build_config(config_class: type, fields: dict[str, Any], where: str = "config") -> Any:
    """`config_class(**fields)` from Python values, with a ModelError of one sentence that names the wrong field.

    What stands in a file goes through `vadis.records.checked`, which converts nothing.
    """
    try:
        return config_class(**fields)
    except ValidationError as error:
        raise ModelError(f"{where}: {first_problem(error)}") from error


def chosen_by_type(kinds: Mapping[str, Any], usual: str) -> Any:
    """The union of these dataclasses, of which the field `type` chooses one; `usual` where it is missing."""
    members = tuple(Annotated[kind, Tag(name)] for name, kind in kinds.items())

    def chosen(value: Any) -> Any:
        return value.get("type", usual) if isinstance(value, dict) else getattr(value, "type", None)

    return Annotated[Union[members], Discriminator(chosen)]  # noqa: UP007 - built at run time


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe or study file as plain JSON values.

    Raises FileError when it is missing, no YAML, not a mapping, or holds what no setting can be (dates, numbers beyond 64 bits).
    """
    return _plain(read_yaml(find_recipe(path)), str(path), FileError)


def recipe_names() -> list[str]:
    """Names of the recipes and studies that come with vadis."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with vadis. Raises FileError with near names."""
    if os.path.isfile(source):  # false for names that the system doesn't take
        return Path(source)
    names = recipe_names()
    if str(source) in names:
        return RECIPES / f"{source}.yaml"
    near = difflib.get_close_matches(Path(source).stem, names, n=3) or names[:3]
    raise FileError(
        f"can't read the recipe {source}: there is no such file, and vadis brings none of that name. Near ones: "
        f"{', '.join(near)}; `vadis train` lists all."
    )


def _plain(value: Any, where: str, error: type[VadisError]) -> Any:
    """A copy of a YAML value with texts as keys; raises `error` for values that JSON doesn't have."""
    if isinstance(value, dict):
        return {_key(k): _plain(v, f"{where}: {_key(k)}", error) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, where, error) for v in value]
    if isinstance(value, int) and value.bit_length() > 64:
        raise error(f"{where} is a number of {value.bit_length()} bits; settings have at most 64.")
    if isinstance(value, str) and "\x00" in value:
        raise error(f"{where} holds a zero character, which no setting may.")
    if not isinstance(value, str | int | float | None):
        raise error(f"{where} is a {type(value).__name__}; put {value!s:.40} in quotes if it is a text.")
    return value


def _key(key: Any) -> str:
    """A key as JSON writes it: YAML reads 0, true and null as values."""
    return key if isinstance(key, str) else json.dumps(key, default=str).strip('"')


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with `a.b=value` settings applied; values are YAML. Raises VadisError for what can't be read."""
    result = _plain(raw, "the recipe", VadisError)
    for text in overrides:
        path, value = parse_setting(text)
        *parents, last = path.split(".")
        place = result
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise VadisError(f"can't set {path}: {name} is a value, not a group of settings.")
        place[last] = value
    return result


def parse_setting(text: str) -> tuple[str, Any]:
    """Path and value of `a.b=value`; raises VadisError for what can't be read."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise VadisError(f"can't read the setting {text!r:.80}; expected key=value, e.g. optimizer.lr=1e-4.")
    where = f"the value of the setting {path:.60}"
    return path, _plain(parse_yaml(value, where, VadisError), where, VadisError)


def build(kind: type, raw: dict[str, Any], where: str) -> Any:
    """`raw` as an instance of the dataclass `kind`; a VadisError names every wrong path, the value and near names."""
    try:
        made = TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        problems, choices = [], _tags(kind)
        for e in error.errors():
            path = ".".join(str(part) for part in e["loc"] if part not in choices)
            if e["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                near = difflib.get_close_matches(str(e["loc"][-1]), sorted(_names(kind)), n=1)
                problems.append(f"{path} is unknown" + (f" (perhaps {near[0]}?)" if near else ""))
            elif e["type"] in ("missing", "missing_argument"):
                problems.append(f"{path} is missing")
            else:
                message = str(e.get("ctx", {}).get("error", "")) or e["msg"][:1].lower() + e["msg"][1:]
                problems.append(f"{path or where}: {message} (got {e['input']!r:.80})")
        raise VadisError(f"{where}: {'; '.join(problems)}.") from None
    if flag := _flag_for_number(raw, as_dict(made)):
        raise VadisError(f"{where}: {flag}: expected a number.")
    return made


def _flag_for_number(raw: Any, made: Any) -> str | None:
    """Where a true or false was taken for 1 or 0, as `path is true`; pydantic takes it, and it is never meant."""
    if isinstance(raw, bool):
        return None if isinstance(made, bool) or not isinstance(made, int | float) else f" is {str(raw).lower()}"
    pairs: Any = ()
    if isinstance(raw, dict) and isinstance(made, dict):
        pairs = ((key, value, made.get(key)) for key, value in raw.items())
    elif isinstance(raw, list) and isinstance(made, list):
        pairs = ((str(i), *both) for i, both in enumerate(zip(raw, made, strict=False)))
    for key, value, other in pairs:
        if (found := _flag_for_number(value, other)) is not None:
            return f"{key}{'' if found.startswith(' ') else '.'}{found}"
    return None


def _names(kind: Any) -> set[str]:
    """All field names of a dataclass and of the dataclasses inside it."""
    if not is_dataclass(kind):
        return set().union(*map(_names, get_args(kind)))
    hints = get_type_hints(kind)
    return {f.name for f in fields(kind)}.union(*(_names(hints[f.name]) for f in fields(kind)))


def _tags(kind: Any) -> set[str]:
    """Names of the members of unions, which pydantic puts into the path of an error."""
    if isinstance(kind, Tag):
        return {kind.tag}
    if isinstance(kind, type) and is_dataclass(kind):
        return set().union(*map(_tags, get_type_hints(kind, include_extras=True).values()))
    return set().union(*map(_tags, get_args(kind)))


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")
