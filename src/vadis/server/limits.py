"""What a client may ask for: limits, the token, who may connect, and the size of requests."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from vadis.access import LOOPBACK, Access, Headers, header_values
from vadis.server.metrics import Metrics
from vadis.server.protocol import MAX_MESSAGE_BYTES
from vadis.server.proxies import Proxies

OPEN_PATHS = ("/health", "/docs")
"""Need no token: the page asks for it, and /health says no more than whether the server works."""
PATHS = (*OPEN_PATHS, "/openapi.json", "/generate", "/models", "/metrics", "/stream")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DRAINED_BYTES = 8_000_000
"""Of a body that is too large, read and thrown away so that the client sees the answer."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ServerSettings:
    """Limits of a server; the defaults suit one machine and a few people."""

    token: str | None = None
    """Asked for as `Authorization: Bearer TOKEN`, or `?token=` on the WebSocket."""
    hosts: tuple[str, ...] = LOOPBACK
    """Names by which the server may be addressed, and IP networks; * for all. See `vadis.access`."""
    origins: tuple[str, ...] = ()
    """Web origins that may connect beside the server's own, such as https://example.org; * for all."""
    max_connections: int = Field(default=512, ge=1)
    max_streams: int = Field(default=16, ge=1)
    max_streams_per_client: int = Field(default=8, ge=1)
    """A client is an IP address."""
    trust_proxy: tuple[str, ...] | None = None
    """Addresses or networks of proxies that say whom they pass on, loopback included; None believes nobody."""
    max_requests: int = Field(default=16, ge=1)
    """POST /generate in progress or waiting."""
    max_requests_per_client: int = Field(default=4, ge=1)
    max_seconds: float = Field(default=60.0, gt=0.2)
    """Longest motion of POST /generate."""
    messages_per_second: float = Field(default=10.0, gt=0)
    """Of one stream; faster ones are read later."""
    slow_seconds: float = Field(default=20.0, gt=0)
    """A reader that takes nothing for so long is dropped."""
    idle_seconds: float = Field(default=300.0, gt=0)
    """A stream without motion and without messages is closed."""
    body_seconds: float = Field(default=10.0, gt=0)
    """For a request to arrive."""

    @property
    def proxies(self) -> Proxies | None:
        """Whose word about clients counts. Raises VadisError for what is no address."""
        return None if self.trust_proxy is None else Proxies(self.trust_proxy)

    @property
    def access(self) -> Access:
        """Who may connect. Raises VadisError for hosts and origins that are none."""
        return Access(self.token, self.hosts, self.origins)


class Busy(Exception):
    """No room: `status` 429 when the client has enough already, 503 when the server has."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Places:
    """Places in use, over all and by client. Used from the event loop only."""

    def __init__(self, what: str, total: int, per_client: int) -> None:
        self.what, self.total, self.per_client = what, total, per_client
        self.by_client: Counter[str] = Counter()

    @property
    def used(self) -> int:
        return self.by_client.total()

    def take(self, client: str) -> None:
        """Take a place; raises Busy when there is none."""
        if self.by_client[client] >= self.per_client:
            raise Busy(
                429, f"too many {self.what} in progress: {self.per_client} per client. Wait until one has ended."
            )
        if self.used >= self.total:
            raise Busy(503, f"too many {self.what} in progress: {self.total} in all. Try again later.")
        self.by_client[client] += 1

    def give(self, client: str) -> None:
        """Give a place back."""
        self.by_client[client] -= 1
        if not self.by_client[client]:
            del self.by_client[client]


class Throttle:
    """At most `rate` events a second, in bursts of up to two seconds' worth."""

    def __init__(self, rate: float) -> None:
        self.rate, self.left, self.last = rate, 2 * rate, time.monotonic()

    async def wait(self) -> None:
        """Return when the next event may be dealt with."""
        now = time.monotonic()
        self.left = min(self.left + (now - self.last) * self.rate, 2 * self.rate) - 1
        self.last = now
        if self.left < 0:
            await asyncio.sleep(-self.left / self.rate)


def error_page(code: str, message: str) -> dict[str, Any]:
    """The body of every answer that is an error."""
    return {"error": {"code": code, "message": message}}


class Guard:
    """ASGI middleware: refuses foreign hosts and origins, wrong tokens and large or slow bodies; counts requests."""

    def __init__(
        self, app: Any, settings: ServerSettings, metrics: Metrics, access: Access, proxies: Proxies | None
    ) -> None:
        self.app, self.settings, self.metrics, self.access, self.proxies = app, settings, metrics, access, proxies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        socket = scope["type"] == "websocket"
        path = scope["path"] if scope["path"] in PATHS else "other"
        method = "WEBSOCKET" if socket else scope["method"] if scope["method"] in METHODS else "other"

        async def counted(message: Any) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self.metrics.add("vadis_requests_total", path=path, method=method, status=str(message["status"]))
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None and scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            body, refusal = await self._body(scope, receive)
            receive = _replay(body, receive)
        if refusal is None:
            return await self.app(scope, receive, counted)
        status, code, text = refusal
        self.metrics.add("vadis_refused_total", reason=code)
        await refuse(scope, counted, status, code, text)

    def _refusal(self, scope: Any) -> tuple[int, str, str] | None:
        headers = header_lines(scope)
        if (wrong := _framing(headers)) is not None:
            return 400, "length", wrong
        if self.proxies is not None and scope.get("client"):
            scope["client"] = (self.proxies.client(scope["client"][0], headers), scope["client"][1])
        if (foreign := self.access.foreign(headers)) is not None:
            return foreign.status, foreign.code, foreign.message
        # Browsers can't set headers of a WebSocket.
        query = scope["query_string"].decode("latin-1") if scope["type"] == "websocket" else ""
        scope.setdefault("state", {})["authorized"] = authorized = self.access.authorized(headers, query)
        if not authorized and scope["path"] not in OPEN_PATHS:
            return 401, "token", "a token is needed: send Authorization: Bearer TOKEN."
        return None

    async def _body(self, scope: Any, receive: Any) -> tuple[bytes, tuple[int, str, str] | None]:
        """The whole body, or why it is refused."""
        size, parts = 0, []
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return b"", (400, "cut", "the request ended early.")
                    size += len(message.get("body", b""))
                    if size <= MAX_MESSAGE_BYTES:
                        parts.append(message.get("body", b""))
                    if not message.get("more_body", False) or size > DRAINED_BYTES:
                        break
        except TimeoutError:
            return b"", (408, "slow", "the request took too long to arrive.")
        if size > MAX_MESSAGE_BYTES:
            return b"", (413, "large", f"a request may have {MAX_MESSAGE_BYTES:,} bytes.")
        return b"".join(parts), None


def _framing(headers: Headers) -> str | None:
    """Why nobody can say where the body of a request ends: proxies and servers that disagree smuggle one inside another."""
    lengths = {length.strip() for line in header_values(headers, "content-length") for length in line.split(",")}
    codings = header_values(headers, "transfer-encoding")
    if (lengths and codings) or len(lengths) > 1 or len(codings) > 1:
        return "a request has one Content-Length or one Transfer-Encoding, not both."
    return None


def header_lines(scope: Any) -> list[tuple[str, str]]:
    """The headers of an ASGI request as text; a name may come twice."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body that was read already, then what follows."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(scope: Any, send: Any, status: int, code: str, text: str) -> None:
    """Answer with an error, a WebSocket handshake too."""
    body = json.dumps(error_page(code, text)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (429, 503):
        headers.append((b"retry-after", b"5"))
    if status == 400:  # what follows may be part of this request
        headers.append((b"connection", b"close"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
