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


def smooth_motion(motion: Motion, cutoff: float) -> Motion:
    """The motion without what is faster than `cutoff` hertz, root path and rotations alike.

    Clips of fewer than 4 frames, and cut-offs above half the frame rate, leave a motion as it is. Raises VadisError for a
    cut-off that isn't positive.
    """
    if not cutoff > 0:
        raise VadisError(f"the cut-off of smoothing must be a positive number of hertz; got {cutoff}.")
    if motion.num_frames <= _ORDER or cutoff >= motion.fps / 2:
        return motion
    quat = rotation.to_quat_wxyz(motion.rotations.double())
    flip = torch.where((quat[1:] * quat[:-1]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    quat = torch.cat([quat[:1], quat[1:] * flip.cumprod(0)])
    turns = rotation.from_quat_wxyz(smooth(quat, motion.fps, cutoff))
    root = smooth(motion.root.double(), motion.fps, cutoff)
    return motion.replace(root=root.to(motion.root), rotations=turns.to(motion.rotations))


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
