"""Import of published checkpoints and loading of saved components."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vadis.checkpoint import find_state_dict, read_state_dict
from vadis.errors import ModelError

IMPORTERS = {
    "motionmillion-fsq": "vadis.tokenizers.fsq:from_motionmillion",
    "motionmillion-ar": "vadis.generators.motionmillion:from_motionmillion",
}
"""Kind of a published layout → the function that maps its state dict, in the family's own file."""


def _resolve(target: str) -> Any:
    module, name = target.split(":")
    return getattr(import_module(module), name)


def import_checkpoint(kind: str, source: str | Path | Mapping[str, Tensor], **options: Any) -> Any:
    """Turn a published checkpoint (a file, or its state dict) into our component, strictly: every name used once."""
    if kind not in IMPORTERS:
        raise ModelError(f"unknown checkpoint kind {kind!r}: use one of {', '.join(sorted(IMPORTERS))}.")
    if isinstance(source, Mapping):
        return _resolve(IMPORTERS[kind])(find_state_dict(source), **options)
    for name in ("mean", "std"):
        if isinstance(options.get(name), str | Path):
            options[name] = np.load(options[name], allow_pickle=False)
    return _resolve(IMPORTERS[kind])(read_state_dict(source), **options)
