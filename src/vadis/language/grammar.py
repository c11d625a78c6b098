"""What may stand next in rows of motion ids: an automaton that moves many rows at once, for decoding without ill-formed rows.

    START  begin →  LENGTH (where the vocabulary has length tokens)  →  MOTION symbols by layout  (sep →  PHYS)  end →  DONE

A row's state is a few numbers that its last id alone moves, so a step costs the same at any length; rows are never
looped over. Of one stream the length is counted in token steps. Two streams (DSFT) have a length in frames: with the
tokenizer's integer codec the integers that each stream still lacks are counted, an id that stands for more of them than
that is forbidden, and the stream ends exactly when none is left. Ids that the tokenizer lacks are always forbidden.

Shapes: R rows, N symbols of a row, U slots (symbols, then begin, end, sep and the length tokens), V ids of the model.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vadis.component import MotionTokenizer
from vadis.errors import ShapeError, VadisError
from vadis.tokenizers.dsft.codec import IntegerBPE
from vadis.tokenizers.dsft.sequence import LENGTH_STEP

START, LENGTH, MOTION, PHYS, DONE = range(5)
FAR = 1 << 40
"""Stands for no limit; so far that no row gets there."""
Lengths = int | Sequence[int] | Tensor | None


class MotionGrammar:
    """The automaton of `rows` rows, each after its own prompt, whose next id is `begin`.

    Args:
        vocabulary: a `MotionVocabulary`: layout and ids.
        rows: R.
        tokenizer: the motion tokenizer; needed for exact lengths of DSFT, and to know which of its ids exist.
        length: exact length of all or each, in token steps; of DSFT in frames. None: free between `shortest` and `longest`,
            which are of all or each too.
        fixed: symbols `(N,)` or `(R, N)` that must stand at their places, -1 where the model is free; needs one stream, and
            a length unless they are the first symbols of a row that goes by time.
        finish: ids that may follow the end, beside the end itself (padding, the text's own end).
        device: where the masks are made.

    Raises VadisError or ShapeError for lengths that can't be met and fixed symbols that can't stand where they should.
    """

    def __init__(
        self,
        vocabulary: Any,
        rows: int = 1,
        *,
        tokenizer: Any | None = None,
        length: Lengths = None,
        shortest: Lengths = 1,
        longest: Lengths = None,
        fixed: Tensor | None = None,
        finish: Iterable[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.vocabulary, self.layout, self.rows = vocabulary, vocabulary.layout, rows
        self.device = torch.device(device)
        self._two = self.layout.kind == "two_stream"
        self._set_slots(vocabulary, finish)
        self._set_lengths(length, shortest, longest)
        self._fixed: Tensor | None = None
        self._cost: Tensor | None = None
        self.exact = False
        """Two streams: their integers are counted, so what is made decodes without repair."""
        if self._two:
            self._set_streams(tokenizer)
        self._start()
        if fixed is not None:
            self._set_fixed(fixed)
        self._table: Tensor | None = None

    # ---- what may come next, and what came

    @property
    def done(self) -> Tensor:
        """Rows that are over, (R,) bool."""
        return self._phase == DONE

    @property
    def lost(self) -> Tensor:
        """Rows that took an id that was forbidden, (R,) bool; only where `advance` is not strict."""
        return self._lost

    @property
    def position(self) -> Tensor:
        """Symbols of the current stream so far, (R,) int64."""
        return self._position

    def allowed(self) -> Tensor:
        """Which slots may come next, (R, U) bool; of a row that is over, `end`."""
        if self._table is None:
            self._table = self._slots()
        return self._table

    def mask(self) -> Tensor:
        """Which ids may come next, (R, V) bool; at least one in each row."""
        table = torch.zeros(self.rows, self.vocabulary.size, dtype=torch.bool, device=self.device)
        table[:, self.slot_ids] = self.allowed()
        if len(self._finish):
            table[:, self._finish] = self.done[:, None]
        return table

    def advance(self, ids: Tensor, strict: bool = True) -> None:
        """Move by the ids `(R,)` that came. Rows that are over stay; so does a row whose id is -1.

        Raises VadisError for an id that is not allowed; unless `strict`, such a row counts as over and is `lost`.
        """
        ids = ids.to(self.device)
        inside = (ids >= 0) & (ids < len(self._slot_of))
        self.advance_slots(torch.where(inside, self._slot_of[ids.clamp(0, len(self._slot_of) - 1)], -1 - (ids != -1).long()), strict)  # fmt: skip

    def advance_slots(self, slots: Tensor, strict: bool = True) -> None:
        """`advance` by slots `(R,)`: -1 stays, anything below is no slot."""
        over, stays = self.done, slots == -1
        fine = self.allowed().gather(1, slots.clamp_min(0)[:, None])[:, 0] & (slots >= 0)
        wrong = ~(fine | over | stays)
        if strict and bool(wrong.any()):
            self._complain(int(wrong.nonzero()[0]), slots)
        self._lost = self._lost | wrong
        self._move(slots, fine & ~over)
        self._phase = torch.where(wrong, DONE, self._phase)
        self._table = None

    def reorder(self, index: Tensor) -> None:
        """Rows `index` (R',) of the present ones take the place of all; beams move, finished rows are dropped."""
        index = index.to(self.device)
        for name in ("_phase", "_position", "_total", "_left", "_lost", "_least", "_most", "_frames", "_fixed"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[index])
        self.rows, self._table = len(index), None

    def frames(self) -> Tensor:
        """Frames of each row of two streams, (R,) int64, -1 where nothing said them yet."""
        return self._frames

    # ---- making it

    def _set_slots(self, vocabulary: Any, finish: Iterable[int]) -> None:
        size, sep = self.layout.size, vocabulary.sep
        lengths = vocabulary.length_ids
        self._begin, self._end = size, size + 1
        self._sep = size + 2 if sep is not None else -1
        self._first_length = size + 2 + (sep is not None)
        self._lengths = 0 if lengths is None else len(lengths)
        ids = [*vocabulary.symbol_ids.tolist(), vocabulary.begin, vocabulary.end]
        ids += ([sep] if sep is not None else []) + ([] if lengths is None else [int(i) for i in lengths])
        self.slot_ids = torch.tensor(ids, device=self.device)
        """Id of each slot, (U,)."""
        self._slot_of = torch.full((vocabulary.size,), -2, device=self.device)
        self._slot_of[self.slot_ids] = torch.arange(len(ids), device=self.device)
        self._finish = torch.tensor(sorted(set(finish)), dtype=torch.long, device=self.device)
        self._index = torch.arange(size, device=self.device)[None]

    def _set_lengths(self, length: Lengths, shortest: Lengths, longest: Lengths) -> None:
        """`_least` and `_most` (R,) in steps or frames."""
        self._least, self._most = self._each("shortest", shortest, 1), self._each("longest", longest, FAR)
        if bool(((self._least < 1) | (self._least > self._most)).any()):
            raise VadisError(f"no motion is {shortest} to {longest} long: give 1 <= shortest <= longest.")
        if length is not None:
            self._least = self._each("length", length, 1)
            if bool((self._least < 1).any()):
                raise VadisError(f"a motion of length {int(self._least.min())} can't be made: at least 1 is needed.")
            self._most = self._least.clone()

    def _each(self, name: str, value: Lengths, default: int) -> Tensor:
        """One number a row, (R,) int64."""
        wanted = torch.as_tensor(default if value is None else value, dtype=torch.long, device=self.device)
        wanted = wanted.repeat(self.rows) if wanted.ndim == 0 else wanted
        if wanted.shape != (self.rows,):
            raise ShapeError(f"{name} must be one number or {self.rows}; it has shape {tuple(wanted.shape)}.")
        return wanted.clone()

    def _set_streams(self, tokenizer: Any | None) -> None:
        """Integers that each Base and Phys id stands for, and how many each length needs, for two streams."""
        known = self._least == self._most
        if self._lengths:
            longest = LENGTH_STEP * self._lengths
            bad = known & ((self._least % LENGTH_STEP != 0) | (self._least > longest))
            first = -(-self._least // LENGTH_STEP)
            bad |= (first > self._lengths) | (first * LENGTH_STEP > self._most)
            if bool(bad.any()):
                raise VadisError(
                    f"a length token says multiples of {LENGTH_STEP} up to {longest} frames, and none of them is "
                    f"{self._said(int(bad.nonzero()[0]))}."
                )
        codes = torch.tensor(self.layout.sizes)
        self._exists = torch.ones(1, self.layout.size, dtype=torch.bool, device=self.device)
        self._needs: Tensor | None = None
        if tokenizer is None:
            return
        if not (issubclass(type(tokenizer), MotionTokenizer) and tokenizer.two_streams):
            raise VadisError(f"a vocabulary of two streams needs a DSFT tokenizer, not a {type(tokenizer).__name__}.")
        sizes = torch.tensor(tokenizer.vocab_sizes)
        if bool((sizes > codes).any()):
            raise VadisError(
                f"the tokenizer has {sizes.tolist()} ids, the vocabulary {codes.tolist()}: another tokenizer."
            )
        inside = [torch.arange(int(c)) < int(s) for c, s in zip(codes, sizes, strict=True)]
        self._exists = torch.cat(inside)[None].to(self.device)
        if not self._lengths and not bool(known.all()):
            raise VadisError("DSFT needs the number of frames of every motion: give length, or train length tokens.")
        highest = LENGTH_STEP * self._lengths if self._lengths else int(self._most.max())
        table = torch.tensor([[k * d for k, d in tokenizer.integer_shapes(t)] for t in range(highest + 1)])
        if all(isinstance(codec, IntegerBPE) for codec in tokenizer.codecs):
            self.exact = True
            costs = [torch.ones(int(c), dtype=torch.long) for c in codes]
            for cost, codec in zip(costs, tokenizer.codecs, strict=True):
                cost[: codec.vocab_size] = torch.from_numpy(codec.lengths).long()
            self._cost = torch.cat(costs)[None].to(self.device)
        else:
            table = 3 * table  # ids at most: bytes of an integer; what they stand for can't be counted
        self._needs = table.to(self.device)

    def _start(self) -> None:
        zeros = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        self._phase, self._position, self._lost = zeros + START, zeros.clone(), zeros.bool()
        known = (self._least == self._most) & (self._most < FAR)
        self._total = zeros - 1
        self._frames = zeros - 1
        if self._two:
            self._left = torch.full((self.rows, 2), FAR, device=self.device)
            if not self._lengths:
                self._say_frames(torch.where(known, self._least, -1))
        else:
            self._left = zeros[:, None]
            g, delay = self.layout.groups, (self.layout.groups - 1) * (self.layout.kind == "delayed")
            self._total = torch.where(known, (self._least + delay) * g, -1)

    def _say_frames(self, frames: Tensor) -> None:
        """Set the rows whose `frames` (R,) are not -1 to that length."""
        self._frames = torch.where(frames >= 0, frames, self._frames)
        if self._needs is not None:
            needs = self._needs[frames.clamp(0, len(self._needs) - 1)]
            self._left = torch.where(frames[:, None] >= 0, needs, self._left)

    def _set_fixed(self, fixed: Tensor) -> None:
        if self._two:
            raise VadisError(
                "DSFT's tokens speak of the whole motion at once, not of moments or parts: none can be fixed."
            )
        fixed = torch.as_tensor(fixed, dtype=torch.long, device=self.device)
        fixed = fixed.expand(self.rows, -1) if fixed.ndim == 1 else fixed
        if fixed.ndim != 2 or len(fixed) != self.rows:
            raise ShapeError(f"fixed must be (N,) or ({self.rows}, N) symbols; it has shape {tuple(fixed.shape)}.")
        place = torch.arange(fixed.shape[1], device=self.device)[None]
        given = fixed >= 0
        last = torch.where(given, place + 1, 0).amax(dim=1) if fixed.shape[1] else self._position
        known = self._total >= 0
        if bool((known & (last > self._total)).any()):
            raise VadisError(
                f"symbol {int(last.max()) - 1} is fixed, but the motion ends before it: ask for more steps."
            )
        first = self.layout.kind == "flat" and self.layout.order == "time"
        if not first and not bool(known.all()):
            raise VadisError("symbols can be fixed only in motions of a given length: give length.")
        start, stop = self.layout.allowed(place.expand(self.rows, -1), torch.where(known, self._total, FAR)[:, None])
        wrong = given & ((fixed < start) | (fixed >= stop))
        if bool(wrong.any()):
            row, at = wrong.nonzero()[0].tolist()
            raise VadisError(f"symbol {int(fixed[row, at])} can't be fixed at place {at} of row {row}: the layout has "
                             f"{int(start[row, at])} to {int(stop[row, at]) - 1} there.")  # fmt: skip
        self._least = torch.where(known, self._least, torch.maximum(self._least, -(-last // self.layout.groups)))
        if bool((self._least > self._most).any()):
            raise VadisError(f"{int(self._least.max())} steps are fixed, more than the longest motion allowed.")
        self._fixed = torch.cat([fixed, fixed.new_full((self.rows, 1), -1)], dim=1)

    # ---- the automaton

    def _slots(self) -> Tensor:
        """(R, U) bool, from the state."""
        phase, size = self._phase, self.layout.size
        table = torch.zeros(self.rows, len(self.slot_ids), dtype=torch.bool, device=self.device)
        symbols, ends = self._two_streams() if self._two else self._one_stream()
        moving = (phase == MOTION) | (phase == PHYS)
        table[:, :size] = symbols & moving[:, None]
        table[:, self._begin] = phase == START
        last = PHYS if self._two else MOTION
        table[:, self._end] = (ends & (phase == last)) | (phase == DONE)
        if self._sep >= 0:
            table[:, self._sep] = ends & (phase == MOTION)
        if self._lengths:
            says = LENGTH_STEP * torch.arange(1, self._lengths + 1, device=self.device)
            fits = (says >= self._least[:, None]) & (says <= self._most[:, None])
            table[:, self._first_length :] = fits & (phase == LENGTH)[:, None]
        return table

    def _two_streams(self) -> tuple[Tensor, Tensor]:
        """Symbols (R, N) that the present stream may take, and whether it may end, (R,)."""
        phys = self._phase == PHYS
        codes, left = self.layout.codes, self._left.gather(1, phys.long()[:, None])
        mine = (self._index >= codes) == phys[:, None]
        cost = 1 if self._cost is None else self._cost
        ends = left[:, 0] == 0
        if not self.exact:  # the integers are not known: any id but no more than there is room for
            ends = ends | (self._position > 0)
        return mine & self._exists & (cost <= left), ends

    def _one_stream(self) -> tuple[Tensor, Tensor]:
        layout, position, known = self.layout, self._position, self._total >= 0
        groups = layout.groups
        start, stop = layout.allowed(position, torch.where(known, self._total, FAR))
        over = known & (position >= self._total)
        column, level = position // groups, position % groups
        if layout.kind == "delayed":  # a blank in place of level 0 says that the motion has as many steps as came
            blank = ~known & (level == 0) & (column >= self._least)
            full = ~known & (level == 0) & (column >= self._most)
            ends, over = over, over | full
        elif (
            layout.order == "part" and groups > 1 and not layout.shared
        ):  # the second part says how many steps there are
            start = torch.where(~known & (position >= self._most), layout.codes, start)
            stop = torch.where(~known & (position >= self._least), 2 * layout.codes, stop)
            ends, blank = over, None
        else:
            ends = over | (~known & (level == 0) & (column >= self._least))
            over, blank = over | (~known & (position >= self._most * groups)), None
        symbols = (self._index >= start[:, None]) & (self._index < stop[:, None]) & ~over[:, None]
        if blank is not None:
            symbols = symbols | (blank[:, None] & (self._index == layout.blank))
        if self._fixed is not None:
            now = self._fixed.gather(1, position.clamp_max(self._fixed.shape[1] - 1)[:, None])
            symbols = torch.where(now >= 0, self._index == now, symbols)
        return symbols, ends

    def _move(self, slots: Tensor, moves: Tensor) -> None:
        """The next state of the rows that `moves` (R,) says, whose slots are allowed."""
        phase, layout = self._phase, self.layout
        symbol = moves & (slots < layout.size)
        phys = phase == PHYS
        if self._two:
            cost = torch.ones_like(slots) if self._cost is None else self._cost[0, slots.clamp(0, layout.size - 1)]
            spent = torch.stack([symbol & ~phys, symbol & phys], dim=1) * cost[:, None]
            self._left = self._left - spent
        else:
            unknown = symbol & (self._total < 0)
            if layout.kind == "delayed":
                says = unknown & (slots == layout.blank) & (self._position % layout.groups == 0)
                total = self._position + layout.groups * (layout.groups - 1)
                self._total = torch.where(says, total, self._total)
            elif layout.order == "part" and not layout.shared:
                self._total = torch.where(
                    unknown & (slots >= layout.codes), self._position * layout.groups, self._total
                )
        self._position = self._position + symbol.long()
        if self._lengths:
            says = moves & (slots >= self._first_length)
            self._say_frames(torch.where(says, LENGTH_STEP * (slots - self._first_length + 1), -1))
            phase = torch.where(says, MOTION, phase)
        if self._sep >= 0:
            turns = moves & (slots == self._sep)
            phase = torch.where(turns, PHYS, phase)
            self._position = torch.where(turns, 0, self._position)
        phase = torch.where(moves & (slots == self._begin), LENGTH if self._lengths else MOTION, phase)
        self._phase = torch.where(moves & (slots == self._end), DONE, phase)

    # ---- messages

    def _said(self, row: int) -> str:
        least, most = int(self._least[row]), int(self._most[row])
        return str(least) if least == most else f"{least} to {most if most < FAR else 'any number'}"

    def _complain(self, row: int, slots: Tensor) -> None:
        slot, phase = int(slots[row]), int(self._phase[row])
        came = f"the id {int(self.slot_ids[slot])}" if slot >= 0 else "an id that is not a motion id"
        where = ("before the motion", "where its length is said", "in the motion", "in the Phys stream")[phase]
        raise VadisError(
            f"row {row}: {came} can't stand {where}, after {int(self._position[row])} symbols: the row is ill-formed."
        )


class MotionLogitsProcessor:
    """Forbids ill-formed motion inside `model.generate(…, logits_processor=[MotionLogitsProcessor(grammar)])`.

    The grammar begins at the end of the prompts, and the model stops at `eos_token_id=vocabulary.end`. One processor serves
    one call. With `beams` (num_beams of the call) the states move with the beams: transformers doesn't say which beam went
    where, so a row's parent is the one of its prompt with the same ids before, which costs a comparison of the rows.
    Rows of the grammar are repeated where generate repeats prompts.
    """

    def __init__(self, grammar: MotionGrammar, beams: int = 1) -> None:
        self.grammar, self.beams = grammar, beams
        self._width = 0
        self._before: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(R, V)` with -inf at the ids that can't follow `input_ids` (R, L)."""
        grammar = self.grammar
        rows, width = input_ids.shape
        if self._width == 0:
            times, rest = divmod(rows, grammar.rows)
            if rest or times < 1 or rows % self.beams:
                raise ShapeError(
                    f"generate has {rows} rows, the grammar {grammar.rows}: make the grammar of the prompts."
                )
            grammar.reorder(torch.arange(grammar.rows).repeat_interleave(times))
            self._first = width
        elif width != self._width + 1 or rows != grammar.rows:
            raise VadisError(
                "this processor has served another call of generate already: make a new one for each call."
            )
        else:
            if self.beams > 1:
                grammar.reorder(self._parents(input_ids))
            grammar.advance(input_ids[:, -1], strict=False)
        self._width = width
        if self.beams > 1:
            self._before = input_ids[:, self._first :].clone()
        mask = grammar.mask().to(scores.device)
        if mask.shape[1] < scores.shape[1]:  # rows that the model has beyond the vocabulary
            mask = torch.nn.functional.pad(mask, (0, scores.shape[1] - mask.shape[1]))
        return scores.masked_fill(~mask, -torch.inf)

    def _parents(self, input_ids: Tensor) -> Tensor:
        """Where each row's state is, (R,): a row of the same prompt that went the same way (any of them, if several)."""
        assert self._before is not None
        now = input_ids[:, self._first : -1].reshape(
            len(input_ids) // self.beams, self.beams, self._width - self._first
        )
        before = self._before.reshape(now.shape)
        same = (now[:, :, None] == before[:, None]).all(-1)  # (prompts, beams now, beams before)
        if not bool(same.any(-1).all()):
            raise VadisError(
                f"a beam has no parent: give the processor the num_beams of generate (it has {self.beams})."
            )
        first = torch.arange(len(now), device=same.device)[:, None] * self.beams
        return (same.long().argmax(-1) + first).flatten()
