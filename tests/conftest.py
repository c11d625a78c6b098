"""Fixtures: the shared data and parity folders (skipped with a reason when absent) and a small procedural walk."""

import math
import os
from pathlib import Path

import pytest
import torch

from vadis import rotation
from vadis.motion import Motion
from vadis.skeleton import smpl22

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, name: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT.parent / "shared" / name)
    if not path.is_dir():
        pytest.skip(
            f"needs the shared {name} folder: set {variable}, or put it at ../shared/{name} beside the checkout"
        )
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real motion capture (BVH archives, originals, captions)."""
    return _folder("VADIS_SHARED_DATA", "data")


@pytest.fixture(scope="session")
def parity_root() -> Path:
    """Folder of inputs and outputs computed with the original programs."""
    return _folder("VADIS_PARITY_DIR", "parity")


@pytest.fixture(scope="session")
def mini_bvh(shared_data: Path) -> list[Path]:
    """Six short real clips."""
    return sorted((shared_data / "mini").glob("*.bvh"))


def procedural_walk(frames: int = 90, fps: float = 30.0, turn: float = 0.4) -> Motion:
    """A walk on the 22-joint skeleton: about 1.3 m/s along a slow curve to the left, arms swinging, canonical at frame 0."""
    skeleton = smpl22()
    t = torch.arange(frames, dtype=torch.float32) / fps
    phase = 2 * math.pi * 0.9 * t  # one cycle is two steps
    vectors = torch.zeros(frames, skeleton.num_joints, 3)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        swing = sign * torch.sin(phase)
        vectors[:, skeleton.index(f"{side}_hip"), 0] = -0.45 * swing
        vectors[:, skeleton.index(f"{side}_knee"), 0] = 0.5 - 0.4 * torch.sin(sign * phase + 1.2 * sign)
        vectors[:, skeleton.index(f"{side}_ankle"), 0] = 0.15 * swing - 0.1
        vectors[:, skeleton.index(f"{side}_shoulder"), 2] = -sign * 1.25
        vectors[:, skeleton.index(f"{side}_elbow"), 1] = -sign * (0.35 + 0.15 * swing)
        vectors[:, skeleton.index(f"{side}_collar"), 1] = 0.08 * swing
    vectors[:, skeleton.index("spine2"), 1] = -0.12 * torch.sin(phase)
    vectors[:, skeleton.index("neck"), 0] = 0.05 * torch.cos(2 * phase)
    heading = turn * t
    rotations = rotation.from_rotvec(vectors)
    rotations[:, 0] = rotation.yaw(heading) @ rotations[:, 0]
    step = 1.3 / fps * torch.stack([torch.sin(heading), torch.zeros(frames), torch.cos(heading)], -1)
    root = torch.cumsum(step, 0) - step[0]
    root[:, 1] = 0.9 + 0.02 * torch.cos(2 * phase)
    return Motion(skeleton, root, rotations, fps, {"source": "procedural walk"}).canonicalize()


@pytest.fixture(scope="session")
def walk() -> Motion:
    """Three seconds of a procedural walk, 30 frames/s."""
    return procedural_walk()
