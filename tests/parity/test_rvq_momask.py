"""MoMask's RVQ-VAE against the original program, through the public importer; its codebooks' updates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vadis
from vadis.tokenizers import RVQTokenizer
from vadis.tokenizers.rvqvae import ResidualVQ

from .fixtures import arrays, fill_state, manifest, manifests

TOPIC = "rvq_momask"
CONSTRUCTED = {"num_batches_tracked": torch.tensor(0)}


def _cases(model: bool) -> list[Any]:
    found = manifests(TOPIC)
    return [p for p in found if p.values[0] is None or ("state_dict" in manifest(p.values[0])) == model]


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def _state(about: dict[str, Any]) -> dict[str, Tensor]:
    parameters = dict(about["fill_parameters"])
    parameters.pop("shared_tensors", None)
    state = fill_state(about["state_dict"], CONSTRUCTED, **parameters)
    if about["config"]["shared_codebook"]:  # one tensor under several names holds the value of the last name
        names = [name for name in state if name.endswith("codebook")]
        state |= dict.fromkeys(names, state[names[-1]])
    return state


@pytest.mark.parametrize("folder", _cases(model=True))
@torch.no_grad()
def test_same_numbers_as_the_original_program(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    config = dict(about["config"])
    k = config.pop("k")
    tokenizer = vadis.import_checkpoint("momask-rvq", _state(about), **config)
    assert isinstance(tokenizer, RVQTokenizer) and tokenizer.config.shared_codebook == config["shared_codebook"]
    assert sum(p.numel() for p in tokenizer.parameters()) == about["trainable_parameters"]
    atol = about["suggested_tolerance"]["reconstruction"]
    output = tokenizer(data["motion"])
    _close(output.latent, data["latent"], about["suggested_tolerance"]["latent"])
    assert torch.equal(output.tokens, data["indices"])
    codes = torch.stack(tokenizer.quantizer.codes(output.tokens)).transpose(2, 3)
    _close(codes, data["layer_codes"], atol)
    _close(output.reconstruction, data["reconstruction"], atol)
    assert output.losses["commitment"].item() == pytest.approx(data["commit_loss"].item(), rel=1e-4)
    assert output.losses["perplexity"].item() == pytest.approx(data["perplexity"].item(), rel=1e-4)
    tokens = tokenizer.encode(data["motion"])  # mean 0, std 1
    assert torch.equal(tokens, data["indices"])
    _close(tokenizer.decode(tokens), data["decoded_all"], atol)
    _close(tokenizer.decode(tokens[..., :k]), data["decoded_first_k"], atol)
    first = torch.where(torch.arange(tokens.shape[-1]) < 1, tokens, -1)
    _close(tokenizer.decode(first), data["decoded_minus1_padding"], atol)
    dropped = tokenizer.quantizer(output.latent, levels=k)
    assert torch.equal(dropped.tokens, data["forced_dropout_indices"])
    assert torch.equal(tokenizer.encode(data["motion"], levels=k), data["forced_dropout_indices"])
    _close(dropped.vectors, data["forced_dropout_quantized"], atol)
    assert dropped.losses["commitment"].item() == pytest.approx(data["forced_dropout_commit"].item(), rel=1e-4)


@pytest.mark.parametrize("folder", _cases(model=False))
def test_the_codebooks_move_as_in_the_original_program(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    c, tolerance = about["config"], about["suggested_tolerance"]
    quantizer = ResidualVQ(c["num_quantizers"], c["nb_code"], c["code_dim"], c["shared_codebook"], dropout=0.0,
                           temperature=c["temperature"], decay=c["mu"]).train()  # fmt: skip
    for step, latents in enumerate(data["latents"]):
        x = latents.transpose(1, 2).clone().requires_grad_()
        output = quantizer(x)
        out = output.vectors.transpose(1, 2)
        _close(out, data[f"step{step}.quantized"], tolerance)
        assert torch.equal(output.tokens, data[f"step{step}.indices"])
        for ours, theirs in (("commitment", "commit"), ("perplexity", "perplexity")):
            stored = data[f"step{step}.{theirs}"].item()
            assert output.losses[ours].item() == pytest.approx(stored, rel=1e-5, abs=tolerance)
        books = torch.stack([layer.codebook for layer in quantizer.layers])  # type: ignore[misc]
        _close(books, data[f"step{step}.codebooks_after"], tolerance)
        wave = torch.arange(out.numel(), dtype=torch.float32).view(out.shape).cos()
        straight, pull = (torch.autograd.grad(t, x, retain_graph=True)[0].transpose(1, 2)
                          for t in ((out * wave).sum(), output.losses["commitment"]))  # fmt: skip
        _close(straight, data[f"step{step}.grad_through_quantizer"], tolerance)
        _close(pull, data[f"step{step}.grad_commit"], tolerance)


def test_the_default_config_has_the_published_size() -> None:
    tokenizer = RVQTokenizer()
    assert sum(p.numel() for p in tokenizer.parameters()) == 19_436_807
    names = [n for n in tokenizer.state_dict() if n.endswith("codebook")]
    assert names == [f"quantizer.layers.{q}.codebook" for q in range(6)]
    assert (tokenizer.frames_per_token, tokenizer.tokens_per_step, tokenizer.bits_per_second) == (4, 6, 270)
