"""Forward kinematics as a reconstruction loss: the pose that the decoded joint rotations give, not the numbers themselves.

A rotation error of two degrees is small as a feature and three centimetres at the ankle. Corpora of vadis share one
skeleton, so the rotations of a decoded ms272 window can be posed and compared with the target's joint positions. The
root is integrated over a clip, where small errors of one sign add up: the pooled root term sees what a frame does not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vadis import rotation
from vadis.errors import ModelError
from vadis.skeleton import Skeleton, smpl22

POOLS = (8, 32, 64)
"""Frames over which the root error is averaged."""

KINEMATIC_WEIGHTS = ("posed_position_weight", "posed_velocity_weight", "pooled_root_weight", "foot_velocity_weight")
"""Names of the weights of `kinematic_losses`."""

_SKELETON = smpl22()
_ROOT, _HEIGHT, _POSITIONS = slice(0, 8), 9, slice(8, 74)
_VELOCITIES, _ROTATIONS = slice(74, 140), slice(140, 272)
_FEET = [7, 8, 10, 11]  # ankles and toes


def posed_joints(features: Tensor, skeleton: Skeleton = _SKELETON) -> Tensor:
    """Heading-free joint positions `(..., 22, 3)` in metres from the rotations of un-normalised ms272 features."""
    rotations = rotation.from_6d(features[..., _ROTATIONS].unflatten(-1, (22, 6)), "rows")
    root = torch.stack(
        [torch.zeros_like(features[..., 0]), features[..., _HEIGHT], torch.zeros_like(features[..., 0])], -1
    )
    world = [rotations[..., 0, :, :]]
    joints = [root]
    offsets = skeleton.offsets.to(features)
    for j in range(1, 22):
        up = skeleton.parents[j]
        world.append(world[up] @ rotations[..., j, :, :])
        joints.append(joints[up] + world[up] @ offsets[j])
    return torch.stack(joints, dim=-2)


def foot_velocities(features: Tensor, posed: Tensor) -> Tensor:
    """World velocities `(..., T-1, 4, 3)` of ankles and toes in metres a frame, in the heading frame of each frame.

    `features` `(..., T, 272)` un-normalised, `posed` the joints of `posed_joints`. A foot on the ground has none.
    """
    feet = posed[..., _FEET, :]
    turn = rotation.from_6d(features[..., 1:, 2:8], "rows")[..., None, :, :]
    step = F.pad(features[..., 1:, :2], (0, 1))[..., [0, 2, 1]]  # x, 0, z seen from the heading before
    before = feet[..., :-1, :, :] - step[..., None, :]
    return feet[..., 1:, :, :] - (turn @ before[..., None])[..., 0]


def pooled_error(error: Tensor, pools: tuple[int, ...] = POOLS) -> Tensor:
    """SmoothL1 of sqrt(k) times the errors `(B, T, D)` averaged over k frames (half overlapping), summed over `pools`.

    Errors that are independent from frame to frame count alike for every k; those of one sign, which an integrated path
    piles up, count k times as much. Pools longer than the window are left out.
    """
    rows, total = error.transpose(1, 2), error.new_zeros(())
    for k in pools:
        if k <= error.shape[1]:
            pooled = F.avg_pool1d(rows, k, max(k // 2, 1)) * k**0.5
            total = total + F.smooth_l1_loss(pooled, torch.zeros_like(pooled))
    return total


def kinematic_losses(
    target: Tensor,
    output: Tensor,
    mean: Tensor,
    std: Tensor,
    representation: str = "ms272",
    *,
    posed_position_weight: float = 0.0,
    posed_velocity_weight: float = 0.0,
    pooled_root_weight: float = 0.0,
    foot_velocity_weight: float = 0.0,
) -> dict[str, Tensor]:
    """SmoothL1 terms between normalised ms272 windows `(B, T, 272)`, each times its weight in "total".

    "posed_positions" compares joints posed by the output's rotations with the target's stored joints, in units of the
    position std; "posed_velocities" their frame differences, in units of the velocity std; "pooled_root" is
    `pooled_error` of the root block; "foot_velocity" compares `foot_velocities` of the posed output with those of the
    target's stored joints, in centimetres a frame: it sees sliding, which no block of features does alone. A term of weight 0 is not computed. Raises ModelError for other representations.
    """
    weights = {
        "posed_positions": posed_position_weight,
        "posed_velocities": posed_velocity_weight,
        "pooled_root": pooled_root_weight,
        "foot_velocity": foot_velocity_weight,
    }
    used = [name for name, weight in weights.items() if weight]
    if used and representation != "ms272":
        raise ModelError(
            f"the loss terms {', '.join(used)} are defined for ms272, not for {representation}: set their weights to 0."
        )
    terms: dict[str, Tensor] = {}
    with torch.autocast(output.device.type, enabled=False):  # bf16 rotations would pose joints centimetres off
        target, output = target.float(), output.float()
        if posed_position_weight or posed_velocity_weight or foot_velocity_weight:
            physical, joints = output * std + mean, posed_joints(output * std + mean)
            posed = joints.flatten(-2)
            stored = target[..., _POSITIONS] * std[_POSITIONS] + mean[_POSITIONS]
            error, unit = posed - stored, std[_POSITIONS]
            if posed_position_weight:
                terms["posed_positions"] = F.smooth_l1_loss(error / unit, torch.zeros_like(error))
            if posed_velocity_weight:
                change = error.diff(dim=1) / std[_VELOCITIES]
                terms["posed_velocities"] = F.smooth_l1_loss(change, torch.zeros_like(change))
            if foot_velocity_weight:
                recorded = foot_velocities(target * std + mean, stored.unflatten(-1, (22, 3)))
                error = 100 * (foot_velocities(physical, joints) - recorded)
                terms["foot_velocity"] = F.smooth_l1_loss(error, torch.zeros_like(error))
        if pooled_root_weight:
            terms["pooled_root"] = pooled_error((output - target)[..., _ROOT])
        total = sum((weights[name] * term for name, term in terms.items()), output.new_zeros(()))
    return {"total": total, **terms}
