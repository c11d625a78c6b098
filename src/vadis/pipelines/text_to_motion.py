"""A sentence in, a moving body out: text encoder, planner, generator, tokenizer, representation.

Several samples are made of every prompt and the one that does best what the sentence says is kept: the planner scores
the kinematics of each sample. Any length can be asked for; beyond the trained range the motion is continued window by
window on its own last seconds.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis.cancel import stop_if_cancelled
from vadis.errors import ModelError, VadisError, about
from vadis.metrics.kinematics import kinematic_plan
from vadis.motion import Motion
from vadis.places import HubName
from vadis.sizes import CONFIG, Name, Seconds

MAX_SECONDS = 3600.0
ROWS = 32  # rows of the generator at once


@checked_dataclass(frozen=True, config=CONFIG)
class GenerationConfig:
    """Defaults of a pipeline's call; they travel with the model as `generation_config.json`."""

    seconds: Seconds | None = 5.0
    """Length when none is asked for. Null: the generator ends the motion itself (models without a planner)."""
    samples: int = Field(default=1, ge=1, le=256)
    """Candidates a prompt, of which the best is kept."""
    temperature: float = Field(default=0.9, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    guidance_scale: float = Field(default=1.0, ge=0)
    certain: float = Field(default=0.75, gt=0)
    """Plan values whose standard deviation is below this (in units of the training data) condition the generator."""
    plan: Literal["mean", "bank", "none"] = "mean"
    """What conditions the generator beside the text: the planner's mean where it is certain, plans of real motion that match
    the text (another for each candidate), or nothing."""
    nearest: int = Field(default=24, ge=1, le=1_000_000)
    """Plans of the bank among which candidates draw theirs."""
    likelihood: float = Field(default=0.0, ge=0)
    """Weight of the planner's likelihood beside its match in choosing among candidates."""
    roughness: float = Field(default=0.0, ge=0)
    """Weight of jitter and foot slide, relative to the candidates' mean, against the planner's score."""
    min_seconds: Seconds = 1.0
    max_seconds: Seconds = 10.0
    """Longest window the generator was trained on; longer motions are continued in windows."""
    clean_feet: bool = False
    """Stop the feet of the kept motion from sliding while they stand (`vadis.motion_editing.clean_feet`)."""
    source: Literal["rotations", "positions"] = "rotations"
    """Which features the motion is made from."""
    text_encoder: Name = "minilm"


@dataclass(frozen=True, eq=False)
class TextToMotionOutput:
    """What one call made; for a list of prompts every field but `timing` is a list in the same order."""

    motion: Any
    """Motion, rotations as the source of truth."""
    features: Any
    """(T, D) float32 in physical units, as decoded: without the clean-up of feet."""
    tokens: Any
    """(S,) or (S, G) int64."""
    stopped_by: Any
    """"length" (as asked for), "end" (the model's own END) or "cap"."""
    score: Any = None
    """How well the kept sample matches the text: a cosine with a planner, else None; a language model that chooses by itself
    gives the mean log-probability of the text's ids."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds spent on text, tokens, decoding, choosing and cleaning."""


class TextToMotionPipeline:
    """Prompts to motions. `vadis.load("vadis-mini")` gives one."""

    def __init__(
        self,
        tokenizer: Any,
        generator: Any,
        planner: Any | None = None,
        text_encoder: Any | None = None,
        config: GenerationConfig | None = None,
    ) -> None:
        from vadis.representations import representation

        self.tokenizer, self.generator, self.planner = tokenizer, generator, planner
        self.config = config or GenerationConfig()
        self._text_encoder = text_encoder
        self._text_source: Path | HubName | None = None  # where its weights are, when not in their usual place
        self.representation = representation(tokenizer.representation)
        if generator.config.nb_code != tokenizer.vocab_size or generator.config.groups != tokenizer.tokens_per_step:
            raise ModelError(
                f"the generator speaks {generator.config.groups} × {generator.config.nb_code} codes, the tokenizer "
                f"{tokenizer.tokens_per_step} × {tokenizer.vocab_size}: they don't belong together."
            )
        if self.config.seconds is None and (planner is not None or generator.config.length_conditioning):
            raise ModelError("this model plans for a length: give the pipeline's config a number of seconds.")

    # ---- parts

    @property
    def alone(self) -> bool:
        """Whether each prompt of a list is made by itself, so that a list in pieces takes no longer."""
        return self.planner is not None

    @property
    def text_encoder(self) -> Any:
        """The frozen text encoder, loaded when first needed."""
        if self._text_encoder is None:
            from vadis.generators.text import text_encoder

            self._text_encoder = text_encoder(self.config.text_encoder, self._text_source)
        return self._text_encoder

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
        from vadis.generators.text import encoder_source
        from vadis.hub import check_parts, load_bundle, pick_device
        from vadis.records import checked, read_json

        folder = Path(folder)
        if dtype is None and pick_device(device).type == "cpu":
            dtype = "float32"  # weights may be stored in half precision, which a CPU computes slowly
        parts = load_bundle(folder, dtype=dtype, device=device, **overrides)
        check_parts(folder, parts, overrides, ("motionmillion", "t2mgpt"), continuous=False)
        page = folder / "generation_config.json"
        config = checked(GenerationConfig, read_json(page), page, ModelError) if page.is_file() else GenerationConfig()
        encoder, stored = parts.get("text_encoder"), None
        if isinstance(encoder, dict | list):
            encoder, stored = None, encoder_source(folder, encoder, config.text_encoder, allow_download)
        with about(folder):
            pipe = cls(parts["tokenizer"], parts["generator"], parts.get("planner"), encoder, config)
        pipe._text_source = stored
        return pipe

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write the bundle: `model_index.json`, a folder a part, `generation_config.json`, and `card` as README.md."""
        from vadis.generators.text import encoder_entry
        from vadis.hub import save_bundle

        parts = {"tokenizer": self.tokenizer, "generator": self.generator}
        if self.planner is not None:
            parts["planner"] = self.planner
        encoder = encoder_entry(self.config.text_encoder, self._text_encoder, self._text_source)
        save_bundle(folder, "TextToMotionPipeline", parts | {"text_encoder": encoder}, asdict(self.config), card)

    # ---- the call

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
            temperature, top_k, top_p, guidance_scale: as in the generator; the model's own values by default.
            clean_feet: stop feet from sliding while they stand; the model's own setting by default.

        Raises VadisError for empty or overlong prompts and for lengths that are not positive, or above an hour.
        """
        from vadis.generators.text import check_prompts

        texts = check_prompts(prompts)
        lengths = self._seconds(seconds, len(texts))
        chosen = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance_scale": guidance_scale,
        }  # fmt: skip
        settings = {k: getattr(self.config, k) if v is None else v for k, v in chosen.items()}
        count = self.config.samples if samples is None else int(samples)
        if not 1 <= count <= 256:
            raise VadisError(f"samples={samples}: give 1 to 256 candidates.")
        if count > 1 and settings["temperature"] == 0:
            count = 1  # greedy decoding makes the same candidate every time
        first = int(torch.randint(2**31, (1,))) if seed is None else int(seed)
        timing = {"text": 0.0, "tokens": 0.0, "decode": 0.0, "choose": 0.0, "clean": 0.0}
        clock = time.perf_counter()
        text, text_lengths = self.text_encoder.encode(texts)
        timing["text"] = time.perf_counter() - clock
        clock = time.perf_counter()
        made = self._together(text, text_lengths, [self._steps(s) for s in lengths], first, count, settings)
        timing["tokens"] = time.perf_counter() - clock
        results = [
            self._one(text[i : i + 1, : int(n)], lengths[i], first + i, count, settings, timing, made.get(i))
            for i, n in enumerate(text_lengths)
        ]
        if self.config.clean_feet if clean_feet is None else clean_feet:
            clock = time.perf_counter()
            for result in results:
                result["motion"] = with_resting_feet(result["motion"])
            timing["clean"] = time.perf_counter() - clock
        for result, prompt in zip(results, texts, strict=True):
            result["motion"] = result["motion"].replace(meta={"prompt": prompt})
        timing = {k: round(v, 4) for k, v in timing.items()}
        if isinstance(prompts, str):
            return TextToMotionOutput(**results[0], timing=timing)
        return TextToMotionOutput(**{k: [r[k] for r in results] for k in results[0]}, timing=timing)

    def _seconds(self, seconds: float | Sequence[float] | None, count: int) -> list[float] | list[None]:
        return check_seconds(self.config.seconds if seconds is None else seconds, count, self.tokenizer.fps)

    def _one(
        self,
        text: Tensor,
        seconds: float | None,
        seed: int,
        samples: int,
        settings: dict[str, Any],
        timing: dict[str, float],
        made: tuple[list[Tensor], list[str]] | None = None,
    ) -> dict[str, Any]:
        """Candidates of one prompt, the best of them; `text` (1, L, C); `made`: their tokens, where they exist already."""
        frames = None if seconds is None else max(1, round(seconds * self.tokenizer.fps))
        clock = time.perf_counter()
        rows, stopped = made or self._tokens(text, self._steps(seconds), seed, samples, settings)
        timing["tokens"] += time.perf_counter() - clock
        clock = time.perf_counter()
        lengths = [len(r) for r in rows]
        if len(set(lengths)) == 1:
            decoded = self.tokenizer.decode(torch.stack(rows))
        else:
            decoded = [self.tokenizer.decode(r) for r in rows]
        candidates = [d[:frames].float().cpu() for d in decoded]
        motions = [self._motion(c) for c in candidates]
        timing["decode"] += time.perf_counter() - clock
        clock = time.perf_counter()
        best, score = self._choose(text, motions, seconds)
        timing["choose"] += time.perf_counter() - clock
        return {"motion": motions[best], "features": candidates[best], "tokens": rows[best], "stopped_by": stopped[best],
                "score": score}  # fmt: skip

    def _plan(self, text: Tensor, seconds: float, count: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Plan and mask `(count, P, A)` of the candidates of one prompt; empty for a generator that takes none."""
        if self.planner is None or not self.generator.config.plan_dim or self.config.plan == "none":
            return {}
        lengths = torch.tensor([text.shape[1]])
        if self.config.plan == "bank":
            plan, mask = self.planner.propose(text, lengths, seconds, count, seed, self.config.nearest)
        else:
            plan, mask = self.planner.plan(text, lengths, torch.tensor([seconds]), self.config.certain)
        return {"plan": plan.expand(count, -1, -1), "plan_mask": mask.expand(count, -1, -1)}

    def _window(self, text: Tensor) -> tuple[int, int]:
        """Steps that one run of the generator can make for a prompt, and how many of them repeat what is there already."""
        fps, per_token = self.tokenizer.fps, self.tokenizer.frames_per_token
        room = self.generator.config.block_size - text.shape[1] - self.generator.config.plan_tokens
        window = max(1, min(int(self.config.max_seconds * fps) // per_token, room))
        return window, min(round(2.0 * fps / per_token), window // 2)

    def _steps(self, seconds: float | None) -> int | None:
        """Token steps that cover a length, at least `min_seconds`."""
        if seconds is None:
            return None
        fps = self.tokenizer.fps
        return -(-max(1, round(max(seconds, self.config.min_seconds) * fps)) // self.tokenizer.frames_per_token)

    def _together(
        self, text: Tensor, counts: Tensor, steps: list[int | None], first: int, samples: int, settings: dict[str, Any]
    ) -> dict[int, tuple[list[Tensor], list[str]]]:
        """What `_tokens` gives for each prompt that fits one window, in few calls; nothing for one prompt or with a planner."""
        groups: dict[int | None, list[int]] = {}
        for i, wanted in enumerate(steps if len(steps) > 1 and self.planner is None else []):
            window, _ = self._window(text[i : i + 1, : int(counts[i])])
            if wanted is None or wanted <= window:
                groups.setdefault(window if wanted is None else None, []).append(i)
        found = {}
        size = max(1, ROWS // samples)
        for window, places in groups.items():
            for part in (places[k : k + size] for k in range(0, len(places), size)):
                rows_of = [i for i in part for _ in range(samples)]
                limit: dict[str, Any] = {"max_tokens": window, "may_be_empty": False}
                if window is None:
                    limit = {"num_tokens": [steps[i] for i in rows_of]}
                seeds = [first + i + 104729 * k for i in part for k in range(samples)]
                rows, stopped = self.generator.generate(text[rows_of], counts[rows_of], **limit, **settings, seed=seeds)
                for k, i in enumerate(part):
                    own = slice(k * samples, (k + 1) * samples)
                    found[i] = rows[own], list(stopped[own])
        return found

    def _tokens(
        self, text: Tensor, steps: int | None, seed: int, samples: int, settings: dict[str, Any]
    ) -> tuple[list[Tensor], list[str]]:
        """Token rows of `samples` candidates; windows beyond the trained range go on from the last two seconds.

        Without `steps` every row ends where the model ends it, within one window.
        """
        fps, per_token = self.tokenizer.fps, self.tokenizer.frames_per_token
        window, overlap = self._window(text)
        many = text.expand(samples, -1, -1)
        counts = torch.full((samples,), text.shape[1])
        seeds = [seed + 104729 * k for k in range(samples)]
        if steps is None:
            rows, stopped = self.generator.generate(
                many, counts, max_tokens=window, may_be_empty=False, **settings, seed=seeds
            )
            return rows, list(stopped)
        done = min(steps, window)
        conditions = self._plan(text, done * per_token / fps, samples, seed)
        rows, stopped = self.generator.generate(many, counts, num_tokens=done, **settings, **conditions, seed=seeds)
        while done < steps:
            more = min(steps - done, window - overlap)
            conditions = self._plan(text, (overlap + more) * per_token / fps, samples, seed)
            history = [row[len(row) - overlap :] for row in rows]
            seeds = [seed + 7919 * done + 104729 * k for k in range(samples)]
            new, stopped = self.generator.generate(
                many, counts, num_tokens=more, **settings, **conditions, history=history, seed=seeds
            )
            rows = [torch.cat([a, b]) for a, b in zip(rows, new, strict=True)]
            done += more
        return rows, list(stopped)

    def _motion(self, features: Tensor) -> Motion:
        stop_if_cancelled()
        return on_floor(self.representation.decode(features, source=self.config.source))

    def _choose(self, text: Tensor, motions: list[Motion], seconds: float | None) -> tuple[int, float | None]:
        if self.planner is None or seconds is None:
            return 0, None
        return best_match(self.planner, text, motions, seconds, self.config.likelihood, self.config.roughness)

    # ---- streaming

    def stream(
        self, prompts: str | Sequence[str], *, seconds: float | None = None, seed: int = 0, **settings: Any
    ) -> Iterator[Tensor]:
        """Yield features `(n, D)` as they become final; prompts follow one another, each for `seconds`.

        A decoded frame is final once the tokens that it depends on exist, so frames come with a short delay.
        """
        from vadis.generators.text import check_prompts

        texts = check_prompts(prompts)
        lengths = [s for s in self._seconds(seconds, len(texts)) if s is not None]
        if not lengths:
            raise VadisError("this model ends its motions itself; a stream needs a length: give seconds=…")
        names = ("temperature", "top_k", "top_p", "guidance_scale")
        if unknown := set(settings) - set(names):
            raise VadisError(f"unknown settings {', '.join(sorted(unknown))}; a stream takes {', '.join(names)}.")
        chosen = {k: settings.get(k) if settings.get(k) is not None else getattr(self.config, k) for k in names}
        fps, per_token = self.tokenizer.fps, self.tokenizer.frames_per_token
        _, after = self.tokenizer.decoder_context
        tokens: list[Tensor] = []
        sent = 0
        text, text_lengths = self.text_encoder.encode(texts)
        for i in range(len(texts)):
            part = text[i : i + 1, : int(text_lengths[i])]
            window, overlap = self._window(part)
            steps = -(-max(1, round(lengths[i] * fps)) // per_token)
            made = 0
            while made < steps:  # beyond the trained range the motion goes on window by window, as in a call
                past = min(len(tokens), overlap)
                more = min(steps - made, window - past)
                options: dict[str, Any] = self._plan(part, (more + (past if made else 0)) * per_token / fps)
                if past:
                    options["history"] = [torch.stack(tokens[-past:])]
                for step in self.generator.stream(
                    part,
                    torch.tensor([part.shape[1]]),
                    num_tokens=more,
                    **chosen,
                    **options,
                    seed=[seed + i + 7919 * made],
                ):
                    tokens.append(step.tokens[0])
                    final = len(tokens) - after
                    if final > sent:
                        yield self._final(tokens, sent, final)
                        sent = final
                made += more
        yield self._final(tokens, sent, len(tokens))

    def _final(self, tokens: list[Tensor], start: int, stop: int) -> Tensor:
        """Frames of tokens `start` to `stop`, decoded with all the context that they depend on."""
        (before, after), per_token = self.tokenizer.decoder_context, self.tokenizer.frames_per_token
        first = max(0, start - before)
        decoded = self.tokenizer.decode(torch.stack(tokens[first : stop + after]))
        return decoded[(start - first) * per_token : (stop - first) * per_token]


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


def best_match(
    planner: Any,
    text: Tensor,
    motions: Sequence[Motion],
    seconds: float | None = None,
    likelihood: float = 0.0,
    roughness: float = 0.0,
) -> tuple[int, float | None]:
    """The motion that does best what a text `(1, L, C)` says by a planner, and its cosine; (0, None) where one is under 8 frames.

    `likelihood` (needs `seconds`) and `roughness` are weights as in `GenerationConfig`.
    """
    if min(m.num_frames for m in motions) < 8:
        return 0, None
    plans = torch.stack([_plan_of(m) for m in motions])
    lengths = torch.tensor([text.shape[1]])
    score = total = planner.match(text, lengths, plans[None])[0]
    if likelihood:
        total = score + likelihood * planner.score(text, lengths, torch.tensor([seconds]), plans[None])[0]
    if roughness and len(motions) > 1:
        rough = torch.tensor([_roughness(m) for m in motions])
        total = total - roughness * (rough / rough.mean(0)).mean(-1)
    best = int(total.argmax())
    return best, round(float(score[best]), 4)


def _plan_of(motion: Motion) -> Tensor:
    stop_if_cancelled()
    return kinematic_plan(motion.positions, motion.fps)


def on_floor(motion: Motion) -> Motion:
    """The motion with its feet on the floor: the 5 % quantile of the lowest joint is at height 0."""
    lowest = motion.positions[..., 1].min(dim=1).values.quantile(0.05)
    return motion.replace(root=motion.root - torch.tensor([0.0, float(lowest), 0.0]))


def with_resting_feet(motion: Motion) -> Motion:
    """The motion with resting feet; generated motion is smooth already, and clips too short for contacts stay."""
    from vadis.motion_editing import clean_feet

    stop_if_cancelled()
    return motion if motion.num_frames < 4 else clean_feet(motion, smooth=None)


def _roughness(motion: Motion) -> list[float]:
    """Jitter (m/s³) and toe slide (m/s) of a motion, plus small constants that keep quiet motions from mattering."""
    p = motion.positions
    jitter = float(torch.diff(p, n=3, dim=0).norm(dim=-1).mean()) * motion.fps**3
    toes = p[:, [10, 11]]
    step = torch.diff(toes, dim=0) * motion.fps
    down = toes[:-1, :, 1] < 0.05
    slide = float(step[..., [0, 2]].norm(dim=-1)[down].mean()) if bool(down.any()) else 0.0
    return [jitter + 10.0, slide + 0.05]
