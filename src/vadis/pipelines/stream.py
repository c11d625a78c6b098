"""Motion that streams while its text changes: latents one by one, decoded at once, placed in the world.

`MotionStreamPipeline` holds the parts; `pipe.stream()` opens a `MotionStream`. Everything that must go on across a change of
text does: the generator's history, the decoder's left contexts, heading and place of the root. Memory stays the same however
long a stream runs.

Shapes: n = frames_per_token frames a latent, D features, C numbers of a latent.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis import rotation
from vadis.errors import ModelError, VadisError, about
from vadis.generators.diffusion import Sampler
from vadis.generators.planner import KinematicPlanner, PlanKind, PlannedSentences
from vadis.generators.text import SentenceCache, check_prompts, encoder_entry, encoder_source
from vadis.motion import Motion
from vadis.pipelines.text_to_motion import TextToMotionOutput
from vadis.places import HubName
from vadis.representations import representation
from vadis.representations.ms272 import MS272
from vadis.sizes import CONFIG, Name, Seconds
from vadis.skeleton import smpl22


@checked_dataclass(frozen=True, config=CONFIG)
class StreamConfig:
    """Defaults of a pipeline's calls and streams; they travel with the model as `generation_config.json`."""

    text_encoder: Name = "sentence-t5-xxl"
    guidance_scale: float = Field(default=4.0, ge=0)
    sampler: Sampler = "dpm"
    """ancestral: the published one, all steps of the schedule."""
    steps: int | None = Field(default=10, ge=1, le=100_000)
    """Of the sampler; null: its own."""
    temperature: float = Field(default=1.0, ge=0)
    keep: int | None = Field(default=None, ge=0, le=1_048_576)
    """Latents of history that stay when the text changes or a row is full; null: half a row."""
    max_step: float | None = Field(default=None, gt=0)
    """Largest distance between latents of a stream for the first four after a change of text, against jumps; null: any."""
    min_latents: int = Field(default=11, ge=1, le=1_048_576)
    """A text's motion does not end before (published: 11)."""
    stop_threshold: float | None = Field(default=None, ge=0)
    """Distance to the end latent at which it ends; null: the generator's."""
    max_seconds: Seconds = 10.0
    """Of a call that names no length."""
    plan: PlanKind = "bank"
    """With a planner: what conditions the generator beside the sentence, see `PlannedSentences`."""
    plan_seconds: Seconds = 4.0
    certain: float = Field(default=0.75, gt=0)

    def __post_init__(self) -> None:
        if self.temperature != 1 and self.sampler != "ancestral":
            raise ValueError(
                f"{self.sampler} adds no noise that temperature {self.temperature:g} could scale: leave it at 1"
            )


@dataclass(frozen=True, eq=False)
class StreamFrames:
    """The frames of one latent."""

    start: int
    """Number of the first of them since the stream began."""
    features: Tensor
    """(n, D) float32 in physical units."""
    motion: Motion
    """The same in the world, going on from where the body was."""
    latent: Tensor
    """(C,)."""
    text: str
    """What they were made for."""


class RunningRoot:
    """Heading and place carried over pieces of ms272 features, so that pieces give the motion of the whole."""

    def __init__(self, name: str = "ms272") -> None:
        if name != "ms272":
            raise ModelError(f"pieces of {name} can't be placed in the world one by one: use an ms272 tokenizer.")
        self.representation = MS272()
        self.turn = torch.eye(3, dtype=torch.float64)
        """Removes the heading so far."""
        self.place = torch.zeros(2, dtype=torch.float64)
        """x and z in metres."""

    @property
    def heading(self) -> float:
        """Radians, counter-clockwise seen from above, 0 towards +Z."""
        return -float(torch.atan2(self.turn[0, 2], self.turn[0, 0]))

    def add(self, features: Tensor, fps: float) -> Motion:
        """The next features `(n, 272)` as a motion."""
        rows = features.detach().cpu().double()
        before = rows[:1].clone()
        before[:, :2], before[:, 2:8] = self.place, rotation.to_6d(self.turn, "rows")
        rows = torch.cat([before, rows])
        local, root = self.representation.rotations(rows)
        self.turn = self.representation.root_path(rows)[0][-1]
        self.place = root[-1, [0, 2]]
        return Motion(smpl22(), root[1:].float(), local[1:].float(), fps)


class MotionStream:
    """An endless motion: `push_text` at any time, `next_frames` for the next few frames.

    Iterating gives `StreamFrames` until `pause`; `async for` waits while paused and computes in a thread. The same seed and
    the same texts at the same latents give the same frames. One thread may push while another takes frames.
    """

    def __init__(
        self, pipeline: "MotionStreamPipeline", seed: int | None = None, history: Tensor | None = None
    ) -> None:
        """`history` (T, D): features to go on from; they are not given out again."""
        self.pipeline, c = pipeline, pipeline.config
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
    def paused(self) -> bool:
        return not self._running.is_set()

    @torch.no_grad()
    def next_frames(self) -> StreamFrames:
        """Make the next latent and give its frames. Raises VadisError while paused or before the first text."""
        with self._lock:
            if self.paused:
                raise VadisError("the stream is paused: call resume().")
            if self._pending and (self._replace or not self.text):
                self._change(*self._pending.popleft())
                self._replace = False
            if not self.text:
                raise VadisError("the stream has no text yet: call push_text() first.")
            latent = self._rows.step()[0]
            if self._since >= self.pipeline.config.min_latents and self._ends(latent):
                self._rows.undo(0)
                self._change(*(self._pending.popleft() if self._pending else (self.text, self._vector)))
                latent = self._rows.step()[0]
            self._since += 1
            tokenizer = self.pipeline.tokenizer
            features = self._decoder.push(latent[None])
            start, self.frames = self.frames, self.frames + len(features)
            return StreamFrames(start, features, self.root.add(features, tokenizer.fps), latent, self.text)

    def _ends(self, latent: Tensor) -> bool:
        generator, threshold = self.pipeline.generator, self.pipeline.config.stop_threshold
        reach = generator.config.stop_threshold if threshold is None else threshold
        return bool((latent - generator.end_latent.to(latent)).norm() < reach)

    def _change(self, text: str, vector: Tensor) -> None:
        if self._rows.running:
            self._rows.set_text(0, vector)
        else:
            self._rows.start(0, vector, self._past, self._seed)
        self.text, self._vector, self._since = text, vector, 0

    def __iter__(self) -> Iterator[StreamFrames]:
        while not self.paused:
            yield self.next_frames()

    async def __aiter__(self) -> AsyncIterator[StreamFrames]:
        while True:
            while self.paused:
                await asyncio.sleep(0.01)
            yield await asyncio.to_thread(self.next_frames)


class MotionStreamPipeline:
    """Text encoder, planner if there is one, latent generator, causal auto-encoder. A call makes whole motions, `stream` live ones."""

    alone: ClassVar[bool] = False
    """Whether each prompt of a list is made by itself."""

    def __init__(
        self,
        tokenizer: Any,
        generator: Any,
        text_encoder: Any | None = None,
        config: StreamConfig | None = None,
        planner: KinematicPlanner | None = None,
    ) -> None:
        if not tokenizer.continuous or tokenizer.latent_dim != generator.config.latent_dim:
            raise ModelError(
                f"the generator makes latents of {generator.config.latent_dim} numbers, which a {type(tokenizer).__name__} "
                "does not read: they don't belong together."
            )
        self.tokenizer, self.generator, self.planner = tokenizer, generator, planner
        self.config = config or StreamConfig()
        self.representation = representation(tokenizer.representation)
        self._text_encoder, self._sentences = text_encoder, None
        self._text_source: Path | HubName | None = None  # where its weights are, when not in their usual place

    @property
    def text_encoder(self) -> Any:
        """The frozen text encoder, loaded when first needed."""
        if self._text_encoder is None:
            from vadis.generators.text import text_encoder

            self._text_encoder = text_encoder(self.config.text_encoder, self._text_source)
        return self._text_encoder

    def sentence(self, text: str) -> Tensor:
        """The vector of a text, computed once; the empty string stands for no text."""
        if self._sentences is None:
            encoder, c = self.text_encoder, self.config
            if self.planner is not None:
                encoder = PlannedSentences(encoder, self.planner, c.plan_seconds, c.plan, c.certain)
            self._sentences = SentenceCache(encoder)
        return self._sentences(text)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: Any = None,
        device: Any = None,
        allow_download: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load a bundle folder; parts can be given as keywords (`text_encoder=` shares one among pipelines).

        `allow_download` fetches a text encoder that the bundle names on the Hub.
        """
        from vadis.hub import check_parts, load_bundle, pick_device
        from vadis.records import checked, read_json

        folder = Path(folder)
        if dtype is None and pick_device(device).type == "cpu":
            dtype = "float32"
        parts = load_bundle(folder, dtype=dtype, device=device, **overrides)
        check_parts(folder, parts, overrides, ("motionstreamer",), continuous=True)
        page = folder / "generation_config.json"
        config = checked(StreamConfig, read_json(page), page, ModelError) if page.is_file() else StreamConfig()
        encoder, stored = parts.get("text_encoder"), None
        if isinstance(encoder, dict | list):
            encoder, stored = None, encoder_source(folder, encoder, config.text_encoder, allow_download)
        with about(folder):
            pipe = cls(parts["tokenizer"], parts["generator"], encoder, config, parts.get("planner"))
        pipe._text_source = stored
        return pipe

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write the bundle: `model_index.json`, a folder a part, `generation_config.json`, and `card` as README.md."""
        from vadis.hub import save_bundle

        parts = {"tokenizer": self.tokenizer, "generator": self.generator}
        if self.planner is not None:
            parts["planner"] = self.planner
        parts["text_encoder"] = encoder_entry(self.config.text_encoder, self._text_encoder, self._text_source)
        save_bundle(folder, "MotionStreamPipeline", parts, asdict(self.config), card)

    def stream(
        self, prompts: str | Sequence[str] = (), *, seed: int | None = None, history: Tensor | None = None
    ) -> MotionStream:
        """Open an endless stream. The first of `prompts` begins; each further one waits for the end of the one before.

        `history` (T, D): features in physical units to go on from.
        """
        stream = MotionStream(self, seed, history)
        for i, text in enumerate(check_prompts(prompts) if prompts else []):
            stream.push_text(text, queue=i > 0)
        return stream

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float | Sequence[float] | None = None,
        seed: int | None = None,
    ) -> TextToMotionOutput:
        """Make a motion of each prompt, all in one batch.

        Args:
            prompts: a sentence, or a list of them.
            seconds: length, for all or each, met within one frame; None lets the model end it, after `max_seconds` at most.
            seed: prompt i of a list draws with seed + i; None draws anew every time.
        """
        texts, c, fps = check_prompts(prompts), self.config, self.tokenizer.fps
        first = int(torch.randint(2**31, (1,))) if seed is None else int(seed)
        timing, clock = {}, time.perf_counter()
        vectors = torch.stack([self.sentence(text) for text in texts])
        null = self.sentence("") if c.guidance_scale != 1 else None
        timing["text"], clock = time.perf_counter() - clock, time.perf_counter()
        frames = self._frames(seconds, len(texts))
        lengths: dict[str, Any] = {"num_latents": [-(-n // self.tokenizer.frames_per_token) for n in frames]}
        if seconds is None:
            limit = max(1, int(c.max_seconds * fps) // self.tokenizer.frames_per_token)
            lengths = {"max_latents": limit, "min_latents": c.min_latents, "stop_threshold": c.stop_threshold}
        names = ("guidance_scale", "sampler", "steps", "temperature", "keep")
        seeds = [first + i for i in range(len(texts))]
        latents, stopped = self.generator.generate(
            vectors, null_text=null, seed=seeds, **lengths, **{name: getattr(c, name) for name in names}
        )
        timing["tokens"], clock = time.perf_counter() - clock, time.perf_counter()
        steps = [len(row) for row in latents]
        made = self.tokenizer.decode(torch.nn.utils.rnn.pad_sequence(latents, batch_first=True), steps).cpu()
        counts = [n * self.tokenizer.frames_per_token for n in steps] if seconds is None else frames
        features = [row[:n] for row, n in zip(made, counts, strict=True)]
        motions = [
            self.representation.decode(row, source="rotations").replace(meta={"prompt": text})
            for row, text in zip(features, texts, strict=True)
        ]
        timing["decode"] = time.perf_counter() - clock
        timing = {name: round(value, 4) for name, value in timing.items()}
        if isinstance(prompts, str):
            return TextToMotionOutput(motions[0], features[0], latents[0], stopped[0], timing=timing)
        return TextToMotionOutput(motions, features, latents, stopped, timing=timing)

    def _frames(self, seconds: float | Sequence[float] | None, count: int) -> list[int]:
        """Frames of each prompt."""
        if isinstance(seconds, Sequence):
            values = [float(value) for value in seconds]
        else:
            values = [self.config.max_seconds if seconds is None else float(seconds)] * count
        if len(values) != count:
            raise VadisError(f"{len(values)} lengths for {count} prompts: give one length, or one for each prompt.")
        for value in values:
            if not 0 < value <= 3600:
                raise VadisError(f"seconds={value:g}: a motion can last up to 3600 seconds.")
        return [max(1, round(value * self.tokenizer.fps)) for value in values]
