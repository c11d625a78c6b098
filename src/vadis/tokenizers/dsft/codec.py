"""Byte-pair coding of integer strings, in two ways: exactly on the integers, and over bytes as MotionVLA does it.

`IntegerBPE` knows no bytes: ids 0 … R-1 are the integers low … high, id R + i is the i-th merge. Every id has a known
expansion, so decoding is concatenation and can't fail. `ByteLevelBPE` reads, makes and writes the original's tokenizers; its
lossy corners are those of the original (bytes that training never met vanish, ill-formed text decodes to U+FFFD).

Both run on Hugging Face `tokenizers`. Letters: N clips, R integers of the alphabet, V ids.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vadis.errors import FileError, MissingExtra, ModelError, VadisError, about
from vadis.files import atomic_write
from vadis.io.arrays import Npz
from vadis.records import checked, read_bytes, read_json
from vadis.sizes import Positions

FIRST_CHARACTER = 0x4E00
MAX_ALPHABET = 20_000
"""Integers that fit between U+4E00 and the surrogates."""
MAX_SYMBOLS = 50_000_000
"""Integers that all ids of a vocabulary may stand for together."""
MAX_MERGES = MAX_TOKENIZER = 64 << 20
"""Bytes of a stream's file."""
SURROGATES = (0xD800, 0xE000)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise MissingExtra("DSFT needs the package tokenizers: pip install 'vadis[llm]'") from error
    return tokenizers


def _text(codes: np.ndarray) -> str:
    """Code points as a string."""
    return codes.astype("<u4").tobytes().decode("utf-32-le")


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)


class IntegerBPE:
    """Byte-pair coding of integers in low … high without bytes; lossless inside that range, clipped outside.

    Args:
        low, high: ends of the alphabet.
        merges: (n, 2) ids; merge i makes id R + i of two earlier ones.
        row_width: with it, no token crosses a multiple of this many symbols.
    """

    kind = "integer"

    def __init__(self, low: int, high: int, merges: np.ndarray, row_width: int = 0) -> None:
        self.low, self.high, self.row_width = int(low), int(high), int(row_width)
        size = self.high - self.low + 1
        if not 0 < size <= MAX_ALPHABET:
            raise ModelError(
                f"an alphabet of {size} integers can't be coded (at most {MAX_ALPHABET}): lower the scale."
            )
        self.merges = np.ascontiguousarray(merges, dtype=np.int32).reshape(-1, 2)
        made = np.arange(size, size + len(self.merges))
        if len(made) and (self.merges.min() < 0 or (self.merges >= made[:, None]).any()):
            raise ModelError("the merges are damaged: one uses an id that does not exist before it.")
        parts: list[tuple[int, ...]] = [(i,) for i in range(size)]
        total = size
        for a, b in self.merges.tolist():
            total += len(parts[a]) + len(parts[b])  # doubling in each merge it would soon fill any memory
            if total > MAX_SYMBOLS:
                raise ModelError(f"the merges are damaged: their ids stand for more than {MAX_SYMBOLS:,} integers.")
            parts.append(parts[a] + parts[b])
        if len(set(parts)) != len(parts):
            raise ModelError("the merges are damaged: two ids stand for the same integers.")
        self._names = [_text(np.array(p) + FIRST_CHARACTER) for p in parts]
        self.lengths = np.array([len(p) for p in parts], dtype=np.int32)
        """Symbols of each id, (V,)."""
        self._starts = (np.cumsum(self.lengths) - self.lengths).astype(np.int32)
        self._symbols = np.concatenate([np.array(p) for p in parts]) + self.low

    @property
    def vocab_size(self) -> int:
        """V, single integers and merges."""
        return len(self._names)

    @property
    def alphabet_size(self) -> int:
        """R, single integers."""
        return self.high - self.low + 1

    @cached_property
    def digest(self) -> str:
        """sha256 of alphabet and merges."""
        head = f"{self.low} {self.high} {self.row_width} ".encode()
        return hashlib.sha256(head + self.merges.astype("<i4").tobytes()).hexdigest()

    @cached_property
    def _coder(self) -> Any:
        names = self._names
        vocab = {name: i for i, name in enumerate(names)}
        return _tokenizers().Tokenizer(
            _tokenizers().models.BPE(vocab, [(names[a], names[b]) for a, b in self.merges.tolist()])
        )

    @classmethod
    def fit(
        cls,
        clips: Iterable[np.ndarray],
        vocab_size: int = 4096,
        margin: float = 0.25,
        row_width: int = 0,
        min_frequency: int = 2,
    ) -> "IntegerBPE":
        """Learn merges on integer strings, their extremes widened by `margin` of the range on both sides.

        Where the alphabet would take half of the vocabulary the margin shrinks, and from three quarters on outliers are
        clipped. Ties go to the smallest pair; learning stops at `vocab_size` ids or below `min_frequency`. Raises VadisError
        for no clips, or integers all far from 0.
        """
        kept = [np.asarray(c, dtype=np.int32 if np.abs(c).max() > 32_000 else np.int16) for c in clips if len(c)]
        if not kept:
            raise VadisError("there is nothing to learn merges from: give at least one clip.")
        low, high = min(int(c.min()) for c in kept), max(int(c.max()) for c in kept)
        room = min(vocab_size, MAX_ALPHABET)
        extra = min(round(margin * (high - low)), max(room // 2 - (high - low + 1), 0) // 2)
        low, high = low - extra, high + extra
        if high - low >= 3 * room // 4:  # outliers must not take the room of the merges
            low, high = max(low, -3 * room // 8), min(high, 3 * room // 8)
        size = high - low + 1
        if size < 1:
            raise VadisError(f"a vocabulary of {vocab_size} can't hold integers around {low}: lower the scale.")
        lib = _tokenizers()
        coder = lib.Tokenizer(lib.models.BPE())
        alphabet = [chr(FIRST_CHARACTER + i) for i in range(size)]
        trainer = lib.trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=[], initial_alphabet=alphabet,
            show_progress=False,
        )  # fmt: skip
        inside = (np.clip(c.astype(np.int64), low, high) - low + FIRST_CHARACTER for c in kept)
        texts = (_text(row) for c in inside for row in _rows(c, row_width))
        coder.train_from_iterator(texts, trainer)
        known = {name: i for i, name in enumerate(alphabet)}
        merges = []
        for a, b in json.loads(coder.to_str())["model"]["merges"]:
            if a + b not in known:  # a second way to the same integers would make ids ambiguous
                known[a + b] = len(known)
                merges.append((known[a], known[b]))
        return cls(low, high, np.array(merges, dtype=np.int32).reshape(-1, 2), row_width)

    def encode(self, symbols: np.ndarray) -> tuple[np.ndarray, int]:
        """Ids (int64) of an integer string, and how many of its values had to be clipped."""
        ids, clipped = self.encode_batch([symbols])
        return ids[0], clipped[0]

    def encode_batch(self, clips: Sequence[np.ndarray] | np.ndarray) -> tuple[list[np.ndarray], list[int]]:
        """Ids of many integer strings, (N, n) or a list, and the numbers of clipped values."""
        if isinstance(clips, np.ndarray):
            outside = ((clips < self.low) | (clips > self.high)).sum(axis=1)
            clipped, inside = outside.tolist(), np.clip(clips, self.low, self.high)
        else:
            inside = [np.clip(c, self.low, self.high) for c in clips]
            clipped = [int((a != b).sum()) for a, b in zip(clips, inside, strict=True)]
        shift = FIRST_CHARACTER - self.low
        if not self.row_width:
            made = self._coder.encode_batch_fast([_text(c + shift) for c in inside])
            return [np.array(e.ids, dtype=np.int64) for e in made], clipped
        rows = [[_text(row + shift) for row in _rows(c, self.row_width)] for c in inside]
        made = iter(self._coder.encode_batch_fast([row for clip in rows for row in clip]))
        none = np.zeros(0, dtype=np.int64)
        return [
            np.concatenate([none, *(np.array(next(made).ids) for _ in clip)]).astype(np.int64) for clip in rows
        ], clipped

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The integer string (int64) of ids. Raises VadisError for ids outside the vocabulary."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            bad = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise VadisError(f"token {bad} is outside 0 … {self.vocab_size - 1}.")
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths, dtype=np.int32)
        total = int(ends[-1]) if len(ends) else 0
        return self._symbols[np.arange(total, dtype=np.int32) + np.repeat(self._starts[ids] - ends + lengths, lengths)]

    def known(self, ids: np.ndarray) -> np.ndarray:
        """Which ids exist, (n,) bool."""
        return (ids >= 0) & (ids < self.vocab_size)

    def at_the_end(self, values: np.ndarray) -> bool:
        """Whether some values are the smallest or largest that can be coded, so may have been clipped."""
        return self.high > self.low and bool(((values == self.low) | (values == self.high)).any())

    def save(self, path: Path) -> None:
        """Write the merges as an .npz file; the alphabet is for the caller to keep."""
        with atomic_write(path) as temporary:
            np.savez(temporary, merges=self.merges)

    @classmethod
    def load(cls, path: Path, low: int, high: int, row_width: int, digest: str) -> "IntegerBPE":
        """The codec of an .npz file; raises FileError when it is damaged or not the one that `digest` names."""
        with about(path):
            with Npz(path, MAX_MERGES) as file:
                merges = file["merges"] if "merges" in file else None  # noqa: SIM401 - not a dict
            if merges is None or merges.ndim != 2 or merges.shape[1] != 2 or merges.dtype.kind not in "iu":
                raise FileError("expected an array `merges` of whole numbers (n, 2): save or download it again.")
            if merges.size and (merges.min() < 0 or merges.max() >= 2**31):
                raise FileError("a merge uses an id that can't exist: save or download it again.")
            codec = cls(low, high, merges, row_width)
        if codec.digest != digest:
            raise FileError(f"{path} is not the file that this tokenizer was saved with (its hash differs).")
        return codec


class ByteLevelBPE:
    """The original's codec: value - min_token as a character, byte-level BPE over the text. Faults are kept.

    Args:
        coder: the `tokenizers.Tokenizer`.
        min_token: integer that character 0 stands for.
    """

    kind = "bytelevel"
    row_width = 0

    def __init__(self, coder: Any, min_token: int) -> None:
        self.coder, self.min_token = coder, int(min_token)

    @property
    def vocab_size(self) -> int:
        """V, characters, bytes and merges."""
        return self.coder.get_vocab_size()

    @cached_property
    def digest(self) -> str:
        """sha256 of the tokenizer's JSON and min_token."""
        return hashlib.sha256(f"{self.min_token} {self.coder.to_str()}".encode()).hexdigest()

    @classmethod
    def fit(cls, clips: Iterable[np.ndarray], vocab_size: int = 4096) -> "ByteLevelBPE":
        """Train as the original does; raises VadisError unless the vocabulary is larger than the range of values."""
        lib = _tokenizers()
        kept = [np.asarray(c) for c in clips]
        if not kept:
            raise VadisError("there is nothing to learn merges from: give at least one clip of two frames or more.")
        low, high = min(int(c.min()) for c in kept), max(int(c.max()) for c in kept)
        if vocab_size <= high - low:
            raise VadisError(f"the vocabulary of {vocab_size} must exceed the range of the integers, {high - low}.")
        coder = lib.implementations.ByteLevelBPETokenizer()._tokenizer
        trainer = lib.trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=[],
            initial_alphabet=[chr(i) for i in range(high - low + 1)], max_token_length=512,
        )  # fmt: skip
        codec = cls(coder, low)
        coder.train_from_iterator((codec._characters(c) for c in kept), trainer)
        return codec

    def _characters(self, symbols: np.ndarray) -> str:
        codes = np.asarray(symbols, dtype=np.int64) - self.min_token
        if codes.size and codes.min() < 0:
            raise VadisError(
                f"the value {int(codes.min()) + self.min_token} lies below {self.min_token}, the smallest that this "
                'tokenizer knows: fit it on such clips, or use codec="integer".'
            )
        if ((codes >= SURROGATES[0]) & (codes < SURROGATES[1])).any() or (codes.size and codes.max() > 0x10FFFF):
            raise VadisError('a value is too large for a character: lower the scale, or use codec="integer".')
        return _text(codes)

    def encode(self, symbols: np.ndarray) -> tuple[np.ndarray, int]:
        """Ids (int64) of an integer string; the second value is always 0. Raises VadisError for values that can't be coded."""
        return np.array(self.coder.encode(self._characters(symbols)).ids, dtype=np.int64), 0

    def encode_batch(self, clips: Sequence[np.ndarray] | np.ndarray) -> tuple[list[np.ndarray], list[int]]:
        """Ids of many integer strings, (N, n) or a list."""
        made = self.coder.encode_batch_fast([self._characters(c) for c in clips])
        return [np.array(e.ids, dtype=np.int64) for e in made], [0] * len(clips)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The integer string (int64) of ids; unknown ids are skipped, as the original does."""
        ids = np.asarray(ids, dtype=np.int64)
        text = self.coder.decode(ids[self.known(ids)].tolist(), skip_special_tokens=False)
        return _codes(text) + self.min_token

    def known(self, ids: np.ndarray) -> np.ndarray:
        """Which ids exist, (n,) bool."""
        return (ids >= 0) & (ids < self.vocab_size)

    def save(self, folder: Path, scale: float, count: int, width: int) -> None:
        """Write the original's three files to `folder`."""
        page = {"scale": scale, "min_token": self.min_token, "K": count, "action_dim": width}
        config = {"backend": "tokenizers", "clean_up_tokenization_spaces": False,
                  "model_max_length": 1000000000000000019884624838656, "tokenizer_class": "TokenizersBackend"}  # fmt: skip
        texts = {
            "tokenizer.json": self.coder.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
            "fast_config.json": json.dumps(page, indent=2),
        }
        for name, text in texts.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> tuple["ByteLevelBPE", dict[str, Any]]:
        """The codec of one stream's folder, and its scale, K and action_dim. Raises FileError for damaged files."""
        lib = _tokenizers()
        path = folder / "fast_config.json"
        page = checked(_StreamPage, read_json(path), path)
        text = read_bytes(folder / "tokenizer.json", MAX_TOKENIZER)
        try:
            coder = lib.Tokenizer.from_str(text.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise FileError(f"{folder / 'tokenizer.json'} is damaged ({str(error)[:120]}).") from error
        return cls(coder, page.min_token), {"scale": page.scale, "K": page.K, "action_dim": page.action_dim}


@dataclass(frozen=True)
class _StreamPage:
    """fast_config.json of the original: how the numbers of a stream were made."""

    scale: Annotated[float, Field(gt=0, le=1_000_000)]
    min_token: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    K: Positions
    action_dim: Annotated[int, Field(ge=0, le=65_536)]


Codec = IntegerBPE | ByteLevelBPE


def _rows(symbols: np.ndarray, width: int) -> list[np.ndarray]:
    """The string in rows of `width` symbols; as a whole where `width` is 0."""
    return [symbols] if not width else [symbols[i : i + width] for i in range(0, len(symbols), width)]
