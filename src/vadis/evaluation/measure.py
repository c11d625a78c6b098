"""From predictions, recordings and embeddings to figures: the metrics of `vadis.metrics`, under the keys of a report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis.errors import VadisError
from vadis.evaluation.prompt_physics import obeyed
from vadis.evaluation.protocol import CLIP_METRICS, Protocol
from vadis.evaluation.reference import Draw
from vadis.metrics.distribution import diversity, fid
from vadis.metrics.reconstruction import acceleration_error, joint_errors
from vadis.metrics.retrieval import r_precision
from vadis.metrics.transition import jerk_curve, seam_metrics
from vadis.representations import representation

PerClip = dict[str, np.ndarray]
"""Metric key → one value an item."""
PAIRS = 100  # random pairs of Diversity with up to 300 items
CHUNK = 256  # clips whose joints are in memory at once


def joints_of(features: Tensor, protocol: Protocol) -> Tensor:
    """World joints (T, 22, 3) in metres; joints are passed on."""
    if features.ndim == 3:
        return features
    positions = representation(protocol.representation).positions(features)
    return positions / 1000 if protocol.representation == "kit251" else positions


def clip_metrics(clips: Sequence[Tensor], protocol: Protocol) -> PerClip:
    """The figures that the protocol asks for of every clip, in the units of a report."""
    found: dict[str, list[np.ndarray]] = {}
    fps = representation(protocol.representation).fps
    for a in range(0, len(clips), CHUNK):
        part = [clips[i] for i in range(a, min(a + CHUNK, len(clips)))]
        rate = protocol.joints_fps if part[0].ndim == 3 else fps
        joints = [joints_of(x, protocol).numpy() for x in part]
        for name in (name for name in protocol.metrics if name in CLIP_METRICS):
            for key, values in CLIP_METRICS[name].measure(joints, rate, protocol.physical).items():
                found.setdefault(key, []).append(values)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def pair_errors(real: Sequence[Tensor], made: Sequence[Tensor], protocol: Protocol) -> tuple[PerClip, np.ndarray]:
    """Joint errors of every clip, and its frames, by which published means weigh clips."""
    fps = representation(protocol.representation).fps
    rows, frames = [], []
    for i in range(len(real)):
        a, b = joints_of(real[i], protocol), joints_of(made[i], protocol)
        n = min(len(a), len(b))
        a, b = a[:n], b[:n]
        modes = ("root", "global", "procrustes")
        row = {f"mpjpe_{m}": 1000 * float(joint_errors(a, b, m).mean()) for m in modes}
        rows.append(row | {"acceleration_error": acceleration_error(a[None], b[None], fps)})
        frames.append(n)
    return {k: np.array([r[k] for r in rows]) for k in rows[0]}, np.array(frames)


def obedience(clips: Sequence[Tensor], texts: Sequence[str], protocol: Protocol) -> np.ndarray:
    """100 for every clip that does what its prompt says, else 0; see `prompt_physics`."""
    joints = [joints_of(clips[i], protocol) for i in range(len(clips))]
    fps = protocol.joints_fps if clips[0].ndim == 3 else representation(protocol.representation).fps
    return obeyed(texts, [torch.as_tensor(j).float() for j in joints], fps)


def seams(
    clips: Sequence[Tensor], draws: Sequence[Draw], usual: float | None, protocol: Protocol
) -> tuple[PerClip, float]:
    """Jerk at the seams of streams; `usual` is the mean jerk of real motion, found from these clips when None."""
    fps = representation(protocol.representation).fps
    curves = [jerk_curve(joints_of(clips[i], protocol), fps) for i in range(len(clips))]
    level = float(np.concatenate(curves).mean()) if usual is None else usual
    rows = [seam_metrics(c, d.parts[0], fps, level, protocol.seam_seconds) for c, d in zip(curves, draws, strict=True)]
    return {k: np.array([r[k] for r in rows]) for k in rows[0]}, level


class SetMetrics:
    """FID, R-precision and diversity of one seed after another; a metric that can't be had is noted once, with the cure."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.real: dict[str, list[float]] = {}
        self.result: dict[str, list[float]] = {}
        self.unavailable: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, arrays: dict[str, np.ndarray], seed: int) -> None:
        """Measure the embeddings of a seed: "made", and "real" and "text" where there are any."""
        groups, n = self.protocol.metrics, len(arrays["made"])
        real, made, text = arrays.get("real"), arrays["made"], arrays.get("text")
        if "fid" in groups and real is not None:
            if n > made.shape[1]:
                self._fid(real, made, seed)
            else:
                self.unavailable["fid"] = (
                    f"{n} items are too few for a Fréchet distance of {made.shape[1]} dimensions: the covariance is "
                    f"singular. Evaluate more than {made.shape[1]} items (better 2,000)."
                )
        if "retrieval" in groups:
            if text is None:
                self.unavailable["r1"] = "the items have no captions."
            elif n < self.protocol.pool:
                self.unavailable["r1"] = (
                    f"{n} pairs don't fill one pool of {self.protocol.pool}: evaluate at least as many items."
                )
            else:
                self._retrieval(text, real, made, seed)
        if "diversity" in groups:
            if n >= PAIRS:
                self._diversity(real, made, seed)
            else:
                self.unavailable["diversity"] = f"{n} items are too few for {PAIRS} pairs drawn without replacement."

    def _put(self, row: dict[str, list[float]], **values: float) -> None:
        for key, value in values.items():
            row.setdefault(key, []).append(float(value))

    def _fid(self, real: np.ndarray, made: np.ndarray, seed: int) -> None:
        found = fid(real, made, seed=seed)
        self._put(self.result, fid=found.value)
        if found.floor is not None:
            self._put(self.real, fid=found.floor)
        self.notes += [f"FID: {note}" for note in found.notes if f"FID: {note}" not in self.notes]

    def _retrieval(self, text: np.ndarray, real: np.ndarray | None, made: np.ndarray, seed: int) -> None:
        for row, motion in ((self.result, made), (self.real, real)):
            if motion is not None:
                r = r_precision(text, motion, pool=self.protocol.pool, seed=seed)
                self._put(row, r1=r.top[0], r2=r.top[1], r3=r.top[2], matching=r.matching_distance)

    def _diversity(self, real: np.ndarray | None, made: np.ndarray, seed: int) -> None:
        for row, motion in ((self.result, made), (self.real, real)):
            if motion is not None:
                self._put(row, diversity=diversity(motion, seed=seed))


def segments(features: Tensor, parts: Sequence[int]) -> list[Tensor]:
    """Features (T, D) of a stream cut at its seams; what goes beyond belongs to the last part."""
    edges = np.cumsum([0, *parts])
    return [features[a:b] if k < len(parts) - 1 else features[a:] for k, (a, b) in enumerate(zip(edges, edges[1:], strict=False))]  # fmt: skip


def codebook(tokens: tuple[Tensor, int]) -> dict[str, float]:
    """Share of codes used in percent and perplexity."""
    from vadis.metrics.codebook import codebook_usage

    usage = codebook_usage(tokens[0], tokens[1])
    return {"codes_used": 100 * usage.utilisation, "perplexity": usage.perplexity}


def embed(evaluator: Any, clips: Sequence[Tensor], names: Sequence[str]) -> np.ndarray:
    """Motion embeddings (N, E) float32; what goes beyond the evaluator's longest clip is not looked at.

    Raises VadisError naming clips that are shorter than it can read, or whose embedding is not finite.
    """
    out = []
    for a in range(0, len(clips), CHUNK):
        part = [clips[i][: evaluator.max_frames] for i in range(a, min(a + CHUNK, len(clips)))]
        short = [names[a + i] for i, x in enumerate(part) if len(x) < evaluator.min_frames]
        if short:
            raise VadisError(
                f"{len(short)} motions have fewer than the {evaluator.min_frames} frames that the evaluator can read "
                f"({', '.join(short[:8])}): leave them out, or take a protocol whose length is that of the reference."
            )
        out.append(evaluator.embed_motion(part).numpy())
    array = np.concatenate(out)
    if bad := [names[i] for i in np.flatnonzero(~np.isfinite(array).all(1)).tolist()]:
        raise VadisError(
            f"the evaluator gives NaN or infinite embeddings for {', '.join(bad[:8])}: look at those clips."
        )
    return array
