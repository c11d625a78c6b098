"""A scene image and an instruction in, moving bodies out: image packer, vision-language model, grammar, tokenizer.

    pipe = vadis.load("models/motionvla")
    out = pipe("walk to the red box", image="room.png", seconds=4, seed=0)
    out.motion.save("walk.bvh")

Bundle: `model_index.json`, `language_model/` (a transformers folder with `motion_vocabulary.json` and
`scene_packer.json`), `tokenizer/` (the motion tokenizer) and `generation_config.json`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from vadis.component_files import Written
from vadis.devices import pick_device, pick_dtype
from vadis.errors import ModelError, VadisError
from vadis.images import Image
from vadis.language.vla.model import MotionVLA
from vadis.loading import load_component
from vadis.motion import Motion
from vadis.pipelines.base import Capabilities, Made, Pipeline, PipelineConfig, Work, decode_motion, frames_of
from vadis.representations.consistency import SUPPORTED, consistent, disagreement
from vadis.sizes import CONFIG, Seconds


@checked_dataclass(frozen=True, config=CONFIG)
class SceneGenerationConfig(PipelineConfig):
    """Defaults of a call; they travel with the model as `generation_config.json`."""

    seconds: Seconds | None = 4.0
    """Length when none is asked for."""
    max_seconds: Seconds = 60.0
    top_p: float | None = Field(default=0.95, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """Null or 0: among all ids."""
    say_duration: bool = True
    """Write the length into the instruction, as the model was trained."""
    trust: Literal["base", "phys"] | None = None
    """Which stream decides where they contradict each other; null: both stay as decoded."""

    def __post_init__(self) -> None:
        if self.seconds is None:
            raise ValueError("this model makes motions of a given length: give the seconds of its usual one")


class Preview(NamedTuple):
    """The motion as far as it is known while it is made."""

    motion: Motion | None
    """None until the Base stream is complete; then with the mean of what Phys has not said yet."""
    done: bool
    ids: int
    """Motion ids so far."""


class MotionVLAPipeline(Pipeline):
    """Instructions and scene images to motions.

    `details["disagreement"]` of an output says how far DSFT's streams contradict each other, before `trust`: mm a frame, mean
    over joints; None where features of this kind can't tell.
    """

    config_class = SceneGenerationConfig
    options_of_loading = ("tokenizer",)
    settings_of_a_call = (
        "temperature", "top_p", "top_k", "guidance_scale", "clean_feet", "source", "say_duration", "trust",
    )  # fmt: skip

    def __init__(self, vla: MotionVLA, config: SceneGenerationConfig | None = None) -> None:
        self.vla, self.tokenizer = vla, vla.motion_tokenizer
        super().__init__(config)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            inputs=frozenset({"text", "image"} if self.vla.packer.facts is not None else {"text"}),
            outputs=frozenset({"motion"}),
            ends_itself=False,
            chooses=False,
            together=False,
        )

    @property
    def model(self) -> Any:
        return self.vla.model

    def _move(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.vla.model.to(device=device, dtype=dtype)
        if isinstance(self.tokenizer, torch.nn.Module):
            self.tokenizer.to(device=device)

    # ---- the call

    def _make(self, work: Work) -> list[Made]:
        made = []
        for text, seconds, seed, image in zip(work.texts, work.seconds, work.seeds, work.images, strict=True):
            frames = self._frames(seconds, work.config)
            with work.clock("text"):
                prompt = self._prompt(text, image, frames, work.config)
            with work.clock("tokens"):
                (row,) = self.vla.generate([prompt], frames, seed=[seed], **_drawn(work))
            with work.clock("decode"):
                made.append(self._result(row, frames, work.config, frames_of(seconds, self.fps)))
        return made

    def preview(
        self,
        prompt: str,
        *,
        image: Image | None = None,
        seconds: float | None = None,
        every: int = 32,
        seed: int | None = None,
        **settings: Any,
    ) -> Iterator[Preview]:
        """One motion while it is made: a `Preview` every `every` ids, the last with the whole motion.

        DSFT's Base stream comes first and holds the poses, so there is something to see from the separator on; what Phys
        has not said yet counts as its mean. Other tokenizers show the motion at the end only. Arguments as in a call.
        """
        if every < 1:
            raise VadisError(f"every={every}: give 1 or more ids between previews.")
        work = self._work(prompt, seconds, None, seed, image, settings)
        if len(work.texts) > 1:
            raise VadisError(f"{len(work.texts)} prompts: a preview shows one motion, give one prompt.")
        return self._previews(work, every)

    def _previews(self, work: Work, every: int) -> Iterator[Preview]:
        frames, text = self._frames(work.seconds[0], work.config), work.texts[0]
        wanted = frames_of(work.seconds[0], self.fps)
        prompt = self._prompt(text, work.images[0], frames, work.config)
        row: list[int] = []
        for rows in self.vla.stream([prompt], frames, seed=work.seeds, **_drawn(work)):
            row = rows[0]
            if self.vla.two_streams and (row[-1] == self.vla.vocabulary.sep or len(row) % every == 0):
                if row[-1] == self.vla.vocabulary.end:
                    break
                features = self.vla.preview(row, self.vla.said_frames(row) or frames)
                motion = None if features is None else self._motion(features, work.config)
                yield Preview(motion, False, len(row))
        whole = self._finished(self._result(row, frames, work.config, wanted), text, work)
        yield Preview(whole.motion, True, len(row))

    # ---- inside

    def _frames(self, seconds: float | None, config: SceneGenerationConfig) -> int:
        """Frames of a motion: the next length that a length token can say, where the model uses them."""
        from vadis.tokenizers.dsft.sequence import LENGTH_STEP, LENGTHS

        frames = frames_of(seconds, self.fps) or 1
        if frames > config.max_seconds * self.fps:
            raise VadisError(
                f"seconds={seconds:g}: this model makes motions of at most {config.max_seconds:g} seconds."
            )
        if self.vla.vocabulary.length_ids is None:
            return frames
        if frames > LENGTH_STEP * LENGTHS:
            raise VadisError(f"this model makes {LENGTH_STEP * LENGTHS} frames at most, {frames} were asked for.")
        return -(-frames // LENGTH_STEP) * LENGTH_STEP

    def _prompt(self, text: str, image: Image | None, frames: int, config: SceneGenerationConfig) -> Any:
        return self.vla.prompt(text, image, frames / self.fps if config.say_duration else None)

    def _result(self, row: list[int], frames: int, config: SceneGenerationConfig, wanted: int | None) -> Made:
        features = self.vla.features(row, frames)
        name, trust = self.representation.name, config.trust
        if trust is not None and name not in SUPPORTED:
            raise VadisError(f"trust={trust!r} needs features of {' or '.join(SUPPORTED)}; this model makes {name}.")
        apart = disagreement(features, name) if name in SUPPORTED else None
        if trust is not None:
            features = consistent(features, name, trust)
        features = features[:wanted]
        tokens = self.vla.tokens(row, frames)
        return Made(self._motion(features, config), features, tokens, "length", details={"disagreement": apart})

    def _motion(self, features: torch.Tensor, config: SceneGenerationConfig) -> Motion:
        # as decoded: the floor of a scene is where its picture has it
        return decode_motion(self.representation, features, self.fps, config.source)

    # ---- files

    def _parts(self) -> dict[str, Any]:
        written = Written(self.vla.save, "transformers", type(self.vla.model).__name__)
        return {"tokenizer": self.tokenizer, "language_model": written}

    @classmethod
    def _open(
        cls, folder: Path, config: Any, *, dtype: Any, device: Any, allow_download: bool, tokenizer: Any = None
    ) -> Self:
        target = pick_device(device)
        if not (folder / "language_model").is_dir():
            raise ModelError(f"{folder} has no language_model folder: download or save the bundle again.")
        tokenizer = tokenizer or load_component(folder / "tokenizer", device=target)
        vla = MotionVLA.load(folder / "language_model", tokenizer, allow_download=allow_download)
        precision = pick_dtype(dtype) or (torch.float32 if target.type == "cpu" else None)
        vla.model.to(device=target, dtype=precision)
        return cls(vla, config)


def _drawn(work: Work) -> dict[str, Any]:
    """What the model is told of how to draw."""
    c = work.config
    return {
        "temperature": c.temperature,
        "top_p": c.top_p,
        "top_k": c.top_k or None,
        "guidance_scale": c.guidance_scale,
    }


__all__ = ["MotionVLAPipeline", "Preview", "SceneGenerationConfig"]
