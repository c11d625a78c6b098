"""`vadis live`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.access import access_from
from vadis.cli.common import check_number, say
from vadis.errors import VadisError


@dataclass(frozen=True)
class Live:
    """A page with a moving body and a text box: type, and it does that. Recordings become BVH and GLB.

    vadis live "a person walks in a circle"
    """

    prompt: Annotated[Positional[tuple[str, ...]], arg(metavar="[PROMPT]")] = ()
    """What it does at first."""
    model: str = "vadis-mini-stream"
    """A bundled model, a folder, or a Hub id."""
    seed: int = 0
    """The same seed and texts at the same moments give the same motion."""
    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in. All visitors see and steer the same body."""
    port: int = 8080
    """Port to serve at; the next free one when it is taken."""
    token: str | None = None
    """Visitors must have it; the address that is printed does. By default the environment variable VADIS_TOKEN, if set."""
    origin: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Web origin whose pages may connect, such as https://example.org; * for all."""
    allow_host: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Further name by which the page may be addressed, as by a proxy; * for all."""
    browser: bool = True
    """Open the page in the browser."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""

    def run(self) -> None:
        if len(self.prompt) > 1:
            raise VadisError("one prompt to begin with is enough; put it in quotes.")
        if not 1 <= self.port <= 65535:
            raise VadisError(f"--port must be between 1 and 65535; got {self.port}.")
        check_number("--seed", self.seed, 0, 2**63 - 1)
        access = access_from(self.host, self.port, self.token, self.allow_host, self.origin)
        from vadis.pipelines.load import load_pipeline
        from vadis.pipelines.player import Player
        from vadis.viewer.live_stream import LiveApp

        say(f"loading {self.model} …")
        pipe = load_pipeline(self.model, device=self.device, allow_download=self.allow_download)
        pipe.check_can("live", self.model)
        pipe.warm()  # loads the text encoder now rather than at the first text
        player = Player(pipe.live(seed=self.seed))
        if self.prompt:
            player.push(self.prompt[0])
        app = LiveApp(player.start(), self.port, self.host, text="".join(self.prompt), access=access)
        try:
            app.start()
            print(app.url, flush=True)
            say("Ctrl-C stops")
            if self.browser:
                import webbrowser

                webbrowser.open(app.url)
            app.wait()
        finally:
            app.stop()
            player.stop()
