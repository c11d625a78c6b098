"""What every tokenizer family promises, swept over all that `vadis.load` knows."""

from functools import cache
from typing import Any

import pytest
import torch

import vadis
from vadis.errors import ShapeError, VadisError
from vadis.loading import component_classes
from vadis.representations import representation
from vadis.tokenizers import Tokenizer

SMALL = dict(representation="ms272", feature_dim=272, fps=30.0, width=16)
FIELDS: dict[str, dict[str, Any]] = {
    "fsq": dict(code_dim=16, levels=(5, 5, 5, 5), groups=2, down_t=2),
    "vq": dict(code_dim=16, codebook_size=32),
    "rvq": dict(code_dim=16, codebook_size=16, num_quantizers=3),
    "mg_vq": dict(code_dim=16, groups=4, codebook_size=16),
    "lfq1d": dict(code_dim=16, bits=6, groups=2),
    "lfq2d": dict(bits=6),
    "causal_tae": dict(latent_dim=8),
}
FAMILIES = sorted(name for name, cls in component_classes().items() if issubclass(cls, Tokenizer))


@cache
def tiny(family: str) -> Tokenizer:
    torch.manual_seed(0)
    cls = component_classes()[family]
    tokenizer = cls(cls.config_class(**(SMALL | FIELDS[family])))
    for name, buffer in tokenizer.named_buffers():
        if name.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape) * 0.2)  # spread enough for several codes to win
    tokenizer.set_statistics(torch.linspace(-1, 1, 272), torch.linspace(0.5, 2, 272))
    return tokenizer.eval()


def clip(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, 272, generator=torch.Generator().manual_seed(seed)).cumsum(0) / 5


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) if not a.is_floating_point() else torch.allclose(a, b, atol=2e-5)


def test_every_family_is_swept() -> None:
    assert set(FIELDS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_ranges(family: str) -> None:
    tokenizer = tiny(family)
    tokens = tokenizer.encode(clip(41))
    steps = 41 // tokenizer.frames_per_token
    width = (tokenizer.config.latent_dim,) if tokenizer.continuous else (tokenizer.tokens_per_step,)
    assert tokens.shape in {(steps,), (steps, *width)}
    if not tokenizer.continuous:
        assert int(tokens.min()) >= 0 and int(tokens.max()) < tokenizer.vocab_size and len(tokens.unique()) > 1
        assert tokenizer.bits_per_second > 0
    made = tokenizer.decode(tokens)
    assert made.shape == (steps * tokenizer.frames_per_token, 272) and made.dtype == torch.float32
    assert torch.equal(made, tokenizer.reconstruct(clip(41)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_lengths_is_coded_as_single_clips(family: str) -> None:
    tokenizer = tiny(family)
    lengths = [41, 23, 41, 8]
    clips = [clip(n, seed) for seed, n in enumerate(lengths)]
    batch = torch.full((4, 41, 272), torch.nan)  # what lies beyond a clip's end must not matter
    for row, features in zip(batch, clips, strict=True):
        row[: len(features)] = features
    tokens = tokenizer.encode(batch, lengths)
    steps = [n // tokenizer.frames_per_token for n in lengths]
    singles = [tokenizer.encode(features) for features in clips]
    made = tokenizer.decode(tokens, steps)
    for row, (count, single) in enumerate(zip(steps, singles, strict=True)):
        assert same(tokens[row, :count], single)
        assert (tokens[row, count:] == (0 if tokenizer.continuous else -1)).all()
        torch.testing.assert_close(
            made[row, : count * tokenizer.frames_per_token], tokenizer.decode(single), atol=2e-5, rtol=0
        )
    assert all(same(a, b) for a, b in zip(tokenizer.encode(clips), singles, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_equal_the_whole(family: str) -> None:
    tokenizer = tiny(family)
    features = clip(700)
    whole = tokenizer.encode(features, chunk_frames=10_000)
    assert same(tokenizer.encode(features, chunk_frames=64), whole)
    pieces, at_once = (tokenizer.decode(whole, chunk_frames=size) for size in (64, 10_000))
    torch.testing.assert_close(pieces, at_once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(family: str, tmp_path) -> None:
    tokenizer = tiny(family)
    tokenizer.save_pretrained(tmp_path / "model")
    again = vadis.load(tmp_path / "model")
    assert type(again) is type(tokenizer) and again.config == tokenizer.config
    assert torch.equal(again.reconstruct(clip(40)), tokenizer.reconstruct(clip(40)))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_keeps_quantiser_and_statistics(family: str, tmp_path) -> None:
    tiny(family).save_pretrained(tmp_path / "model")
    half = vadis.load(tmp_path / "model").to(torch.bfloat16)
    kept = [n for n, t in half.state_dict().items() if t.is_floating_point() and t.dtype == torch.float32]
    assert {"mean", "std"} <= set(kept) and any(t.dtype == torch.bfloat16 for t in half.parameters())
    assert all(
        not n.startswith("quantizer") or n in kept for n, t in half.state_dict().items() if t.is_floating_point()
    )
    made, exact = half.reconstruct(clip(40)), tiny(family).reconstruct(clip(40))
    assert made.dtype == torch.float32 and torch.isfinite(made).all()
    assert (made - exact).abs().mean() < 0.5 * exact.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_input_is_refused_with_what_to_do(family: str, walk) -> None:
    tokenizer = tiny(family)
    with pytest.raises(ShapeError, match="look like hml263: convert with `vadis convert --to ms272`"):
        tokenizer.encode(torch.zeros(40, 263))
    with pytest.raises(ShapeError, match="at least one clip"):
        tokenizer.encode([])
    with pytest.raises(ShapeError, match="use a longer clip"):
        tokenizer.encode(clip(tokenizer.frames_per_token - 1))
    spoiled = clip(40)
    spoiled[7, 3] = torch.nan
    with pytest.raises(VadisError, match="frame 7 of clip 0 holds values that are not finite"):
        tokenizer.encode(spoiled)
    with pytest.raises(VadisError, match="this tokenizer needs ms272: convert with"):
        tokenizer.encode(clip(40), representation="ms272_absroot")
    with pytest.raises(VadisError, match=r"20 frames per second.*resample"):
        tokenizer.encode(clip(40), fps=20)
    with pytest.raises(VadisError, match=r"motion\.resample\(30\)"):
        tokenizer.encode(walk.resample(25))
    with pytest.raises(ShapeError, match=r"mean has shape \(263,\)"):
        tokenizer.set_statistics(torch.zeros(263), torch.ones(263))
    if not tokenizer.continuous:
        tokens = tokenizer.encode(clip(40))
        tokens.view(-1)[0] = tokenizer.vocab_size
        with pytest.raises(VadisError, match=f"token {tokenizer.vocab_size} .*is outside"):
            tokenizer.decode(tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_motion_is_encoded_like_its_features(family: str, walk) -> None:
    tokenizer = tiny(family)
    motion = walk.resample(30)
    assert same(tokenizer.encode(motion), tokenizer.encode(representation("ms272").encode(motion)))
