"""Rotations as matrices `(..., 3, 3)` that act on column vectors, and the roads to every other form (over `roma`).

Three 6D layouts circulate under similar names; reading one as another silently gives the inverse rotation, so a layout
is always named. For R = [[a b c], [d e f], [g h i]]:

- `rows`: the first two rows, `a b c d e f` (272-dim features, PyTorch3D);
- `columns`: the first two columns one after the other, `a d g b e h` (HumanML3D-263, MotionCLIP-135);
- `columns_interleaved`: the first two columns, row by row, `a b d e g h` (motion-135 pipelines).

World axes: right-handed, Y up; a heading is an angle about +Y, zero when facing +Z, positive towards +X.
"""

from typing import Literal, cast, get_args

import roma
import torch
from torch import Tensor

from vadis.errors import VadisError

SixD = Literal["rows", "columns", "columns_interleaved"]


def _check_layout(layout: str) -> None:
    if layout not in get_args(SixD):
        raise VadisError(f"unknown 6D layout {layout!r}: use one of {', '.join(get_args(SixD))}.")


def _normalize(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def to_6d(matrix: Tensor, layout: SixD) -> Tensor:
    """Matrices `(..., 3, 3)` to 6D `(..., 6)` in the named layout."""
    _check_layout(layout)
    if layout == "rows":
        return matrix[..., :2, :].flatten(-2)
    if layout == "columns":
        return matrix[..., :, :2].transpose(-1, -2).flatten(-2)
    return matrix[..., :, :2].flatten(-2)


def from_6d(six: Tensor, layout: SixD) -> Tensor:
    """6D `(..., 6)` to matrices `(..., 3, 3)` by Gram-Schmidt; a zero vector gives a zero axis, never NaN."""
    _check_layout(layout)
    if layout == "columns_interleaved":
        a, b = six[..., 0::2], six[..., 1::2]
    else:
        a, b = six[..., :3], six[..., 3:]
    x = _normalize(a)
    y = _normalize(b - (x * b).sum(-1, keepdim=True) * x)
    z = torch.linalg.cross(x, y, dim=-1)
    return torch.stack([x, y, z], dim=-2 if layout == "rows" else -1)


def from_euler(angles: Tensor, order: str) -> Tensor:
    """Intrinsic Euler angles `(..., 3)` in radians, listed in `order` (e.g. "ZYX" as in BVH channels), to matrices.

    R = R_order[0] @ R_order[1] @ R_order[2].
    """
    result = None
    for k, axis in enumerate(order.upper()):
        c, s = torch.cos(angles[..., k]), torch.sin(angles[..., k])
        m = torch.zeros(*angles.shape[:-1], 3, 3, dtype=angles.dtype, device=angles.device)
        i = "XYZ".index(axis)
        j, l = (i + 1) % 3, (i + 2) % 3
        m[..., i, i] = 1
        m[..., j, j] = c
        m[..., l, l] = c
        m[..., j, l] = -s
        m[..., l, j] = s
        result = m if result is None else result @ m
    return cast(Tensor, result)


def to_euler(matrix: Tensor, order: str) -> Tensor:
    """Matrices `(..., 3, 3)` to intrinsic Euler angles `(..., 3)` in radians; the inverse of `from_euler`."""
    return torch.stack(roma.rotmat_to_euler(order.upper(), matrix.double(), as_tuple=True), dim=-1).to(matrix.dtype)


def from_rotvec(rotvec: Tensor) -> Tensor:
    """Axis-angle vectors `(..., 3)` in radians to matrices `(..., 3, 3)`."""
    return roma.rotvec_to_rotmat(rotvec)


def to_rotvec(matrix: Tensor) -> Tensor:
    """Matrices `(..., 3, 3)` to axis-angle vectors `(..., 3)`, radians, norm in [0, pi]; computed in float64."""
    return roma.rotmat_to_rotvec(matrix.double()).to(matrix.dtype)


def from_quat_wxyz(quat: Tensor) -> Tensor:
    """Quaternions `(..., 4)` in w, x, y, z order (normalised here) to matrices."""
    return roma.unitquat_to_rotmat(_normalize(quat).roll(-1, dims=-1))


def to_quat_wxyz(matrix: Tensor) -> Tensor:
    """Matrices to unit quaternions `(..., 4)` in w, x, y, z order; the sign is arbitrary (w >= 0 is chosen)."""
    quat = roma.rotmat_to_unitquat(matrix.double()).roll(1, dims=-1)
    return torch.where(quat[..., :1] < 0, -quat, quat).to(matrix.dtype)


def slerp(start: Tensor, stop: Tensor, weight: Tensor) -> Tensor:
    """Interpolate between matrices along the shortest arc; `weight` 0 gives `start`, 1 gives `stop` (broadcasts)."""
    relative = to_rotvec(start.transpose(-1, -2) @ stop)
    return start @ from_rotvec(relative * weight[..., None])


def yaw(angle: Tensor) -> Tensor:
    """Rotations about +Y by `angle` radians: `(...)` to `(..., 3, 3)`; +Z turns towards +X."""
    c, s, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [torch.stack(r, -1) for r in ((c, zero, s), (zero, one, zero), (-s, zero, c))]
    return torch.stack(rows, -2)


def heading(matrix: Tensor) -> Tensor:
    """Heading in radians of the body's own z axis, `atan2(R[0, 2], R[2, 2])`: `(..., 3, 3)` to `(...)`."""
    return torch.atan2(matrix[..., 0, 2], matrix[..., 2, 2])


def unwrap(angle: Tensor) -> Tensor:
    """Remove jumps of 2 pi along the last axis."""
    step = torch.diff(angle, dim=-1)
    turns = torch.cumsum(torch.round(step / (2 * torch.pi)), dim=-1) * (2 * torch.pi)
    return torch.cat([angle[..., :1], angle[..., 1:] - turns], dim=-1)


def running_product(steps: Tensor) -> Tensor:
    """Products from the left, `out[t] = steps[t] @ ... @ steps[0]`, of `(..., T, 3, 3)`, in log2(T) batched rounds."""
    reach, total = 1, steps
    while reach < steps.shape[-3]:
        total = torch.cat([total[..., :reach, :, :], total[..., reach:, :, :] @ total[..., :-reach, :, :]], dim=-3)
        reach *= 2
    return total


def between(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotations that turn `source` onto `target`: two `(..., 3)` of any length to `(..., 3, 3)`.

    Opposite vectors turn about an arbitrary perpendicular axis.
    """
    a, b = _normalize(source), _normalize(target)
    axis = torch.linalg.cross(a, b, dim=-1)
    cosine = (a * b).sum(-1)
    perpendicular = torch.linalg.cross(a, torch.eye(3, dtype=a.dtype, device=a.device)[a.abs().argmin(-1)], dim=-1)
    sine = axis.norm(dim=-1)
    opposite = (sine < 1e-7) & (cosine < 0)
    axis = torch.where(opposite[..., None], _normalize(perpendicular), _normalize(axis))
    return from_rotvec(axis * torch.atan2(sine, cosine)[..., None])
