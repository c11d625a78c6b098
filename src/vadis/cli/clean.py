"""`vadis clean in.bvh -o out.bvh`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vadis.cli.common import check_apart, check_number, check_output, outputs, say
from vadis.cli.reading import on_model_skeleton, read_motion
from vadis.cli.writing import Out, Target, suffixes, write
from vadis.errors import VadisError


@dataclass(frozen=True)
class Clean:
    """Stop feet from sliding while they stand, and take out jitter; a .bvh keeps its skeleton.

    vadis clean generated.bvh -o clean.bvh
    """

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Motion file of a human skeleton: .bvh .glb .amc .npz .npy."""
    target: Target = None
    """File to write: .bvh .glb .npz .npy, .png (a contact sheet) or .html (a page that plays it)."""
    out: Out = ()
    """The same as OUT."""
    method: Literal["native", "compat"] = "native"
    """compat is MotionMillion's published algorithm, whose result has twice the frame rate."""
    smooth: float | None = None
    """Hertz above which motion counts as noise, 0 for none; by default as much as the clip needs (native only)."""
    floor: float | None = None
    """Height of the floor in metres; by default taken from the feet (native only)."""
    window: int | None = None
    """Frames of the smoothing filter, odd; by default 5 (compat only)."""
    fps: float | None = None
    """Frame rate of the input, for files that don't state it or state it wrongly."""

    def run(self) -> None:
        path = check_output(outputs(self.target, self.out, "vadis clean")[0], suffixes())
        check_apart(path, self.source)
        native = {"--smooth": self.smooth, "--floor": self.floor}
        stray = {"--window": self.window} if self.method == "native" else native
        for flag, value in stray.items():
            if value is not None:
                raise VadisError(f"{flag} means nothing for --method {self.method}; leave it out.")
        if self.smooth is not None:
            check_number("--smooth", self.smooth, 0, 1000, "Hz")
        if self.floor is not None:
            check_number("--floor", self.floor, -1000, 1000, "m")
        motion = read_motion(self.source, fps=self.fps)
        if path.suffix.lower() not in (".bvh", ".npy"):  # the others hold the 22 joints only
            motion = on_model_skeleton(motion)
        from vadis.motion_editing import clean_feet

        options: dict[str, Any] = {"floor": self.floor} if self.floor is not None else {}
        if self.smooth is not None:
            options["smooth"] = self.smooth or None
        if self.window is not None:
            options["window"] = self.window
        cleaned = clean_feet(motion, self.method, **options)
        for file in write([cleaned], path, [path.stem]):
            print(file)
        same = cleaned.positions if self.method == "native" else cleaned.positions[::2]
        moved = (same - motion.positions).norm(dim=-1).mean()
        say(
            f"joints moved by {1000 * float(moved):.1f} mm on average; {cleaned.num_frames} frames at {cleaned.fps:g}/s"
        )
