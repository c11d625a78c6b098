"""MG-VQVAE against its reference, through the public importer and the published names; its codebooks' updates."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vadis
from vadis.tokenizers import MGVQTokenizer, MotionVQVAE
from vadis.tokenizers.codebook import EMACodebook

from .fixtures import arrays, cases, fill_state, manifest

TOPIC = "mg_vqvae"
CONSTRUCTED = {"num_batches_tracked": torch.tensor(0)}


def _cases(model: bool) -> list[Any]:
    found = cases(TOPIC)
    return [p for p in found if p.values[0] is None or
            ("state_dict" in manifest(p.values[0])["cases"][p.values[1]]) == model]  # fmt: skip


@pytest.mark.parametrize(("folder", "case"), _cases(model=True))
@torch.no_grad()
def test_same_numbers_as_the_reference(folder: Path, case: str) -> None:
    whole, data = manifest(folder), arrays(folder, f"{case}.")
    about = whole["cases"][case]
    config = about["config"]
    codes = {"quantizer.codebook": ["float32", [config[n] for n in ("groups", "codes", "code_dim")]]}
    state = fill_state(codes | about["state_dict"], CONSTRUCTED, **whole["fill_parameters"])
    tokenizer = vadis.import_checkpoint("motion-vqvae", state, fps=30.0, **config)
    assert isinstance(tokenizer, MGVQTokenizer) and tokenizer.representation == "ms272_absroot"
    assert sum(p.numel() for p in tokenizer.parameters()) == about["n_parameters"]
    output = tokenizer(data["x"])
    latent = output.latent.transpose(1, 2)[:, ::4]
    torch.testing.assert_close(latent, data["encoder_out"], atol=about["atol_encoder_out"], rtol=0)
    assert torch.equal(output.tokens, data["tokens"].permute(1, 2, 0))
    torch.testing.assert_close(output.reconstruction, data["reconstruction"], atol=about["atol_reconstruction"], rtol=0)
    assert output.losses["commitment"].item() == pytest.approx(about["commit_mse"], rel=1e-4)
    published = MotionVQVAE(tokenizer)
    reconstruction, tokens = published(data["x"])  # mean 0, std 1
    assert torch.equal(tokens, data["tokens"])
    torch.testing.assert_close(reconstruction, data["reconstruction"], atol=about["atol_reconstruction"], rtol=0)
    assert published.get_codebook_embeddings().shape == (config["groups"], config["codes"], config["code_dim"])
    assert torch.equal(published.get_codebook_embeddings(), state["quantizer.codebook"])


@pytest.mark.parametrize(("folder", "case"), _cases(model=False))
def test_the_codebook_moves_as_in_the_reference(folder: Path, case: str) -> None:
    about, data = manifest(folder)["cases"][case], arrays(folder, f"{case}.")
    books = [EMACodebook(about["codes"], about["dim"], groups=groups).train() for groups in (None, 3)]
    steps = about["commit_and_perplexity_per_step"]
    for step, (commitment, perplexity) in enumerate(steps):
        x = data[f"x{step}"].transpose(1, 2)
        for book in books:  # three equal groups are three times the same codebook
            output = book(x.repeat(1, 1, book.groups or 1))
            assert output.losses["commitment"].item() == pytest.approx(commitment, rel=1e-5)
            assert output.losses["perplexity"].item() == pytest.approx(perplexity, rel=1e-5)
            for codes, counts in zip(book.embeddings, book.code_count.view(-1, about["codes"]), strict=True):
                torch.testing.assert_close(codes, data[f"codebook_after{step}"], atol=about["atol"], rtol=0)
                torch.testing.assert_close(counts, data[f"count_after{step}"], atol=about["atol"], rtol=0)
            if step == len(steps) - 1:
                vectors = output.vectors.transpose(1, 2).unflatten(1, (book.groups or 1, -1))
                for part in vectors.unbind(1):
                    torch.testing.assert_close(part, data["last_quantized"], atol=about["atol"], rtol=0)
    assert int((books[0].code_count < 1).sum()) == about["codes_reset_at_last_step"]
