"""Which ids of a causal language model the motion symbols and their markers have.

    begin  symbols…  end                     <mot> … </mot>
    begin  [length]  Base…  sep  Phys…  end   <mot_bos> … <mot_sep> … <mot_eos>, DSFT

Ids are always lists of numbers; no text is ever parsed for them. The names of new ids are special tokens of the text
tokenizer, and `encode_text` reads a user's text so that none of them, and no id that now stands for motion, can come out.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vadis.errors import FileError, ModelError, ShapeError, VadisError, about
from vadis.language.layout import MAX_SYMBOLS, MotionLayout
from vadis.records import checked, read_json
from vadis.sizes import FrameRate, Frames, Name
from vadis.tokenizers.dsft.sequence import LENGTH_STEP, LENGTHS, token_names

FILE = "motion_vocabulary.json"
VERSION = 1
Mode = Literal["extend", "remap"]


@dataclass(frozen=True)
class MotionTokenizerFacts:
    """What must stay the same about the motion tokenizer that a language model was trained with."""

    type: Name
    sha256: Name
    representation: Name
    fps: FrameRate
    frames_per_token: Frames | None
    """None for DSFT."""

    @classmethod
    def of(cls, tokenizer: Any) -> "MotionTokenizerFacts":
        """The facts of a motion tokenizer; facts are returned as they are."""
        from vadis.data.segments import fingerprint

        if isinstance(tokenizer, cls):
            return tokenizer
        sha256 = fingerprint(tokenizer)
        per_token = tokenizer.frames_per_token
        return cls(
            tokenizer.config.type, sha256, tokenizer.representation, float(tokenizer.fps),
            None if per_token is None else int(per_token),
        )  # fmt: skip


def marker_names(layout: MotionLayout) -> tuple[str, str, str | None]:
    """Names of begin, end and sep."""
    if layout.kind == "two_stream":
        return "<mot_bos>", "<mot_eos>", "<mot_sep>"
    return "<mot>", "</mot>", None


def symbol_names(layout: MotionLayout) -> list[str]:
    """A name for each symbol: DSFT's are MotionVLA's."""
    if layout.kind == "two_stream":
        base, phys = (
            [f"<mot_{stream}_{i:04d}>" for i in range(size)] for stream, size in zip("bp", layout.sizes, strict=True)
        )
        return base + phys
    return [f"<mot_{i}>" for i in range(layout.size)]


def length_names(layout: MotionLayout) -> list[str]:
    """Names of DSFT's length tokens."""
    return token_names(lengths=True)[-LENGTHS:] if layout.kind == "two_stream" else []


@dataclass(frozen=True, eq=False)
class MotionVocabulary:
    """Ids of motion in a language model; made by `extend`, `remap` or `load`.

    Attributes:
        layout: how tokens become symbols.
        mode: symbols have new ids at the end, or take those of rare text tokens.
        symbol_ids: (layout.size,) int64, the id of each symbol.
        begin, end, sep: ids of the markers; sep only between DSFT's streams.
        text_count: ids that the text tokenizer had before.
        text_size: rows that the embedding had before.
        size: rows that it has now.
        tokenizer: facts of the motion tokenizer.
        length_ids: (256,) ids of DSFT's length tokens, where they are used.
    """

    layout: MotionLayout
    mode: Mode
    symbol_ids: Tensor
    begin: int
    end: int
    sep: int | None
    text_count: int
    text_size: int
    size: int
    tokenizer: MotionTokenizerFacts
    length_ids: Tensor | None = None

    def __post_init__(self) -> None:
        ids = torch.cat([self.symbol_ids, *self._others])
        if len(self.symbol_ids) != self.layout.size:
            raise ModelError(
                f"the vocabulary has {len(self.symbol_ids)} symbol ids, its layout {self.layout.size} symbols."
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.size:
            raise ModelError(
                f"a motion id lies outside the {self.size} rows of the model: the vocabulary is damaged or another model's."
            )
        if len(ids.unique()) != len(ids):
            raise ModelError("two motion symbols or markers have the same id: the vocabulary is damaged.")
        if (self.sep is not None) != (self.layout.kind == "two_stream"):
            raise ModelError("a separator belongs to two streams, and to nothing else.")

    # ---- rows of ids

    def ids(self, tokens: Any, markers: bool = True) -> list[int]:
        """The ids of a motion's tokens (see `MotionLayout.flatten`), by default between the markers.

        With length tokens the second id says how many frames the motion has. Raises as `flatten` does, and VadisError for
        a number of frames that no length token can say.
        """
        symbols = self.layout.flatten(tokens).cpu()
        row = self.symbol_ids[symbols].tolist()
        if self.sep is not None:
            row.insert(len(tokens.base_ids), self.sep)
        if not markers:
            return row
        length = [] if self.length_ids is None else [self.length_id(tokens.T)]
        return [self.begin, *length, *row, self.end]

    def tokens(self, ids: Sequence[int] | Tensor, frames: int | None = None) -> Any:
        """The tokens of a row of ids, the inverse of `ids`; begin and end may be missing, anything else may not.

        `frames` is needed for DSFT's tokens without a length token. Raises VadisError that says what is wrong.
        """
        row = _row(ids)
        if len(row) and row[0] == self.begin:
            row = row[1:]
            if self.length_ids is not None and len(row) and bool((self.length_ids == row[0]).any()):
                said = self.frames(int(row[0]))
                if frames not in (None, said):
                    raise VadisError(f"the length token says {said} frames, {frames} were asked for: leave frames out.")
                frames, row = said, row[1:]
        if len(row) and row[-1] == self.end:
            row = row[:-1]
        if self.sep is None:
            return self.layout.unflatten(self.symbols(row))
        places = (row == self.sep).nonzero()[:, 0].tolist()
        if len(places) != 1:
            raise VadisError(f"the row has {len(places)} separators; exactly one stands between Base and Phys.")
        base, phys = self.symbols(row[: places[0]]), self.symbols(row[places[0] + 1 :])
        if bool((base >= self.layout.codes).any()) or bool((phys < self.layout.codes).any()):
            raise VadisError("a symbol stands on the wrong side of the separator: Base before it, Phys behind.")
        return self.layout.unflatten(torch.cat([base, phys]), frames)

    def symbols(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Symbols of ids `(…)`, the same shape. Raises VadisError for an id that is no motion symbol."""
        row = torch.as_tensor(ids).long().cpu()
        inside = (row >= 0) & (row < self.size)
        found = torch.where(inside, self._symbol_of[row.clamp(0, self.size - 1)], -1)
        wrong = (found < 0).nonzero()
        if len(wrong):
            place = tuple(int(i) for i in wrong[0])
            names = {self.begin: "begin", self.end: "end", self.sep: "separator"}
            name = names.get(int(row[place]), "no motion symbol")
            raise VadisError(
                f"id {int(row[place])} at {place[0] if len(place) == 1 else place} is {name}: a row of motion holds symbols "
                "between its markers and nothing else."
            )
        return found

    def length_id(self, frames: int) -> int:
        """The id of DSFT's length token for so many frames. Raises VadisError where there is none."""
        if self.length_ids is None:
            raise VadisError("this vocabulary has no length tokens: give the number of frames to the decoder instead.")
        if frames % LENGTH_STEP or not 0 < frames <= LENGTHS * LENGTH_STEP:
            raise VadisError(
                f"a length token says multiples of {LENGTH_STEP} up to {LENGTHS * LENGTH_STEP} frames, not {frames}: crop "
                "the clip."
            )
        return int(self.length_ids[frames // LENGTH_STEP - 1])

    def frames(self, length_id: int) -> int:
        """Frames that a length token says, the inverse of `length_id`."""
        found = [] if self.length_ids is None else (self.length_ids == length_id).nonzero()[:, 0].tolist()
        if not found:
            raise VadisError(f"id {length_id} is not a length token.")
        return LENGTH_STEP * (found[0] + 1)

    # ---- which ids are what

    def is_motion(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Bool of the shape of `ids`: a symbol, a marker or a length token."""
        row = torch.as_tensor(ids).long()
        inside = (row >= 0) & (row < self.size)
        return inside & self._motion.to(row.device)[row.clamp(0, self.size - 1)]

    def new_ids(self) -> Tensor:
        """Ids, ascending, whose rows of the model are new: those of all symbols, markers and length tokens."""
        return self._motion.nonzero()[:, 0]

    def text_mask(self) -> Tensor:
        """Bool `(size,)`: ids that may stand in a text, which are neither motion nor padding of the rows."""
        return ~self._motion & (torch.arange(self.size) < self.text_count)

    def encode_text(self, text_tokenizer: Any, text: str) -> list[int]:
        """Ids of a user's text, none of which is motion or a special token, whatever the text says.

        Names of special tokens in it are read as ordinary letters. A token whose id now stands for motion (`remap`) is
        spelled in bytes. No special tokens are added.
        """
        ids: list[int] = text_tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if not bool(self.is_motion(ids).any()):
            return ids
        spelled: list[int] = []
        for id_, motion in zip(ids, self.is_motion(ids).tolist(), strict=True):
            spelled += self._spelling(text_tokenizer, id_) if motion else [id_]
        return spelled

    def _spelling(self, text_tokenizer: Any, id_: int) -> list[int]:
        """The ids of the bytes of a token."""
        token = text_tokenizer.convert_ids_to_tokens(id_)
        known = text_tokenizer.get_vocab()
        names = list(token)
        if not all(name in known for name in names) or bool(self.is_motion([known[n] for n in names]).any()):
            names = [f"<0x{byte:02X}>" for byte in token.replace("\u2581", " ").encode()]
        if not all(name in known for name in names):
            raise ModelError(f"the text token {token!r} now stands for motion and can't be spelled in bytes.")
        return [known[name] for name in names]

    # ---- inside

    @property
    def _others(self) -> list[Tensor]:
        """Ids that are not symbols."""
        markers = [self.begin, self.end] + ([] if self.sep is None else [self.sep])
        return [torch.tensor(markers)] + ([] if self.length_ids is None else [self.length_ids])

    @cached_property
    def _symbol_of(self) -> Tensor:
        table = torch.full((self.size,), -1)
        table[self.symbol_ids] = torch.arange(len(self.symbol_ids))
        return table

    @cached_property
    def _motion(self) -> Tensor:
        table = torch.zeros(self.size, dtype=torch.bool)
        table[torch.cat([self.symbol_ids, *self._others])] = True
        return table

    # ---- files

    def page(self) -> dict[str, Any]:
        """Everything as plain values; ids that follow one another are written as [first, count]."""
        return {
            "format": "vadis-motion-vocabulary",
            "version": VERSION,
            "mode": self.mode,
            "layout": asdict(self.layout),
            "begin": self.begin,
            "end": self.end,
            "sep": self.sep,
            "text_count": self.text_count,
            "text_size": self.text_size,
            "size": self.size,
            "tokenizer": asdict(self.tokenizer),
            "symbol_ids": _runs(self.symbol_ids),
            "length_ids": None if self.length_ids is None else _runs(self.length_ids),
        }

    def save(self, folder: str | Path, **further: Any) -> None:
        """Write `motion_vocabulary.json`, with `further` entries that `load` passes over."""
        from vadis.files import atomic_write

        with atomic_write(Path(folder) / FILE) as temporary:
            temporary.write_text(json.dumps(self.page() | further) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "MotionVocabulary":
        """Read `motion_vocabulary.json`. Raises ModelError where there is none or it is of another version, FileError for
        a damaged one."""
        path = Path(folder) / FILE
        page = read_page(folder)
        known = {f.name for f in fields(_Page)}
        stored = checked(_Page, {k: v for k, v in page.items() if k in known}, f"{path} is damaged")
        with about(path):
            lengths = None if stored.length_ids is None else _unrun(stored.length_ids)
            return cls(
                stored.layout, stored.mode, _unrun(stored.symbol_ids), stored.begin, stored.end, stored.sep,
                stored.text_count, stored.text_size, stored.size, stored.tokenizer, lengths,
            )  # fmt: skip


_Id = Annotated[int, Field(ge=0, lt=100_000_000)]
_Runs = list[tuple[_Id, Annotated[int, Field(ge=1, le=MAX_SYMBOLS)]]]


@dataclass(frozen=True)
class _Page:
    """motion_vocabulary.json, so much of it as makes a vocabulary."""

    mode: Mode
    layout: MotionLayout
    begin: _Id
    end: _Id
    sep: _Id | None
    text_count: _Id
    text_size: _Id
    size: _Id
    tokenizer: MotionTokenizerFacts
    symbol_ids: _Runs
    length_ids: _Runs | None


def read_page(folder: str | Path) -> dict[str, Any]:
    """The JSON object of `motion_vocabulary.json`; raises as `MotionVocabulary.load` does."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {FILE}, so it is not a language model with a vadis motion vocabulary. Make one with `extend` or "
            "`remap`."
        )
    page = read_json(path)
    found = (page.get("format"), page.get("version"))
    if found != ("vadis-motion-vocabulary", VERSION):
        raise ModelError(f"{path} is {found[0]} {found[1]}; expected vadis-motion-vocabulary {VERSION}.")
    return page


def _row(ids: Sequence[int] | Tensor) -> Tensor:
    row = torch.as_tensor(ids).long().cpu()
    if row.ndim != 1:
        raise ShapeError(f"ids must be one row (N,); this array has shape {tuple(row.shape)}.")
    return row


def _runs(ids: Tensor) -> list[list[int]]:
    """Ids as runs [first, count]."""
    runs: list[list[int]] = []
    for id_ in ids.tolist():
        if runs and id_ == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([id_, 1])
    return runs


def _unrun(runs: list[tuple[int, int]]) -> Tensor:
    count = sum(length for _, length in runs)
    if not 0 < count <= MAX_SYMBOLS:
        raise FileError(f"{count:,} ids are named; expected 1 to {MAX_SYMBOLS:,}. Save or download the model again.")
    return torch.cat([torch.arange(first, first + count) for first, count in runs])


def add_names(text_tokenizer: Any, names: Sequence[str]) -> None:
    """Register names as special tokens. Raises ModelError where one exists, before anything is changed."""
    from tokenizers import AddedToken

    known = text_tokenizer.get_vocab()
    taken = [name for name in names if name in known]
    if taken:
        raise ModelError(
            f"the text tokenizer has {len(taken)} of the names already ({', '.join(taken[:3])}…): this model has a motion "
            "vocabulary. Load it with load_language_model, or start from the model without it."
        )
    added = [AddedToken(name, special=True, normalized=False) for name in names]
    text_tokenizer.add_tokens(added, special_tokens=True)
