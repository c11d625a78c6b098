"""Layouts: tokens of every motion tokenizer as one row of symbols and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_vocabularies import FAMILIES, LAYOUTS, SMALL, motion_tokenizer, small_dsft, tokens_for

from vadis.errors import ModelError, ShapeError, VadisError
from vadis.language.layout import MotionLayout
from vadis.loading import component_classes
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.tokenizers.dsft.sequence import Encoded

STREAMS = MotionLayout("two_stream", codes=20, phys_codes=30)


@pytest.fixture(scope="module")
def dsft() -> DSFTTokenizer:
    return small_dsft()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_every_tokenizer_go_there_and_back(family: str) -> None:
    tokenizer, layout = motion_tokenizer(family), LAYOUTS[family]
    features = torch.randn(41, 272, generator=torch.Generator().manual_seed(1)).cumsum(0) / 5
    tokens = tokenizer.encode(features)
    symbols = layout.flatten(tokens)
    assert symbols.shape == (layout.length(len(tokens)),) and int(symbols.max()) < layout.size
    assert layout.steps(len(symbols)) == len(tokens)
    assert torch.equal(layout.unflatten(symbols), tokens)
    assert torch.equal(tokenizer.decode(layout.unflatten(symbols)), tokenizer.decode(tokens))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(1, 12), st.integers(0, 10_000))
def test_there_and_back_and_allowed(family: str, steps: int, seed: int) -> None:
    layout = LAYOUTS[family]
    tokens = tokens_for(layout, steps, seed)
    symbols = layout.flatten(tokens)
    assert torch.equal(layout.unflatten(symbols), tokens)
    start, stop = layout.allowed(torch.arange(len(symbols)), len(symbols))
    assert bool(((start <= symbols) & (symbols < stop)).all())
    for place in (0, len(symbols) // 2, len(symbols) - 1):
        assert layout.allowed(place, len(symbols)) == (int(start[place]), int(stop[place]))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), st.lists(st.integers(0, 60), min_size=1, max_size=30))
def test_unflatten_takes_exactly_what_flatten_gives(family: str, row: list[int]) -> None:
    layout = LAYOUTS[family]
    try:
        tokens = layout.unflatten(row)
    except VadisError:
        return
    assert layout.flatten(tokens).tolist() == row


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 19), max_size=9), st.lists(st.integers(0, 29), max_size=9), st.integers(1, 200))
def test_two_streams_there_and_back(base: list[int], phys: list[int], frames: int) -> None:
    encoded = Encoded(torch.tensor(base, dtype=torch.long), torch.tensor(phys, dtype=torch.long), frames)
    symbols = STREAMS.flatten(encoded)
    back = STREAMS.unflatten(symbols, frames)
    assert back.base_ids.tolist() == base and (back.phys_ids.tolist(), back.T) == (phys, frames)
    start, stop = STREAMS.allowed(torch.arange(len(symbols)), len(base))
    assert bool(((start <= symbols) & (symbols < stop)).all())


def test_orders_by_hand() -> None:
    tokens = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert MotionLayout(groups=3, codes=10, shared=True).flatten(tokens).tolist() == [0, 1, 2, 3, 4, 5]
    assert MotionLayout(groups=3, codes=10, order="part", shared=True).flatten(tokens).tolist() == [0, 3, 1, 4, 2, 5]
    assert MotionLayout(groups=3, codes=10).flatten(tokens).tolist() == [0, 11, 22, 3, 14, 25]
    delayed = MotionLayout("delayed", groups=3, codes=10, shared=True)
    assert delayed.size == 11 and delayed.blank == 10
    assert delayed.flatten(tokens).tolist() == [0, 10, 10, 3, 1, 10, 10, 4, 2, 10, 10, 5]


@pytest.mark.parametrize(
    ("layout", "row", "said"),
    [
        (MotionLayout(groups=3, codes=10), [0, 11], "not a whole number of steps"),
        (MotionLayout(groups=3, codes=10), [0, 1, 22], "group 1"),
        (MotionLayout(groups=2, codes=4, order="part"), [0, 5, 1, 6], "group 0"),
        (MotionLayout(codes=10), [10], "0 to 9"),
        (MotionLayout(codes=10), [], "not a whole number of steps"),
        (MotionLayout("delayed", groups=2, codes=4), [0, 8], "not a whole number of steps"),
        (MotionLayout("delayed", groups=2, codes=4), [0, 4, 8, 5], "must be blank"),
        (MotionLayout("delayed", groups=2, codes=4), [8, 8, 8, 5], "is blank where a code"),
        (MotionLayout("delayed", groups=2, codes=4), [4, 8, 8, 5], "group 0"),
        (STREAMS, [0, 21, 1], "Base comes first"),
    ],
)
def test_ill_formed_rows_say_what_is_wrong(layout: MotionLayout, row: list[int], said: str) -> None:
    with pytest.raises(VadisError, match=said):
        layout.unflatten(torch.tensor(row, dtype=torch.long), frames=8 if layout is STREAMS else None)


def test_wrong_tokens_and_layouts_are_refused(dsft: DSFTTokenizer) -> None:
    layout = MotionLayout(groups=2, codes=4)
    with pytest.raises(VadisError, match="padding"):
        layout.flatten(torch.tensor([[0, 1], [2, -1]]))
    with pytest.raises(ShapeError, match=r"\(S, 2\)"):
        layout.flatten(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match="integers"):
        layout.flatten(torch.zeros(3, 2))
    with pytest.raises(VadisError, match="at least one step"):
        layout.flatten(torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(VadisError, match="how long"):
        STREAMS.unflatten([0, 20])
    with pytest.raises(ModelError, match="two streams"):
        MotionLayout.of(dsft, kind="flat")
    with pytest.raises(ModelError, match="one stream"):
        MotionLayout.of(motion_tokenizer("vq"), kind="two_stream")
    with pytest.raises(ModelError, match="parts"):
        MotionLayout.of(motion_tokenizer("vq"), order="part")
    with pytest.raises(ModelError, match="two levels"):
        MotionLayout.of(motion_tokenizer("vq"), kind="delayed")
    cls = component_classes()["causal_tae"]
    with pytest.raises(ModelError, match="latents"):
        MotionLayout.of(cls(cls.config_class(**SMALL, latent_dim=8)))
