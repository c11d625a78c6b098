"""Captioned stretches of a corpus, and what every kind of corpus that is made of them shares.

A segment is a stretch of a clip that captions speak of: the whole clip, or the span of a caption about a part of it.
"""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis import __version__
from vadis.data.corpus import Corpus
from vadis.data.parts import Parts
from vadis.files import stamp

SLACK = 0.25  # seconds; a caption that leaves out no more at either end speaks of the whole clip
ROWS = 64  # segments of one tokenizer call


@dataclass(frozen=True)
class Segment:
    row: int
    first: int
    frames: int
    texts: tuple[int, ...]
    kinds: tuple[str, ...]


def work_key(corpus: Corpus, segments: list[Segment], texts: list[str], *more: Any) -> str:
    """What is being made of a corpus: partial work of the same is continued."""
    digest = hashlib.sha256(repr((stamp(corpus.path), corpus.ids, segments, texts, __version__)).encode())
    for part in more:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def fingerprint(model: Any) -> str:
    """SHA-256 of a model's weights, or of what decides its tokens where it has none: says whether tokens were made by it."""
    from vadis.tokenizers.dsft.tokenizer import DSFTTokenizer

    if isinstance(model, DSFTTokenizer):
        return model.hash
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain_values(config: Any) -> Any:
    return json.loads(json.dumps(asdict(config) if is_dataclass(config) else dict(config)))  # type: ignore[arg-type]


def find_segments(
    corpus: Corpus, least: int, most: int | None, captionless: bool = False
) -> tuple[list[str], list[Segment], dict[str, int]]:
    """The different sentences, the segments they speak of, and counts of what was left out.

    With `captionless` a clip that nothing is said of is one segment without sentences.
    """
    from vadis.text_encoders import MAX_CHARACTERS

    ids: dict[str, int] = {}
    segments: list[Segment] = []
    left_out: Counter[str] = Counter()
    slack = SLACK * corpus.fps
    for row, captions in enumerate(corpus.column("captions")):
        frames = int(corpus.frames[row])
        spans: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
        for c in captions:
            text = " ".join(c["text"].split())
            if not text or len(text) > MAX_CHARACTERS:
                left_out["captions empty or too long"] += 1
                continue
            a, b = round(c["start"] * corpus.fps), round(c["end"] * corpus.fps)
            if b <= a or (a <= slack and b >= frames - slack):
                a, b = 0, frames
            spans[max(a, 0), min(b, frames)].append((text, c["kind"]))
        if not spans and captionless:
            spans[0, frames] = []
        left_out["clips without captions"] += not spans
        for (a, b), said in sorted(spans.items()):
            if b - a < least:
                left_out["segments too short"] += 1
            elif most and b - a > most:
                left_out["segments too long"] += 1
            else:
                numbers = tuple(ids.setdefault(text, len(ids)) for text, _ in said)
                segments.append(Segment(row, a, b - a, numbers, tuple(kind for _, kind in said)))
    return list(ids), segments, {k: v for k, v in left_out.items() if v}


def features_of(corpus: Corpus, segment: Segment) -> Tensor:
    return corpus.frames_of(segment.row, segment.first, segment.first + segment.frames)


def write_tokens(
    corpus: Corpus,
    tokenizer: Any,
    segments: list[Segment],
    steps: list[int],
    firsts: np.ndarray,
    folder: Path,
    show: Any,
) -> None:
    groups = int(tokenizer.tokens_per_step)
    kind = np.uint16 if tokenizer.vocab_size <= 65_536 else np.uint32
    out = np.empty((int(firsts[-1]), groups), kind)  # not a mapped file: on a full disk that kills the process
    order = sorted(range(len(segments)), key=lambda i: segments[i].frames)  # equal lengths share a call
    was_training = tokenizer.training
    tokenizer.eval()

    def make(part: list[int]) -> list[np.ndarray]:
        clips = [features_of(corpus, segments[i]) for i in part]
        padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        tokens = tokenizer.encode(padded, lengths=[len(c) for c in clips]).cpu()
        return [tokens[k, : steps[i]].reshape(steps[i], groups).numpy().astype(kind) for k, i in enumerate(part)]

    with Parts(folder, "tokens") as parts:
        for start in show(range(0, len(order), ROWS), "motion tokens"):
            part = order[start : start + ROWS]
            for i, tokens in zip(part, parts.take(lambda part=part: make(part)), strict=True):
                out[firsts[i] : firsts[i] + steps[i]] = tokens
    tokenizer.train(was_training)
    np.save(folder / "tokens.npy", out)


class ProgressBars:
    """`show(iterable, title)` iterates with a bar on stderr."""

    def __init__(self, active: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not (active and console.is_terminal), transient=True)

    def __enter__(self) -> "ProgressBars":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, items: Any, title: str, total: int | None = None) -> Any:
        return self._bar.track(items, total=total if total is not None else len(items), description=title)
