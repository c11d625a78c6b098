"""A running server for tests, what its clients say and hear, and the same stream without a server."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vadis import rotation
from vadis.pipelines.stream import MotionStreamPipeline
from vadis.server import protocol
from vadis.server.limits import ServerSettings

pytest.importorskip("fastapi", reason="needs the server extra")
pytest.importorskip("uvicorn", reason="needs the server extra")
httpx = pytest.importorskip("httpx", reason="needs httpx")
client = pytest.importorskip("websockets.sync.client", reason="needs the server extra")


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


def until_frames(stream: Any, count: int) -> list[int]:
    """Numbers of the first frames of the next messages."""
    starts: list[int] = []
    while len(starts) < count:
        if isinstance(message := stream.recv(60), bytes):
            starts.append(protocol.unpack(message).start)
    return starts


def offline(pipe: MotionStreamPipeline, pieces: list[protocol.Frames], texts: list[str], seed: int) -> list[Any]:
    """The same stream without a server: texts pushed at the latents where the server's frames change theirs."""
    stream, made, known = pipe.live(seed=seed), [], 0
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
