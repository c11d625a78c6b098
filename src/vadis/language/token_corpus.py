"""A corpus as motion tokens with what is said of them, without text features: what a language model trains on.

    tokens/tokens.npy     (all steps, G) uint16 (uint32 above 65,536 codes); of DSFT (all ids, 1), Base before Phys
    tokens/index.parquet  a row a segment: clip, frames, where its tokens are, split, source, weight, its sentences
    tokens/texts.parquet  the different sentences
    tokens/tokens.json    facts of the tokenizer and the corpus

A segment is a stretch of a clip that captions speak of (see `vadis.data.encoded_corpus`), or a whole clip without captions. A
folder of `vadis data encode` is read too. Letters: N segments, S token steps, G groups.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field

from vadis.data.corpus import Corpus
from vadis.data.encoded_corpus import ENCODED_COLUMNS, EncodedPage
from vadis.data.parts import Parts
from vadis.data.segments import (
    ROWS,
    ProgressBars,
    Segment,
    features_of,
    find_segments,
    plain_values,
    work_key,
    write_tokens,
)
from vadis.data.tables import check_spans, read_array, read_lists, read_page, read_table
from vadis.errors import FileError, ModelError, VadisError
from vadis.files import apart, atomic_folder
from vadis.language.vocabulary import MotionTokenizerFacts
from vadis.records import checked, read_lines
from vadis.tokenizers.dsft.sequence import LENGTH_STEP, Encoded

if TYPE_CHECKING:
    from vadis.language.vocabulary import MotionVocabulary

VERSION = 1


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: Any,
    out: str | Path,
    *,
    min_seconds: float = 0.4,
    max_seconds: float | None = None,
    captionless: bool = True,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> "TokenCorpus":
    """Tokenise every segment of a corpus once; the folder `out` appears, or is replaced, when all is done.

    Interrupted work is taken up again by the same call.

    Args:
        tokenizer: any discrete tokenizer of the corpus' representation and frame rate, DSFT too. For DSFT segments are cut
            to a multiple of 4 frames, which a length token can say.
        min_seconds, max_seconds: segments outside are left out and counted in `tokens.json`.
        captionless: take clips that nothing is said of too.
        about: free facts for `tokens.json`.

    Raises VadisError when the tokenizer does not fit the corpus or nothing is left.
    """
    apart(out, corpus.path)
    if tokenizer.continuous:
        raise ModelError(f"{type(tokenizer).__name__} makes latents, not tokens: use a discrete tokenizer.")
    if tokenizer.representation != corpus.representation or tokenizer.fps != corpus.fps:
        raise VadisError(
            f"the tokenizer reads {tokenizer.representation} at {tokenizer.fps:g} fps; the corpus {corpus.path} holds "
            f"{corpus.representation} at {corpus.fps:g} fps. Build the corpus for this tokenizer."
        )
    streams = tokenizer.two_streams
    unit = LENGTH_STEP if streams else int(tokenizer.frames_per_token)
    least = max(unit, 8, round(min_seconds * corpus.fps))
    most = round(max_seconds * corpus.fps) if max_seconds else None
    texts, segments, left_out = find_segments(corpus, least, most, captionless)
    if not segments:
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "it has no clips"
        raise VadisError(f"nothing of {corpus.path} can be tokenised: {reasons}.")
    work = work_key(corpus, segments, texts, MotionTokenizerFacts.of(tokenizer))
    with atomic_folder(out, work, "tokens.json") as folder, ProgressBars(progress) as show:
        if streams:
            base, steps = _write_streams(corpus, tokenizer, segments, folder, show)
        else:
            steps = [s.frames // unit for s in segments]
            base = [0] * len(steps)
            firsts = np.concatenate([[0], np.cumsum(steps)])
            write_tokens(corpus, tokenizer, segments, steps, firsts, folder, show)
        shares = Counter(s.row for s in segments)
        columns = {name: corpus.column(name) for name in ("clip", "split", "group", "source", "licence", "weight")}
        rows = [
            {name: values[s.row] for name, values in columns.items()}
            | {"weight": columns["weight"][s.row] / shares[s.row], "first_frame": s.first, "frames": s.frames}
            | {"steps": n, "base": b, "texts": list(s.texts), "kinds": list(s.kinds)}
            for s, n, b in zip(segments, steps, base, strict=True)
        ]
        page = {"corpus": {k: corpus.about.get(k) for k in ("clips", "frames", "about")}, "left_out": left_out}
        _write_pages(folder, tokenizer, rows, texts, page | {"about": dict(about or {})})
    return TokenCorpus.open(out)


def write_streams(out: str | Path, tokenizer: Any, clips: Iterable[Mapping[str, Any]], **about: Any) -> "TokenCorpus":
    """A token corpus of DSFT clips that are tokens already.

    `clips` have `encoded` and `texts` (pairs of kind and sentence), and where known `clip`, `split`, `group`, `source`,
    `licence`, `weight`. An `encoded.T` of 0 says that the length isn't known. Raises VadisError for ids that the tokenizer
    does not have, or no clips.
    """
    ids: dict[str, int] = {}
    rows, pieces = [], []
    sizes = tokenizer.vocab_sizes
    for i, clip in enumerate(clips):
        encoded: Encoded = clip["encoded"]
        for stream, size in zip((encoded.base_ids, encoded.phys_ids), sizes, strict=True):
            if len(stream) and not 0 <= int(stream.min()) <= int(stream.max()) < size:
                raise VadisError(f"clip {i + 1} has an id beyond the tokenizer's {size}: it is another tokenizer's.")
        defaults = {"clip": f"{i:06d}", "split": "train", "group": clip.get("clip", f"{i:06d}"), "source": "rows"}
        defaults |= {"licence": "unknown", "weight": 1.0}
        rows.append(
            {name: clip.get(name, value) for name, value in defaults.items()}
            | {"first_frame": 0, "frames": encoded.T, "steps": encoded.num_tokens, "base": len(encoded.base_ids)}
            | {"texts": [ids.setdefault(text, len(ids)) for _, text in clip["texts"]]}
            | {"kinds": [kind for kind, _ in clip["texts"]]}
        )
        pieces.append(_stream_row(encoded))
    if not rows:
        raise VadisError("there are no clips to write: check what the rows were read from.")
    with atomic_folder(out, ours="tokens.json") as folder:
        np.save(folder / "tokens.npy", np.concatenate(pieces)[:, None])
        _write_pages(folder, tokenizer, rows, list(ids), {"about": about})
    return TokenCorpus.open(out)


def _stream_row(encoded: Encoded) -> np.ndarray:
    return torch.cat([encoded.base_ids, encoded.phys_ids]).numpy().astype(np.uint16)


def _write_streams(
    corpus: Corpus, tokenizer: Any, segments: list[Segment], folder: Path, show: Any
) -> tuple[list[int], list[int]]:
    """DSFT ids of every segment, written in order; returns how many are Base, and how many in all, of each."""
    from dataclasses import replace

    for i, segment in enumerate(segments):
        segments[i] = replace(segment, frames=segment.frames // LENGTH_STEP * LENGTH_STEP)
    base, count, pieces = [], [], []

    def make(part: list[Segment]) -> list[np.ndarray]:
        made = tokenizer.encode_batch([features_of(corpus, s) for s in part])
        return [np.array([len(e.base_ids) for e in made]), *map(_stream_row, made)]

    with Parts(folder, "tokens") as parts:
        for start in show(range(0, len(segments), ROWS), "motion tokens"):
            bases, *rows = parts.take(lambda start=start: make(segments[start : start + ROWS]))
            base += bases.tolist()
            count += map(len, rows)
            pieces += rows
    np.save(folder / "tokens.npy", np.concatenate(pieces)[:, None])
    return base, count


def _write_pages(
    folder: Path, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], more: Mapping[str, Any]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    firsts = np.concatenate([[0], np.cumsum([row["steps"] for row in rows])])
    rows = [row | {"first": int(first)} for row, first in zip(rows, firsts, strict=False)]
    lists = [("texts", pa.list_(pa.int32())), ("kinds", pa.list_(pa.string()))]
    index = pa.Table.from_pylist(rows)
    for name, kind in lists:  # columns of empty lists only have no type of their own
        index = index.set_column(index.column_names.index(name), name, index.column(name).cast(kind))
    pq.write_table(index, folder / "index.parquet", compression="zstd")
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "texts.parquet", compression="zstd")
    page = {
        "format": "vadis-tokens",
        "version": VERSION,
        "streams": tokenizer.two_streams,
        "grouped": tokenizer.grouped,
        "parts": list(tokenizer.parts),
        "tokenizer": {"facts": asdict(MotionTokenizerFacts.of(tokenizer)), "config": plain_values(tokenizer.config)},
        "segments": len(rows),
        "steps": int(firsts[-1]),
        "sentences": len(texts),
        **more,
    }
    text = json.dumps(page, indent=1, ensure_ascii=False, default=str)
    (folder / "tokens.json").write_text(text + "\n", encoding="utf-8")


_AGAIN = "Tokenise the corpus again."
_COLUMNS: dict[str, Any] = {name: kind for name, kind in ENCODED_COLUMNS.items() if name != "row"} | {"base": "whole"}


@dataclass(frozen=True)
class _Tokenizer:
    facts: MotionTokenizerFacts
    config: dict[str, Any]


@dataclass(frozen=True)
class _Page:
    """What must stand in `tokens.json`."""

    streams: bool
    grouped: bool
    parts: list[str]
    tokenizer: _Tokenizer
    segments: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    sentences: Annotated[int, Field(ge=0)]


class TokenCorpus:
    """Tokenised segments opened for reading; made by `TokenCorpus.open`. Subsets share the mapped array.

    `frames` and `steps` (N,) are lengths (of DSFT: frames, ids of both streams), `weights` (N,) shares of a draw.
    """

    def __init__(self, path: Path, about: dict[str, Any], index: Any, texts: Any, array: np.ndarray) -> None:
        self.path, self.about, self._index, self._texts, self._array = path, about, index, texts, array
        self.facts: MotionTokenizerFacts = MotionTokenizerFacts(**about["tokenizer"]["facts"])
        self.streams: bool = about["streams"]
        """DSFT's two streams, not steps."""
        self.parts: tuple[str, ...] = tuple(about["parts"])
        """Names of the columns, where the tokenizer codes each part of the body by itself."""
        self.first, self.steps, self.frames, self.weights, self._base = (
            index.column(name).to_numpy() for name in ("first", "steps", "frames", "weight", "base")
        )
        self._said, self._kinds = read_lists(path / "index.parquet", index, "texts", "kinds", len(texts), _AGAIN)

    @classmethod
    def open(cls, path: str | Path) -> "TokenCorpus":
        """Open a folder of `tokenize_corpus` or of `vadis data encode`.

        Raises FileError when it is missing, damaged or of another version.
        """
        path = Path(path)
        if (path / "tokens.json").is_file():
            about = read_page(path / "tokens.json", _Page, "vadis-tokens", VERSION, _AGAIN)
            index = read_table(path / "index.parquet", _COLUMNS, about["segments"], _AGAIN)
        elif (path / "encoded.json").is_file():
            about = read_page(path / "encoded.json", EncodedPage, "vadis-encoded", 1, _AGAIN)
            index = read_table(path / "index.parquet", ENCODED_COLUMNS, about["segments"], _AGAIN)
            about, index = _from_encoded(about, index, path)
        else:
            raise FileError(f"no tokenised corpus at {path} (no tokens.json there). Make one with `vadis data tokens`.")
        texts = read_table(path / "texts.parquet", {"text": "text"}, about["sentences"], _AGAIN)
        array = read_array(path / "tokens.npy", "u", (about["steps"], None), _AGAIN)
        corpus = cls(path, about, index, texts, array)
        check_spans(path / "index.parquet", "tokens", corpus.first, corpus.steps, len(array), _AGAIN)
        if (corpus._base > corpus.steps).any() or (corpus.weights < 0).any() or not array.shape[1]:
            raise FileError(f"{path / 'index.parquet'}: a part longer than its segment, or a weight below 0. {_AGAIN}")
        return corpus

    def __len__(self) -> int:
        return len(self.steps)

    def column(self, name: str) -> list[Any]:
        """One column of the index: clip, split, group, source, licence…"""
        return self._index.column(name).to_pylist()

    def value(self, name: str, row: int) -> Any:
        """One cell of the index."""
        return self._index.column(name)[row].as_py()

    def tokens(self, row: int) -> Any:
        """The tokens of a segment: (S,) or (S, G) int64, or of DSFT an `Encoded`."""
        first = int(self.first[row])
        made = torch.from_numpy(self._array[first : first + int(self.steps[row])].astype(np.int64))
        if self.streams:
            base = int(self._base[row])
            return Encoded(made[:base, 0], made[base:, 0], int(self.frames[row]))
        return made if self.about["grouped"] else made[:, 0]

    def sentences(self, row: int) -> list[tuple[str, str]]:
        """(kind, sentence) of all that is said of a segment."""
        column = self._texts.column("text")
        return [(kind, column[i].as_py()) for kind, i in zip(self._kinds[row], self._said[row], strict=True)]

    def kinds(self, row: int) -> list[str]:
        """The kinds of what is said of a segment, without reading it."""
        return self._kinds[row]

    def take(self, keep: np.ndarray | Sequence[bool]) -> "TokenCorpus":
        """The segments where `keep` (N,) is true. Raises VadisError when there is none."""
        mask = np.asarray(keep, dtype=bool)
        if not mask.any():
            raise VadisError(f"no segment of {self.path} is left: choose another split or other sources.")
        return TokenCorpus(self.path, self.about, self._index.filter(mask), self._texts, self._array)

    def subset(
        self, split: str | None = None, *, only: Collection[str] | None = None, without: Collection[str] = ()
    ) -> "TokenCorpus":
        """The segments of a split whose source is among `only` and not in `without`. Raises VadisError for none."""
        keep = np.ones(len(self), dtype=bool)
        if split is not None:
            keep &= np.array(self.column("split"), dtype=object) == split
            if not keep.any():
                there = ", ".join(sorted(set(self.column("split"))))
                raise VadisError(f"no segment with split {split!r} in {self.path}. Splits: {there}.")
        if only is not None or without:
            sources = self.column("source")
            keep &= np.array([(only is None or s in only) and s not in without for s in sources], dtype=bool)
        return self.take(keep)

    def check(self, vocabulary: "MotionVocabulary") -> None:
        """Raise ModelError unless a language model's vocabulary is that of the tokenizer which made these tokens."""
        own, other = self.facts, vocabulary.tokenizer
        if own.sha256 != other.sha256:
            raise ModelError(
                f"the tokens at {self.path} were made by another tokenizer ({own.type}, {own.sha256[:12]}) than the model's "
                f"({other.type}, {other.sha256[:12]}): tokenise the corpus with the model's."
            )


def _from_encoded(about: dict[str, Any], index: Any, path: Path) -> tuple[dict[str, Any], Any]:
    """Page and index of an encoded corpus as those of a token corpus."""
    import pyarrow as pa

    tokenizer = about["tokenizer"]
    config, where = tokenizer["config"], f"{path / 'encoded.json'}: tokenizer.config"
    facts = {name: about[name] for name in ("representation", "fps", "frames_per_token")}
    facts |= {"type": checked(str, config.get("type"), f"{where}.type"), "sha256": tokenizer["sha256"]}
    parts: tuple[str, ...] = ()
    if facts["type"] == "lfq2d":
        from vadis.tokenizers.parts import part_columns

        try:
            parts = tuple(part_columns(facts["representation"], checked(str, config.get("parts"), f"{where}.parts")))
        except VadisError as error:
            raise FileError(f"{where}: {error}") from None
    page = about | {"streams": False, "grouped": about["groups"] > 1, "parts": parts}
    page["tokenizer"] = {"facts": facts, "config": tokenizer["config"]}
    return page, index.append_column("base", pa.array(np.zeros(len(index), dtype=np.int64)))


def source_names(path: str | Path) -> frozenset[str]:
    """Names of sources from a text file, one a line; empty lines and those that begin with # are passed over.

    Raises FileError for a file that is missing, no text, or without names.
    """
    if not os.path.isfile(path):
        raise FileError(f"can't read the list of sources {path}: there is no such file. Write one name per line.")
    names = set()
    for number, line in read_lines(path):
        try:
            name = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise FileError(f"can't read the list of sources {path}: line {number} is not UTF-8 text.") from None
        if not name.startswith("#"):
            names.add(name)
    if not names:
        raise FileError(f"the list of sources {path} names none. Write one name per line.")
    return frozenset(names)
