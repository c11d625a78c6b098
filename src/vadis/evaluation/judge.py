"""Metrics that need someone who looks: does a rendered motion show what the text says? (MBench of ViMoGen)

Condition consistency: a judge picks the label of a clip among ten options. Generalizability: a judge says whether a clip
matches a description. Who judges is a plug-in (`vadis.evaluation.judges`); nothing is sent anywhere unless a judge is
made and passed in. Scores of different judges, prompts, renderers or frame rates don't compare; a score names them all.

Replies are read in one of two ways. "literal" is the published rule with its faults: a colon in the reasoning or a quote
around the answer makes a right answer wrong, "the eyes move" counts as yes, and failed calls are left out of the total.
"strict" asks for JSON, and a reply that can't be read is wrong and counted.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vadis.errors import VadisError
from vadis.motion import Motion

Parse = Literal["strict", "literal"]

_SCENE = (
    "These pictures are frames, in order of time, of an animation: one plain figure moves on an empty floor. There is no "
    "scene, no object and no face; judge the movement of body and limbs only."
)
CHOOSE = {
    "strict": _SCENE + " First describe to yourself what trunk, arms and legs do. Then say which of these it shows:\n"
    "{options}\nReply with one JSON object and nothing else: "
    '{{"description": "a sentence on body and limbs", "index": number of the closest option}}',
    "literal": _SCENE
    + " Describe what trunk, arms and legs do, then leave an empty line and name the closest match from "
    "this list:\n{options}\nEnd with: The closest match from the provided motion list is: NAME",
}
VERIFY = {
    "strict": _SCENE
    + ' Does the movement mean "{text}"? What is meant counts, not how well it is done. Reply with one '
    'JSON object and nothing else: {{"description": "a sentence on body and limbs", "match": true or false}}',
    "literal": _SCENE + ' Does the movement mean "{text}"? What is meant counts, not how well it is done. Describe it '
    "briefly and end with: Answer: yes, or Answer: no",
}


@dataclass(frozen=True, eq=False)
class RenderedClip:
    """What a judge sees: pictures `(F, H, W, 3)` uint8 at `fps`, made by `renderer`; the motion itself for judges of numbers."""

    frames: NDArray[np.uint8]
    fps: float
    renderer: str
    motion: Motion | None = None


@dataclass(frozen=True)
class Choice:
    """The option a judge picked, None when its reply names none; and the reply."""

    index: int | None
    raw: str


@dataclass(frozen=True)
class Verdict:
    """Whether a judge finds that clip and text match, None when its reply doesn't say; and the reply."""

    match: bool | None
    raw: str


class NoReply(VadisError):
    """A judge could not be reached about one clip; the clip counts as unread, and the next one is asked about."""


class Judge(Protocol):
    """Who looks. Raises NoReply when one call fails for good, any other VadisError when all would."""

    name: str
    parse: Parse

    def choose(self, clip: RenderedClip, options: Sequence[str]) -> Choice: ...

    def verify(self, clip: RenderedClip, text: str) -> Verdict: ...


class PromptedJudge:
    """A judge that is asked in words about pictures: subclasses say how (`ask`)."""

    name: str
    parse: Parse = "strict"

    def ask(self, clip: RenderedClip, prompt: str) -> str:
        """The reply to a prompt about the frames of a clip."""
        raise NotImplementedError

    def choose(self, clip: RenderedClip, options: Sequence[str]) -> Choice:
        lines = "\n".join(f"{k}. {text}" if self.parse == "strict" else f"- {text}" for k, text in enumerate(options))
        raw = self.ask(clip, CHOOSE[self.parse].format(options=lines))
        return Choice(read_choice(raw, options, self.parse), raw)

    def verify(self, clip: RenderedClip, text: str) -> Verdict:
        raw = self.ask(clip, VERIFY[self.parse].format(text=text))
        return Verdict(read_verdict(raw, self.parse), raw)


# ---- reading replies


def literal_choice(reply: str) -> str:
    """The answer as the published rule cuts it out: after the first blank line, then after the first colon."""
    _, blank, rest = reply.partition("\n\n")
    text = rest if blank else reply
    _, colon, rest = text.partition(":")
    return (rest if colon else text).strip().rstrip(".,;:!?'\"")


def literal_verdict(reply: str) -> str:
    """The verdict as the published rule cuts it out: after the first "Answer:"; it counts as yes if it contains "yes"."""
    _, found, rest = reply.partition("Answer:")
    return (rest if found else reply).strip()


def read_choice(reply: str, options: Sequence[str], parse: Parse) -> int | None:
    """Index of the option that a reply names, None for none."""
    if parse == "literal":
        answer = literal_choice(reply).lower()
        return next((k for k, option in enumerate(options) if option.lower() == answer), None)
    index = (read_object(reply) or {}).get("index")
    if isinstance(index, str) and index.strip().isdecimal():
        index = int(index)
    return index if type(index) is int and 0 <= index < len(options) else None


def read_verdict(reply: str, parse: Parse) -> bool | None:
    """Whether a reply says that clip and text match, None when it doesn't say."""
    if parse == "literal":
        return "yes" in literal_verdict(reply).lower()
    match = (read_object(reply) or {}).get("match")
    return match if isinstance(match, bool) else None


def read_object(reply: str) -> dict[str, Any] | None:
    """The JSON object in a reply: alone, in a code fence, or between words; None without one."""
    fence = re.search(r"```(?:json)?\s*(.*?)```", reply, re.DOTALL)
    inner = reply[reply.find("{") : reply.rfind("}") + 1]
    for text in (reply, fence[1] if fence else "", inner):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def read_gate(reply: str) -> tuple[str, bool]:
    """(analysis, matches) of the check that ViMoGen makes before it conditions on a reference motion.

    Without readable JSON a reply passes when it holds `"matches"` and, anywhere, "true".
    """
    found = read_object(reply)
    if found is None:
        return reply, '"matches"' in reply and "true" in reply.lower()
    matches = found.get("matches", False)
    passed = matches.strip().lower() in ("true", "yes") if isinstance(matches, str) else bool(matches)
    return str(found.get("analysis", reply)), passed


# ---- scores


@dataclass(frozen=True)
class Judged:
    """One clip: its text, the options in the order shown, every reply, and whether the judge was right (None: no reply)."""

    text: str
    options: tuple[str, ...]
    replies: tuple[str, ...]
    correct: bool | None


@dataclass(frozen=True)
class JudgeScore:
    """Share of clips judged right, and everything that the share depends on."""

    metric: str
    accuracy: float
    correct: int
    total: int
    unread: int
    """Clips without a readable reply: wrong in "strict", left out of `total` in "literal"."""
    judge: str
    parse: Parse
    prompt_hash: str
    renderer: str
    fps: float
    seed: int | None
    votes: int
    items: tuple[Judged, ...]

    @property
    def name(self) -> str:
        """Column name: scores of different judges never share one."""
        return f"{self.metric}@{self.judge}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def condition_consistency(judge: Judge, clips: Sequence[RenderedClip], labels: Sequence[str],
                          distractors: Sequence[Sequence[str]], *, seed: int = 0, votes: int = 1,
                          workers: int = 1) -> JudgeScore:  # fmt: skip
    """How often a judge picks a clip's label among its distractors (nine in MBench: chance is 0.1).

    The order of options depends on `seed` and the clip's place only. `votes` asks several times and takes the most
    frequent answer; `workers` asks about several clips at once. Raises VadisError for unequal numbers of clips and labels.
    """
    _same_number(clips, labels, distractors)
    orders = []
    for k, (label, others) in enumerate(zip(labels, distractors, strict=True)):
        options = [label, *others]
        orders.append([options[i] for i in np.random.default_rng((seed, k)).permutation(len(options))])

    def one(k: int) -> Judged:
        answers = [_try(lambda: judge.choose(clips[k], orders[k])) for _ in range(votes)]
        picked = Counter(a.index for a in answers if a is not None and a.index is not None).most_common(1)
        right = bool(picked) and orders[k][picked[0][0]].lower() == labels[k].lower()
        return Judged(labels[k], tuple(orders[k]), *_outcome(judge, answers, bool(picked), right))

    items = _each(one, len(clips), workers)
    return _score("condition_consistency", judge, clips, items, CHOOSE, seed, votes)


def generalizability(judge: Judge, clips: Sequence[RenderedClip], texts: Sequence[str], *, votes: int = 1,
                     workers: int = 1) -> JudgeScore:  # fmt: skip
    """How often a judge says that a clip matches its description; see `condition_consistency`.

    A judge that always says yes scores 1: ask it about shuffled texts too and report both.
    """
    _same_number(clips, texts)

    def one(k: int) -> Judged:
        answers = [_try(lambda: judge.verify(clips[k], texts[k])) for _ in range(votes)]
        said = [a.match for a in answers if a is not None and a.match is not None]
        return Judged(texts[k], (), *_outcome(judge, answers, bool(said), 2 * sum(said) > len(said)))

    items = _each(one, len(clips), workers)
    return _score("generalizability", judge, clips, items, VERIFY, None, votes)


def _same_number(*columns: Sequence[Any]) -> None:
    counts = [len(column) for column in columns]
    if len(set(counts)) != 1 or not counts[0]:
        raise VadisError(f"give one text (and one list of distractors) for each clip, at least one; got {counts}.")


def _try(ask: Any) -> Any:
    try:
        return ask()
    except NoReply:
        return None


def _outcome(judge: Judge, answers: list[Any], read: bool, right: bool) -> tuple[tuple[str, ...], bool | None]:
    replies = tuple(answer.raw for answer in answers if answer is not None)
    if judge.parse == "literal":  # as published: only calls that failed for good are left out
        return replies, right if replies else None
    return replies, right if read else None


def _each(one: Any, count: int, workers: int) -> tuple[Judged, ...]:
    if workers <= 1:
        return tuple(one(k) for k in range(count))
    with ThreadPoolExecutor(workers) as pool:
        return tuple(pool.map(one, range(count)))


def _score(metric: str, judge: Judge, clips: Sequence[RenderedClip], items: tuple[Judged, ...], prompts: dict[str, str],
           seed: int | None, votes: int) -> JudgeScore:  # fmt: skip
    renderers = {(clip.renderer, clip.fps) for clip in clips}
    if len(renderers) != 1:
        raise VadisError(f"clips of different renderers or frame rates don't share a score: {sorted(renderers)}.")
    ((renderer, fps),) = renderers
    unread = sum(item.correct is None for item in items)
    total = len(items) - (unread if judge.parse == "literal" else 0)
    correct = sum(item.correct is True for item in items)
    if not total:
        raise VadisError(f"{judge.name} answered about none of {len(items)} clips: check the endpoint or the model.")
    digest = hashlib.sha256(prompts[judge.parse].encode()).hexdigest()[:12]
    return JudgeScore(metric, correct / total, correct, total, unread, judge.name, judge.parse, digest, renderer, fps,
                      seed, votes, items)  # fmt: skip
