"""The process around the application: uvicorn, with a limit on connections and no patience for silent ones."""

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from vadis.server.app import create_app
from vadis.server.limits import ServerSettings, error_page
from vadis.server.protocol import MAX_MESSAGE_BYTES

SILENT_SECONDS = 10.0
"""Connections that have not asked for anything by then are closed."""
PATIENCE_SECONDS = 0.5
"""With a silent connection before another may take its place."""
MAX_LINGERING = 128
"""Refused connections that are kept for a second."""
SEND_BUFFER_BYTES = 65536
FAREWELL_SECONDS = 3.0
"""For a stuck reader to take its last bytes when the server stops."""


def make_server(
    pipelines: Mapping[str, Any],
    settings: ServerSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    log_level: str = "warning",
    grace_seconds: int = 20,
) -> uvicorn.Server:
    """A server to `run()`, or `await serve()`; it stops on SIGINT and SIGTERM, or when `should_exit` is set.

    It then accepts no one, closes streams with code 1012 and finishes the motions in progress, for `grace_seconds` at most.
    """
    settings = settings or ServerSettings()
    limit = settings.max_connections
    _raise_file_limit(limit + 256)
    busy = json.dumps(error_page("busy", f"too many open connections: {limit} in all. Try again later.")).encode()
    refusal = (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(busy), busy)
    )
    app = create_app(pipelines, settings)
    metrics = app.state.service.metrics

    class Http(H11Protocol):
        """Keeps to the limit of connections and closes those that say nothing or stop in the middle.

        A new connection takes the place of the oldest that has not asked for anything yet; without one it is refused.
        """

        silent: ClassVar[dict["Http", float]] = {}
        lingering: ClassVar[int] = 0
        refused = stalled = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= limit:
                oldest, since = next(iter(Http.silent.items()), (None, 0.0))
                if oldest is None or self.loop.time() - since < PATIENCE_SECONDS:
                    self._refuse(transport)
                    return
                oldest._give_way()
            super().connection_made(transport)
            Http.silent[self] = self.loop.time()
            self.watch = self.loop.call_later(SILENT_SECONDS, self._close_if_silent)

        def _give_way(self) -> None:
            metrics.add("vadis_refused_total", reason="connections")
            Http.silent.pop(self, None)
            self.connections.discard(self)
            self.transport.write(refusal)
            self.transport.close()

        def _refuse(self, transport: asyncio.Transport) -> None:
            self.refused = True
            metrics.add("vadis_refused_total", reason="connections")
            transport.write(refusal)
            if Http.lingering < MAX_LINGERING:  # what it sends is read for a moment, or the answer would be lost
                Http.lingering += 1
                transport.write_eof()
                self.loop.call_later(1.0, self._part, transport)
            else:
                transport.close()

        def _part(self, transport: asyncio.Transport) -> None:
            Http.lingering -= 1
            transport.abort()

        def _close_if_silent(self) -> None:
            if self not in self.connections:  # gone, or a WebSocket now
                return
            asking = self.cycle is not None and not self.cycle.response_complete
            stalled = not asking and self.timeout_keep_alive_task is None
            if stalled and (self.stalled or self.cycle is None):
                self.transport.close()
                return
            self.stalled = stalled
            self.watch = self.loop.call_later(SILENT_SECONDS, self._close_if_silent)

        def data_received(self, data: bytes) -> None:
            if not self.refused and not self.transport.is_closing():
                super().data_received(data)
                if self.cycle is not None or self not in self.connections:  # a request, or a WebSocket now
                    Http.silent.pop(self, None)

        def connection_lost(self, exc: Exception | None) -> None:
            if not self.refused:
                self.watch.cancel()
                Http.silent.pop(self, None)
                super().connection_lost(exc)

    class Socket(WebSocketsSansIOProtocol):
        """Lets the application cut off a reader that is stuck, and the system hold little for it."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

        def handle_connect(self, event: Any) -> None:
            super().handle_connect(event)
            if hasattr(self, "scope"):
                self.scope["state"]["abort"] = self.transport.abort  # type: ignore[typeddict-item]

        def shutdown(self) -> None:
            super().shutdown()
            self.loop.call_later(FAREWELL_SECONDS, self.transport.abort)

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Http,
        ws=Socket,
        lifespan="on",
        log_level=log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client is who is connected, not who it says it is
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # rotations don't compress
        timeout_keep_alive=15,
        timeout_graceful_shutdown=grace_seconds,
        h11_max_incomplete_event_size=32768,
    )
    return uvicorn.Server(config)


def _raise_file_limit(wanted: int) -> None:
    """Allow this process so many open files where the system lets it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
