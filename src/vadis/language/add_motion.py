"""A causal language model that speaks motion: `extend` gives it new ids, `remap` takes those of rare text tokens, `adopt`
finds those that it was given elsewhere.

Resize before the first backward pass: a graph from before does not fit the new rows.

Beside what is here, the names of `vocabulary` (which ids are what) and `checkpoints` (saving and loading) are offered, so
that one import serves. Letters: V rows of the model, N symbols, K codes.
"""

import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from vadis.errors import ModelError, VadisError
from vadis.language.checkpoints import load_language_model, save_delta, save_language_model
from vadis.language.init_embeddings import Init, code_vectors, draw_rows, resize
from vadis.language.layout import MotionLayout
from vadis.language.vocabulary import (
    MotionTokenizerFacts,
    MotionVocabulary,
    add_names,
    length_names,
    marker_names,
    symbol_names,
)
from vadis.tokenizers.dsft.sequence import token_names

_RESERVED = re.compile(r"[<\[].*(reserved|unused|extra_id|dummy|pad).*[>\]]", re.IGNORECASE)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def extend(
    model: Any,
    text_tokenizer: Any,
    layout: MotionLayout,
    motion_tokenizer: Any,
    *,
    init: Init = "normal",
    multiple: int = 64,
    seed: int = 0,
    length_tokens: bool = False,
    reserve: bool = False,
) -> MotionVocabulary:
    """Give every motion symbol a new id and a new row; changes `model` and `text_tokenizer`, the old rows stay.

    Args:
        layout: of the tokenizer's tokens.
        motion_tokenizer: the tokenizer, or its `MotionTokenizerFacts`.
        init: where the new rows start, see `init_embeddings`.
        multiple: the number of rows is rounded up to a multiple of it.
        length_tokens: DSFT: 256 ids that say how long a motion is.
        reserve: DSFT: all 8,195 names of MotionVLA's list, in its order, also those that this tokenizer lacks.

    Raises ModelError where a name is taken already, or tokenizer, layout and model don't belong together.
    """
    facts = _check(model, text_tokenizer, layout, motion_tokenizer)
    if (length_tokens or reserve) and layout.kind != "two_stream":
        raise ModelError("length tokens and reserved names belong to DSFT: leave length_tokens and reserve out.")
    codes = code_vectors(motion_tokenizer, layout) if init == "codebook" else None
    markers, symbols = marker_names(layout), symbol_names(layout)
    lengths = length_names(layout) if length_tokens else []
    names = token_names() if reserve else [markers[0], *([markers[2]] if markers[2] else []), markers[1], *symbols]
    text_count, text_size = len(text_tokenizer), model.get_input_embeddings().weight.shape[0]
    add_names(text_tokenizer, names + lengths)
    resize(model, _rounded(max(text_size, len(text_tokenizer)), multiple))
    known = text_tokenizer.get_vocab()
    vocabulary = MotionVocabulary(
        layout, "extend", torch.tensor([known[name] for name in symbols]), known[markers[0]], known[markers[1]],
        None if markers[2] is None else known[markers[2]], text_count, text_size,
        model.get_input_embeddings().weight.shape[0], facts,
        torch.tensor([known[name] for name in lengths]) if lengths else None,
    )  # fmt: skip
    others = vocabulary.new_ids()
    others = others[~torch.isin(others, vocabulary.symbol_ids)]
    draw_rows(model, torch.cat([vocabulary.symbol_ids, others]), text_count, init, seed, codes)
    return vocabulary


def adopt(model: Any, text_tokenizer: Any, layout: MotionLayout, motion_tokenizer: Any) -> MotionVocabulary:
    """The vocabulary of a model that was extended elsewhere, as MotionVLA is by ms-swift: the names are there already.

    Length tokens are used where all of their names are there. Raises ModelError where a name is missing.
    """
    facts = _check(model, text_tokenizer, layout, motion_tokenizer)
    known = text_tokenizer.get_vocab()
    begin, end, sep = marker_names(layout)
    symbols, lengths = symbol_names(layout), length_names(layout)
    wanted = [begin, end, *([sep] if sep else []), *symbols]
    lacking = [name for name in wanted if name not in known]
    if lacking:
        raise ModelError(
            f"the text tokenizer lacks {len(lacking):,} of {len(wanted):,} names ({', '.join(lacking[:3])}…): use extend."
        )
    length_ids = torch.tensor([known[n] for n in lengths]) if lengths and all(n in known for n in lengths) else None
    first = min(known[name] for name in wanted)
    return MotionVocabulary(
        layout, "extend", torch.tensor([known[name] for name in symbols]), known[begin], known[end],
        known[sep] if sep else None, first, first, model.get_input_embeddings().weight.shape[0], facts, length_ids,
    )  # fmt: skip


def remap(
    model: Any,
    text_tokenizer: Any,
    layout: MotionLayout,
    motion_tokenizer: Any,
    texts: Iterable[str],
    general: Iterable[str] = (),
    *,
    init: Init = "normal",
    multiple: int = 64,
    seed: int = 0,
) -> MotionVocabulary:
    """Let motion symbols take the ids of the rarest text tokens, whose rows are drawn anew; only markers get new ids.

    Args:
        texts: captions, and whatever else the model must go on reading as it does: no id in them is taken.
        general: a sample of ordinary text, which says what is rare.

    Special, reserved and single-byte ids are never taken. The rarest come first, of equally rare ones those with the
    highest id. Raises VadisError where there are too few; warns where half of the vocabulary goes.
    """
    facts = _check(model, text_tokenizer, layout, motion_tokenizer)
    if layout.kind == "two_stream":
        raise ModelError("DSFT's two streams need names of their own: use extend.")
    codes = code_vectors(motion_tokenizer, layout) if init == "codebook" else None
    text_count, text_size = len(text_tokenizer), model.get_input_embeddings().weight.shape[0]
    chosen = rarest_ids(text_tokenizer, layout.size, texts, general)
    begin, end, _ = marker_names(layout)
    add_names(text_tokenizer, [begin, end])
    resize(model, _rounded(max(text_size, len(text_tokenizer)), multiple))
    known = text_tokenizer.get_vocab()
    vocabulary = MotionVocabulary(
        layout, "remap", torch.tensor(chosen), known[begin], known[end], None, text_count, text_size,
        model.get_input_embeddings().weight.shape[0], facts,
    )  # fmt: skip
    draw_rows(model, torch.tensor([*chosen, known[begin], known[end]]), text_count, init, seed, codes)
    return vocabulary


def rarest_ids(text_tokenizer: Any, count: int, texts: Iterable[str], general: Iterable[str] = ()) -> list[int]:
    """The `count` ids to give away, rarest first; see `remap`."""
    size = len(text_tokenizer)
    kept = _counts(text_tokenizer, texts, size)
    if not kept.any():
        raise VadisError("remap needs the captions: without them it can't know which ids they use.")
    total = kept + _counts(text_tokenizer, general, size)
    free = (kept == 0) & ~_never(text_tokenizer, size)
    candidates = np.flatnonzero(free)
    if len(candidates) < count:
        raise VadisError(
            f"{count:,} motion symbols need as many rare text tokens; of {size:,} ids only {len(candidates):,} are free "
            "(the others are special, single bytes, or in the captions). Use extend."
        )
    order = candidates[np.lexsort((-candidates, total[candidates]))][:count]
    lost = total[order].sum() / max(total.sum(), 1)
    if count >= size / 2:
        warnings.warn(
            f"{count:,} of the {size:,} text tokens will stand for motion, {100 * lost:.1f} % of the sample's: the model "
            "loses half of its words. Prefer extend.",
            stacklevel=3,
        )
    return order.tolist()


def _counts(text_tokenizer: Any, texts: Iterable[str], size: int) -> np.ndarray:
    """How often each id occurs in texts, each read at the start of a line and behind a space."""
    counts = np.zeros(size, dtype=np.int64)
    batch: list[str] = []

    def count() -> None:
        for ids in text_tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
            np.add.at(counts, np.asarray(ids, dtype=np.int64), 1)
        batch.clear()

    for text in texts:
        batch += [text, f" {text}"]
        if len(batch) >= 2000:
            count()
    if batch:
        count()
    return counts


def _never(text_tokenizer: Any, size: int) -> np.ndarray:
    """Bool (size,): ids that are special, added, reserved, single bytes or have no name."""
    never = np.ones(size, dtype=bool)
    kept = set(text_tokenizer.all_special_tokens) | set(text_tokenizer.get_added_vocab())
    for name, id_ in text_tokenizer.get_vocab().items():
        if id_ < size:
            never[id_] = len(name) == 1 or name in kept or bool(_BYTE.fullmatch(name) or _RESERVED.fullmatch(name))
    return never


def _check(model: Any, text_tokenizer: Any, layout: MotionLayout, motion_tokenizer: Any) -> MotionTokenizerFacts:
    """The facts of the motion tokenizer, once everything fits together."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(text_tokenizer) > rows:
        raise ModelError(
            f"the text tokenizer has {len(text_tokenizer):,} ids, the model {rows:,} rows: they don't belong together."
        )
    if not isinstance(motion_tokenizer, MotionTokenizerFacts):
        layout.check(motion_tokenizer)
    return MotionTokenizerFacts.of(motion_tokenizer)


def _rounded(count: int, multiple: int) -> int:
    if multiple < 1:
        raise VadisError(f"the rows are rounded up to a multiple of {multiple}: it must be 1 or more.")
    return math.ceil(count / multiple) * multiple


__all__ = [
    "MotionLayout",
    "MotionTokenizerFacts",
    "MotionVocabulary",
    "adopt",
    "extend",
    "load_language_model",
    "rarest_ids",
    "remap",
    "save_delta",
    "save_language_model",
]
