"""A sentence in, a moving body out: text encoder, planner, generator, tokenizer, representation.

Several samples are made of every prompt and the one that does best what the sentence says is kept: the planner scores
the kinematics of each sample. Any length can be asked for; beyond the trained range the motion is continued window by
window on its own last seconds.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis.errors import ModelError, VadisError
from vadis.generators.decoding import Decoding
from vadis.motion import Motion
from vadis.pipelines.base import (
    ROWS,
    Capabilities,
    Made,
    Piece,
    PipelineConfig,
    Work,
    frames_of,
    look_ahead,
    released,
)
from vadis.pipelines.choose import best_match
from vadis.pipelines.components import ComponentPipeline
from vadis.sizes import CONFIG, Name, Seconds


@checked_dataclass(frozen=True, config=CONFIG)
class GenerationConfig(PipelineConfig):
    """Defaults of a pipeline's call; they travel with the model as `generation_config.json`."""

    temperature: float = Field(default=0.9, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
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
    """Shorter motions are made this long and cut."""
    text_encoder: Name | None = "minilm"


class TextToMotionPipeline(ComponentPipeline):
    """Prompts to motions by tokens that a transformer writes. `vadis.load("vadis-mini")` gives one."""

    config_class = GenerationConfig
    generators = Decoding
    settings_of_a_call = (
        "temperature", "top_k", "top_p", "guidance_scale", "clean_feet", "source", "plan", "certain", "nearest",
        "likelihood", "roughness",
    )  # fmt: skip

    def _check_parts(self) -> None:
        tokenizer, generator = self.tokenizer, self.generator
        if generator.config.nb_code != tokenizer.vocab_size or generator.config.groups != tokenizer.tokens_per_step:
            raise ModelError(
                f"the generator speaks {generator.config.groups} × {generator.config.nb_code} codes, the tokenizer "
                f"{tokenizer.tokens_per_step} × {tokenizer.vocab_size}: they don't belong together."
            )
        if self.config.seconds is None and (self.planner is not None or generator.config.length_conditioning):
            raise ModelError("this model plans for a length: give the pipeline's config a number of seconds.")

    @property
    def capabilities(self) -> Capabilities:
        planned = self.planner is not None
        return Capabilities(
            inputs=frozenset({"text"}),
            outputs=frozenset({"motion", "stream"}),
            ends_itself=self.config.seconds is None,
            chooses=planned,
            together=not planned,
        )

    # ---- whole motions

    def _make(self, work: Work) -> list[Made]:
        with work.clock("text"):
            text, counts = self.text_encoder.encode(work.texts)
        rows = [text[i : i + 1, : int(n)] for i, n in enumerate(counts)]
        with work.clock("tokens"):
            together = self._together(text, counts, work)
        return [self._one(row, work, i, together.get(i)) for i, row in enumerate(rows)]

    def _one(self, text: Tensor, work: Work, i: int, made: tuple[list[Tensor], list[str]] | None) -> Made:
        """Candidates of prompt i, the best of them; `text` (1, L, C); `made`: their tokens, where they exist already."""
        seconds = work.seconds[i]
        frames = frames_of(seconds, self.fps)
        with work.clock("tokens"):
            rows, stopped = made or self._tokens(text, self._steps(seconds, work), work.seeds[i], work)
        with work.clock("decode"):
            if len({len(r) for r in rows}) == 1:
                decoded = self.tokenizer.decode(torch.stack(rows))
            else:
                decoded = [self.tokenizer.decode(r) for r in rows]
            candidates = [d[:frames].float().cpu() for d in decoded]
            motions = [self._decoded(c, work.config) for c in candidates]
        with work.clock("choose"):
            best, score = self._choose(text, motions, seconds, work.config)
        return Made(motions[best], candidates[best], rows[best], stopped[best], score)

    def _plan(self, text: Tensor, seconds: float, config: Any, count: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Plan and mask `(count, P, A)` of the candidates of one prompt; empty for a generator that takes none."""
        if self.planner is None or not self.generator.config.plan_dim or config.plan == "none":
            return {}
        lengths = torch.tensor([text.shape[1]])
        if config.plan == "bank":
            plan, mask = self.planner.propose(text, lengths, seconds, count, seed, config.nearest)
        else:
            plan, mask = self.planner.plan(text, lengths, torch.tensor([seconds]), config.certain)
        return {"plan": plan.expand(count, -1, -1), "plan_mask": mask.expand(count, -1, -1)}

    def _window(self, text: Tensor) -> tuple[int, int]:
        """Steps that one run of the generator can make for a prompt, and how many of them repeat what is there already."""
        fps, per_token = self.tokenizer.fps, self.tokenizer.frames_per_token
        room = self.generator.config.block_size - text.shape[1] - self.generator.config.plan_tokens
        window = max(1, min(int(self.config.max_seconds * fps) // per_token, room))
        return window, min(round(2.0 * fps / per_token), window // 2)

    def _steps(self, seconds: float | None, work: Work) -> int | None:
        """Token steps that cover a length, at least `min_seconds`."""
        if seconds is None:
            return None
        fps = self.tokenizer.fps
        return -(-max(1, round(max(seconds, work.config.min_seconds) * fps)) // self.tokenizer.frames_per_token)

    def _together(self, text: Tensor, counts: Tensor, work: Work) -> dict[int, tuple[list[Tensor], list[str]]]:
        """What `_tokens` gives for each prompt that fits one window, in few calls; nothing for one prompt or with a planner."""
        samples, steps = work.samples, [self._steps(seconds, work) for seconds in work.seconds]
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
                seeds = [work.seeds[i] + 104729 * k for i in part for k in range(samples)]
                rows, stopped = self.generator.generate(
                    text[rows_of], counts[rows_of], **limit, **_drawn(work), seed=seeds
                )
                for k, i in enumerate(part):
                    own = slice(k * samples, (k + 1) * samples)
                    found[i] = rows[own], list(stopped[own])
        return found

    def _tokens(self, text: Tensor, steps: int | None, seed: int, work: Work) -> tuple[list[Tensor], list[str]]:
        """Token rows of `samples` candidates; windows beyond the trained range go on from the last two seconds.

        Without `steps` every row ends where the model ends it, within one window.
        """
        fps, per_token, samples, settings = self.fps, self.tokenizer.frames_per_token, work.samples, _drawn(work)
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
        conditions = self._plan(text, done * per_token / fps, work.config, samples, seed)
        rows, stopped = self.generator.generate(many, counts, num_tokens=done, **settings, **conditions, seed=seeds)
        while done < steps:
            more = min(steps - done, window - overlap)
            conditions = self._plan(text, (overlap + more) * per_token / fps, work.config, samples, seed)
            history = [row[len(row) - overlap :] for row in rows]
            seeds = [seed + 7919 * done + 104729 * k for k in range(samples)]
            new, stopped = self.generator.generate(
                many, counts, num_tokens=more, **settings, **conditions, history=history, seed=seeds
            )
            rows = [torch.cat([a, b]) for a, b in zip(rows, new, strict=True)]
            done += more
        return rows, list(stopped)

    def _choose(
        self, text: Tensor, motions: list[Motion], seconds: float | None, config: Any
    ) -> tuple[int, float | None]:
        if self.planner is None or seconds is None:
            return 0, None
        return best_match(self.planner, text, motions, seconds, config.likelihood, config.roughness)

    # ---- streaming

    def _pieces(self, work: Work) -> Iterator[Piece]:
        if None in work.seconds:
            raise VadisError("this model ends its motions itself; a stream needs a length: give seconds=…")
        fps, per_token, drawn = self.fps, self.tokenizer.frames_per_token, _drawn(work)
        after = look_ahead(self.tokenizer)
        tokens: list[Tensor] = []
        texts: list[str] = []
        sent = 0
        text, counts = self.text_encoder.encode(work.texts)
        for i, words in enumerate(work.texts):
            part = text[i : i + 1, : int(counts[i])]
            window, overlap = self._window(part)
            steps = -(-max(1, round((work.seconds[i] or 0) * fps)) // per_token)
            made = 0
            while made < steps:  # beyond the trained range the motion goes on window by window, as in a call
                past = min(len(tokens), overlap)
                more = min(steps - made, window - past)
                seconds = (more + (past if made else 0)) * per_token / fps
                options: dict[str, Any] = self._plan(part, seconds, work.config)
                if past:
                    options["history"] = [torch.stack(tokens[-past:])]
                count, seed = torch.tensor([part.shape[1]]), [work.seeds[i] + 7919 * made]
                for step in self.generator.stream(part, count, num_tokens=more, **drawn, **options, seed=seed):
                    tokens.append(step.tokens[0])
                    texts.append(words)
                    if (final := len(tokens) - after) > sent:
                        yield from released(self.tokenizer, tokens, texts, sent, final)
                        sent = final
                made += more
        yield from released(self.tokenizer, tokens, texts, sent, len(tokens))


def _drawn(work: Work) -> dict[str, Any]:
    """What the generator is told of how to draw."""
    return {name: getattr(work.config, name) for name in ("temperature", "top_k", "top_p", "guidance_scale")}
