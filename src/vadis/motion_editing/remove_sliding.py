"""MotionMillion's foot-slide clean-up as published: smoothing, pinned feet, inverse kinematics of the whole body.

Reproduced with its mistakes: the floor is not taken off before heights are compared, and the speed limits are so loose
that they never bind; where a clip lies below the floor each foot is pinned to one place for the whole clip, so that slide disappears together
with the steps. `vadis.motion_editing.clean_feet` is the sound one.

Everything is computed in float64, all frames at once. Shapes: T frames, J joints, E = 4 foot joints.
"""

from dataclasses import dataclass

import torch
from scipy.signal import savgol_filter
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.skeleton import Skeleton

REACH = 24
"""Frames around a contact over which a foot is led into it."""
_ITERATIONS, _DAMPING = 50, 2 / 1.001
_SPEED = (0.05, 0.2)  # squared metres a frame: ankles, toes
_HEIGHT = (0.06, 0.03)  # metres: ankles, toes


@dataclass(frozen=True)
class Stages:
    """What the algorithm holds on its way: floor height, smoothed joints, contacts `(T, E)`, targets, solved rotations."""

    floor: float
    smoothed: Tensor
    contacts: Tensor
    targets: Tensor
    rotations: Tensor


def remove_sliding(motion: Motion, feet: tuple[int, int, int, int], window: int = 5) -> Motion:
    """The cleaned motion at twice the frame rate, 2 T - 1 frames.

    Args:
        motion: metres, Y up.
        feet: left ankle, left toe, right ankle, right toe.
        window: frames of the Savitzky-Golay filter of order 3, odd; 5 as in the documentation of the original, whose
            program has 3 by default.

    Raises VadisError for windows that aren't odd, shorter than 5 frames or longer than the clip.
    """
    path = remove_sliding_stages(motion, feet, window)
    turns, root = double_rate(path.rotations, motion.root.double() - torch.tensor([0.0, path.floor, 0.0]))
    return motion.replace(
        root=root.to(motion.root), rotations=turns.to(motion.rotations), fps=2 * motion.fps, meta=dict(motion.meta)
    )


def remove_sliding_stages(motion: Motion, feet: tuple[int, int, int, int], window: int = 5) -> Stages:
    """All steps up to the solved rotations, at the motion's own rate."""
    if window % 2 == 0 or not 5 <= window <= motion.num_frames:
        raise VadisError(
            f"the smoothing window must be odd, from 5 to the {motion.num_frames} frames of the clip; got {window}."
        )
    local = motion.rotations.double()
    joints = motion.skeleton.forward_kinematics(local, motion.root.double())
    low = joints[:, list(feet), 1].amin(1).sort().values
    floor = float(low[int(0.25 * len(low)) : int(0.5 * len(low))].mean())
    floor = 0.0 if floor > 0.5 else floor
    smoothed = torch.from_numpy(savgol_filter(joints.numpy(), window, 3, axis=0, mode="interp"))
    contacts = find_contacts(smoothed[:, list(feet)])
    targets = smoothed.clone()
    for column, joint in enumerate(feet):
        targets[:, joint] = pin(smoothed[:, joint], contacts[:, column])
    solved = solve(local, motion.root.double(), targets, motion.skeleton)
    return Stages(floor, smoothed, contacts, targets, solved)


def find_contacts(feet: Tensor) -> Tensor:
    """Contacts `(T, 4)` of ankle, toe, ankle, toe positions `(T, 4, 3)`; the last frame repeats the one before."""
    speed, height = torch.tensor(_SPEED * 2), torch.tensor(_HEIGHT * 2)
    moved = torch.diff(feet, dim=0).square().sum(-1)
    down = (moved < speed.to(moved)) & (feet[:-1, :, 1] < height.to(moved))
    return torch.cat([down, down[-1:]])


def pin(path: Tensor, contact: Tensor) -> Tensor:
    """A joint's path `(T, 3)` held at its mean in every run of contacts `(T,)` and led smoothly into the runs."""
    frames = len(path)
    if not contact.any():
        return path.clone()
    start = torch.cat([contact[:1], contact[1:] & ~contact[:-1]])
    run = start.long().cumsum(0) - 1
    runs = int(start.sum())
    count = torch.zeros(runs, dtype=path.dtype).index_add(0, run[contact], torch.ones_like(path[contact, 0]))
    mean = torch.zeros(runs, 3, dtype=path.dtype).index_add(0, run[contact], path[contact]) / count[:, None]
    held = path.clone()
    held[contact] = mean[run[contact]]

    index = torch.arange(frames)
    far = 10 * frames
    last = torch.where(contact, index, -far).cummax(0).values  # the nearest contact before each frame, and after it
    following = torch.where(contact, index, far).flip(0).cummin(0).values.flip(0)
    before, after = index - last, following - index
    has_last, has_next = before <= REACH, after <= REACH
    a, b = held[last.clamp(min=0)], held[following.clamp(max=frames - 1)]
    left = torch.lerp(path, a, _fade((before + 1) / (REACH + 1.0))[:, None])
    right = torch.lerp(path, b, _fade((after + 1) / (REACH + 1.0))[:, None])
    both = torch.lerp(right, left, _fade((before + 1) / (following - last + 1.0))[:, None])
    blended = torch.where(has_last[:, None], torch.where(has_next[:, None], both, left), right)
    free = ~contact & (has_last | has_next)
    return torch.where(free[:, None], blended, held)


def _fade(t: Tensor) -> Tensor:
    """1 to 0 while t goes from 0 to 1."""
    return (2 * t**3 - 3 * t**2 + 1).double()


def solve(local: Tensor, root: Tensor, targets: Tensor, skeleton: Skeleton) -> Tensor:
    """Local rotations `(T, J, 3, 3)` that bring all joints near `targets` `(T, J, 3)`, by damped least squares.

    The unknowns are three Euler angles a joint, R = Rz Ry Rx; the root's place is not among them.
    """
    angles = rotation.to_euler(local, "ZYX")
    below = torch.zeros(skeleton.num_joints, skeleton.num_joints, dtype=torch.float64)
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0:
            below[joint] = below[parent]
            below[joint, parent] = 1
    parts = [
        _solve_part(a, r, t, skeleton, below)
        for a, r, t in zip(angles.split(256), root.split(256), targets.split(256), strict=True)
    ]
    return rotation.from_euler(torch.cat(parts), "ZYX")


def _solve_part(angles: Tensor, root: Tensor, targets: Tensor, skeleton: Skeleton, below: Tensor) -> Tensor:
    frames, count = angles.shape[:2]
    damping = _DAMPING**2 * torch.eye(3 * count, dtype=angles.dtype)
    parents = torch.tensor([max(p, 0) for p in skeleton.parents])
    for _ in range(_ITERATIONS):
        z = rotation.from_euler(angles[..., :1], "Z")
        zy = z @ rotation.from_euler(angles[..., 1:2], "Y")
        local = zy @ rotation.from_euler(angles[..., 2:], "X")
        world = skeleton.global_rotations(local)
        joints = skeleton.forward_kinematics(local, root, world)
        above = world[:, parents].clone()
        above[:, 0] = torch.eye(3, dtype=angles.dtype)
        axes = torch.stack([above[..., 2], (above @ z)[..., 1], (above @ zy)[..., 0]], dim=2)  # (T, J, 3 angles, 3)
        arms = joints[:, :, None] - joints[:, None]  # (T, end, J, 3)
        columns = torch.linalg.cross(axes[:, None], arms[:, :, :, None], dim=-1) * below[:, :, None, None]
        jacobian = columns.permute(0, 1, 4, 2, 3).reshape(frames, 3 * count, 3 * count)
        off = (targets - joints).reshape(frames, -1, 1)
        turned = jacobian.transpose(-1, -2)
        step = torch.linalg.solve(turned @ jacobian + damping, turned @ off)
        angles = angles + step.reshape(frames, count, 3)
    return angles


def double_rate(local: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations `(T, J, 3, 3)` and root `(T, 3)` at twice the rate, 2 T - 1 frames, smoothed as the original does."""
    quat = rotation.to_quat_wxyz(local)
    fine = torch.empty(2 * len(quat) - 1, *quat.shape[1:], dtype=quat.dtype)
    fine[0::2] = quat
    fine[1::2] = _half(quat[:-1], quat[1:])
    smooth = fine.clone()
    smooth[1:-1] = _half(_half(fine[:-2], fine[1:-1]), _half(fine[1:-1], fine[2:]))
    path = torch.empty(2 * len(root) - 1, 3, dtype=root.dtype)
    path[0::2], path[1::2] = root, (root[:-1] + root[1:]) / 2
    if len(path) >= 5:
        path = torch.from_numpy(savgol_filter(path.numpy(), 5, 2, axis=0, mode="interp"))
    return rotation.from_quat_wxyz(smooth), path


def _half(a: Tensor, b: Tensor) -> Tensor:
    """Halfway between unit quaternions `(..., 4)` on the shortest arc."""
    b = torch.where((a * b).sum(-1, keepdim=True) < 0, -b, b)
    middle = a + b
    return middle / middle.norm(dim=-1, keepdim=True)
