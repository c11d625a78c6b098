"""`vadis models`."""

from dataclasses import asdict, dataclass

from vadis.cli.common import print_json


@dataclass(frozen=True)
class Models:
    """List the models that come with vadis; `vadis info NAME` says more about one.

    vadis models
    """

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from vadis.catalog import models

        rows = models()
        if self.json:
            print_json([asdict(row) for row in rows])
            return
        for row in rows:
            print(f"{row.name:<22}{row.megabytes:>5.0f} MB  {row.licence:<12}{row.summary}")
