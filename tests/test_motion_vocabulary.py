"""Layouts of motion tokens, motion vocabularies in language models, saving and loading; on tiny random models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from vadis.errors import FileError, ModelError, ShapeError, VadisError
from vadis.generators.backbones import load_backbone, tiny_tokenizer
from vadis.generators.motion_language_files import load_language_model, save_delta, save_language_model
from vadis.generators.motion_layout import MotionLayout
from vadis.generators.motion_vocabulary import MotionVocabulary, adopt, extend, rarest_ids, remap
from vadis.hub import component_classes
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.tokenizers.dsft_sequence import Encoded

pytest.importorskip("transformers")
SMALL = dict(representation="ms272", feature_dim=272, fps=30.0, width=16)
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vq": ("vq", dict(code_dim=16, codebook_size=32), {}),
    "fsq": ("fsq", dict(code_dim=16, levels=(5, 5, 5)), {}),
    "fsq groups": ("fsq", dict(code_dim=16, levels=(5, 5, 5, 5), groups=2), {}),
    "lfq": ("lfq1d", dict(code_dim=16, bits=6), {}),
    "lfq groups": ("lfq1d", dict(code_dim=16, bits=5, groups=3), {"order": "part"}),
    "lfq2d by time": ("lfq2d", dict(bits=6), {}),
    "lfq2d by part": ("lfq2d", dict(bits=6), {"order": "part"}),
    "lfq2d, symbols of its own each": ("lfq2d", dict(bits=4), {"order": "part", "shared": False}),
    "rvq": ("rvq", dict(code_dim=16, codebook_size=16, num_quantizers=3), {}),
    "rvq delayed": ("rvq", dict(code_dim=16, codebook_size=16, num_quantizers=3), {"kind": "delayed"}),
    "rvq delayed, shared": (
        "rvq",
        dict(code_dim=16, codebook_size=16, num_quantizers=3, shared_codebook=True),
        {"kind": "delayed"},
    ),
    "rvq of one level": ("rvq", dict(code_dim=16, codebook_size=16, num_quantizers=1), {}),
    "mg_vq": ("mg_vq", dict(code_dim=16, groups=4, codebook_size=16), {}),
}


def motion_tokenizer(family: str) -> Any:
    torch.manual_seed(0)
    kind, fields, _ = FAMILIES[family]
    cls = component_classes()[kind]
    tokenizer = cls(cls.config_class(**(SMALL | fields)))
    for name, buffer in tokenizer.named_buffers():
        if name.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape) * 0.2)
    return tokenizer.eval()


def layout_of(family: str) -> MotionLayout:
    return MotionLayout.of(motion_tokenizer(family), **FAMILIES[family][2])


LAYOUTS = {family: layout_of(family) for family in FAMILIES}
STREAMS = MotionLayout("two_stream", codes=20, phys_codes=30)


@pytest.fixture(scope="module")
def dsft() -> DSFTTokenizer:
    noise = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 272, generator=noise).cumsum(0) / 5 for n in (40, 60, 52)]
    return DSFTTokenizer.fit(clips, "ms272", vocab=(200, 200))


# ---- layouts


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_every_tokenizer_go_there_and_back(family: str) -> None:
    tokenizer, layout = motion_tokenizer(family), LAYOUTS[family]
    features = torch.randn(41, 272, generator=torch.Generator().manual_seed(1)).cumsum(0) / 5
    tokens = tokenizer.encode(features)
    symbols = layout.flatten(tokens)
    assert symbols.shape == (layout.length(len(tokens)),) and int(symbols.max()) < layout.size
    assert layout.steps(len(symbols)) == len(tokens)
    assert torch.equal(layout.unflatten(symbols), tokens)
    assert torch.equal(tokenizer.decode(layout.unflatten(symbols)), tokenizer.decode(tokens))


def tokens_for(layout: MotionLayout, steps: int, seed: int) -> Tensor:
    shape = (steps, layout.groups) if layout.grouped or layout.groups > 1 else (steps,)
    return torch.randint(layout.codes, shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(1, 12), st.integers(0, 10_000))
def test_there_and_back_and_allowed(family: str, steps: int, seed: int) -> None:
    layout = LAYOUTS[family]
    tokens = tokens_for(layout, steps, seed)
    symbols = layout.flatten(tokens)
    assert torch.equal(layout.unflatten(symbols), tokens)
    start, stop = layout.allowed(torch.arange(len(symbols)), len(symbols))
    assert bool(((start <= symbols) & (symbols < stop)).all())
    for place in (0, len(symbols) // 2, len(symbols) - 1):
        assert layout.allowed(place, len(symbols)) == (int(start[place]), int(stop[place]))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), st.lists(st.integers(0, 60), min_size=1, max_size=30))
def test_unflatten_takes_exactly_what_flatten_gives(family: str, row: list[int]) -> None:
    layout = LAYOUTS[family]
    try:
        tokens = layout.unflatten(row)
    except VadisError:
        return
    assert layout.flatten(tokens).tolist() == row


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 19), max_size=9), st.lists(st.integers(0, 29), max_size=9), st.integers(1, 200))
def test_two_streams_there_and_back(base: list[int], phys: list[int], frames: int) -> None:
    encoded = Encoded(torch.tensor(base, dtype=torch.long), torch.tensor(phys, dtype=torch.long), frames)
    symbols = STREAMS.flatten(encoded)
    back = STREAMS.unflatten(symbols, frames)
    assert back.base_ids.tolist() == base and (back.phys_ids.tolist(), back.T) == (phys, frames)
    start, stop = STREAMS.allowed(torch.arange(len(symbols)), len(base))
    assert bool(((start <= symbols) & (symbols < stop)).all())


def test_orders_by_hand() -> None:
    tokens = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert MotionLayout(groups=3, codes=10, shared=True).flatten(tokens).tolist() == [0, 1, 2, 3, 4, 5]
    assert MotionLayout(groups=3, codes=10, order="part", shared=True).flatten(tokens).tolist() == [0, 3, 1, 4, 2, 5]
    assert MotionLayout(groups=3, codes=10).flatten(tokens).tolist() == [0, 11, 22, 3, 14, 25]
    delayed = MotionLayout("delayed", groups=3, codes=10, shared=True)
    assert delayed.size == 11 and delayed.blank == 10
    assert delayed.flatten(tokens).tolist() == [0, 10, 10, 3, 1, 10, 10, 4, 2, 10, 10, 5]


@pytest.mark.parametrize(
    ("layout", "row", "said"),
    [
        (MotionLayout(groups=3, codes=10), [0, 11], "no whole number of steps"),
        (MotionLayout(groups=3, codes=10), [0, 1, 22], "group 1"),
        (MotionLayout(groups=2, codes=4, order="part"), [0, 5, 1, 6], "group 0"),
        (MotionLayout(codes=10), [10], "0 to 9"),
        (MotionLayout(codes=10), [], "no whole number of steps"),
        (MotionLayout("delayed", groups=2, codes=4), [0, 8], "no whole number of steps"),
        (MotionLayout("delayed", groups=2, codes=4), [0, 4, 8, 5], "must be blank"),
        (MotionLayout("delayed", groups=2, codes=4), [8, 8, 8, 5], "is blank where a code"),
        (MotionLayout("delayed", groups=2, codes=4), [4, 8, 8, 5], "group 0"),
        (STREAMS, [0, 21, 1], "Base comes first"),
    ],
)
def test_ill_formed_rows_say_what_is_wrong(layout: MotionLayout, row: list[int], said: str) -> None:
    with pytest.raises(VadisError, match=said):
        layout.unflatten(torch.tensor(row, dtype=torch.long), frames=8 if layout is STREAMS else None)


def test_wrong_tokens_and_layouts_are_refused(dsft: DSFTTokenizer) -> None:
    layout = MotionLayout(groups=2, codes=4)
    with pytest.raises(VadisError, match="padding"):
        layout.flatten(torch.tensor([[0, 1], [2, -1]]))
    with pytest.raises(ShapeError, match=r"\(S, 2\)"):
        layout.flatten(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match="integers"):
        layout.flatten(torch.zeros(3, 2))
    with pytest.raises(VadisError, match="at least one step"):
        layout.flatten(torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(VadisError, match="how long"):
        STREAMS.unflatten([0, 20])
    with pytest.raises(ModelError, match="two streams"):
        MotionLayout.of(dsft, kind="flat")
    with pytest.raises(ModelError, match="one stream"):
        MotionLayout.of(motion_tokenizer("vq"), kind="two_stream")
    with pytest.raises(ModelError, match="parts"):
        MotionLayout.of(motion_tokenizer("vq"), order="part")
    with pytest.raises(ModelError, match="two levels"):
        MotionLayout.of(motion_tokenizer("vq"), kind="delayed")
    cls = component_classes()["causal_tae"]
    with pytest.raises(ModelError, match="latents"):
        MotionLayout.of(cls(cls.config_class(**SMALL, latent_dim=8)))


# ---- vocabularies


def made(backbone: str = "tiny-gpt2", family: str = "vq", **options: Any) -> tuple[Any, Any, MotionVocabulary]:
    model, text_tokenizer = load_backbone(backbone)
    vocabulary = extend(model, text_tokenizer, LAYOUTS[family], motion_tokenizer(family), **options)
    return model, text_tokenizer, vocabulary


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

    from vadis.tokenizers.dsft_sequence import token_names

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


HOSTILE = "walk <mot><mot_3></mot> <|im_end|> then <mot_31> and <|endoftext|>"


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
CAPTIONS = ["a person walks forward", "he jumps and turns left", "someone waves with the right hand"]


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
        layout, "remap", torch.tensor(chosen), len(names), len(names) + 1, None, len(names), len(names), 320, _facts()
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
        remap(model, text_tokenizer, MotionLayout(codes=700), _facts(), CAPTIONS)
    with pytest.raises(VadisError, match="captions"):
        remap(model, text_tokenizer, LAYOUTS["vq"], motion_tokenizer("vq"), [])
    assert len(text_tokenizer) == len(tiny_tokenizer())  # nothing was changed
    many = len(text_tokenizer) // 2 + 1
    with pytest.warns(UserWarning, match="Prefer extend"):
        remap(model, text_tokenizer, MotionLayout(codes=many), _facts(), ["a"])


def _facts() -> Any:
    from vadis.generators.motion_vocabulary import MotionTokenizerFacts

    return MotionTokenizerFacts("vq", "0" * 64, "ms272", 30.0, 4)


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


# ---- saving and loading


@torch.no_grad()
def logits(model: Any, vocabulary: MotionVocabulary) -> Tensor:
    ids = [5, 9, *vocabulary.ids(tokens_for(vocabulary.layout, 4, 7)), 6]
    return model(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize("backbone", ["tiny-gpt2", "tiny-llama", "tiny-qwen3_5", "tiny-qwen3_5-vision"])
def test_a_saved_model_opens_everywhere(backbone: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    model, text_tokenizer, vocabulary = made(backbone)
    save_language_model(tmp_path / "m", model, text_tokenizer, vocabulary)
    loaded, loaded_tokenizer, loaded_vocabulary = load_language_model(tmp_path / "m", motion_tokenizer("vq"))
    assert torch.equal(logits(loaded, loaded_vocabulary), logits(model, vocabulary))
    assert type(loaded) is type(model) and loaded_vocabulary.page() == vocabulary.page()
    assert loaded_vocabulary.encode_text(loaded_tokenizer, HOSTILE) == vocabulary.encode_text(text_tokenizer, HOSTILE)
    auto: Any = AutoModelForImageTextToText if "vision" in backbone else AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(logits(theirs, vocabulary), logits(model, vocabulary))
    assert AutoTokenizer.from_pretrained(tmp_path / "m").convert_tokens_to_ids("</mot>") == vocabulary.end


def adapted(backbone: str = "tiny-llama", rows: bool = False, **options: Any) -> tuple[Any, Any, MotionVocabulary]:
    """A model with a LoRA adapter that does something and, with `rows`, trained rows inside it."""
    from peft import LoraConfig, get_peft_model

    model, text_tokenizer, vocabulary = made(backbone, **options)
    ids = vocabulary.new_ids().tolist() if rows else None
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", trainable_token_indices=ids, task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) * 0.05)
    return model.eval(), text_tokenizer, vocabulary


@pytest.mark.parametrize(
    ("backbone", "rows"), [("tiny-llama", False), ("tiny-llama", True), ("tiny-gpt2", True), ("tiny-qwen3_5", False)]
)
def test_a_saved_adapter_opens_everywhere(backbone: str, rows: bool, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, text_tokenizer, vocabulary = adapted(backbone, rows)
    expected = logits(model, vocabulary)
    with model.disable_adapter():
        assert not torch.allclose(logits(model, vocabulary), expected, atol=1e-3)
    save_language_model(tmp_path / "m", model, text_tokenizer, vocabulary)
    loaded, _, _ = load_language_model(tmp_path / "m", motion_tokenizer("vq"))
    assert isinstance(loaded, PeftModel) and torch.equal(logits(loaded, vocabulary), expected)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.allclose(logits(theirs, vocabulary), expected, atol=1e-5)
    assert torch.equal(logits(model, vocabulary), expected)  # saving changed nothing


def test_training_goes_on_from_a_saved_adapter(tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = adapted()
    save_language_model(tmp_path / "m", model, text_tokenizer, vocabulary)
    loaded, _, _ = load_language_model(tmp_path / "m", trainable=True)
    assert any(p.requires_grad for n, p in loaded.named_parameters() if "lora_" in n)
    frozen, _, _ = load_language_model(tmp_path / "m")
    assert not any(p.requires_grad for n, p in frozen.named_parameters() if "lora_" in n)


@pytest.mark.parametrize(
    ("backbone", "rows"), [("tiny-llama", False), ("tiny-gpt2", True), ("tiny-qwen3_5-vision", None)]
)
def test_a_delta_gives_equal_logits(backbone: str, rows: bool | None, tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = made(backbone) if rows is None else adapted(backbone, rows)
    save_delta(tmp_path / "d", model, text_tokenizer, vocabulary, backbone)
    loaded, loaded_tokenizer, loaded_vocabulary = load_language_model(tmp_path / "d", motion_tokenizer("vq"))
    assert torch.equal(logits(loaded, loaded_vocabulary), logits(model, vocabulary))
    assert loaded_tokenizer.get_vocab() == text_tokenizer.get_vocab()
    assert not (tmp_path / "d" / "model.safetensors").exists()
    save_delta(tmp_path / "half", model, text_tokenizer, vocabulary, backbone, dtype=torch.float16)
    half, _, _ = load_language_model(tmp_path / "half")
    assert torch.allclose(logits(half, vocabulary), logits(model, vocabulary), atol=5e-3)
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).glob("*.safetensors")) for n in ("half", "d")]
    assert sizes[0] < 0.7 * sizes[1]
    save_delta(tmp_path / "again", half, text_tokenizer, vocabulary, backbone, dtype=torch.float16)
    again, _, _ = load_language_model(tmp_path / "again")
    assert torch.equal(logits(again, vocabulary), logits(half, vocabulary))


def test_a_remapped_model_has_a_delta(tmp_path: Path) -> None:
    model, text_tokenizer = load_backbone("tiny-llama")
    vocabulary = remap(model, text_tokenizer, LAYOUTS["vq"], motion_tokenizer("vq"), CAPTIONS)
    save_delta(tmp_path / "d", model, text_tokenizer, vocabulary, "tiny-llama")
    loaded, _, loaded_vocabulary = load_language_model(tmp_path / "d", motion_tokenizer("vq"))
    assert torch.equal(logits(loaded, loaded_vocabulary), logits(model, vocabulary))


def test_a_delta_holds_only_what_is_new(tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = made()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[0] += 1
    with pytest.raises(ModelError, match="only hold new rows"):
        save_delta(tmp_path / "d", model, text_tokenizer, vocabulary, "tiny-gpt2")
    model, text_tokenizer, vocabulary = made()
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    with pytest.raises(ModelError, match="only hold new rows"):
        save_delta(tmp_path / "d", model, text_tokenizer, vocabulary, "tiny-gpt2")
    assert not (tmp_path / "d").exists()


# ---- what does not belong together


def test_another_motion_tokenizer_is_refused(tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = made()
    save_language_model(tmp_path / "m", model, text_tokenizer, vocabulary)
    other = motion_tokenizer("vq")
    other.quantizer.codebook += 0.01
    with pytest.raises(ModelError, match="another motion tokenizer"):
        load_language_model(tmp_path / "m", other)
    with pytest.raises(ModelError, match="the layout is for"):
        load_language_model(tmp_path / "m", motion_tokenizer("fsq"))


def damaged(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-200])


def test_damaged_folders_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    model, text_tokenizer, vocabulary = adapted()

    def fresh() -> None:
        save_language_model(folder, model, text_tokenizer, vocabulary)

    fresh()
    damaged(folder, "adapter_model.safetensors")
    with pytest.raises(FileError, match="damaged"):
        load_language_model(folder)
    fresh()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="saved with an adapter"):
        load_language_model(folder)
    fresh()
    state = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(state.items())[1:]), folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="not whole"):
        load_language_model(folder)
    name, value = next(iter(state.items()))
    save_file(state | {name: value[:, :-1].contiguous()}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        load_language_model(folder)
    save_file(state | {name: value * torch.nan}, folder / "adapter_model.safetensors")
    with pytest.raises(FileError, match="not finite"):
        load_language_model(folder)
    fresh()
    damaged(folder, "model.safetensors")
    with pytest.raises((FileError, ModelError)):
        load_language_model(folder)
    fresh()
    (folder / "motion_vocabulary.json").write_text("{")
    with pytest.raises(FileError, match="JSON"):
        load_language_model(folder)
    (folder / "motion_vocabulary.json").unlink()
    with pytest.raises(ModelError, match="no motion_vocabulary"):
        load_language_model(folder)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = made()
    with pytest.raises(ModelError, match="don't belong together"):
        save_language_model(tmp_path / "m", load_backbone("tiny-gpt2")[0], tiny_tokenizer(), made(multiple=1000)[2])
    with pytest.raises(ModelError, match="gives <mot>"):
        save_language_model(tmp_path / "m", model, tiny_tokenizer(), vocabulary)
    save_language_model(tmp_path / "m", model, text_tokenizer, vocabulary)
    path = tmp_path / "m" / "motion_vocabulary.json"
    page = json.loads(path.read_text())
    for change, said in [
        ({"symbol_ids": [[2000, 32]]}, "outside"),
        ({"symbol_ids": [[page["begin"], 32]]}, "same id"),
        ({"symbol_ids": [[830, 31]]}, "31 symbol ids"),
        ({"symbol_ids": [[1, 10**9]]}, "damaged"),
        ({"size": 2048}, "don't belong together"),
        ({"symbol_ids": [[0, 32]]}, "don't belong together"),
        ({"version": 9}, "expected vadis-motion-vocabulary"),
        ({"layout": {"kind": "circle"}}, "kind"),
        ({"tokenizer": {}}, "damaged"),
        ({"sep": 3}, "separator"),
    ]:
        path.write_text(json.dumps(page | change))
        with pytest.raises(VadisError, match=said):
            load_language_model(tmp_path / "m")


def test_a_delta_knows_its_backbone(tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = made()
    save_delta(tmp_path / "d", model, text_tokenizer, vocabulary, "tiny-gpt2")
    with pytest.raises(ModelError, match="not those"):
        load_language_model(tmp_path / "d", base="tiny-qwen3_5")
    (tmp_path / "d" / "new_rows.safetensors").unlink()
    with pytest.raises(FileError, match="missing or damaged"):
        load_language_model(tmp_path / "d")


def test_a_delta_keeps_the_precision_it_was_trained_in(tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = made("tiny-llama")
    model.bfloat16()
    save_delta(tmp_path / "d", model, text_tokenizer, vocabulary, "tiny-llama")
    loaded, _, _ = load_language_model(tmp_path / "d")
    assert loaded.dtype == torch.bfloat16 and torch.equal(logits(loaded, vocabulary), logits(model, vocabulary))
    assert load_language_model(tmp_path / "d", dtype="fp32")[0].dtype == torch.float32


def test_nothing_else_is_written_over(tmp_path: Path) -> None:
    model, text_tokenizer, vocabulary = made()
    (tmp_path / "notes.txt").write_text("mine")
    for save in (save_language_model, lambda *args: save_delta(*args, "tiny-gpt2")):
        with pytest.raises(FileError, match="other files"):
            save(tmp_path, model, text_tokenizer, vocabulary)
    assert (tmp_path / "notes.txt").read_text() == "mine"
