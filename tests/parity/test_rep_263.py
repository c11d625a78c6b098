"""HumanML3D-263 and KIT-251 against the original programs: conversion, recovery, mirroring, statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.fixtures import arrays, manifest, manifests
from torch import Tensor

from vadis.representations.hml263 import HumanML

FOLDERS = manifests("rep_263")
BY_WIDTH = {263: HumanML("hml263"), 251: HumanML("kit251")}


def load(folder: Path) -> dict[str, Tensor]:
    """The arrays, with the official clip's under the names of the other fixtures."""
    data = {name.removeprefix("forward.").removeprefix("recovered."): value for name, value in arrays(folder).items()}
    if "joints_ref" in data:
        data["joints_in"] = data["joints_ref"]
    return data


def having(*names: str) -> list[Any]:
    """The folders that hold all these arrays (an ending where a name starts with *); one skip where there is none."""

    def has(folder: Path) -> bool:
        return all(any(k.endswith(n[1:]) if n[0] == "*" else k == n for k in load(folder)) for n in names)

    found = [f for f in FOLDERS if f.values[0] is None or has(f.values[0])]
    reason = f"no parity fixture with {', '.join(names)}"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason))]


def tolerance(folder: Path, *names: str, default: float) -> float:
    """The manifest's suggestion under the first of `names` that it has."""
    value: Any = manifest(folder).get("suggested_tolerance", default)
    if not isinstance(value, dict):
        return float(value)
    return float(next((value[n] for n in names if n in value), default))


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=atol, rtol=0)


@pytest.mark.parametrize(
    "folder", having("joints_in", "target_offsets", "joints_uniform", "joints_canonical", "features")
)
def test_conversion(folder: Path) -> None:
    z = load(folder)
    rep = BY_WIDTH[z["features"].shape[-1]]
    joints, target = z["joints_in"], z["target_offsets"]
    about = manifest(folder).get("config", {})
    if "feet_threshold" in about:
        assert about["feet_threshold"] == rep.layout.contact_threshold
    metres = tolerance(folder, "joints_uniform", "joints_mm", "forward", default=1e-5)
    close(rep.uniform_positions(joints, target), z["joints_uniform"], metres)
    canonical = rep.canonical_positions(joints[None], target)[0]
    close(canonical, z["joints_canonical"], tolerance(folder, "joints_canonical", "joints_mm", "forward", default=1e-5))
    ours = rep.encode_positions(joints, target)
    assert ours.dtype == torch.float32
    for name, columns in rep.slices.items():  # a column group at a time, so that a failure says which
        got, expected = ours[:, columns], z["features"][:, columns]
        if name == "foot_contacts":  # a threshold: a step within rounding of it may fall on either side
            feet = z["joints_canonical"][:, list(rep.layout.contacts)].double()
            margin = (torch.diff(feet, dim=0).square().sum(-1) - rep.layout.contact_threshold).abs()
            got = torch.where(margin < 1e-4 * rep.layout.contact_threshold, expected, got)
            close(got, expected, 0)
        else:
            close(got, expected, tolerance(folder, "features", "forward", default=3e-4))


@pytest.mark.parametrize("folder", having("features_ref", "joints_ref", "target_offsets"))
def test_official_features_of_the_official_clip(folder: Path) -> None:
    """All rows that don't feel the clip's end through the smoothed heading."""
    z = load(folder)
    ours = BY_WIDTH[z["features_ref"].shape[-1]].encode_positions(z["joints_ref"], z["target_offsets"])
    safe = len(ours) - 89
    assert safe > 0
    close(ours[:safe], z["features_ref"][:safe], 2e-5)


@pytest.mark.parametrize("folder", having("joints_from_ric"))
def test_recovery(folder: Path) -> None:
    z = load(folder)
    features = z.get("features_ref", z["features"])
    rep = BY_WIDTH[features.shape[-1]]
    atol = tolerance(folder, "recovered", "recover", "joints_mm", default=1e-5)
    quat, root = rep.root_path(features)
    close(quat, z["root_quat_wxyz"], min(atol, 1e-4))
    close(root, z["root_pos"], atol)
    close(rep.recover_from_positions(features), z["joints_from_ric"], atol)
    if "joints_from_rot" in z:
        close(rep.recover_from_rotations(features, z["target_offsets"]), z["joints_from_rot"], atol)
        batch = rep.recover_from_rotations(features[None].repeat(2, 1, 1), z["target_offsets"])
        close(batch[1], z["joints_from_rot"], atol)


@pytest.mark.parametrize("folder", having("joints_in", "target_offsets", "features"))
def test_batches_equal_single_clips(folder: Path) -> None:
    z = load(folder)
    rep = BY_WIDTH[z["features"].shape[-1]]
    joints = z["joints_in"]
    short = max(2, len(joints) // 2)
    batch = rep.encode_positions(
        torch.stack([joints, joints]), z["target_offsets"], lengths=torch.tensor([len(joints), short])
    )
    single = rep.encode_positions(joints[:short], z["target_offsets"])
    close(batch[0], rep.encode_positions(joints, z["target_offsets"]), 1e-6 * rep.layout.metre)
    close(batch[1, : short - 1], single, 1e-6 * rep.layout.metre)
    assert not batch[1, short - 1 :].any()


@pytest.mark.parametrize("folder", having("features_of_mirrored"))
def test_mirroring(folder: Path) -> None:
    data = arrays(folder)
    pairs = [n for n in data if f"{n}_mirrored" in data]
    rep = BY_WIDTH[data["features_of_mirrored"].shape[-1]]
    for name in pairs:
        close(rep.mirror_joints(data[name]), data[f"{name}_mirrored"], 0)
    joints = next(data[f"{n}_mirrored"] for n in pairs if data[n].shape[1] == rep.layout.joints)
    close(rep.encode_positions(joints, data["target_offsets"]), data["features_of_mirrored"], 3e-4)


@pytest.mark.parametrize("folder", having("*_std"))
def test_published_statistics_are_grouped_as_ours(folder: Path) -> None:
    """Deviations are one number a group; the evaluators' ones of root and contacts were divided by 25."""
    data = arrays(folder)
    deviations = {n: v.double() for n, v in data.items() if n.endswith("_std")}
    for name, std in deviations.items():
        rep = BY_WIDTH[len(std)]
        for group in rep.groups:
            assert float(std[group].max() - std[group].min()) < 1e-5 * float(std[group].max()), (name, group)
    if "evaluator_t2m_std" in deviations:
        ratio = deviations["humanml3d_std"] / deviations["evaluator_t2m_std"]
        slices = BY_WIDTH[263].slices
        assert 20 < float(ratio[slices["foot_contacts"]].mean()) < 30
        assert 0.9 < float(ratio[slices["joint_positions"]].mean()) < 1.1
