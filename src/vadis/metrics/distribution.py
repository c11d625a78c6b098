"""How a set of motions compares to another: Fréchet distance, diversity, multimodality, on embeddings of one evaluator.

Fréchet distance (Heusel et al., 2017): `|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)` with unbiased covariances. The trace of
the root is the sum of the singular values of `F1ᵀ F2`, where `C = F Fᵀ` comes from eigenvalues: exact for singular
covariances too, symmetric in its arguments, and never complex.

The value depends on the evaluator and on the number of items. Even real against real isn't zero; `fid` gives that floor.

Shapes: N items, D values an embedding, P prompts, M motions a prompt.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError, VadisError
from vadis.metrics.arrays import embeddings, same_width, to_numpy

ENOUGH = 2000
"""Items below which a Fréchet distance is mostly the noise of its own estimate."""
_Gaussian = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class FID:
    """A Fréchet distance with what is needed to read it.

    value: the distance; `variant` names it ("fid" on raw embeddings, "fid_l2" on embeddings of length 1).
    floor: what two samples of the reference's own distribution give at these numbers of items: the mean over
        disjoint random parts of `floor_items` each, scaled by the sum of the inverse sizes; None when not asked for.
    items: how many reference and generated embeddings there were; `width` is D.
    notes: what limits the value, in sentences.
    """

    value: float
    floor: float | None
    floor_items: int
    items: tuple[int, int]
    width: int
    variant: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        floor = "" if self.floor is None else f" (real against real at this size: {self.floor:.4g})"
        return f"{self.variant} {self.value:.4g}{floor}"


def fid(reference: Any, generated: Any, *, floor_repeats: int = 1, seed: int = 0, normalize: bool = False,
        allow_few: bool = False) -> FID:  # fmt: skip
    """Fréchet distance between embeddings `(N, D)` of reference and generated motions.

    Args:
        floor_repeats: random halvings of the reference for the real-vs-real floor; 0 leaves it out.
        seed: of those halvings.
        normalize: scale every embedding to length 1 first; the result is named "fid_l2" and compares with nothing else.
        allow_few: measure although there are no more items than dimensions.

    Raises ShapeError for other shapes, VadisError for NaN, for zero vectors to be normalised, and for N <= D, where the
    covariance is singular and the value means nothing.
    """
    real, made = embeddings(reference, "reference", 2), embeddings(generated, "generated", 2)
    same_width(real, made, "reference and generated embeddings")
    if normalize:
        real, made = _unit(real, "reference"), _unit(made, "generated")
    few, width = min(len(real), len(made)), real.shape[1]
    if few <= width and not allow_few:
        raise VadisError(
            f"{few} items are too few for a Fréchet distance of {width} dimensions: the covariance is singular and the "
            f"value would say nothing. Evaluate more than {width} clips (better {ENOUGH:,}), or pass allow_few=True."
        )
    notes = []
    if few <= width:
        notes.append(f"{few} items in {width} dimensions: the covariance is singular, the value is meaningless.")
    elif few < ENOUGH:
        notes.append(f"{few:,} items: below {ENOUGH:,} the value is dominated by sampling; compare with the floor.")
    if min(len(real), len(made)) * 2 < max(len(real), len(made)):
        notes.append(f"{len(real):,} reference and {len(made):,} generated items: the sets differ much in size.")
    value = frechet_distance(*gaussian(real), *gaussian(made))
    floor, part = None, 0
    if floor_repeats > 0 and len(real) >= 4:
        part = min(len(real) // 2, len(made))
        raw = real_floor(real, part, floor_repeats, seed)
        floor = raw * (1 / len(real) + 1 / len(made)) * part / 2
        if part <= width:
            notes.append(f"the floor was measured on {part} items in {width} dimensions: too few to trust it.")
        elif value < floor:
            notes.append("the value lies below the floor: no difference from real motion can be seen at this size.")
    variant = "fid_l2" if normalize else "fid"
    return FID(value, floor, part, (len(real), len(made)), width, variant, tuple(notes))


def gaussian(x: NDArray[np.float64]) -> _Gaussian:
    """Mean `(D,)` and unbiased covariance `(D, D)` of embeddings `(N, D)`."""
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_distance(mean1: Any, covariance1: Any, mean2: Any, covariance2: Any) -> float:
    """Fréchet distance of two Gaussians given by means `(D,)` and covariances `(D, D)`; stored statistics fit too."""
    m1, m2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    c1, c2 = np.asarray(covariance1, np.float64), np.asarray(covariance2, np.float64)
    if m1.shape != m2.shape or m1.ndim != 1 or c1.shape != (len(m1), len(m1)) or c2.shape != c1.shape:
        raise ShapeError(
            f"two Gaussians need means (D,) and covariances (D, D); got {m1.shape}, {c1.shape}, {m2.shape}, {c2.shape}."
        )
    root = np.linalg.svd(_factor(c1).T @ _factor(c2), compute_uv=False).sum()
    return float(max((m1 - m2) @ (m1 - m2) + np.trace(c1) + np.trace(c2) - 2 * root, 0.0))


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """F with `F Fᵀ` = covariance; rounding may make eigenvalues of a singular one slightly negative."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def real_floor(real: Any, items: int, repeats: int = 1, seed: int = 0) -> float:
    """Mean Fréchet distance between two disjoint random parts of `items` embeddings each, out of one set `(N, D)`.

    Raises VadisError when the set holds fewer than twice as many.
    """
    array = embeddings(real, "reference")
    if items < 2 or 2 * items > len(array):
        raise VadisError(
            f"two disjoint parts of {items} need {2 * items} embeddings (at least 4); there are {len(array)}."
        )
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        order = rng.permutation(len(array))[: 2 * items]
        values.append(frechet_distance(*gaussian(array[order[:items]]), *gaussian(array[order[items:]])))
    return float(np.mean(values))


def _unit(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if (length == 0).any():
        raise VadisError(f"{name} holds zero embeddings, which have no direction: leave normalize off.")
    return x / length


def diversity(x: Any, pairs: int | None = None, *, seed: int = 0, draws: tuple[Any, Any] | None = None) -> float:
    """Mean distance between random pairs of embeddings `(N, D)`: two independent draws without replacement.

    `pairs` defaults to 300, or 100 when there are not more than 300 items, as published. `draws` gives the two index
    arrays instead of a seed. Raises VadisError when there are fewer items than pairs.
    """
    array = embeddings(x, "embeddings", 2)
    count = pairs or (300 if len(array) > 300 else 100)
    if draws is None and count > len(array):
        raise VadisError(
            f"{len(array)} items are too few for {count} pairs drawn without replacement: evaluate at least {count} "
            f"clips, or pass pairs={len(array)} and say so beside the number."
        )
    first, second = _draws(len(array), count, seed, draws)
    return float(np.linalg.norm(array[first] - array[second], axis=1).mean())


def multimodality(groups: Any, pairs: int = 10, *, seed: int = 0, draws: tuple[Any, Any] | None = None) -> float:
    """Mean distance between motions made for the same prompt; `groups` `(P, M, D)`, M usually 30.

    The same two draws of `pairs` motions serve all prompts, as published. Raises ShapeError for other shapes,
    VadisError for NaN or fewer motions than pairs.
    """
    array = to_numpy(groups)
    if array.ndim != 3:
        raise ShapeError(f"multimodality needs embeddings (P prompts, M motions, D); got {array.shape}.")
    _, motions, width = array.shape
    array = embeddings(array.reshape(-1, width), "groups").reshape(array.shape)
    if draws is None and pairs > motions:
        raise VadisError(
            f"{motions} motions a prompt are too few for {pairs} pairs drawn without replacement: generate at least "
            f"{pairs} for each prompt (30 in the published protocol)."
        )
    first, second = _draws(motions, pairs, seed, draws)
    return float(np.linalg.norm(array[:, first] - array[:, second], axis=-1).mean())


def _draws(items: int, count: int, seed: int, given: tuple[Any, Any] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    if given is not None:
        first, second = (to_numpy(draw).astype(np.int64) for draw in given)
        if first.shape != second.shape or first.ndim != 1 or not len(first):
            raise ShapeError(f"draws must be two index arrays of one length; got {first.shape} and {second.shape}.")
        if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= items:
            raise VadisError(f"draws hold indices outside 0…{items - 1}: they belong to another set of items.")
        return first, second
    rng = np.random.default_rng(seed)
    return rng.choice(items, count, replace=False), rng.choice(items, count, replace=False)
