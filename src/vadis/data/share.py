"""A share of a data set that holds every smaller share: for learning curves."""

import hashlib
from collections.abc import Sequence

import numpy as np

from vadis.errors import VadisError


def nested_share(groups: Sequence[str], sizes: Sequence[float] | np.ndarray, share: float) -> np.ndarray:
    """Which rows (N,) bool make up `share` of a data set, whole groups at a time.

    Groups come in the order of a hash of their names, the same on every machine and whatever else is in the data, until
    `share` of the total of `sizes` is reached. So a smaller share lies inside a larger one, and the share that is
    really taken is the asked one or a little more (as much as its last group). Raises VadisError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise VadisError(f"a share of the data is greater than 0 and at most 1; got {share:g}.")
    totals: dict[str, float] = {}
    for group, size in zip(groups, sizes, strict=True):
        totals[group] = totals.get(group, 0.0) + float(size)
    order = sorted(totals, key=lambda group: hashlib.sha256(group.encode()).digest())
    before = np.cumsum([0.0, *(totals[group] for group in order)])
    wanted = share * before[-1] * (1 - 1e-9)
    taken = {group for group, start in zip(order, before, strict=False) if start < wanted}
    return np.array([group in taken for group in groups], dtype=bool)
