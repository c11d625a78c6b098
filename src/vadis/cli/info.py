"""`vadis info FILE-or-MODEL`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import vadis
from vadis.cli.common import print_json
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
        from vadis.io.recognize import describe

        report = describe(path)
        if self.json:
            print_json(report.to_dict())
            return
        print(f"{report.path}: {report.summary}")
        width = max((len(label) for label in report.facts), default=0)
        for label, value in report.facts.items():
            print(f"  {label:<{width}}  {value}")
        for warning in report.warnings:
            print(f"  careful: {warning}")
        for step in report.next:
            print(f"  next: {step}")


def find(name: str) -> Path:
    """The path of that name, or the folder of the bundled model called so; FileError when there is neither."""
    path = Path(name)
    if path.exists():
        return path
    from vadis.hub import bundled_models

    bundled = bundled_models()
    if name in bundled:
        return Path(vadis.__file__).parent / "models" / name
    known = f" Bundled models: {', '.join(bundled)}." if bundled else ""
    raise FileError(f"no file, folder or bundled model {name[:200]!r}.{known}")
