"""Static clips: one pose of a recording held for 64 frames, with sentences about the pose.

They stand for the still images of "Quo Vadis, Motion Generation?" (arXiv 2410.03311), whose poses were repeated for 64
frames. The sentences state only what the numbers of the pose show, so their kind is "automatic".
"""

import random
import warnings
from pathlib import Path

import torch
from torch import Tensor

from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.errors import VadisError
from vadis.kinematics import ATTRIBUTES, kinematic_plan
from vadis.motion import Motion
from vadis.representations import representation

FRAMES = 64
SUBJECTS = ("a person", "someone", "the man", "a woman", "a figure", "the person", "the body")
_STANCES = {
    "upside down": ("is upside down", "balances with the head down", "is in a handstand or a flip"),
    "lying": ("lies on the ground", "is down on the floor", "lies flat"),
    "low": ("is crouching low", "squats", "sits low or crouches", "has both knees bent deeply"),
    "half low": ("stands with bent knees", "is half crouching", "stands in a low stance"),
    "standing": ("stands", "is standing", "stands upright", "holds a standing pose"),
}
_LEANS = {
    "forward": ("bending forward", "leaning the torso forward", "bowed at the waist"),
    "back": ("leaning back", "the torso tilted back"),
    "left": ("leaning to the left", "the torso tilted left"),
    "right": ("leaning to the right", "the torso tilted right"),
}
_BOTH = {
    "up": ("both arms raised", "both hands above the head", "the arms held up"),
    "out": ("both arms spread to the sides", "the arms stretched out sideways", "open arms"),
    "ahead": ("both arms stretched forward", "both hands held out in front", "the arms reaching ahead"),
    "down": ("the arms hanging down", "both hands at the sides", "relaxed arms"),
}
_ONE = {
    "up": ("the {side} arm raised", "the {side} hand up high", "the {side} hand above the head"),
    "out": ("the {side} arm out to the side", "the {side} hand stretched out sideways"),
    "ahead": ("the {side} arm stretched forward", "the {side} hand held out in front"),
}
_LEGS = {
    "left": ("the left foot lifted", "the left leg off the ground", "the weight on the right leg"),
    "right": ("the right foot lifted", "the right leg off the ground", "the weight on the left leg"),
    "wide": ("the feet far apart", "the legs spread", "a wide stance"),
}


def hold_pose(motion: Motion, frame: int, frames: int = FRAMES) -> Motion:
    """The pose of one frame, held for `frames` frames."""
    index = torch.full((frames,), frame)
    return motion.replace(root=motion.root[index], rotations=motion.rotations[index])


def pose_facts(row: Tensor) -> tuple[str, str | None, dict[str, str], str | None]:
    """What the first row `(A,)` of a held pose's plan shows: stance, lean, place of each arm, what the legs do."""
    v: dict[str, float] = dict(zip(ATTRIBUTES, row.tolist(), strict=True))
    upright, pelvis = v["upright_min"], v["pelvis_height_min"]
    feet = {side: v[f"{side}_foot_height_max"] for side in ("left", "right")}
    if upright < -0.3:
        stance = "upside down"
    elif upright < 0.35:
        stance = "lying"
    else:
        stance = "low" if pelvis < 0.6 else "half low" if pelvis < 0.78 else "standing"
    if stance in ("upside down", "lying"):
        return stance, None, {}, None
    lean = None
    if abs(v["lean_left"]) > 0.3:
        lean = "left" if v["lean_left"] > 0 else "right"
    elif v["lean_forward"] > 0.4 or v["lean_forward"] < -0.25:
        lean = "forward" if v["lean_forward"] > 0 else "back"
    arms: dict[str, str] = {}
    for side in ("left", "right"):
        if v[f"{side}_hand_height"] > 0.5:
            arms[side] = "up"
        elif v[f"{side}_hand_reach"] > 0.42:
            arms[side] = "ahead"
        elif v[f"{side}_hand_out"] > 0.55:
            arms[side] = "out"
        elif v[f"{side}_hand_height"] < 0.0:
            arms[side] = "down"
    legs = None
    if stance == "standing" and abs(feet["left"] - feet["right"]) > 0.15:
        legs = "left" if feet["left"] > feet["right"] else "right"
    elif v["feet_distance_max"] > 0.75:
        legs = "wide"
    return stance, lean, arms, legs


def pose_sentence(row: Tensor, rng: random.Random) -> str:
    """One sentence about the pose that the plan row `(A,)` was measured on, in one of many wordings."""
    stance, lean, arms, legs = pose_facts(row)
    said = rng.choice(_STANCES[stance])
    if lean:
        said += f", {rng.choice(_LEANS[lean])}"
    held: list[str] = []
    if len(arms) == 2 and len(set(arms.values())) == 1:
        held.append(rng.choice(_BOTH[arms["left"]]))
    else:
        held += [rng.choice(_ONE[place]).format(side=side) for side, place in arms.items() if place in _ONE]
    if legs:
        held.append(rng.choice(_LEGS[legs]))
    rng.shuffle(held)
    return f"{rng.choice(SUBJECTS)} {said}" + (f" with {' and '.join(held)}" if held else "")


def static_corpus(
    corpus: Corpus, out: str | Path, count: int, *, captions: int = 3, frames: int = FRAMES, seed: int = 0
) -> Corpus:
    """Write a corpus of `count` static clips: poses of random clips by weight, at random times.

    Each keeps split, group, source and licence of its clip, so that held-out recordings stay held out. The same for the
    same corpus and seed. Raises VadisError for a count below 1.
    """
    if count < 1 or captions < 1 or frames < 8:
        raise VadisError("static clips: count and captions are 1 or more, frames 8 or more.")
    rep, rng = representation(corpus.representation), random.Random(f"static/{seed}")
    rows = rng.choices(range(len(corpus)), corpus.weights.tolist(), k=count)
    about = {"static": {"from": corpus.path.name, "frames": frames, "seed": seed}}
    with CorpusWriter(out, rep.name, corpus.fps, about) as writer:
        for number, row in enumerate(rows):
            clip = corpus[row]
            place = rng.randrange(len(clip.features))
            around = clip.features[max(0, place - 1) : place + 2]
            motion = rep.decode(around)
            held = hold_pose(motion, min(place, 1, motion.num_frames - 1), frames).canonicalize()
            plan = kinematic_plan(held.positions, held.fps)[0]
            said = list(dict.fromkeys(pose_sentence(plan, rng) for _ in range(captions)))
            seconds = frames / corpus.fps
            with warnings.catch_warnings():  # of headings that aren't defined: in a held pose nothing can jump
                warnings.simplefilter("ignore")
                features = rep.encode(held)
            writer.add(
                f"static-{number:06d}", features, [Caption(text, 0.0, seconds, "automatic") for text in said],
                split=clip.split, group=clip.group, source=clip.source, licence=clip.licence, static=clip.id,
            )  # fmt: skip
    return Corpus.open(out)
