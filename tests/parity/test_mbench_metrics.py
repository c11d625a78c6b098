"""MBench's joint metrics, pose-distance field, mesh penetration and reply parsing against the original program."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vadis import rotation
from vadis.evaluation.judge import literal_choice, literal_verdict, read_choice, read_gate, read_verdict
from vadis.importing import import_checkpoint
from vadis.metrics.clips import pack
from vadis.metrics.feet import watch_feet
from vadis.metrics.mbench import NAMES, mbench_metrics
from vadis.metrics.penetration import body_penetration, intersecting_pairs

from .fixtures import arrays, fill_state, manifest, manifests


def folders(topic: str) -> list:
    """The folders of one part of the topic: its name says what the manifest holds."""
    return [p for p in manifests("mbench_metrics") if p.values[0] is None or topic in manifest(p.values[0])]


@pytest.mark.parametrize("folder", folders("values"))
def test_joint_metrics(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    for case, expected in about["values"].items():
        result = mbench_metrics(data[f"{case}/joints"], fps=20, mode="compat")
        for field, name in NAMES.items():
            value = float(getattr(result, field)[0])
            if expected[name] is None:
                assert np.isnan(value), f"{case} {name}"
            elif name == "Foot_Floating":
                assert value == expected[name], f"{case} {name}"
            else:
                assert value == pytest.approx(expected[name], abs=1e-5), f"{case} {name}"
        if f"{case}/contact" in data:
            assert np.array_equal(result.contact, data[f"{case}/contact"].bool().numpy()), case
        if "_no_contact_ranges" in expected:
            feet = watch_feet(pack(data[f"{case}/joints"]), 2, 0.0)
            runs = [np.stack(feet.runs(~feet.contact[:, foot]), 1).tolist() for foot in (0, 1)]
            assert runs == expected["_no_contact_ranges"], case


@pytest.mark.parametrize("folder", folders("values"))
def test_all_clips_at_once_give_the_same(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    cases = list(about["values"])
    together = mbench_metrics([data[f"{case}/joints"] for case in cases], fps=20, mode="compat")
    for row, case in enumerate(cases):
        alone = mbench_metrics(data[f"{case}/joints"], fps=20, mode="compat")
        for field in NAMES:
            np.testing.assert_allclose(getattr(together, field)[row], getattr(alone, field)[0], rtol=1e-6, err_msg=case)


@pytest.mark.parametrize("folder", folders("state_dict"))
def test_pose_field(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    distance, encoder = about["config"]["DFNet"], about["config"]["StrEnc"]
    field = import_checkpoint(
        "nrdf",
        fill_state(about["state_dict"], **about.get("fill_parameters", {"gain": 1.0})),
        parents=tuple(int(parent) for parent in encoder["smpl_mapping"].split(",")),
        widths=tuple(int(width) for width in distance["dims"].split(",")),
        beta=distance["beta"],
    )
    assert sum(p.numel() for p in field.parameters()) == sum(
        np.prod(shape) for _, shape in about["state_dict"].values()
    )
    places = distance["num_parts"]
    with torch.no_grad():
        latent = field.encode(data["quat_wxyz"][:, :places])
    torch.testing.assert_close(latent, data["latent"], rtol=1e-4, atol=1e-6)
    rotations = rotation.from_rotvec(data["pose_axis_angle"])
    for joints, name in (("literal", "literal"), ("body", "body_joints")):
        quality = field.pose_quality(rotations, joints)
        torch.testing.assert_close(quality, 10 * data[f"dist_{name}"][:, 0], rtol=1e-4, atol=0)
        assert float(quality.double().mean()) == pytest.approx(float(data[f"score_{name}"]), rel=1e-4)


@pytest.mark.parametrize("folder", folders("cases"))
def test_body_penetration(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    for case in about["cases"]:
        vertices, faces = (data[f"{case['name']}/{part}"] for part in ("vertices", "faces"))
        pairs = intersecting_pairs(vertices, faces)
        assert abs(len(pairs) - case["pairs"]) <= 0.01 * case["pairs"], case["name"]
        expected = {tuple(pair) for pair in data[f"{case['name']}/pairs"].tolist()}
        assert len(expected ^ {tuple(pair) for pair in pairs.tolist()}) <= 0.01 * case["pairs"], case["name"]
        percent = body_penetration(vertices, faces)
        assert percent == pytest.approx([case["percent"]], rel=0.01), case["name"]


@pytest.mark.parametrize("folder", folders("condition_consistency"))
def test_reading_of_replies(folder: Path) -> None:
    about = manifest(folder)
    for row in about["condition_consistency"]:
        assert literal_choice(row["response"]) == row["parsed"]
        options = ["something else", row["label"]]
        assert float(read_choice(row["response"], options, "literal") == 1) == row["value"], row
    for row in about["generalizability"]:
        assert literal_verdict(row["response"]) == row["parsed"]
        assert float(read_verdict(row["response"], "literal") is True) == row["value"], row
    for row in about["gating_json"]:
        assert read_gate(row["raw"]) == (row["analysis"], row["matches"]), row
