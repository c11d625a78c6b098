"""How far a decoded motion is from the recorded one: pose, place and smoothness.

Shapes: B clips, T frames, J joints, D features.
"""

import torch
from torch import Tensor

from vadis.errors import ShapeError
from vadis.representations import representation


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
