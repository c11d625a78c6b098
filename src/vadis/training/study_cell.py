"""One cell of a study: train, read the held-out losses, make motions and measure them, write `result.json`."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from vadis.config import as_dict
from vadis.errors import ModelError, VadisError
from vadis.files import atomic_write
from vadis.records import read_json
from vadis.training.config import Recipe
from vadis.training.report import read_log, read_run_page
from vadis.training.study_plan import HARMLESS, Cell, MotionEvaluation, Study, cell_recipe, facts, read_result

METRICS = ("r1", "r2", "r3", "fid", "matching", "diversity", "skate", "jerk")
"""Kept of an evaluation, and of real motion beside it."""


def run_cell(study: Study, cell: Cell) -> dict[str, Any]:
    """The result of a cell, made now unless it is there.

    Raises VadisError when the folder holds the result of other settings, KeyboardInterrupt when a signal stopped the
    training, and whatever the training or the evaluation raises.
    """
    recipe, evaluation = cell_recipe(study, cell)
    settings = _settings(study, recipe, evaluation)
    if (there := read_result(cell)) is not None:
        _same(there["settings"], settings, cell)
        return there
    if (cell.folder / "config.json").is_file():  # a training that was stopped
        before = {k: v for k, v in read_json(cell.folder / "config.json").items() if k not in (*HARMLESS, "steps")}
        _same(before, {k: v for k, v in settings["recipe"].items() if k != "steps"}, cell)
    page = _trained(study, cell, recipe)
    if evaluation is not None:
        start = time.monotonic()
        page |= measure(recipe, cell.folder, evaluation)
        page["evaluation_seconds"] = round(time.monotonic() - start, 1)
    page = {"labels": cell.labels, "settings": settings, **page}
    with atomic_write(cell.folder / "result.json") as temporary:
        temporary.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page


def _settings(study: Study, recipe: Recipe, evaluation: MotionEvaluation | None) -> dict[str, Any]:
    """All that decides the result."""
    return {
        "recipe": {k: v for k, v in as_dict(recipe).items() if k not in HARMLESS},
        "epochs": study.budget.epochs,
        "evaluation": None if evaluation is None else as_dict(evaluation),
    }


def _flat(page: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(page, dict):
        return {prefix: page}
    return {
        k: v for name, value in page.items() for k, v in _flat(value, f"{prefix}.{name}" if prefix else name).items()
    }


def _same(before: dict[str, Any], now: dict[str, Any], cell: Cell) -> None:
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    changed = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if changed:
        raise VadisError(
            f"{cell.folder} holds a training with other settings ({'; '.join(changed[:4])}). Set them back, delete the "
            "folder, or give the study another folder with --out."
        )


def _trained(study: Study, cell: Cell, recipe: Recipe) -> dict[str, Any]:
    """Train or go on training; sizes, losses and what it took."""
    from vadis.training.tasks import TASKS
    from vadis.training.trainer import Trainer

    if study.budget.epochs:  # the number of steps is known when the data are open
        recipe = replace(recipe, steps=facts(TASKS[recipe.task](recipe), recipe, study.budget)["steps"])
    trainer = Trainer(recipe)
    sizes = facts(trainer.task, recipe, study.budget)
    trainer.run()
    page = read_run_page(cell.folder / "run.json")
    if not page["state"].startswith("finished"):
        raise KeyboardInterrupt(page["state"])
    sizes["steps"] = page["step"]
    if "items" in sizes:
        seen = page["step"] * recipe.accumulate * sizes["items_per_step"]
        sizes["epochs"] = round(seen / sizes["items"], 3)
    return {"facts": sizes, "seconds": page["seconds"], "versions": page["versions"]} | _losses(cell.folder)


def _losses(folder: Path) -> dict[str, Any]:
    """The last held-out loss, the lowest on the way, the last training loss, and the curve of (step, held-out loss)."""
    lines = [page for _, page in read_log(folder / "log.jsonl")]
    validations = [line for line in lines if any(k.startswith("validation/") for k in line)]
    if not validations:
        raise VadisError(f"{folder / 'log.jsonl'} has no validation.")
    last = {k.removeprefix("validation/"): v for k, v in validations[-1].items() if k.startswith("validation/")}
    name = "loss" if "loss" in last else next(iter(last))
    curve = [[line["step"], line[f"validation/{name}"]] for line in validations]
    trained = [line["loss"] for line in lines if "loss" in line]
    return {
        "loss": curve[-1][1],
        "best_loss": min(value for _, value in curve),
        "train_loss": trained[-1] if trained else None,
        "loss_name": name,
        "validation": last,
        "curve": curve,
    }


def measure(recipe: Recipe, folder: Path, wanted: MotionEvaluation) -> dict[str, Any]:
    """Motions of the trained model, made for held-out captions, through `vadis.evaluate`."""
    from vadis.evaluation.evaluate import evaluate

    weights = folder / wanted.weights
    if not weights.is_dir():
        raise VadisError(f"there is no {weights}: set best=… in the recipe (a validation metric), or weights: model.")
    pipe = pipeline_of(recipe, weights, wanted)
    report = evaluate(
        pipe, wanted.protocol, wanted.data, evaluator=wanted.evaluator, split=wanted.split, kinds=wanted.kinds,
        repeats=wanted.repeats, generations=wanted.generations, limit=wanted.limit, batch_size=wanted.batch,
        settings=wanted.settings,
    )  # fmt: skip
    return {
        "items": report.items,
        "metrics": {k: report.result[k].mean for k in METRICS if k in report.result},
        "real": {k: report.real[k].mean for k in METRICS if k in report.real},
        "unavailable": {k: v for k, v in report.unavailable.items() if k in METRICS},
    }


def pipeline_of(recipe: Any, weights: Path, wanted: MotionEvaluation) -> Any:
    """The pipeline that makes motions with the model that a recipe trained.

    Raises VadisError for a task whose models make no motion, or when a tokenizer is missing or another one.
    """
    import vadis

    if recipe.task == "generator":
        from vadis.data.encoded_corpus import EncodedCorpus
        from vadis.data.segments import fingerprint
        from vadis.pipelines.load import load_tokenizer
        from vadis.pipelines.text_to_motion import GenerationConfig, TextToMotionPipeline

        about = EncodedCorpus.open(recipe.data.corpus).about
        if wanted.tokenizer is None:
            raise VadisError("name the model that made the tokens: evaluation.tokenizer (--tokenizer FOLDER).")
        tokenizer = load_tokenizer(wanted.tokenizer)
        if fingerprint(tokenizer) != about["tokenizer"]["sha256"]:
            raise ModelError(f"the tokens of {recipe.data.corpus} were not made by {wanted.tokenizer}.")
        config = GenerationConfig(temperature=1.0, plan="none", text_encoder=about["text_encoder"]["name"])
        return TextToMotionPipeline(tokenizer, vadis.load(weights), config=config)
    if recipe.task == "language":
        from vadis.language.motion_lm import MotionLM
        from vadis.pipelines.motion_language import MotionLanguagePipeline

        model = recipe.model
        base = None if model.start else model.backbone  # which the recipe names, whatever the weights' folder says
        options = {"base": base, "allow_download": model.allow_download}
        return MotionLanguagePipeline(MotionLM.from_pretrained(weights, vadis.load(model.tokenizer), **options))
    raise VadisError(
        f"models of task {recipe.task} make no motion from text: leave out `evaluation` to compare held-out losses."
    )
