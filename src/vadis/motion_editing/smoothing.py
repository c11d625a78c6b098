"""Smoothing over time by penalised least squares (Whittaker, 1923; Eilers, 2003): a low-pass without delay or end effects.

The third difference is penalised, which leaves motion below the cut-off alone: the response is 1 / (1 + (f / cutoff)^6).
"""

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.motion import Motion

_ORDER = 3
_CALMER, _NATURAL = 0.8, 1.6


def smooth_motion(motion: Motion, cutoff: float) -> Motion:
    """The motion without what is faster than `cutoff` hertz, root path and rotations alike.

    Clips of fewer than 4 frames, and cut-offs above half the frame rate, leave a motion as it is. Raises VadisError for a
    cut-off that isn't positive.
    """
    if not cutoff > 0:
        raise VadisError(f"the cut-off of smoothing must be a positive number of hertz; got {cutoff}.")
    if motion.num_frames <= _ORDER or cutoff >= motion.fps / 2:
        return motion
    return _smoothed(motion, _continuous(motion), cutoff)


def _continuous(motion: Motion) -> Tensor:
    """Quaternions `(T, J, 4)` of a motion, float64, without changes of sign."""
    quat = rotation.to_quat_wxyz(motion.rotations.double())
    flip = torch.where((quat[1:] * quat[:-1]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return torch.cat([quat[:1], quat[1:] * flip.cumprod(0)])


def _smoothed(motion: Motion, quat: Tensor, cutoff: float) -> Motion:
    turns = rotation.from_quat_wxyz(smooth(quat, motion.fps, cutoff))
    root = smooth(motion.root.double(), motion.fps, cutoff)
    return motion.replace(root=root.to(motion.root), rotations=turns.to(motion.rotations))


def tempo(motion: Motion) -> float:
    """How fast motion comes and goes, in hertz: mean acceleration over mean speed of joints, in the world and from the root.

    Recorded people have 0.8 to 2.5; jitter raises it.
    """
    joints = motion.positions
    both = torch.cat([joints, joints - joints[:, :1]], dim=1)
    speed, acceleration = (torch.diff(both, n=n, dim=0).norm(dim=-1).mean() for n in (1, 2))
    return float(acceleration / speed.clamp_min(1e-9)) * motion.fps / (2 * np.pi)


def calm_motion(motion: Motion) -> Motion:
    """The motion smoothed until its `tempo` is a fifth lower, and that of recorded people at most.

    The cut-off is searched between 2.5 and 12 hertz, so that clips are smoothed no more than it takes.
    """
    if motion.num_frames <= _ORDER:
        return motion
    goal = min(_CALMER * tempo(motion), _NATURAL)
    low, high, quat = np.log(2.5), np.log(min(12.0, 0.45 * motion.fps)), _continuous(motion)
    best = _smoothed(motion, quat, 2.5)
    for _ in range(5):
        made = _smoothed(motion, quat, float(np.exp((low + high) / 2)))
        if tempo(made) <= goal:
            low, best = (low + high) / 2, made
        else:
            high = (low + high) / 2
    return best


def smooth(values: Tensor, fps: float, cutoff: float) -> Tensor:
    """Values `(T, …)` float64, T > 3, without what is faster than `cutoff` hertz."""
    from scipy.linalg import solveh_banded

    frames = len(values)
    weight = (2 * np.sin(np.pi * cutoff / fps)) ** (-2 * _ORDER)
    stencil = np.array([-1.0, 3.0, -3.0, 1.0])
    band = np.zeros((_ORDER + 1, frames))  # lower form of 1 + weight * D'D, D the third difference
    for a in range(_ORDER + 1):
        for b in range(a + 1):
            band[a - b, b : frames - _ORDER + b] += weight * stencil[a] * stencil[b]
    band[0] += 1
    flat = solveh_banded(band, values.reshape(frames, -1).numpy(), lower=True)
    return torch.from_numpy(flat).reshape(values.shape)
