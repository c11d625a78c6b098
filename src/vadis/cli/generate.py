"""`vadis generate "a person walks in a circle" -o walk.glb`."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from vadis.cli.common import call_settings, check_number, print_json, say
from vadis.cli.writing import check_outputs, kept_motions, write
from vadis.errors import VadisError

MAX_CHARACTERS = 2000
MAX_SECONDS = 3600.0
"""As in the text encoder and the pipeline, checked here before torch is loaded; a test keeps them equal."""
FLAGS = ("guidance_scale", "temperature", "top_k", "top_p", "clean_feet")
"""Settings of the model that have a flag of their own."""
TOGETHER = 32
"""Motions made in one go, by models that gain from it; the others make one after another."""


@dataclass(frozen=True)
class Generate:
    """Make a motion from a sentence.

    vadis generate "a person walks in a circle" --seconds 6 -o walk.glb -o walk.bvh
    """

    prompt: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT [PROMPT ...]")]
    """What the body does, in English; several sentences make several motions."""
    out: Annotated[tuple[str, ...], arg(aliases=["-o"], metavar="FILE"), UseAppendAction] = ()
    """File to write: .bvh .glb .npz .npy, .png (a contact sheet) or .html (a page that plays it). Several -o may be given."""
    model: str = "vadis-mini"
    """A bundled model, a folder, or a Hub id."""
    image: str | None = None
    """Picture of the scene, for a model that sees (MotionVLA)."""
    seconds: float = 6.0
    """Length of the motion."""
    seed: int = 0
    """The same seed gives the same motion."""
    count: int = 1
    """Motions per prompt; with more than one result the file names are numbered."""
    samples: int | None = None
    """Candidates per motion, of which the best is kept; by default the model's own number."""
    guidance_scale: Annotated[float | None, arg(aliases=["--guidance"])] = None
    """How strongly the prompt is followed; by default the model's own value."""
    temperature: float | None = None
    """0 always takes the likeliest token; by default the model's own value."""
    top_k: int | None = None
    """Draw among this many likeliest tokens."""
    top_p: float | None = None
    """Draw among the likeliest tokens that hold this share of the probability."""
    clean_feet: bool | None = None
    """Stop feet from sliding while they stand; by default what the model's own settings say."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE"), UseAppendAction] = ()
    """Any other setting of the model; `vadis info MODEL` lists them."""
    fps: float | None = None
    """Frame rate of the files; by default the model's."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""
    json: bool = False
    """Print files, timing and settings as JSON."""

    def run(self) -> None:
        prompts, paths = self._check(), check_outputs(self.out)
        started = time.perf_counter()
        from vadis.pipelines.load import load_pipeline

        say(f"loading {self.model} …")
        pipe = load_pipeline(self.model, device=self.device, allow_download=self.allow_download)
        loaded = time.perf_counter()
        settings = self._settings(pipe)
        wanted = [text for text in prompts for _ in range(self.count)]
        say(
            f"generating {len(wanted)} × {self.seconds:g} s …"
            if len(wanted) > 1
            else f"generating {self.seconds:g} s …"
        )

        def make(texts: list[str], first: int) -> list[Any]:
            return pipe(texts, seconds=self.seconds, seed=self.seed + first, **settings).motion

        at_once = TOGETHER if pipe.capabilities.together else 1
        with kept_motions(wanted, make, at_once, paths[0], lambda: self._work(paths)) as motions:
            made = time.perf_counter()
            if self.fps is not None:
                motions = [motion.resample(self.fps) for motion in motions]
            files = [file for path in paths for file in write(motions, path, wanted)]
        timing = {
            "load_s": round(loaded - started, 3),
            "generate_s": round(made - loaded, 3),
            "write_s": round(time.perf_counter() - made, 3),
            "motion_s": round(sum(m.seconds for m in motions), 3),
        }
        record = _record(self, files, timing)
        if self.json:
            print_json(record)
            return
        for file in files:
            print(file)
        speed = timing["motion_s"] / max(timing["generate_s"], 1e-9)
        say(
            f"{timing['motion_s']:.1f} s of motion in {timing['generate_s']:.1f} s ({speed:.1f}× real time), "
            f"loading {timing['load_s']:.1f} s, writing {timing['write_s']:.1f} s"
        )

    def _work(self, paths: list[Path]) -> str:
        """Everything that decides what is made: a killed run of the same is continued."""
        import vadis
        from vadis.files import stamp
        from vadis.hub import find_folder

        inputs = stamp(find_folder(self.model), *([self.image] if self.image else []))
        return repr((asdict(self), [str(path) for path in paths], inputs, vadis.__version__))

    def _settings(self, pipe: Any) -> dict[str, Any]:
        """What the call is told beside length and seed. Raises VadisError for what this model doesn't take."""
        if self.image is not None:
            pipe.check_can("image", self.model)
        given = {name: getattr(self, name) for name in FLAGS} | call_settings(self.set)
        settings = {name: value for name, value in given.items() if value is not None}
        if unknown := sorted(set(settings) - set(pipe.settings)):
            flags = ", ".join("--" + name.replace("_", "-") if name in FLAGS else f"--set {name}" for name in unknown)
            raise VadisError(f"{self.model} has no {flags}; its settings are {', '.join(pipe.settings)}.")
        return settings | {"samples": self.samples, "image": self.image}

    def _check(self) -> list[str]:
        """The prompts, once every value is known to make sense; VadisError otherwise. Needs no torch."""
        if not self.prompt:
            raise VadisError('say what the body does: vadis generate "a person walks forward" -o walk.glb.')
        prompts = [" ".join(text.split()) for text in self.prompt]
        for text in prompts:
            if not text:
                raise VadisError('a prompt is empty; say what the body does, e.g. "a person walks forward".')
            if len(text) > MAX_CHARACTERS:
                raise VadisError(
                    f"a prompt has {len(text)} characters; at most {MAX_CHARACTERS} can be understood. Shorten it."
                )
        check_number("--seconds", self.seconds, 0.2, MAX_SECONDS, "s")
        check_number("--count", self.count, 1, 1000)
        check_number("--seed", self.seed, 0, 2**63 - 1)
        for name, low, high in (("samples", 1, 256), ("guidance_scale", 0, 100), ("temperature", 0, 10)):
            if (value := getattr(self, name)) is not None:
                check_number(f"--{name.replace('_', '-')}", value, low, high)
        if self.top_k is not None:
            check_number("--top-k", self.top_k, 1, 1e9)
        if self.top_p is not None:
            check_number("--top-p", self.top_p, 1e-6, 1)
        if self.fps is not None:
            check_number("--fps", self.fps, 1, 1000, "frames/s")
        return prompts


def _record(options: Generate, files: list[Path], timing: dict[str, float]) -> dict[str, Any]:
    """What it takes to make the result again."""
    import torch

    import vadis

    return {
        "files": [str(file) for file in files],
        "settings": {k: v for k, v in asdict(options).items() if k not in ("out", "json")},
        "timing": timing,
        "versions": {"vadis": vadis.__version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }
