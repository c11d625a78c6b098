"""The batch that the live streams of one model share: rows of the generator, of the decoder and of the place in the world.

Shapes: R rows, n frames a latent, D features, J joints.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.pipelines.placing import RunningRoot
from vadis.server.protocol import Frames

NOT_FINITE = "the model made numbers that are not finite: open a new stream."


class Stream(Protocol):
    """What a stream that shares the batch keeps for it."""

    row: int | None
    seed: int | None
    text: int
    """Number of the text that it follows; 0 before the first."""
    vector: Tensor
    since: int
    """Latents made of that text."""
    frames: int

    def take_text(self) -> tuple[int, Tensor] | None: ...

    def put_back(self, text: tuple[int, Tensor]) -> None: ...


class Rows:
    """The batch itself: rows of the generator, of the decoder and of the place in the world. One thread only."""

    def __init__(self, pipeline: Any, rows: int) -> None:
        self.pipeline, c = pipeline, pipeline.config
        RunningRoot(pipeline.tokenizer.representation)  # refuses what can't be placed piece by piece
        null = pipeline.sentence("") if c.guidance_scale != 1 else None
        names = ("guidance_scale", "sampler", "steps", "temperature", "keep", "max_step")
        self.latents = pipeline.generator.streams(rows, null_text=null, **{name: getattr(c, name) for name in names})
        self.decoder = pipeline.tokenizer.stream_decoder(rows)
        reach = pipeline.generator.config.stop_threshold if c.stop_threshold is None else c.stop_threshold
        self.reach, self.min_latents = reach, c.min_latents
        self.turn = torch.eye(3, dtype=torch.float64).repeat(rows, 1, 1)
        self.place = torch.zeros(rows, 2, dtype=torch.float64)
        self.free = list(range(rows))[::-1]

    def join(self, stream: "Stream") -> bool:
        """Give a stream a row; False when none is free."""
        if not self.free:
            return False
        row = stream.row = self.free.pop()
        self.decoder.reset([row])
        self.turn[row], self.place[row] = torch.eye(3, dtype=torch.float64), 0.0
        return True

    def try_out(self) -> None:
        """Make a latent of nothing in particular. Raises whatever the model raises."""
        self.latents.start(0, torch.zeros(self.pipeline.generator.config.text_dim), None, 0)
        self.decoder.push(self.latents.step([0])[:, None], [0])
        self.latents.leave(0)
        self.decoder.reset([0])

    def leave(self, stream: "Stream") -> None:
        """Take a stream's row back."""
        if stream.row is not None:
            self.latents.leave(stream.row)
            self.free.append(stream.row)
            stream.row = None

    def change(self, stream: "Stream", number: int, vector: Tensor) -> None:
        """Make a stream follow another text."""
        if stream.text:
            self.latents.set_text(stream.row, vector)
        else:
            self.latents.start(stream.row, vector, None, stream.seed)
        stream.text, stream.vector, stream.since = number, vector, 0

    def step(self, streams: Sequence["Stream"]) -> list[Frames | VadisError]:
        """The next frames of each stream; an error for one whose numbers are not finite, which must leave.

        Whatever the model raises is raised with every stream as it was before.
        """
        before = self.latents.saved([s.row for s in streams])
        texts = [(s.text, s.vector, s.since) for s in streams]
        begun: list[tuple[Stream, tuple[int, Tensor]]] = []
        try:
            return self._step(streams, begun)
        except Exception:
            self.latents.restore(before)
            for stream, text in begun:
                stream.put_back(text)
            for stream, kept in zip(streams, texts, strict=True):
                stream.text, stream.vector, stream.since = kept
            raise

    @torch.no_grad()
    def _step(
        self, streams: Sequence["Stream"], begun: list[tuple["Stream", tuple[int, Tensor]]]
    ) -> list[Frames | VadisError]:
        """As `step`; queued texts that begin are noted in `begun`."""
        started = time.perf_counter()
        latents = self.latents.step([s.row for s in streams])
        ended = (latents - self.pipeline.generator.end_latent.to(latents)).norm(dim=-1) < self.reach
        again = [k for k, s in enumerate(streams) if bool(ended[k]) and s.since >= self.min_latents]
        for k in again:
            stream = streams[k]
            self.latents.undo(stream.row)
            if (text := stream.take_text()) is not None:
                begun.append((stream, text))
            self.change(stream, *(text or (stream.text, stream.vector)))
        if again:
            latents[again] = self.latents.step([streams[k].row for k in again])
        results: list[Frames | VadisError] = [VadisError(NOT_FINITE) for _ in streams]
        good = [k for k, finite in enumerate(latents.isfinite().all(-1).tolist()) if finite]
        if not good:
            return results
        features = self.decoder.push(latents[good, None], [streams[k].row for k in good])  # (R, n, D)
        root, quaternions = self._placed(features.cpu(), [streams[k].row for k in good])
        finite = features.isfinite().all(-1).all(-1).tolist()
        ms = 1000 * (time.perf_counter() - started)
        for i, k in enumerate(good):
            stream = streams[k]
            if finite[i]:
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
