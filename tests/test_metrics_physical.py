"""Physical and MBench metrics: equal ways to ask, invariances, damage, rates, skeletons, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk
from scipy.signal import find_peaks

import vadis
from vadis.errors import ShapeError, SkeletonError, VadisError
from vadis.metrics import ground_quality, mbench_metrics, physical_metrics
from vadis.metrics.clips import BodyParts, pack, resample
from vadis.metrics.feet import _peaks, watch_feet
from vadis.metrics.mbench import NAMES, aggregate
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, Skeleton, smpl22

FIELDS = ("slide", "floating", "jitter", "dynamic", "penetration")


def jumpy(frames: int, seed: int = 0) -> np.ndarray:
    """Joints `(T, 22, 3)` that wander smoothly, with feet that leave the floor and come back."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None, None] / 30
    swing = rng.normal(size=(1, 22, 3)), rng.normal(size=(1, 22, 3)), rng.uniform(1, 9, size=(1, 22, 3))
    joints = 0.15 * swing[0] * np.sin(swing[2] * t + 6 * swing[1]) + rng.normal(size=(1, 22, 3))
    joints += 0.002 * rng.normal(size=joints.shape) + np.asarray([0.6, 0.0, 0.2]) * t
    joints[:, [10, 11], 1] = np.abs(joints[:, [10, 11], 1] - joints[:, [10, 11], 1].mean(0))
    return joints.astype(np.float32)


def naive_floating(joints: np.ndarray, contact: np.ndarray) -> float:
    """The three counts, frame by frame and run by run, as the definition is written."""
    frames = len(joints)
    toes, root = joints[:, [10, 11]], joints[:, 0]

    def speeds(x: np.ndarray) -> np.ndarray:
        d = np.linalg.norm(np.diff(x, axis=0), axis=-1)
        return np.concatenate([d, d[-1:]])

    v, u, w = speeds(root), speeds(toes), speeds(toes - root[:, None])
    rate = w / (v + np.float32(1e-6))[:, None]
    count = 0.0
    for t in range(frames):
        if v[t] < 0.001:
            continue
        bad = [u[t, f] > 1.2e-4 and (rate[t, f] < 0.6 or rate[t, f] > 1.75) for f in (0, 1)]
        held = [bool(contact[t, f]) for f in (0, 1)]
        count += (all(held) and all(bad)) or (sum(held) == 1 and bad[held.index(True)])
    runs = [[], []]
    for f in (0, 1):
        start = None
        for t in range(frames + 1):
            air = t < frames and not contact[t, f]
            if air and start is None:
                start = t
            if not air and start is not None:
                runs[f].append((start, t - 1))
                start = None
        for s, e in runs[f]:
            if e - s + 1 >= 4 and (v[s : e + 1] < 0.001).sum() <= (e - s + 1) / 2:
                count += (rate[s : e + 1, f] < 0.4).sum() / 2
    for a, b in runs[0]:
        for c, d in runs[1]:
            s, e = max(a, c), min(b, d)
            if s < e and e - s + 1 >= 4:
                way, whole = toes[s + 1 : e + 1, 0] - toes[s, 0], toes[e, 0] - toes[s, 0]
                way = way / (np.linalg.norm(way, axis=-1, keepdims=True) + np.float32(1e-6))
                whole = whole / (np.linalg.norm(whole) + np.float32(1e-6))
                angle = np.degrees(np.arccos(np.clip((way * whole).sum(-1), -1, 1)))
                count += (e - s + 1) * (len(find_peaks(angle)[0]) > 2)
    return count / frames


@pytest.mark.parametrize("seed", range(12))
def test_floating_is_what_its_definition_counts(seed: int) -> None:
    joints = jumpy(150, seed)
    clips = pack([joints[:70], joints, joints[:101]])
    feet = watch_feet(clips, 1, 0.0)
    values = feet.floating()
    for b, clip in enumerate((joints[:70], joints, joints[:101])):
        contact = feet.contact[clips.owner == b]
        assert values[b] == pytest.approx(naive_floating(clip, contact), abs=1e-9)
    assert 0 < values[1] < 2


def test_peaks_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.integers(0, 4, size=n).astype(float) for n in (1, 2, 3, 7, 40, 3, 90)]
    label = np.repeat(np.arange(len(runs)), [len(r) for r in runs])
    expected = [len(find_peaks(r)[0]) for r in runs]
    assert _peaks(np.concatenate(runs), label, len(runs)).tolist() == expected


def test_list_padding_and_single_clips_give_the_same() -> None:
    clips = [jumpy(n, seed=n) for n in (40, 75, 4)]
    padded = np.full((3, 75, 22, 3), np.nan, np.float32)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    many, filled = physical_metrics(clips), physical_metrics(torch.from_numpy(padded), lengths=[40, 75, 4])
    for name in FIELDS:
        alone = [getattr(physical_metrics(clip), name)[0] for clip in clips]
        np.testing.assert_allclose(getattr(many, name), alone, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(getattr(many, name), getattr(filled, name))


@pytest.mark.parametrize("mode", ["compat", "native"])
def test_place_and_heading_change_nothing(mode: str) -> None:
    joints = jumpy(90)
    c, s = np.cos(0.7), np.sin(0.7)
    turn = np.asarray([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)
    moved = joints @ turn.T + np.asarray([0.5, 0.0, -0.25], np.float32)
    a, b = physical_metrics(joints, mode=mode), physical_metrics(moved, mode=mode)
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), rtol=2e-3, atol=2e-2 if name == "floating" else 1e-6
        )
    m, n = (mbench_metrics(x, fps=20) for x in (joints, moved))
    for name in NAMES:
        np.testing.assert_allclose(
            getattr(m, name), getattr(n, name), rtol=2e-3, atol=2e-2 if name == "foot_floating" else 1e-6
        )


def test_jitter_grows_with_size_and_a_frozen_clip_is_zero() -> None:
    joints = jumpy(60)
    assert mbench_metrics(2 * joints, fps=20).jitter == pytest.approx(
        2 * mbench_metrics(joints, fps=20).jitter, rel=1e-5
    )
    frozen = np.repeat(joints[:1], 50, axis=0)
    assert all(getattr(physical_metrics(frozen), name)[0] == 0 for name in FIELDS)
    assert all(getattr(mbench_metrics(frozen, fps=20, floor="lowest"), name)[0] == 0 for name in NAMES)


def test_a_rigid_glide_floats_all_the_time() -> None:
    glide = np.repeat(jumpy(1), 60, axis=0) + np.arange(60)[:, None, None] * np.asarray([0.02, 0, 0])
    table = physical_metrics(glide).table()
    assert table["Float"] == pytest.approx(100)
    assert table["Slide"] == pytest.approx(20, rel=1e-3) and table["Dynamic"] == pytest.approx(20, rel=1e-3)
    assert physical_metrics(glide, mode="native").slide[0] == pytest.approx(0.6, rel=1e-3)


def test_native_values_do_not_depend_on_the_rate() -> None:
    """The same movement sampled at other rates: dynamic and slide to a few percent, jitter to ten."""
    walks = {fps: procedural_walk(int(4 * fps) + 1, fps).positions for fps in (20.0, 30.0, 60.0, 120.0)}
    base = physical_metrics(walks[30.0], mode="native")
    bench = mbench_metrics(walks[20.0], fps=20)
    for fps, joints in walks.items():
        other = physical_metrics(joints, fps=fps, mode="native")
        assert other.dynamic == pytest.approx(base.dynamic, rel=0.02)
        assert other.jitter == pytest.approx(base.jitter, rel=0.1)
        assert other.slide == pytest.approx(base.slide, rel=0.1)
        again = mbench_metrics(joints, fps=fps)
        assert again.dynamic == pytest.approx(bench.dynamic, rel=0.02)
        assert again.jitter == pytest.approx(bench.jitter, rel=0.1)


def test_resampling_keeps_frames_where_it_can() -> None:
    clips = pack([jumpy(61), jumpy(40, seed=1)])
    third = resample(clips, 60, 20)
    assert third.lengths.tolist() == [21, 14]
    np.testing.assert_array_equal(third.joints[:21], clips.joints[:61][::3])
    assert resample(clips, 30, 30) is clips


def test_the_original_reads_height_from_axis_two() -> None:
    """On Z-up clips at 20 frames/s both modes agree; on Y-up clips "compat" repeats the published mistake."""
    y_up = jumpy(100)
    z_up = y_up[..., [0, 2, 1]] * np.asarray([1, -1, 1], np.float32)
    right = mbench_metrics(y_up, fps=20, mode="native", up="y")
    compat, wrong = mbench_metrics(z_up, fps=20, mode="compat"), mbench_metrics(y_up, fps=20, mode="compat")
    for name in NAMES:
        np.testing.assert_allclose(getattr(compat, name), getattr(right, name), rtol=1e-5, atol=1e-7)
    assert wrong.foot_sliding[0] != pytest.approx(right.foot_sliding[0], rel=0.05)


def test_damage_moves_the_values_the_right_way() -> None:
    walk = procedural_walk(150)
    joints = walk.positions.numpy()
    toe = float(joints[:, [10, 11], 1].min())
    rng = np.random.default_rng(0)
    noisy = joints + rng.normal(scale=0.01, size=joints.shape).astype(np.float32)
    lifted = joints + np.asarray([0, 0.1, 0], np.float32)
    sunk = joints - np.asarray([0, 0.05, 0], np.float32)
    slid = joints + 0.02 * np.arange(150)[:, None, None] * np.asarray([1, 0, 0], np.float32)
    good, noise, lift, sink, slide = (ground_quality(x, fps=30, toe=toe) for x in (joints, noisy, lifted, sunk, slid))
    assert noise.jerk > 3 * good.jerk and noise.acceleration > 3 * good.acceleration
    assert lift.hover == pytest.approx(good.hover + 0.1, abs=1e-4) and lift.unsupported > 0.9 > good.unsupported
    assert sink.penetration == pytest.approx(good.penetration + 0.05, abs=1e-4)
    assert good.contact > lift.contact and slide.skate > good.skate
    stand = np.repeat(joints[:1], 60, axis=0)
    slipping = stand + 0.02 * np.arange(60)[:, None, None] * np.asarray([1, 0, 0], np.float32)
    still, slip = (ground_quality(x, fps=30, toe=toe) for x in (stand, slipping))
    assert still.skate == 0 and 0.2 < slip.skate[0] <= 0.6 and slip.unsupported == 0
    assert physical_metrics(noisy).jitter > 3 * physical_metrics(joints).jitter
    assert physical_metrics(slipping).slide > 0.009 > physical_metrics(stand).slide


def test_free_fall_is_supported_by_nothing_and_needs_nothing() -> None:
    t = np.arange(20) / 30
    pose = procedural_walk(1).positions.numpy()
    height = 1.0 + 3.0 * t - 0.5 * 9.81 * t**2
    flight = pose + (height[:, None, None] * np.asarray([0, 1, 0])).astype(np.float32)
    assert ground_quality(flight, fps=30).unsupported == 0
    held = pose + np.asarray([0, 1.0, 0], np.float32) * np.ones((20, 1, 1), np.float32)
    assert ground_quality(held, fps=30).unsupported == 1


def test_any_skeleton_with_feet() -> None:
    joints = jumpy(80)
    order = np.random.default_rng(0).permutation(21) + 1
    order = np.concatenate([[0], order])
    moved = joints[:, order]
    parts = BodyParts(0, (int(np.where(order == 10)[0][0]), int(np.where(order == 11)[0][0])))
    a, b = physical_metrics(joints), physical_metrics(moved, parts=parts)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5)
    skeleton = smpl22()
    assert BodyParts.of(skeleton) == BodyParts()
    names = tuple(f"mixamorig:{n}" for n in ("Hips", "LeftUpLeg", "LeftLeg", "LeftFoot", "LeftToeBase", "RightUpLeg",
                  "RightLeg", "RightFoot", "RightToeBase", "Spine", "Neck", "Head", "LeftArm", "LeftForeArm", "LeftHand",
                  "RightArm", "RightForeArm", "RightHand"))  # fmt: skip
    parents = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 9, 12, 13, 9, 15, 16)
    other = Skeleton(names, parents, torch.zeros(18, 3))
    assert BodyParts.of(other) == BodyParts(0, (4, 8))
    tree = Skeleton(SMPL22_NAMES[:4], (-1, 0, 0, 0), torch.zeros(4, 3))
    with pytest.raises(SkeletonError, match="no left foot"):
        BodyParts.of(tree)
    motion = Motion(skeleton, torch.zeros(10, 3), torch.eye(3).expand(10, 22, 3, 3), 30.0)
    assert physical_metrics(motion.positions, parts=motion.skeleton).jitter[0] == pytest.approx(0, abs=1e-6)


def test_short_clips_have_no_value_and_are_counted() -> None:
    clips = [jumpy(n) for n in (1, 2, 3, 30)]
    result = mbench_metrics(clips, fps=20)
    assert np.isnan(result.jitter).tolist() == [True, True, False, False]
    assert np.isnan(result.dynamic).tolist() == [True, False, False, False]
    assert np.isnan(result.foot_floating).tolist() == [True, False, False, False]
    row = result.table()["Jitter_Degree"]
    assert (row["num_samples"], row["left_out"]) == (2, 2)
    assert row["mean"] == pytest.approx(result.jitter[2:].mean()) and row["std"] == pytest.approx(
        result.jitter[2:].std()
    )
    assert aggregate([None, 3.0]) == {"mean": 3.0, "std": 0.0, "num_samples": 1, "left_out": 1}
    with pytest.raises(VadisError, match="too short"):
        aggregate([None])
    with pytest.raises(ShapeError, match="clip 1 has 3 frames; these metrics need at least 4"):
        physical_metrics([jumpy(9), jumpy(3)])


def test_bad_input_is_refused() -> None:
    joints = jumpy(30)
    broken = joints.copy()
    broken[[7, 9], 3] = np.nan
    with pytest.raises(VadisError, match=r"clip 1 holds NaN or infinite positions in frames 7, 9"):
        mbench_metrics([joints, broken], fps=20)
    with pytest.raises(VadisError, match=r"per frame at 30 frames/s; these clips have 60"):
        physical_metrics(joints, fps=60)
    with pytest.raises(VadisError, match=r"at 20 frames/s.*mode='native'"):
        mbench_metrics(joints, fps=30, mode="compat")
    with pytest.raises(VadisError, match="give the frames per second"):
        mbench_metrics(joints, fps=0)
    with pytest.raises(VadisError, match="use compat"):
        physical_metrics(joints, mode="fast")
    with pytest.raises(VadisError, match="x, y or z"):
        mbench_metrics(joints, fps=20, up="w")
    with pytest.raises(VadisError, match="'lowest' or 'robust'"):
        mbench_metrics(joints, fps=20, floor="deep")
    with pytest.raises(ShapeError, match=r"clip 0 must be joint positions"):
        physical_metrics(np.zeros((30, 8, 3)))
    with pytest.raises(ShapeError, match=r"\(T, J, 3\) or"):
        physical_metrics(np.zeros((30, 272)))
    with pytest.raises(ShapeError, match="lengths must be 1 numbers"):
        physical_metrics(joints[None], lengths=[31])
    with pytest.raises(ShapeError, match="leave lengths out"):
        physical_metrics([joints], lengths=[30])
    with pytest.raises(ShapeError, match="no clips"):
        physical_metrics([])


def test_damage_to_recorded_clips(mini_bvh: list[Path]) -> None:
    """The table of the metrics page, on recordings."""
    clips = [vadis.retarget(vadis.load_motion(path), "smpl22").resample(30).canonicalize() for path in mini_bvh]
    real = [m.positions.numpy() for m in clips]
    rng = np.random.default_rng(0)
    drift = [0.01 * np.arange(len(x))[:, None, None] * np.asarray([1, 0, 0], np.float32) for x in real]
    damaged = {
        "real": real,
        "noise": [x + rng.normal(scale=0.01, size=x.shape).astype(np.float32) for x in real],
        "lifted": [x + np.asarray([0, 0.1, 0], np.float32) for x in real],
        "sunk": [x - np.asarray([0, 0.05, 0], np.float32) for x in real],
        "dragged": [x + d for x, d in zip(real, drift, strict=True)],
        "frozen": [np.repeat(x[:1], len(x), axis=0) for x in real],
    }
    table = {name: physical_metrics(x).table() for name, x in damaged.items()}
    ground = {name: ground_quality(x, fps=30).mean() for name, x in damaged.items()}
    good, best = table["real"], ground["real"]
    rises = {k: table["noise"][k] / good[k] for k in ("Slide", "Float", "Jitter", "Dynamic")}
    assert min(rises["Slide"], rises["Float"], rises["Jitter"]) > 1.5 and rises["Dynamic"] > 1.2, rises
    assert ground["noise"]["jerk"] > 3 * best["jerk"] and ground["noise"]["skate"] > 1.5 * best["skate"]
    for name in ("lifted", "sunk"):  # the blind spot
        assert all(table[name][k] == pytest.approx(good[k], rel=0.02, abs=0.5) for k in good)
    assert ground["lifted"]["hover"] == pytest.approx(best["hover"] + 0.1, abs=1e-3)
    assert ground["lifted"]["unsupported"] > best["unsupported"] + 0.5 and ground["lifted"]["contact"] < best["contact"]
    assert ground["sunk"]["penetration"] == pytest.approx(best["penetration"] + 0.05, abs=0.02)
    assert table["dragged"]["Slide"] > 1.5 * good["Slide"] and table["dragged"]["Float"] > 1.3 * good["Float"]
    assert table["dragged"]["Jitter"] == pytest.approx(good["Jitter"], rel=0.01)
    assert ground["dragged"]["skate"] > 1.2 * best["skate"]
    assert all(table["frozen"][k] == 0 for k in good) and ground["frozen"]["jerk"] == 0
    sunk = mbench_metrics(damaged["sunk"], fps=30).table()["Ground_Penetration"]["mean"]
    assert sunk > mbench_metrics(real, fps=30).table()["Ground_Penetration"]["mean"] + 0.01
