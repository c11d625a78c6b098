"""No stranger's page reaches the viewer: raw requests to the real port of `view`, `live` and the server.

The tests name what no browser would let a person choose: Host and Origin.
"""

import inspect
import socket
from collections.abc import Iterator
from types import FunctionType
from typing import Any
from urllib.parse import urlsplit

import pytest

from vadis.access import Access
from vadis.errors import VadisError

viser = pytest.importorskip("viser", reason="needs the viewer extra")
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: viser-v{viser.__version__}\r\n{KEY}"


def ask(port: int, *lines: str, path: str = "/", socket_: bool = False) -> tuple[int, str]:
    """Status, and the rest of the first bytes, of a request with just these header lines."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        head = "".join(f"{line}\r\n" for line in lines)
        sock.sendall(f"GET {path} HTTP/1.1\r\n{head}{UPGRADE if socket_ else ''}\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer or (not socket_ and len(answer) < 20_000):
            if not (more := sock.recv(65536)):
                break
            answer += more
    text = answer.decode("latin-1")
    return int(text.split()[1]), text


@pytest.fixture(scope="module", params=["view", "live"])
def port(request, walk) -> Iterator[int]:
    """The port of a page that asks for no token."""
    yield from _page(request.param, walk, None)


@pytest.fixture(scope="module", params=["view", "live"])
def locked(request, walk) -> Iterator[int]:
    yield from _page(request.param, walk, Access(token="secret"))


def _page(kind: str, walk: Any, access: Access | None) -> Iterator[int]:
    if kind == "view":
        from vadis.viewer.live import view

        page: Any = view(walk, port=0, open_browser=False, block=False, access=access)
        yield urlsplit(page.url).port
        page.stop()
        return
    from stream_models import small_pipe

    from vadis.pipelines.player import Player
    from vadis.viewer.live_stream import LiveApp

    player = Player(small_pipe(walk).live(seed=0)).start()
    with LiveApp(player, port=0, access=access) as page:
        assert page.url.endswith("/?token=secret") is (access is not None)
        yield urlsplit(page.url).port
    player.stop()


@pytest.mark.parametrize("socket_", [False, True])
def test_its_own_page_connects(port: int, socket_: bool) -> None:
    good = 101 if socket_ else 200
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.1"):
        status, answer = ask(port, f"Host: {name}", socket_=socket_)
        assert status == good
        assert socket_ or "frame-ancestors 'self'" in answer
    host = f"127.0.0.1:{port}"
    assert ask(port, f"Host: {host}", f"Origin: http://{host}", socket_=socket_)[0] == good


@pytest.mark.parametrize("socket_", [False, True])
def test_foreign_origins_and_hosts_get_403(port: int, socket_: bool) -> None:
    host = f"Host: 127.0.0.1:{port}"
    foreign = ("https://evil.example", "null", f"http://localhost:{port}", f"http://127.0.0.1:{port + 1}")
    for origin in (*foreign, f"http://127.0.0.1:{port}.evil.example", ""):
        assert ask(port, host, f"Origin: {origin}", socket_=socket_)[0] == 403, origin
    assert (
        ask(port, host, f"Origin: http://127.0.0.1:{port}", "Origin: https://evil.example", socket_=socket_)[0] == 403
    )
    for name in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "", "127.0.0.1, evil.example"):
        status, answer = ask(port, f"Host: {name}", f"Origin: http://{name}", socket_=socket_)
        assert status == 403 and "<html" not in answer.lower()
    assert ask(port, socket_=socket_)[0] == 403  # no Host at all
    assert ask(port, host, "Host: evil.example", socket_=socket_)[0] == 403
    assert ask(port, "Host: evil.example", host, socket_=socket_)[0] == 403


def test_an_address_with_a_query_leads_to_the_page_without_it(port: int) -> None:
    """viser's page would connect to a server that its address names."""
    status, answer = ask(port, f"Host: 127.0.0.1:{port}", path='/?websocket=ws://evil.example/"><b>')
    assert status == 200 and "evil" not in answer and 'content="0;url=./"' in answer
    assert "connect-src 'self'" in answer and "Set-Cookie" not in answer


def test_a_token_is_asked_for_and_the_page_gets_a_cookie(locked: int) -> None:
    host = f"Host: 127.0.0.1:{locked}"
    for wrong in ("/", "/?token=wrong", "/index.html", "/?token=", "/?x=secret"):
        status, answer = ask(locked, host, path=wrong)
        assert status == 401 and "set-cookie" not in answer.lower() and "needs its token" in answer
    assert ask(locked, host, socket_=True)[0] == 401
    assert ask(locked, host, f"Cookie: vadis-{locked}=secret", socket_=True)[0] == 401
    status, answer = ask(locked, host, path="/?token=secret")
    assert status == 200 and 'url=./"' in answer
    cookie = answer.partition("Set-Cookie: ")[2].partition("\r\n")[0]
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict") and "secret" not in cookie
    given = f"Cookie: other=1; {cookie.partition(';')[0]}"
    assert ask(locked, host, given)[0] == 200 and ask(locked, host, given, socket_=True)[0] == 101
    assert ask(locked, host, given, "Origin: https://evil.example", socket_=True)[0] == 403
    assert ask(locked, host, "Authorization: Bearer secret", socket_=True)[0] == 101
    assert ask(locked, host, path="/?token=secret", socket_=True)[0] == 101
    assert ask(locked, host, "Authorization: Bearer s\xe9cret", socket_=True)[0] == 401


def test_the_recorder_of_pages_lets_nobody_in(walk, tmp_path, monkeypatch) -> None:
    from vadis.viewer import page, stage

    asked: list[int] = []
    aim = stage.Stage.aim

    def while_it_records(self: Any) -> None:
        asked.append(ask(self.server.get_port(), f"Host: 127.0.0.1:{self.server.get_port()}")[0])
        aim(self)

    monkeypatch.setattr(stage.Stage, "aim", while_it_records)
    page.write_page(walk.crop(0, 2), tmp_path / "page.html")
    assert asked == [401]


def test_the_server_refuses_them_too(walk) -> None:
    from stream_models import small_pipe

    servers = pytest.importorskip("servers", reason="needs the server extra")
    with servers.serving({"tiny": small_pipe(walk)}) as served:
        host = f"Host: 127.0.0.1:{served.port}"
        for socket_, path in ((False, "/models"), (True, "/stream")):
            good = 101 if socket_ else 200
            assert (
                ask(served.port, host, "Connection: close" if not socket_ else "X: y", path=path, socket_=socket_)[0]
                == good
            )
            for lines in (
                ("Host: evil.example",), (host, "Origin: https://evil.example"), (host, "Origin: null"),
                ("Host: evil.example", "Origin: http://evil.example"),
            ):  # fmt: skip
                status, _ = ask(
                    served.port, *lines, *([] if socket_ else ["Connection: close"]), path=path, socket_=socket_
                )
                assert status == 403


# ---- the place in viser that the gate needs


def test_viser_listens_as_the_gate_expects() -> None:
    """Fails when another version of viser hands its own answers over in another way."""
    from viser.infra import _infra

    source = inspect.getsource(_infra.WebsockServer)
    assert source.count("websockets.asyncio.server.serve(") == 1 and source.count(".serve(") == 1
    assert "process_request=(" in source and "def viser_http_server(\n" in source
    parameters = inspect.signature(_infra.websockets.asyncio.server.serve.__init__).parameters
    assert parameters["process_request"].kind is inspect.Parameter.KEYWORD_ONLY


def test_a_viser_that_listens_otherwise_is_refused(monkeypatch) -> None:
    """A version that finds its WebSocket library elsewhere: the server is closed again."""
    from viser.infra import _infra

    from vadis.access import free_port
    from vadis.viewer.stage import start_server

    worker, port = _infra.WebsockServer._background_worker, free_port()
    elsewhere = FunctionType(worker.__code__, dict(vars(_infra)), closure=worker.__closure__)
    monkeypatch.setattr(_infra.WebsockServer, "_background_worker", elsewhere)
    with pytest.raises(VadisError, match="can't be kept from strangers' pages"):
        start_server("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        ask(port, f"Host: 127.0.0.1:{port}")


def test_the_library_is_as_before_once_the_server_runs(port: int) -> None:
    import websockets
    from viser.infra import _infra

    assert _infra.websockets is websockets
    assert websockets.asyncio.server.serve.__module__ == "websockets.asyncio.server"


def test_the_flags_of_view_reach_the_page(walk, tmp_path, monkeypatch) -> None:
    from vadis.cli.view import View
    from vadis.viewer import live

    seen: list[Access] = []

    def view(*_: Any, access: Access, **__: Any) -> Any:
        seen.append(access)
        raise VadisError("seen")

    monkeypatch.setattr(live, "view", view)
    walk.save(tmp_path / "walk.npz")
    flags = {"token": "secret", "origin": ("https://example.org",), "allow_host": ("motion.example.org",)}
    with pytest.raises(VadisError, match="seen"):
        View((str(tmp_path / "walk.npz"),), **flags).run()
    assert seen == [Access.at("127.0.0.1", "secret", flags["allow_host"], flags["origin"])]
    with pytest.raises(VadisError, match="--origin"):
        View((str(tmp_path / "walk.npz"),), origin=("example.org",)).run()
