"""Words as the evaluator of Guo et al. reads them: a row of its GloVe table and one of 15 classes.

A word of a special list (places, parts of the body, objects, actions, manners) has that list's class, whatever its part of
speech. Rows 0, 1 and 2 of the table are the start, the end and the unknown word.
"""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis.errors import FileError, MissingExtra, VadisError
from vadis.io.arrays import finite, read_npy
from vadis.records import read_bytes

MAX_PICKLE = 64 << 20
MAX_VECTORS = 4 << 30
"""Bytes of the table of word vectors."""

POS_CLASSES = ("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV", "Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP",
               "Desc_VIP", "OTHER")  # fmt: skip
"""Class of a word by its index."""
_LISTS = {
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down straight curve",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop sit lift lower raise wash "
    "stand kneel stroll rub bend balance flap jog shuffle lean rotate spin spread climb",
    "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
}
_SPECIAL = {word: name for name, words in _LISTS.items() for word in words.split()}
_INDEX = {name: i for i, name in enumerate(POS_CLASSES)}
_START, _END, _UNKNOWN = "sos/OTHER", "eos/OTHER", "unk/OTHER"


class Vocabulary:
    """Tokens `word/POS` to rows and classes; exact word forms only ("stairs" is in no list)."""

    def __init__(self, words: Sequence[str], max_words: int = 20) -> None:
        self.rows = {word: i for i, word in enumerate(words) if word}
        self.max_words = max_words

    def lookup(self, token: str) -> tuple[int, int]:
        """(row, class) of one token; an unknown word has the row of `unk` and the class OTHER."""
        word, _, tag = token.rpartition("/")
        row = self.rows.get(word)
        if row is None:
            return self.rows.get("unk", 2), _INDEX["OTHER"]
        return row, _INDEX.get(_SPECIAL.get(word, tag), _INDEX["OTHER"])

    def read(self, tokens: Sequence[str]) -> tuple[list[int], list[int], int]:
        """Rows and classes of start, at most `max_words` tokens, end and filling, and the number that count."""
        kept = [_START, *tokens[: self.max_words], _END]
        filled = kept + [_UNKNOWN] * (self.max_words + 2 - len(kept))
        rows, classes = zip(*map(self.lookup, filled), strict=True)
        return list(rows), list(classes), len(kept)


def split_words(text: str) -> list[str]:
    """The `word/POS` tokens of a sentence: as given, or tagged by spaCy. Raises VadisError, MissingExtra."""
    tokens = text.split()
    tagged = ["/" in token.strip("/") for token in tokens]
    if tokens and all(tagged):
        return tokens
    if any(tagged):
        raise VadisError(f"{text[:60]!r} mixes words with word/POS tokens: tag every word or none.")
    return _tag(text)


def _tag(text: str) -> list[str]:
    """Tokens as HumanML3D's were made: nouns and verbs in their base form, numbers and punctuation left out."""
    try:
        import spacy

        language = spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise MissingExtra(
            "this evaluator reads words with their parts of speech. Give tokens as in the data set's text files "
            "(a/DET man/NOUN walk/VERB), or: pip install spacy && python -m spacy download en_core_web_sm"
        ) from error
    tokens = []
    for word in language(text.lower().replace("-", "")):
        if word.text.isalpha():
            base = word.pos_ in ("NOUN", "VERB") and word.text != "left"
            tokens.append(f"{word.lemma_ if base else word.text}/{word.pos_}")
    if not tokens:
        raise VadisError(f"no words in {text[:60]!r}: say what the person does.")
    return tokens


# ---- the published word vectors


class _PlainUnpickler(pickle._Unpickler):  # in Python, since the one in C allocates what an opcode states
    """Lists, dicts, strings and numbers only."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks to import {module}.{name}")


def _read_pickle(path: Path) -> Any:
    data = read_bytes(path, MAX_PICKLE)
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged or hostile stream may fail anywhere
        raise FileError(f"{path} was refused ({str(error)[:100]}): it must hold plain words and numbers.") from error


def read_vocabulary(folder: str | Path) -> tuple[tuple[str, ...], Tensor]:
    """Words by row and their vectors (V, 300) from `our_vab_data.npy`, `our_vab_words.pkl` and `our_vab_idx.pkl`.

    Raises FileError for files that are missing, unsafe or don't agree.
    """
    folder = Path(folder)
    words, index = (_read_pickle(folder / f"our_vab_{name}.pkl") for name in ("words", "idx"))
    path = folder / "our_vab_data.npy"
    vectors = torch.from_numpy(finite(read_npy(path, MAX_VECTORS), str(path)).astype(np.float32))
    fits = isinstance(words, list) and isinstance(index, dict) and all(isinstance(word, str) for word in words)
    if not fits or vectors.ndim != 2 or len(vectors) < len(words):
        raise FileError(
            f"the word vectors in {folder} don't agree: expected as many vectors as words, and their index."
        )
    if not all(type(row) is int and 0 <= row < len(vectors) for row in index.values()):
        raise FileError(f"{folder / 'our_vab_idx.pkl'} names rows that the table doesn't have.")
    known = set(words)
    by_row = {row: word for word, row in index.items() if word in known}
    return tuple(by_row.get(row, "") for row in range(len(vectors))), vectors
