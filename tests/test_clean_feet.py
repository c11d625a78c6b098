"""Foot-slide clean-up: it stops sliding feet, spares good motion, keeps bones, and works on any frame rate and skeleton."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk
from torch import Tensor

import vadis
from vadis import rotation
from vadis.cli import main
from vadis.errors import SkeletonError, VadisError
from vadis.metrics.physical import physical_metrics
from vadis.motion import Motion
from vadis.motion_editing import FootContact, clean_feet, smooth_motion
from vadis.motion_editing.feet import contact_weights, floor_height, resting_heights
from vadis.motion_editing.legs import bend, find_legs, leg_lengths, place_feet
from vadis.skeleton import Skeleton, smpl22

TOES, ANKLES = [10, 11], [7, 8]


def step_in_place(frames: int = 120, fps: float = 30.0, lift: float = 0.25) -> Motion:
    """A body that stands with bent knees and lifts its feet in turn; the other foot rests exactly where it is."""
    t = torch.arange(frames) / fps
    vectors = torch.zeros(frames, 22, 3)
    vectors[:, [1, 2], 0], vectors[:, [4, 5], 0], vectors[:, ANKLES, 0] = -0.3, 0.6, -0.3
    base = Motion(smpl22(), torch.zeros(frames, 3), rotation.from_rotvec(vectors), fps)
    base = base.replace(root=base.root - base.positions[..., 1].min() * torch.tensor([0.0, 1.0, 0.0]))
    goal = base.positions[:, ANKLES].double().clone()
    up = lift * torch.sin(math.pi * t[:, None] + math.pi * torch.tensor([0.0, 1.0])).clamp_min(0) ** 2
    goal[..., 1] += up
    legs = find_legs(smpl22())
    turned = place_feet(base.rotations.double(), base.root.double(), smpl22(), legs, goal)
    return base.replace(rotations=turned.float())


def slip(motion: Motion, speed: float = 0.2) -> Motion:
    """The motion on a floor that carries it along at so many m/s."""
    drift = torch.arange(motion.num_frames)[:, None] / motion.fps * torch.tensor([speed, 0.0, 0.0])
    return motion.replace(root=motion.root + drift)


def slide_of(motion: Motion) -> float:
    """Mean horizontal speed in m/s of toes within 2 cm of their lowest height."""
    toes = motion.positions[:, TOES]
    speed = torch.diff(toes[..., [0, 2]], dim=0).norm(dim=-1) * motion.fps
    return float(speed[toes[1:, :, 1] < toes[..., 1].amin() + 0.02].mean())


def bones_of(motion: Motion) -> Tensor:
    return torch.stack([(motion.positions[:, j] - motion.positions[:, p]).norm(dim=-1) for j, p in enumerate(motion.skeleton.parents) if p >= 0])  # fmt: skip


@pytest.mark.parametrize("fps", [20.0, 30.0, 60.0, 120.0])
def test_sliding_feet_stop_at_any_frame_rate(fps: float) -> None:
    good = step_in_place(round(4 * fps), fps)
    damaged = slip(good)
    assert slide_of(good) < 0.01 and slide_of(damaged) > 0.15
    cleaned = clean_feet(damaged)
    assert slide_of(cleaned) < 0.35 * slide_of(damaged)
    assert cleaned.fps == fps and cleaned.num_frames == damaged.num_frames
    torch.testing.assert_close(bones_of(cleaned), bones_of(damaged), atol=1e-5, rtol=0)


@pytest.mark.parametrize("smooth", [None, 4.0])
def test_good_motion_stays(smooth: float | None) -> None:
    good = step_in_place()
    moved = (clean_feet(good, smooth=smooth).positions - good.positions).norm(dim=-1)
    assert float(moved.mean()) < 0.004 and float(moved.max()) < 0.06


def test_cleaning_twice_changes_little_more() -> None:
    once = clean_feet(slip(step_in_place(), 0.15), smooth=None)
    first = (once.positions - slip(step_in_place(), 0.15).positions).norm(dim=-1).mean()
    second = (clean_feet(once, smooth=None).positions - once.positions).norm(dim=-1).mean()
    assert float(second) < 0.5 * float(first)


def test_noise_is_taken_out_and_speed_is_kept() -> None:
    walk = procedural_walk(120)
    g = torch.Generator().manual_seed(0)
    shaken = rotation.from_rotvec(0.03 * torch.randn(120, 22, 3, generator=g)) @ walk.rotations
    root = walk.root + 0.003 * torch.randn(120, 3, generator=g)
    noisy = walk.replace(rotations=shaken, root=root)
    before, after = (physical_metrics([m.positions.numpy()]).table() for m in (noisy, clean_feet(noisy)))
    assert after["Jitter"] < 0.4 * before["Jitter"]
    real = physical_metrics([walk.positions.numpy()]).table()["Dynamic"]
    assert abs(after["Dynamic"] - real) < abs(before["Dynamic"] - real)


def test_smoothing_leaves_slow_motion_alone() -> None:
    t = torch.arange(150) / 30.0
    vectors = torch.zeros(150, 22, 3)
    vectors[:, 16, 2] = 0.5 * torch.sin(2 * math.pi * 0.8 * t)
    slow = Motion(smpl22(), torch.zeros(150, 3), rotation.from_rotvec(vectors), 30.0)
    torch.testing.assert_close(smooth_motion(slow, 4.0).positions, slow.positions, atol=2e-3, rtol=0)
    vectors[:, 16, 2] = 0.1 * torch.sin(2 * math.pi * 12 * t)
    fast = slow.replace(rotations=rotation.from_rotvec(vectors))
    assert float(smooth_motion(fast, 4.0).positions[20:-20, 20].std(0).max()) < 0.05 * float(
        fast.positions[:, 20].std(0).max()
    )
    assert smooth_motion(slow, 15.0) is slow and smooth_motion(slow.crop(0, 3), 4.0).num_frames == 3
    with pytest.raises(VadisError, match="positive number of hertz"):
        smooth_motion(slow, 0.0)


def test_nothing_below_the_floor_and_swinging_feet_clear_it() -> None:
    good = step_in_place(lift=0.01)
    dragging = slip(good, 1.5)  # feet that are carried along at 1.5 m/s swing, however low
    toes = clean_feet(dragging, smooth=None).positions[15:-15, TOES, 1]
    assert float(toes.min() - good.positions[:, TOES, 1].min()) > 0.015
    sunk = good.replace(root=good.root - torch.tensor([0.0, 0.05, 0.0]))
    lifted = clean_feet(sunk, smooth=None, floor=0.0).positions[..., 1].min()
    assert float(lifted) > float(sunk.positions[..., 1].min()) + 0.03


def test_contacts_are_in_metres_and_seconds() -> None:
    good = step_in_place()
    legs = find_legs(good.skeleton)
    rest = resting_heights(good, legs)
    joints = good.positions.double()
    feet = torch.stack([joints[:, list(legs.ankle)], joints[:, list(legs.toe)]], dim=2)
    floor = floor_height(feet, rest)
    weights = contact_weights(feet, floor + rest, good.fps, FootContact())
    up = feet[..., 1, 1] > floor + 0.1
    assert float(weights[~up].mean()) > 0.8 and float(weights[up].mean()) < 0.4
    twice = contact_weights(feet[::2], floor + rest, good.fps / 2, FootContact())
    assert float((twice - weights[::2]).abs().mean()) < 0.05


def test_legs_reach_their_targets() -> None:
    walk = procedural_walk(30)
    legs = find_legs(walk.skeleton)
    joints = walk.positions.double()
    ankles = joints[:, list(legs.ankle)] + torch.tensor([0.03, 0.04, -0.02])
    toes = joints[:, list(legs.toe)] + torch.tensor([0.03, 0.04, -0.02])
    local = place_feet(walk.rotations.double(), walk.root.double(), walk.skeleton, legs, ankles, toes)
    made = walk.replace(rotations=local.float()).positions.double()
    thigh, shin = leg_lengths(walk.skeleton, legs)
    far = (ankles - joints[:, list(legs.hip)]).norm(dim=-1) < 0.999 * (thigh + shin)
    assert far.float().mean() > 0.8
    torch.testing.assert_close(made[:, list(legs.ankle)][far], ankles[far], atol=1e-4, rtol=0)
    torch.testing.assert_close(made[:, list(legs.toe)][far], toes[far], atol=1e-4, rtol=0)
    others = [j for j in range(22) if j not in (*legs.hip, *legs.knee, *legs.ankle)]
    torch.testing.assert_close(local[:, others].float(), walk.rotations[:, others])
    same = place_feet(walk.rotations.double(), walk.root.double(), walk.skeleton, legs, joints[:, list(legs.ankle)])
    assert float((walk.replace(rotations=same.float()).positions - walk.positions).norm(dim=-1).mean()) < 1e-3


def test_knees_keep_their_lengths_and_bend_forward() -> None:
    hip, knee = torch.zeros(1, 1, 3).double(), torch.tensor([[[0.0, -0.4, 0.0]]]).double()
    ankle = torch.tensor([[[0.0, -0.8, 0.0]]]).double()
    aim = torch.tensor([[[0.1, -0.6, 0.1]]]).double()
    left = torch.tensor([[[1.0, 0.0, 0.0]]]).double()
    bent = bend(hip, knee, ankle, aim, left)
    torch.testing.assert_close((bent - hip).norm(dim=-1), torch.full((1, 1), 0.4).double())
    torch.testing.assert_close((bent - aim).norm(dim=-1), torch.full((1, 1), 0.4).double())
    assert float(bent[0, 0, 2]) > 0.1


def test_any_known_skeleton(tmp_path: Path) -> None:
    """Other names, and a body without toes."""
    good = slip(step_in_place())
    names = tuple(n.replace("left_", "L_").replace("right_", "R_").title() for n in good.skeleton.names)
    renamed = Motion(Skeleton(names, good.skeleton.parents, good.skeleton.offsets), good.root, good.rotations, good.fps)
    torch.testing.assert_close(clean_feet(renamed).positions, clean_feet(good).positions, atol=1e-5, rtol=0)
    keep = [j for j in range(22) if j not in TOES]
    parents = tuple(keep.index(p) if p >= 0 else -1 for p in (good.skeleton.parents[j] for j in keep))
    stumps = Skeleton(tuple(good.skeleton.names[j] for j in keep), parents, good.skeleton.offsets[keep])
    short = Motion(stumps, good.root, good.rotations[:, keep], good.fps)
    assert not find_legs(stumps).has_toes
    ankle = stumps.names.index("left_ankle")
    moved = [torch.diff(m.positions[:, ankle, 0]).abs().median() for m in (short, clean_feet(short))]
    assert float(moved[1]) < 0.3 * float(moved[0])


def test_the_published_algorithm_doubles_the_rate() -> None:
    motion = slip(step_in_place(40))
    made = clean_feet(motion, "compat", window=5)
    assert made.num_frames == 79 and made.fps == 60
    with pytest.raises(VadisError, match="must be odd"):
        clean_feet(motion, "compat", window=4)
    with pytest.raises(VadisError, match="40 frames"):
        clean_feet(motion, "compat", window=41)


def test_it_beats_the_published_algorithm(parity_root: Path) -> None:
    """On the published demo clips: less Slide, Jitter and Float than the original program's result, more Dynamic kept."""
    from safetensors.torch import load_file

    folder = parity_root / "remove_sliding"
    cases = json.loads((folder / "manifest.json").read_text())["cases"]
    z = load_file(folder / "data.safetensors")
    for name, about in cases.items():
        offsets = z[f"{name}.offsets"].clone()
        offsets[0] = 0
        skeleton = Skeleton(tuple(about["joint_names"]), tuple(about["parents"]), offsets)
        turns, theirs = (rotation.from_quat_wxyz(z[f"{name}.{k}"]) for k in ("in_quats_wxyz", "out_quats"))
        given = Motion(skeleton, z[f"{name}.in_root_position"], turns, 30.0)
        original = given.replace(rotations=theirs[::2], root=z[f"{name}.out_root_position"][::2])
        ours, published = (
            physical_metrics([m.positions.numpy()], parts=skeleton).table() for m in (clean_feet(given), original)
        )
        for metric in ("Slide", "Jitter", "Float"):
            assert ours[metric] < published[metric], (name, metric)


def test_bad_input() -> None:
    motion = step_in_place(20)
    with pytest.raises(VadisError, match="use native, or compat"):
        clean_feet(motion, "magic")  # type: ignore[arg-type]
    with pytest.raises(VadisError, match="at least 4 frames; the motion has 3"):
        clean_feet(motion.crop(0, 3))
    strange = Skeleton(tuple(f"j{k}" for k in range(22)), motion.skeleton.parents, motion.skeleton.offsets)
    with pytest.raises(SkeletonError, match="no legs found"):
        clean_feet(motion.replace(skeleton=strange))
    assert clean_feet(motion.crop(0, 4)).num_frames == 4


# -- the command


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    motion = slip(step_in_place(60))
    motion.save(tmp_path / "in.npz")
    assert run("clean", tmp_path / "in.npz", tmp_path / "out.npz", "--smooth", 0) == 0
    assert "joints moved by" in capsys.readouterr().err
    made = vadis.load_motion(tmp_path / "out.npz")
    np.testing.assert_allclose(made.positions, clean_feet(motion, smooth=None).positions, atol=1e-4)
    assert run("clean", tmp_path / "in.npz", tmp_path / "twice.npz", "--method", "compat") == 0
    assert vadis.load_motion(tmp_path / "twice.npz").num_frames == 119


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--window", 5], "--window means nothing for --method native"),
        (["--method", "compat", "--smooth", 3], "--smooth means nothing for --method compat"),
        (["--smooth", -2], "--smooth must be between 0 and 1000"),
        (["--method", "compat", "--window", 4], "must be odd"),
    ],
)
def test_command_refuses(
    words: list[object], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step_in_place(20).save(tmp_path / "in.npz")
    assert run("clean", tmp_path / "in.npz", tmp_path / "out.npz", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
