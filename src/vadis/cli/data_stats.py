"""`vadis data stats CORPUS`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, print_json


@dataclass(frozen=True)
class Stats:
    """Clips, hours, captions and licences of a corpus."""

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        path = check_input(self.corpus)
        from vadis.data.build import describe
        from vadis.data.corpus import Corpus

        corpus = Corpus.open(path)
        facts = describe(corpus)
        if self.json:
            print_json(facts)
            return
        print(f"{facts['clips']} clips, {facts['hours']:.2f} h of {corpus.representation} at {corpus.fps:g} frames/s")
        for key, table in facts["hours_by"].items():
            print(f"{key:<9}" + ", ".join(f"{name} {hours:.2f} h" for name, hours in table.items()))
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["captions"].items()) or "none"
        print(f"captions {kinds}; {facts['words']} different words")
        for reason, count in facts["rejected"].items():
            print(f"left out {count} × {reason}")
