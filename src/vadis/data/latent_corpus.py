"""A corpus as a latent generator reads it: latents drawn once, sentence vectors, and segments with what came before them.

    latents/latents.npy      (all latents, C) float32
    latents/vectors.npy      (sentences, H) float16
    latents/sentences.json   the sentences
    latents/index.parquet    a row a segment: where it is, where the segment before it begins, split, weight, sentences
    latents/plans.npy        (windows, A) float32, with `plan_seconds`: what the body does from every 8th latent of a segment on
    latents/latents.json     facts of the tokenizer, the text encoder and the corpora; the end latent, the null vector

A clip is encoded as a whole, so the latents of a segment know what came before it, as they will in a stream. Letters: N
segments, C numbers of a latent, H width of a sentence vector, A attributes of a kinematic plan.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vadis import __version__
from vadis.data.corpus import Corpus
from vadis.data.parts import Parts
from vadis.data.segments import ROWS, ProgressBars, find_segments, fingerprint
from vadis.data.tables import Kind, Single, check_spans, is_finite, read_array, read_lists, read_page, read_table
from vadis.errors import FileError, VadisError
from vadis.files import atomic_folder, stamp
from vadis.kinematics import ATTRIBUTES, plan_rows
from vadis.records import checked, parse_json, read_bytes, read_json
from vadis.representations import representation

VERSION = 2
MIN_FRAMES = 40  # published: shorter clips are left out
SENTENCES = 512  # of one call of the text encoder
PLAN_STRIDE = 8
"""Latents from one window with a plan to the next."""


@dataclass(frozen=True, eq=False)
class LatentCorpus:
    """Segments of latents opened for reading; made by `extract_latents` or `LatentCorpus.open`."""

    latents: np.ndarray
    """(all, C)."""
    vectors: np.ndarray
    """(sentences, H)."""
    plans: np.ndarray
    """(windows, A); no windows when extracted without plans."""
    first: np.ndarray
    """(N,): a segment's first latent."""
    stop: np.ndarray
    """(N,): the latent after its last."""
    before: np.ndarray
    """(N,): first latent of the segment before it in the clip; `first` where there is none."""
    ends: np.ndarray
    """(N,) bool: the clip ends with it."""
    weights: np.ndarray
    """(N,): a corpus' share times the clip's weight, equally parted among the clip's segments."""
    splits: np.ndarray
    plan: np.ndarray
    """(N,): row of the segment's first window in `plans`; the others follow."""
    said: list[list[int]]
    """Sentences of every segment."""
    kinds: list[list[str]]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def end_latent(self) -> Tensor:
        """(C,): the latent of four frames of zeros on the normalised scale, drawn once."""
        return torch.tensor(self.about["end_latent"])

    @property
    def null_vector(self) -> Tensor:
        """(H,): the vector of the empty string."""
        return torch.tensor(self.about["null_vector"])

    @classmethod
    def open(cls, path: str | Path) -> "LatentCorpus":
        """Open a folder made by `extract_latents`; raises FileError when it is missing, damaged or of another version."""
        path = Path(path)
        if not (path / "latents.json").is_file():
            raise FileError(f"no latents at {path} (no latents.json there). Make them with extract_latents.")
        about = read_page(path / "latents.json", _Page, "vadis-latents", VERSION, _AGAIN)
        latents = read_array(path / "latents.npy", "f", (about["latents"], len(about["end_latent"])), _AGAIN)
        vectors = read_array(path / "vectors.npy", "f", (None, len(about["null_vector"])), _AGAIN)
        plans = read_array(path / "plans.npy", "f", (None, len(ATTRIBUTES)), _AGAIN)
        place = path / "index.parquet"
        index = read_table(place, _COLUMNS | {"said": "wholes", "kinds": "texts"}, about["segments"], _AGAIN)
        said, kinds = read_lists(place, index, "said", "kinds", len(vectors), _AGAIN)
        columns = {name: index.column(name).to_numpy(zero_copy_only=False) for name in _COLUMNS}
        first, stop = columns["first"], columns["stop"]
        if len(index) and ((first >= stop).any() or (columns["before"] > first).any() or not all(said)):
            raise FileError(
                f"{place}: a segment has latents, those before it come before it, and it has a sentence. {_AGAIN}"
            )
        check_spans(place, "latents", stop, np.zeros_like(stop), len(latents), _AGAIN)
        if about["plan_seconds"] is not None:
            check_spans(place, "plans", columns["plan"], -(-(stop - first) // PLAN_STRIDE), len(plans), _AGAIN)
        if (columns["weights"] < 0).any():
            raise FileError(f"{place}: a weight is 0 or more. {_AGAIN}")
        for name, array in (("latents", latents), ("vectors", vectors), ("plans", plans)):
            if not is_finite(array):
                raise FileError(f"{path / f'{name}.npy'} holds values that are not finite. {_AGAIN}")
        return cls(latents, vectors, plans, **columns, said=said, kinds=kinds, about=about)

    def subset(self, keep: np.ndarray) -> "LatentCorpus":
        """The segments where `keep` (N,) is true. Raises VadisError when there is none."""
        if not keep.any():
            raise VadisError("no segment is left: choose another split, a longer row or other kinds of sentences.")
        rows = np.flatnonzero(keep)
        arrays = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, **arrays, said=[self.said[i] for i in rows], kinds=[self.kinds[i] for i in rows])

    def sentence(self, row: int, draw: float, kind_weights: Mapping[str, float]) -> int:
        """Number of the sentence of a segment at `draw` in [0, 1), likely by kind (1 when not named)."""
        weights = self.sentence_weights(row, kind_weights)
        shares = np.cumsum(weights if weights.sum() > 0 else np.ones(len(weights)))
        return self.said[row][min(int(np.searchsorted(shares, draw * shares[-1], side="right")), len(shares) - 1)]

    def sentence_weights(self, row: int, kind_weights: Mapping[str, float]) -> np.ndarray:
        """How likely each sentence of a segment is."""
        return np.array([kind_weights.get(kind, 1.0) for kind in self.kinds[row]], dtype=np.float64)


_AGAIN = "Extract the latents again."
_COLUMNS: dict[str, Kind] = {
    "first": "whole", "stop": "whole", "before": "whole", "ends": "flag", "weights": "number", "splits": "text", "plan": "whole",
}  # fmt: skip


@dataclass(frozen=True)
class _Page:
    """What must stand in `latents.json`."""

    latents: Annotated[int, Field(ge=0)]
    segments: Annotated[int, Field(ge=0)]
    tokenizer: str
    text_encoder: str
    key: str
    plan_seconds: float | None
    end_latent: list[Single]
    null_vector: list[Single]


def extract_latents(
    corpora: Mapping[str, float],
    tokenizer: Any,
    text_encoder: Any,
    out: str | Path,
    *,
    seed: int = 123,
    min_frames: int = MIN_FRAMES,
    plan_seconds: float | None = None,
    progress: bool = True,
) -> LatentCorpus:
    """Encode every captioned clip of `corpora` (folder: share) into the folder `out`, with one draw of its latents.

    As published, a clip loses up to three frames at a random offset and its latents are drawn, not means. Sentence vectors
    of an older `out` by the same text encoder are used again. `plan_seconds`: also measure what the body does in windows of
    at most that length (`vadis.kinematics`). Interrupted work is taken up again by the same call. Raises
    VadisError when nothing is left.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = {path: Corpus.open(path) for path in corpora}
    known = _known_vectors(Path(out), text_encoder)
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    parts: list[np.ndarray] = []
    plans: list[np.ndarray] = []
    left_out: Counter[str] = Counter()
    probe = text_encoder.null_sentence().cpu().numpy().tobytes()  # other weights, other numbers
    facts = (seed, min_frames, plan_seconds, dict(corpora), stamp(*corpora), list(known), fingerprint(tokenizer), probe)
    work = hashlib.sha256(repr((facts, text_encoder.name, __version__)).encode()).hexdigest()
    with (
        atomic_folder(out, work, "latents.json") as folder,
        Parts(folder, "latents") as steps,
        Parts(folder, "plans") as plan_steps,
        Parts(folder, "vectors") as vector_steps,
        ProgressBars(progress) as show,
    ):
        for path, corpus in opened.items():
            _check(tokenizer, corpus)
            found = _encode(corpus, tokenizer, generator, min_frames, steps, show, left_out)
            mass = sum(r["weights"] for r in found[0])
            per, known_plans = int(tokenizer.frames_per_token), sum(map(len, plans))
            plans.append(_plans(found[0], found[2], corpus, plan_seconds, per, known_plans, plan_steps, show))
            for row in found[0]:
                row["weights"] *= corpora[path] / mass
                row["said"] = [texts.setdefault(t, len(texts)) for t in row["said"]]
                for name in ("first", "stop", "before"):
                    row[name] += sum(map(len, parts))
            rows += found[0]
            parts.append(found[1])
        vectors = _vectors(list(texts), text_encoder, known, vector_steps, show)
        np.save(folder / "latents.npy", np.concatenate(parts))
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "plans.npy", np.concatenate(plans))
        (folder / "sentences.json").write_text(json.dumps(list(texts), ensure_ascii=False), encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(rows), folder / "index.parquet", compression="zstd")
        page = {
            "format": "vadis-latents",
            "version": VERSION,
            "latents": sum(map(len, parts)),
            "segments": len(rows),
            "tokenizer": fingerprint(tokenizer),
            "text_encoder": text_encoder.name,
            "key": latents_key(corpora, tokenizer, text_encoder.name, seed, min_frames, plan_seconds),
            "plan_seconds": plan_seconds,
            "end_latent": draw_end_latent(tokenizer, seed).tolist(),
            "null_vector": text_encoder.null_sentence().cpu().tolist(),
            "corpora": dict(corpora),
            "left_out": dict(left_out),
        }
        (folder / "latents.json").write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    return LatentCorpus.open(out)


def latents_key(
    corpora: Mapping[str, float],
    tokenizer: Any,
    text_encoder: str,
    seed: int = 123,
    min_frames: int = MIN_FRAMES,
    plan_seconds: float | None = None,
) -> str:
    """Says whether latents were made from this: corpora, weights, text encoder and settings."""
    pages = {path: [share, Corpus.open(path).about.get("frames")] for path, share in corpora.items()}
    facts = json.dumps([pages, fingerprint(tokenizer), text_encoder, seed, min_frames, plan_seconds], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


@torch.no_grad()
def draw_end_latent(tokenizer: Any, seed: int = 123) -> Tensor:
    """The end latent `(C,)` of an auto-encoder: four frames of zeros on its normalised scale, encoded and drawn once."""
    frames = tokenizer.mean.expand(tokenizer.frames_per_token, -1).float()
    return tokenizer.encode(frames, sample=True, seed=seed)[0].cpu()


def _check(tokenizer: Any, corpus: Corpus) -> None:
    if not tokenizer.continuous:
        raise VadisError(f"a {type(tokenizer).__name__} makes no latents: give a causal auto-encoder.")
    if (tokenizer.representation, tokenizer.fps) != (corpus.representation, corpus.fps):
        raise VadisError(
            f"the auto-encoder reads {tokenizer.representation} at {tokenizer.fps:g} fps; {corpus.path} holds "
            f"{corpus.representation} at {corpus.fps:g} fps. Build the corpus for this auto-encoder."
        )


def _encode(
    corpus: Corpus,
    tokenizer: Any,
    generator: torch.Generator,
    min_frames: int,
    steps: Parts,
    show: Any,
    left_out: Counter[str],
) -> tuple[list[dict[str, Any]], np.ndarray, list[tuple[int, int]]]:
    """Rows of the index, the latents of one corpus, and the clip and its first frame of every row."""
    per = int(tokenizer.frames_per_token)
    sentences, segments, reasons = find_segments(corpus, per, None)
    left_out.update(reasons)
    by_clip = defaultdict(list)
    for segment in segments:
        if corpus.frames[segment.row] >= min_frames:
            by_clip[segment.row].append(segment)
        else:
            left_out["clips too short"] += 1
    if not by_clip:
        raise VadisError(f"no captioned clip of {corpus.path} has {min_frames} frames or more.")
    offsets = {row: int(torch.randint(int(corpus.frames[row]) % per + 1, (), generator=generator)) for row in by_clip}
    order = sorted(by_clip, key=lambda row: int(corpus.frames[row]))
    latents: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    places: list[tuple[int, int]] = []
    weights, splits, total = corpus.weights, corpus.column("split"), 0
    tokenizer.eval()

    def make(chosen: list[int]) -> list[np.ndarray]:
        clips = [corpus.frames_of(row, offsets[row]) for row in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        made = tokenizer.encode(padded, lengths=[len(c) for c in clips], sample=True, generator=generator).cpu()
        own = [latent[: len(clip) // per].numpy() for clip, latent in zip(clips, made, strict=True)]
        return [generator.get_state().numpy(), *own]  # the draws go on from there, also when these are read back

    for start in show(range(0, len(order), ROWS), f"latents of {corpus.path.name}"):
        chosen = order[start : start + ROWS]
        state, *made = steps.take(lambda chosen=chosen: make(chosen))
        generator.set_state(torch.from_numpy(state))
        for row, latent in zip(chosen, made, strict=True):
            count, starts = len(latent), [0]
            for segment in sorted(by_clip[row], key=lambda s: (s.first, s.frames)):
                a = max(0, (segment.first - offsets[row]) // per)
                b = min(count, (segment.first + segment.frames - offsets[row]) // per)
                if b <= a:
                    left_out["segments too short"] += 1
                    continue
                starts.append(a)
                page = {
                    "first": total + a,
                    "stop": total + b,
                    "before": total + max(s for s in starts if s < a or not s),
                }
                places.append((row, offsets[row] + a * per))
                page |= {"ends": b == count, "weights": float(weights[row]) / len(by_clip[row]), "splits": splits[row]}
                rows.append(page | {"said": [sentences[t] for t in segment.texts], "kinds": list(segment.kinds)})
            latents.append(latent)
            total += count
    return rows, np.concatenate(latents), places


def _plans(
    rows: list[dict[str, Any]],
    places: list[tuple[int, int]],
    corpus: Corpus,
    seconds: float | None,
    per: int,
    start: int,
    steps: Parts,
    show: Any,
) -> np.ndarray:
    """Plans (windows, A) of all segments; `rows` get their "plan", counted from `start`."""
    if seconds is None:
        for row in rows:
            row["plan"] = 0
        return np.zeros((0, len(ATTRIBUTES)), np.float32)
    rep = representation(corpus.representation)
    made: list[np.ndarray] = []
    clip, positions = -1, torch.empty(0)

    def make(number: int, spans: list[tuple[int, int]]) -> list[np.ndarray]:
        nonlocal clip, positions
        if number != clip:
            clip, positions = number, rep.positions(corpus.frames_of(number))
        return [plan_rows(positions, corpus.fps, spans).numpy()]

    for row, (number, first) in zip(rows, show(places, f"plans of {corpus.path.name}"), strict=True):
        stop = first + (row["stop"] - row["first"]) * per
        begins = range(first, stop, PLAN_STRIDE * per)
        spans = [(a, min(a + round(seconds * corpus.fps), stop)) for a in begins]
        row["plan"], start = start, start + len(spans)
        made += steps.take(lambda number=number, spans=spans: make(number, spans))
    return np.concatenate(made)


def _known_vectors(folder: Path, text_encoder: Any) -> dict[str, np.ndarray]:
    """Sentence vectors of an earlier extraction with the same text encoder."""
    try:
        about = read_json(folder / "latents.json")
        sentences = checked(list[str], parse_json(read_bytes(folder / "sentences.json", 1 << 30), folder), folder)
        vectors = read_array(folder / "vectors.npy", "f", (len(sentences), None), "")
    except FileError:  # there is none, or one that can't be used
        return {}
    return dict(zip(sentences, vectors, strict=True)) if about.get("text_encoder") == text_encoder.name else {}


def _vectors(texts: list[str], encoder: Any, known: dict[str, np.ndarray], steps: Parts, show: Any) -> np.ndarray:
    lacking = sorted((t for t in texts if t not in known), key=len)
    for start in show(range(0, len(lacking), SENTENCES), "sentences"):
        part = lacking[start : start + SENTENCES]
        (made,) = steps.take(lambda part=part: [encoder.sentence(part).cpu().numpy().astype(np.float16)])
        known.update(zip(part, made, strict=True))
    return np.stack([known[t] for t in texts])
