"""Results as the verbs write them: the suffix decides between a motion file, a contact sheet and a page that plays it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadis.cli.common import check_output, numbered
from vadis.errors import VadisError

if TYPE_CHECKING:
    from vadis.motion import Motion

MOTION_SUFFIXES = (".bvh", ".glb", ".npz", ".npy")
SUFFIXES = (*MOTION_SUFFIXES, ".png", ".html")


def check_outputs(paths: Sequence[str]) -> list[Path]:
    """The paths to write, before any work is done; FileError for a suffix that can't be written, VadisError for none."""
    if not paths:
        raise VadisError(f"nowhere to write: give -o FILE, with one of the suffixes {', '.join(SUFFIXES)}.")
    checked = [check_output(path, SUFFIXES) for path in paths]
    if len(set(checked)) < len(checked):
        raise VadisError("the same output file is named twice.")
    return checked


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
    targets = [numbered(path, k, len(motions)) for k in range(len(motions))]
    for motion, target in zip(motions, targets, strict=True):
        motion.save(target, **options)
    return targets
