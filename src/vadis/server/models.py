"""The models of a server: loaded once, described for `GET /models`, called for `POST /generate`."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vadis import rotation
from vadis.errors import ModelError, VadisError
from vadis.motion import Motion
from vadis.pipelines.base import Pipeline
from vadis.server.protocol import Frames, Text, pack, skeleton_page

Format = Literal["json", "frames", "bvh", "glb", "npz"]
MEDIA = {
    "frames": "application/octet-stream", "bvh": "text/plain; charset=utf-8", "glb": "model/gltf-binary",
    "npz": "application/zip",
}  # fmt: skip


class ModelPage(BaseModel):
    """A model that this server has loaded."""

    name: str
    streams: bool = Field(description="Whether /stream can use it.")
    fps: float = Field(description="Frames per second.")
    frames_per_token: int = Field(description="Frames per token or latent; so many come at once in a stream.")
    representation: str
    text_encoder: str | None = Field(description="Null for a language model that reads text itself and needs no other.")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 3.0 is an integer in JSON


class GenerateRequest(BaseModel):
    """A motion to make."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text = Field(description="What the body does, in English.", examples=["a person walks in a circle"])
    model: str | None = Field(default=None, description="One of GET /models; by default the first.")
    seconds: float | None = Field(default=None, description="Length; by default the model's.", allow_inf_nan=False)
    seed: Annotated[int | None, BeforeValidator(_whole)] = Field(
        default=None, ge=0, le=2**53 - 1, description="The same seed gives the same motion."
    )
    format: Format = Field(
        default="json", description="json, the binary layout of /stream as one message, or a motion file."
    )


class MotionPage(BaseModel):
    """A motion in numbers: rotations are unit quaternions w, x, y, z, local to the parent; metres; Y up."""

    model: str
    prompt: str
    seed: int
    fps: float
    num_frames: int
    stopped_by: str = Field(description='"length" as asked for, "end" by the model, "cap" at its longest.')
    joints: list[str]
    parents: list[int]
    offsets: list[list[float]]
    root: list[list[float]] = Field(description="(T, 3)")
    rotations: list[list[list[float]]] = Field(description="(T, J, 4)")
    timing: dict[str, float] = Field(description="Seconds.")


class Models:
    """Pipelines by name."""

    def __init__(self, pipelines: Mapping[str, Any]) -> None:
        """Raises ModelError for what is no pipeline, VadisError for none."""
        if not pipelines:
            raise VadisError("there is nothing to serve: name a model.")
        for name, pipeline in pipelines.items():
            if not isinstance(pipeline, Pipeline):
                raise ModelError(f"{name} holds a {type(pipeline).__name__}, which is one part of a model.")
            if pipeline.can("image"):
                raise ModelError(
                    f"{name} wants an image, which can't be sent here: ask it by `vadis generate --image`."
                )
        self.pipelines: dict[str, Any] = dict(pipelines)
        self.streaming = [name for name, pipeline in pipelines.items() if pipeline.can("live")]

    def warm(self) -> None:
        """Load the text encoders, so that the first request need not wait. Raises what their loading raises."""
        for pipeline in self.pipelines.values():
            pipeline.warm()

    def sentence(self, name: str, text: str) -> Any:
        """The vector of a text for a streaming model."""
        return self.pipelines[name].sentence(text)

    def pages(self) -> list[ModelPage]:
        """What is served, the default first."""
        return [
            ModelPage(
                name=name,
                streams=name in self.streaming,
                fps=p.fps,
                frames_per_token=int(p.tokenizer.frames_per_token),
                representation=p.tokenizer.representation,
                text_encoder=p.config.text_encoder,
            )
            for name, p in self.pipelines.items()
        ]

    def pick(self, name: str | None, streaming: bool = False) -> str:
        """The name of a served model. Raises ModelError for another."""
        known = self.streaming if streaming else list(self.pipelines)
        if name is None and known:
            return known[0]
        if name in known:
            return name
        listed = f"there are: {', '.join(known)}" if known else "start the server with --model vadis-mini-stream"
        if name in self.pipelines:
            raise ModelError(f"{name} makes whole motions only: ask POST /generate. Of models that stream {listed}.")
        what = ("streaming model" if streaming else "model") + (f" {name[:80]!r}" if name is not None else "")
        raise ModelError(f"no {what} here; {listed}.")

    def generate(self, name: str, request: GenerateRequest, seed: int) -> MotionPage | bytes:
        """Make the motion, as a page or as the bytes of the asked-for file."""
        pipeline = self.pipelines[name]
        output = pipeline(request.prompt, seconds=request.seconds, seed=seed)
        motion: Motion = output.motion
        if request.format == "frames":
            return pack(as_frames(motion))
        if request.format != "json":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"motion.{request.format}"
                motion.save(path)
                return path.read_bytes()
        frames = as_frames(motion)
        return MotionPage(
            model=name,
            prompt=request.prompt,
            seed=seed,
            fps=motion.fps,
            num_frames=motion.num_frames,
            stopped_by=output.stopped_by,
            root=frames.root.tolist(),
            rotations=frames.quaternions.tolist(),
            timing=output.timing,
            **skeleton_page(motion.skeleton),
        )


def as_frames(motion: Motion) -> Frames:
    """A whole motion in the layout of a stream, text 1."""
    quaternions = rotation.to_quat_wxyz(motion.rotations).numpy().astype(np.float32)
    return Frames(0, 1, motion.fps, 0.0, motion.root.numpy(), quaternions)
