"""The evaluator of Guo et al. against the original program, through the public importer."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vadis
from vadis.evaluators import GuoConfig, GuoEvaluator
from vadis.evaluators.guo_words import Vocabulary
from vadis.evaluators.losses import margin_losses

from .fixtures import arrays, fill_value, manifest, manifests


def _with(key: str) -> list[Any]:
    """Parameters of the case folders whose manifest has `key`."""
    found = [p for p in manifests("evaluator_263") if p.values[0] is None or key in manifest(p.values[0])]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no case of evaluator_263 has {key}"))]


@cache
def _evaluator(folder: Path) -> GuoEvaluator:
    payload: dict[str, Any] = {"epoch": 1, "iter": 2, "opt_text_encoder": {"state": {}}, "opt_motion_encoder": {}}
    for name, (_, shape) in manifest(folder)["state_dict"].items():
        part, _, local = name.partition("/")
        payload.setdefault(part, {})[local] = fill_value(local, shape)
    config = manifest(folder)["config"]
    options = {"unit_length": config["unit_length"], "max_words": config["max_text_len"]}
    evaluator = vadis.import_checkpoint("guo-evaluator", payload, **options)
    assert evaluator.config.feature_dim == config["dim_pose"]
    for part, count in manifest(folder).get("parameters", {}).items():
        assert sum(p.numel() for p in getattr(evaluator, part).parameters()) == count
    return evaluator


@pytest.mark.parametrize("folder", _with("state_dict"))
@torch.no_grad()
def test_same_numbers_as_the_original_program(folder: Path) -> None:
    evaluator, data = _evaluator(folder), arrays(folder)
    tolerance = manifest(folder)["suggested_tolerance"]

    def close(ours: Tensor, name: str) -> None:
        torch.testing.assert_close(ours, data[name], atol=tolerance, rtol=0)

    lengths = data["motion_lengths"]
    close(evaluator.movements(data["motions"]), "movement")
    motion = evaluator.encode_motion(data["motions"], lengths)
    text = evaluator.text_encoder(data["word_embeddings"], data["pos_one_hot"], data["text_lengths"])
    close(motion, "motion_embedding")
    close(text, "text_embedding")
    order = data["sorted_order"]
    close(motion[order], "motion_embedding_sorted")
    close(text[order], "text_embedding_sorted")
    clips = [clip[:n] for clip, n in zip(data["motions"], lengths.tolist(), strict=True)]
    close(evaluator.embed_motion(clips, batch_size=2), "motion_embedding")  # mean 0, std 1: normalised already


@pytest.mark.parametrize("folder", _with("state_dict"))
@torch.no_grad()
def test_losses(folder: Path) -> None:
    data, config = arrays(folder), manifest(folder)["config"]
    near, far = margin_losses(
        data["text_embedding_sorted"], data["motion_embedding_sorted"], 1, config["negative_margin"]
    )
    assert near.item() == pytest.approx(data["loss_positive"].item(), rel=1e-4)
    assert far.item() == pytest.approx(data["loss_negative_shift1"].item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("folder", _with("cases"))
def test_rows_and_classes_of_words(folder: Path) -> None:
    """The table itself is not part of the fixtures: a table with the known words at their rows stands for it."""
    whole = manifest(folder)
    words = [""] * whole["vocabulary_size"]
    words[0], words[1], words[2] = "sos", "eos", "unk"
    for case in whole["cases"]:
        if case["vocab_row"] > 2:
            words[case["vocab_row"]] = case["token"].rpartition("/")[0]
    vocabulary = Vocabulary(words)
    for case in whole["cases"]:
        assert vocabulary.lookup(case["token"]) == (case["vocab_row"], case["pos_index"]), case["token"]


def test_the_default_config_is_the_released_model() -> None:
    with torch.device("meta"):
        evaluator = GuoEvaluator(GuoConfig())
    sizes = {
        name: sum(p.numel() for p in getattr(evaluator, name).parameters())
        for name in ("movement_encoder", "text_encoder", "motion_encoder")
    }
    assert sizes == {"movement_encoder": 1_842_688, "text_encoder": 4_100_288, "motion_encoder": 15_747_584}
