"""Fréchet distance, retrieval, diversity and codebook use: algebra, ties, seeds and refusals."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from vadis.errors import ShapeError, VadisError
from vadis.metrics import codebook_usage, codebook_usages, diversity, fid, multimodality, r_precision
from vadis.metrics.distribution import frechet_distance, gaussian, real_floor


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_distance_of_gaussians_along_the_axes_is_known() -> None:
    """For diagonal covariances the distance is |m1 - m2|² + Σ (s1 - s2)²."""
    s1, s2 = np.asarray([1.0, 2.0, 0.5]), np.asarray([1.5, 2.0, 0.0])
    value = frechet_distance([0, 0, 1], np.diag(s1**2), [0, 2, 1], np.diag(s2**2))
    assert value == pytest.approx(4 + 0.25 + 0.25)


def test_distance_equals_that_by_the_matrix_root() -> None:
    a, b = normal(300, 12) @ normal(12, 12, seed=1), normal(200, 12, seed=2) + 0.3
    (m1, c1), (m2, c2) = gaussian(a), gaussian(b)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert fid(a, b).value == pytest.approx(expected, rel=1e-8)
    assert fid(b, a).value == pytest.approx(expected, rel=1e-8)


def test_distance_does_not_depend_on_the_axes() -> None:
    a, b = normal(400, 8), normal(500, 8, seed=1) * 1.3
    turn, _ = np.linalg.qr(normal(8, 8, seed=3))
    assert fid(a @ turn, b @ turn).value == pytest.approx(fid(a, b).value, rel=1e-9)
    assert fid(2 * a, 2 * b).value == pytest.approx(4 * fid(a, b).value, rel=1e-9)
    assert fid(a, a, floor_repeats=0).value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("reference", "generated"), [(4000, 500), (1000, 1000), (600, 2000)])
def test_floor_is_what_real_clips_score(reference: int, generated: int) -> None:
    mix = normal(24, 24, seed=9)
    floors, values = [], []
    for seed in range(5):
        real, other = normal(reference, 24, seed=seed) @ mix, normal(generated, 24, seed=100 + seed) @ mix
        result = fid(real, other, floor_repeats=2, seed=seed)
        floors.append(result.floor)
        values.append(result.value)
    assert np.mean(floors) == pytest.approx(np.mean(values), rel=0.15)


def test_floor_shrinks_with_the_number_of_items() -> None:
    real = normal(8000, 16)
    assert real_floor(real, 200) > 4 * real_floor(real, 4000)
    with pytest.raises(VadisError, match="disjoint parts"):
        real_floor(real, 4001)


def test_few_items_are_said_or_refused() -> None:
    a, b = normal(300, 40), normal(300, 40, seed=1)
    assert any("below 2,000" in note for note in fid(a, b).notes)
    with pytest.raises(VadisError, match="30 items are too few.*40 dimensions.*allow_few"):
        fid(a[:30], b)
    few = fid(a[:30], b[:30], allow_few=True)
    assert few.value > 0 and any("meaningless" in note for note in few.notes)
    assert any("differ much" in note for note in fid(a, normal(900, 40, seed=2)).notes)
    assert any("below the floor" in note for note in fid(a, a).notes)


def test_few_items_give_the_exact_distance_of_their_gaussians() -> None:
    """With fewer items than dimensions the root's trace is the nuclear norm of the centred cross products."""
    a, b = normal(20, 64), normal(25, 64, seed=1)
    cross = (a - a.mean(0)) @ (b - b.mean(0)).T / np.sqrt(19 * 24)
    root = np.linalg.svd(cross, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * root
    assert fid(a, b, allow_few=True, floor_repeats=0).value == pytest.approx(expected, rel=1e-8)


def test_normalised_variant_has_its_own_name() -> None:
    a, b = normal(200, 8) * 5, normal(200, 8, seed=1)
    assert fid(a, b).variant == "fid" and str(fid(a, b)).startswith("fid ")
    result = fid(a, b, normalize=True)
    assert result.variant == "fid_l2" and result.value < 0.5 < fid(a, b).value
    with pytest.raises(VadisError, match="no direction"):
        fid(a * 0, b, normalize=True)


def test_bad_embeddings_are_refused() -> None:
    a = normal(200, 8)
    broken = a.copy()
    broken[[3, 17]] = np.nan
    with pytest.raises(VadisError, match=r"reference: 2 of 200 .* \(rows 3, 17\)"):
        fid(broken, a)
    with pytest.raises(ShapeError, match="same evaluator"):
        fid(a, normal(200, 9))
    with pytest.raises(ShapeError, match=r"must be embeddings \(N, D\)"):
        fid(a[None], a)
    with pytest.raises(VadisError, match="NaN"):
        r_precision(a, broken)
    with pytest.raises(ShapeError, match="no pairs"):
        r_precision(a, a[:-1])
    with pytest.raises(VadisError, match="don't fill one pool of 32"):
        r_precision(a[:31], a[:31])
    with pytest.raises(VadisError, match="top_k"):
        r_precision(a, a, top_k=33)


def test_tensors_are_taken_as_they_are() -> None:
    a, b = normal(100, 8), normal(100, 8, seed=1)
    tensors = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    assert fid(*tensors).value == fid(a, b).value
    assert r_precision(*tensors) == r_precision(a, b)


def test_a_perfect_match_ranks_first() -> None:
    """In float32 the expanded formula gives negative squares here, which the published code ranks last."""
    a = normal(96, 512).astype(np.float32) * 30
    result = r_precision(a, a)
    assert result.top == (1.0, 1.0, 1.0) and result.matching_distance == 0


def test_equal_embeddings_give_chance() -> None:
    same = np.ones((64, 16))
    assert r_precision(same, same).top == pytest.approx([1 / 32, 2 / 32, 3 / 32])


def test_ties_count_with_their_chance() -> None:
    """Every motion occurs twice: the right one is first in half of the random orders, and always among two."""
    motion = np.repeat(normal(32, 16), 2, axis=0)
    assert r_precision(motion, motion, pool=32).top == pytest.approx([0.5, 1.0, 1.0])


def test_unrelated_embeddings_give_chance() -> None:
    result = r_precision(normal(3200, 16), normal(3200, 16, seed=1))
    assert result.top == pytest.approx([1 / 32, 2 / 32, 3 / 32], abs=0.012)


def test_ranking_agrees_with_sorting() -> None:
    text, motion = normal(96, 6), normal(96, 6, seed=1)
    hits = np.zeros(3)
    for start in range(0, 96, 32):
        d = np.linalg.norm(text[start : start + 32, None] - motion[None, start : start + 32], axis=-1)
        place = [int(np.where(np.argsort(row) == i)[0][0]) for i, row in enumerate(d)]
        hits += [sum(p < k for p in place) for k in (1, 2, 3)]
    assert r_precision(text, motion).top == pytest.approx(hits / 96)


def test_pools_drop_the_rest_and_follow_the_seed() -> None:
    text = normal(100, 4)
    motion = text + 0.8 * normal(100, 4, seed=1)
    result = r_precision(text, motion)
    assert (result.items, result.dropped) == (96, 4) and "96 pairs" in str(result)
    assert r_precision(text, motion, seed=1) == r_precision(text, motion, seed=1)
    assert len({r_precision(text, motion, seed=s).top for s in range(8)}) > 1


def test_diversity_follows_its_seed_and_its_pairs() -> None:
    x = normal(400, 8)
    assert diversity(x, seed=3) == diversity(x, seed=3) != diversity(x, seed=4)
    assert diversity(2 * x, seed=3) == pytest.approx(2 * diversity(x, seed=3))
    assert diversity(x, draws=([0, 1], [0, 2])) == pytest.approx(np.linalg.norm(x[1] - x[2]) / 2)
    with pytest.raises(VadisError, match="too few for 100 pairs"):
        diversity(x[:99])
    with pytest.raises(VadisError, match="outside"):
        diversity(x[:50], draws=([0], [50]))
    with pytest.raises(ShapeError, match="one length"):
        diversity(x, draws=([0, 1], [0]))


def test_multimodality_sees_only_motions_of_one_prompt() -> None:
    centres = 100 * normal(6, 1, 8)
    assert multimodality(np.repeat(centres, 30, axis=1)) == 0
    spread = centres + normal(6, 30, 8, seed=1)
    assert 2 < multimodality(spread) < 6
    assert multimodality(spread, seed=1) != multimodality(spread, seed=2)
    with pytest.raises(VadisError, match="9 motions a prompt are too few"):
        multimodality(spread[:, :9])
    with pytest.raises(ShapeError, match="P prompts"):
        multimodality(spread[0])


def test_codebook_use_counts_codes() -> None:
    even = codebook_usage(np.arange(64).repeat(3), 64)
    assert even.utilisation == 1 and even.perplexity == pytest.approx(64, rel=1e-4) and even.tokens == 192
    one = codebook_usage([5, 5, 5, 5], 8)
    assert one.utilisation == 1 / 8 and one.perplexity == pytest.approx(1, rel=1e-6) and one.counts[5] == 4
    assert codebook_usage([0, 1, -1, -1], 2, ignore=-1).tokens == 2


def test_codebook_use_per_level() -> None:
    tokens = torch.stack([torch.arange(16), torch.zeros(16, dtype=torch.long)], -1)[None]  # (1, S, Q)
    full, empty = codebook_usages(tokens, 16)
    assert full.utilisation == 1 and empty.utilisation == 1 / 16
    first = codebook_usages(tokens.movedim(-1, 0), 16, axis=0)[0]
    assert np.array_equal(first.counts, full.counts)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([0.5, 1.0], "whole numbers"), ([0, 8], "codebook of 8 has 0…7"), ([-1, 2], "run from -1"), (np.zeros(0, int), "no tokens")],
)  # fmt: skip
def test_bad_tokens_are_refused(tokens: object, message: str) -> None:
    with pytest.raises(VadisError, match=message):
        codebook_usage(tokens, 8)
