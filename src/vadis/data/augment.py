"""A larger corpus from a small one: crops, mirrors, speeds, bent paths, loops, joined motions and borrowed arms, captioned.

`vadis data augment CORPUS OUT` draws clips by recipes (`RECIPES`), each from recorded motion of the training split only
(validation clips are cropped, never composed). Human captions are kept where they stay true; automatic ones
(`vadis.data.captions`) say what the numbers of the new clip show. Every clip says in `extra` how it was made.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vadis.data import compose
from vadis.data.captions import automatic_captions, facts, mirror_text
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.glitches import MAX_SPEED
from vadis.errors import VadisError
from vadis.files import apart, stamp
from vadis.kinematics import ATTRIBUTES, kinematic_plan
from vadis.motion import Motion
from vadis.representations import representation as find_representation

RECIPES = {
    "segment": 0.36,  # a captioned stretch of a recording, looped or framed by standing when it is short
    "crop": 0.16,  # any stretch
    "bend": 0.16,  # walking and running along curves
    "reverse": 0.06,  # walking played backwards
    "gesture": 0.11,  # arms of one recording on a body that stands or walks
    "join": 0.11,  # one captioned stretch, then another
    "still": 0.04,  # standing, or staying in any quiet pose
}
"""Share of each kind of clip."""

_QUIET = 0.25  # metres per second below which hands, feet and pelvis count as still
_A = {name: k for k, name in enumerate(ATTRIBUTES)}


@dataclass(frozen=True)
class AugmentOptions:
    """How many clips are drawn and how."""

    clips: int = 9000
    """Training clips to draw."""
    validation_clips: int = 600
    """Clips to draw from the held-out recordings."""
    min_seconds: float = 1.6
    """Shortest clip."""
    max_seconds: float = 9.6
    """Longest clip."""
    automatic: int = 4
    """Automatic sentences per clip."""
    seed: int = 0
    """The same seed draws the same clips."""
    downweight: dict[str, float] = field(default_factory=dict)
    """Prefix of clip names and a weight below 1, for recordings that would otherwise dominate (long dances, obstacles)."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """A stretch of a recording with what people said about it."""

    motion: Motion
    clip: str
    texts: tuple[tuple[str, str], ...]  # (kind, text)
    kinds: frozenset[str]  # kinds of kinematic facts, as named by `facts`
    weight: float


class _Pool:
    """All usable pieces of one split, indexed by what they show."""

    def __init__(self, corpus: Corpus, split: str, options: AugmentOptions):
        rep = find_representation(corpus.about["representation"])
        self.pieces: list[_Piece] = []
        self.recordings: list[tuple[str, Motion, float]] = []
        for clip in corpus.subset(split=split):
            motion = rep.decode(clip.features)
            weight = min([w for prefix, w in options.downweight.items() if clip.id.startswith(prefix)], default=1.0)
            self.recordings.append((clip.id, motion, weight))
            spans: dict[tuple[float, float], list[tuple[str, str]]] = {}
            for caption in clip.captions:
                if caption.kind in ("whole", "detailed", "label", "segment-label"):
                    spans.setdefault((caption.start, caption.end), []).append((caption.kind, caption.text))
            for (start, end), texts in spans.items():
                part = motion.crop(max(0, round(start * motion.fps)), max(2, round(end * motion.fps)))
                if part.num_frames >= 20:
                    self.pieces.append(_Piece(part, clip.id, tuple(texts), _kinds(part), weight))
        self.counts = Counter(kind for p in self.pieces for kind in p.kinds)
        self.pieces = [replace(p, weight=p.weight * self.rarity(p.kinds)) for p in self.pieces]
        self.moving = [p for p in self.pieces if p.kinds & {"walk", "run"} and not p.kinds & _SPECIAL]
        self.walking = [p for p in self.moving if "run" not in p.kinds]
        self.quiet = self._windows(quiet=True)
        self.standing = [
            m for m in self.quiet if float(kinematic_plan(m.positions, m.fps)[0, _A["pelvis_height_min"]]) > 0.85
        ]
        self.arms = self._windows(quiet=False)
        if not self.pieces:
            raise VadisError(f"the split {split!r} of {corpus.path} has no captioned stretch to augment.")

    def rarity(self, kinds: frozenset[str]) -> float:
        """Weight that brings rare actions forward: that of the rarest thing shown, as one over the root of its count."""
        return max((1 / max(self.counts[k], 1) ** 0.5 for k in kinds), default=0.05)

    def _windows(self, quiet: bool) -> list[Motion]:
        """One-second windows without movement, or two-second windows in which arms move much more than the rest."""
        found = []
        for _, motion, _ in self.recordings:
            length = 30 if quiet else 60
            for start in range(0, motion.num_frames - length, length // 2):
                part = motion.crop(start, start + length)
                row = kinematic_plan(part.positions, part.fps)[0]
                hands = float(row[[_A["left_hand_speed"], _A["right_hand_speed"]]].max())
                others = float(row[[_A["speed"], _A["left_foot_speed"], _A["right_foot_speed"]]].max())
                if quiet and max(hands, others) < _QUIET:
                    found.append(part)
                elif not quiet and hands > 0.5 and others < 0.6 and float(row[_A["upright_min"]]) > 0.75:
                    found.append(part)
        return found


_SPECIAL = frozenset({"jump", "flip", "lie", "crouch", "kick", "spin", "raise both", "circle", "walk back"})


def _kinds(motion: Motion) -> frozenset[str]:
    return frozenset(f[1] for f in facts(kinematic_plan(motion.positions, motion.fps)[0]))


class Augmenter:
    """Draws new captioned motions from the recordings of one split of a corpus."""

    def __init__(self, corpus: Corpus, split: str, options: AugmentOptions):
        self.options = options
        self.pool = _Pool(corpus, split, options)
        self.recipes: dict[str, Callable[[random.Random], tuple[Motion, list[tuple[str, str]]] | None]] = {
            "segment": self._segment, "crop": self._crop, "bend": self._bend, "reverse": self._reverse,
            "gesture": self._gesture, "join": self._join, "still": self._still,
        }  # fmt: skip

    def draw(self, recipe: str, rng: random.Random) -> tuple[Motion, list[Caption]] | None:
        """One new motion with captions, or None when the draw did not work out (too short, not smooth, says nothing)."""
        try:
            made = self.recipes[recipe](rng)
        except VadisError:  # parts too short to be joined: another draw will do
            return None
        if made is None:
            return None
        motion, texts = made
        if motion.seconds < self.options.min_seconds:
            return None
        fastest = float(torch.diff(motion.positions, dim=0).norm(dim=-1).max()) * motion.fps
        if fastest > MAX_SPEED:
            return None
        plan = kinematic_plan(motion.positions, motion.fps)
        automatic = automatic_captions(plan, self.options.automatic, rng)
        captions = [Caption(t, 0.0, motion.seconds, kind) for kind, t in texts]
        captions += [Caption(t, 0.0, motion.seconds, "automatic") for t in automatic]
        if not captions:
            return None
        if rng.random() < 0.5:
            motion = motion.mirror()
            captions = [Caption(mirror_text(c.text), c.start, c.end, c.kind) for c in captions]
        return motion, captions

    def _length(self, rng: random.Random) -> int:
        return round(rng.uniform(self.options.min_seconds, self.options.max_seconds) * 30)

    def _pick(self, pieces: list[_Piece], rng: random.Random) -> _Piece:
        return rng.choices(pieces, [p.weight for p in pieces])[0]

    def _fit(self, piece: _Piece, frames: int, rng: random.Random) -> Motion | None:
        """The piece at about `frames` frames: steady motion is looped, anything else is framed by standing still."""
        motion = piece.motion
        if motion.num_frames >= 0.85 * frames:
            return motion
        if piece.kinds & {"walk", "run", "side", "back", "march", "turn walk", "jump", "wave", "move arm", "move arms"}:
            looped = compose.loop(motion, frames)
            if looped is not None:
                return looped
        return self._framed(motion, frames, rng)

    def _framed(self, motion: Motion, frames: int, rng: random.Random) -> Motion:
        """Standing still before or after, as far as the seams are smooth."""
        spare = frames - motion.num_frames
        if spare < 20 or not self.pool.standing:
            return motion
        still = compose.hold(rng.choice(self.pool.standing), max(24, spare))
        order = (motion, still) if rng.random() < 0.7 else (still, motion)
        joined, _, distance = compose.join(*order)
        return joined.crop(0, max(frames, motion.num_frames)) if distance < 0.5 else motion

    def _speed(self, motion: Motion, rng: random.Random) -> Motion:
        return motion.retime(rng.uniform(0.87, 1.15)) if rng.random() < 0.6 else motion

    def _segment(self, rng: random.Random) -> tuple[Motion, list[tuple[str, str]]] | None:
        piece = self._pick(self.pool.pieces, rng)
        longest = round(self.options.max_seconds * 30)
        motion = self._speed(piece.motion, rng)
        if motion.num_frames > longest:
            motion = motion.crop(0, longest)
        piece = _Piece(motion, piece.clip, piece.texts, piece.kinds, piece.weight)
        fitted = self._fit(piece, self._length(rng), rng) if rng.random() < 0.75 else motion
        whole = [t for t in piece.texts if t[0] != "detailed"]
        detailed = [t for t in piece.texts if t[0] == "detailed" and len(t[1]) < 400]
        return (fitted, whole + detailed[:1]) if fitted is not None else None

    def _crop(self, rng: random.Random) -> tuple[Motion, list[tuple[str, str]]] | None:
        recordings = self.pool.recordings
        crops = []
        for _, motion, _ in rng.choices(recordings, [w * m.seconds for _, m, w in recordings], k=3):
            frames = min(self._length(rng), motion.num_frames)
            start = rng.randint(0, motion.num_frames - frames)
            crops.append(motion.crop(start, start + frames))
        chosen = rng.choices(crops, [self.pool.rarity(_kinds(c)) for c in crops])[0]
        return self._speed(chosen, rng), []

    def _bend(self, rng: random.Random) -> tuple[Motion, list[tuple[str, str]]] | None:
        piece = self._pick(self.pool.moving, rng)
        motion = compose.loop(self._speed(piece.motion, rng), self._length(rng))
        if motion is None:
            return None
        style, total = rng.random(), motion.num_frames
        if style < 0.45:  # one steady curve, up to full circles
            rate = torch.full((total,), rng.uniform(0.25, 1.3))
        elif style < 0.85:  # straight, a turn, straight on
            angle, width = rng.uniform(0.7, 3.3), rng.uniform(0.6, 1.8)
            centre = rng.uniform(0.3, 0.7) * total / 30
            t = torch.arange(total) / 30
            rate = angle / width * torch.exp(-(((t - centre) / (0.56 * width)) ** 2))
        else:  # an S
            rate = rng.uniform(0.4, 1.0) * torch.sin(torch.linspace(0, 2 * torch.pi, total))
        return compose.bend(motion, rate * rng.choice((-1, 1))), []

    def _reverse(self, rng: random.Random) -> tuple[Motion, list[tuple[str, str]]] | None:
        piece = self._pick(self.pool.walking, rng)
        motion = compose.loop(piece.motion, self._length(rng))
        if motion is None:
            return None
        motion = compose.reverse(motion).retime(rng.uniform(0.6, 0.95))
        motion = motion.crop(0, min(motion.num_frames, round(self.options.max_seconds * 30)))
        if rng.random() < 0.35:
            motion = compose.bend(motion, torch.full((motion.num_frames,), rng.uniform(-0.5, 0.5)))
        return motion, []

    def _base(self, frames: int, rng: random.Random) -> Motion | None:
        if rng.random() < 0.8 and self.pool.standing:
            return compose.hold(rng.choice(self.pool.standing), frames)
        return compose.loop(self._pick(self.pool.walking, rng).motion, frames)

    def _gesture(self, rng: random.Random) -> tuple[Motion, list[tuple[str, str]]] | None:
        if not self.pool.arms:
            return None
        frames = self._length(rng)
        base = self._base(frames, rng)
        if base is None:
            return None
        arms = rng.choice(self.pool.arms)
        wanted = max(30, round(rng.uniform(0.5, 0.95) * base.num_frames))
        looped = compose.loop(self._speed(arms, rng), wanted)
        if looped is None or looped.num_frames > base.num_frames:
            return None
        sides = rng.choices((("left",), ("right",), ("left", "right")), (0.4, 0.4, 0.2))[0]
        return compose.borrow_arms(base, looped, sides), []

    def _join(self, rng: random.Random) -> tuple[Motion, list[tuple[str, str]]] | None:
        first, second = (self._pick(self.pool.pieces, rng) for _ in range(2))
        a, b = first.motion, second.motion
        limit = round(self.options.max_seconds * 30)
        if a.num_frames + b.num_frames > limit:  # long ones contribute their beginning
            a, b = a.crop(0, limit // 2), b.crop(0, limit // 2)
        whole = (first.motion.num_frames <= limit // 2 + 15, second.motion.num_frames <= limit // 2 + 15)
        joined, _, distance = compose.join(a, b)
        if distance > 0.45:
            return None
        texts = []
        if all(whole):
            ones = [t for k, t in first.texts if k == "whole"]
            twos = [t for k, t in second.texts if k == "whole"]
            for _ in range(2):
                if ones and twos:
                    second_text = rng.choice(twos)
                    for subject in ("a person ", "someone ", "the man "):
                        second_text = second_text.removeprefix(subject)
                    texts.append(("whole", f"{rng.choice(ones)}, then {second_text}"))
        return joined, texts

    def _still(self, rng: random.Random) -> tuple[Motion, list[tuple[str, str]]] | None:
        pool = self.pool.standing if rng.random() < 0.75 and self.pool.standing else self.pool.quiet
        if not pool:
            return None
        return compose.hold(rng.choice(pool).retime(rng.uniform(0.5, 1.0)), self._length(rng)), []


def augment_corpus(
    corpus: Corpus, out: str | Path, options: AugmentOptions | None = None, progress: bool = True
) -> Corpus:
    """Draw `options.clips` training and `options.validation_clips` validation clips from a corpus into a new one.

    Deterministic in (corpus, options); interrupted work is resumed. Validation clips are plain segments and crops
    of the validation split.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    apart(out, corpus.path)
    options = options or AugmentOptions()
    rep = find_representation(corpus.about["representation"])
    about = {"from": corpus.path.name, "options": {k: getattr(options, k) for k in options.__dataclass_fields__}}
    plans = [("train", options.clips, RECIPES)]
    if options.validation_clips and "val" in set(corpus.column("split")):
        plans.append(("val", options.validation_clips, {"segment": 0.7, "crop": 0.3}))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        CorpusWriter(out, rep.name, rep.fps, about, resume=True, inputs=[stamp(corpus.path), corpus.ids]) as writer,
        Progress(*columns, disable=not progress, transient=True) as bar,
    ):
        for split, count, recipes in plans:
            augmenter = Augmenter(corpus, split, options)
            task = bar.add_task(f"augmenting {split}", total=count)
            for number in range(count):
                name = f"{split}-{number:06d}"
                bar.advance(task)
                if name in writer:
                    continue
                rng = random.Random(f"{options.seed}-{split}-{number}")
                for _ in range(20):
                    recipe = rng.choices(list(recipes), list(recipes.values()))[0]
                    made = augmenter.draw(recipe, rng)
                    if made is not None:
                        motion, captions = made
                        writer.add(name, rep.encode(motion), captions, split=split, group=name, source=recipe,
                                   licence="see the source corpus", recipe=recipe)  # fmt: skip
                        break
                else:
                    writer.reject(name, "no draw worked out")
    return Corpus.open(out)
