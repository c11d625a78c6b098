"""New motion out of recorded motion: bend a path, play it backwards, loop it, hold it, join two, borrow the arms.

Everything here keeps recorded poses; only their order, place, direction and company change. All functions take and
return motions on one skeleton and frame rate.
"""

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.kinematics import body_heading
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES

ARMS = {
    side: [SMPL22_NAMES.index(f"{side}_{part}") for part in ("collar", "shoulder", "elbow", "wrist")]
    for side in ("left", "right")
}


def bend(motion: Motion, rate: Tensor) -> Motion:
    """Turn a path: add `rate` `(T,)` radians per second of turning, the steps and the body together; positive is left."""
    added = torch.cumsum(rate / motion.fps, dim=0)
    added = added - added[0]
    turn = rotation.yaw(added)
    steps = torch.diff(motion.root, dim=0)
    steps = (turn[1:] @ steps[:, :, None])[..., 0]
    root = torch.cat([motion.root[:1], motion.root[0] + torch.cumsum(steps, dim=0)])
    rotations = torch.cat([(turn @ motion.rotations[:, 0])[:, None], motion.rotations[:, 1:]], dim=1)
    return motion.replace(root=root, rotations=rotations)


def reverse(motion: Motion) -> Motion:
    """Play backwards."""
    return motion.replace(root=motion.root.flip(0), rotations=motion.rotations.flip(0))


def hold(motion: Motion, frames: int) -> Motion:
    """Stay in a quiet motion for `frames` frames by playing it to and fro."""
    count = motion.num_frames
    if count < 2:
        raise VadisError("holding needs at least two frames.")
    index = torch.arange(frames) % (2 * count - 2)
    index = torch.where(index < count, index, 2 * count - 2 - index)
    return motion.replace(root=motion.root[index], rotations=motion.rotations[index])


def descriptor(motion: Motion) -> Tensor:
    """Pose and velocity of every frame in its own heading frame `(T, 132)`; near means a cut between them is smooth."""
    positions = motion.positions
    angle = body_heading(positions)
    turn = rotation.yaw(-angle)
    ground = positions[:, :1] * torch.tensor([1.0, 0.0, 1.0])
    local = ((positions - ground) @ turn.transpose(-1, -2)).flatten(1)
    step = torch.diff(positions, dim=0, append=2 * positions[-1:] - positions[-2:-1]) * motion.fps
    velocity = (step @ turn.transpose(-1, -2)).flatten(1)
    return torch.cat([local, 0.15 * velocity], dim=1)


def join(first: Motion, second: Motion, search: float = 0.8, blend: float = 0.27) -> tuple[Motion, int, float]:
    """Continue `first` with `second` where the two are most alike near the seam.

    Args:
        search: seconds at the end of `first` and the start of `second` in which the cut may lie.
        blend: seconds of cross-fade.

    Returns the joined motion, the frame at which `second` takes over, and the distance at the cut (metres, root mean
    square over joints and scaled velocities; below about 0.1 is smooth).
    """
    fps = first.fps
    width = max(2, round(blend * fps))
    half = width // 2
    reach = round(search * fps)
    if first.num_frames < 2 * width or second.num_frames < 2 * width:
        raise VadisError(
            f"joining needs parts of at least {2 * width} frames; got {first.num_frames} and {second.num_frames}."
        )
    # The frames that are most alike are laid on each other in the middle of the cross-fade, so both are in step there.
    start = first.num_frames - max(width, min(reach, first.num_frames // 2))
    tail = descriptor(first)[start : first.num_frames - (width - half) + 1]
    head = descriptor(second)[half : max(half + 1, min(reach, second.num_frames // 2))]
    distance = torch.cdist(tail, head)
    i, j = divmod(int(distance.argmin()), len(head))
    seam = start + i
    parts = [first.crop(0, seam + width - half), second.crop(j)]  # frame `half` of the second part is the matching one
    return Motion.concatenate(parts, blend=width), seam, float(distance[i, j]) / 22**0.5


def loop(motion: Motion, frames: int, limit: float = 0.35) -> Motion | None:
    """Repeat a motion until it is `frames` long, cutting where it meets itself; None where it never does."""
    result = motion
    for _ in range(24):
        if result.num_frames >= frames:
            return result.crop(0, frames)
        before = result.num_frames
        result, _, distance = join(result, motion)
        if distance > limit or result.num_frames <= before:
            return None
    return None


def borrow_arms(base: Motion, arms: Motion, sides: tuple[str, ...], fade: float = 0.4) -> Motion:
    """`base` with the arms of another motion on the given sides, faded in and out at the ends of `arms`.

    `arms` is laid at the middle of `base` and must not be longer.
    """
    if arms.num_frames > base.num_frames:
        raise VadisError("the borrowed arms are longer than the motion that borrows them.")
    start = (base.num_frames - arms.num_frames) // 2
    edge = max(1, min(round(fade * base.fps), arms.num_frames // 3))
    ramp = torch.ones(arms.num_frames)
    t = (torch.arange(edge) + 1) / (edge + 1)
    ease = t * t * (3 - 2 * t)
    ramp[:edge], ramp[-edge:] = ease, ease.flip(0)
    joints = [j for side in sides for j in ARMS[side]]
    rotations = base.rotations.clone()
    span = slice(start, start + arms.num_frames)
    mixed = rotation.slerp(rotations[span][:, joints], arms.rotations[:, joints], ramp[:, None])
    rotations[span.start : span.stop, joints] = mixed
    return base.replace(rotations=rotations)
