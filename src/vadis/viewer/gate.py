"""The door of viser's server: no page but its own may connect, and with a token nobody without it.

viser serves files and WebSockets on one port and asks no one who they are. `guarded` puts `Gate` into the one place that
every request passes before viser sees it: `process_request` of the WebSocket library that viser listens with.
"""

import hmac
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, NamedTuple

from vadis.access import Access
from vadis.errors import VadisError

ONWARD = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=./"><title>vadis</title>\n'
"""Sends the browser to the same page without a query. A redirect would lose a cookie where another site linked here."""
NEEDS_TOKEN = "This page needs its token: open the address that vadis printed, with ?token= at its end.\n"
_starting = threading.Lock()


class Ask(NamedTuple):
    """What a request says."""

    headers: list[tuple[str, str]]
    query: str
    port: int
    socket: bool


class Gate:
    """Who may see one viser server.

    A browser shows the token once, in the address of the page, and gets a cookie for it, which the page's WebSocket sends.
    The cookie is made of the token but isn't it, since cookies of one machine are sent to all its ports.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        key = (access.token or "").encode()
        self.pass_ = hmac.new(key, b"vadis page", sha256).hexdigest()

    def answer(self, connection: Any, request: Any, serve: Callable[[Any, Any], Any] | None) -> Any:
        """viser's answer, a refusal, or None when a WebSocket may open. `serve`: viser's own `process_request`."""
        ask = self._read(connection, request)
        if (refusal := self.access.foreign(ask.headers)) is not None:
            return connection.respond(refusal.status, f"{refusal.message}\n")
        if not (self.access.authorized(ask.headers, ask.query) or self._has_cookie(ask)):
            return connection.respond(401, NEEDS_TOKEN)
        if ask.socket:
            return None if serve is None else serve(connection, request)
        if ask.query:  # viser's page would connect to any server that its address names, and run what that one says
            answer = connection.respond(200, ONWARD)
            del answer.headers["Content-Type"]
            answer.headers["Content-Type"] = "text/html; charset=utf-8"
            if self.access.token is not None:
                answer.headers["Set-Cookie"] = f"{_cookie(ask.port)}={self.pass_}; Path=/; HttpOnly; SameSite=Strict"
        else:
            answer = connection.respond(404, "nothing here\n") if serve is None else serve(connection, request)
        if answer is not None:
            self._restrain(answer.headers, ask)
        return answer

    @staticmethod
    def _read(connection: Any, request: Any) -> Ask:
        def text(value: str) -> str:  # as the wire had it, a byte a character
            return value.encode("utf-8", "surrogateescape").decode("latin-1")

        headers = [(name.lower(), text(value)) for name, value in request.headers.raw_items()]
        upgrade = any(name == "upgrade" and value.lower() == "websocket" for name, value in headers)
        return Ask(headers, text(request.path).partition("?")[2], int(connection.local_address[1]), upgrade)

    def _has_cookie(self, ask: Ask) -> bool:
        pairs = [pair.strip() for name, value in ask.headers if name == "cookie" for pair in value.split(";")]
        wanted = f"{_cookie(ask.port)}={self.pass_}".encode()
        return any(hmac.compare_digest(pair.encode(), wanted) for pair in pairs)

    def _restrain(self, headers: Any, ask: Ask) -> None:
        """What a browser may do with the page: talk to this server only, and show it in no stranger's frame."""
        host = next(value for name, value in ask.headers if name == "host")
        frames = " ".join(("'self'", *self.access.origins))
        headers["Content-Security-Policy"] = (
            f"connect-src 'self' ws://{host} wss://{host} blob: data:; frame-ancestors {frames}; form-action 'none'"
        )
        headers["Referrer-Policy"] = "no-referrer"
        headers["X-Content-Type-Options"] = "nosniff"


def _cookie(port: int) -> str:
    return f"vadis-{port}"


@contextmanager
def guarded(access: Access) -> Iterator[None]:
    """A viser server that is started inside asks `Gate` about every request.

    viser has no such option; so the WebSocket library that it finds is, for this moment and for viser alone, one whose
    `serve` puts the gate before viser's own answers. Raises VadisError when a version of viser listens in another way.
    """
    gate, installed = Gate(access), False
    try:
        viser: Any = importlib.import_module("viser.infra._infra")
        library = viser.websockets
        serve = library.asyncio.server.serve
    except (ImportError, AttributeError) as error:
        raise VadisError(_unknown_viser()) from error

    def guarded_serve(*args: Any, process_request: Any = None, **options: Any) -> Any:
        nonlocal installed
        installed = True
        return serve(*args, process_request=lambda c, r: gate.answer(c, r, process_request), **options)

    server = SimpleNamespace(**vars(library.asyncio.server) | {"serve": guarded_serve})
    with _starting:
        viser.websockets = SimpleNamespace(**vars(library) | {"asyncio": SimpleNamespace(server=server)})
        try:
            yield
        finally:
            viser.websockets = library
    if not installed:
        raise VadisError(_unknown_viser())


def _unknown_viser() -> str:
    from importlib.metadata import version

    return f"viser {version('viser')} can't be kept from strangers' pages: pip install 'viser==1.1.1'."
