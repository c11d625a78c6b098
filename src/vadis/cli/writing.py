"""Results as the verbs write them: the suffix decides between a motion file, a contact sheet and a page that plays it."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.common import check_apart, check_output, numbered, say
from vadis.errors import VadisError

if TYPE_CHECKING:
    import numpy as np

    from vadis.motion import Motion

Target = Annotated[Positional[str | None], arg(metavar="OUT")]
"""The output as the last argument; the same as one `-o`."""
Out = Annotated[tuple[str, ...], arg(aliases=["-o"], metavar="FILE"), UseAppendAction]
"""`-o FILE`, repeatable. The verbs take both forms and hand them to `vadis.cli.common.outputs`."""
SUFFIXES = (".bvh", ".glb", ".npz", ".npy", ".png", ".html", ".gif", ".mp4")
"""As in `vadis.io.WRITERS`, checked here before torch is loaded; a test keeps them equal."""
FILMS = (".gif", ".mp4")


def suffixes() -> tuple[str, ...]:
    """What can be written, formats of other packages included."""
    from vadis.plugins import Table

    return (*SUFFIXES, *(f".{name}" for name in Table("vadis.formats", {})))


def check_outputs(paths: Sequence[str], *inputs: str) -> list[Path]:
    """The paths to write, before any work is done.

    Raises FileError for a suffix that can't be written and for one of the `inputs`, VadisError for no path at all.
    """
    if not paths:
        raise VadisError(f"nowhere to write: give -o FILE, with one of the suffixes {', '.join(suffixes())}.")
    checked = [check_output(path, suffixes()) for path in paths]
    for path in checked:
        check_apart(path, *inputs)
    if len(set(checked)) < len(checked):
        raise VadisError("the same output file is named twice.")
    return checked


@contextmanager
def kept_motions(
    texts: Sequence[str],
    make: Callable[[list[str], int], list["Motion"]],
    size: int,
    path: Path,
    work: Callable[[], str],
) -> Iterator[list["Motion"]]:
    """A motion for every text, made `size` at a time by `make(texts, number of the first)`.

    Until the block has ended, what is made is kept beside `path`: a killed run of the same `work()` goes on where it was.
    """
    if len(texts) <= size:
        yield make(list(texts), 0)
        return
    from vadis.data.parts import Parts
    from vadis.files import kept_work

    with kept_work(path, work()) as folder, Parts(folder, "motions") as parts:
        motions: list[Motion] = []
        for first in range(0, len(texts), size):
            some = list(texts[first : first + size])
            found = parts.take(lambda some=some, first=first: [a for m in make(some, first) for a in _arrays(m)])
            motions += [_motion(found[k : k + 4]) for k in range(0, len(found), 4)]
        yield motions


def _arrays(motion: "Motion") -> list["np.ndarray"]:
    """A motion as four arrays, to the bit."""
    import numpy as np

    s = motion.skeleton
    tips = {joint: tip.tolist() for joint, tip in s.end_sites.items()}
    page = {
        "names": s.names,
        "parents": s.parents,
        "name": s.name,
        "tips": tips,
        "fps": motion.fps,
        "meta": motion.meta,
    }
    text = np.frombuffer(json.dumps(page).encode(), np.uint8)
    return [motion.root.numpy(), motion.rotations.numpy(), s.offsets.numpy(), text]


def _motion(arrays: Sequence["np.ndarray"]) -> "Motion":
    import torch

    from vadis.motion import Motion
    from vadis.skeleton import Skeleton

    root, rotations, offsets = (torch.from_numpy(a.copy()) for a in arrays[:3])
    page = json.loads(arrays[3].tobytes())
    tips = {int(joint): torch.tensor(tip) for joint, tip in page["tips"].items()}
    skeleton = Skeleton(tuple(page["names"]), tuple(page["parents"]), offsets, page["name"], tips)
    return Motion(skeleton, root, rotations, page["fps"], page["meta"])


def write(motions: Sequence["Motion"], path: Path, titles: Sequence[str], **options: Any) -> list[Path]:
    """Write one or several motions and return what was written: one page or sheet for all, otherwise a file each.

    `options` go to the writer of the motion format.
    """
    suffix = path.suffix.lower()
    if suffix == ".html":
        from vadis.viewer.page import write_page

        write_page(list(motions), path, titles=list(titles))
        return [path]
    if suffix == ".png":
        from vadis.viewer.sheet import contact_sheet

        contact_sheet(list(motions), path, title=list(titles))
        return [path]
    if suffix in FILMS:
        options = options | {"progress": _Drawing()}
    targets = [numbered(path, k, len(motions)) for k in range(len(motions))]
    for motion, target in zip(motions, targets, strict=True):
        motion.save(target, **options)
    return targets


class _Drawing:
    """How many frames of a film are drawn, on stderr now and then."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.last > 5:
            self.last = time.monotonic()
            say(f"drawing the film: {done} of {total} frames")
