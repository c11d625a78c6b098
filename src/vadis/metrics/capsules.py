"""Self-penetration without a body mesh: every bone is a capsule, and limbs must not pass through trunk or other limbs.

A stand-in for body penetration that needs joint positions only and no licensed body. It has its own name and unit, since
its values compare with nobody's mesh. Thickness follows the length of the legs of each clip.

Shapes: B clips, N frames of all clips end to end, P pairs of capsules.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError
from vadis.metrics.clips import Clips, Float32, norm, pack
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS

_LEG = 0.84  # metres from hip to ankle of the body that the radii below were chosen for
_RADII = {"hip": 0.0, "spine": 0.105, "neck": 0.09, "collar": 0.0, "head": 0.055, "knee": 0.07, "ankle": 0.05, "foot": 0.035,
          "shoulder": 0.0, "elbow": 0.045, "wrist": 0.035}  # fmt: skip
"""Metres around the bone that ends in a joint of this name; 0 for bones inside the trunk that are no part of their own."""
TOLERANCE = 0.02
"""Metres that two parts may press into each other: flesh gives way, and capsules are crude."""


@dataclass(frozen=True, eq=False)
class CapsulePenetration:
    """One value a clip `(B,)`: `depth`, metres by which the deepest pair exceeds the tolerance, mean over frames; `share` of
    frames in which any pair does. 0 is a body that never passes through itself.
    """

    depth: NDArray[np.float64]
    share: NDArray[np.float64]


def capsule_penetration(joints: Any, lengths: Any = None) -> CapsulePenetration:
    """Self-penetration of clips of smpl22 joint positions `(T, 22, 3)` in metres, a list, or padded with `lengths`.

    Raises ShapeError for other skeletons (retarget them first), VadisError for NaN with clip and frames.
    """
    clips = pack(joints, lengths)
    if clips.joints.shape[1] != len(SMPL22_NAMES):
        raise ShapeError(
            f"capsules are drawn on the 22 joints of smpl22; these clips have {clips.joints.shape[1]}. Retarget them first."
        )
    bones, pairs, radii = _body()
    reach = radii[pairs].sum(1) * (_leg_lengths(clips) / _LEG)[:, None] - TOLERANCE  # (B, P)
    deepest = np.zeros(len(clips.joints))
    for start in range(0, len(deepest), 512):
        block = slice(start, start + 512)
        ends = clips.joints[block][:, bones]  # (N, bones, 2, 3)
        gap = _segment_distance(ends[:, pairs[:, 0]], ends[:, pairs[:, 1]])
        deepest[block] = np.maximum(reach[clips.owner[block]] - gap, 0).max(1)
    return CapsulePenetration(clips.total(deepest) / clips.lengths, clips.total(deepest > 0) / clips.lengths)


@cache
def _body() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Bones (parent, child), pairs of bones that should not meet, and radii; neighbours in the tree may overlap."""
    radius = [
        next(r for part, r in _RADII.items() if part in name) if j else 0.0 for j, name in enumerate(SMPL22_NAMES)
    ]
    kept = [j for j in range(1, len(SMPL22_NAMES)) if radius[j] > 0]
    near = np.eye(len(SMPL22_NAMES), dtype=bool)
    for j, parent in enumerate(SMPL22_PARENTS):
        if parent >= 0:
            near[j, parent] = near[parent, j] = True
    reached = np.linalg.matrix_power(near.astype(int), 3) > 0  # bones whose ends are three steps apart may overlap
    part = ["trunk" if "_" not in SMPL22_NAMES[j] else _limb(SMPL22_NAMES[j]) for j in kept]
    pairs = [
        (a, b)
        for a in range(len(kept))
        for b in range(a + 1, len(kept))
        if part[a] != part[b] and not reached[kept[a], kept[b]]
    ]
    bones = np.asarray([(SMPL22_PARENTS[j], j) for j in kept])
    return bones, np.asarray(pairs), np.asarray([radius[j] for j in kept])


def _limb(joint: str) -> str:
    side, part = joint.split("_")
    return f"{side}_{'leg' if part in ('hip', 'knee', 'ankle', 'foot') else 'arm'}"


def _leg_lengths(clips: Clips) -> NDArray[np.float64]:
    """Mean length of the legs of each clip, metres."""
    x = clips.joints
    legs = sum(norm(x[:, SMPL22_NAMES.index(f"{s}_{a}")] - x[:, SMPL22_NAMES.index(f"{s}_{b}")])
               for s in ("left", "right") for a, b in (("hip", "knee"), ("knee", "ankle")))  # fmt: skip
    return clips.total(legs / 2) / clips.lengths


def _segment_distance(a: Float32, b: Float32) -> NDArray[np.float32]:
    """Smallest distances `(N, P)` between line segments given by their ends `(N, P, 2, 3)` (Ericson, 2005, 5.1.9)."""
    u, v, w = a[..., 1, :] - a[..., 0, :], b[..., 1, :] - b[..., 0, :], a[..., 0, :] - b[..., 0, :]
    uu, vv, uv, uw, vw = (np.einsum("npc,npc->np", p, q) for p, q in ((u, u), (v, v), (u, v), (u, w), (v, w)))
    uu, vv = np.maximum(uu, 1e-12), np.maximum(vv, 1e-12)
    area = uu * vv - uv * uv
    s = np.where(area > 1e-9 * uu * vv, np.clip((uv * vw - uw * vv) / np.maximum(area, 1e-12), 0, 1), 0)
    t = (uv * s + vw) / vv
    s = np.where((t < 0) | (t > 1), np.clip((uv * np.clip(t, 0, 1) - uw) / uu, 0, 1), s)
    t = np.clip(t, 0, 1)
    return norm(w + s[..., None] * u - t[..., None] * v)
