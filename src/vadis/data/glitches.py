"""Capture glitches: where a body jumps faster than a body can, and what is done about it.

A *jump* is a step between two frames in which a body joint moves faster than `MAX_SPEED`. Short pops (a jump away and
back within `MAX_POP` seconds) are interpolated over; the motion is split at any other jump.
"""

from dataclasses import dataclass

import torch

from vadis import rotation
from vadis.motion import Motion
from vadis.retargeting import recognize_skeleton

MAX_SPEED = 14.0
"""Metres per second; a fast kick or throw stays below 12."""
MAX_POP = 0.15
"""Seconds; longer gaps can't be filled by interpolation without inventing motion."""


@dataclass(frozen=True)
class CleanReport:
    """What was found in one motion: frames before every jump, pops repaired, frames inside repaired pops."""

    jump_frames: tuple[int, ...]
    repaired_pops: int
    repaired_frames: int


def find_jumps(motion: Motion, speed: float = MAX_SPEED) -> list[int]:
    """Frames t such that a body joint moves faster than `speed` m/s from t to t + 1.

    Fingers, toes' tips and faces don't count: only joints that drive one of the 22 when the skeleton is known.
    """
    if motion.num_frames < 2:
        return []
    mapping = recognize_skeleton(motion.skeleton)
    names = mapping.joints.values() if mapping else motion.skeleton.names
    joints = [motion.skeleton.index(n) for n in names]
    step = torch.diff(motion.positions[:, joints], dim=0).norm(dim=-1).max(dim=-1).values
    return (step * motion.fps > speed).nonzero()[:, 0].tolist()


def repair(motion: Motion, max_pop: float = MAX_POP) -> tuple[list[Motion], CleanReport]:
    """Interpolate over short pops and split at the remaining jumps; the parts keep `meta["first_frame"]`."""
    jumps = find_jumps(motion)
    if not jumps:
        return [motion.replace(meta=motion.meta | {"first_frame": 0})], CleanReport((), 0, 0)
    root, rotations = motion.root.clone(), motion.rotations.clone()
    longest = max(1, round(max_pop * motion.fps))
    cuts, pops, filled, k = [], 0, 0, 0
    while k < len(jumps):
        last = k  # the last jump of a run of jumps that lie close together
        while last + 1 < len(jumps) and jumps[last + 1] - jumps[last] <= longest:
            last += 1
        start, stop = jumps[k], jumps[last] + 1  # good frames on either side
        inside = stop - start - 1
        gap = (motion.positions[stop] - motion.positions[start]).norm(dim=-1).max()
        if 0 < inside <= longest and gap * motion.fps / (stop - start) <= MAX_SPEED:
            weight = torch.arange(1, inside + 1) / (stop - start)
            root[start + 1 : stop] = torch.lerp(root[start], root[stop], weight[:, None])
            rotations[start + 1 : stop] = rotation.slerp(rotations[start], rotations[stop], weight[:, None])
            pops, filled = pops + 1, filled + inside
        else:
            cuts += jumps[k : last + 1]
        k = last + 1
    mended = motion.replace(root=root, rotations=rotations)
    edges = [0, *(c + 1 for c in cuts), motion.num_frames]
    parts = [
        mended.crop(a, b).replace(meta=motion.meta | {"first_frame": a})
        for a, b in zip(edges, edges[1:], strict=False)
        if b > a
    ]
    return parts, CleanReport(tuple(jumps), pops, filled)
