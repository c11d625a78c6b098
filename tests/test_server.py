"""The server: real sockets on a free loopback port, a small random model behind it."""

import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stream_models import Words, small_pipe

import vadis
from vadis import rotation
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.pipelines.stream import MotionStreamPipeline
from vadis.server import protocol
from vadis.server.limits import Busy, Places, ServerSettings
from vadis.server.streams import StreamEngine

pytest.importorskip("fastapi", reason="needs the server extra")
pytest.importorskip("uvicorn", reason="needs the server extra")
httpx = pytest.importorskip("httpx", reason="needs httpx")
client = pytest.importorskip("websockets.sync.client", reason="needs the server extra")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402


@pytest.fixture(scope="module")
def pipe(walk) -> MotionStreamPipeline:
    return small_pipe(walk)


class Served:
    """A running server and its addresses."""

    def __init__(self, server: Any, port: int) -> None:
        self.server, self.port = server, port
        self.http, self.ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/stream"
        self.service = server.config.app.state.service

    def post(self, **body: Any) -> Any:
        return httpx.post(f"{self.http}/generate", json=body, timeout=60)

    def connect(self, query: str = "", **options: Any) -> Any:
        return client.connect(f"{self.ws}?{query}", compression=None, open_timeout=30, **options)

    def settled(self, streams: int = 0) -> bool:
        """Whether so many streams are left, within a minute."""
        engine = self.service.engines["tiny"]
        return eventually(lambda: self.service.streams.used == streams and len(engine.streams) == streams)


def eventually(test: Any, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(pipelines: dict[str, Any], **settings: Any) -> Iterator[Served]:
    from vadis.server.run import make_server

    port = free_port()
    server = make_server(pipelines, ServerSettings(**settings), port=port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert eventually(lambda: server.started)
    try:
        yield Served(server, port)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(pipe: MotionStreamPipeline) -> Iterator[Served]:
    with serving(
        {"tiny": pipe}, max_streams=12, max_streams_per_client=12, slow_seconds=1.0, max_seconds=5.0
    ) as server:
        yield server


def greeted(stream: Any) -> dict[str, Any]:
    """The "ready" message."""
    page = json.loads(stream.recv(30))
    assert page["type"] == "ready"
    return page


def until(stream: Any, kind: str) -> dict[str, Any]:
    """The next message of a kind; frames before it are dropped."""
    while True:
        message = stream.recv(30)
        if isinstance(message, str) and (page := json.loads(message))["type"] == kind:
            return page


def raw_stream(served: Served, query: str) -> socket.socket:
    """A WebSocket that is opened and never read; its receive buffer is small."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", served.port))
    head = f"GET /stream?{query} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    sock.sendall(f"{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    return sock


# ---- the layout


def test_the_layout_is_what_the_page_says() -> None:
    rng = np.random.default_rng(0)
    root, quaternions = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(4, 22, 4)).astype(np.float32)
    message = protocol.pack(protocol.Frames(120, 3, 30.0, 12.5, root, quaternions))
    assert len(message) == 32 + 4 * 4 * 91 and message[:4] == b"VDS1"
    assert list(np.frombuffer(message, "<u2", 4, 4)) == [32, 22, 4, 91]
    assert np.frombuffer(message, "<u4", 1, 12)[0] == 3 and np.frombuffer(message, "<u8", 1, 16)[0] == 120
    assert list(np.frombuffer(message, "<f4", 2, 24)) == [30.0, 12.5]
    assert np.array_equal(np.frombuffer(message, "<f4", 3, 32), root[0])
    back = protocol.unpack(message)
    assert (back.start, back.text, back.fps, back.ms) == (120, 3, 30.0, 12.5)
    assert np.array_equal(back.root, root) and np.array_equal(back.quaternions, quaternions)
    for wrong in (b"", message[:-1], b"XXXX" + message[4:], message + b"\0"):
        with pytest.raises(ShapeError):
            protocol.unpack(wrong)


def test_messages_are_read_strictly() -> None:
    order = protocol.read_message('{"type": "text", "text": "walk"}')
    assert isinstance(order, protocol.SetText) and order.text == "walk" and not order.queue
    for wrong in ("", "[]", "{", '{"type": "dance"}', '{"type": "text"}', '{"type": "text", "text": " "}',
                  '{"type": "pause", "now": 1}', '{"type": "text", "text": "\\ud800"}', '{"type": "text", "text": 3}',
                  json.dumps({"type": "text", "text": "a" * 2001})):  # fmt: skip
        with pytest.raises(VadisError, match="A message is a JSON object"):
            protocol.read_message(wrong)


# ---- HTTP


def test_pages(served: Served) -> None:
    models = httpx.get(f"{served.http}/models").json()
    assert [m["name"] for m in models] == ["tiny"] and models[0]["streams"] and models[0]["frames_per_token"] == 4
    health = httpx.get(f"{served.http}/health")
    assert (
        health.status_code == 200 and health.json()["status"] == "ok" and health.json()["version"] == vadis.__version__
    )
    page = httpx.get(f"{served.http}/metrics").text
    assert 'vadis_requests_total{method="GET",path="/models",status="200"}' in page
    assert 'vadis_latent_seconds_bucket{le="+Inf"}' in page and "process_resident_memory_bytes" in page
    schema = httpx.get(f"{served.http}/openapi.json").json()
    assert set(schema["paths"]) == {"/generate", "/models", "/health", "/metrics"}
    seconds = schema["components"]["schemas"]["GenerateRequest"]["properties"]["seconds"]["anyOf"][0]
    assert (seconds["minimum"], seconds["maximum"]) == (0.2, 5.0)
    assert httpx.get(f"{served.http}/docs").status_code == 200
    assert httpx.get(f"{served.http}/nothing").json()["error"]["message"] == "Not Found"


def test_generate_gives_what_the_pipeline_gives(served: Served, pipe: MotionStreamPipeline, tmp_path) -> None:
    expected = pipe("walk", seconds=1.0, seed=3).motion
    answer = served.post(prompt="walk", seconds=1.0, seed=3)
    page = answer.json()
    assert answer.status_code == 200 and page["num_frames"] == 30 and page["stopped_by"] == "length"
    np.testing.assert_allclose(page["root"], expected.root.numpy(), atol=1e-6)
    np.testing.assert_allclose(page["rotations"], rotation.to_quat_wxyz(expected.rotations).numpy(), atol=1e-6)
    assert page["joints"][0] == "pelvis" and page["parents"][0] == -1 and len(page["offsets"]) == 22
    frames = protocol.unpack(served.post(prompt="walk", seconds=1.0, seed=3, format="frames").content)
    np.testing.assert_allclose(frames.root, expected.root.numpy(), atol=1e-6)
    for suffix in ("bvh", "npz"):
        path = tmp_path / f"walk.{suffix}"
        path.write_bytes(served.post(prompt="walk", seconds=1.0, seed=3, format=suffix).content)
        torch.testing.assert_close(vadis.load_motion(path).positions, expected.positions, atol=1e-3, rtol=0)
    drawn = served.post(prompt="walk", seconds=0.5).json()
    assert served.post(prompt="walk", seconds=0.5, seed=drawn["seed"]).json()["root"] == drawn["root"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": "  "}, "prompt"), ({"prompt": 5}, "prompt"),
        ({"prompt": "a" * 2001}, "prompt"), ({"prompt": "walk", "speed": 2}, "speed"),
        ({"prompt": "walk", "seconds": 0}, "seconds"), ({"prompt": "walk", "seconds": 5.1}, "seconds"),
        ({"prompt": "walk", "seconds": "x"}, "seconds"), ({"prompt": "walk", "seed": -1}, "seed"),
        ({"prompt": "walk", "model": "../etc"}, "no model"), ({"prompt": "walk", "format": "exe"}, "format"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(served: Served, body: dict[str, Any], word: str) -> None:
    answer = served.post(**body)
    assert answer.status_code == 422 and word in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422), (b"", 422), (b"[]", 422), (b'{"prompt": "\\ud800"}', 422), (b'{"prompt": "walk", "seconds": NaN}', 422),
        (b'{"prompt": "walk", "seconds": 1e999}', 422), (b"\xff\xfe", 400), (b"[" * 30000, 422),
        (json.dumps({"prompt": "walk " * 200_000}).encode(), 413),
    ],
)  # fmt: skip
def test_malformed_bodies(served: Served, content: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{served.http}/generate", content=content, headers=headers, timeout=60)
    assert answer.json()["error"]["message"]
    assert answer.status_code == status or {answer.status_code, status} == {400, 422}


def test_a_body_without_a_length_is_measured_too(served: Served) -> None:
    answer = httpx.post(f"{served.http}/generate", content=(b"x" * 1000 for _ in range(100)), timeout=60)
    assert answer.status_code == 413


def test_methods_and_garbage(served: Served) -> None:
    answer = httpx.get(f"{served.http}/generate")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in sock.recv(200)
    assert httpx.get(f"{served.http}/health").json()["status"] == "ok"


@pytest.mark.slow
def test_the_description_holds(served: Served) -> None:
    """schemathesis makes requests of all kinds out of the OpenAPI description and checks every answer."""
    pytest.importorskip("schemathesis", reason="needs schemathesis")
    program = Path(sys.executable).parent / "schemathesis"
    words = ["run", f"{served.http}/openapi.json", "--checks", "all", "-n", "25", "--no-color", "--phases"]
    done = subprocess.run([program, *words, "coverage,fuzzing"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 selected / 4 total" in done.stdout


# ---- streams


def offline(pipe: MotionStreamPipeline, pieces: list[protocol.Frames], texts: list[str], seed: int) -> list[Any]:
    """The same stream without a server: texts pushed at the latents where the server's frames change theirs."""
    stream, made, known = pipe.stream(seed=seed), [], 0
    for piece in pieces:
        if piece.text != known:
            known = piece.text
            stream.push_text(texts[known - 1])
        made.append(stream.next_frames())
    return made


def check(pieces: list[protocol.Frames], expected: list[Any]) -> None:
    assert [p.start for p in pieces] == [e.start for e in expected]
    for piece, frames in zip(pieces, expected, strict=True):
        np.testing.assert_allclose(piece.root, frames.motion.root.numpy(), atol=1e-5)
        turned = rotation.to_quat_wxyz(frames.motion.rotations).numpy()
        same = np.abs((piece.quaternions * turned).sum(-1))  # q and -q turn alike
        np.testing.assert_allclose(same, 1.0, atol=1e-5)


def frames_of(message: str | bytes) -> protocol.Frames | None:
    """The frames in a message of either form."""
    if isinstance(message, bytes):
        return protocol.unpack(message)
    page = json.loads(message)
    if page["type"] != "frames":
        return None
    arrays = (np.array(page[name], np.float32) for name in ("root", "rotations"))
    return protocol.Frames(page["start"], page["text"], page["fps"], page["ms"], *arrays)


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


def until_frames(stream: Any, count: int) -> list[int]:
    """Numbers of the first frames of the next messages."""
    starts: list[int] = []
    while len(starts) < count:
        if isinstance(message := stream.recv(60), bytes):
            starts.append(protocol.unpack(message).start)
    return starts


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
    ending = MotionStreamPipeline(pipe.tokenizer, pipe.generator, Words(), replace(pipe.config, stop_threshold=1e9))
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
    live = ending.stream(["walk", "sit"], seed=0)
    expected = [live.next_frames() for _ in range(8)]
    assert (
        [piece.text for piece in got] == [{"walk": 1, "sit": 2}[e.text] for e in expected] == [1, 1, 2, 2, 2, 2, 2, 2]
    )
    check(got, expected)


def test_a_model_that_fails_is_told(pipe: MotionStreamPipeline, monkeypatch) -> None:
    with serving({"tiny": pipe}) as served, served.connect("pace=fast&text=walk") as stream:
        assert until_frames(stream, 2) == [0, 4]
        rows = served.service.engines["tiny"].rows

        def step(streams: Any) -> Any:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(rows, "step", step)
        assert "restart the server" in until(stream, "error")["error"]["message"]
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(30)
        assert closed.value.rcvd.code == protocol.CLOSE_ERROR
        health = httpx.get(f"{served.http}/health")
        assert health.status_code == 503 and health.json()["status"] == "failed"
        with pytest.raises(InvalidStatus) as refused:
            served.connect()
        assert refused.value.response.status_code == 503


# ---- limits, token, end


def test_places() -> None:
    places = Places("streams", 3, 2)
    for client_name in ("a", "a", "b"):
        places.take(client_name)
    with pytest.raises(Busy, match="you have 2 streams") as busy:
        places.take("a")
    assert busy.value.status == 429
    with pytest.raises(Busy, match="all 3 streams") as busy:
        places.take("c")
    assert busy.value.status == 503
    places.give("b")
    places.take("c")
    assert places.used == 3 and set(places.by_client) == {"a", "c"}


class Gate:
    """A pipeline whose calls wait until they may go on."""

    def __init__(self, pipe: MotionStreamPipeline) -> None:
        self.pipe, self.entered, self.open = pipe, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.entered.set()
        assert self.open.wait(60)
        return self.pipe(*args, **options)


def _first_bytes(sock: socket.socket) -> bytes:
    """What the server says, within a moment; nothing from a connection that it keeps."""
    sock.settimeout(0.5)
    try:
        return sock.recv(1000)
    except TimeoutError:
        return b""


def test_limits(pipe: MotionStreamPipeline) -> None:
    gate = Gate(pipe)
    limits = dict(max_streams_per_client=2, max_requests=4, max_requests_per_client=1, max_connections=6)
    with serving({"tiny": gate}, **limits) as served:
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(served.post(prompt="walk", seconds=0.5)))
        thread.start()
        assert gate.entered.wait(60)
        second = served.post(prompt="walk", seconds=0.5)
        assert second.status_code == 429 and second.headers["retry-after"]
        gate.open.set()
        thread.join(60)
        assert first[0].status_code == 200
        with served.connect("text=walk") as one, served.connect():
            with pytest.raises(InvalidStatus) as refused:
                served.connect()
            assert refused.value.response.status_code == 429
            assert until_frames(one, 3) == [0, 4, 8]
            idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(40)]
            time.sleep(1.0)
            assert httpx.get(f"{served.http}/health", timeout=30).status_code == 200  # who asks gets in
            answers = [_first_bytes(sock) for sock in idle]
            assert sum(b"503 Service Unavailable" in answer for answer in answers) >= 34
            assert until_frames(one, 3) == [12, 16, 20]
            for sock in idle:
                sock.close()
        assert served.settled()
        assert eventually(lambda: httpx.get(f"{served.http}/health").status_code == 200)


def test_token_host_and_origin(pipe: MotionStreamPipeline) -> None:
    with serving({"tiny": pipe}, token="secret", origins=("https://example.org",)) as served:
        assert httpx.get(f"{served.http}/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            answer = httpx.get(f"{served.http}/models", headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        good = {"authorization": "Bearer secret"}
        assert httpx.get(f"{served.http}/models", headers=good).status_code == 200
        with pytest.raises(InvalidStatus) as refused:
            served.connect("token=wrong")
        assert refused.value.response.status_code == 401
        with served.connect("token=secret") as stream, served.connect(additional_headers=good) as other:
            assert greeted(stream)["model"] == greeted(other)["model"] == "tiny"
        assert httpx.get(f"{served.http}/models", headers=good | {"host": "evil.example"}).status_code == 403
        assert httpx.get(f"{served.http}/models", headers=good | {"host": "[" * 9}).status_code in (400, 403)
        with pytest.raises(InvalidStatus) as refused:
            served.connect("token=secret", origin="https://evil.example")
        assert refused.value.response.status_code == 403
        with served.connect("token=secret", origin="https://example.org") as stream:
            greeted(stream)
        with served.connect("token=secret", origin=served.http) as stream:
            greeted(stream)


def test_shutdown_finishes_what_is_in_work(pipe: MotionStreamPipeline) -> None:
    gate = Gate(pipe)
    with serving({"tiny": gate}) as served:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(served.post(prompt="walk", seconds=0.5)))
        thread.start()
        assert gate.entered.wait(60)
        with served.connect("text=walk") as stream:
            assert until_frames(stream, 2) == [0, 4]
            served.server.should_exit = True
            with pytest.raises(ConnectionClosed) as closed:
                until_frames(stream, 10_000)
            assert closed.value.rcvd.code == protocol.CLOSE_RESTART
        gate.open.set()
        thread.join(60)
        assert answers[0].status_code == 200 and answers[0].json()["num_frames"] == 15
        engine = served.service.engines["tiny"]
        assert eventually(lambda: not engine.alive)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.http}/health")


def test_what_can_not_be_served_is_said(pipe: MotionStreamPipeline) -> None:
    from vadis.server.models import Models

    with pytest.raises(VadisError, match="nothing to serve"):
        Models({})
    with pytest.raises(ModelError, match="one part of a model"):
        Models({"part": pipe.tokenizer})
    with pytest.raises(ModelError, match="whole motions only"):
        StreamEngine(pipe.tokenizer)
