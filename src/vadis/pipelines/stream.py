"""Motion that streams while its text changes: latents one by one, decoded at once, placed in the world.

`MotionStreamPipeline` holds the parts; `pipe.live()` opens a `MotionStream`. Everything that must go on across a change of
text does: the generator's history, the decoder's left contexts, heading and place of the root. Memory stays the same however
long a stream runs.

Shapes: n = frames_per_token frames a latent, D features, C numbers of a latent.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis.errors import ModelError, VadisError
from vadis.generators.diffusion import Sampler
from vadis.generators.latent_streams import Generating
from vadis.generators.planner import PlanKind, PlannedSentences
from vadis.pipelines.base import (
    MAX_GUIDANCE,
    Capabilities,
    Made,
    MotionChunk,
    Piece,
    PipelineConfig,
    Work,
    decode_motion,
)
from vadis.pipelines.components import ComponentPipeline
from vadis.pipelines.placing import RunningRoot
from vadis.sizes import CONFIG, Name, Seconds
from vadis.text_encoders import SentenceCache, check_prompts


@checked_dataclass(frozen=True, config=CONFIG)
class StreamConfig(PipelineConfig):
    """Defaults of a pipeline's calls and streams; they travel with the model as `generation_config.json`."""

    seconds: Seconds | None = None
    """Length when none is asked for. Null: the model ends the motion itself, after `max_seconds` at most."""
    text_encoder: Name | None = "sentence-t5-xxl"
    guidance_scale: float = Field(default=4.0, ge=0, le=MAX_GUIDANCE)
    sampler: Sampler = "dpm"
    """ancestral: the published one, all steps of the schedule."""
    steps: int | None = Field(default=10, ge=1, le=100_000)
    """Of the sampler; null: its own."""
    keep: int | None = Field(default=None, ge=0, le=1_048_576)
    """Latents of history that stay when the text changes or a row is full; null: half a row."""
    max_step: float | None = Field(default=None, gt=0)
    """Largest distance between latents of a stream for the first four after a change of text, against jumps; null: any."""
    min_latents: int = Field(default=11, ge=1, le=1_048_576)
    """A text's motion does not end before (published: 11)."""
    stop_threshold: float | None = Field(default=None, ge=0)
    """Distance to the end latent at which it ends; null: the generator's."""
    plan: PlanKind = "bank"
    """With a planner: what conditions the generator beside the sentence, see `PlannedSentences`."""
    plan_seconds: Seconds = 4.0
    certain: float = Field(default=0.75, gt=0)

    def __post_init__(self) -> None:
        if self.temperature != 1 and self.sampler != "ancestral":
            raise ValueError(
                f"{self.sampler} adds no noise that temperature {self.temperature:g} could scale: leave it at 1"
            )


class MotionStream:
    """An endless motion: `push_text` at any time, `next_frames` for the next few frames.

    Iterating gives `MotionChunk`s until `pause`; `async for` waits while paused and computes in a thread. The same seed and
    the same texts at the same latents give the same frames. One thread may push while another takes frames.
    """

    def __init__(
        self,
        pipeline: "MotionStreamPipeline",
        seed: int | None = None,
        history: Tensor | None = None,
        config: StreamConfig | None = None,
    ) -> None:
        """`history` (T, D): features to go on from; they are not given out again. `config`: instead of the pipeline's own."""
        self.pipeline, self.config = pipeline, config or pipeline.config
        c = self.config
        self._lock, self._running = threading.Lock(), threading.Event()
        self._running.set()
        null = pipeline.sentence("") if c.guidance_scale != 1 else None
        names = ("guidance_scale", "sampler", "steps", "temperature", "keep", "max_step")
        self._rows = pipeline.generator.streams(1, null_text=null, **{name: getattr(c, name) for name in names})
        self.reset(seed, history)

    def reset(self, seed: int | None = None, history: Tensor | None = None) -> None:
        """Begin anew at the origin, without a text."""
        with self._lock:
            tokenizer = self.pipeline.tokenizer
            self._decoder, self.root = tokenizer.stream_decoder(), RunningRoot(tokenizer.representation)
            self._seed, self._past = seed, None
            self._rows.leave(0)
            self._pending: deque[tuple[str, Tensor]] = deque()
            self._replace, self.text, self._since, self.frames = False, "", 0, 0
            if history is not None:
                self._past = tokenizer.encode(history)
                self.root.add(self._decoder.push(self._past), tokenizer.fps)

    def push_text(self, text: str, *, queue: bool = False) -> None:
        """Change what the body does, from the next latent on; with `queue` when the motion of the texts before has ended.

        Raises VadisError for a text that is empty or too long.
        """
        vector = self.pipeline.sentence(check_prompts(text)[0])
        with self._lock:
            if not queue:
                self._pending.clear()
                self._replace = True
            self._pending.append((text, vector))

    def pause(self) -> None:
        """Stop giving frames; the body keeps its place."""
        self._running.clear()

    def resume(self) -> None:
        """Go on."""
        self._running.set()

    @property
    def waiting(self) -> int:
        """Texts that have not begun yet."""
        return len(self._pending)

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def next_frames(self) -> MotionChunk:
        """Make the next latent and give its frames. Raises VadisError while paused or before the first text."""
        chunk = self.next_before_end(repeat=True)
        assert chunk is not None
        return chunk

    @torch.no_grad()
    def next_before_end(self, *, repeat: bool = False) -> MotionChunk | None:
        """As `next_frames`; None where the motion of the last text has ended, unless it is to begin again (`repeat`)."""
        started = time.perf_counter()
        with self._lock:
            if self.paused:
                raise VadisError("the stream is paused: call resume().")
            if self._pending and (self._replace or not self.text):
                self._change(*self._pending.popleft())
                self._replace = False
            if not self.text:
                raise VadisError("the stream has no text yet: call push_text() first.")
            latent = self._rows.step()[0]
            if self._since >= self.config.min_latents and self._ends(latent):
                self._rows.undo(0)
                if not (self._pending or repeat):
                    return None
                self._change(*(self._pending.popleft() if self._pending else (self.text, self._vector)))
                latent = self._rows.step()[0]
            self._since += 1
            tokenizer = self.pipeline.tokenizer
            features = self._decoder.push(latent[None])
            start, self.frames = self.frames, self.frames + len(features)
            motion = self.root.add(features, tokenizer.fps)
            return MotionChunk(start, features, motion, latent[None], self.text, time.perf_counter() - started)

    def _ends(self, latent: Tensor) -> bool:
        generator, threshold = self.pipeline.generator, self.config.stop_threshold
        reach = generator.config.stop_threshold if threshold is None else threshold
        return bool((latent - generator.end_latent.to(latent)).norm() < reach)

    def _change(self, text: str, vector: Tensor) -> None:
        if self._rows.running:
            self._rows.set_text(0, vector)
        else:
            self._rows.start(0, vector, self._past, self._seed)
        self.text, self._vector, self._since = text, vector, 0

    def __iter__(self) -> Iterator[MotionChunk]:
        while not self.paused:
            yield self.next_frames()

    async def __aiter__(self) -> AsyncIterator[MotionChunk]:
        while True:
            while self.paused:
                await asyncio.sleep(0.01)
            yield await asyncio.to_thread(self.next_frames)


class MotionStreamPipeline(ComponentPipeline):
    """Text encoder, planner if there is one, latent generator, causal auto-encoder: whole motions, and live ones."""

    config_class = StreamConfig
    generators = Generating
    continuous = True
    settings_of_a_call = (
        "guidance_scale", "sampler", "steps", "temperature", "keep", "max_step", "min_latents", "stop_threshold",
        "clean_feet", "source",
    )  # fmt: skip

    def _check_parts(self) -> None:
        tokenizer, generator = self.tokenizer, self.generator
        if not tokenizer.continuous or tokenizer.latent_dim != generator.config.latent_dim:
            raise ModelError(
                f"the generator makes latents of {generator.config.latent_dim} numbers, which a {type(tokenizer).__name__} "
                "does not read: they don't belong together."
            )
        if self.config.keep is not None and self.config.keep > generator.config.block_size - 2:
            raise ModelError(
                f"keep is {self.config.keep}: between 0 and {generator.config.block_size - 2} latents of history fit a row."
            )
        self._sentences: SentenceCache | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            inputs=frozenset({"text"}),
            outputs=frozenset({"motion", "stream", "live"}),
            ends_itself=self.config.seconds is None,
            chooses=False,
            together=True,
        )

    def sentence(self, text: str) -> Tensor:
        """The vector of a text, computed once; the empty string stands for no text."""
        with self._lock:  # the cache is not made for several threads
            if self._sentences is None:
                encoder, c = self.text_encoder, self.config
                if self.planner is not None:
                    encoder = PlannedSentences(encoder, self.planner, c.plan_seconds, c.plan, c.certain)
                self._sentences = SentenceCache(encoder)
            return self._sentences(text)

    def warm(self) -> None:
        self.sentence("")

    def live(
        self, prompts: str | Sequence[str] = (), *, seed: int | None = None, history: Tensor | None = None
    ) -> MotionStream:
        """Open an endless stream. The first of `prompts` begins; each further one waits for the end of the one before.

        `history` (T, D): features in physical units to go on from.
        """
        stream = MotionStream(self, seed, history)
        for i, text in enumerate(check_prompts(prompts) if prompts else []):
            stream.push_text(text, queue=i > 0)
        return stream

    def _pieces(self, work: Work) -> Iterator[Piece]:
        stream = MotionStream(self, work.seeds[0], None, work.config)
        for text, seconds in zip(work.texts, work.seconds, strict=True):
            stream.push_text(text)
            for _ in range(self._latents(work.config.max_seconds if seconds is None else seconds)):
                if seconds is None:
                    chunk = stream.next_before_end()
                else:
                    chunk = stream.next_frames()
                if chunk is None:
                    break
                yield Piece(chunk.features, chunk.tokens, text)

    def _latents(self, seconds: float) -> int:
        """Latents that cover a length."""
        return -(-max(1, round(seconds * self.fps)) // self.tokenizer.frames_per_token)

    def _make(self, work: Work) -> list[Made]:
        c, per_token = work.config, self.tokenizer.frames_per_token
        with work.clock("text"):
            vectors = torch.stack([self.sentence(text) for text in work.texts])
            null = self.sentence("") if c.guidance_scale != 1 else None
        asked = [seconds for seconds in work.seconds if seconds is not None]
        if asked:
            lengths: dict[str, Any] = {"num_latents": [self._latents(seconds) for seconds in asked]}
        else:
            limit = max(1, int(c.max_seconds * self.fps) // per_token)
            lengths = {"max_latents": limit, "min_latents": c.min_latents, "stop_threshold": c.stop_threshold}
        names = ("guidance_scale", "sampler", "steps", "temperature", "keep")
        options = {name: getattr(c, name) for name in names}
        with work.clock("tokens"):
            latents, stopped = self.generator.generate(
                vectors, null_text=null, seed=work.seeds, **lengths, **options
            )  # fmt: skip
        with work.clock("decode"):
            steps = [len(row) for row in latents]
            padded = torch.nn.utils.rnn.pad_sequence(latents, batch_first=True)
            decoded = self.tokenizer.decode(padded, steps).cpu()
            counts = [max(1, round(s * self.fps)) for s in asked] or [n * per_token for n in steps]
            features = [row[:n] for row, n in zip(decoded, counts, strict=True)]
            motions = [decode_motion(self.representation, row, self.fps, c.source) for row in features]
        return [Made(*one) for one in zip(motions, features, latents, stopped, strict=True)]
