"""MotionMillion's foot-slide clean-up, step by step, against the original program."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.fixtures import arrays, cases, manifest
from torch import Tensor

from vadis import rotation
from vadis.motion import Motion
from vadis.motion_editing.remove_sliding import (
    double_rate,
    find_contacts,
    pin,
    remove_sliding,
    remove_sliding_stages,
    solve,
)
from vadis.skeleton import Skeleton

CASES = cases("remove_sliding")


def load(folder: Path, case: str) -> tuple[dict[str, Tensor], dict[str, Any], Motion]:
    z, about = arrays(folder, f"{case}."), manifest(folder)["cases"][case]
    offsets = z["offsets"].clone()
    offsets[0] = 0
    skeleton = Skeleton(tuple(about["joint_names"]), tuple(about["parents"]), offsets)
    turns = rotation.from_quat_wxyz(z["in_quats_wxyz"])
    return z, about, Motion(skeleton, z["in_root_position"], turns, about["fps_in"])


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=atol, rtol=0)


def same_turns(ours: Tensor, quats: Tensor, atol: float) -> None:
    """Quaternions up to their sign."""
    mine = rotation.to_quat_wxyz(ours)
    sign = (mine * quats).sum(-1, keepdim=True).sign()
    close(mine * sign, quats, atol)


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_targets(folder: Path, case: str) -> None:
    z, about, motion = load(folder, case)
    atol = about["atol_positions"]
    close(motion.positions, z["global_positions"], atol)
    stages = remove_sliding_stages(motion, tuple(about["end_effectors"]), about["window_length"])
    assert abs(stages.floor - about["floor_height"]) < atol
    close(stages.smoothed, z["smoothed_positions"], atol)
    assert torch.equal(stages.contacts.double(), z["contact"].double())
    close(stages.targets, z["ik_targets"], atol)


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_each_step_from_the_stored_one_before(folder: Path, case: str) -> None:
    z, about, motion = load(folder, case)
    feet = about["end_effectors"]
    found = find_contacts(z["smoothed_positions"][:, feet])
    assert torch.equal(found.double(), z["contact"].double())
    for column, joint in enumerate(feet):
        ours = pin(z["smoothed_positions"][:, joint], z["contact"][:, column] > 0)
        close(ours, z["ik_targets"][:, joint], about["atol_positions"])
    solved = solve(motion.rotations, motion.root, z["ik_targets"], motion.skeleton)
    same_turns(solved, z["ik_quats"], about["atol_quats_after_ik"])
    root = z["in_root_position"] - torch.tensor([0.0, about["floor_height"], 0.0])
    turns, path = double_rate(rotation.from_quat_wxyz(z["ik_quats"]), root)
    same_turns(turns, z["out_quats"], 1e-5)
    close(path, z["out_root_position"], about["atol_positions"])


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_the_whole_way(folder: Path, case: str) -> None:
    z, about, motion = load(folder, case)
    made = remove_sliding(motion, tuple(about["end_effectors"]), about["window_length"])
    assert made.num_frames == about["frames_out"] and abs(made.fps - about["fps_out"]) < 0.01
    same_turns(made.rotations, z["out_quats"], about["atol_quats_after_ik"])
    close(made.root, z["out_root_position"], about["atol_positions"])
