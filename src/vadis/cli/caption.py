"""`vadis caption walk.bvh`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vadis.cli.common import check_number, print_json, say
from vadis.cli.reading import on_model_skeleton, read_motion
from vadis.errors import VadisError


@dataclass(frozen=True)
class Caption:
    """Say in words what a motion shows.

    vadis caption walk.bvh
    vadis caption walk.bvh --model models/lm
    """

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE [FILE ...]")]
    """Motion files of any readable kind; they are retargeted and resampled as the model needs."""
    model: str = "vadis-mini-lm"
    """A bundled name, folder or Hub id of a language model that reads motion."""
    count: int = 1
    """Sentences for each piece; above 1 they are drawn."""
    window: float | None = None
    """Longer motions are captioned in pieces of this many seconds; by default the longest that the model learned from."""
    half: Literal["upper", "lower"] | None = None
    """Only ask about this half of the body."""
    temperature: float | None = None
    """0 takes the likeliest words, the default for one sentence; 1 is the default for several."""
    max_tokens: int = 64
    """Longest sentence, in tokens."""
    seed: int = 0
    """The same seed draws the same sentences."""
    fps: float | None = None
    """Frame rate of the input, for files that don't state it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""
    json: bool = False
    """Print files, times and sentences as JSON."""

    def run(self) -> None:
        self._check()
        from vadis.pipelines.load import load_pipeline

        say(f"loading {self.model} …")
        pipe = load_pipeline(self.model, device=self.device, allow_download=self.allow_download)
        pipe.check_can("caption", self.model)
        found = [entry for source in self.sources for entry in self._file(pipe, source)]
        if self.json:
            print_json(found)
            return
        several = len(found) > 1
        for entry in found:
            place = f"{entry['file']}\t{entry['start']:.1f}–{entry['end']:.1f} s\t" if several else ""
            for text in entry["captions"]:
                print(f"{place}{text}")

    def _file(self, pipe: Any, source: str) -> list[dict[str, Any]]:
        """The sentences about each piece of one file."""
        fps, per_token = pipe.fps, pipe.tokenizer.frames_per_token or 1
        motion = on_model_skeleton(read_motion(source, fps=self.fps), fps)
        if motion.num_frames < per_token:
            raise VadisError(
                f"{source} has {motion.num_frames} frames at {fps:g}; the model needs {per_token} or more."
            )
        size = max(per_token, round((self.window or pipe.config.max_seconds) * fps))
        starts = [s for s in range(0, motion.num_frames, size) if s == 0 or motion.num_frames - s >= per_token]
        pieces = [motion.crop(s, min(s + size, motion.num_frames)).canonicalize() for s in starts]
        temperature = self.temperature if self.temperature is not None else float(self.count > 1)
        texts = pipe.caption(
            pieces, half=self.half, max_tokens=self.max_tokens, temperature=temperature, seed=self.seed,
            samples_per_row=self.count,
        )  # fmt: skip
        return [
            {"file": source, "start": s / fps, "end": (s + p.num_frames) / fps,
             "captions": texts[i * self.count : (i + 1) * self.count]}
            for i, (s, p) in enumerate(zip(starts, pieces, strict=True))
        ]  # fmt: skip

    def _check(self) -> None:
        """VadisError for values that mean nothing; needs no torch."""
        if not self.sources:
            raise VadisError("name a motion file: vadis caption walk.bvh --model FOLDER.")
        check_number("--count", self.count, 1, 256)
        check_number("--max-tokens", self.max_tokens, 1, 1024)
        check_number("--seed", self.seed, 0, 2**63 - 1)
        if self.window is not None:
            check_number("--window", self.window, 0.1, 3600, "s")
        if self.temperature is not None:
            check_number("--temperature", self.temperature, 0, 10)
