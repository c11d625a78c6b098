"""Studies: many trainings of one recipe, each in a folder of its own, measured alike and put side by side.

A study file names a base recipe and either `axes`, whose levels are all combined (a scaling study: model size × share of
the data × seed), or `variants`, tables of settings that differ from the base in one thing each (an ablation study).

    RUN/CELL/                the run folder of a training (see `trainer.py`)
    RUN/CELL/result.json     settings, sizes, losses, metrics; written when all of it is done
    RUN/CELL/error.txt       why the cell broke, where it did
    RUN/table.csv, .json, .md, AXIS.png    made from the results (see `study_report.py`)

A study can be stopped and called again at any time: cells with a result are skipped, a training goes on from its
checkpoint. A cell that breaks is reported and the others go on.
"""

import gc
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from vadis.errors import FileError, VadisError
from vadis.files import atomic_write
from vadis.locks import only_run
from vadis.training.study_cell import run_cell
from vadis.training.study_plan import Cell, Study, read_result

Say = Callable[[str], None]


def run_study(study: Study, chosen: Sequence[Cell], jobs: int = 1, say: Say = print) -> dict[str, str]:
    """Run the cells that have no result yet; returns what went wrong by the name of the cell.

    With `jobs` above 1 so many processes share the work. Raises KeyboardInterrupt when a training was stopped by a signal,
    FileError while another run works in the study's folder.
    """
    unique = list({c.folder: c for c in chosen}.values())
    problems: dict[str, str] = {}

    def note(number: int, cell: Cell, problem: str) -> None:
        if problem:
            problems[cell.name] = problem
        say(f"{number}/{len(unique)} {cell.name}: {problem or _line(cell)}")

    with only_run(study.run):
        if jobs == 1:
            for number, cell in enumerate(unique, 1):
                note(number, cell, attempt(study, cell))
            return problems
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(attempt, study, cell): cell for cell in unique}
            for number, future in enumerate(as_completed(waiting), 1):
                error = future.exception()  # a process that died takes its cell with it
                note(number, waiting[future], f"the process ended ({error})." if error else future.result())
        return problems


def attempt(study: Study, cell: Cell) -> str:
    """Run one cell; returns "" or, for a cell that broke, why in a sentence (with the traceback in `error.txt`)."""
    try:
        with only_run(cell.folder):
            return _attempt(study, cell)
    except FileError as error:  # another run has the folder, or it can't be written
        return str(error)


def _attempt(study: Study, cell: Cell) -> str:
    try:
        run_cell(study, cell)
    except Exception as error:
        with atomic_write(cell.folder / "error.txt") as temporary:
            temporary.write_text(traceback.format_exc(), encoding="utf-8")
        return f"{'' if isinstance(error, VadisError) else type(error).__name__ + ': '}{' '.join(str(error).split())}"
    finally:
        gc.collect()
    (cell.folder / "error.txt").unlink(missing_ok=True)
    return ""


def _line(cell: Cell) -> str:
    page = read_result(cell) or {}
    shown = {"loss": page.get("loss")} | {k: page.get("metrics", {}).get(k) for k in ("r1", "r3", "fid")}
    return " · ".join(f"{k} {v:.4g}" for k, v in shown.items() if v is not None)
