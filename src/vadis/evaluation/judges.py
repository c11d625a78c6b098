"""Judges for `vadis.evaluation.judge`: an OpenAI-compatible endpoint, a local vision-language model, an evaluator, a replay.

Only `HTTPJudge` sends anything, to the address it was given, and only when it is asked about a clip.
"""

import base64
import json
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPException
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import MissingExtra, VadisError
from vadis.evaluation.judge import Choice, JudgeScore, NoReply, Parse, PromptedJudge, RenderedClip, Verdict
from vadis.motion import Motion


def render_clip(motion: Motion, fps: float = 5.0, size: int = 480, supersample: int = 1) -> RenderedClip:
    """Pictures of the mannequin from a fixed camera, looking down by 30°, at least 4 m away, the whole path in view.

    60° of view, white ground, no GPU or display needed; about 0.1 s a picture. 5 frames/s is what the published judge
    sampled. Other skeletons are retargeted to smpl22.
    """
    from vadis.body.mannequin import build_mannequin
    from vadis.body.raster import Camera, render
    from vadis.viewer.sheet import floor_height, on_smpl22

    moved = on_smpl22(motion).resample(fps) if fps < motion.fps else on_smpl22(motion)
    body = build_mannequin(moved.skeleton)
    vertices, normals = body.pose(moved)
    low, high = vertices.min((0, 1)), vertices.max((0, 1))
    target = (low + high) / 2
    radius = float(np.linalg.norm(high - low)) / 2
    distance = max(4.0, radius / np.sin(np.radians(30)))
    yaw = float(moved.heading[0]) + np.radians(30)  # three-quarter view from its left
    level, rise = distance * np.cos(np.radians(30)), distance * np.sin(np.radians(30))
    eye = target + np.asarray([np.sin(yaw) * level, rise, np.cos(yaw) * level])
    camera = Camera((eye[0], eye[1], eye[2]), (target[0], target[1], target[2]), 60.0)
    floor = floor_height(moved, body)
    frames = [
        render(v, n, body.faces, body.colors, camera, size, size, floor=floor, supersample=supersample)
        for v, n in zip(vertices, normals, strict=True)
    ]
    return RenderedClip(np.stack(frames), moved.fps, f"mannequin-{size}px", motion)


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture `(H, W, 3)` uint8 as a PNG file."""
    height, width = picture.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: pictures and key go to the address that was given, or nowhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class HTTPJudge(PromptedJudge):
    """Any endpoint of the OpenAI chat kind that takes pictures, local (vLLM, llama.cpp, Ollama) or hosted.

    Args:
        url: base address, e.g. "http://localhost:8000/v1"; "/chat/completions" is added.
        model: the model's name there; it becomes part of the judge's name.
        api_key: sent as a bearer token; None sends none.
        parse: "strict" or "literal", see `vadis.evaluation.judge`.
        tries: calls made before giving up, with pauses of 1, 2, 4, … seconds between them.
        most_frames: more frames than these are thinned out evenly.
        timeout: seconds to wait for a reply.
    """

    def __init__(self, url: str, model: str, *, api_key: str | None = None, parse: Parse = "strict", tries: int = 3,
                 most_frames: int = 32, timeout: float = 120.0) -> None:  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise VadisError(f"{url!r} is not the address of an endpoint: it must start with http:// or https://.")
        self.url, self.model, self.api_key = url.rstrip("/") + "/chat/completions", model, api_key
        self.name, self.parse, self.tries = model, parse, max(1, tries)
        self.most_frames, self.timeout = most_frames, timeout

    def ask(self, clip: RenderedClip, prompt: str) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        for picture in thinned(clip.frames, self.most_frames):
            data = base64.b64encode(png(picture)).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        page = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        for attempt in range(self.tries):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            try:
                return self._post(page)
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}: {error.read(300).decode(errors='replace')}"
                if 300 <= error.code < 500 and error.code not in (408, 429):
                    raise VadisError(
                        f"{self.url} refused the request ({reason}): check address, model and key."
                    ) from error
            except (OSError, HTTPException, ValueError) as error:
                reason = str(error)
        raise NoReply(f"{self.url} gave no reply in {self.tries} tries ({reason}).")

    def _post(self, page: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url, json.dumps(page).encode(), headers)
        with urllib.request.build_opener(_StayHere).open(request, timeout=self.timeout) as response:
            reply = json.load(response)
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"not a chat reply: {str(reply)[:200]}") from None
        return content if isinstance(content, str) else ""


class LocalVLM(PromptedJudge):
    """A vision-language model of transformers on this machine.

    Args:
        model: folder or Hub id of an image-text-to-text model, or the model itself together with `processor`.
        device: where to put it.
        most_frames: more frames than these are thinned out evenly.
        new_tokens: the longest reply; decoding is greedy.

    Raises MissingExtra without transformers.
    """

    def __init__(self, model: Any, processor: Any = None, *, device: str = "cpu", parse: Parse = "strict",
                 most_frames: int = 12, new_tokens: int = 256) -> None:  # fmt: skip
        name = model if isinstance(model, str) else type(model).__name__
        if isinstance(model, str) or processor is None:
            try:
                from transformers import AutoModelForImageTextToText, AutoProcessor
            except ImportError as error:
                raise MissingExtra("a local judge needs transformers: pip install 'vadis[text]'") from error
            if not isinstance(model, str):
                raise VadisError("give the processor together with the model, or the name of both.")
            from vadis.foreign import open_foreign, open_model
            from vadis.hub import find_folder

            folder = find_folder(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"])
            processor, model = (
                open_foreign(AutoProcessor, folder),
                open_model(AutoModelForImageTextToText, folder),
            )
        self.model, self.processor = model.to(device).eval(), processor
        self.name, self.parse = name.rstrip("/").split("/")[-1], parse
        self.most_frames, self.new_tokens = most_frames, new_tokens

    def ask(self, clip: RenderedClip, prompt: str) -> str:
        import torch

        pictures = list(thinned(clip.frames, self.most_frames))
        content: list[dict[str, Any]] = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=text, images=pictures, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            tokens = self.model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False,
                                         trust_remote_code=False)  # fmt: skip
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()


class ReplayJudge(PromptedJudge):
    """Gives recorded replies in their order: to read an old run by another rule, or to try a protocol without a model."""

    def __init__(self, replies: Sequence[str], name: str = "replay", parse: Parse = "strict") -> None:
        self.replies, self.name, self.parse = list(replies), name, parse
        self._next = count()

    @classmethod
    def of(cls, score: JudgeScore, parse: Parse | None = None) -> "ReplayJudge":
        """The replies of a finished score, read by the same or another rule."""
        replies = [reply for item in score.items for reply in item.replies]
        return cls(replies, score.judge, parse or score.parse)

    def ask(self, clip: RenderedClip, prompt: str) -> str:
        place = next(self._next)
        if place >= len(self.replies):
            raise VadisError(f"only {len(self.replies)} replies were recorded, another was asked for.")
        return self.replies[place]


class RetrievalJudge:
    """A text–motion evaluator as the judge: the option whose text embedding lies nearest, by cosine.

    Needs no pictures, sends nothing, and is reported under its own name, e.g. "condition_consistency@tmr".

    Args:
        embed_motion: a `Motion` → its embedding `(D,)`.
        embed_text: texts → embeddings `(N, D)`.
        threshold: cosine from which a description counts as matched; see `calibrate`.
    """

    parse: Parse = "strict"

    def __init__(self, embed_motion: Callable[[Motion], Any], embed_text: Callable[[Sequence[str]], Any],
                 threshold: float = 0.5, name: str = "tmr") -> None:  # fmt: skip
        self.embed_motion, self.embed_text, self.threshold, self.name = embed_motion, embed_text, threshold, name

    def _cosines(self, clip: RenderedClip, texts: Sequence[str]) -> NDArray[np.float64]:
        if clip.motion is None:
            raise VadisError("this judge measures the motion itself: make clips with render_clip, or pass motion=.")
        motion = np.asarray(self.embed_motion(clip.motion), np.float64).reshape(-1)
        embedded = np.asarray(self.embed_text(list(texts)), np.float64)
        return embedded @ motion / np.maximum(np.linalg.norm(embedded, axis=1) * np.linalg.norm(motion), 1e-12)

    def choose(self, clip: RenderedClip, options: Sequence[str]) -> Choice:
        cosines = self._cosines(clip, options)
        return Choice(int(cosines.argmax()), json.dumps({"cosines": cosines.round(6).tolist()}))

    def verify(self, clip: RenderedClip, text: str) -> Verdict:
        cosine = float(self._cosines(clip, [text])[0])
        return Verdict(cosine >= self.threshold, json.dumps({"cosine": round(cosine, 6)}))

    @staticmethod
    def calibrate(text: Any, motion: Any, seed: int = 0) -> float:
        """The cosine that best tells matched from shuffled pairs of embeddings `(N, D)` of real clips."""
        a, b = (np.asarray(x, np.float64) for x in (text, motion))
        if a.shape != b.shape or a.ndim != 2 or len(a) < 8:
            raise VadisError(f"calibration needs at least 8 paired embeddings (N, D); got {a.shape} and {b.shape}.")
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        rng = np.random.default_rng(seed)
        shift = rng.integers(1, len(a))
        right, wrong = (a * b).sum(1), (a * np.roll(b, shift, 0)).sum(1)
        edges = np.sort(np.concatenate([right, wrong]))
        cuts = (edges[1:] + edges[:-1]) / 2
        accuracy = (right[:, None] >= cuts).mean(0) + (wrong[:, None] < cuts).mean(0)
        return float(cuts[accuracy.argmax()])


def thinned(frames: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """At most so many frames, evenly spread from the first to the last."""
    if len(frames) <= most:
        return frames
    return frames[np.linspace(0, len(frames) - 1, most).round().astype(np.int64)]
