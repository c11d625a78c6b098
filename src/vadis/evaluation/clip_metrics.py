"""Figures of single clips that a protocol may ask for: what they are called, and how they are measured from joints.

A new group is a `ClipMetrics` and a line in `vadis.evaluation.protocol.CLIP_METRICS`, or an entry point `vadis.metrics` of
another package.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vadis.metrics.mbench import mbench_metrics
from vadis.metrics.physical import ground_quality, physical_metrics

Better = Literal["higher", "lower", "real"]
PerClip = dict[str, np.ndarray]
"""Key of a figure → one value for each clip."""


@dataclass(frozen=True)
class Metric:
    """How a figure is called, written and read. "real": the closer to real motion the better."""

    label: str
    better: Better
    digits: int = 3
    unit: str = ""


@dataclass(frozen=True)
class ClipMetrics:
    """A group of figures."""

    figures: Mapping[str, Metric]
    measure: Callable[[Sequence[np.ndarray], float, str], PerClip]
    """Of world joints `(T, 22, 3)` of each clip in metres, their frame rate, and "compat" (as published) or "native" (SI)."""


def _physical(joints: Sequence[np.ndarray], fps: float, mode: str) -> PerClip:
    p = physical_metrics(joints, fps=fps, mode=mode)  # type: ignore[arg-type]
    scale, tail = (1000.0, "") if mode == "compat" else (1.0, "_si")
    found = {f"{k}{tail}": scale * getattr(p, k) for k in ("slide", "jitter", "dynamic", "penetration")}
    return found | {f"floating{tail}": 100 * p.floating}


def _ground(joints: Sequence[np.ndarray], fps: float, mode: str) -> PerClip:
    g = ground_quality(joints, fps=fps)
    found = {k: getattr(g, k) for k in ("skate", "hover", "acceleration", "jerk")}
    return found | {"sunk": g.penetration, "unsupported": 100 * g.unsupported, "contact": 100 * g.contact}


def _mbench(joints: Sequence[np.ndarray], fps: float, mode: str) -> PerClip:
    m = mbench_metrics(joints, fps=fps, mode="native", floor=0.0)
    names = ("jitter", "dynamic", "foot_floating", "foot_sliding", "ground_penetration")
    return {f"mbench_{k}": getattr(m, k) for k in names}


PHYSICAL = ClipMetrics(
    {
        "slide": Metric("Slide", "lower", 2, "mm/frame"),
        "floating": Metric("Float", "lower", 2, "%"),
        "jitter": Metric("Jitter", "real", 2, "mm/frame²"),
        "dynamic": Metric("Dynamic", "real", 2, "mm/frame"),
        "penetration": Metric("Penet", "lower", 2, "mm"),
        "slide_si": Metric("Slide", "lower", 3, "m/s"),
        "floating_si": Metric("Float", "lower", 2, "%"),
        "jitter_si": Metric("Jitter", "real", 2, "m/s²"),
        "dynamic_si": Metric("Dynamic", "real", 3, "m/s"),
        "penetration_si": Metric("Penet", "lower", 4, "m"),
    },
    _physical,
)
GROUND = ClipMetrics(
    {
        "skate": Metric("Skating", "lower", 3, "m/s"),
        "hover": Metric("Hover", "real", 3, "m"),
        "sunk": Metric("Deepest toe", "lower", 3, "m"),
        "unsupported": Metric("Unsupported", "lower", 2, "%"),
        "contact": Metric("Contact", "real", 1, "%"),
        "acceleration": Metric("Acceleration", "real", 2, "m/s²"),
        "jerk": Metric("Jerk", "real", 1, "m/s³"),
    },
    _ground,
)
MBENCH = ClipMetrics(
    {
        "mbench_jitter": Metric("MBench Jitter_Degree", "lower", 4, "m/frame²"),
        "mbench_dynamic": Metric("MBench Dynamic_Degree", "real", 4, "m/frame"),
        "mbench_foot_floating": Metric("MBench Foot_Floating", "lower", 4),
        "mbench_foot_sliding": Metric("MBench Foot_Sliding", "lower", 4, "m/frame"),
        "mbench_ground_penetration": Metric("MBench Ground_Penetration", "lower", 4, "m"),
    },
    _mbench,
)
