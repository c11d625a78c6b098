"""`vadis data overlap CORPUS [OTHER]`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, check_output, print_json, say
from vadis.errors import VadisError
from vadis.files import atomic_write


@dataclass(frozen=True)
class Overlap:
    """Repeated captions and repeated motion: of a test split in the train split, of one corpus in another, or inside one.

    With `--splits train test` or with OTHER the report says how much of the second part occurs in the first.
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus (the reference, when there are two parts)."""
    other: Annotated[Positional[str | None], arg(metavar="OTHER")] = None
    """Folder of the corpus to test."""
    splits: tuple[str, ...] = ()
    """The split of the reference and the split that is tested; one name takes that split alone."""
    out: Annotated[str | None, arg(aliases=["-o", "--output"])] = None
    """Report to write: .md, or .json with every pair."""
    kinds: tuple[str, ...] = ()
    """Only captions of these kinds."""
    jaccard: float = 0.8
    """Share of common words from which two captions are nearly the same."""
    millimetres: float = 20.0
    """Mean joint distance up to which two motions are nearly the same."""
    seconds: float = 2.0
    """Shortest common stretch of motion."""
    mirrored: bool = False
    """Look for left-right mirrored copies too."""
    text_only: bool = False
    """Compare captions only."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        output = check_output(self.out, (".md", ".json")) if self.out else None
        paths = [check_input(p) for p in (self.corpus, self.other) if p is not None]
        if len(self.splits) > 2:
            raise VadisError(f"--splits takes one or two names; got {len(self.splits)}: {' '.join(self.splits)}.")
        from vadis.data.corpus import Corpus
        from vadis.data.overlap import as_json, overlap

        corpora = [Corpus.open(p) for p in paths]
        splits = (self.splits * 2)[:2] if len(paths) == 2 else self.splits
        if len(splits) == 2 and len(corpora) == 1:
            if splits[0] == splits[1]:
                raise VadisError(f"--splits {splits[0]} {splits[1]}: name two different splits, or one alone.")
            corpora *= 2
        parts = [c.subset(s) for c, s in zip(corpora, splits, strict=True)] if splits else corpora
        names = [_name(p, s) for p, s in zip(paths * 2, splits or ("", ""), strict=False)]
        say(f"comparing {' and '.join(f'{len(p)} clips of {n}' for p, n in zip(parts, names, strict=False))}")
        report = overlap(
            *parts, names=(names[0], names[-1]), kinds=self.kinds, jaccard=self.jaccard, millimetres=self.millimetres,
            seconds=self.seconds, mirrored=self.mirrored, motion=not self.text_only,
        )  # fmt: skip
        if output is not None:
            with atomic_write(output) as temporary:
                if output.suffix == ".json":
                    text = json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n"
                else:
                    text = report.markdown()
                temporary.write_text(text, encoding="utf-8")
        if self.json:
            print_json(as_json(report))
        elif output is not None:
            print(output)
        else:
            print(report.markdown(most=10))


def _name(path: Path, split: str) -> str:
    name = path.resolve().name
    return f"{name}/{split}" if split else name
