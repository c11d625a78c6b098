"""`vadis view walk.bvh`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.access import access_from
from vadis.cli.common import check_output, say
from vadis.cli.reading import on_model_skeleton, read_motion
from vadis.cli.writing import write
from vadis.errors import VadisError


@dataclass(frozen=True)
class View:
    """Watch motions in the browser, several side by side, or write a page that plays them.

    vadis view walk.bvh other.npz

    vadis view walk.bvh -o walk.html
    """

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE [FILE ...]")]
    """Motion files."""
    out: Annotated[tuple[str, ...], arg(aliases=["-o"], metavar="FILE"), UseAppendAction] = ()
    """Write a self-contained .html page or a .png contact sheet instead of serving."""
    fps: float | None = None
    """Frame rate, for files that don't state it or state it wrongly."""
    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in."""
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

    def run(self) -> None:
        paths = [check_output(path, (".html", ".png")) for path in self.out]
        if not self.files:
            raise VadisError("name a motion file: vadis view walk.bvh.")
        if len(self.files) > 16:
            raise VadisError(f"{len(self.files)} files are too many to see at once; at most 16.")
        if not 1 <= self.port <= 65535:
            raise VadisError(f"--port must be between 1 and 65535; got {self.port}.")
        access = access_from(self.host, self.port, self.token, self.allow_host, self.origin) if not paths else None
        motions = [on_model_skeleton(read_motion(f, fps=self.fps, strict_fps=False)) for f in self.files]
        titles = [Path(file).name for file in self.files]
        if paths:
            for path in paths:
                for file in write(motions, path, titles):
                    print(file)
            return
        from vadis.viewer.live import view

        viewer = view(motions, titles=titles, host=self.host, port=self.port, open_browser=self.browser, block=False,
                      access=access)  # fmt: skip
        print(viewer.url, flush=True)
        say("Ctrl-C stops")
        try:
            viewer.wait()
        finally:
            viewer.stop()
