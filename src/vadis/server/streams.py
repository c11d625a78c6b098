"""Many live streams of one model in one batch: a thread that makes the next latent of every stream that is due.

Streams join, change their text and leave at any latent; what one makes does not depend on the others and equals
`MotionStream` with the same seed and texts. A stream whose reader lags behind is not advanced (back-pressure).

Shapes: R rows, n frames a latent, D features, J joints.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ModelError, VadisError
from vadis.pipelines.stream import RunningRoot
from vadis.server.metrics import Metrics
from vadis.server.protocol import Frames

Pace = Literal["realtime", "fast"]
"""As the frames play, or as fast as they are read."""
MAX_DEBT = 1.0
"""Seconds that a late stream makes up for; beyond, its clock is set back."""


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


class Rows:
    """The batch itself: rows of the generator, of the decoder and of the place in the world. One thread only."""

    def __init__(self, pipeline: Any, rows: int) -> None:
        self.pipeline, c = pipeline, pipeline.config
        RunningRoot(pipeline.tokenizer.representation)  # refuses what can't be placed piece by piece
        null = pipeline.sentence("") if c.guidance_scale != 1 else None
        names = ("guidance_scale", "sampler", "steps", "temperature", "keep")
        self.latents = pipeline.generator.streams(rows, null_text=null, **{name: getattr(c, name) for name in names})
        self.decoder = pipeline.tokenizer.stream_decoder(rows)
        reach = pipeline.generator.config.stop_threshold if c.stop_threshold is None else c.stop_threshold
        self.reach, self.min_latents = reach, c.min_latents
        self.turn = torch.eye(3, dtype=torch.float64).repeat(rows, 1, 1)
        self.place = torch.zeros(rows, 2, dtype=torch.float64)
        self.free = list(range(rows))[::-1]

    def join(self, stream: LiveStream) -> bool:
        """Give a stream a row; False when none is free."""
        if not self.free:
            return False
        row = stream.row = self.free.pop()
        self.decoder.reset([row])
        self.turn[row], self.place[row] = torch.eye(3, dtype=torch.float64), 0.0
        return True

    def leave(self, stream: LiveStream) -> None:
        """Take a stream's row back."""
        if stream.row is not None:
            self.latents.leave(stream.row)
            self.free.append(stream.row)
            stream.row = None

    def change(self, stream: LiveStream, number: int, vector: Tensor) -> None:
        """Make a stream follow another text."""
        if stream.text:
            self.latents.set_text(stream.row, vector)
        else:
            self.latents.start(stream.row, vector, None, stream.seed)
        stream.text, stream.vector, stream.since = number, vector, 0

    @torch.no_grad()
    def step(self, streams: Sequence[LiveStream]) -> list[Frames | None]:
        """The next frames of each stream; None for one whose latent is not finite, which must leave."""
        started = time.perf_counter()
        latents = self.latents.step([s.row for s in streams])
        ended = (latents - self.pipeline.generator.end_latent.to(latents)).norm(dim=-1) < self.reach
        again = [k for k, s in enumerate(streams) if bool(ended[k]) and s.since >= self.min_latents]
        for k in again:
            stream = streams[k]
            self.latents.undo(stream.row)
            self.change(stream, *(stream.pending.popleft() if stream.pending else (stream.text, stream.vector)))
        if again:
            latents[again] = self.latents.step([streams[k].row for k in again])
        good = [k for k, finite in enumerate(latents.isfinite().all(-1).tolist()) if finite]
        results: list[Frames | None] = [None] * len(streams)
        if not good:
            return results
        features = self.decoder.push(latents[good, None], [streams[k].row for k in good])  # (R, n, D)
        root, quaternions = self._placed(features.cpu(), [streams[k].row for k in good])
        ms = 1000 * (time.perf_counter() - started)
        for i, k in enumerate(good):
            stream = streams[k]
            results[k] = Frames(
                stream.frames, stream.text, self.pipeline.tokenizer.fps, ms, root[i].numpy(), quaternions[i].numpy()
            )
            stream.frames += features.shape[1]
            stream.since += 1
        return results

    def _placed(self, features: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
        """Root positions `(R, n, 3)` and local quaternions `(R, n, J, 4)`, going on from where each body was.

        As `RunningRoot`, for all rows at once.
        """
        representation = self.pipeline.representation
        x = features.double()
        before = x[:, :1].clone()
        before[..., :2], before[..., 2:8] = self.place[rows, None], rotation.to_6d(self.turn[rows], "rows")[:, None]
        x = torch.cat([before, x], dim=1)
        local, root = representation.rotations(x)
        self.turn[rows] = representation.root_path(x)[0][:, -1]
        self.place[rows] = root[:, -1, [0, 2]]
        return root[:, 1:].float(), rotation.to_quat_wxyz(local[:, 1:].float())


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
        if not hasattr(getattr(pipeline, "generator", None), "streams"):
            raise ModelError(f"a {type(pipeline).__name__} makes whole motions only: serve a streaming model.")
        self.pipeline, self.lead, self.ahead, self.metrics = pipeline, lead, ahead, metrics
        self.fps = float(pipeline.tokenizer.fps)
        self.latent_seconds = pipeline.tokenizer.frames_per_token / self.fps
        self.rows = Rows(pipeline, rows)
        self.changed = threading.Condition()
        self.streams: list[LiveStream] = []
        self.error: str | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vadis-streams", daemon=True)
        self._thread.start()

    def open(
        self, deliver: Callable[[Frames | VadisError], object], seed: int | None = None, pace: Pace = "realtime"
    ) -> LiveStream:
        """A new stream, still without a text. `deliver` is called in the worker's thread and must not wait.

        Raises ModelError when the engine has failed.
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
        """Whether the worker works."""
        return self._thread.is_alive() and self.error is None

    def _run(self) -> None:
        try:
            while True:
                with self.changed:
                    while not self._stopping and not (due := self._due()):
                        self.changed.wait(self._patience)
                    if self._stopping:
                        return
                self._advance(due)
        except Exception as error:  # whatever it is, readers must hear of it
            logging.getLogger("vadis.server").exception("the streams stopped")
            with self.changed:
                self.error = f"the model failed ({type(error).__name__}): restart the server."
                for stream in self.streams:
                    stream.deliver(VadisError(self.error))

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
        due = [stream for when, stream in ready if when <= soon]
        for stream in due:
            if stream.pending and (stream.replace or not stream.text):
                self.rows.change(stream, *stream.pending.popleft())
                stream.replace = False
        return due

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
        results = self.rows.step(due)
        if self.metrics:
            self.metrics.observe("vadis_latent_seconds", time.perf_counter() - started)
            self.metrics.add("vadis_latents_total", len(due))
            self.metrics.add("vadis_frames_total", len(due) * self.pipeline.tokenizer.frames_per_token)
        with self.changed:
            for stream, frames in zip(due, results, strict=True):
                if stream.closed:
                    continue
                if frames is None:
                    stream.closed = True
                    stream.deliver(VadisError("the model made numbers that are not finite: open a new stream."))
                else:
                    stream.waiting += 1
                    stream.deliver(frames)
