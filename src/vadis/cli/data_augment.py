"""`vadis data augment CORPUS OUT`."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, output_folder, say
from vadis.cli.writing import Out, Target
from vadis.data.augment import AugmentOptions, augment_corpus
from vadis.data.corpus import Corpus


@dataclass(frozen=True)
class Augment:
    """Draw a larger captioned corpus from a small one: other speeds and headings, joined and combined stretches.

    vadis data augment corpora/cmu corpora/cmu-augmented --clips 9000
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus."""
    target: Target = None
    """Folder of the new corpus."""
    out: Out = ()
    """The same as OUT."""
    options: Annotated[AugmentOptions, arg(name="")] = field(default_factory=AugmentOptions)

    def run(self) -> None:
        out = output_folder(self.target, self.out, "vadis data augment")
        corpus = augment_corpus(Corpus.open(check_input(self.corpus)), out, self.options)
        say(f"{len(corpus)} clips, {corpus.hours:.2f} h")
        print(out)
