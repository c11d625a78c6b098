"""Does the body do what the sentence says? Prompts judged by physics, on wording that no bundled model was trained on.

Every prompt has a predicate on 22 joint positions, written against what a person would check and not against the kinematic
plan that the bundled models use. The protocols `prompt-physics` and `prompt-physics-dev` measure it:

    vadis evaluate MODEL --protocol prompt-physics
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vadis.errors import VadisError
from vadis.motion import Motion

LEFT, RIGHT = 0, 1
HIP, ANKLE, TOE, SHOULDER, WRIST = (1, 2), (7, 8), (10, 11), (16, 17), (20, 21)
NECK, HEAD = 12, 15


class Body:
    """Measurements of one motion that the predicates are made of; metres, seconds, degrees."""

    def __init__(self, positions: Tensor, fps: float) -> None:
        """`positions` (T, 22, 3), Y up."""
        self.fps, self.p = fps, positions
        self.seconds = len(positions) / fps
        across = self.p[:, HIP[LEFT]] - self.p[:, HIP[RIGHT]]
        across = across + self.p[:, SHOULDER[LEFT]] - self.p[:, SHOULDER[RIGHT]]
        angle = torch.atan2(-across[:, 2], across[:, 0])
        step = torch.diff(angle)
        step = step - 2 * torch.pi * torch.round(step / (2 * torch.pi))
        self.angle = torch.cat([angle[:1], angle[:1] + torch.cumsum(step, 0)])
        self.pelvis = self.p[:, 0]
        self.floor = float(self.p[..., 1].min(1).values.quantile(0.05))

    def _along(self, offset: float) -> float:
        """Displacement of the pelvis along the start heading turned left by `offset` radians."""
        moved, a = self.pelvis[-1] - self.pelvis[0], float(self.angle[: max(1, int(self.fps * 0.2))].mean()) + offset
        return float(torch.sin(torch.tensor(a)) * moved[0] + torch.cos(torch.tensor(a)) * moved[2])

    @property
    def forward(self) -> float:
        return self._along(0.0)

    @property
    def left(self) -> float:
        return self._along(torch.pi / 2)

    @property
    def speed(self) -> float:
        return float(torch.diff(self.pelvis[:, [0, 2]], dim=0).norm(dim=-1).mean() * self.fps)

    @property
    def displacement(self) -> float:
        return float((self.pelvis[-1] - self.pelvis[0])[[0, 2]].norm())

    @property
    def body_forward(self) -> float:
        """Mean speed along the facing direction of every moment."""
        v = torch.diff(self.pelvis, dim=0) * self.fps
        a = self.angle[:-1]
        return float((torch.sin(a) * v[:, 0] + torch.cos(a) * v[:, 2]).mean())

    @property
    def body_left(self) -> float:
        v = torch.diff(self.pelvis, dim=0) * self.fps
        a = self.angle[:-1]
        return float((torch.cos(a) * v[:, 0] - torch.sin(a) * v[:, 2]).mean())

    @property
    def turn(self) -> float:
        """Net turning in degrees, positive to the left."""
        return float(torch.rad2deg(self.angle[-1] - self.angle[0]))

    @property
    def turned_at_most(self) -> float:
        """Largest change of heading between any two moments, degrees."""
        return float(torch.rad2deg(self.angle.max() - self.angle.min()))

    @property
    def drop(self) -> float:
        """How far the pelvis sinks below its height at the start or its highest, metres."""
        return float(self.pelvis[:, 1].quantile(0.9) - self.pelvis[:, 1].min())

    @property
    def lowest_pelvis(self) -> float:
        return float(self.pelvis[:, 1].min()) - self.floor

    @property
    def flight(self) -> float:
        """Greatest height of the lower of both feet above the floor, metres."""
        feet = self.p[:, [*ANKLE, *TOE], 1].clone()
        feet[:, :2] -= 0.03
        return float(feet.min(1).values.max()) - self.floor

    def _local(self, joint: int) -> Tensor:
        rel = self.p[:, joint] - self.pelvis
        c, s = torch.cos(self.angle), torch.sin(self.angle)
        return torch.stack([s * rel[:, 0] + c * rel[:, 2], rel[:, 1], c * rel[:, 0] - s * rel[:, 2]], -1)

    def hand_travel(self, side: int) -> float:
        """Path length of a hand relative to the chest, metres per second."""
        rel = self._local(WRIST[side]) - self._local(9)
        return float(torch.diff(rel, dim=0).norm(dim=-1).mean() * self.fps)

    def foot_travel(self, side: int) -> float:
        return float(torch.diff(self._local(TOE[side]), dim=0).norm(dim=-1).mean() * self.fps)

    def hand_top(self, side: int) -> float:
        """Highest point of a hand above its shoulder, metres."""
        return float((self.p[:, WRIST[side], 1] - self.p[:, SHOULDER[side], 1]).max())

    def hand_reach(self, side: int) -> float:
        return float(self._local(WRIST[side])[:, 0].max())

    def foot_top(self, side: int) -> float:
        return float(self.p[:, TOE[side], 1].max()) - self.floor

    @property
    def lean(self) -> float:
        """Smallest vertical part of the direction from pelvis to neck: 1 upright, 0 horizontal, -1 upside down."""
        trunk = self.p[:, NECK] - self.pelvis
        return float((trunk[:, 1] / trunk.norm(dim=-1)).min())

    @property
    def busy(self) -> float:
        """Mean speed of all joints, metres per second."""
        return float(torch.diff(self.p, dim=0).norm(dim=-1).mean() * self.fps)


@dataclass(frozen=True)
class Prompt:
    """A sentence, the seconds asked for, what must hold, and the kind it is counted under."""

    text: str
    seconds: float
    check: Callable[[Body], bool]
    kind: str


def walks(b: Body) -> bool:
    return 0.6 <= b.forward / b.seconds <= 2.0 and abs(b.turn) < 60


def runs(b: Body) -> bool:
    return b.speed > 1.9 and b.forward / b.seconds > 1.6


def backs(b: Body) -> bool:
    return b.body_forward < -0.2 and b.forward < -0.4


def side(sign: int) -> Callable[[Body], bool]:
    return lambda b: sign * b.body_left > 0.15 and sign * b.left > 0.3 and abs(b.left) > 0.7 * abs(b.forward)


def turns(sign: int, least: float = 40, most: float = 400) -> Callable[[Body], bool]:
    return lambda b: least <= sign * b.turn <= most


def walks_and_turns(sign: int, least: float = 40) -> Callable[[Body], bool]:
    return lambda b: sign * b.turn >= least and b.speed > 0.4 and b.body_forward > 0.3


def circles(sign: int = 0) -> Callable[[Body], bool]:
    def check(b: Body) -> bool:
        turned = b.turn if sign == 0 else sign * b.turn
        return (
            (abs(b.turn) > 240 if sign == 0 else turned > 240)
            and b.body_forward > 0.35
            and b.displacement < 0.6 * b.speed * b.seconds
        )

    return check


def spins(sign: int = 0) -> Callable[[Body], bool]:
    return lambda b: (abs(b.turn) if sign == 0 else sign * b.turn) > 240 and b.displacement < 2.5


def jumps(b: Body) -> bool:
    return b.flight > 0.15 and b.speed < 2.0


def stays(b: Body) -> bool:
    return b.busy < 0.2 and b.displacement < 0.3


def sinks(b: Body) -> bool:
    return b.drop > 0.2 and b.lowest_pelvis < 0.78 and b.lean > -0.2


def hand(side: int, ratio: float = 1.3) -> Callable[[Body], bool]:
    return lambda b: b.hand_travel(side) > ratio * b.hand_travel(1 - side) and b.hand_travel(side) > 0.15


def raises(side: int) -> Callable[[Body], bool]:
    return lambda b: b.hand_top(side) > 0.05 and b.hand_top(side) > b.hand_top(1 - side) + 0.1


def raises_both(b: Body) -> bool:
    return min(b.hand_top(LEFT), b.hand_top(RIGHT)) > 0.05


def kicks(side: int) -> Callable[[Body], bool]:
    return lambda b: b.foot_top(side) > 0.35 and b.foot_top(side) > b.foot_top(1 - side) + 0.1


def bends(b: Body) -> bool:
    return b.lean < 0.82


def both(*checks: Callable[[Body], bool]) -> Callable[[Body], bool]:
    return lambda b: all(check(b) for check in checks)


TEST: tuple[Prompt, ...] = (
    Prompt("a guy is walking straight ahead", 5, walks, "walk"),
    Prompt("they stroll down the street", 6, walks, "walk"),
    Prompt("a pedestrian walks forwards at a normal speed", 4, walks, "walk"),
    Prompt("walking casually in a straight line", 8, walks, "walk"),
    Prompt("the individual moves ahead on foot", 3, walks, "walk"),
    Prompt("a runner sprints as fast as possible", 3, runs, "run"),
    Prompt("the athlete runs forward", 4, runs, "run"),
    Prompt("a woman goes for a jog", 5, lambda b: b.speed > 1.5 and b.forward > 4, "run"),
    Prompt("he walks backwards carefully", 4, backs, "backward"),
    Prompt("a person is moving in reverse", 5, backs, "backward"),
    Prompt("she takes some backward steps", 3, backs, "backward"),
    Prompt("a person side-steps toward the left", 3, side(1), "sideways"),
    Prompt("moving sideways, to the right", 4, side(-1), "sideways"),
    Prompt("the boy shuffles right", 3, side(-1), "sideways"),
    Prompt("a man walks and then makes a left turn", 5, walks_and_turns(1), "turn"),
    Prompt("a man walks and then makes a right turn", 5, walks_and_turns(-1), "turn"),
    Prompt("someone walks in a curve, bending rightwards", 5, walks_and_turns(-1), "turn"),
    Prompt("the girl turns leftwards", 3, turns(1), "turn"),
    Prompt("rotate your body to the right", 3, turns(-1), "turn"),
    Prompt(
        "a person walks ahead, does a U-turn and comes back again",
        8,
        lambda b: b.turned_at_most > 120 and b.body_forward > 0.4,
        "turn",
    ),
    Prompt("walking around in circles", 9, circles(), "circle"),
    Prompt("a man paces in a circle counterclockwise", 9, circles(1), "circle"),
    Prompt("a woman walks along a clockwise circle", 8, circles(-1), "circle"),
    Prompt("a dancer twirls around on the spot", 4, spins(), "spin"),
    Prompt("the person spins to the left", 3, spins(1), "spin"),
    Prompt("a kid jumps up into the air", 3, jumps, "jump"),
    Prompt("hopping on the spot", 4, jumps, "jump"),
    Prompt("the man makes one big leap forward", 3, lambda b: b.flight > 0.15 and b.forward > 0.5, "jump"),
    Prompt("a person is standing completely still", 4, stays, "still"),
    Prompt("no movement, just standing there", 6, stays, "still"),
    Prompt("the guard stands without moving a muscle", 8, stays, "still"),
    Prompt("a person sits down on a seat", 4, sinks, "low"),
    Prompt("squatting down low", 3, sinks, "low"),
    Prompt("the thief crouches down to hide", 4, sinks, "low"),
    Prompt("a man bows politely", 4, bends, "low"),
    Prompt("she bends over to pick something up from the floor", 4, bends, "low"),
    Prompt("waving hello using the right hand", 4, both(hand(RIGHT), lambda b: b.hand_top(RIGHT) > -0.15), "arm"),
    Prompt("a person waves their left arm", 4, both(hand(LEFT), lambda b: b.hand_top(LEFT) > -0.15), "arm"),
    Prompt("the student raises her right hand", 3, raises(RIGHT), "arm"),
    Prompt("left arm goes up in the air", 3, raises(LEFT), "arm"),
    Prompt("both hands are lifted above the head", 4, raises_both, "arm"),
    Prompt(
        "a boxer punches with his right fist", 3, both(hand(RIGHT, 1.1), lambda b: b.hand_reach(RIGHT) > 0.35), "arm"
    ),
    Prompt(
        "a boxer throws jabs with his left hand", 3, both(hand(LEFT, 1.1), lambda b: b.hand_reach(LEFT) > 0.35), "arm"
    ),
    Prompt("a fighter kicks using the right foot", 3, kicks(RIGHT), "leg"),
    Prompt("kicking high with the left leg", 3, kicks(LEFT), "leg"),
    Prompt("the man raises his left knee", 3, kicks(LEFT), "leg"),
    Prompt("standing on one leg, the right foot is lifted", 4, kicks(RIGHT), "leg"),
    Prompt("a gymnast does a cartwheel", 4, lambda b: b.lean < -0.3, "acrobatic"),
    Prompt("the person collapses to the ground", 4, lambda b: b.lowest_pelvis < 0.45, "acrobatic"),
    Prompt("doing jumping jacks", 5, both(raises_both, lambda b: b.busy > 0.4), "exercise"),
)
"""Fifty prompts that were not looked at while the settings of the bundled models were chosen."""

DEV: tuple[Prompt, ...] = (
    Prompt("a person walks forward", 5, walks, "walk"),
    Prompt("somebody is strolling along", 4, walks, "walk"),
    Prompt("an old man walks ahead slowly", 6, lambda b: 0.3 < b.forward / b.seconds < 1.3, "walk"),
    Prompt("walk briskly forwards", 7, walks, "walk"),
    Prompt("a person runs", 3, runs, "run"),
    Prompt("a man is jogging along the road", 5, lambda b: b.speed > 1.5 and b.forward > 4, "run"),
    Prompt("someone retreats a few steps", 4, backs, "backward"),
    Prompt("the man walks backward", 5, backs, "backward"),
    Prompt("a person steps to the left side", 3, side(1), "sideways"),
    Prompt("a player side shuffles to the right", 4, side(-1), "sideways"),
    Prompt("a person turns left as they walk", 5, walks_and_turns(1), "turn"),
    Prompt("walk forward and take a right", 5, walks_and_turns(-1), "turn"),
    Prompt("turn around", 4, lambda b: b.turned_at_most > 100, "turn"),
    Prompt("the person pivots left in place", 3, turns(1), "turn"),
    Prompt("a person walks in a big circle", 9, circles(), "circle"),
    Prompt("he walks clockwise around something", 9, circles(-1), "circle"),
    Prompt("a ballerina does a pirouette", 4, spins(), "spin"),
    Prompt("spin clockwise", 3, spins(-1), "spin"),
    Prompt("a person jumps up and down", 4, jumps, "jump"),
    Prompt("leap over a puddle", 3, lambda b: b.flight > 0.15 and b.forward > 0.5, "jump"),
    Prompt("a person stands and waits", 5, stays, "still"),
    Prompt("hold completely still", 3, stays, "still"),
    Prompt("the person takes a seat", 4, sinks, "low"),
    Prompt("a man does squats", 5, sinks, "low"),
    Prompt("duck down quickly", 3, sinks, "low"),
    Prompt("lean forward and touch the toes", 4, bends, "low"),
    Prompt("a girl waves goodbye with her left hand", 4, both(hand(LEFT), lambda b: b.hand_top(LEFT) > -0.15), "arm"),
    Prompt("the man gestures with his right arm", 4, hand(RIGHT), "arm"),
    Prompt("reach up with your left hand", 3, raises(LEFT), "arm"),
    Prompt("raising the right arm high", 3, raises(RIGHT), "arm"),
    Prompt("throw both arms up in joy", 4, raises_both, "arm"),
    Prompt(
        "someone punches forward with the left hand",
        3,
        both(hand(LEFT, 1.1), lambda b: b.hand_reach(LEFT) > 0.35),
        "arm",
    ),
    Prompt("a karate fighter does a left kick", 3, kicks(LEFT), "leg"),
    Prompt("a soccer player kicks a ball with the right foot", 4, kicks(RIGHT), "leg"),
    Prompt("lift your right knee up", 3, kicks(RIGHT), "leg"),
    Prompt("balance on the right leg", 4, kicks(LEFT), "leg"),
    Prompt("a person does a somersault", 3, lambda b: b.lean < 0.0, "acrobatic"),
    Prompt("falling down onto the floor", 4, lambda b: b.lowest_pelvis < 0.45, "acrobatic"),
    Prompt("an exercise with arms and legs spreading", 5, lambda b: b.busy > 0.3, "exercise"),
    Prompt(
        "march in place",
        4,
        lambda b: min(b.foot_travel(0), b.foot_travel(1)) > 0.25 and b.displacement < 1.2,
        "exercise",
    ),
)
"""Forty prompts used while settings were chosen; their pass rate flatters."""


def jitter(motion: Motion) -> float:
    """Mean size of the third difference of joint positions, m/s³."""
    return float(torch.diff(motion.positions, n=3, dim=0).norm(dim=-1).mean() * motion.fps**3)


def foot_slide(motion: Motion) -> float:
    """Mean horizontal speed of toes that are near the floor and not rising, m/s."""
    toes = motion.positions[:, list(TOE)]
    floor = motion.positions[..., 1].min(1).values.quantile(0.05)
    step = torch.diff(toes, dim=0) * motion.fps
    down = (toes[:-1, :, 1] - floor < 0.05) & (step[..., 1].abs() < 0.3)
    return float(step[..., [0, 2]].norm(dim=-1)[down].mean()) if bool(down.any()) else 0.0


PROMPTS = {prompt.text: prompt for prompt in (*TEST, *DEV)}


def obeyed(texts: Sequence[str], joints: Sequence[Tensor], fps: float) -> np.ndarray:
    """100 for every motion (joints `(T, 22, 3)`) that does what its text says, else 0. VadisError for an unknown prompt."""
    if unknown := next((text for text in texts if text not in PROMPTS), None):
        raise VadisError(
            f"no predicate judges the prompt {unknown!r:.80}: protocol prompt-physics takes its own prompts only, leave data out."
        )
    pairs = zip(texts, joints, strict=True)
    return np.array([100.0 * bool(PROMPTS[text].check(Body(positions, fps))) for text, positions in pairs])


def by_kind(texts: Sequence[str], values: Sequence[np.ndarray]) -> list[str]:
    """Lines for a report: how many of each kind were obeyed, and which prompts never, over all seeds' values."""
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in values:
        for text, value in zip(texts, row, strict=True):
            count = kinds[PROMPTS[text].kind]
            count[0] += value > 0
            count[1] += 1
    never = [text for i, text in enumerate(texts) if not any(row[i] > 0 for row in values)]
    lines = ["obeyed by kind: " + ", ".join(f"{kind} {good}/{all_}" for kind, (good, all_) in kinds.items()) + "."]
    return [*lines, "never obeyed: " + "; ".join(never) + "."] if never else lines
