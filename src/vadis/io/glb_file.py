"""The container of a GLB file (glTF 2.0, binary): its JSON page, checked, and the numbers that it points to.

Only what an animation of bones needs is looked at: nodes, skins, animations and the accessors that those use. Every index,
offset, count and number is checked here, before memory is taken, so that `vadis.io.gltf` can rely on it.
"""

import struct
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from vadis.errors import FileError
from vadis.records import checked, parse_json

MAX_JSON_BYTES = 64 << 20
MAX_NODES = 100_000
MAX_DEPTH = 1000
"""Of nodes inside one another."""
MAX_JOINTS = 4096
MAX_METERS = 1e6
MAX_SECONDS = 86_400.0
"""Latest key: a day."""
_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}

Index = Annotated[int, Field(ge=0, lt=1 << 31)]
Length = Annotated[float, Field(ge=-MAX_METERS, le=MAX_METERS)]
_LOOSE = ConfigDict(extra="ignore", allow_inf_nan=False)  # other parts of the file are for other programs


@dataclass(frozen=True, config=_LOOSE)
class Accessor:
    """Where an array of numbers is and how it is stored."""

    componentType: Literal[5120, 5121, 5122, 5123, 5125, 5126]
    count: Annotated[int, Field(ge=1, lt=1 << 31)]
    type: Literal["SCALAR", "VEC2", "VEC3", "VEC4", "MAT2", "MAT3", "MAT4"]
    bufferView: Index | None = None
    byteOffset: Index = 0
    normalized: bool = False
    sparse: Any = None


@dataclass(frozen=True, config=_LOOSE)
class BufferView:
    """A stretch of the binary chunk."""

    buffer: Index
    byteLength: Annotated[int, Field(ge=1, lt=1 << 40)]
    byteOffset: Annotated[int, Field(ge=0, lt=1 << 40)] = 0
    byteStride: Annotated[int, Field(ge=1, le=252)] | None = None
    extensions: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, config=_LOOSE)
class Buffer:
    """The binary chunk, or another file."""

    uri: str | None = None


@dataclass(frozen=True, config=_LOOSE)
class Node:
    """A place in the scene, relative to the node above it."""

    name: str = ""
    children: list[Index] = Field(default_factory=list)
    translation: tuple[Length, Length, Length] = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    """x, y, z, w."""
    scale: tuple[Length, Length, Length] = (1.0, 1.0, 1.0)
    matrix: Annotated[list[Length], Field(min_length=16, max_length=16)] | None = None
    """Column by column; takes the place of the three above."""


@dataclass(frozen=True, config=_LOOSE)
class Skin:
    """The nodes that are bones."""

    joints: Annotated[list[Index], Field(min_length=1, max_length=MAX_JOINTS)]


@dataclass(frozen=True, config=_LOOSE)
class Target:
    """What a channel moves."""

    path: str
    node: Index | None = None


@dataclass(frozen=True, config=_LOOSE)
class Channel:
    """A sampler and what it moves."""

    sampler: Index
    target: Target


@dataclass(frozen=True, config=_LOOSE)
class Sampler:
    """Key times and values."""

    input: Index
    output: Index
    interpolation: Literal["LINEAR", "STEP", "CUBICSPLINE"] = "LINEAR"


@dataclass(frozen=True, config=_LOOSE)
class Animation:
    """Channels that play together."""

    channels: Annotated[list[Channel], Field(max_length=MAX_NODES)]
    samplers: Annotated[list[Sampler], Field(max_length=MAX_NODES)]
    name: str = ""


@dataclass(frozen=True, config=_LOOSE)
class Notes:
    """What `save_glb` writes beside the standard."""

    fps: Annotated[float, Field(ge=0.1, le=10_000)] | None = None
    t_pose_first_frame: bool = False
    meta: dict[str, str | int | float | bool] = Field(default_factory=dict)


@dataclass(frozen=True, config=_LOOSE)
class Extras:
    """Free notes of the file; ours have a name of their own."""

    vadis: Notes = Field(default_factory=Notes)


@dataclass(frozen=True, config=_LOOSE)
class Asset:
    """About the file."""

    version: str
    extras: Any = None


@dataclass(frozen=True, config=_LOOSE)
class Page:
    """The JSON page, as far as bones and their animations go."""

    asset: Asset
    nodes: Annotated[list[Node], Field(max_length=MAX_NODES)] = Field(default_factory=list)
    skins: list[Skin] = Field(default_factory=list)
    animations: list[Animation] = Field(default_factory=list)
    accessors: list[Accessor] = Field(default_factory=list)
    bufferViews: list[BufferView] = Field(default_factory=list)
    buffers: list[Buffer] = Field(default_factory=list)


class GlbFile:
    """A GLB file: `page`, and `array(number)` of its accessors. Raises FileError for a file that isn't one, or is damaged."""

    def __init__(self, path: Path, max_bytes: int = 4 << 30) -> None:
        self.path = path
        json_bytes, self.binary = _chunks(path, max_bytes)
        self.page: Page = checked(Page, parse_json(json_bytes, f"the page of {path.name}"), path.name)
        if self.page.asset.version.partition(".")[0] != "2":
            raise FileError(f"{path.name} is glTF {self.page.asset.version}; 2.0 is read: export it again.")
        extras = self.page.asset.extras
        ours = isinstance(extras, dict) and "vadis" in extras  # other programs put there what they like
        self.notes = checked(Extras, extras, f"{path.name}: asset.extras").vadis if ours else Notes()
        self.parents = self._parents()

    def _parents(self) -> dict[int, int]:
        """The node above each node that has one; FileError for what is no tree."""
        above: dict[int, int] = {}
        for number, node in enumerate(self.page.nodes):
            for child in node.children:
                if child >= len(self.page.nodes):
                    raise FileError(f"{self.path.name}: node {number} has a child {child}, which doesn't exist.")
                if child in above or child == number:
                    raise FileError(f"{self.path.name}: node {child} is the child of more than one node, or of itself.")
                above[child] = number
        return above

    def line(self, node: int) -> list[int]:
        """The nodes from the top down to `node`, which is the last of them."""
        if node >= len(self.page.nodes):
            raise FileError(f"{self.path.name} speaks of node {node}; there are {len(self.page.nodes)}.")
        result = [node]
        while result[-1] in self.parents:
            result.append(self.parents[result[-1]])
            if len(result) > MAX_DEPTH:
                raise FileError(f"{self.path.name}: node {node} is nested more than {MAX_DEPTH} deep, or in a circle.")
        return result[::-1]

    def array(self, number: int, kind: str) -> NDArray[np.float64]:
        """The numbers of an accessor `(count, width)`; normalized integers become -1 to 1. They are finite.

        `kind` is the type it must have, such as VEC3.
        """
        name, page = f"{self.path.name}: accessor {number}", self.page
        if number >= len(page.accessors):
            raise FileError(f"{self.path.name} speaks of accessor {number}; there are {len(page.accessors)}.")
        accessor = page.accessors[number]
        if accessor.type != kind:
            raise FileError(f"{name} holds {accessor.type}; {kind} is needed here.")
        if accessor.bufferView is None or accessor.sparse is not None:
            raise FileError(
                f"{self.path.name} uses sparse accessors, which are not read: export it without compression."
            )
        if accessor.bufferView >= len(page.bufferViews):
            raise FileError(f"{name} is in buffer view {accessor.bufferView}; there are {len(page.bufferViews)}.")
        view = page.bufferViews[accessor.bufferView]
        if packed := [x for x in view.extensions if "compression" in x]:
            raise FileError(f"{self.path.name} is compressed ({packed[0]}), which is not read: export it without.")
        if view.buffer >= len(page.buffers):
            raise FileError(f"{name} is in buffer {view.buffer}; there are {len(page.buffers)}.")
        if view.buffer > 0 or page.buffers[view.buffer].uri is not None or self.binary is None:
            raise FileError(f"{self.path.name} keeps its data in other files: export it as one binary GLB.")
        dtype, width = np.dtype(_DTYPES[accessor.componentType]), _WIDTHS[accessor.type]
        size = dtype.itemsize * width
        stride = view.byteStride or size
        inside = accessor.byteOffset + stride * (accessor.count - 1) + size
        end = view.byteOffset + inside
        if stride < size or inside > view.byteLength or end > len(self.binary):
            raise FileError(
                f"{name} needs {end} bytes; {min(len(self.binary), view.byteOffset + view.byteLength)} are there: "
                "the file is cut off or damaged."
            )
        raw = np.frombuffer(self.binary, np.uint8, inside - accessor.byteOffset, view.byteOffset + accessor.byteOffset)
        rows = np.lib.stride_tricks.as_strided(raw, (accessor.count, size), (stride, 1))
        values = np.ascontiguousarray(rows).view(dtype).astype(np.float64)
        if not np.isfinite(values).all():
            raise FileError(f"{name} holds NaN or infinite numbers: export the file again.")
        if dtype.kind == "f":
            return values
        if not accessor.normalized:
            raise FileError(f"{name} holds whole numbers that are not normalized: animations have none.")
        return np.maximum(values / np.iinfo(dtype).max, -1)

    def keys(self, number: int) -> NDArray[np.float64]:
        """Key times `(K,)` in seconds, never falling. Two at one time are a cut: the later one counts from there on."""
        times = self.array(number, "SCALAR")[:, 0]
        if times[0] < 0 or times[-1] > MAX_SECONDS or (np.diff(times) < 0).any():
            raise FileError(
                f"{self.path.name}: accessor {number} holds key times from {times.min():g} to {times.max():g} s; they "
                f"must rise from 0 to {MAX_SECONDS:g}."
            )
        return times


def _chunks(path: Path, max_bytes: int) -> tuple[bytes, bytes | None]:
    """The JSON chunk and the binary one."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise FileError(f"{path.name} has {size} bytes, more than {max_bytes}: pass max_bytes if that is right.")
        with path.open("rb") as file:
            header = file.read(20)
            if len(header) < 20 or struct.unpack_from("<I", header)[0] != _MAGIC:
                raise FileError(f"{path.name} is not a GLB file: export it as binary glTF 2.0.")
            _, version, whole, length, kind = struct.unpack("<5I", header)
            if version != 2 or kind != _JSON_CHUNK:
                raise FileError(f"{path.name} is GLB version {version}; 2 is read: export it as binary glTF 2.0.")
            if length > min(MAX_JSON_BYTES, size - 20) or whole > size:
                raise FileError(f"{path.name} announces {max(whole, length + 20)} bytes and has {size}: it is cut off.")
            page = file.read(length)
            second = file.read(8)
            if len(second) < 8:
                return page, None
            length, kind = struct.unpack("<2I", second)
            if kind != _BINARY_CHUNK:
                return page, None
            if length > size - file.tell():
                raise FileError(
                    f"{path.name} announces {length} bytes of data and has {size - file.tell()}: it is cut off."
                )
            return page, file.read(length)
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}.") from error
