"""Which columns of a frame change slowly (Base: poses and places) and which are rates and contacts (Phys), after MotionVLA.

Columns are taken in increasing order inside each slice, slices in the order in which they are listed. The split named
"upstream_shifted" of HumanML3D is the one of the published evaluation script, whose borders all lie four columns too far;
it is for comparing numbers only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from vadis.errors import ShapeError, VadisError
from vadis.tokenizers.frequency import energy_map, low_frequency_ratio

MAX_COLUMNS = 65_536
Slices = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SplitSpec:
    """Two groups of columns that together hold each of the D columns once.

    Args:
        name: of the split.
        base_slices: (start, stop) of the slow columns, in the order of the stream.
        phys_slices: the same of the rates; may be empty, then there is one stream only.

    Raises VadisError for slices that overlap or leave a column out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    base_slices: Slices
    phys_slices: Slices = ()

    def __post_init__(self) -> None:
        pairs = (*self.base_slices, *self.phys_slices)
        bad = [pair for pair in pairs if not 0 <= pair[0] < pair[1]]
        if sum(stop - start for start, stop in pairs) > MAX_COLUMNS:
            raise VadisError(f"split {self.name!r} has more than {MAX_COLUMNS} columns.")
        if bad or not self.base_slices:
            raise VadisError(f"split {self.name!r}: {f'{bad[0]} is not (start, stop)' if bad else 'base is empty'}.")
        order = np.concatenate([self.base, self.phys])
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            raise VadisError(f"split {self.name!r} must hold every column from 0 to its last one exactly once.")

    @property
    def dim(self) -> int:
        """D, columns of both streams."""
        return len(self.base) + len(self.phys)

    @cached_property
    def base(self) -> np.ndarray:
        """Columns of the Base stream in its order, int64."""
        return _columns(self.base_slices)

    @cached_property
    def phys(self) -> np.ndarray:
        """Columns of the Phys stream in its order, int64."""
        return _columns(self.phys_slices)

    @property
    def slices(self) -> tuple[Slices, Slices]:
        """Slices of Base and of Phys."""
        return self.base_slices, self.phys_slices

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns of Base and of Phys."""
        return self.base, self.phys

    @classmethod
    def from_columns(cls, name: str, base: Iterable[int], phys: Iterable[int]) -> "SplitSpec":
        """The split of two lists of columns, whose order is kept."""
        return cls(name, _runs(base), _runs(phys))

    @classmethod
    def from_frequency(
        cls, clips: Iterable[np.ndarray], threshold: float = 0.6, k: int = 5, k_total: int = 50, name: str = "frequency"
    ) -> "SplitSpec":
        """Columns with at least `threshold` of the energy of `k_total` coefficients in the first `k` are Base.

        The rule of MotionVLA's analysis; clips shorter than `k_total` frames are left out. Raises VadisError when none is left.
        """
        ratio = low_frequency_ratio(energy_map(clips, k_total), k)
        return cls.from_columns(name, np.flatnonzero(ratio >= threshold), np.flatnonzero(ratio < threshold))


def _columns(slices: Slices) -> np.ndarray:
    return np.concatenate([np.arange(0), *(np.arange(a, b) for a, b in slices)]).astype(np.int64)


def _runs(columns: Iterable[int]) -> Slices:
    """Runs of columns that count up by one, as (start, stop)."""
    runs: list[list[int]] = []
    for column in map(int, columns):
        if runs and runs[-1][1] == column:
            runs[-1][1] += 1
        else:
            runs.append([column, column + 1])
    return tuple((a, b) for a, b in runs)


SPLITS = {
    "vimogen276": SplitSpec(
        "vimogen276", ((0, 126), (126, 192), (258, 264), (270, 273)), ((192, 258), (264, 270), (273, 276))
    ),
    "hml263": SplitSpec("hml263", ((3, 4), (4, 67), (67, 193)), ((0, 1), (1, 3), (193, 259), (259, 263))),
    "kit251": SplitSpec("kit251", ((3, 4), (4, 64), (64, 184)), ((0, 1), (1, 3), (184, 247), (247, 251))),
    "ms272": SplitSpec("ms272", ((8, 74), (140, 272)), ((0, 2), (2, 8), (74, 140))),
    "ms272_absroot": SplitSpec("ms272_absroot", ((2, 8), (8, 74), (140, 272)), ((0, 2), (74, 140))),
    "upstream_shifted": SplitSpec("upstream_shifted", ((7, 8), (8, 197)), ((0, 7), (197, 263))),
}
"""The split of each representation, by its name, and the shifted one of the published script."""


def split_for(representation: str, split: SplitSpec | str | None = None) -> SplitSpec:
    """The split to use: one that is given, "semantic" or None for the representation's own, "upstream_shifted".

    Raises VadisError for unknown names and for representations without a split of their own.
    """
    if isinstance(split, SplitSpec):
        return split
    name = representation if split in (None, "semantic") else split
    if name not in SPLITS:
        raise VadisError(
            f"no split {name!r}; known are {', '.join(SPLITS)}. Give a SplitSpec, or make one with SplitSpec.from_frequency."
        )
    return SPLITS[name]


def split_of_sizes(base: int, phys: int) -> SplitSpec:
    """The known split with that many columns in its streams. Raises ShapeError where there is none."""
    for split in SPLITS.values():
        if (len(split.base), len(split.phys)) == (base, phys):
            return split
    raise ShapeError(f"no known split has {base} and {phys} columns: give split=SplitSpec(…).")
