"""Joint rotations from joint positions: what a position-only source leaves open is filled in, the joints are followed.

A joint with several children (pelvis, chest) is fitted to all its bones by least squares. A joint with one child takes
the smallest turn that lays its bone onto the measured direction, starting from a guess: its rotation in `reference`
where there is one, else the rest pose carried by its parent. Without a reference the twist about thigh and upper arm
is then chosen so that knee and elbow bend as hinges do; bone directions don't depend on it.
"""

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError
from vadis.skeleton import Skeleton

_HINGES = {  # upper bone -> axis of the lower joint's flexion in the rest pose (left is +X, arms along +-X)
    "left_hip": (1.0, 0.0, 0.0), "right_hip": (1.0, 0.0, 0.0),
    "left_shoulder": (0.0, -1.0, 0.0), "right_shoulder": (0.0, 1.0, 0.0),
}  # fmt: skip


def solve_rotations(
    positions: Tensor, skeleton: Skeleton, reference: Tensor | None = None, follow_joints: bool = True
) -> Tensor:
    """Local rotations `(..., J, 3, 3)` whose forward kinematics from joint 0 follow world joints `(..., J, 3)`.

    Args:
        positions: metres; bone lengths may waver.
        skeleton: J joints in a T-pose at rest.
        reference: local rotations `(..., J, 3, 3)` that settle the twist about every bone.
        follow_joints: aim each bone at the place of its joint, so that wrong lengths don't add up along a limb;
            otherwise keep the directions of the bones (for a skeleton of other proportions).

    Raises ShapeError when the joints don't fit the skeleton.
    """
    if positions.ndim < 2 or positions.shape[-2:] != (skeleton.num_joints, 3):
        raise ShapeError(
            f"joints of {skeleton} have the shape (..., {skeleton.num_joints}, 3); got {tuple(positions.shape)}."
        )
    offsets = skeleton.offsets.to(positions)
    eye = torch.eye(3, dtype=positions.dtype, device=positions.device).expand(*positions.shape[:-2], 3, 3)
    world: list[Tensor] = []
    placed = [positions[..., 0, :]] * skeleton.num_joints
    for joint, parent in enumerate(skeleton.parents):
        above = eye if parent < 0 else world[parent]
        guess = above if reference is None else above @ reference[..., joint, :, :].to(positions)
        children = [c for c in skeleton.children[joint] if offsets[c].norm() > 1e-6]
        if not children:
            world.append(guess)
            continue
        start = placed[joint] if follow_joints else positions[..., joint, :]
        bones = positions[..., children, :] - start[..., None, :]  # (..., C, 3)
        if len(children) > 1:
            turn = _fit(offsets[children], bones, guess)
        else:
            rest = (guess @ offsets[children[0]][:, None])[..., 0]
            turn = rotation.between(rest, bones[..., 0, :]) @ guess
            if reference is None and skeleton.names[joint] in _HINGES:
                turn = _hinge(turn, bones[..., 0, :], positions, skeleton, joint, children[0])
        world.append(turn)
        for child in children:
            placed[child] = placed[joint] + (turn @ offsets[child][:, None])[..., 0]
    return skeleton.local_rotations(torch.stack(world, dim=-3))


def fit_skeleton(positions: Tensor, skeleton: Skeleton, rounds: int = 3) -> Skeleton:
    """The skeleton with the bone lengths of world joints `(T, J, 3)`, in metres.

    Bones that leave one joint together (hips and spine, collars and neck) are rigid to each other in a real body: their
    angles are taken from the joints too. Other rest directions stay.
    """
    offsets = skeleton.offsets.to(positions).clone()
    parents = list(skeleton.parents[1:])
    length = (positions[:, 1:] - positions[:, parents]).norm(dim=-1).mean(0)
    offsets[1:] = torch.nn.functional.normalize(offsets[1:], dim=-1) * length[:, None]
    for joint, children in enumerate(skeleton.children):
        if len(children) < 2:
            continue
        group, rest = list(children), offsets[list(children)]
        bones = positions[:, group] - positions[:, joint : joint + 1]
        eye = torch.eye(3, dtype=positions.dtype, device=positions.device)
        for _ in range(rounds):
            mean = (_fit(rest, bones, eye).transpose(-1, -2) @ bones.transpose(-1, -2)).mean(0).T  # (C, 3)
            rest = torch.nn.functional.normalize(mean, dim=-1) * length[[c - 1 for c in group], None]
        rest = rest @ _fit(offsets[group], rest, eye)  # keep the rest pose facing as it did
        offsets[group] = rest
    return skeleton.with_offsets(offsets.float().cpu())


def _fit(offsets: Tensor, bones: Tensor, guess: Tensor) -> Tensor:
    """Rotations `(..., 3, 3)` that lay unit offsets `(C, 3)` onto unit bones `(..., C, 3)` in the least-squares sense.

    A small pull towards `guess` settles the turn when all bones are parallel or measured as zero.
    """
    unit = offsets / offsets.norm(dim=-1, keepdim=True)
    measured = bones / bones.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    u, _, vh = torch.linalg.svd(measured.transpose(-1, -2) @ unit + 1e-6 * guess)
    sign = torch.linalg.det(u) * torch.linalg.det(vh)
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], dim=-1)
    return u @ vh


def _hinge(turn: Tensor, upper: Tensor, positions: Tensor, skeleton: Skeleton, joint: int, middle: int) -> Tensor:
    """Turn about the bone joint-middle until the measured bend lies in the hinge's plane, wholly when clearly bent."""
    low = skeleton.children[middle][0]
    lower = positions[..., low, :] - positions[..., middle, :]
    upper = upper / upper.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    lower = lower / lower.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    measured = torch.linalg.cross(upper, lower, dim=-1)  # length is the sine of the bend
    axis = (turn @ torch.tensor(_HINGES[skeleton.names[joint]]).to(turn)[:, None])[..., 0]
    cosine = (axis * measured).sum(-1)
    sine = (torch.linalg.cross(axis, measured, dim=-1) * upper).sum(-1)
    straight = 0.02  # a bend of 0.1 rad weighs half against keeping the twist at zero, 0.5 rad more than tenfold
    bend = (cosine.square() + sine.square()).sqrt().clamp_min(1e-9)
    angle = torch.atan2(sine * bend, cosine * bend + straight)
    return rotation.from_rotvec(upper * angle[..., None]) @ turn
