"""Near-duplicate texts among millions: MinHash signatures, banded hashing, then the exact Jaccard index of every candidate.

A text is the set of its words. The chance that two sets share a band of signatures is 1 - (1 - j^ROWS)^BANDS for the
Jaccard index j: 0.9996 at 0.8, so nothing that matters is lost; and every reported index is the exact one (Broder,
1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3).
"""

from collections.abc import Sequence

import numpy as np

from vadis.data.text_stats import words_of
from vadis.errors import VadisError

BANDS, ROWS = 20, 5
CHUNK = 20_000
MOST = 64  # how many others of one bucket a text is compared with; larger buckets are templates, chained by neighbours


def near_pairs(
    texts: Sequence[str], threshold: float = 0.8, tested: np.ndarray | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs `(N, 2)` of texts whose word sets have a Jaccard index of at least `threshold`, and the indices `(N,)`.

    Args:
        texts: different texts; one without words is near nothing.
        threshold: from 0.6 (smaller ones would miss pairs) to 1.
        tested: `(len(texts),)` bool; then pairs are (reference, tested) and never within one side.

    In a bucket of equal signatures a text meets at most 64 others, so texts made from one template by the thousand come
    as chains of pairs, not as all pairs. Raises VadisError for a threshold outside 0.6–1.
    """
    if not 0.6 <= threshold <= 1:
        raise VadisError(f"a Jaccard threshold lies between 0.6 and 1; got {threshold:g}.")
    tokens, starts = _tokens(texts)
    lengths = np.diff(starts)
    rows = np.flatnonzero(lengths)  # texts that have words
    if len(rows) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    signatures = _signatures(tokens, starts, rows, seed)
    mine = None if tested is None else np.asarray(tested, bool)[rows]
    found = np.zeros(0, np.int64)
    for band in range(BANDS):
        keys = _band_keys(signatures[:, band * ROWS : (band + 1) * ROWS])
        found = np.union1d(found, _bucket_pairs(keys, mine))
    pairs = rows[np.stack(np.divmod(found, len(rows)), axis=1)]
    jaccard = _jaccard(tokens, starts, pairs)
    keep = jaccard >= threshold - 1e-12
    return pairs[keep], jaccard[keep]


def _tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Word numbers of all texts, sorted and unrepeated within a text, and where each text starts `(len + 1,)`."""
    numbers: dict[str, int] = {}
    flat: list[int] = []
    starts = [0]
    for text in texts:
        flat += sorted({numbers.setdefault(word, len(numbers)) for word in words_of(text)})
        starts.append(len(flat))
    return np.array(flat, np.int64), np.array(starts, np.int64)


def _signatures(tokens: np.ndarray, starts: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """MinHash signatures `(len(rows), BANDS * ROWS)` uint32: every word has one random number a hash function."""
    vocabulary = int(tokens.max()) + 1
    hashes = np.random.default_rng(seed).integers(0, 2**32, (vocabulary, BANDS * ROWS), dtype=np.uint32)
    out = np.empty((len(rows), BANDS * ROWS), np.uint32)
    for a in range(0, len(rows), CHUNK):
        part = rows[a : a + CHUNK]
        first, last = starts[part[0]], starts[part[-1] + 1]  # texts without words add nothing between
        out[a : a + CHUNK] = np.minimum.reduceat(hashes[tokens[first:last]], starts[part] - first, axis=0)
    return out


def _band_keys(part: np.ndarray) -> np.ndarray:
    """One uint64 key of ROWS signature values."""
    key = np.zeros(len(part), np.uint64)
    for column in part.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _bucket_pairs(keys: np.ndarray, tested: np.ndarray | None) -> np.ndarray:
    """Pairs of equal keys coded as first * len(keys) + second; (reference, tested) when sides are given."""
    count = len(keys)
    side = np.zeros(count, bool) if tested is None else tested
    order = np.lexsort((side, keys))  # in a bucket: references, then tested
    ordered = keys[order]
    begin = np.searchsorted(ordered, ordered, side="left")
    position = np.arange(count)
    if tested is None:
        first = position + 1
        width = np.minimum(np.searchsorted(ordered, ordered, side="right") - first, MOST)
    else:
        references = np.concatenate([[0], np.cumsum(~side[order])])
        end = np.searchsorted(ordered, ordered, side="right")
        first = begin
        width = np.where(side[order], np.minimum(references[end] - references[begin], MOST), 0)
    left = np.repeat(position, width)
    right = np.repeat(first - np.concatenate([[0], np.cumsum(width)[:-1]]), width) + np.arange(width.sum())
    a, b = order[left], order[right]
    low, high = (np.minimum(a, b), np.maximum(a, b)) if tested is None else (b, a)
    return np.unique(low.astype(np.int64) * count + high)


def _jaccard(tokens: np.ndarray, starts: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The exact Jaccard index `(N,)` of pairs of word sets."""
    from scipy.sparse import csr_matrix

    vocabulary = int(tokens.max(initial=0)) + 1
    sets = csr_matrix((np.ones(len(tokens), np.int32), tokens, starts), shape=(len(starts) - 1, vocabulary))
    sizes = np.diff(starts)
    out = np.zeros(len(pairs))
    for a in range(0, len(pairs), CHUNK):
        i, j = pairs[a : a + CHUNK].T
        common = np.asarray(sets[i].multiply(sets[j]).sum(axis=1)).ravel()
        out[a : a + CHUNK] = common / np.maximum(sizes[i] + sizes[j] - common, 1)
    return out
