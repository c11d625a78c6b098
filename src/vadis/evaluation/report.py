"""The result of an evaluation: figures with intervals, beside those of real motion, and everything needed to compare them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

from vadis.errors import FileError
from vadis.evaluation.clip_metrics import GROUND, MBENCH, PHYSICAL, Metric
from vadis.evaluation.protocol import CLIP_METRICS
from vadis.files import atomic_write
from vadis.records import checked, read_json

METRICS: dict[str, Metric] = {
    "obeyed": Metric("Obeyed", "higher", 1, "%"),
    "fid": Metric("FID", "lower", 3),
    "r1": Metric("R@1", "higher"),
    "r2": Metric("R@2", "higher"),
    "r3": Metric("R@3", "higher"),
    "matching": Metric("MM-Dist", "lower"),
    "diversity": Metric("Diversity", "real"),
    "multimodality": Metric("MultiModality", "higher"),
    "mpjpe_root": Metric("MPJPE", "lower", 1, "mm"),
    "mpjpe_global": Metric("MPJPE global", "lower", 1, "mm"),
    "mpjpe_procrustes": Metric("PA-MPJPE", "lower", 1, "mm"),
    "acceleration_error": Metric("Acceleration error", "lower", 2, "m/s²"),
    "codes_used": Metric("Codes used", "higher", 1, "%"),
    "perplexity": Metric("Perplexity", "higher", 1),
    **PHYSICAL.figures,
    **GROUND.figures,
    **MBENCH.figures,
    "condition_consistency": Metric("Motion–condition consistency", "higher", 3),
    "generalizability": Metric("Motion generalizability", "higher", 3),
    "peak_jerk": Metric("Seam peak jerk", "real", 1, "m/s³"),
    "area_jerk": Metric("Seam area under jerk", "lower", 1, "m/s²"),
}
"""Key → how to show it, of the figures of vadis."""


def metrics() -> dict[str, Metric]:
    """METRICS, and the figures that other packages add."""
    added = [group for name, group in CLIP_METRICS.usable() if name not in CLIP_METRICS.own]
    return METRICS | {key: metric for group in added for key, metric in group.figures.items()}


@dataclass(frozen=True)
class Value:
    """A mean over seeds; `interval` is 1.96 sd / √n (None for one value)."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    mean: float
    interval: Annotated[float, Field(ge=0)] | None = None
    seeds: Annotated[int, Field(ge=1)] = 1

    @classmethod
    def of(cls, values: Any) -> "Value":
        """Over one value a seed, deviation as of a population (the published formula)."""
        x = np.asarray(values, np.float64)
        return cls(float(x.mean()), float(1.96 * x.std() / np.sqrt(len(x))) if len(x) > 1 else None, len(x))

    def text(self, digits: int) -> str:
        """`0.512 ± 0.003`."""
        return f"{self.mean:.{digits}f}" + ("" if self.interval is None else f" ± {self.interval:.{digits}f}")


@dataclass(frozen=True, eq=False)
class Report:
    """Figures of one model under one protocol, evaluator and data.

    `result` and `real` map metric keys to values; the real "fid" is the distance of two real samples of this size.
    `unavailable` says why a metric of the protocol has no value; `clips` holds values of single items of the first seed.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    protocol: dict[str, Any]
    evaluator: str
    data: str
    items: Annotated[int, Field(ge=0)]
    result: dict[str, Value]
    real: dict[str, Value]
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    identity: dict[str, str] = field(default_factory=dict)
    """Hashes of protocol, evaluator, data and model."""
    settings: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    clips: dict[str, list[Any]] = field(default_factory=dict)

    def delta(self, key: str) -> float | None:
        """Result minus real."""
        return self.result[key].mean - self.real[key].mean if key in self.result and key in self.real else None

    def rows(self) -> list[tuple[str, Metric, Value | None, Value | None]]:
        """(key, metric, real, result) in the order of `metrics`."""
        known = metrics()
        keys = [k for k in known if k in self.result or k in self.real]
        return [(k, known[k], self.real.get(k), self.result.get(k)) for k in keys]

    def markdown(self) -> str:
        """The report as a Markdown page."""
        p = self.protocol
        lines = [f"# {self.model} · {p['name']}\n", f"{p['title']}.\n" if p["title"] else ""]
        lines += [
            f"{self.items} items of {self.data}; evaluator {self.evaluator}; seeds: {self.settings.get('repeats', 1)}, "
            f"sets of predictions: {self.settings.get('generations', 1)}. Mean ± 1.96 sd / √seeds.\n",
            "| metric | better | real | this model | difference |\n| --- | --- | ---: | ---: | ---: |",
        ]
        arrow = {"higher": "↑", "lower": "↓", "real": "→ real"}
        for key, m, real, result in self.rows():
            delta = self.delta(key)
            label = m.label + (f" ({m.unit})" if m.unit else "")
            cells = [v.text(m.digits) if v else "—" for v in (real, result)]
            lines.append(f"| {label} | {arrow[m.better]} | {cells[0]} | {cells[1]} | {'' if delta is None else f'{delta:+.{m.digits}f}'} |")  # fmt: skip
        lines.append("")
        if "fid" in self.real:
            lines.append("The real FID is that of two disjoint real samples, scaled to this number of items.\n")
        known = metrics()
        for key, reason in self.unavailable.items():
            lines.append(f"- no {known[key].label if key in known else key}: {reason}")
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def __str__(self) -> str:
        return self.markdown()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"format": "vadis-report", "version": 1} | asdict(self)

    def save(self, folder: str | Path) -> Path:
        """Write `report.json` and `report.md` to a folder."""
        folder = Path(folder)
        with atomic_write(folder / "report.md") as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")
        with atomic_write(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder / "report.json"

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read a `report.json` (or the folder that holds it); raises FileError."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() and not (path / "report.json").is_dir() else path
        page = read_json(path)
        if (page.pop("format", None), page.pop("version", None)) != ("vadis-report", 1):
            raise FileError(f"{path} is not a vadis report of version 1. Evaluate again with -o FOLDER.")
        report = checked(cls, page, f"{path} is not a readable vadis report")
        if wrong := next((k for k in ("name", "title") if not isinstance(report.protocol.get(k), str)), None):
            raise FileError(f"{path} is not a readable vadis report: protocol.{wrong} must be a text.")
        if unknown := next((k for k in report.result if k not in metrics()), None):
            raise FileError(f"{path} is not a readable vadis report: there is no metric {unknown!r:.60}.")
        return report


def same(first: Mapping[str, str], second: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    """Which of the named identities differ."""
    return [name for name in names if first.get(name) != second.get(name)]
