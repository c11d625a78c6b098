"""The live viewer: a local web page with the mannequin, a timeline and a few switches, served by viser."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from vadis.access import Access, page_url
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.viewer.stage import THEME, Stage, start_server, stop_server


def view(motions: Motion | Sequence[Motion], port: int = 8080, host: str = "127.0.0.1", open_browser: bool = True,
         block: bool = True, titles: str | Sequence[str] | None = None, access: Access | None = None) -> "Viewer":  # fmt: skip
    """Show one or several motions side by side in the browser.

    Args:
        motions: one motion or a list; other skeletons than smpl22 are retargeted to it.
        port: TCP port; the next free one is taken when it is busy; 0 takes any.
        host: address to listen on; the default is reachable from this machine only.
        open_browser: open the page in the system's browser.
        block: return only on Ctrl-C; otherwise return at once, the viewer plays on in a thread until `.stop()`.
        titles: one per motion; None takes captions.
        access: who may open the page, and with which token; None: `Access.at(host)`.

    Raises MissingExtra without viser, VadisError when there is nothing to view or no port to listen on.
    """
    motions = [motions] if isinstance(motions, Motion) else list(motions)
    if not motions:
        raise VadisError("nothing to view: give at least one motion.")
    viewer = Viewer(motions, port, host, [titles] if isinstance(titles, str) else titles, access)
    viewer.start()
    if open_browser:
        import webbrowser

        webbrowser.open(viewer.url)
    if block:
        try:
            viewer.wait()
        except KeyboardInterrupt:
            pass
        finally:
            viewer.stop()
    return viewer


class Viewer:
    """A running viewer: `url` (with the token, where there is one), `time`, `playing`, `seek(seconds)`, `stop()`. Also a context manager."""

    def __init__(self, motions: Sequence[Motion], port: int, host: str, titles: Sequence[str] | None = None,
                 access: Access | None = None) -> None:  # fmt: skip
        self.server: Any = start_server(host, port, access)
        self.stage = Stage(self.server, motions, titles)
        self.stage.aim()
        self.url = page_url(host, self.server.get_port(), access and access.token)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="vadis-viewer", daemon=True)
        self._controls()

    def _controls(self) -> None:
        gui, end = self.server.gui, max(self.stage.seconds, 1e-3)
        gui.configure_theme(**THEME)
        self._slider = gui.add_slider("Time (s)", min=0.0, max=round(end, 3), step=0.001, initial_value=0.0)
        self._button = gui.add_button("Pause", icon=None)
        self._speed = gui.add_dropdown("Speed", ("0.1×", "0.25×", "0.5×", "1×", "2×"), initial_value="1×")
        self._loop = gui.add_checkbox("Loop", initial_value=True)
        body = gui.add_checkbox("Body", initial_value=True)
        bones = gui.add_checkbox("Skeleton", initial_value=False)
        labels = gui.add_checkbox("Titles", initial_value=True)
        self.playing = True

        @self._button.on_click
        def _(_: Any) -> None:
            self.playing = not self.playing
            if self.playing and self.time >= end - 1e-3:
                self.seek(0.0)

        @self._slider.on_update
        def _(event: Any) -> None:
            if event.client is not None:  # dragged by a visitor
                self.playing = False
                self.seek(self._slider.value)

        for box in (body, bones):

            @box.on_update
            def _(_: Any) -> None:
                self.stage.toggle(body.value, bones.value)

        @labels.on_update
        def _(_: Any) -> None:
            for label in self.stage.labels:
                label.visible = labels.value

        self.time = 0.0

    @property
    def speed(self) -> float:
        """Playback speed, 1 is real time."""
        return float(self._speed.value.rstrip("×"))

    def seek(self, seconds: float) -> None:
        """Go to a time in seconds, clipped to the motion."""
        self.time = min(max(float(seconds), 0.0), self.stage.seconds)
        self.stage.show(self.time)

    def _play(self) -> None:
        period, told = 1 / min(self.stage.fps, 60.0), 0.0
        last = time.monotonic()
        while not self._stopping.wait(period):
            now = time.monotonic()
            passed, last = now - last, now
            self._button.label = "Pause" if self.playing else "Play"
            if not self.playing:
                continue
            ahead = self.time + passed * self.speed
            if ahead > self.stage.seconds:
                self.playing = bool(self._loop.value)
                ahead = 0.0 if self.playing else self.stage.seconds
            self.seek(ahead)
            if now - told > 0.1 or not self.playing:  # a slider that moves ten times a second is smooth enough
                self._slider.value, told = round(self.time, 3), now

    def start(self) -> None:
        """Begin to play."""
        self._thread.start()

    def wait(self) -> None:
        """Return when the viewer has been stopped."""
        while not self._stopping.wait(0.5):
            pass

    def stop(self) -> None:
        """Stop playing and close the server; harmless when it has been stopped."""
        if not self._stopping.is_set():
            self._stopping.set()
            if self._thread.is_alive():
                self._thread.join(timeout=5)
            stop_server(self.server)

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
