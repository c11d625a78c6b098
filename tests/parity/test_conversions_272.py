"""The roads from 272 against the original programs: joints, motion-135, 20 frames/s joints, HumanML3D-263."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.fixtures import arrays, cases, manifest
from torch import Tensor

from vadis import rotation
from vadis.representations.conversions import convert, resample_joints
from vadis.representations.hml263 import HumanML
from vadis.representations.ms272 import MS272
from vadis.representations.smpl135 import SMPL135

MS = MS272()


def real(topic: str = "conversions_272") -> list[Any]:
    """The cases that hold 272 features (the others belong to the physical metrics)."""
    found = [p for p in cases(topic) if p.values[0] is None or "x272" in arrays(p.values[0], f"{p.values[1]}.")]
    return found or [pytest.param(None, None, marks=pytest.mark.skip(reason="no parity case with 272 features"))]


def load(folder: Path, case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return arrays(folder, f"{case}."), manifest(folder)["cases"][case]


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=atol, rtol=0)


@pytest.mark.parametrize(("folder", "case"), real())
def test_joints_and_rotations(folder: Path, case: str) -> None:
    z, about = load(folder, case)
    for yaw_only in (True, False):
        close(MS.positions(z["x272"], yaw_only), z["joints"], about["atol"]["joints"])
    local, root = MS.rotations(z["x272"])
    vectors = z["smpl85"][:, :66].unflatten(-1, (22, 3))
    close(local, rotation.from_rotvec(vectors), 5e-4)  # the original's float32 logarithm
    close(root, z["smpl85"][:, 72:75], about["atol"]["joints"])


@pytest.mark.parametrize(("folder", "case"), real())
def test_motion_135(folder: Path, case: str) -> None:
    z, about = load(folder, case)
    expected = z["motion135_interleaved"]
    close(convert(z["x272"], "ms272", "smpl135").features, expected, about["atol"]["motion135"])
    columns = convert(z["x272"], "ms272", "motionclip135").features
    table = expected[:, 3:].unflatten(-1, (22, 3, 2)).transpose(-1, -2).flatten(1)
    close(columns, torch.cat([expected[:, :3], table], dim=1), about["atol"]["motion135"])
    assert torch.equal(SMPL135("motionclip135").to_layout(columns, "smpl135"), convert(columns, "motionclip135", "smpl135").features)  # fmt: skip


@pytest.mark.parametrize(("folder", "case"), real())
def test_to_20_frames_a_second(folder: Path, case: str) -> None:
    z, about = load(folder, case)
    ours = resample_joints(z["joints"], 30, 20)
    assert len(ours) == about["frames_20fps"]
    close(ours, z["joints_20fps"], about["atol"]["joints"])


@pytest.mark.parametrize(("folder", "case"), real())
def test_to_263(folder: Path, case: str) -> None:
    z, about = load(folder, case)
    target = arrays(folder)["hml263_target_offsets"]
    made = convert(z["x272"], "ms272", "hml263", joints_from="positions", target_offsets=target)
    ours, expected = made.features, z["hml263"]
    assert ours.shape == expected.shape and len(ours) == about["frames_263"]
    hml = HumanML()
    still = hml.slices["foot_contacts"]
    assert torch.equal(ours[:, still], expected[:, still])
    close(ours, expected, about["atol"]["hml263"])
    assert made.report.joints_from == "positions" and not made.report.lossless
