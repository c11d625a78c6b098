"""Published checkpoints in: which kinds there are, and the way from a file, folder or state dict to our component.

The map of a checkpoint's names lives in the file of its family; a new kind is a line in a table here.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vadis.checkpoint import find_state_dict, read_file, read_state_dict, weights_file
from vadis.errors import FileError, ModelError, about
from vadis.hub import find_folder
from vadis.io.arrays import read_array
from vadis.plugins import Table, resolve

IMPORTERS = Table(
    "vadis.importers",
    {
        "motionstreamer-tae": "vadis.tokenizers.causal_tae:from_motionstreamer",
        "motionmillion-fsq": "vadis.tokenizers.fsq:from_motionmillion",
        "t2mgpt-vqvae": "vadis.tokenizers.vqvae:from_t2mgpt",
        "momask-rvq": "vadis.tokenizers.rvqvae:from_momask",
        "motion-vqvae": "vadis.tokenizers.mg_vqvae:from_motion_vqvae",
        "t2mgpt-gpt": "vadis.generators.t2mgpt:from_t2mgpt",
        "motionmillion-ar": "vadis.generators.motionmillion:from_motionmillion",
        "motionstreamer-ar": "vadis.generators.motionstreamer:from_motionstreamer",
        "ms272-evaluator": "vadis.evaluators.tmr:from_motionstreamer",
        "guo-evaluator": "vadis.evaluators.guo:from_guo",
        "nrdf": "vadis.evaluators.nrdf:from_nrdf",
    },
)
"""Kind of a published file → function of its state dict and options."""
WHOLE_FILES = {"guo-evaluator"}
"""Kinds whose file holds several state dicts: their importer takes all that it holds."""
NORMALIZED = {
    "guo-evaluator",
    "momask-rvq",
    "motion-vqvae",
    "motionmillion-fsq",
    "motionstreamer-tae",
    "ms272-evaluator",
    "t2mgpt-vqvae",
}
"""Kinds whose statistics are looked for beside the file when they are not given."""
OPTION_FILES = {
    "momask-rvq": "vadis.tokenizers.rvqvae:options_beside",
    "motion-vqvae": "vadis.tokenizers.mg_vqvae:options_beside",
}
"""Kind of a published file → function of its path that reads the options lying beside it."""
FOLDER_IMPORTERS = {
    "dsft": "vadis.tokenizers.dsft.tokenizer:from_original",
    "motius-gotozero": "vadis.generators.motius:from_folder",
}
"""Kind of a published folder → function of its path and options."""


def import_checkpoint(kind: str, source: str | Path | Mapping[str, Tensor], **options: Any) -> Any:
    """Turn a published checkpoint (file, folder or state dict) into our component, strictly: every name is used once.

    `options` are fields of the component's config that the tensors don't tell, and `mean`, `std` (arrays or .npy files; for
    a tokenizer they are also looked for beside the file). Raises ModelError or FileError.
    """
    if kind not in IMPORTERS and kind not in FOLDER_IMPORTERS:
        known = sorted([*IMPORTERS, *FOLDER_IMPORTERS])
        raise ModelError(f"unknown checkpoint kind {kind!r}: use one of {', '.join(known)}.")
    for name in ("mean", "std"):
        if isinstance(options.get(name), str | Path):
            options[name] = read_array(options[name])
    if kind in FOLDER_IMPORTERS:
        if isinstance(source, Mapping):
            raise ModelError(f"{kind} is a folder of several files: give its path.")
        folder = find_folder(source)
        with about(folder):
            return resolve(FOLDER_IMPORTERS[kind])(folder, **options)
    importer = IMPORTERS[kind]
    if isinstance(source, Mapping):
        return importer(source if kind in WHOLE_FILES else find_state_dict(source), **options)
    preferred = [f"{kind.split('-')[-1]}{suffix}" for suffix in (".safetensors", ".pt", ".pth")]
    path = weights_file(source, (*preferred, "net_best_fid.tar"))
    payload = read_file(path) if kind in WHOLE_FILES else read_state_dict(path)
    if kind in OPTION_FILES:
        options = resolve(OPTION_FILES[kind])(path) | options
    if kind in NORMALIZED and "mean" not in options and "std" not in options:
        found = _statistics(path)
        if not found and not any(str(name).split(".")[-1] == "mean" for name in payload):
            warnings.warn(
                f"{path.name} holds no mean and std, so features must be normalised already; give mean=, std=.",
                stacklevel=2,
            )
        options |= found
    with about(path):
        return importer(payload, **options)


def _statistics(weights: Path) -> dict[str, np.ndarray]:
    """The mean and std that lie beside the weights, or in a folder `meta` there or one up, as published programs put them."""
    for folder in (weights.parent, weights.parent / "meta", weights.parent.parent / "meta"):
        for names in (("mean.npy", "std.npy"), ("Mean.npy", "Std.npy")):
            if all((folder / name).is_file() for name in names):
                return {name[:-4].lower(): _row(folder / name) for name in names}
    return {}


def _row(path: Path) -> np.ndarray:
    array = read_array(path)
    if array.ndim != 1:
        raise FileError(f"{path} must hold a row of numbers (D,); this array has the shape {array.shape}.")
    return array
