"""Writing GLB (binary glTF 2.0): the mannequin, skinned and animated on Mixamo-named bones, or the bones alone.

glTF is right-handed, Y up, in metres, as motions are, so no axis is swapped. Bone rest rotations are identities: a
bone's animated rotation is the joint's own local rotation, twist included.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis import __version__, rotation
from vadis.errors import MissingExtra, SkeletonError
from vadis.files import atomic_write
from vadis.io.gltf import MIXAMO_NAMES
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS

_FLOAT, _UBYTE, _USHORT = 5126, 5121, 5123


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
        from vadis.body.mannequin import build_mannequin  # the mesh grows in a second; bones alone don't wait for it

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
