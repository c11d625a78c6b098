"""How the tokens of one tokenizer become one row of motion symbols, which a language model can write, and back.

    flat        tokens (S,) or (S, G), read time first (step 0's groups, step 1's groups…) or part by part
    delayed     tokens (S, G) with level q shifted by q steps, a blank symbol in the corners (MusicGen, arXiv 2306.05284)
    two_stream  DSFT: Base ids, then Phys ids; the separator between them is a marker of the vocabulary, no symbol

Symbols are 0 … size - 1. Where groups don't share their symbols, group g owns g * codes … (g + 1) * codes - 1; of two
streams Base comes first; the blank is the last one. Letters: S token steps, G tokens a step, K codes of a group, N symbols.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import build_config
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.sizes import CONFIG, Codes, Groups
from vadis.tokenizers.dsft.sequence import Encoded

Kind = Literal["flat", "delayed", "two_stream"]
Order = Literal["time", "part"]
MAX_SYMBOLS = 10_000_000


@dataclass(frozen=True, config=CONFIG)
class MotionLayout:
    """The order of a tokenizer's tokens in one row, and how many symbols that takes. Made by `MotionLayout.of`."""

    kind: Kind = "flat"
    groups: Groups = 1
    """G, tokens a step (groups, levels or parts); 1 for two streams."""
    codes: Codes = 512
    """K, codes of a group; of two streams the ids of Base."""
    order: Order = "time"
    """"time": all groups of a step together; "part": all steps of a group together."""
    shared: bool = False
    """All groups use the same K symbols; a token's place says whose it is."""
    grouped: bool = False
    """Tokens have an axis of groups, (S, G), also where G is 1."""
    phys_codes: int = Field(default=0, ge=0, le=16_777_216)
    """Ids of the second stream; 0 unless there are two streams."""

    def __post_init__(self) -> None:
        if (self.kind == "two_stream") != (self.phys_codes > 0):
            raise ModelError(f"kind {self.kind!r} with phys_codes {self.phys_codes}: only two_stream has Phys ids.")
        if self.kind == "two_stream" and (self.groups > 1 or self.grouped or self.order != "time" or self.shared):
            raise ModelError("two streams have no groups: leave groups, grouped, order and shared at their defaults.")
        if self.kind == "delayed" and (self.order != "time" or self.groups < 2):
            raise ModelError("a delayed layout goes by time and needs two levels or more: use kind 'flat'.")
        if sum(self.sizes) > MAX_SYMBOLS:
            raise ModelError(f"{sum(self.sizes):,} motion symbols are more than {MAX_SYMBOLS:,}.")

    @classmethod
    def of(
        cls, tokenizer: Any, order: Order = "time", kind: Kind | None = None, shared: bool | None = None
    ) -> "MotionLayout":
        """The layout of a tokenizer's tokens: VQ, FSQ, LFQ 1-D and 2-D, RVQ, MG-VQ or DSFT.

        `kind` is "flat" unless said otherwise (DSFT: always "two_stream"). `shared` is by default true where all groups
        have one codebook (2-D LFQ, RVQ with a shared codebook). Raises ModelError for a continuous tokenizer and for what
        its tokens can't be.
        """
        if tokenizer.continuous:
            raise ModelError(f"{type(tokenizer).__name__} makes latents, not tokens: use a discrete tokenizer.")
        if tokenizer.two_streams:
            if kind not in (None, "two_stream") or order != "time" or shared:
                raise ModelError("DSFT's tokens are two streams: leave kind, order and shared out.")
            base, phys = tokenizer.vocab_sizes
            return cls("two_stream", codes=base, phys_codes=phys)
        if kind == "two_stream":
            raise ModelError(f"{type(tokenizer).__name__} has one stream of tokens: use kind 'flat' or 'delayed'.")
        groups, config = int(tokenizer.tokens_per_step), tokenizer.config
        if groups == 1 and order == "part":
            raise ModelError(f"{type(tokenizer).__name__} has one token per step, so it has no parts.")
        if shared is None:
            shared = groups > 1 and (config.type == "lfq2d" or getattr(config, "shared_codebook", False))
        fields = {"kind": kind or "flat", "groups": groups, "codes": int(tokenizer.vocab_size), "order": order,
                  "shared": bool(shared), "grouped": tokenizer.grouped}  # fmt: skip
        return build_config(cls, fields, type(tokenizer).__name__)

    def check(self, tokenizer: Any) -> None:
        """Raise ModelError unless this is a layout of the tokenizer's tokens."""
        own = MotionLayout.of(tokenizer)
        if (self.codes, self.groups, self.phys_codes, self.grouped) != (
            own.codes,
            own.groups,
            own.phys_codes,
            own.grouped,
        ):
            raise ModelError(
                f"the layout is for {self.groups} x {self.codes} codes{f' + {self.phys_codes}' if self.phys_codes else ''}, "
                f"{type(tokenizer).__name__} has {own.groups} x {own.codes}"
                f"{f' + {own.phys_codes}' if own.phys_codes else ''}: use MotionLayout.of(tokenizer)."
            )

    # ---- sizes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Symbols of each owner: the streams, the groups, or one number where groups share; the blank is not counted."""
        if self.kind == "two_stream":
            return (self.codes, self.phys_codes)
        return (self.codes,) if self.shared else (self.codes,) * self.groups

    @property
    def blank(self) -> int | None:
        """The symbol that fills the corners of a delayed row."""
        return sum(self.sizes) if self.kind == "delayed" else None

    @property
    def size(self) -> int:
        """Number of symbols."""
        return sum(self.sizes) + (self.kind == "delayed")

    def length(self, steps: int) -> int:
        """Symbols N of so many steps. Raises VadisError for two streams, whose length depends on the motion."""
        self._one_stream("length")
        if steps < 1:
            raise VadisError(f"{steps} steps make no motion: at least 1 is needed.")
        return (steps + self.groups - 1) * self.groups if self.kind == "delayed" else steps * self.groups

    def steps(self, length: int) -> int:
        """Steps S of so many symbols, the inverse of `length`. Raises VadisError where no number of steps has them."""
        self._one_stream("steps")
        steps, rest = divmod(int(length), self.groups)
        if self.kind == "delayed":
            steps -= self.groups - 1
        if rest or steps < 1:
            least = self.length(1)
            raise VadisError(
                f"{length} motion symbols are not a whole number of steps: {self.groups} make a step, at least {least} a motion."
            )
        return steps

    # ---- there and back

    def flatten(self, tokens: Any) -> Tensor:
        """Symbols `(N,)` int64 of tokens `(S,)` or `(S, G)`, or of an `Encoded`.

        Raises ShapeError for another shape, VadisError for no steps and for tokens outside 0 … K - 1 (padding, absent
        levels).
        """
        if self.kind == "two_stream":
            return self._flatten_streams(tokens)
        array = torch.as_tensor(tokens)
        if array.is_floating_point() or array.dtype == torch.bool:
            raise ShapeError(f"tokens must be integers, not {array.dtype}.")
        array = array.long()
        if array.ndim == 1 and self.groups == 1:
            array = array[:, None]
        if array.ndim != 2 or array.shape[1] != self.groups:
            wanted = f"(S, {self.groups})" if self.groups > 1 or self.grouped else "(S,)"
            raise ShapeError(f"tokens must be {wanted}, those of one clip; this array has shape {tuple(array.shape)}.")
        if not len(array):
            raise VadisError("there are no tokens: a motion has at least one step.")
        _within(array, self.codes, "token")
        steps = len(array)
        if not self.shared:
            array = array + self.codes * torch.arange(self.groups, device=array.device)
        if self.kind == "flat":
            return (array if self.order == "time" else array.T).flatten()
        row = array.new_full((steps + self.groups - 1, self.groups), sum(self.sizes))
        for level in range(self.groups):
            row[level : level + steps, level] = array[:, level]
        return row.flatten()

    def unflatten(self, symbols: Any, frames: int | None = None) -> Any:
        """The inverse of `flatten`: tokens `(S,)` or `(S, G)` int64, or an `Encoded` of `frames` frames.

        Strict: raises VadisError that says what is wrong for a number of symbols that is no whole number of steps, a
        symbol where another group's must stand, a blank out of place, a Phys symbol before a Base symbol, and for two
        streams without `frames`.
        """
        row = torch.as_tensor(symbols).long()
        if row.ndim != 1:
            raise ShapeError(f"symbols must be one row (N,); this array has shape {tuple(row.shape)}.")
        _within(row, self.size, "symbol")
        if self.kind == "two_stream":
            return self._unflatten_streams(row, frames)
        steps = self.steps(len(row))
        places = torch.arange(len(row), device=row.device)
        start, stop = self.allowed(places, len(row))
        wrong = ((row < start) | (row >= stop)).nonzero()
        if len(wrong):
            self._complain(row, int(wrong[0]), int(start[wrong[0]]), int(stop[wrong[0]]))
        if self.kind == "flat":
            made = row.view(steps, self.groups) if self.order == "time" else row.view(self.groups, steps).T
        else:
            slots = row.view(-1, self.groups)
            made = torch.stack([slots[level : level + steps, level] for level in range(self.groups)], -1)
        if not self.shared:
            made = made - self.codes * torch.arange(self.groups, device=row.device)
        return made.contiguous() if self.groups > 1 or self.grouped else made[:, 0]

    def group(self, position: Any, total: Any = None) -> Any:
        """Which group stands at a position (int or tensor). Part by part, `total` (the N of the row) must be known."""
        self._one_stream("group")
        if self.groups == 1:
            return position * 0
        if self.order == "time":
            return position % self.groups
        if total is None:
            raise VadisError("part by part, a position's group depends on the length of the row: give total.")
        return position * self.groups // total

    def allowed(self, position: Any, total: Any = None) -> tuple[Any, Any]:
        """The symbols start … stop - 1 that may stand at a position, which counts from 0 without markers.

        `total` is the number of symbols of the row, of two streams that of its Base symbols. Both may be tensors; then
        start and stop are tensors. Without `total`: of a delayed row what stands there while it goes on (its end begins
        with a blank in place of level 0), of two streams all symbols, part by part all symbols.
        """
        position = torch.as_tensor(position)
        if self.kind == "two_stream":
            if total is None:
                start, stop = torch.zeros_like(position), torch.full_like(position, self.size)
            else:
                phys = position >= torch.as_tensor(total)
                start = torch.where(phys, self.codes, 0)
                stop = torch.where(phys, self.size, self.codes)
        else:
            if self.order == "part" and total is None:
                start, stop = torch.zeros_like(position), torch.full_like(position, self.size)
            else:
                group = (
                    position % self.groups if self.order == "time" else position * self.groups // torch.as_tensor(total)
                )
                start = torch.zeros_like(group) if self.shared else group * self.codes
                stop = start + self.codes
            if self.kind == "delayed":
                slot, level = position // self.groups, position % self.groups
                corner = slot < level
                if total is not None:
                    corner = corner | (slot - level >= torch.as_tensor(total) // self.groups - self.groups + 1)
                start, stop = torch.where(corner, self.size - 1, start), torch.where(corner, self.size, stop)
        return (start, stop) if position.ndim else (int(start), int(stop))

    # ---- inside

    def _one_stream(self, what: str) -> None:
        if self.kind == "two_stream":
            raise VadisError(f"{what} has no meaning for DSFT's two streams: the number of their symbols varies.")

    def _flatten_streams(self, encoded: Any) -> Tensor:
        if not isinstance(encoded, Encoded):
            raise ShapeError(f"DSFT's tokens are an Encoded, not a {type(encoded).__name__}: see DSFTTokenizer.encode.")
        base, phys = encoded.base_ids.long(), encoded.phys_ids.long()
        _within(base, self.codes, "Base id")
        _within(phys, self.phys_codes, "Phys id")
        return torch.cat([base, phys + self.codes])

    def _unflatten_streams(self, row: Tensor, frames: int | None) -> Encoded:
        if frames is None:
            raise VadisError("DSFT's tokens don't say how long the motion is: give frames, or use length tokens.")
        is_phys = row >= self.codes
        count = int((~is_phys).sum())
        if bool(is_phys[:count].any()):
            place = int(is_phys.nonzero()[0])
            raise VadisError(f"symbol {place} belongs to Phys, but Base symbols follow it: Base comes first.")
        return Encoded(row[:count], row[count:] - self.codes, int(frames))

    def _complain(self, row: Tensor, place: int, start: int, stop: int) -> None:
        symbol = int(row[place])
        if self.kind == "delayed" and (start == self.blank or symbol == self.blank):
            said = "must be blank" if start == self.blank else "is blank where a code must stand"
            raise VadisError(f"symbol {place} of the delayed row is {symbol}: it {said}. The row is damaged.")
        group = int(self.group(place, len(row)))
        raise VadisError(
            f"symbol {place} is {symbol}, but group {group}, whose turn it is, has {start} to {stop - 1}: the row is out of "
            "step."
        )


def _within(values: Tensor, size: int, name: str) -> None:
    """Raise VadisError for the first value outside 0 … size - 1."""
    wrong = (values < 0) | (values >= size)
    if bool(wrong.any()):
        place = tuple(int(i) for i in wrong.nonzero()[0])
        hint = " (-1 is padding or an absent level: cut it off)" if int(values[place]) == -1 else ""
        where = place[0] if len(place) == 1 else place
        raise VadisError(f"{name} {where} is {int(values[place])}; it must be 0 to {size - 1}{hint}.")
