"""Tokenizers side by side on the same held-out clips: what the decoded motion is worth, and what its tokens cost.

Every clip is coded as a whole by every tokenizer. Errors are of joints posed by each side's own features, in metres and
seconds, so tokenizers of different representations stand in one table.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.data.corpus import Corpus
from vadis.errors import VadisError
from vadis.metrics.codebook import codebook_usages
from vadis.metrics.distribution import fid
from vadis.metrics.physical import ground_quality
from vadis.motion import Motion
from vadis.representations import representation

DRIFTS = (1, 5, 10)
"""Seconds after which the root's place is compared."""
_BODY = slice(1, None)


@dataclass(frozen=True)
class TokenizerReport:
    """One tokenizer on one set of clips.

    local_mm: joints relative to the root, headings laid on each other. global_mm: joints in the world, both starting at
    one place. drift_mm: seconds → planar error of the root after so long, start and heading laid on each other.
    rotation_degrees: local joint rotations without the root's. velocity_mm_s: joint velocities in the heading frame.
    jitter_ratio, skate_ratio: mean jerk and toe skating, made over real. fid: in an evaluator's space, with the floor of
    real against real. bits_per_second: nominal for a codebook, measured for codes of variable length and for the KL rate
    of a continuous latent (`rate` says which). utilisation, perplexity: mean over groups or levels. *_fps: frames coded
    a second, one clip at a time, with torch's threads as they were.
    """

    name: str
    family: str
    clips: int
    seconds: float
    local_mm: float
    global_mm: float
    drift_mm: dict[int, float]
    rotation_degrees: float
    velocity_mm_s: float
    jitter_ratio: float
    skate_ratio: float
    bits_per_second: float
    rate: str
    tokens_per_second: float
    parameters: int
    encode_fps: float
    decode_fps: float
    vocab_size: int | None = None
    utilisation: float | None = None
    perplexity: float | None = None
    fid: float | None = None
    fid_floor: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def held_out_clips(
    corpus: Corpus, split: str | None = "val", *, seconds: float = 10.5, shortest: float = 2.0, limit: int | None = None
) -> list[Tensor]:
    """Features of the clips of a split, cut into pieces of at most `seconds`; pieces shorter than `shortest` are left out.

    `limit` pieces, evenly spread, when there are more. Raises VadisError when nothing is left.
    """
    chosen = corpus.subset(split) if split else corpus
    longest, least = round(seconds * corpus.fps), round(shortest * corpus.fps)
    pieces = [
        (row, start, min(start + longest, int(chosen.frames[row])))
        for row in range(len(chosen))
        for start in range(0, int(chosen.frames[row]), longest)
        if min(start + longest, int(chosen.frames[row])) - start >= least
    ]
    if not pieces:
        raise VadisError(f"no clip of split {split!r} has {shortest:g} s: name another --split, or a larger corpus.")
    if limit and len(pieces) > limit:
        pieces = [pieces[i] for i in np.linspace(0, len(pieces) - 1, limit).round().astype(int)]
    return [torch.as_tensor(chosen.frames_of(row, start, stop)).float() for row, start, stop in pieces]


def fit_clips(clips: Sequence[Tensor], source: str, fps: float, tokenizer: Any) -> list[Tensor]:
    """Clips of representation `source` in that of the tokenizer, at its frame rate."""
    if source == tokenizer.representation and abs(fps - tokenizer.fps) < 1e-3:
        return list(clips)
    here, there = representation(source), representation(tokenizer.representation)
    return [there.encode(here.decode(clip, fps=fps).resample(tokenizer.fps)) for clip in clips]


def measure(
    tokenizer: Any, clips: Sequence[Tensor], *, name: str | None = None, evaluator: Any = None
) -> TokenizerReport:
    """A tokenizer's report on features `(T_i, D)` of its own representation.

    Raises VadisError when a clip does not fit the tokenizer.
    """
    rep = representation(tokenizer.representation)
    tokens, encode_seconds = _timed(lambda clip: tokenizer.encode(clip), clips)
    made, decode_seconds = _timed(lambda code: _decode(tokenizer, code), tokens)
    pairs = [(clip[: len(out)], out[: len(clip)].cpu().float()) for clip, out in zip(clips, made, strict=True)]
    motions = [(rep.decode(real, fps=tokenizer.fps), rep.decode(out, fps=tokenizer.fps)) for real, out in pairs]
    frames = sum(m.num_frames for m, _ in motions)
    seconds = frames / tokenizer.fps
    errors = [_errors(real, out) for real, out in motions]
    weights = np.array([real.num_frames for real, _ in motions], dtype=float)

    def mean(key: str) -> float:
        return float(np.average([e[key] for e in errors], weights=weights))

    real_quality, made_quality = (
        ground_quality([pair[i].positions for pair in motions], fps=tokenizer.fps) for i in (0, 1)
    )
    bits, rate = _bits(tokenizer, clips, tokens, seconds)
    return TokenizerReport(
        name=name or type(tokenizer).__name__,
        family=tokenizer.config.type,
        clips=len(clips),
        seconds=round(seconds, 1),
        local_mm=mean("local_mm"),
        global_mm=mean("global_mm"),
        drift_mm=_drift(motions),
        rotation_degrees=mean("rotation_degrees"),
        velocity_mm_s=mean("velocity_mm_s"),
        jitter_ratio=float(
            np.average(made_quality.jerk, weights=weights) / np.average(real_quality.jerk, weights=weights)
        ),
        skate_ratio=float(made_quality.skate.mean() / real_quality.skate.mean()),
        bits_per_second=bits,
        rate=rate,
        tokens_per_second=sum(_count(tokenizer, t) for t in tokens) / seconds,
        parameters=sum(p.numel() for p in tokenizer.parameters()) if isinstance(tokenizer, torch.nn.Module) else 0,
        encode_fps=frames / encode_seconds,
        decode_fps=frames / decode_seconds,
        **_codebook(tokenizer, tokens),
        **(_fid(evaluator, [r for r, _ in pairs], [m for _, m in pairs], tokenizer) if evaluator is not None else {}),
    )


def _decode(tokenizer: Any, code: Any) -> Tensor:
    return torch.as_tensor(tokenizer.decode(code))


def _timed(run: Any, items: Sequence[Any]) -> tuple[list[Any], float]:
    run(items[0])  # the first call pays for allocations
    start = time.perf_counter()
    results = [run(item) for item in items]
    return results, time.perf_counter() - start


def _heading(motion: Motion) -> Tensor:
    return rotation.heading(motion.rotations[:, 0])


def _turned(points: Tensor, heading: Tensor) -> Tensor:
    """Points `(T, …, 3)` seen from headings `(T,)`."""
    turn = rotation.yaw(-heading)
    return torch.einsum("tij,t...j->t...i", turn, points)


def _errors(real: Motion, made: Motion) -> dict[str, float]:
    p, q = real.positions, made.positions
    headings = _heading(real), _heading(made)
    local = [_turned(x - x[:, :1], h) for x, h in zip((p, q), headings, strict=True)]
    start = q[0, 0] - p[0, 0]
    start[1] = 0.0
    speeds = [real.fps * _turned(x.diff(dim=0), h[1:]) for x, h in zip((p, q), headings, strict=True)]
    relative = real.rotations[:, _BODY].transpose(-1, -2) @ made.rotations[:, _BODY]
    trace = relative.diagonal(dim1=-2, dim2=-1).sum(-1)
    return {
        "local_mm": 1000 * float((local[1] - local[0]).norm(dim=-1).mean()),
        "global_mm": 1000 * float((q - start - p).norm(dim=-1).mean()),
        "rotation_degrees": float(torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1))).mean()),
        "velocity_mm_s": 1000 * float((speeds[1] - speeds[0]).norm(dim=-1).mean()),
    }


def _drift(motions: Sequence[tuple[Motion, Motion]]) -> dict[int, float]:
    """Mean planar distance of the roots so many seconds after a common start and heading, from every tenth frame."""
    result = {}
    for seconds in DRIFTS:
        distances = []
        for pair in motions:
            span = round(seconds * pair[0].fps)
            starts = torch.arange(0, max(pair[0].num_frames - span, 0), 10)
            ways = [_turned((m.root[starts + span] - m.root[starts]), _heading(m)[starts]) for m in pair]
            distances.append((ways[1] - ways[0])[:, [0, 2]].norm(dim=-1))
        values = torch.cat(distances)
        if len(values):
            result[seconds] = 1000 * float(values.mean())
    return result


def _count(tokenizer: Any, code: Any) -> int:
    """Tokens in the code of one clip; a latent counts as one."""
    if not isinstance(code, Tensor):
        return code.num_tokens
    return len(code) if tokenizer.continuous else code.numel()


def _bits(tokenizer: Any, clips: Sequence[Tensor], tokens: Sequence[Any], seconds: float) -> tuple[float, str]:
    if tokenizer.continuous:
        rates = [tokenizer.kl_bits_per_second(clip) for clip in clips]
        return float(np.average(rates, weights=[len(c) for c in clips])), "KL rate"
    if tokenizer.two_streams:
        return sum(tokenizer.bits(clip) for clip in clips) / seconds, "measured"
    return tokenizer.bits_per_second, "nominal"


def _codebook(tokenizer: Any, tokens: Sequence[Any]) -> dict[str, Any]:
    if tokenizer.continuous or not isinstance(tokens[0], Tensor):
        return {}
    columns = torch.cat([t.reshape(len(t), -1) for t in tokens])
    usages = codebook_usages(columns, tokenizer.vocab_size, ignore=-1)
    return {
        "vocab_size": tokenizer.vocab_size,
        "utilisation": sum(u.utilisation for u in usages) / len(usages),
        "perplexity": sum(u.perplexity for u in usages) / len(usages),
    }


def _fid(evaluator: Any, real: list[Tensor], made: list[Tensor], tokenizer: Any) -> dict[str, Any]:
    wanted = evaluator.config.representation
    if wanted != tokenizer.representation:
        return {"notes": {"fid": f"left out: the evaluator reads {wanted}"}}
    least, most = evaluator.min_frames, evaluator.max_frames
    keep = [i for i, clip in enumerate(real) if len(clip) >= least]
    embeddings = [np.asarray(evaluator.embed_motion([x[i][:most] for i in keep])) for x in (real, made)]
    distance = fid(*embeddings, allow_few=True)
    return {"fid": distance.value, "fid_floor": distance.floor, "notes": {"fid": list(distance.notes)}}
