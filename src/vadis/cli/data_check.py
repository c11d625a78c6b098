"""`vadis data check CORPUS`: read everything and verify it."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, print_json
from vadis.errors import VadisError

if TYPE_CHECKING:
    from vadis.data.corpus import Clip, Corpus

SIX_D_TOLERANCE = 0.02
"""Largest distance from 1 of the length of a 6D rotation's axes; float16 storage costs 0.001."""


@dataclass(frozen=True)
class Check:
    """Read a whole corpus and verify every clip: finite values, unit rotations, captions within the clip, no clip twice.

    Exit code 2 when something is wrong.
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        path = check_input(self.corpus)
        from vadis.data.corpus import Corpus

        corpus = Corpus.open(path)
        problems: list[tuple[str, str]] = []
        names = corpus.column("clip")
        for k, name in enumerate(names):
            try:
                problems += [(name, what) for what in clip_problems(corpus, corpus[k])]
            except VadisError as error:  # a corpus gives out nothing that isn't sound; here the rest is looked at too
                problems.append((name, str(error)))
        problems += [(name, f"is there {count} times") for name, count in Counter(names).items() if count > 1]
        splits: dict[str, set[str]] = {}
        for group, split in zip(corpus.column("group"), corpus.column("split"), strict=True):
            splits.setdefault(group, set()).add(split)
        problems += [(group, "group is in several splits") for group, found in splits.items() if len(found) > 1]
        report: dict[str, Any] = {
            "clips": len(corpus),
            "frames": int(corpus.frames.sum()),
            "captions": sum(len(captions) for captions in corpus.column("captions")),
            "clips_without_captions": sum(not captions for captions in corpus.column("captions")),
            "problems": [{"clip": name, "problem": what} for name, what in problems],
        }
        if self.json:
            print_json(report)
        else:
            print(f"{report['clips']} clips, {report['frames']} frames, {report['captions']} captions "
                  f"({report['clips_without_captions']} clips without)")  # fmt: skip
            for name, what in problems[:50]:
                print(f"{name}: {what}")
        if problems:
            raise VadisError(f"{len(problems)} problems in {path}; rebuild it, or leave these clips out.")


def clip_problems(corpus: "Corpus", clip: "Clip") -> list[str]:
    """What is wrong with one clip, in words; empty when nothing is."""
    from vadis.representations import representation

    found = []
    x = clip.features
    rotations = representation(corpus.representation).slices.get("joint_rotations")
    if rotations is not None and (x.shape[1] - rotations.start) >= 6:
        off = float((x[:, rotations].unflatten(-1, (-1, 6)).square().sum(-1).div(2).sqrt() - 1).abs().max())
        if off > SIX_D_TOLERANCE:
            found.append(f"a 6D rotation is {off:.2f} off unit length")
    seconds = len(x) / corpus.fps
    for caption in clip.captions:
        if not 0 <= caption.start <= caption.end <= seconds + 0.1:
            found.append(f"caption {caption.text[:40]!r} spans {caption.start:g}–{caption.end:g} s of {seconds:.2f} s")
        if not caption.text.strip():
            found.append("an empty caption")
    return found
