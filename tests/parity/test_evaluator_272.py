"""MotionStreamer's evaluator against the original program, through the public importer."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vadis
from vadis.evaluators import TMRConfig, TMREvaluator
from vadis.evaluators.layers import Normal, sinusoids
from vadis.evaluators.losses import info_nce, kl_divergence, near_duplicates
from vadis.metrics.distribution import diversity, fid
from vadis.metrics.reconstruction import joint_errors, mpjpe
from vadis.metrics.retrieval import r_precision
from vadis.representations import representation

from .fixtures import arrays, fill_value, manifest, manifests


def _with(key: str) -> list[Any]:
    """Parameters of the case folders whose manifest has `key`."""
    found = [p for p in manifests("evaluator_272") if p.values[0] is None or key in manifest(p.values[0])]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no case of evaluator_272 has {key}"))]


def _fill(name: str, shape: list[int]) -> Tensor:
    if name.endswith(".pe"):
        return sinusoids(shape[0], shape[2])[:, None]
    if name.endswith(("mu_token", "logvar_token")):
        return fill_value(name, [1, *shape], gain=shape[0] ** 0.5)[0]  # a plain normal draw
    return fill_value(name, shape, gain=1.0)


@cache
def _evaluator(folder: Path) -> TMREvaluator:
    whole = manifest(folder)
    state = {
        f"{part}.{name}": _fill(name, shape)
        for part, entries in whole["state_dict"].items()
        for name, (_, shape) in entries.items()
    }
    config = whole["config"]
    options = {"heads": config["num_heads"], "max_frames": config["max_len"]}
    if isinstance(config["bert"], dict):
        options["text_heads"] = config["bert"]["n_heads"]
    extra = {"filter_model.0.weight": torch.zeros(2), "epoch_loss": torch.zeros(1)}  # other things in the file
    evaluator = vadis.import_checkpoint("ms272-evaluator", state | extra, **options)
    used = {n: t for n, t in evaluator.state_dict().items() if n not in ("mean", "std")}
    assert set(used) == {name for name in state if not name.endswith(".pe")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in used.items())
    return evaluator


def _close(folder: Path, ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=manifest(folder)["recommended_tolerance"]["abs"], rtol=0)


@pytest.mark.parametrize("folder", _with("state_dict"))
@torch.no_grad()
def test_motion_distributions(folder: Path) -> None:
    """Also without the padding to 300 frames that the original needs, and clip by clip."""
    evaluator, data = _evaluator(folder), arrays(folder, "motion.")
    clips = [data[f"feat{i}"] for i in range(len(data["lengths"]))]
    assert [len(clip) for clip in clips] == data["lengths"].tolist()
    for frames in (max(map(len, clips)), manifest(folder)["config"]["max_len"]):
        padded = torch.zeros(len(clips), frames, clips[0].shape[1])
        for row, clip in zip(padded, clips, strict=True):
            row[: len(clip)] = clip
        normal = evaluator.motionencoder(padded, data["lengths"])
        _close(folder, normal.mean, data["loc"])
        _close(folder, normal.std, data["scale"])
    if all(len(clip) >= evaluator.min_frames for clip in clips):
        _close(folder, evaluator.embed_motion(clips, batch_size=1), data["loc"])


@pytest.mark.parametrize("folder", _with("state_dict"))
@torch.no_grad()
def test_text_distributions(folder: Path) -> None:
    evaluator, data = _evaluator(folder), arrays(folder, "text.")
    tokens, visible = evaluator.read_ids(data["input_ids"], data["attention_mask"].bool())
    _close(folder, tokens[:, 0], data["bert_last_hidden_first_token"])
    normal = evaluator.textencoder(tokens, visible)
    _close(folder, normal.mean, data["loc"])
    _close(folder, normal.std, data["scale"])


@pytest.mark.parametrize("folder", _with("state_dict"))
@torch.no_grad()
def test_decoder(folder: Path) -> None:
    data = arrays(folder, "decoder.")
    _close(folder, _evaluator(folder).motiondecoder(data["z"], data["lengths"]), data["out"])


@pytest.mark.parametrize("folder", _with("losses"))
def test_losses(folder: Path) -> None:
    data, expected = arrays(folder, "loss."), manifest(folder)["losses"]
    motion, text = (Normal(data[f"{name}_mu"], data[f"{name}_std"]) for name in ("motion", "text"))
    hidden = near_duplicates(data["text_similarity"], 0.85, upper=1.0)
    temperature = expected["temperature"]
    ours = {
        "infonce_no_filter": info_nce(motion.mean, text.mean, temperature),
        "infonce_filtered": info_nce(motion.mean, text.mean, temperature, hidden),
        "kl_text_to_motion": kl_divergence(text, motion),
        "kl_motion_to_text": kl_divergence(motion, text),
        "kl_text_prior": kl_divergence(text),
        "kl_motion_prior": kl_divergence(motion),
        "smooth_l1_mu": torch.nn.functional.smooth_l1_loss(text.mean, motion.mean),
    }
    for name, value in ours.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize("folder", _with("state_dict"))
def test_the_default_config_is_the_released_model(folder: Path) -> None:
    whole = manifest(folder)
    if isinstance(whole["config"]["bert"], dict):
        pytest.skip("a case of another size")
    with torch.device("meta"):
        evaluator = TMREvaluator(TMRConfig())
    names = {n: list(t.shape) for n, t in evaluator.state_dict().items() if n not in ("mean", "std")}
    published = {
        f"{part}.{name}": shape
        for part, entries in json.loads(json.dumps(whole["state_dict"])).items()
        for name, (_, shape) in entries.items()
        if not name.endswith(".pe")
    }
    assert names == published


@pytest.mark.parametrize("folder", _with("results"))
def test_metrics_on_stored_embeddings(folder: Path) -> None:
    whole, data = manifest(folder), arrays(folder)
    expected, tolerance = whole["results"], whole["recommended_tolerance"]
    for name in ("real", "pred"):
        about = expected[name]
        batches = zip(data["text"].split(32), data[name].split(32), strict=True)
        for (text, motion), (*hits, distance) in zip(batches, about["per_batch_top1_top2_top3_sumdist"], strict=True):
            scored = r_precision(text, motion)
            assert [round(32 * value) for value in scored.top] == hits
            assert 32 * scored.matching_distance == pytest.approx(distance, rel=1e-5)
        scored = r_precision(data["text"], data[name])
        assert list(scored.top) == pytest.approx(about["r_precision"], abs=tolerance["r_precision"] + 1e-9)
        assert scored.matching_distance == pytest.approx(about["matching_score"], abs=tolerance["matching_score"])
        draws = data[f"{name}.div_first"], data[f"{name}.div_second"]
        assert diversity(data[name], draws=draws) == pytest.approx(about["diversity"], abs=tolerance["diversity"])
    assert fid(data["real"], data["pred"]).value == pytest.approx(expected["fid"], abs=tolerance["fid"])
    assert fid(data["real"], data["real"]).value == pytest.approx(expected["fid_self"], abs=tolerance["fid"])
    rows = expected["rank_deficient_rows"]
    few = fid(data["real"], data["pred"][:rows], allow_few=True)
    assert few.value == pytest.approx(expected["fid_rank_deficient_first_half_dim_rows"], abs=tolerance["fid"])


@pytest.mark.parametrize("folder", _with("results"))
def test_joint_errors(folder: Path) -> None:
    whole, data, rep = manifest(folder), arrays(folder), representation("ms272")
    real, made = (rep.positions(data[f"mpjpe.{name}"], yaw_only=False) for name in ("gt272", "pred272"))
    tolerance = whole["recommended_tolerance"]["mpjpe_mm"]
    errors = joint_errors(real, made)
    torch.testing.assert_close(errors.float(), data["mpjpe.per_frame_m"], atol=tolerance / 1000, rtol=0)
    assert 1000 * mpjpe(real[None], made[None]) == pytest.approx(whole["results"]["mpjpe_mm"], abs=tolerance)
    errors = joint_errors(data["mpjpe_rand.a"], data["mpjpe_rand.b"])
    torch.testing.assert_close(errors.float(), data["mpjpe_rand.per_frame"], atol=1e-5, rtol=0)
