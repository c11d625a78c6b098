"""A language model that speaks motion, in use: text to motion, continuing, filling in, changing parts, and motion to text.

    lm = MotionLM.from_pretrained(folder, motion_tokenizer)
    tokens, stopped_by = lm.generate(["a person waves", "someone sits down"], seconds=[4, 6], temperature=1, seed=0)
    lm.caption(tokens[0])

Every row is well-formed and as long as asked for (`MotionGrammar`), prompts are worded as in training
(`vadis.data.instructions`), and only the motion's rows of the head are computed. A row's result depends on its prompt and
seed alone, not on its companions. Shapes: P prompts, R rows (prompts times samples), S token steps, G tokens a step,
N symbols, U slots of the grammar.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from vadis.data.instruction_templates import usable
from vadis.data.instructions import InstructionItem, MotionSpan, encode_prompt, given_parts, instruction
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators.cached_rows import CachedRows, CausalModel
from vadis.generators.decoding import StoppedBy
from vadis.generators.motion_grammar import LENGTH_STEP, MotionGrammar
from vadis.generators.motion_language_files import check_motion_tokenizer, check_together, load_language_model
from vadis.generators.motion_run import MotionRun
from vadis.generators.motion_vocabulary import MotionVocabulary
from vadis.generators.sampling import RowNoise, Seed, check_sampling, choose
from vadis.tokenizers.dsft_sequence import Encoded

Precision = Literal["float32", "bfloat16", "int8"]
Prompt = str | Sequence[int]
"""A sentence, put into the wording that evaluation uses, or the ids of a whole prompt (see `MotionLM.prompt`)."""
Numbers = float | Sequence[float] | Tensor | None
_UNITS = ("steps", "frames", "seconds")


class MotionLM:
    """Model, text tokenizer and motion vocabulary that belong together, and the motion tokenizer where it is needed.

    Args:
        model: a causal language model of transformers, or one of `peft` around it.
        motion_tokenizer: needed by DSFT, to change parts by name, and for whoever wants to decode.

    Raises ModelError where they don't belong together.
    """

    def __init__(
        self, model: Any, text_tokenizer: Any, vocabulary: MotionVocabulary, motion_tokenizer: Any | None = None
    ) -> None:
        check_together(model, text_tokenizer, vocabulary)
        if motion_tokenizer is not None:
            check_motion_tokenizer(vocabulary, motion_tokenizer)
        self.two_streams = vocabulary.layout.kind == "two_stream"
        if self.two_streams and motion_tokenizer is None:
            raise ModelError("a model of DSFT's tokens needs the DSFT tokenizer: give motion_tokenizer.")
        self.model, self.text_tokenizer, self.vocabulary = model, text_tokenizer, vocabulary
        self.motion_tokenizer, self.causal = motion_tokenizer, CausalModel(model)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        motion_tokenizer: Any | None = None,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        base: str | Path | None = None,
    ) -> Self:
        """A saved folder or delta (see `motion_language_files`) for use: an adapter is merged into the weights.

        "bfloat16" halves the memory and suits GPUs, "int8" makes one or few rows on a CPU faster.
        """
        if precision not in ("float32", "bfloat16", "int8"):
            raise VadisError(f"unknown precision {precision!r}: use float32, bfloat16 or int8.")
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        model, text, vocabulary = load_language_model(folder, motion_tokenizer, dtype=dtype, device=device, base=base)
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload().eval()
        made = cls(model, text, vocabulary, motion_tokenizer)
        if precision == "int8":
            made.causal.to_int8()
        return made

    # ---- prompts and lengths

    def prompt(self, task: str = "text_to_motion", **values: Any) -> list[int]:
        """Ids of a task's prompt in the wording of evaluation; `values` as in `vadis.data.instructions.instruction`."""
        return self._encode(instruction(task, template=_wording(task, values), **values))

    def steps(
        self, *, steps: Numbers = None, frames: Numbers = None, seconds: Numbers = None
    ) -> list[int] | int | None:
        """A length in the grammar's unit, token steps or (DSFT) frames, rounded up to what tokens can say.

        One of the three, each a number or a list. Raises VadisError for two of them and for lengths that are none.
        """
        given = {"steps": steps, "frames": frames, "seconds": seconds}
        named = {name: value for name, value in given.items() if value is not None}
        if not named:
            return None
        if len(named) > 1:
            raise VadisError(f"give one of {', '.join(named)}, not several.")
        ((unit, value),) = named.items()
        if isinstance(value, int | float):
            return self._length(unit, value)
        return [self._length(unit, float(v)) for v in value]

    def _length(self, unit: str, value: float) -> int:
        facts = self.vocabulary.tokenizer
        if not 0 < value < float("inf"):
            raise VadisError(f"{unit}={value:g}: a motion's length is a positive number.")
        count = max(1, round(value * facts.fps)) if unit == "seconds" else int(value)
        if (count != value and unit != "seconds") or count < 1:
            raise VadisError(f"{unit}={value:g}: give a whole number of at least 1.")
        if self.two_streams:
            if unit == "steps":
                raise VadisError("DSFT's tokens stand for no span of time: give frames or seconds instead of steps.")
            return count if self.vocabulary.length_ids is None else -(-count // LENGTH_STEP) * LENGTH_STEP
        return count if unit == "steps" else -(-count // int(facts.frames_per_token or 1))

    # ---- motion

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, samples_per_row: int = 1, **settings: Any
    ) -> tuple[list[Any], list[StoppedBy]]:
        """Tokens `(S,)`, `(S, G)` or an `Encoded` of each row, and why each stopped; samples of a prompt are adjacent.

        "length": as long as asked for; "end": the model's own end; "cap": no room for more (of DSFT the tokens then need
        repair). `settings` as in `run`.
        """
        run = self.run(prompts, samples_per_row=samples_per_row, **settings)
        table = torch.stack(list(run), dim=1).cpu()
        asked: StoppedBy = "length" if any(settings.get(unit) is not None for unit in _UNITS) else "end"
        symbols = [row[(row >= 0) & (row < self.vocabulary.layout.size)] for row in table]
        made = [self._tokens(row, frames) for row, frames in zip(symbols, run.frames.tolist(), strict=True)]
        return made, ["cap" if capped else asked for capped in run.capped.tolist()]

    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[Tensor]:
        """Yield the tokens `(n,)` or `(n, G)` of one motion as soon as its steps are whole; `settings` as in `run`.

        Raises VadisError for tokens that don't come in the order of time (part by part, DSFT).
        """
        layout = self.vocabulary.layout
        if self.two_streams or layout.order == "part":
            raise VadisError(
                "these tokens don't come in the order of time, so no part of the motion is ready before its end."
            )
        if settings.get("samples_per_row", 1) != 1:
            raise VadisError("a stream is of one motion: leave samples_per_row out.")
        symbols: list[int] = []
        sent = 0
        for column in self.run([prompt], **settings):
            if 0 <= int(column[0]) < layout.size:
                symbols.append(int(column[0]))
            ready = self._whole_steps(symbols)
            if ready > sent:
                yield self._steps_of(symbols, sent, ready)
                sent = ready

    def _whole_steps(self, symbols: list[int]) -> int:
        """Steps of which every token has come."""
        layout = self.vocabulary.layout
        if layout.kind == "flat":
            return len(symbols) // layout.groups
        made = max(0, len(symbols) // layout.groups - layout.groups + 1)
        return min(made, len([s for s in symbols[:: layout.groups] if s != layout.blank]))

    def _steps_of(self, symbols: list[int], start: int, stop: int) -> Tensor:
        """Tokens of steps `start` to `stop` of a row in the order of time, whose end may still be missing."""
        layout = self.vocabulary.layout
        slots = torch.tensor(symbols[: len(symbols) // layout.groups * layout.groups]).view(-1, layout.groups)
        late = range(layout.groups) if layout.kind == "delayed" else [0] * layout.groups
        made = torch.stack([slots[start + d : stop + d, g] for g, d in enumerate(late)], dim=1)
        if not layout.shared:
            made = made - layout.codes * torch.arange(layout.groups)
        return made if layout.groups > 1 or layout.grouped else made[:, 0]

    def run(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        steps: Numbers = None,
        frames: Numbers = None,
        seconds: Numbers = None,
        shortest: int = 1,
        longest: int | None = None,
        fixed: Tensor | Sequence[Tensor] | None = None,
        guidance_scale: float = 1.0,
        samples_per_row: int = 1,
        **sampling: Any,
    ) -> MotionRun:
        """The rows of prompts, ready to be iterated step by step.

        Args:
            prompts: one or several.
            steps, frames, seconds: exact length of all or each; without one the model ends the motion itself.
            shortest, longest: limits of that, in token steps or (DSFT) frames.
            fixed: symbols `(N,)` of all or each that must stand at their places, -1 where the model is free.
            guidance_scale: logits = unconditional + scale * (prompt - unconditional); 1 is off.
            sampling: temperature (0, the default, takes the likeliest), top_k, top_p, and seed (see RowNoise; one number
                serves every prompt alike).

        Raises VadisError for empty prompts, prompts and lengths beyond the model's context, and settings that mean nothing.
        """
        texts = self._prompts(prompts)
        length = self.steps(steps=steps, frames=frames, seconds=seconds)
        grammar = self._grammar(texts, length, shortest, longest, fixed)
        plain = None if guidance_scale == 1 else self.prompt("unconditional")
        return MotionRun(
            self.causal, texts, grammar, samples_per_row, plain=plain, guidance_scale=guidance_scale, **sampling
        )

    # ---- motion and motion

    def predict(self, start: Any, *, caption: str | None = None, asked: bool = True, **settings: Any) -> Tensor:
        """Tokens of a whole motion that begins with `start` (S, …); the length asked for is that of the whole.

        `asked`: with the instruction that training has for this task; otherwise the start is forced under the sentence
        `caption`, which any model of text to motion understands.
        """
        start = self._given(start, "predict")
        total = self._total(settings, len(start))
        if asked:
            prompt = self.prompt("prediction", start=MotionSpan(start), **_said(caption))
            if total is not None:
                settings["steps"] = total - len(start)
            (rest, *_), _ = self.generate([prompt], **settings)
            return torch.cat([start, rest])
        if total is None and self.vocabulary.layout.kind != "flat":
            raise VadisError("a beginning can be forced without a length only in flat rows: give seconds.")
        fixed = self.vocabulary.layout.flatten(start)
        if total is not None:
            settings["steps"] = total
            fixed = self._places(start, range(len(start)), total)
        (whole, *_), _ = self.generate([self._plain(caption)], fixed=fixed, **settings)
        return whole

    def in_between(
        self, start: Any, end: Any, *, caption: str | None = None, asked: bool = True, **settings: Any
    ) -> Tensor:
        """Tokens of a whole motion that begins with `start` and ends with `end`; see `predict`. A length is needed."""
        start, end = self._given(start, "in_between"), self._given(end, "in_between")
        total = self._total(settings, len(start) + len(end))
        if total is None:
            raise VadisError("give steps, frames or seconds of the whole motion.")
        if asked:
            spans = {"start": MotionSpan(start), "end": MotionSpan(end)}
            prompt = self.prompt("in_between", **spans, **_said(caption))
            (middle, *_), _ = self.generate([prompt], steps=total - len(start) - len(end), **settings)
            return torch.cat([start, middle, end])
        places = [*range(len(start)), *range(total - len(end), total)]
        fixed = self._places(torch.cat([start, end]), places, total)
        (whole, *_), _ = self.generate([self._plain(caption)], steps=total, fixed=fixed, **settings)
        return whole

    def edit_parts(
        self,
        tokens: Any,
        parts: Sequence[str | int],
        *,
        caption: str | None = None,
        asked: bool = True,
        **settings: Any,
    ) -> Tensor:
        """Tokens `(S, P)` of the same motion with `parts` of the body (names, or columns) made anew, the others untouched.

        Raises VadisError for tokenizers that don't code parts of the body by themselves.
        """
        names = getattr(self.motion_tokenizer, "parts", ())
        kind, layout = self.vocabulary.tokenizer.type, self.vocabulary.layout
        if layout.groups == 1:
            raise VadisError(
                f"the tokens of {kind} are one-dimensional, each stands for the whole body: parts can be changed only with a "
                "tokenizer that has a column of tokens a part (lfq2d)."
            )
        if not names:
            raise VadisError(f"the {layout.groups} tokens a step of {kind} are no parts of the body: use lfq2d, and give "
                             "motion_tokenizer.")  # fmt: skip
        tokens = self._given(tokens, "edit_parts")
        columns = {self.motion_tokenizer.part_index(p) if isinstance(p, str) else int(p) for p in parts}  # type: ignore[union-attr]
        if not columns or not columns <= set(range(len(names))):
            raise VadisError(f"parts {list(parts)}: name at least one of {', '.join(names)}.")
        kept = [p for p in range(len(names)) if p not in columns]
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[:, kept] = True
        row, free = layout.flatten(tokens), ~_flat(mask, layout.order)
        if asked and kept:
            prompt = self.prompt("part_completion", given=given_parts(tokens, names, kept), **_said(caption))
        else:
            prompt = self._plain(caption)
        (made, *_), _ = self.generate([prompt], steps=len(tokens), fixed=row.masked_fill(free, -1), **settings)
        return made

    def _given(self, tokens: Any, verb: str) -> Tensor:
        if self.two_streams:
            raise VadisError(
                f"{verb} needs tokens that stand for moments; DSFT's speak of the whole motion at once. Use another tokenizer."
            )
        return torch.as_tensor(tokens).long().cpu()

    def _total(self, settings: dict[str, Any], given: int) -> int | None:
        """The length in steps taken out of the settings; it must leave at least one step to be made."""
        units = {name: settings.pop(name, None) for name in _UNITS}
        total = self.steps(**units)
        if isinstance(total, list):
            raise VadisError("give one length: one motion is made.")
        if total is not None and total <= given:
            raise VadisError(f"{given} token steps are given and the whole motion is to have {total}: ask for more.")
        return total

    def _places(self, tokens: Tensor, places: Sequence[int], total: int) -> Tensor:
        """Symbols `(N,)` of a motion of `total` steps with `tokens` at steps `places`, -1 elsewhere."""
        layout = self.vocabulary.layout
        whole, known = tokens.new_zeros(total, *tokens.shape[1:]), torch.zeros(total, dtype=torch.bool)
        whole[list(places)], known[list(places)] = tokens, True
        row = layout.flatten(whole)
        if layout.kind == "delayed":
            late = torch.full((total + layout.groups - 1, layout.groups), True)  # corners are fixed anyway
            for level in range(layout.groups):
                late[level : level + total, level] = known
            return row.masked_fill(~late.flatten(), -1)
        return row.masked_fill(~_flat(known[:, None].expand(-1, layout.groups), layout.order), -1)

    def _plain(self, caption: str | None) -> list[int]:
        return self.prompt(caption=caption) if caption else self.prompt("unconditional")

    # ---- text

    @torch.no_grad()
    def caption(
        self,
        tokens: Any,
        *,
        half: Literal["upper", "lower"] | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: Seed = None,
        samples_per_row: int = 1,
    ) -> Any:
        """A sentence about a motion's tokens; of a list of motions, or with several samples, a list.

        Motion ids can't come; it ends at the text's end or after `max_tokens` ids. `half` asks about half of the body.
        """
        from vadis.data.instruction_templates import PART_QUESTIONS

        check_sampling(temperature, top_k, top_p)
        many = isinstance(tokens, list | tuple)
        template = None if half is None else PART_QUESTIONS[half][0]
        spans = [MotionSpan(t) for t in (tokens if many else [tokens])]
        prompts = [self._encode(instruction("motion_to_text", template=template, motion=span)) for span in spans]
        if max_tokens < 1 or samples_per_row < 1:
            raise VadisError(f"max_tokens {max_tokens} and samples_per_row {samples_per_row} must be at least 1.")
        for place, ids in enumerate(prompts):
            self._check_room(place, ids, max_tokens)
        rows = torch.arange(len(prompts)).repeat_interleave(samples_per_row).tolist()
        noise = RowNoise(seed, len(prompts), samples_per_row) if temperature else None
        made = self._write(prompts, rows, noise, max_tokens, (temperature, top_k, top_p))
        texts = [" ".join(self.text_tokenizer.decode(ids, skip_special_tokens=True).split()) for ids in made]
        return texts if many or samples_per_row > 1 else texts[0]

    def _write(
        self, prompts: list[list[int]], rows: list[int], noise: RowNoise | None, most: int, sampling: tuple[Any, ...]
    ) -> list[list[int]]:
        """Text ids of each row, without the end."""
        end = self.text_tokenizer.eos_token_id
        allowed = self.vocabulary.text_mask()
        allowed[[i for i in self.text_tokenizer.all_special_ids if i < len(allowed)]] = False
        forbidden = ~allowed.to(self.causal.device)
        self.causal.plain.eval()
        run = CachedRows(self.causal, prompts, rows)
        alive, columns = torch.arange(len(rows), device=self.causal.device), []
        for step in range(most):
            if step and end is not None:
                forbidden[end] = False
            logits = run.logits[:, : len(forbidden)].masked_fill(forbidden, -torch.inf)
            draws = noise.draw(1)[:, 0].to(logits.device) if noise else None
            ids = choose(logits, draws, *sampling)
            column = torch.full((len(rows),), -1, device=ids.device)
            column[alive] = ids
            columns.append(column)
            going = (ids != end).nonzero()[:, 0]
            if step + 1 == most or not len(going):
                break
            if len(going) < len(ids):
                run.keep(going)
                alive, ids = alive[going], ids[going]
                if noise:
                    noise.keep(going.tolist())
            run.step(ids[:, None])
        table = torch.stack(columns, 1).tolist()
        return [[i for i in row if i not in (-1, end)] for row in table]

    # ---- inside

    def _encode(self, item: InstructionItem) -> list[int]:
        return encode_prompt(item, self.vocabulary, self.text_tokenizer)

    def _prompts(self, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
        if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], int)):
            prompts = [prompts]  # type: ignore[list-item]
        if not len(prompts):
            raise VadisError("there is no prompt: give at least one.")
        made = []
        for place, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                if not prompt.strip():
                    raise VadisError(f"prompt {place + 1} is empty: say what the body does.")
                made.append(self.prompt(caption=prompt))
                continue
            ids = [int(i) for i in prompt]  # type: ignore[union-attr]
            if not ids:
                raise VadisError(f"prompt {place + 1} has no ids: give at least one.")
            if min(ids) < 0 or max(ids) >= self.vocabulary.size:
                raise VadisError(f"prompt {place + 1} has ids outside 0 … {self.vocabulary.size - 1}: another model's?")
            made.append(ids)
        return made

    def _check_room(self, place: int, ids: list[int], needs: int) -> None:
        if len(ids) + needs > self.causal.context:
            raise VadisError(
                f"prompt {place + 1} has {len(ids):,} ids and {needs:,} are to follow; the model's context is "
                f"{self.causal.context:,}. Shorten the prompt or ask for less."
            )

    def _grammar(
        self, prompts: list[list[int]], length: Any, shortest: int, longest: int | None, fixed: Any
    ) -> MotionGrammar:
        """The automaton of the prompts; what is asked for must fit the context."""
        layout, count = self.vocabulary.layout, len(prompts)
        lengths = [length] * count if isinstance(length, int) else length
        if lengths is not None and len(lengths) != count:
            raise VadisError(f"{len(lengths)} lengths for {count} prompts: give one, or one for each.")
        most: Any = longest
        if self.two_streams:
            for place, ids in enumerate(prompts):
                self._check_room(place, ids, 4 if lengths is None else self._least_ids(lengths[place]))
            if lengths is None and self.vocabulary.length_ids is None:
                raise VadisError("this model's tokens don't say how long a motion is: give frames or seconds.")
        else:
            least = [shortest] * count if lengths is None else lengths
            late = (layout.groups - 1) * (layout.kind == "delayed")
            for place, ids in enumerate(prompts):
                self._check_room(place, ids, 1 + layout.length(max(least[place], 1)))
            if lengths is None:
                room = [(self.causal.context - len(ids) - 1) // layout.groups - late for ids in prompts]
                most = [r if longest is None else min(longest, r) for r in room]
        if isinstance(fixed, list | tuple):
            rows = [torch.as_tensor(f) for f in fixed]
            if len(rows) != count:
                raise ShapeError(f"{len(rows)} rows of fixed symbols for {count} prompts: give one, or one for each.")
            fixed = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        return MotionGrammar(
            self.vocabulary, count, tokenizer=self.motion_tokenizer if self.two_streams else None, length=lengths,
            shortest=shortest, longest=most, fixed=fixed, device=self.causal.device,
        )  # fmt: skip

    def _least_ids(self, frames: int) -> int:
        """Ids that a motion of so many frames takes at least, of two streams."""
        needs = [k * d for k, d in self.motion_tokenizer.integer_shapes(frames)]  # type: ignore[union-attr]
        most = [int(c.lengths.max()) if hasattr(c, "lengths") else n + 1
                for c, n in zip(self.motion_tokenizer.codecs, needs, strict=True)]  # type: ignore[union-attr]  # fmt: skip
        return 2 + sum(-(-n // m) for n, m in zip(needs, most, strict=True))

    def _tokens(self, symbols: Tensor, frames: int) -> Any:
        if not self.two_streams:
            return self.vocabulary.layout.unflatten(symbols)
        codes = self.vocabulary.layout.codes
        base, phys = symbols[symbols < codes], symbols[symbols >= codes] - codes
        return Encoded(base, phys, frames)


def _flat(mask: Tensor, order: str) -> Tensor:
    """A mask (S, G) in the order of a flat row."""
    return (mask if order == "time" else mask.T).flatten()


def _said(caption: str | None) -> dict[str, str]:
    return {} if caption is None else {"caption": caption}


def _wording(task: str, values: dict[str, Any]) -> str | None:
    """The first wording that says what is given."""
    captions = frozenset(values) & {"caption", "upper", "lower"}
    choices = usable(task, captions, frozenset(values))
    return choices[0] if choices else None
