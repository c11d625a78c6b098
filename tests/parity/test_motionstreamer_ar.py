"""MotionStreamer's generator against the original program, through the public importer."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vadis
from vadis.generators import MotionStreamer
from vadis.generators.motionstreamer import Draws

from .fixtures import arrays, fill_value, manifest, manifests

SIZES = {"n_layer", "n_head", "n_embd", "block_size", "text_dim", "latent_dim", "head_layers", "head_width"}


def _weights(folder: Path) -> Path:
    """Where the weights of a case are described: itself, or the case of the same set that its manifest names."""
    if "state_dict" in manifest(folder):
        return folder
    names = [
        f for f in sorted(folder.parent.iterdir()) if f.name != folder.name and f.name in manifest(folder)["weights"]
    ]
    assert names, f"{folder} names no case with weights"
    return max(names, key=lambda f: len(f.name))


@cache
def _model(folder: Path) -> MotionStreamer:
    about = manifest(folder)
    parameters = about.get("fill_parameters", {"gain": 1.0})
    fitted = {}
    if (folder / "head_weights.npz").is_file():
        with np.load(folder / "head_weights.npz") as stored:
            fitted = {name: torch.from_numpy(stored[name]).float() for name in stored.files}
    state: dict[str, Tensor] = {}
    for name, (_, shape) in about["state_dict"].items():
        if name.endswith("attn.scale"):
            block = about["config"]["block_size"]
            state[name] = torch.tensor(np.log2(block**2 - block))
        else:
            value = fill_value(name, shape, **parameters)
            state[name] = (
                1 + value if name.endswith(".scale") else value
            )  # RMSNorm weights follow the rule of norm weights
    state |= fitted
    assert state.keys() == about["state_dict"].keys()
    model = vadis.import_checkpoint("motionstreamer-ar", state, n_head=about["config"]["n_head"])
    for name in SIZES & about["config"].keys():
        assert getattr(model.config, name) == about["config"][name], name
    assert sum(p.numel() for p in model.parameters()) == sum(v.numel() for v in state.values()) - model.config.n_layer
    return model


def _cases(key: str) -> list[Any]:
    """Cases that have arrays of this name."""
    found = [p for p in manifests("motionstreamer_ar") if p.values[0] is None or _has(p.values[0], key)]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no case of this set has {key}"))]


def _has(folder: Path, key: str) -> bool:
    return any(name.startswith(key) for name in manifest(folder)["arrays"])


def _close(folder: Path, key: str, ours: Tensor, theirs: Tensor) -> None:
    """Within the manifest's tolerance: absolute, or relative to the largest value as unfitted heads need it."""
    tolerance = manifest(folder)["recommended_tolerance"][key]
    if isinstance(tolerance, dict):
        bound = tolerance["abs"]
    else:
        bound = tolerance if isinstance(tolerance, float) else 1e-3 * theirs.abs().max().item()
    torch.testing.assert_close(ours.float(), theirs, atol=bound, rtol=0)


@pytest.mark.parametrize("folder", _cases("ar."))
@torch.no_grad()
def test_same_states(folder: Path) -> None:
    model, data = _model(folder), arrays(folder, "ar.")
    text, latents = data["text"], data["latents"]
    _close(folder, "ar", model(text, latents), data["out"])
    _close(folder, "ar", model(text[:1], latents[:1, :0]), data["out_text_only"])
    _close(folder, "ar", model(text[:1], latents[:1]), data["out_inference_b0"])


@pytest.mark.parametrize("folder", _cases("head."))
@torch.no_grad()
def test_same_predicted_noise(folder: Path) -> None:
    model, data, about = _model(folder), arrays(folder, "head."), manifest(folder)
    _close(folder, "head", model.head(data["x"], data["t"], data["c"]), data["eps"])
    half = len(data["x"]) // 2
    branches = model.head(data["x"][:half].repeat(2, 1), data["t"], data["c"])
    guided = branches[half:] + about["cfg_scale"] * (branches[:half] - branches[half:])
    _close(folder, "head", guided.repeat(2, 1), data["eps_cfg"])
    train = arrays(folder, "train.")
    state = data["c"][: len(train["t"])]
    errors, guess = model.head.loss(train["target"], state, train["t"], train["noise"])
    torch.testing.assert_close(errors, train["loss_per_row"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guess, train["pred_xstart"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("folder", _cases("sched."))
def test_same_schedule(folder: Path) -> None:
    schedule = _model(folder).head.schedule
    for name, expected in arrays(folder, "sched.").items():
        np.testing.assert_allclose(getattr(schedule, name), expected.numpy(), rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("folder", _cases("sample_cfg."))
def test_same_latents_from_recorded_noise(folder: Path) -> None:
    model, about = _model(folder), manifest(folder)
    data = arrays(folder, "sample_cfg.")
    start, steps = data["init_noise"], data["step_noise"].transpose(0, 1)  # of a pair only the first row counts
    made = model.head.sample(
        data["z"],
        torch.cat([start[:, None], steps[: len(start)]], dim=1),
        guidance_scale=about["cfg_scale"],
        temperature=about["temperature_of_sample_cfg"],
    )
    _close(folder, "sample", made, data["out"][: len(start)])
    plain = arrays(folder, "sample_nocfg.")
    noise = torch.cat([plain["init_noise"][:, None], plain["step_noise"].transpose(0, 1)], dim=1)
    _close(folder, "sample", model.head.sample(data["z"], noise), plain["out"])


def _recorded(data: dict[str, Tensor]) -> Tensor:
    """(latents, 1, 51, C)."""
    return torch.cat([data["init_noise"][:, :, None], data["step_noise"][:, None, :, 0]], dim=2)


@pytest.mark.parametrize("folder", _cases("gen."))
def test_same_motion_from_recorded_noise(folder: Path) -> None:
    model, about, data = _model(folder), manifest(folder), arrays(folder, "gen.")
    options = {"null_text": data["uncond_text"], "guidance_scale": about["cfg_scale"], "noise": _recorded(data)}
    expected = data["latents"][0]
    made, stopped = model.generate(data["text"][None], num_latents=len(expected), **options)
    _close(folder, "gen", made[0], expected)
    assert stopped == ["length"]
    stop = arrays(folder, "stop.")
    before = model.end_latent.clone()
    try:
        model.set_end_latent(stop["reference"])
        threshold = about["stop"]["threshold"]
        if isinstance(about["recommended_tolerance"]["gen"], str):  # latents in the thousands carry rounding errors
            threshold = max(threshold, 1e-3 * expected.norm(dim=-1).max().item())
        made, stopped = model.generate(
            data["text"][None], max_latents=len(expected), stop_threshold=threshold, **options
        )
    finally:
        model.set_end_latent(before)
    _close(folder, "gen", made[0], stop["latents"][0])
    assert stopped == ["end"]


@pytest.mark.parametrize("folder", _cases("history"))
def test_same_continuation_from_recorded_noise(folder: Path) -> None:
    model, about, data = _model(_weights(folder)), manifest(folder), arrays(folder)
    options = {
        "null_text": data["uncond_text"],
        "guidance_scale": about["cfg_scale"],
        "noise": _recorded(data),
        "history": data["history"][None],
    }
    made, _ = model.generate(data["text"][None], num_latents=data["latents"].shape[1], **options)
    _close(folder, "latents", made[0], data["latents"][0])
    if "latents_with_always_true_stop" in data:
        expected = data["latents_with_always_true_stop"][0]
        before = model.end_latent.clone()
        try:
            model.set_end_latent(torch.zeros_like(before))
            options["max_latents"] = len(options["noise"])
            made, stopped = model.generate(data["text"][None], stop_threshold=1e9, min_latents=len(expected), **options)
        finally:
            model.set_end_latent(before)
        _close(folder, "latents", made[0], expected)
        assert stopped == ["end"]


def _losses() -> list[Any]:
    found = []
    for parameter in manifests("motionstreamer_ar"):
        folder = parameter.values[0]
        if folder is None:
            return [pytest.param(None, None, marks=parameter.marks)]
        names = {n.split(".")[0] for n in manifest(folder)["arrays"] if n.startswith("two_forward")}
        found += [pytest.param(folder, name, id=f"{parameter.id}/{name}") for name in sorted(names)]
    return found or [pytest.param(None, None, marks=pytest.mark.skip(reason="no case of this set has a loss"))]


@pytest.mark.parametrize(("folder", "case"), _losses())
def test_same_two_forward_loss_and_gradients(folder: Path, case: str) -> None:
    model, expected, data = _model(folder), manifest(folder)[case], arrays(folder, f"{case}.")
    batch = {"text": data["text"], "latents": data["latents"], "lengths": data["m_lens"]}
    if "A_token_length" in data:
        batch["history"] = data["A_token_length"]
    draws = Draws(data["t_first"], data["noise_first"], data["perm"], data["t_second"], data["noise_second"])
    model.zero_grad()
    terms = model.loss(batch, progress=expected["step"] / expected["total_steps"], draws=draws)
    assert terms["total"].item() == pytest.approx(expected["loss"], rel=2e-5)
    assert terms["total"].item() == pytest.approx(data["loss"].item(), rel=2e-5)
    terms["total"].backward()
    parameters = dict(model.named_parameters())
    for name, norm in expected["grad_norms"].items():
        gradient = parameters[name].grad
        assert gradient is not None and gradient.norm().item() == pytest.approx(norm, rel=1e-3), name
    model.zero_grad()


@pytest.mark.parametrize("folder", _cases("ar."))
def test_the_default_config_is_the_released_model(folder: Path) -> None:
    if not folder.name.startswith("released"):
        pytest.skip("a tiny configuration")
    with torch.device("meta"):
        model = MotionStreamer()
    assert _model(folder).config == model.config
    assert sum(p.numel() for p in model.parameters()) == 242_304_796 - 12  # without the logit scales
