"""The plan of a study: its file, its cells, what each trains, and the results that are there. See `vadis.training.study`."""

import gc
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn
from typing_extensions import TypedDict

from vadis.config import STRICT, apply_overrides, as_dict, build, find_recipe, parse_setting, read_recipe, recipe_names
from vadis.errors import FileError, VadisError
from vadis.records import MAX_BYTES, checked, parse_json, read_bytes
from vadis.training.config import Batch, Recipe, Steps
from vadis.training.tasks import TASKS, load_recipe


def _readable(text: str) -> str:
    parse_setting(text)
    return text


Setting = Annotated[str, AfterValidator(_readable)]
Levels = dict[str, list[Setting]]
"""Name of a level or variant → its `key=value` settings."""
HARMLESS = ("run", "resume", "threads", "device", "logger", "log_every", "checkpoint_every", "checkpoint_seconds",
            "stop_at")  # fmt: skip
"""Settings of a recipe that may change between two calls of a study: they don't change what is learned."""
MAX_CELLS = 100_000
MAX_NAME = 200
"""Bytes of the name of a cell's folder; file systems take 255."""


@dataclass(frozen=True, config=STRICT)
class Budget:
    """What every cell may spend: one of the three; none: what the recipe says."""

    steps: Steps | None = None
    seconds: float | None = Field(default=None, gt=0)
    """Of training, validation included."""
    epochs: float | None = Field(default=None, gt=0)
    """Equal passes over the cell's own training data: a smaller share gets fewer steps."""

    def __post_init__(self) -> None:
        if sum(v is not None for v in (self.steps, self.seconds, self.epochs)) > 1:
            raise ValueError("give steps, seconds or epochs, only one of them")


@dataclass(frozen=True, config=STRICT)
class MotionEvaluation:
    """How motions of every cell are made and measured (`vadis.evaluate`)."""

    data: str
    """Corpus with recorded motion and captions."""
    protocol: str = "ms272"
    evaluator: str = "vadis-mini-evaluator"
    split: str | None = None
    """By default test, else val."""
    kinds: tuple[str, ...] = ("whole",)
    limit: Steps | None = None
    repeats: int = Field(default=3, ge=1, le=10_000)
    """Seeds of captions and pools."""
    generations: int = Field(default=1, ge=1, le=10_000)
    """Sets of motions made."""
    batch: Batch = 32
    """Prompts at once."""
    seed: int = Field(default=0, ge=0)
    tokenizer: str | None = None
    """For recipes that train on tokens alone (`task: generator`): the model that made them."""
    weights: Literal["model", "best"] = "model"
    """The last weights, or those with the lowest validation metric (needs `best` in the recipe)."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the pipeline's call, e.g. temperature."""


@dataclass(frozen=True, config=STRICT)
class Study:
    """A study file; settings of its cells are those of `settings`, then of the budget, then of the levels."""

    recipe: str
    """Base recipe: a file, relative to the study's, or the name of one that comes with vadis."""
    run: str
    """Folder of the cells."""
    title: str = ""
    settings: list[Setting] = Field(default_factory=list)
    budget: Budget = Field(default_factory=Budget)
    axes: dict[str, Levels] = Field(default_factory=dict)
    variants: dict[str, Levels] = Field(default_factory=dict)
    """Table → variants. With axes too (seeds), every variant is combined with their levels."""
    evaluation: MotionEvaluation | None = None
    """Without it only the held-out loss is measured. A level may change it: `evaluation.tokenizer=…`."""

    def __post_init__(self) -> None:
        for where, levels in itertools.chain(self.axes.items(), self.variants.items()):
            if not levels:
                raise ValueError(f"{where} has no levels")
        if not self.axes and not self.variants:
            raise ValueError("a study needs axes (a grid) or variants (tables)")
        heads = sum(map(len, self.variants.values())) or 1
        if (count := heads * math.prod(map(len, self.axes.values()))) > MAX_CELLS:
            raise ValueError(f"the levels make {count:,} cells; a study has at most {MAX_CELLS:,}")

    @property
    def labels(self) -> list[str]:
        """Names that tell the cells apart."""
        return [*(["table", "variant"] if self.variants else []), *self.axes]


@plain(frozen=True)
class Cell:
    """One training: its label on every axis, its settings and its folder. Equal settings share a folder."""

    labels: dict[str, str]
    settings: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name


def load_study(path: str | Path, settings: Sequence[str] = (), **changes: Any) -> Study:
    """A study from a YAML file; `settings` go to every cell's recipe, `changes` (not None) replace fields.

    Raises FileError when it can't be read, VadisError naming what is wrong in it.
    """
    path = find_recipe(path)
    raw = read_recipe(path)
    raw.setdefault("run", f"runs/studies/{path.stem}")
    if isinstance(raw.get("recipe"), str) and raw["recipe"] not in recipe_names():
        raw["recipe"] = str(path.parent / raw["recipe"])
    for group in ("axes", "variants"):  # YAML reads a level called 0 as a number
        if isinstance(raw.get(group), dict):
            raw[group] = {str(k): _named(v) for k, v in raw[group].items()}
    study = build(Study, raw | {k: v for k, v in changes.items() if v is not None}, path.name)
    return replace(study, settings=[*study.settings, *settings])


def _named(levels: Any) -> Any:
    return {str(k): v for k, v in levels.items()} if isinstance(levels, dict) else levels


def cells(study: Study, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of a study in order; `only` keeps those with the named levels, e.g. `size=small size=large seed=0`."""
    heads = [
        ({"table": table, "variant": variant}, settings)
        for table, levels in study.variants.items()
        for variant, settings in levels.items()
    ] or [({}, [])]
    found: list[Cell] = []
    folders: dict[tuple[str, ...], Path] = {}
    for (head, first), levels in itertools.product(heads, itertools.product(*(a.items() for a in study.axes.values()))):
        labels = head | dict(zip(study.axes, (name for name, _ in levels), strict=True))
        settings = (*first, *(s for _, more in levels for s in more))
        folder = folders.setdefault(settings, Path(study.run) / _folder_name(labels))
        found.append(Cell(labels, settings, folder))
    if long := next((c.name for c in found if len(c.name.encode()) > MAX_NAME), None):
        raise VadisError(
            f"{study.run}: the folder of a cell would be called {long[:80]!r}…: give axes and levels shorter names."
        )
    if len({c.folder for c in found}) != len(folders):
        raise VadisError(
            "two cells would have the same folder: give the levels names that differ in letters or digits."
        )
    wanted: dict[str, set[str]] = {}
    for text in only:
        axis, equals, level = text.partition("=")
        levels = {c.labels.get(axis) for c in found}
        if not equals or level not in levels:
            known = (
                ", ".join(sorted(str(x) for x in levels if x)) or f"no such axis; there are {', '.join(study.labels)}"
            )
            raise VadisError(f"can't read {text!r}: expected AXIS=LEVEL, with the level one of: {known}.")
        wanted.setdefault(axis, set()).add(level)
    return [c for c in found if all(c.labels[axis] in levels for axis, levels in wanted.items())]


def _folder_name(labels: dict[str, str]) -> str:
    return "_".join(re.sub(r"[^A-Za-z0-9.=-]+", "-", f"{axis}={level}") for axis, level in labels.items())


def cell_recipe(study: Study, cell: Cell) -> tuple[Recipe, MotionEvaluation | None]:
    """The recipe of a cell without a budget in epochs, and how its motions are measured."""
    budget = study.budget
    spend: list[str] = []
    if budget.steps:
        spend = [f"steps={budget.steps}", "max_seconds=null"]
    elif budget.seconds:
        spend = ["steps=1000000000", f"max_seconds={budget.seconds}"]
    elif budget.epochs:
        spend = ["max_seconds=null"]
    own = [s for s in cell.settings if not s.startswith("evaluation.")]
    recipe = load_recipe(study.recipe, [*study.settings, *spend, *own])
    recipe = replace(recipe, run=str(cell.folder), resume="auto")
    changes = [s.removeprefix("evaluation.") for s in cell.settings if s.startswith("evaluation.")]
    if study.evaluation is None:
        return recipe, None
    page = apply_overrides(as_dict(study.evaluation), changes)
    return recipe, build(MotionEvaluation, page, f"evaluation of {cell.name}")


def facts(task: Any, recipe: Recipe, budget: Budget) -> dict[str, int]:
    """Parameters, training data and steps of a cell.

    `body` counts the parameters without tables of embeddings (and without an output layer that mirrors them), as
    scaling laws do. Raises VadisError for a budget in epochs when the task can't say how much data there is.
    """
    model: nn.Module = task.model
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    head = _output_layer(model)
    if head is not None:
        tables[id(head.weight)] = head.weight.numel()
    parameters = {id(p): p for p in model.parameters()}
    page = {
        "parameters": sum(p.numel() for p in parameters.values()),
        "body": sum(p.numel() for k, p in parameters.items() if k not in tables),
        "trained": sum(p.numel() for p in parameters.values() if p.requires_grad),
    }
    page |= task.data_facts()
    page["steps"] = recipe.steps
    if budget.epochs:
        if "items" not in page:
            raise VadisError(
                f"task {recipe.task} does not say how much data it has: give the budget in steps or seconds."
            )
        page["steps"] = max(1, math.ceil(budget.epochs * page["items"] / (page["items_per_step"] * recipe.accumulate)))
    return page


def _output_layer(model: nn.Module) -> Any:
    """The layer that makes the logits, of models in the manner of transformers."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(getattr(head, "weight", None), nn.Parameter) else None


def dry_run(study: Study, chosen: Sequence[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Every cell with its sizes, or with what is wrong with it under "problem"; nothing is trained or written."""
    for cell in chosen:
        try:
            recipe, _ = cell_recipe(study, cell)
            yield cell, facts(TASKS[recipe.task](recipe), recipe, study.budget) | {"done": is_done(cell)}
        except VadisError as error:
            yield cell, {"problem": str(error)}
        gc.collect()


def is_done(cell: Cell) -> bool:
    """Whether there is a result."""
    return (cell.folder / "result.json").is_file()


class Result(TypedDict):
    """What must stand in a cell's `result.json`; a loss may be NaN."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    settings: dict[str, Any]
    facts: dict[str, float | None]
    loss: float
    best_loss: NotRequired[float]
    train_loss: NotRequired[float | None]
    seconds: NotRequired[float]
    metrics: NotRequired[dict[str, float]]
    real: NotRequired[dict[str, float]]


def read_result(cell: Cell) -> dict[str, Any] | None:
    """The result of a cell, None when there is none; raises FileError when it is damaged."""
    path = cell.folder / "result.json"
    if not path.is_file():
        return None
    try:
        return checked(Result, parse_json(read_bytes(path, MAX_BYTES), path, finite=False), path)  # type: ignore[return-value]
    except FileError as error:
        raise FileError(f"{path} is damaged: {error} Delete it and call the study again.") from None
