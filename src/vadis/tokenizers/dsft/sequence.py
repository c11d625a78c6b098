"""DSFT tokens as one sequence for a language model, as numbers or as names, and what can be wrong with such a sequence.

    BOS [length] base… SEP phys… EOS

    numbers  BOS 0 · EOS 1 · SEP 32099 · Base b -> 32100 + b · Phys p -> 36196 + p · length i -> 40292 + i
    names    <mot_bos> <mot_sep> <mot_eos> <mot_b_0000> … <mot_b_4095> <mot_p_0000> … <mot_p_4095>, <mot_len_000> … 255

Numbers and names are MotionVLA's, the length tokens ours: length i says that the clip has 4 * (i + 1) frames. The ids that
names get in a language model are to be asked from its tokenizer (`convert_tokens_to_ids`), never computed.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis.errors import VadisError

BOS, EOS, SEP = 0, 1, 32099
STREAMS = ("base", "phys")
RESERVED = 4096
"""Ids that each stream may use."""
BASE, PHYS = 32100, 32100 + RESERVED
LENGTH = PHYS + RESERVED
LENGTHS, LENGTH_STEP = 256, 4
_NAME = re.compile(r"<mot_(?:(bos|sep|eos)|b_(\d{4})|p_(\d{4})|len_(\d{3}))>|\S")


@dataclass(frozen=True, eq=False)
class Encoded:
    """The tokens of one clip.

    Attributes:
        base_ids, phys_ids: (S,) int64 each, of different lengths.
        T: frames of the clip; without them the tokens can't be decoded.
        clipped: integers outside the alphabet that were pulled to its end.
    """

    base_ids: Tensor
    phys_ids: Tensor
    T: int
    clipped: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of both streams, markers not counted."""
        return len(self.base_ids) + len(self.phys_ids)


class Issue(StrEnum):
    """What can be wrong with a sequence."""

    MISSING_BOS = "missing_bos"
    MISSING_SEP = "missing_sep"
    MISSING_EOS = "missing_eos"
    FOREIGN_TOKEN = "foreign_token"
    BASE_AFTER_SEP = "base_after_sep"
    PHYS_BEFORE_SEP = "phys_before_sep"
    REPEATED_MARKER = "repeated_marker"
    EMPTY_BASE = "empty_base"
    EMPTY_PHYS = "empty_phys"
    WRONG_LENGTH = "wrong_length"
    CLIPPED = "clipped"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what, and for a wrong length in which stream and by how much (in integers)."""

    issue: Issue
    stream: str = ""
    got: int = 0
    expected: int = 0

    def __str__(self) -> str:
        if self.issue is Issue.WRONG_LENGTH:
            return f"{self.issue}({self.stream}, {self.got}, {self.expected})"
        return f"{self.issue}{f'({self.stream})' if self.stream else ''}"


@dataclass(frozen=True, eq=False)
class Parsed:
    """What a sequence holds: ids of the streams (int64 arrays), T where a length token says it, and what is wrong."""

    base: np.ndarray
    phys: np.ndarray
    T: int | None
    issues: tuple[Finding, ...] = ()


class MalformedMotion(VadisError):
    """A token sequence that is not a whole motion; `issues` lists what is wrong with it."""

    def __init__(self, issues: Iterable[Finding]) -> None:
        self.issues = tuple(issues)
        listed = ", ".join(map(str, self.issues))
        super().__init__(f'malformed motion tokens: {listed}. Use on_error="repair" to decode what is there.')


def token_names(lengths: bool = False) -> list[str]:
    """The names in the order of the published list: markers, Base, Phys, and with `lengths` the length tokens."""
    names = ["<mot_bos>", "<mot_sep>", "<mot_eos>"]
    names += [f"<mot_{stream}_{i:04d}>" for stream in "bp" for i in range(RESERVED)]
    return names + ([f"<mot_len_{i:03d}>" for i in range(LENGTHS)] if lengths else [])


def to_numbers(encoded: Encoded, length_token: bool = False) -> np.ndarray:
    """The sequence of a clip as int64 numbers. Raises VadisError for a T that no length token can say."""
    length: list[int] = []
    if length_token:
        if encoded.T % LENGTH_STEP or not 0 < encoded.T <= LENGTHS * LENGTH_STEP:
            raise VadisError(
                f"a length token says multiples of {LENGTH_STEP} up to {LENGTHS * LENGTH_STEP} frames, not {encoded.T}: "
                "crop the clip."
            )
        length = [LENGTH + encoded.T // LENGTH_STEP - 1]
    base, phys = encoded.base_ids.numpy() + BASE, encoded.phys_ids.numpy() + PHYS
    return np.concatenate([[BOS, *length], base, [SEP], phys, [EOS]]).astype(np.int64)


def numbers_to_text(numbers: Iterable[int]) -> str:
    """Numbers as names, without anything between them. Raises VadisError for a number that has no name."""
    return "".join(_name(int(n)) for n in numbers)


def _name(number: int) -> str:
    markers = {BOS: "<mot_bos>", SEP: "<mot_sep>", EOS: "<mot_eos>"}
    if number in markers:
        return markers[number]
    for start, count, form in (
        (BASE, RESERVED, "b_{:04d}"),
        (PHYS, RESERVED, "p_{:04d}"),
        (LENGTH, LENGTHS, "len_{:03d}"),
    ):
        if start <= number < start + count:
            return f"<mot_{form.format(number - start)}>"
    raise VadisError(f"the number {number} stands for no motion token.")


def text_to_numbers(text: str) -> np.ndarray:
    """Names as numbers; each run of anything else, and each name that does not exist, is one -1."""
    numbers: list[int] = []
    end = -1
    for match in _NAME.finditer(text):
        marker, base, phys, length = match.groups()
        if marker:
            numbers.append({"bos": BOS, "sep": SEP, "eos": EOS}[marker])
        elif base or phys or length:
            start, count = (BASE, RESERVED) if base else (PHYS, RESERVED) if phys else (LENGTH, LENGTHS)
            value = int(base or phys or length)
            numbers.append(start + value if value < count else -1)
        elif not (numbers and numbers[-1] == -1 and match.start() == end):
            numbers.append(-1)
        end = match.end()
    return np.array(numbers, dtype=np.int64)


def parse(sequence: Any, vocab_sizes: tuple[int, int] = (RESERVED, RESERVED)) -> Parsed:
    """What a sequence of numbers holds; never raises on its content.

    Tokens out of place are left out and said; where SEP is missing, tokens go to the stream that their number says. What
    follows EOS is ignored but said.
    """
    numbers = np.asarray(sequence.cpu() if isinstance(sequence, Tensor) else sequence).reshape(-1)
    if not np.issubdtype(numbers.dtype, np.integer):
        numbers = np.full(numbers.shape, -1)  # not numbers of tokens at all
    numbers = numbers.astype(np.int64)
    found: list[Finding] = []

    def say(issue: Issue, when: bool, stream: str = "") -> None:
        if when:
            found.append(Finding(issue, stream))

    say(Issue.MISSING_BOS, not len(numbers) or numbers[0] != BOS)
    ends = np.flatnonzero(numbers == EOS)
    say(Issue.MISSING_EOS, not len(ends))
    body, rest = (numbers[: ends[0]], numbers[ends[0] + 1 :]) if len(ends) else (numbers, numbers[:0])
    if len(body) and body[0] == BOS:
        body = body[1:]
    T = None
    if len(body) and LENGTH <= body[0] < LENGTH + LENGTHS:
        T, body = LENGTH_STEP * int(body[0] - LENGTH + 1), body[1:]
    breaks = np.flatnonzero(body == SEP)
    say(Issue.MISSING_SEP, not len(breaks))
    again = int((body == BOS).sum()) + max(len(breaks) - 1, 0) + int(np.isin(rest, (BOS, SEP, EOS)).sum())
    say(Issue.REPEATED_MARKER, again > 0)
    is_base = (body >= BASE) & (body < BASE + min(vocab_sizes[0], RESERVED))
    is_phys = (body >= PHYS) & (body < PHYS + min(vocab_sizes[1], RESERVED))
    strange = ~(is_base | is_phys | np.isin(body, (BOS, SEP)))
    say(Issue.FOREIGN_TOKEN, bool(strange.any()) or bool((~np.isin(rest, (BOS, SEP, EOS))).any()))
    if len(breaks):
        after = np.arange(len(body)) > breaks[0]
        say(Issue.BASE_AFTER_SEP, bool((is_base & after).any()))
        say(Issue.PHYS_BEFORE_SEP, bool((is_phys & ~after).any()))
        is_base, is_phys = is_base & ~after, is_phys & after
    say(Issue.EMPTY_BASE, not is_base.any())
    say(Issue.EMPTY_PHYS, not is_phys.any())
    return Parsed(body[is_base] - BASE, body[is_phys] - PHYS, T, tuple(found))


def chat_row(text: str, tokens: str, image: str | None = None, seconds: float | None = None) -> dict[str, Any]:
    """One training row as MotionVLA writes it; `seconds` adds the line that tells a model how long the motion is."""
    request = f"Generate motion for: {text}" + ("" if seconds is None else f"\nDuration: {seconds:.1f} s")
    content: Any = request
    if image is not None:
        content = [{"type": "image", "image": image}, {"type": "text", "text": request}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": tokens}]}


def split_rows(rows: Sequence[Any], share: float = 0.9, seed: int = 42) -> tuple[list[Any], list[Any]]:
    """Rows shuffled with Python's generator and cut into training (the first `int(n * share)`) and validation rows."""
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    cut = int(len(mixed) * share)
    return mixed[:cut], mixed[cut:]


def tokenized_page(encoded: Encoded, tokenizer_hash: str) -> dict[str, Any]:
    """What is stored of a tokenised clip: T, the sequence, the lengths of its streams and the tokenizer's hash."""
    return {"T": encoded.T, "seq": to_numbers(encoded), "base_len": len(encoded.base_ids),
            "phys_len": len(encoded.phys_ids), "tokenizer": tokenizer_hash}  # fmt: skip


def from_tokenized(page: Mapping[str, Any], tokenizer_hash: str | None = None) -> Encoded:
    """The tokens of a stored clip. Raises VadisError when another tokenizer made it, MalformedMotion when it is damaged."""
    made_by = page.get("tokenizer")
    if tokenizer_hash is not None and made_by is not None and str(made_by) != tokenizer_hash:
        raise VadisError("this clip was tokenised by another tokenizer (its hash differs): tokenise it again.")
    parsed = parse(np.asarray(page["seq"]))
    serious = [f for f in parsed.issues if f.issue not in (Issue.EMPTY_BASE, Issue.EMPTY_PHYS)]
    for stream, ids, stored in (("base", parsed.base, page["base_len"]), ("phys", parsed.phys, page["phys_len"])):
        if len(ids) != int(stored):
            serious.append(Finding(Issue.WRONG_LENGTH, stream, len(ids), int(stored)))
    if serious:
        raise MalformedMotion(serious)
    return Encoded(torch.from_numpy(parsed.base), torch.from_numpy(parsed.phys), int(page["T"]))
