"""A scene image and an instruction in, moving bodies out: image packer, vision-language model, grammar, tokenizer.

    pipe = vadis.load("models/motionvla")
    out = pipe("walk to the red box", image="room.png", seconds=4, seed=0)
    out.motion.save("walk.bvh")

Bundle: `model_index.json`, `language_model/` (a transformers folder with `motion_vocabulary.json` and
`scene_packer.json`), `tokenizer/` (the motion tokenizer) and `generation_config.json`.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from vadis.errors import ModelError, VadisError
from vadis.generators.motionvla import MotionVLA
from vadis.generators.scene_images import Image
from vadis.motion import Motion
from vadis.pipelines.consistency import SUPPORTED, Trust, consistent, disagreement
from vadis.sizes import CONFIG, Seconds

MAX_SAMPLES = 64


@checked_dataclass(frozen=True, config=CONFIG)
class SceneGenerationConfig:
    """Defaults of a call; they travel with the model as `generation_config.json`."""

    seconds: Seconds = 4.0
    """Length when none is asked for."""
    max_seconds: Seconds = 60.0
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0: among all ids."""
    guidance: float = Field(default=1.0, ge=0)
    """Above 1 leads away from what the model would do without the image."""
    say_duration: bool = True
    """Write the length into the instruction, as the model was trained."""
    trust: Literal["base", "phys"] | None = None
    """Which stream decides where they contradict each other; null: both stay as decoded."""
    source: Literal["rotations", "positions"] = "rotations"
    """Which features the motion is made from."""


@dataclass(frozen=True, eq=False)
class MotionVLAOutput:
    """What one call made; with several samples every field but `timing` is a list."""

    motion: Any
    """Motion."""
    features: Any
    """(T, D) float32, after `trust`."""
    tokens: Any
    """Of the motion tokenizer: an `Encoded` for DSFT, else (S,) or (S, G)."""
    disagreement: Any
    """How far the streams contradict each other, before `trust`: mm a frame, mean over joints; None where features of this
    kind can't tell."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds spent on image and text, tokens, decoding."""


class Preview(NamedTuple):
    """The motion as far as it is known while it is made."""

    motion: Motion | None
    """None until the Base stream is complete; then with the mean of what Phys has not said yet."""
    done: bool
    ids: int
    """Motion ids so far."""


class MotionVLAPipeline:
    """Instructions and scene images to motions."""

    alone: ClassVar[bool] = True
    """Whether each prompt of a list is made by itself."""

    def __init__(self, vla: MotionVLA, config: SceneGenerationConfig | None = None) -> None:
        from vadis.representations import representation

        self.vla, self.config = vla, config or SceneGenerationConfig()
        self.representation = representation(vla.motion_tokenizer.representation)

    # ---- the call

    def __call__(
        self,
        text: str,
        image: Image | None = None,
        *,
        seconds: float | None = None,
        frames: int | None = None,
        n_samples: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        trust: Trust | None = None,
    ) -> MotionVLAOutput:
        """Make `n_samples` motions.

        Args:
            text: what the person does.
            image: of the scene: a path, a PIL image or a uint8 array (H, W, 3). None: text only.
            seconds, frames: length, one of them; by default the model's own.
            temperature, top_p, top_k, guidance: of the draw; the model's own values by default.
            seed: the same seed makes the same motions; None draws anew.
            trust: "base" or "phys", see `SceneGenerationConfig`.

        Raises VadisError for an empty text, lengths and settings that mean nothing; FileError for images that can't be read.
        """
        count, settings = self._settings(frames, seconds, n_samples, temperature, top_p, top_k, guidance)
        if not 1 <= n_samples <= MAX_SAMPLES:
            raise VadisError(f"n_samples={n_samples}: give 1 to {MAX_SAMPLES}.")
        clock = time.perf_counter()
        prompt = self._prompt(text, image, count)
        timing = {"prompt": time.perf_counter() - clock}
        clock = time.perf_counter()
        rows = self.vla.generate([prompt], count, n_samples, seed=seed, **settings)
        timing["tokens"] = time.perf_counter() - clock
        clock = time.perf_counter()
        results = [self._result(row, count, text, trust or self.config.trust) for row in rows]
        timing["decode"] = time.perf_counter() - clock
        timing = {k: round(v, 4) for k, v in timing.items()}
        if n_samples == 1:
            return MotionVLAOutput(**results[0], timing=timing)
        return MotionVLAOutput(**{k: [r[k] for r in results] for k in results[0]}, timing=timing)

    generate = __call__

    def stream(
        self,
        text: str,
        image: Image | None = None,
        *,
        seconds: float | None = None,
        frames: int | None = None,
        every: int = 32,
        seed: int | None = None,
        trust: Trust | None = None,
        **settings: Any,
    ) -> Iterator[Preview]:
        """One motion while it is made: a `Preview` every `every` ids, the last with the whole motion.

        DSFT's Base stream comes first and holds the poses, so there is something to see from the separator on; what Phys
        has not said yet counts as its mean. Other tokenizers show the motion at the end only. `settings` as in a call.
        """
        if every < 1:
            raise VadisError(f"every={every}: give 1 or more ids between previews.")
        count, drawn = self._settings(frames, seconds, 1, *(settings.pop(k, None) for k in _DRAW))
        if settings:
            raise VadisError(f"a stream takes no {', '.join(settings)}: leave it out.")
        prompt = self._prompt(text, image, count)
        row: list[int] = []
        for rows in self.vla.stream([prompt], count, seed=seed, **drawn):
            row = rows[0]
            if self.vla.two_streams and (row[-1] == self.vla.vocabulary.sep or len(row) % every == 0):
                if row[-1] == self.vla.vocabulary.end:
                    break
                features = self.vla.preview(row, self.vla.said_frames(row) or count)
                yield Preview(None if features is None else self._motion(features, text), False, len(row))
        yield Preview(self._result(row, count, text, trust or self.config.trust)["motion"], True, len(row))

    # ---- inside

    def _settings(
        self,
        frames: int | None,
        seconds: float | None,
        samples: int,
        temperature: float | None,
        top_p: float | None,
        top_k: int | None,
        guidance: float | None,
    ) -> tuple[int, dict[str, Any]]:
        """Frames of the motion, and how ids are drawn."""
        c, fps = self.config, self.vla.fps
        if frames is not None and seconds is not None:
            raise VadisError("give seconds or frames, not both.")
        if frames is None:
            length = c.seconds if seconds is None else seconds
            if not (isinstance(length, int | float) and math.isfinite(length) and length > 0):
                raise VadisError(f"seconds={length!r}: give a positive number.")
            frames = max(1, round(length * fps))
        if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= c.max_seconds * fps:
            raise VadisError(f"a motion of {frames!r} frames can't be made: 1 to {int(c.max_seconds * fps)} can.")
        frames = self._sayable(frames)
        k = c.top_k if top_k is None else top_k
        return frames, {
            "temperature": c.temperature if temperature is None else temperature,
            "top_p": c.top_p if top_p is None else top_p,
            "top_k": k or None,
            "guidance": c.guidance if guidance is None else guidance,
        }

    def _sayable(self, frames: int) -> int:
        """The next length that a length token can say, where the model uses them."""
        from vadis.tokenizers.dsft_sequence import LENGTH_STEP, LENGTHS

        if self.vla.vocabulary.length_ids is None:
            return frames
        if frames > LENGTH_STEP * LENGTHS:
            raise VadisError(f"this model makes {LENGTH_STEP * LENGTHS} frames at most, {frames} were asked for.")
        return -(-frames // LENGTH_STEP) * LENGTH_STEP

    def _prompt(self, text: str, image: Image | None, frames: int) -> Any:
        return self.vla.prompt(text, image, frames / self.vla.fps if self.config.say_duration else None)

    def _result(self, row: list[int], frames: int, text: str, trust: Trust | None) -> dict[str, Any]:
        features = self.vla.features(row, frames)
        name = self.representation.name
        if trust is not None and name not in SUPPORTED:
            raise VadisError(f"trust={trust!r} needs features of {' or '.join(SUPPORTED)}; this model makes {name}.")
        apart = disagreement(features, name) if name in SUPPORTED else None
        if trust is not None:
            features = consistent(features, name, trust)
        tokens = self.vla.tokens(row, frames)
        return {"motion": self._motion(features, text), "features": features, "tokens": tokens, "disagreement": apart}

    def _motion(self, features: Tensor, text: str) -> Motion:
        options = {"fps": self.vla.fps} if self.representation.name == "vimogen276" else {}
        made = self.representation.decode(features, source=self.config.source, **options)
        return made.replace(fps=self.vla.fps, meta={"prompt": text})

    # ---- files

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write the bundle; an older one at `folder` is replaced as a whole. `card` becomes README.md."""
        import vadis
        from vadis.errors import FileError
        from vadis.files import atomic_folder
        from vadis.hub import write_json

        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
            raise FileError(f"{folder} holds other files: name a new folder to save the bundle to.")
        tokenizer = self.vla.motion_tokenizer
        with atomic_folder(folder) as temporary:
            self.vla.save(temporary / "language_model")
            tokenizer.save_pretrained(temporary / "tokenizer")
            write_json(temporary / "generation_config.json", asdict(self.config))
            if card:
                (temporary / "README.md").write_text(card, encoding="utf-8")
            index = {"_class_name": "MotionVLAPipeline", "_vadis_version": vadis.__version__,
                     "tokenizer": ["vadis", type(tokenizer).__name__],
                     "language_model": ["transformers", type(self.vla.model).__name__]}  # fmt: skip
            write_json(temporary / "model_index.json", index)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: Any = None,
        device: Any = None,
        allow_download: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load a bundle folder; `allow_download` fetches a backbone that it names on the Hub. Raises ModelError where its parts are missing or don't belong together."""
        from vadis.hub import load_component, pick_device, pick_dtype
        from vadis.records import checked, read_json

        folder = Path(folder)
        target = pick_device(device)
        if not (folder / "language_model").is_dir():
            raise ModelError(f"{folder} has no language_model folder: download or save the bundle again.")
        tokenizer = overrides.pop("tokenizer", None) or load_component(folder / "tokenizer", device=target)
        if overrides:
            raise ModelError(f"a MotionVLA bundle takes no {', '.join(overrides)}: leave it out.")
        vla = MotionVLA.load(folder / "language_model", tokenizer, allow_download=allow_download)
        precision = pick_dtype(dtype) or (torch.float32 if target.type == "cpu" else None)
        vla.model.to(device=target, dtype=precision)
        page = folder / "generation_config.json"
        config = checked(SceneGenerationConfig, read_json(page), page, ModelError) if page.is_file() else None
        return cls(vla, config)


_DRAW = ("temperature", "top_p", "top_k", "guidance")

__all__ = ["MotionVLAOutput", "MotionVLAPipeline", "Preview", "SceneGenerationConfig"]
