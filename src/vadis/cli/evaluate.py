"""`vadis evaluate MODEL --data CORPUS`."""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.common import call_settings, check_input, check_output_folder, print_json, say
from vadis.errors import VadisError


@dataclass(frozen=True)
class Evaluate:
    """Measure a pipeline, a tokenizer or a folder of predictions against recorded motion.

    vadis evaluate vadis-mini --data corpora/mini -o results/mini

    vadis evaluate vadis-mini --protocol prompt-physics

    vadis evaluate predictions/ --data corpora/test --protocol ms272-official4042 --evaluator evaluators/ms272
    """

    model: Annotated[Positional[str | None], arg(metavar="MODEL")] = None
    """A model's name, folder or Hub id, or a folder of <id>.npy predictions."""
    data: str | None = None
    """Corpus, or folder of <id>.npy features with captions; for protocol mbench a JSON file of prompts."""
    protocol: str = "ms272"
    """babel-stream, hml263, mbench, motionmillion, ms272, ms272-official4042, prompt-physics, reconstruction, or a YAML file."""
    evaluator: str | None = None
    """Model of motion and text that gives embeddings; by default the bundled one where it fits; "none" does without."""
    baseline: str | None = None
    """Instead of a model: real, shuffled, noise, float, slide, frozen, smooth, mirrored or nearest."""
    output: Annotated[str | None, arg(aliases=["-o", "--out"])] = None
    """Folder for the report (JSON, Markdown, HTML) and the work; called again, the evaluation goes on there."""
    split: str | None = None
    """Split of the corpus; by default test, else val; "all" for everything."""
    kinds: tuple[str, ...] = ("whole",)
    """Kinds of captions that count."""
    repeats: int | None = None
    """Seeds; by default the protocol's."""
    generations: int | None = None
    """Sets of predictions that are made; by default one per seed."""
    limit: int | None = None
    """Only about this many items, evenly picked."""
    real: str | None = None
    """For prompts: a corpus for the row of real motion."""
    batch_size: int = 32
    """Prompts handed to the model at once."""
    partial: bool = False
    """Evaluate what predictions and data have in common instead of refusing."""
    multimodality: bool = False
    """Also make many motions for some prompts, where the protocol asks for it."""
    overwrite: bool = False
    """Start over in the output folder."""
    pictures: int = 3
    """Worst and best clips drawn in the HTML report."""
    judge: str | None = None
    """For prompts: address of an OpenAI-compatible endpoint that looks at rendered clips; its key is read from the
    environment variable VADIS_JUDGE_KEY. Nothing is sent without this flag."""
    judge_model: str = ""
    """Name of the model there."""
    samples: int | None = None
    """Candidates per motion, of which the model keeps one; by default the model's own number."""
    guidance_scale: Annotated[float | None, arg(aliases=["--guidance"])] = None
    """How strongly the prompt is followed; by default the model's own value."""
    temperature: float | None = None
    """By default the model's own value."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE"), UseAppendAction] = ()
    """Any other setting of the model; `vadis info MODEL` lists them."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder, or the protocol's own file, names there."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        if (self.model is None) == (self.baseline is None):
            raise VadisError("name a model (or a folder of predictions), or a --baseline; one of the two.")
        data = None if self.data is None else check_input(self.data)
        if self.output:
            check_output_folder(self.output)
        from vadis.evaluation.evaluate import evaluate

        given = {"samples": self.samples, "guidance_scale": self.guidance_scale, "temperature": self.temperature}
        given |= call_settings(self.set)
        report = evaluate(
            self.model if self.baseline is None else f"baseline:{self.baseline}",
            self.protocol, data, evaluator=self.evaluator, split=self.split, kinds=self.kinds, out=self.output,
            repeats=self.repeats, generations=self.generations, batch_size=self.batch_size, limit=self.limit,
            real=self.real, partial=self.partial, multimodality=self.multimodality, overwrite=self.overwrite,
            pictures=self.pictures, device=self.device, settings={k: v for k, v in given.items() if v is not None},
            judge=self._judge(), progress=_Progress(), allow_download=self.allow_download,
        )  # fmt: skip
        if self.json:
            print_json(json.loads(json.dumps(report.as_json() | {"clips": None})))
        else:
            print(report.markdown(), end="")
        if self.output:
            say(f"{Path(self.output) / 'report.html'}")

    def _judge(self) -> Any:
        if self.judge is None:
            return None
        if not self.judge_model:
            raise VadisError("name the model behind the endpoint: --judge-model NAME.")
        from vadis.evaluation.judges import HTTPJudge

        return HTTPJudge(self.judge, self.judge_model, api_key=os.environ.get("VADIS_JUDGE_KEY"))


class _Progress:
    """A line on stderr now and then."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self.last > 5:
            self.last = time.monotonic()
            print(f"{stage} {done}{f' of {total}' if total else ''}", file=sys.stderr, flush=True)
