"""`vadis convert in.bvh out.npy --to ms272`, and the same for every motion file of a folder."""

import contextlib
import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from vadis.cli.common import (
    check_apart,
    check_input,
    check_number,
    check_output,
    check_output_folder,
    in_flags,
    outputs,
    say,
)
from vadis.cli.reading import on_model_skeleton, read_motion
from vadis.cli.writing import Out, Target, suffixes, write
from vadis.errors import FileError, VadisError

if TYPE_CHECKING:
    from vadis.motion import Motion
    from vadis.representations.conversions import ConversionReport


To = Literal[
    "ms272", "ms272_absroot", "hml263", "kit251", "vimogen276", "smpl135", "motionclip135", "positions"
]  # fmt: skip


@dataclass(frozen=True)
class Convert:
    """Turn a motion file or features into another format or representation.

    vadis convert walk.bvh walk.npy --to ms272

    vadis convert features.npy walk.glb --fps 30

    vadis convert takes/ features/ --to ms272
    """

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Motion file: .bvh .glb .amc .json (DeepMimic) .npz (AMASS, SMPL) .npy (features, joints, SMPL tables). Or a folder
    of such files."""
    target: Target = None
    """File to write: .bvh .glb .npz .npy, .png (a contact sheet) or .html (a page that plays it). For a folder: the folder
    to write, with the same structure."""
    out: Out = ()
    """The same as OUT."""
    format: Literal["bvh", "glb", "npz", "npy", "png", "html"] | None = None
    """What the files of a folder become; npy with --to."""
    to: To | None = None
    """What an .npy holds: features of a representation, or joint positions in metres (the default)."""
    representation: Annotated[str | None, arg(name="from", metavar="REPRESENTATION")] = None
    """What an .npy to read holds (a representation, joints or smpl); by default what its shape and notes say."""
    decode: Literal["rotations", "positions"] | None = None
    """Which part of features to believe; by default rotations for a motion file, positions for other features."""
    fps: float | None = None
    """Frame rate of the input, for files that don't state it or state it wrongly."""
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
    report: bool = False
    """Also say what the conversion lost: joint error in mm, rotation error, fields dropped or made up."""

    python_names: ClassVar[dict[str, str]] = {"source": "--decode", "representation": "--from"}

    def run(self) -> int:
        target = outputs(self.target, self.out, "vadis convert")[0]
        if Path(self.source).is_dir():
            return self._folder(Path(self.source), target)
        if self.format is not None:
            raise VadisError(f"--format is for folders; the suffix of {target} says what a single file becomes.")
        path = check_output(target, suffixes())
        check_apart(path, self.source)
        self._file(path)
        return 0

    def _folder(self, source: Path, target: str) -> int:
        """Convert every motion file below `source`; what fails is said, and doesn't stop the others."""
        from rich.console import Console
        from rich.progress import Progress

        from vadis.io.archive import iter_motion_files

        suffix = self.format or ("npy" if self.to is not None else None)
        if suffix is None:
            raise VadisError(f"{source} is a folder: say what its files become with --format, e.g. --format bvh.")
        if self.report:
            raise VadisError("--report is about one file; leave it out for a folder.")
        folder = check_output_folder(target)
        if folder.resolve().is_relative_to(source.resolve()):
            raise VadisError(
                f"{folder} lies in the folder that is read; choose another, so that nothing is read twice."
            )
        files = list(iter_motion_files(source))
        if not files:
            raise FileError(f"no motion file in {source}.")
        made: dict[Path, Path] = {}
        for _, file in files:
            path = folder / file.relative_to(source).with_suffix(f".{suffix}")
            if path in made:
                raise FileError(f"{made[path]} and {file} would both become {path}: rename one.")
            made[path] = file
        failed, console = 0, Console(file=sys.stderr)  # which stays the terminal while a file's own words are caught
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            for path, file in bar.track(made.items(), total=len(made), description="converting"):
                words, problem = io.StringIO(), None
                try:
                    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(io.StringIO()):
                        replace(self, source=str(file), format=None)._file(check_output(path, suffixes()))
                except VadisError as error:
                    problem, failed = in_flags(str(error), self), failed + 1
                notes = [line for line in words.getvalue().splitlines() if line.startswith("warning: ")]
                for note in [f"failed: {problem}"] if problem else notes:
                    kind, _, text = note.partition(": ")
                    console.print(
                        f"{kind}: {file}: {text.removeprefix(f'{file.name}: ')}",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
        say(f"{len(made) - failed} of {len(made)} files converted" + (f", {failed} failed" if failed else ""))
        print(folder)
        return 1 if failed else 0

    def _file(self, path: Path) -> None:
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
        if self.report and suffix in (".png", ".html"):
            raise VadisError(
                f"--report compares what was read with what was written; {path.name!r} can't be read back."
            )
        if self._features_to_features(path):
            return
        motion = read_motion(
            self.source,
            fps=self.fps,
            unit=self.unit,
            up=self.up,
            representation=self.representation,
            source=self.decode,
        )
        if self.to not in (None, "positions"):
            motion = on_model_skeleton(motion, _rate_of(self.to, self.resample))
            options = {"representation": self.to}
        elif self.resample is not None:
            motion = motion.resample(self.resample)
        if suffix in (".glb", ".npz", ".png", ".html"):
            motion = on_model_skeleton(motion)
        write([motion], path, [path.stem], **options)
        print(path)
        if self.report:
            print(_report(motion, path, self.to))
        say(f"{motion.num_frames} frames at {motion.fps:g}/s, {motion.seconds:.2f} s, {motion.skeleton}")

    def _features_to_features(self, path: Path) -> bool:
        """Convert features straight to features, so that nothing is lost on a way round; False when they aren't."""
        if self.to in (None, "positions") or Path(self.source).suffix.lower() != ".npy" or self.unit or self.up:
            return False
        from vadis.io.npy import load_features, write_array
        from vadis.representations.conversions import convert

        if self.fps is not None:
            check_number("--fps", self.fps, 1, 1000, "frames/s")
        found = load_features(check_input(self.source), self.representation, self.fps)
        if found is None:
            return False
        features, kind, rate, skeleton = found
        fps = _rate_of(self.to, self.resample)
        if skeleton is None and kind in ("smpl135", "motionclip135"):
            from vadis.skeleton import smpl22

            say(f"{kind} holds no bone lengths and no notes say them: posing the body of vadis")
            skeleton = smpl22()
        made = convert(
            features, kind, self.to, fps=rate, fps_out=fps, skeleton=skeleton, joints_from=self.decode or "positions"
        )
        write_array(made.features.numpy(), path, self.to, fps, made.skeleton)
        print(path)
        if self.report:
            print(made.report)
        say(f"{kind} → {self.to}: {len(made.features)} frames at {fps:g}/s, {len(made.features) / fps:.2f} s")
        return True


def _rate_of(name: str, asked: float | None) -> float:
    """The frame rate of a representation; VadisError when another was asked for."""
    from vadis.representations import representation

    fps = representation(name).fps
    if asked is not None and abs(asked - fps) > 1e-3:
        raise VadisError(f"{name} is defined at {fps:g} frames/s; leave out --resample {asked:g}.")
    return fps


def _report(motion: "Motion", path: Path, to: str | None) -> "ConversionReport":
    """What the file just written kept of the motion."""
    from vadis.io import load_motion
    from vadis.representations.conversions import Body, compare, measure

    if to in (None, "positions"):
        return compare(motion, load_motion(path), path.suffix)
    import numpy as np
    import torch

    made = torch.from_numpy(np.load(path))
    body = Body(motion.positions.double(), motion.rotations.double(), motion.fps, "of the motion")
    return measure(body, made, to, motion.fps)
