"""The MotionMillion tokenizer against the original program, through the public importer."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import vadis
from vadis.metrics.codebook import codebook_usage
from vadis.tokenizers import FSQTokenizer
from vadis.tokenizers.layers import HaarPatcher
from vadis.tokenizers.losses import reconstruction_losses

from .fixtures import arrays, cases, fill_state, manifest, manifests


@cache
def _import(folder: Path, entries: str, config: str) -> FSQTokenizer:
    constructed = dict(HaarPatcher().state_dict()) | {"num_batches_tracked": torch.tensor(0)}
    state = fill_state(json.loads(entries), constructed, **manifest(folder)["fill_parameters"])
    options = json.loads(config)
    tokenizer = vadis.import_checkpoint("motionmillion-fsq", state, **options)
    assert sum(p.numel() for p in tokenizer.parameters()) == sum(
        v.numel()
        for n, v in state.items()
        if not n.endswith(("wavelets", "_arange", "running_mean", "running_var", "tracked"))
    )
    return tokenizer


def _tokenizer(folder: Path, about: dict[str, Any]) -> FSQTokenizer:
    whole = manifest(folder)
    entries = about.get("state_dict", whole["state_dict_released"])
    config = about.get("config", "released")
    return _import(folder, json.dumps(entries), json.dumps(config if isinstance(config, dict) else {}))


@pytest.mark.parametrize(("folder", "case"), cases("motionmillion_fsq"))
@torch.no_grad()
def test_same_numbers_as_the_original_program(folder: Path, case: str) -> None:
    about, data = manifest(folder)["cases"][case], arrays(folder, f"{case}.")
    tokenizer = _tokenizer(folder, about)
    if "decoded" in data:
        latent = tokenizer.quantizer.dequantize(data["indices"])
        torch.testing.assert_close(latent[..., ::8], data["dequantized"], atol=about["atol_reconstruction"], rtol=0)
        decoded = tokenizer.decode(data["indices"])
        torch.testing.assert_close(decoded, data["decoded"], atol=about["atol_reconstruction"], rtol=0)
        return
    output = tokenizer(data["x"])
    if "encoder_out" in data:
        torch.testing.assert_close(
            output.latent.transpose(1, 2)[:, ::8], data["encoder_out"], atol=about["atol_encoder_out"], rtol=0
        )
    torch.testing.assert_close(
        tokenizer.quantizer.project(output.latent), data["projected"], atol=about["atol_projected"], rtol=0
    )
    assert torch.equal(output.tokens, data["indices"])
    torch.testing.assert_close(output.reconstruction, data["reconstruction"], atol=about["atol_reconstruction"], rtol=0)
    assert torch.equal(tokenizer.encode(data["x"]), data["indices"])  # mean 0 and std 1: x is normalised already
    decoded = tokenizer.decode(data["indices"])
    torch.testing.assert_close(decoded, data["decoded_from_indices"], atol=about["atol_reconstruction"], rtol=0)
    usage = codebook_usage(output.tokens, tokenizer.vocab_size)
    assert usage.perplexity == pytest.approx(about["perplexity"], rel=1e-3)
    assert usage.utilisation == pytest.approx(about["active_fraction"], rel=1e-5)


@pytest.mark.parametrize("folder", manifests("motionmillion_fsq"))
def test_same_losses(folder: Path) -> None:
    expected = manifest(folder)["losses"]
    data = arrays(folder, f"{expected['case']}.")
    terms = reconstruction_losses(
        data["x"], data["reconstruction"], velocity_weight=1e-9, acceleration_weight=1e-9, root_weight=1e-9
    )
    names = {
        "features": "smooth_l1_all",
        "positions": "smooth_l1_positions_8_74",
        "total": "total_0.5",
        "velocity": "first_difference_of_positions",
        "acceleration": "second_difference_of_positions",
        "root": "root_0_8",
    }
    for ours, theirs in names.items():
        assert terms[ours].item() == pytest.approx(expected[theirs], rel=1e-5), ours


@pytest.mark.parametrize("folder", manifests("motionmillion_fsq"))
def test_the_default_config_is_the_released_model(folder: Path) -> None:
    whole = manifest(folder)
    tokenizer = FSQTokenizer()
    names = {f"vqvae.{n}": list(t.shape) for n, t in tokenizer.state_dict().items() if n not in ("mean", "std")}
    assert names == {name: shape for name, (_, shape) in whole["state_dict_released"].items()}
    assert sum(p.numel() for p in tokenizer.parameters()) == whole["n_parameters_released"]
    assert (tokenizer.frames_per_token, tokenizer.vocab_size, tokenizer.decoder_context) == (2, 64000, (16, 16))
