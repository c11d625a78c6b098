"""GLB files: valid by Khronos' own validator, equal after a round trip, readable when other tools made them."""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from vadis import rotation
from vadis.errors import FileError, SkeletonError, VadisError
from vadis.io.gltf import MIXAMO_NAMES, load_glb
from vadis.io.gltf_writer import save_glb
from vadis.motion import Motion
from vadis.skeleton import Skeleton, smpl22

pygltflib = pytest.importorskip("pygltflib", reason="needs the export extra")


def wild(frames: int = 50, seed: int = 0, skeleton: Skeleton | None = None) -> Motion:
    """Every joint turning about every axis, well past half a turn at the root."""
    skeleton = skeleton or smpl22()
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, frames)[:, None, None]
    start, speed = (torch.randn(skeleton.num_joints, 3, generator=generator) for _ in range(2))
    speed[0] = torch.tensor([0.0, 9.0, 0.0])
    root = torch.tensor([0.3, 1.0, -0.2]) + t[:, 0] * torch.tensor([1.0, 0.1, 2.0])
    return Motion(skeleton, root, rotation.from_rotvec(start + speed * t), 30.0, {"caption": "a person goes wild"})


def document(path: Path):
    return pygltflib.GLTF2().load(str(path))


def numbers(doc, accessor: int) -> np.ndarray:
    """The array (count, width) of an accessor of ours: tightly packed, one buffer."""
    a = doc.accessors[accessor]
    kind = {5121: np.uint8, 5123: np.uint16, 5126: np.float32}[a.componentType]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[a.type]
    flat = np.frombuffer(doc.binary_blob(), kind, a.count * width, doc.bufferViews[a.bufferView].byteOffset)
    return flat.reshape(a.count, width) / (np.iinfo(kind).max if a.normalized else 1)


def write(path: Path, doc, arrays: dict[int, np.ndarray]) -> None:
    """Append arrays to a document by hand, as another exporter would lay them out."""
    data = bytearray()
    kinds = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
    for _, array in sorted(arrays.items()):
        array = array.astype(np.float32).reshape(len(array), -1)
        doc.bufferViews.append(pygltflib.BufferView(buffer=0, byteOffset=len(data), byteLength=array.nbytes))
        doc.accessors.append(
            pygltflib.Accessor(
                bufferView=len(doc.bufferViews) - 1, componentType=5126, count=len(array), type=kinds[array.shape[1]],
                min=array.min(0).tolist(), max=array.max(0).tolist(),
            )
        )  # fmt: skip
        data += array.tobytes()
    doc.buffers = [pygltflib.Buffer(byteLength=len(data))]
    doc.set_binary_blob(bytes(data))
    doc.save_binary(str(path))


@pytest.fixture(scope="session")
def validator():
    """A function that validates a file with Khronos' gltf-validator (npm) and returns its issues."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node and the npm package gltf-validator")
    environment = dict(os.environ)
    folder = os.environ.get("VADIS_GLTF_VALIDATOR")
    if folder:
        environment["NODE_PATH"] = os.pathsep.join([folder, str(Path(folder) / "node_modules")])
    probe = subprocess.run([node, "-e", "require('gltf-validator')"], env=environment, capture_output=True)
    if probe.returncode:
        pytest.skip(
            "needs the npm package gltf-validator: install it anywhere and set VADIS_GLTF_VALIDATOR to that folder"
        )
    script = (
        "const v=require('gltf-validator'),f=require('fs');v.validateBytes(new Uint8Array(f.readFileSync(process.argv[1])))"
        ".then(r=>console.log(JSON.stringify(r.issues)))"
    )

    def validate(path: Path) -> dict:
        done = subprocess.run(
            [node, "-e", script, str(path)], env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    return validate


@pytest.mark.parametrize(
    "options",
    [{}, {"body": False}, {"t_pose_first_frame": True}, {"fps": 24.0}, {"name": "Ünicode 日本"}],
    ids=str,
)
def test_khronos_validator_finds_nothing(validator, tmp_path, options):
    issues = validator(save_glb(wild(), tmp_path / "wild.glb", **options))
    assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues["messages"]


def test_single_frame_and_other_skeletons_validate(validator, tmp_path):
    one = save_glb(wild(1), tmp_path / "one.glb")
    stick = Skeleton(("a", "b", "c"), (-1, 0, 1), torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 1, 0]]), "stick",
                     {2: torch.tensor([0.0, 0.5, 0.0])})  # fmt: skip
    bones = save_glb(wild(10, skeleton=stick), tmp_path / "stick.glb", body=False)
    for path in (one, bones):
        issues = validator(path)
        assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues["messages"]


@pytest.mark.parametrize("body", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_round_trip(tmp_path, seed, body):
    """Joints, rotations (twist included), rate, skeleton and notes come back; positions to a hundredth of a millimetre."""
    motion = wild(seed=seed)
    again = load_glb(save_glb(motion, tmp_path / "a.glb", body=body))
    assert again.fps == motion.fps and again.num_frames == motion.num_frames
    assert again.skeleton.name == "smpl22" and again.skeleton.same_tree(motion.skeleton)
    assert again.meta["caption"] == "a person goes wild"
    torch.testing.assert_close(again.skeleton.offsets, motion.skeleton.offsets, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.positions, motion.positions, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.rotations, motion.rotations, atol=1e-5, rtol=0)


def test_any_skeleton_without_a_body(tmp_path, mini_bvh):
    from vadis.io import load_motion

    motion = load_motion(mini_bvh[0])
    again = load_glb(save_glb(motion, tmp_path / "a.glb", body=False))
    place = [again.skeleton.index(n) for n in motion.skeleton.names]
    torch.testing.assert_close(again.positions[:, place], motion.positions, atol=1e-4, rtol=0)


def test_rest_pose_is_a_t_pose_on_the_floor_with_mixamo_names(tmp_path):
    doc = document(save_glb(wild(), tmp_path / "a.glb"))
    names = [node.name for node in doc.nodes]
    assert set(MIXAMO_NAMES) <= set(names) and MIXAMO_NAMES[0] == "mixamorig:Hips"
    assert {"mixamorig:LeftUpLeg", "mixamorig:RightToeBase", "mixamorig:Spine2", "mixamorig:LeftForeArm"} <= set(names)
    assert all(node.rotation is None and node.scale is None for node in doc.nodes)
    position = doc.accessors[doc.meshes[0].primitives[0].attributes.POSITION]
    assert position.min[1] == pytest.approx(0, abs=0.004) and 1.6 < position.max[1] < 1.85
    assert position.max[0] == pytest.approx(-position.min[0], abs=2e-3)
    assert doc.skins[0].joints == list(range(22))
    assert doc.animations[0].name == "a person goes wild"


def test_the_skinned_mesh_in_the_file_is_the_mannequin_posed(tmp_path):
    """Skin the file's own arrays by glTF's rule (joint world × inverse bind) and compare with `Mannequin.pose`."""
    from vadis.body.mannequin import build_mannequin

    motion = wild(5)
    doc = document(save_glb(motion, tmp_path / "a.glb"))
    shape = doc.meshes[0].primitives[0].attributes
    points, joints, weights = (numbers(doc, n) for n in (shape.POSITION, shape.JOINTS_0, shape.WEIGHTS_0))
    inverse = numbers(doc, doc.skins[0].inverseBindMatrices).reshape(-1, 4, 4).transpose(0, 2, 1)
    world = np.tile(np.eye(4), (22, 1, 1))
    world[:, :3, :3], world[:, :3, 3] = motion.global_rotations[3], motion.positions[3]
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1)
    skin = (weights[..., None, None] * (world @ inverse)[joints.astype(int)]).sum(1)
    expected, _ = build_mannequin(motion.skeleton).pose(motion, [3])
    np.testing.assert_allclose((skin @ homogeneous[..., None])[:, :3, 0], expected[0], atol=2e-4)


def test_t_pose_first_frame(tmp_path):
    motion = wild()
    path = save_glb(motion, tmp_path / "a.glb", t_pose_first_frame=True)
    assert document(path).accessors[-1].count == motion.num_frames + 1
    torch.testing.assert_close(load_glb(path).positions, motion.positions, atol=1e-5, rtol=0)  # dropped when read back
    turn = np.frombuffer(document(path).binary_blob(), np.float32, 4, document(path).bufferViews[-1].byteOffset)
    np.testing.assert_allclose(turn, [0, 0, 0, 1])


def test_resampling(tmp_path):
    motion = wild(61)
    again = load_glb(save_glb(motion, tmp_path / "a.glb", fps=24))
    assert again.fps == 24 and again.num_frames == 49
    torch.testing.assert_close(again.positions, motion.resample(24).positions, atol=1e-5, rtol=0)
    assert load_glb(tmp_path / "a.glb", fps=12).num_frames == 25


def test_neighbouring_quaternions_never_jump(tmp_path):
    doc = document(save_glb(wild(), tmp_path / "a.glb"))
    for sampler in doc.animations[0].samplers[1:]:
        keys = numbers(doc, sampler.output)
        assert ((keys[1:] * keys[:-1]).sum(1) > 0).all()


def test_mixamo_like_file(tmp_path):
    """A centimetre armature, turned and scaled above the hips, bones whose rest rotations are not identities."""
    doc = pygltflib.GLTF2(scene=0, scenes=[pygltflib.Scene(nodes=[0])], asset=pygltflib.Asset(version="2.0"))
    half = float(np.sqrt(0.5))
    doc.nodes = [
        pygltflib.Node(name="Armature", scale=[0.01] * 3, rotation=[-half, 0, 0, half], children=[1]),
        pygltflib.Node(name="mixamorig:Hips", translation=[0, 0, 100], rotation=[half, 0, 0, half], children=[2]),
        pygltflib.Node(name="mixamorig:Spine", translation=[0, 20, 0], rotation=[0, 0, half, half], children=[3]),
        pygltflib.Node(name="mixamorig:Neck", translation=[30, 0, 0]),
    ]
    doc.skins = [pygltflib.Skin(joints=[1, 2, 3])]
    times = np.array([0, 0.5, 1.0])
    hips = np.array([[0, 0, 100], [50, 0, 100], [100, 0, 120.0]])
    bend = np.array([[0, 0, half, half], [0, 0, 0, 1], [0, 0, 0, 1.0]])
    sampler, target = pygltflib.AnimationSampler, pygltflib.AnimationChannelTarget
    doc.animations = [
        pygltflib.Animation(
            name="mixamo.com",
            samplers=[sampler(input=0, output=1), sampler(input=0, output=2, interpolation="STEP")],
            channels=[
                pygltflib.AnimationChannel(sampler=0, target=target(node=1, path="translation")),
                pygltflib.AnimationChannel(sampler=1, target=target(node=2, path="rotation")),
            ],
        )
    ]
    write(tmp_path / "m.glb", doc, {0: times, 1: hips, 2: bend})
    motion = load_glb(tmp_path / "m.glb", animation="mixamo.com", fps=4)
    assert motion.skeleton.names == ("mixamorig:Hips", "mixamorig:Spine", "mixamorig:Neck")
    expected_rest = torch.tensor([[0, 0, 0], [0, 0.2, 0], [0, 0.3, 0]])
    torch.testing.assert_close(motion.skeleton.offsets, expected_rest, atol=1e-6, rtol=0)
    expected = torch.tensor([[[0, 1, 0], [0, 1.2, 0], [0, 1.5, 0]], [[0.25, 1, 0], [0.25, 1.2, 0], [0.25, 1.5, 0]],
                             [[0.5, 1, 0], [0.5, 1.2, 0], [0.8, 1.2, 0]]])  # fmt: skip
    torch.testing.assert_close(motion.positions[:3], expected, atol=1e-5, rtol=0)
    assert load_glb(tmp_path / "m.glb").fps == 2  # the spacing of the keys
    with pytest.raises(VadisError, match=r"mixamo\.com"):
        load_glb(tmp_path / "m.glb", animation="run")


def test_errors_say_what_to_do(tmp_path):
    stick = wild(4, skeleton=Skeleton(("a", "b"), (-1, 0), torch.tensor([[0.0, 0, 0], [0, 1, 0]])))
    with pytest.raises(SkeletonError, match=r"vadis\.retarget"):
        save_glb(stick, tmp_path / "x.glb")
    assert not (tmp_path / "x.glb").exists()
    with pytest.raises(FileError, match=r"can't read .*x\.glb"):
        load_glb(tmp_path / "x.glb")
    for name, content in (("noise.glb", b"not a glb at all" * 8), ("empty.glb", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=name):
            load_glb(tmp_path / name)
    whole = save_glb(wild(4), tmp_path / "whole.glb").read_bytes()
    for size in (10, 30, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.glb").write_bytes(whole[:size])
        with pytest.raises(FileError, match=r"cut\.glb"):
            load_glb(tmp_path / "cut.glb")
    doc = document(tmp_path / "whole.glb")
    doc.animations = []
    doc.save_binary(str(tmp_path / "still.glb"))
    with pytest.raises(FileError, match="no animation"):
        load_glb(tmp_path / "still.glb")


def repacked(path: Path, page: dict, binary: bytes) -> Path:
    """A GLB file of a JSON page and a binary chunk, its lengths right."""
    text = json.dumps(page).encode()
    text += b" " * (-len(text) % 4)
    sizes = struct.pack("<II", 2, 28 + len(text) + len(binary))
    path.write_bytes(
        b"glTF"
        + sizes
        + struct.pack("<I", len(text))
        + b"JSON"
        + text
        + struct.pack("<I", len(binary))
        + b"BIN\0"
        + binary
    )
    return path


def floats(page: dict, binary: bytearray, accessor: int) -> np.ndarray:
    """The numbers of an accessor, to be changed in place."""
    a = page["accessors"][accessor]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[a["type"]]
    return np.frombuffer(binary, np.float32, a["count"] * width, page["bufferViews"][a["bufferView"]]["byteOffset"])


def _times(page, binary):
    return floats(page, binary, page["animations"][0]["samplers"][0]["input"])


def _turns(page, binary):
    return floats(page, binary, page["animations"][0]["samplers"][1]["output"])


GLB_DAMAGE = {
    "no joints": (lambda p, b: p["skins"][0].update(joints=[]), "skins.0.joints"),
    "a joint that isn't there": (lambda p, b: p["skins"][0]["joints"].append(10_000), "node 10000"),
    "a rate of 10^9": (lambda p, b: p["asset"]["extras"]["vadis"].update(fps=1e9), "vadis.fps: .*10000"),
    "keys at 10^6 s": (lambda p, b: _times(p, b).__imul__(1e6), "key times from"),
    "a day at 10,000 frames": (
        lambda p, b: (_times(p, b).__imul__(1e4), p["asset"]["extras"]["vadis"].update(fps=1e4)),
        "frames .* out of 6 keys",
    ),
    "keys out of order": (lambda p, b: _times(p, b).__setitem__(2, 0), "must rise"),
    "keys that are NaN": (lambda p, b: _times(p, b).__setitem__(2, np.nan), "NaN or infinite"),
    "a turn of length zero": (lambda p, b: _turns(p, b).__setitem__(slice(0, 4), 0), "quaternion of length 0"),
    "a negative offset": (lambda p, b: p["bufferViews"][1].update(byteOffset=-4), "bufferViews.1.byteOffset"),
    "an offset beyond the end": (lambda p, b: p["bufferViews"][2].update(byteOffset=1 << 30), "cut off or damaged"),
    "a count beyond the end": (lambda p, b: p["accessors"][2].update(count=1 << 30), "cut off or damaged"),
    "an accessor that isn't there": (
        lambda p, b: p["animations"][0]["samplers"][0].update(output=999),
        "accessor 999; there are",
    ),
    "a sampler that isn't there": (lambda p, b: p["animations"][0]["channels"][0].update(sampler=999), "sampler 999"),
    "another type": (lambda p, b: p["accessors"][2].update(type="VEC5"), "accessors.2.type"),
    "a node above itself": (lambda p, b: p["nodes"][15].update(children=[0]), "in a circle|more than one"),
    "text for a number": (lambda p, b: p["nodes"][0].update(translation=["a", 0, 0]), "nodes.0.translation.0"),
    "a mirrored node": (
        lambda p, b: p["nodes"][1].update(matrix=[-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]),
        "mirrors, flattens or shears",
    ),
    "a flat node": (lambda p, b: p["nodes"][1].update(matrix=[0] * 15 + [1]), "mirrors, flattens or shears|length 0"),
    "another version": (lambda p, b: p["asset"].update(version="3.0"), "glTF 3.0"),
    "notes of another kind": (lambda p, b: p["asset"]["extras"].update(vadis=[1]), "asset.extras: vadis"),
}


@pytest.mark.parametrize("kind", GLB_DAMAGE)
def test_damaged_pages_and_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    """One line that names the file and the field, before memory is taken."""
    change, said = GLB_DAMAGE[kind]
    whole = save_glb(wild(6), tmp_path / "whole.glb", body=False).read_bytes()
    length = struct.unpack_from("<I", whole, 12)[0]
    page, binary = json.loads(whole[20 : 20 + length]), bytearray(whole[28 + length :])
    assert load_glb(repacked(tmp_path / "same.glb", page, bytes(binary))).num_frames == 6
    change(page, binary)
    with pytest.raises(FileError, match=said) as caught:
        load_glb(repacked(tmp_path / "bad.glb", page, bytes(binary)))
    assert "bad.glb" in str(caught.value)


def test_two_keys_at_one_time_are_a_cut(tmp_path: Path) -> None:
    """Not strictly legal, but viewers play it: up to the cut one pose, from it on the other."""
    whole = save_glb(wild(6), tmp_path / "whole.glb", body=False).read_bytes()
    length = struct.unpack_from("<I", whole, 12)[0]
    page, binary = json.loads(whole[20 : 20 + length]), bytearray(whole[28 + length :])
    times, motion = _times(page, binary), wild(6)
    times[3] = times[2]
    read = load_glb(repacked(tmp_path / "cut.glb", page, bytes(binary)))
    assert read.num_frames == 6
    torch.testing.assert_close(read.root[2], motion.root[3], atol=1e-4, rtol=0)
    torch.testing.assert_close(read.root[[0, 1, 4, 5]], motion.root[[0, 1, 4, 5]], atol=1e-4, rtol=0)
