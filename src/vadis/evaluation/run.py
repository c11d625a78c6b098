"""One seed after another: predictions, embeddings, and the values of every clip."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vadis.evaluation import measure
from vadis.evaluation.cache import Predictions, Progress, Work
from vadis.evaluation.protocol import Protocol
from vadis.evaluation.reference import Draw, Reference
from vadis.evaluation.report import Value
from vadis.evaluation.sources import PipelineSource, Source, fit_length

QUALITY = "Motion_Quality"
"""Dimension of a prompt file whose clips count in joint metrics, where it has one."""
SHOWN = 2000  # items whose own values a report keeps


class Run:
    """Predictions, embeddings and values of every seed."""

    def __init__(self, plan: Protocol, reference: Reference, source: Source, evaluator: Any, work: Work, batch: int,
                 progress: Progress | None, clock: "Clock") -> None:  # fmt: skip
        self.plan, self.reference, self.source, self.evaluator = plan, reference, source, evaluator
        self.work, self.batch, self.progress, self.clock = work, batch, progress, clock
        self.draws: dict[int, list[Draw]] = {}
        self._made: dict[int, Predictions] = {}
        self._texts: dict[str, np.ndarray] = {}

    def real(self, seed: int) -> Predictions | None:
        """The recordings of a seed's draws."""
        draws = self.draws[seed]
        if self.reference.read is None:
            return None
        return Predictions(lambda i: self.reference.features(draws[i]), len(draws))

    def made(self, seed: int) -> Predictions:
        """The predictions of a seed at the length that the protocol measures."""
        return self._made[seed]

    def seed(self, seed: int) -> dict[str, np.ndarray]:
        """Embeddings and values a clip of one seed, by "text", "real", "made" and "made/KEY", "real/KEY"."""
        draws = self.source.prepare(self.reference.draws(self.plan, seed), seed)
        self.draws[seed] = draws
        with self.clock("predictions"):
            raw = self.work.predictions(self.source, draws, seed, self.batch, self.progress)
        if self.plan.length == "reference" and not self.source.own_length:
            raw = Predictions(
                lambda i, raw=raw: fit_length(raw[i], draws[i].frames, self.plan.representation), len(draws)
            )
        self._made[seed] = raw
        return self.work.embeddings(seed, lambda: self._measure(seed))

    def _measure(self, seed: int) -> dict[str, np.ndarray]:
        draws, real, made = self.draws[seed], self.real(seed), self._made[seed]
        found: dict[str, np.ndarray] = {}
        with self.clock("encoder"):
            if self.evaluator is not None:
                found |= self._embed(draws, real, made)
        with self.clock("metrics"):
            counted = np.array([d.item.group in ("", QUALITY) for d in draws])
            for name, clips in (("made", made), ("real", real)):
                if clips is not None:
                    values = measure.clip_metrics(clips, self.plan)
                    if counted.any() and not counted.all():  # the other prompts of a file serve other questions
                        values = {k: np.where(counted, v, np.nan) for k, v in values.items()}
                    found |= {f"{name}/{k}": v for k, v in values.items()}
            if "obeyed" in self.plan.metrics:
                texts = [draw.texts[0].text for draw in draws]
                found["made/obeyed"] = measure.obedience(made, texts, self.plan)
            if "seams" in self.plan.metrics and real is not None:
                values, usual = measure.seams(real, draws, None, self.plan)
                found |= {f"real/{k}": v for k, v in values.items()}
                found |= {f"made/{k}": v for k, v in measure.seams(made, draws, usual, self.plan)[0].items()}
            if "errors" in self.plan.metrics and self.source.paired and real is not None:
                values, frames = measure.pair_errors(real, made, self.plan)
                found |= {f"error/{k}": v for k, v in values.items()} | {"frames": frames}
        if self.progress:
            self.progress("measured", seed + 1, 0)
        return found

    def _embed(self, draws: list[Draw], real: Predictions | None, made: Predictions) -> dict[str, np.ndarray]:
        names = [d.item.id for d in draws for _ in d.parts]
        found = {}
        for key, clips in (("made", made), ("real", real)):
            if clips is not None:
                found[key] = measure.embed(self.evaluator, _Segments(clips, draws), names)
        texts = [t.tokens if self.plan.text == "tokens" and t.tokens else t.text for d in draws for t in d.texts]
        if len(texts) == len(names) and all(texts):
            new = list(dict.fromkeys(t for t in texts if t not in self._texts))
            if new:
                self._texts |= dict(zip(new, self.evaluator.embed_text(new).numpy(), strict=True))
            found["text"] = np.stack([self._texts[t] for t in texts])
        return found

    def extras(self, measured: list[dict[str, np.ndarray]], multimodality: bool, unavailable: dict[str, str]) -> dict[str, Value]:  # fmt: skip
        """Joint errors, codebook use and multimodality."""
        found: dict[str, Value] = {}
        for key in [k for k in measured[0] if k.startswith("error/")]:
            found[key.removeprefix("error/")] = Value.of([np.average(m[key], weights=m["frames"]) for m in measured])
        if "codebook" in self.plan.metrics and (tokens := self.source.tokens(self.draws[0])) is not None:
            found |= {k: Value(v) for k, v in measure.codebook(tokens).items()}
        if "multimodality" in self.plan.metrics and self.evaluator is not None:
            if multimodality and isinstance(self.source, PipelineSource):
                found["multimodality"] = Value(self._multimodality())
            else:
                n, m = self.plan.multimodal_prompts, self.plan.multimodal_motions
                unavailable["multimodality"] = f"it takes {n} × {m} further motions of a pipeline: pass multimodality."
        return found

    def _multimodality(self) -> float:
        from vadis.metrics.distribution import multimodality

        plan, draws = self.plan, self.draws[0]
        rows = []
        for number, draw in enumerate(draws[: plan.multimodal_prompts]):
            made = self.source.predict([draw] * plan.multimodal_motions, 10_000 + number, 0)
            rows.append(measure.embed(self.evaluator, made, [draw.item.id] * len(made)))
            if self.progress:
                self.progress("multimodality", number + 1, min(len(draws), plan.multimodal_prompts))
        return multimodality(np.stack(rows))

    def shown(self, arrays: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Values of single items of the first seed, for histograms, the scatter plot and the worst and best clips."""
        draws = self.draws[0]
        picked = np.linspace(0, len(draws) - 1, min(len(draws), SHOWN)).round().astype(int)
        found: dict[str, list[Any]] = {
            "id": [draws[i].item.id for i in picked],
            "row": picked.tolist(),
            "text": [" | ".join(t.text for t in draws[i].texts) for i in picked],
        }
        parts = len(draws[0].parts)
        if "text" in arrays:
            distance = np.linalg.norm(arrays["text"] - arrays["made"], axis=1).reshape(-1, parts).mean(1)
            found["distance"] = [round(float(distance[i]), 5) for i in picked]
        for key, values in arrays.items():
            if "/" in key:
                found[key] = [None if np.isnan(values[i]) else round(float(values[i]), 5) for i in picked]
        found |= _plane(arrays, picked * parts)
        return found


class _Segments(Sequence):
    """The parts of streams one after another; the clips themselves where each has one part."""

    def __init__(self, clips: Predictions, draws: list[Draw]) -> None:
        self.clips, self.draws, self.parts = clips, draws, len(draws[0].parts)

    def __len__(self) -> int:
        return len(self.draws) * self.parts

    def __getitem__(self, i: int) -> Any:  # type: ignore[override]
        if i >= len(self):
            raise IndexError(i)
        row, part = divmod(i, self.parts)
        return measure.segments(self.clips[row], self.draws[row].parts)[part] if self.parts > 1 else self.clips[row]


def _plane(arrays: dict[str, np.ndarray], picked: np.ndarray) -> dict[str, list[Any]]:
    """Real and made embeddings on the two directions in which the real ones vary most."""
    if "real" not in arrays or len(arrays["real"]) < 3:
        return {}
    real, made = arrays["real"].astype(np.float64), arrays["made"].astype(np.float64)
    mean = real.mean(0)
    axes = np.linalg.svd(real - mean, full_matrices=False)[2][:2].T
    return {f"plane/{n}": np.round((x[picked] - mean) @ axes, 4).tolist() for n, x in (("real", real), ("made", made))}


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
