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
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis.cancel import stop_if_cancelled
from vadis.errors import FileError, ModelError, VadisError
from vadis.generators.motion_lm import MotionLM, Precision
from vadis.generators.planner import KinematicPlanner
from vadis.motion import Motion
from vadis.pipelines.text_to_motion import (
    MAX_SECONDS,
    ROWS,
    TextToMotionOutput,
    best_match,
    check_seconds,
    on_floor,
    with_resting_feet,
)
from vadis.sizes import CONFIG, Name, Seconds
from vadis.tokenizers.dsft_sequence import Encoded

OVERLAP_SECONDS = 2.0
"""How much of what is there a longer motion goes on from, window by window."""
_DRAW = ("temperature", "top_k", "top_p", "guidance_scale")


@checked_dataclass(frozen=True, config=CONFIG)
class MotionLanguageConfig:
    """Defaults of a call; they travel with the model as `generation_config.json`."""

    seconds: Seconds | None = 5.0
    """Length when none is asked for. Null: the model ends the motion itself."""
    samples: int = Field(default=1, ge=1, le=256)
    """Candidates a prompt; kept is the one that a planner finds best, else that in which the model reads the sentence best
    (see `tasks`)."""
    temperature: float = Field(default=1.0, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    guidance_scale: float = Field(default=1.0, ge=0)
    max_seconds: Seconds = 10.0
    """Longest motion that the model learned from; longer ones are made in windows."""
    tasks: Annotated[tuple[Name, ...], Field(max_length=64)] = ("text_to_motion",)
    """What the model learned. Given motion is forced instead of asked about where it did not learn the task; without a
    planner, candidates are chosen among only where it learned motion_to_text."""
    clean_feet: bool = False
    """Stop feet from sliding while they stand."""
    source: Literal["rotations", "positions"] = "rotations"
    """Which features the motion is made from."""
    precision: Precision = "float32"
    """Of the weights: "int8" is faster for few rows on a CPU, "bfloat16" on a GPU."""
    text_encoder: Name | None = None
    """What the planner reads sentences with, "minilm" for those of vadis; null without a planner."""


class MotionLanguagePipeline:
    """Prompts to motions, motions to captions. `from_pretrained`, `assemble` or parts make one."""

    alone: ClassVar[bool] = False
    """Whether each prompt of a list is made by itself."""

    def __init__(
        self,
        lm: MotionLM,
        config: MotionLanguageConfig | None = None,
        planner: KinematicPlanner | None = None,
        text_encoder: Any | None = None,
    ) -> None:
        from vadis.representations import representation

        if lm.motion_tokenizer is None:
            raise ModelError("a pipeline decodes motion: give the language model its motion_tokenizer.")
        self.lm, self.config, self.planner = lm, config or MotionLanguageConfig(), planner
        _check_planner(planner, self.config)
        self._text_encoder = text_encoder
        self.tokenizer = lm.motion_tokenizer
        self.representation = representation(self.tokenizer.representation)
        self._source: Path | None = None  # the folder that the language model was read from

    @property
    def generator(self) -> Any:
        """The network."""
        return self.lm.model

    @property
    def text_encoder(self) -> Any:
        """What the planner reads sentences with, loaded when first needed; None without a planner."""
        if self._text_encoder is None and self.planner is not None:
            from vadis.generators.text import text_encoder

            assert self.config.text_encoder is not None
            self._text_encoder = text_encoder(self.config.text_encoder)
        return self._text_encoder

    # ---- text to motion

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float | Sequence[float] | None = None,
        seed: int | None = None,
        samples: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        clean_feet: bool | None = None,
    ) -> TextToMotionOutput:
        """Make a motion of each prompt.

        Args:
            prompts: a sentence, or a list of them.
            seconds: length, for all or each; met within one frame. None: the model's own setting.
            seed: prompt i of a list draws with seed + i; None draws anew every time.
            samples: candidates a prompt, of which the best is kept.
            temperature, top_k, top_p, guidance_scale: see `vadis.generators.motion_run`; the model's own by default.
            clean_feet: stop feet from sliding while they stand.

        Raises VadisError for empty or overlong prompts and for lengths that are not positive, or above an hour.
        """
        from vadis.generators.text import check_prompts

        texts = check_prompts(prompts)
        lengths = check_seconds(self.config.seconds if seconds is None else seconds, len(texts), self.tokenizer.fps)
        drawn = self._drawn(temperature=temperature, top_k=top_k, top_p=top_p, guidance_scale=guidance_scale)
        count = self._samples(samples, drawn["temperature"])
        first = int(torch.randint(2**31, (1,))) if seed is None else int(seed)
        clock = time.perf_counter()
        rows, stopped = self._tokens(texts, lengths, first, count, drawn)
        timing = {"text": 0.0, "tokens": time.perf_counter() - clock, "decode": 0.0, "choose": 0.0, "clean": 0.0}
        results = []
        for i, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            own = slice(i * count, (i + 1) * count)
            results.append(self._result(text, length, rows[own], stopped[own], clean_feet, timing))
        timing = {k: round(v, 4) for k, v in timing.items()}
        if isinstance(prompts, str):
            return TextToMotionOutput(**results[0], timing=timing)
        return TextToMotionOutput(**{k: [r[k] for r in results] for k in results[0]}, timing=timing)

    def stream(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float | Sequence[float] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """Yield features `(n, D)` as they become final; prompts follow one another, each for its seconds.

        A decoded frame is final once the tokens that it depends on exist. Raises VadisError for tokens that don't come in
        the order of time (DSFT, part by part). `settings`: temperature, top_k, top_p, guidance_scale.
        """
        from vadis.generators.text import check_prompts

        self.lm.check_order()
        texts = check_prompts(prompts)
        lengths = check_seconds(self.config.seconds if seconds is None else seconds, len(texts), self.tokenizer.fps)
        if None in lengths:
            raise VadisError("a stream needs a length: give seconds.")
        if unknown := set(settings) - set(_DRAW):
            raise VadisError(f"unknown settings {', '.join(sorted(unknown))}; a stream takes {', '.join(_DRAW)}.")
        drawn = self._drawn(**settings)
        context = self.tokenizer.decoder_context
        after = 1 << 40 if context is None else context[1]
        tokens: list[Tensor] = []
        sent = 0
        for i, text in enumerate(texts):
            wanted, made = self._steps(lengths[i]), 0
            while made < wanted:
                past, more = self._window(len(tokens), wanted - made)
                options: dict[str, Any] = dict(drawn, steps=past + more, seed=[seed + i + 7919 * made])
                if past:
                    options["fixed"] = self.lm.placed(torch.stack(tokens[-past:]), range(past), past + more)
                skip = past
                for piece in self.lm.stream(text, **options):
                    tokens += list(piece[skip:])
                    skip = max(0, skip - len(piece))
                    if (final := len(tokens) - after) > sent:
                        yield self._final(tokens, sent, final)
                        sent = final
                made += more
        if sent < len(tokens):
            yield self._final(tokens, sent, len(tokens))

    # ---- motion to text, motion to motion

    def caption(self, motion: Any, **settings: Any) -> Any:
        """A sentence about a `Motion`, features `(T, D)` or tokens; of a list of them a list. `settings` as in `MotionLM.caption`.

        Raises VadisError for another frame rate or skeleton (retarget and resample first), and for motions that pass the
        model's context (caption pieces of at most `config.max_seconds`).
        """
        many = isinstance(motion, list | tuple)
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
    ) -> TextToMotionOutput:
        """Go on from a motion: the whole, of which `motion` is the beginning. `seconds` is the length of the whole."""
        start = self.encode(motion)
        return self._given("prediction", prompt, seconds, seed, settings, lambda **o: self.lm.predict(start, **o))

    def in_between(
        self,
        start: Any,
        end: Any,
        prompt: str | None = None,
        *,
        seconds: float,
        seed: int | None = None,
        **settings: Any,
    ) -> TextToMotionOutput:
        """What leads from one motion to another: the whole, `seconds` long, with both at its ends."""
        first, last = self.encode(start), self.encode(end)
        return self._given(
            "in_between", prompt, seconds, seed, settings, lambda **o: self.lm.in_between(first, last, **o)
        )

    def edit_parts(
        self, motion: Any, parts: Sequence[str], prompt: str | None = None, *, seed: int | None = None, **settings: Any
    ) -> TextToMotionOutput:
        """The same motion with some parts of the body made anew; needs a tokenizer with parts (lfq2d)."""
        tokens = self.encode(motion)
        return self._given(
            "part_completion", prompt, None, seed, settings, lambda **o: self.lm.edit_parts(tokens, parts, **o)
        )

    def encode(self, motion: Any) -> Any:
        """Tokens of a `Motion` or of features `(T, D)`; tokens are returned as they are."""
        if isinstance(motion, Encoded) or (isinstance(motion, Tensor) and not motion.is_floating_point()):
            return motion
        encoded = self.tokenizer.encode(motion)
        return encoded.cpu() if isinstance(encoded, Tensor) else encoded

    # ---- inside

    def _drawn(self, **given: Any) -> dict[str, Any]:
        return {k: getattr(self.config, k) if given.get(k) is None else given[k] for k in _DRAW}

    def _samples(self, samples: int | None, temperature: float) -> int:
        count = self.config.samples if samples is None else int(samples)
        if not 1 <= count <= 256:
            raise VadisError(f"samples={samples}: give 1 to 256 candidates.")
        # greedy decoding makes the same candidate every time; without planner and reading there is nothing to choose by
        return count if temperature > 0 and (self.planner or "motion_to_text" in self.config.tasks) else 1

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

    def _tokens(
        self, texts: list[str], lengths: Sequence[float | None], first: int, samples: int, drawn: dict[str, Any]
    ) -> tuple[list[Any], list[str]]:
        """Token rows, the candidates of a prompt adjacent, in few calls."""
        rows: list[Any] = []
        stopped: list[str] = []
        size = max(1, ROWS // samples)
        for start in range(0, len(texts), size):
            some, seeds = (
                texts[start : start + size],
                [first + start + i for i in range(len(texts[start : start + size]))],
            )
            own = lengths[start : start + size]
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

    def _motion(self, features: Tensor) -> Motion:
        options = {"fps": self.tokenizer.fps} if self.representation.name == "vimogen276" else {}
        return on_floor(self.representation.decode(features, source=self.config.source, **options))

    def _result(
        self,
        text: str,
        seconds: float | None,
        rows: list[Any],
        stopped: list[str],
        clean_feet: bool | None,
        timing: dict[str, float],
    ) -> dict[str, Any]:
        """The best candidate of one prompt as a motion."""
        frames = None if seconds is None else max(1, round(seconds * self.tokenizer.fps))
        clock = time.perf_counter()
        best, score = 0, None
        if len(rows) > 1 and self.planner is None:
            scores = self.lm.score([text] * len(rows), rows)
            best = int(scores.argmax())
            score = round(float(scores[best]), 4)
        timing["choose"] += time.perf_counter() - clock
        clock = time.perf_counter()
        judged = range(len(rows)) if self.planner else [best]
        features = {k: self._decode(rows[k], stopped[k] == "cap")[:frames] for k in judged}
        motions = {k: self._motion(features[k]) for k in judged}
        timing["decode"] += time.perf_counter() - clock
        clock = time.perf_counter()
        if len(motions) > 1:
            words, lengths = self.text_encoder.encode([text])
            best, score = best_match(self.planner, words[:, : int(lengths[0])], list(motions.values()))
        motion = motions[best]
        timing["choose"] += time.perf_counter() - clock
        clock = time.perf_counter()
        if self.config.clean_feet if clean_feet is None else clean_feet:
            motion = with_resting_feet(motion)
            timing["clean"] += time.perf_counter() - clock
        motion = motion.replace(meta={"prompt": text} if text else {})
        return {
            "motion": motion,
            "features": features[best],
            "tokens": rows[best],
            "stopped_by": stopped[best],
            "score": score,
        }

    def _given(
        self,
        task: str,
        prompt: str | None,
        seconds: float | None,
        seed: int | None,
        settings: dict[str, Any],
        make: Any,
    ) -> TextToMotionOutput:
        clean = settings.pop("clean_feet", None)
        if unknown := set(settings) - {*_DRAW, "asked"}:
            raise VadisError(
                f"unknown settings {', '.join(sorted(unknown))}; there are {', '.join(_DRAW)}, clean_feet."
            )
        if prompt is not None and not prompt.strip():
            raise VadisError("the prompt is empty: leave it out, or say what the body does.")
        if seconds is not None:
            check_seconds(seconds, 1, self.tokenizer.fps)
        asked = settings.pop("asked", task in self.config.tasks)
        drawn = self._drawn(**settings)
        first = int(torch.randint(2**31, (1,))) if seed is None else int(seed)
        clock = time.perf_counter()
        tokens = make(caption=prompt, asked=asked, seed=[first], **({"seconds": seconds} if seconds else {}), **drawn)
        timing = {"text": 0.0, "tokens": time.perf_counter() - clock, "decode": 0.0, "choose": 0.0, "clean": 0.0}
        result = self._result(prompt or "", seconds, [tokens], ["length" if seconds else "end"], clean, timing)
        return TextToMotionOutput(**result, timing={k: round(v, 4) for k, v in timing.items()})

    def _final(self, tokens: list[Tensor], start: int, stop: int) -> Tensor:
        """Frames of tokens `start` to `stop`, decoded with all the context that they depend on."""
        before, after = self.tokenizer.decoder_context or (len(tokens), len(tokens))
        first, per_token = max(0, start - before), self.tokenizer.frames_per_token
        decoded = self.tokenizer.decode(torch.stack(tokens[first : stop + after])).float().cpu()
        return decoded[(start - first) * per_token : (stop - first) * per_token]

    # ---- files

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: Any = None,
        device: Any = None,
        precision: Precision | None = None,
        base: str | Path | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        allow_download: bool = False,
    ) -> Self:
        """Load a bundle folder.

        Args:
            precision: of the language model instead of the config's own; `dtype` "bf16" means the same as "bfloat16".
            base: the backbone of a bundle that holds only what it lacks, instead of the name in it.
            allow_download: fetch the backbone that such a bundle names on the Hub.
            tokenizer, text_encoder: the motion tokenizer, and the planner's encoder, when they are loaded already.

        Raises ModelError where parts are missing or don't belong together.
        """
        from vadis.hub import load_component, pick_device, pick_dtype
        from vadis.records import checked, read_json

        folder, target = Path(folder), pick_device(device)
        for part in ("tokenizer", "language_model"):
            if not (folder / part).is_dir() and not (part == "tokenizer" and tokenizer is not None):
                raise ModelError(f"{folder} has no folder {part}: download or save the bundle again.")
        page = folder / "generation_config.json"
        fields = read_json(page) if page.is_file() else {}
        config: MotionLanguageConfig = checked(MotionLanguageConfig, fields, page, ModelError)
        if precision is None:
            precision = "bfloat16" if pick_dtype(dtype) == torch.bfloat16 else config.precision
            precision = "float32" if precision == "int8" and target.type != "cpu" else precision
        motion_tokenizer = tokenizer or load_component(folder / "tokenizer", device=target)
        lm = MotionLM.from_pretrained(
            folder / "language_model", motion_tokenizer, device=target, precision=precision, base=base,
            allow_download=allow_download,
        )  # fmt: skip
        planner = (
            load_component(folder / "planner") if (folder / "planner").is_dir() else None
        )  # CPU, as its text encoder
        pipe = cls(lm, config, planner, text_encoder)
        pipe._source = folder / "language_model"
        return pipe

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write the bundle; an older one at `folder` is replaced as a whole. `card` becomes README.md.

        A pipeline that was loaded keeps its language model as it was stored: adapters stay adapters.
        """
        from vadis.generators.motion_language_files import save_language_model

        def write(target: Path) -> None:
            if self._source is not None:
                shutil.copytree(self._source, target)
            else:
                save_language_model(target, self.lm.model, self.lm.text_tokenizer, self.lm.vocabulary)

        _write_bundle(Path(folder), write, self.tokenizer, self.config, card, self.planner)

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
        from vadis.generators.motion_language_files import check_motion_tokenizer
        from vadis.generators.motion_vocabulary import MotionVocabulary
        from vadis.hub import load_component

        motion_tokenizer = load_component(Path(tokenizer))
        check_motion_tokenizer(MotionVocabulary.load(language_model), motion_tokenizer)
        judge, config = load_component(Path(planner)) if planner is not None else None, config or MotionLanguageConfig()
        _check_planner(judge, config)
        _write_bundle(
            Path(folder), lambda target: shutil.copytree(language_model, target), motion_tokenizer, config, card, judge
        )


def _check_planner(planner: Any | None, config: MotionLanguageConfig) -> None:
    if planner is not None and config.text_encoder is None:
        raise ModelError("a planner reads sentences by an encoder: name it as text_encoder in the config.")


def _write_bundle(
    folder: Path, write: Any, tokenizer: Any, config: MotionLanguageConfig, card: str, planner: Any | None
) -> None:
    import vadis
    from vadis.files import atomic_folder
    from vadis.hub import write_json

    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise FileError(f"{folder} holds other files: name a new folder to save the bundle to.")
    with atomic_folder(folder) as temporary:
        write(temporary / "language_model")
        tokenizer.save_pretrained(temporary / "tokenizer")
        if planner is not None:
            planner.save_pretrained(temporary / "planner")
        write_json(temporary / "generation_config.json", asdict(config))
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        elif (folder / "README.md").is_file():
            shutil.copy(folder / "README.md", temporary / "README.md")
        index = {"_class_name": "MotionLanguagePipeline", "_vadis_version": vadis.__version__,
                 "tokenizer": ["vadis", type(tokenizer).__name__],
                 "language_model": ["transformers", "AutoModelForCausalLM"]}  # fmt: skip
        if planner is not None:
            index["planner"] = ["vadis", type(planner).__name__]
        write_json(temporary / "model_index.json", index)


__all__ = ["MAX_SECONDS", "MotionLanguageConfig", "MotionLanguagePipeline"]
