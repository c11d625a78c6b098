"""ViMoGen-276, motion-135 and MotionVLA's literal converter: layouts, round trips, mirroring, recognition, errors."""

import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis import representations, rotation
from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.representations import motionvla
from vadis.representations.smpl135 import SMPL135
from vadis.representations.vimogen276 import REST_PELVIS, ViMoGen276
from vadis.skeleton import smpl22

NAMES = ("vimogen276", "smpl135", "motionclip135")
REP = ViMoGen276()


def features_of(name: str, frames: int = 60, turn: float = 0.7) -> torch.Tensor:
    rep = vadis.representation(name)
    return rep.encode(procedural_walk(frames, rep.fps, turn))


@pytest.mark.parametrize("name", NAMES)
def test_slices_cover_every_column_once(name: str) -> None:
    rep = vadis.representation(name)
    assert [c for s in rep.slices.values() for c in range(s.start, s.stop)] == list(range(rep.dim))
    assert [c for s in rep.groups for c in range(s.start, s.stop)] == list(range(rep.dim))
    assert rep.name == name


@pytest.mark.parametrize("name", NAMES)
def test_mirroring(name: str) -> None:
    """Mirrored features are those of the mirrored motion, and twice is the identity."""
    rep = vadis.representation(name)
    motion = procedural_walk(40, rep.fps, 0.9)
    x = rep.encode(motion)
    once = rep.mirror(x)
    torch.testing.assert_close(rep.mirror(once), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(once, rep.encode(motion.mirror()), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_features_give_the_motion_back(name: str) -> None:
    rep = vadis.representation(name)
    motion = procedural_walk(50, rep.fps)
    again = rep.decode(rep.encode(motion))
    kept = motion.crop(0, again.num_frames).canonicalize()
    torch.testing.assert_close(again.canonicalize().positions, kept.positions, atol=1e-4, rtol=0)
    torch.testing.assert_close(again.rotations[:, 1:], kept.rotations[:, 1:], atol=1e-5, rtol=0)
    x = rep.encode(motion)
    torch.testing.assert_close(rep.encode(rep.decode(x)), x[: len(x) - (name == "vimogen276")], atol=1e-4, rtol=0)


def test_where_a_276_body_stands() -> None:
    """Z up, the pelvis above the origin, facing +Y with the left side towards -X, the lowest joint at height 0."""
    walk = procedural_walk(40, 20.0)
    moved = walk.transform(rotation.yaw(torch.tensor(2.1)), torch.tensor([3.0, 0.7, -5.0]))
    x = REP.encode(moved)
    torch.testing.assert_close(x, REP.encode(walk), atol=2e-5, rtol=0)
    joints = x[:, REP.slices["joint_positions"]].unflatten(-1, (22, 3))
    across = joints[0, 2] - joints[0, 1]
    assert across[0] > 0.1 and abs(float(across[1])) < 1e-6
    torch.testing.assert_close(joints[0, 0, :2], torch.zeros(2), atol=1e-6, rtol=0)
    assert abs(float(joints[..., 2].min())) < 0.02  # the last frame, which isn't stored, may have been the lowest
    pelvis = x[:, REP.slices["translation"]] + torch.tensor(REST_PELVIS)
    torch.testing.assert_close(pelvis, joints[:, 0], atol=1e-6, rtol=0)
    held = REP.encode(walk, floor=False)[:, REP.slices["joint_positions"]]
    torch.testing.assert_close(held[0, :3], torch.zeros(3), atol=1e-6, rtol=0)


def test_steps_lead_to_the_next_row_and_beyond() -> None:
    x = features_of("vimogen276").double()
    direct, summed = REP.body(x), REP.body(x, integrate=True)
    for a, b in zip(direct, summed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    longer, whole = REP.body(x[:-1], last_frame=True), REP.body(x)
    assert len(longer.joints) == len(x)
    torch.testing.assert_close(longer.joints, whole.joints, atol=1e-6, rtol=0)
    torch.testing.assert_close(longer.root, whole.root, atol=1e-5, rtol=0)
    torch.testing.assert_close(longer.local[-1], longer.local[-2])
    torch.testing.assert_close(REP.positions(x, integrate=True), REP.positions(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(REP.positions(x[None])[0], REP.positions(x))


def test_positions_as_the_source_of_truth() -> None:
    walk = procedural_walk(40, 20.0)
    longer = walk.replace(skeleton=walk.skeleton.with_offsets(walk.skeleton.offsets * 1.1))
    x = REP.encode(longer)
    torch.testing.assert_close(REP.estimate_skeleton(x).offsets, longer.skeleton.offsets, atol=1e-5, rtol=0)
    motion = REP.decode(x, source="positions")
    torch.testing.assert_close(motion.positions, REP.positions(x), atol=2e-5, rtol=0)


def test_a_camera_s_view_is_turned_upright() -> None:
    """The camera looks along z with y down: a body upright in it stands along z of the features."""
    walk = procedural_walk(20, 20.0)
    camera = torch.tensor([[-1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]])  # from Y up, facing the camera
    root, joints = camera @ walk.rotations[:, 0], walk.positions @ camera.T
    _, upright, translation = REP.from_camera(root, joints, joints[:, 0] - torch.tensor(REST_PELVIS))
    assert bool(((upright[:, 15] - upright[:, 0])[:, 2] > 0.3).all())
    torch.testing.assert_close(translation, upright[:, 0] - torch.tensor(REST_PELVIS), atol=1e-6, rtol=0)


def test_the_two_135_layouts_hold_the_same_numbers() -> None:
    a, b = SMPL135("smpl135"), SMPL135("motionclip135")
    x = features_of("smpl135")
    y = features_of("motionclip135")
    assert torch.equal(a.to_layout(x, "motionclip135"), y) and torch.equal(b.to_layout(y, "smpl135"), x)
    assert torch.equal(a.to_layout(x, "smpl135"), x) and not torch.equal(x, y)
    matrix = rotation.from_rotvec(torch.tensor([0.3, -0.8, 0.5]))
    local = matrix.expand(1, 22, 3, 3)
    root = torch.zeros(1, 3)
    assert a.encode_arrays(local, root)[0, 3:9].tolist() == matrix[:, :2].flatten().tolist()
    assert b.encode_arrays(local, root)[0, 3:9].tolist() == matrix.T[:2].flatten().tolist()
    with pytest.raises(VadisError, match="no 135 layout 'rows'"):
        a.to_layout(x, "rows")


def test_a_135_motion_may_stay_where_it_is() -> None:
    walk = procedural_walk(30).transform(rotation.yaw(torch.tensor(1.0)), torch.tensor([1.0, 0.2, 3.0]))
    rep = SMPL135()
    kept = rep.decode(rep.encode(walk, canonical=False))
    torch.testing.assert_close(kept.positions, walk.positions, atol=1e-5, rtol=0)
    assert rep.encode(walk)[0, [0, 2]].abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_encoded_features_are_recognised(name: str) -> None:
    found = representations.guess(features_of(name))
    assert found[0].name == name and found[0].confidence > 0.9
    if name == "vimogen276":
        x = features_of(name)
        normal = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
        assert "normalised" in representations.guess(normal)[0].reason


def test_motionvla_numbers_come_back_displaced() -> None:
    x = features_of("vimogen276")
    base, physical = motionvla.from_vimogen276(x)
    assert base.shape == (len(x), 263) and physical.shape == (len(x), 18)
    back = motionvla.to_vimogen276(base, physical)
    joints = REP.slices["joint_positions"]
    lost = (back - x)[:, joints].unflatten(-1, (22, 3))
    torch.testing.assert_close(lost, -torch.tensor(REST_PELVIS).expand_as(lost), atol=1e-5, rtol=0)
    back[:, joints] = x[:, joints]
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    with pytest.raises(ShapeError, match="18"):
        motionvla.to_vimogen276(base, physical[:, :6])


def test_errors_name_the_cure(walk: Motion) -> None:
    with pytest.raises(VadisError, match=r"motion\.resample\(20\)"):
        REP.encode(walk)
    with pytest.raises(ShapeError, match="2 frames or more"):
        REP.encode(procedural_walk(1, 20.0))
    with pytest.raises(ShapeError, match=r"rotations \(T, 22, 3, 3\)"):
        REP.encode_arrays(torch.zeros(5, 22, 3, 3), torch.zeros(5, 21, 3))
    with pytest.raises(ShapeError, match="vimogen276"):
        vadis.representation("smpl135").decode(features_of("vimogen276"))
    with pytest.raises(VadisError, match="'rotations' or 'positions'"):
        REP.decode(features_of("vimogen276"), source="joints")  # type: ignore[arg-type]
    with pytest.raises(VadisError, match="rotations only"):
        SMPL135().decode(features_of("smpl135"), source="positions")
    flat = procedural_walk(5, 20.0)
    offsets = smpl22().offsets.clone()
    offsets[[1, 2], 0] = 0
    with pytest.raises(VadisError, match="hips of frame 0"):
        REP.encode(flat.replace(skeleton=smpl22().with_offsets(offsets), rotations=torch.eye(3).expand(5, 22, 3, 3)))
