"""What a run tells: a progress bar on stderr, `log.jsonl`, and trackio or tensorboard when asked."""

import json
import math
from pathlib import Path
from typing import Any

from vadis.errors import MissingExtra
from vadis.files import atomic_write


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


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if log.exists():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        with atomic_write(log) as temporary:
            kept = [line for line in lines if json.loads(line)["step"] <= step] if step else []
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


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
