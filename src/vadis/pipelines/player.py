"""A live stream played in real time by a thread: what `vadis stream` and `vadis live` are made of."""

import threading
import time
from collections import deque
from collections.abc import Callable

from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.pipelines.base import MotionChunk
from vadis.pipelines.placing import join
from vadis.pipelines.stream import MotionStream

KEPT = 150
"""Pieces that stay in memory to be shown, and durations that the figures are made of."""


class Player:
    """Makes the frames of a stream shortly before they are due.

    Args:
        stream: used by this player alone from now on.
        show: called in the player's thread with every piece, as soon as it is made.
        realtime: False makes pieces as fast as they come.
        lead: seconds that frames are made before they are due; a new text is seen that much later.
        limit: frames after which it ends by itself.
    """

    def __init__(
        self,
        stream: MotionStream,
        show: Callable[[MotionChunk], None] | None = None,
        *,
        realtime: bool = True,
        lead: float = 0.3,
        limit: int | None = None,
    ) -> None:
        self.stream, self.show, self.realtime, self.lead, self.limit = stream, show, realtime, lead, limit
        self.fps = stream.pipeline.fps
        self.recording: list[Motion] | None = None
        """Pieces since `record(True)`."""
        self.latents: deque[float] = deque(maxlen=KEPT)
        """Seconds that each of the last took to make."""
        self.answers: deque[float] = deque(maxlen=KEPT)
        """Seconds from a text, its encoding included, to the first frames made for it."""
        self.error: Exception | None = None
        self._pieces: deque[MotionChunk] = deque(maxlen=KEPT)
        self._asked: dict[str, float] = {}
        self._changed, self._stopping, self.begun = threading.Condition(), False, bool(stream.waiting)
        self._clock = 0.0
        self._thread = threading.Thread(target=self._run, name="vadis-player", daemon=True)

    def start(self) -> "Player":
        """Begin; nothing is made before the first text."""
        self._thread.start()
        return self

    def push(self, text: str, *, queue: bool = False) -> None:
        """As `MotionStream.push_text`; raises VadisError for a text that can't be read."""
        started = time.perf_counter()
        self.stream.push_text(text, queue=queue)
        with self._changed:
            if not queue:
                self._asked[text] = started
            self.begun = True
            self._changed.notify_all()

    def pause(self, paused: bool = True) -> None:
        """Stand still, or go on."""
        with self._changed:
            if paused:
                self.stream.pause()
            elif self.stream.paused:
                self._clock = time.perf_counter() - self.stream.frames / self.fps + self.lead
                self.stream.resume()
            self._changed.notify_all()

    def record(self, on: bool) -> Motion | None:
        """Begin to record, or end and give the motion; None when nothing was recorded."""
        with self._changed:
            pieces, self.recording = self.recording, [] if on else None
        return join(pieces) if pieces and not on else None

    def now(self) -> tuple[MotionChunk, int] | None:
        """The piece to be shown now and the frame in it; the last one when the maker is late."""
        with self._changed:
            if not self._pieces:
                return None
            frame = int((time.perf_counter() - self._clock) * self.fps)
            if self.stream.paused:
                frame = self.stream.frames
            for piece in reversed(self._pieces):
                if piece.start <= frame:
                    return piece, min(frame - piece.start, piece.motion.num_frames - 1)
            return self._pieces[0], 0

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended by itself; raises what ended it. Returns whether it has."""
        self._thread.join(seconds)
        if self.error is not None:
            raise self.error
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End after the piece that is being made; harmless when it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            while self._ready():
                started = time.perf_counter()
                try:
                    piece = self.stream.next_frames()
                except VadisError:
                    if self.stream.paused:  # since we looked
                        continue
                    raise
                self._take(piece, started)
        except Exception as error:  # raised again by wait()
            self.error = error

    def _ready(self) -> bool:
        """Wait until the next piece should be made; False when there shall be none."""
        with self._changed:
            while not self._stopping:
                if self.limit is not None and self.stream.frames >= self.limit:
                    return False
                if not self.begun or self.stream.paused:
                    self._changed.wait()
                    continue
                now = time.perf_counter()
                if not self.stream.frames:
                    self._clock = now + self.lead
                due = self._clock + self.stream.frames / self.fps - self.lead
                if not self.realtime or now >= due:
                    if now - due > 1.0:  # hopelessly late: go on from here
                        self._clock = now - self.stream.frames / self.fps + self.lead
                    return True
                self._changed.wait(due - now)
            return False

    def _take(self, piece: MotionChunk, started: float) -> None:
        done = time.perf_counter()
        with self._changed:
            self.latents.append(done - started)
            if piece.text in self._asked:
                self.answers.append(done - self._asked.pop(piece.text))
                self._asked.clear()  # older ones were never begun
            self._pieces.append(piece)
            if self.recording is not None:
                self.recording.append(piece.motion)
        if self.show is not None:
            self.show(piece)
