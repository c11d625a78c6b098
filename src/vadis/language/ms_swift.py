"""Training rows as MotionVLA and ms-swift have them, in and out: JSON lines of chats, and the list of token names.

    {"messages": [{"role": "user", "content": "Generate motion for: TEXT"},
                  {"role": "assistant", "content": "<mot_bos><mot_b_0012>…<mot_sep><mot_p_0003>…<mot_eos>"}]}

With an image the user's content is a list of an image and a text. Ours may add a line "Duration: x.x s" to the text. Files
are read and written line by line, and nothing that is read is believed: a line that is no such row is an error that says
which line it is.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from vadis.errors import FileError, VadisError
from vadis.files import atomic_write, writing
from vadis.language.token_corpus import TokenCorpus, write_streams
from vadis.locks import only_run
from vadis.places import inside
from vadis.records import parse_json, read_bytes
from vadis.tokenizers.dsft.sequence import (
    LENGTH_STEP,
    RESERVED,
    Encoded,
    Issue,
    chat_row,
    numbers_to_text,
    parse,
    split_rows,
    text_to_numbers,
    to_numbers,
    token_names,
)

REQUEST = "Generate motion for: "
MAX_LINE = 4_000_000
"""Bytes of a row; a motion takes about 15 bytes a token."""
MAX_LIST = 1 << 30
"""Bytes of a list of a data set."""
NAMES = "motion_tokens.txt"
_DURATION = re.compile(r"\nDuration: (\d{1,6}(?:\.\d{1,3})?) s\Z")


@dataclass(frozen=True, eq=False)
class SwiftRow:
    """One row.

    Attributes:
        text: what is asked for, without the words around it.
        encoded: the motion; `T` is 0 where the row doesn't say how long it is.
        image: path of the picture.
        seconds: what the line about the duration says.
    """

    text: str
    encoded: Encoded
    image: str | None = None
    seconds: float | None = None

    def page(self, length_token: bool = False) -> dict[str, Any]:
        """The row as it is written."""
        tokens = numbers_to_text(to_numbers(self.encoded, length_token))
        return chat_row(self.text, tokens, self.image, self.seconds)


# ---- rows


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as they come, a JSON object a line, UTF-8 and not escaped; returns how many.

    Raises VadisError for a text that no UTF-8 file can hold.
    """
    count = 0
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            _write(file, row, count + 1)
            count += 1
    return count


def _write(file: Any, row: Mapping[str, Any], number: int) -> None:
    try:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except UnicodeEncodeError as error:
        raise VadisError(f"row {number} holds half a character (a lone surrogate): mend its text.") from error


def read_rows(
    path: str | Path,
    *,
    fps: float | None = None,
    image_root: str | Path | None = None,
    vocab_sizes: tuple[int, int] = (RESERVED, RESERVED),
) -> Iterator[SwiftRow]:
    """The rows of a file, one at a time.

    Args:
        fps: makes frames of a line about the duration.
        image_root: images are said to lie in this folder, by the last part of their paths.
        vocab_sizes: ids of the tokenizer's streams; names beyond are refused.

    Raises FileError with the number of the line for a line that is no JSON, no row of this kind, or whose motion is not
    whole.
    """
    path = Path(path)
    for number, line in _lines(path):
        where = f"{path.name}, line {number}"
        page = parse_json(line, where)
        try:
            yield _row(page, fps, image_root, vocab_sizes)
        except VadisError as error:
            raise FileError(f"{where}: {str(error).rstrip('.')}. Mend or remove the line.") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that aren't blank."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}.") from error
    with file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise FileError(f"{path.name}, line {number}: longer than {MAX_LINE:,} bytes, which no row is.")
            if line.strip():
                yield number, line


def _row(page: Any, fps: float | None, image_root: str | Path | None, vocab_sizes: tuple[int, int]) -> SwiftRow:
    messages = page.get("messages") if isinstance(page, dict) else None
    roles = [m.get("role") if isinstance(m, dict) else None for m in messages] if isinstance(messages, list) else None
    if not isinstance(messages, list) or roles != ["user", "assistant"]:
        raise VadisError("expected {\"messages\": [a user's, an assistant's]}")
    text, image = _question(messages[0].get("content"))
    if not text.startswith(REQUEST):
        raise VadisError(f"the user's text does not begin with {REQUEST!r}")
    text, seconds = text.removeprefix(REQUEST), None
    if said := _DURATION.search(text):
        text, seconds = text[: said.start()], float(said[1])
    answer = messages[1].get("content")
    if not isinstance(answer, str):
        raise VadisError("the assistant's content is not text")
    encoded = _motion(answer, vocab_sizes)
    if not encoded.T and seconds and fps:
        encoded = Encoded(encoded.base_ids, encoded.phys_ids, round(seconds * fps))
    if image is not None and image_root is not None:
        image = in_folder(image, image_root)
    return SwiftRow(text, encoded, image, seconds)


def _question(content: Any) -> tuple[str, str | None]:
    """Text and image of a user's content."""
    if isinstance(content, str):
        return content, None
    found: dict[str, str] = {}
    for part in content if isinstance(content, list) else [None]:
        page: dict[str, Any] = part if isinstance(part, dict) else {}
        kind, value = page.get("type"), page.get(str(page.get("type")))
        if kind not in ("image", "text") or kind in found or not isinstance(value, str):
            raise VadisError("the user's content is neither a text nor a list of one image and one text")
        found[kind] = value
    if "text" not in found:
        raise VadisError("the user's content has no text")
    return found["text"], found.get("image")


def _motion(names: str, vocab_sizes: tuple[int, int]) -> Encoded:
    """The motion that token names say. Raises VadisError unless it is whole, apart from an empty stream."""
    parsed = parse(text_to_numbers(names), vocab_sizes)
    serious = [f for f in parsed.issues if f.issue not in (Issue.EMPTY_BASE, Issue.EMPTY_PHYS)]
    if serious:
        raise VadisError(f"the motion is not whole: {', '.join(map(str, serious))}")
    return Encoded(torch.from_numpy(parsed.base), torch.from_numpy(parsed.phys), parsed.T or 0)


def in_folder(image: str, folder: str | Path) -> str:
    """The path of an image that has been moved to `folder`. Raises VadisError for a path that names no file."""
    name = PurePosixPath(image.replace("\\", "/")).name
    if name in ("", ".", ".."):
        raise VadisError(f"{image[:80]!r} names no image file")
    return f"{str(folder).rstrip('/')}/{name}"


# ---- the list of names


def write_names(path: str | Path, lengths: bool = False) -> None:
    """Write `motion_tokens.txt`: one name per line, no newline at the end; with `lengths` our length tokens too."""
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(token_names(lengths)), encoding="utf-8", newline="\n")


def read_names(path: str | Path) -> list[str]:
    """The names of such a list, in its order.

    Raises FileError with the number of the line for a name that is not a motion token or comes twice, and for a list without
    the three markers.
    """
    path, names, known = Path(path), [], set(token_names(lengths=True))
    for number, line in _lines(path):
        try:
            name = line.decode().strip()
        except UnicodeDecodeError:
            name = repr(line[:40])
        if name not in known:
            again = " (it comes a second time)" if name in names else ""
            raise FileError(f"{path.name}, line {number}: {name[:60]!r} is not a motion token{again}. Write it again.")
        known.remove(name)
        names.append(name)
    if lacking := known & {"<mot_bos>", "<mot_sep>", "<mot_eos>"}:
        raise FileError(f"{path.name} lacks {min(lacking)}: it is not a list of motion tokens. Write it again.")
    return names


# ---- whole data sets


@dataclass(frozen=True)
class Written:
    """How many rows were written, and why others were dropped."""

    train: int
    val: int
    dropped: dict[str, int]


def export_list(
    listed: str | Path, out: str | Path, *, root: str | Path = ".", image_root: str | Path | None = None,
    share: float = 0.9, seed: int = 42, tokenizer: Any = None,
) -> Written:  # fmt: skip
    """Rows of a data set as MotionVLA lists it: a JSON array of {id, text, motion_path, image_path?}.

    Motions are tokenised clips (.pt of the original, .npz of ours) below `root`. The list is shuffled with Python's
    generator first and cut after `int(n * share)`; what has no readable motion or no text is dropped and counted. Writes
    `train.jsonl`, `val.jsonl` and `motion_tokens.txt` into `out`. Raises FileError for a list that is none.
    """
    entries = parse_json(read_bytes(listed, MAX_LIST), f"the list {listed}")
    if not isinstance(entries, list):
        raise FileError(f"{listed} holds a {type(entries).__name__}; expected a list of {{id, text, motion_path}}.")
    parts = zip(("train", "val"), split_rows(entries, share, seed), strict=True)

    def rows(dropped: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for split, entries in parts:
            for entry in entries:
                try:
                    yield split, _listed_row(entry, Path(root), image_root, tokenizer).page()
                except VadisError:
                    dropped["no text, or no readable motion"] += 1

    return _write_set(out, rows)


def _listed_row(entry: Any, root: Path, image_root: str | Path | None, tokenizer: Any) -> SwiftRow:
    from vadis.tokenizers.dsft.files import load_tokens

    text, motion = (entry.get(name) if isinstance(entry, dict) else None for name in ("text", "motion_path"))
    image = entry.get("image_path") if isinstance(entry, dict) else None
    if not isinstance(text, str) or not text.strip() or not isinstance(motion, str):
        raise VadisError("the entry has no text or no motion_path")
    encoded = load_tokens(inside(root, motion, "motion_path"), tokenizer)
    if isinstance(image, str) and image:
        return SwiftRow(text, encoded, in_folder(image, image_root) if image_root is not None else image)
    return SwiftRow(text, encoded)


def export_corpus(
    corpus: TokenCorpus, out: str | Path, *, every_caption: bool = False, durations: bool = True,
    own_splits: bool = False, share: float = 0.9, seed: int = 42,
) -> Written:  # fmt: skip
    """Rows of a corpus of DSFT tokens, into the same three files as `export_list`.

    A clip gives a row with its first sentence about the whole body, or with `every_caption` one with each; clips without
    are dropped. `durations` adds how long it is, without which a motion can't be decoded. `own_splits` keeps the corpus'
    splits (all but "train" are `val`) instead of shuffling. Raises VadisError for tokens that aren't DSFT's.
    """
    if not corpus.streams:
        raise VadisError(f"the tokens at {corpus.path} are not DSFT's; rows of MotionVLA can hold no others.")
    order = list(range(len(corpus)))
    if own_splits:
        splits = ["train" if split == "train" else "val" for split in corpus.column("split")]
    else:
        random.Random(seed).shuffle(order)
        splits = [""] * len(order)
        for place, row in enumerate(order):
            splits[row] = "train" if place < int(len(order) * share) else "val"

    def rows(dropped: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in order:
            texts = [text for kind, text in corpus.sentences(row) if kind not in ("upper", "lower")]
            dropped["no caption"] += not texts
            for text in texts if every_caption else texts[:1]:
                encoded = corpus.tokens(row)
                seconds = encoded.T / corpus.facts.fps if durations and encoded.T else None
                yield splits[row], SwiftRow(text, encoded, None, seconds).page()

    return _write_set(out, rows)


def _write_set(out: str | Path, rows: Any) -> Written:
    """Write (split, row) pairs to their files as they come."""
    dropped: Counter[str] = Counter()
    counts = Counter(train=0, val=0)
    with only_run(out), writing(out, Path(out)), ExitStack() as stack:
        files = {}
        for split in counts:
            temporary = stack.enter_context(atomic_write(Path(out) / f"{split}.jsonl"))
            files[split] = stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))
        for split, row in rows(dropped):
            _write(files[split], row, sum(counts.values()) + 1)
            counts[split] += 1
        if not sum(counts.values()):
            raise VadisError(f"no row is left to write: {dict(dropped) or 'there are no entries'}.")
        write_names(Path(out) / NAMES)
    return Written(counts["train"], counts["val"], {why: n for why, n in dropped.items() if n})


def import_rows(files: Mapping[str, str | Path], out: str | Path, tokenizer: Any) -> TokenCorpus:
    """A token corpus of row files, split → file; `tokenizer` is the DSFT tokenizer that made their tokens.

    Rows of one motion stay apart, images are passed over. A duration is rounded to a multiple of 4 frames.
    """

    def clips() -> Iterator[dict[str, Any]]:
        for split, path in files.items():
            for i, row in enumerate(read_rows(path, fps=tokenizer.fps, vocab_sizes=tokenizer.vocab_sizes)):
                e = row.encoded
                encoded = Encoded(e.base_ids, e.phys_ids, round(e.T / LENGTH_STEP) * LENGTH_STEP)
                name = f"{split}-{i:06d}"
                yield {"encoded": encoded, "texts": [("whole", row.text)], "split": split, "clip": name, "group": name}

    found = clips()
    if (first := next(found, None)) is None:
        raise FileError(f"there are no clips in {', '.join(map(str, files.values()))}: give files with a row a line.")
    return write_streams(
        out, tokenizer, chain([first], found), rows={split: Path(path).name for split, path in files.items()}
    )
