"""`vadis serve`."""

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from vadis.access import free_port, page_url
from vadis.cli.access import access_from
from vadis.cli.common import check_number, say
from vadis.errors import MissingExtra, VadisError

DEFAULT_MODELS = ("vadis-mini", "vadis-mini-stream")


@dataclass(frozen=True)
class Serve:
    """Serve models over HTTP and WebSocket: POST /generate, WebSocket /stream, GET /models /health /metrics /docs.

    vadis serve --port 8000

    curl -s localhost:8000/generate -H 'content-type: application/json' -d '{"prompt": "walk", "format": "bvh"}'
    """

    model: Annotated[tuple[str, ...], arg(aliases=["-m"], metavar="MODEL"), UseAppendAction] = ()
    """A bundled model, a folder, or a Hub id; `name=folder` sets the name. Several may be given. Default: the bundled ones."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port to listen on; 0 takes any free one."""
    token: str | None = None
    """Clients must send it; by default the environment variable VADIS_TOKEN, if set."""
    origin: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Web origin whose pages may connect, such as https://example.org; * for all."""
    allow_host: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Further name by which the server may be addressed, as by a proxy; * for all."""
    trust_proxy: Annotated[tuple[str, ...], arg(metavar="ADDRESS"), UseAppendAction] = ()
    """Address or network of a proxy (127.0.0.1 for one on this machine) whose X-Forwarded-For or Forwarded names the client."""
    max_streams: int = 16
    """Streams at a time."""
    max_streams_per_client: int = 8
    """Streams of one address."""
    max_requests: int = 16
    """Motions in progress or waiting."""
    max_requests_per_client: int = 4
    """Of one address."""
    max_connections: int = 512
    """Open connections; more are refused."""
    max_seconds: float = 60.0
    """Longest motion of POST /generate."""
    grace: int = 20
    """Seconds that motions in progress get when the server is stopped."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""
    verbose: bool = False
    """Log what happens to stderr."""

    def run(self) -> None:
        settings = self._settings()
        try:
            from vadis.server.run import make_server
        except ImportError as error:
            raise MissingExtra("the server needs FastAPI and uvicorn: pip install 'vadis[server]'") from error
        from vadis.server.models import Models

        pipelines = self._load()
        Models(pipelines).warm()
        port = self.port or free_port(self.host)
        server = make_server(pipelines, settings, host=self.host, port=port, grace_seconds=self.grace,
                             log_level="info" if self.verbose else "warning")  # fmt: skip
        url = page_url(self.host, port)
        print(url, flush=True)
        say(f"{', '.join(pipelines)}; documentation at {url}/docs; Ctrl-C stops")
        server.run()
        if not server.started:
            raise VadisError(f"can't listen on {self.host}:{port}: choose another --port or --host.")

    def _settings(self) -> Any:
        from vadis.server.limits import ServerSettings

        if not 0 <= self.port <= 65535:
            raise VadisError(f"--port must be between 0 and 65535; got {self.port}.")
        for name in ("max_streams", "max_streams_per_client", "max_requests", "max_requests_per_client"):
            check_number(f"--{name.replace('_', '-')}", getattr(self, name), 1, 100_000)
        check_number("--max-connections", self.max_connections, 1, 1_000_000)
        check_number("--max-seconds", self.max_seconds, 0.3, 3600, "s")
        check_number("--grace", self.grace, 0, 3600, "s")
        access = access_from(self.host, self.port, self.token, self.allow_host, self.origin)
        return ServerSettings(
            token=access.token,
            hosts=access.hosts,
            origins=access.origins,
            trust_proxy=self.trust_proxy or None,
            max_connections=self.max_connections,
            max_streams=self.max_streams,
            max_streams_per_client=self.max_streams_per_client,
            max_requests=self.max_requests,
            max_requests_per_client=self.max_requests_per_client,
            max_seconds=self.max_seconds,
        )

    def _load(self) -> dict[str, Any]:
        """The pipelines by name."""
        from pathlib import Path

        import vadis
        from vadis.hub import bundled_models

        wanted = self.model or tuple(name for name in DEFAULT_MODELS if name in bundled_models())
        pipelines: dict[str, Any] = {}
        for entry in wanted:
            name, _, source = entry.rpartition("=")
            name = name or (Path(source).name if Path(source).is_dir() else source)
            if name in pipelines:
                raise VadisError(f"the name {name} stands for two models: write name=folder.")
            say(f"loading {source} …")
            pipelines[name] = vadis.load(source, device=self.device, allow_download=self.allow_download)
        return pipelines
