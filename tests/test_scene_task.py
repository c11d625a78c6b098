"""Training MotionVLA: corpora and JSON lines with images, both phases, what the validation says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import procedural_walk

from vadis.data.corpus import Caption, CorpusWriter
from vadis.errors import FileError, ModelError, VadisError
from vadis.language.ms_swift import SwiftRow, write_rows
from vadis.representations import representation
from vadis.tokenizers.dsft import DSFTTokenizer

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
Image = pytest.importorskip("PIL.Image")

from vadis.language.vla.model import MotionVLA  # noqa: E402
from vadis.training import train  # noqa: E402
from vadis.training.scene_task import SceneTask  # noqa: E402
from vadis.training.tasks import load_phases  # noqa: E402


def clips(count: int) -> list[torch.Tensor]:
    rep = representation("ms272")
    return [rep.encode(procedural_walk(32 + 4 * (i % 3), 30.0, 0.1 * i - 0.5)) for i in range(count)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 64 + 64 ids, 20 rows with images, and a corpus of the same."""
    folder = tmp_path_factory.mktemp("scenes")
    motions = clips(20)
    tokenizer = DSFTTokenizer.fit(motions, "ms272", K=(1, 1), scale=(0.5, 0.5), vocab=(64, 64))
    tokenizer.save_pretrained(folder / "dsft")
    rows = []
    with CorpusWriter(folder / "corpus", "ms272", 30.0, {}, resume=True) as writer:
        (writer.folder / "images").mkdir(exist_ok=True)
        for i, motion in enumerate(motions):
            Image.fromarray(np.full((64, 64, 3), 12 * i, dtype=np.uint8)).save(writer.folder / "images" / f"{i}.png")
            place = folder / "corpus" / "images" / f"{i}.png"
            code = tokenizer.encode(motion)
            rows.append(SwiftRow("walk to the red box", code, str(place), len(motion) / 30).page())
            writer.add(
                f"c{i}", motion, captions=[Caption("walk to the red box", 0.0, 1.0)], split="train" if i < 16 else "val",
                group=f"g{i}", source="test", licence="none", image=f"images/{i}.png",
            )  # fmt: skip
    write_rows(folder / "rows.jsonl", rows)
    return folder


def recipe(work: Path, **changes: Any) -> list[str]:
    base: dict[str, Any] = {
        "run": work / "run", "data.rows": work / "rows.jsonl", "data.batch": 4, "data.max_visual_tokens": 4,
        "data.corpus": "null", "model.tokenizer": work / "dsft", "model.backbone": "tiny-qwen3_5-vision",
        "model.checkpointing": "false", "accumulate": 1, "precision": "fp32", "log_every": 5, "validate_every": 60,
        "validation_batches": 1, "device": "cpu",
    }  # fmt: skip
    return [f"{k}={v}" for k, v in (base | changes).items()]


RECIPE = Path(__file__).resolve().parent.parent / "src/vadis/recipes" / "motionvla-scenes.yaml"


@pytest.mark.slow
def test_both_phases(work: Path) -> None:
    """New rows first, the rest bit-identical; then low-rank additions from there. The result loads and makes motions."""
    import json

    from vadis.language.backbones import load_backbone

    before, _ = load_backbone("tiny-qwen3_5-vision")
    own = {
        "phases.rows.steps": 60,
        "phases.rows.optimizer.lr": 0.02,
        "phases.lora.steps": 12,
        "phases.lora.optimizer.lr": 0.003,
    }
    last = train(RECIPE, recipe(work, **own))
    lines = [json.loads(line) for line in (work / "run" / "rows" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert {"validation/loss", "validation/loss_shuffled_images", "validation/loss_without_images"} <= set(lines[-1])
    vla = MotionVLA.load(work / "run" / "rows" / "model", DSFTTokenizer.load(work / "dsft"))
    state = vla.model.state_dict()
    text = vla.vocabulary.text_mask()
    for name, value in before.state_dict().items():
        kept = text[: len(value)] if "embed_tokens" in name or "lm_head" in name else slice(None)
        assert torch.equal(state[name][: len(value)][kept], value[kept]), name
    vla = MotionVLA.load(last, DSFTTokenizer.load(work / "dsft"))
    names = [name for name, p in vla.model.named_parameters() if "lora_" in name and float(p.abs().sum()) > 0]
    assert names and not any("visual" in name for name in names)
    assert vla.packer.max_visual_tokens == 4
    prompt = vla.prompt("walk to the red box", np.zeros((64, 64, 3), dtype=np.uint8), 32 / 30)
    (row,) = vla.generate([prompt], 32, seed=0)
    assert vla.features(row, 32).shape == (32, 272)


def task(work: Path, *lines: str) -> SceneTask:
    return SceneTask(load_phases(RECIPE, [*recipe(work), *lines])[0])  # type: ignore[arg-type]


def test_batches(work: Path) -> None:
    made = task(work, "data.rows=null", f"data.corpus={work / 'corpus'}", "data.image_dropout=0.5")
    assert len(made.train) == 16 and len(made.held_out) == 4
    first, second = (made.batch(0, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    labelled = first["labels"] != -100
    begins = (first["labels"] == made.vla.vocabulary.begin).sum(1)
    assert begins.tolist() == [1] * 4 and (first["labels"][labelled] == first["input_ids"][labelled]).all()
    blind = [
        int(made.batch(s, torch.Generator().manual_seed(s))["mm_token_type_ids"].sum(1).eq(0).sum()) for s in range(12)
    ]
    assert 8 < sum(blind) < 40
    whole = task(work, "loss.places=whole").batch(0, torch.Generator().manual_seed(0))
    assert (whole["labels"][whole["mm_token_type_ids"] == 1] == -100).all()
    motion = task(work, "loss.places=motion").batch(0, torch.Generator().manual_seed(0))
    assert made.vla.vocabulary.is_motion(motion["labels"][motion["labels"] != -100]).all()


def test_loss_of_the_task_is_that_of_the_model(work: Path) -> None:
    made = task(work, "data.image_dropout=0")
    prompts = [made._prompt(item, item.texts[0], False) for item in made.train[:3]]
    with torch.no_grad():
        own = made.loss(made._tensors(prompts, made.train[:3]))["total"]
        plain = MotionVLA(made.model.plain, made.model.text_tokenizer, made.model.vocabulary, made.vla.motion_tokenizer)
        theirs = plain.loss(prompts, [plain.answer(item.tokens) for item in made.train[:3]])
    assert abs(float(own) - float(theirs)) < 1e-4


def test_what_can_be_wrong(work: Path) -> None:
    with pytest.raises(VadisError, match="one of them"):
        task(work, f"data.corpus={work / 'corpus'}")
    with pytest.raises(FileError, match="image_root"):
        task(work, "data.image_root=/nowhere")
    with pytest.raises(VadisError, match="fits into"):
        task(work, "data.max_tokens=20")
    with pytest.raises(ModelError, match="sees nothing"):
        task(work, "model.backbone=tiny-qwen3_5")
    with pytest.raises(VadisError, match="split"):
        task(work, "data.rows=null", f"data.corpus={work / 'corpus'}", "data.train_split=none")
