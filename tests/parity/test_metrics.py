"""Fréchet distance, retrieval, diversity, joint errors and codebook use against the original programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vadis.metrics import codebook_usage, diversity, fid, joint_errors, multimodality, r_precision
from vadis.metrics.arrays import embeddings
from vadis.metrics.retrieval import distances

from .fixtures import arrays, manifest, manifests

Data = dict[str, Tensor]


def _fid(data: Data, _: dict[str, Any]) -> dict[str, float]:
    real, made = data["reference"], data["generated"]
    return {
        "fid": fid(real, made, floor_repeats=0, allow_few=True).value,
        "fid_self": fid(real, real, floor_repeats=0, allow_few=True).value,
        "mu_ref": real.double().mean(0),
        "mu_gen": made.double().mean(0),
    }


def _retrieval(data: Data, config: dict[str, Any]) -> dict[str, Any]:
    pool = config["pool"]
    found = r_precision(data["text"], data["motion"], pool=pool, top_k=config["top_k"])
    first = distances(embeddings(data["text"][:pool], "text"), embeddings(data["motion"][:pool], "motion"))
    return {
        "r_precision": torch.tensor(found.top, dtype=torch.float64),
        "matching_score": found.matching_distance,
        "distance_matrix_batch0": torch.from_numpy(first),
    }


def _spread(data: Data, _: dict[str, Any]) -> dict[str, float]:
    return {
        "diversity": diversity(data["activations"], draws=(data["diversity_first"], data["diversity_second"])),
        "multimodality": multimodality(
            data["groups"], draws=(data["multimodality_first"], data["multimodality_second"])
        ),
    }


def _codebook(data: Data, config: dict[str, Any]) -> dict[str, Any]:
    usage = codebook_usage(data["indices"], config["nb_code"])
    counts = torch.from_numpy(usage.counts)
    return {"perplexity": usage.perplexity, "utilisation": usage.utilisation, "counts": counts}


def _joints(data: Data, _: dict[str, Any]) -> dict[str, Tensor]:
    return {"mpjpe_per_frame": joint_errors(data["gt"], data["pred"])}


MEASURES: dict[str, Callable[[Data, dict[str, Any]], dict[str, Any]]] = {
    "fid": _fid,
    "r_precision": _retrieval,
    "diversity": _spread,
    "perplexity": _codebook,
    "mpjpe_per_frame": _joints,
}
"""One of a case's outputs → what computes all of them."""


@pytest.mark.parametrize("folder", manifests("metrics"))
def test_same_values(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    measure = next(run for output, run in MEASURES.items() if output in about["outputs"])
    results = measure(data, about.get("config", {}))
    tolerance = about["suggested_tolerance"]
    missing = [name for name in about["outputs"] if name not in results and not name.endswith(("_first", "_second"))]
    assert not missing
    for name, value in results.items():
        atol = tolerance.get(name, 1e-3) if isinstance(tolerance, dict) else tolerance
        expected = data[name].double()
        actual = torch.as_tensor(value).double()
        torch.testing.assert_close(
            actual, expected, atol=atol, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
