"""Instructions of scene clips in several wordings; `{it}` stands for the thing, such as "the red box"."""

import random

PHRASES = {
    "walk": (
        "walk to {it}",
        "go to {it}",
        "walk over to {it}",
        "head for {it}",
        "go and stand in front of {it}",
        "walk up to {it} and stop",
        "move towards {it} until you reach it",
        "approach {it}",
        "make your way to {it}",
        "a person walks to {it}",
        "someone walks over to {it} and stops in front of it",
        "the person goes to {it}",
        "stroll across the room to {it}",
        "please walk to {it}",
        "take yourself over to {it}",
        "walk until you are at {it}",
    ),
}
"""Kind of task → wordings; the first is the plainest."""


def instructions(kind: str, colour: str, shape: str, rng: random.Random, count: int = 4) -> list[str]:
    """`count` different wordings of a task, the plainest first."""
    plain, *others = PHRASES[kind]
    chosen = [plain, *rng.sample(others, min(count - 1, len(others)))]
    return [phrase.format(it=f"the {colour} {shape}") for phrase in chosen]
