"""`vadis data stats CORPUS`."""

from dataclasses import asdict, dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, print_json


@dataclass(frozen=True)
class Stats:
    """Clips, hours, captions and licences of a corpus."""

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus."""
    split: str | None = None
    """Only this split."""
    text: bool = False
    """Word statistics too: frequent words and pairs, lengths, growth of the vocabulary."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        path = check_input(self.corpus)
        from vadis.data.build import describe
        from vadis.data.corpus import Corpus
        from vadis.data.text_stats import corpus_texts, text_stats

        corpus = Corpus.open(path)
        corpus = corpus.subset(self.split) if self.split else corpus
        facts = describe(corpus)
        words = text_stats(corpus_texts(corpus)) if self.text else None
        if self.json:
            print_json(facts | ({"text": asdict(words)} if words else {}))
            return
        print(f"{facts['clips']} clips, {facts['hours']:.2f} h of {corpus.representation} at {corpus.fps:g} frames/s")
        for key, table in facts["hours_by"].items():
            print(f"{key:<9}" + ", ".join(f"{name} {hours:.2f} h" for name, hours in table.items()))
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["captions"].items()) or "none"
        print(f"captions {kinds}; {facts['words']} different words")
        for reason, count in facts["rejected"].items():
            print(f"left out {count} × {reason}")
        if words:
            print()
            print(words.markdown(), end="")
