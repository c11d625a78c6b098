"""Recipes: frozen dataclasses filled from strict YAML, with `key=value` overrides and errors that name the path.

`Recipe` holds what every training needs; a task adds `data`, `model` and `loss` (see `tasks.py`).
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vadis.errors import FileError, VadisError

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW."""

    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
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
    warmup: int = Field(default=0, ge=0)
    """Steps; step i has lr * (i + 1) / (warmup + 1)."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """The cosine's lowest value, as a share of lr."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Steps from the end of the warm-up to the cosine's lowest point (beyond it the cosine rises again, as in the
    published code). Null: the lowest point is the end of the run, by steps or `max_seconds`, whichever comes first."""
    milestones: tuple[int, ...] = ()
    """For `step`: optimiser steps after the warm-up at which lr is multiplied by `factor`."""
    factor: float = Field(default=0.1, gt=0)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Recipe:
    """What every training has. `task` chooses the rest."""

    task: str
    run: str = "runs/unnamed"
    """Folder of checkpoints, logs and the trained model."""
    seed: int = Field(default=0, ge=0)
    steps: int = Field(ge=1)
    """Optimiser steps of the whole run; the schedule ends here."""
    stop_at: int | None = Field(default=None, ge=1)
    """End this session at that step, with a checkpoint and the schedule untouched (a time slot of a cluster)."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Budget over all sessions: training stops when it is spent, and the schedule is squeezed to end there."""
    accumulate: int = Field(default=1, ge=1)
    """Batches a step on every process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    shard: bool = False
    """Split weights, gradients and optimiser state over the processes (FSDP2), for models too large for one GPU."""
    device: Literal["auto", "cpu"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; null: torch decides."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema: float | None = Field(default=0.999, gt=0, lt=1)
    """Decay of the average of the weights, which is what gets exported; ramped, see `ema.py`. Null: off."""
    validate_every: int = Field(default=1000, ge=1)
    validation_batches: int = Field(default=8, ge=1)
    best: str | None = None
    """A validation metric; the model with its lowest value is kept in `best/` beside the last one."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps from one checkpoint to the next."""
    checkpoint_seconds: float | None = Field(default=None, gt=0)
    """Also after so many seconds without one: what a kill can cost. When checkpoints are written changes no result."""
    log_every: int = Field(default=50, ge=1)
    logger: Literal["none", "trackio", "tensorboard"] = "none"
    """Besides `log.jsonl`, which is always written."""
    resume: Literal["no", "auto"] = "no"
    """`auto` continues from the run's checkpoint, if there is one."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0]!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A recipe file as a dict; raises FileError when it is missing or not a mapping."""
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise FileError(f"can't read the recipe {path}: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileError(f"the recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict):
        raise FileError(
            f"the recipe {path} holds {type(raw).__name__}; expected keys and values such as `task: tokenizer`."
        )
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with `a.b=value` settings applied; values are YAML. Raises VadisError for what can't be read."""
    result = json.loads(json.dumps(raw))
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise VadisError(f"can't read the setting {text!r}; expected key=value, e.g. optimizer.lr=1e-4.")
        *parents, last = path.strip().split(".")
        place = result
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise VadisError(f"can't set {path}: {name} is a value, not a group of settings.")
        try:
            place[last] = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise VadisError(f"can't read the value of {text!r} as YAML.") from error
    return result


def build(kind: type, raw: dict[str, Any], where: str) -> Any:
    """`raw` as an instance of the dataclass `kind`; a VadisError names every wrong path, the value and near names."""
    try:
        return TypeAdapter(kind).validate_python(raw)
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
