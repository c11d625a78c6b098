"""BVH in the layout of the 272-dim data sets' exporter: 24 SMPL joints with palms, metres, ZYX channels, six decimals.

For other tools use the general BVH writer; this one exists so that files compare line by line with published ones.
"""

from pathlib import Path

import torch
from torch import Tensor

from vadis.errors import SkeletonError
from vadis.files import atomic_write
from vadis.motion import Motion
from vadis.skeleton import smpl22

NAMES = (
    "Pelvis", "Left_hip", "Right_hip", "Spine1", "Left_knee", "Right_knee", "Spine2", "Left_ankle", "Right_ankle",
    "Spine3", "Left_foot", "Right_foot", "Neck", "Left_collar", "Right_collar", "Head", "Left_shoulder",
    "Right_shoulder", "Left_elbow", "Right_elbow", "Left_wrist", "Right_wrist", "Left_palm", "Right_palm",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
PALM = 0.085
"""Metres from wrist to palm along the forearm where no palm offsets are given."""


def save_smpl_bvh(
    motion: Motion,
    path: str | Path,
    rest_pelvis: Tensor | None = None,
    palms: Tensor | None = None,
    upstream_compat: bool = False,
) -> Path:
    """Write a motion on smpl22 (any bone lengths) as 24-joint SMPL BVH.

    Args:
        rest_pelvis: `(3,)` metres, written as the root's OFFSET; zeros by default. Root positions replace it.
        palms: `(2, 3)` offsets of left and right palm from the wrist; by default forearms are prolonged.
        upstream_compat: add `rest_pelvis` to every root position, as the original exporter does by mistake (bodies
            stand 0.22 m too low).

    A mirrored file is `save_smpl_bvh(motion.mirror(), …)`. Raises SkeletonError for other joint trees.
    """
    path = Path(path)
    if not motion.skeleton.same_tree(smpl22()):
        raise SkeletonError(
            f"SMPL BVH holds the joints of smpl22; this motion has {motion.skeleton}. Convert it first: "
            "vadis.retarget(motion, 'smpl22')."
        )
    pelvis = torch.zeros(3) if rest_pelvis is None else rest_pelvis
    bones = motion.skeleton.offsets[1:].double()
    ends = torch.nn.functional.normalize(bones[[19, 20]], dim=-1) * PALM if palms is None else palms.double()
    offsets = torch.cat([pelvis.double()[None], bones, ends])
    lines: list[str] = ["HIERARCHY"]
    order: list[int] = []
    _joint(0, 0, offsets, lines, order)
    lines += ["MOTION", f"Frames: {motion.num_frames}", f"Frame Time: {1 / motion.fps:.6f}"]

    angles = torch.zeros(motion.num_frames, 24, 3, dtype=torch.float64)
    angles[:, :22] = _zyx(motion.rotations.double())
    root = motion.root.double() + (offsets[0] if upstream_compat else 0)
    values = torch.cat([root, angles[:, order].flatten(1)], dim=1) + 0.0
    lines += ["".join(f"{v:.6f} " for v in row) for row in values.tolist()]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path


def _joint(joint: int, depth: int, offsets: Tensor, lines: list[str], order: list[int]) -> None:
    """Append a joint and its children, depth first, and note the order of the file."""
    order.append(joint)
    tab = "\t" * depth
    positions = "6 Xposition Yposition Zposition " if joint == 0 else "3 "
    lines += [f"{tab}{'JOINT' if joint else 'ROOT'} {NAMES[joint]}", tab + "{"]
    lines.append(f"{tab}\tOFFSET " + " ".join(f"{v:.6f}" for v in offsets[joint].tolist()))
    lines.append(f"{tab}\tCHANNELS {positions}Zrotation Yrotation Xrotation" + ("" if joint else " "))
    children = [c for c, p in enumerate(PARENTS) if p == joint]
    for child in children:
        _joint(child, depth + 1, offsets, lines, order)
    if not children:
        lines += [f"{tab}\tEnd Site", f"{tab}\t" + "{", f"{tab}\t\tOFFSET 0.000000 0.000000 0.000000", f"{tab}\t" + "}"]
    lines.append(tab + "}")


def _zyx(matrix: Tensor) -> Tensor:
    """Degrees about Z, Y and X `(..., 3)` with R = Rz Ry Rx."""
    z = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    y = torch.asin((-matrix[..., 2, 0]).clamp(-1, 1))
    x = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    return torch.stack([z, y, x], dim=-1).rad2deg()
