"""Clients of the server that leave, that stand behind a proxy, and whose requests can be read in two ways."""

import json
import socket
import threading
from typing import Any

import pytest
from servers import Served, eventually, greeted, httpx, serving
from stream_models import small_pipe

from vadis.cancel import Cancelled, stop_if_cancelled
from vadis.errors import VadisError
from vadis.pipelines.stream import MotionStreamPipeline
from vadis.server.proxies import Proxies


@pytest.fixture(scope="module")
def pipe(walk) -> MotionStreamPipeline:
    return small_pipe(walk)


class Endless(MotionStreamPipeline):
    """A pipeline whose calls go on until they are cancelled when asked to."""

    def __init__(self, pipe: MotionStreamPipeline) -> None:
        super().__init__(pipe.tokenizer, pipe.generator, text_encoder=pipe.text_encoder, config=pipe.config)
        self.working, self.stopped = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, prompts: Any, **options: Any) -> Any:
        if prompts != "go on":
            return super().__call__(prompts, **options)
        self.working.release()
        try:
            while True:
                stop_if_cancelled()
                threading.Event().wait(0.005)
        except Cancelled:
            self.stopped.release()
            raise


def begin(served: Served, **body: Any) -> socket.socket:
    """A request whose answer nobody has read yet."""
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    content = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    sock.sendall(head.encode() + content)
    return sock


def test_a_client_that_leaves_frees_its_worker(pipe: MotionStreamPipeline) -> None:
    endless = Endless(pipe)
    with serving({"tiny": endless}, max_requests=3) as served:
        places, metrics = served.service.requests, served.service.metrics
        working = begin(served, prompt="go on")
        assert endless.working.acquire(timeout=60)
        waiting = [begin(served, prompt="go on") for _ in range(2)]
        assert eventually(lambda: places.used == 3)
        assert served.post(prompt="walk", seconds=0.5).status_code == 503
        waiting[0].close()  # before its turn has come: nothing is ever made for it
        assert eventually(lambda: places.used == 2 and metrics.value("vadis_cancelled_total") == 1)
        assert not endless.stopped.acquire(blocking=False)
        working.close()
        assert endless.stopped.acquire(timeout=60)
        assert endless.working.acquire(timeout=60)  # the next one's turn
        waiting[1].close()
        assert endless.stopped.acquire(timeout=60)
        assert eventually(lambda: places.used == 0)
        assert metrics.value("vadis_cancelled_total") == 3
        assert served.post(prompt="walk", seconds=0.5).json()["num_frames"] == 15
        assert not endless.working.acquire(blocking=False)


def test_who_stays_gets_the_answer(pipe: MotionStreamPipeline) -> None:
    """Two requests on one connection, the second sent before the first is answered."""
    with serving({"tiny": pipe}) as served, begin(served, prompt="walk", seconds=0.5) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while more := sock.recv(65536):
            answer += more
        assert answer.count(b"HTTP/1.1 200 OK") == 2 and b'"num_frames":15' in answer
        assert served.service.metrics.value("vadis_cancelled_total") == 0


def test_the_end_of_the_servers_patience_stops_the_work(pipe: MotionStreamPipeline) -> None:
    endless = Endless(pipe)
    with serving({"tiny": endless}) as served:
        served.server.config.timeout_graceful_shutdown = 1
        sock = begin(served, prompt="go on")
        assert endless.working.acquire(timeout=60)
        served.server.should_exit = True
        assert endless.stopped.acquire(timeout=60)
        sock.close()


def test_a_stream_that_leaves_is_made_no_further(pipe: MotionStreamPipeline) -> None:
    with serving({"tiny": pipe}) as served:
        stream = served.connect("text=walk&pace=fast")
        greeted(stream)
        stream.socket.close()  # without a farewell
        assert served.settled()
        made = served.service.metrics.value("vadis_latents_total")
        with served.connect() as other:
            greeted(other)
        assert served.settled() and served.service.metrics.value("vadis_latents_total") == made


# ---- behind a proxy


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("203.0.113.9", {"x-forwarded-for": "198.51.100.7"}, "203.0.113.9"),  # no proxy of ours
        ("127.0.0.1", {}, "127.0.0.1"),
        ("127.0.0.1", {"x-forwarded-for": "198.51.100.7"}, "198.51.100.7"),
        ("::1", {"x-forwarded-for": "198.51.100.7"}, "198.51.100.7"),
        ("10.0.0.5", {"x-forwarded-for": "198.51.100.7"}, "198.51.100.7"),
        ("10.0.0.6", {"x-forwarded-for": "198.51.100.7"}, "10.0.0.6"),
        ("127.0.0.1", {"x-forwarded-for": "1.1.1.1, 198.51.100.7"}, "198.51.100.7"),  # 1.1.1.1 is what the client wrote
        ("127.0.0.1", {"x-forwarded-for": "1.1.1.1, 198.51.100.7, 10.0.0.5"}, "198.51.100.7"),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.5, 127.0.0.1"}, "10.0.0.5"),
        ("127.0.0.1", {"x-forwarded-for": "1.1.1.1, nonsense, 10.0.0.5"}, "10.0.0.5"),
        ("127.0.0.1", {"x-forwarded-for": "unknown"}, "127.0.0.1"),
        ("127.0.0.1", {"x-forwarded-for": ""}, "127.0.0.1"),
        ("127.0.0.1", {"x-forwarded-for": "198.51.100.7:4711"}, "198.51.100.7"),
        ("127.0.0.1", {"x-forwarded-for": "[2001:DB8::1]:4711"}, "2001:db8::1"),
        ("127.0.0.1", {"x-forwarded-for": "2001:db8::1"}, "2001:db8::1"),
        ("::ffff:127.0.0.1", {"x-forwarded-for": "::ffff:198.51.100.7"}, "198.51.100.7"),
        ("127.0.0.1", {"forwarded": 'for=192.0.2.60;proto=http, For="[2001:db8:cafe::17]:4711"'}, "2001:db8:cafe::17"),
        ("127.0.0.1", {"forwarded": "for=1.1.1.1, proto=https"}, "127.0.0.1"),
        ("127.0.0.1", {"forwarded": "for=_hidden"}, "127.0.0.1"),
        ("127.0.0.1", {"forwarded": "for=1.1.1.1", "x-forwarded-for": "198.51.100.7"}, "127.0.0.1"),  # which of them?
        ("127.0.0.1", {"forwarded": "for=198.51.100.7", "x-forwarded-for": "198.51.100.7"}, "198.51.100.7"),
    ],
)  # fmt: skip
def test_whom_a_proxy_names(peer: str, headers: dict[str, str], client: str) -> None:
    assert Proxies(("10.0.0.5", "172.16.0.0/12")).client(peer, list(headers.items())) == client


def test_several_lines_are_one_list() -> None:
    lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "198.51.100.7")]
    assert Proxies(()).client("127.0.0.1", lines) == "198.51.100.7"


def test_a_wrong_proxy_is_said() -> None:
    for wrong in ("example.org", "", "10.0.0.0/99", "10.0.0.1/8"):
        with pytest.raises(VadisError, match="--trust-proxy"):
            Proxies((wrong,))


def test_limits_of_clients_behind_a_proxy(pipe: MotionStreamPipeline) -> None:
    def statuses(**settings: Any) -> list[int]:
        with serving({"tiny": pipe}, max_streams_per_client=1, **settings) as served:
            first = served.connect("text=walk", additional_headers={"x-forwarded-for": "198.51.100.7"})
            greeted(first)
            found = []
            for address in ("198.51.100.7", "198.51.100.8"):
                head = {"x-forwarded-for": address, "host": f"127.0.0.1:{served.port}", "connection": "upgrade",
                        "upgrade": "websocket", "sec-websocket-version": "13",
                        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
                with socket.create_connection(("127.0.0.1", served.port), timeout=30) as sock:
                    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
                    sock.sendall(f"GET /stream HTTP/1.1\r\n{lines}\r\n".encode())
                    found.append(int(sock.recv(1000).split()[1]))
            first.close()
            return found

    assert statuses() == [429, 429]  # by default nobody is believed, and the proxy is one client
    assert statuses(trust_proxy=()) == [429, 101]
    with pytest.raises(VadisError, match="--trust-proxy"), serving({"tiny": pipe}, trust_proxy=("proxy",)):
        pass


# ---- one meaning


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", 400),
        ("transfer-encoding: CHUNKED\r\ncontent-length: 7", 400),
        ("Content-Length: 2\r\nContent-Length: 3", 400), ("Content-Length: 2, 3", 400), ("Content-Length: -2", 400),
        ("Content-Length: 2\r\nContent-Length: 2", 422),  # twice the same means one thing
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400), ("Transfer-Encoding: gzip, chunked", 400),
    ],
)  # fmt: skip
def test_a_body_with_two_lengths_is_refused(pipe: MotionStreamPipeline, lines: str, status: int) -> None:
    with serving({"tiny": pipe}) as served, socket.create_connection(("127.0.0.1", served.port), timeout=30) as sock:
        head = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{lines}\r\n\r\n"
        sock.sendall(head.encode() + (b"2\r\n{}\r\n0\r\n\r\n" if "hunked" in lines.lower() else b"{}"))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while more := sock.recv(65536):
            answer += more
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert (b"vadis_requests_total" in answer) is (status == 422)  # nothing is read behind what was refused


def test_the_client_library_agrees(pipe: MotionStreamPipeline) -> None:
    with serving({"tiny": pipe}) as served:
        chunks = iter([b'{"prompt": "walk", ', b'"seconds": 0.5}'])
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{served.http}/generate", content=chunks, headers=headers, timeout=60)
        assert answer.json()["num_frames"] == 15
