"""What every metric checks before it measures: shapes and finite values, for NumPy arrays and torch tensors alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError, VadisError

Array = NDArray[np.floating[Any]]


def to_numpy(x: Any) -> NDArray[Any]:
    """A NumPy view or copy of an array, tensor (any device) or nested list."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) in ("torch.bfloat16", "torch.float16") else x).numpy()
    return np.asarray(x)


def embeddings(x: Any, name: str, minimum: int = 1) -> NDArray[np.float64]:
    """Embeddings `(N, D)` as float64.

    Raises ShapeError for another shape or fewer than `minimum` items, VadisError for NaN or infinite values with the
    rows that hold them.
    """
    array = to_numpy(x)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ShapeError(f"{name} must be embeddings (N, D); got {array.shape}.")
    if len(array) < minimum:
        raise ShapeError(f"{name} holds {len(array)} embeddings; at least {minimum} are needed: evaluate more clips.")
    array = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if len(bad):
        raise VadisError(
            f"{name}: {len(bad)} of {len(array)} embeddings hold NaN or infinite values (rows {listed(bad)}). Look at "
            "those clips; leaving them out would change the metric."
        )
    return array


def same_width(a: NDArray[np.float64], b: NDArray[np.float64], names: str) -> None:
    """ShapeError unless both embeddings have one width."""
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"{names} have {a.shape[1]} and {b.shape[1]} values each: embed both with the same evaluator.")


def listed(numbers: Any, most: int = 8) -> str:
    """The first numbers, and how many more there are."""
    numbers = [str(int(n)) for n in numbers]
    return ", ".join(numbers[:most]) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
