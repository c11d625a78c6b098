"""Readers of settings: every recipe that comes with vadis, `key=value` on top of them, and studies."""

from pathlib import Path
from typing import Any

from fuzzing.run import Reader
from vadis.config import as_dict
from vadis.training.study_plan import cell_recipe, cells, load_study
from vadis.training.tasks import load_phases

RECIPES = Path(__file__).resolve().parents[2] / "src/vadis/recipes"
OVERRIDES = (
    "steps=10",
    "optimizer.lr=1e-4",
    "optimizer.betas=[0.9, 0.95]",
    "schedule.warmup=100",
    "device=cpu",
    "seed=3",
    "ema=null",
)


def _make_recipes(root: Path) -> None:
    for path in sorted([*RECIPES.glob("*.yaml"), *RECIPES.glob("bench/*.yaml")]):
        name = f"{path.parent.name}-{path.stem}"
        (root / name).mkdir()
        (root / name / "recipe.yaml").write_bytes(path.read_bytes())


def _read_recipe(folder: Path) -> Any:
    phases = load_phases(folder / "recipe.yaml")
    return {"phases": phases, "pages": [as_dict(phase) for phase in phases]}


def _make_overrides(root: Path) -> None:
    for name in ("mini-tokenizer", "mini-lm", "mini-stream-ar"):
        (root / name).mkdir()
        (root / name / "recipe.yaml").write_bytes((RECIPES / f"{name}.yaml").read_bytes())
        (root / name / "overrides.txt").write_text("\n".join(OVERRIDES))


def _read_overrides(folder: Path) -> Any:
    place = folder / "overrides.txt"  # not a file of vadis: its lines are words of a command
    words = place.read_text(encoding="utf-8", errors="surrogateescape").split("\n") if place.is_file() else []
    phases = load_phases(folder / "recipe.yaml", [word for word in words if word])
    return {"phases": phases, "pages": [as_dict(phase) for phase in phases]}


def _make_studies(root: Path) -> None:
    for path in sorted(RECIPES.glob("studies/*.yaml")):
        folder = root / path.stem / "studies"
        folder.mkdir(parents=True)
        (folder / "study.yaml").write_bytes(path.read_bytes())
        for recipe in RECIPES.glob("*.yaml"):
            (folder.parent / recipe.name).write_bytes(recipe.read_bytes())


def _read_study(folder: Path) -> Any:
    study = load_study(folder / "studies" / "study.yaml")
    found = cells(study)
    return {"study": study, "cells": found[:50], "recipes": [cell_recipe(study, cell) for cell in found[:3]]}


READERS = {
    "recipe": Reader(_make_recipes, _read_recipe),
    "overrides": Reader(_make_overrides, _read_overrides, files=("overrides.txt",), named=False),
    "study": Reader(_make_studies, _read_study, files=("studies/*.yaml",)),
}
