"""`vadis stream`: sentences typed in the terminal while the body moves."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.access import access_from
from vadis.cli.common import check_number, check_output, say
from vadis.cli.writing import suffixes, write
from vadis.errors import VadisError
from vadis.files import atomic_write

FRAMES_SUFFIX = ".vds"
"""The messages of the server's binary layout, one after the other."""
HELP = "a sentence changes what the body does; + before it waits for the end; /pause /resume /quit"


@dataclass(frozen=True)
class Stream:
    """A body that does what you type, while it moves.

    vadis stream "a person walks" -o session.bvh --view

    vadis stream "a person walks" "a person sits down" --every 4 --seconds 12 -o out.glb < /dev/null
    """

    prompt: Annotated[Positional[tuple[str, ...]], arg(metavar="[PROMPT ...]")] = ()
    """What it does at first; further ones follow when the motion before has ended, or after `--every` seconds."""
    out: Annotated[tuple[str, ...], arg(aliases=["-o"], metavar="FILE"), UseAppendAction] = ()
    """File to write at the end: .bvh .glb .npz .npy .png .html; .vds takes the frames as they are made."""
    model: str = "vadis-mini-stream"
    """A bundled model, a folder, or a Hub id."""
    seconds: float | None = None
    """End after so much motion; by default with /quit, Ctrl-C or Ctrl-D."""
    every: float | None = None
    """Seconds that each PROMPT lasts."""
    seed: int = 0
    """The same seed and texts at the same moments give the same motion."""
    fast: bool = False
    """Make frames as fast as possible instead of in real time."""
    view: bool = False
    """Show the body in the browser."""
    port: int = 8080
    """Port of the viewer; the next free one when it is taken."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""

    def run(self) -> None:
        paths = self._check()
        from vadis.pipelines.load import load_pipeline
        from vadis.pipelines.player import Player

        say(f"loading {self.model} …")
        pipe = load_pipeline(self.model, device=self.device, allow_download=self.allow_download)
        pipe.check_can("live", self.model)
        limit = None if self.seconds is None else round(self.seconds * pipe.fps)
        with ExitStack() as stack:
            sinks = [stack.enter_context(_frames_file(path)) for path in paths if path.suffix == FRAMES_SUFFIX]
            show = _Shown(sinks, self.every, pipe.fps, self.prompt)
            player = Player(pipe.live(seed=self.seed), show, realtime=not self.fast, limit=limit)
            stack.callback(player.stop)
            show.player = player
            player.record(any(path.suffix != FRAMES_SUFFIX for path in paths))
            if self.view:
                stack.callback(self._viewer(player).stop)
            for k, text in enumerate(self.prompt if self.every is None else self.prompt[:1]):
                player.push(text, queue=k > 0)
            self._converse(player.start())
            player.stop()
            if player.error is not None:
                raise player.error
            show.line("")
            motion = player.record(False)
        if not show.texts:
            raise VadisError("no text was given, so nothing moved.")
        for path in paths:
            files = [path]
            if path.suffix != FRAMES_SUFFIX and motion is not None:
                files = write([motion.crop(0, limit)], path, [" · ".join(show.texts)[:80]])
            print(*files, sep="\n")
        made, seconds = sorted(player.latents), player.stream.frames / player.fps
        say(f"{seconds:.1f} s of motion, {1000 * made[len(made) // 2]:.0f} ms a latent (median of the last ones)")

    def _check(self) -> list[Path]:
        known = (*suffixes(), FRAMES_SUFFIX)
        paths = [check_output(path, known) for path in self.out]
        if self.seconds is not None:
            check_number("--seconds", self.seconds, 0.1, 86_400, "s")
        if self.every is not None:
            check_number("--every", self.every, 0.1, 3600, "s")
        check_number("--seed", self.seed, 0, 2**63 - 1)
        if self.fast and self.seconds is None:
            raise VadisError("--fast would never end: give --seconds too.")
        if self.fast and self.view:
            raise VadisError("--view shows real time: leave out --fast.")
        return paths

    def _viewer(self, player: Any) -> Any:
        from vadis.viewer.live_stream import LiveBody

        body = LiveBody(player, port=self.port, access=access_from("127.0.0.1", self.port)).start()
        print(body.url, flush=True)
        return body

    def _converse(self, player: Any) -> None:
        """Do what is typed until the end. Input that ends on its own is no end when a length was asked for."""
        if sys.stdin.isatty():
            say(HELP)
        done = threading.Event()
        reader = threading.Thread(target=self._read, args=(player, done), daemon=True)
        reader.start()
        try:
            while not player.wait(0.2):
                if done.is_set():
                    return
        except KeyboardInterrupt:
            say("")

    def _read(self, player: Any, done: threading.Event) -> None:
        for line in _lines():
            text = " ".join(line.split())
            try:
                match text:
                    case "":
                        continue
                    case "/quit" | "/q":
                        done.set()
                        return
                    case "/pause":
                        player.pause()
                    case "/resume":
                        player.pause(False)
                    case _ if text.startswith("/"):
                        say(HELP)
                    case _:
                        player.push(text.removeprefix("+").strip(), queue=text.startswith("+"))
            except VadisError as error:
                say(f"vadis: {error}")
        if self.seconds is None or not player.begun:
            done.set()


def _lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except (ValueError, OSError):  # closed while we wait
        return


class _Shown:
    """What happens with every piece: files, the line in the terminal, the next prompt when its time has come."""

    def __init__(self, sinks: list[Any], every: float | None, fps: float, prompts: tuple[str, ...]) -> None:
        self.sinks, self.every, self.fps, self.prompts = sinks, every, fps, prompts
        self.player: Any = None
        self.texts: list[str] = []
        self._said = 0.0

    def __call__(self, piece: Any) -> None:
        from vadis.server.models import as_frames
        from vadis.server.protocol import Frames, pack

        if not self.texts or self.texts[-1] != piece.text:
            self.texts.append(piece.text)
            if not sys.stderr.isatty():
                say(f"{piece.start / self.fps:7.2f} s  {piece.text}")
        ms = 1000 * self.player.latents[-1]
        if self.sinks:
            made = as_frames(piece.motion)
            for sink in self.sinks:
                sink.write(pack(Frames(piece.start, len(self.texts), made.fps, ms, made.root, made.quaternions)))
        if time.monotonic() - self._said > 0.2:
            self._said = time.monotonic()
            self.line(f"{piece.start / self.fps:6.1f} s  {ms:4.0f} ms a latent  {piece.text[:60]}")
        reached = piece.start + piece.motion.num_frames
        if self.every is not None:
            following = round(reached / self.fps / self.every, 6)
            number = int(following)
            before = int(round(piece.start / self.fps / self.every, 6))
            if number > before and 0 < number < len(self.prompts):
                self.player.push(self.prompts[number])

    def line(self, text: str) -> None:
        """Put a line of state above what is being typed."""
        if sys.stderr.isatty():
            print(f"\0337\033[A\r\033[2K{text}\0338" if text else "", end="", file=sys.stderr, flush=True)


@contextmanager
def _frames_file(path: Path) -> Iterator[Any]:
    """A file of frames that appears when it is whole."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        yield file
