"""Sentences from kinematics: what a plan says, in many wordings. And captions for mirrored motion.

Automatic captions are always marked as such (`kind="automatic"`). They state only what the numbers show, so they teach a
model what words of direction, speed, side and height mean; human descriptions teach everything else.
"""

import random
import re
from collections.abc import Callable

from torch import Tensor

from vadis.kinematics import ATTRIBUTES

_SWAPS = {"left": "right", "clockwise": "counterclockwise", "counterclockwise": "clockwise", "leftward": "rightward", "leftwards": "rightwards",
          "left-hand": "right-hand", "left-handed": "right-handed", "anticlockwise": "clockwise",
          "counter-clockwise": "clockwise", "counter clockwise": "clockwise", "anti-clockwise": "clockwise",
          "lefty": "righty", "leftmost": "rightmost", "lefthand": "righthand"}  # fmt: skip
_SWAPS |= {b: a for a, b in list(_SWAPS.items()) if b not in _SWAPS}
_WORD = re.compile(
    r"\b(" + "|".join(sorted(_SWAPS, key=len, reverse=True)) + r")\b(?![ -]angle)",
    re.IGNORECASE,
)  # a right angle stays one


def mirror_text(text: str) -> str:
    """Swap left and right (and clockwise and counterclockwise) in a sentence, keeping capitals."""

    def swap(match: re.Match[str]) -> str:
        word = _SWAPS[match.group(0).lower()]
        if match.group(0).isupper():
            return word.upper()
        return word.capitalize() if match.group(0)[0].isupper() else word

    return _WORD.sub(swap, text)


_SUBJECTS = ("a person", "someone", "the man", "a man", "the woman", "a figure", "the person", "somebody", "a human",
             "the character", "he", "she", "a dancer", "this person")  # fmt: skip
_DOUBLING = {"run", "jog", "hop", "sit", "spin", "squat", "step", "sidestep", "side-step", "stop", "get", "cut", "put", "skip",
             "trot", "jab", "hit", "drop", "flip"}  # fmt: skip

# Phrases are in the base form, one verb first; further verbs of the same phrase follow "and" or "then".
_WALK = ("walk forward", "walk ahead", "walk straight ahead", "take several steps forward", "step forward", "stroll forward",
         "go forward on foot", "move forward at a walk", "walk in a straight line", "march forward", "walk", "keep walking",
         "advance with steady steps", "head forward at walking speed")  # fmt: skip
_SLOW = ("walk slowly", "walk forward slowly", "stroll", "take slow steps forward", "wander forward unhurriedly",
         "walk at a leisurely pace", "amble ahead", "walk calmly forward", "move forward slowly")  # fmt: skip
_BRISK = ("walk quickly", "walk briskly", "stride forward", "walk fast", "hurry forward", "walk at a fast pace",
          "power-walk ahead", "walk with quick long steps", "stride briskly ahead")  # fmt: skip
_RUN = ("run", "run forward", "run straight ahead", "sprint", "run fast", "dash forward", "race ahead", "sprint forward",
        "run quickly", "run at full speed", "rush forward")  # fmt: skip
_JOG = ("jog", "jog forward", "jog ahead", "run at an easy pace", "run slowly", "trot forward", "jog in a straight line",
        "run forward at a moderate speed", "run")  # fmt: skip
_BACK = ("walk backward", "walk backwards", "step back", "take a few steps back", "back away", "move backward", "retreat",
         "back up", "go backwards", "step backwards", "reverse slowly", "take steps backward", "walk in reverse",
         "move back")  # fmt: skip
_SIDE = ("sidestep to the {d}", "step sideways to the {d}", "move sideways to the {d}", "shuffle to the {d}", "step to the {d}",
         "go sideways to the {d}", "shift over to the {d} side", "walk sideways to the {d}", "slide to the {d}",
         "take side steps to the {d}", "move to the {d}", "side-step {d}")  # fmt: skip
_TURN = ("turn {d}", "turn to the {d}", "make a {d} turn", "rotate to the {d}", "pivot to the {d}", "turn {w}",
         "swing around to the {d}", "face {d}", "turn toward the {d}", "take a {d} turn")  # fmt: skip
_TURN_WALK = ("walk and turn {d}", "turn {d} while walking", "curve to the {d}", "veer to the {d}", "walk along a curve to the {d}",
              "walk forward and turn to the {d}", "walk while turning {d}", "bend to the {d} while walking",
              "walk ahead and bear {d}", "walk in an arc to the {d}", "go around a corner to the {d}", "walk forward then turn {d}",
              "make a {d} turn while walking")  # fmt: skip
_TURN_RUN = tuple(w.replace("walking", "running").replace("walk", "run") for w in _TURN_WALK)
_UTURN = ("turn around", "turn around to the {d}", "make a U-turn to the {d}", "turn back", "do a half turn to the {d}",
          "turn 180 degrees to the {d}", "turn around {w}", "face the other way", "spin around to face backward")  # fmt: skip
_WALK_BACK = ("walk forward, turn around and walk back", "turn around and walk the other way", "walk ahead, turn and come back",
              "make a U-turn to the {d} while walking", "walk away and return", "walk, turn around to the {d} and keep walking")  # fmt: skip
_CIRCLE = ("walk in a circle", "walk in a circle to the {d}", "walk around in a circle", "circle to the {d}", "walk {w} in a circle",
           "go around in a loop to the {d}", "make a full loop while walking", "walk a full circle {w}",
           "walk a round path to the {d}", "walk in circles")  # fmt: skip
_SPIN = ("spin around", "spin to the {d}", "spin {w}", "turn all the way around", "twirl", "make a full turn to the {d}",
         "do a full spin", "rotate in place to the {d}", "do a pirouette to the {d}", "turn around completely",
         "whirl around", "spin on the spot")  # fmt: skip
_STILL = ("stand still", "stand", "stand in place", "wait", "remain still", "stay put", "stand quietly",
          "stand motionless", "hold still", "stay in place without moving", "pause", "keep standing", "stand idle",
          "stand calmly", "stand around")  # fmt: skip
_JUMP = ("jump", "jump up", "jump into the air", "leap up", "hop", "jump up and down", "leap into the air", "spring upward",
         "jump off the ground", "jump high", "bounce", "hop up", "do a jump", "jump vertically", "jump in place")  # fmt: skip
_JUMP_FORWARD = ("jump forward", "leap forward", "do a long jump", "hop forward", "jump ahead", "take a big jump forward",
                 "leap ahead with both feet", "bound forward", "jump forwards")  # fmt: skip
_CROUCH = ("crouch", "crouch down", "squat", "squat down", "bend the knees", "lower the body", "duck down", "sink down",
           "get low", "drop into a crouch", "do a squat", "bend down low", "bend the knees and go down", "stoop")  # fmt: skip
_SIT = (
    "sit down",
    "sit",
    "sit down on a chair",
    "take a seat",
    "lower into a sitting position",
    "sit low",
    "be seated",
)
_RISE = ("stand up", "rise", "get up", "straighten up", "rise to standing", "come up from a crouch", "get back up")
_LIE = ("lie on the ground", "lie down", "lie on the floor", "be down on the ground", "lay on the floor", "fall to the ground",
        "fall down", "drop to the floor")  # fmt: skip
_FLIP = (
    "do a flip",
    "do a cartwheel",
    "turn upside down",
    "do an acrobatic move",
    "tumble",
    "do a handstand",
    "flip over",
)
_BEND = ("bend forward", "lean forward", "bow", "bend over", "bend down", "bend at the waist", "lean the upper body forward",
         "stoop forward", "hunch over", "take a bow", "reach down")  # fmt: skip
_RAISE = ("raise the {d} arm", "lift the {d} arm", "raise the {d} hand", "put the {d} hand up", "lift the {d} hand up high",
          "raise {p} {d} hand above the head", "hold the {d} arm up", "reach up with the {d} hand", "raise {p} {d} arm",
          "stretch the {d} arm upward", "lift {p} {d} arm")  # fmt: skip
_RAISE_BOTH = ("raise both arms", "lift both arms", "put both hands up", "raise the arms overhead", "lift the arms up",
               "raise both hands above the head", "hold both arms up", "throw the arms up", "reach up with both hands",
               "stretch both arms upward")  # fmt: skip
_WAVE = ("wave with the {d} hand", "wave the {d} hand", "wave the {d} arm", "wave hello with the {d} hand", "wave",
         "wave goodbye with the {d} arm", "wave at someone with {p} {d} hand", "shake the {d} hand in the air",
         "greet someone with the {d} hand", "wave {p} {d} arm", "wave to a friend")  # fmt: skip
_WAVE_BOTH = ("wave both arms", "wave with both hands", "wave the arms in the air", "swing both arms overhead",
              "wave both hands above the head")  # fmt: skip
_MOVE_ARM = ("move the {d} arm", "swing the {d} arm", "gesture with the {d} hand", "move {p} {d} arm around", "use the {d} hand",
             "make gestures with the {d} arm", "move the {d} hand", "do something with the {d} hand")  # fmt: skip
_MOVE_ARMS = ("move both arms", "swing both arms", "gesture with both hands", "move the arms around", "use both hands",
              "wave the arms about", "make gestures with the arms")  # fmt: skip
_PUNCH = ("punch with the {d} hand", "throw a {d} punch", "punch with the {d} fist", "jab with the {d} hand", "punch",
          "strike forward with the {d} arm", "hit with the {d} fist", "push forward with the {d} hand",
          "reach forward with the {d} hand", "extend the {d} arm forward", "stretch the {d} arm out in front")  # fmt: skip
_REACH_BOTH = ("reach forward with both hands", "stretch both arms out in front", "push forward with both hands",
               "extend both arms forward", "hold both arms out in front")  # fmt: skip
_SPREAD = ("spread both arms", "stretch the arms out to the sides", "hold the arms out sideways", "open the arms wide",
           "extend both arms to the sides", "make a T shape with the arms")  # fmt: skip
_KICK = ("kick with the {d} leg", "kick with the {d} foot", "do a {d} kick", "kick", "kick {p} {d} leg high", "throw a kick with the {d} leg",
         "swing the {d} leg up", "perform a {d} leg kick", "kick out with the {d} foot")  # fmt: skip
_LIFT_LEG = ("lift the {d} leg", "raise the {d} knee", "lift the {d} knee", "raise the {d} leg", "lift the {d} foot",
             "stand on the {o} leg", "balance on the {o} foot", "raise {p} {d} foot off the ground", "lift {p} {d} knee up")  # fmt: skip
_MARCH = ("march in place", "step in place", "lift the knees one after the other", "walk on the spot", "raise the knees in turn",
          "jog in place", "run on the spot")  # fmt: skip
_LINKS = (", then ", " and then ", ", and then ", " and ", ", after that ", " before ")


def _third_person(verb: str) -> str:
    if verb in ("be", "do"):
        return {"be": "is", "do": "does"}[verb]
    if verb.endswith(("ch", "sh", "s", "x", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def _gerund(verb: str) -> str:
    if verb in ("lie", "be"):
        return {"lie": "lying", "be": "being"}[verb]
    if verb in _DOUBLING:
        return verb + verb[-1] + "ing"
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb) + "ing"


_VERBS = {"walk", "run", "turn", "come", "keep", "return", "go", "bear"}


def _inflect(phrase: str, form: Callable[[str], str]) -> str:
    """Put the verb of a base-form phrase, and the verbs behind its "and" and commas, into another form."""
    words = phrase.split(" ")
    for k, word in enumerate(words):
        bare = word.rstrip(",")
        if k == 0 or (bare in _VERBS and (words[k - 1] in ("and", "then") or words[k - 1].endswith(","))):
            words[k] = form(bare) + word[len(bare) :]
    return " ".join(words)


def _sides(yaw: float) -> dict[str, str]:
    left = yaw > 0
    return {"d": "left" if left else "right", "o": "right" if left else "left",
            "w": "counterclockwise" if left else "clockwise"}  # fmt: skip


def facts(row: Tensor) -> list[tuple[float, str, tuple[str, ...], float]]:
    """What a plan row `(A,)` shows: (salience, kind, wordings, side) with side > 0 left, < 0 right, 0 none."""
    v = dict(zip(ATTRIBUTES, row.tolist(), strict=True))
    found: list[tuple[float, str, tuple[str, ...], float]] = []
    seconds, yaw = v["seconds"], v["yaw"]
    rate = abs(yaw) / max(seconds, 1e-3)
    lying = v["upright_min"] < 0.35 and v["head_height_min"] < 0.6
    flip = v["upright_min"] < -0.3
    forward, left = v["forward_speed"], v["left_speed"]
    airborne = v["airborne"] > 0.04 and v["flight_height"] > 0.16
    running = forward > 1.9
    if flip:
        found.append((3.0, "flip", _FLIP, 0))
    elif lying:
        found.append((2.5, "lie", _LIE, 0))
    if airborne and not flip and not running:
        far = v["forward_distance"] > 0.6 and forward > 0.3
        found.append((2.5, "jump", _JUMP_FORWARD if far else _JUMP, 0))
    moving = max(abs(forward), abs(left)) > 0.25 and v["speed"] > 0.3
    turning = abs(yaw) > 0.5
    if moving and not flip:
        if running:
            found.append((2.0, "run", _RUN if forward > 2.7 else _JOG, 0))
            if turning:
                found.append((1.5, "turn", _TURN_RUN, yaw))
        elif forward > 0.25 and abs(forward) >= abs(left):
            if abs(yaw) > 4.7:
                found.append((3.0, "circle", _CIRCLE, yaw))
            elif abs(yaw) > 2.3:
                found.append((2.5, "walk back", _WALK_BACK, yaw))
            elif turning:
                found.append((2.3, "turn walk", _TURN_WALK, yaw))
            walk = _SLOW + _WALK[:2] if forward < 0.85 else _BRISK + _WALK[:2] if forward > 1.45 else _WALK
            if not airborne:
                found.append((1.6 if not turning else 0.8, "walk", walk, 0))
        elif forward < -0.2 and abs(forward) >= 0.8 * abs(left):
            found.append((2.2, "back", _BACK, 0))
            if turning:
                found.append((1.0, "turn", _TURN, yaw))
        elif abs(left) > 0.2:
            found.append((2.2, "side", _SIDE, left))
            if turning:
                found.append((1.0, "turn", _TURN, yaw))
    elif turning and not flip and not lying:
        if abs(yaw) > 4.7 and rate > 0.8:
            found.append((2.8, "spin", _SPIN, yaw))
        elif abs(yaw) > 2.3:
            found.append((2.3, "turn around", _UTURN, yaw))
        elif abs(yaw) > 0.7:
            found.append((1.8, "turn", _TURN, yaw))
    if v["pelvis_height_min"] < 0.72 and not lying and not flip:
        seat = 0.35 < v["pelvis_height_min"] < 0.65 and v["upright_min"] > 0.75 and not moving
        found.append((2.2, "crouch", _CROUCH + (_SIT * 2 if seat else ()), 0))
    if v["lean_forward"] > 0.45 or (0.0 < v["upright_min"] < 0.7 and v["lean_forward"] > 0.2 and not lying):
        found.append((1.6, "bend", _BEND, 0))
    found += _arm_facts(v, moving)
    high_left, high_right = v["left_foot_height_max"], v["right_foot_height_max"]
    if not airborne and not lying and not flip and not running:
        top, low = max(high_left, high_right), min(high_left, high_right)
        side = 1.0 if high_left > high_right else -1.0
        fast = v["left_foot_speed"] if side > 0 else v["right_foot_speed"]
        if top > 0.55 and top - low > 0.2:
            found.append((2.4, "kick", _KICK if fast > 0.35 or top > 0.8 else _LIFT_LEG, side))
        elif top > 0.3 and not moving and top - low > 0.12:
            found.append((1.4, "lift leg", _LIFT_LEG, side))
        elif low > 0.22 and not moving and v["pelvis_height_min"] > 0.8:
            found.append((1.4, "march", _MARCH, 0))
    calm = max(v["left_hand_speed"], v["right_hand_speed"], v["left_foot_speed"], v["right_foot_speed"])
    if not found and v["speed"] < 0.15 and calm < 0.3:
        found.append((2.0, "still", _STILL, 0))
    elif not moving and v["speed"] < 0.12 and v["pelvis_height_min"] > 0.8 and not airborne and calm < 0.5:
        found.append((0.4, "still", _STILL[:4], 0))
    return found


def _arm_facts(v: dict[str, float], moving: bool) -> list[tuple[float, str, tuple[str, ...], float]]:
    found: list[tuple[float, str, tuple[str, ...], float]] = []
    raised = [v[f"{s}_hand_height_max"] > 0.52 for s in ("left", "right")]
    high = [v[f"{s}_hand_height"] > 0.35 for s in ("left", "right")]
    speed = [v["left_hand_speed"], v["right_hand_speed"]]
    reach = [v["left_hand_reach"], v["right_hand_reach"]]
    busy = 0.9 if moving else 0.45
    if all(raised):
        found.append((1.6, "raise both", _RAISE_BOTH, 0))
        if min(speed) > 0.6 and all(high):
            found.append((1.4, "wave both", _WAVE_BOTH, 0))
    elif any(raised):
        k = 0 if raised[0] else 1
        side = 1.0 if k == 0 else -1.0
        found.append((1.8, "raise", _RAISE, side))
        if speed[k] > 0.45 and high[k]:
            found.append((1.8, "wave", _WAVE, side))
    elif not moving:
        if min(reach) > 0.45:
            found.append((1.0, "reach both", _REACH_BOTH, 0))
        elif max(reach) > 0.48 and abs(reach[0] - reach[1]) > 0.15:
            found.append((1.5, "punch", _PUNCH, 1.0 if reach[0] > reach[1] else -1.0))
        if min(v["left_hand_out"], v["right_hand_out"]) > 0.6:
            found.append((1.4, "spread", _SPREAD, 0))
    if max(speed) > busy and not any(raised):
        if max(speed) > 1.8 * min(speed):
            found.append((1.2, "move arm", _MOVE_ARM, 1.0 if speed[0] > speed[1] else -1.0))
        elif not moving:
            found.append((0.7, "move arms", _MOVE_ARMS, 0))
    return found


def _say(fact: tuple[float, str, tuple[str, ...], float], rng: random.Random) -> str:
    _, _, wordings, side = fact
    return rng.choice(wordings).format(**_sides(side), p=rng.choice(("his", "her", "their", "the")))


def _sentence(parts: list[str], rng: random.Random) -> str:
    """One sentence of base-form parts in the given order."""
    style = rng.random()
    if style < 0.6:
        subject = rng.choice(_SUBJECTS)
        text = rng.choice(_LINKS[:5]).join(_inflect(p, _third_person) for p in parts)
        return f"{subject} {text}"
    if style < 0.75:
        return rng.choice(_LINKS[:5]).join(parts)
    if style < 0.9:
        return f"{rng.choice(_SUBJECTS)} is {' and '.join(_inflect(p, _gerund) for p in parts)}"
    return ", ".join(_inflect(p, _gerund) for p in parts)


def automatic_captions(plan: Tensor, count: int, rng: random.Random) -> list[str]:
    """Up to `count` different sentences about a plan `(5, A)`; fewer (perhaps none) when little can be said.

    Whole-clip facts are combined by salience; when the two halves of the clip differ, some sentences say one after the
    other.
    """
    whole = facts(plan[0])
    first, second = _half(plan, 1), _half(plan, 3)
    orders = _sequence(first, second)
    sentences: list[str] = []
    for _ in range(4 * count):
        if len(sentences) == count:
            break
        if orders and rng.random() < 0.35:
            parts = [_say(f, rng) for f in rng.choice(orders)]
        elif whole:
            number = min(len(whole), rng.choices((1, 2, 3), (0.55, 0.35, 0.1))[0])
            main = [f for f in whole if f[0] >= 1.5] or whole
            chosen = [rng.choices(main, [f[0] for f in main])[0]]
            rest = [f for f in whole if f is not chosen[0]]
            rng.shuffle(rest)
            chosen += rest[: number - 1]
            parts = [_say(f, rng) for f in chosen]
        else:
            break
        sentence = _sentence(parts, rng)
        if sentence not in sentences:
            sentences.append(sentence)
    return sentences


_SUMS = {"yaw", "absolute_yaw", "forward_distance", "left_distance", "seconds"}
_LARGEST = {"pelvis_height_max", "flight_height", "left_hand_height_max", "right_hand_height_max", "left_foot_height_max",
            "right_foot_height_max", "left_hand_reach", "right_hand_reach", "left_hand_out", "right_hand_out",
            "feet_distance_max"}  # fmt: skip
_SMALLEST = {"pelvis_height_min", "upright_min", "head_height_min"}


def _half(plan: Tensor, start: int) -> Tensor:
    """Rows `start` and `start + 1` of a plan joined into one."""
    a, b = plan[start], plan[start + 1]
    row = (a + b) / 2
    for k, name in enumerate(ATTRIBUTES):
        if name in _SUMS:
            row[k] = a[k] + b[k]
        elif name in _LARGEST:
            row[k] = max(a[k], b[k])
        elif name in _SMALLEST:
            row[k] = min(a[k], b[k])
    return row


def _sequence(first: Tensor, second: Tensor) -> list[list[tuple[float, str, tuple[str, ...], float]]]:
    """Pairs (fact of the first half, fact of the second half) of different kinds that only one half shows."""
    early, late = facts(first), facts(second)
    early_kinds, late_kinds = {(f[1], f[3] > 0) for f in early}, {(f[1], f[3] > 0) for f in late}
    pairs = []
    for a in early:
        for b in late:
            distinct = (a[1], a[3] > 0) not in late_kinds or (b[1], b[3] > 0) not in early_kinds
            if distinct and a[0] >= 1.4 and b[0] >= 1.4 and (a[1], a[3] > 0) != (b[1], b[3] > 0):
                pairs.append([a, b])
    return pairs
