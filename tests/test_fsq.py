"""The FSQ tokenizer by itself: groups, lengths, gradients, errors."""

import math

import pytest
import torch

from vadis.errors import ModelError, ShapeError, VadisError
from vadis.tokenizers import FSQ, FSQTokenizer, FSQTokenizerConfig
from vadis.tokenizers.layers import HaarPatcher
from vadis.tokenizers.losses import root_path


def tiny(**changes: object) -> FSQTokenizer:
    torch.manual_seed(0)
    fields = dict(width=16, code_dim=16, output_emb_width=16, depth=2, levels=(5, 5, 5, 5, 5, 5), groups=2)
    tokenizer = FSQTokenizer(FSQTokenizerConfig(**(fields | changes)))
    tokenizer.set_statistics(torch.linspace(-1, 1, 272), torch.linspace(0.5, 2, 272))
    return tokenizer.eval()


def test_groups_are_independent_quantisers() -> None:
    levels = (8, 5, 5, 8, 5, 5)
    z = torch.randn(3, 7, 6)
    _, tokens, _ = FSQ(levels, groups=2)(z)
    assert tokens.shape == (3, 7, 2)
    for group in range(2):
        _, alone, _ = FSQ(levels[:3])(z[..., 3 * group : 3 * group + 3])
        assert torch.equal(tokens[..., group], alone)


def test_every_token_of_a_group_survives_the_round_trip() -> None:
    quantizer = FSQ((7, 6, 7, 6), groups=2)
    every = torch.cartesian_prod(torch.arange(42), torch.arange(42))
    assert torch.equal(quantizer.tokens_from_codes(quantizer.codes_from_tokens(every)), every)


def test_the_quantiser_stays_in_float32_under_autocast() -> None:
    quantizer = FSQ((8, 8, 8), dim=16)
    x = torch.randn(2, 40, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, tokens, projected = quantizer(x)
    plain = quantizer(x)
    assert out.dtype == torch.float32 and torch.equal(tokens, plain[1]) and torch.equal(projected, plain[2])


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
    assert 40 - int(moved.min()) <= tokenizer.receptive_tokens and int(moved.max()) - 40 <= tokenizer.receptive_tokens


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
        FSQTokenizer(FSQTokenizerConfig(width=8, code_dim=8, output_emb_width=8, **fields))
