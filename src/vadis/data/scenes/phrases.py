"""Instructions of scene clips in several wordings.

`{it}` stands for the thing, such as "the red box", `{other}` for an obstacle on the way.
"""

import random

PHRASES = {
    "walk": (
        "walk to {it}", "go to {it}", "walk over to {it}", "head for {it}", "go and stand in front of {it}",
        "walk up to {it} and stop", "move towards {it} until you reach it", "approach {it}", "make your way to {it}",
        "a person walks to {it}", "someone walks over to {it} and stops in front of it", "the person goes to {it}",
        "stroll across the room to {it}", "please walk to {it}", "take yourself over to {it}", "walk until you are at {it}",
    ),
    "around": (
        "walk around {other} to {it}", "go around {other} and up to {it}", "walk to {it}, passing around {other}",
        "get to {it} without bumping into {other}", "a person walks around {other} and stops at {it}",
        "someone goes round {other} to reach {it}", "head for {it}, keeping clear of {other}",
        "{other} is in the way: walk around it to {it}", "take a bow around {other} and stop in front of {it}",
        "avoid {other} on your way to {it}",
    ),
    "turn": (
        "turn to {it}", "turn to face {it}", "face {it}", "turn around until you look at {it}",
        "look towards {it} without walking", "stay where you are and turn to {it}", "a person turns to {it}",
        "someone turns on the spot to face {it}", "rotate towards {it}", "the person stands and turns towards {it}",
    ),
    "sit": (
        "sit on {it}", "sit down on {it}", "take a seat on {it}", "walk to {it} and sit down on it",
        "go to {it}, turn around and sit", "have a seat on {it}", "a person walks over to {it} and sits down",
        "someone sits down on {it}", "go and sit on {it}", "make yourself comfortable on {it}",
        "the person walks up to {it}, turns the back to it and sits",
    ),
}  # fmt: skip
"""Kind of task → wordings; the first is the plainest."""


def instructions(kind: str, it: str, other: str, rng: random.Random, count: int) -> list[str]:
    """Up to `count` different wordings of a task, the plainest first."""
    plain, *others = PHRASES[kind]
    chosen = [plain, *rng.sample(others, min(count - 1, len(others)))]
    return [phrase.format(it=it, other=other) for phrase in chosen]
