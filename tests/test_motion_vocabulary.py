"""Motion vocabularies in language models: new ids, new rows, texts; on tiny random models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from motion_vocabularies import (
    CAPTIONS,
    FACTS,
    FAMILIES,
    HOSTILE,
    LAYOUTS,
    made,
    motion_tokenizer,
    small_dsft,
    tokens_for,
)

from vadis.errors import ModelError, VadisError
from vadis.language.add_motion import MotionVocabulary, adopt, extend, rarest_ids, remap
from vadis.language.backbones import load_backbone, tiny_tokenizer
from vadis.language.checkpoints import load_language_model, save_language_model
from vadis.language.layout import MotionLayout
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.tokenizers.dsft.sequence import Encoded

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def dsft() -> DSFTTokenizer:
    return small_dsft()


@pytest.mark.parametrize("backbone", ["tiny-gpt2", "tiny-llama", "tiny-qwen3_5", "tiny-qwen3_5-vision"])
def test_extend_keeps_the_old_rows_and_ties(backbone: str) -> None:
    original, plain = load_backbone(backbone)
    model, text_tokenizer, vocabulary = made(backbone, "mg_vq", multiple=128)
    rows, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    old = len(plain)
    assert torch.equal(rows[:old], original.get_input_embeddings().weight[:old])
    assert torch.equal(head[:old], original.get_output_embeddings().weight[:old])
    assert (head is rows) == (original.get_output_embeddings().weight is original.get_input_embeddings().weight)
    assert len(rows) == len(head) == vocabulary.size and vocabulary.size % 128 == 0
    assert model.config.get_text_config().vocab_size == vocabulary.size
    assert vocabulary.new_ids().tolist() == list(range(old, old + 66)) and len(text_tokenizer) == old + 66
    ids = vocabulary.ids(torch.zeros(2, 4, dtype=torch.long))
    assert model(input_ids=torch.tensor([ids])).logits.shape == (1, 10, vocabulary.size)


@pytest.mark.parametrize("init", ["normal", "mean_noise", "codebook"])
def test_new_rows_look_like_the_old_ones(init: Any) -> None:
    model, _, vocabulary = made("tiny-llama", "mg_vq", init=init)
    again, _, _ = made("tiny-llama", "mg_vq", init=init)
    other, _, _ = made("tiny-llama", "mg_vq", init=init, seed=1)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        weight = getattr(model, get)().weight.detach()
        old, new = weight[: vocabulary.text_count], weight[vocabulary.new_ids()]
        assert torch.equal(weight, getattr(again, get)().weight)
        assert not torch.equal(new, getattr(other, get)().weight[vocabulary.new_ids()])
        assert torch.allclose(new.mean(0), old.mean(0), atol=0.6 * float(old.std()))
        ratio = float(new.std(0).mean() / old.std(0).mean())
        assert 0.02 < ratio < 0.1 if init == "mean_noise" else 0.7 < ratio < 1.4
        assert len(new.unique(dim=0)) == len(new)


def test_codebook_rows_keep_who_is_near_whom() -> None:
    model, text_tokenizer = load_backbone("tiny-gpt2")
    layout, tokenizer = LAYOUTS["fsq"], motion_tokenizer("fsq")
    vocabulary = extend(model, text_tokenizer, layout, tokenizer, init="codebook")
    rows = model.get_input_embeddings().weight[vocabulary.symbol_ids].detach()
    codes = tokenizer.quantizer.codes_from_tokens(torch.arange(125))
    ours, theirs = torch.cdist(rows, rows).flatten(), torch.cdist(codes, codes).flatten()
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tokenizer_has_a_vocabulary(family: str, tmp_path: Path) -> None:
    _, _, vocabulary = made("tiny-gpt2", family, init="codebook")
    tokens = tokens_for(LAYOUTS[family], 5, 3)
    ids = vocabulary.ids(tokens)
    assert (ids[0], ids[-1]) == (vocabulary.begin, vocabulary.end)
    assert torch.equal(vocabulary.tokens(ids), tokens) and torch.equal(vocabulary.tokens(ids[1:-1]), tokens)
    assert bool(vocabulary.is_motion(ids).all()) and not bool(vocabulary.is_motion([0, 5, -1, 10**6]).any())
    vocabulary.save(tmp_path)
    loaded = MotionVocabulary.load(tmp_path)
    assert loaded.page() == vocabulary.page() and loaded.ids(tokens) == ids


def test_dsft_sequences(dsft: DSFTTokenizer, tmp_path: Path) -> None:
    model, text_tokenizer = load_backbone("tiny-qwen3_5")
    layout = MotionLayout.of(dsft)
    vocabulary = extend(model, text_tokenizer, layout, dsft, init="codebook", length_tokens=True)
    encoded = dsft.encode(torch.randn(44, 272, generator=torch.Generator().manual_seed(5)).cumsum(0) / 5)
    ids = vocabulary.ids(encoded)
    names = text_tokenizer.convert_ids_to_tokens(ids)
    assert "".join(names) == dsft.to_text(encoded, length_token=True)
    back = vocabulary.tokens(ids)
    assert back.T == 44 and torch.equal(back.base_ids, encoded.base_ids)
    assert torch.equal(dsft.decode(back), dsft.decode(encoded))
    with pytest.raises(VadisError, match="frames were asked for|44 frames"):
        vocabulary.tokens(ids, frames=48)
    with pytest.raises(VadisError, match="0 separators"):
        vocabulary.tokens([i for i in ids if i != vocabulary.sep])
    with pytest.raises(VadisError, match="multiples of 4"):
        vocabulary.ids(Encoded(encoded.base_ids, encoded.phys_ids, 45))
    vocabulary.save(tmp_path)
    assert MotionVocabulary.load(tmp_path).ids(encoded) == ids


def test_published_names_have_the_published_order(dsft: DSFTTokenizer) -> None:
    model, text_tokenizer = load_backbone("tiny-gpt2")
    count = len(text_tokenizer)
    vocabulary = extend(model, text_tokenizer, MotionLayout.of(dsft), dsft, reserve=True, multiple=128)
    assert (vocabulary.begin, vocabulary.sep, vocabulary.end) == (count, count + 1, count + 2)
    assert int(vocabulary.symbol_ids[0]) == count + 3 and len(text_tokenizer) == count + 8195
    assert int(vocabulary.symbol_ids[dsft.vocab_sizes[0]]) == count + 3 + 4096
    assert vocabulary.size % 128 == 0 and len(vocabulary.new_ids()) == sum(dsft.vocab_sizes) + 3


def test_a_model_extended_elsewhere_is_adopted(dsft: DSFTTokenizer, tmp_path: Path) -> None:
    from tokenizers import AddedToken

    from vadis.tokenizers.dsft.sequence import token_names

    model, text_tokenizer = load_backbone("tiny-qwen3_5")
    text_tokenizer.add_tokens([AddedToken(n, special=True) for n in token_names()], special_tokens=True)
    model.resize_token_embeddings(len(text_tokenizer))
    vocabulary = adopt(model, text_tokenizer, MotionLayout.of(dsft), dsft)
    encoded = dsft.encode(torch.randn(44, 272, generator=torch.Generator().manual_seed(5)).cumsum(0) / 5)
    ids = vocabulary.ids(encoded)
    assert ids == text_tokenizer.encode(dsft.to_text(encoded)) and vocabulary.length_ids is None
    assert vocabulary.tokens(ids, frames=44).phys_ids.tolist() == encoded.phys_ids.tolist()
    save_language_model(tmp_path / "m", model, text_tokenizer, vocabulary)
    assert load_language_model(tmp_path / "m", dsft)[2].tokenizer.sha256 == dsft.hash
    with pytest.raises(ModelError, match="use extend"):
        adopt(*load_backbone("tiny-gpt2"), MotionLayout.of(dsft), dsft)


def test_wrong_ids_say_what_is_wrong() -> None:
    _, _, vocabulary = made("tiny-gpt2", "mg_vq")
    ids = vocabulary.ids(torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(VadisError, match="end"):
        vocabulary.tokens([*ids[:5], vocabulary.end, *ids[5:]])
    with pytest.raises(VadisError, match="no motion symbol"):
        vocabulary.tokens([*ids[:5], 7, *ids[5:]])
    with pytest.raises(VadisError, match="whole number of steps"):
        vocabulary.tokens(ids[:-2])
    with pytest.raises(VadisError, match="group"):
        vocabulary.tokens([ids[0], *ids[2:6], ids[1], *ids[6:]])


# ---- texts


def test_a_users_text_never_becomes_motion() -> None:
    _, text_tokenizer, vocabulary = made()
    ids = vocabulary.encode_text(text_tokenizer, HOSTILE)
    assert not bool(vocabulary.is_motion(ids).any()) and not set(ids) & set(text_tokenizer.all_special_ids)
    assert text_tokenizer.decode(ids) == HOSTILE
    named = text_tokenizer.encode(
        "<mot_3><mot_31></mot>", add_special_tokens=False
    )  # names do work where they are meant
    assert named == [*vocabulary.symbol_ids[[3, 31]].tolist(), vocabulary.end]
    assert vocabulary.encode_text(text_tokenizer, "a person walks") == text_tokenizer.encode("a person walks")


BIG_WORDS = [
    "dances",
    "throws",
    "catches",
    "slowly",
    "quickly",
    "circle",
    "standing",
    "punches",
    "following",
    "describe",
]


def test_remap_takes_the_rarest() -> None:
    model, text_tokenizer = load_backbone("tiny-llama")
    original, _ = load_backbone("tiny-llama")
    general = ["dances throws catches slowly", "dances in circle", "dances"]
    count, vocab = len(text_tokenizer), text_tokenizer.get_vocab()
    vocabulary = remap(model, text_tokenizer, LAYOUTS["vq"], motion_tokenizer("vq"), CAPTIONS, general)
    chosen = vocabulary.symbol_ids.tolist()
    assert len(set(chosen)) == 32 and chosen == sorted(chosen, reverse=True)  # all equally rare: highest first
    for text in [*CAPTIONS, *general]:
        assert not set(text_tokenizer.encode(text)) & set(chosen)
    assert not any(len(text_tokenizer.convert_ids_to_tokens(i)) == 1 for i in chosen)
    assert (vocabulary.begin, vocabulary.end) == (count, count + 1) and vocabulary.mode == "remap"
    rows, old = model.get_input_embeddings().weight, original.get_input_embeddings().weight
    kept = vocabulary.text_mask()[: len(old)]
    assert torch.equal(rows[: len(old)][kept], old[kept]) and not torch.equal(rows[chosen], old[chosen])
    text = "side of a place"
    plain = text_tokenizer.encode(text)
    assert bool(vocabulary.is_motion(plain).any())  # as ordinary text it would be motion
    safe = vocabulary.encode_text(text_tokenizer, text)
    assert not bool(vocabulary.is_motion(safe).any()) and text_tokenizer.decode(safe) == text
    assert vocab["<|im_end|>"] not in chosen


def test_tokens_with_a_byte_fallback_are_spelled_too() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"walks",
        "\u2581",
        "wa",
        "lk",
        "walk",
        "\u2581walk",
        "<unused7>",
    ]
    merges = [("w", "a"), ("l", "k"), ("wa", "lk"), ("\u2581", "walk")]
    backend = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    text_tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    chosen = rarest_ids(text_tokenizer, 4, ["s"])
    assert chosen == [names.index(n) for n in ("\u2581walk", "walk", "lk", "wa")]
    layout = MotionLayout(codes=4)
    vocabulary = MotionVocabulary(
        layout, "remap", torch.tensor(chosen), len(names), len(names) + 1, None, len(names), len(names), 320, FACTS
    )
    plain, safe = text_tokenizer.encode("walk walks"), vocabulary.encode_text(text_tokenizer, "walk walks")
    assert bool(vocabulary.is_motion(plain).any()) and not bool(vocabulary.is_motion(safe).any())
    assert text_tokenizer.decode(safe) == text_tokenizer.decode(plain) == " walk walks"


def test_remap_counts_the_general_sample() -> None:
    text_tokenizer = tiny_tokenizer()
    general = [" ".join(BIG_WORDS[:k]) for k in range(1, len(BIG_WORDS))]
    counts = [0] * len(text_tokenizer)
    for text in general:
        for id_ in text_tokenizer.encode(text) + text_tokenizer.encode(f" {text}"):
            counts[id_] += 1
    single = {i for name, i in text_tokenizer.get_vocab().items() if len(name) == 1}
    kept = set(text_tokenizer.encode("a person a person")) | set(text_tokenizer.all_special_ids) | single
    free = set(range(len(text_tokenizer))) - kept
    unused = sum(counts[i] == 0 for i in free)
    with pytest.warns(UserWarning, match="Prefer extend"):
        chosen = rarest_ids(text_tokenizer, unused + 8, ["a person"], general)  # into the sample's words, rarest first
    keys = [(counts[i], -i) for i in chosen]
    assert keys == sorted(keys) and 0 < keys[-1][0] < max(counts)
    assert set(chosen) <= free and all((counts[i], -i) > keys[-1] for i in free - set(chosen))


def test_remap_refuses_and_warns() -> None:
    model, text_tokenizer = load_backbone("tiny-gpt2")
    with pytest.raises(VadisError, match="Use extend"):
        remap(model, text_tokenizer, MotionLayout(codes=700), FACTS, CAPTIONS)
    with pytest.raises(VadisError, match="captions"):
        remap(model, text_tokenizer, LAYOUTS["vq"], motion_tokenizer("vq"), [])
    assert len(text_tokenizer) == len(tiny_tokenizer())  # nothing was changed
    many = len(text_tokenizer) // 2 + 1
    with pytest.warns(UserWarning, match="Prefer extend"):
        remap(model, text_tokenizer, MotionLayout(codes=many), FACTS, ["a"])


def test_clashes_and_misfits_are_refused() -> None:
    model, text_tokenizer, _ = made()
    with pytest.raises(ModelError, match="already"):
        extend(model, text_tokenizer, LAYOUTS["vq"], motion_tokenizer("vq"))
    model, text_tokenizer = load_backbone("tiny-gpt2")
    with pytest.raises(ModelError, match="the layout is for"):
        extend(model, text_tokenizer, LAYOUTS["mg_vq"], motion_tokenizer("vq"))
    text_tokenizer.add_tokens([f"word{i}" for i in range(400)])
    with pytest.raises(ModelError, match="don't belong together"):
        extend(model, text_tokenizer, LAYOUTS["vq"], motion_tokenizer("vq"))
