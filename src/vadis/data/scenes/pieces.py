"""Stretches of recordings that motions in rooms are put together from: setting off, walking, standing, turning, sitting down.

What a stretch shows is decided by numbers (speed, direction, posture); captions only say which recordings to leave out, so
that nobody climbs or dances on the way. Everything is used mirrored too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vadis.data.corpus import Corpus
from vadis.errors import VadisError
from vadis.kinematics import body_heading
from vadis.motion import Motion
from vadis.representations import representation
from vadis.rotation import unwrap
from vadis.skeleton import SMPL22_NAMES

_J = {name: j for j, name in enumerate(SMPL22_NAMES)}
_WALKS = re.compile(r"\b(walk|stroll|strid|step)", re.IGNORECASE)
_ODD_WALKS = re.compile(
    r"\b(climb|danc|salsa|waltz|dribbl|ball|sword|uneven|stair|bar|frame|jump|run|jog|kick|zombie|limp|sneak"
    r"|bow|march|backward|sideways|crouch|hop|traffic|heavy|carry|pick)",
    re.IGNORECASE,
)
_ODD_TURNS = re.compile(
    r"\b(danc|salsa|waltz|twist|punch|box|sword|jack|spin|cartwheel|climb|wash|lunge)", re.IGNORECASE
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

    def cut(self, start: int, stop: int) -> "Piece":
        """Some frames of it, canonical."""
        return Piece(self.motion.crop(start, stop).canonicalize(), self.clip, self.source, self.licence)


@dataclass(frozen=True, eq=False)
class Course:
    """What a body does in every frame `(T,)`; metres, seconds, radians, left positive."""

    speed: Tensor
    """Of the pelvis over the floor."""
    ahead: Tensor
    """Speed straight ahead."""
    turning: Tensor
    """Rate of turning of hips and shoulders."""
    height: Tensor
    """Of the pelvis over the floor."""
    upright: Tensor
    """Vertical part of the unit vector from pelvis to neck."""
    hands: Tensor
    """Height of the higher wrist above the pelvis."""
    plain: Tensor
    """Whether the body is upright on legs that are not bent, its hands low and its feet near the floor."""
    heading: Tensor
    """Of hips and shoulders."""
    feet_heading: Tensor
    """Mean heading of the feet."""


def course(motion: Motion) -> Course:
    """Measure a motion; speeds are means over a third of a second."""
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
    toes = [p[:, _J[f"{side}_foot"]] - p[:, _J[f"{side}_ankle"]] for side in ("left", "right")]
    return Course(
        speed=torch.hypot(vx, vz),
        ahead=vx * torch.sin(heading) + vz * torch.cos(heading),
        turning=_average(torch.gradient(heading)[0] * fps, 15),
        height=height,
        upright=upright,
        hands=hands,
        plain=plain,
        heading=heading,
        feet_heading=sum(unwrap(torch.atan2(toe[:, 0], toe[:, 2])) for toe in toes) / 2,
    )


def _average(values: Tensor, width: int) -> Tensor:
    padded = functional.pad(values[None, None], (width // 2, width // 2), mode="replicate")
    return functional.avg_pool1d(padded, width, stride=1)[0, 0]


class Library:
    """The pieces of one corpus. Raises VadisError when it has none of a kind that every walk needs."""

    def __init__(self, corpus: Corpus, split: str | None = "train") -> None:
        rep = representation(corpus.representation)
        self.starts: list[Piece] = []
        """Standing, then walking straight ahead."""
        self.walks: list[Piece] = []
        """Steady walking straight ahead."""
        self.stands: list[Piece] = []
        """Standing still."""
        self.turns: list[Piece] = []
        """Standing, turning in place by steps, standing."""
        self.returns: list[Piece] = []
        """Walking ahead, stopping and turning around."""
        self.squats: list[Piece] = []
        """Standing, then going down with a straight back: what legs and trunk do when a body sits down."""
        for clip in corpus.subset(split) if split else corpus:
            if len(clip.features) >= 45:
                whole = Piece(rep.decode(clip.features).canonicalize(), clip.id, clip.source, clip.licence)
                self._add(whole, " ".join(c.text for c in clip.captions))
        for kind, meaning in _NEEDED.items():
            if not getattr(self, kind):
                raise VadisError(
                    f"{corpus.path} has no recording in which a person {meaning}: scenes can't be made of it. "
                    "Build it with captioned walking, such as CMU's subjects 7, 8, 16 and 35."
                )
        for kind in ("starts", "walks", "stands", "turns", "returns", "squats"):
            found = getattr(self, kind)
            setattr(self, kind, found + [piece.mirrored() for piece in found])

    def _add(self, whole: Piece, texts: str) -> None:
        measured = course(whole.motion)
        if _WALKS.search(texts) and not _ODD_WALKS.search(texts):
            self.starts += [whole.cut(*span) for span in _starts(measured)]
            self.walks += [whole.cut(*span) for span in _walks(measured)]
            self.returns += [whole.cut(*span) for span in _returns(measured)]
        if not _ODD_TURNS.search(texts):
            self.turns += [whole.cut(*span) for span in _turns(measured, whole.motion)]
        self.stands += [whole.cut(*span) for span in _stands(measured, whole.motion)]
        self.squats += [whole.cut(*span) for span in _squats(measured)]


_NEEDED = {"starts": "stands and then walks off", "walks": "walks on", "stands": "stands still"}


def _runs(flags: Tensor) -> Iterator[tuple[int, int]]:
    """First and one past the last index of every unbroken run of true values."""
    edges = torch.diff(functional.pad(flags.int(), (1, 1))).nonzero()[:, 0].tolist()
    return zip(edges[0::2], edges[1::2], strict=True)


def _starts(m: Course, before: int = 10, after: int = 48) -> Iterator[tuple[int, int]]:
    for first, last in _runs(m.speed < _STILL):
        start, stop = max(first, last - before), last + after
        if last - first < 8 or stop > len(m.speed) or not m.plain[start:stop].all():
            continue
        if (m.ahead[last + 22 : stop] > 0.65).all() and m.turning[last:stop].abs().mean() < 0.6:
            yield start, stop


def _walks(m: Course, least: int = 40) -> Iterator[tuple[int, int]]:
    straight = (m.ahead > 0.9 * m.speed) & (m.turning.abs() < 0.5)
    for start, stop in _runs(m.plain & straight & (m.speed > 0.7) & (m.speed < 1.6)):
        if stop - start >= least:
            yield start, stop


def _stands(m: Course, motion: Motion, least: int = 15) -> Iterator[tuple[int, int]]:
    """Arms down, feet side by side."""
    feet = (motion.positions[:, _J["left_foot"]] - motion.positions[:, _J["right_foot"]])[:, [0, 2]].norm(dim=-1)
    for start, stop in _runs(
        m.plain & (m.speed < 0.08) & (m.hands < 0) & (m.upright > 0.97) & (m.height > 0.94) & (feet < 0.32)
    ):
        if stop - start >= least and m.turning[start:stop].abs().max() < 0.3:
            yield start, min(stop, start + 3 * least)


def _turns(m: Course, motion: Motion, around: int = 6) -> Iterator[tuple[int, int]]:
    """The feet must turn with the trunk, and hardly leave their place."""
    slow = m.plain & (m.speed < 0.5)
    for start, stop in _runs(slow & (m.turning.abs() > 0.35)):
        start, stop = start - around, stop + around
        if start < 0 or stop > len(slow) or not slow[start:stop].all():
            continue
        turned = float(m.heading[stop - 1] - m.heading[start])
        stepped = float(m.feet_heading[stop - 1] - m.feet_heading[start])
        moved = (motion.root[stop - 1] - motion.root[start])[[0, 2]].norm()
        calm = max(float(m.speed[start]), float(m.speed[stop - 1])) < 0.25
        if 0.6 < abs(turned) < 3.3 and abs(turned - stepped) < 0.5 and moved < 0.4 and calm:
            yield start, stop


def _returns(m: Course, before: int = 45) -> Iterator[tuple[int, int]]:
    for first, last in _runs(m.speed < 0.3):
        start, stop = first - before, min(last, first + 10)
        if start < 0 or stop - first < 4 or not m.plain[start:stop].all():
            continue
        turned = abs(float(m.heading[stop - 1] - m.heading[start]))
        if (m.ahead[start : first - 24] > 0.5).all() and 1.9 < turned < 3.6:
            yield start, stop


def _squats(m: Course, low: float = 0.5, before: int = 60) -> Iterator[tuple[int, int]]:
    for first, last in _runs((m.upright > 0.75) & (m.height < low) & (m.speed < 0.4)):
        bottom = first + int(m.height[first:last].argmin()) + 1
        standing = ((m.height > 0.84) & (m.hands < 0.1))[max(0, first - before) : first].nonzero()[:, 0]
        if len(standing) == 0:
            continue
        start = max(0, first - before) + int(standing[-1])
        start = max(0, start - 8)
        span = slice(start, bottom)
        fits = m.upright[span].min() > 0.75 and m.speed[span].max() < 0.4 and m.hands[span].max() < 0.1
        if fits and m.turning[span].abs().max() < 0.8 and bottom - start >= 20:
            yield start, bottom
