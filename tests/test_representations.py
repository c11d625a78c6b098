"""Representations: round trips, mirroring, batching, slices, recognition, and the errors a user meets."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vadis
from vadis import representations, rotation
from vadis.errors import ShapeError, SkeletonError, VadisError
from vadis.motion import Motion
from vadis.representations.hml263 import HumanML
from vadis.representations.ms272 import MS272
from vadis.representations.solve import fit_skeleton, solve_rotations
from vadis.skeleton import smpl22

MS = MS272()
ABSOLUTE = MS272("absolute")
MS_KINDS = ("ms272", "ms272_absroot")


def smooth_motion(seed: int, frames: int = 300, fps: float = 30.0, size: float = 0.5) -> Motion:
    """A random motion of slow sinusoids: limbs swing by about `size` radians, the root wanders and turns."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(frames)[:, None] / fps
    waves = lambda n: sum(  # noqa: E731
        torch.randn(n, generator=g) * torch.sin(t * (0.3 + 2 * torch.rand(n, generator=g)) * k + 6 * torch.rand(n, generator=g))
        for k in (1, 2, 3)
    )  # fmt: skip
    vectors = size * 0.6 * waves(66).reshape(frames, 22, 3)
    vectors[:, 0] *= 0.3
    local = rotation.from_rotvec(vectors)
    heading = 2 * math.pi * torch.rand(1, generator=g) + waves(1)[:, 0]
    local[:, 0] = rotation.yaw(heading) @ local[:, 0]
    root = 2 * torch.randn(3, generator=g) + waves(3) * torch.tensor([1.0, 0.05, 1.0])
    return Motion(smpl22(), root, local, fps)


def features_of(name: str, seed: int = 3, frames: int = 60) -> torch.Tensor:
    rep = vadis.representation(name)
    return rep.encode(smooth_motion(seed, frames, rep.fps))


# -- all of them


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_slices_cover_every_column_once(name: str) -> None:
    rep = vadis.representation(name)
    columns = [c for s in rep.slices.values() for c in range(s.start, s.stop)]
    assert columns == list(range(rep.dim))
    grouped = [c for s in rep.groups for c in range(s.start, s.stop)]
    assert grouped == list(range(rep.dim))


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_mirroring_twice_is_the_identity(name: str) -> None:
    rep, x = vadis.representation(name), features_of(name)
    once = rep.mirror(x)
    assert not torch.equal(once, x)
    torch.testing.assert_close(rep.mirror(once), x, atol=0, rtol=0)
    torch.testing.assert_close(rep.mirror(x[None])[0], once, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_float32_and_finite(name: str) -> None:
    x = features_of(name)
    assert x.dtype == torch.float32 and x.ndim == 2 and bool(torch.isfinite(x).all())


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_batched_positions_equal_single_ones(name: str) -> None:
    rep = vadis.representation(name)
    x = torch.stack([features_of(name, 1), features_of(name, 2)])
    joints = rep.positions(x)
    for one, together in zip(x, joints, strict=True):
        torch.testing.assert_close(rep.positions(one), together, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_decoding_positions_follows_the_joints(name: str) -> None:
    rep = vadis.representation(name)
    given = smooth_motion(3, 60, rep.fps)
    if name == "kit251":  # its neck carries head and shoulders, which a rigid joint follows only when they are still
        still = torch.eye(3).expand(60, 3, 3, 3)
        given = given.replace(rotations=given.rotations.index_copy(1, torch.tensor([12, 13, 14]), still))
    x = rep.encode(given)
    motion = rep.decode(x, source="positions")
    assert motion.num_frames == len(x) and motion.fps == rep.fps
    torch.testing.assert_close(motion.positions, rep.positions(x), atol=2e-5, rtol=0)
    assert "solved from positions" in motion.meta["note"]


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_statistics(name: str) -> None:
    rep = vadis.representation(name)
    clips = [features_of(name, s, 40 + s) for s in range(3)]
    broken = torch.full((9, rep.dim), float("nan"))
    mean, std = rep.statistics([*clips, broken])
    together = torch.cat(clips).double()
    torch.testing.assert_close(mean, together.mean(0))
    for group in rep.groups:
        torch.testing.assert_close(std[group], together.std(0, correction=0)[group].mean().expand_as(std[group]))
    with pytest.raises(VadisError, match="no clip without NaN"):
        rep.statistics([broken])


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_errors_name_the_cure(name: str, walk: Motion) -> None:
    rep = vadis.representation(name)
    with pytest.raises(VadisError, match=rf"motion\.resample\({rep.fps:g}\)"):
        rep.encode(walk.replace(fps=59.0))
    other = smpl22()
    stranger = Motion(
        type(other)(tuple(f"j{k}" for k in range(22)), other.parents, other.offsets), walk.root, walk.rotations, rep.fps
    )
    with pytest.raises(SkeletonError, match=r"vadis\.retarget\(motion, 'smpl22'\)"):
        rep.encode(stranger)
    with pytest.raises(ShapeError, match="vadis.representation"):
        rep.decode(torch.zeros(4, 263 if rep.dim == 272 else 272))
    with pytest.raises(ShapeError, match="at least one frame"):
        rep.positions(torch.zeros(0, rep.dim))
    with pytest.raises(VadisError, match="'rotations' or 'positions'"):
        rep.decode(features_of(name), source="joints")  # type: ignore[arg-type]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(VadisError, match="hml263, kit251, .*ms272, ms272_absroot"):
        vadis.representation("ms273")
    assert {"hml263", "kit251", "ms272", "ms272_absroot"} <= set(representations.names())


# -- 272


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(MS_KINDS))
def test_ten_seconds_survive_the_round_trip(seed: int, name: str) -> None:
    """To a millimetre, on a random smooth motion, up to where it stands and faces at the start."""
    motion = smooth_motion(seed).canonicalize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = vadis.representation(name).decode(vadis.representation(name).encode(motion))
    assert (again.positions - motion.positions).norm(dim=-1).max() < 1e-3


def test_real_motion_survives_the_round_trip(mini_bvh: list[Path]) -> None:
    for path in mini_bvh[:3]:
        motion = vadis.retarget(vadis.load_motion(path), "smpl22").resample(30).crop(0, 300).canonicalize()
        x = MS.encode(motion)
        again = MS.decode(x, skeleton=motion.skeleton)
        assert (again.positions - motion.positions).norm(dim=-1).max() < 1e-3
        estimated = MS.decode(x, source="positions")
        assert (estimated.positions - motion.positions).norm(dim=-1).max() < 1e-3


@given(st.floats(-3, 3), st.floats(-5, 5), st.floats(-5, 5))
@settings(max_examples=15, deadline=None)
def test_place_and_heading_do_not_matter(angle: float, x: float, z: float) -> None:
    motion = smooth_motion(5, 20)
    moved = motion.transform(rotation.yaw(torch.tensor(angle)), torch.tensor([x, 0.3, z]))
    torch.testing.assert_close(MS.encode(moved), MS.encode(motion), atol=2e-5, rtol=0)


def test_constants_of_the_layout() -> None:
    x = MS.encode(smooth_motion(8))
    assert not x[:, [8, 10, 74, 76, 3, 5, 7]].any()
    assert (x[:, 6] == 1).all()
    assert x[0, :8].tolist() == [0, 0, 1, 0, 0, 0, 1, 0] and not x[0, 74:140].any()
    assert float(x[:, MS.slices["joint_positions"]].unflatten(1, (22, 3))[..., 1].min()) == pytest.approx(0, abs=1e-6)


def test_without_floor_heights_stay(walk: Motion) -> None:
    raised = walk.replace(root=walk.root + torch.tensor([0.0, 0.5, 0.0]))
    torch.testing.assert_close(MS.encode(raised, floor=False)[:, 9], raised.root[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(MS.encode(raised), MS.encode(walk), atol=2e-6, rtol=0)


def test_single_frame_has_the_first_rows_conventions(walk: Motion) -> None:
    one = MS.encode(walk.crop(0, 1))
    assert one.shape == (1, 272) and one[0, :8].tolist() == [0, 0, 1, 0, 0, 0, 1, 0] and not one[0, 74:140].any()
    assert MS.decode(one).num_frames == 1


def test_padded_batches_equal_single_clips() -> None:
    motions = [smooth_motion(1, 50), smooth_motion(2, 31)]
    local = torch.eye(3).expand(2, 50, 22, 3, 3).clone()
    root = torch.full((2, 50, 3), -100.0)  # padding far below must not become the floor
    for k, m in enumerate(motions):
        local[k, : m.num_frames], root[k, : m.num_frames] = m.rotations, m.root
    for rep in (MS, ABSOLUTE):
        batch = rep.encode_rotations(local, root, lengths=torch.tensor([50, 31]))
        for k, m in enumerate(motions):
            torch.testing.assert_close(batch[k, : m.num_frames], rep.encode(m), atol=2e-6, rtol=0)
        assert not batch[1, 31:].any()


def test_absolute_and_delta_headings_convert_both_ways() -> None:
    motion = smooth_motion(11)
    delta, absolute = MS.encode(motion), ABSOLUTE.encode(motion)
    torch.testing.assert_close(MS.to_absolute(delta), absolute, atol=2e-5, rtol=0)
    torch.testing.assert_close(ABSOLUTE.to_delta(absolute), delta, atol=2e-6, rtol=0)
    torch.testing.assert_close(ABSOLUTE.positions(absolute), MS.positions(delta), atol=1e-4, rtol=0)
    assert "heading" in ABSOLUTE.slices and "heading_velocity" in MS.slices


@pytest.mark.parametrize("name", MS_KINDS)
def test_a_window_made_canonical_starts_at_the_origin(name: str) -> None:
    rep = vadis.representation(name)
    window = rep.recanonicalise(features_of(name, 4, 120)[50:90])
    motion = rep.decode(window)
    torch.testing.assert_close(motion.root[0, [0, 2]], torch.zeros(2), atol=1e-6, rtol=0)
    assert abs(float(motion.heading[0])) < 1e-5
    direct = rep.encode(smooth_motion(4, 120).crop(50, 90), floor=False)
    for part in ("root_velocity", "joint_velocities", "joint_rotations"):
        torch.testing.assert_close(window[:, rep.slices[part]], direct[:, rep.slices[part]], atol=2e-5, rtol=0)


def test_mirrored_features_are_features_of_the_mirrored_motion() -> None:
    motion = smooth_motion(13)
    torch.testing.assert_close(MS.mirror(MS.encode(motion)), MS.encode(motion.mirror()), atol=2e-5, rtol=0)


def test_yaw_only_keeps_a_noisy_body_upright() -> None:
    x = MS.encode(smooth_motion(2, 200))
    noisy = x.clone()
    noisy[:, 2:8] += 0.01 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    upright, _ = MS.root_path(noisy)
    leaning, _ = MS.root_path(noisy, yaw_only=False)
    assert float((upright[:, 1, 1] - 1).abs().max()) < 1e-12
    assert float(leaning[:, 1, 1].min()) < 0.9999


def test_statistics_that_contradict_the_heading_warn() -> None:
    wide = torch.full((272,), 0.4)
    with pytest.warns(UserWarning, match="absolute headings"):
        MS.check_statistics(torch.zeros(272), wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ABSOLUTE.check_statistics(torch.zeros(272), wide)


def test_lying_bodies_warn(walk: Motion) -> None:
    lying = walk.transform(rotation.from_rotvec(torch.tensor([-math.pi / 2, 0.0, 0.0])), torch.zeros(3))
    with pytest.warns(UserWarning, match="straight up or down"):
        MS.encode(
            lying.replace(
                rotations=torch.cat([lying.rotations[:1, :1].expand(90, -1, -1, -1), lying.rotations[:, 1:]], 1)
            )
        )


# -- 263 and 251


def test_joints_come_back_canonical() -> None:
    rep = vadis.representation("hml263")
    assert isinstance(rep, HumanML)
    joints = smooth_motion(6, 80, 20.0).positions
    fixed = rep.encode_positions(joints, fix_heading=True)
    expected = rep.canonical_positions(joints[None])[0, :-1]
    torch.testing.assert_close(rep.recover_from_positions(fixed), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(rep.recover_from_rotations(fixed), expected, atol=2e-4, rtol=0)
    bones = rep.offsets_of(expected)
    torch.testing.assert_close(bones, rep.target_offsets.expand_as(bones), atol=1e-5, rtol=0)


def test_fixed_heading_follows_a_full_turn() -> None:
    """The original reverses one yaw step when the heading passes half a turn, which bends the path."""
    rep = HumanML("hml263")
    t = torch.arange(120) / 20
    turning = smpl22().rest_positions[None] @ rotation.yaw(1.5 * t).transpose(-1, -2)
    turning[..., 0] += t[:, None]
    wrong, right = (rep.encode_positions(turning, fix_heading=f)[:, 0] for f in (False, True))
    assert right[10:-10].max() - right[10:-10].min() < 0.02
    assert (wrong[10:-10] * right[10:-10] < 0).sum() == 1
    assert HumanML("hml263", fix_heading=True).metadata["fix_heading"] is True


def test_padded_clips_equal_single_clips() -> None:
    rep = HumanML("hml263")
    joints = torch.stack([smooth_motion(k, 70, 20.0).positions for k in range(2)])
    joints[1, 40:] = -50
    batch = rep.encode_positions(joints, lengths=torch.tensor([70, 40]))
    torch.testing.assert_close(batch[1, :39], rep.encode_positions(joints[1, :40]), atol=1e-6, rtol=0)
    assert not batch[1, 39:].any()


def test_opposite_bones_give_rotations_and_not_nan() -> None:
    rep = HumanML("hml263")
    joints = smpl22().rest_positions[None].repeat(4, 1, 1)
    joints[:, 4] = joints[:, 1] + torch.tensor([0.0, 0.4, 0.0])  # left thigh straight up, its rest axis is down
    x = rep.encode_positions(joints)
    assert torch.isfinite(x).all()
    expected = rep.canonical_positions(joints[None])[0, :-1]
    torch.testing.assert_close(rep.recover_from_rotations(x), expected, atol=1e-5, rtol=0)


def test_kit_is_in_millimetres() -> None:
    kit = vadis.representation("kit251")
    x = features_of("kit251")
    assert 500 < float(x[:, 3].mean()) < 1500
    assert float(kit.positions(x)[..., 1].max()) < 3


def test_too_few_frames_or_joints() -> None:
    rep = HumanML("hml263")
    for shape in ((1, 22, 3), (8, 21, 3), (8, 22, 2), (8, 66)):
        with pytest.raises(ShapeError, match="at least 2 frames"):
            rep.encode_positions(torch.zeros(shape))
    with pytest.raises(ShapeError, match="along the rest axes"):
        rep.encode_positions(torch.randn(4, 22, 3), target_offsets=torch.ones(22, 3))


# -- rotations from joints


@given(st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_solved_rotations_follow_the_joints(seed: int) -> None:
    motion = smooth_motion(seed, 20)
    for reference in (None, motion.rotations):
        local = solve_rotations(motion.positions.double(), motion.skeleton, reference).float()
        torch.testing.assert_close(motion.replace(rotations=local).positions, motion.positions, atol=1e-5, rtol=0)
    torch.testing.assert_close(local, motion.rotations, atol=1e-3, rtol=0)  # with the true twist nothing changes


def test_knees_bend_like_hinges_without_a_reference(walk: Motion) -> None:
    local = solve_rotations(walk.positions.double(), walk.skeleton).float()
    bent = rotation.to_rotvec(walk.rotations[:, 4]).norm(dim=-1) > 0.3
    angle = rotation.to_rotvec(local[bent, 4])
    assert (angle[:, 0] > 0.8 * angle.norm(dim=-1)).all()  # flexion about +X, not sideways


def test_bone_lengths_are_fitted() -> None:
    motion = smooth_motion(1, 30)
    other = motion.replace(skeleton=motion.skeleton.with_offsets(motion.skeleton.offsets * 1.1))
    fitted = fit_skeleton(other.positions.double(), smpl22())
    torch.testing.assert_close(fitted.offsets, other.skeleton.offsets, atol=1e-5, rtol=0)


# -- recognition


@pytest.mark.parametrize("name", ["hml263", "kit251", *MS_KINDS])
def test_own_features_are_recognised(name: str) -> None:
    found = representations.guess(features_of(name, 7, 200))
    assert found[0].name == name and found[0].confidence > 0.6
    assert "frame rate" in found[0].reason
    assert found == sorted(found, key=lambda g: -g.confidence)


@pytest.mark.parametrize("name", ["hml263", "kit251", "ms272"])
def test_normalised_features_are_recognised(name: str) -> None:
    rep, x = vadis.representation(name), features_of(name, 7, 200)
    mean, std = rep.statistics([x])
    found = representations.guess((x.double() - mean) / std.clamp_min(1e-6))
    assert found[0].name == name and "normalised" in found[0].reason


def test_unknown_arrays_are_not_guessed() -> None:
    assert representations.guess(torch.zeros(5, 17)) == []
    assert representations.guess(torch.zeros(0, 272)) == []
    assert representations.guess(torch.zeros(4, 22, 3)) == []
