"""Rows for a language model: several items packed into one, each blind to the others, or one item a row.

Packing puts items one after another into rows of a fixed length; positions begin anew with each item and attention is
block-diagonal, so logits are those of the items alone. That holds for models whose layers all take a 4-D attention mask
(GPT-2, Llama, SmolLM2…). It does not hold for linear attention (Qwen3.5), whose state runs on from item to item: use
`pad_rows` on `length_groups` there. An item is never cut: what is longer than a row is left out, counted and said.

Letters: R rows, L row length, N ids of an item.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vadis.errors import VadisError
from vadis.language.instructions import EncodedItem, Loss

IGNORED = -100
"""The label of ids that are not asked for, as `transformers` and `cross_entropy` have it."""
MUCH = 0.05
"""Share of dropped items from which on there is a warning."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of rows.

    Attributes:
        input_ids: (R, L) int64.
        labels: (R, L) int64, the ids that the loss asks for at their own place, else -100 (models shift them themselves).
        position_ids: (R, L) int64, from 0 in each item.
        segment_ids: (R, L) int64, 1, 2… for the items of a row, 0 for padding.
        items: numbers of the given items in each row.
        dropped: numbers of the items that were too long.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    items: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...]

    @property
    def padding_mask(self) -> Tensor:
        """(R, L) int64, 1 where there is an item: the `attention_mask` of rows that hold one item each."""
        return (self.segment_ids > 0).long()

    @property
    def filled(self) -> float:
        """Share of the places that hold an item."""
        return float((self.segment_ids > 0).float().mean())

    def attention_mask(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The block-diagonal (R, 1, L, L) mask of these rows; see `block_mask`."""
        return block_mask(self.segment_ids, dtype)


def block_mask(segment_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The additive mask (R, 1, L, L) that models of `transformers` take for `attention_mask`: 0 where a query (row) may look
    at a key (column), which is itself and what is before it in its own item, else the least number of `dtype`.

    Padding is an item of its own, so that no row of the mask is empty.
    """
    length = segment_ids.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    seen = (segment_ids[:, :, None] == segment_ids[:, None, :]) & past
    mask = torch.zeros(seen.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def first_fit(lengths: Sequence[int], size: int) -> tuple[list[list[int]], list[int]]:
    """Rows of item numbers, each of at most `size` ids together, and the numbers that fit into none.

    Every item goes into the first row with room for it, in the given order.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    dropped: list[int] = []
    for number, length in enumerate(lengths):
        if length > size:
            dropped.append(number)
            continue
        place = next((i for i, left in enumerate(room) if left >= length), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(size)
        rows[place].append(number)
        room[place] -= length
    return rows, dropped


def pack_rows(
    items: Sequence[EncodedItem], size: int = 2048, *, pad: int = 0, loss: Loss = "whole", rows: int | None = None
) -> Rows:
    """Items packed first-fit into rows of `size` ids, right-padded with the id `pad`.

    With `rows` exactly so many rows: items that found no place in them are left for another batch (neither in `items` nor
    in `dropped`), and rows that nothing is left for are padding. Warns when more than 5 % of the items are too long; raises
    VadisError when all are, or there are none.
    """
    plan, dropped = first_fit([len(item) for item in items], size)
    _check(items, dropped, size)
    plan = plan if rows is None else (plan + [[]] * rows)[:rows]
    return _fill(items, plan, dropped, size, pad, loss)


def pad_rows(
    items: Sequence[EncodedItem], size: int = 2048, *, pad: int = 0, loss: Loss = "whole", multiple: int = 1
) -> Rows:
    """One item a row, right-padded to the longest of them (rounded up to `multiple`): for linear attention.

    Items of more than `size` ids are left out, as in `pack_rows`.
    """
    dropped = [i for i, item in enumerate(items) if len(item) > size]
    _check(items, dropped, size)
    plan = [[i] for i, item in enumerate(items) if len(item) <= size]
    longest = max(len(items[i]) for (i,) in plan)
    return _fill(items, plan, dropped, -(-longest // multiple) * multiple, pad, loss)


def length_groups(lengths: Sequence[int], batch: int, rng: random.Random | None = None) -> list[list[int]]:
    """Item numbers in batches of similar lengths, in random order with `rng`; the last of the sorted ones may be smaller."""
    if batch < 1:
        raise VadisError(f"a batch has 1 item at least; got {batch}.")
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    if rng is not None:
        rng.shuffle(groups)
    return groups


def _check(items: Sequence[EncodedItem], dropped: Sequence[int], size: int) -> None:
    if len(dropped) == len(items):
        longest = max(map(len, items), default=0)
        raise VadisError(
            f"none of {len(items)} items fits into a row of {size} ids (the longest has {longest}): use longer rows."
        )
    if len(dropped) > MUCH * len(items):
        warnings.warn(
            f"{100 * len(dropped) / len(items):.0f} % of the items are longer than a row of {size} ids and were left out: "
            "use longer rows or shorter clips.",
            stacklevel=3,
        )


def _fill(
    items: Sequence[EncodedItem], plan: list[list[int]], dropped: list[int], size: int, pad: int, loss: Loss
) -> Rows:
    shape = (len(plan), size)
    ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    positions, segments = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, numbers in enumerate(plan):
        start = 0
        for segment, number in enumerate(numbers, 1):
            item = items[number]
            place = slice(start, start + len(item))
            ids[row, place] = item.ids
            labels[row, place] = item.ids.masked_fill(~item.targets(loss), IGNORED)
            positions[row, place] = torch.arange(len(item))
            segments[row, place] = segment
            start += len(item)
    return Rows(ids, labels, positions, segments, tuple(map(tuple, plan)), tuple(dropped))
