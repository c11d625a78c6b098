"""`Motion`: resampling, canonical form, mirroring, cutting and joining; what it refuses; that it never changes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import procedural_walk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

import vadis
from vadis import rotation
from vadis.errors import FileError, ShapeError, SkeletonError, VadisError
from vadis.kinematics import body_heading
from vadis.motion import Motion
from vadis.skeleton import Skeleton, smpl22


def speeds(motion: Motion) -> torch.Tensor:
    """Fastest joint of every step in m/s."""
    return torch.diff(motion.positions, dim=0).norm(dim=-1).amax(-1) * motion.fps


class TestConstruction:
    def test_counts(self, walk):
        assert walk.num_frames == 90 and walk.seconds == pytest.approx(3.0)
        assert walk.positions.shape == (90, 22, 3) and walk.heading.shape == (90,)
        assert "90 frames at 30/s = 3.00 s" in repr(walk)

    def test_positions_are_forward_kinematics(self, walk):
        expected = walk.skeleton.forward_kinematics(walk.rotations.double(), walk.root.double())
        assert (walk.positions - expected).abs().max() < 1e-5

    @pytest.mark.parametrize(
        ("root", "rotations"),
        [((5, 3), (4, 22, 3, 3)), ((5, 2), (5, 22, 3, 3)), ((5, 3), (5, 21, 3, 3)), ((0, 3), (0, 22, 3, 3))],
    )
    def test_shapes_that_don_t_fit(self, root, rotations):
        with pytest.raises(ShapeError, match="motion"):
            Motion(smpl22(), torch.zeros(root), torch.zeros(rotations), 30.0)

    @pytest.mark.parametrize("fps", [0, -30, math.nan, math.inf])
    def test_frame_rates_that_are_none(self, walk, fps):
        with pytest.raises(VadisError, match="frames per second must be positive"):
            walk.replace(fps=fps)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_bad_values_are_refused_with_the_frame(self, walk, value):
        root, rotations = walk.root.clone(), walk.rotations.clone()
        root[17, 1] = value
        rotations[40, 3, 0, 0] = value
        with pytest.raises(VadisError, match="2 of 90 frames hold NaN or infinite values, the first is frame 17"):
            walk.replace(root=root, rotations=rotations)

    def test_immutable(self, walk):
        before = walk.root.clone(), walk.rotations.clone()
        with pytest.raises(dataclasses.FrozenInstanceError):
            walk.fps = 60.0
        for other in (walk.mirror(), walk.resample(45), walk.canonicalize(), walk.crop(3, 40), walk.retime(1.3),
                      Motion.concatenate([walk, walk], blend=8)):  # fmt: skip
            assert other is not walk
        assert torch.equal(walk.root, before[0]) and torch.equal(walk.rotations, before[1])


class TestResample:
    def test_same_rate_changes_nothing(self, walk):
        same = walk.resample(30)
        assert torch.equal(same.root, walk.root) and torch.equal(same.rotations, walk.rotations)

    @pytest.mark.parametrize(("fps", "step"), [(15, 2), (10, 3), (6, 5)])
    def test_integer_ratios_pick_frames(self, walk, fps, step):
        slower = walk.resample(fps)
        assert torch.equal(slower.root, walk.root[::step]) and torch.equal(slower.rotations, walk.rotations[::step])

    def test_integer_ratio_for_every_length(self):
        for frames in range(1, 14):
            motion = procedural_walk(frames).replace(fps=120.0)
            assert torch.equal(motion.resample(30).root, motion.root[::4])

    def test_between_frames_slerp_is_exact(self, walk):
        faster = walk.resample(70)
        times = np.arange(faster.num_frames) / 70
        assert times[-1] <= 89 / 30 < times[-1] + 1 / 70
        for joint in (0, 4, 18):
            oracle = Slerp(np.arange(90) / 30, Rotation.from_matrix(walk.rotations[:, joint].double().numpy()))(times)
            assert np.abs(faster.rotations[:, joint].numpy() - oracle.as_matrix()).max() < 1e-5
        for axis in range(3):
            expected = np.interp(times, np.arange(90) / 30, walk.root[:, axis].double().numpy())
            assert np.abs(faster.root[:, axis].numpy() - expected).max() < 1e-5

    def test_nothing_slows_down_at_the_end(self):
        steady = procedural_walk(100, turn=0.0)
        for fps in (7, 11, 23, 50):
            step = torch.diff(steady.resample(fps).root[:, 2]) * fps
            assert step.min() > 1.25  # m/s; the walk goes at 1.3

    @given(st.floats(1, 240), st.integers(1, 12))
    @settings(max_examples=40, deadline=None)
    def test_any_rate(self, fps, frames):
        motion = procedural_walk(frames)
        other = motion.resample(fps)
        assert other.fps == fps and torch.equal(other.root[0], motion.root[0])
        assert (other.num_frames - 1) / fps <= (frames - 1) / 30 + 1e-4

    def test_retime_changes_speed_and_keeps_the_rate(self, walk):
        fast = walk.retime(1.5)
        assert fast.fps == 30 and fast.num_frames == 60
        assert torch.diff(fast.root[:, [0, 2]], dim=0).norm(dim=-1).mean() * 30 == pytest.approx(1.95, abs=0.05)

    def test_rates_that_are_none(self, walk):
        for fps in (0, -1, math.nan):
            with pytest.raises(VadisError, match="frames per second"):
                walk.resample(fps)


class TestPlace:
    @given(st.floats(-3, 3), st.floats(-20, 20), st.floats(-20, 20))
    @settings(max_examples=15, deadline=None)
    def test_canonical_starts_above_the_origin_facing_z(self, angle, x, z):
        motion = procedural_walk(20)
        moved = motion.transform(rotation.yaw(torch.tensor(angle)), torch.tensor([x, 0.7, z]))
        again = moved.canonicalize()
        assert again.root[0, [0, 2]].abs().max() < 1e-5
        assert abs(float(again.heading[0])) < 1e-5
        assert float(again.positions[..., 1].min()) == pytest.approx(0, abs=1e-5)
        assert (again.positions - motion.positions).abs().max() < 2e-5

    def test_heights_can_be_kept(self, walk):
        raised = walk.transform(torch.eye(3), torch.tensor([1.0, 0.5, 0.0]))
        assert torch.allclose(raised.canonicalize(floor=False).root[:, 1], raised.root[:, 1])

    def test_transform_moves_every_joint(self, walk):
        turn, shift = rotation.yaw(torch.tensor(0.8)), torch.tensor([1.0, 2.0, 3.0])
        assert torch.allclose(walk.transform(turn, shift).positions, walk.positions @ turn.T + shift, atol=1e-5)

    def test_heading_is_unwrapped(self):
        assert float(procedural_walk(300, turn=1.5).heading[-1]) == pytest.approx(1.5 * 299 / 30, abs=0.05)


class TestMirror:
    def test_twice_is_the_same(self, walk):
        twice = walk.mirror().mirror()
        assert torch.equal(twice.root, walk.root) and torch.equal(twice.rotations, walk.rotations)

    def test_positions_are_reflected_and_sides_swapped(self, walk):
        mirrored = walk.mirror()
        expected = walk.positions[:, walk.skeleton.mirror_indices] * torch.tensor([-1.0, 1.0, 1.0])
        assert torch.allclose(mirrored.positions, expected, atol=1e-5)
        assert torch.allclose(mirrored.heading, -walk.heading, atol=1e-5)
        assert torch.allclose(torch.linalg.det(mirrored.rotations), torch.ones(90, 22), atol=1e-4)

    def test_uneven_bodies_too(self, walk):
        offsets = walk.skeleton.offsets.clone()
        offsets[walk.skeleton.index("left_knee")] *= 1.2
        uneven = walk.replace(skeleton=walk.skeleton.with_offsets(offsets))
        expected = uneven.positions[:, walk.skeleton.mirror_indices] * torch.tensor([-1.0, 1.0, 1.0])
        assert torch.allclose(uneven.mirror().positions, expected, atol=1e-5)


class TestCrop:
    def test_python_slices(self, walk):
        assert torch.equal(walk.crop(10, 20).root, walk.root[10:20])
        assert walk.crop(-5).num_frames == 5 and walk.crop(80, 1000).num_frames == 10

    @pytest.mark.parametrize("span", [(90, None), (20, 20), (30, 10)])
    def test_nothing_left(self, walk, span):
        with pytest.raises(VadisError, match="of a motion of 90 frames are empty"):
            walk.crop(*span)


class TestConcatenate:
    @pytest.mark.parametrize("blend", [0, 1, 8, 20])
    def test_no_jump_and_heading_goes_on(self, blend):
        first = procedural_walk(60, turn=0.9)
        second = procedural_walk(60, turn=-0.5).transform(
            rotation.yaw(torch.tensor(2.0)), torch.tensor([5.0, 0.0, -7.0])
        )
        joined = Motion.concatenate([first, second], blend=blend)
        assert joined.num_frames == 120 - blend
        heading = body_heading(joined.positions)
        assert torch.diff(heading).abs().max() < 0.3
        step = torch.diff(joined.root, dim=0).norm(dim=-1) * 30
        assert step.max() < 2.2 and step.min() > 0.5
        assert torch.equal(joined.root[: 60 - blend], first.root[: 60 - blend])
        if blend >= 8:
            assert speeds(joined).max() < 2.5 * max(speeds(first).max(), speeds(second).max())

    def test_a_walk_cut_in_two_is_put_together_again(self, walk):
        parts = [walk.crop(0, 50), walk.crop(40, 90)]
        joined = Motion.concatenate(parts, blend=10)
        assert joined.num_frames == 90
        assert (joined.positions - walk.positions).abs().max() < 1e-4

    def test_without_align_places_are_kept(self, walk):
        away = walk.transform(torch.eye(3), torch.tensor([3.0, 0.0, 0.0]))
        joined = Motion.concatenate([walk, away], align=False)
        assert torch.equal(joined.root[90:], away.root)

    def test_many_and_one(self, walk):
        assert Motion.concatenate([walk]) is walk
        assert Motion.concatenate([walk] * 4, blend=5).num_frames == 4 * 90 - 15

    def test_rotations_stay_rotations(self, walk):
        joined = Motion.concatenate([walk, walk.mirror()], blend=12)
        eye = torch.eye(3).expand(joined.num_frames, 22, 3, 3)
        assert torch.allclose(joined.rotations @ joined.rotations.transpose(-1, -2), eye, atol=1e-4)

    def test_what_does_not_fit(self, walk):
        with pytest.raises(VadisError, match="nothing to concatenate"):
            Motion.concatenate([])
        with pytest.raises(VadisError, match="60 to 30 frames/s: resample"):
            Motion.concatenate([walk, walk.resample(60)])
        with pytest.raises(VadisError, match="a blend of 30 frames needs parts at least that long"):
            Motion.concatenate([walk, walk.crop(0, 20)], blend=30)
        with pytest.raises(VadisError, match="blend=-1"):
            Motion.concatenate([walk, walk], blend=-1)
        stick = Motion(
            Skeleton(("only",), (-1,), torch.zeros(1, 3)), torch.zeros(5, 3), torch.eye(3).expand(5, 1, 3, 3), 30.0
        )
        with pytest.raises(SkeletonError, match="retarget them"):
            Motion.concatenate([walk, stick])


@pytest.mark.parametrize("fps", [0, -1, 1e9, float("nan"), float("inf")])
def test_rates_that_can_not_be(walk: Motion, fps: float) -> None:
    with pytest.raises(VadisError, match="frames per second"):
        walk.resample(fps)


def test_more_frames_than_a_motion_may_have(walk: Motion) -> None:
    with pytest.raises(VadisError, match="ask for a lower rate"):
        walk.replace(fps=0.01).resample(99_000)


# ---- as Python and notebooks expect


def test_frames_by_slices(walk):
    part = walk[10:40]
    assert len(part) == part.num_frames == 30 and part.fps == walk.fps and part.meta == walk.meta
    assert torch.equal(part.root, walk.root[10:40]) and part == walk.crop(10, 40)
    half = walk[::2]
    assert (
        half.fps == walk.fps / 2
        and len(half) == -(-len(walk) // 2)
        and abs(half.seconds - walk.seconds) <= 1 / half.fps
    )
    assert walk[-5:] == walk[len(walk) - 5 :] and walk[:] == walk
    for wrong, message in ((3, r"motion\[3\]: give a range of frames"), (slice(None, None, -1), "can't run backwards"),
                           (slice(5, 5), "no frame is left of")):  # fmt: skip
        with pytest.raises(VadisError, match=message):
            walk[wrong]


def test_equal_by_value(walk):
    import copy
    import pickle

    other = walk.replace(root=walk.root.clone(), rotations=walk.rotations.clone(), meta={"caption": "walk"})
    assert walk == other and hash(walk) == hash(other) and len({walk, other}) == 1
    assert walk != walk[1:] and walk != walk.replace(fps=walk.fps * 2) and walk != "walk"
    moved = walk.replace(root=walk.root + 1)
    assert walk != moved and walk != walk.mirror()
    assert pickle.loads(pickle.dumps(walk)) == walk == copy.deepcopy(walk)


def test_the_suffix_decides_pictures_too(walk, tmp_path):
    pytest.importorskip("matplotlib")
    assert walk[:4].save(tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(FileError, match="there is no option 'colour'; known are title, poses"):
        walk.save(tmp_path / "a.png", colour="red")
    with pytest.raises(FileError, match="can't read a.png: the suffix '.png' is unknown"):
        vadis.load_motion(tmp_path / "a.png")
