"""Token-by-token generation with a key-value cache, for models that put a prefix in front of motion steps.

Rows of a batch end at their own step and never see each other; a row's tokens do not depend on its companions.

Shapes: R rows (prompts x samples), P plan positions, S steps, G groups, H hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vadis.cancel import stop_if_cancelled
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators.layers import KVCache
from vadis.generators.sampling import RowNoise, Seed, check_sampling, choose

StoppedBy = Literal["end", "cap", "length"]
"""The model's END; `max_tokens`; or the requested `num_tokens`."""


@dataclass(frozen=True)
class Step:
    """One step of all rows."""

    tokens: Tensor
    """(R,) or (R, G) int64 on the CPU; -1 for a row that made no token."""
    stopped_by: list[StoppedBy | None]
    """Why each row has stopped so far."""


class Decoding(nn.Module):
    """`generate` and `stream` over the pieces that a model offers: embed, embed_prefix, join, trunk, head, embed_length."""

    config: Any

    def generate(
        self,
        text: Tensor | None,
        text_lengths: Tensor | list[int] | None = None,
        *,
        compat: bool = False,
        **options: Any,
    ) -> tuple[list[Tensor], list[StoppedBy]]:
        """Token rows `(S,)` or `(S, G)` and why each stopped; prompts x samples_per_row rows, samples of a prompt adjacent.

        `options` as in `stream`. `compat` repeats the published sampler: at most 50 tokens, and the single id 1 where the
        very first token is END.
        """
        if compat:
            options |= {"max_tokens": min(options.get("max_tokens") or 50, 50), "may_be_empty": True}
        steps, stopped = [], []
        for step in self.stream(text, text_lengths, **options):
            steps.append(step.tokens)
            stopped = step.stopped_by
        table = torch.stack(steps, dim=1)  # (R, S) or (R, S, G)
        made = (table if table.ndim == 2 else table[..., 0]) >= 0
        rows = [row[keep] for row, keep in zip(table, made, strict=True)]
        if compat:
            rows = [row if len(row) else torch.ones_like(table[0, :1]) for row in rows]
        return rows, [reason or "cap" for reason in stopped]

    @torch.no_grad()
    def stream(
        self,
        text: Tensor | None,
        text_lengths: Tensor | list[int] | None = None,
        *,
        max_tokens: int | None = None,
        num_tokens: int | list[int] | Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        guide_plan: bool = True,
        plan: Tensor | None = None,
        plan_mask: Tensor | None = None,
        history: Tensor | list[Tensor] | None = None,
        generator: Seed = None,
        seed: Seed = None,
        samples_per_row: int = 1,
        may_be_empty: bool = True,
    ) -> Iterator[Step]:
        """Yield a `Step` as soon as its tokens are known.

        Args:
            text: features (B, L, C); None or length 0 is the null prompt (models with `null_text`).
            max_tokens: steps at most, fewer if END comes; None fills the model's rows.
            num_tokens: exact steps, for all or for each prompt; END is suppressed.
            temperature: 0 takes the best token; else samples, with `top_k` and `top_p`, in every group.
            guidance_scale: logits = null + scale * (prompt - null); 1 is off. `guide_plan=False` keeps the plan in both.
            plan, plan_mask: (B, P, plan_dim) numbers and which of them are known.
            history: earlier motion of each prompt, (B, S) or a list of (S,), to go on from; not returned.
            seed (or generator): see RowNoise; one number serves every prompt alike.
            may_be_empty: whether END can be the very first token of a motion.

        Raises ShapeError, VadisError or ModelError for what doesn't fit the model.
        """
        check_sampling(temperature, top_k, top_p)
        if samples_per_row < 1:
            raise VadisError(f"samples_per_row {samples_per_row} must be at least 1.")
        run = _Run(
            self, text, text_lengths, plan, plan_mask, history, num_tokens, max_tokens, guidance_scale, samples_per_row
        )
        noise = RowNoise(generator if seed is None else seed, run.prompts, samples_per_row) if temperature else None
        training = self.training
        self.eval()
        try:
            state = run.prefill(guide_plan)
            while True:
                stop_if_cancelled()
                draws = noise.draw(run.groups).to(run.device) if noise else None
                tokens = run.choose(state, draws, temperature, top_k, top_p, may_be_empty)
                yield run.record(tokens)
                if (kept := run.compact()) is not None:
                    tokens = tokens[kept]
                    if noise:
                        noise.keep(kept.tolist())
                if not run.active:
                    return
                state = run.advance(tokens)
        finally:
            self.train(training)

    @staticmethod
    def join(text: Tensor, text_lengths: Tensor, plan: Tensor, motion: Tensor, start: Tensor, length: int) -> Tensor:
        """Rows `(B, length, H)` without gaps: from column `start` (B,) on, the row's text, plan, motion.

        Columns before and after hold arbitrary vectors, which the mask must hide.
        """
        column = torch.arange(length, device=text.device) - start[:, None]
        text_end, plan_end = text_lengths[:, None], text_lengths[:, None] + plan.shape[1]
        after = text.shape[1] + torch.where(column < plan_end, column - text_end, plan.shape[1] + column - plan_end)
        source = torch.where(column < text_end, column, after)
        parts = torch.cat([text, plan, motion], dim=1)
        source = source.clamp(0, parts.shape[1] - 1)
        return parts.gather(1, source[..., None].expand(-1, -1, parts.shape[-1]))


class _Run:
    """The state of one call: which rows are alive, their cache, their limits."""

    def __init__(
        self,
        model: Any,
        text: Tensor | None,
        text_lengths: Tensor | list[int] | None,
        plan: Tensor | None,
        plan_mask: Tensor | None,
        history: Tensor | list[Tensor] | None,
        num_tokens: int | list[int] | Tensor | None,
        max_tokens: int | None,
        guidance_scale: float,
        samples: int,
    ) -> None:
        c = self.config = model.config
        self.model, self.groups, self.scale = model, c.groups, float(guidance_scale)
        self.device = model.device
        lists = [
            x
            for x in (num_tokens, history)
            if isinstance(x, list | tuple | Tensor) and not (isinstance(x, Tensor) and x.ndim == 0)
        ]
        if text is None:
            count = len(plan) if plan is not None else len(lists[0]) if lists else 1
            text, text_lengths = torch.zeros(count, 1, c.clip_dim), [0] * count
        if text.ndim != 3 or text.shape[-1] != c.clip_dim:
            raise ShapeError(f"text features must be (B, L, {c.clip_dim}); this array has shape {tuple(text.shape)}.")
        self.prompts = len(text)
        longest = text.shape[1]
        counts = torch.as_tensor([longest] * self.prompts if text_lengths is None else text_lengths, dtype=torch.long)
        if counts.shape != (self.prompts,) or int(counts.min()) < 0 or int(counts.max()) > longest:
            raise ShapeError(
                f"text_lengths {counts.tolist()} don't fit {self.prompts} prompts of at most {longest} tokens."
            )
        empty = counts == 0
        if bool(empty.any()) and not c.null_text:
            raise ModelError(
                f"prompt {int(empty.nonzero()[0])} has no text tokens and this model has no null prompt: give text."
            )
        if plan is not None:
            wanted = (self.prompts, c.plan_tokens, c.plan_dim)
            if c.plan_dim == 0:
                raise ModelError("this model takes no plan (plan_dim 0): leave plan out.")
            if tuple(plan.shape) != wanted or (plan_mask is not None and tuple(plan_mask.shape) != wanted):
                raise ShapeError(f"plan and plan_mask must be {wanted}; these are {tuple(plan.shape)} and "
                                 f"{None if plan_mask is None else tuple(plan_mask.shape)}.")  # fmt: skip
        if self.scale != 1 and not c.null_text:
            raise ModelError("this model has no null prompt (config null_text), so guidance_scale must be 1.")

        def spread(x: Tensor) -> Tensor:
            return x.to(self.device).repeat_interleave(samples, dim=0)

        self.text, self.counts, self.empty = spread(text), spread(counts), spread(empty)
        self.plan = None if plan is None else spread(plan)
        self.plan_mask = None if plan_mask is None else spread(plan_mask)
        self.rows = self.prompts * samples
        self.history = [row for row in self._history(history) for _ in range(samples)]
        self.past = torch.tensor([len(row) for row in self.history], device=self.device)
        self.prefix = torch.where(self.empty, 1, self.counts) + c.plan_tokens
        self._limits(num_tokens, max_tokens, samples)
        self.step = 0
        self.alive = torch.arange(self.rows)
        self.stopped: list[StoppedBy | None] = [None] * self.rows

    def _history(self, history: Tensor | list[Tensor] | None) -> list[Tensor]:
        shape = (0, self.groups) if self.groups > 1 else (0,)
        if history is None:
            return [torch.zeros(shape, dtype=torch.long)] * self.prompts
        rows = [torch.as_tensor(row).long().cpu() for row in history]
        if len(rows) != self.prompts or any(row.ndim != len(shape) or row.shape[1:] != shape[1:] for row in rows):
            wanted = f"(S, {self.groups})" if self.groups > 1 else "(S,)"
            raise ShapeError(f"history must be {self.prompts} token rows {wanted}.")
        if any(len(row) and (int(row.min()) < 0 or int(row.max()) >= self.config.nb_code) for row in rows):
            raise VadisError(f"history holds ids outside 0 … {self.config.nb_code - 1}: remove END and PAD.")
        return rows

    def _limits(self, num_tokens: int | list[int] | Tensor | None, max_tokens: int | None, samples: int) -> None:
        """Steps of each row, and whether they are exact. The last token needs no position, as nothing follows it."""
        room = self.config.block_size - self.prefix - self.past + 1
        if num_tokens is not None and max_tokens is not None:
            raise VadisError("give num_tokens (exact) or max_tokens (at most), not both.")
        self.exact = num_tokens is not None
        if num_tokens is not None:
            wanted = torch.as_tensor(num_tokens, dtype=torch.long, device=self.device)
            wanted = wanted.expand(self.prompts) if wanted.ndim == 0 else wanted
            if wanted.shape != (self.prompts,):
                raise ShapeError(
                    f"num_tokens must be one number or {self.prompts}; it has shape {tuple(wanted.shape)}."
                )
            self.limit = wanted.repeat_interleave(samples)
        elif max_tokens is not None:
            self.limit = torch.full_like(room, max_tokens)
        else:
            self.limit = room - 1
        bad = (self.limit < 1) | (self.limit > room)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise VadisError(
                f"{int(self.limit[row])} steps asked for prompt {row // samples}; with a prefix of {int(self.prefix[row])} and "
                f"{int(self.past[row])} steps of history this model can make 1 … {int(room[row])}."
            )

    def prefill(self, guide_plan: bool) -> Tensor:
        """Run prefix and history of all rows; the states `(R', H)` that predict the first step."""
        model, twice = self.model, self.scale != 1
        null = self.empty
        if twice:  # the unguided branch follows the prompts' rows
            null = torch.cat([self.empty, torch.ones_like(self.empty)])
            never = torch.zeros_like(null)
            drop_plan = torch.cat([never[: self.rows], ~never[self.rows :]]) if guide_plan else never

        def both(x: Any) -> Any:
            return torch.cat([x, x]) if twice and x is not None else x

        vectors, counts, plan = model.embed_prefix(
            both(self.text),
            both(self.counts),
            both(self.plan),
            both(self.plan_mask),
            drop_text=null if bool(null.any()) else None,
            drop_plan=drop_plan if twice else torch.zeros_like(null),
        )
        prefix, past = counts + plan.shape[1], both(self.past)
        total = both(self.past + self.limit) if self.exact else torch.full_like(prefix, -1)
        tokens = nn.utils.rnn.pad_sequence(self.history, batch_first=True).to(self.device)
        motion = both(model.embed(tokens))
        self.total = total
        if model.length_proj is not None:
            left = total[:, None] - 1 - torch.arange(motion.shape[1], device=self.device)
            motion = motion + model.embed_length(torch.where(total[:, None] < 0, -1, left.clamp_min(0)))
        used = prefix + past
        size = int(used.max())
        self.shift = size - used  # rows end at the same column, so that all write to the cache at one place
        x = model.join(vectors, counts, plan, motion, self.shift, size)
        if model.length_proj is not None:
            rows = torch.arange(len(x), device=x.device)
            x = x.index_put((rows, self.shift + prefix - 1), model.embed_length(total), accumulate=True)
        column = torch.arange(size, device=x.device)
        real = column >= self.shift[:, None]
        inside = real & (column < (self.shift + prefix)[:, None])
        mask = (column <= column[:, None]) & real[:, None, :] | (inside[:, :, None] & inside[:, None, :])
        mask = mask | torch.eye(
            size, dtype=torch.bool, device=x.device
        )  # empty columns see themselves, so nothing is NaN
        heads = self.config.n_head
        columns = size + int(self.limit.max())
        self.cache = KVCache(self.config.n_layer, len(x), heads, columns, self.config.n_embd // heads, x)
        positions = (column - self.shift[:, None]).clamp_min(0)
        return model.trunk(x, positions, mask[:, None], self.cache)[:, -1]

    def choose(
        self,
        state: Tensor,
        draws: Tensor | None,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        may_be_empty: bool,
    ) -> Tensor:
        """Ids `(R', G)` of the next step for the living rows."""
        half, ids = len(self.alive), []
        for group in range(self.groups):
            earlier = torch.stack(ids, dim=-1) if ids else None
            if earlier is not None and self.scale != 1:
                earlier = torch.cat([earlier, earlier])
            logits = self.model.head(state, earlier).float()
            if self.scale != 1:
                logits = logits[half:] + self.scale * (logits[:half] - logits[half:])
            if group == 0 and self.exact:
                logits[:, self.config.nb_code] = -torch.inf
            elif group == 0 and self.step == 0 and not may_be_empty:
                logits[self.past == 0, self.config.nb_code] = -torch.inf
            ids.append(choose(logits, None if draws is None else draws[:, group], temperature, top_k, top_p))
        return torch.stack(ids, dim=-1)

    def record(self, tokens: Tensor) -> Step:
        """Note who stops here; ids of all rows, -1 where a row makes none."""
        self.step += 1
        out = torch.full((self.rows, self.groups), -1, dtype=torch.long)
        ended = (tokens[:, 0] == self.config.nb_code).cpu()
        full = (self.limit[self.alive.to(self.device)] == self.step).cpu()
        out[self.alive] = torch.where(ended[:, None], -1, tokens.cpu())
        for place, row in enumerate(self.alive.tolist()):
            if ended[place]:
                self.stopped[row] = "end"
            elif full[place]:
                self.stopped[row] = "length" if self.exact else "cap"
        self.living = ~(ended | full)
        return Step(out if self.groups > 1 else out[:, 0], list(self.stopped))

    @property
    def active(self) -> bool:
        """Whether any row goes on."""
        return len(self.alive) > 0

    def compact(self) -> Tensor | None:
        """Drop rows that stopped; the kept places among the living ones, None if nothing changed."""
        if bool(self.living.all()):
            return None
        kept = self.living.nonzero()[:, 0]
        branches = torch.cat([kept, kept + len(self.alive)]) if self.scale != 1 else kept
        self.alive = self.alive[kept]
        if len(kept):
            branches = branches.to(self.device)
            self.cache.keep(branches)
            self.shift, self.total = self.shift[branches], self.total[branches]
        return kept

    def advance(self, tokens: Tensor) -> Tensor:
        """Feed the living rows' ids `(R', G)`; their next states `(R'', H)`."""
        model = self.model
        x = model.embed(tokens[:, None] if self.groups > 1 else tokens)
        x = torch.cat([x, x]) if self.scale != 1 else x
        if model.length_proj is not None:
            past = self.past[self.alive.to(self.device)]
            past = torch.cat([past, past]) if self.scale != 1 else past
            left = (self.total - past - self.step).clamp_min(0)
            x = x + model.embed_length(torch.where(self.total < 0, -1, left))[:, None]
        column = self.cache.column
        positions = column - self.shift[:, None]
        mask = None
        if bool(self.shift.any()):
            mask = (torch.arange(column + 1, device=x.device) >= self.shift[:, None])[:, None, None]
        return model.trunk(x, positions, mask, self.cache)[:, -1]
