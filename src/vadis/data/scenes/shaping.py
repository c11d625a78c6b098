"""How recorded pieces are fitted to each other: seams, slowing down, turning while walking, sitting down."""

import math
import random

import torch
from torch import Tensor

from vadis import rotation
from vadis.data import compose
from vadis.data.scenes.pieces import Course, course
from vadis.motion import Motion
from vadis.motion_editing.legs import find_legs, place_feet

TURN_RATE = 1.5
"""Radians a second that a walking body turns at most, about."""
REST_FRAMES = 12
"""Frames that a body stands at the end."""
_LEAD = 16  # frames of standing before a body sits down
_TAIL = 70  # frames of a motion that a seam can lie in


def append(first: Motion, second: Motion, search: float, blend: float) -> tuple[Motion, float]:
    """`compose.join` that looks at the last frames of `first` only; returns the motion and the distance at the seam."""
    start = max(0, first.num_frames - _TAIL)
    joined, _, distance = compose.join(first.crop(start), second, search, blend)
    root = torch.cat([first.root[:start], joined.root])
    return first.replace(root=root, rotations=torch.cat([first.rotations[:start], joined.rotations])), distance


def _play(motion: Motion, where: Tensor) -> Motion:
    """The motion at frames `where` `(T,)`, fractions included."""
    low = where.floor().long().clamp(0, motion.num_frames - 2)
    weight = where - low
    root = torch.lerp(motion.root[low], motion.root[low + 1], weight[:, None])
    return motion.replace(
        root=root, rotations=rotation.slerp(motion.rotations[low], motion.rotations[low + 1], weight[:, None])
    )


def slow_down(motion: Motion, frames: int = 20, speed: float = 0.45) -> Motion:
    """The motion with its last `frames` played ever slower, down to `speed` of the rate: how a walk comes to an end."""
    frames = min(frames, motion.num_frames - 1)
    count = max(1, round(2 * frames / (1 + speed)))
    u = torch.arange(count + 1) / count
    begin = motion.num_frames - 1 - frames
    return _play(
        motion, torch.cat([torch.arange(begin), begin + frames * (u - (1 - speed) * u * u / 2) * 2 / (1 + speed)])
    )


def sit_down(squat: Motion, height: float, back: float = 0.32, rest: int = 20) -> Motion:
    """A squat as sitting down: it ends softly with the pelvis at a height over the floor, behind feet that stay in place.

    Args:
        height: metres of the pelvis over the floor at the end.
        back: metres that the pelvis goes back on the whole; the legs follow by inverse kinematics.
        rest: frames of sitting.
    """
    floor = float(squat.positions[..., 1].amin(1).quantile(0.05))
    low = (squat.root[:, 1] - floor <= height).nonzero()[:, 0]
    bottom = int(low[0]) if len(low) else squat.num_frames - 1
    motion = slow_down(squat.crop(0, bottom + 1), 10, 0.1).canonicalize()
    sunk = (motion.root[0, 1] - motion.root[:, 1]).clamp_min(0)
    progress = sunk / sunk[-1].clamp_min(1e-6)
    shift = (-back - float(motion.root[-1, 2])) * progress  # along z, which is ahead
    root = motion.root + torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift], dim=1)
    legs = find_legs(motion.skeleton)
    feet = [motion.positions[:1, list(part)].double().expand(len(root), -1, -1) for part in (legs.ankle, legs.toe)]
    rotations = place_feet(motion.rotations.double(), root.double(), motion.skeleton, legs, feet[0], feet[1])
    lead = torch.zeros(_LEAD, dtype=torch.long)  # the seam lies in it, and takes nothing off the way down
    index = torch.cat([lead, torch.arange(len(root)), torch.full((rest,), len(root) - 1)])
    return motion.replace(root=root[index], rotations=rotations.float()[index])


def settled(motion: Motion) -> Motion:
    """The motion up to a moment after it has come to rest."""
    m = course(motion)
    moving = ((m.speed > 0.1) | (m.turning.abs() > 0.25)).nonzero()[:, 0]
    return motion.crop(0, min(motion.num_frames, int(moving[-1]) + REST_FRAMES)) if len(moving) else motion


def turning(m: Course, fps: float, bends: list[tuple[float, float]], rng: random.Random) -> Tensor | None:
    """Radians a second `(T,)` that turn a walk; None where it is too short.

    Args:
        bends: when each bend begins, as a share of the time that the body walks, and its angle in radians.

    A body turns while it walks only: turning on planted feet would twist them.
    """
    moving = ((m.speed - 0.25) / 0.5).clamp(0, 1)
    walks = (moving > 0.5).nonzero()[:, 0]
    if len(walks) == 0:
        return None
    rate = torch.zeros(len(moving))
    for begin, angle in bends:
        first = walks[0] + begin * (walks[-1] - walks[0])
        width = max(0.7, abs(angle) / TURN_RATE * 1.4) * rng.uniform(1.0, 1.3)  # seconds
        t = (torch.arange(len(moving)) - first) / fps
        bump = moving * torch.sin((t / width).clamp(0, 1) * math.pi) ** 2
        total = float(bump.sum()) / fps
        if total < 0.2 or abs(angle) * float(bump.max()) / total > 1.6 * TURN_RATE:
            return None
        rate = rate + angle * bump / total
    return rate
