"""Live streams over WebSocket, and what happens to the others when one is slow, killed or fails."""

import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import (
    Served,
    check,
    eventually,
    frames_of,
    greeted,
    httpx,
    offline,
    raw_stream,
    serving,
    until,
    until_frames,
)
from stream_models import Words, small_pipe

from vadis.errors import ModelError
from vadis.pipelines.stream import MotionStreamPipeline
from vadis.server import protocol
from vadis.server.streams import StreamEngine

pytest.importorskip("websockets", reason="needs the server extra")
from websockets.exceptions import ConnectionClosed, InvalidStatus


@pytest.fixture(scope="module")
def pipe(walk) -> MotionStreamPipeline:
    return small_pipe(walk)


@pytest.fixture(scope="module")
def served(pipe: MotionStreamPipeline) -> Iterator[Served]:
    with serving({"tiny": pipe}, max_streams=12, max_streams_per_client=12, slow_seconds=1.0) as server:
        yield server


@pytest.mark.parametrize("form", ["binary", "json"])
def test_a_stream_equals_the_offline_stream(served: Served, pipe: MotionStreamPipeline, form: str) -> None:
    texts = ["walk", "turn around", "sit"]
    with served.connect(f"format={form}&pace=fast&seed=11&text=walk") as stream:
        ready = greeted(stream)
        assert (ready["fps"], ready["frames_per_message"], len(ready["joints"])) == (30.0, 4, 22)
        pieces: list[protocol.Frames] = []
        asked = 1
        while not pieces or pieces[-1].text < 3 or pieces[-1].start < 160:
            message = stream.recv(30)
            assert isinstance(message, bytes) == (form == "binary") or json.loads(message)["type"] == "text"
            if (piece := frames_of(message)) is None:
                continue
            pieces.append(piece)
            if len(pieces) > 8 * asked and asked < 3:
                stream.send(json.dumps({"type": "text", "text": texts[asked]}))
                asked += 1
    assert [t for t, _ in itertools.groupby(p.text for p in pieces)] == [1, 2, 3]
    check(pieces, offline(pipe, pieces, texts, seed=11))


def test_the_documented_client_works(served: Served, tmp_path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    block = next(b for b in page.split("```python")[1:] if "struct.unpack_from" in b).partition("```")[0]
    script = tmp_path / "client.py"
    script.write_text(block.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}").replace("seed=0", "seed=0&pace=fast"))
    with subprocess.Popen([sys.executable, "-u", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = list(itertools.takewhile(lambda line: "text 2" not in line, process.stdout))
        finally:
            process.kill()
    assert any(line.startswith("  4.00 s  text 1  pelvis at ") for line in lines)
    assert any("'number': 2, 'text': 'a person sits down'" in line for line in lines)
    assert served.settled()


def test_streams_in_one_batch_do_not_feel_each_other(served: Served, pipe: MotionStreamPipeline) -> None:
    results: dict[int, list[protocol.Frames]] = {}

    def take(k: int) -> None:
        with served.connect(f"pace={'fast' if k % 2 else 'realtime'}&seed={k}&text=walk+{k}") as stream:
            messages = (stream.recv(60) for _ in range(1000))
            results[k] = []
            while len(results[k]) < 8:
                if isinstance(message := next(messages), bytes):
                    results[k].append(protocol.unpack(message))

    threads = [threading.Thread(target=take, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for k in range(6):
        check(results[k], offline(pipe, results[k], [f"walk {k}"], seed=k))
    assert served.settled()


def test_pause_resume_stop(served: Served) -> None:
    with served.connect("pace=fast&seed=1") as stream:
        greeted(stream)
        stream.send('{"type": "text", "text": "walk"}')
        assert until(stream, "text")["number"] == 1
        first = protocol.unpack(stream.recv(30))
        stream.send('{"type": "pause"}')
        live = served.service.engines["tiny"].streams[0]
        last = first
        while not (live.paused and live.waiting == 0):  # what was made before the pause arrives
            try:
                last = protocol.unpack(stream.recv(0.3))
            except TimeoutError:
                continue
        with pytest.raises(TimeoutError):
            while True:
                last = protocol.unpack(stream.recv(0.5))
        stream.send('{"type": "resume"}')
        assert protocol.unpack(stream.recv(30)).start == last.start + 4
        stream.send('{"type": "stop"}')
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                stream.recv(30)
        assert closed.value.rcvd.code == 1000


def test_malformed_messages_are_answered_and_then_enough(served: Served) -> None:
    with served.connect("pace=realtime&text=walk") as other, served.connect() as stream:
        greeted(stream)
        for message in ("{", '{"type": "dance"}', b"\0\1", '{"type": "text", "text": ""}'):
            stream.send(message)
            assert until(stream, "error")["error"]["code"] == "message"
        stream.send('{"type": "text", "text": "walk"}')
        assert until(stream, "text")["text"] == "walk"
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(30):
                stream.send("nonsense")
            while True:
                stream.recv(30)
        assert closed.value.rcvd.code == protocol.CLOSE_PROTOCOL
        with served.connect() as large:
            greeted(large)
            with pytest.raises(ConnectionClosed) as closed:
                large.send(json.dumps({"type": "text", "text": "walk " * 200_000}))
                large.recv(30)
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        starts = [protocol.unpack(m).start for m in (other.recv(30) for _ in range(12)) if isinstance(m, bytes)]
        assert starts == list(range(0, 4 * len(starts), 4)) and len(starts) >= 10  # undisturbed
    assert served.settled()


def test_a_handshake_that_does_not_fit_is_refused_with_a_reason(served: Served) -> None:
    for query, word in (("model=other", "other"), ("format=xml", "format"), ("seed=-1", "seed"), ("text=+", "text")):
        with pytest.raises(InvalidStatus) as refused:
            served.connect(query)
        assert refused.value.response.status_code == 422
        assert word in json.loads(refused.value.response.body)["error"]["message"]


def test_a_slow_reader_is_dropped_and_nobody_else(served: Served) -> None:
    slow = raw_stream(served, "pace=fast&format=json&text=walk")
    assert eventually(lambda: served.service.streams.used == 1)
    with served.connect("pace=realtime&text=walk") as stream:
        greeted(stream)
        closed = "vadis_streams_closed_total"
        before = served.service.metrics.value(closed, reason=str(protocol.CLOSE_SLOW))
        engine = served.service.engines["tiny"]
        assert eventually(lambda: served.service.metrics.value(closed, reason=str(protocol.CLOSE_SLOW)) > before)
        assert all(s.waiting <= engine.ahead for s in engine.streams)
        assert until_frames(stream, 10) == list(range(0, 40, 4))
    slow.close()
    assert served.settled()


def test_killed_clients_leave_nothing_behind(served: Served) -> None:
    for _ in range(5):
        sock = raw_stream(served, "pace=fast&text=walk")
        sock.recv(100)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset instead of a farewell
        sock.close()
    assert served.settled()
    engine = served.service.engines["tiny"]
    assert sorted(engine.rows.free) == list(range(12)) and engine.rows.latents.running == []


# ---- the engine alone


def test_the_engine_stops_for_a_reader_that_does_not_take(pipe: MotionStreamPipeline) -> None:
    engine = StreamEngine(pipe, rows=2, ahead=3)
    try:
        got: list[protocol.Frames] = []
        stream = engine.open(got.append, seed=0, pace="fast")
        stream.push(1, pipe.sentence("walk"))
        assert eventually(lambda: len(got) == 3)
        time.sleep(0.2)
        assert len(got) == 3 and stream.waiting == 3
        stream.taken()
        assert eventually(lambda: len(got) == 4)
        waiting = [engine.open(got.append, pace="fast") for _ in range(2)]
        for other in waiting:
            other.push(1, pipe.sentence("sit"))
        assert eventually(lambda: sum(o.row is not None for o in waiting) == 1)  # two rows: one of them waits
        stream.close()
        assert eventually(lambda: all(o.waiting == 3 for o in waiting))
    finally:
        engine.stop()
    with pytest.raises(ModelError, match="stopping"):
        engine.open(got.append)


def test_a_queued_text_waits_for_the_end(pipe: MotionStreamPipeline, monkeypatch) -> None:
    """With an end latent that everything is near to, each text lasts `min_latents`, in the engine as offline."""
    monkeypatch.setitem(pipe.generator._buffers, "end_latent", torch.zeros(4))
    ending = MotionStreamPipeline(
        pipe.tokenizer, pipe.generator, text_encoder=Words(), config=replace(pipe.config, stop_threshold=1e9)
    )
    engine = StreamEngine(ending, rows=1, ahead=8)
    try:
        got: list[protocol.Frames] = []
        stream = engine.open(got.append, seed=0, pace="fast")
        with engine.changed:  # both are there before the first latent
            stream.push(1, pipe.sentence("walk"))
            stream.push(2, pipe.sentence("sit"), queue=True)
        assert eventually(lambda: len(got) == 8)
    finally:
        engine.stop()
    live = ending.live(["walk", "sit"], seed=0)
    expected = [live.next_frames() for _ in range(8)]
    assert (
        [piece.text for piece in got] == [{"walk": 1, "sit": 2}[e.text] for e in expected] == [1, 1, 2, 2, 2, 2, 2, 2]
    )
    check(got, expected)


# ---- failures


def test_a_text_that_the_model_can_not_read_ends_its_own_stream_only(pipe: MotionStreamPipeline) -> None:
    """A sentence encoder that fails, or gives vectors of another size, at some texts."""

    class Moody(Words):
        def sentence(self, text: str) -> torch.Tensor:
            if text == "fail":
                raise MemoryError("no room for this text")
            return super().sentence(text)[:, : 3 if text == "short" else 6]

    moody = MotionStreamPipeline(pipe.tokenizer, pipe.generator, text_encoder=Moody(), config=pipe.config)
    with serving({"tiny": moody}) as served, served.connect("pace=fast&text=walk&seed=5") as good:
        pieces = take(good, 3)
        for text, later in itertools.product(("fail", "short"), (False, True)):
            with served.connect("pace=fast" + ("" if later else f"&text={text}")) as bad:
                if later:
                    bad.send('{"type": "text", "text": "walk"}')
                    take(bad, 2)
                    bad.send(json.dumps({"type": "text", "text": text}))
                said = until(bad, "error")["error"]["message"]
                assert ("MemoryError" if text == "fail" else "has 6 numbers") in said
                assert close_code(bad) == protocol.CLOSE_ERROR
            pieces += take(good, 3)
        check(pieces, offline(pipe, pieces, ["walk"], seed=5))
        assert httpx.get(f"{served.http}/health").status_code == 200
        assert served.settled(streams=1)


def test_a_stream_that_fails_in_a_batch_leaves_the_others_as_they_were(pipe: MotionStreamPipeline) -> None:
    """The history of one row is spoilt, so that the real model can't read the batch."""
    engine = StreamEngine(pipe, rows=3, ahead=4)
    try:
        got: list[list[Any]] = [[], [], []]
        streams = [engine.open(got[k].append, seed=k, pace="fast") for k in range(3)]
        for stream in streams:
            stream.push(1, pipe.sentence("walk"))
        assert eventually(lambda: all(len(items) == 4 for items in got))
        with engine.changed:  # all wait for their readers: the worker rests
            engine.rows.latents.history[streams[1].row] = torch.zeros(3, 9)
            engine.rows.latents._read[streams[1].row] = 0
            for stream in streams:
                stream.taken()
        assert eventually(lambda: all(len(items) == 5 for items in got))
        assert "this stream failed" in str(got[1][-1])
        for stream in streams[::2]:
            for _ in range(4):
                stream.taken()
        assert eventually(lambda: len(got[0]) >= 8 and len(got[2]) >= 8)
        for k in (0, 2):
            check(got[k][:8], offline(pipe, got[k][:8], ["walk"], seed=k))
        assert engine.alive and eventually(lambda: len(engine.rows.free) == 1)
    finally:
        engine.stop()


def test_a_model_that_fails_is_told_and_comes_back(pipe: MotionStreamPipeline, walk) -> None:
    broken = small_pipe(walk)  # its own weights: they are spoilt for a while
    weight = broken.generator.out_proj.weight
    with serving({"tiny": broken, "other": pipe}) as served:
        with (
            served.connect("model=tiny&pace=fast&text=walk") as stream,
            served.connect("model=other&text=walk") as other,
        ):
            take(stream, 2)
            good, weight.data = weight.data, torch.zeros(3, 3)
            assert "tried again" in until(stream, "error")["error"]["message"]
            assert close_code(stream) == protocol.CLOSE_ERROR
            assert eventually(lambda: httpx.get(f"{served.http}/health").status_code == 503)
            with pytest.raises(InvalidStatus) as refused:
                served.connect("model=tiny")
            assert refused.value.response.status_code == 503 and "retry-after" in refused.value.response.headers
            assert served.post(prompt="walk", seconds=0.5, model="tiny").status_code == 500
            assert served.post(prompt="walk", seconds=0.5, model="other").status_code == 200
            take(other, 2)
            weight.data = good
            assert eventually(lambda: httpx.get(f"{served.http}/health").status_code == 200)
        assert served.service.metrics.value("vadis_failures_total", what="model") == 1
        with served.connect("model=tiny&pace=fast&text=walk&seed=3") as stream:
            pieces = take(stream, 4)
        check(pieces, offline(broken, pieces, ["walk"], seed=3))
        assert served.post(prompt="walk", seconds=0.5, model="tiny").status_code == 200


def take(stream: Any, count: int) -> list[protocol.Frames]:
    """The frames of the next messages."""
    pieces: list[protocol.Frames] = []
    while len(pieces) < count:
        if isinstance(message := stream.recv(60), bytes):
            pieces.append(protocol.unpack(message))
    return pieces


def close_code(stream: Any) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            stream.recv(30)
    return closed.value.rcvd.code
