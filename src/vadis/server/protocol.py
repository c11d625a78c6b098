"""What travels over the WebSocket `/stream`: frames in a binary or JSON layout, and the messages of a client.

A binary message holds the frames of one latent, little-endian, without padding:

    0   4 bytes   magic "VDS1"
    4   uint16    bytes of the header, 32: frames begin there
    6   uint16    J, joints
    8   uint16    n, frames in this message
    10  uint16    numbers per frame, 3 + 4 J
    12  uint32    which text these frames are made for: 1 for the first one sent, 2 for the second, …
    16  uint64    number of the first frame since the stream began
    24  float32   frames per second
    28  float32   milliseconds that the model took for this latent
    32  float32 × n × (3 + 4 J)

A frame is the root position x, y, z in metres, then the local rotation of each joint as a unit quaternion w, x, y, z; joint
0 is turned relative to the world. Right-handed, Y up. Joints, parents and bone offsets come in the "ready" message.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vadis.errors import ShapeError, VadisError
from vadis.skeleton import Skeleton

VERSION = 1
MAGIC = b"VDS1"
HEADER = struct.Struct("<4sHHHHIQff")
MAX_MESSAGE_BYTES = 32768
"""Of a client's message or a request's body; more is refused unread."""
MAX_TEXT = 2000
"""Characters of a prompt, as in the text encoders."""

CLOSE_PROTOCOL = 1008
"""Too many malformed messages."""
CLOSE_ERROR = 1011
"""The model failed."""
CLOSE_RESTART = 1012
"""The server shuts down."""
CLOSE_SLOW = 4008
"""The reader took nothing for too long."""
CLOSE_IDLE = 4009
"""No message for too long while no motion was asked for."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of one latent as they travel."""

    start: int
    """Number of the first since the stream began."""
    text: int
    """Number of the text that they are made for, from 1."""
    fps: float
    ms: float
    """What the model took for them."""
    root: NDArray[np.float32]
    """(n, 3) metres."""
    quaternions: NDArray[np.float32]
    """(n, J, 4) w, x, y, z, local."""


def pack(frames: Frames) -> bytes:
    """The binary message."""
    count, joints = frames.quaternions.shape[:2]
    head = HEADER.pack(
        MAGIC, HEADER.size, joints, count, 3 + 4 * joints, frames.text, frames.start, frames.fps, frames.ms
    )
    values = np.concatenate([frames.root, frames.quaternions.reshape(count, -1)], axis=1)
    return head + values.astype("<f4").tobytes()


def unpack(message: bytes) -> Frames:
    """The frames of a binary message. Raises ShapeError for bytes that are none."""
    if len(message) < HEADER.size or message[:4] != MAGIC:
        raise ShapeError(f"{len(message)} bytes that don't begin with {MAGIC.decode()} and a header of {HEADER.size}.")
    _, header, joints, count, width, text, start, fps, ms = HEADER.unpack_from(message)
    if width != 3 + 4 * joints or header < HEADER.size or len(message) != header + 4 * count * width:
        raise ShapeError(
            f"{len(message)} bytes don't hold {count} frames of {joints} joints: the message was cut or altered."
        )
    values = np.frombuffer(message, "<f4", offset=header).reshape(count, width).astype(np.float32)
    return Frames(start, text, fps, ms, values[:, :3], values[:, 3:].reshape(count, joints, 4))


def as_json(frames: Frames) -> dict[str, Any]:
    """The same as a JSON object."""
    return {
        "type": "frames",
        "start": frames.start,
        "text": frames.text,
        "fps": frames.fps,
        "ms": round(frames.ms, 3),
        "root": frames.root.tolist(),
        "rotations": frames.quaternions.tolist(),
    }


def skeleton_page(skeleton: Skeleton) -> dict[str, Any]:
    """Joints, parents (-1: none) and bone offsets in metres, for whoever poses a body by the frames."""
    return {
        "joints": list(skeleton.names),
        "parents": list(skeleton.parents),
        "offsets": [[round(float(v), 6) for v in row] for row in skeleton.offsets],
    }


# ---- what a client says


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SetText(_Message):
    """What the body does from the next latent on; with `queue` when the motion of the texts before has ended."""

    type: Literal["text"]
    text: Text
    queue: bool = False


class Pause(_Message):
    """No more frames; the body keeps its place."""

    type: Literal["pause"]


class Resume(_Message):
    """Go on."""

    type: Literal["resume"]


class Stop(_Message):
    """Close the stream."""

    type: Literal["stop"]


Message = SetText | Pause | Resume | Stop
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def read_message(text: str) -> Message:
    """A client's JSON message. Raises VadisError that says what is wrong with it."""
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise VadisError(
            f"{place + ': ' if place else ''}{first['msg']}. A message is a JSON object such as "
            '{"type": "text", "text": "walk"}, {"type": "pause"}, {"type": "resume"} or {"type": "stop"}.'
        ) from None
