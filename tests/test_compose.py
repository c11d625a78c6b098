"""Motion out of motion: bent paths, reversed, held, looped, joined, borrowed arms."""

import math

import pytest
import torch
from conftest import procedural_walk

from vadis import rotation
from vadis.data import compose
from vadis.errors import VadisError
from vadis.kinematics import body_heading
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES


def steps(motion: Motion) -> torch.Tensor:
    """Fastest joint of every step in m/s."""
    return torch.diff(motion.positions, dim=0).norm(dim=-1).amax(-1) * motion.fps


class TestBend:
    @pytest.mark.parametrize("angle", [0.5, -1.5, 3.0])
    def test_turns_by_the_asked_angle(self, angle):
        walk = procedural_walk(91, turn=0.0)
        bent = compose.bend(walk, torch.full((91,), angle / 3))
        turned = body_heading(bent.positions) - body_heading(walk.positions)
        assert float(turned[0]) == pytest.approx(0, abs=1e-5) and float(turned[-1]) == pytest.approx(angle, abs=1e-3)
        course = rotation.unwrap(torch.atan2(*torch.diff(bent.root, dim=0)[:, [0, 2]].T))
        assert float(course[-1] - course[0]) == pytest.approx(angle * 89 / 90, abs=0.05)

    def test_keeps_poses_speed_and_start(self):
        walk = procedural_walk(60, turn=0.2)
        bent = compose.bend(walk, torch.linspace(-1, 1, 60))
        assert torch.equal(bent.rotations[:, 1:], walk.rotations[:, 1:])
        assert torch.equal(bent.root[0], walk.root[0])
        assert torch.allclose(bent.root[:, 1], walk.root[:, 1], atol=1e-5)
        one, two = (torch.diff(m.root, dim=0).norm(dim=-1) for m in (walk, bent))
        assert torch.allclose(one, two, atol=1e-5)

    def test_no_rate_no_change(self, walk):
        assert torch.allclose(compose.bend(walk, torch.zeros(90)).positions, walk.positions, atol=1e-5)


class TestReverseAndHold:
    def test_reverse(self, walk):
        assert torch.equal(compose.reverse(walk).positions, walk.positions.flip(0))
        assert torch.equal(compose.reverse(compose.reverse(walk)).root, walk.root)

    @pytest.mark.parametrize("frames", [1, 5, 10, 11, 200])
    def test_hold_goes_to_and_fro(self, walk, frames):
        short = walk.crop(0, 10)
        held = compose.hold(short, frames)
        assert held.num_frames == frames
        count = min(frames, 10)
        assert torch.equal(held.root[:count], short.root[:count])
        if frames == 200:
            assert torch.equal(held.root[9:19], short.root.flip(0)) and torch.equal(held.root[18:28], short.root)
        assert frames == 1 or steps(held).max() <= steps(short).max() + 1e-4

    def test_hold_needs_two_frames(self, walk):
        with pytest.raises(VadisError, match="at least two frames"):
            compose.hold(walk.crop(0, 1), 10)


class TestJoin:
    def test_a_cut_in_the_same_walk_is_found(self):
        walk = procedural_walk(150, turn=0.0)
        joined, seam, distance = compose.join(walk.crop(0, 80), walk.crop(60, 150))
        assert distance < 0.02
        assert 50 <= seam <= 80 and steps(joined).max() < 1.15 * steps(walk).max()
        assert joined.num_frames == pytest.approx(150, abs=1)
        assert (joined.positions[-1] - walk.positions[-1]).norm(dim=-1).max() < 0.1

    def test_place_and_heading_carry_over(self):
        first = procedural_walk(90, turn=0.5)
        second = procedural_walk(90, turn=-0.3).transform(rotation.yaw(torch.tensor(2.0)), torch.tensor([9.0, 0, 4.0]))
        joined, seam, _ = compose.join(first, second)
        assert torch.equal(joined.root[: seam - 20], first.root[: seam - 20])
        assert torch.diff(body_heading(joined.positions)).abs().max() < 0.25
        assert torch.diff(joined.root, dim=0).norm(dim=-1).max() * 30 < 2.2

    def test_distance_tells_how_alike_the_ends_are(self, walk):
        upside_down = walk.transform(rotation.from_rotvec(torch.tensor([math.pi, 0, 0])), torch.zeros(3))
        assert compose.join(walk, walk)[2] < 0.1 < 0.5 < compose.join(walk, upside_down)[2]

    def test_too_short(self, walk):
        with pytest.raises(VadisError, match="parts of at least 16 frames; got 10 and 90"):
            compose.join(walk.crop(0, 10), walk)

    def test_descriptor_does_not_see_place_and_heading(self, walk):
        moved = walk.transform(rotation.yaw(torch.tensor(1.2)), torch.tensor([4.0, 0.0, -3.0]))
        assert compose.descriptor(walk).shape == (90, 132)
        assert torch.allclose(compose.descriptor(walk), compose.descriptor(moved), atol=1e-3)


class TestLoop:
    @pytest.mark.parametrize("frames", [40, 200, 407])
    def test_length_and_seams(self, frames):
        walk = procedural_walk(75, turn=0.1)
        looped = compose.loop(walk, frames)
        assert looped is not None and looped.num_frames == frames
        assert steps(looped).max() < 1.3 * steps(walk).max()
        pace = torch.diff(looped.root[:, [0, 2]], dim=0).norm(dim=-1) * 30
        assert pace.min() > 0.8 and pace.max() < 1.8

    def test_motions_that_never_meet_themselves(self):
        walk = procedural_walk(60, turn=0.0)
        fall = torch.linspace(0, 1.5, 60)[:, None] * torch.tensor([-1.0, 0.0, 0.0])
        rotations = walk.rotations.clone()
        rotations[:, 0] = rotation.from_rotvec(fall) @ rotations[:, 0]
        assert compose.loop(walk.replace(rotations=rotations), 300) is None


class TestBorrowArms:
    @pytest.mark.parametrize("sides", [("left",), ("right",), ("left", "right")])
    def test_only_those_arms_change(self, sides):
        base = procedural_walk(120, turn=0.0)
        arms = procedural_walk(60)
        raised = arms.rotations.clone()
        for side, sign in (("left", 1.0), ("right", -1.0)):
            raised[:, SMPL22_NAMES.index(f"{side}_shoulder")] = rotation.from_rotvec(torch.tensor([0.0, 0.0, sign]))
        mixed = compose.borrow_arms(base, arms.replace(rotations=raised), sides)
        joints = [j for side in sides for j in compose.ARMS[side]]
        others = [j for j in range(22) if j not in joints]
        assert torch.equal(mixed.root, base.root) and torch.equal(mixed.rotations[:, others], base.rotations[:, others])
        assert torch.equal(mixed.rotations[:30], base.rotations[:30]) and torch.equal(
            mixed.rotations[90:], base.rotations[90:]
        )
        assert torch.allclose(mixed.rotations[60][joints], raised[30][joints], atol=1e-4)
        assert steps(mixed).max() < 8
        assert torch.equal(base.rotations, procedural_walk(120, turn=0.0).rotations)

    def test_arms_that_are_too_long(self, walk):
        with pytest.raises(VadisError, match="longer than the motion"):
            compose.borrow_arms(walk.crop(0, 30), walk, ("left",))

    def test_very_short_arms_still_fit(self, walk):
        assert compose.borrow_arms(walk, walk.crop(0, 2), ("left",)).num_frames == 90
