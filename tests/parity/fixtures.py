"""Parity cases: hash-normal weights, manifests and stored arrays of one topic folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(os.environ.get("VADIS_PARITY_DIR") or Path(__file__).resolve().parents[2].parent / "shared" / "parity")


def manifests(topic: str) -> list[Any]:
    """Every folder with a manifest at or under `<root>/<topic>`, as pytest parameters; one skip where there is none."""
    folders = sorted(path.parent for path in (ROOT / topic).rglob("manifest.json"))
    if not folders:
        reason = f"parity fixtures not found at {ROOT / topic}; they are private test data"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(folder, id=str(folder.relative_to(ROOT))) for folder in folders]


def cases(topic: str, section: str = "cases") -> list[Any]:
    """Every (folder, case name) of a topic whose manifest lists its cases, as pytest parameters."""
    result = []
    for parameter in manifests(topic):
        folder = parameter.values[0]
        if folder is None:
            return [pytest.param(None, None, marks=parameter.marks)]
        names = json.loads((folder / "manifest.json").read_text())[section]
        result += [pytest.param(folder, name, id=f"{parameter.id}/{name}") for name in names]
    return result


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of one folder."""
    return json.loads((folder / "manifest.json").read_text())


def arrays(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The stored arrays of one folder whose names start with `prefix`, which is removed."""
    from safetensors.torch import load_file

    if (folder / "data.safetensors").is_file():
        data = load_file(folder / "data.safetensors")
    else:
        with np.load(folder / "data.npz") as stored:
            data = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return {name.removeprefix(prefix): value for name, value in data.items() if name.startswith(prefix)}


def fill_value(
    name: str, shape: list[int], gain: float = 0.5, centre_conv: bool = False, codebook_std: float | None = None
) -> Tensor:
    """The hash-normal value of one tensor: it depends on name and shape only."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    x = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    if codebook_std is not None and name.endswith("codebook"):
        x = codebook_std * x
    elif x.ndim >= 2:
        x = x - x.mean(axis=1, keepdims=True) if centre_conv and x.ndim == 3 else x
        x = gain * x / np.sqrt(x[0].size)
    else:
        x = 1 + 0.1 * np.abs(x) if name.endswith("running_var") else name.endswith("weight") + 0.02 * x
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def fill_state(
    entries: dict[str, Any], constructed: dict[str, Tensor] | None = None, **parameters: Any
) -> dict[str, Tensor]:
    """A state dict from a manifest's `state_dict` (name → [dtype, shape]).

    Buffers that are not floating, or whose name ends as `keep_as_constructed` says, come from `constructed` (by ending).
    """
    keep = tuple(parameters.pop("keep_as_constructed", None) or ())
    state = {}
    for name, (dtype, shape) in entries.items():
        if not dtype.startswith(("float", "bfloat")) or (keep and name.endswith(keep)):
            matches = [value for key, value in (constructed or {}).items() if name.endswith(key)]
            assert matches, f"no constructed value for {name}"
            state[name] = matches[0].clone()
        else:
            state[name] = fill_value(name, shape, **parameters)
    return state
