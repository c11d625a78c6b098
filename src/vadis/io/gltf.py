"""Reading GLB (binary glTF 2.0): animated bones, of our own files and of other programs'.

glTF is right-handed, Y up, in metres, as motions are, so no axis is swapped.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vadis.errors import FileError, VadisError
from vadis.io.glb_file import MAX_JOINTS, MAX_METERS, Animation, GlbFile
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton

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

MAX_SAMPLES = 1_000_000
"""Bones times frames that a file may be sampled to beyond what it has keys for."""
_MOVED = ("translation", "rotation", "scale")
Samplers = dict[tuple[int, str], tuple[NDArray[np.float64], NDArray[np.float64], str]]
"""Node and what of it moves → key times (K,), values (K, C), interpolation."""


def _sample(times: NDArray[np.float64], keys: NDArray[np.float64], values: NDArray[np.float64], mode: str,
            turning: bool) -> NDArray[np.float64]:  # fmt: skip
    """Values `(T, C)` of one sampler at `times`; outside its keys the first or last value holds."""
    at = np.clip(times, keys[0], keys[-1])
    if mode == "STEP" or len(keys) == 1:
        return values[np.clip(np.searchsorted(keys, at + 1e-6, side="right") - 1, 0, len(keys) - 1)]
    if (cuts := np.diff(keys) <= 0).any():  # the later of two keys counts: part them, and look a hair later there
        moments = keys[1:][cuts]
        keys = keys + 1e-8 * np.concatenate([[0], np.cumsum(cuts)])
        next_cut = moments[np.minimum(np.searchsorted(moments, times - 1e-5), len(moments) - 1)]
        at = np.clip(np.where(np.abs(times - next_cut) < 1e-5, times + 1e-5, times), keys[0], keys[-1])
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

    Raises FileError for a damaged file, one without an animation or without bones, one whose sampling would take more
    frames than its keys can account for (`MAX_SAMPLES`), or bones that are sheared; VadisError for an unknown animation.
    """
    path = Path(path)
    if fps is not None and not 0.1 <= fps <= 10_000:
        raise VadisError(f"fps={fps}: give 0.1 to 10000 frames per second.")
    file = GlbFile(path)
    if not file.page.animations:
        raise FileError(f"{path.name} holds no animation: export it with one.")
    track = _pick(file.page.animations, animation)
    samples = _samplers(file, track)
    notes = file.notes
    union = np.unique(np.round(np.concatenate([keys for keys, _, _ in samples.values()]), 6))
    rate = fps or notes.fps or _rate(union)
    if not 0.1 <= rate <= 10_000:
        raise FileError(f"{path.name}: its keys are {1 / rate:g} s apart, which is not a frame rate: pass fps=.")
    joints, parents, chain = _bones(file, samples)
    count = int(np.floor((union[-1] - union[0]) * rate + 0.01)) + 1
    if count * len(joints) > MAX_SAMPLES + 16 * sum(len(keys) for keys, _, _ in samples.values()):
        raise FileError(
            f"{path.name}: {count} frames ({union[-1] - union[0]:g} s at {rate:g} frames per second) of {len(joints)} bones "
            f"out of {len(union)} keys: pass a lower fps=."
        )
    times = union[0] + np.arange(count) / rate
    if notes.t_pose_first_frame and count > 1:
        times = times[1:]
    rest, world = _world(file, joints, parents, chain, samples, times)
    meta = {"source": path.name, "animation": track.name, **notes.meta}
    return _motion(file, joints, parents, rest, world, float(rate), meta)


def _samplers(file: GlbFile, track: Animation) -> Samplers:
    """Keys, values and kind of interpolation of what the animation moves, by node and by what of it."""
    samples: Samplers = {}
    for number, channel in enumerate(track.channels):
        if channel.target.node is None or channel.target.path not in _MOVED:
            continue
        if channel.sampler >= len(track.samplers):
            raise FileError(f"{file.path.name}: channel {number} uses sampler {channel.sampler}, which doesn't exist.")
        sampler = track.samplers[channel.sampler]
        turning = channel.target.path == "rotation"
        keys, values = file.keys(sampler.input), file.array(sampler.output, "VEC4" if turning else "VEC3")
        if len(values) != len(keys) * (3 if sampler.interpolation == "CUBICSPLINE" else 1):
            raise FileError(f"{file.path.name}: channel {number} has {len(keys)} keys and {len(values)} values.")
        if sampler.interpolation == "CUBICSPLINE":
            values = values.reshape(len(keys), 3, -1)[:, 1]
        if turning:
            _check_unit(values, f"{file.path.name}: channel {number}")
        elif np.abs(values).max() > MAX_METERS:
            raise FileError(
                f"{file.path.name}: channel {number} holds {np.abs(values).max():g}, more than {MAX_METERS:g}."
            )
        samples[channel.target.node, channel.target.path] = (keys, values, sampler.interpolation)
    if not samples:
        raise FileError(f"{file.path.name} animates no bones: export the armature's action.")
    return samples


def _check_unit(quats: NDArray[np.float64], where: str) -> None:
    """Rounding to 8 bits leaves up to 1.5 per cent; what is further off is no rotation."""
    off = np.abs(np.linalg.norm(quats, axis=-1) - 1)
    if off.max() > 0.05:
        raise FileError(
            f"{where} holds a quaternion of length {np.linalg.norm(quats[off.argmax()]):.3g}; rotations have 1."
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


def _bones(file: GlbFile, samples: Samplers) -> tuple[list[int], list[int], list[int]]:
    """Joint nodes in parent-before-child order, parents as positions in that list, and the nodes above the first joint."""
    skins, nodes, above = file.page.skins, file.page.nodes, file.parents
    wanted = skins[0].joints if skins else sorted({node for node, _ in samples})
    lines = [file.line(node) for node in wanted]
    shared = 0
    while all(len(x) > shared and x[shared] == lines[0][shared] for x in lines):
        shared += 1
    if not shared:
        raise FileError(f"the bones of {file.path.name} have no common root: export one armature.")
    chain = lines[0][: shared - 1]
    inside = {node for x in lines for node in x[shared - 1 :]}
    if len(inside) > MAX_JOINTS:
        raise FileError(f"{file.path.name} has {len(inside)} bones; at most {MAX_JOINTS} are read.")
    joints: list[int] = []
    stack = [lines[0][shared - 1]]
    while stack:
        node = stack.pop()
        joints.append(node)
        stack += [c for c in reversed(nodes[node].children) if c in inside]
    place = {node: k for k, node in enumerate(joints)}
    return joints, [place.get(above.get(node, -1), -1) for node in joints], chain


def _still(file: GlbFile, node: int) -> dict[str, NDArray[np.float64]]:
    """Translation, rotation (x, y, z, w) and scale of a node, each `(1, C)`."""
    n, where = file.page.nodes[node], f"{file.path.name}: node {node}"
    still = {kind: np.array([getattr(n, kind)], float) for kind in _MOVED}
    if n.matrix is not None and n.matrix != list(np.eye(4).reshape(-1)):
        from scipy.spatial.transform import Rotation

        matrix = np.array(n.matrix).reshape(4, 4).T
        size = np.linalg.norm(matrix[:3, :3], axis=0)
        turn = matrix[:3, :3] / np.maximum(size, 1e-12)
        _check_turns(turn[None], f"{where} has a matrix that")
        still = {"translation": matrix[None, :3, 3], "rotation": Rotation.from_matrix(turn).as_quat()[None],
                 "scale": size[None]}  # fmt: skip
    _check_unit(still["rotation"], where)
    return still


def _check_turns(matrices: NDArray[np.float64], where: str) -> None:
    """Raise FileError unless all `(N, 3, 3)` are rotations to a thousandth."""
    off = np.abs(matrices @ np.swapaxes(matrices, -1, -2) - np.eye(3)).max() if len(matrices) else 0.0
    if not off < 1e-3 or (np.linalg.det(matrices) < 0).any():
        raise FileError(
            f"{where} mirrors, flattens or shears: apply scales to the mesh and the armature before exporting."
        )


def _world(file: GlbFile, joints: list[int], parents: list[int], chain: list[int], samples: Samplers,
           times: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """World matrices of the joints at rest `(J, 4, 4)` and over time `(T, J, 4, 4)`."""

    def local(node: int, root: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        still = _still(file, node)
        now = {k: np.repeat(v, len(times), 0) for k, v in still.items()}
        for kind in _MOVED:
            if (node, kind) in samples:
                now[kind] = _sample(times, *samples[node, kind], turning=kind == "rotation")
        if not root and (node, "translation") in samples:
            still["translation"] = now["translation"].mean(0, keepdims=True)  # exporters key bone lengths; take theirs
        return _compose(**_named(still)), _compose(**_named(now))

    rest, world = np.eye(4)[None], np.tile(np.eye(4), (len(times), 1, 1))
    for node in chain:
        a, b = local(node, True)
        rest, world = rest @ a, world @ b
    rests, worlds = [], []
    for k, node in enumerate(joints):
        a, b = local(node, k == 0)
        rests.append((rest if k == 0 else rests[parents[k]]) @ a)
        worlds.append((world if k == 0 else worlds[parents[k]]) @ b)
    return np.concatenate(rests), np.stack(worlds, 1)


def _named(trs: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {"translation": trs["translation"], "quat": trs["rotation"], "scale": trs["scale"]}


def _motion(file: GlbFile, joints: list[int], parents: list[int], rest: NDArray[np.float64], world: NDArray[np.float64], fps: float,
            meta: dict[str, Any]) -> Motion:  # fmt: skip
    names: list[str] = []
    taken: set[str] = set()
    for k, node in enumerate(joints):
        name = file.page.nodes[node].name or f"bone{node}"
        while name in taken:
            name = f"{name}.{k}"
        names.append(name)
        taken.add(name)

    def pure(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return matrix[..., :3, :3] / np.maximum(np.linalg.norm(matrix[..., :3, :3], axis=-2, keepdims=True), 1e-12)

    turned = pure(world) @ np.swapaxes(pure(rest), -1, -2)  # (T, J, 3, 3): how far from the rest pose, in world axes
    for k, name in enumerate(names):
        _check_turns(turned[:, k], f"{file.path.name}: the bone {name}")
    places, kind = rest[:, :3, 3], ""
    if set(names) >= set(MIXAMO_NAMES) and len(names) == len(MIXAMO_NAMES):
        order = [names.index(n) for n in MIXAMO_NAMES]
        back = {k: j for j, k in enumerate(order)}
        tree = tuple(back.get(parents[k], -1) for k in order)
        if tree == SMPL22_PARENTS:
            names[:], parents, kind = SMPL22_NAMES, list(tree), "smpl22"
            places, turned, world = places[order], turned[:, order], world[:, order]
    offsets = places.copy()
    offsets[1:] -= places[parents[1:]]
    offsets[0] = 0
    skeleton = Skeleton(tuple(names), tuple(parents), torch.from_numpy(offsets).float(), kind)
    rotations = skeleton.local_rotations(torch.from_numpy(turned)).float()
    return Motion(skeleton, torch.from_numpy(world[:, 0, :3, 3]).float(), rotations, fps, meta)
