"""`vadis.evaluate`: a pipeline, a tokenizer or a folder of predictions against recorded motion, under a protocol.

Every seed draws captions and crops anew and, where the model can, new motions; figures are means over the seeds. The real
motions go through the same measurements and stand beside the result.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vadis.component import MotionTokenizer, Part
from vadis.data.corpus import Corpus
from vadis.errors import ModelError, VadisError
from vadis.evaluation import measure
from vadis.evaluation.baselines import BaselineSource
from vadis.evaluation.cache import Predictions, Progress, Work
from vadis.evaluation.prompt_physics import by_kind
from vadis.evaluation.protocol import FOLDER, Protocol, load_protocol
from vadis.evaluation.reference import Reference, from_corpus, from_folder, from_prompts
from vadis.evaluation.report import Report, Value
from vadis.evaluation.run import Clock, Run
from vadis.evaluation.sources import (
    FolderSource,
    PipelineSource,
    Source,
    TokenizerSource,
    check_fit,
    model_identity,
)
from vadis.files import apart, free_folder
from vadis.hub import bundled_models
from vadis.loading import load
from vadis.locks import only_run
from vadis.pipelines.base import Pipeline
from vadis.places import named_in_file

EMBEDDED = {"fid", "retrieval", "diversity", "multimodality"}


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
    judge: Any = None,
    device: str | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
    allow_download: bool = False,
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
        judge: for prompts, who looks at rendered clips (`vadis.evaluation.judges`); nothing is sent without one.
        device: of models that are loaded here.
        settings: keywords for the pipeline's call.
        progress: called with stage, done, total.
        allow_download: fetch what a file in the model's folder, or the protocol's file, names on the Hub.

    Raises VadisError (with the cure) for a protocol that doesn't fit the representation, different sets of ids, captions
    without motion, work of other settings in `out`, another run that works there; metrics that have too few items are
    named in `report.unavailable`.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        apart(folder, *(place for place in (model, data, real) if isinstance(place, str | Path)))
        free_folder(folder, "report.json", "work")
    with nullcontext() if folder is None else only_run(folder):
        clock = Clock()
        plan = load_protocol(protocol)
        plan = replace(plan, repeats=repeats) if repeats is not None else plan
        reference = _limited(_reference(data, plan, split, kinds), limit)
        options = {"device": device, "allow_download": allow_download}
        if evaluator is None and plan.evaluator is not None and not isinstance(protocol, Protocol):  # its file names it
            evaluator = named_in_file(
                plan.evaluator, f"protocol {plan.name}: evaluator", known=bundled_models(),
                allow_download=allow_download, otherwise="name the evaluator yourself",
            )  # fmt: skip
        source = _source(model, plan, reference, partial, settings, options)
        encoder = _evaluator(evaluator, plan, options)
        sets = _sets(source, plan, generations)
        identity = {
            "protocol": model_identity(replace(plan, repeats=1)),
            "model": source.identity,
            "evaluator": "" if encoder is None else model_identity(encoder[1]),
            "data": reference.identity,
        }
        work = Work(folder, identity, overwrite)
        run = Run(plan, reference, source, encoder[1] if encoder else None, work, batch_size, progress, clock)
        measured = [run.seed(g) for g in range(sets)]
        figures = measure.SetMetrics(plan)
        with clock("metrics"):
            for r in range(plan.repeats if encoder else 0):
                figures.add(measured[r % sets], r)
        result = {k: Value.of(v) for k, v in figures.result.items()}
        truth = {k: Value.of(v) for k, v in figures.real.items()}
        unavailable = dict(figures.unavailable)
        for name, row in (("made", result), ("real", truth)):
            row |= _clip_values(measured, name)
        result |= run.extras(measured, multimodality, unavailable)
        notes = []
        if "obeyed" in plan.metrics:
            texts = [draw.texts[0].text for draw in run.draws[0]]
            notes += by_kind(texts, [arrays["made/obeyed"] for arrays in measured])
        if judge is not None:
            if plan.task != "prompts":
                raise VadisError(f"a judge answers the questions of a prompt file; protocol {plan.name} has none.")
            from vadis.evaluation.judged import judged

            scores = judged(judge, run.made(0), run.draws[0], plan)
            result |= {k: Value(s.accuracy) for k, s in scores.items()}
            notes += [
                f"{s.name}: {s.correct} of {s.total} right, {s.unread} unread, {s.renderer} at {s.fps:g} frames/s."
                for s in scores.values()
            ]
            identity["judge"] = "/".join(f"{s.name} {s.parse} {s.prompt_hash}" for s in scores.values())
        if real is not None and reference.read is None:
            truth |= _real_row(real, plan, split, kinds)
        if encoder is None and EMBEDDED & set(plan.metrics):
            unavailable |= {k: "no evaluator was used." for k in ("fid", "r1", "diversity") if _asked(k, plan)}
        if not result:
            reasons = " ".join(dict.fromkeys(unavailable.values())) or "the protocol asks for none."
            raise VadisError(f"no metric of protocol {plan.name} can be measured: {reasons}")
        report = Report(
            model=source.name,
            protocol=asdict(plan),
            evaluator=encoder[0] if encoder else "none",
            data=reference.name,
            items=len(run.draws[0]),
            result=result,
            real=truth,
            unavailable=unavailable,
            notes=tuple(_notes(plan, reference, source, sets, encoder, run) + figures.notes + notes),
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
    if data is None and plan.prompts is not None:
        return from_prompts(FOLDER / plan.prompts, plan)
    if data is None:
        raise VadisError(
            "give the prompts as data (--data): a JSON file with prompt and motion_duration."
            if plan.task == "prompts"
            else "give the recorded motions as data (--data): a corpus, or a folder of <id>.npy features with captions."
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
            options: dict[str, Any]) -> Source:  # fmt: skip
    name = ""
    if isinstance(model, str) and model.startswith("baseline:"):
        return BaselineSource(model.removeprefix("baseline:"), plan, reference)
    if isinstance(model, str | Path):
        path, ours = Path(model), isinstance(model, str) and model in bundled_models()
        if path.is_dir() and not ours and not any((path / n).is_file() for n in ("config.json", "model_index.json")):
            return FolderSource(path, plan, reference, partial)
        name, model = path.name if path.is_dir() else str(model), load(model, **options)
    if isinstance(model, Pipeline):
        if plan.task != "reconstruction":
            return PipelineSource(model, plan, name, settings)
        name, model = f"{name or type(model).__name__} tokenizer", model.tokenizer
    if isinstance(model, MotionTokenizer):
        if plan.task in ("prompts", "stream"):
            raise VadisError(f"protocol {plan.name} needs a text-to-motion pipeline; a tokenizer has no use for texts.")
        return TokenizerSource(model, plan, reference, name)
    raise ModelError(
        f"can't evaluate a {type(model).__name__}: give a text-to-motion pipeline, a tokenizer, or a folder of <id>.npy."
    )


def _evaluator(evaluator: Any, plan: Protocol, options: dict[str, Any]) -> tuple[str, Any] | None:
    if not EMBEDDED & set(plan.metrics) or evaluator == "none":
        return None
    wanted = evaluator if evaluator is not None else plan.evaluator
    if wanted is None:
        raise VadisError(
            f"protocol {plan.name} needs an evaluator of {plan.representation}: name one (--evaluator FOLDER; published "
            "ones come in with `vadis import guo-evaluator` or `ms272-evaluator`), or none to leave out what needs it."
        )
    if isinstance(wanted, str | Path):
        name, found = (
            str(wanted) if not Path(wanted).is_dir() else Path(wanted).resolve().name,
            load(wanted, **options),
        )
    else:
        name, found = type(wanted).__name__, wanted
    if not (isinstance(found, Part) and found.kind == "evaluator"):
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


# ---- figures


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


def _notes(plan: Protocol, reference: Reference, source: Source, sets: int, encoder: Any, run: Run) -> list[str]:
    notes = [*reference.notes, *source.notes]
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
    if encoder is not None and encoder[0] == "vadis-mini-evaluator":
        notes.append("the bundled evaluator's figures compare with each other only, not with published tables.")
    if isinstance(source, FolderSource) and source.extra:
        notes.append(f"{len(source.extra)} predictions belong to no item and were not looked at.")
    return [*notes, plan.note] if plan.note else notes
