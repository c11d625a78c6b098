"""The FSQ tokenizer by itself: groups, lengths, gradients, errors."""

import math

import pytest
import torch

from vadis.errors import ModelError, ShapeError, VadisError
from vadis.metrics.reconstruction import reconstruction_errors
from vadis.representations import representation
from vadis.tokenizers import FSQ, FSQTokenizer, FSQTokenizerConfig
from vadis.tokenizers.kinematic_loss import foot_velocities, kinematic_losses, pooled_error, posed_joints
from vadis.tokenizers.layers import HaarPatcher
from vadis.tokenizers.losses import reconstruction_losses, root_path
from vadis.tokenizers.pca_init import init_from_pca


def tiny(**changes: object) -> FSQTokenizer:
    torch.manual_seed(0)
    fields = dict(width=16, code_dim=16, depth=2, levels=(5, 5, 5, 5, 5, 5), groups=2)
    tokenizer = FSQTokenizer(FSQTokenizerConfig(**(fields | changes)))
    tokenizer.set_statistics(torch.linspace(-1, 1, 272), torch.linspace(0.5, 2, 272))
    return tokenizer.eval()


def test_groups_are_independent_quantisers() -> None:
    levels = (8, 5, 5, 8, 5, 5)
    z = torch.randn(3, 7, 6)
    tokens = FSQ(levels, groups=2)(z).tokens
    assert tokens.shape == (3, 7, 2)
    for group in range(2):
        alone = FSQ(levels[:3])(z[..., 3 * group : 3 * group + 3]).tokens
        assert torch.equal(tokens[..., group], alone)


def test_every_token_of_a_group_survives_the_round_trip() -> None:
    quantizer = FSQ((7, 6, 7, 6), groups=2)
    every = torch.cartesian_prod(torch.arange(42), torch.arange(42))
    assert torch.equal(quantizer.tokens_from_codes(quantizer.codes_from_tokens(every)), every)


def test_the_quantiser_stays_in_float32_under_autocast() -> None:
    quantizer = FSQ((8, 8, 8), dim=16)
    x = torch.randn(2, 40, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, tokens, _ = quantizer(x)
    plain = quantizer(x)
    assert out.dtype == torch.float32 and torch.equal(tokens, plain.tokens) and torch.equal(out, plain.vectors)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": 1},
        {"down_t": 2},
        {"patch_size": 2},
        {"patch_size": 2, "patch_method": "rearrange"},
        {"use_patcher": False},
    ],
)
def test_a_batch_of_unequal_clips_equals_the_clips_one_by_one(changes: dict[str, object]) -> None:
    tokenizer = tiny(**changes)
    features, lengths = torch.randn(4, 31, 272), [31, 12, 31, 21]
    tokens = tokenizer.encode(features, lengths)
    steps = [n // tokenizer.frames_per_token for n in lengths]
    decoded = tokenizer.decode(tokens, steps)
    for row, (length, count) in enumerate(zip(lengths, steps, strict=True)):
        alone = tokenizer.encode(features[row, :length])
        assert torch.equal(tokens[row, :count], alone) and bool((tokens[row, count:] == -1).all())
        again = tokenizer.decode(alone)
        assert again.shape == (count * tokenizer.frames_per_token, 272)
        torch.testing.assert_close(decoded[row, : len(again)], again, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter_and_training_lowers_the_loss() -> None:
    tokenizer = tiny().train()
    x = torch.randn(4, 16, 272)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    totals = []
    for _ in range(20):
        terms, _ = tokenizer.loss(x, root_weight=0.5, path_weight=0.1, heading_weight=0.1, velocity_weight=0.5)
        optimizer.zero_grad()
        terms["total"].backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in tokenizer.parameters())
        optimizer.step()
        totals.append(terms["total"].item())
    assert totals[-1] < totals[0]


def test_a_decoded_frame_reaches_no_further_than_stated() -> None:
    tokenizer = tiny(depth=3)
    tokens = torch.randint(0, 125, (1, 80, 2))
    other = tokens.clone()
    other[:, 40] = (other[:, 40] + 60) % 125
    moved = (tokenizer.decode(tokens) != tokenizer.decode(other)).any(-1)[0].nonzero()[:, 0] // 2
    assert (
        40 - int(moved.min()) <= tokenizer.decoder_context[1] and int(moved.max()) - 40 <= tokenizer.decoder_context[1]
    )


def test_root_path_integrates_a_circle() -> None:
    features = torch.zeros(1, 61, 272)
    turn = 2 * math.pi / 60
    features[..., 1] = 0.1  # one decimetre forward a frame
    features[..., 2], features[..., 4] = math.cos(turn), -math.sin(turn)
    path, heading = root_path(features)
    torch.testing.assert_close(path[0, -1], torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(path[0, 1], torch.tensor([0.0, 0.1]), atol=1e-6, rtol=0)
    assert path[0, 15, 0] > 0.9  # turning left: positive heading goes towards +X
    assert heading[0, -1].item() == pytest.approx(2 * math.pi, rel=1e-4)


def test_haar_keeps_what_it_folds() -> None:
    x = torch.randn(2, 3, 16)
    assert HaarPatcher(4)(x).shape == (2, 12, 4)


def test_errors_say_what_to_do() -> None:
    tokenizer = tiny()
    with pytest.raises(ShapeError, match="263 values look like hml263: convert with `vadis convert --to ms272`"):
        tokenizer.encode(torch.zeros(8, 263))
    with pytest.raises(ShapeError, match="1 frame, fewer than the 2 of one token"):
        tokenizer.encode(torch.zeros(1, 272))
    broken = torch.zeros(8, 272)
    broken[5, 3] = math.nan
    with pytest.raises(VadisError, match="frame 5 of clip 0"):
        tokenizer.encode(broken)
    with pytest.raises(VadisError, match="token 125 in clip 0 is outside 0 … 124"):
        tokenizer.decode(torch.tensor([[3, 125]]))
    with pytest.raises(VadisError, match="token -1"):
        tokenizer.decode(torch.tensor([[3, -1]]))
    with pytest.raises(ShapeError, match=r"\(S, 2\) or \(B, S, 2\)"):
        tokenizer.decode(torch.zeros(4, dtype=torch.long))
    with pytest.raises(VadisError, match="must be integers"):
        tokenizer.decode(torch.zeros(4, 2))
    with pytest.raises(ShapeError, match="lengths"):
        tokenizer.encode(torch.zeros(2, 8, 272), [8, 9])


@pytest.mark.parametrize(
    "fields", [{"levels": (5, 5, 5), "groups": 2}, {"levels": (8, 5), "groups": 2}, {"patch_size": 3}, {"levels": (1,)}]
)
def test_impossible_configs_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises((ModelError, ValueError), match="groups|power of two|at least 2"):
        FSQTokenizer(FSQTokenizerConfig(width=8, code_dim=8, **fields))


def test_blocks_count_by_their_weights(walk) -> None:
    rep = representation("ms272")
    target = rep.encode(walk)[None]
    output = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    weights = {"root_velocity": 2.0, "joint_rotations": 0.3, "heading_velocity": 0.0}
    terms = reconstruction_losses(target, output, feature_weight=0, position_weight=0, block_weights=weights)
    assert set(terms) == {"total", "root_velocity", "joint_rotations"}
    for name in ("root_velocity", "joint_rotations"):
        columns = rep.slices[name]
        wanted = (output - target)[..., columns].square().mean() / 2  # all errors below 1
        assert torch.allclose(terms[name], wanted, rtol=1e-4)
    assert torch.allclose(terms["total"], 2 * terms["root_velocity"] + 0.3 * terms["joint_rotations"])


def test_kinematic_terms_see_the_pose_and_the_drift(walk) -> None:
    target = representation("ms272").encode(walk)[None, :64]
    mean, std = torch.zeros(272), torch.full((272,), 0.1)
    std[74:140] = 0.01
    weights = {"posed_position_weight": 4.0, "posed_velocity_weight": 0.3, "pooled_root_weight": 0.25}
    exact = kinematic_losses(target / std, target / std, mean, std, **weights)
    assert exact["total"] < 1e-8
    lifted = target.clone()
    lifted[..., 9] += 0.05  # the pelvis, and with it every posed joint, half a deviation higher
    terms = kinematic_losses(target / std, lifted / std, mean, std, **weights)
    assert torch.allclose(terms["posed_positions"], torch.tensor(0.5**2 / 2 / 3), rtol=1e-3)
    assert terms["posed_velocities"] < 1e-8
    steady, random = torch.full((1, 64, 8), 0.05), torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(pooled_error(steady, (8,)), torch.tensor(8 * 0.05**2 / 2))
    assert pooled_error(steady) > 5 * pooled_error(0.05 * random)  # of one size, but it cancels
    assert pooled_error(steady[:, :20]) == pooled_error(steady[:, :20], (8,))
    with pytest.raises(ModelError, match="posed_positions are defined for ms272, not for hml263"):
        kinematic_losses(target, target, mean, std, "hml263", posed_position_weight=1.0)


def test_a_pca_start_is_a_linear_code_and_errors_are_measured(walk) -> None:
    rep = representation("ms272")
    features = rep.encode(walk)
    changes = {"width": 48, "code_dim": 48, "down_t": 0, "patch_size": 4, "norm": None}
    model = tiny(**changes, levels=(9,) * 8, groups=4)
    std = rep.statistics([features])[1]
    model.set_statistics(features.mean(0), std)
    before = model.decode(model.encode(features[None, :88]))
    windows = torch.stack([features[i : i + 32] for i in range(0, 56, 4)])
    explained = init_from_pca(model, windows)
    after = model.decode(model.encode(features[None, :88]))
    worse, better = (reconstruction_errors(features[None, :88], x) for x in (before, after))
    assert explained == pytest.approx(1, abs=0.01)  # this walk repeats itself
    assert better["pose_mm"] < 0.25 * worse["pose_mm"] and better["pose_mm"] < 60
    same = reconstruction_errors(features[None, :88], features[None, :88])
    assert same["global_mm"] == 0 and same["jitter_ratio"] == 1 and same["pose_mm"] < 0.01
    with pytest.raises(VadisError, match="patches are too few"):
        init_from_pca(model, windows[:1])


def test_foot_velocities_are_those_of_the_world(walk) -> None:
    rep = representation("ms272")
    features = rep.encode(walk)
    feet = rep.decode(features).positions[:, [7, 8, 10, 11]]
    velocities = foot_velocities(features[None], posed_joints(features[None]))[0]
    speeds = feet.diff(dim=0).norm(dim=-1)
    torch.testing.assert_close(velocities.norm(dim=-1), speeds, atol=2e-4, rtol=0)
    mean, std = torch.zeros(272), torch.ones(272)
    faster = features.clone()
    faster[:, 1] += 0.01  # the whole body, and with it every foot, one centimetre a frame
    terms = kinematic_losses(features[None], faster[None], mean, std, foot_velocity_weight=1.0)
    assert (
        float(terms["foot_velocity"]) == pytest.approx(0.5 / 3, rel=1e-2) and terms["total"] == terms["foot_velocity"]
    )
