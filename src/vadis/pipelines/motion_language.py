"""A language model that speaks motion, for users: sentences to motions and motions to sentences.

    pipe = vadis.load("models/lm")
    out = pipe("a person walks forward and waves", seconds=5, seed=0)          # as every text-to-motion pipeline
    pipe.caption(out.motion)
    pipe.predict(out.motion, "then sits down", seconds=8); pipe.in_between(a, b, seconds=4); pipe.edit_parts(m, ["left_arm"])

Bundle: `model_index.json`, `tokenizer/` (the motion tokenizer), `generation_config.json` and `language_model/`, which is a
whole folder of transformers with `motion_vocabulary.json` or only what a named backbone lacks: new rows and adapter. A
`planner/` chooses among candidates where there is one.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis.cancel import stop_if_cancelled
from vadis.component_files import Written, save_bundle
from vadis.devices import pick_device, pick_dtype
from vadis.errors import ModelError, VadisError
from vadis.generators.planner import KinematicPlanner
from vadis.language.motion_lm import MotionLM, Precision
from vadis.loading import load_component
from vadis.pipelines.base import (
    ROWS,
    Capabilities,
    Made,
    MotionOutput,
    Piece,
    Pipeline,
    PipelineConfig,
    Work,
    check_seconds,
    frames_of,
    look_ahead,
    released,
)
from vadis.pipelines.choose import best_match
from vadis.sizes import CONFIG, Name
from vadis.tokenizers.dsft.sequence import Encoded

OVERLAP_SECONDS = 2.0
"""How much of what is there a longer motion goes on from, window by window."""
LIBRARY = "transformers"


@checked_dataclass(frozen=True, config=CONFIG)
class MotionLanguageConfig(PipelineConfig):
    """Defaults of a call; they travel with the model as `generation_config.json`."""

    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    tasks: Annotated[tuple[Name, ...], Field(max_length=64)] = ("text_to_motion",)
    """What the model learned. Given motion is forced instead of asked about where it did not learn the task; without a
    planner, candidates are chosen among only where it learned motion_to_text."""
    precision: Precision = "float32"
    """Of the weights: "int8" is faster for few rows on a CPU, "bfloat16" on a GPU."""


class MotionLanguagePipeline(Pipeline):
    """Prompts to motions, motions to captions. `from_pretrained`, `assemble` or parts make one."""

    config_class = MotionLanguageConfig
    options_of_loading = ("precision", "base", "tokenizer", "text_encoder")
    settings_of_a_call = ("temperature", "top_k", "top_p", "guidance_scale", "clean_feet", "source")

    def __init__(
        self,
        lm: MotionLM,
        config: MotionLanguageConfig | None = None,
        planner: KinematicPlanner | None = None,
        text_encoder: Any | None = None,
    ) -> None:
        if lm.motion_tokenizer is None:
            raise ModelError("a pipeline decodes motion: give the language model its motion_tokenizer.")
        self.lm, self.planner, self.tokenizer = lm, planner, lm.motion_tokenizer
        super().__init__(config)
        _check_planner(planner, self.config)
        self._text_encoder = text_encoder
        self._source: Path | None = None  # the folder that the language model was read from

    @property
    def capabilities(self) -> Capabilities:
        tasks, two_streams = self.config.tasks, self.lm.two_streams
        outputs = {"motion", "caption"} | ({"stream"} if self.lm.in_time_order else set())
        return Capabilities(
            inputs=frozenset({"text"} if two_streams else {"text", "motion"}),
            outputs=frozenset(outputs),  # type: ignore[arg-type]
            ends_itself=self.config.seconds is None,
            chooses=self.planner is not None or "motion_to_text" in tasks,
            together=True,
        )

    @property
    def model(self) -> Any:
        return self.lm.model

    @property
    def networks(self) -> tuple[Any, ...]:
        return (self.tokenizer, self.lm.model, self.planner)

    @property
    def text_encoder(self) -> Any:
        """What the planner reads sentences with, loaded when first needed; None without a planner."""
        with self._lock:
            if self._text_encoder is None and self.planner is not None:
                from vadis.text_encoders import text_encoder

                assert self.config.text_encoder is not None
                self._text_encoder = text_encoder(self.config.text_encoder)
            return self._text_encoder

    def warm(self) -> None:
        self.text_encoder  # noqa: B018 - loaded when first asked for

    def _move(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        if self.config.precision == "int8" and (dtype is not None or (device is not None and device.type != "cpu")):
            raise ModelError("weights in int8 stay on the CPU as they are: load the model with another precision.")
        self.lm.model.to(device=device, dtype=dtype)
        if isinstance(self.tokenizer, torch.nn.Module):
            self.tokenizer.to(device=device)

    # ---- text to motion

    def _make(self, work: Work) -> list[Made]:
        with work.clock("tokens"):
            rows, stopped = self._tokens(work)
        made, n = [], work.samples
        for i, (text, seconds) in enumerate(zip(work.texts, work.seconds, strict=True)):
            own = slice(i * n, (i + 1) * n)
            made.append(self._best(text, seconds, rows[own], stopped[own], work))
        return made

    def _pieces(self, work: Work) -> Iterator[Piece]:
        if None in work.seconds:
            raise VadisError("a stream needs a length: give seconds.")
        drawn, after = _drawn(work), look_ahead(self.tokenizer)
        tokens: list[Tensor] = []
        texts: list[str] = []
        sent = 0
        for text, seconds, seed in zip(work.texts, work.seconds, work.seeds, strict=True):
            wanted, made = self._steps(seconds), 0
            while made < wanted:
                past, more = self._window(len(tokens), wanted - made)
                options: dict[str, Any] = dict(drawn, steps=past + more, seed=[seed + 7919 * made])
                if past:
                    options["fixed"] = self.lm.placed(torch.stack(tokens[-past:]), range(past), past + more)
                skip = past
                for piece in self.lm.stream(text, **options):
                    tokens += list(piece[skip:])
                    texts += [text] * (len(tokens) - len(texts))
                    skip = max(0, skip - len(piece))
                    if (final := len(tokens) - after) > sent:
                        yield from released(self.tokenizer, tokens, texts, sent, final)
                        sent = final
                made += more
        yield from released(self.tokenizer, tokens, texts, sent, len(tokens))

    # ---- motion to text, motion to motion

    def caption(self, motion: Any, **settings: Any) -> Any:
        """A sentence about a `Motion`, features `(T, D)` or tokens; of a list of them a list. `settings` as in `MotionLM.caption`.

        Raises VadisError for another frame rate or skeleton (retarget and resample first), and for motions that pass the
        model's context (caption pieces of at most `config.max_seconds`).
        """
        many = isinstance(motion, list | tuple)
        with self._lock:
            made = self.lm.caption([self.encode(m) for m in (motion if many else [motion])], **settings)
        return made if many or settings.get("samples_per_row", 1) > 1 else made[0]

    def predict(
        self,
        motion: Any,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> MotionOutput:
        """Go on from a motion: the whole, of which `motion` is the beginning. `seconds` is the length of the whole."""
        start = self.encode(motion)
        return self._given("prediction", prompt, seconds, seed, settings, partial(self.lm.predict, start))

    def in_between(
        self,
        start: Any,
        end: Any,
        prompt: str | None = None,
        *,
        seconds: float,
        seed: int | None = None,
        **settings: Any,
    ) -> MotionOutput:
        """What leads from one motion to another: the whole, `seconds` long, with both at its ends."""
        first, last = self.encode(start), self.encode(end)
        return self._given("in_between", prompt, seconds, seed, settings, partial(self.lm.in_between, first, last))

    def edit_parts(
        self, motion: Any, parts: Sequence[str], prompt: str | None = None, *, seed: int | None = None, **settings: Any
    ) -> MotionOutput:
        """The same motion with some parts of the body made anew; needs a tokenizer with parts (lfq2d)."""
        tokens = self.encode(motion)
        return self._given("part_completion", prompt, None, seed, settings, partial(self.lm.edit_parts, tokens, parts))

    def encode(self, motion: Any) -> Any:
        """Tokens of a `Motion` or of features `(T, D)`; tokens are returned as they are."""
        if isinstance(motion, Encoded) or (isinstance(motion, Tensor) and not motion.is_floating_point()):
            return motion
        encoded = self.tokenizer.encode(motion)
        return encoded.cpu() if isinstance(encoded, Tensor) else encoded

    # ---- inside

    def _steps(self, seconds: float | None) -> int:
        steps = self.lm.steps(seconds=seconds)
        assert isinstance(steps, int)
        return steps

    def _window(self, past: int, wanted: int) -> tuple[int, int]:
        """Steps to go on from, and steps to make, of the next window."""
        fps, per_token = self.tokenizer.fps, self.tokenizer.frames_per_token
        window = max(2, int(self.config.max_seconds * fps) // per_token)
        past = min(past, max(1, round(OVERLAP_SECONDS * fps / per_token)), window // 2)
        return past, min(wanted, window - past)

    def _tokens(self, work: Work) -> tuple[list[Any], list[str]]:
        """Token rows, the candidates of a prompt adjacent, in few calls."""
        rows: list[Any] = []
        stopped: list[str] = []
        samples, drawn = work.samples, _drawn(work)
        size = max(1, ROWS // samples)
        for start in range(0, len(work.texts), size):
            part = slice(start, start + size)
            some, seeds, own = work.texts[part], work.seeds[part], work.seconds[part]
            if None in own:
                limit = self._longest()
                made, why = self.lm.generate(some, longest=limit, seed=seeds, samples_per_row=samples, **drawn)
            elif self.lm.two_streams:
                if max(s for s in own if s is not None) > self.config.max_seconds:
                    raise VadisError(
                        f"this model makes motions of at most {self.config.max_seconds:g} seconds: its tokens stand for the "
                        "whole motion, so it can't go on from its end."
                    )
                made, why = self.lm.generate(some, seconds=own, seed=seeds, samples_per_row=samples, **drawn)  # type: ignore[arg-type]
            else:
                steps = [self._steps(s) for s in own]
                made, why = self._windows(some, steps, seeds, samples, drawn)
            rows += made
            stopped += why
        return rows, stopped

    def _longest(self) -> int:
        """`max_seconds` in the grammar's unit."""
        frames = int(self.config.max_seconds * self.tokenizer.fps)
        return frames if self.lm.two_streams else max(1, frames // self.tokenizer.frames_per_token)

    def _windows(
        self, texts: list[str], steps: list[int], seeds: list[int], samples: int, drawn: dict[str, Any]
    ) -> tuple[list[Tensor], list[str]]:
        """Motions of exact lengths; beyond the trained range each goes on from its own last seconds."""
        first = [self._window(0, n)[1] for n in steps]
        made, _ = self.lm.generate(texts, steps=first, seed=seeds, samples_per_row=samples, **drawn)
        for place, row in enumerate(made):
            prompt, sample = divmod(place, samples)
            while len(row) < steps[prompt]:
                past, more = self._window(len(row), steps[prompt] - len(row))
                fixed = self.lm.placed(row[-past:], range(past), past + more)
                seed = [seeds[prompt] + 7919 * len(row) + 104729 * sample]
                (whole,), _ = self.lm.generate(texts[prompt], steps=past + more, fixed=fixed, seed=seed, **drawn)
                row = torch.cat([row, whole[past:]])
            made[place] = row
        return made, ["length"] * len(made)

    def _decode(self, tokens: Any, capped: bool) -> Tensor:
        stop_if_cancelled()
        options = {"on_error": "repair"} if capped and self.lm.two_streams else {}
        return self.tokenizer.decode(tokens, **options).float().cpu()

    def _best(self, text: str, seconds: float | None, rows: list[Any], stopped: list[str], work: Work) -> Made:
        """The best candidate of one prompt as a motion."""
        frames, best, score = frames_of(seconds, self.fps), 0, None
        with work.clock("choose"):
            if len(rows) > 1 and self.planner is None:
                scores = self.lm.score([text] * len(rows), rows)
                best = int(scores.argmax())
                score = round(float(scores[best]), 4)
        with work.clock("decode"):
            judged = range(len(rows)) if self.planner else [best]
            features = {k: self._decode(rows[k], stopped[k] == "cap")[:frames] for k in judged}
            motions = {k: self._decoded(features[k], work.config) for k in judged}
        with work.clock("choose"):
            if len(motions) > 1:
                words, lengths = self.text_encoder.encode([text])
                best, score = best_match(self.planner, words[:, : int(lengths[0])], list(motions.values()))
        return Made(motions[best], features[best], rows[best], stopped[best], score)

    def _given(
        self,
        task: str,
        prompt: str | None,
        seconds: float | None,
        seed: int | None,
        settings: dict[str, Any],
        make: Callable[..., Any],
    ) -> MotionOutput:
        """A motion that `make` makes from given ones."""
        if prompt is not None and not prompt.strip():
            raise VadisError("the prompt is empty: leave it out, or say what the body does.")
        lengths = check_seconds(seconds, 1, self.fps)
        asked = settings.pop("asked", task in self.config.tasks)
        first = int(torch.randint(2**31, (1,))) if seed is None else int(seed)
        work = Work([prompt or ""], lengths, [first], 1, [None], self._with(settings))
        with self._lock, torch.no_grad():
            with work.clock("tokens"):
                length = {} if seconds is None else {"seconds": seconds}
                tokens = make(caption=prompt, asked=asked, seed=work.seeds, **length, **_drawn(work))
            made = self._best(work.texts[0], seconds, [tokens], ["end" if seconds is None else "length"], work)
            made = self._finished(made, work.texts[0], work)
        return MotionOutput([made], {stage: round(spent, 4) for stage, spent in work.timing.items()})

    # ---- files

    @classmethod
    def _open(
        cls,
        folder: Path,
        config: Any,
        *,
        dtype: Any,
        device: Any,
        allow_download: bool,
        precision: Precision | None = None,
        base: str | Path | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
    ) -> Self:
        """The pipeline in a folder.

        Args:
            precision: of the language model instead of the config's own; `dtype` "bf16" means the same as "bfloat16".
            base: the backbone of a bundle that holds only what it lacks, instead of the name in it.
            tokenizer, text_encoder: the motion tokenizer, and the planner's encoder, when they are loaded already.
        """
        target = pick_device(device)
        for part in ("tokenizer", "language_model"):
            if not (folder / part).is_dir() and not (part == "tokenizer" and tokenizer is not None):
                raise ModelError(f"{folder} has no folder {part}: download or save the bundle again.")
        if precision is None:
            precision = "bfloat16" if pick_dtype(dtype) == torch.bfloat16 else config.precision
            precision = "float32" if precision == "int8" and target.type != "cpu" else precision
        motion_tokenizer = tokenizer or load_component(folder / "tokenizer", device=target)
        lm = MotionLM.from_pretrained(
            folder / "language_model", motion_tokenizer, device=target, precision=precision, base=base,
            allow_download=allow_download,
        )  # fmt: skip
        # on the CPU, as its text encoder
        planner = load_component(folder / "planner") if (folder / "planner").is_dir() else None
        pipe = cls(lm, config, planner, text_encoder)
        pipe._source = folder / "language_model"
        return pipe

    def _parts(self) -> dict[str, Any]:
        """A pipeline that was loaded keeps its language model as it was stored: adapters stay adapters."""
        from vadis.language.checkpoints import save_language_model

        def write(target: Path) -> None:
            save_language_model(target, self.lm.model, self.lm.text_tokenizer, self.lm.vocabulary)

        stored = write if self._source is None else partial(_copy, self._source)
        return _bundle(self.tokenizer, stored, self.planner)

    @classmethod
    def assemble(
        cls,
        folder: str | Path,
        language_model: str | Path,
        tokenizer: str | Path,
        config: MotionLanguageConfig | None = None,
        card: str = "",
        planner: str | Path | None = None,
    ) -> None:
        """Write a bundle of a trained language model (a folder of transformers, or a delta) and its motion tokenizer, with a
        planner's folder that is to choose among candidates, if any (config.text_encoder names its encoder).

        Raises ModelError unless the language model was trained with that tokenizer.
        """
        from vadis.language.add_motion import MotionVocabulary
        from vadis.language.checkpoints import check_motion_tokenizer

        motion_tokenizer = load_component(Path(tokenizer))
        check_motion_tokenizer(MotionVocabulary.load(language_model), motion_tokenizer)
        judge, config = load_component(Path(planner)) if planner is not None else None, config or MotionLanguageConfig()
        _check_planner(judge, config)
        parts = _bundle(motion_tokenizer, partial(_copy, Path(language_model)), judge)
        save_bundle(folder, cls.__name__, parts, asdict(config), card)


def _drawn(work: Work) -> dict[str, Any]:
    """What the language model is told of how to draw."""
    return {name: getattr(work.config, name) for name in ("temperature", "top_k", "top_p", "guidance_scale")}


def _check_planner(planner: Any | None, config: MotionLanguageConfig) -> None:
    if planner is not None and config.text_encoder is None:
        raise ModelError("a planner reads sentences by an encoder: name it as text_encoder in the config.")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _bundle(tokenizer: Any, write: Callable[[Path], None], planner: Any | None) -> dict[str, Any]:
    parts = {"tokenizer": tokenizer, "language_model": Written(write, LIBRARY, "AutoModelForCausalLM")}
    return parts if planner is None else parts | {"planner": planner}


__all__ = ["MotionLanguageConfig", "MotionLanguagePipeline"]
