"""Roads between representations: what they keep, what their report says, and `vadis convert --report`."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis import rotation
from vadis.cli import main
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.representations.conversions import compare, convert, lay_on, resample_joints
from vadis.skeleton import smpl22

NAMES = ("ms272", "ms272_absroot", "vimogen276", "smpl135", "motionclip135", "hml263", "kit251")
KEEPS_ROTATIONS = NAMES[:5]


def features_of(name: str, seconds: float = 2.0) -> torch.Tensor:
    rep = vadis.representation(name)
    return rep.encode(procedural_walk(round(seconds * rep.fps), rep.fps, 0.6))


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_every_road(source: str, target: str) -> None:
    """Each pair gives the target's features at its rate, and a report that agrees with them."""
    x = features_of(source)
    made, report, _ = convert(x, source, target, skeleton=smpl22())
    goal = vadis.representation(target)
    goal.check(made, 2)
    assert made.dtype == torch.float32 and bool(torch.isfinite(made).all())
    assert (report.frames_in, report.frames_out, report.fps_out) == (len(x), len(made), goal.fps)
    assert abs(len(made) / goal.fps - len(x) / vadis.representation(source).fps) < 0.2
    assert report.route[0] == source and report.route[-1] == target and str(report).startswith(source)
    if report.lossless:
        assert not report.dropped and not report.made_up
    elif {source, target} & {"hml263", "kit251"}:
        assert report.dropped or report.made_up
        assert report.rotation_error_mean_deg is None
    if report.joint_error_mean_mm is not None:
        limit = 100 if target in ("hml263", "kit251") else 15 if source == "kit251" else 3
        assert 0 <= report.joint_error_mean_mm < limit
        assert report.joint_error_mean_mm <= report.joint_error_max_mm
    assert report.to_dict()["target"] == target


@pytest.mark.parametrize("source", KEEPS_ROTATIONS)
@pytest.mark.parametrize("target", KEEPS_ROTATIONS)
def test_roads_at_one_rate_and_back(source: str, target: str) -> None:
    """At the same frame rate nothing but the last frame is lost between formats that hold joints or bones and rotations."""
    x = features_of(source)
    there = convert(x, source, target, fps=25, fps_out=25, skeleton=smpl22())
    back = convert(there.features, target, source, fps=25, fps_out=25, skeleton=there.skeleton or smpl22())
    torch.testing.assert_close(back.features, x[: len(back.features)], atol=2e-4, rtol=0)
    assert len(x) - len(back.features) == [source, target].count("vimogen276") * (source != target)
    if there.report.joint_error_max_mm is not None:
        assert there.report.joint_error_max_mm < 0.05 and there.report.rotation_error_max_deg < 0.1


def test_stored_joints_and_rotations_are_both_kept() -> None:
    """A network's 272 whose joints and rotations disagree gives a 276 that disagrees alike; the report says by how much."""
    x = features_of("ms272")
    x[:, 8:74] *= 1 + 0.02 * torch.sin(torch.arange(66.0))
    made = convert(x, "ms272", "vimogen276", fps_out=30)
    ours = vadis.representation("vimogen276")
    _, aligned = lay_on(
        ours.positions(made.features).double(), vadis.representation("ms272").positions(x)[:-1].double()
    )
    torch.testing.assert_close(aligned, vadis.representation("ms272").positions(x)[:-1].double(), atol=1e-4, rtol=0)
    assert made.report.blocks_differ_mm > 1
    assert "disagree" in str(made.report)
    clean = convert(features_of("ms272"), "ms272", "vimogen276")
    assert clean.report.blocks_differ_mm < 0.01


def test_joints_from_rotations_on_another_body() -> None:
    tall = smpl22().with_offsets(smpl22().offsets * 1.2)
    x = features_of("ms272")
    plain = convert(x, "ms272", "vimogen276", joints_from="rotations", fps_out=30)
    posed = convert(x, "ms272", "vimogen276", joints_from="rotations", skeleton=tall, fps_out=30)
    assert plain.report.bones == "measured from the clip" and posed.report.bones == "the given skeleton"
    rep = vadis.representation("vimogen276")
    torch.testing.assert_close(rep.estimate_skeleton(posed.features).offsets, tall.offsets, atol=1e-5, rtol=0)
    torch.testing.assert_close(rep.estimate_skeleton(plain.features).offsets, smpl22().offsets, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("frames", "fps", "out", "count"), [(120, 30, 20, 80), (91, 30, 20, 61), (90, 30, 20, 60), (10, 60, 20, 4), (7, 40, 20, 4), (5, 20, 40, 9), (1, 30, 20, 1)]
)  # fmt: skip
def test_resampled_joints(frames: int, fps: float, out: float, count: int) -> None:
    t = torch.arange(frames, dtype=torch.float64) / fps
    joints = (t[:, None, None] * torch.tensor([1.0, -2.0, 0.5])).expand(frames, 22, 3)
    made = resample_joints(joints, fps, out)
    assert len(made) == count
    expected = (torch.arange(count, dtype=torch.float64) / out).clamp(max=float(t[-1]))
    torch.testing.assert_close(made[:, 0, 0], expected, atol=1e-9, rtol=0)
    if fps % out == 0:
        torch.testing.assert_close(made, joints[:: int(fps / out)])


def test_laying_on_finds_turn_and_shift() -> None:
    joints = procedural_walk(20).positions.double()
    turn = rotation.yaw(torch.tensor(-2.0, dtype=torch.float64))
    found, aligned = lay_on(joints @ turn.T + torch.tensor([1.0, -3.0, 2.0]), joints)
    torch.testing.assert_close(found, turn.T, atol=1e-9, rtol=0)
    torch.testing.assert_close(aligned, joints, atol=1e-9, rtol=0)


def test_what_is_refused() -> None:
    x = features_of("smpl135")
    with pytest.raises(VadisError, match="holds no bone lengths: pass skeleton="):
        convert(x, "smpl135", "ms272")
    with pytest.raises(VadisError, match="no representation 'smpl136'"):
        convert(x, "smpl136", "ms272")
    with pytest.raises(VadisError, match="use vadis.representation"):
        convert(x, "ms272", "smpl135")
    with pytest.raises(VadisError, match="must be positive"):
        convert(x, "smpl135", "motionclip135", fps=-1)
    with pytest.raises(VadisError, match="1 of 60 frames hold NaN"):
        convert(x.index_fill(0, torch.tensor([3]), math.nan), "smpl135", "motionclip135")
    with pytest.raises(VadisError, match="'positions' or 'rotations'"):
        convert(features_of("ms272"), "ms272", "hml263", joints_from="joints")  # type: ignore[arg-type]


def test_compared_motions() -> None:
    walk = procedural_walk(30)
    same = compare(walk, walk.transform(rotation.yaw(torch.tensor(1.0)), torch.tensor([1.0, 2.0, 3.0])), ".bvh")
    assert same.lossless and same.bones == "kept" and same.rotation_error_max_deg < 0.05
    bent = walk.rotations.clone()
    bent[:, 20] = bent[:, 20] @ rotation.from_rotvec(torch.tensor([0.1, 0.0, 0.0]))
    lost = compare(walk, walk.replace(rotations=bent).crop(0, 25), ".npz")
    assert not lost.lossless and abs(lost.rotation_error_max_deg - math.degrees(0.1)) < 0.05
    assert lost.dropped == ("the last 5 frame(s)",)


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def walk_bvh(walk: Motion, tmp_path: Path) -> Path:
    walk.save(tmp_path / "walk.bvh")
    return tmp_path / "walk.bvh"


def test_convert_says_what_was_lost(walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", walk_bvh, tmp_path / "a.npy", "--to", "vimogen276", "--report") == 0
    out = capsys.readouterr().out
    assert "motion → vimogen276: lossy" in out and "dropped     the last 1 frame(s) of 60" in out
    assert run("convert", walk_bvh, tmp_path / "b.bvh", "--report") == 0
    assert ".bvh: lossless" in capsys.readouterr().out
    assert run("convert", walk_bvh, tmp_path / "b.png", "--report") == 2
    assert "can't be read back" in capsys.readouterr().err


def test_convert_features_straight(walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """272 to 135 and back to 272 is exact through files: sidecars carry the bones."""
    assert run("convert", walk_bvh, tmp_path / "a.npy", "--to", "ms272") == 0
    assert run("convert", tmp_path / "a.npy", tmp_path / "b.npy", "--to", "motionclip135", "--report") == 0
    out = capsys.readouterr().out
    assert "dropped     body shape" in out
    assert run("convert", tmp_path / "b.npy", tmp_path / "c.npy", "--to", "ms272", "--report") == 0
    assert "ms272: lossless" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "c.npy"), np.load(tmp_path / "a.npy"), atol=1e-4)
    (tmp_path / "b.npy.json").unlink()
    assert run("convert", tmp_path / "b.npy", tmp_path / "d.npy", "--to", "hml263") == 0
    assert "posing the body of vadis" in capsys.readouterr().err
    assert run("convert", tmp_path / "a.npy", tmp_path / "e.npy", "--to", "hml263", "--resample", 25) == 2
    assert "defined at 20 frames/s" in capsys.readouterr().err
    assert vadis.load_motion(tmp_path / "b.npy").meta["representation"] == "motionclip135"
