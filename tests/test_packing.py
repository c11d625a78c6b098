"""Packing: rows that are full, whole, repeatable, and whose items don't see each other."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vadis.errors import VadisError
from vadis.language.instructions import EncodedItem
from vadis.language.packing import IGNORED, block_mask, first_fit, length_groups, pack_rows, pad_rows


def item(length: int, prompt: int = 2, offset: int = 0) -> EncodedItem:
    """An item whose last third is motion, without text around it."""
    ids = torch.arange(length) % 50 + 1 + offset
    motion = torch.arange(length) >= length - length // 3
    return EncodedItem(ids, motion, torch.arange(length) >= prompt)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 32))
@settings(max_examples=100, deadline=None)
def test_every_item_is_placed_once_or_too_long(lengths: list[int], size: int) -> None:
    rows, dropped = first_fit(lengths, size)
    assert sorted([i for row in rows for i in row] + dropped) == list(range(len(lengths)))
    assert dropped == [i for i, n in enumerate(lengths) if n > size]
    fills = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < fill <= size for fill in fills)
    for k, row in enumerate(rows):  # first fit: what stands in row k found no room in any row before it
        for i in row:
            for before in rows[:k]:
                assert sum(lengths[j] for j in before if j < i) + lengths[i] > size
    assert first_fit(lengths, size) == (rows, dropped)


def test_rows_hold_whole_items_with_their_positions_and_targets() -> None:
    items = [item(6), item(9, offset=100), item(4), item(3)]
    made = pack_rows(items, 12, pad=7)
    assert made.items == ((0, 2), (1, 3)) and made.dropped == ()
    assert made.input_ids[0].tolist() == [*items[0].ids.tolist(), *items[2].ids.tolist(), 7, 7]
    assert made.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0]
    assert made.segment_ids[1].tolist() == [1] * 9 + [2] * 3
    assert made.filled == pytest.approx(22 / 24)
    whole = made.labels != IGNORED
    assert whole[0].tolist() == [False, *[True] * 5, False, *[True] * 3, False, False]
    assert torch.equal(made.labels[whole], made.input_ids[whole])
    motion = pack_rows(items, 12, loss="motion").labels != IGNORED
    assert motion[0].tolist() == [*[False] * 4, True, True, *[False] * 3, True, False, False]
    answer = pack_rows(items, 12, loss="answer").labels != IGNORED
    assert answer[1].tolist() == [False, False, *[True] * 7, False, False, True]


def test_a_fixed_number_of_rows() -> None:
    items = [item(6), item(9), item(4), item(3)]
    assert pack_rows(items, 12, rows=1).items == ((0, 2),)
    wide = pack_rows(items, 12, rows=3)
    assert wide.input_ids.shape == (3, 12) and wide.items[2] == () and not wide.padding_mask[2].any()


def test_items_that_are_too_long_are_left_out_and_said() -> None:
    items = [item(6), item(20), item(4)]
    with pytest.warns(UserWarning, match="33 % of the items"):
        made = pack_rows(items, 12)
    assert made.dropped == (1,) and made.items == ((0, 2),)
    with pytest.warns(UserWarning, match="33 %"):
        assert pad_rows(items, 12).dropped == (1,)
    with pytest.raises(VadisError, match="longest has 20"):
        pack_rows(items, 3)
    with pytest.raises(VadisError, match="none of 0 items"):
        pack_rows([], 3)
    with pytest.raises(VadisError, match="no loss"):
        pack_rows([item(3)], 8, loss="all")  # type: ignore[arg-type]


def test_padded_rows_and_groups_of_similar_length() -> None:
    items = [item(6), item(9), item(4)]
    made = pad_rows(items, 12, multiple=8)
    assert made.input_ids.shape == (3, 16) and made.padding_mask.sum(1).tolist() == [6, 9, 4]
    groups = length_groups([5, 1, 9, 2, 8], 2, random.Random(3))
    assert sorted(map(tuple, groups)) == [(0, 4), (1, 3), (2,)]
    assert groups == length_groups([5, 1, 9, 2, 8], 2, random.Random(3))
    with pytest.raises(VadisError, match="at least"):
        length_groups([1], 0)


def test_the_mask_lets_no_item_see_another() -> None:
    mask = block_mask(torch.tensor([[1, 1, 2, 0, 0]]), torch.bfloat16)
    assert mask.shape == (1, 1, 5, 5) and mask.dtype == torch.bfloat16
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]
    ]  # fmt: skip


def tiny(name: str, attention: str) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_implementation": attention}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=200, **sizes)).eval()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "attn_implementation": attention, "max_position_embeddings": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=200, **sizes)).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_packed_logits_are_those_of_the_items_alone(name: str, attention: str) -> None:
    model = tiny(name, attention)
    items = [item(n, offset=20 * k) for k, n in enumerate((7, 15, 9, 4, 11))]
    made = pack_rows(items, 24)
    with torch.no_grad():
        packed = model(
            input_ids=made.input_ids,
            attention_mask=made.attention_mask(),
            position_ids=made.position_ids,
            labels=made.labels,
        )
        alone = [model(input_ids=i.ids[None]).logits[0] for i in items]
    assert torch.isfinite(packed.logits).all()
    losses = []
    for row, numbers in enumerate(made.items):
        for segment, number in enumerate(numbers, 1):
            inside = made.segment_ids[row] == segment
            assert (packed.logits[row, inside] - alone[number]).abs().max() < 1e-5
            losses.append(torch.nn.functional.cross_entropy(alone[number][:-1], items[number].ids[1:], reduction="sum"))
    count = sum(len(i) - 1 for i in items)
    assert float(packed.loss) == pytest.approx(float(sum(losses)) / count, abs=1e-5)
