"""Forward kinematics as a reconstruction loss: the pose that the decoded joint rotations give, not the numbers themselves.

A rotation error of two degrees is small as a feature and three centimetres at the ankle. Corpora of vadis share one
skeleton, so the rotations of a decoded ms272 window can be posed and compared with the target's joint positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vadis import rotation
from vadis.skeleton import Skeleton, smpl22

_SKELETON = smpl22()
_HEIGHT, _POSITIONS, _ROTATIONS = 9, slice(8, 74), slice(140, 272)


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


def kinematic_loss(target: Tensor, output: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """SmoothL1 between posed joints of `output` and stored joints of `target`, both normalised `(B, T, 272)`, in position stds."""
    posed = posed_joints(output.float() * std + mean).flatten(-2)
    real = target[..., _POSITIONS] * std[_POSITIONS] + mean[_POSITIONS]
    return F.smooth_l1_loss(posed / std[_POSITIONS], real / std[_POSITIONS])
