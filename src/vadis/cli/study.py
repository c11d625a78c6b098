"""`vadis study scaling STUDY.yaml`, `vadis study ablation STUDY.yaml`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from vadis.cli.common import check_number, check_output_folder, print_json, say
from vadis.errors import VadisError


@dataclass(frozen=True)
class _StudyVerb:
    file: Annotated[Positional[str], arg(metavar="STUDY.yaml")]
    """The study."""
    settings: Annotated[Positional[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """Settings of the recipe, the same in every cell: data.corpus=corpora/mine threads=1."""
    out: str | None = None
    """Folder of the cells, tables and plots, instead of the study's own."""
    data: str | None = None
    """Corpus that motions are measured against, instead of the study's own."""
    tokenizer: str | None = None
    """Model that made the tokens, for recipes that train on tokens alone."""
    only: tuple[str, ...] = ()
    """Only these cells: AXIS=LEVEL …; several levels of an axis are alternatives."""
    jobs: int = 1
    """Cells trained at the same time."""
    dry_run: bool = False
    """Print the cells with their parameters, data and steps; train nothing."""
    report: bool = False
    """Only remake the tables and plots from the results so far."""
    json: bool = False
    """Print JSON."""

    kind: ClassVar[str] = ""
    other: ClassVar[str] = ""

    def run(self) -> int:
        from vadis.training.study import run_study
        from vadis.training.study_plan import cells, load_study

        check_number("--jobs", self.jobs, 1, 256)
        if self.out is not None:
            check_output_folder(self.out)
        study = load_study(self.file, self.settings, run=self.out)
        if (self.kind == "ablation") != bool(study.variants):
            has = "tables of variants" if study.variants else "axes alone"
            raise VadisError(f"{Path(self.file).name} has {has}: `vadis study {self.other} {self.file}`.")
        study = self._measured(study)
        chosen = cells(study, self.only)
        if self.dry_run:
            return self._dry_run(study, chosen)
        problems = {} if self.report else run_study(study, chosen, self.jobs, say)
        self._show(study, cells(study), problems)
        for name, problem in problems.items():
            say(f"broken: {name}: {problem}")
        return 1 if problems else 0

    def _measured(self, study: Any) -> Any:
        """The study with `--data` and `--tokenizer`."""
        from dataclasses import replace

        changes = {k: v for k, v in (("data", self.data), ("tokenizer", self.tokenizer)) if v is not None}
        if changes and study.evaluation is None:
            raise VadisError("this study has no `evaluation`: --data and --tokenizer have nothing to change.")
        return replace(study, evaluation=replace(study.evaluation, **changes)) if changes else study

    def _dry_run(self, study: Any, chosen: list[Any]) -> int:
        from vadis.training.study_plan import dry_run
        from vadis.training.study_report import short

        rows = []
        for cell, page in dry_run(study, chosen):
            rows.append({"cell": cell.name, **page})
            if not self.json:
                numbers = " · ".join(f"{short(v)} {k}" for k, v in page.items() if k not in ("problem", "done"))
                done = " · done" if page.get("done") else ""
                print(f"{cell.name}: {page.get('problem') or numbers + done}", flush=True)
        if self.json:
            print_json(rows)
        return 1 if any("problem" in row for row in rows) else 0

    def _show(self, study: Any, every: list[Any], problems: dict[str, str]) -> None:
        from vadis.training.study_plan import is_done
        from vadis.training.study_report import rows_of, write_report

        if not any(is_done(cell) for cell in every):
            raise VadisError(
                f"no cell has a result. {next(iter(problems.values()), 'Run the study without --report.')}"
            )
        files = write_report(study, every)
        say(", ".join([str(files[0]), *(path.name for path in files[1:])]))
        if self.json:
            print_json(rows_of(study, every))
        else:
            print((Path(study.run) / "table.md").read_text(encoding="utf-8"), end="")


@dataclass(frozen=True)
class Scaling(_StudyVerb):
    """Train a grid of model sizes, shares of the data and seeds; loss and R@1 of each, table and plots.

    Call it again to go on: finished cells are skipped, a training continues from its checkpoint.

    Example: vadis study scaling studies/scaling-mini --dry-run
    """

    kind = "scaling"
    other = "ablation"


@dataclass(frozen=True)
class Ablation(_StudyVerb):
    """Train variants of one recipe that differ from it in one thing each; a table for every question.

    Call it again to go on: finished variants are skipped, a training continues from its checkpoint.

    Example: vadis study ablation studies/ablations-mini --dry-run
    """

    kind = "ablation"
    other = "scaling"
