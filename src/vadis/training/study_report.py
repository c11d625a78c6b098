"""The results of a study as tables and plots; made anew from the cells' `result.json` at any time."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vadis.errors import MissingExtra, VadisError
from vadis.evaluation.protocol import load_protocol
from vadis.files import atomic_write
from vadis.training.study_cell import METRICS
from vadis.training.study_plan import Cell, Study, read_result

FACTS = ("parameters", "body", "trained", "items", "tokens", "steps", "epochs")
FEWEST = 4  # different sizes that a power law is fitted to


def rows_of(study: Study, chosen: Sequence[Cell]) -> list[dict[str, Any]]:
    """A flat row for every cell that has a result: labels, sizes, losses, metrics, and `real_…` of recorded motion."""
    rows = []
    for cell in chosen:
        page = read_result(cell)
        if page is None:
            continue
        row: dict[str, Any] = {**cell.labels, "cell": cell.name} | {k: page["facts"].get(k) for k in FACTS}
        row |= {k: page.get(k) for k in ("seconds", "loss", "best_loss", "train_loss")}
        row |= {k: page.get("metrics", {}).get(k) for k in METRICS}
        rows.append(row | {f"real_{k}": page.get("real", {}).get(k) for k in METRICS})
    return rows


def write_report(study: Study, chosen: Sequence[Cell]) -> list[Path]:
    """Write `table.csv`, `table.json`, `table.md` and, for a grid, a plot an axis with sizes; returns the files.

    Raises VadisError when no cell has a result.
    """
    rows = rows_of(study, chosen)
    if not rows:
        raise VadisError(f"no cell of {study.run} has a result yet.")
    folder, names = Path(study.run), [k for k in rows[0] if any(r[k] is not None for r in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    fits = power_laws(study, rows)
    page = {"title": study.title, "rows": rows, "fits": fits}
    written = [folder / name for name in ("table.csv", "table.json", "table.md")]
    contents = (text.getvalue(), json.dumps(page, indent=1, ensure_ascii=False) + "\n", markdown(study, rows, fits))
    for path, content in zip(written, contents, strict=True):
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [*written, *plots(study, rows)]


# ---- tables


def averaged(study: Study, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in `seed` only made one: means, `…_sd` (sample deviation, of several) and `seeds`."""
    labels = [name for name in study.labels if name != "seed"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in labels), []).append(row)
    found = []
    for group in groups.values():
        row = dict(group[0]) | {"seeds": len(group)}
        for key in ("seconds", "loss", "best_loss", "train_loss", "epochs", "steps", *METRICS):
            values = [r[key] for r in group if r[key] is not None]
            if values:
                row[key] = sum(values) / len(values)
                row[f"{key}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found.append(row)
    return found


COLUMNS = (
    ("parameters", "parameters", lambda v: short(v)),
    ("body", "without embeddings", lambda v: short(v)),
    ("tokens", "motion tokens", lambda v: short(v)),
    ("steps", "steps", lambda v: f"{v:,.0f}"),
    ("epochs", "epochs", lambda v: f"{v:.3g}"),
    ("seconds", "seconds", lambda v: f"{v:.0f}"),
    ("train_loss", "training loss", lambda v: f"{v:.3f}"),
    ("loss", "held-out loss", lambda v: f"{v:.3f}"),
    ("best_loss", "lowest", lambda v: f"{v:.3f}"),
    ("r1", "R@1", lambda v: f"{v:.3f}"),
    ("r3", "R@3", lambda v: f"{v:.3f}"),
    ("fid", "FID", lambda v: f"{v:.3f}"),
)
"""Key, heading and format."""


def markdown(study: Study, rows: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]] = ()) -> str:
    """The results in Markdown: one table for a grid, one table for each table of variants; seeds averaged."""
    lines = [f"# {study.title}", ""] if study.title else []
    means = averaged(study, rows)
    for table in study.variants or {"": {}}:
        part = [r for r in means if r.get("table", "") == table]
        if part:
            lines += [f"## {table}", ""] if table else []
            lines += [*_table([n for n in study.labels if n not in ("table", "seed")], part), ""]
    lines += [f"- {fit['text']}" for fit in fits]
    return "\n".join(lines).rstrip() + "\n"


def _table(labels: list[str], rows: list[dict[str, Any]]) -> list[str]:
    columns = [c for c in COLUMNS if any(r.get(c[0]) is not None for r in rows)]
    if max(r["seeds"] for r in rows) > 1:
        columns.append(("seeds", "seeds", lambda v: str(v)))
    lines = [[*labels, *(heading for _, heading, _ in columns)]]
    lines.append(["---"] * len(lines[0]))
    lines += [[*(r[n] for n in labels), *(_shown(r, key, form) for key, _, form in columns)] for r in rows]
    real = {k: rows[0].get(f"real_{k}") for k in METRICS}
    if any(v is not None for v in real.values()):
        cells = ["" if real.get(key) is None else form(real[key]) for key, _, form in columns]
        lines.append([*(["real motion"] + [""] * (len(labels) - 1)), *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def _shown(row: dict[str, Any], key: str, form: Any) -> str:
    value, spread = row.get(key), row.get(f"{key}_sd")
    if value is None:
        return "–"
    varies = spread is not None and key not in ("steps", "epochs", "seconds")
    return f"{form(value)} ± {form(spread)}" if varies else form(value)


def short(value: float) -> str:
    """`1234567` -> `1.23 M`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


# ---- power laws


@dataclass(frozen=True)
class PowerLaw:
    """loss = factor · x^-exponent, by least squares on logarithms."""

    factor: float
    exponent: float
    r2: float
    points: int


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """A power law through (x, y), None with fewer than four different x, values that aren't positive, or no decline.

    It has no irreducible term: with so few points three numbers could not be told apart.
    """
    if len(set(x)) < FEWEST or min(*x, *y) <= 0:
        return None
    a, b = np.log(x), np.log(y)
    slope, offset = np.polyfit(a, b, 1)
    if slope >= 0:
        return None
    left = float(((b - slope * a - offset) ** 2).sum())
    total = float(((b - b.mean()) ** 2).sum())
    return PowerLaw(math.exp(offset), -float(slope), 1 - left / total if total else 1.0, len(x))


def loss_of(study: Study) -> str:
    """Which held-out loss belongs to the weights that are compared: the last one, or the lowest on the way."""
    return "best_loss" if study.evaluation is not None and study.evaluation.weights == "best" else "loss"


def sized_axes(study: Study, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Axis → the size that it changes ("body", "parameters" or "tokens"), for axes that change one."""
    found = {}
    for axis in study.axes:
        others = [name for name in study.labels if name != axis]
        for key in ("body", "tokens"):
            groups: dict[tuple[Any, ...], set[Any]] = {}
            for row in rows:
                groups.setdefault(tuple(row[n] for n in others), set()).add(row[key])
            if any(len(sizes - {None}) > 1 for sizes in groups.values()):
                found[axis] = "parameters" if key == "body" else key
                break
    return found


def power_laws(study: Study, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fits of the held-out loss along every axis with sizes, other axes fixed, where there are enough points."""
    found = []
    means = averaged(study, rows)
    for axis, key in sized_axes(study, rows).items():
        for label, line in _lines(study, means, axis, key):
            if (law := fit_power_law([r[key] for r in line], [r[loss_of(study)] for r in line])) is not None:
                text = (f"power law fitted to {law.points} points ({label or 'all'}): held-out loss = {law.factor:.3g} × "
                        f"{key}^-{law.exponent:.3f}, R² {law.r2:.3f} (of logarithms)")  # fmt: skip
                found.append({"axis": axis, "label": label, "size": key, "text": text, **vars(law)})
    return found


def _lines(
    study: Study, means: Sequence[dict[str, Any]], axis: str, key: str
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of one line of a plot each: all other labels fixed, sorted by size."""
    others = [n for n in study.labels if n not in (axis, "seed")]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in means:
        if row[key] is not None:
            groups.setdefault(", ".join(f"{n} {row[n]}" for n in others), []).append(row)
    return [(label, sorted(group, key=lambda r: r[key])) for label, group in groups.items()]


# ---- plots


PANELS = {
    "loss": "held-out loss, nats a token",
    "best_loss": "lowest held-out loss, nats a token",
    "r1": "R@1",
    "fid": "FID",
}
NAMES = {"parameters": "parameters", "tokens": "motion tokens to train on"}


def plots(study: Study, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """One file for every axis that changes a size: loss, R@1 and FID against it, a line for each of the other levels."""
    axes = sized_axes(study, rows)
    if not axes:
        return []
    plt = _pyplot()
    means, written = averaged(study, rows), []
    panels = [key for key in (loss_of(study), "r1", "fid") if any(r.get(key) is not None for r in means)]
    for axis, key in axes.items():
        figure, places = plt.subplots(
            1, len(panels), figsize=(4.8 * len(panels), 4.2), layout="constrained", squeeze=False
        )
        for value, place in zip(panels, places[0], strict=True):
            for number, (label, line) in enumerate(_lines(study, means, axis, key)):
                _draw_line(place, line, key, value, label, f"C{number}")
            ticks = sorted({r[key] for r in means if r[key] is not None})
            place.set(xscale="log", xlabel=NAMES[key], ylabel=PANELS[value])
            place.set_xticks(ticks, [short(t) for t in ticks], rotation=30 if len(ticks) > 4 else 0)
            place.minorticks_off()
            place.grid(alpha=0.25)
            _bounds(place, study, means, value)
        for law in (law for law in power_laws(study, rows) if law["axis"] == axis):
            low, high = places[0][0].get_xlim()
            x = np.geomspace(low, high, 50)
            places[0][0].plot(x, law["factor"] * x ** -law["exponent"], ":", color="0.5")
        places[0][0].legend(fontsize=8)
        path = Path(study.run) / f"{axis}.png"
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        plt.close(figure)
        written.append(path)
    return written


def _draw_line(place: Any, line: list[dict[str, Any]], key: str, value: str, label: str, color: str) -> None:
    points = [(r[key], r[value], r.get(f"{value}_sd")) for r in line if r.get(value) is not None]
    if points:
        x, y, spread = zip(*points, strict=True)
        bars = None if None in spread else spread
        place.errorbar(x, y, yerr=bars, fmt="o-", color=color, label=label or None, markersize=5, capsize=3)


def _bounds(place: Any, study: Study, means: Sequence[dict[str, Any]], value: str) -> None:
    """Say what real motion reaches, and mark chance; a line of real motion would squeeze small models together."""
    said = []
    if (real := means[0].get(f"real_{value}")) is not None:
        said.append(f"real motion {real:.3f}")
    if value == "r1" and study.evaluation is not None:
        chance = 1 / load_protocol(study.evaluation.protocol).pool
        place.axhline(chance, color="black", linestyle="--", linewidth=1)
        said.append(f"dashed: chance {chance:.3f}")
    if said:
        place.set_title(", ".join(said), fontsize=9)


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtra("plots need matplotlib: pip install 'vadis[export]'.") from error
    return plt
