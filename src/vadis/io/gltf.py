"""GLB (binary glTF 2.0): the mannequin, skinned and animated on Mixamo-named bones, and skinned animations read back.

glTF is right-handed, Y up, in metres, as motions are, so no axis is swapped. Bone rest rotations are identities: a
bone's animated rotation is the joint's own local rotation, twist included.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vadis import __version__, rotation
from vadis.errors import FileError, MissingExtra, SkeletonError, VadisError
from vadis.files import atomic_write
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton

if TYPE_CHECKING:
    import pygltflib

_SIDED = {
    "hip": "UpLeg", "knee": "Leg", "ankle": "Foot", "foot": "ToeBase", "collar": "Shoulder", "shoulder": "Arm",
    "elbow": "ForeArm", "wrist": "Hand",
}  # fmt: skip
_MIDDLE = {"pelvis": "Hips", "spine1": "Spine", "spine2": "Spine1", "spine3": "Spine2", "neck": "Neck", "head": "Head"}


def _mixamo(name: str) -> str:
    side, _, part = name.partition("_")
    return "mixamorig:" + (_MIDDLE[name] if name in _MIDDLE else side.capitalize() + _SIDED[part])


MIXAMO_NAMES = tuple(_mixamo(name) for name in SMPL22_NAMES)
"""Mixamo's bone names for the 22 joints, in SMPL order."""

_FLOAT, _UBYTE, _USHORT = 5126, 5121, 5123
_DTYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def _library() -> Any:
    try:
        import pygltflib
    except ImportError as error:
        raise MissingExtra("GLB files need pygltflib: pip install 'vadis[export]'") from error
    return pygltflib


class _Writer:
    """A glTF document that grows accessor by accessor, all in one buffer."""

    def __init__(self) -> None:
        self.lib = _library()
        self.doc = self.lib.GLTF2()
        self.data = bytearray()

    def accessor(self, array: NDArray[Any], kind: str, component: int, bounds: bool = False, target: int | None = None,
                 normalized: bool | None = None) -> int:  # fmt: skip
        while len(self.data) % 4:
            self.data.append(0)
        raw = np.ascontiguousarray(array).tobytes()
        view = self.lib.BufferView(buffer=0, byteOffset=len(self.data), byteLength=len(raw), target=target)
        self.doc.bufferViews.append(view)
        self.data += raw
        flat = array.reshape(len(array), -1)
        self.doc.accessors.append(
            self.lib.Accessor(
                bufferView=len(self.doc.bufferViews) - 1, byteOffset=0, componentType=component, type=kind, count=len(array),
                normalized=normalized,
                min=[float(v) for v in flat.min(0)] if bounds else None,
                max=[float(v) for v in flat.max(0)] if bounds else None,
            )
        )  # fmt: skip
        return len(self.doc.accessors) - 1

    def save(self, path: Path) -> None:
        while len(self.data) % 4:
            self.data.append(0)
        self.doc.buffers = [self.lib.Buffer(byteLength=len(self.data))]
        self.doc.set_binary_blob(bytes(self.data))
        with atomic_write(path) as temporary:
            self.doc.save_binary(str(temporary))


def _caption(motion: Motion, fallback: str) -> str:
    for key in ("caption", "text", "prompt", "name"):
        if isinstance(value := motion.meta.get(key), str) and value.strip():
            return " ".join(value.split())[:120]
    return fallback


def save_glb(motion: Motion, path: str | Path, body: bool = True, fps: float | None = None,
             t_pose_first_frame: bool = False, name: str | None = None) -> Path:  # fmt: skip
    """Write a motion as a GLB that opens in Blender, Unreal, Unity, Houdini and web viewers.

    The rest pose is a T-pose facing +Z with the feet on the floor; bones carry Mixamo's names (`MIXAMO_NAMES`). World
    joint positions in the file equal `motion.positions`.

    Args:
        motion: on the smpl22 tree, or on any tree with `body=False`.
        path: target, usually `*.glb`.
        body: bind the mannequin's mesh to the bones; without it only bones are written, under their own names when the
            tree isn't smpl22.
        fps: resample to this rate first; None keeps the motion's.
        t_pose_first_frame: put the rest pose at time 0, the motion follows one frame later.
        name: of the animation; None takes the caption in `motion.meta`, else the file's stem.

    Raises SkeletonError when `body` is asked for another tree; MissingExtra without pygltflib; FileError when the
    file can't be written.
    """
    path = Path(path)
    smpl = motion.skeleton.names == SMPL22_NAMES and motion.skeleton.parents == SMPL22_PARENTS
    if body and not smpl:
        raise SkeletonError(
            f"the mannequin needs the 22 joints of smpl22; this motion has {motion.skeleton}. Convert it with "
            "vadis.retarget(motion, 'smpl22'), or write bones only with body=False."
        )
    motion = motion if fps is None else motion.resample(fps)
    skeleton = motion.skeleton
    out = _Writer()
    lib, doc = out.lib, out.doc
    rest = skeleton.rest_positions.numpy()
    if body:
        from vadis.viewer.mannequin import build_mannequin  # the mesh grows in a second; bones alone don't wait for it

        mesh = build_mannequin(skeleton)
        lift = -mesh.sole
    else:
        mesh, lift = None, -float(rest[:, 1].min())
    rest = rest + np.array([0, lift, 0], np.float32)

    names = MIXAMO_NAMES if smpl else skeleton.names
    for j, bone in enumerate(names):
        offset = rest[0] if j == 0 else skeleton.offsets[j].numpy()
        doc.nodes.append(
            lib.Node(name=bone, translation=[float(v) for v in offset], children=list(skeleton.children[j]))
        )
    for j, tip in skeleton.end_sites.items():
        doc.nodes.append(lib.Node(name=f"{names[j]}_end", translation=[float(v) for v in tip]))
        doc.nodes[j].children.append(len(doc.nodes) - 1)
    inverse = np.tile(np.eye(4, dtype=np.float32), (len(rest), 1, 1))
    inverse[:, 3, :3] = -rest  # column-major, so the translation is the last row
    doc.skins = [lib.Skin(name="Skeleton", skeleton=0, joints=list(range(len(rest))),
                          inverseBindMatrices=out.accessor(inverse.reshape(-1, 16), "MAT4", _FLOAT))]  # fmt: skip
    roots = [0]
    if mesh is not None:
        roots.append(len(doc.nodes))
        doc.nodes.append(lib.Node(name="Mannequin", mesh=0, skin=0))
        _write_mesh(out, mesh, lift)
    doc.scenes, doc.scene = [lib.Scene(name="Scene", nodes=roots)], 0
    _write_animation(out, motion, rest[0], t_pose_first_frame, name or _caption(motion, path.stem))
    notes = {k: v for k, v in motion.meta.items() if isinstance(v, str | int | float | bool)}
    doc.asset = lib.Asset(version="2.0", generator=f"vadis {__version__}",
                          extras={"vadis": {"fps": motion.fps, "t_pose_first_frame": t_pose_first_frame, "meta": notes}})  # fmt: skip
    out.save(path)
    return path


def _write_mesh(out: _Writer, mesh: Any, lift: float) -> None:
    lib = out.lib
    colors = np.concatenate([mesh.colors, np.ones((len(mesh.colors), 1))], 1)
    weights = np.floor(mesh.weights * 65535 + 0.5).astype(np.int64)
    weights[:, 0] += 65535 - weights.sum(1)  # glTF asks for a sum of exactly one
    vertex, index = 34962, 34963
    attributes = lib.Attributes(
        POSITION=out.accessor(
            mesh.vertices + np.array([0, lift, 0], np.float32), "VEC3", _FLOAT, bounds=True, target=vertex
        ),
        NORMAL=out.accessor(mesh.normals, "VEC3", _FLOAT, target=vertex),
        COLOR_0=out.accessor(np.round(colors * 255).astype(np.uint8), "VEC4", _UBYTE, target=vertex, normalized=True),
        JOINTS_0=out.accessor(mesh.joints.astype(np.uint8), "VEC4", _UBYTE, target=vertex),
        WEIGHTS_0=out.accessor(weights.astype(np.uint16), "VEC4", _USHORT, target=vertex, normalized=True),
    )
    small = len(mesh.vertices) < 65535
    faces = out.accessor(mesh.faces.astype(np.uint16 if small else np.uint32).reshape(-1), "SCALAR", _USHORT if small else 5125,
                         target=index)  # fmt: skip
    surface = lib.PbrMetallicRoughness(baseColorFactor=[1.0, 1.0, 1.0, 1.0], metallicFactor=0.0, roughnessFactor=0.65)
    out.doc.materials = [
        lib.Material(name="Clay", pbrMetallicRoughness=surface, alphaMode=None, alphaCutoff=None, doubleSided=None)
    ]
    out.doc.meshes = [
        lib.Mesh(name="Mannequin", primitives=[lib.Primitive(attributes=attributes, indices=faces, material=0)])
    ]


def _write_animation(out: _Writer, motion: Motion, hips: NDArray[np.float32], t_pose: bool, name: str) -> None:
    lib = out.lib
    quats = rotation.to_quat_wxyz(motion.rotations).roll(-1, dims=-1).numpy()  # (T, J, 4) in x, y, z, w
    root = motion.root.numpy()
    if t_pose:
        quats = np.concatenate([np.broadcast_to(np.array([0, 0, 0, 1], np.float32), quats[:1].shape), quats])
        root = np.concatenate([[[root[0, 0], hips[1], root[0, 2]]], root])
    turn = np.sign((quats[1:] * quats[:-1]).sum(-1, keepdims=True))  # keys next to each other on one hemisphere
    turn[turn == 0] = 1
    quats = np.concatenate([quats[:1], quats[1:] * np.cumprod(turn, 0)]).astype(np.float32)
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    times = out.accessor((np.arange(len(root)) / motion.fps).astype(np.float32), "SCALAR", _FLOAT, bounds=True)
    tracks = [(0, "translation", out.accessor(root.astype(np.float32), "VEC3", _FLOAT))]
    tracks += [(j, "rotation", out.accessor(quats[:, j], "VEC4", _FLOAT)) for j in range(quats.shape[1])]
    animation = lib.Animation(name=name)
    for k, (node, kind, values) in enumerate(tracks):
        animation.samplers.append(lib.AnimationSampler(input=times, output=values, interpolation="LINEAR"))
        animation.channels.append(
            lib.AnimationChannel(sampler=k, target=lib.AnimationChannelTarget(node=node, path=kind))
        )
    out.doc.animations = [animation]


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.doc: pygltflib.GLTF2 = _library().GLTF2().load(str(path))
        except MissingExtra:
            raise
        except Exception as error:  # pygltflib and its json layer raise many kinds
            raise FileError(
                f"{path.name} is not a readable GLB ({error}): export it again as binary glTF 2.0."
            ) from error
        if self.doc is None:
            raise FileError(f"no file {path}: check the path.")
        self.blob = self.doc.binary_blob()

    def array(self, number: int) -> NDArray[np.float64]:
        accessor = self.doc.accessors[number]
        if accessor.bufferView is None or accessor.sparse is not None:
            raise FileError(
                f"{self.path.name} uses sparse accessors, which are not read: export it without compression."
            )
        view = self.doc.bufferViews[accessor.bufferView]
        if self.blob is None or self.doc.buffers[view.buffer].uri:
            raise FileError(f"{self.path.name} keeps its data in other files: export it as one binary GLB.")
        dtype, width = np.dtype(_DTYPES[accessor.componentType]), _WIDTHS[accessor.type]
        start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
        stride = view.byteStride or dtype.itemsize * width
        end = start + stride * (accessor.count - 1) + dtype.itemsize * width
        if accessor.count < 1 or end > len(self.blob):
            raise FileError(
                f"{self.path.name} is cut off: {end} bytes of animation data announced, {len(self.blob)} there."
            )
        raw = np.frombuffer(self.blob, np.uint8, end - start, start)
        rows = np.lib.stride_tricks.as_strided(raw, (accessor.count, dtype.itemsize * width), (stride, 1))
        values = np.ascontiguousarray(rows).view(dtype).astype(np.float64)
        return values / np.iinfo(dtype).max if accessor.normalized and dtype.kind in "iu" else values


def _sample(times: NDArray[np.float64], keys: NDArray[np.float64], values: NDArray[np.float64], mode: str,
            turning: bool) -> NDArray[np.float64]:  # fmt: skip
    """Values `(T, C)` of one sampler at `times`; outside its keys the first or last value holds."""
    at = np.clip(times, keys[0], keys[-1])
    if mode == "STEP" or len(keys) == 1:
        return values[np.clip(np.searchsorted(keys, at + 1e-6, side="right") - 1, 0, len(keys) - 1)]
    if turning:
        from scipy.spatial.transform import Rotation, Slerp

        return Slerp(keys, Rotation.from_quat(values))(at).as_quat()
    return np.stack([np.interp(at, keys, values[:, c]) for c in range(values.shape[1])], 1)


def _compose(
    translation: NDArray[np.float64], quat: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    from scipy.spatial.transform import Rotation

    matrix = np.tile(np.eye(4), (len(translation), 1, 1))
    matrix[:, :3, :3] = Rotation.from_quat(quat).as_matrix() * scale[:, None, :]
    matrix[:, :3, 3] = translation
    return matrix


def load_glb(path: str | Path, animation: int | str = 0, fps: float | None = None) -> Motion:
    """Read a skinned animation: bone nodes become a skeleton whose rest pose is the file's own, keys become frames.

    Node TRS, LINEAR and STEP samplers; the tangents of CUBICSPLINE are ignored. World transforms above the first bone
    (a 0.01 scale, a turned armature) are applied. A file of ours comes back on smpl22; other bones keep their names.
    The rest pose is that of the nodes, scaled to metres.

    Args:
        path: a `.glb` with one skin or with animated nodes.
        animation: number or name.
        fps: frame rate to sample at; None takes the one in the file, or the spacing of its keys.

    Raises FileError for a damaged file, one without an animation or without bones, VadisError for an unknown animation.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no file {path}: check the path.")
    reader = _Reader(path)
    doc = reader.doc
    if not doc.animations:
        raise FileError(f"{path.name} holds no animation: export it with one.")
    track = _pick(doc.animations, animation)
    samples: dict[tuple[int, str], tuple[NDArray[np.float64], NDArray[np.float64], str]] = {}
    for channel in track.channels:
        sampler = track.samplers[channel.sampler]
        if channel.target.node is None or channel.target.path not in ("translation", "rotation", "scale"):
            continue
        keys, values = reader.array(sampler.input)[:, 0], reader.array(sampler.output)
        mode = sampler.interpolation or "LINEAR"
        values = values.reshape(len(keys), 3, -1)[:, 1] if mode == "CUBICSPLINE" else values
        samples[channel.target.node, channel.target.path] = (keys, values, mode)
    if not samples:
        raise FileError(f"{path.name} animates no bones: export the armature's action.")

    notes = (doc.asset.extras or {}).get("vadis", {}) if doc.asset else {}
    union = np.unique(np.round(np.concatenate([keys for keys, _, _ in samples.values()]), 6))
    if fps is None:
        fps = float(notes["fps"]) if "fps" in notes else _rate(union)
    count = int(np.floor((union[-1] - union[0]) * fps + 0.01)) + 1
    times = union[0] + np.arange(count) / fps
    if notes.get("t_pose_first_frame") and count > 1:
        times = times[1:]

    joints, parents, chain = _bones(doc, samples, path)
    rest, world = _world(doc, joints, parents, chain, samples, times)
    return _motion(
        doc,
        joints,
        parents,
        rest,
        world,
        fps,
        {"source": path.name, "animation": track.name or "", **notes.get("meta", {})},
    )


def _pick(animations: list[Any], wanted: int | str) -> Any:
    names = [a.name or str(k) for k, a in enumerate(animations)]
    if isinstance(wanted, str) and wanted in names:
        return animations[names.index(wanted)]
    if isinstance(wanted, int) and 0 <= wanted < len(animations):
        return animations[wanted]
    raise VadisError(f"no animation {wanted!r}; the file has {', '.join(names)}.")


def _rate(keys: NDArray[np.float64]) -> float:
    """Frames per second from key times: the usual step, rounded to a whole rate when it is within a per cent of one."""
    if len(keys) < 2:
        return 30.0
    rate = 1 / float(np.median(np.diff(keys)))
    return float(round(rate)) if abs(rate - round(rate)) < 0.01 * rate else rate


def _bones(doc: Any, samples: dict[tuple[int, str], Any], path: Path) -> tuple[list[int], list[int], list[int]]:
    """Joint nodes in parent-before-child order, parents as positions in that list, and the nodes above the first joint."""
    above = {child: node for node, n in enumerate(doc.nodes) for child in n.children or []}

    def line(node: int) -> list[int]:
        result = [node]
        while result[-1] in above and len(result) <= len(doc.nodes):
            result.append(above[result[-1]])
        return result[::-1]

    wanted = list(doc.skins[0].joints) if doc.skins else sorted({node for node, _ in samples})
    lines = [line(node) for node in wanted]
    shared = 0
    while all(len(x) > shared and x[shared] == lines[0][shared] for x in lines):
        shared += 1
    if not shared:
        raise FileError(f"the bones of {path.name} have no common root: export one armature.")
    chain = lines[0][: shared - 1]
    inside = {node for x in lines for node in x[shared - 1 :]}
    joints: list[int] = []
    stack = [lines[0][shared - 1]]
    while stack:
        node = stack.pop()
        joints.append(node)
        stack += [c for c in reversed(doc.nodes[node].children or []) if c in inside]
    place = {node: k for k, node in enumerate(joints)}
    return joints, [place.get(above.get(node, -1), -1) for node in joints], chain


def _world(doc: Any, joints: list[int], parents: list[int], chain: list[int], samples: dict[tuple[int, str], Any],
           times: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """World matrices of the joints at rest `(J, 4, 4)` and over time `(T, J, 4, 4)`."""
    from scipy.spatial.transform import Rotation

    kinds = {"translation": (0.0, 0.0, 0.0), "rotation": (0.0, 0.0, 0.0, 1.0), "scale": (1.0, 1.0, 1.0)}

    def local(node: int, moved: bool, root: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n = doc.nodes[node]
        still = {k: np.array([getattr(n, k) or default], float) for k, default in kinds.items()}
        if n.matrix and list(n.matrix) != list(np.eye(4).reshape(-1)):
            matrix = np.array(n.matrix, float).reshape(4, 4).T
            size = np.linalg.norm(matrix[:3, :3], axis=0)
            still = {"translation": matrix[None, :3, 3], "rotation": Rotation.from_matrix(matrix[:3, :3] / size).as_quat()[None],
                     "scale": size[None]}  # fmt: skip
        now = {k: np.repeat(v, len(times), 0) for k, v in still.items()}
        for kind in kinds:
            if moved and (node, kind) in samples:
                now[kind] = _sample(times, *samples[node, kind], turning=kind == "rotation")
        if moved and not root and (node, "translation") in samples:
            still["translation"] = now["translation"].mean(0, keepdims=True)  # exporters key bone lengths; take theirs
        return _compose(**_named(still)), _compose(**_named(now))

    rest, world = np.eye(4)[None], np.tile(np.eye(4), (len(times), 1, 1))
    for node in chain:
        a, b = local(node, True, True)
        rest, world = rest @ a, world @ b
    rests, worlds = [], []
    for k, node in enumerate(joints):
        a, b = local(node, True, k == 0)
        rests.append((rest if k == 0 else rests[parents[k]]) @ a)
        worlds.append((world if k == 0 else worlds[parents[k]]) @ b)
    return np.concatenate(rests), np.stack(worlds, 1)


def _named(trs: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {"translation": trs["translation"], "quat": trs["rotation"], "scale": trs["scale"]}


def _motion(doc: Any, joints: list[int], parents: list[int], rest: NDArray[np.float64], world: NDArray[np.float64], fps: float,
            meta: dict[str, Any]) -> Motion:  # fmt: skip
    names = [doc.nodes[node].name or f"bone{node}" for node in joints]
    names = [n if names.index(n) == k else f"{n}.{k}" for k, n in enumerate(names)]

    def pure(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return matrix[..., :3, :3] / np.maximum(np.linalg.norm(matrix[..., :3, :3], axis=-2, keepdims=True), 1e-12)

    turned = pure(world) @ np.swapaxes(pure(rest), -1, -2)  # (T, J, 3, 3): how far from the rest pose, in world axes
    places, kind = rest[:, :3, 3], ""
    if set(names) >= set(MIXAMO_NAMES) and len(names) == len(MIXAMO_NAMES):
        order = [names.index(n) for n in MIXAMO_NAMES]
        back = {k: j for j, k in enumerate(order)}
        tree = tuple(back.get(parents[k], -1) for k in order)
        if tree == SMPL22_PARENTS:
            names, parents, kind = list(SMPL22_NAMES), list(tree), "smpl22"
            places, turned, world = places[order], turned[:, order], world[:, order]
    offsets = places.copy()
    offsets[1:] -= places[parents[1:]]
    offsets[0] = 0
    skeleton = Skeleton(tuple(names), tuple(parents), torch.from_numpy(offsets).float(), kind)
    rotations = skeleton.local_rotations(torch.from_numpy(turned)).float()
    return Motion(skeleton, torch.from_numpy(world[:, 0, :3, 3]).float(), rotations, fps, meta)
