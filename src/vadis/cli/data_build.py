"""`vadis data build SRC … OUT`."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.common import check_input, output_folder, say
from vadis.cli.writing import Out
from vadis.data.build import BuildOptions, build_corpus
from vadis.errors import VadisError


@dataclass(frozen=True)
class Build:
    """Turn archives or folders of motion files and caption lists into a corpus; interrupted work is resumed.

    vadis data build cmu31.tar.xz cmu43.tar.xz corpora/cmu --captions captions.jsonl --manifest manifest.jsonl
    """

    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="SRC [SRC ...] OUT")]
    """Archives (.tar.xz, .tar.gz, .zip), folders or motion files; without -o the last is the folder of the corpus."""
    out: Out = ()
    """Folder of the corpus."""
    captions: Annotated[tuple[str, ...], arg(metavar="FILE.jsonl"), UseAppendAction] = ()
    """Caption list, matched by the file's name; repeatable."""
    manifest: Annotated[str | None, arg(metavar="FILE.jsonl")] = None
    """Licence, source and true frame rate by clip."""
    options: Annotated[BuildOptions, arg(name="")] = field(default_factory=BuildOptions)

    def run(self) -> None:
        sources, names = (self.paths, self.out) if self.out else (self.paths[:-1], self.paths[-1:])
        if not sources:
            raise VadisError("name what to build from and where to: vadis data build SRC [SRC …] OUT.")
        out = output_folder(None, names, "vadis data build")
        for path in (*sources, *self.captions, *([self.manifest] if self.manifest else [])):
            check_input(path)
        corpus = build_corpus(sources, out, self.captions, self.manifest, self.options, say=say)
        rejected = corpus.about.get("rejected", {})
        for reason, count in rejected.items():
            say(f"left out: {count} × {reason}")
        groups, every = len(set(corpus.column("group"))), self.options.validation_every
        if groups < every:
            say(
                f"warning: no clip is held out, since there are fewer groups of clips ({groups}) than --validation-every {every}; "
                f"training measures on held-out clips, so build again with a smaller one."
            )
        say(f"{len(corpus)} clips, {corpus.hours:.2f} h of {corpus.representation} at {corpus.fps:g} frames/s")
        print(out)
