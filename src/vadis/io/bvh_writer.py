"""Writing BVH as animation tools expect it: branch by branch, centimetres, Z-Y-X Euler degrees, an End Site on every tip.

The OFFSETs are the skeleton's rest pose (a T-pose for the 22 joints), the root's channels hold its world position, every
other joint has three rotations. Angles are continuous over time, so that curves can be edited and resampled.
"""

from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from vadis import rotation
from vadis.errors import FileError
from vadis.files import atomic_write
from vadis.io.bvh import UNITS, Z_UP, change_axes
from vadis.motion import Motion
from vadis.skeleton import Skeleton

_ORDERS = ("XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX")


def save_bvh(
    motion: Motion,
    path: str | Path,
    *,
    unit: str = "cm",
    fps: float | None = None,
    up: str = "y",
    order: str = "ZYX",
    t_pose_first_frame: bool = False,
    decimals: int = 6,
) -> Path:
    """Write a motion as BVH and return the path.

    Args:
        motion: any skeleton.
        path: the file; replaced at once when everything is written.
        unit: a name in `vadis.io.bvh.UNITS`; tools expect centimetres.
        fps: resample to this rate first (24, 30, 60, …).
        up: "y", or "z" for tools whose floor is the x-y plane.
        order: channel order of the rotations.
        t_pose_first_frame: put the rest pose before frame 0, as retargeting tools like it; drop it again when reading.
        decimals: digits after the point of lengths and angles.

    Raises FileError for an unknown unit, up axis or order, or a path that can't be written.
    """
    if unit not in UNITS:
        raise FileError(f"unknown unit {unit!r}: use one of {', '.join(UNITS)}.")
    if up not in ("y", "z"):
        raise FileError(f"unknown up axis {up!r}: use 'y' or 'z'.")
    if order.upper() not in _ORDERS:
        raise FileError(f"unknown rotation order {order!r}: use one of {', '.join(_ORDERS)}.")
    if not 0 <= decimals <= 15:
        raise FileError(f"{decimals} decimals can't be written: use 0 to 15.")
    order = order.upper()
    if fps is not None:
        motion = motion.resample(fps)
    if up == "z":
        motion = change_axes(motion, Z_UP.T)
    path = Path(path)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        joints = _write_hierarchy(file, motion.skeleton, 1 / UNITS[unit], order, decimals)
        values = _channels(motion, joints, 1 / UNITS[unit], order)
        if t_pose_first_frame:
            rest = np.zeros((1, values.shape[1]))
            rest[0, :3] = values[0, :3]
            rest[0, 1 if up == "y" else 2] = _standing_height(motion.skeleton, 1 if up == "y" else 2) / UNITS[unit]
            values = np.concatenate([rest, values])
        file.write(f"MOTION\nFrames: {len(values)}\nFrame Time: {1 / motion.fps:.8f}\n")
        values = np.round(values, decimals) + 0.0  # + 0.0 turns -0 into 0
        line = " ".join([f"%.{decimals}f"] * values.shape[1]) + "\n"
        file.writelines(line % tuple(row) for row in values.tolist())
    return path


def _standing_height(skeleton: Skeleton, axis: int) -> float:
    """Root height in metres that puts the lowest joint or tip of the rest pose on the floor."""
    low = [skeleton.rest_positions[:, axis].min()]
    low += [(skeleton.rest_positions[j] + tip)[axis] for j, tip in skeleton.end_sites.items()]
    return -float(min(low))


def tip_offset(skeleton: Skeleton, joint: int) -> torch.Tensor:
    """End site of a leaf `(3,)` in metres: its own, or half the bone that leads to it (tools draw nothing for a zero)."""
    if joint in skeleton.end_sites:
        return skeleton.end_sites[joint]
    bone = skeleton.offsets[joint]
    length = float(bone.norm())
    return bone * (min(max(length / 2, 0.03), 0.1) / length) if length > 1e-6 else torch.tensor([0.0, 0.05, 0.0])


def _write_hierarchy(file: TextIO, skeleton: Skeleton, scale: float, order: str, decimals: int) -> list[int]:
    """Write the joint tree; the joints in the order in which they were written."""
    written: list[int] = []
    turns = " ".join(f"{axis}rotation" for axis in order)
    places = max(decimals, 6)  # a bone's rounding error adds up along the chain

    def numbers(offset: torch.Tensor) -> str:
        return " ".join(f"{value * scale + 0.0:.{places}f}" for value in offset.double().tolist())

    file.write("HIERARCHY\n")
    todo: list[tuple[int, int] | str] = [(0, 0)]
    while todo:  # no recursion: chains may be deeper than Python's stack
        item = todo.pop()
        if isinstance(item, str):
            file.write(item)
            continue
        joint, depth = item
        tab = "\t" * depth
        written.append(joint)
        file.write(f"{tab}{'JOINT' if depth else 'ROOT'} {_one_word(skeleton.names[joint])}\n{tab}{{\n")
        file.write(f"{tab}\tOFFSET {numbers(skeleton.offsets[joint])}\n")
        file.write(f"{tab}\tCHANNELS {'3' if depth else '6 Xposition Yposition Zposition'} {turns}\n")
        if not skeleton.children[joint] or joint in skeleton.end_sites:
            tip = numbers(tip_offset(skeleton, joint))
            file.write(f"{tab}\tEnd Site\n{tab}\t{{\n{tab}\t\tOFFSET {tip}\n{tab}\t}}\n")
        todo.append(f"{tab}}}\n")
        todo += [(child, depth + 1) for child in reversed(skeleton.children[joint])]
    return written


def _one_word(name: str) -> str:
    """A joint name without blanks or braces, which no BVH reader takes in a name."""
    return "_".join(name.replace("{", "_").replace("}", "_").split()) or "joint"


def _channels(motion: Motion, joints: list[int], scale: float, order: str) -> np.ndarray:
    """Channel values `(T, 3 + 3 J)`: root position in file units, then continuous Euler angles in degrees."""
    angles = rotation.to_euler(motion.rotations[:, joints].double(), order).numpy()  # (T, J, 3)
    angles = _continuous(angles)
    root = motion.root.double().numpy() * scale
    return np.concatenate([root, np.degrees(angles).reshape(len(root), -1)], axis=1)


def _continuous(angles: np.ndarray) -> np.ndarray:
    """Of the equal Euler triples of each rotation the one nearest to the frame before, radians `(T, J, 3)`.

    (a, b, c) and (a + pi, pi - b, c + pi) are the same rotation for every order of three different axes; so are full turns.
    """
    angles = angles.copy()
    other = np.stack([angles[..., 0] + np.pi, np.pi - angles[..., 1], angles[..., 2] + np.pi], axis=-1)
    turn = 2 * np.pi
    for t in range(1, len(angles)):
        before = angles[t - 1]
        one = angles[t] + turn * np.round((before - angles[t]) / turn)
        two = other[t] + turn * np.round((before - other[t]) / turn)
        nearer = np.abs(two - before).sum(-1) < np.abs(one - before).sum(-1) - 1e-9
        angles[t] = np.where(nearer[:, None], two, one)
    return angles
