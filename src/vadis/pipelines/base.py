"""What every pipeline is: prompts in, motions out, under one call, one kind of output and one kind of stream.

A family is a subclass that says how it makes motions (`_make`), what it can (`capabilities`), which of its config's fields a
call may change (`settings_of_a_call`), and how its parts are read and written. The command line, the server, evaluation and
studies know nothing but this class.

Shapes: T frames, D features, S token steps.
"""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis.cancel import stop_if_cancelled
from vadis.config import build_config
from vadis.errors import ModelError, VadisError
from vadis.migrations import GENERATION_FIELDS, renamed
from vadis.motion import Motion
from vadis.pipelines.placing import Placer
from vadis.representations import representation
from vadis.sizes import CONFIG, Name, Seconds

MAX_SECONDS = 3600.0
MAX_SAMPLES = 256
MAX_GUIDANCE = 1000.0
"""Useful ones are below ten; numbers beyond this end in NaN."""
ROWS = 32
"""Rows of a generator at once."""

Input = Literal["text", "image", "motion"]
Output = Literal["motion", "stream", "live", "caption"]
ABILITIES: dict[str, tuple[str, str | None]] = {
    "stream": ("hand out a motion before its end", "vadis-mini"),
    "live": ("follow a text that changes while the body moves", "vadis-mini-stream"),
    "caption": ("say what a motion shows", "vadis-mini-lm"),
    "image": ("see images", None),
}
"""What a pipeline may be unable to do, in words, and the bundled model that can."""


@checked_dataclass(frozen=True, config=CONFIG)
class PipelineConfig:
    """Defaults of a pipeline's calls; they travel with the model as `generation_config.json`."""

    seconds: Seconds | None = 5.0
    """Length when none is asked for. Null: the model ends the motion itself."""
    max_seconds: Seconds = 10.0
    """Longest motion that the model learned from."""
    samples: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    """Candidates per prompt, of which the best is kept, by models that can tell which that is."""
    temperature: float = Field(default=1.0, ge=0)
    """0 always takes the likeliest."""
    guidance_scale: float = Field(default=1.0, ge=0, le=MAX_GUIDANCE)
    """How strongly the prompt is followed; 1: no guidance."""
    clean_feet: bool = False
    """Stop the feet of the kept motion from sliding while they stand (`vadis.motion_editing.clean_feet`)."""
    source: Literal["rotations", "positions"] = "rotations"
    """Which features the motion is made from."""
    text_encoder: Name | None = None
    """What reads the prompts; null for a model that reads them itself."""


@dataclass(frozen=True)
class Capabilities:
    """What a pipeline can do."""

    inputs: frozenset[Input]
    """Beside text: an image, motions."""
    outputs: frozenset[Output]
    """motion: whole ones, by a call. stream: pieces while a motion is made. live: pieces without end, while the text
    changes. caption: sentences about motions."""
    ends_itself: bool
    """A motion for which no length is asked ends where the model ends it."""
    chooses: bool
    """It can tell which of several candidates is best, so `samples` above 1 mean something."""
    together: bool
    """A list of prompts in one call costs less than one call for each."""

    def __str__(self) -> str:
        ends = "ends motions itself" if self.ends_itself else "makes motions of a given length"
        choice = ", keeps the best of several samples" if self.chooses else ""
        return f"{' + '.join(sorted(self.inputs))} → {', '.join(sorted(self.outputs))}; {ends}{choice}"


@dataclass(frozen=True, eq=False)
class Made:
    """One motion and how it came about."""

    motion: Motion
    features: Tensor
    tokens: Any
    stopped_by: str
    score: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class MotionOutput(Sequence["MotionOutput"]):
    """What one call made. For a list of prompts every field but `timing` is a list in the same order.

    `len`, indexing and iteration go over the prompts and give outputs of a single motion.
    """

    def __init__(self, made: Sequence[Made], timing: Mapping[str, float], many: bool = False) -> None:
        self._made, self._many = tuple(made), many
        self.timing = dict(timing)
        """Seconds spent on each stage, all prompts together."""

    @property
    def motion(self) -> Any:
        """Motion, rotations as the source of truth."""
        return self._field("motion")

    @property
    def features(self) -> Any:
        """(T, D) float32 in physical units, as decoded: without the clean-up of feet."""
        return self._field("features")

    @property
    def tokens(self) -> Any:
        """(S,) or (S, G) int64; latents (S, C) float32 of a streaming model; an `Encoded` of DSFT."""
        return self._field("tokens")

    @property
    def stopped_by(self) -> Any:
        """ "length" (as asked for), "end" (by the model itself) or "cap" (at its longest)."""
        return self._field("stopped_by")

    @property
    def score(self) -> Any:
        """How well the kept sample matches the text: a cosine with a planner; the mean log-probability of the text's ids by a
        language model that chooses by itself; None where nothing was chosen."""
        return self._field("score")

    @property
    def details(self) -> Any:
        """What only this family of models says about a motion, by name."""
        return self._field("details")

    def _field(self, name: str) -> Any:
        values = [getattr(made, name) for made in self._made]
        return values if self._many else values[0]

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return MotionOutput(self._made[index], self.timing, many=True)
        return MotionOutput([self._made[index]], self.timing)

    def __repr__(self) -> str:
        def line(made: Made) -> str:
            prompt = made.motion.meta.get("prompt", "")
            score = "" if made.score is None else f", score {made.score:.2f}"
            return f"{made.motion.seconds:.2f} s of {str(prompt)!r:.60}{score}"

        shown = [line(made) for made in self._made[:4]] + ["…"] * (len(self._made) > 4)
        return f"MotionOutput({'; '.join(shown)})"


@dataclass(frozen=True, eq=False)
class MotionChunk:
    """The next frames of a stream."""

    start: int
    """Number of the first of them since the stream began."""
    features: Tensor
    """(n, D) float32 in physical units."""
    motion: Motion
    """The same in the world, going on from where the body was."""
    tokens: Tensor
    """The token steps that they complete: (s,), (s, G), or latents (s, C)."""
    text: str
    """What they were made for."""
    seconds: float
    """Time that it took to make them."""


@dataclass
class Work:
    """One call, checked: what `_make` and `_pieces` are given."""

    texts: list[str]
    seconds: list[float] | list[None]
    seeds: list[int]
    samples: int
    images: list[Any]
    config: Any
    """The pipeline's own, with the settings of this call."""
    timing: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("text", "tokens", "decode", "choose", "clean"), 0.0)
    )

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Time spent inside counts for a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timing[stage] += time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class Piece:
    """What a family hands to `stream`: the features that have become final, and the tokens that completed them."""

    features: Tensor
    tokens: Tensor
    text: str


class Pipeline(ABC):
    """Prompts to motions. `vadis.load` gives one.

    Calls from several threads are safe: they wait for one another.
    """

    config_class: ClassVar[type[PipelineConfig]]
    settings_of_a_call: ClassVar[tuple[str, ...]]
    """Fields of the config that a call may change."""
    options_of_loading: ClassVar[tuple[str, ...]]
    """Keywords of `from_pretrained` that are the family's own: parts that are loaded already, and options."""
    tokenizer: Any
    """The motion tokenizer."""

    def __init__(self, config: PipelineConfig | None) -> None:
        self.config: Any = config or self.config_class()
        self.representation = representation(self.tokenizer.representation)
        self._lock = threading.RLock()

    # ---- what a family says

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this pipeline, with its parts and its config, can do."""

    @abstractmethod
    def _make(self, work: Work) -> Sequence[Made]:
        """A motion of each prompt, feet not cleaned yet."""

    def _pieces(self, work: Work) -> Iterator[Piece]:
        """The motions of the prompts, one after the other, piece by piece."""
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def _open(cls, folder: Path, config: Any, *, dtype: Any, device: Any, allow_download: bool, **given: Any) -> Self:
        """The pipeline in a folder; `given` are parts and options of the family."""

    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """What `save_pretrained` writes, as `vadis.component_files.save_bundle` takes it."""

    @abstractmethod
    def _move(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Move the networks."""

    @property
    def model(self) -> Any:
        """The network that makes the motion."""
        raise NotImplementedError

    @property
    def networks(self) -> tuple[Any, ...]:
        """The parts whose weights decide what comes out; another checkpoint has others."""
        return (self.tokenizer, self.model)

    # ---- what it can do

    @property
    def fps(self) -> float:
        """Frames per second of what it makes."""
        return float(self.tokenizer.fps)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a call takes, with the values used when they aren't given."""
        return {name: getattr(self.config, name) for name in self.settings_of_a_call}

    def can(self, what: str) -> bool:
        """Whether it takes an input or makes an output of this name, see `Capabilities`."""
        return what in self.capabilities.inputs | self.capabilities.outputs

    def check_can(self, what: str, name: str = "") -> None:
        """Raise ModelError, which names a model that can, unless `can(what)`. `name`: what the user calls this model."""
        if not self.can(what):
            ability, other = ABILITIES[what]
            cure = f"use one that can, such as {other}" if other else "leave the image out"
            raise ModelError(f"{name or 'this model'} ({type(self).__name__}) can't {ability}: {cure}.")

    def __repr__(self) -> str:
        c, rep = self.capabilities, self.representation
        size = sum(p.numel() for n in self.networks if isinstance(n, torch.nn.Module) for p in n.parameters())
        names = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
        return (
            f"{type(self).__name__}({type(self.model).__name__} + {type(self.tokenizer).__name__}, {size / 1e6:.1f} M parameters, "
            f"{rep.name} at {self.fps:g} frames/s)\n  {c}\n  settings: {names}"
        )

    # ---- calls

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float | Sequence[float] | None = None,
        samples: int | None = None,
        seed: int | None = None,
        image: Any = None,
        **settings: Any,
    ) -> MotionOutput:
        """Make a motion of each prompt.

        Args:
            prompts: a sentence, or a list of them.
            seconds: length, for all or each; met within one frame. None: the model's own setting.
            samples: candidates per prompt, of which the best is kept; by default the model's own number.
            seed: prompt i of a list draws with seed + i; None takes a fresh random seed per call.
            image: of the scene, for all or a list with one for each prompt: a path, a PIL image or a uint8 array
                (H, W, 3); for models that see.
            settings: see `pipe.settings`.

        Raises VadisError for empty or overlong prompts, for lengths that are not positive or above an hour, and for settings
        that this model doesn't have or that mean nothing.
        """
        work = self._work(prompts, seconds, samples, seed, image, settings)
        with self._lock, torch.no_grad():
            made = self._make(work)
            made = [self._finished(one, text, work) for one, text in zip(made, work.texts, strict=True)]
        timing = {stage: round(spent, 4) for stage, spent in work.timing.items()}
        return MotionOutput(made, timing, many=not isinstance(prompts, str))

    def stream(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float | Sequence[float] | None = None,
        seed: int | None = None,
        image: Any = None,
        **settings: Any,
    ) -> Iterator[MotionChunk]:
        """Yield the frames of one motion as they become final; prompts follow one another, each for its seconds.

        A frame is final once the tokens that it depends on exist, so frames come with a short delay; feet are not cleaned.
        Arguments are those of a call. Raises ModelError for a model that can't, see `capabilities`.
        """
        self.check_can("stream")
        if settings.get("clean_feet"):
            raise VadisError("clean_feet needs the whole motion: leave it out of a stream, or clean the joined motion.")
        return self._chunks(self._work(prompts, seconds, None, seed, image, settings))

    def _chunks(self, work: Work) -> Iterator[MotionChunk]:
        placer, start = Placer(self.representation, self.fps, work.config.source), 0
        pieces = self._pieces(work)
        while True:
            began = time.perf_counter()
            with self._lock, torch.no_grad():
                stop_if_cancelled()
                piece = next(pieces, None)
                if piece is None:
                    return
                motion = placer.add(piece.features)
            spent = time.perf_counter() - began
            yield MotionChunk(start, piece.features, motion, piece.tokens, piece.text, spent)
            start += len(piece.features)

    def live(self, prompts: str | Sequence[str] = (), *, seed: int | None = None, history: Tensor | None = None) -> Any:
        """An endless stream whose text may change at any time; ModelError for a model that can't, see `capabilities`."""
        self.check_can("live")
        raise NotImplementedError

    def caption(self, motion: Any, **settings: Any) -> Any:
        """A sentence about a motion; ModelError for a model that can't, see `capabilities`."""
        self.check_can("caption")
        raise NotImplementedError

    def warm(self) -> None:
        """Load what is loaded when first needed, so that the first call need not wait."""
        return

    # ---- where it computes

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the networks to a device and a precision (of the generator: tokenizers stay float32); the pipeline itself."""
        from vadis.devices import pick_device, pick_dtype

        with self._lock:
            self._move(None if device is None else pick_device(device), pick_dtype(dtype))
        return self

    # ---- files

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, dtype: Any = None, device: Any = None, allow_download: bool = False, **given: Any
    ) -> Self:
        """Load a bundle: a folder, a bundled name or a Hub id.

        `given`: parts that are loaded already (`text_encoder=` shares one among pipelines) and options of the family.
        `allow_download` fetches what the bundle names on the Hub. Raises ModelError where parts are missing or don't belong
        together, or for the bundle of another class.
        """
        from vadis.hub import find_folder
        from vadis.records import checked, read_json

        folder = find_folder(source)
        if unknown := set(given) - set(cls.options_of_loading):
            raise ModelError(
                f"a {cls.__name__} takes no {', '.join(sorted(unknown))}; there are {', '.join(cls.options_of_loading)}."
            )
        page = folder / "model_index.json"
        if page.is_file() and (name := read_json(page).get("_class_name")) != cls.__name__:
            raise ModelError(f"{folder} holds a {name!r:.60}, not a {cls.__name__}: use vadis.load.")
        page = folder / "generation_config.json"
        config = cls.config_class()
        if page.is_file():
            config = checked(cls.config_class, renamed(read_json(page), GENERATION_FIELDS, page), page, ModelError)
        return cls._open(folder, config, dtype=dtype, device=device, allow_download=allow_download, **given)

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write the bundle: `model_index.json`, a folder for each part, `generation_config.json`, and `card` as README.md.

        An older bundle at `folder` is replaced as a whole, but its card is kept unless there is another.
        """
        from vadis.component_files import save_bundle

        save_bundle(folder, type(self).__name__, self._parts(), asdict(self.config), card)

    # ---- inside

    def _work(
        self,
        prompts: str | Sequence[str],
        seconds: float | Sequence[float] | None,
        samples: int | None,
        seed: int | None,
        image: Any,
        settings: Mapping[str, Any],
    ) -> Work:
        from vadis.text_encoders import check_prompts

        texts = check_prompts(prompts)
        config = self._with(settings)
        lengths = check_seconds(config.seconds if seconds is None else seconds, len(texts), self.fps)
        first = int(torch.randint(2**31, (1,))) if seed is None else int(seed)
        if image is not None:
            self.check_can("image")
        images = list(image) if isinstance(image, list | tuple) else [image] * len(texts)
        if len(images) != len(texts):
            raise VadisError(f"{len(images)} images for {len(texts)} prompts: give one image, or one for each prompt.")
        return Work(
            texts, lengths, [first + i for i in range(len(texts))], self._samples(samples, config), images, config
        )

    def _with(self, settings: Mapping[str, Any]) -> Any:
        """The config with the settings of a call; None stands for the config's own value."""
        if unknown := set(settings) - set(self.settings_of_a_call):
            raise VadisError(
                f"unknown setting{'s' * (len(unknown) > 1)} {', '.join(sorted(unknown))}; this model has "
                f"{', '.join(self.settings_of_a_call)}."
            )
        given = {name: value for name, value in settings.items() if value is not None}
        if not given:
            return self.config
        own = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
        return build_config(type(self.config), own | given, "settings of the call")

    def _samples(self, samples: int | None, config: Any) -> int:
        count = config.samples if samples is None else samples
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_SAMPLES:
            raise VadisError(f"samples={samples}: give 1 to {MAX_SAMPLES} candidates.")
        if samples is not None and count > 1 and not self.capabilities.chooses:
            raise VadisError(
                f"samples={samples}: this model can't tell which of several candidates is best. Leave samples out; for several "
                "motions give the prompt several times."
            )
        # greedy decoding makes the same candidate every time
        return count if self.capabilities.chooses and config.temperature > 0 else 1

    def _finished(self, made: Made, text: str, work: Work) -> Made:
        motion = made.motion
        if work.config.clean_feet:
            with work.clock("clean"):
                motion = with_resting_feet(motion)
        motion = motion.replace(meta={"prompt": text} if text else {})
        return Made(motion, made.features, made.tokens, made.stopped_by, made.score, made.details)

    def _decoded(self, features: Tensor, config: Any) -> Motion:
        """The motion of features `(T, D)`, with its feet on the floor."""
        stop_if_cancelled()
        return on_floor(decode_motion(self.representation, features, self.fps, config.source))


# ---- helpers that families share


def check_seconds(seconds: float | Sequence[float] | None, count: int, fps: float) -> list[float] | list[None]:
    """A length for each of `count` prompts; None stays None. Raises VadisError for lengths that no motion has."""
    if seconds is None:
        return [None] * count
    try:
        values = [float(seconds)] * count if isinstance(seconds, int | float) else [float(s) for s in seconds]
    except (TypeError, ValueError):
        raise VadisError(f"seconds={seconds!r}: give one number, or a list with one for each prompt.") from None
    if len(values) != count:
        raise VadisError(f"{len(values)} lengths for {count} prompts: give one length, or one for each prompt.")
    least = 1.0 / fps
    for value in values:
        if not (math.isfinite(value) and least <= value <= MAX_SECONDS):
            raise VadisError(f"seconds={value:g}: a motion can last from {least:.2g} to {MAX_SECONDS:g} seconds.")
    return values


def frames_of(seconds: float | None, fps: float) -> int | None:
    """Frames of a length; None stays None."""
    return None if seconds is None else max(1, round(seconds * fps))


def decode_motion(rep: Any, features: Tensor, fps: float, source: str) -> Motion:
    """The motion of features `(T, D)` at the rate that they were made at, which may differ from their kind's usual one."""
    motion = rep.decode(features, source=source)
    return motion if motion.fps == fps else motion.replace(fps=fps)


def on_floor(motion: Motion) -> Motion:
    """The motion with its feet on the floor: the 5 % quantile of the lowest joint is at height 0."""
    lowest = motion.positions[..., 1].min(dim=1).values.quantile(0.05)
    return motion.replace(root=motion.root - torch.tensor([0.0, float(lowest), 0.0]))


def with_resting_feet(motion: Motion) -> Motion:
    """The motion with resting feet; generated motion is smooth already, and clips too short for contacts stay."""
    from vadis.motion_editing import clean_feet

    stop_if_cancelled()
    return motion if motion.num_frames < 4 else clean_feet(motion, smooth=None)


def look_ahead(tokenizer: Any) -> int:
    """Token steps after its own that a decoded frame waits for."""
    context = tokenizer.decoder_context
    return 1 << 40 if context is None else context[1]


def released(tokenizer: Any, tokens: list[Tensor], texts: list[str], start: int, stop: int) -> Iterator[Piece]:
    """Tokens `start` to `stop`, whose frames have become final, as a piece for each of the `texts` (one a token)."""
    while start < stop:
        end = next((k for k in range(start, stop) if texts[k] != texts[start]), stop)
        yield Piece(final_frames(tokenizer, tokens, start, end), torch.stack(tokens[start:end]), texts[start])
        start = end


def final_frames(tokenizer: Any, tokens: list[Tensor], start: int, stop: int) -> Tensor:
    """Frames of tokens `start` to `stop`, decoded with all the context that they depend on."""
    before, after = tokenizer.decoder_context or (len(tokens), len(tokens))
    first, per_token = max(0, start - before), tokenizer.frames_per_token
    decoded = tokenizer.decode(torch.stack(tokens[first : stop + after])).float().cpu()
    return decoded[(start - first) * per_token : (stop - first) * per_token]
