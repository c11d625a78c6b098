"""Joint trees: forward kinematics against a slow loop, gradients, mirrored names of many conventions, bad trees."""

import math

import pytest
import torch

from vadis import rotation
from vadis.errors import SkeletonError
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton, smpl22


def slow_world(skeleton: Skeleton, rotations: torch.Tensor) -> torch.Tensor:
    """World rotations of (T, J, 3, 3), one joint of one frame at a time."""
    world = rotations.clone()
    for t in range(len(rotations)):
        for j, p in enumerate(skeleton.parents):
            if p >= 0:
                world[t, j] = world[t, p] @ rotations[t, j]
    return world


def slow_positions(skeleton: Skeleton, rotations: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    world = slow_world(skeleton, rotations)
    positions = torch.zeros(len(rotations), skeleton.num_joints, 3, dtype=rotations.dtype)
    for t in range(len(rotations)):
        positions[t, 0] = root[t]
        for j, p in enumerate(skeleton.parents):
            if p >= 0:
                positions[t, j] = positions[t, p] + world[t, p] @ skeleton.offsets[j].to(rotations)
    return positions


def random_pose(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rotations = rotation.from_rotvec(torch.randn(*shape, 22, 3, generator=draw, dtype=dtype))
    return rotations, torch.randn(*shape, 3, generator=draw, dtype=dtype)


class TestKinematics:
    def test_against_a_slow_loop(self):
        skeleton = smpl22()
        rotations, root = random_pose(6)
        assert (skeleton.global_rotations(rotations) - slow_world(skeleton, rotations)).abs().max() < 1e-12
        expected = slow_positions(skeleton, rotations, root)
        assert (skeleton.forward_kinematics(rotations, root) - expected).abs().max() < 1e-12
        world = skeleton.global_rotations(rotations)
        assert (skeleton.forward_kinematics(rotations, root, world) - expected).abs().max() < 1e-12

    def test_joints_in_an_order_that_is_not_by_depth(self):
        parents = (-1, 0, 1, 2, 0, 4, 1, 0)
        draw = torch.Generator().manual_seed(1)
        skeleton = Skeleton(tuple("abcdefgh"), parents, torch.randn(8, 3, generator=draw))
        rotations = rotation.from_rotvec(torch.randn(3, 8, 3, generator=draw, dtype=torch.float64))
        root = torch.randn(3, 3, generator=draw, dtype=torch.float64)
        expected = slow_positions(skeleton, rotations, root) - slow_positions(skeleton, rotations, root)[:, :1]
        got = skeleton.forward_kinematics(rotations, root) - root[:, None]
        assert (got - expected).abs().max() < 1e-12

    @pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 5), (2, 1, 3)])
    def test_any_leading_shape_and_float32(self, shape):
        skeleton = smpl22()
        rotations, root = random_pose(*shape, dtype=torch.float32)
        world, positions = skeleton.global_rotations(rotations), skeleton.forward_kinematics(rotations, root)
        assert world.shape == rotations.shape and positions.shape == (*shape, 22, 3)
        assert world.dtype == positions.dtype == torch.float32
        flat = slow_positions(skeleton, rotations.reshape(-1, 22, 3, 3), root.reshape(-1, 3))
        assert torch.allclose(positions.reshape(-1, 22, 3), flat, atol=1e-6)

    def test_root_broadcasts_and_strided_input_is_fine(self):
        skeleton = smpl22()
        rotations, root = random_pose(4, 3)
        positions = skeleton.forward_kinematics(rotations.transpose(0, 1), root.transpose(0, 1))
        assert torch.allclose(positions, skeleton.forward_kinematics(rotations, root).transpose(0, 1))
        still = skeleton.forward_kinematics(rotations, torch.zeros(3, dtype=torch.float64))
        assert torch.allclose(still + root[..., None, :], skeleton.forward_kinematics(rotations, root))

    def test_gradients(self):
        parents = (-1, 0, 1, 0)
        skeleton = Skeleton(tuple("abcd"), parents, torch.randn(4, 3, generator=torch.Generator().manual_seed(2)))
        draw = torch.Generator().manual_seed(3)
        rotations = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64, requires_grad=True)
        root = torch.randn(2, 3, generator=draw, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(skeleton.global_rotations, (rotations,))
        assert torch.autograd.gradcheck(skeleton.forward_kinematics, (rotations, root))

    def test_input_is_left_alone(self):
        rotations, root = random_pose(3)
        before = rotations.clone(), root.clone()
        smpl22().forward_kinematics(rotations, root)
        assert torch.equal(rotations, before[0]) and torch.equal(root, before[1])

    def test_local_rotations_undo_global_ones(self):
        skeleton = smpl22()
        rotations, _ = random_pose(5)
        assert torch.allclose(skeleton.local_rotations(skeleton.global_rotations(rotations)), rotations, atol=1e-12)

    def test_one_joint(self):
        skeleton = Skeleton(("only",), (-1,), torch.zeros(1, 3))
        root = torch.tensor([[1.0, 2.0, 3.0]])
        assert torch.equal(skeleton.forward_kinematics(torch.eye(3).expand(1, 1, 3, 3), root), root[:, None])
        assert skeleton.rest_height == 0

    def test_tips_follow_their_joint(self):
        skeleton = Skeleton(
            ("a", "b"), (-1, 0), torch.tensor([[0.0, 0, 0], [0, 1, 0]]), end_sites={1: torch.tensor([0.0, 1, 0])}
        )
        bend = rotation.from_rotvec(torch.tensor([[[0.0, 0, 0], [math.pi / 2, 0, 0]]]))
        world = skeleton.global_rotations(bend)
        positions = skeleton.forward_kinematics(bend, torch.zeros(1, 3), world)
        assert torch.allclose(skeleton.tips(positions, world), torch.tensor([[[0.0, 1.0, 1.0]]]), atol=1e-6)
        assert skeleton.rest_height == 2
        assert smpl22().tips(torch.zeros(4, 22, 3), torch.zeros(4, 22, 3, 3)).shape == (4, 0, 3)


class TestSmpl22:
    def test_names_tree_and_rest_pose(self):
        skeleton = smpl22()
        assert skeleton.names == SMPL22_NAMES and skeleton.parents == SMPL22_PARENTS
        rest = dict(zip(skeleton.names, skeleton.rest_positions, strict=True))
        assert torch.allclose(
            skeleton.forward_kinematics(torch.eye(3).expand(22, 3, 3), torch.zeros(3)), skeleton.rest_positions
        )
        assert rest["left_wrist"][0] > 0.5 and rest["right_wrist"][0] < -0.5  # a T-pose, left towards +X
        assert abs(rest["left_wrist"][1] - rest["left_shoulder"][1]) < 1e-6
        assert rest["left_ankle"][1] < -0.8 < 0.3 < rest["head"][1]
        assert rest["left_foot"][2] > rest["left_ankle"][2] + 0.05  # toes point to +Z
        assert 1.3 < skeleton.rest_height < 1.7  # from toes to the base of the head

    def test_left_and_right_are_mirror_images(self):
        skeleton = smpl22()
        mirrored = skeleton.rest_positions[skeleton.mirror_indices] * torch.tensor([-1.0, 1, 1])
        assert torch.allclose(mirrored, skeleton.rest_positions)
        assert skeleton.mirror() is skeleton


class TestNames:
    @pytest.mark.parametrize(
        ("left", "right"),
        [("left_hip", "right_hip"), ("LeftUpLeg", "RightUpLeg"), ("mixamorig:LeftArm", "mixamorig:RightArm"), ("ball_l", "ball_r"),
         ("Shoulder_L", "Shoulder_R"), ("upper_arm.L", "upper_arm.R"), ("lower_arm_l", "lower_arm_r"), ("L_Hip", "R_Hip"),
         ("lShldr", "rShldr"), ("lfemur", "rfemur"), ("LThumb", "RThumb"), ("Bip01 L Thigh", "Bip01 R Thigh"),
         ("LHipJoint", "RHipJoint"), ("leftEye", "rightEye")],
    )  # fmt: skip
    def test_counterparts(self, left, right):
        skeleton = Skeleton(("root", "lower_back", left, right, "Larynx"), (-1, 0, 0, 0, 0), torch.zeros(5, 3))
        assert skeleton.mirror_indices.tolist() == [0, 1, 3, 2, 4]

    def test_mirror_of_an_uneven_body(self):
        offsets = torch.tensor([[0.0, 0, 0], [0.1, -0.1, 0], [-0.2, -0.3, 0.05]])
        skeleton = Skeleton(
            ("root", "thigh_l", "thigh_r"), (-1, 0, 0), offsets, end_sites={1: torch.tensor([0.1, 0, 0])}
        )
        mirrored = skeleton.mirror()
        assert torch.allclose(mirrored.offsets, torch.tensor([[0.0, 0, 0], [0.2, -0.3, 0.05], [-0.1, -0.1, 0]]))
        assert list(mirrored.end_sites) == [2] and mirrored.end_sites[2][0] == pytest.approx(-0.1)
        assert torch.equal(mirrored.mirror().offsets, offsets) and list(mirrored.mirror().end_sites) == [1]

    def test_index_lists_the_names(self):
        assert smpl22().index("left_knee") == 4
        with pytest.raises(SkeletonError, match="no joint 'tail'.*pelvis, left_hip"):
            smpl22().index("tail")


class TestBadTrees:
    @pytest.mark.parametrize(
        ("names", "parents", "shape", "message"),
        [((), (), (0, 3), "equally many"), (("a", "b"), (-1,), (2, 3), "equally many"), (("a",), (-1,), (1, 2), "equally many"),
         (("a", "b"), (0, 0), (2, 3), "only root"), (("a", "b"), (-1, -1), (2, 3), "only root"), (("a", "b"), (-1, 1), (2, 3), "before"),
         (("a", "b", "a"), (-1, 0, 0), (3, 3), "unique; a occur")],
    )  # fmt: skip
    def test_refused(self, names, parents, shape, message):
        with pytest.raises(SkeletonError, match=message):
            Skeleton(names, parents, torch.zeros(shape))

    def test_other_bone_lengths_same_tree(self):
        skeleton = smpl22()
        longer = skeleton.with_offsets(skeleton.offsets * 2)
        assert longer.same_tree(skeleton) and longer.rest_height == pytest.approx(2 * skeleton.rest_height, rel=1e-5)
        assert not skeleton.same_tree(Skeleton(("a",), (-1,), torch.zeros(1, 3)))
        with pytest.raises(AttributeError):
            skeleton.name = "other"
