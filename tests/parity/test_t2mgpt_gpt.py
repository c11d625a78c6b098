"""T2M-GPT's transformer against the original program, through the public importer."""

from functools import cache
from pathlib import Path

import pytest
import torch

import vadis
from vadis.errors import ModelError
from vadis.generators import T2MGPT, T2MGPTConfig
from vadis.generators.t2mgpt import position_table

from .fixtures import arrays, fill_state, manifest, manifests

TOPIC = "vqvae_t2mgpt"


def _cases() -> list[object]:
    """The cases that hold a transformer; the others are of the tokenizer."""
    result = []
    for parameter in manifests(TOPIC):
        folder = parameter.values[0]
        if folder is None:
            return [parameter]
        if any(name.endswith("tok_emb.weight") for name in manifest(folder).get("state_dict", {})):
            result.append(parameter)
    return result


def _state(folder: Path) -> dict[str, torch.Tensor]:
    about = manifest(folder)
    size, width = about["config"]["block_size"], about["config"]["embed_dim"]
    constructed = {
        "attn.mask": torch.ones(size, size).tril()[None, None],
        "pos_embed.embed": position_table(size, width)[:, None],
    }
    parameters = about.get("fill_parameters", {})
    return fill_state(about["state_dict"], constructed, **({"keep_as_constructed": list(constructed)} | parameters))


@cache
def _model(folder: Path) -> T2MGPT:
    config = manifest(folder)["config"]
    return vadis.import_checkpoint("t2mgpt-gpt", _state(folder), n_head=config["n_head"])


@pytest.mark.parametrize("folder", _cases())
def test_sizes_come_from_the_checkpoint(folder: Path) -> None:
    about, config = manifest(folder), _model(folder).config
    assert config.n_layer == 2 * about["config"]["num_layers"]
    theirs = {"n_embd": "embed_dim", "nb_code": "num_vq", "mlp_ratio": "fc_rate", "clip_dim": "clip_dim"}
    for ours, name in (theirs | {"block_size": "block_size"}).items():
        assert getattr(config, ours) == about["config"][name]
    # Two tables of positions, one of them never used, are counted there and are no parameters here.
    table = config.block_size * config.n_embd
    assert sum(p.numel() for p in _model(folder).parameters()) == about["parameters"] - 2 * table
    if config.n_embd == T2MGPTConfig().n_embd:
        assert config == T2MGPTConfig()


@pytest.mark.parametrize("folder", _cases())
@torch.no_grad()
def test_same_logits(folder: Path) -> None:
    data, tolerance = arrays(folder), manifest(folder)["suggested_tolerance"]
    model = _model(folder)
    logits = model(data["text_feature"], data["tokens"])
    torch.testing.assert_close(logits, data["logits"], atol=tolerance, rtol=0)
    logits = model(data["text_feature"], data["tokens"][:, :0])
    torch.testing.assert_close(logits, data["logits_empty_prefix"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("folder", _cases())
@torch.no_grad()
def test_same_greedy_tokens_with_a_cache_and_in_a_batch(folder: Path) -> None:
    data = arrays(folder)
    expected = data["greedy_tokens_sample0"][0]
    rows, stopped = _model(folder).generate(data["text_feature"])
    assert torch.equal(rows[0], expected)
    full = len(expected) == manifest(folder)["config"]["block_size"] - 1
    assert stopped[0] == ("cap" if full else "end")


@pytest.mark.parametrize("folder", _cases())
def test_no_name_is_missing_or_left_over(folder: Path) -> None:
    state = _state(folder)
    options = {"n_head": manifest(folder)["config"]["n_head"]}
    for name in ("trans_base.pos_embedding.weight", "trans_base.blocks.1.attn.mask", "trans_base.blocks.0.attn.key.bias",
                 "trans_head.ln_f.bias", "trans_base.cond_emb.weight"):  # fmt: skip
        with pytest.raises(ModelError, match="missing"):
            vadis.import_checkpoint("t2mgpt-gpt", {n: v for n, v in state.items() if n != name}, **options)
    with pytest.raises(ModelError, match="unexpected trans_base.extra"):
        vadis.import_checkpoint("t2mgpt-gpt", state | {"trans_base.extra": torch.zeros(1)}, **options)
    with pytest.raises(ModelError, match="pos_embed.embed is not the published constant"):
        wrong = state["trans_base.pos_embed.embed"].flip(-1)
        vadis.import_checkpoint("t2mgpt-gpt", state | {"trans_base.pos_embed.embed": wrong}, **options)
