"""LFQ against the library that published runs use: codes, tokens in both bit orders, losses, gradients, images."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vadis.tokenizers import LFQ

from .fixtures import arrays, fill_state, manifest, manifests


def quantizers(folder: Path) -> tuple[LFQ, LFQ]:
    """One quantiser a bit order, with the weights of the case where it has any."""
    about = manifest(folder)
    config = about["config"]
    bits = config["codebook_size"].bit_length() - 1
    options = {
        "dim": config.get("dim"),
        "inv_temperature": config.get("inv_temperature", 100.0),
        "diversity_gamma": config.get("diversity_gamma", 1.0),
    }
    pair = tuple(LFQ(bits, bit_order=order, clamped_entropy=True, **options) for order in ("msb", "lsb"))
    if "state_dict" in about:
        for quantizer in pair:
            quantizer.load_state_dict(fill_state(about["state_dict"], {"mask": quantizer.mask}))
    return pair


@pytest.mark.parametrize("folder", manifests("lfq"))
def test_same_codes_and_tokens(folder: Path) -> None:
    data, atol = arrays(folder), manifest(folder)["suggested_tolerance"]
    msb, lsb = quantizers(folder)
    vectors, tokens, _ = msb(data["x"])
    assert torch.equal(tokens, data["indices_library"])
    torch.testing.assert_close(vectors, data["quantized"], atol=atol, rtol=0)
    torch.testing.assert_close(msb.dequantize(tokens), data["codes_from_indices"], atol=atol, rtol=0)
    if "indices_paper" in data:
        tokens = lsb(data["x"]).tokens
        assert torch.equal(tokens, data["indices_paper"])
        torch.testing.assert_close(lsb.dequantize(tokens), data["codes_from_indices"], atol=atol, rtol=0)
    if "image_in" in data:
        vectors, tokens, _ = msb(data["image_in"].movedim(1, -1))
        assert torch.equal(tokens, data["image_indices_library"])
        torch.testing.assert_close(vectors.movedim(-1, 1), data["image_quantized"], atol=atol, rtol=0)


@pytest.mark.parametrize("folder", manifests("lfq"))
def test_same_losses_and_gradients(folder: Path) -> None:
    data, about = arrays(folder), manifest(folder)
    if "aux_loss" not in data:
        pytest.skip("this case holds no losses")
    config, atol = about["config"], about["suggested_tolerance"]
    quantizer, _ = quantizers(folder)
    x = nn.Parameter(data["x"])
    vectors, _, losses = quantizer(x)
    found = {
        "per_sample_entropy": quantizer.row_entropy(x),
        "batch_entropy": quantizer.mean_entropy(x),
        "commitment": losses["commitment"],
        "aux_loss": config["entropy_loss_weight"] * losses["entropy"]
        + config["commitment_loss_weight"] * losses["commitment"],
    }
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), data[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    (gradient,) = torch.autograd.grad(found["aux_loss"], x)
    torch.testing.assert_close(gradient, data["grad_aux"], atol=atol, rtol=0)
    (gradient,) = torch.autograd.grad(vectors, x, data["grad_straight_through"])
    torch.testing.assert_close(gradient, data["grad_straight_through"], atol=atol, rtol=0)
