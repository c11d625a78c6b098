"""Whether texts find their motions: R-precision and matching distance (Guo et al., 2022) on embeddings of one evaluator.

The pool is the batch: each text ranks the motions of its own batch of 32 by Euclidean distance. Distances are computed
in float64 and clamped at zero, so a perfect match ranks first (the published float32 formula can give NaN there).

Ties: a text whose own motion is tied with others counts with the chance that a random order of the tied ones puts it
among the first k. Equal embeddings for all motions thus give k / 32, not 1.

Shapes: N pairs, D values an embedding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError, VadisError
from vadis.metrics.arrays import embeddings, same_width


@dataclass(frozen=True)
class Retrieval:
    """R-precision for k = 1…K as `top` (shares of texts), the mean distance of matched pairs, and what was scored.

    `items` pairs were ranked in pools of `pool`; `dropped` did not fill a last pool and are left out, as published.
    """

    top: tuple[float, ...]
    matching_distance: float
    items: int
    dropped: int
    pool: int

    def __str__(self) -> str:
        tops = ", ".join(f"R@{k} {value:.3f}" for k, value in enumerate(self.top, start=1))
        return f"{tops}, MM-Dist {self.matching_distance:.3f} ({self.items:,} pairs in pools of {self.pool})"


def r_precision(text: Any, motion: Any, *, pool: int = 32, top_k: int = 3, seed: int | None = None) -> Retrieval:
    """R-precision and matching distance of paired embeddings `(N, D)`; row i of both belongs together.

    Args:
        pool: motions that each text ranks; published numbers use 32.
        top_k: the largest k.
        seed: shuffles the pairs before they are put into pools; None keeps their order.

    Raises ShapeError for unpaired or other shapes, VadisError for NaN or fewer pairs than a pool.
    """
    texts, motions = embeddings(text, "text"), embeddings(motion, "motion")
    same_width(texts, motions, "text and motion embeddings")
    if len(texts) != len(motions):
        raise ShapeError(f"{len(texts)} texts and {len(motions)} motions are no pairs: give one motion for each text.")
    if not 1 <= top_k <= pool:
        raise VadisError(f"top_k={top_k} must lie between 1 and the pool of {pool}.")
    if len(texts) < pool:
        raise VadisError(
            f"{len(texts)} pairs don't fill one pool of {pool}: evaluate at least {pool} clips. A smaller pool gives "
            "higher shares that compare with no published number."
        )
    kept = len(texts) // pool * pool
    order = np.arange(len(texts)) if seed is None else np.random.default_rng(seed).permutation(len(texts))
    a, b = (x[order[:kept]].reshape(-1, pool, x.shape[1]) for x in (texts, motions))
    top, own = _rank(a, b, top_k)
    return Retrieval(tuple(float(x) for x in top), float(own.mean()), kept, len(texts) - kept, pool)


def distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances `(..., N, M)` of rows `(..., N, D)` and `(..., M, D)`, never NaN."""
    return np.sqrt(np.maximum(_squares(a, b), 0.0))


def _squares(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a * a).sum(-1)[..., :, None] + (b * b).sum(-1)[..., None, :] - 2 * a @ np.swapaxes(b, -1, -2)


def _rank(
    a: NDArray[np.float64], b: NDArray[np.float64], top_k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected shares `(K,)` of hits among the first k, and the distances `(pools, pool)` of matched pairs."""
    squares = _squares(a, b)
    own = np.diagonal(squares, axis1=1, axis2=2)[..., None]
    slack = 1e-11 * ((a * a).sum(-1, keepdims=True) + (b * b).sum(-1, keepdims=True))  # rounding of the formula
    closer = (squares < own - slack).sum(-1)
    tied = (np.abs(squares - own) <= slack).sum(-1)  # the own motion is one of them
    shares = [np.clip((k - closer) / tied, 0.0, 1.0).mean() for k in range(1, top_k + 1)]
    return np.asarray(shares), np.linalg.norm(a - b, axis=-1)
