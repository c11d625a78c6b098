"""`vadis retarget in.bvh -o out.bvh`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.common import check_number, outputs, say
from vadis.cli.reading import read_motion
from vadis.cli.writing import Out, Target, check_outputs, write


@dataclass(frozen=True)
class Retarget:
    """Put a motion of any human skeleton on the 22 joints that all models use: heights scaled, feet on the floor.

    vadis retarget mixamo.bvh -o walk.bvh
    """

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Motion file."""
    target: Target = None
    """File to write: .bvh .glb .npz .npy, .png (a contact sheet) or .html (a page that plays it)."""
    out: Out = ()
    """The same as OUT; several -o may be given."""
    to: Literal["smpl22"] = "smpl22"
    """The skeleton to put it on."""
    joint: Annotated[tuple[tuple[str, str], ...], arg(metavar="OURS THEIRS"), UseAppendAction] = ()
    """Name a joint that isn't recognised, e.g. --joint left_hip LeftThigh; repeatable."""
    keep_height: bool = False
    """Don't put the feet on the floor."""
    fps: float | None = None
    """Frame rate of the input, for files that don't state it or state it wrongly."""
    resample: float | None = None
    """Frame rate of the output; by default the input's."""

    def run(self) -> None:
        paths = check_outputs(outputs(self.target, self.out), self.source)
        if self.resample is not None:
            check_number("--resample", self.resample, 1, 1000, "frames/s")
        motion = read_motion(self.source, fps=self.fps)
        from vadis.retargeting import retarget

        before = motion.skeleton
        motion = retarget(motion, self.to, joints=dict(self.joint) or None, floor=not self.keep_height)
        if self.resample is not None:
            motion = motion.resample(self.resample)
        for path in paths:
            for file in write([motion], path, [path.stem]):
                print(file)
        say(f"{before} → {motion.skeleton}, {motion.num_frames} frames at {motion.fps:g}/s")
