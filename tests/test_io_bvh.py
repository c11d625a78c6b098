"""BVH in both directions: oracles, round trips, damaged files."""

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vadis
from vadis import rotation
from vadis.errors import FileError, SkeletonError, VadisError
from vadis.io.archive import iter_motion_files
from vadis.io.bvh import guess_unit, load_bvh, parse_bvh, snap_fps, unique_names
from vadis.io.bvh_writer import save_bvh
from vadis.motion import Motion
from vadis.skeleton import Skeleton

SMALL = """HIERARCHY
ROOT hip
{
\tOFFSET 0 0 0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
\tJOINT knee
\t{
\t\tOFFSET 0 -50 0
\t\tCHANNELS 3 Zrotation Xrotation Yrotation
\t\tEnd Site
\t\t{
\t\t\tOFFSET 0 -40 0
\t\t}
\t}
}
MOTION
Frames: 2
Frame Time: 0.033333
0 90 0 0 0 0 10 20 30
1 90 0 5 0 0 10 20 31
"""


def small(**replaced: str) -> bytes:
    text = SMALL
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text.encode()


def swap(old: str, new: str) -> bytes:
    assert old in SMALL
    return SMALL.replace(old, new).encode()


# -- against oracles


@st.composite
def bvh_files(draw: st.DrawFn) -> tuple[str, list[dict], np.ndarray]:
    """A random hierarchy as text, its joints in file order, and the channel values."""
    count, frames = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parents = [-1] + [int(rng.integers(0, j)) for j in range(1, count)]
    joints: list[dict] = []
    lines = ["HIERARCHY"]

    def write(j: int, depth: int) -> None:
        tab = "\t" * depth
        order = "".join(rng.permutation(list("XYZ")))
        places = depth == 0 or rng.random() < 0.2
        moves = [f"{axis}position" for axis in rng.permutation(list("XYZ"))] if places else []
        turns = [f"{axis}rotation" for axis in order][: int(rng.integers(1, 4)) if rng.random() < 0.2 else 3]
        channels = moves + turns if rng.random() < 0.8 else turns + moves
        offset = np.zeros(3) if depth == 0 else rng.normal(size=3).round(4) * 30
        joints.append({"name": f"j{j}", "parent": parents[j], "offset": offset, "channels": channels, "old": j})
        lines.append(f"{tab}{'JOINT' if depth else 'ROOT'} j{j}")
        lines.append(f"{tab}{{")
        lines.append(f"{tab}\tOFFSET " + " ".join(f"{v:.6f}" for v in offset))
        lines.append(f"{tab}\tCHANNELS {len(channels)} " + " ".join(channels))
        children = [c for c in range(count) if parents[c] == j]
        for child in children:
            write(child, depth + 1)
        if not children:
            lines.extend([f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET 0 10 0", f"{tab}\t}}"])
        lines.append(f"{tab}}}")

    write(0, 0)
    place = {joint["old"]: k for k, joint in enumerate(joints)}
    for joint in joints:
        joint["parent"] = place.get(joint["parent"], -1)
    width = sum(len(joint["channels"]) for joint in joints)
    values = rng.uniform(-180, 180, size=(frames, width)).round(5)
    column = 0
    for k, joint in enumerate(joints):  # joints other than the root may only have constant positions
        for channel in joint["channels"]:
            if k and channel.endswith("position"):
                values[:, column] = values[0, column]
            column += 1
    body = "\n".join(" ".join(f"{v:.5f}" for v in row) for row in values)
    lines += ["MOTION", f"Frames: {frames}", "Frame Time: 0.033333", body, ""]
    return "\n".join(lines), joints, values


def brute_force(joints: list[dict], values: np.ndarray) -> np.ndarray:
    """World positions `(T, J, 3)` in file units, written without any of our rotation code."""
    result = np.zeros((len(values), len(joints), 3))
    for t, row in enumerate(values):
        world: list[np.ndarray] = []
        column = 0
        for k, joint in enumerate(joints):
            local, offset = np.eye(3), joint["offset"].copy()
            for channel in joint["channels"]:
                axis, value = "XYZ".index(channel[0]), row[column]
                column += 1
                if channel.endswith("position"):
                    offset[axis] = value
                else:
                    c, s = np.cos(np.radians(value)), np.sin(np.radians(value))
                    a, b = (axis + 1) % 3, (axis + 2) % 3
                    turn = np.eye(3)
                    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
                    local = local @ turn
            p = joint["parent"]
            result[t, k] = offset if p < 0 else result[t, p] + world[p] @ offset
            world.append(local if p < 0 else world[p] @ local)
    return result


@settings(max_examples=60, deadline=None)
@given(bvh_files())
def test_reader_equals_brute_force(sample):
    text, joints, values = sample
    motion = parse_bvh(text.encode(), unit="cm", up="y")
    expected = brute_force(joints, values) / 100
    names = [joint["name"] for joint in joints]
    if "dropped_root" in motion.meta:
        names = names[1:]
        expected = expected[:, 1:]
    assert list(motion.skeleton.names) == names
    np.testing.assert_allclose(motion.positions.numpy(), expected, atol=2e-5)
    assert "moving_offsets" not in motion.meta


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bvh_files(), st.sampled_from(["XYZ", "ZXY", "ZYX", "YXZ"]), st.sampled_from(["cm", "m"]), st.sampled_from("yz"))
def test_write_and_read_is_the_identity(tmp_path, sample, order, unit, up):
    motion = parse_bvh(sample[0].encode(), unit="cm", up="y")
    save_bvh(motion, tmp_path / "x.bvh", order=order, unit=unit, up=up)
    again = load_bvh(tmp_path / "x.bvh", unit=unit, up=up)
    assert again.skeleton.names == motion.skeleton.names and again.skeleton.parents == motion.skeleton.parents
    torch.testing.assert_close(again.positions, motion.positions, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.rotations, motion.rotations, atol=1e-5, rtol=0)


def test_reader_equals_bvhio(mini_bvh):
    bvhio = pytest.importorskip("bvhio")
    for path in (mini_bvh[0], mini_bvh[4]):
        motion = load_bvh(path)
        root = bvhio.readAsHierarchy(str(path))
        for frame in (0, motion.num_frames - 1):
            root.loadPose(frame)
            for joint, _, _ in root.layout():
                if joint.Name in motion.skeleton.names:
                    here = motion.positions[frame, motion.skeleton.index(joint.Name)].numpy() * 100
                    np.testing.assert_allclose(here, np.array(joint.PositionWorld), atol=1e-2)


# -- real files


def assert_same(again: Motion, motion: Motion, tolerance: float = 1e-4) -> None:
    order = [again.skeleton.index(name) for name in motion.skeleton.names]
    assert again.num_frames == motion.num_frames and again.fps == pytest.approx(motion.fps, rel=1e-6)
    torch.testing.assert_close(again.positions[:, order], motion.positions, atol=tolerance, rtol=0)
    torch.testing.assert_close(again.global_rotations[:, order], motion.global_rotations, atol=1e-4, rtol=0)


def test_mini_clips_survive_the_round_trip(mini_bvh, tmp_path):
    assert len(mini_bvh) == 6
    for path in mini_bvh:
        motion = load_bvh(path)
        assert motion.meta["unit"] == "cm"
        for options in ({}, {"up": "z"}, {"unit": "m", "order": "XYZ"}):
            save_bvh(motion, tmp_path / "x.bvh", **options)
            again = load_bvh(tmp_path / "x.bvh")  # unit and up axis are found
            assert_same(again, motion)
            assert again.meta.get("up_axis", "y") == options.get("up", "y")


@pytest.mark.parametrize("name", ["cmu15", "deepmimic", "bandai1", "originals"])
def test_archive_types_survive_the_round_trip(shared_data, tmp_path, name):
    files = iter_motion_files(shared_data / f"{name}.tar.xz", suffixes=(".bvh",))
    _, path = next(files)
    motion = load_bvh(path)
    save_bvh(motion, tmp_path / "x.bvh")
    assert_same(load_bvh(tmp_path / "x.bvh"), motion)
    if name == "bandai1":  # six channels on every joint: all but the hip's are constant
        assert motion.meta["dropped_root"] == "joint_Root" and "moving_offsets" not in motion.meta
        assert motion.skeleton.names[0] == "Hips" and motion.skeleton.num_joints == 21


# -- the writer


def test_walk_round_trip_keeps_order_and_kind(walk, tmp_path):
    again = vadis.load_motion(walk.save(tmp_path / "walk.bvh"))
    assert again.skeleton.names == walk.skeleton.names and again.skeleton.name == "smpl22"
    torch.testing.assert_close(again.skeleton.offsets, walk.skeleton.offsets, atol=1e-7, rtol=0)
    assert_same(again, walk, 1e-6)
    text = (tmp_path / "walk.bvh").read_text()
    assert text.count("End Site") == 5 and "-0.000000 " not in text and "#" not in text


def test_smpl_names_in_any_order_and_with_hands_retarget_to_the_same(walk, tmp_path):
    """24 joints named as in SMPL files, branch by branch, as other programs write them."""
    names = [name.capitalize() for name in walk.skeleton.names] + ["Left_palm", "Right_palm"]
    offsets = torch.cat([walk.skeleton.offsets, torch.tensor([[0.08, 0, 0], [-0.08, 0, 0]])])
    skeleton = Skeleton(tuple(names), (*walk.skeleton.parents, 20, 21), offsets)
    rotations = torch.cat([walk.rotations, torch.eye(3).expand(90, 2, 3, 3)], dim=1)
    again = vadis.load_motion(walk.replace(skeleton=skeleton, rotations=rotations).save(tmp_path / "x.bvh"))
    assert again.skeleton.names[1:4] == ("Left_hip", "Left_knee", "Left_ankle")
    same = vadis.retarget(again, floor=False)
    torch.testing.assert_close(same.positions, walk.positions, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fps", [24, 30, 60, 120, 29.97, 59.94])
def test_frame_rates(walk, tmp_path, fps):
    again = load_bvh(save_bvh(walk, tmp_path / "x.bvh", fps=fps))
    assert again.fps == pytest.approx(fps, rel=1e-5)
    assert again.seconds == pytest.approx(walk.seconds, abs=2 / 24)


def test_t_pose_first_frame(walk, tmp_path):
    for up in "yz":
        save_bvh(walk, tmp_path / "x.bvh", t_pose_first_frame=True, up=up)
        again = load_bvh(tmp_path / "x.bvh")
        assert again.num_frames == walk.num_frames + 1
        torch.testing.assert_close(again.rotations[0], torch.eye(3).expand(22, 3, 3), atol=1e-6, rtol=0)
        assert float(again.positions[0, :, 1].min()) == pytest.approx(0, abs=0.06)  # stands on the floor with its tips
        assert_same(load_bvh(tmp_path / "x.bvh", drop_first_frame=True), walk)


def test_angles_are_continuous(tmp_path):
    """A joint that turns through more than a full circle and past the poles has no jump in any curve."""
    t = torch.linspace(0, 1, 200)
    vectors = torch.zeros(200, 2, 3)
    vectors[:, 0, 1] = 9 * t
    vectors[:, 1, 0], vectors[:, 1, 1] = 5 * t, 2 * t
    skeleton = Skeleton(("hip", "knee"), (-1, 0), torch.tensor([[0.0, 0, 0], [0, -1, 0]]))
    motion = Motion(skeleton, torch.zeros(200, 3), rotation.from_rotvec(vectors), 30.0)
    for order in ("ZYX", "XYZ", "YXZ"):
        save_bvh(motion, tmp_path / "x.bvh", order=order)
        rows = (tmp_path / "x.bvh").read_text().split("Frame Time")[1].splitlines()[1:]
        values = np.array([[float(word) for word in row.split()] for row in rows])
        assert np.abs(np.diff(values[:, 3:6], axis=0)).max() < 10
        torch.testing.assert_close(load_bvh(tmp_path / "x.bvh", "cm").rotations, motion.rotations, atol=1e-5, rtol=0)


def test_names_that_bvh_can_not_hold(tmp_path):
    skeleton = Skeleton(("my hip", "a{b}"), (-1, 0), torch.tensor([[0.0, 0, 0], [0, -1, 0]]))
    motion = Motion(skeleton, torch.zeros(2, 3), torch.eye(3).expand(2, 2, 3, 3).clone(), 30.0)
    save_bvh(motion, tmp_path / "x.bvh")
    assert load_bvh(tmp_path / "x.bvh").skeleton.names == ("my_hip", "a_b_")


@pytest.mark.parametrize("options", [{"unit": "ell"}, {"up": "x"}, {"order": "XYX"}, {"decimals": 99}, {"nonsense": 1}])
def test_writer_options_are_checked(walk, tmp_path, options):
    with pytest.raises(FileError):
        walk.save(tmp_path / "x.bvh", **options)
    assert not list(tmp_path.iterdir())


def test_unwritable_place(walk, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="can't write"):
        walk.save(tmp_path / "file" / "x.bvh")


# -- reading what tools write


@pytest.mark.parametrize(
    "data",
    [
        swap("\n", "\r\n"),
        swap("\n", "\r"),
        swap("\t", "   "),
        b"\xef\xbb\xbf" + SMALL.encode(),
        SMALL.encode("utf-16"),
        swap("ROOT hip\n{", "ROOT hip {"),
        swap("End Site\n\t\t{", "End Site {"),
        swap("MOTION", "motion"),
        swap("Frames: 2", "Frames:\t2\n"),
        swap("Frame Time: ", "Frame Time:"),
        swap("Zrotation Yrotation", "ZROTATION yrotation"),
        swap("0 90 0 0 0 0", "0 9e1 0 -0.0 0E+2 +0"),
        swap("10 20 31\n", "10 20 31"),
        swap("10 20 30\n1", "10 20 30\n\n \n1"),
        swap("0 90 0 0 0 0 10", "0 90 0 0\n0 0 10"),
        b"\n\n" + SMALL.encode() + b"\n\n",
    ],
)
def test_variants_read_the_same(data):
    expected, motion = parse_bvh(SMALL.encode()), parse_bvh(data)
    torch.testing.assert_close(motion.positions, expected.positions)
    assert motion.fps == 30 and motion.skeleton.names == ("hip", "knee")


def test_names_with_blanks_accents_and_doubles():
    assert parse_bvh(swap("JOINT knee", "JOINT the knee")).skeleton.names == ("hip", "the knee")
    assert parse_bvh(SMALL.replace("knee", "hüfte").encode("latin-1")).skeleton.names == ("hip", "hüfte")
    assert parse_bvh(swap("JOINT knee", "JOINT hip")).skeleton.names == ("hip", "hip_2")
    assert unique_names(["a", "a", "a_2", "a"]) == ["a", "a_3", "a_2", "a_4"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no MOTION"),
        (b"\x00\xff" * 50, "no MOTION"),
        (SMALL.split("MOTION")[0].encode(), "no MOTION"),
        (swap("ROOT hip\n{", "ROOT hip"), "line 3: expected an opening brace"),
        (SMALL.replace("\t}\n}\nMOTION", "\t}\nMOTION").encode(), "1 closing braces are missing"),
        (swap("}\nMOTION", "}\n}\nMOTION"), "line 16: a closing brace too many"),
        (swap("OFFSET 0 -50 0", "OFFSET 0 -50"), "line 8: OFFSET needs 3 numbers"),
        (swap("OFFSET 0 -50 0", "OFFSET 0 x 0"), "line 8: OFFSET needs 3 numbers, found '0 x 0'"),
        (swap("OFFSET 0 -50 0", "OFFSET 0 nan 0"), "line 8: OFFSET needs 3 numbers"),
        (swap("\t\tOFFSET 0 -50 0\n", ""), "joint 'knee' has no OFFSET"),
        (swap("CHANNELS 3", "CHANNELS 4"), "line 9: channels that can't be read"),
        (swap("CHANNELS 3 Zrotation", "CHANNELS 3 Wrotation"), "line 9: channels"),
        (swap("CHANNELS 3 Zrotation Xrotation", "CHANNELS 3 Zrotation Zrotation"), "line 9: channels"),
        (swap("JOINT knee", "ROOT knee"), "line 6: a second ROOT"),
        (swap("JOINT knee", "BONE knee"), "line 6: expected a BVH keyword, found 'BONE knee'"),
        (swap("Frames: 2", "Frames: 0"), "line 18: 0 frames"),
        (swap("Frames: 2", "Frames: -3"), "-3 frames"),
        (swap("Frames: 2", "Frames: many"), "line 16: expected 'Frames: N'"),
        (swap("Frames: 2", "Frames: 3"), "promises 3 frames, the file holds 2"),
        (swap("Frames: 2", "Frames: 99999999999"), "more than"),
        (swap("Frames: 2", "Frames: " + "9" * 6000), "expected 'Frames: N'"),
        (swap("Frames: 2", "Frames: 1"), "line 20: more than the 1 frames"),
        (swap("0.033333", "0"), "0.0 s; expected"),
        (swap("0.033333", "nan"), "nan s; expected"),
        (swap("Frame Time: 0.033333\n", ""), "line 16: expected 'Frames: N'"),
        (swap("10 20 31", "10 20"), "line 20: expected 9 numbers, found 8"),
        (swap("10 20 31", "10 20 x31"), "line 20: .* isn't a number"),
        (swap("10 20 31", "10 20 nan"), "line 20: the motion holds NaN"),
        (swap("10 20 31", "10 20 1e300"), "line 20: the motion holds NaN, infinite or absurdly"),
        (SMALL[: SMALL.index("10 20 31")].encode(), "line 20: expected 9 numbers, found 6"),
    ],
)
def test_damaged_files_name_the_line(data, message):
    with pytest.raises(FileError, match=message) as error:
        parse_bvh(data, "walk.bvh")
    assert str(error.value).startswith("walk.bvh") and "\n" not in str(error.value)


def test_partial_reading_of_a_file_that_is_cut_off():
    cut = SMALL[: SMALL.index("20 31")].encode()
    assert parse_bvh(cut, partial=True).num_frames == 1
    assert parse_bvh(swap("Frames: 2", "Frames: 100"), partial=True).num_frames == 2


def test_limits_and_options(tmp_path):
    (tmp_path / "x.bvh").write_text(SMALL)
    with pytest.raises(FileError, match="more than 10: pass max_bytes"):
        load_bvh(tmp_path / "x.bvh", max_bytes=10)
    with pytest.raises(FileError, match="unknown unit 'ell'"):
        load_bvh(tmp_path / "x.bvh", "ell")
    with pytest.raises(FileError, match="no option 'fps'; known are unit, up"):
        vadis.load_motion(tmp_path / "x.bvh", fps=30)
    with pytest.raises(FileError, match=r"suffix '\.xyz' is unknown"):
        vadis.load_motion(tmp_path / "x.xyz")
    with pytest.raises(FileError, match="no file"):
        vadis.load_motion(tmp_path / "missing.bvh")
    deep = "".join("JOINT j\n{\nOFFSET 0 0 0\nCHANNELS 0\n" for _ in range(3000))
    with pytest.raises(FileError, match="more than 2000 joints"):
        parse_bvh(swap("JOINT knee", deep + "JOINT knee"))


def test_moving_offsets_are_reported():
    text = SMALL.replace("CHANNELS 3 Zrotation", "CHANNELS 4 Yposition Zrotation")
    text = text.replace("0 0 0 10 20 30", "0 0 0 -50 10 20 30").replace("5 0 0 10 20 31", "5 0 0 -40 10 20 31")
    motion = parse_bvh(text.encode(), unit="cm")
    assert motion.meta["moving_offsets"] == {"knee": pytest.approx(0.05)}
    assert float(motion.skeleton.offsets[1, 1]) == pytest.approx(-0.45)


def test_units_are_found_by_the_size_of_a_person(walk):
    for factor, unit in ((1, "m"), (100, "cm"), (1000, "mm"), (1 / 0.0254, "inch"), (0.45 / 0.0254, "asf")):
        for size in (0.9, 1.0, 1.2):
            assert guess_unit(walk.skeleton.with_offsets(walk.skeleton.offsets * factor * size)) == unit
    assert guess_unit(walk.skeleton.with_offsets(walk.skeleton.offsets * 1e6)) is None
    assert snap_fps(0.008333) == 120 and snap_fps(0.0333667) == pytest.approx(30000 / 1001)


# -- mutations


def mutate(data: bytes, rng: random.Random) -> bytes:
    body = bytearray(data)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(body))
        kind = rng.random()
        if kind < 0.2:
            body[at] = rng.randrange(256)
        elif kind < 0.4:
            body[at] = rng.choice(b"0123456789")
        elif kind < 0.6:
            del body[at : at + rng.randint(1, 30)]
        elif kind < 0.8:
            body[at:at] = body[at : at + rng.randint(1, 40)]
        else:
            body[at:at] = rng.choice(
                [b"nan", b"1e999", b"{", b"}", b"-", b"\x00", b"\n", b"9" * 50, b"JOINT a\n", b"MOTION\n"]
            )
        if not body:
            break
    return bytes(body)


def test_any_mutation_loads_or_raises_our_error(mini_bvh):
    rng = random.Random(5)
    real = mini_bvh[-1].read_bytes()
    loaded = 0
    for k in range(700):
        data = mutate(SMALL.encode() if k % 3 else real, rng)
        try:
            motion = parse_bvh(data)
        except VadisError as error:
            assert "\n" not in str(error)
        else:
            assert torch.isfinite(motion.positions).all()
            loaded += 1
    assert loaded > 20


def test_unknown_skeletons_still_load():
    motion = parse_bvh(SMALL.encode())
    with pytest.raises(SkeletonError):
        vadis.retarget(motion, "smpl22")
