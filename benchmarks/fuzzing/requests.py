"""What clients send: bodies of requests, messages of streams, and frames that come back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fuzzing.run import Reader
from vadis.errors import VadisError
from vadis.server.protocol import Frames, pack, read_message, unpack


def _make_messages(root: Path) -> None:
    for name, page in (
        ("text", {"type": "text", "text": "walk", "queue": True}),
        ("pause", {"type": "pause"}),
        ("stop", {"type": "stop"}),
    ):
        (root / name).mkdir()
        (root / name / "message.json").write_text(json.dumps(page))


def _read_message(folder: Path) -> Any:
    return read_message(_sent(folder / "message.json").decode("utf-8", "replace")).model_dump()


def _make_request(root: Path) -> None:
    (root / "body").mkdir()
    body = {"prompt": "a person walks", "seconds": 2.5, "seed": 3, "format": "json"}
    (root / "body" / "body.json").write_text(json.dumps(body))


def _read_request(folder: Path) -> Any:
    from vadis.server.models import GenerateRequest

    try:
        return GenerateRequest.model_validate_json(_sent(folder / "body.json")).model_dump()
    except ValidationError as error:  # the server answers it with 422
        raise VadisError(error.errors(include_url=False)[0]["msg"]) from None


def _make_frames(root: Path) -> None:
    (root / "frames").mkdir()
    frames = Frames(8, 1, 30.0, 5.0, np.zeros((4, 3), np.float32), np.tile(np.float32([1, 0, 0, 0]), (4, 22, 1)))
    (root / "frames" / "frames.dat").write_bytes(pack(frames))


def _read_frames(folder: Path) -> Any:
    frames = unpack(_sent(folder / "frames.dat"))
    return {
        "start": frames.start,
        "text": frames.text,
        "root": frames.root.shape,
        "quaternions": frames.quaternions.shape,
    }


def _sent(path: Path) -> bytes:
    """The bytes that came; none where the damage left no file."""
    return path.read_bytes() if path.is_file() else b""


READERS = {
    "message": Reader(_make_messages, _read_message, named=False),
    "request": Reader(_make_request, _read_request, named=False),
    "frames": Reader(_make_frames, _read_frames, named=False),
}
