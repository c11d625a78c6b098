"""How much of a codebook is used: share of codes that occur, and perplexity, of a whole corpus or per level or group."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError, VadisError
from vadis.metrics.arrays import to_numpy


@dataclass(frozen=True, eq=False)
class CodebookUsage:
    """Use of one codebook of K codes.

    utilisation: share of codes used at least once. perplexity: `exp(-Σ p log(p + 1e-7))`, as published: K when all codes
    are equally frequent, 1 when there is one. counts: `(K,)` occurrences. tokens: how many were counted.
    """

    utilisation: float
    perplexity: float
    counts: NDArray[np.int64]
    tokens: int

    def __str__(self) -> str:
        return f"{self.utilisation:.1%} of {len(self.counts):,} codes used, perplexity {self.perplexity:,.1f}"


def codebook_usage(tokens: Any, vocab_size: int, *, ignore: int | None = None) -> CodebookUsage:
    """Use of one codebook by integer tokens of any shape; `ignore` is an id that pads, for instance -1.

    A small corpus can't use a large codebook: N tokens reach at most N codes, so compare at equal numbers of tokens.
    Raises VadisError for no tokens, tokens that aren't integers, or ids outside the codebook.
    """
    ids = _integers(tokens).ravel()
    if vocab_size < 1:
        raise VadisError(f"vocab_size={vocab_size}: a codebook has at least one code.")
    if ignore is not None:
        ids = ids[ids != ignore]
    if not len(ids):
        raise VadisError("no tokens to count: give at least one that isn't padding.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise VadisError(
            f"tokens run from {ids.min()} to {ids.max()}, a codebook of {vocab_size} has 0…{vocab_size - 1}. Is "
            "vocab_size that of this tokenizer, and is padding named by ignore=?"
        )
    counts = np.bincount(ids, minlength=vocab_size)
    p = counts[counts > 0] / len(ids)
    perplexity = float(np.exp(-(p * np.log(p + 1e-7)).sum()))
    return CodebookUsage(float((counts > 0).mean()), perplexity, counts, len(ids))


def codebook_usages(tokens: Any, vocab_size: int, axis: int = -1, *, ignore: int | None = None) -> list[CodebookUsage]:
    """Use of each level or group of tokens that stand along `axis`, e.g. `(B, S, Q)`: Q results, first level first."""
    ids = _integers(tokens)
    if ids.ndim < 2:
        raise ShapeError(f"tokens per level need an axis of levels, e.g. (S, Q); got {ids.shape}.")
    return [codebook_usage(level, vocab_size, ignore=ignore) for level in np.moveaxis(ids, axis, 0)]


def _integers(tokens: Any) -> NDArray[Any]:
    ids = to_numpy(tokens)
    if not np.issubdtype(ids.dtype, np.integer):
        raise VadisError(f"tokens are whole numbers; these are {ids.dtype}. Continuous latents have no codebook.")
    return ids
