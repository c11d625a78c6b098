"""The wordings of instructions: what a language model is asked, in many paraphrases, and how fields are filled in.

A template is a sentence with fields in braces. Text fields: `{caption}`, `{upper}`, `{lower}` (sentences about the body and
its halves), `{frames}` and `{seconds}` (length of the motion that is asked for). Motion fields: `{motion}` (all of it),
`{start}` and `{end}` (its ends), `{given}` (some of its parts, each after its name). Template 0 of a task is the one that
evaluation and generation use; training draws among those whose fields are known.
"""

from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import Any

from vadis.errors import VadisError

CAPTION_FIELDS = frozenset({"caption", "upper", "lower"})
TEXT_FIELDS = CAPTION_FIELDS | {"frames", "seconds"}
MOTION_FIELDS = frozenset({"motion", "start", "end", "given"})

_TEXT_TO_MOTION = (
    "Generate a motion: {caption}",
    "Make a body move like this: {caption}",
    "Show me the following as motion: {caption}",
    "Turn this sentence into motion. {caption}",
    "What does it look like when {caption}?",
    "Animate a person. Description: {caption}",
    "I need an animation in which {caption}",
    "Act this out: {caption}",
    "Please produce a movement that fits the words: {caption}",
    "Description: {caption}\nMotion:",
    "Move as it is told here: {caption}",
    "Here is what should happen: {caption}. Generate the movement.",
    "Let the character do this: {caption}",
    "Write the motion for: {caption}",
    "Give me a human motion for the text: {caption}",
    "Imagine that {caption}. How does the body move?",
    "Create a clip of the following action. {caption}",
    "Translate the words into movement: {caption}",
    "The caption of a motion capture clip reads: {caption}. Recreate the clip.",
    "Perform this: {caption}",
    "Body movement wanted: {caption}",
    "Find a natural motion for this line: {caption}",
    "Request: {caption}\nLength: {seconds} s",
    "Generate {seconds} seconds of motion: {caption}",
    "Generate a motion of {frames} frames: {caption}",
    "In {seconds} seconds, show how {caption}",
    "Use exactly {frames} frames to animate the following: {caption}",
    "Clip length {seconds} s ({frames} frames). Action: {caption}",
    "Generate a motion: {caption} Upper body: {upper} Lower body: {lower}",
    "Make a body move. Overall: {caption} Arms and torso: {upper} Legs and feet: {lower}",
    "{caption} In detail, above the waist: {upper} Below the waist: {lower} Generate the motion.",
    "Animate this in {seconds} seconds: {caption} Upper half: {upper} Lower half: {lower}",
    "Whole body: {caption}\nUpper body: {upper}\nLower body: {lower}\nMotion:",
    "Generate a motion: {caption} Upper body: {upper}",
    "Show how {caption} The arms and the torso do this: {upper}",
    "Generate a motion: {caption} Lower body: {lower}",
    "Show how {caption} The legs and feet do this: {lower}",
    "Generate a motion. Upper body: {upper} Lower body: {lower}",
    "Combine both halves of the body. Arms and torso: {upper} Legs: {lower}",
    "Make {seconds} seconds of motion. Above the waist: {upper} Below the waist: {lower}",
    "Generate a motion. Upper body: {upper}",
    "Only the arms and torso are described: {upper} Invent fitting legs.",
    "Move the upper half of the body like this: {upper}",
    "Generate a motion. Lower body: {lower}",
    "Only the legs and feet are described: {lower} Invent fitting arms.",
    "Move the lower half of the body like this: {lower}",
)

_MOTION_TO_TEXT = (
    "Describe this motion: {motion}",
    "What is the person doing? {motion}",
    "{motion} Say in one sentence what happens here.",
    "Put this movement into words: {motion}",
    "Write a caption for the clip {motion}",
    "Here is a motion: {motion} What does it show?",
    "Tell me what you see in this motion. {motion}",
    "{motion} Which action was that?",
    "Explain to somebody who can't see it how the body moves: {motion}",
    "Motion: {motion}\nDescription:",
    "Name the action that was recorded: {motion}",
    "Summarise the movement of this person. {motion}",
)
_UPPER_TEXT = (
    "Describe what the upper body does: {motion}",
    "{motion} What do the arms and the torso do here?",
    "Only look above the waist and describe the motion: {motion}",
    "How are the arms and hands moved? {motion}",
)
_LOWER_TEXT = (
    "Describe what the lower body does: {motion}",
    "{motion} What do the legs and feet do here?",
    "Only look below the waist and describe the motion: {motion}",
    "How does the person step? {motion}",
)

_PREDICTION = (
    "Continue this motion: {start}",
    "The motion begins like this: {start} How does it go on?",
    "{start} Predict the rest of the movement.",
    "Given the first moments {start}, generate what follows.",
    "A clip was cut off here: {start} Complete it.",
    "What does the body do after this? {start}",
    "Finish the movement that starts with {start}",
    "Go on for {seconds} seconds from this beginning: {start}",
    "Add {frames} frames to the start: {start}",
    "Continue this motion: {start} Description: {caption}",
    "The motion begins like this: {start} In the whole clip, {caption}. Generate the rest.",
    "{caption} The beginning is given: {start} Go on for {seconds} seconds.",
)
_IN_BETWEEN = (
    "Fill in the motion between {start} and {end}",
    "The beginning is {start} and the end is {end}. What happens in the middle?",
    "Connect these two pieces of motion: {start} {end}",
    "A motion starts with {start} and finishes with {end}. Generate what lies between.",
    "The middle of a clip was lost. Before: {start} After: {end} Restore it.",
    "Lead from {start} over to {end} smoothly.",
    "Find a movement that leaves {start} and arrives at {end}",
    "Bridge {seconds} seconds between {start} and {end}",
    "Insert {frames} frames between {start} and {end}",
    "Fill in the motion between {start} and {end} Description: {caption}",
    "In the whole clip, {caption}. It begins with {start} and ends with {end}. Generate the middle.",
    "{caption} First: {start} Last: {end} Fill the gap of {seconds} seconds.",
)
_PART_COMPLETION = (
    "Complete the body. Given: {given}",
    "Some parts of the body are known: {given} Generate the whole motion.",
    "These parts move as follows: {given} Let the others fit.",
    "Add the missing parts of the body to {given}",
    "Keep {given} and make up the rest of the body.",
    "What could the whole body do if this is what a part of it does? {given}",
    "Restore the full motion from {given}",
    "Only these parts were recorded: {given} Recover the others.",
    "Complete the body. Given: {given} Description: {caption}",
    "{caption} Keep these parts as they are: {given} Generate the rest.",
    "Change the motion so that {caption}, but leave untouched: {given}",
    "Known parts: {given}\nWanted: {caption}\nLength: {seconds} s",
)
_UNCONDITIONAL = (
    "Generate a motion.",
    "Make a person move.",
    "Show me any human movement.",
    "Invent a motion.",
    "Move freely.",
    "Animate somebody, whatever they do.",
    "Produce a natural motion of your choice.",
    "Surprise me with a movement.",
    "Generate any motion of {seconds} seconds.",
    "Generate any motion of {frames} frames.",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "text_to_motion": _TEXT_TO_MOTION,
    "motion_to_text": _MOTION_TO_TEXT,
    "prediction": _PREDICTION,
    "in_between": _IN_BETWEEN,
    "part_completion": _PART_COMPLETION,
    "unconditional": _UNCONDITIONAL,
}
"""Task → its wordings; the first is the one that evaluation uses."""
PART_QUESTIONS: dict[str, tuple[str, ...]] = {"upper": _UPPER_TEXT, "lower": _LOWER_TEXT}
"""Wordings of motion → text where the answer is about one half of the body."""


@cache
def pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """(literal text, field after it or None) of a template.

    Raises VadisError for a field that does not exist, or braces that aren't closed.
    """
    try:
        parsed = [(text, name) for text, name, _, _ in Formatter().parse(template)]
    except ValueError as error:
        raise VadisError(f"the template {template[:80]!r} can't be read: {error}. Write {{{{ for a brace.") from error
    unknown = [name for _, name in parsed if name is not None and name not in TEXT_FIELDS | MOTION_FIELDS]
    if unknown:
        known = ", ".join(sorted(TEXT_FIELDS | MOTION_FIELDS))
        raise VadisError(f"the template {template[:80]!r} has a field {unknown[0]!r}; there are {known}.")
    return tuple(parsed)


@cache
def fields(template: str) -> frozenset[str]:
    """The fields of a template."""
    return frozenset(name for _, name in pieces(template) if name is not None)


@cache
def usable(task: str, captions: frozenset[str], known: frozenset[str]) -> tuple[str, ...]:
    """Templates of a task that say exactly the caption fields `captions` and else ask for nothing but `known` fields."""
    return tuple(
        t for t in templates_of(task) if fields(t) & CAPTION_FIELDS == captions and fields(t) - CAPTION_FIELDS <= known
    )


def templates_of(task: str) -> tuple[str, ...]:
    """The wordings of a task; raises VadisError for a task that does not exist."""
    if task not in TEMPLATES:
        raise VadisError(f"there is no task {task!r}: use one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[task]


def fill(template: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """A template with its fields filled: texts (neighbouring ones joined) and whatever the motion fields hold, in order.

    Values are put in as they are, so braces in a caption stay braces; only the full stop between a caption and a sentence
    behind it is made right. A motion field may hold a sequence of texts and
    motions. Raises VadisError for a field without a value.
    """
    result: list[Any] = []
    parts = pieces(template)
    for (text, name), (behind, _) in zip(parts, [*parts[1:], ("", None)], strict=True):
        _append(result, text)
        if name is None:
            continue
        if values.get(name) is None:
            raise VadisError(f"the template {template[:80]!r} needs {name}: give it, or use another template.")
        value = values[name]
        if name in MOTION_FIELDS:
            for part in value if isinstance(value, list | tuple) else (value,):
                _append(result, part)
        else:
            _append(result, _ended(str(value), behind))
    return tuple(result)


def _ended(sentence: str, behind: str) -> str:
    """A sentence with the full stop that it lacks before the next one, or without one before other punctuation."""
    if behind[:1] in (".", ",", "?") and sentence.endswith("."):
        return sentence[:-1]
    return (
        sentence + "."
        if behind[1:2].isupper() and sentence[-1:] not in ".!?:" and sentence[-1:].isalpha()
        else sentence
    )


def _append(parts: list[Any], part: Any) -> None:
    if isinstance(part, str) and parts and isinstance(parts[-1], str):
        parts[-1] += part
    elif not isinstance(part, str) or part:
        parts.append(part)
