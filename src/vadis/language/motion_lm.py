"""A language model that speaks motion, in use: text to motion, continuing, filling in, changing parts, and motion to text.

    lm = MotionLM.from_pretrained(folder, motion_tokenizer)
    tokens, stopped_by = lm.generate(["a person waves", "someone sits down"], seconds=[4, 6], temperature=1, seed=0)
    lm.caption(tokens[0])

See `vadis.language.generation` for prompts and lengths. Shapes: R rows, S token steps, G tokens a step, N symbols,
P parts of the body.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vadis.cancel import stop_if_cancelled
from vadis.errors import ShapeError, VadisError
from vadis.generators.sampling import RowNoise, Seed, check_sampling, choose
from vadis.language.causal_lm import CachedRows
from vadis.language.generation import UNITS, MotionWriter, Precision
from vadis.language.instructions import MotionSpan, encode, given_parts, instruction
from vadis.language.templates import PART_QUESTIONS


class MotionLM(MotionWriter):
    """A `MotionWriter` that also goes on from given motion and reads motion."""

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
            fixed = self.placed(start, range(len(start)), total)
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
        fixed = self.placed(torch.cat([start, end]), places, total)
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
        names = self.motion_tokenizer.parts if self.motion_tokenizer else ()
        kind, layout = self.vocabulary.tokenizer.type, self.vocabulary.layout
        if layout.groups == 1:
            raise VadisError(
                f"the tokens of {kind} are one-dimensional, each stands for the whole body: parts can be changed only with a "
                "tokenizer that has a column of tokens a part (lfq2d)."
            )
        if not names:
            raise VadisError(f"the {layout.groups} tokens per step of {kind} are not parts of the body: use lfq2d, and give "
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
        units = {name: settings.pop(name, None) for name in UNITS}
        total = self.steps(**units)
        if isinstance(total, list):
            raise VadisError("give one length: one motion is made.")
        if total is not None and total <= given:
            raise VadisError(f"{given} token steps are given and the whole motion is to have {total}: ask for more.")
        return total

    def placed(self, tokens: Tensor, places: Sequence[int], total: int) -> Tensor:
        """What `fixed` takes: symbols `(N,)` of a motion of `total` steps with `tokens` at steps `places`, -1 elsewhere."""
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
        check_sampling(temperature, top_k, top_p)
        many = isinstance(tokens, list | tuple)
        template = None if half is None else PART_QUESTIONS[half][0]
        spans = [MotionSpan(t) for t in (tokens if many else [tokens])]
        prompts = [self.encode_item(instruction("motion_to_text", template=template, motion=span)) for span in spans]
        if max_tokens < 1 or samples_per_row < 1:
            raise VadisError(f"max_tokens {max_tokens} and samples_per_row {samples_per_row} must be at least 1.")
        for place, ids in enumerate(prompts):
            self.check_room(place, ids, max_tokens)
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
            stop_if_cancelled()
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

    @torch.no_grad()
    def score(self, captions: Sequence[str], tokens: Sequence[Any]) -> Tensor:
        """How well each caption fits the motion beside it, `(R,)`: mean log-probability of its ids and the text's end, when
        the model is asked what it reads in the motion. Worth something only for models that learned to read motion."""
        if len(captions) != len(tokens) or not len(tokens):
            raise ShapeError(f"{len(captions)} captions for {len(tokens)} motions: give one for each.")
        items = [
            instruction("motion_to_text", motion=MotionSpan(t), answer=c) for c, t in zip(captions, tokens, strict=True)
        ]
        coded = [encode(item, self.vocabulary, self.text_tokenizer) for item in items]
        for place, one in enumerate(coded):
            self.check_room(place, one.ids.tolist(), 0)
        self.causal.plain.eval()
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([c.ids for c in coded], batch_first=True).to(self.causal.device)
        mask = pad([torch.ones_like(c.ids) for c in coded], batch_first=True).to(ids.device)
        answer = pad([c.answer for c in coded], batch_first=True).to(ids.device)[:, 1:]
        logits = self.causal.plain(input_ids=ids, attention_mask=mask, use_cache=False).logits
        places = answer.nonzero(as_tuple=True)
        spoken = logits[:, :-1][places].float().log_softmax(-1).gather(1, ids[:, 1:][places][:, None])[:, 0]
        total = torch.zeros(answer.shape, device=ids.device)
        total[places] = spoken
        return (total.sum(1) / answer.sum(1)).cpu()


def _flat(mask: Tensor, order: str) -> Tensor:
    """A mask (S, G) in the order of a flat row."""
    return (mask if order == "time" else mask.T).flatten()


def _said(caption: str | None) -> dict[str, str]:
    return {} if caption is None else {"caption": caption}


__all__ = ["MotionLM", "Precision"]
