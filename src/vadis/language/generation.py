"""A language model that writes motion: prompts, lengths, generation, streams. `MotionLM` builds on it.

Every row is well-formed and as long as asked for (`MotionGrammar`), prompts are worded as in training
(`vadis.language.instructions`), and only the motion's rows of the head are computed. A row's result depends on its prompt and
seed alone, not on its companions. Shapes: R rows (prompts times samples), S token steps, G tokens a step, N symbols.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators.decoding import StoppedBy
from vadis.language.add_motion import MotionVocabulary
from vadis.language.causal_lm import CausalModel
from vadis.language.checkpoints import check_motion_tokenizer, check_together, load_language_model
from vadis.language.decoding import MotionRun
from vadis.language.grammar import LENGTH_STEP, MotionGrammar
from vadis.language.instructions import InstructionItem, encode_prompt, instruction
from vadis.language.templates import usable
from vadis.tokenizers.dsft.codec import IntegerBPE
from vadis.tokenizers.dsft.sequence import Encoded

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS = ("float32", "bfloat16", "int8")
Prompt = str | Sequence[int]
"""A sentence, put into the wording that evaluation uses, or the ids of a whole prompt (see `MotionWriter.prompt`)."""
Numbers = float | Sequence[float] | Tensor | None
UNITS = ("steps", "frames", "seconds")


class MotionWriter:
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
        allow_download: bool = False,
    ) -> Self:
        """A saved folder or delta (see `vadis.language.checkpoints`) for use: an adapter is merged into the weights.

        "bfloat16" halves the memory and suits GPUs, "int8" makes one or few rows on a CPU faster.
        """
        if precision not in PRECISIONS:
            raise VadisError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        options: dict[str, Any] = {"dtype": dtype, "device": device, "base": base, "allow_download": allow_download}
        model, text, vocabulary = load_language_model(folder, motion_tokenizer, **options)
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload().eval()
        made = cls(model, text, vocabulary, motion_tokenizer)
        if precision == "int8":
            made.causal.to_int8()
        return made

    # ---- prompts and lengths

    def prompt(self, task: str = "text_to_motion", **values: Any) -> list[int]:
        """Ids of a task's prompt in the wording of evaluation; `values` as in `vadis.language.instructions.instruction`."""
        return self.encode_item(instruction(task, template=wording(task, values), **values))

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
        asked: StoppedBy = "length" if any(settings.get(unit) is not None for unit in UNITS) else "end"
        symbols = [row[(row >= 0) & (row < self.vocabulary.layout.size)] for row in table]
        made = [self._tokens(row, frames) for row, frames in zip(symbols, run.frames.tolist(), strict=True)]
        return made, ["cap" if capped else asked for capped in run.capped.tolist()]

    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[Tensor]:
        """Yield the tokens `(n,)` or `(n, G)` of one motion as soon as its steps are whole; `settings` as in `run`.

        Raises VadisError for tokens that don't come in the order of time (part by part, DSFT).
        """
        self.check_order()
        layout = self.vocabulary.layout
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

    @property
    def in_time_order(self) -> bool:
        """Tokens come in the order of time, so that the beginning of a motion is ready before its end."""
        return not (self.two_streams or self.vocabulary.layout.order == "part")

    def check_order(self) -> None:
        """Raise VadisError unless tokens come in the order of time."""
        if not self.in_time_order:
            raise VadisError(
                "these tokens don't come in the order of time, so no part of the motion is ready before its end."
            )

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

    # ---- inside

    def encode_item(self, item: InstructionItem) -> list[int]:
        """Ids of an item up to its answer."""
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

    def check_room(self, place: int, ids: list[int], needs: int) -> None:
        """Raise VadisError unless `needs` ids fit behind those of prompt number `place`."""
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
                self.check_room(place, ids, 4 if lengths is None else self._least_ids(lengths[place]))
            if lengths is None and self.vocabulary.length_ids is None:
                raise VadisError("this model's tokens don't say how long a motion is: give frames or seconds.")
        else:
            least = [shortest] * count if lengths is None else lengths
            late = (layout.groups - 1) * (layout.kind == "delayed")
            for place, ids in enumerate(prompts):
                self.check_room(place, ids, 1 + layout.length(max(least[place], 1)))
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
        most = [int(c.lengths.max()) if isinstance(c, IntegerBPE) else n + 1
                for c, n in zip(self.motion_tokenizer.codecs, needs, strict=True)]  # type: ignore[union-attr]  # fmt: skip
        return 2 + sum(-(-n // m) for n, m in zip(needs, most, strict=True))

    def _tokens(self, symbols: Tensor, frames: int) -> Any:
        if not self.two_streams:
            return self.vocabulary.layout.unflatten(symbols)
        codes = self.vocabulary.layout.codes
        base, phys = symbols[symbols < codes], symbols[symbols >= codes] - codes
        return Encoded(base, phys, frames)


def wording(task: str, values: dict[str, Any]) -> str | None:
    """The first wording that says what is given."""
    captions = frozenset(values) & {"caption", "upper", "lower"}
    choices = usable(task, captions, frozenset(values))
    return choices[0] if choices else None
