"""ASF/AMC against the BVH conversions of the same recording, a brute-force reading, and damaged files."""

import random
import shutil

import numpy as np
import pytest
import torch

import vadis
from vadis.errors import FileError, VadisError
from vadis.io.archive import iter_motion_files
from vadis.io.asf_amc import find_asf, parse_amc
from vadis.retargeting import TABLES

ASF = """# comment
:version 1.10
:name TEST
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 1 2 3
   orientation 0 30 0
:bonedata
  begin
     id 1
     name thigh
     direction 0.6 -0.8 0
     length 10
     axis 10 20 30 ZYX
     dof rz rx
     limits (-160.0 20.0)
            (-70.0 70.0)
  end
  begin
     id 2
     name link
     direction 1 0 0
     length 2
     axis 0 0 0 XYZ
  end
  begin
     id 3
     name shin
     direction 0 -1 0
     length 12
     axis 0 45 0 XYZ
     dof rx ry rz
  end
:hierarchy
  begin
    root link
    link thigh
    thigh shin
  end
"""
AMC = """#!OML:ASF test
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 10 20 30
thigh 40 50
shin 11 -12 13
2
root 1 2 4 10 20 31
thigh 41 1.5e1
shin -1.6201e-014 0 0
"""


def turn(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def test_equals_a_brute_force_reading():
    motion = parse_amc(AMC.encode(), ASF.encode(), unit="cm")
    assert motion.skeleton.names == ("root", "link", "thigh", "shin") and motion.fps == 120
    c_root = turn(1, 30)
    c_thigh = turn(0, 30) @ turn(1, 20) @ turn(2, 10)  # ZYX: z first
    c_shin = turn(1, 45)
    rows = [((1, 2, 3, 10, 20, 30), (40, 50), (11, -12, 13)), ((1, 2, 4, 10, 20, 31), (41, 15), (0, 0, 0))]
    for t, (root, thigh, shin) in enumerate(rows):
        g = c_root @ turn(2, root[5]) @ turn(1, root[4]) @ turn(0, root[3]) @ c_root.T
        p = np.array(root[:3]) + np.array([1, 2, 3])
        expected = [p, p]
        p = p + g @ (2, 0, 0)
        expected.append(p)
        g = g @ c_thigh @ turn(0, thigh[1]) @ turn(2, thigh[0]) @ c_thigh.T  # rz before rx
        p = p + g @ (6, -8, 0)
        expected.append(p)
        g = g @ c_shin @ turn(2, shin[2]) @ turn(1, shin[1]) @ turn(0, shin[0]) @ c_shin.T
        order = [expected[0], expected[1], expected[2], expected[3]]
        np.testing.assert_allclose(motion.positions[t].numpy() * 100, order, atol=1e-4)
        tip = motion.skeleton.tips(motion.positions, motion.global_rotations)[t, 0].numpy() * 100
        np.testing.assert_allclose(tip, p + g @ (0, -12, 0), atol=1e-4)


def test_same_motion_as_the_converted_bvh(shared_data):
    bvh = dict(_open(shared_data / "cmu31.tar.xz", "cmu31/02_01.bvh"))["motion"]
    amc, released = _originals(shared_data)
    assert amc.num_frames == bvh.num_frames and amc.meta["fps_assumed"]
    for target, name in TABLES["asf"].items():
        here = amc.positions[:, amc.skeleton.index(name)]
        there = bvh.positions[:, bvh.skeleton.index(TABLES["cmu31"][target])]
        assert float((here - there).norm(dim=-1).max()) < 1e-4  # a tenth of a millimetre
        if target in ("pelvis", "left_hip", "right_ankle", "left_foot", "spine3"):  # below the chest bone that it lacks
            there = released.positions[1:, released.skeleton.index(TABLES["cmu31"][target])]
            assert float((here - there).norm(dim=-1).max()) < 1e-4


def _open(archive, name):
    for found, path in iter_motion_files(archive):
        if found == name:
            yield "motion", vadis.load_motion(path)


def _originals(shared_data):
    result = {}
    for name, path in iter_motion_files(shared_data / "originals.tar.xz"):
        if name.endswith(("02_01.amc", "02_01_as_distributed.bvh")):
            result[path.suffix] = vadis.load_motion(path)
    return result[".amc"], result[".bvh"]


def test_scrambled_frames_read_the_same():
    lines = AMC.split("\n")
    lines[4], lines[6] = lines[6], lines[4]
    lines.insert(5, "")
    motion = parse_amc("\r\n".join(lines).encode(), ASF.encode())
    torch.testing.assert_close(motion.positions, parse_amc(AMC.encode(), ASF.encode()).positions)


def test_radians():
    asf = ASF.replace("angle deg", "angle rad")
    for degrees in ("10 20 30", "0 30 0", "0 45 0"):
        radians = " ".join(f"{np.radians(float(word)):.9f}" for word in degrees.split())
        asf = asf.replace(degrees, radians)
    amc = AMC.replace(":DEGREES", ":RADIANS").replace(
        "10 20 30\n", f"{np.radians(10)} {np.radians(20)} {np.radians(30)}\n"
    )
    expected = parse_amc(AMC.encode(), ASF.encode()).rotations[0, 0]
    torch.testing.assert_close(parse_amc(amc.encode(), asf.encode()).rotations[0, 0], expected, atol=1e-6, rtol=0)


def test_finding_the_skeleton(tmp_path):
    (tmp_path / "02_01.amc").write_text(AMC)
    with pytest.raises(FileError, match=r"needs its \.asf skeleton beside it.*there is none"):
        vadis.load_motion(tmp_path / "02_01.amc")
    (tmp_path / "other.asf").write_text(ASF)
    assert vadis.load_motion(tmp_path / "02_01.amc").meta["asf"] == "other.asf"
    (tmp_path / "0.asf").write_text(ASF)
    with pytest.raises(FileError, match=r"0\.asf, other\.asf are there\. Pass asf="):
        find_asf(tmp_path / "02_01.amc")
    shutil.copy(tmp_path / "0.asf", tmp_path / "02.ASF")
    assert find_asf(tmp_path / "02_01.amc").name == "02.ASF"
    assert vadis.load_motion(tmp_path / "02_01.amc", asf=tmp_path / "0.asf", fps=60).fps == 60
    with pytest.raises(FileError, match="can't read"):
        vadis.load_motion(tmp_path / "02_01.amc", asf=tmp_path / "missing.asf")
    with pytest.raises(FileError, match="a skeleton without motion"):
        vadis.load_motion(tmp_path / "0.asf")


@pytest.mark.parametrize(
    ("amc", "asf", "message"),
    [
        ("", ASF, "no frame number"),
        (AMC, "", "no :bonedata"),
        (AMC.replace("thigh 41 1.5e1", "thigh 41"), ASF, "line 10: bone 'thigh' needs 2 numbers, found '41'"),
        (AMC.replace("thigh 41 1.5e1", "thigh 41 x"), ASF, "line 10: bone 'thigh' needs 2 numbers"),
        (AMC.replace("thigh 41 1.5e1", "thigh 41 nan"), ASF, "line 10: bone 'thigh' needs 2"),
        (AMC.replace("thigh 41", "toe 41"), ASF, "line 10: bone 'toe' is not in the skeleton"),
        (AMC.replace("thigh 41 1.5e1\n", ""), ASF, "the last frame has no values for bone 'thigh'"),
        (AMC.replace("thigh 40 50\n", ""), ASF, "line 7: frame 1 has no values for bone 'thigh'"),
        (AMC.replace("2\nroot", "root"), ASF, "line 8: bone 'root' occurs twice in frame 1"),
        (AMC.replace("thigh 40 50", "thigh 40").replace("shin 11", "shin 50 11"), ASF, "line 6: bone 'thigh' needs 2"),
        (AMC, ASF.replace("link thigh", "link toe"), "line 42: unknown bone 'toe'"),
        (AMC, ASF.replace("thigh shin", "root shin\n root thigh"), "bone 'thigh' has two parents"),
        (AMC, ASF.replace("    link thigh\n", ""), "bones without a way to the root: thigh, shin"),
        (AMC, ASF.replace("name shin", "name thigh"), "has no name of its own: 'thigh'"),
        (AMC, ASF.replace("direction 1 0 0", "direction 1 0"), "line 27: expected 3 finite numbers"),
        (AMC, ASF.replace("dof rz rx", "dof rz rw"), "line 20: unknown channels"),
        (AMC, ASF.replace("20 30 ZYX", "20 30 ZYZ"), "line 19: unknown axis order"),
        (AMC, ASF.replace("length 0.45", "length 0"), "line 6: the length unit must be positive"),
    ],
)
def test_damaged_files_name_the_line(amc, asf, message):
    with pytest.raises(FileError, match=message) as error:
        parse_amc(amc.encode(), asf.encode())
    assert "\n" not in str(error.value)


def test_any_mutation_loads_or_raises_our_error():
    rng = random.Random(3)
    loaded = 0
    for k in range(600):
        files = [bytearray(AMC.encode()), bytearray(ASF.encode())]
        body = files[k % 2]
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(body))
            body[at : at + rng.randrange(4)] = rng.choice(
                [b"", b"7", b"nan", b"1e999", b"\xff", b" ", b"\n", b"begin\n", b":"]
            )
        try:
            motion = parse_amc(bytes(files[0]), bytes(files[1]))
        except VadisError as error:
            assert "\n" not in str(error)
        else:
            assert torch.isfinite(motion.positions).all()
            loaded += 1
    assert loaded > 20
