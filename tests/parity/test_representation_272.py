"""The 272-dim representation and its SMPL and BVH relatives against the original programs, stage by stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.fixtures import arrays, manifest, manifests
from torch import Tensor

import vadis
from vadis import rotation
from vadis.io.bvh_smpl import NAMES, save_smpl_bvh
from vadis.motion import Motion
from vadis.representations import smpl85
from vadis.representations.ms272 import MS272
from vadis.skeleton import smpl22

MS = MS272()
FOLDERS = manifests("representation_272")


def having(*names: str) -> list[Any]:
    """The folders that hold all these arrays; one skip where there is none."""
    found = [f for f in FOLDERS if f.values[0] is None or set(names) <= set(arrays(f.values[0]))]
    reason = f"no parity fixture with {', '.join(names)}"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason))]


def clips(*names: str) -> list[Any]:
    """(folder, suffix) of every plain and mirrored clip with all these arrays; names with * have a mirrored twin."""
    found = []
    for suffix in ("", "_mirror"):
        found += [
            pytest.param(f.values[0], suffix, id=f"{f.id}{suffix}", marks=f.marks)
            for f in having(*[n.replace("*", suffix) for n in names])
        ]
    return found


def degrees(a: Tensor, b: Tensor) -> float:
    """Largest angle between two sets of rotations, from the chord, which is precise for small angles."""
    chord = (a.double() - b.double()).flatten(-2).norm(dim=-1) / 2**0.5
    return float(torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1))).max())


def matrices(smpl: Tensor) -> Tensor:
    return smpl85.rotations(smpl.double())


def assert_same_smpl(ours: Tensor, theirs: Tensor, atol: float) -> None:
    """Root as a rotation (a vector's norm may exceed pi in the original), everything else as numbers."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours[:, 3:].double(), theirs[:, 3:].double(), atol=atol, rtol=0)
    assert degrees(matrices(ours)[:, 0], matrices(theirs)[:, 0]) < 1e-4


@pytest.mark.parametrize("folder", having("raw_poses", "raw_trans", "betas", "raw_fps", "target_fps", "smpl85"))
def test_amass_to_smpl85(folder: Path) -> None:
    z = arrays(folder)
    ours = smpl85.from_amass(z["raw_poses"], z["raw_trans"], z["betas"], float(z["raw_fps"]), float(z["target_fps"]))
    assert_same_smpl(ours, z["smpl85"], 1e-6)


@pytest.mark.parametrize("folder", having("smpl85", "smpl85_mirror"))
def test_mirrored_smpl85(folder: Path) -> None:
    z = arrays(folder)
    torch.testing.assert_close(smpl85.mirror(z["smpl85"]), z["smpl85_mirror"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("folder", "suffix"), clips("smpl85*", "face_z85*"))
def test_face_z(folder: Path, suffix: str) -> None:
    z = arrays(folder)
    assert_same_smpl(smpl85.face_z(z[f"smpl85{suffix}"]), z[f"face_z85{suffix}"], 1e-5)


@pytest.mark.parametrize(("folder", "suffix"), clips("face_z85*", "rest_offsets", "joints22*"))
def test_joints(folder: Path, suffix: str) -> None:
    z = arrays(folder)
    ours = smpl85.joints(z[f"face_z85{suffix}"].double(), z["rest_offsets"])
    torch.testing.assert_close(ours, z[f"joints22{suffix}"].double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("folder", "suffix"), clips("face_z85*", "joints22*", "feat272*"))
def test_features_from_arrays(folder: Path, suffix: str) -> None:
    z = arrays(folder)
    local = matrices(z[f"face_z85{suffix}"])
    ours = MS.encode_arrays(local[None], z[f"joints22{suffix}"][None])[0]
    torch.testing.assert_close(ours.double(), z[f"feat272{suffix}"].double(), atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    "folder", having("raw_poses", "raw_trans", "betas", "raw_fps", "target_fps", "rest_offsets", "feat272")
)
def test_features_from_raw_through_motion(folder: Path) -> None:
    """The whole way: AMASS arrays, SMPL-85, Motion on the subject's own bones, features; no turn to +Z needed."""
    z = arrays(folder)
    smpl = smpl85.from_amass(z["raw_poses"], z["raw_trans"], z["betas"], float(z["raw_fps"]), float(z["target_fps"]))
    ours = vadis.representation("ms272").encode(smpl85.to_motion(smpl, z["rest_offsets"]))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), z["feat272"].double(), atol=3e-6, rtol=0)


@pytest.mark.parametrize("folder", having("feat272", "pos_recovered", "rot_recovered85"))
def test_recovery(folder: Path) -> None:
    z = arrays(folder)
    features, smpl = z["feat272"].double(), z["rot_recovered85"]
    for yaw_only in (True, False):
        joints = MS.positions(features, yaw_only)
        torch.testing.assert_close(joints, z["pos_recovered"].double(), atol=1e-9, rtol=0)
        ours = smpl85.from_features(features, MS, torch.zeros(3), yaw_only)
        torch.testing.assert_close(ours[:, 72:], smpl[:, 72:].double(), atol=1e-9, rtol=0)
        assert degrees(matrices(ours), matrices(smpl)) < 1e-4


@pytest.mark.parametrize("folder", having("feat272", "rest_offsets", "rot_recovered85"))
def test_smpl_translation_is_corrected_by_the_rest_pelvis(folder: Path) -> None:
    z = arrays(folder)
    pelvis = z["rest_offsets"][0]
    ours = smpl85.from_features(z["feat272"].double(), MS, pelvis)
    expected = z["rot_recovered85"][:, 72:75] - pelvis
    torch.testing.assert_close(ours[:, 72:75], expected.double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "folder", having("noisy272", "noisy_pos_f32", "noisy_pos_f64", "noisy_rot85_f64", "noisy_pos_batched_f64")
)
def test_noisy_features(folder: Path) -> None:
    z = arrays(folder)
    noisy, smpl = z["noisy272"].double(), z["noisy_rot85_f64"]
    single = MS.positions(z["noisy272"].float(), yaw_only=False)
    torch.testing.assert_close(single, z["noisy_pos_f32"], atol=5e-6, rtol=0)
    torch.testing.assert_close(MS.positions(noisy, yaw_only=False), z["noisy_pos_f64"], atol=1e-9, rtol=0)
    ours = smpl85.from_features(noisy, MS, torch.zeros(3), yaw_only=False)
    torch.testing.assert_close(ours[:, 72:], smpl[:, 72:], atol=1e-9, rtol=0)
    assert degrees(matrices(ours), matrices(smpl)) < 1e-4
    expected = z["noisy_pos_batched_f64"]
    parts = noisy[: expected.shape[0] * expected.shape[1]].reshape(*expected.shape[:2], 272)
    torch.testing.assert_close(MS.positions(parts, yaw_only=False), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("folder", having("feat272", "rest_offsets", "pos_recovered"))
def test_own_skeleton_is_in_the_features(folder: Path) -> None:
    z = arrays(folder)
    skeleton = MS.estimate_skeleton(z["feat272"])
    torch.testing.assert_close(skeleton.offsets[1:].double(), z["rest_offsets"][1:], atol=2e-6, rtol=0)
    for source in ("rotations", "positions"):
        motion = MS.decode(z["feat272"], source, skeleton=skeleton)
        torch.testing.assert_close(motion.positions.double(), z["pos_recovered"].double(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("folder", having("feat272", "feat272_mirror"))
def test_mirrored_features(folder: Path) -> None:
    """Exact in headings and rotations; joints differ by centimetres since the original poses an asymmetric body again."""
    z = arrays(folder)
    ours, theirs = MS.mirror(z["feat272"].double()), z["feat272_mirror"].double()
    exact = [*range(8), *range(140, 272)]
    torch.testing.assert_close(ours[:, exact], theirs[:, exact], atol=3e-6, rtol=0)
    assert (ours - theirs)[:, MS.slices["joint_positions"]].abs().max() < 0.1


@pytest.mark.parametrize("folder", having("Mean", "Std"))
def test_statistics_are_grouped(folder: Path) -> None:
    z = arrays(folder)
    assert z["Mean"].shape == z["Std"].shape == (272,)
    for group in MS.groups:
        assert float(z["Std"][group].max() - z["Std"][group].min()) < 1e-12
    MS.check_statistics(z["Mean"], z["Std"])


@pytest.mark.parametrize("folder", having("Mean", "Std"))
def test_statistics_of_clips(folder: Path) -> None:
    """`stats_compute` names the clips it was made from in its manifest's `inputs`."""
    inputs = manifest(folder).get("inputs")
    if inputs is None:
        pytest.skip("published statistics: their clips are not among the fixtures")
    z = arrays(folder)
    sources = [f.values[0] for f in FOLDERS if f.values[0].name in str(inputs).replace(",", " ").split()]
    assert sources
    mean, std = MS.statistics([arrays(source)["feat272"] for source in sources])
    torch.testing.assert_close(mean, z["Mean"], atol=1e-9, rtol=0)
    torch.testing.assert_close(std, z["Std"], atol=1e-9, rtol=0)


def bvh_parts(path: Path) -> tuple[list[str], dict[str, list[float]], Tensor]:
    """Header lines without numbers, OFFSET of every joint, motion values."""
    header, motion = path.read_text().split("MOTION\n")
    offsets, lines, name = {}, [], ""
    for line in header.split("\n"):
        words = line.split()
        if words and words[0] in ("ROOT", "JOINT", "End"):
            name = words[1] if words[0] != "End" else f"{name} end"
        if words and words[0] == "OFFSET":
            offsets[name] = [float(v) for v in words[1:]]
            line = line[: line.index("OFFSET")]
        lines.append(line)
    rows = motion.split("\n")
    assert rows[-1] == "" and all(row.endswith(" ") for row in rows[2:-1])
    lines += rows[:2]
    return lines, offsets, torch.tensor([[float(v) for v in row.split()] for row in rows[2:-1]], dtype=torch.float64)


@pytest.mark.parametrize("folder", having("feat272"))
def test_bvh(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*.bvh"))
    if not files:
        pytest.skip("this fixture has no BVH file")
    features = arrays(folder)["feat272"].float()
    for file in files:
        lines, offsets, values = bvh_parts(file)
        table = torch.tensor([offsets[name] for name in NAMES])
        skeleton = smpl22().with_offsets(torch.cat([torch.zeros(1, 3), table[1:22]]))
        clip = MS.decode(features[: len(values)], skeleton=skeleton)
        out = save_smpl_bvh(clip, tmp_path / file.name, table[0], table[22:], upstream_compat=True)
        our_lines, our_offsets, ours = bvh_parts(out)
        assert our_lines == lines
        assert our_offsets == offsets
        torch.testing.assert_close(ours[:, :3], values[:, :3], atol=1e-5, rtol=0)
        turn = rotation.from_euler(torch.deg2rad(ours[:, 3:]).unflatten(1, (-1, 3)), "ZYX")
        expected = rotation.from_euler(torch.deg2rad(values[:, 3:]).unflatten(1, (-1, 3)), "ZYX")
        assert degrees(turn, expected) < 1e-4
        gap = (ours[:, 3:] - values[:, 3:]).abs()
        assert gap.median() < 1e-5  # single angles may differ more where Y is near 90 degrees

        right = save_smpl_bvh(clip, tmp_path / "right.bvh", table[0], table[22:])
        assert isinstance(clip, Motion)
        torch.testing.assert_close(bvh_parts(right)[2][:, :3], clip.root.double(), atol=1e-6, rtol=0)
