"""What feet do on the floor: contact, sliding and implausible movement, as MBench (ViMoGen) and Motius define them.

Both count the same things; they differ in where the floor is and how values are scaled. All values are per frame, so the
thresholds below mean something at the frame rate they were chosen for only (20 frames/s in MBench, 30 in Motius).

Shapes: B clips, N frames of all clips end to end, the feet stand in the last axis (left, right).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.metrics.clips import Clips, Float32, norm

CONTACT_SPEED, CONTACT_HEIGHT = 0.01, 0.02
"""A foot is in contact below this speed (metres a frame, in space) OR below this height (metres)."""
DEPTH = 0.005
"""Metres under the floor from which a toe counts as sunk."""
_STILL_ROOT, _STILL_FOOT = 0.001, 1.2e-4
_SLOW, _FAST, _STUCK = 0.6, 1.75, 0.4
_SHORT = 4
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Feet:
    """The toes of packed clips: heights above the floor `(N, 2)`, steps to the next frame, and contact `(N, 2)`.

    The last step of a clip is that of the frame before it. A clip of one frame stands still.
    """

    clips: Clips
    height: Float32
    step: Float32
    """`(N, 2, 3)` metres a frame."""
    contact: Flags

    def sliding(self, ground: tuple[int, int]) -> NDArray[np.float64]:
        """Mean horizontal step of the feet while in contact, metres a frame, `(B,)`; `ground` names the two axes."""
        flat = np.hypot(self.step[..., ground[0]], self.step[..., ground[1]])
        values = []
        for foot in (0, 1):
            held = self.contact[:, foot]
            values.append(self.clips.total(flat[:, foot] * held) / (self.clips.total(held) + 1e-6))
        return (values[0] + values[1]) / 2

    def penetration(self) -> NDArray[np.float64]:
        """Mean depth in metres of the toe samples that lie more than 5 mm under the floor, `(B,)`; 0 without any."""
        sunk = self.height < -DEPTH
        depth = np.where(sunk, np.abs(self.height), 0).sum(1, dtype=np.float64)
        return self.clips.total(depth) / np.maximum(self.clips.total(sunk.sum(1)), 1)

    def floating(self) -> NDArray[np.float64]:
        """Frames whose feet move in a way that no step explains, over all frames, `(B,)`; may exceed 1.

        Three counts are added: feet that hold on to the floor but move unlike the pelvis allows, airborne feet that are
        carried along with the pelvis, and airborne left feet that change direction more than twice.
        """
        root = steps(self.clips, self.clips.joints[:, self.clips.parts.root])
        toes = self.clips.joints[:, list(self.clips.parts.toes)]
        relative = steps(self.clips, toes - self.clips.joints[:, self.clips.parts.root, None])
        root_speed = norm(root)
        rate = norm(relative) / (root_speed + np.float32(1e-6))[:, None]
        still = root_speed < _STILL_ROOT
        odd = ~still[:, None] & (norm(self.step) > _STILL_FOOT) & ((rate < _SLOW) | (rate > _FAST))
        hold_left, hold_right = self.contact.T
        both = hold_left & hold_right & odd.all(1)
        one = (hold_left ^ hold_right) & np.where(hold_left, odd[:, 0], odd[:, 1])
        count = self.clips.total(both | one)
        for foot in (0, 1):
            count += self._carried(~self.contact[:, foot], still, rate[:, foot] < _STUCK) / 2
        return (count + self._turning(toes[:, 0])) / self.clips.lengths

    def runs(self, flags: Flags) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last frame (inclusive) of every unbroken run of flagged frames `(N,)`; runs end with their clip."""
        first = np.zeros(len(flags) + 1, bool)
        first[self.clips.starts] = first[-1] = True
        before = np.concatenate([[False], flags[:-1]])
        after = np.concatenate([flags[1:], [False]])
        return np.flatnonzero(flags & (~before | first[:-1])), np.flatnonzero(flags & (~after | first[1:]))

    def _carried(self, air: Flags, still: Flags, stuck: Flags) -> NDArray[np.float64]:
        """Frames in which an airborne foot hardly moves relative to a moving pelvis, in runs of at least four."""
        start, end = self.runs(air)
        length = end - start + 1
        asleep, kept = (np.concatenate([[0], np.cumsum(x)]) for x in (still, stuck))
        counts = (length >= _SHORT) & (asleep[end + 1] - asleep[start] <= length / 2)
        frames = np.where(counts, kept[end + 1] - kept[start], 0)
        return np.bincount(self.clips.owner[start], frames, minlength=len(self.clips.lengths))

    def _turning(self, toe: Float32) -> NDArray[np.float64]:
        """Frames of the runs with both feet airborne in which the left toe's direction swings more than twice.

        Runs of both feet are the overlaps of a run of either foot; the right toe isn't looked at, as published.
        """
        start, end = self.runs(~self.contact.any(1))
        long = end - start + 1 >= _SHORT
        start, end = start[long], end[long]
        result = np.zeros(len(self.clips.lengths))
        if not len(start):
            return result
        sizes = end - start  # frames start + 1 … end
        run = np.repeat(np.arange(len(start)), sizes)
        frame = np.arange(sizes.sum()) + (start + 1 - (np.cumsum(sizes) - sizes))[run]
        way, whole = toe[frame] - toe[start[run]], (toe[end] - toe[start])[run]
        way, whole = (v / (norm(v) + np.float32(1e-6))[:, None] for v in (way, whole))
        cosine = np.clip((way * whole).sum(-1), np.float32(-1), np.float32(1))
        swings = _peaks(np.degrees(np.arccos(cosine)), run, len(start))
        np.add.at(result, self.clips.owner[start], np.where(swings > 2, end - start + 1, 0))
        return result


def _peaks(values: NDArray[Any], run: NDArray[np.int64], runs: int) -> NDArray[np.int64]:
    """Number of local maxima of each run of consecutive values; a plateau counts once, the ends of a run never."""
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (run[1:] != run[:-1])  # one value for a plateau
    values, run = values[new], run[new]
    inner = (run[1:-1] == run[:-2]) & (run[1:-1] == run[2:])
    high = inner & (values[1:-1] > values[:-2]) & (values[1:-1] > values[2:])
    return np.bincount(run[1:-1][high], minlength=runs)


def steps(clips: Clips, points: Float32) -> Float32:
    """Differences to the next frame of points `(N, ..., 3)`; the last of a clip repeats the one before."""
    step = np.zeros_like(points)
    step[:-1] = points[1:] - points[:-1]
    last = clips.starts + clips.lengths - 1
    step[last] = np.where((clips.lengths > 1).reshape(-1, *[1] * (points.ndim - 1)), step[np.maximum(last - 1, 0)], 0)
    return step


def watch_feet(clips: Clips, up: int, floor: NDArray[np.floating[Any]] | float) -> Feet:
    """The feet of packed clips; `up` is the index of the height axis, `floor` the floor's height, one or `(B,)`."""
    toes = clips.joints[:, list(clips.parts.toes)]
    level = np.asarray(floor, np.float32)
    height = toes[..., up] - (level if level.ndim == 0 else level[clips.owner, None])
    step = steps(clips, toes)
    return Feet(clips, height, step, (norm(step) < CONTACT_SPEED) | (height < CONTACT_HEIGHT))


def lowest_toe(clips: Clips, up: int, quantile: float = 0.0) -> NDArray[np.float64]:
    """Height of the lower toe that a share `quantile` of the frames lies below, one a clip `(B,)`; 0 is the lowest."""
    low = clips.joints[:, list(clips.parts.toes), up].min(1)
    if quantile == 0:
        return np.minimum.reduceat(low, clips.starts).astype(np.float64)
    return np.asarray([np.quantile(part, quantile) for part in np.split(low, clips.starts[1:])], np.float64)
