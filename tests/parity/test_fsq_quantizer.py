"""FSQ against the original quantiser: bounds, codes, indices, projections, gradient."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vadis.metrics.codebook import codebook_usage
from vadis.tokenizers import FSQ

from .fixtures import arrays, cases, fill_state, manifest, manifests


@pytest.mark.parametrize(("folder", "case"), cases("fsq_quantizer"))
def test_same_codes_and_indices(folder: Path, case: str) -> None:
    about, data = manifest(folder)["cases"][case], arrays(folder, f"{case}.")
    atol = about["atol"]
    quantizer = FSQ(tuple(about["levels"]), about.get("dim"))
    if "state_dict" in about:
        quantizer.load_state_dict(fill_state(about["state_dict"]))
        out, tokens, _ = quantizer(data["x"].transpose(1, 2))
        projected = quantizer.project(data["x"].transpose(1, 2))
        torch.testing.assert_close(projected, data["projected"], atol=atol, rtol=0)
        assert torch.equal(tokens, data["indices"])
        torch.testing.assert_close(out.transpose(1, 2), data["out"], atol=atol, rtol=0)
        torch.testing.assert_close(quantizer.dequantize(tokens), data["dequantized"], atol=atol, rtol=0)
    else:
        assert quantizer.vocab_size == about["codebook_size"]
        assert quantizer._basis.tolist() == about["basis"]
        torch.testing.assert_close(quantizer.bound(data["z"]), data["bounded"], atol=atol, rtol=0)
        codes = quantizer.quantize(data["z"])
        torch.testing.assert_close(codes, data["codes"], atol=atol, rtol=0)
        tokens = quantizer.tokens_from_codes(codes)
        assert torch.equal(tokens, data["indices"])
        torch.testing.assert_close(
            quantizer.codes_from_tokens(data["some_indices"]), data["some_codes"], atol=atol, rtol=0
        )
        assert torch.equal(quantizer.level_indices(data["some_indices"]), data["some_level_indices"])
        every = torch.arange(quantizer.vocab_size)
        book = quantizer.codes_from_tokens(every)
        assert torch.equal(quantizer.tokens_from_codes(book), every)
        torch.testing.assert_close(book.sum(0), torch.tensor(about["codebook_sum"]), atol=1e-2, rtol=0)
    usage = codebook_usage(tokens, quantizer.vocab_size)
    assert usage.perplexity == pytest.approx(about["perplexity"], rel=1e-4)
    assert usage.utilisation == pytest.approx(about["active_fraction"], rel=1e-5)


@pytest.mark.parametrize("folder", manifests("fsq_quantizer"))
def test_same_straight_through_gradient(folder: Path) -> None:
    data = arrays(folder, "grad.")
    quantizer = FSQ(tuple(manifest(folder)["grad"]["levels"]))
    z = nn.Parameter(data["z"])
    (quantizer.quantize(z) * data["w"]).sum().backward()
    torch.testing.assert_close(z.grad, data["dz"], atol=1e-6, rtol=0)
