"""Body penetration and the pose-distance field: geometry, frames, checkpoints, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis import rotation
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.evaluators.nrdf import PARENTS, PoseField, PoseFieldConfig, from_nrdf
from vadis.metrics.capsules import _segment_distance, capsule_penetration
from vadis.metrics.penetration import body_penetration, intersecting_pairs
from vadis.skeleton import SMPL22_NAMES

SMALL = PoseFieldConfig(widths=(16, 8))


def box(shift: tuple[float, float, float] = (0, 0, 0), size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A cube of twelve triangles."""
    corners = size * np.asarray([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    faces = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
             [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]  # fmt: skip
    return corners + np.asarray(shift, np.float32), np.asarray(faces)


def two(shift: tuple[float, float, float], size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    (a, f), (b, g) = box(), box(shift, size)
    return np.concatenate([a, b]), np.concatenate([f, g + 8])


def naive_pairs(vertices: np.ndarray, faces: np.ndarray) -> list[list[int]]:
    """Every pair tested against the same axes, one by one."""
    found = []
    corners = vertices[faces].astype(np.float64)
    for i in range(len(faces)):
        for j in range(i + 1, len(faces)):
            a, b = corners[i], corners[j]
            if any((p == q).all() for p in a for q in b):
                continue
            ea, eb = np.roll(a, -1, 0) - a, np.roll(b, -1, 0) - b
            na, nb = np.cross(ea[0], ea[1]), np.cross(eb[0], eb[1])
            axes = [*np.eye(3), na, nb, *(np.cross(p, q) for p in ea for q in eb)]
            axes += [np.cross(na, e) for e in (*ea, *eb)]
            if all((a @ x).max() >= (b @ x).min() and (b @ x).max() >= (a @ x).min() for x in axes):
                found.append([i, j])
    return found


def test_a_whole_body_has_no_penetration() -> None:
    vertices, faces = box()
    assert body_penetration(vertices, faces).tolist() == [0.0]


@pytest.mark.parametrize("shift", [(0.4, 0.3, 0.2), (0.83, 0.71, 0.645), (2, 0, 0), (0.31, -0.62, 0.77)])
def test_pairs_are_those_of_the_plain_rule(shift: tuple[float, float, float]) -> None:
    vertices, faces = two(shift)
    assert intersecting_pairs(vertices, faces).tolist() == naive_pairs(vertices, faces)


def test_inside_is_not_intersecting() -> None:
    assert len(intersecting_pairs(*two((0.3, 0.3, 0.3), 0.4))) == 0


def test_random_triangles_in_any_pose() -> None:
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(180, 3)).astype(np.float32)
    faces = np.arange(180).reshape(-1, 3)
    pairs = intersecting_pairs(vertices, faces)
    assert len(pairs) > 50 and pairs.tolist() == naive_pairs(vertices, faces)


def test_seams_share_positions_not_numbers() -> None:
    """A mesh whose triangles have their own copies of every corner is still whole."""
    vertices, faces = box()
    assert body_penetration(vertices[faces].reshape(-1, 3), np.arange(36).reshape(-1, 3)).tolist() == [0.0]
    assert body_penetration(-vertices * np.asarray([1, 0.5, 1]), faces).tolist() == [0.0]  # holds -0 and 0


def test_frames_are_measured_one_by_one() -> None:
    (a, faces), (b, _) = two((0.4, 0.3, 0.2)), two((3, 0, 0))
    values = body_penetration(torch.from_numpy(np.stack([a, b, a])), torch.from_numpy(faces))
    assert values[0] == values[2] > 0 == values[1]
    assert values[0] == pytest.approx(100 * len(naive_pairs(a, faces)) / 24)


def test_bad_meshes_are_refused() -> None:
    vertices, faces = box()
    with pytest.raises(VadisError, match="whole numbers from 0 to 7"):
        body_penetration(vertices, faces + 1)
    with pytest.raises(VadisError, match="frames 0"):
        body_penetration(vertices * np.nan, faces)
    with pytest.raises(ShapeError, match=r"faces \(F, 3\)"):
        body_penetration(vertices, faces[:, :2])
    with pytest.raises(ShapeError, match="empty"):
        body_penetration(vertices, faces[:0])
    with pytest.raises(ShapeError, match="one pose"):
        intersecting_pairs(np.stack([vertices, vertices]), faces)


def poses(frames: int, joints: int = 22) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return rotation.from_rotvec(torch.randn(frames, joints, 3, generator=generator))


def test_the_published_field_has_the_published_size() -> None:
    field = PoseField()
    assert sum(p.numel() for p in field.parameters()) == 1_368_679
    assert PARENTS == (-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12, 13, 15, 16, 17, 18)


def test_body_poses_do_not_depend_on_where_the_body_faces() -> None:
    field = PoseField(SMALL).eval()
    moved = poses(5).clone()
    moved[:, 0] = rotation.yaw(torch.tensor(1.0)) @ moved[:, 0]
    torch.testing.assert_close(field.pose_quality(poses(5)), field.pose_quality(moved))
    assert (field.pose_quality(poses(5), "literal") != field.pose_quality(moved, "literal")).any()
    hands = torch.cat([poses(5), poses(5)[:, :2]], 1)
    torch.testing.assert_close(
        field.pose_quality(hands), field.pose_quality(poses(5))
    )  # 24 joints: the hands are left out


def test_field_comes_back_from_disk_and_from_its_checkpoint(tmp_path: Path) -> None:
    field = PoseField(SMALL).eval()
    field.save_pretrained(tmp_path / "field")
    again = vadis.load(tmp_path / "field")
    assert isinstance(again, PoseField) and again.config == SMALL
    torch.testing.assert_close(again.pose_quality(poses(3)), field.pose_quality(poses(3)), rtol=0, atol=0)
    file = tmp_path / "checkpoint_epoch_best.tar"
    torch.save({"epoch": 1, "model_state_dict": field.state_dict()}, file)
    imported = vadis.import_checkpoint("nrdf", file, widths=(16, 8))
    torch.testing.assert_close(imported.pose_quality(poses(3)), field.pose_quality(poses(3)), rtol=0, atol=0)


def test_gradient_reaches_every_used_parameter() -> None:
    field = PoseField(SMALL)
    field(rotation.to_quat_wxyz(poses(4)[:, 1:])).sum().backward()
    dead = [name for name, p in field.named_parameters() if p.grad is None]
    assert dead and all(name.startswith("dec.") for name in dead)


def test_bad_poses_and_checkpoints_are_refused() -> None:
    field = PoseField(SMALL)
    broken = poses(3)
    broken[1] = torch.nan
    with pytest.raises(VadisError, match="1 poses hold NaN .* frame 1"):
        field.pose_quality(broken)
    with pytest.raises(ShapeError, match="pelvis first"):
        field.pose_quality(poses(3, 21))
    with pytest.raises(VadisError, match="body .* or literal"):
        field.pose_quality(poses(3), "all")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="missing"):
        from_nrdf({k: v for k, v in field.state_dict().items() if "dfnet" in k}, widths=(16, 8))
    with pytest.raises(ModelError, match="nrdf options: .*before its children"):
        from_nrdf(field.state_dict(), parents=(0, 1))


def test_distance_of_segments_is_the_smallest() -> None:
    """Against a fine grid over both segments, degenerate and parallel ones included."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 1, 2, 3)).astype(np.float32)
    a[0, :, 1] = a[0, :, 0]  # a point
    b[1] = a[1] + 0.5  # parallel
    b[2, :, 1] = b[2, :, 0]
    a[2, :, 1] = a[2, :, 0]  # two points
    t = np.linspace(0, 1, 401)[:, None]
    for x, y, found in zip(a[:, 0], b[:, 0], _segment_distance(a, b)[:, 0], strict=True):
        p, q = x[0] + t * (x[1] - x[0]), y[0] + t * (y[1] - y[0])
        grid = np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1)).min()
        assert found == pytest.approx(grid, abs=5e-3) and found <= grid + 1e-4


def test_limbs_through_the_trunk_are_seen_without_a_mesh() -> None:
    walk = procedural_walk(40).positions.numpy()
    good = capsule_penetration(walk)
    assert good.depth[0] == 0 and good.share[0] == 0
    through = walk.copy()
    through[20:, SMPL22_NAMES.index("left_wrist")] = walk[20:, SMPL22_NAMES.index("spine2")]
    both = capsule_penetration([walk, through])
    assert both.share.tolist() == [0.0, 0.5] and 0.05 < 2 * both.depth[1] < 0.15
    small = capsule_penetration(0.5 * through)
    assert 0.3 * both.depth[1] < small.depth[0] < 0.5 * both.depth[1] and small.share[0] == 0.5
    with pytest.raises(ShapeError, match="22 joints of smpl22; these clips have 24"):
        capsule_penetration(np.zeros((5, 24, 3)))
