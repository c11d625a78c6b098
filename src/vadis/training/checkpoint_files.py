"""Reading a run's checkpoint: what lies there is compared with the model and the optimiser before either takes it."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import check_finite, load_strictly
from vadis.errors import FileError, about
from vadis.records import checked, read_json
from vadis.safetensors_files import read_safetensors
from vadis.sizes import NotNegative
from vadis.torch_files import read_torch
from vadis.training import sharding
from vadis.training.ema import EMA

_ADAM = {"step", "exp_avg", "exp_avg_sq"}
"""What the optimiser keeps of a parameter."""


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class RunState:
    """state.json of a checkpoint, so much of it as goes on."""

    step: Annotated[int, Field(ge=0, lt=2**53)]
    seconds: NotNegative
    """Of all sessions."""
    best: float | None
    """The validation metric that `best` names, null before the first."""
    task: Any
    model: dict[str, Any]
    """Of the recipe."""


def read_state(checkpoint: Path) -> RunState:
    """The state of a checkpoint folder; raises FileError where state.json is damaged."""
    path = checkpoint / "state.json"
    page = read_json(path)
    recipe = page.get("recipe")
    if not isinstance(recipe, dict):
        raise FileError(f"{path} holds no recipe: delete the checkpoint to start over, or restore it.")
    fields = {name: page[name] for name in ("step", "seconds", "best") if name in page}
    return checked(RunState, fields | {k: recipe[k] for k in ("task", "model") if k in recipe}, path)


def load_model(model: nn.Module, path: Path) -> None:
    """Weights of a checkpoint; raises FileError or ModelError where they are damaged or another model's."""
    with about(path):
        load_strictly(model, read_safetensors(path))


def load_average(average: EMA, path: Path) -> None:
    """Average weights of a checkpoint; raises FileError where they are damaged or another model's."""
    state = read_safetensors(path)
    with about(path):
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in average.shadow.items()}:
            raise FileError("the average weights are not those of this model: delete the checkpoint to start over.")
        check_finite(state)
    average.load_state_dict(state)


def load_optimizer(optimizer: Any, path: Path) -> None:
    """The optimiser's state of a checkpoint; raises FileError where it is damaged or another model's."""
    page = read_torch(path)
    own = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups: Any = page.get("param_groups") if isinstance(page, dict) else None
    state: Any = page.get("state") if isinstance(page, dict) else None
    fits = isinstance(groups, list) and isinstance(state, dict) and all(isinstance(group, dict) for group in groups)
    if not fits or [g.get("params") for g in groups] != [g["params"] for g in own]:
        raise FileError(f"{path} is not the optimizer's state of this model: delete the checkpoint to start over.")
    for group, mine in zip(groups, own, strict=True):
        wrong = [name for name in mine if name in group and not _alike(group[name], mine[name])]
        if wrong or not set(mine) <= set(group):
            raise FileError(f"{path}: a group's {(wrong or ['settings'])[0]} are damaged: delete the checkpoint.")
    for number, kept in state.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(kept, dict):
            raise FileError(f"{path} keeps something of a parameter {number!r:.40} that this model does not have.")
        shapes = {name: tuple(value.shape) for name, value in kept.items() if isinstance(value, Tensor)}
        of_weights = tuple(parameters[number].shape)
        if set(shapes) != set(kept) or shapes != {n: () if n == "step" else of_weights for n in _ADAM}:
            raise FileError(f"{path}: what it keeps of parameter {number} does not fit: delete the checkpoint.")
        numbers = all(value.is_floating_point() for name, value in kept.items() if name != "step")
        step = kept["step"]
        if not numbers or step.is_complex() or float(step) < 0 or bool((kept["exp_avg_sq"] < 0).any()):
            raise FileError(f"{path}: what it keeps of parameter {number} is damaged: delete the checkpoint.")
        with about(path):
            check_finite({f"{name} of parameter {number}": value for name, value in kept.items()})
    sharding.load_optimizer(optimizer, {"state": state, "param_groups": groups})


def _alike(stored: Any, mine: Any) -> bool:
    """Whether a setting is of the kind that the optimiser has there; numbers finite."""
    if isinstance(mine, list | tuple):
        return isinstance(stored, list | tuple) and len(stored) == len(mine) and all(map(_alike, stored, mine))
    if isinstance(mine, bool | str | None):
        return stored is None or isinstance(stored, bool | str)
    return isinstance(stored, int | float) and not isinstance(stored, bool) and math.isfinite(stored)
