"""DeepMimic JSON against the BVH conversions of the same clips, and damaged files."""

import copy
import json

import pytest
import torch

import vadis
from vadis.errors import FileError
from vadis.io.archive import iter_motion_files
from vadis.io.deepmimic import WIDTH, humanoid, load_deepmimic


def frame(duration: float = 0.033333, knee: float = -0.3) -> list[float]:
    row = [duration, 0.1, 0.9, 0.2] + [1.0, 0, 0, 0] * 4 + [knee] + [1.0, 0, 0, 0] * 2 + [0.5]
    return row + [1.0, 0, 0, 0] + [knee] + [1.0, 0, 0, 0] * 2 + [0.5]


def page(frames: int = 5) -> dict:
    return {
        "Loop": "wrap",
        "Frames": [frame(0.033333 if t < frames - 1 else 0, -0.3 - 0.01 * t) for t in range(frames)],
    }


def write(folder, content) -> str:
    path = folder / "clip.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_same_motion_as_the_converted_bvh(shared_data):
    bvh = {}
    for name, path in iter_motion_files(shared_data / "deepmimic.tar.xz"):
        if name.endswith(("dm_walk.bvh", "dm_cartwheel.bvh")):
            bvh[name.split("_")[1][:-4]] = vadis.load_motion(path)
    seen = 0
    for name, path in iter_motion_files(shared_data / "originals.tar.xz", suffixes=(".json",)):
        motion = vadis.load_motion(path)
        expected = bvh[name.split("_")[1][:-5]]
        assert motion.fps == expected.fps and motion.num_frames == expected.num_frames and motion.meta["loop"] == "wrap"
        order = [expected.skeleton.index(joint) for joint in motion.skeleton.names]
        assert float((motion.positions - expected.positions[:, order]).norm(dim=-1).max()) < 1e-4
        character = path.with_name("humanoid3d_character.json")
        torch.testing.assert_close(load_deepmimic(path, character).positions, motion.positions)
        assert vadis.retarget(motion).skeleton.name == "smpl22"
        seen += 1
    assert seen == 2


def test_layout(tmp_path):
    motion = vadis.load_motion(write(tmp_path, page()))
    assert WIDTH == 44 == len(frame()) and motion.num_frames == 5 and motion.fps == 30
    knee = motion.rotations[2, motion.skeleton.index("left_knee")]
    angle = torch.atan2(knee[1, 0], knee[0, 0])  # about z
    assert float(angle) == pytest.approx(-0.32, abs=1e-6)
    torch.testing.assert_close(motion.root[0], torch.tensor([0.1, 0.9, 0.2]))
    assert motion.skeleton.names == humanoid().names


def test_frame_durations(tmp_path):
    clip = page(20)
    for row in clip["Frames"]:
        row[0] = 0.0166666
    assert load_deepmimic(write(tmp_path, clip)).fps == 60
    assert load_deepmimic(write(tmp_path, clip), fps=25).fps == 25
    clip["Frames"][10][0] = 0.05  # a held frame: 3 periods instead of 1
    motion = load_deepmimic(write(tmp_path, clip))
    assert motion.meta["resampled"] and motion.num_frames == 22
    clip["Frames"][10][0] = 1e6
    with pytest.raises(FileError, match="frame durations"):
        load_deepmimic(write(tmp_path, clip))


def broken(change) -> dict:
    clip = copy.deepcopy(page())
    change(clip)
    return clip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ('{"Frames": [\n[1, 2,', r"not valid JSON \(.* line 2"),
        ("[" * 100_000, "nested too deeply"),
        ('{"clips": 1}', "not a DeepMimic clip"),
        ("[1, 2]", "not a DeepMimic clip"),
        ('{"Frames": []}', "0 frames; expected 1"),
        (broken(lambda c: c["Frames"][3].pop()), "frame 3 has 43 numbers"),
        (broken(lambda c: c["Frames"].__setitem__(2, "x")), "frame 2 has str"),
        (broken(lambda c: c["Frames"][1].__setitem__(5, "x")), "frame 1 holds something"),
        (broken(lambda c: c["Frames"][1].__setitem__(5, float("nan"))), "NaN is not a JSON number"),
        (broken(lambda c: c["Frames"][1].__setitem__(5, True)), "frame 1 holds something"),
        (broken(lambda c: c.__setitem__("Loop", 3)), "'Loop' is 3; expected text"),
        (
            broken(lambda c: c["Frames"][1].__setitem__(slice(4, 8), [0, 0, 0, 0])),
            "frame 1 has a quaternion of length 0 for root",
        ),
        (broken(lambda c: [row.__setitem__(0, 0) for row in c["Frames"]]), "frames last 0.0 s"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path, content, message):
    with pytest.raises(FileError, match=message) as error:
        load_deepmimic(write(tmp_path, content))
    assert "\n" not in str(error.value)


def test_wrong_character(tmp_path):
    clip = write(tmp_path, page())
    (tmp_path / "c.json").write_text('{"Skeleton": {"Joints": [{"Name": "root", "Parent": -1}]}}')
    with pytest.raises(FileError, match="not a DeepMimic character"):
        load_deepmimic(clip, tmp_path / "c.json")
    with pytest.raises(FileError, match="can't read"):
        load_deepmimic(clip, tmp_path / "missing.json")
