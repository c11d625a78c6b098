"""One run of a language model that writes motion: rows of prompts, a grammar, sampling, and who is over.

Shapes: P prompts, R rows (prompts times samples), U slots of the grammar, n ids read at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vadis.cancel import stop_if_cancelled
from vadis.errors import VadisError
from vadis.generators.sampling import RowNoise, Seed, check_sampling, choose
from vadis.language.causal_lm import CachedRows, CausalModel
from vadis.language.grammar import MotionGrammar


class MotionRun:
    """Iterate it for the columns: the slots `(R,)` that came, -1 for a row without one.

    Where the grammar leaves every row one way to go, the model is not asked, and reads what came at once.

    Args:
        model: trunk and head.
        prompts: ids of each.
        grammar: of the prompts, at its start.
        samples: rows of each prompt, adjacent.
        plain: ids of a prompt that asks for nothing in particular; with `guidance_scale` logits are plain + scale *
            (prompt - plain).
        temperature, top_k, top_p, seed: as in `vadis.generators.sampling`.

    A row that fills the context before its end is `capped`.
    """

    def __init__(
        self,
        model: CausalModel,
        prompts: list[list[int]],
        grammar: MotionGrammar,
        samples: int = 1,
        *,
        plain: list[int] | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: Seed = None,
    ) -> None:
        check_sampling(temperature, top_k, top_p)
        if samples < 1:
            raise VadisError(f"samples_per_row {samples} must be at least 1.")
        if guidance_scale < 0:
            raise VadisError(f"guidance_scale {guidance_scale:g} must be 0 or more; 1 is off.")
        model.plain.eval()
        self.model, self.grammar, self.scale = model, grammar, guidance_scale if plain else 1.0
        self._sampling = (temperature, top_k, top_p)
        self._noise = RowNoise(seed, len(prompts), samples) if temperature else None
        rows = torch.arange(len(prompts), device=model.device).repeat_interleave(samples)
        self._columns = [column[rows] for column in self._force()]
        grammar.reorder(rows)
        self.frames = grammar.frames().clone()
        """Frames of the rows (R,) of two streams, -1 where nothing said them."""
        self.capped = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
        self.alive = (~grammar.done).nonzero()[:, 0]
        grammar.reorder(self.alive)
        self._pending: list[Tensor] = []
        self._begin(prompts, rows[self.alive].tolist(), plain)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self._columns
        while self.alive.numel():
            stop_if_cancelled()
            logits = self._logits().masked_fill(~self.grammar.allowed(), -torch.inf)
            slots = choose(logits, self._draw(), *self._sampling)
            while True:
                yield self._take(slots)
                self._drop()
                if not self.alive.numel() or not bool((self.grammar.allowed().sum(1) == 1).all()):
                    break
                self._draw()  # a row's draws must not depend on whether its companions were free
                slots = self.grammar.allowed().long().argmax(1)

    # ---- inside

    def _force(self) -> list[Tensor]:
        """Columns (P,) of what each prompt must go on with before its row is free."""
        columns: list[Tensor] = []
        while True:
            table = self.grammar.allowed()
            forced = (table.sum(1) == 1) & ~self.grammar.done
            if not bool(forced.any()):
                return columns
            columns.append(torch.where(forced, table.long().argmax(1), -1))
            self.grammar.advance_slots(columns[-1])

    def _begin(self, prompts: list[list[int]], rows: list[int], plain: list[int] | None) -> None:
        """Read the prompts of the rows that go on, each once."""
        used = sorted(set(rows))
        self._rows: CachedRows | None = None
        if not used:
            return
        heads = self._heads(rows)
        asked = [prompts[i] + heads[i] for i in used]
        places = [used.index(i) for i in rows]
        self._room = torch.tensor([self.model.context - len(asked[p]) for p in places], device=self.model.device)
        if self.scale != 1 and plain:
            places = places + [p + len(used) for p in places]
            asked = asked + [plain + heads[i] for i in used]
        self._rows = CachedRows(self.model, asked, places, self.grammar.slot_ids)

    def _heads(self, rows: list[int]) -> dict[int, list[int]]:
        """Ids that each prompt goes on with by force."""
        heads: dict[int, list[int]] = {}
        table = torch.stack(self._columns, 1)[self.alive] if self._columns else self.alive[:, None][:, :0]
        ids = torch.where(table >= 0, self.grammar.slot_ids[table.clamp_min(0)], -1).tolist()
        for prompt, head in zip(rows, ids, strict=True):
            heads[prompt] = [i for i in head if i >= 0]
        return heads

    def _draw(self) -> Tensor | None:
        return None if self._noise is None else self._noise.draw(1)[:, 0].to(self.model.device)

    def _logits(self) -> Tensor:
        """Logits (R', U) of the rows that go on, behind what they took since the last call."""
        assert self._rows is not None
        if self._pending:
            ids = torch.stack(self._pending, dim=1)
            self._rows.step(torch.cat([ids, ids]) if self.scale != 1 else ids)
            self._pending = []
        if self.scale == 1:
            return self._rows.logits
        asked, plain = self._rows.logits.chunk(2)
        return plain + self.scale * (asked - plain)

    def _take(self, slots: Tensor) -> Tensor:
        """Move by slots (R',); the same as a column (R,)."""
        self.grammar.advance_slots(slots)
        self._pending.append(self.grammar.slot_ids[slots])
        self._room = self._room - 1
        self.frames[self.alive] = self.grammar.frames()
        column = torch.full_like(self.frames, -1)
        column[self.alive] = slots
        self.capped[self.alive[~self.grammar.done & (self._room < 0)]] = True
        return column

    def _drop(self) -> None:
        """Let rows go that are over or have no room."""
        going = (~self.grammar.done & ~self.capped[self.alive]).nonzero()[:, 0]
        if len(going) == len(self.alive):
            return
        if len(going) and self._rows is not None:
            self._rows.keep(torch.cat([going, going + len(self.alive)]) if self.scale != 1 else going)
        if self._noise is not None:
            self._noise.keep(going.tolist())
        self.alive, self._room = self.alive[going], self._room[going]
        self.grammar.reorder(going)
        self._pending = [column[going] for column in self._pending]
