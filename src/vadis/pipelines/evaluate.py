"""`vadis.evaluate`: a pipeline, a tokenizer or a folder of predictions against recorded motion, under a protocol.

Every seed draws captions and crops anew and, where the model can, new motions; figures are means over the seeds. The real
motions go through the same measurements and stand beside the result.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vadis.data.corpus import Corpus
from vadis.errors import ModelError, VadisError
from vadis.evaluation import measure
from vadis.evaluation.baselines import BaselineSource
from vadis.evaluation.cache import Predictions, Progress, Work
from vadis.evaluation.protocol import Protocol, load_protocol
from vadis.evaluation.reference import Draw, Reference, from_corpus, from_folder, from_prompts
from vadis.evaluation.report import Report, Value
from vadis.evaluation.sources import (
    FolderSource,
    PipelineSource,
    Source,
    TokenizerSource,
    check_fit,
    fit_length,
    model_identity,
)

EMBEDDED = {"fid", "retrieval", "diversity", "multimodality"}
SHOWN = 2000  # items whose own values a report keeps


def evaluate(
    model: Any,
    protocol: str | Path | Protocol = "ms272",
    data: str | Path | Corpus | None = None,
    *,
    evaluator: Any = None,
    split: str | None = None,
    kinds: Sequence[str] = ("whole",),
    out: str | Path | None = None,
    repeats: int | None = None,
    generations: int | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    real: str | Path | Corpus | None = None,
    partial: bool = False,
    multimodality: bool = False,
    overwrite: bool = False,
    pictures: int = 3,
    device: str | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure a model and give a `Report`; `print(report)` shows its table.

    Args:
        model: a pipeline, a tokenizer, a name, folder or Hub id of one, a folder of predictions `<id>.npy`, or
            "baseline:NAME" (real, shuffled, noise, float, slide, frozen, smooth, mirrored, nearest).
        protocol: a name, a YAML file, or a Protocol.
        data: a corpus, a folder of `<id>.npy` features with captions, or, for prompts, a JSON file of them.
        evaluator: an evaluator, or where it is; "none" leaves out what needs one.
        split: of the corpus; by default test, else val; "all" for everything.
        kinds: kinds of captions that count; empty for all.
        out: folder for `report.json`, `report.md`, `report.html` and the work, which a second call goes on with.
        repeats: seeds; by default the protocol's.
        generations: sets of predictions; by default one a seed. Fewer are reused in turn.
        batch_size: prompts handed to a pipeline at once.
        limit: only about this many items, evenly picked.
        real: for prompts, a corpus for the row of real motion.
        partial: evaluate what predictions and data have in common instead of refusing different sets.
        multimodality: also make many motions for some prompts, where the protocol asks for it.
        overwrite: start anew in `out`.
        pictures: worst and best clips drawn in the HTML report.
        device: of models that are loaded here.
        settings: keywords for the pipeline's call.
        progress: called with stage, done, total.

    Raises VadisError (with the cure) for a protocol that doesn't fit the representation, different sets of ids, captions
    without motion, work of other settings in `out`; metrics that have too few items are named in `report.unavailable`.
    """
    clock = _Clock()
    plan = load_protocol(protocol)
    plan = replace(plan, repeats=repeats) if repeats is not None else plan
    reference = _limited(_reference(data, plan, split, kinds), limit)
    source = _source(model, plan, reference, partial, settings, device)
    judge = _evaluator(evaluator, plan, device)
    sets = _sets(source, plan, generations)
    identity = {
        "protocol": model_identity(replace(plan, repeats=1)),
        "model": source.identity,
        "evaluator": "" if judge is None else model_identity(judge[1]),
        "data": reference.identity,
    }
    folder = None if out is None else Path(out)
    work = Work(folder, identity, overwrite)
    run = _Run(plan, reference, source, judge[1] if judge else None, work, batch_size, progress, clock)
    measured = [run.seed(g) for g in range(sets)]
    figures = measure.SetMetrics(plan)
    with clock("metrics"):
        for r in range(plan.repeats if judge else 0):
            figures.add(measured[r % sets], r)
    result = {k: Value.of(v) for k, v in figures.result.items()}
    truth = {k: Value.of(v) for k, v in figures.real.items()}
    unavailable = dict(figures.unavailable)
    for name, row in (("made", result), ("real", truth)):
        row |= _clip_values(measured, name)
    result |= run.extras(measured, multimodality, unavailable)
    if real is not None and reference.read is None:
        truth |= _real_row(real, plan, split, kinds)
    if judge is None and EMBEDDED & set(plan.metrics):
        unavailable |= {k: "no evaluator was used." for k in ("fid", "r1", "diversity") if _asked(k, plan)}
    if not result:
        reasons = " ".join(dict.fromkeys(unavailable.values())) or "the protocol asks for none."
        raise VadisError(f"no metric of protocol {plan.name} can be measured: {reasons}")
    report = Report(
        model=source.name,
        protocol=asdict(plan),
        evaluator=judge[0] if judge else "none",
        data=reference.name,
        items=len(run.draws[0]),
        result=result,
        real=truth,
        unavailable=unavailable,
        notes=tuple(_notes(plan, reference, source, sets, judge, run) + figures.notes),
        identity=identity,
        settings=_settings(plan, sets, kinds, limit, settings),
        timing=clock.seconds,
        clips=run.shown(measured[0]),
    )
    if folder is not None:
        from vadis.evaluation.page import write_page

        report.save(folder)
        write_page(report, folder, run.real(0), run.made(0), pictures)
    return report


# ---- what is evaluated, against what, by whom


def _reference(data: Any, plan: Protocol, split: str | None, kinds: Sequence[str]) -> Reference:
    if data is None:
        raise VadisError(
            "give the prompts as data: a JSON file with prompt and motion_duration."
            if plan.task == "prompts"
            else "give the recorded motions as data: a corpus, or a folder of <id>.npy features with captions."
        )
    if isinstance(data, Corpus):
        found = data
    else:
        path = Path(data)
        if plan.task == "prompts":
            if not path.is_file():
                raise VadisError(f"protocol {plan.name} takes a file of prompts as data; {path} is none.")
            return from_prompts(path, plan)
        if not path.is_dir():
            raise VadisError(f"no folder {path}: data is a corpus, or a folder of <id>.npy features with captions.")
        if not (path / "corpus.json").is_file():
            if split is not None:
                raise VadisError(f"{path} is a folder without splits: leave split out.")
            return from_folder(path, plan)
        found = Corpus.open(path)
    if plan.task == "prompts":
        raise VadisError(f"protocol {plan.name} takes a file of prompts as data; a corpus goes to real= (--real).")
    return from_corpus(found, plan, split, kinds)


def _limited(reference: Reference, limit: int | None) -> Reference:
    if limit is None or limit >= len(reference.items):
        return reference
    if limit < 1:
        raise VadisError(f"limit={limit}: evaluate at least one item.")
    picked = np.linspace(0, len(reference.items) - 1, limit).round().astype(int)
    items = tuple(reference.items[i] for i in picked)
    note = f"{limit} of {len(reference.items)} items, evenly picked."
    return replace(reference, items=items, identity=f"{reference.identity}/{limit}", notes=(*reference.notes, note))


def _source(model: Any, plan: Protocol, reference: Reference, partial: bool, settings: dict[str, Any] | None,
            device: str | None) -> Source:  # fmt: skip
    name = ""
    if isinstance(model, str) and model.startswith("baseline:"):
        return BaselineSource(model.removeprefix("baseline:"), plan, reference)
    if isinstance(model, str | Path):
        path = Path(model)
        if path.is_dir() and not any((path / n).is_file() for n in ("config.json", "model_index.json")):
            return FolderSource(path, plan, reference, partial)
        from vadis.hub import load

        name, model = path.name if path.is_dir() else str(model), load(model, device=device)
    if hasattr(model, "text_encoder") and callable(model):
        if plan.task != "reconstruction":
            return PipelineSource(model, plan, name, settings)
        name, model = f"{name or type(model).__name__} tokenizer", model.tokenizer
    if getattr(model, "kind", "") == "tokenizer":
        if plan.task in ("prompts", "stream"):
            raise VadisError(f"protocol {plan.name} needs a text-to-motion pipeline; a tokenizer has no use for texts.")
        return TokenizerSource(model, plan, reference, name)
    raise ModelError(
        f"can't evaluate a {type(model).__name__}: give a text-to-motion pipeline, a tokenizer, or a folder of <id>.npy."
    )


def _evaluator(evaluator: Any, plan: Protocol, device: str | None) -> tuple[str, Any] | None:
    if not EMBEDDED & set(plan.metrics) or evaluator == "none":
        return None
    wanted = evaluator if evaluator is not None else plan.evaluator
    if wanted is None:
        raise VadisError(
            f"protocol {plan.name} needs an evaluator of {plan.representation}: name one (--evaluator FOLDER; published "
            "ones come in with `vadis import guo-evaluator` or `ms272-evaluator`), or none to leave out what needs it."
        )
    if isinstance(wanted, str | Path):
        from vadis.hub import load

        name, found = (
            str(wanted) if not Path(wanted).is_dir() else Path(wanted).resolve().name,
            load(wanted, device=device),
        )
    else:
        name, found = type(wanted).__name__, wanted
    if getattr(found, "kind", "") != "evaluator":
        raise ModelError(f"{name} is a {type(found).__name__}, no evaluator.")
    check_fit(f"evaluator {name}", found.config.representation, plan)
    return name, found


def _sets(source: Source, plan: Protocol, generations: int | None) -> int:
    """How many different sets of predictions are measured."""
    fixed = not source.random and plan.caption == "first" and plan.shorten == 0
    most = source.seeds or (1 if fixed else plan.repeats)
    if generations is not None and generations < 1:
        raise VadisError(f"generations={generations}: at least one set of predictions is needed.")
    return min(most, plan.repeats, generations or most)


# ---- one seed after another


class _Run:
    """Predictions, embeddings and values of every seed."""

    def __init__(self, plan: Protocol, reference: Reference, source: Source, evaluator: Any, work: Work, batch: int,
                 progress: Progress | None, clock: "_Clock") -> None:  # fmt: skip
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
        if self.plan.length == "reference":
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
            for name, clips in (("made", made), ("real", real)):
                if clips is not None:
                    values = measure.clip_metrics(clips, self.plan)
                    found |= {f"{name}/{k}": v for k, v in values.items()}
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


def _clip_values(measured: list[dict[str, np.ndarray]], name: str) -> dict[str, Value]:
    keys = [k for k in measured[0] if k.startswith(f"{name}/")]
    return {k.removeprefix(f"{name}/"): Value.of([np.nanmean(m[k]) for m in measured]) for k in keys}


def _real_row(real: Any, plan: Protocol, split: str | None, kinds: Sequence[str]) -> dict[str, Value]:
    """Values of recorded motion beside a file of prompts."""
    corpus = real if isinstance(real, Corpus) else Corpus.open(real)
    found = from_corpus(corpus, replace(plan, task="text"), split, kinds)
    draws = found.draws(plan, 0)
    values = measure.clip_metrics(Predictions(lambda i: found.features(draws[i]), len(draws)), plan)
    return {k: Value(float(np.nanmean(v))) for k, v in values.items()}


# ---- what a reader must know


def _asked(key: str, plan: Protocol) -> bool:
    return {"r1": "retrieval"}.get(key, key) in plan.metrics


def _settings(plan: Protocol, sets: int, kinds: Sequence[str], limit: int | None, settings: Any) -> dict[str, Any]:
    import vadis

    return {"repeats": plan.repeats, "generations": sets, "kinds": list(kinds), "limit": limit, "call": settings or {},
            "vadis": vadis.__version__, "torch": torch.__version__}  # fmt: skip


def _notes(plan: Protocol, reference: Reference, source: Source, sets: int, judge: Any, run: _Run) -> list[str]:
    notes = list(reference.notes)
    if reference.left_out:
        out = " and ".join(f"{n} {why}" for why, n in reference.left_out.items())
        notes.append(f"left out: {out} than {plan.min_frames} to {plan.max_frames} frames.")
    if len(run.draws[0]) < len(reference.items):
        notes.append(f"partial: {len(run.draws[0])} of {len(reference.items)} items have a prediction.")
    if sets < plan.repeats:
        notes.append(
            f"{sets} set{'s' if sets > 1 else ''} of predictions for {plan.repeats} seeds: intervals of learned metrics "
            "cover the drawing of pools and pairs, not new motions."
        )
    if judge is not None and judge[0] == "vadis-mini-evaluator":
        notes.append("the bundled evaluator's figures compare with each other only, not with published tables.")
    if isinstance(source, FolderSource) and source.extra:
        notes.append(f"{len(source.extra)} predictions belong to no item and were not looked at.")
    return [*notes, plan.note] if plan.note else notes


class _Clock:
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
