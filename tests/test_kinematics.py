"""The kinematic plan: every attribute on motions whose numbers are known, and its symmetries."""

import math

import pytest
import torch
from conftest import procedural_walk

from vadis import rotation
from vadis.errors import ShapeError
from vadis.kinematics import ATTRIBUTES, PLAN_ROWS, body_heading, kinematic_plan, mirror_plan
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, smpl22

J = {name: j for j, name in enumerate(SMPL22_NAMES)}


def still(frames: int = 61, fps: float = 30.0) -> Motion:
    """The T-pose with the soles on the floor."""
    return Motion(smpl22(), torch.zeros(frames, 3), torch.eye(3).expand(frames, 22, 3, 3), fps).canonicalize()


def plan(motion: Motion, row: int = 0) -> dict[str, float]:
    return dict(zip(ATTRIBUTES, kinematic_plan(motion.positions, motion.fps)[row].tolist(), strict=True))


def moved(motion: Motion, velocity: tuple[float, float, float]) -> Motion:
    t = torch.arange(motion.num_frames)[:, None] / motion.fps
    return motion.replace(root=motion.root + t * torch.tensor(velocity))


def test_shape_rows_and_bad_input():
    values = kinematic_plan(procedural_walk().positions, 30)
    assert values.shape == (PLAN_ROWS, len(ATTRIBUTES)) == (5, 33) and values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert kinematic_plan(procedural_walk(8).positions.double(), 30).dtype == torch.float32
    for shape in ((7, 22, 3), (20, 21, 3), (20, 22, 2), (2, 20, 22, 3)):
        with pytest.raises(ShapeError, match="T >= 8, 22, 3"):
            kinematic_plan(torch.zeros(shape), 30)


@pytest.mark.parametrize("facing", [0.0, 1.0, -2.5])
def test_speeds_and_distances_are_those_of_the_body(facing):
    body = moved(still(), (0.5, 0.0, 1.0)).transform(rotation.yaw(torch.tensor(facing)), torch.tensor([3.0, 1.0, -4.0]))
    v = plan(body)
    assert v["forward_speed"] == pytest.approx(1.0, abs=1e-3) and v["left_speed"] == pytest.approx(0.5, abs=1e-3)
    assert v["speed"] == pytest.approx(math.hypot(1, 0.5), abs=1e-3)
    assert v["forward_distance"] == pytest.approx(2.0, abs=1e-3) and v["left_distance"] == pytest.approx(1.0, abs=1e-3)
    assert v["yaw"] == pytest.approx(0, abs=1e-4) and v["seconds"] == pytest.approx(61 / 30)
    quarter = plan(body, 2)
    assert quarter["forward_distance"] == pytest.approx(0.5, abs=1e-3)
    assert quarter["forward_speed"] == pytest.approx(1.0, abs=1e-3)


def test_turning_left_is_positive_and_sums_over_quarters():
    body = still()
    turn = rotation.yaw(torch.linspace(0, 7.0, 61))
    body = body.replace(rotations=torch.cat([turn[:, None], body.rotations[:, 1:]], dim=1))
    values = kinematic_plan(body.positions, 30)[:, ATTRIBUTES.index("yaw")]
    assert values[0] == pytest.approx(7.0, abs=1e-3) and values[1:].sum() == pytest.approx(7.0, abs=1e-3)
    assert plan(body.mirror())["yaw"] == pytest.approx(-7.0, abs=1e-3)
    assert plan(body)["absolute_yaw"] == plan(body.mirror())["absolute_yaw"] == pytest.approx(7.0, abs=1e-3)
    assert body_heading(body.positions)[-1] == pytest.approx(7.0, abs=1e-3)


def test_heights_and_poses_at_rest():
    v = plan(still())
    rest = smpl22().rest_positions
    floor = float(rest[:, 1].min())
    for name in ("pelvis_height", "pelvis_height_min", "pelvis_height_max"):
        assert v[name] == pytest.approx(-floor, abs=1e-4)
    assert v["head_height_min"] == pytest.approx(float(rest[J["head"], 1]) - floor, abs=1e-4)
    assert v["airborne"] == 0 and v["flight_height"] == pytest.approx(0, abs=1e-4)
    assert v["left_hand_height"] == pytest.approx(float(rest[J["left_wrist"], 1]), abs=1e-4)
    assert v["left_hand_out"] == v["right_hand_out"] == pytest.approx(float(rest[J["left_wrist"], 0]), abs=1e-4)
    assert v["hands_distance"] == pytest.approx(2 * v["left_hand_out"], abs=1e-4)
    assert v["feet_distance_max"] == pytest.approx(2 * float(rest[J["left_foot"], 0]), abs=1e-4)
    assert (
        v["upright_min"] == pytest.approx(1, abs=1e-3) and abs(v["lean_forward"]) < 0.05 and abs(v["lean_left"]) < 1e-4
    )
    assert max(v[f"{s}_{p}_speed"] for s in ("left", "right") for p in ("hand", "foot")) < 1e-3


def test_flight_is_counted_in_time_and_height():
    body = still()
    root = body.root.clone()
    root[20:35, 1] += 0.4
    v = plan(body.replace(root=root))
    assert v["airborne"] == pytest.approx(15 / 61, abs=1e-3)
    assert v["flight_height"] == pytest.approx(0.4, abs=1e-3)
    assert v["pelvis_height_max"] - v["pelvis_height_min"] == pytest.approx(0.4, abs=1e-3)


def test_hand_speed_ignores_walking_and_turning():
    body = moved(still(), (0.0, 0.0, 1.5))
    turn = rotation.yaw(torch.linspace(0, 1.0, 61))
    body = body.replace(rotations=torch.cat([turn[:, None], body.rotations[:, 1:]], dim=1))
    assert plan(body)["left_hand_speed"] < 0.02
    rotations = still().rotations.clone()
    swing = torch.zeros(61, 3)
    swing[:, 2] = torch.linspace(0, 1.0, 61)  # the left arm rises by a radian in two seconds
    rotations[:, J["left_shoulder"]] = rotation.from_rotvec(swing)
    v = plan(still().replace(rotations=rotations))
    arm = float(smpl22().offsets[J["left_elbow"], 0] + smpl22().offsets[J["left_wrist"], 0])
    assert v["left_hand_speed"] == pytest.approx(arm / 2, rel=0.01) and v["right_hand_speed"] < 1e-3
    assert v["left_hand_height_max"] - v["right_hand_height_max"] == pytest.approx(arm * math.sin(1.0), abs=1e-3)


def test_mirrored_motion_has_the_mirrored_plan():
    walk = procedural_walk(turn=0.6)
    there, back = plan(walk), plan(walk.mirror())
    for name, value in there.items():
        other = name.replace("left", "right") if name.startswith("left_hand") or name.startswith("left_foot") else name
        other = name.replace("right", "left") if name.startswith("right") else other
        sign = -1 if name in ("left_speed", "left_distance", "yaw", "lean_left") else 1
        assert back[other] == pytest.approx(sign * value, abs=1e-3), name


def test_frame_rate_does_not_matter_much():
    slow, fast = plan(procedural_walk(90)), plan(procedural_walk(90).resample(120))
    for name in set(ATTRIBUTES) - {"seconds"}:
        assert fast[name] == pytest.approx(slow[name], abs=0.06), name


def test_leaning_and_lying():
    body = still()
    forward = body.rotations.clone()
    forward[:, 0] = rotation.from_rotvec(torch.tensor([0.5, 0.0, 0.0]))
    v = plan(body.replace(rotations=forward))
    assert v["lean_forward"] == pytest.approx(math.sin(0.5), abs=0.05) and v["upright_min"] == pytest.approx(
        math.cos(0.5), abs=0.05
    )
    forward[:, 0] = rotation.from_rotvec(torch.tensor([0.0, 0.0, -0.5]))  # towards the body's left
    assert plan(body.replace(rotations=forward))["lean_left"] == pytest.approx(math.sin(0.5), abs=0.05)
    forward[:, 0] = rotation.from_rotvec(torch.tensor([math.pi, 0.0, 0.0]))
    assert plan(body.replace(rotations=forward))["upright_min"] == pytest.approx(-1, abs=0.01)


def test_a_mirrored_plan_is_the_plan_of_the_mirrored_motion() -> None:
    walk = procedural_walk(90, turn=0.8)
    mirrored = kinematic_plan(walk.mirror().positions, walk.fps)
    torch.testing.assert_close(mirror_plan(kinematic_plan(walk.positions, walk.fps)), mirrored, atol=1e-4, rtol=0)
