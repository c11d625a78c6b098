"""`vadis convert in.bvh out.npy --to ms272`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vadis.cli.common import check_number, check_output, say
from vadis.cli.reading import on_model_skeleton, read_motion
from vadis.cli.writing import SUFFIXES, write
from vadis.errors import VadisError

NAMES = ("ms272", "ms272_absroot", "hml263", "kit251", "positions")


@dataclass(frozen=True)
class Convert:
    """Turn a motion file or features into another format or representation.

    vadis convert walk.bvh walk.npy --to ms272

    vadis convert features.npy walk.glb --fps 30
    """

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Motion file: .bvh .amc .json (DeepMimic) .npz (AMASS, SMPL) .npy (features, joints, SMPL tables)."""
    target: Annotated[Positional[str], arg(metavar="OUT")]
    """File to write: .bvh .glb .npz .npy, .png (a contact sheet) or .html (a page that plays it)."""
    to: Literal["ms272", "ms272_absroot", "hml263", "kit251", "positions"] | None = None
    """What an .npy holds: features of a representation, or joint positions in metres (the default)."""
    representation: Annotated[str | None, arg(name="from", metavar="REPRESENTATION")] = None
    """What an .npy to read holds (a representation, joints or smpl); by default what its shape and notes say."""
    decode: Literal["rotations", "positions"] | None = None
    """Which part of features to believe when they are turned into a motion; by default rotations."""
    fps: float | None = None
    """Frame rate of the input, for files that don't say it or say it wrongly."""
    resample: float | None = None
    """Frame rate of the output; by default the input's, or that of the representation."""
    unit: str | None = None
    """Length unit of a .bvh or .amc to read: m, cm, mm, inch or asf; by default the one that makes the body a person."""
    up: Literal["y", "z"] | None = None
    """Up axis of the input; by default recognised."""
    write_unit: Literal["m", "cm", "mm", "inch"] | None = None
    """Length unit of a .bvh to write; by default centimetres."""
    write_up: Literal["y", "z"] | None = None
    """Up axis of a .bvh to write; by default y."""
    t_pose_first_frame: bool = False
    """Put the rest pose before frame 0 of a .bvh to write."""

    def run(self) -> None:
        path = check_output(self.target, SUFFIXES)
        suffix = path.suffix.lower()
        if self.to is not None and suffix != ".npy":
            raise VadisError(f"--to {self.to} writes an .npy file; got {path.name!r}.")
        if self.resample is not None:
            check_number("--resample", self.resample, 1, 1000, "frames/s")
        options: dict[str, Any] = {
            "unit": self.write_unit,
            "up": self.write_up,
            "t_pose_first_frame": self.t_pose_first_frame,
        }
        options = {name: value for name, value in options.items() if value}
        if options and suffix != ".bvh":
            raise VadisError(
                f"--write-unit, --write-up and --t-pose-first-frame are for .bvh files; got {path.name!r}."
            )
        motion = read_motion(
            self.source,
            fps=self.fps,
            unit=self.unit,
            up=self.up,
            representation=self.representation,
            source=self.decode,
        )
        if self.to not in (None, "positions"):
            from vadis.representations import representation

            rep = representation(self.to)
            if self.resample is not None and abs(self.resample - rep.fps) > 1e-3:
                raise VadisError(
                    f"{self.to} is defined at {rep.fps:g} frames/s; leave out --resample {self.resample:g}."
                )
            motion = on_model_skeleton(motion, rep.fps)
            options = {"representation": self.to}
        elif self.resample is not None:
            motion = motion.resample(self.resample)
        if suffix in (".glb", ".npz", ".png", ".html"):
            motion = on_model_skeleton(motion)
        write([motion], path, [path.stem], **options)
        print(path)
        say(f"{motion.num_frames} frames at {motion.fps:g}/s, {motion.seconds:.2f} s, {motion.skeleton}")
