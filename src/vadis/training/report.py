"""What a run tells: a progress bar on stderr, `log.jsonl`, and trackio or tensorboard when asked."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from vadis.errors import MissingExtra
from vadis.files import atomic_write
from vadis.records import checked, parse_json, read_json, read_lines


class Report:
    """Progress and numbers of one training session. `active=False` (all processes but the first) is silent."""

    def __init__(self, folder: Path, title: str, steps: int, step: int, logger: str, config: Any, active: bool) -> None:
        self.active = active
        if not active:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.steps = steps
        self._console = Console(stderr=True)
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        ]
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bar.start()
        self._task = self._bar.add_task(title, total=steps, completed=step, note="")
        log = folder / "log.jsonl"
        _forget_after(log, step)
        self._file = log.open("a", encoding="utf-8")
        self._write, self._finish = _open_logger(logger, folder, title, config)

    def advance(self, step: int, note: str = "") -> None:
        """Move the bar; `note` replaces the text beside it."""
        if self.active:
            if note:
                self._bar.update(self._task, note=note)
            self._bar.update(self._task, completed=step)

    def log(self, step: int, values: dict[str, Any], note: str) -> None:
        """Record numbers at a step, in the file, in the logger and, without a terminal, as a line on stderr."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self._write({k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}, step)
        self.advance(step, note)
        if not self._console.is_terminal:
            self._console.print(f"{step}/{self.steps} {note}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        if self.active:
            self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """End the bar, the file and the logger; a second call does nothing."""
        if self.active:
            self.active = False
            self._bar.stop()
            self._file.close()
            self._finish()


def duration(seconds: float) -> str:
    """`75` -> `1:15`, `3700` -> `1:01:40`."""
    whole = max(0, int(seconds))
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


class LogLine(TypedDict):
    """A line of `log.jsonl`; the numbers of the step stand beside it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    step: Annotated[int, Field(ge=0)]


def read_log(log: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a `log.jsonl`, as they are written and as values; figures may be NaN, as losses can.

    A last line that a kill cut off doesn't count. Raises FileError naming a line that is no such record.
    """
    found = []
    for number, line in read_lines(log):
        if not line.endswith(b"\n") and not line.endswith(b"}"):
            break
        where = f"{log}, line {number}"
        page = parse_json(line, where, finite=False)
        checked(LogLine, page, where)
        found.append((line.rstrip(b"\r\n") + b"\n", page))
    return found


class RunPage(TypedDict):
    """What must stand in a `run.json`."""

    __pydantic_config__ = ConfigDict(extra="allow", allow_inf_nan=False)  # type: ignore[misc]
    state: str
    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    versions: dict[str, str]


def read_run_page(path: Path) -> dict[str, Any]:
    """A run's `run.json`; raises FileError when it is damaged."""
    return checked(RunPage, read_json(path), path)  # type: ignore[return-value]


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if log.exists():
        kept = [line for line, page in read_log(log) if page["step"] <= step] if step else []
        with atomic_write(log) as temporary:
            temporary.write_bytes(b"".join(kept))


def _open_logger(kind: str, folder: Path, title: str, config: Any) -> tuple[Any, Any]:
    """(write(values, step), finish()) of a logger."""
    if kind == "trackio":
        try:
            import trackio
        except ImportError as error:
            raise MissingExtra("logger: trackio needs trackio: pip install 'vadis[train]'") from error
        trackio.init(project="vadis", name=title, config=config, resume="allow")
        return (lambda values, step: trackio.log(values, step=step)), trackio.finish
    if kind == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("logger: tensorboard needs tensorboard: pip install tensorboard") from error
        writer = SummaryWriter(str(folder / "tensorboard"))
        return (lambda values, step: [writer.add_scalar(k, v, step) for k, v in values.items()]), writer.close
    return (lambda values, step: None), (lambda: None)
