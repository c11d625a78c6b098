"""Motion near-duplicates among many clips: the same movement twice, wherever it is cut, turned or placed.

A pose is 22 joints seen from the pelvis with the heading of the body removed. Moments where a body is at its quickest
are the same moments in any cut of one recording, so a fingerprint is taken at each: five poses around it, reduced by PCA.
Fingerprints that lie close (k-d tree) propose a pair of clips and a shift between them; the pair is then checked frame by
frame, and the longest common stretch is kept in which the mean joint distance of any `seconds` stays below the limit.

Stretches in which nobody moves have no quickest moment and are alike everywhere; they are not compared. Copies played at
another speed, or on a body of other proportions, are not found as such.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.data.corpus import Corpus
from vadis.errors import VadisError
from vadis.kinematics import body_heading
from vadis.representations import representation
from vadis.skeleton import smpl22

OFFSETS = (-0.6, -0.3, 0.0, 0.3, 0.6)
"""Seconds around a quickest moment at which the poses of a fingerprint are taken."""
SMOOTHING = 0.2  # seconds over which the speed is averaged before its peaks are sought
QUIET = 0.15  # mean joint speed in metres a second, seen from the pelvis, below which a peak is no movement
DIMENSIONS = 16
SAMPLE = 20_000  # fingerprints that the PCA is fitted on
NEIGHBOURS = 24  # closest fingerprints looked at for each
SLACK = 1.6  # a fingerprint's RMS distance may exceed the mean joint distance asked for by this factor


@dataclass(frozen=True)
class MotionPair:
    """The same movement in two clips."""

    first: str
    second: str
    mean_mm: float
    """Mean joint distance over the common stretch, heading and place removed."""
    seconds: float
    """Length of the common stretch."""
    first_start: float
    """Where it begins in the first clip, in seconds."""
    second_start: float
    share: float
    """The stretch as a share of the shorter clip."""
    mirrored: bool = False


def local_poses(features: Tensor, name: str) -> Tensor:
    """Joint positions `(T, 22, 3)` in metres seen from the pelvis, heading of the body removed, of features `(T, D)`.

    Raises VadisError for a representation without the 22 joints.
    """
    positions = representation(name).positions(features)
    if positions.shape[-2] != 22:
        raise VadisError(
            f"{name} has {positions.shape[-2]} joints; motion is compared on 22. Convert it with `vadis convert --to ms272`."
        )
    local = positions - positions[:, :1]
    return local @ rotation.yaw(-body_heading(positions)).mT  # row vectors: turn by the heading's inverse


def quick_moments(poses: Tensor, fps: float) -> Tensor:
    """Frames where the smoothed mean joint speed has a local maximum that is a movement, far enough from both ends."""
    reach = round(OFFSETS[-1] * fps)
    if len(poses) < 2 * reach + 3:
        return torch.zeros(0, dtype=torch.long)
    speed = torch.diff(poses, dim=0).norm(dim=-1).mean(-1) * fps  # (T - 1,), between t and t + 1
    width = max(1, round(SMOOTHING * fps)) | 1
    kernel = torch.hann_window(width + 2, periodic=False)[1:-1]
    kernel = kernel / kernel.sum()
    for _ in range(2):  # twice: one smoothing alone leaves double peaks
        speed = torch.nn.functional.conv1d(speed[None, None], kernel[None, None], padding=width // 2)[0, 0]
    middle = speed[1:-1]
    peaks = ((middle > speed[:-2]) & (middle >= speed[2:]) & (middle > QUIET)).nonzero()[:, 0] + 1
    return peaks[(peaks >= reach) & (peaks < len(poses) - reach)]


@dataclass(frozen=True, eq=False)
class _Prints:
    """Fingerprints of a corpus: vectors `(N, 330)` float16 in metres, the clip row and the frame of each."""

    vectors: np.ndarray
    clips: np.ndarray
    frames: np.ndarray


def _mirrored(poses: Tensor) -> Tensor:
    return poses[:, smpl22().mirror_indices] * torch.tensor([-1.0, 1.0, 1.0])


def _fingerprints(corpus: Corpus, mirrored: bool = False) -> _Prints:
    offsets = torch.tensor([round(s * corpus.fps) for s in OFFSETS])
    vectors, clips, frames = [np.zeros((0, len(OFFSETS) * 66), np.float16)], [], []
    for row in range(len(corpus)):
        poses = local_poses(corpus.frames_of(row), corpus.representation)
        peaks = quick_moments(poses, corpus.fps)
        poses = _mirrored(poses) if mirrored else poses
        vectors.append(poses[peaks[:, None] + offsets].flatten(1).numpy().astype(np.float16))
        clips += [row] * len(peaks)
        frames += peaks.tolist()
    return _Prints(np.concatenate(vectors), np.array(clips, np.int64), np.array(frames, np.int64))


def motion_pairs(
    reference: Corpus,
    tested: Corpus | None = None,
    millimetres: float = 20.0,
    seconds: float = 2.0,
    mirrored: bool = False,
) -> list[MotionPair]:
    """Pairs of clips that share a movement, the closest first: (reference, tested), or all pairs of one corpus.

    Args:
        millimetres: largest mean joint distance.
        seconds: shortest common stretch, at least 1.4.
        mirrored: also look for left-right mirrored copies.

    Raises VadisError for limits out of range or corpora of different frame rates.
    """
    if not 0 < millimetres <= 200 or not 1.4 <= seconds <= 60:
        raise VadisError(f"millimetres must lie in (0, 200] and seconds in [1.4, 60]; got {millimetres:g}, {seconds:g}.")  # fmt: skip
    other = reference if tested is None else tested
    if abs(reference.fps - other.fps) > 1e-3:
        raise VadisError(
            f"{reference.path} has {reference.fps:g} frames/s and {other.path} {other.fps:g}; "
            "build both at one rate to compare them."
        )
    ours = _fingerprints(reference)
    basis, mean = _basis(ours.vectors)
    radius = SLACK * millimetres / 1000 * (len(OFFSETS) * 22) ** 0.5
    pairs: list[MotionPair] = []
    for flip in (False, True) if mirrored else (False,):
        theirs = ours if tested is None and not flip else _fingerprints(other, flip)
        found = _candidates(_project(ours.vectors, basis, mean), _project(theirs.vectors, basis, mean), radius)
        groups = _grouped(ours, theirs, found, same=tested is None)
        pairs += _checked(reference, other, groups, flip, millimetres / 1000, seconds)
    return sorted(pairs, key=lambda p: (p.mean_mm, p.first, p.second))


def _basis(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions `(330, DIMENSIONS)` and the mean, from an even sample. Projection never lengthens."""
    sample = vectors[:: max(1, len(vectors) // SAMPLE)].astype(np.float64)
    if not len(sample):
        return np.zeros((vectors.shape[1], 1)), np.zeros(vectors.shape[1])
    mean = sample.mean(0)
    directions = np.linalg.eigh((sample - mean).T @ (sample - mean))[1]
    return directions[:, ::-1][:, :DIMENSIONS].copy(), mean


def _project(vectors: np.ndarray, basis: np.ndarray, mean: np.ndarray) -> np.ndarray:
    out = np.empty((len(vectors), basis.shape[1]), np.float32)
    for a in range(0, len(vectors), 100_000):
        out[a : a + 100_000] = (vectors[a : a + 100_000].astype(np.float32) - mean) @ basis
    return out


def _candidates(ours: np.ndarray, theirs: np.ndarray, radius: float) -> np.ndarray:
    """Pairs `(N, 2)` of fingerprints closer than `radius`: rows of `theirs` with their nearest of `ours`."""
    from scipy.spatial import KDTree

    if not len(ours) or not len(theirs):
        return np.zeros((0, 2), np.int64)
    tree = KDTree(ours)
    k = min(NEIGHBOURS, len(ours))
    found = []
    for a in range(0, len(theirs), 100_000):
        nearest = tree.query(theirs[a : a + 100_000], k=k, distance_upper_bound=radius)[1].reshape(-1, k)
        rows, columns = np.nonzero(nearest < len(ours))
        found.append(np.stack([nearest[rows, columns], rows + a], axis=1))
    return np.concatenate(found)


def _grouped(
    ours: _Prints, theirs: _Prints, found: np.ndarray, same: bool
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(clip of ours, clip of theirs, shifts in frames that several or the best fingerprints propose)."""
    a, b = ours.clips[found[:, 0]], theirs.clips[found[:, 1]]
    shift = theirs.frames[found[:, 1]] - ours.frames[found[:, 0]]
    keep = a < b if same else np.ones(len(a), bool)
    triples, votes = np.unique(np.stack([a, b, shift], axis=1)[keep], axis=0, return_counts=True)
    if not len(triples):
        return
    edges = np.flatnonzero(np.any(np.diff(triples[:, :2], axis=0), axis=1)) + 1
    for part, count in zip(np.split(triples, edges), np.split(votes, edges), strict=True):
        best = part[np.argsort(-count, kind="stable")[:8], 2]  # periodic movements propose many
        yield int(part[0, 0]), int(part[0, 1]), tuple(int(s) for s in best)


def _checked(
    reference: Corpus,
    other: Corpus,
    groups: Iterable[tuple[int, int, tuple[int, ...]]],
    flip: bool,
    limit: float,
    seconds: float,
) -> Iterator[MotionPair]:
    """The groups that hold up frame by frame."""

    @lru_cache(maxsize=256)
    def poses(mine: bool, row: int) -> Tensor:
        corpus = reference if mine else other
        x = local_poses(corpus.frames_of(row), corpus.representation)
        return x if mine or not flip else _mirrored(x)

    fps = reference.fps
    window = round(seconds * fps)
    for a, b, shifts in groups:
        x, y = poses(True, a), poses(False, b)
        best = max((_stretch(x, y, s, window, limit) for s in _around(shifts)), key=lambda r: (r[1], -r[2]))
        start, length, distance, shift = best
        if length:
            yield MotionPair(
                reference.ids[a], other.ids[b], round(1000 * distance, 2), round(length / fps, 2),
                round(start / fps, 2), round((start + shift) / fps, 2), round(length / min(len(x), len(y)), 3), flip,
            )  # fmt: skip


def _around(shifts: Sequence[int]) -> list[int]:
    """The shifts and their neighbours: a little noise moves a quickest moment by a frame."""
    return sorted({s + d for s in shifts for d in (-1, 0, 1)})


def _stretch(x: Tensor, y: Tensor, shift: int, window: int, limit: float) -> tuple[int, int, float, int]:
    """Longest run of frames of `x` whose windows all stay below `limit` against `y` moved by `shift`.

    Gives its start in `x`, its length (0: none), the mean joint distance in metres over it, and the shift.
    """
    first, last = max(0, -shift), min(len(x), len(y) - shift)
    if last - first < window:
        return 0, 0, 0.0, shift
    distance = (x[first:last] - y[first + shift : last + shift]).norm(dim=-1).mean(-1).double()
    total = torch.cat([torch.zeros(1, dtype=torch.float64), distance.cumsum(0)])
    good = (((total[window:] - total[:-window]) / window) <= limit).numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    if not len(edges):
        return 0, 0, 0.0, shift
    runs = edges.reshape(-1, 2)
    start, stop = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    length = int(stop - start) + window - 1
    return first + int(start), length, float(distance[start : start + length].mean()), shift
