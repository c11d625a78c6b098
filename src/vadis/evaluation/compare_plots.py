"""Tables and plots of tokenizer reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vadis.errors import MissingExtra
from vadis.evaluation.compare_tokenizers import DRIFTS, TokenizerReport
from vadis.files import atomic_write

COLUMNS = (
    ("tokenizer", lambda r: r.name),
    ("bits/s", lambda r: f"{r.bits_per_second:,.0f}{'' if r.rate == 'nominal' else ' ' + {'measured': 'm', 'KL rate': 'KL'}[r.rate]}"),
    ("tokens/s", lambda r: f"{r.tokens_per_second:,.1f}"),
    ("local mm", lambda r: f"{r.local_mm:.1f}"),
    ("global mm", lambda r: f"{r.global_mm:.0f}"),
    ("drift mm " + "/".join(f"{s} s" for s in DRIFTS), lambda r: " / ".join(f"{r.drift_mm[s]:.0f}" if s in r.drift_mm else "–" for s in DRIFTS)),
    ("rotation °", lambda r: f"{r.rotation_degrees:.1f}"),
    ("velocity mm/s", lambda r: f"{r.velocity_mm_s:.0f}"),
    ("jitter ×", lambda r: f"{r.jitter_ratio:.2f}"),
    ("skate ×", lambda r: f"{r.skate_ratio:.2f}"),
    ("FID (floor)", lambda r: "–" if r.fid is None else f"{r.fid:.3g}" + ("" if r.fid_floor is None else f" ({r.fid_floor:.2g})")),
    ("codes", lambda r: "–" if r.vocab_size is None else f"{r.vocab_size:,}"),
    ("used", lambda r: "–" if r.utilisation is None else f"{r.utilisation:.0%}"),
    ("perplexity", lambda r: "–" if r.perplexity is None else f"{r.perplexity:,.0f}"),
    ("parameters", lambda r: f"{r.parameters / 1e6:.2f} M"),
    ("encode / decode frames/s", lambda r: f"{r.encode_fps:,.0f} / {r.decode_fps:,.0f}"),
)  # fmt: skip
"""Heading → text of a report."""


def markdown_table(reports: Sequence[TokenizerReport]) -> str:
    """The reports as a Markdown table, in the order given."""
    rows = [[heading for heading, _ in COLUMNS], ["---"] * len(COLUMNS)]
    rows += [[text(report) for _, text in COLUMNS] for report in reports]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def rate_distortion_plot(reports: Sequence[TokenizerReport], path: str | Path) -> None:
    """Local, global and velocity error against bits per second, one colour a family, as PNG or SVG by the suffix."""
    plt = _pyplot()
    families = sorted({report.family for report in reports})
    panels = (("local_mm", "local joint error, mm"), ("global_mm", "global joint error, mm"),
              ("velocity_mm_s", "joint velocity error, mm/s"))  # fmt: skip
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 5.2), layout="constrained")
    for axis, (key, label) in zip(axes, panels, strict=True):
        for i, family in enumerate(families):
            points = sorted((r.bits_per_second, getattr(r, key), r.name) for r in reports if r.family == family)
            x, y, _ = zip(*points, strict=True)
            axis.plot(x, y, "o", color=f"C{i % 10}", label=family, markersize=6)
        axis.set(xscale="log", yscale="log", xlabel="bits per second", ylabel=label)
        axis.grid(which="both", alpha=0.25)
        axis.margins(0.12, 0.08)
        _names(axis, [(r.bits_per_second, getattr(r, key), r.name) for r in reports])
    axes[0].legend(fontsize=8)
    _save(figure, Path(path))
    plt.close(figure)


def _names(axis: Any, points: list[tuple[float, float, str]]) -> None:
    """Name the points, but for those whose name would lie on another; the table has them all."""
    placed: list[tuple[float, float]] = []
    axis.autoscale_view()
    for x, y, name in points:
        across, up = axis.transData.transform((x, y))
        if all(abs(up - v) > 11 or abs(across - u) > 95 for u, v in placed):
            axis.annotate(name, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=6.5)
            placed.append((across, up))


def bars_plot(reports: Sequence[TokenizerReport], path: str | Path) -> None:
    """Bars of errors, jitter and skating, one row a tokenizer."""
    plt = _pyplot()
    panels = (("local_mm", "local error, mm", None), ("global_mm", "global error, mm", None),
              ("rotation_degrees", "rotation error, °", None), ("jitter_ratio", "jitter, × real", 1.0),
              ("skate_ratio", "skating, × real", 1.0))  # fmt: skip
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 0.8 + 0.32 * len(reports)), sharey=True,
                                layout="constrained")  # fmt: skip
    names = [r.name for r in reports]
    for axis, (key, label, line) in zip(axes, panels, strict=True):
        axis.barh(names, [getattr(r, key) for r in reports], color="#4878a8")
        axis.set_xlabel(label)
        if line is not None:
            axis.axvline(line, color="#b04040", linewidth=1)
    axes[0].invert_yaxis()
    _save(figure, Path(path))
    plt.close(figure)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=110)


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtra("plots need matplotlib: pip install 'vadis[export]'.") from error
    return plt
