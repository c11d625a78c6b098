"""The plots of `vadis analyze frequency`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vadis.tokenizers.dsft.split import SplitSpec
from vadis.tokenizers.frequency import FrequencyReport, coverage

BLUE, ORANGE = "#2a6fbb", "#e07b1f"


def _figure(columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(4.6 * columns, 3.6), constrained_layout=True)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_frequency(
    path: Path, found: FrequencyReport, split: SplitSpec, by_frequency: SplitSpec, threshold: float, title: str
) -> None:
    """Share of slow energy of each channel, coverage curves of both streams, share below 1 Hz."""
    figure, (left, middle, right) = _figure(3)
    for columns, colour, name in zip(split.columns, (BLUE, ORANGE), ("base", "phys"), strict=True):
        if not len(columns):
            continue
        left.scatter(columns, found.ratio[columns], s=7, color=colour, label=name)
        right.scatter(columns, found.below_hertz[columns], s=7, color=colour, label=name)
        curve = 100 * coverage(found.energies, columns)
        middle.plot(np.arange(1, len(curve) + 1), curve, color=colour, label=name)
    for columns, colour in zip(by_frequency.columns, (BLUE, ORANGE), strict=True):
        if len(columns):
            curve = 100 * coverage(found.energies, columns)
            middle.plot(np.arange(1, len(curve) + 1), curve, color=colour, linestyle=":", linewidth=1)
    for a, b in split.phys_slices:
        for axes in (left, right):
            axes.axvspan(a - 0.5, b - 0.5, color=ORANGE, alpha=0.08, linewidth=0)
    left.axhline(threshold, color="0.4", linestyle="--", linewidth=1)
    middle.axvline(found.k, color="0.6", linestyle="--", linewidth=1)
    middle.axhline(86, color="0.6", linestyle="--", linewidth=1)
    left.set(title=title, xlabel="channel", ylabel=f"energy in the first {found.k} coefficients")
    middle.set(title="coverage (dotted: split by frequency)", xlabel="coefficients kept", ylabel="energy, %")
    right.set(title=f"movement below {found.hertz:g} Hz", xlabel="channel", ylabel="share of the energy without k = 0")
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_reconstruction(path: Path, rows: Sequence[Mapping[str, float]], K: tuple[int, int]) -> None:
    """Histograms of the error and of the coverage after truncation, and error against length."""
    figure, (left, middle, right) = _figure(3)
    for stream, colour in (("base", BLUE), ("phys", ORANGE)):
        if f"rrmse_{stream}" in rows[0]:
            left.hist([r[f"rrmse_{stream}"] for r in rows], bins=30, color=colour, alpha=0.6, label=stream)
            shares = [100 * r[f"energy_coverage_{stream}"] for r in rows]
            middle.hist(shares, bins=30, color=colour, alpha=0.6, label=stream)
    error, unit = ("mpjpe", "m") if "mpjpe" in rows[0] else ("rmse", "")
    shade = [100 * r["energy_coverage_base"] for r in rows]
    dots = right.scatter([r["T"] for r in rows], [r[error] for r in rows], c=shade, s=10, cmap="viridis")
    figure.colorbar(dots, ax=right, label="energy kept of base, %")
    left.set(title=f"relative error, K = {K[0]}/{K[1]}", xlabel="rRMSE", ylabel="clips")
    middle.set(title="energy kept", xlabel="%", ylabel="clips")
    right.set(title="error against length", xlabel="frames", ylabel=f"{error}{f', {unit}' if unit else ''}")
    for axes in (left, middle):
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)
