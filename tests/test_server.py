"""The server over HTTP, its limits, its end: real sockets on a free loopback port, a small random model behind it."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers import Served, eventually, greeted, httpx, serving, until_frames
from stream_models import small_pipe
from websockets.exceptions import ConnectionClosed, InvalidStatus

import vadis
from vadis import rotation
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.pipelines.stream import MotionStreamPipeline
from vadis.server import protocol
from vadis.server.limits import Busy, Places
from vadis.server.streams import StreamEngine


@pytest.fixture(scope="module")
def pipe(walk) -> MotionStreamPipeline:
    return small_pipe(walk)


@pytest.fixture(scope="module")
def served(pipe: MotionStreamPipeline) -> Iterator[Served]:
    with serving({"tiny": pipe}, max_seconds=5.0) as server:
        yield server


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
    docs = httpx.get(f"{served.http}/docs")
    assert docs.status_code == 200 and "default-src 'none'" in docs.headers["content-security-policy"]
    assert "http://" not in docs.text and "https://" not in docs.text
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
    words = [
        "run",
        f"{served.http}/openapi.json",
        "--checks",
        "all",
        "-n",
        "25",
        "--no-color",
        "--request-timeout",
        "60",
    ]
    done = subprocess.run(
        [program, *words, "--phases", "coverage,fuzzing"], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 selected / 4 total" in done.stdout


# ---- limits, token, end


def test_places() -> None:
    places = Places("streams", 3, 2)
    for client_name in ("a", "a", "b"):
        places.take(client_name)
    with pytest.raises(Busy, match="too many streams in progress: 2 per client") as busy:
        places.take("a")
    assert busy.value.status == 429
    with pytest.raises(Busy, match="too many streams in progress: 3 in all") as busy:
        places.take("c")
    assert busy.value.status == 503
    places.give("b")
    places.take("c")
    assert places.used == 3 and set(places.by_client) == {"a", "c"}


class Gate(MotionStreamPipeline):
    """A pipeline whose calls wait until they may go on."""

    def __init__(self, pipe: MotionStreamPipeline) -> None:
        super().__init__(pipe.tokenizer, pipe.generator, text_encoder=pipe.text_encoder, config=pipe.config)
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, prompts: Any, **options: Any) -> Any:
        self.entered.set()
        assert self.open.wait(60)
        return super().__call__(prompts, **options)


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


def test_a_request_that_a_busy_server_has_not_read_yet_keeps_its_place(pipe: MotionStreamPipeline) -> None:
    with serving({"tiny": pipe}, max_connections=4) as served:
        loop, address = served.server.servers[0].get_loop(), ("127.0.0.1", served.port)
        first = [socket.create_connection(address) for _ in range(4)]
        time.sleep(0.7)  # long enough to have to give way
        loop.call_soon_threadsafe(time.sleep, 0.5)
        time.sleep(0.1)
        for sock in first[:2]:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        later = [socket.create_connection(address) for _ in range(4)]
        for sock in first[:2]:
            sock.settimeout(30)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK")
        assert all(b"503 Service Unavailable" in _first_bytes(sock) for sock in first[2:])
        for sock in first + later:
            sock.close()


def test_token_host_and_origin(pipe: MotionStreamPipeline) -> None:
    with serving({"tiny": pipe}, token="secret", origins=("https://example.org",)) as served:
        for path in ("/health", "/docs"):
            assert httpx.get(f"{served.http}{path}").status_code == 200
        assert httpx.get(f"{served.http}/health").json() == {"status": "ok"}
        health = httpx.get(f"{served.http}/health", headers={"authorization": "Bearer secret"}).json()
        assert health["models"] == ["tiny"] and health["version"] == vadis.__version__
        for path in ("/openapi.json", "/metrics", "/nothing"):
            assert httpx.get(f"{served.http}{path}").status_code == 401
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            answer = httpx.get(f"{served.http}/models", headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        good = {"authorization": "Bearer secret"}
        for path in ("/models", "/openapi.json"):
            assert httpx.get(f"{served.http}{path}", headers=good).status_code == 200
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
    with pytest.raises(ModelError, match="can't follow a text that changes while the body moves: use one that can"):
        StreamEngine(vadis.load("vadis-mini"))


@pytest.mark.slow
def test_a_model_of_whole_motions_says_which_ones_stream(pipe: MotionStreamPipeline) -> None:
    mini = vadis.load("vadis-mini")
    for others, words in (
        ({"tiny": pipe}, "of models that stream there are: tiny"),
        ({}, "start the server with --model"),
    ):
        with serving({"vadis-mini": mini, **others}) as served:
            assert httpx.get(f"{served.http}/models").json()[0]["streams"] is False
            with pytest.raises(InvalidStatus) as refused:
                served.connect("model=vadis-mini&text=walk")
            message = json.loads(refused.value.response.body)["error"]["message"]
            assert refused.value.response.status_code == 422
            assert "vadis-mini makes whole motions only: ask POST /generate" in message and words in message.lower()
            if not others:
                with pytest.raises(InvalidStatus) as refused:
                    served.connect("text=walk")
                assert "no streaming model here; start the server" in refused.value.response.body.decode()
