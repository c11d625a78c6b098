"""`vadis data scenes CORPUS OUT`."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from vadis.cli.common import check_input, say
from vadis.data.corpus import Corpus
from vadis.data.scenes.build import SceneOptions, build_scenes


@dataclass(frozen=True)
class Scenes:
    """Draw rooms with coloured things, and assemble the motions that walk to them, with pictures and instructions.

    vadis data scenes corpus/cmu corpus/scenes --rooms 750
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of a corpus with captioned walking."""
    out: Annotated[Positional[str], arg(metavar="OUT")]
    """Folder of the new corpus."""
    options: OmitArgPrefixes[SceneOptions] = field(default_factory=SceneOptions)

    def run(self) -> None:
        corpus = build_scenes(Corpus.open(check_input(self.corpus)), self.out, self.options)
        for reason, count in corpus.about.get("rejected", {}).items():
            say(f"rooms left out: {count} × {reason}")
        say(f"{len(corpus)} clips, {corpus.hours:.2f} h")
        print(self.out)
