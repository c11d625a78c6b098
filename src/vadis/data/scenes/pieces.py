"""Stretches of recorded walking that routes are put together from: setting off, walking on, standing.

What a stretch shows is decided by numbers (speed, direction, posture); captions only say which recordings are ordinary
walking, so that nobody dribbles a ball, dances or climbs on the way. Everything is used mirrored too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vadis.data.corpus import Corpus
from vadis.errors import VadisError
from vadis.metrics.kinematics import body_heading
from vadis.motion import Motion
from vadis.representations import representation
from vadis.skeleton import SMPL22_NAMES

_J = {name: j for j, name in enumerate(SMPL22_NAMES)}
_WALKS = re.compile(r"\b(walk|stroll|strid|step)", re.IGNORECASE)
_ODD = re.compile(
    r"\b(climb|danc|salsa|waltz|dribbl|ball|sword|uneven|stair|bar|frame|jump|run|jog|kick|zombie|limp|sneak"
    r"|bow|march|backward|sideways|crouch|hop|traffic|heavy|carry|pick)",
    re.IGNORECASE,
)
_STILL = 0.2
"""Metres a second of the pelvis below which a body stands."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of a recording and where it comes from."""

    motion: Motion
    clip: str
    source: str
    licence: str

    def mirrored(self) -> "Piece":
        return Piece(self.motion.mirror(), self.clip, self.source, self.licence)


@dataclass(frozen=True, eq=False)
class Course:
    """What a body does in every frame `(T,)`: horizontal speed, speed straight ahead, rate of turning, posture."""

    speed: Tensor
    ahead: Tensor
    turning: Tensor
    height: Tensor
    upright: Tensor
    plain: Tensor
    """Upright on legs that are not bent, hands low, feet near the floor."""
    hands: Tensor
    """Height of the higher wrist above the pelvis, metres."""


def course(motion: Motion) -> Course:
    """Measure a motion; speeds in metres a second over a third of a second, turning in radians a second, left positive."""
    p, fps = motion.positions, motion.fps
    heading = body_heading(p)
    velocity = torch.gradient(p[:, 0], dim=0)[0] * fps
    vx, vz = (_average(velocity[:, axis], 9) for axis in (0, 2))
    floor = p[..., 1].amin(1).quantile(0.05)
    trunk = p[:, _J["neck"]] - p[:, 0]
    upright = trunk[:, 1] / trunk.norm(dim=-1).clamp_min(1e-6)
    height = p[:, 0, 1] - floor
    hands = p[:, [_J["left_wrist"], _J["right_wrist"]], 1].amax(1) - p[:, 0, 1]
    feet = p[:, [_J["left_foot"], _J["right_foot"]], 1].amax(1) - floor
    plain = (upright > 0.9) & (hands < 0.3) & (feet < 0.4) & (height > 0.8)
    turning = _average(torch.gradient(heading)[0] * fps, 15)
    ahead = vx * torch.sin(heading) + vz * torch.cos(heading)
    return Course(torch.hypot(vx, vz), ahead, turning, height, upright, plain, hands)


def _average(values: Tensor, width: int) -> Tensor:
    padded = functional.pad(values[None, None], (width // 2, width // 2), mode="replicate")
    return functional.avg_pool1d(padded, width, stride=1)[0, 0]


class Library:
    """The pieces of one corpus. Raises VadisError when it has none of a kind that every route needs."""

    def __init__(self, corpus: Corpus, split: str | None = "train") -> None:
        rep = representation(corpus.representation)
        self.starts: list[Piece] = []
        self.walks: list[Piece] = []
        self.stands: list[Piece] = []
        for clip in corpus.subset(split) if split else corpus:
            texts = " ".join(c.text for c in clip.captions)
            if len(clip.features) < 45 or not _WALKS.search(texts) or _ODD.search(texts):
                continue
            whole = Piece(rep.decode(clip.features).canonicalize(), clip.id, clip.source, clip.licence)
            self._add(whole)
        for kind in ("starts", "walks", "stands"):
            found = getattr(self, kind)
            if not found:
                raise VadisError(
                    f"{corpus.path} has no recording in which a person {_MEANING[kind]}: scenes can't be made of it. "
                    "Build it with captioned walking, such as CMU's subjects 7, 8, 16 and 35."
                )
            setattr(self, kind, found + [piece.mirrored() for piece in found])

    def _add(self, whole: Piece) -> None:
        measured = course(whole.motion)
        for start, stop in _starts(measured):
            self.starts.append(_cut(whole, start, stop))
        for start, stop in _stands(measured):
            self.stands.append(_cut(whole, start, stop))
        for start, stop in _walks(measured):
            self.walks.append(_cut(whole, start, stop))


_MEANING = {"starts": "stands and then walks off", "walks": "walks on", "stands": "stands still"}


def _cut(piece: Piece, start: int, stop: int) -> Piece:
    return Piece(piece.motion.crop(start, stop).canonicalize(), piece.clip, piece.source, piece.licence)


def _runs(flags: Tensor) -> Iterator[tuple[int, int]]:
    """First and one past the last index of every unbroken run of true values."""
    edges = torch.diff(functional.pad(flags.int(), (1, 1))).nonzero()[:, 0].tolist()
    return zip(edges[0::2], edges[1::2], strict=True)


def _starts(m: Course, before: int = 10, after: int = 48) -> Iterator[tuple[int, int]]:
    """Standing for a moment, then walking straight ahead."""
    for first, last in _runs(m.speed < _STILL):
        start, stop = max(first, last - before), last + after
        if last - first < 3 or stop > len(m.speed) or not m.plain[start:stop].all():
            continue
        if (m.ahead[last + 22 : stop] > 0.65).all() and m.turning[last:stop].abs().mean() < 0.6:
            yield start, stop


def _stands(m: Course, least: int = 8) -> Iterator[tuple[int, int]]:
    """Standing still on both feet, arms down."""
    for start, stop in _runs(m.plain & (m.speed < 0.1) & (m.hands < 0)):
        if stop - start >= least and m.turning[start:stop].abs().max() < 0.3:
            yield start, stop


def _walks(m: Course, least: int = 40) -> Iterator[tuple[int, int]]:
    """Steady walking straight ahead, at least one full cycle."""
    straight = (m.ahead > 0.9 * m.speed) & (m.turning.abs() < 0.5)
    for start, stop in _runs(m.plain & straight & (m.speed > 0.7) & (m.speed < 1.6)):
        if stop - start >= least:
            yield start, stop
