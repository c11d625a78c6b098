"""Instructions for a language model that knows motion: items of text and motion, and their ids and loss masks.

    [BOS] prompt <mot> m_1 … m_n </mot> [EOS]        the answer is a motion
    [BOS] … <mot> m_1 … m_n </mot> … \\n text [EOS]   the answer is a text

This is the one place where the format is written down: training encodes whole items (`encode`), generation the same items
without their answer (`encode_prompt`). Motion never passes through text: ids are put together from lists, and no user text
can become a motion id (`MotionVocabulary.encode_text`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vadis.errors import VadisError
from vadis.language.templates import TEMPLATES as TEMPLATES  # read from here by all others
from vadis.language.templates import fill, templates_of

if TYPE_CHECKING:
    from vadis.language.vocabulary import MotionVocabulary

Loss = Literal["whole", "motion", "answer"]
MAX_CHARACTERS = 20_000
"""Of one text of a prompt."""


@dataclass(frozen=True, eq=False)
class MotionSpan:
    """Motion tokens at a place of an instruction; in ids they stand between the markers of motion.

    Attributes:
        tokens: (S,), (S, G) or a DSFT `Encoded`, as their tokenizer gives them.
        part: only this column of (S, G).
    """

    tokens: Any
    part: int | None = None


Part = str | MotionSpan


@dataclass(frozen=True, eq=False)
class InstructionItem:
    """A question and its answer.

    Attributes:
        prompt, answer: texts and motions in order.
        task: a key of `TEMPLATES`.
        source: where the motion is from; clip: its id.
        frames: length of the clip, 0 where it isn't known.
    """

    prompt: tuple[Part, ...]
    answer: tuple[Part, ...]
    task: str
    source: str = ""
    clip: str = ""
    frames: int = 0


@dataclass(frozen=True, eq=False)
class EncodedItem:
    """An item as ids.

    Attributes:
        ids: (N,) int64.
        motion: (N,) bool, every span of motion with its markers.
        answer: (N,) bool, the answer with its [EOS].
        item: what it was made from.
    """

    ids: Tensor
    motion: Tensor
    answer: Tensor
    item: InstructionItem | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_length(self) -> int:
        """Ids before the answer."""
        return len(self.ids) - int(self.answer.sum())

    def targets(self, loss: Loss) -> Tensor:
        """(N,) bool: the ids that a loss asks for, each to be predicted from those before it; never the first."""
        if loss not in ("whole", "motion", "answer"):
            raise VadisError(f"there is no loss {loss!r}: use whole, motion or answer.")
        mask = torch.ones(len(self), dtype=torch.bool) if loss == "whole" else getattr(self, loss).clone()
        mask[:1] = False
        return mask


def instruction(
    task: str, *, template: str | None = None, answer: Part | Sequence[Part] = (), **values: Any
) -> InstructionItem:
    """An item of a task with its fields filled; by default with template 0, the one of evaluation and generation.

    `values` are the fields of the template: caption, upper, lower, frames, seconds, and the motion fields motion, start,
    end and given (a `MotionSpan`, or texts and spans). Raises VadisError for a field that is missing or a text that is
    empty or too long.
    """
    for name in ("caption", "upper", "lower"):
        text = values.get(name)
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise VadisError(f"{name} must be a sentence; got {text!r:.60}. Leave it out where there is none.")
        if text is not None and len(text) > MAX_CHARACTERS:
            raise VadisError(f"{name} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. Shorten it.")
    if isinstance(seconds := values.get("seconds"), float):
        values["seconds"] = f"{seconds:.1f}"
    prompt = fill(templates_of(task)[0] if template is None else template, values)
    wanted = (answer,) if isinstance(answer, str | MotionSpan) else tuple(answer)
    return InstructionItem(prompt, wanted, task, frames=int(values.get("frames") or 0))


def given_parts(tokens: Tensor, names: Sequence[str], parts: Sequence[int]) -> list[Part]:
    """What fills the field `{given}`: columns `parts` of tokens (S, G), each after the name of its part."""
    return [part for p in parts for part in (f"{names[p].replace('_', ' ')} ", MotionSpan(tokens, p), " ")][:-1]


def encode(item: InstructionItem, vocabulary: "MotionVocabulary", text_tokenizer: Any) -> EncodedItem:
    """Ids and masks of a whole item, for training; raises VadisError for an item without an answer.

    `vocabulary` is the model's `MotionVocabulary`, `text_tokenizer` its tokenizer of transformers.
    """
    if not item.answer:
        raise VadisError("this item has no answer to learn: use encode_prompt, or give it one.")
    ids, motion = _prompt(item, vocabulary, text_tokenizer)
    start = len(ids)
    for part in item.answer:
        _add(part, ids, motion, vocabulary, text_tokenizer)
    if text_tokenizer.eos_token_id is not None:
        ids.append(int(text_tokenizer.eos_token_id))
        motion.append(False)
    answer = torch.arange(len(ids)) >= start
    return EncodedItem(torch.tensor(ids), torch.tensor(motion), answer, item)


def encode_prompt(item: InstructionItem, vocabulary: "MotionVocabulary", text_tokenizer: Any) -> list[int]:
    """The ids of an item up to its answer, for generation; a motion answer then begins with `vocabulary.begin`."""
    return _prompt(item, vocabulary, text_tokenizer)[0]


def _prompt(item: InstructionItem, vocabulary: "MotionVocabulary", text_tokenizer: Any) -> tuple[list[int], list[bool]]:
    bos = text_tokenizer.bos_token_id
    ids = [] if bos is None else [int(bos)]
    motion = [False] * len(ids)
    for part in item.prompt:
        _add(part, ids, motion, vocabulary, text_tokenizer)
    if item.task == "motion_to_text":
        _add("\n", ids, motion, vocabulary, text_tokenizer)
    return ids, motion


def _add(part: Part, ids: list[int], motion: list[bool], vocabulary: "MotionVocabulary", text_tokenizer: Any) -> None:
    is_motion = isinstance(part, MotionSpan)
    new = span_ids(part, vocabulary) if is_motion else vocabulary.encode_text(text_tokenizer, part)
    ids += new
    motion += [is_motion] * len(new)


def span_ids(span: MotionSpan, vocabulary: "MotionVocabulary") -> list[int]:
    """Ids of a motion with its markers; of one part of it the ids that its symbols have in the whole."""
    if span.part is None:
        return vocabulary.ids(span.tokens)
    if vocabulary.layout.kind != "flat" or span.tokens.ndim != 2:
        raise VadisError(
            "parts of a motion need a tokenizer with a column of tokens a part (flat layout, tokens (S, G))."
        )
    row, (steps, groups) = vocabulary.layout.flatten(span.tokens), span.tokens.shape
    columns = row.reshape(steps, groups).T if vocabulary.layout.order == "time" else row.reshape(groups, steps)
    symbols = columns[span.part]
    return [int(vocabulary.begin), *vocabulary.symbol_ids[symbols].tolist(), int(vocabulary.end)]
