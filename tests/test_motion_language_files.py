"""Language models that speak motion saved and loaded, whole, with an adapter and as deltas; what does not belong together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from motion_vocabularies import CAPTIONS, HOSTILE, LAYOUTS, made, motion_tokenizer, tokens_for
from safetensors.torch import load_file, save_file
from torch import Tensor

from vadis.errors import FileError, ModelError, VadisError
from vadis.language.add_motion import MotionVocabulary, remap
from vadis.language.backbones import load_backbone, tiny_tokenizer
from vadis.language.checkpoints import load_language_model, save_delta, save_language_model

pytest.importorskip("transformers")


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
        ({"symbol_ids": [[1, 10**9]]}, "symbol_ids.0.1"),
        ({"size": 2048}, "don't belong together"),
        ({"symbol_ids": [[0, 32]]}, "don't belong together"),
        ({"version": 9}, "expected vadis-motion-vocabulary"),
        ({"layout": {"kind": "circle"}}, "kind"),
        ({"tokenizer": {}}, "tokenizer.type: field required"),
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
