"""Pure functions on arrays: what can be measured of a motion, a set of motions, or tokens."""

from importlib import import_module
from typing import Any

_LAZY = {
    "acceleration_error": "reconstruction",
    "body_penetration": "penetration",
    "capsule_penetration": "capsules",
    "codebook_usage": "codebook",
    "codebook_usages": "codebook",
    "diversity": "distribution",
    "fid": "distribution",
    "ground_quality": "physical",
    "jitter": "reconstruction",
    "joint_errors": "reconstruction",
    "mbench_metrics": "mbench",
    "mpjpe": "reconstruction",
    "multimodality": "distribution",
    "physical_metrics": "physical",
    "reconstruction_errors": "reconstruction",
    "r_precision": "retrieval",
}
__all__ = [*_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"vadis.metrics.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'vadis.metrics' has no attribute {name!r}")
