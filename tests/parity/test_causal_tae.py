"""MotionStreamer's causal auto-encoder against the original program, through the public importer."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vadis
from vadis.tokenizers import CausalTAE
from vadis.tokenizers.causal_tae import kl_divergence, sigma_loss

from .fixtures import arrays, fill_state, manifest, manifests

BITS = {"num_batches_tracked": torch.tensor(0)}


@cache
def _tokenizer(folder: Path) -> CausalTAE:
    about = manifest(folder)
    gain = about.get("fill_parameters", {"gain": 1.0})
    state = fill_state(about["state_dict"], BITS, **gain)
    options = {name: value for name, value in about["config"].items() if value is not None}
    if "clip_range" in options:
        options["log_variance_range"] = options.pop("clip_range")
    tokenizer = vadis.import_checkpoint("motionstreamer-tae", state, **options)
    values = sum(v.numel() for n, v in state.items() if not n.endswith(("running_mean", "running_var", "tracked")))
    assert sum(p.numel() for p in tokenizer.parameters()) == values
    return tokenizer


def _close(folder: Path, ours: Tensor, theirs: Tensor) -> None:
    tolerance = manifest(folder)["recommended_tolerance"]
    torch.testing.assert_close(ours, theirs, atol=tolerance["abs"], rtol=tolerance["rel"])


def _windows(data: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix(".x") for name in data if name.endswith(".x")]


@pytest.mark.parametrize("folder", manifests("causal_tae"))
@torch.no_grad()
def test_same_numbers_as_the_original_program(folder: Path) -> None:
    tokenizer, data = _tokenizer(folder), arrays(folder)
    for name in _windows(data):
        x = data[f"{name}.x"]
        mean, log_variance = tokenizer.moments(x)
        _close(folder, mean, data[f"{name}.mu"])
        _close(folder, log_variance, data[f"{name}.logvar"])
        _close(folder, tokenizer.encode(x), data[f"{name}.mu"])  # mean 0 and std 1: x is normalised already
        drawn = mean + (log_variance / 2).exp() * data[f"{name}.eps"]
        _close(folder, drawn, data[f"{name}.z"])
        _close(folder, drawn.transpose(1, 2).flatten(0, 1), data[f"{name}.encode_first_output"])
        _close(folder, tokenizer.decode(data[f"{name}.mu"]), data[f"{name}.decode_mu"])
        _close(folder, tokenizer.decode(data[f"{name}.z"]), data[f"{name}.forward_sampled"])
    for name in (n.removesuffix(".decode") for n in data if n.endswith(".decode")):
        _close(folder, tokenizer.decode(data[f"{name}.z"]), data[f"{name}.decode"])
    if "end_latent.mu" in data:
        mean, log_variance = tokenizer.moments(torch.zeros(1, tokenizer.frames_per_token, tokenizer.config.feature_dim))
        _close(folder, mean, data["end_latent.mu"])
        _close(folder, log_variance, data["end_latent.logvar"])


@pytest.mark.parametrize("folder", manifests("causal_tae"))
def test_streams_give_the_original_numbers(folder: Path) -> None:
    tokenizer, data = _tokenizer(folder), arrays(folder)
    if not tokenizer.causal:
        with pytest.raises(vadis.errors.ModelError, match="GroupNorm looks over the whole clip"):
            tokenizer.stream_decoder()
        return
    name = _windows(data)[0]
    x, z = data[f"{name}.x"], data[f"{name}.z"]
    encoder, decoder = tokenizer.stream_encoder(len(x)), tokenizer.stream_decoder(len(z))
    latents = torch.cat([encoder.push(part) for part in x.split(7, dim=1)], dim=1)
    frames = torch.cat([decoder.push(part) for part in z.split(1, dim=1)], dim=1)
    _close(folder, latents, data[f"{name}.mu"])
    _close(folder, frames, data[f"{name}.forward_sampled"])


def _with_losses() -> list[Any]:
    found = [p for p in manifests("causal_tae") if p.values[0] is None or "losses" in manifest(p.values[0])]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason="no case of this set has losses"))]


@pytest.mark.parametrize("folder", _with_losses())
def test_same_losses(folder: Path) -> None:
    expected, data = manifest(folder)["losses"], arrays(folder)
    tokenizer = _tokenizer(folder)
    name = expected["target"].removesuffix(".x")
    target = data[expected["target"]]
    for prefix in ("", "small_"):
        if f"{prefix}pred" not in expected:
            continue
        made = data[expected[f"{prefix}pred"]]
        assert sigma_loss(target, made)[0].item() == pytest.approx(expected[f"{prefix}recon"], rel=1e-5)
        root = sigma_loss(target[..., :8], made[..., :8])[0]
        assert root.item() == pytest.approx(expected[f"{prefix}root"], rel=1e-4)
    kl = kl_divergence(data[f"{name}.mu"], data[f"{name}.logvar"]).sum(dim=(1, 2)).mean()
    assert kl.item() == pytest.approx(expected["kl"], rel=1e-5)
    if expected["pred"] == f"{name}.decode_mu":  # eval mode decodes the means
        terms, _ = tokenizer.loss(target)
        ours = {"features": "recon", "root": "root", "kl": "kl", "total": "total_with_root_weight_7"}
        for term, theirs in ours.items():
            assert terms[term].item() == pytest.approx(expected[theirs], rel=1e-4), term


@pytest.mark.parametrize("folder", manifests("causal_tae"))
def test_the_default_config_is_the_released_model(folder: Path) -> None:
    if not folder.name.startswith("released"):
        pytest.skip("a tiny configuration")
    with torch.device("meta"):
        tokenizer = CausalTAE()
    assert _tokenizer(folder).config == tokenizer.config
    assert sum(p.numel() for p in tokenizer.parameters()) == 76_203_312
    assert (tokenizer.frames_per_token, tokenizer.encoder_context, tokenizer.decoder_context) == (4, (43, 0), (44, 0))
