"""Many live streams of one model in one batch: a thread that makes the next latent of every stream that is due.

Streams join, change their text and leave at any latent; what one makes does not depend on the others and equals
`MotionStream` with the same seed and texts. A stream whose reader lags behind is not advanced (back-pressure). A failure ends
the streams that it belongs to; when it belongs to the model, all of them, and the worker tries the model again until it works.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from vadis.errors import ModelError, VadisError
from vadis.server.metrics import Metrics
from vadis.server.protocol import Frames
from vadis.server.rows import Rows

Pace = Literal["realtime", "fast"]
"""As the frames play, or as fast as they are read."""
MAX_DEBT = 1.0
"""Seconds that a late stream makes up for; beyond, its clock is set back."""
TRY_AGAIN = (1.0, 60.0)
"""Seconds until a model that failed is tried a second time, doubled each time up to the last."""
log = logging.getLogger("vadis.server")


class LiveStream:
    """One stream of an engine. Its methods may be called from any thread."""

    def __init__(
        self, engine: "StreamEngine", seed: int | None, pace: Pace, deliver: Callable[[Frames | VadisError], object]
    ) -> None:
        self.engine, self.seed, self.pace, self.deliver = engine, seed, pace, deliver
        self.row: int | None = None
        self.pending: deque[tuple[int, Tensor]] = deque()
        self.replace = self.paused = self.closed = False
        self.text, self.vector = 0, torch.zeros(0)
        self.since = self.frames = self.waiting = 0
        self.clock = 0.0
        """When frame 0 would have been played, on the monotonic clock."""

    def push(self, number: int, vector: Tensor, queue: bool = False) -> None:
        """Go on with text `number` from the next latent on; with `queue` when the motion before has ended."""
        with self.engine.changed:
            if not queue:
                self.pending.clear()
                self.replace = True
            self.pending.append((number, vector))
            self.engine.changed.notify()

    def take_text(self) -> tuple[int, Tensor] | None:
        """The text that comes next, if there is one."""
        with self.engine.changed:
            self.replace = False
            return self.pending.popleft() if self.pending else None

    def put_back(self, text: tuple[int, Tensor]) -> None:
        """Undo `take_text`."""
        with self.engine.changed:
            if not self.replace:
                self.pending.appendleft(text)

    def pause(self, paused: bool = True) -> None:
        """Stop making frames, or go on."""
        with self.engine.changed:
            if self.paused and not paused:
                self.clock = time.monotonic() - self.frames / self.engine.fps
            self.paused = paused
            self.engine.changed.notify()

    def taken(self) -> None:
        """The reader has taken one delivery."""
        with self.engine.changed:
            self.waiting -= 1
            if self.waiting == self.engine.ahead - 1:
                self.engine.changed.notify()

    def close(self) -> None:
        """Leave the batch."""
        with self.engine.changed:
            self.closed = True
            self.engine.changed.notify()


class StreamEngine:
    """A worker thread around `Rows`.

    Args:
        pipeline: a MotionStreamPipeline.
        rows: streams that can move at the same time.
        lead: seconds that a stream in real time is made before it is due.
        ahead: latents that may wait for a reader before its stream stops.
    """

    def __init__(
        self, pipeline: Any, rows: int = 16, *, lead: float = 0.3, ahead: int = 8, metrics: Metrics | None = None
    ) -> None:
        pipeline.check_can("live")
        self.pipeline, self.lead, self.ahead, self.metrics = pipeline, lead, ahead, metrics
        self.fps = pipeline.fps
        self.latent_seconds = pipeline.tokenizer.frames_per_token / self.fps
        self.count, self.rows = rows, Rows(pipeline, rows)
        self.changed = threading.Condition()  # its lock may be taken again by who holds it
        self.streams: list[LiveStream] = []
        self.error: str | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vadis-streams", daemon=True)
        self._thread.start()

    def open(
        self, deliver: Callable[[Frames | VadisError], object], seed: int | None = None, pace: Pace = "realtime"
    ) -> LiveStream:
        """A new stream, still without a text. `deliver` is called in the worker's thread and must not wait.

        Raises ModelError while the model fails.
        """
        with self.changed:
            if self.error or self._stopping:
                raise ModelError(self.error or "the server is stopping.")
            stream = LiveStream(self, seed, pace, deliver)
            self.streams.append(stream)
            return stream

    def stop(self) -> None:
        """End the worker after the latent that it is making."""
        with self.changed:
            self._stopping = True
            self.changed.notify()
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        """Whether the worker runs and the model works."""
        return self._thread.is_alive() and self.error is None

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._work()
            except Exception as error:  # whatever it is, readers must hear of it and the worker must go on
                log.exception("a model failed; its streams were closed, it is tried again")
                self._failed("model")
                with self.changed:
                    self.error = f"the model failed ({type(error).__name__}) and is tried again: come back in a moment."
                    for stream in self.streams:
                        self._end(stream, VadisError(self.error))
                    self.streams.clear()
                self._recover()

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self._stopping and not (due := self._due()):
                    self.changed.wait(self._patience)
                if self._stopping:
                    return
            self._advance(due)

    def _recover(self) -> None:
        """Return with a new batch when the model works again, or when the engine is stopped."""
        wait = 0.0
        while True:
            with self.changed:
                if self.changed.wait_for(lambda: self._stopping, wait):
                    return
            try:
                rows = Rows(self.pipeline, self.count)
                rows.try_out()
            except Exception as error:
                log.error("the model still fails: %s: %s", type(error).__name__, error)
                wait = min(max(2 * wait, TRY_AGAIN[0]), TRY_AGAIN[1])
                continue
            with self.changed:
                self.rows, self.error = rows, None
            log.warning("the model works again")
            return

    def _failed(self, what: Literal["model", "stream"]) -> None:
        if self.metrics:
            self.metrics.add("vadis_failures_total", what=what)

    def _end(self, stream: LiveStream, error: VadisError) -> None:
        stream.closed = True
        self._deliver(stream, error)

    def _deliver(self, stream: LiveStream, item: Frames | VadisError) -> None:
        try:
            stream.deliver(item)
        except Exception:  # its event loop has ended
            stream.closed = True

    def _due(self) -> list[LiveStream]:
        """Streams to advance now, rows and texts up to date; sets how long to wait when there are none."""
        for stream in [s for s in self.streams if s.closed]:
            self.rows.leave(stream)
            self.streams.remove(stream)
        now = time.monotonic()
        ready: list[tuple[float, LiveStream]] = []
        for stream in self.streams:
            if stream.paused or stream.waiting >= self.ahead or not (stream.text or stream.pending):
                continue
            if stream.row is None:
                if not self.rows.join(stream):
                    continue
                stream.clock = now
            ready.append((self._when(stream, now), stream))
        first = min((when for when, _ in ready), default=None)
        self._patience = None if first is None else max(first - now, 0.0)
        if first is None or first > now:
            return []
        soon = now + self.latent_seconds / 2  # those that are nearly due come along: one batch costs less than two
        return [stream for when, stream in ready if when <= soon and self._up_to_date(stream)]

    def _up_to_date(self, stream: LiveStream) -> bool:
        """Give a stream the text that it shall follow; False for a text that the model refuses, which ends the stream."""
        if (stream.replace or not stream.text) and (text := stream.take_text()) is not None:
            try:
                self.rows.change(stream, *text)
            except VadisError as error:
                self._failed("stream")
                self._end(stream, error)
                return False
        return True

    def _when(self, stream: LiveStream, now: float) -> float:
        """When a stream's next latent is to be made."""
        if stream.pace == "fast":
            return now
        when = stream.clock + stream.frames / self.fps - self.lead
        debt = now - when - MAX_DEBT
        if debt > 0:
            stream.clock += debt
            if self.metrics:
                self.metrics.add("vadis_late_seconds_total", debt)
        return when

    def _advance(self, due: list[LiveStream]) -> None:
        started = time.perf_counter()
        try:
            results = self.rows.step(due)
        except Exception as error:
            results = self._apart(due, error)
        if self.metrics:
            self.metrics.observe("vadis_latent_seconds", time.perf_counter() - started)
            self.metrics.add("vadis_latents_total", len(due))
            self.metrics.add("vadis_frames_total", len(due) * self.pipeline.tokenizer.frames_per_token)
        with self.changed:
            for stream, item in zip(due, results, strict=True):
                if stream.closed:
                    continue
                if isinstance(item, VadisError):
                    self._end(stream, item)
                else:
                    stream.waiting += 1
                    self._deliver(stream, item)

    def _apart(self, due: list[LiveStream], error: Exception) -> list[Frames | VadisError]:
        """Each stream by itself after the batch has failed; an error for those that fail alone too.

        Raises when it is the model that fails.
        """
        results: list[Frames | VadisError] = []
        for stream in due:
            try:
                results += self.rows.step([stream])
            except Exception as own:
                error = own
                self._failed("stream")
                results.append(VadisError(f"this stream failed ({type(own).__name__}): open a new one."))
        if all(isinstance(item, VadisError) for item in results):
            Rows(self.pipeline, 1).try_out()
        log.error("streams failed and were closed", exc_info=error)
        return results
