"""Does Blender see what we meant? Optional: needs `bpy` here, or VADIS_BLENDER_PYTHON naming a Python that has it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vadis.body.mannequin import build_mannequin
from vadis.io import save_motion
from vadis.io.gltf import MIXAMO_NAMES

FRAMES = (0, 7, 44, 89)


@pytest.fixture(scope="module")
def blender() -> str:
    if python := os.environ.get("VADIS_BLENDER_PYTHON"):
        return python
    if importlib.util.find_spec("bpy") is None:
        pytest.skip("needs Blender as a module: pip install bpy, or set VADIS_BLENDER_PYTHON to a Python that has it")
    return sys.executable


def look(python: str, path: Path, fps: float) -> dict:
    script = Path(__file__).with_name("compare_in_blender.py")
    command = [python, str(script), str(path), str(fps), *map(str, FRAMES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[6:])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".glb", ".bvh"])
def test_bones_are_where_we_say(blender, walk, tmp_path, suffix):
    """Every joint within a millimetre."""
    path = save_motion(walk, tmp_path / f"walk{suffix}")
    seen = look(blender, path, walk.fps)
    names = MIXAMO_NAMES if suffix == ".glb" else walk.skeleton.names
    order = [seen["bones"].index(n) for n in names]
    error = np.linalg.norm(np.array(seen["frames"])[:, order] - walk.positions[list(FRAMES)].numpy(), axis=-1)
    print(f"{suffix}: largest joint error in Blender {error.max() * 1000:.4f} mm")
    assert error.max() < 1e-3


@pytest.mark.slow
def test_the_skin_is_where_we_say(blender, walk, tmp_path):
    seen = look(blender, save_motion(walk, tmp_path / "walk.glb"), walk.fps)
    expected, _ = build_mannequin(walk.skeleton).pose(walk, list(FRAMES))
    error = np.linalg.norm(np.array(seen["meshes"]) - expected, axis=-1)
    print(f"largest skin error in Blender {error.max() * 1000:.4f} mm")
    assert error.max() < 1e-3
