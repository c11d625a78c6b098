"""Training: a recipe (YAML) names data, model, loss and schedule; one loop runs them all.

`train("mini-tokenizer", ["steps=100", "optimizer.lr=1e-4"])` returns the folder of the trained model.
"""

from importlib import import_module
from typing import Any

__all__ = ["load_recipe", "train"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import torch only when something is used."""
    if name == "train":
        return import_module("vadis.training.trainer").train
    if name == "load_recipe":
        return import_module("vadis.training.tasks").load_recipe
    raise AttributeError(f"module 'vadis.training' has no attribute {name!r}")
