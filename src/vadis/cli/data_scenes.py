"""`vadis data scenes CORPUS OUT`."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from vadis.cli.common import check_input, check_output, output_folder, say
from vadis.cli.writing import Out, Target
from vadis.data.corpus import Corpus
from vadis.data.scenes.build import SceneOptions, build_scenes
from vadis.data.scenes.report import scene_report, scene_sheet


@dataclass(frozen=True)
class Scenes:
    """Make pictures of rooms, instructions, and motions that follow them, out of a corpus with recorded walking.

    vadis data scenes corpora/cmu corpora/scenes --rooms 750 --sheet scenes.png
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of a corpus with captioned walking."""
    target: Target = None
    """Folder of the new corpus."""
    out: Out = ()
    """The same as OUT."""
    options: Annotated[OmitArgPrefixes[SceneOptions], arg(name="")] = field(default_factory=SceneOptions)

    sheet: Annotated[str | None, arg(metavar="FILE.png")] = None
    """Also draw the first rooms with the paths of their clips."""

    def run(self) -> None:
        out = output_folder(self.target, self.out, "vadis data scenes")
        if self.sheet:
            check_output(self.sheet, (".png", ".jpg", ".jpeg", ".webp"))
        corpus = build_scenes(Corpus.open(check_input(self.corpus)), out, self.options)
        for reason, count in corpus.about.get("rejected", {}).items():
            say(f"rooms left out: {count} × {reason}")
        report = scene_report(corpus)
        for kind, row in report["kinds"].items():
            say(
                f"{kind}: {row['clips']} clips of {row['seconds'][0]:.1f} s, end {row['end_distance'][0]:.2f} m from the "
                f"middle of the target, nearest to anything else {row['clearance'][0]:.2f} m"
            )
        say(f"{len(corpus)} clips, {corpus.hours:.2f} h, {report['rooms']} rooms, {report['collisions']} collisions")
        if self.sheet:
            scene_sheet(corpus, self.sheet)
        print(out)
