"""`vadis info FILE-or-MODEL`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import vadis
from vadis.cli.common import print_json, say
from vadis.errors import FileError


@dataclass(frozen=True)
class Info:
    """Say what a file, a model or a corpus is, by its content, and what to do with it.

    vadis info thing.npy
    vadis info vadis-mini
    """

    path: Annotated[Positional[str], arg(metavar="FILE-or-MODEL")]
    """A motion file, array, checkpoint, archive, corpus, model folder, or the name of a bundled model."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        path = find(self.path)
        from vadis.inspect.files import describe

        report = describe(path)
        if self.json:
            print_json(report.to_dict())
            return
        print(f"{report.path}: {report.summary}")
        width = max((len(label) for label in report.facts), default=0)
        for label, value in report.facts.items():
            print(f"  {label:<{width}}  {value}")
        for warning in report.warnings:
            print(f"  warning: {warning}")
        for step in report.next:
            print(f"  next: {step}")


def find(name: str) -> Path:
    """The folder of the bundled model of that name, or the path; FileError when there is neither."""
    path, models = Path(name), Path(vadis.__file__).parent / "models"
    bundled = sorted(folder.name for folder in models.glob("*"))  # without torch, which `vadis.hub` needs
    if name in bundled:
        if path.exists():
            say(f"{name} is the bundled model; for what is called so here write ./{name}.")
        return models / name
    if path.exists():
        return path
    known = f" Bundled models: {', '.join(bundled)}." if bundled else ""
    raise FileError(f"no file, folder or bundled model {name[:200]!r}.{known}")
