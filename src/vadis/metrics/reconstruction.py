"""How far a decoded motion is from the recorded one: pose, place and smoothness.

Shapes: B clips, T frames, J joints, D features.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from vadis.errors import ShapeError, VadisError
from vadis.representations import representation

Align = Literal["root", "global", "procrustes"]


def reconstruction_errors(real: Tensor, made: Tensor, name: str = "ms272") -> dict[str, float]:
    """Errors between features `(B, T, D)` in physical units, joints posed by the rotations of both.

    - "pose_mm": mean per-joint position error with the roots laid on each other (ms272: without the heading too).
    - "global_mm": the same in the world, both clips starting at one place; grows with the length of the clips.
    - "jitter_ratio": mean length of the third differences of the joints, made over real; 1 is as rough as recorded.

    Raises ShapeError unless both have one shape of at least 4 frames.
    """
    if real.shape != made.shape or real.ndim != 3 or real.shape[1] < 4:
        raise ShapeError(
            f"errors need two (B, T >= 4, D) arrays of one shape; got {tuple(real.shape)} and {tuple(made.shape)}."
        )
    rep = representation(name)
    joints = torch.stack([torch.stack([rep.decode(x).positions for x in clips]) for clips in (real, made)])
    pose = joints
    if name == "ms272":
        from vadis.tokenizers.kinematic_loss import posed_joints

        pose = torch.stack([real[..., rep.slices["joint_positions"]].unflatten(-1, (-1, 3)), posed_joints(made)])
    pose = pose - pose[..., :1, :]
    rough = torch.diff(joints, n=3, dim=2).norm(dim=-1).mean(dim=(1, 2, 3))
    return {
        "pose_mm": 1000 * float((pose[1] - pose[0]).norm(dim=-1).mean()),
        "global_mm": 1000 * float((joints[1] - joints[0]).norm(dim=-1).mean()),
        "jitter_ratio": float(rough[1] / rough[0].clamp_min(1e-9)),
    }


def joint_errors(real: Any, made: Any, align: Align = "root", root: int = 0) -> Tensor:
    """Mean joint distance of every frame `(..., T)` between positions `(..., T, J, 3)`, in their unit.

    align: "root" lays the root joints of each frame on each other (the usual MPJPE; heading errors count), "global"
        leaves both in the world, "procrustes" turns, scales and shifts each made pose onto the real one (PA-MPJPE).

    Raises ShapeError unless both have one shape, VadisError for NaN or infinite values or another `align`.
    """
    a, b = _positions(real, "real"), _positions(made, "made")
    if a.shape != b.shape:
        raise ShapeError(f"real and made positions must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}.")
    if align == "root":
        a, b = a - a[..., root : root + 1, :], b - b[..., root : root + 1, :]
    elif align == "procrustes":
        b = procrustes(b, a)
    elif align != "global":
        raise VadisError(f"align={align!r}: use root, global or procrustes.")
    return (a - b).norm(dim=-1).mean(-1)


def mpjpe(real: Any, made: Any, align: Align = "root", *, lengths: Any = None, root: int = 0) -> float:
    """Mean per-joint position error over all frames of all clips, in the unit of the positions `(B, T, J, 3)`.

    `lengths` `(B,)` leaves out padding; long clips weigh more, as published. See `joint_errors`.
    """
    real, made = _positions(real, "real", lengths), _positions(made, "made", lengths)
    return _mean_over_frames(joint_errors(real, made, align, root), lengths, 0)


def procrustes(points: Tensor, target: Tensor) -> Tensor:
    """Poses `(..., J, 3)` turned, scaled and shifted to lie closest to their targets (Umeyama, 1991), never mirrored."""
    x, y = points - points.mean(-2, keepdim=True), target - target.mean(-2, keepdim=True)
    x64, y64 = x.double(), y.double()
    u, s, vt = torch.linalg.svd(y64.transpose(-1, -2) @ x64)
    sign = torch.ones_like(s)
    sign[..., -1] = torch.det(u @ vt).sign()
    turn = (u * sign[..., None, :]) @ vt
    scale = (s * sign).sum(-1) / x64.square().sum((-1, -2)).clamp_min(1e-18)
    fitted = scale[..., None, None] * x64 @ turn.transpose(-1, -2)
    return fitted.to(points.dtype) + target.mean(-2, keepdim=True)


def acceleration_error(real: Any, made: Any, fps: float, *, lengths: Any = None) -> float:
    """Mean length of the difference of joint accelerations, from positions `(B, T >= 3, J, 3)`; m/s² for metres."""
    a, b = _positions(real, "real", lengths, 3), _positions(made, "made", lengths, 3)
    if a.shape != b.shape:
        raise ShapeError(f"real and made positions must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}.")
    error = torch.diff(a - b, n=2, dim=-3).norm(dim=-1).mean(-1) * fps**2
    return _mean_over_frames(error, lengths, 2)


def jitter(joints: Any, fps: float, *, lengths: Any = None) -> float:
    """Mean length of the joints' third differences, from positions `(B, T >= 4, J, 3)`: jerk in m/s³ for metres."""
    rough = torch.diff(_positions(joints, "joint", lengths, 4), n=3, dim=-3).norm(dim=-1).mean(-1) * fps**3
    return _mean_over_frames(rough, lengths, 3)


def _positions(x: Any, name: str, lengths: Any = None, frames: int = 1) -> Tensor:
    """Positions `(..., T, J, 3)` as floats, padding zeroed, checked for shape and finite values."""
    x = torch.as_tensor(x)
    x = x if x.is_floating_point() else x.float()
    if x.ndim < 3 or x.shape[-1] != 3 or x.shape[-3] < frames or x.numel() == 0:
        raise ShapeError(f"{name} positions must be (..., T >= {frames}, J, 3); got {tuple(x.shape)}.")
    if lengths is not None:
        real = torch.as_tensor(lengths)
        if x.ndim != 4 or real.shape != x.shape[:1] or int(real.min()) < frames or int(real.max()) > x.shape[1]:
            raise ShapeError(
                f"lengths go with positions (B, T, J, 3) and lie between {frames} and T; got {tuple(real.shape)} for "
                f"{tuple(x.shape)}."
            )
        x = x.masked_fill((torch.arange(x.shape[1]) >= real[:, None])[..., None, None].to(x.device), 0)
    if not torch.isfinite(x).all():
        bad = (~torch.isfinite(x).all(-1).all(-1)).nonzero()
        raise VadisError(
            f"{name} positions hold NaN or infinite values in {len(bad)} frames, first at {bad[0].tolist()}."
        )
    return x


def _mean_over_frames(values: Tensor, lengths: Any, fewer: int) -> float:
    """Mean of `(..., T - fewer)` over the real frames."""
    if lengths is None:
        return float(values.double().mean())
    kept = torch.arange(values.shape[-1]) < (torch.as_tensor(lengths) - fewer)[:, None]
    return float(values[kept.to(values.device)].double().mean())
