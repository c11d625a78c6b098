"""The FastAPI application: POST /generate, GET /models, WebSocket /stream, GET /health and /metrics, pages at /docs."""

import asyncio
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import vadis
from vadis.cancel import Cancelled, cancellable
from vadis.errors import MissingExtra, ModelError, VadisError
from vadis.server.limits import Busy, Guard, Places, ServerSettings, error_page, refuse
from vadis.server.metrics import Metrics, server_metrics
from vadis.server.models import MEDIA, GenerateRequest, ModelPage, Models, MotionPage
from vadis.server.protocol import Text
from vadis.server.session import Session
from vadis.server.streams import Pace, StreamEngine

Result = TypeVar("Result")
DESCRIPTION = """\
Text to motion over HTTP and WebSocket.

`WebSocket /stream?model=&format=binary|json&pace=realtime|fast&seed=&text=` gives frames while the text changes: send
`{"type": "text", "text": "…", "queue": false}`, `{"type": "pause"}`, `{"type": "resume"}`, `{"type": "stop"}`. The layout of the
frames is in the documentation of vadis, *Serving*.
"""


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str


class ErrorPage(BaseModel):
    """Every answer that is an error."""

    error: ErrorDetail


class HealthPage(BaseModel):
    """Whether the server works; all that it says without the token, where there is one."""

    status: Literal["ok", "failed"]


class HealthDetails(HealthPage):
    """How the server does."""

    version: str
    models: list[str]
    streams: int
    requests: int
    uptime_seconds: float


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorPage, "description": text}
    for status, text in {
        400: "The request is malformed.",
        401: "A token is needed.",
        403: "From another machine's page or name.",
        408: "The request took too long to arrive.",
        413: "The request is too large.",
        422: "A value doesn't fit.",
        429: "This client has too many requests in progress.",
        500: "The server failed.",
        501: "A package that writes this format is not installed.",
        503: "The server is full or failed.",
    }.items()
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERRORS[status] for status in (401, 403, *statuses)}


class Service:
    """What the routes share: models, engines, places, counters."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self.models, self.settings, self.metrics = models, settings, server_metrics()
        self.streams = Places("streams", settings.max_streams, settings.max_streams_per_client)
        self.requests = Places("requests", settings.max_requests, settings.max_requests_per_client)
        self.metrics.gauge("vadis_streams", "WebSocket streams now.", lambda: self.streams.used)
        self.metrics.gauge("vadis_requests", "Motions in progress or waiting now.", lambda: self.requests.used)
        self.engines: dict[str, StreamEngine] = {}
        self.turn = asyncio.Semaphore(1)  # one motion at a time: more would only share the same cores
        self.texts = ThreadPoolExecutor(1, thread_name_prefix="vadis-texts")
        self.started = time.monotonic()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        for name in self.models.streaming:
            self.engines[name] = StreamEngine(
                self.models.pipelines[name], self.settings.max_streams, metrics=self.metrics
            )
        yield
        for engine in self.engines.values():
            await asyncio.to_thread(engine.stop)
        self.texts.shutdown(wait=False, cancel_futures=True)

    def encoder(self, name: str) -> Any:
        """The coroutine function that makes a text's vector."""

        async def encode(text: str) -> Any:
            return await asyncio.get_running_loop().run_in_executor(self.texts, self.models.sentence, name, text)

        return encode

    async def generate(self, request: Request, order: GenerateRequest) -> MotionPage | bytes:
        """The motion. Raises Busy, VadisError; HTTPException for a client that has left, whose motion is made no further."""
        client, started = _client(request), time.perf_counter()
        name = self.models.pick(order.model)
        seed = secrets.randbelow(2**31) if order.seed is None else order.seed
        self.requests.take(client)
        try:
            return await self._while_here(request, lambda: self.models.generate(name, order, seed))
        finally:
            self.requests.give(client)
            self.metrics.observe("vadis_generate_seconds", time.perf_counter() - started)

    async def _while_here(self, request: Request, work: Callable[[], Result]) -> Result:
        """`work` in its turn; it stops at its next step, and gives its turn back, when the client leaves."""
        gone, begun = threading.Event(), False

        def run() -> Result:
            with cancellable(gone):
                return work()

        async def in_turn() -> Result:
            nonlocal begun
            async with self.turn:
                begun = True
                return await in_thread(run)

        task, left = asyncio.create_task(in_turn()), asyncio.create_task(_left(request))
        try:
            await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when the server's own patience has ended
            left.cancel()
            if not task.done():
                gone.set()
                if not begun:
                    task.cancel()
        await asyncio.wait((task,))
        if task.cancelled() or isinstance(task.exception(), Cancelled):
            self.metrics.add("vadis_cancelled_total")
            raise HTTPException(499, "the client has left.")
        return task.result()

    def refused(self, error: Busy) -> JSONResponse:
        self.metrics.add("vadis_refused_total", reason=str(error.status))
        return _answer(error.status, "busy", str(error))


async def _left(request: Request) -> None:
    """Return when the client has closed its connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:  # carried to the waiting coroutine
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="vadis-generate", daemon=True).start()
    return await future


def _client(connection: Request | WebSocket) -> str:
    return connection.client.host if connection.client else "local"


def _answer(status: int, code: str, message: str) -> JSONResponse:
    headers = {"retry-after": "5"} if status in (429, 503) else None
    return JSONResponse(error_page(code, message), status, headers)


def create_app(pipelines: Mapping[str, Any], settings: ServerSettings | None = None) -> FastAPI:
    """The application that serves these pipelines; the first (streaming) one is the default of its kind.

    Raises VadisError for hosts, origins and proxies in `settings` that are none.
    """
    settings = settings or ServerSettings()
    service = Service(Models(pipelines), settings)
    app = FastAPI(title="vadis", version=vadis.__version__, description=DESCRIPTION, lifespan=service.lifespan,
                  docs_url=None, redoc_url=None, redirect_slashes=False)  # fmt: skip
    app.state.service = service
    _limit_schema(app, service)
    _handlers(app, service.metrics)
    _pages(app, service)
    _motions(app, service)
    rules: dict[str, Any] = {"access": settings.access, "proxies": settings.proxies}  # made now, as they may be wrong
    app.add_middleware(Guard, settings=settings, metrics=service.metrics, **rules)
    return app


def _limit_schema(app: FastAPI, service: Service) -> None:
    """Put this server's own limits into its description."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            fields = describe()["components"]["schemas"]["GenerateRequest"]["properties"]
            for option in fields["seconds"]["anyOf"]:
                if option["type"] == "number":
                    option |= {"minimum": 0.2, "maximum": service.settings.max_seconds}
            fields["model"] = {"enum": [*service.models.pipelines, None], "description": fields["model"]["description"]}
        return describe()

    app.openapi = openapi


def _handlers(app: FastAPI, metrics: Metrics) -> None:
    """Errors as one kind of page."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return _answer(422, "invalid", f"{place + ': ' if place else ''}{first['msg']}.")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        answer = _answer(error.status_code, "http", str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(VadisError)
    async def refused(request: Request, error: VadisError) -> JSONResponse:
        missing = isinstance(error, MissingExtra)
        return _answer(501 if missing else 422, "missing" if missing else "invalid", str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        metrics.add("vadis_refused_total", reason="error")
        return _answer(500, "error", f"the server failed with a {type(error).__name__}; its log says more.")


def _page_and_policy() -> tuple[str, str]:
    """The page at /docs, and what a browser may do on it: run its own script, talk to this server, nothing else."""
    page = resources.files("vadis.server").joinpath("docs.html").read_text(encoding="utf-8")
    allowed = [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    for tag in ("script", "style"):
        inside = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        allowed.append(f"{tag}-src 'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'")
    return page, "; ".join(allowed)


def _pages(app: FastAPI, service: Service) -> None:
    page, policy = _page_and_policy()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }
        return HTMLResponse(page, headers=headers)

    @app.get("/models", responses=_errors())
    async def models() -> list[ModelPage]:
        """The models that this server has loaded, the default first."""
        return service.models.pages()

    @app.get(
        "/health",
        responses={403: ERRORS[403], 503: {"model": HealthDetails | HealthPage, "description": "A model fails."}},
    )
    async def health(request: Request, response: Response) -> HealthDetails | HealthPage:
        """Whether the server works; 503 while a model fails, which is tried again until it works."""
        good = all(engine.alive for engine in service.engines.values())
        response.status_code = 200 if good else 503
        status: Literal["ok", "failed"] = "ok" if good else "failed"
        if not request.state.authorized:
            return HealthPage(status=status)
        return HealthDetails(
            status=status,
            version=vadis.__version__,
            models=list(service.models.pipelines),
            streams=service.streams.used,
            requests=service.requests.used,
            uptime_seconds=round(time.monotonic() - service.started, 3),
        )

    @app.get("/metrics", response_class=PlainTextResponse, responses=_errors())
    async def metrics() -> PlainTextResponse:
        """Counters in Prometheus' text format."""
        return PlainTextResponse(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _motions(app: FastAPI, service: Service) -> None:
    files = {media.partition(";")[0]: {} for media in MEDIA.values()}

    @app.post("/generate", responses=_errors(400, 408, 413, 422, 429, 500, 501, 503)
              | {200: {"model": MotionPage, "content": files, "description": "The motion."}})  # fmt: skip
    async def generate(request: Request, order: GenerateRequest) -> Any:
        """Make a motion from a sentence."""
        limit = service.settings.max_seconds
        if order.seconds is not None and not 0.2 <= order.seconds <= limit:
            raise VadisError(f"seconds={order.seconds:g}: a motion here can last from 0.2 to {limit:g} seconds.")
        try:
            made = await service.generate(request, order)
        except Busy as error:
            return service.refused(error)
        if isinstance(made, MotionPage):
            return made
        name = {"frames": "motion.bin"}.get(order.format, f"motion.{order.format}")
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(made, media_type=MEDIA[order.format], headers=headers)

    @app.websocket("/stream")
    async def stream(
        socket: WebSocket,
        model: str | None = None,
        format: Literal["binary", "json"] = "binary",
        pace: Pace = "realtime",
        seed: Annotated[int | None, Query(ge=0, le=2**53 - 1)] = None,
        text: Annotated[Text | None, Query()] = None,
    ) -> None:
        client = _client(socket)
        try:
            name = service.models.pick(model, streaming=True)
            if (engine := service.engines[name]).error:
                raise Busy(503, engine.error)
            service.streams.take(client)
        except Busy as error:
            service.metrics.add("vadis_refused_total", reason=str(error.status))
            await refuse(socket.scope, socket.send, error.status, "busy", str(error))
            return
        except VadisError as error:
            await refuse(socket.scope, socket.send, 422, "invalid", str(error))
            return
        try:
            session = Session(socket, engine, service.encoder(name), service.settings, service.metrics, format)
            await session.run(name, seed, pace, text)
        except ModelError as error:  # it failed in this very moment
            await refuse(socket.scope, socket.send, 503, "busy", str(error))
        finally:
            service.streams.give(client)

    @app.exception_handler(WebSocketRequestValidationError)
    async def invalid(socket: WebSocket, error: WebSocketRequestValidationError) -> None:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "query")
        await refuse(socket.scope, socket.send, 422, "invalid", f"{place}: {first['msg']}.")
