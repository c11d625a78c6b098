"""The causal auto-encoder by itself: streams, lengths, chunks, sampling, losses, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vadis
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.tokenizers import CausalTAE, CausalTAEConfig


def tiny(**changes: object) -> CausalTAE:
    torch.manual_seed(0)
    fields = dict(width=32, latent_dim=6)
    tokenizer = CausalTAE(CausalTAEConfig(**(fields | changes)))
    tokenizer.set_statistics(torch.linspace(-1, 1, 272), torch.linspace(0.5, 2, 272))
    return tokenizer.eval()


MODELS = {
    "released layout": tiny(),
    "one stage": tiny(down_t=1, depth=2, norm="LN", activation="silu"),
    "stride 4": tiny(stride_t=4, norm="BN", activation="gelu", dilation_growth_rate=2),
}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.lists(st.integers(0, 23), min_size=1, max_size=7), st.integers(0, 2**31))
def test_streams_equal_the_whole_for_any_chunks(name: str, chunks: list[int], seed: int) -> None:
    tokenizer = MODELS[name]
    features = torch.randn(2, sum(chunks) + 16, 272, generator=torch.Generator().manual_seed(seed))
    encoder, decoder = tokenizer.stream_encoder(2), tokenizer.stream_decoder(2)
    latents = torch.cat([encoder.push(part) for part in features.split([*chunks, 16], dim=1)], dim=1)
    torch.testing.assert_close(latents, tokenizer.encode(features), atol=1e-5, rtol=1e-5)
    parts = [latents[:, :1], latents[:, 1:]]
    frames = torch.cat([decoder.push(part) for part in parts], dim=1)
    torch.testing.assert_close(frames, tokenizer.decode(latents), atol=1e-5, rtol=1e-5)


def test_a_row_of_a_stream_can_wait_and_start_anew_without_touching_the_others() -> None:
    tokenizer = MODELS["released layout"]
    latents = torch.randn(3, 9, 6)
    decoder = tokenizer.stream_decoder(3)
    first = decoder.push(latents[:, :4])
    alone = decoder.push(latents[1:2, 4:6], rows=[1])  # 0 and 2 wait
    decoder.reset([2])
    rest = decoder.push(latents[[2, 0], 4:], rows=[2, 0])
    whole = tokenizer.decode(latents)
    torch.testing.assert_close(torch.cat([first[1:2], alone], 1), whole[1:2, :24], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([first[0], rest[1]]), whole[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rest[0], tokenizer.decode(latents[2, 4:]), atol=1e-5, rtol=1e-5)
    encoder = tokenizer.stream_encoder(2)
    encoder.push(torch.randn(2, 6, 272))
    encoder.reset([0])
    features = torch.randn(11, 272)
    with pytest.raises(VadisError, match="wait for different numbers"):
        encoder.push(torch.zeros(2, 4, 272))
    made = encoder.push(features[None], rows=[0])[0]
    torch.testing.assert_close(made, tokenizer.encode(features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"norm": "LN"}, {"norm": "BN"}, {"norm": "GN"}])
def test_a_batch_of_unequal_clips_equals_the_clips_one_by_one(changes: dict[str, object]) -> None:
    tokenizer = tiny(**changes)
    features, lengths = torch.randn(4, 31, 272), [31, 12, 31, 21]
    for row, length in enumerate(lengths):
        features[row, length:] = math.nan  # what lies in the padding does not matter
    calls = []
    tokenizer.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    tokenizer.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    latents = tokenizer.encode(features, lengths)
    steps = [n // 4 for n in lengths]
    assert latents.shape == (4, 7, 6)
    spoilt = latents.clone()
    for row, count in enumerate(steps):
        assert bool((latents[row, count:] == 0).all())
        spoilt[row, count:] = math.inf
    decoded = tokenizer.decode(spoilt, steps)
    assert calls == (["encoder"] * 3 + ["decoder"] * 3 if changes.get("norm") == "GN" else ["encoder", "decoder"])
    for row, (length, count) in enumerate(zip(lengths, steps, strict=True)):
        alone = tokenizer.encode(features[row, :length])
        torch.testing.assert_close(latents[row, :count], alone, atol=1e-5, rtol=1e-5)
        again = tokenizer.decode(latents[row, :count])
        torch.testing.assert_close(decoded[row, : len(again)], again, atol=1e-5, rtol=1e-5)
        assert bool((decoded[row, len(again) :] == 0).all())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_long_clips_in_pieces_equal_the_whole(name: str) -> None:
    tokenizer = MODELS[name]
    features = torch.randn(403, 272)
    whole = tokenizer.encode(features)
    torch.testing.assert_close(tokenizer.encode(features, chunk_frames=64), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.decode(whole, chunk_frames=64), tokenizer.decode(whole), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_contexts_are_as_far_as_values_reach_and_nothing_looks_ahead(name: str) -> None:
    tokenizer = MODELS[name].double()
    try:
        step, (before, _), (reach, _) = tokenizer.frames_per_token, tokenizer.encoder_context, tokenizer.decoder_context
        x = torch.randn(1, 120 * step, 272, dtype=torch.float64)
        other = x.clone()
        other[:, : 60 * step] += torch.randn(1, 60 * step, 272, dtype=torch.float64)
        same = (tokenizer.encoder(x.mT) == tokenizer.encoder(other.mT)).all(1)[0]
        assert same[60 + before :].all() and not same[: 60 + before - 1].any()
        ahead = x.clone()
        ahead[:, 60 * step :] = 0
        assert torch.equal(tokenizer.encoder(x.mT)[..., :60], tokenizer.encoder(ahead.mT)[..., :60])
        z = torch.randn(1, 120, 6, dtype=torch.float64)
        other = z.clone()
        other[:, :60] += 1
        same = (tokenizer._decode(z) == tokenizer._decode(other)).all(2)[0].unflatten(0, (-1, step)).all(1)
        assert same[60 + reach :].all() and not same[: 60 + reach - 1].any()
        other = z.clone()
        other[:, 60:] = 0
        assert torch.equal(tokenizer._decode(z)[:, : 60 * step], tokenizer._decode(other)[:, : 60 * step])
    finally:
        tokenizer.float()


def test_latents_are_means_unless_draws_are_asked_for() -> None:
    tokenizer = MODELS["released layout"]
    features = torch.randn(2, 24, 272)
    means = tokenizer.encode(features)
    drawn = tokenizer.encode(features, sample=True, seed=3)
    assert torch.equal(drawn, tokenizer.encode(features, sample=True, seed=3))
    assert not torch.equal(drawn, tokenizer.encode(features, sample=True, seed=4))
    mean, log_variance = tokenizer.moments((features - tokenizer.mean) / tokenizer.std)
    torch.testing.assert_close(means, mean)
    many = torch.stack([tokenizer.encode(features, sample=True, seed=i) for i in range(200)])
    torch.testing.assert_close(many.std(dim=0), (log_variance / 2).exp(), atol=0.2, rtol=0.3)
    padded = tokenizer.encode(features, [24, 9], sample=True, seed=3)
    assert bool((padded[1, 2:] == 0).all()) and bool((padded[1, :2] != 0).all())
    several = tokenizer.encode([features[0], features[1, :9]], sample=True, seed=3)
    assert [row.shape for row in several] == [(6, 6), (2, 6)]
    torch.testing.assert_close(tokenizer.reconstruct(features), tokenizer.decode(means))


def test_the_rate_is_the_kl_in_bits_a_second() -> None:
    tokenizer = tiny()
    with torch.no_grad():
        tokenizer.encoder.proj.weight.zero_()
        tokenizer.encoder.proj.bias[:6], tokenizer.encoder.proj.bias[6:] = 2.0, 0.0
    assert tokenizer.kl_bits_per_second(torch.randn(40, 272)) == pytest.approx(6 * 2 / math.log(2) * 30 / 4)
    features = torch.randn(2, 40, 272)
    assert tokenizer.kl_bits_per_second(features, [40, 7]) == pytest.approx(6 * 2 / math.log(2) * 30 / 4)


def test_gradients_reach_every_parameter_and_training_lowers_the_loss() -> None:
    tokenizer = tiny().train()
    x = torch.randn(4, 16, 272)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    totals = []
    for step in range(15):
        terms, _ = tokenizer.loss(x, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        terms["total"].backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in tokenizer.parameters())
        optimizer.step()
        totals.append(terms["total"].item())
    assert totals[-1] < totals[0]
    tokenizer.eval()
    one, two = (tokenizer.loss(x)[0]["total"].item() for _ in range(2))
    assert one == two  # means when not training
    plain, _ = tokenizer.loss(x, root_weight=0.0, kl_weight=0.0)
    assert "root" not in plain and plain["total"].item() == pytest.approx(plain["features"].item())


def test_saved_and_loaded_again_it_is_the_same(tmp_path) -> None:
    tokenizer = tiny(norm="LN")
    features = torch.randn(20, 272)
    tokenizer.save_pretrained(tmp_path / "tae")
    again = vadis.load(tmp_path / "tae")
    assert isinstance(again, CausalTAE) and again.config == tokenizer.config
    assert torch.equal(again.encode(features), tokenizer.encode(features))


def test_half_precision_keeps_latents_and_frames_in_float32() -> None:
    tokenizer, half = tiny(), tiny().to(torch.bfloat16)
    features = torch.randn(40, 272)
    latents = half.encode(features)
    assert half.mean.dtype == latents.dtype == half.decode(latents).dtype == torch.float32
    torch.testing.assert_close(latents, tokenizer.encode(features), atol=0.05, rtol=0.1)
    torch.testing.assert_close(half.stream_decoder().push(latents), half.decode(latents), atol=0.02, rtol=0.02)


def test_errors_say_what_to_do() -> None:
    tokenizer = MODELS["released layout"]
    with pytest.raises(ShapeError, match="263 values look like hml263"):
        tokenizer.encode(torch.zeros(8, 263))
    with pytest.raises(ShapeError, match="3 frames, fewer than the 4 of one token"):
        tokenizer.encode(torch.zeros(3, 272))
    with pytest.raises(ShapeError, match=r"\(S, 6\) or \(B, S, 6\)"):
        tokenizer.decode(torch.zeros(5, 16))
    with pytest.raises(VadisError, match="latents of clip 0 hold values that are not finite"):
        tokenizer.decode(torch.full((5, 6), math.nan))
    with pytest.raises(ModelError, match="kl_bits_per_second"):
        _ = tokenizer.bits_per_second
    with pytest.raises(ModelError, match="no vocabulary"):
        _ = tokenizer.vocab_size
    with pytest.raises(ModelError, match="no velocity_weight"):
        tokenizer.loss(torch.zeros(1, 8, 272), velocity_weight=1.0)
    with pytest.raises(ModelError, match="set root_weight to 0"):
        tiny(representation="other").loss(torch.zeros(1, 8, 272))
    with pytest.raises(ModelError, match="GroupNorm looks over the whole clip"):
        tiny(norm="GN").stream_decoder()
    with pytest.raises(ValueError, match="multiple of 32"):
        tiny(norm="GN", width=40)
    decoder = tokenizer.stream_decoder(2)
    with pytest.raises(ShapeError, match=r"takes latents \(2, n, 6\)"):
        decoder.push(torch.zeros(3, 1, 6))
    with pytest.raises(VadisError, match="not finite: nothing was pushed"):
        decoder.push(torch.full((2, 1, 6), math.inf))
    with pytest.raises(VadisError, match="different numbers in 0 … 1"):
        decoder.push(torch.zeros(1, 1, 6), rows=[2])


def test_foreign_checkpoints_are_refused() -> None:
    with pytest.raises(ModelError, match="not a MotionStreamer TAE checkpoint: unexpected names"):
        vadis.import_checkpoint("motionstreamer-tae", {"vqvae.x": torch.zeros(1)})
    with pytest.raises(ModelError, match="is missing"):
        vadis.import_checkpoint("motionstreamer-tae", {"tae.decode_proj.weight": torch.zeros(32, 6)})
    names = {f"tae.{n}": v for n, v in tiny(norm="LN").state_dict().items() if n not in ("mean", "std")}
    with pytest.raises(ModelError, match="give norm='LN' or norm='GN'"):
        vadis.import_checkpoint("motionstreamer-tae", names)
