"""The mannequin: a closed, symmetric, sensibly weighted body on any skeleton of the smpl22 tree."""

import time

import numpy as np
import pytest
import torch

from vadis import rotation
from vadis.body.mannequin import Mannequin, _grow, build_mannequin
from vadis.body.raster import Camera, rasterise, render
from vadis.body.surface import relax, sample, surface_nets
from vadis.errors import SkeletonError
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, Skeleton, smpl22


@pytest.fixture(scope="module")
def body() -> Mannequin:
    return build_mannequin(smpl22())


def _edges(faces: np.ndarray) -> np.ndarray:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def _volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, k]].astype(float) for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("scale", [(1, 1, 1), (0.6, 0.6, 0.6), (1, 1.15, 1), (1.2, 1, 1)], ids=str)
def test_the_surface_is_closed_and_faces_outwards(scale):
    """Every directed edge occurs once and its reverse once: no hole, no fold, one orientation; all one piece."""
    skeleton = smpl22()
    body = build_mannequin(skeleton.with_offsets(skeleton.offsets * torch.tensor(scale, dtype=torch.float32)))
    edges = _edges(body.faces)
    assert len(np.unique(edges, axis=0)) == len(edges)
    assert np.array_equal(np.unique(edges, axis=0), np.unique(edges[:, ::-1], axis=0))
    assert len(body.vertices) - len(edges) // 2 + len(body.faces) == 2  # Euler: one sphere, no handles
    assert 0.04 < _volume(body.vertices, body.faces) / np.prod(scale) < 0.09  # cubic metres
    normal = np.cross(*(body.vertices[body.faces[:, k]] - body.vertices[body.faces[:, 0]] for k in (1, 2)))
    assert ((normal * body.normals[body.faces[:, 0]]).sum(-1) > 0).mean() > 0.999


def test_size_and_shape(body):
    assert 6_000 < len(body.vertices) < 13_000
    assert body.vertices.dtype == body.normals.dtype == body.weights.dtype == np.float32
    height = body.vertices[:, 1].max() - body.vertices[:, 1].min()
    assert 1.6 < height < 1.85
    assert body.vertices[:, 1].min() == pytest.approx(body.sole, abs=0.004)
    np.testing.assert_allclose(np.linalg.norm(body.normals, axis=1), 1, atol=1e-5)
    assert body.colors.min() >= 0 and body.colors.max() <= 1
    rest = smpl22().rest_positions.numpy()
    for j in range(22):  # the bones lie inside: the nearest vertex faces away from the joint
        nearest = np.linalg.norm(body.vertices - rest[j], axis=1).argmin()
        assert (body.vertices[nearest] - rest[j]) @ body.normals[nearest] > 0, SMPL22_NAMES[j]


def test_mirror_symmetric(body):
    from scipy.spatial import cKDTree

    distance, twin = cKDTree(body.vertices).query(body.vertices * np.float32([-1, 1, 1]))
    assert distance.max() < 7e-3  # along the seam of the midplane triangles lie one way or the other
    assert distance[np.abs(body.vertices[:, 0]) > 0.08].max() < 1e-3
    swapped = body.dense_weights[:, smpl22().mirror_indices.numpy()]
    assert np.abs(swapped - body.dense_weights[twin]).max() < 0.15


def test_weights(body):
    assert body.joints.shape == body.weights.shape == (len(body.vertices), 4)
    np.testing.assert_allclose(body.weights.sum(1), 1, atol=1e-5)
    assert (body.weights >= 0).all() and (np.diff(body.weights, axis=1) <= 0).all()
    dense = body.dense_weights
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-5)

    def of(*parts: str) -> np.ndarray:
        return dense[:, [SMPL22_NAMES.index(p) for p in parts]].sum(1)

    for limb in (("hip", "knee", "ankle", "foot"), ("collar", "shoulder", "elbow", "wrist")):
        left, right = (of(*(f"{side}_{p}" for p in limb)) for side in ("left", "right"))
        assert (left * right == 0).all()  # no vertex follows both sides
        assert (left[body.vertices[:, 0] < 0] == 0).all() and (right[body.vertices[:, 0] > 0] == 0).all()
    assert (dense.max(0) > 0.6).all()  # every joint really moves something
    edges = _edges(body.faces)
    length = np.linalg.norm(body.vertices[edges[:, 0]] - body.vertices[edges[:, 1]], axis=1)
    slope = np.abs(dense[edges[:, 0]] - dense[edges[:, 1]]).max(1) / np.maximum(length, 0.004)
    assert slope.max() < 70  # smooth: never from nothing to everything within a centimetre and a half


def test_deterministic_and_quick(body):
    _grow.cache_clear()
    start = time.perf_counter()
    again = build_mannequin(smpl22())
    assert time.perf_counter() - start < 15  # about one second on a free core; CI machines are busy
    assert np.array_equal(again.vertices, body.vertices) and np.array_equal(again.joints, body.joints)
    assert build_mannequin(smpl22()) is again


def test_rest_pose_is_the_rest_mesh(body):
    motion = Motion(smpl22(), torch.zeros(2, 3), torch.eye(3).repeat(2, 22, 1, 1), 30.0)
    vertices, normals = body.pose(motion)
    np.testing.assert_allclose(vertices[0], body.vertices, atol=1e-6)
    np.testing.assert_allclose(normals[1], body.normals, atol=1e-5)


def test_posing_moves_the_mesh_rigidly_with_the_root_and_bends_it_elsewhere(body):
    skeleton = smpl22()
    turn = rotation.from_rotvec(torch.tensor([0.3, 1.0, -0.2]))
    rotations = torch.eye(3).repeat(1, 22, 1, 1)
    rotations[0, 0] = turn
    rotations[0, skeleton.index("left_elbow")] = rotation.from_rotvec(torch.tensor([0.0, -1.5, 0.0]))
    vertices, _ = body.pose(Motion(skeleton, torch.tensor([[1.0, 2.0, 3.0]]), rotations, 30.0))
    rigid = body.vertices @ turn.numpy().T + np.float32([1, 2, 3])
    moved = np.linalg.norm(vertices[0] - rigid, axis=1)
    arm = body.dense_weights[:, [skeleton.index("left_elbow"), skeleton.index("left_wrist")]].sum(1)
    assert moved[arm == 0].max() < 1e-5
    assert moved[arm > 0.99].max() > 0.3
    assert _volume(vertices[0], body.faces) == pytest.approx(_volume(body.vertices, body.faces), rel=0.02)


def test_scaled_skeleton_scales_the_body(body):
    small = build_mannequin(smpl22().with_offsets(smpl22().offsets * 0.5))
    assert np.ptp(small.vertices[:, 1]) == pytest.approx(np.ptp(body.vertices[:, 1]) / 2, rel=0.01)


def test_other_trees_are_refused():
    with pytest.raises(SkeletonError, match=r"vadis\.retarget"):
        build_mannequin(Skeleton(("a", "b"), (-1, 0), torch.zeros(2, 3)))


def test_surface_nets_makes_a_round_ball():
    def ball(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points, axis=1) - 0.5

    low, high = np.float32([-0.6] * 3), np.float32([0.6] * 3)
    grid, origin = sample(ball, low, high, 0.06)
    vertices, faces = surface_nets(grid, origin, 0.06)
    vertices, normals = relax(ball, vertices, faces, 0.06)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 0.5, atol=1e-5)
    np.testing.assert_allclose(normals, vertices / 0.5, atol=1e-3)
    assert _volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.02)


def test_rasteriser_keeps_the_nearest_triangle():
    square = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    vertices = np.concatenate([square, square + np.float32([0, 0, 0.5])])
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    camera = Camera((0.5, 0.5, 4.0), (0.5, 0.5, 0.0), 30.0)
    pairs, weights, depth = rasterise(camera.project(vertices, 64, 64), faces, 64, 64)
    centre = pairs[:, 0] == 32 * 64 + 32
    assert pairs[centre, 1][0] >= 2 and depth[centre][0] == pytest.approx(3.5, abs=1e-4)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-4)
    behind, _, _ = rasterise(Camera((0.5, 0.5, -4.0), (0.5, 0.5, 0.0), 30.0).project(vertices, 64, 64), faces, 64, 64)
    assert len(behind) == 0  # back faces are culled


def test_render_draws_the_body_in_the_middle(body):
    camera = Camera((0.0, 0.9, 6.0), (0.0, 0.8, 0.0), 22.0)
    vertices = body.vertices - np.float32([0, body.sole, 0])
    image = render(vertices, body.normals, body.faces, body.colors, camera, 96, 96)
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert image[2, 2].tolist() == [255, 255, 255]
    assert (image[46, 46:50] < 240).all()
