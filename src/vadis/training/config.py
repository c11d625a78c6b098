"""Recipes: frozen dataclasses filled from strict YAML, with `key=value` overrides and errors that name the path.

`Recipe` holds what every training needs; a task adds `data`, `model` and `loss` (see `tasks.py`).
"""

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vadis.errors import FileError, VadisError
from vadis.records import parse_yaml, read_yaml

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

# Upper limits of settings that make memory or time, far above what any training has had.
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""Of an optimiser, or from one event of a run to the next."""
Batch = Annotated[int, Field(ge=1, le=1_000_000)]
"""Items at once, or batches of a step."""
Frames = Annotated[int, Field(ge=1, le=1_000_000)]
"""Frames, token steps or tokens of an item or row."""
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW."""

    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[Below1, Below1] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    """Applied to every parameter, as the published recipes do, unless `decay_matrices_only`."""
    decay_matrices_only: bool = False
    """Leave biases, norms and embeddings' one-dimensional parameters undecayed."""
    eps: float = Field(default=1e-8, gt=0)
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: not clipped."""


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """Learning rate: a linear warm-up, then a constant, a cosine or steps."""

    kind: Literal["cosine", "constant", "step"] = "cosine"
    warmup: int = Field(default=0, ge=0, le=1_000_000_000)
    """Steps; step i has lr * (i + 1) / (warmup + 1)."""
    floor: Share = 0.0
    """The cosine's lowest value, as a share of lr."""
    decay_steps: Steps | None = None
    """Steps from the end of the warm-up to the cosine's lowest point (beyond it the cosine rises again, as in the
    published code). Null: the lowest point is the end of the run, by steps or `max_seconds`, whichever comes first."""
    milestones: tuple[int, ...] = ()
    """For `step`: optimiser steps after the warm-up at which lr is multiplied by `factor`."""
    factor: float = Field(default=0.1, gt=0)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Recipe:
    """What every training has. `task` chooses the rest."""

    task: str
    run: str = Field(default="runs/unnamed", min_length=1)
    """Folder of checkpoints, logs and the trained model."""
    seed: int = Field(default=0, ge=0)
    steps: Steps
    """Optimiser steps of the whole run; the schedule ends here."""
    stop_at: Steps | None = None
    """End this session at that step, with a checkpoint and the schedule untouched (a time slot of a cluster)."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Budget over all sessions: training stops when it is spent, and the schedule is squeezed to end there."""
    accumulate: Batch = 1
    """Batches a step on every process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    shard: bool = False
    """Split weights, gradients and optimiser state over the processes (FSDP2), for models too large for one GPU."""
    device: Literal["auto", "cpu"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads of torch; null: torch decides."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema: float | None = Field(default=0.999, gt=0, lt=1)
    """Decay of the average of the weights, which is what gets exported; ramped, see `ema.py`. Null: off."""
    validate_every: Steps = 1000
    validation_batches: Batch = 8
    best: str | None = None
    """A validation metric; the model with its lowest value is kept in `best/` beside the last one."""
    checkpoint_every: Steps = 1000
    """Steps from one checkpoint to the next."""
    checkpoint_seconds: float | None = Field(default=None, gt=0)
    """Also after so many seconds without one: what a kill can cost. When checkpoints are written changes no result."""
    log_every: Steps = 50
    logger: Literal["none", "trackio", "tensorboard"] = "none"
    """Besides `log.jsonl`, which is always written."""
    resume: Literal["no", "auto"] = "no"
    """`auto` continues from the run's checkpoint, if there is one."""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe or study file as plain JSON values.

    Raises FileError when it is missing, no YAML, not a mapping, or holds what no setting can be (dates, numbers beyond 64 bits).
    """
    if not os.path.isfile(path):  # false for names that the system doesn't take
        raise FileError(f"can't read the recipe {path}: there is no such file.")
    return _plain(read_yaml(path), str(path), FileError)


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
