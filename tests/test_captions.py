"""Automatic sentences and mirrored ones: what synthetic motions are said to do, grammar of every wording, left and right."""

import random
import re
import string

import pytest
import torch
from conftest import procedural_walk
from hypothesis import given, settings
from hypothesis import strategies as st

from vadis import rotation
from vadis.data import captions, compose
from vadis.data.captions import automatic_captions, facts, mirror_text
from vadis.kinematics import ATTRIBUTES, kinematic_plan
from vadis.motion import Motion
from vadis.skeleton import smpl22

FPS = 30.0
PHRASES = {
    phrase: name
    for name, value in vars(captions).items()
    if name.startswith("_") and name.isupper() and isinstance(value, tuple) and name not in ("_SUBJECTS", "_LINKS")
    for phrase in value
}


def stand(frames: int = 60, **turns: tuple[float, float, float]) -> Motion:
    """Standing with the arms down; other joints turned by rotation vectors in radians."""
    skeleton = smpl22()
    vectors = torch.zeros(frames, 22, 3)
    for side, sign in (("left", 1), ("right", -1)):
        vectors[:, skeleton.index(f"{side}_shoulder"), 2] = -sign * 1.35
    for joint, vector in turns.items():
        vectors[:, skeleton.index(joint)] = torch.tensor(vector)
    motion = Motion(skeleton, torch.tensor([0.0, 0.95, 0.0]).repeat(frames, 1), rotation.from_rotvec(vectors), FPS)
    return motion.canonicalize()


def turn_body(motion: Motion, angles: torch.Tensor) -> Motion:
    """Turn the body about its own vertical, the path unchanged."""
    rotations = torch.cat([(rotation.yaw(angles) @ motion.rotations[:, 0])[:, None], motion.rotations[:, 1:]], dim=1)
    return motion.replace(rotations=rotations)


def lift(motion: Motion, height: float) -> Motion:
    """A flight in the middle third."""
    root = motion.root.clone()
    n = motion.num_frames // 3
    root[n : 2 * n, 1] += height * torch.sin(torch.linspace(0, torch.pi, n))
    return motion.replace(root=root)


def kinds(motion: Motion) -> dict[str, float]:
    """Kind of fact -> side."""
    return {kind: side for _, kind, _, side in facts(kinematic_plan(motion.positions, motion.fps)[0])}


def sentences(motion: Motion, count: int = 12, seed: int = 0) -> list[str]:
    return automatic_captions(kinematic_plan(motion.positions, motion.fps), count, random.Random(seed))


class TestFacts:
    def test_walking_forward(self):
        found = kinds(procedural_walk(turn=0.0))
        assert "walk" in found and not {"back", "side", "run", "turn", "turn walk", "jump", "still"} & set(found)

    def test_walking_backward(self):
        found = kinds(compose.reverse(procedural_walk(turn=0.0)))
        assert "back" in found and "walk" not in found

    @pytest.mark.parametrize("side", [1, -1])
    def test_sideways(self, side):
        walk = procedural_walk(turn=0.0)  # along +Z, which is to the left of a body facing -X
        body = turn_body(walk, torch.full((walk.num_frames,), -side * torch.pi / 2))
        found = kinds(body)
        assert found["side"] * side > 0 and not {"walk", "back"} & set(found)

    def test_running(self):
        found = kinds(procedural_walk(turn=0.0).retime(2.2))
        assert "run" in found and "walk" not in found

    @pytest.mark.parametrize("side", [1, -1])
    def test_turning_while_walking(self, side):
        assert kinds(procedural_walk(turn=0.5 * side))["turn walk"] * side > 0
        assert kinds(procedural_walk(120, turn=0.8 * side))["walk back"] * side > 0
        assert kinds(procedural_walk(180, turn=1.1 * side))["circle"] * side > 0

    @pytest.mark.parametrize("side", [1, -1])
    @pytest.mark.parametrize(("angle", "kind"), [(1.5, "turn"), (3.1, "turn around"), (6.3, "spin")])
    def test_turning_on_the_spot(self, side, angle, kind):
        body = turn_body(stand(), side * torch.linspace(0, angle, 60))
        assert kinds(body)[kind] * side > 0

    def test_standing(self):
        assert list(kinds(stand())) == ["still"]

    def test_jumping_up_and_forward(self):
        assert "jump" in kinds(lift(stand(), 0.35))
        forward = lift(stand(), 0.35)
        forward = forward.replace(
            root=forward.root + torch.linspace(0, 1.2, 60)[:, None] * torch.tensor([0.0, 0.0, 1.0])
        )
        plan = kinematic_plan(forward.positions, FPS)
        assert any(f[2] is captions._JUMP_FORWARD for f in facts(plan[0]))

    @pytest.mark.parametrize(("side", "sign"), [("left", 1), ("right", -1)])
    def test_raising_an_arm(self, side, sign):
        found = kinds(stand(**{f"{side}_shoulder": (0.0, 0.0, sign * 1.3)}))
        assert found["raise"] * sign > 0 and "raise both" not in found
        assert any(
            f"the {side} " in s or f"their {side} " in s
            for s in sentences(stand(**{f"{side}_shoulder": (0.0, 0.0, sign * 1.3)}))
        )

    def test_both_arms(self):
        assert "raise both" in kinds(stand(left_shoulder=(0.0, 0.0, 1.3), right_shoulder=(0.0, 0.0, -1.3)))

    @pytest.mark.parametrize(("side", "sign"), [("left", 1), ("right", -1)])
    def test_lifting_a_leg(self, side, sign):
        found = kinds(stand(**{f"{side}_hip": (-1.6, 0.0, 0.0), f"{side}_knee": (1.6, 0.0, 0.0)}))
        assert found.get("lift leg", found.get("kick", 0)) * sign > 0

    def test_crouching_and_bending(self):
        low = stand(
            **{
                f"{s}_{j}": (a, 0.0, 0.0)
                for s in ("left", "right")
                for j, a in (("hip", -1.6), ("knee", 2.2), ("ankle", -0.6))
            }
        )
        assert "crouch" in kinds(low) and "bend" not in kinds(low)
        assert "bend" in kinds(stand(spine1=(0.6, 0.0, 0.0), spine2=(0.4, 0.0, 0.0)))

    def test_lying(self):
        body = stand(pelvis=(-1.57, 0.0, 0.0))
        assert "lie" in kinds(body) and "still" not in kinds(body)

    def test_mirrored_motion_swaps_sides(self):
        for motion in (procedural_walk(turn=0.5), stand(left_shoulder=(0.0, 0.0, 1.3))):
            there, back = kinds(motion), kinds(motion.mirror())
            assert {k: -v for k, v in there.items()} == pytest.approx(back, abs=1e-3)


class TestSentences:
    def test_as_many_as_asked_all_different_and_repeatable(self):
        walk = procedural_walk(turn=0.5)
        said = sentences(walk, 6)
        assert len(said) == len(set(said)) == 6
        assert said == sentences(walk, 6) != sentences(walk, 6, seed=1)

    def test_two_halves_are_told_in_order(self):
        both = Motion.concatenate([procedural_walk(turn=0.0), stand(90)], blend=10)
        order = [s for s in sentences(both, 60) if re.search(r"walk.*(stand|wait|still|stay|pause)", s)]
        assert order and not any(
            re.search(r"^[^,]*(stands|waits|pauses).* then .*walk", s) for s in sentences(both, 60)
        )

    def test_sides_are_said(self):
        for side, turn in (("left", 0.5), ("right", -0.5)):
            said = " ".join(sentences(procedural_walk(turn=turn), 20))
            other = {"left": "right", "right": "left"}[side]
            assert side in said and other not in said.replace("counterclockwise", "")

    def test_the_whole_grid_of_plans_can_be_said(self):
        draw = torch.Generator().manual_seed(0)
        base = kinematic_plan(procedural_walk().positions, FPS)
        for seed in range(200):
            plan = base + base.abs().clamp_min(0.5) * torch.randn(base.shape, generator=draw)
            plan[:, ATTRIBUTES.index("seconds")] = 3.0
            for text in automatic_captions(plan, 4, random.Random(seed)):
                assert "{" not in text and "  " not in text and text[0] in string.ascii_lowercase


class TestWordings:
    @pytest.mark.parametrize("form", [captions._third_person, captions._gerund], ids=["third person", "gerund"])
    def test_every_wording_formats_and_inflects(self, form):
        assert len(PHRASES) > 250
        for phrase, name in PHRASES.items():
            text = phrase.format(d="left", o="right", w="clockwise", p="the")
            inflected = captions._inflect(text, form)
            assert not re.search(r",s|,ing|s,s|[{}]", inflected), (name, inflected)
            assert inflected.split()[0] != text.split()[0], (name, inflected)

    @pytest.mark.parametrize(
        ("phrase", "third", "gerund"),
        [("walk, turn around and walk back", "walks, turns around and walks back", "walking, turning around and walking back"),
         ("walk forward then turn left", "walks forward then turns left", "walking forward then turning left"),
         ("do a squat", "does a squat", "doing a squat"), ("go backwards", "goes backwards", "going backwards"),
         ("be seated", "is seated", "being seated"), ("hurry forward", "hurries forward", "hurrying forward"),
         ("sway", "sways", "swaying"), ("lie down", "lies down", "lying down"), ("step back", "steps back", "stepping back"),
         ("sidestep to the left", "sidesteps to the left", "sidestepping to the left"), ("jab", "jabs", "jabbing"),
         ("trot forward", "trots forward", "trotting forward"), ("bend over", "bends over", "bending over"),
         ("swing both arms", "swings both arms", "swinging both arms"), ("wave", "waves", "waving"),
         ("drop to the floor", "drops to the floor", "dropping to the floor"), ("get up", "gets up", "getting up"),
         ("power-walk ahead", "power-walks ahead", "power-walking ahead"), ("march in place", "marches in place", "marching in place"),
         ("hit with the left fist", "hits with the left fist", "hitting with the left fist"), ("tumble", "tumbles", "tumbling")],
    )  # fmt: skip
    def test_inflection(self, phrase, third, gerund):
        assert captions._inflect(phrase, captions._third_person) == third
        assert captions._inflect(phrase, captions._gerund) == gerund

    def test_first_words_are_verbs_that_inflect_as_verbs_do(self):
        odd = {"side", "power", "just"}  # adverbs and nouns that would take the ending of the verb behind them
        assert not {p.split()[0] for p in PHRASES} & odd
        short = {p.split()[0].rstrip(",") for p in PHRASES}
        # one vowel, one consonant, one syllable: the consonant doubles
        single = {w for w in short if re.fullmatch(r"[bcdfghjklmnpqrstvwz]+[aeiou][bdgmnpt]", w)}
        assert single <= captions._DOUBLING, single - captions._DOUBLING


class TestMirrorText:
    @pytest.mark.parametrize(
        ("text", "mirrored"),
        [("a person turns left", "a person turns right"), ("Right hand, left-hand side", "Left hand, right-hand side"),
         ("she spins clockwise", "she spins counterclockwise"), ("he turns anticlockwise", "he turns clockwise"),
         ("turns counter-clockwise, counter clockwise", "turns clockwise, clockwise"), ("LEFT, leftwards", "RIGHT, rightwards"),
         ("stands upright and bright", "stands upright and bright"), ("left-right-left", "right-left-right"),
         ("elbows bent at a right angle on the right", "elbows bent at a right angle on the left"),
         ("the left foot is left of the right one", "the right foot is right of the left one"), ("", "")],
    )  # fmt: skip
    def test_words(self, text, mirrored):
        assert mirror_text(text) == mirrored

    @given(st.lists(st.sampled_from(["left", "right", "Left", "RIGHT", "clockwise", "Counterclockwise", "leftward", "rightwards",
                                     "left-handed", "walks", "upright", ",", "and"]), max_size=12))  # fmt: skip
    @settings(max_examples=80, deadline=None)
    def test_twice_is_the_same(self, words):
        text = " ".join(words)
        assert mirror_text(mirror_text(text)) == text

    def test_every_wording_mirrors_as_its_other_side(self):
        left = {"d": "left", "o": "right", "w": "counterclockwise", "p": "the"}
        right = {"d": "right", "o": "left", "w": "clockwise", "p": "the"}
        assert captions._sides(1.0) == {k: left[k] for k in "dow"} and captions._sides(-1.0) == {
            k: right[k] for k in "dow"
        }
        for phrase in PHRASES:
            assert mirror_text(phrase.format(**left)) == phrase.format(**right)
