"""The live stream: equal to offline, deterministic, endless, and it goes on where the body was."""

import asyncio
import math

import pytest
import torch
from stream_models import Words, small_pipe

import vadis
from vadis import rotation
from vadis.errors import ModelError, VadisError
from vadis.pipelines.placing import RunningRoot
from vadis.pipelines.stream import MotionStream, MotionStreamPipeline
from vadis.representations import representation
from vadis.tokenizers import CausalTAE, CausalTAEConfig


@pytest.fixture(scope="module")
def pipe(walk) -> MotionStreamPipeline:
    return small_pipe(walk)


def take(stream: MotionStream, count: int) -> list:
    return [stream.next_frames() for _ in range(count)]


def test_streamed_equals_offline(pipe: MotionStreamPipeline) -> None:
    """Three texts and several times the model's row: the frames are those of decoding all latents at once."""
    stream = pipe.live("walk", seed=4)
    pieces = take(stream, 9)
    stream.push_text("turn")
    pieces += take(stream, 20)
    stream.push_text("sit")
    pieces += take(stream, 6)
    assert [p.text for p in pieces] == ["walk"] * 9 + ["turn"] * 20 + ["sit"] * 6
    assert [p.start for p in pieces] == list(range(0, 140, 4))
    features = torch.cat([p.features for p in pieces])
    whole = pipe.tokenizer.decode(torch.stack([p.tokens[0] for p in pieces]))
    torch.testing.assert_close(features, whole, atol=1e-5, rtol=1e-5)
    offline = pipe.representation.decode(features)
    torch.testing.assert_close(torch.cat([p.motion.root for p in pieces]), offline.root, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([p.motion.rotations for p in pieces]), offline.rotations, atol=1e-5, rtol=0)
    rows = pipe.generator.streams(1, null_text=torch.zeros(6), sampler="dpm", steps=4)
    rows.start(0, pipe.sentence("walk"), seed=4)
    latents = [rows.step()[0] for _ in range(9)]
    rows.set_text(0, pipe.sentence("turn"))
    latents += [rows.step()[0] for _ in range(20)]
    torch.testing.assert_close(torch.stack(latents), torch.stack([p.tokens[0] for p in pieces[:29]]))


def test_the_root_goes_on_over_pieces_of_any_size(walk) -> None:
    rep = representation("ms272")
    features, root = rep.encode(walk), RunningRoot()
    pieces = [root.add(part, 30.0) for part in features.split([1, 4, 20, 3, 62])]
    whole = rep.decode(features)
    torch.testing.assert_close(torch.cat([p.root for p in pieces]), whole.root, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([p.rotations for p in pieces]), whole.rotations, atol=1e-5, rtol=0)
    assert root.heading == pytest.approx(float(rotation.heading(whole.rotations[-1:, 0])), abs=1e-4)
    with pytest.raises(ModelError, match="pieces of hml263"):
        RunningRoot("hml263")


def test_a_seed_repeats_a_stream(pipe: MotionStreamPipeline) -> None:
    one, two, other = (torch.stack([p.tokens[0] for p in take(pipe.live("walk", seed=s), 5)]) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    stream = pipe.live("walk", seed=1)
    take(stream, 3)
    stream.reset(seed=1)
    with pytest.raises(VadisError, match="no text yet"):
        stream.next_frames()
    stream.push_text("walk")
    assert torch.equal(torch.stack([p.tokens[0] for p in take(stream, 5)]), one)


def test_memory_stays_the_same(pipe: MotionStreamPipeline) -> None:
    stream = pipe.live("walk", seed=0)

    def held() -> int:
        tensors = [*stream._decoder.memory.values(), stream._rows.cache.data, *stream._rows.history]
        return sum(t.numel() for t in tensors)

    take(stream, 13)
    most = held() + 13 * 4
    sizes = []
    for _ in range(60):
        stream.next_frames()
        sizes.append(held())
    assert max(sizes) <= most


def test_an_ended_text_gives_way_to_the_next(pipe: MotionStreamPipeline, monkeypatch) -> None:
    stream = pipe.live(["walk", "sit"], seed=3)
    monkeypatch.setattr(stream, "_ends", lambda latent: stream.frames >= 20)
    texts = [p.text for p in take(stream, 12)]
    assert texts == ["walk"] * 5 + ["sit"] * 7  # each lasts two latents at least; with none waiting the last goes on
    monkeypatch.setattr(stream, "_ends", lambda latent: False)
    stream.push_text("jump", queue=True)
    assert stream.next_frames().text == "sit"
    stream.push_text("wave")
    assert stream.next_frames().text == "wave"


def test_a_recorded_motion_goes_on(pipe: MotionStreamPipeline, walk) -> None:
    features = pipe.representation.encode(walk)[:40]
    stream = pipe.live("walk", seed=0, history=features)
    pieces = take(stream, 4)
    latents = torch.cat([pipe.tokenizer.encode(features), torch.stack([p.tokens[0] for p in pieces])])
    whole = pipe.representation.decode(pipe.tokenizer.decode(latents))
    torch.testing.assert_close(torch.cat([p.motion.root for p in pieces]), whole.root[40:], atol=1e-4, rtol=0)
    assert pieces[0].start == 0


def test_iterators_pause_and_go_on(pipe: MotionStreamPipeline) -> None:
    expected = [p.tokens[0] for p in take(pipe.live("walk", seed=7), 6)]
    stream, made = pipe.live("walk", seed=7), []
    for piece in stream:
        made.append(piece.tokens[0])
        if len(made) == 3:
            stream.pause()
    with pytest.raises(VadisError, match="paused"):
        stream.next_frames()
    stream.resume()
    for piece in stream:
        made.append(piece.tokens[0])
        if len(made) == 6:
            break
    assert torch.equal(torch.stack(made), torch.stack(expected))

    async def listen() -> list[torch.Tensor]:
        live, heard = pipe.live("walk", seed=7), []
        async for piece in live:
            heard.append(piece.tokens[0])
            if len(heard) == 2:
                live.pause()
                asyncio.get_running_loop().call_later(0.03, live.resume)
            if len(heard) == 4:
                return heard
        return heard

    assert torch.equal(torch.stack(asyncio.run(listen())), torch.stack(expected[:4]))


def test_a_call_makes_whole_motions(pipe: MotionStreamPipeline, tmp_path) -> None:
    out = pipe(["walk", "sit"], seconds=[1.0, 0.5], seed=5)
    assert [m.num_frames for m in out.motion] == [30, 15] and out.stopped_by == ["length", "length"]
    assert [len(row) for row in out.tokens] == [8, 4] and out.motion[1].meta["prompt"] == "sit"
    alone = pipe("sit", seconds=0.5, seed=6)
    torch.testing.assert_close(alone.features, out.features[1], atol=1e-4, rtol=1e-4)
    free = pipe("walk", seed=1)
    assert free.stopped_by == "cap" and free.motion.num_frames == 300  # no end latent is known
    pipe.save_pretrained(tmp_path / "pipe")
    again = vadis.load(tmp_path / "pipe", text_encoder=Words())
    assert isinstance(again, MotionStreamPipeline) and again.config == pipe.config
    torch.testing.assert_close(again("sit", seconds=0.5, seed=6).features, alone.features)


def test_errors_say_what_to_do(pipe: MotionStreamPipeline) -> None:
    stream = pipe.live()
    with pytest.raises(VadisError, match="no text yet: call push_text"):
        stream.next_frames()
    with pytest.raises(VadisError, match="the prompt is empty"):
        stream.push_text("  ")
    with pytest.raises(VadisError, match="1 lengths for 2 prompts"):
        pipe(["a", "b"], seconds=[1.0])
    with pytest.raises(VadisError, match="to 3600 seconds"):
        pipe("a", seconds=-1.0)
    with pytest.raises(VadisError, match="not finite|NaN"):
        pipe.live(history=torch.full((8, 272), math.nan))
    other = CausalTAE(CausalTAEConfig(width=16, latent_dim=5))
    with pytest.raises(ModelError, match="don't belong together"):
        MotionStreamPipeline(other, pipe.generator)
