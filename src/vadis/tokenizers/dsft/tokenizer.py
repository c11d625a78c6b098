"""DSFT (MotionVLA): motion as the lowest cosine coefficients of two streams, rounded and byte-pair coded. No network.

    features -> z-score -> Base and Phys columns -> DCT-II along time -> first K rows -> times scale, rounded -> BPE ids

K counts the coefficients of the whole clip, so the same K keeps slower movement of a longer clip; a clip's length T is
part of its code. It is fitted, not trained: merges are learned in seconds. Two ways of coding the integers:

- codec="integer", normalize="zscore" (ours, the default): exact byte-pair coding, values outside the alphabet clipped and
  counted, decoding checked and kept within mean ± 10 std or the range of the fitted clips;
- codec="bytelevel", normalize="none": the original's tokens, number by number, with its faults.

Shapes: B clips, T frames, D features, K coefficients, d columns of a stream.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from vadis.component import MotionTokenizer
from vadis.config import build_config
from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.tokenizers.dsft import sequence
from vadis.tokenizers.dsft.codec import ByteLevelBPE, Codec, IntegerBPE
from vadis.tokenizers.dsft.sequence import STREAMS, Encoded, Finding, Issue, MalformedMotion, Parsed
from vadis.tokenizers.dsft.split import SplitSpec, split_for
from vadis.tokenizers.dsft.transform import (
    CLAMP,
    RANGE_MARGIN,
    DSFTConfig,
    DSFTTransform,
    clip_statistics,
    fps_of,
    whole_frames,
)

OnError = Literal["strict", "repair", "zero", "original"]


class DSFTTokenizer(DSFTTransform, MotionTokenizer):
    """Features `(T, D)` in physical units to the ids of two streams and back. Made by `fit`, `load` or an import.

    Args:
        config: what to do.
        codecs: the fitted codecs of Base and Phys.
        mean, std: `(D,)` normalisation and clamp; None where nothing is known (then nothing is clamped).
        reach: `(D,)` how far from the mean decoded values may lie; by default 10 std.
        clips: how many clips it was fitted on.
    """

    config_class: ClassVar[type] = DSFTConfig
    own_files = True
    two_streams = True
    frames_per_token: ClassVar[None] = None
    """A token stands for no span of time: it says something about the whole clip."""

    def __init__(
        self,
        config: DSFTConfig,
        codecs: tuple[Codec, Codec],
        mean: Tensor | np.ndarray | None = None,
        std: Tensor | np.ndarray | None = None,
        reach: Tensor | np.ndarray | None = None,
        clips: int = 0,
    ) -> None:
        super().__init__(config, mean, std, reach)
        self.codecs, self.clips = codecs, clips

    # ---- making one

    @classmethod
    def fit(
        cls,
        clips: Iterable[Tensor | np.ndarray | Motion],
        representation: str,
        K: tuple[int, int] = (5, 25),
        scale: tuple[float, float] = (10.0, 10.0),
        vocab: tuple[int, int] = (4096, 4096),
        codec: Literal["integer", "bytelevel"] = "integer",
        normalize: Literal["zscore", "none"] | None = None,
        *,
        split: SplitSpec | str | None = None,
        fps: float | None = None,
        mean: Tensor | np.ndarray | None = None,
        std: Tensor | np.ndarray | None = None,
        root_precision: float | None = None,
        row_bounded: bool = False,
        window: int | None = None,
    ) -> Self:
        """Learn statistics (unless given) and merges from clips `(T, D)`.

        `normalize` is by default "zscore" for integers and "none" for bytes, `root_precision` 3 and 1: steps three times
        finer halve how far the decoded body drifts and cost next to nothing. `fps` is that of the representation. With `window` clips are cut into pieces of that many frames first. The clips are gone through twice, so an iterator is
        read into memory. Raises VadisError for no clips, non-finite values or a vocabulary too small for the integers,
        ShapeError for clips of another width.
        """
        if max(vocab) > sequence.RESERVED:
            raise VadisError(
                f"a stream has at most {sequence.RESERVED} ids (names and numbers end there); got {vocab}."
            )
        fields = {"representation": representation, "fps": fps or fps_of(representation), "K": K, "scale": scale,
                  "split": split_for(representation, split), "codec": codec, "row_bounded": row_bounded, "window": window,
                  "normalize": normalize or ("zscore" if codec == "integer" else "none"),
                  "root_precision": root_precision or (3.0 if codec == "integer" and normalize != "none" else 1.0)}  # fmt: skip
        config = build_config(DSFTConfig, fields)
        if not isinstance(clips, Sequence):
            clips = list(clips)
        blank = DSFTTransform(config, np.zeros(config.feature_dim), np.ones(config.feature_dim))
        found = clip_statistics(representation, (blank._array(clip) for clip in clips))
        mean, std = found[0] if mean is None else mean, found[1] if std is None else std
        blank.set_statistics(mean, std)
        reach = np.maximum(CLAMP * blank.std.numpy(), RANGE_MARGIN * (found[2] + np.abs(found[0] - blank.mean.numpy())))
        integers: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for clip in clips:
            for x in blank.windows(clip):
                if len(x) >= 2:
                    for kept, rows in zip(integers, blank._integers(x[None]), strict=True):
                        kept.append(rows.astype(np.int32 if np.abs(rows).max(initial=0) > 32_000 else np.int16).ravel())
        if not integers[0]:
            raise VadisError("there is nothing to fit on: give at least one clip of two frames or more.")
        made = []
        for kept, size, columns in zip(integers, vocab, (config.split.base, config.split.phys), strict=True):
            if not len(columns):
                made.append(IntegerBPE(0, 0, np.zeros((0, 2))))
            elif codec == "integer":
                made.append(IntegerBPE.fit(kept, size, row_width=len(columns) if row_bounded else 0))
            else:
                made.append(ByteLevelBPE.fit(kept, size))
        return cls(config, (made[0], made[1]), mean, std, reach, len(integers[0]))

    # ---- facts

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """Ids of Base and of Phys."""
        return self.codecs[0].vocab_size, self.codecs[1].vocab_size

    @property
    def vocab_size(self) -> int:
        """Ids of both streams together."""
        return sum(self.vocab_sizes)

    @property
    def hash(self) -> str:
        """sha256 of all that decides which tokens a clip gets."""
        from vadis.tokenizers.dsft.files import digest

        return digest(self)

    # ---- coding

    def encode(
        self,
        features: Tensor | np.ndarray | Motion | Sequence[Any],
        *,
        fps: float | None = None,
        representation: str | None = None,
    ) -> Any:
        """The tokens of a clip `(T, D)`, an `Encoded`; of a list of clips or `(B, T, D)` a list of them.

        Raises ShapeError for another width or no frames, VadisError for non-finite values, another frame rate or
        representation (where said), and with the byte codec for values below its smallest.
        """
        if representation not in (None, self.representation):
            raise VadisError(
                f"the features are {representation}, this tokenizer needs {self.representation}: convert with "
                f"`vadis convert --to {self.representation}`."
            )
        if fps is not None and abs(fps - self.fps) > 1e-3:
            raise VadisError(
                f"the features have {fps:g} frames per second, this tokenizer needs {self.fps:g}: resample them."
            )
        if isinstance(features, Motion) or (not isinstance(features, Sequence) and features.ndim == 2):
            return self.encode_batch([features])[0]
        return self.encode_batch(features)

    def encode_batch(self, clips: Sequence[Any] | Tensor | np.ndarray) -> list[Encoded]:
        """The tokens of each clip `(T, D)` of a list or of `(B, T, D)`, as if it were alone; equal lengths go together."""
        arrays = [self._array(clip) for clip in clips]
        if not arrays:
            raise ShapeError("the batch is empty: give at least one clip.")
        result: list[Encoded | None] = [None] * len(arrays)
        total = 0
        for T, rows in _by_length([len(x) for x in arrays]):
            streams = self._integers(np.stack([arrays[i] for i in rows]) if len(rows) > 1 else arrays[rows[0]][None])
            coded = [
                codec.encode_batch(v.reshape(len(rows), -1)) for codec, v in zip(self.codecs, streams, strict=True)
            ]
            (base, cut), (phys, cut_too) = coded
            total += len(rows) * sum(k * d for k, d in self.integer_shapes(T))
            for i, b, p, n, m in zip(rows, base, phys, cut, cut_too, strict=True):
                result[i] = Encoded(torch.from_numpy(b), torch.from_numpy(p), T, n + m)
        made = [encoded for encoded in result if encoded is not None]
        clipped = sum(encoded.clipped for encoded in made)
        if clipped > 0.01 * total:
            warnings.warn(
                f"{100 * clipped / total:.1f} % of the integers lie outside the alphabet and were clipped: these clips differ "
                "from those that the tokenizer was fitted on.",
                stacklevel=2,
            )
        return made

    def decode(
        self,
        base_ids: Encoded | Parsed | Sequence[Encoded] | Tensor | np.ndarray | Sequence[int],
        phys_ids: Tensor | np.ndarray | Sequence[int] | None = None,
        T: int | None = None,
        *,
        on_error: OnError | None = None,
    ) -> Any:
        """Features `(T, D)` float32 in physical units of the ids of both streams, an `Encoded` or a `Parsed`; lists give lists.

        `on_error` for ids that are not a whole motion: "strict" raises MalformedMotion, "repair" drops what does not exist,
        cuts what is too much and fills with 0 what is missing, "zero" also reduces a stream that lacks more than 10 % to its
        mean pose, "original" (the default of the byte codec) fills with the smallest integer as the original does.
        Raises VadisError without T: a clip's length can't be guessed.
        """
        how = on_error or ("strict" if self.config.codec == "integer" else "original")
        if isinstance(base_ids, Sequence) and base_ids and isinstance(base_ids[0], Encoded):
            return self.decode_batch(base_ids, on_error=how)  # type: ignore[arg-type]
        issues: tuple[Finding, ...] = ()
        if isinstance(base_ids, Encoded | Parsed):
            encoded = base_ids
            T = encoded.T if T is None else T
            if isinstance(encoded, Parsed):
                base_ids, phys_ids, issues = encoded.base, encoded.phys, self._serious(encoded.issues)
            else:
                base_ids, phys_ids = encoded.base_ids, encoded.phys_ids
        if phys_ids is None:
            raise VadisError("decode needs the ids of both streams: decode(base_ids, phys_ids, T) or decode(encoded).")
        if T is None:
            raise VadisError("decode needs T, the number of frames: give it, or use sequences with a length token.")
        T = whole_frames(T)
        integers, findings = [], [i for i in issues if i.issue is not Issue.WRONG_LENGTH]
        for stream, ids in enumerate((base_ids, phys_ids)):
            values, found = self._stream(stream, _ids(ids), T, how)
            integers.append(values[None])
            findings += found
        if findings and how == "strict":
            raise MalformedMotion(dict.fromkeys(findings))
        return torch.from_numpy(self._features(integers, T)[0])

    def decode_batch(self, clips: Sequence[Encoded], *, on_error: OnError | None = None) -> list[Tensor]:
        """Features `(T, D)` of each clip; equal lengths are decoded together."""
        result: list[Tensor] = [torch.empty(0)] * len(clips)
        for T, rows in _by_length([clip.T for clip in clips]):
            integers = [self._together(s, [clips[i] for i in rows], T) for s in range(2)]
            base, phys = integers
            if base is None or phys is None:  # something is wrong with one of them, or the codec can't tell
                for i in rows:
                    result[i] = self.decode(clips[i], on_error=on_error)
                continue
            for i, x in zip(rows, torch.from_numpy(self._features((base, phys), T)), strict=True):
                result[i] = x
        return result

    def _together(self, stream: int, clips: Sequence[Encoded], T: int) -> np.ndarray | None:
        """Integers `(B, K, d)` of one stream; None unless every clip is whole."""
        codec, (k, d) = self.codecs[stream], self.integer_shapes(T)[stream]
        if not isinstance(codec, IntegerBPE):
            return None
        parts = [(clip.phys_ids if stream else clip.base_ids).numpy() for clip in clips]
        ids = np.concatenate(parts)
        if ids.size and not 0 <= ids.min() <= ids.max() < codec.vocab_size:
            return None
        ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        symbols = np.concatenate([[0], np.cumsum(codec.lengths[ids])])[ends]
        if not np.array_equal(np.diff(symbols), np.full(len(parts), k * d)):
            return None
        return codec.decode(ids).reshape(len(parts), k, d)

    def _stream(self, stream: int, ids: np.ndarray, T: int, how: str) -> tuple[np.ndarray, list[Finding]]:
        """The integers `(K, d)` that the ids of one stream stand for, and what is wrong with them."""
        codec, (k, d) = self.codecs[stream], self.integer_shapes(T)[stream]
        known = codec.known(ids)
        values = codec.decode(ids[known])
        found = [] if known.all() else [Finding(Issue.FOREIGN_TOKEN, STREAMS[stream])]
        if len(values) != k * d:
            found.append(Finding(Issue.WRONG_LENGTH, STREAMS[stream], len(values), k * d))
        missing = max(k * d - len(values), 0)
        fill = 0
        if isinstance(codec, ByteLevelBPE):
            broken = values == 0xFFFD + codec.min_token
            if how == "original":
                fill = codec.min_token
            elif broken.any():
                found.append(Finding(Issue.CLIPPED, STREAMS[stream]))
                values = np.where(broken, 0, values)
                missing += int(broken.sum())
        values = np.concatenate([values[: k * d], np.full(max(k * d - len(values), 0), fill)]).reshape(k, d)
        if how == "zero" and missing > 0.1 * k * d:
            values[1:] = 0
        return values, found

    # ---- sequences

    def to_sequence(self, encoded: Encoded, length_token: bool = False) -> np.ndarray:
        """The clip as one int64 sequence of MotionVLA's numbers; with `length_token` it says T itself."""
        return sequence.to_numbers(encoded, length_token)

    def to_text(self, encoded: Encoded, length_token: bool = False) -> str:
        """The clip as token names without spaces."""
        return sequence.numbers_to_text(self.to_sequence(encoded, length_token))

    def parse(self, tokens: Any, T: int | None = None) -> Parsed:
        """What a sequence of numbers or a text of names holds and what is wrong with it; never raises on content.

        With T (or a length token) the lengths of the streams are checked too. "clipped" says that a stream holds integers
        at the end of the alphabet, whose true values may have lain beyond.
        """
        numbers = sequence.text_to_numbers(tokens) if isinstance(tokens, str) else tokens
        parsed = sequence.parse(numbers, self.vocab_sizes)
        T = parsed.T if T is None else T
        issues = list(self._serious(parsed.issues))
        for stream, ids in enumerate((parsed.base, parsed.phys)):
            codec = self.codecs[stream]
            values = codec.decode(ids)
            if isinstance(codec, IntegerBPE) and codec.at_the_end(values):
                issues.append(Finding(Issue.CLIPPED, STREAMS[stream]))
            if T is not None and T > 0:
                k, d = self.integer_shapes(T)[stream]
                if len(values) != k * d:
                    issues.append(Finding(Issue.WRONG_LENGTH, STREAMS[stream], len(values), k * d))
        return Parsed(parsed.base, parsed.phys, T, tuple(issues))

    def _serious(self, issues: Iterable[Finding]) -> tuple[Finding, ...]:
        """Without the emptiness of a stream that has no columns."""
        empty = {Issue.EMPTY_BASE: 0, Issue.EMPTY_PHYS: 1}
        return tuple(i for i in issues if i.issue not in empty or len(self._columns[empty[i.issue]]))

    def from_sequence(self, tokens: Any, T: int | None = None, on_error: OnError = "strict") -> Encoded:
        """The clip that a sequence (or text) holds. Raises VadisError when nothing says T, MalformedMotion when "strict".

        Otherwise it holds whatever is there; `decode` with the same `on_error` makes a motion of it.
        """
        parsed = self.parse(tokens, T)
        if parsed.T is None:
            raise VadisError("this sequence has no length token: give T, the number of frames.")
        issues = [finding for finding in parsed.issues if finding.issue is not Issue.CLIPPED]
        if issues and on_error == "strict":
            raise MalformedMotion(issues)
        return Encoded(torch.from_numpy(parsed.base), torch.from_numpy(parsed.phys), whole_frames(parsed.T))

    from_text = from_sequence

    # ---- the common interface

    def reconstruct(self, features: Tensor | np.ndarray | Sequence[Any]) -> Any:
        """Features through the tokens and back, `(T, D)` or a list; long clips in pieces of `config.window` frames."""
        if isinstance(features, Sequence) or features.ndim == 3:
            made = [self.reconstruct(clip) for clip in features]
            return made if isinstance(features, Sequence) else torch.stack(made)
        return torch.cat(self.decode_batch(self.encode_batch(self.windows(features))))

    def bits(self, features: Tensor | np.ndarray) -> float:
        """Bits of the tokens of a clip `(T, D)`: of each stream tokens times log2 of its ids."""
        return sum(self.bits_of(encoded) for encoded in self.encode_batch(self.windows(features)))

    def bits_of(self, encoded: Encoded) -> float:
        """Bits of the tokens of one coded clip."""
        base, phys = (math.log2(max(size, 1)) for size in self.vocab_sizes)
        return len(encoded.base_ids) * base + len(encoded.phys_ids) * phys

    def report(self, clips: Iterable[Tensor | np.ndarray]) -> dict[str, float]:
        """Rate and error over clips; see `vadis.tokenizers.dsft.report.report`."""
        from vadis.tokenizers.dsft.report import report

        return report(self, clips)

    def state_dict(self) -> dict[str, Tensor]:
        """Statistics and merges as tensors, for listing; `save_pretrained` writes the files."""
        state = {"mean": self.mean, "std": self.std, "reach": self.reach}
        for stream, codec in zip(STREAMS, self.codecs, strict=True):
            if isinstance(codec, IntegerBPE):
                state[f"{stream}.merges"] = torch.from_numpy(codec.merges)
        return state

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer to a folder that `vadis.load` reads; see `vadis.tokenizers.dsft.files`."""
        from vadis.tokenizers.dsft.files import save

        save(self, folder)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "DSFTTokenizer":
        """A saved tokenizer, or the original's folder of `base/` and `phys/`. Raises FileError for damaged ones."""
        from vadis.tokenizers.dsft.files import load

        return load(folder, cls)

    save = save_pretrained
    load = from_folder


def _ids(ids: Any) -> np.ndarray:
    """Ids as int64, refusing anything that is not a row of whole numbers."""
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ShapeError(f"ids must be one row of integers; got {array.dtype} {array.shape}.")
    return array.astype(np.int64)


def _by_length(lengths: Sequence[int], budget: int = 5_000) -> list[tuple[int, list[int]]]:
    """(length, rows) of equal length, at most about `budget` frames together, so that memory stays bounded."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length, []).append(row)
    result = []
    for length, rows in groups.items():
        size = max(1, budget // max(length, 1))
        result += [(length, rows[i : i + size]) for i in range(0, len(rows), size)]
    return result


def from_original(folder: str | Path, **options: Any) -> DSFTTokenizer:
    """The original's folder of `base/` and `phys/`; options as in `vadis.tokenizers.dsft.files.read_original`."""
    from vadis.tokenizers.dsft.files import read_original

    return read_original(folder, DSFTTokenizer, **options)
