"""T2M-GPT's VQ-VAE against the original program, through the public importer; its codebook's updates."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vadis
from vadis.tokenizers import VQTokenizer
from vadis.tokenizers.codebook import EMACodebook

from .fixtures import arrays, fill_state, manifest, manifests

TOPIC = "vqvae_t2mgpt"
CONSTRUCTED = {"num_batches_tracked": torch.tensor(0)}


def _cases(wanted: str) -> list[object]:
    """Cases by what they hold: an auto-encoder ("model") or a trace of the codebook ("trace"). The others are of the GPT."""
    result = []
    for parameter in manifests(TOPIC):
        folder = parameter.values[0]
        if folder is None:
            return [parameter]
        about = manifest(folder)
        if "state_dict" not in about:
            kind = "trace"
        else:
            kind = "model" if any(name.endswith("quantizer.codebook") for name in about["state_dict"]) else "other"
        if kind == wanted:
            result.append(parameter)
    return result


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("folder", _cases("model"))
@torch.no_grad()
def test_same_numbers_as_the_original_program(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    state = fill_state(about["state_dict"], CONSTRUCTED, **about["fill_parameters"])
    tokenizer = vadis.import_checkpoint("t2mgpt-vqvae", state, **about["config"])
    assert isinstance(tokenizer, VQTokenizer)
    assert sum(p.numel() for p in tokenizer.parameters()) == about["trainable_parameters"]
    tolerance = about["suggested_tolerance"]
    for end in ("", "_odd"):
        output = tokenizer(data[f"motion{end}"])
        _close(output.latent, data[f"latent{end}"], tolerance["latent"])
        assert torch.equal(output.tokens, data[f"indices{end}"])
        _close(output.reconstruction, data[f"reconstruction{end}"], tolerance["reconstruction"])
        assert torch.equal(tokenizer.encode(data[f"motion{end}"]), data[f"indices{end}"])  # mean 0, std 1
    decoded = tokenizer.decode(data["indices"])
    _close(decoded[:1], data["decoded_from_indices_sample0"], tolerance["reconstruction"])
    terms, _ = tokenizer.loss(data["motion"], commitment_weight=0.02, position_weight=0.5)
    expected = {"features": "loss_recon_smooth_l1", "positions": "loss_position_smooth_l1", "total": "loss_total",
                "commitment": "commit_loss", "perplexity": "perplexity"}  # fmt: skip
    for ours, theirs in expected.items():
        assert terms[ours].item() == pytest.approx(data[theirs].item(), rel=1e-4), ours


@pytest.mark.parametrize("folder", _cases("trace"))
def test_the_codebook_moves_as_in_the_original_program(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    config, tolerance = about["config"], about["suggested_tolerance"]
    book = EMACodebook(config["nb_code"], config["code_dim"], decay=config["mu"]).train()
    for step, latents in enumerate(data["latents"]):
        x = latents.transpose(1, 2).clone().requires_grad_()
        output = book(x)
        out = output.vectors.transpose(1, 2)
        _close(out, data[f"step{step}.quantized"], tolerance)
        for name in ("commitment", "perplexity"):
            stored = data[f"step{step}.{'commit' if name == 'commitment' else name}"].item()
            assert output.losses[name].item() == pytest.approx(stored, rel=1e-5, abs=tolerance)
        for name, value in (("codebook", book.codebook), ("code_count", book.code_count), ("code_sum", book.code_sum)):
            _close(value, data[f"step{step}.{name}_after"], tolerance)
        wave = torch.arange(out.numel(), dtype=torch.float32).view(out.shape).cos()
        straight, pull = (torch.autograd.grad(t, x, retain_graph=True)[0].transpose(1, 2)
                          for t in ((out * wave).sum(), output.losses["commitment"]))  # fmt: skip
        _close(straight, data[f"step{step}.grad_through_quantizer"], tolerance)
        _close(pull, data[f"step{step}.grad_commit"], tolerance)


@pytest.mark.parametrize("folder", _cases("model")[:1])
def test_the_default_config_has_the_published_size(folder: Path) -> None:
    del folder  # only skips where the fixtures are absent
    tokenizer = VQTokenizer()
    assert sum(p.numel() for p in tokenizer.parameters()) == 19_436_807
    assert (tokenizer.frames_per_token, tokenizer.vocab_size, tokenizer.bits_per_second) == (4, 512, 45)
