"""Motion in the frequency domain: the cosine transform along time, where the energy lies, what truncation costs.

All transforms are the orthonormal DCT-II (inverse: DCT-III) along time. Coefficient k of a clip of T frames oscillates at
k * fps / 2T hertz, so "the first five coefficients" means nothing without T: the share below a frequency is reported too.

Shapes: T frames, D features, K coefficients.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from vadis.errors import ShapeError, VadisError

EPSILON = 1e-8
"""Added to a channel's energy before dividing, as the published analysis does."""


@lru_cache(maxsize=256)
def cosine_basis(frames: int, count: int) -> np.ndarray:
    """The first `count` orthonormal cosines over `frames` frames, `(count, T)` float32, read-only."""
    k, t = np.arange(count)[:, None], np.arange(frames)
    basis = np.cos(np.pi * (2 * t + 1) * k / (2 * frames)) * math.sqrt(2 / frames)
    basis[0] = math.sqrt(1 / frames)
    basis = np.ascontiguousarray(basis, dtype=np.float32)
    basis.setflags(write=False)
    return basis


def truncate(x: np.ndarray, count: int) -> np.ndarray:
    """The clip `(T, D)` from its first `count` coefficients only, float32."""
    basis = cosine_basis(len(x), min(count, len(x)))
    return basis.T @ (basis @ np.asarray(x, dtype=np.float32))


def _energies(x: np.ndarray) -> np.ndarray:
    from scipy.fft import dct

    return np.square(np.asarray(dct(x, type=2, norm="ortho", axis=0)))


def _checked(clips: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    width = None
    for i, clip in enumerate(clips):
        x = np.asarray(clip)
        if x.ndim != 2 or (width is not None and x.shape[1] != width):
            raise ShapeError(f"clip {i} has shape {x.shape}; expected (T, {width or 'D'}).")
        if not np.isfinite(x).all():
            raise VadisError(f"clip {i} holds values that are not finite: repair or leave it out.")
        width = x.shape[1]
        yield x


def energy_map(clips: Iterable[np.ndarray], k_total: int = 50) -> np.ndarray:
    """Share of each channel's energy in each of the first `k_total` coefficients, averaged over clips: `(D, k_total)`.

    Shares are of those coefficients together. Clips of fewer than `k_total` frames are left out; raises VadisError when none
    is left, ShapeError for clips of several widths.
    """
    total, used = None, 0
    for x in _checked(clips):
        if len(x) < k_total:
            continue
        energy = _energies(x)[:k_total].T
        share = energy / (energy.sum(axis=1, keepdims=True) + EPSILON)
        total = share.astype(np.float64) if total is None else total + share
        used += 1
    if total is None:
        raise VadisError(f"no clip has the {k_total} frames that {k_total} coefficients need: use longer clips.")
    return total / used


def low_frequency_ratio(energies: np.ndarray, k: int = 5) -> np.ndarray:
    """Share of each channel `(D,)` in the first `k` columns of an energy map."""
    return energies[:, :k].sum(axis=1)


def coverage(energies: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Share of the energy in the first 1, 2, … coefficients, mean over the channels `columns`: `(k_total,)`."""
    return np.cumsum(energies[columns].mean(axis=0))


def coefficients_for(curve: np.ndarray, share: float = 0.86) -> int:
    """Smallest number of coefficients whose coverage is at least `share`; the length of the curve where none is."""
    reached = np.flatnonzero(curve >= share)
    return int(reached[0]) + 1 if len(reached) else len(curve)


@dataclass(frozen=True, eq=False)
class FrequencyReport:
    """Where the energy of a set of clips lies, a row a channel."""

    energies: np.ndarray
    """(D, k_total) shares, mean over clips."""
    ratio: np.ndarray
    """(D,) share of the first k coefficients, constant part included."""
    ratio_moving: np.ndarray
    """(D,) the same without the constant part k = 0: what of the movement itself is slow."""
    below_hertz: np.ndarray
    """(D,) share of the movement's energy below `hertz`, over all coefficients of a clip."""
    hertz: float
    k: int
    clips: int
    frames: int


def analyze(
    clips: Iterable[np.ndarray], fps: float, k: int = 5, k_total: int = 50, hertz: float = 1.0
) -> FrequencyReport:
    """The frequency report of clips `(T, D)`. Raises VadisError when no clip has `k_total` frames."""
    kept = [x for x in _checked(clips) if len(x) >= k_total]
    energies = energy_map(kept, k_total)
    moving, slow = np.zeros(energies.shape[0]), np.zeros(energies.shape[0])
    for x in kept:
        energy = _energies(x.astype(np.float64))
        change = energy[1:k_total].sum(axis=0)
        moving += energy[1:k].sum(axis=0) / (change + EPSILON)
        below = np.arange(len(x)) * fps / (2 * len(x)) < hertz
        below[0] = False
        slow += energy[below].sum(axis=0) / (energy[1:].sum(axis=0) + EPSILON)
    used = len(kept)
    ratio = low_frequency_ratio(energies, k)
    return FrequencyReport(energies, ratio, moving / used, slow / used, hertz, k, used, sum(map(len, kept)))


def relative_rmse(real: np.ndarray, made: np.ndarray) -> float:
    """Root mean square error over the root mean square of the real clip."""
    return float(np.sqrt(np.mean(np.square(real - made))) / np.sqrt(np.mean(np.square(real))))


def _rmse(real: np.ndarray, made: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(real - made))))


def _covered(x: np.ndarray, count: int) -> float:
    energy = _energies(x)
    return float(energy[:count].sum() / (energy.sum() + EPSILON))


def truncation_errors(
    x: np.ndarray, split: Any, K: tuple[int, int] = (5, 25), positions: slice | None = None
) -> dict[str, float]:
    """What keeping K coefficients of each stream costs a clip `(T, D)` in physical units.

    rmse and rRMSE over all columns and by stream, energy coverage, and with `positions` (columns of joint positions relative
    to the body) the mean joint error in their unit.
    """
    made = np.empty_like(x, dtype=np.float32)
    for columns, count in ((split.base, K[0]), (split.phys, K[1])):
        made[:, columns] = truncate(x[:, columns], count)
    errors = {"T": float(len(x)), "rmse": _rmse(x, made), "rrmse": relative_rmse(x, made)}
    for name, columns, count in (("base", split.base, K[0]), ("phys", split.phys, K[1])):
        if len(columns):
            errors[f"rmse_{name}"] = _rmse(x[:, columns], made[:, columns])
            errors[f"rrmse_{name}"] = relative_rmse(x[:, columns], made[:, columns])
            errors[f"energy_coverage_{name}"] = _covered(x[:, columns], count)
    if positions is not None:
        gap = (x - made)[:, positions].reshape(len(x), -1, 3)
        errors["mpjpe"] = float(np.linalg.norm(gap, axis=-1).mean())
    return errors


def published_errors(
    x: np.ndarray, mean: np.ndarray, std: np.ndarray, split: Any, K: tuple[int, int] = (5, 25)
) -> dict[str, float]:
    """The row that MotionVLA's evaluation script prints for a raw HumanML3D clip `(T, 263)`, mistakes included.

    It takes raw features for normalised ones, multiplies by std once more, and reads the joints from columns 8:71 instead of
    4:67, so its "mpjpe" is no length. `truncation_errors` gives the true figures.
    """
    errors = truncation_errors(x, split, K)
    made = np.empty_like(x, dtype=np.float32)
    for columns, count in ((split.base, K[0]), (split.phys, K[1])):
        made[:, columns] = truncate(x[:, columns], count)
    real_again, made_again = x * std + mean, made * std + mean
    gap = (real_again - made_again)[:, 8:71].reshape(len(x), -1, 3)
    return {
        "T": float(len(x)),
        "rmse_norm": errors["rmse"],
        "rmse_base_norm": errors["rmse_base"],
        "rmse_phys_norm": errors["rmse_phys"],
        "rmse_denorm": _rmse(real_again, made_again),
        "mpjpe": float(np.linalg.norm(gap, axis=-1).mean()),
        "energy_coverage_base": errors["energy_coverage_base"],
        "energy_coverage_phys": errors["energy_coverage_phys"],
    }


def summary(rows: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, std, median, min and max of each column of per-clip rows."""
    listed = list(rows)
    if not listed:
        raise VadisError("no clip to summarise: give at least one.")
    columns = {name: np.array([row[name] for row in listed]) for name in listed[0]}
    return {
        name: {"mean": float(v.mean()), "std": float(v.std()), "median": float(np.median(v)), "min": float(v.min()),
               "max": float(v.max())}
        for name, v in columns.items()
    }  # fmt: skip
