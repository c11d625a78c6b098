"""How large a model may say it is: limits of the numbers in a configuration, and what memory there is for it.

A published model of 7 billion parameters is far inside these limits; what they keep out is a page that asks for a table
of 10^12 rows or for 10^9 layers. Whether a model within the limits fits is checked before any weight is made or read.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field

from vadis.errors import ModelError

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of every dataclass that is read from a page of a model: known fields only, finite numbers."""

Width = Annotated[int, Field(ge=1, le=65_536)]
"""Channels, features or values of a vector."""
Layers = Annotated[int, Field(ge=1, le=512)]
"""Blocks one after the other."""
Heads = Annotated[int, Field(ge=1, le=1024)]
Groups = Annotated[int, Field(ge=1, le=1024)]
"""Tokens a step, codebooks or parts."""
Codes = Annotated[int, Field(ge=1, le=16_777_216)]
"""Rows of a codebook or of a vocabulary."""
Codebook = Annotated[int, Field(ge=2, le=16_777_216)]
"""Rows of a codebook that is learned."""
Row = Annotated[int, Field(ge=3, le=1_048_576)]
"""Positions of a generator: what leads, and at least two more."""
Positions = Annotated[int, Field(ge=1, le=1_048_576)]
"""Steps of the longest row."""
Stages = Annotated[int, Field(ge=0, le=12)]
"""Each shortens time."""
Stride = Annotated[int, Field(ge=2, le=64)]
Kernel = Annotated[int, Field(ge=1, le=1023)]
Depth = Annotated[int, Field(ge=1, le=32)]
"""Residual blocks a stage."""
Growth = Annotated[int, Field(ge=1, le=16)]
"""Of a dilation from block to block."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
FrameRate = Annotated[float, Field(gt=0, le=10_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Name = Annotated[str, Field(max_length=200)]
Frames = Annotated[int, Field(ge=1, le=10_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

MAX_REACH = 1_000_000
"""Frames that one layer, or one token, may span."""


MAX_NUMBER = 1e30
"""Beyond any setting; the float32 numbers of a model end at 3e38."""


def check_numbers(page: Any, where: object) -> None:
    """Raise ModelError for a number in a page that a model can't compute with."""
    rest = [page]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, list):
            rest += value
        elif isinstance(value, float) and abs(value) > MAX_NUMBER:
            raise ModelError(f"{where} holds {value:g}: no setting is beyond {MAX_NUMBER:g}.")


def check_reach(stages: int, stride: int, depth: int, growth: int) -> None:
    """Raise ModelError where `stride ** stages`, frames a token, or `growth ** (depth - 1)`, a dilation, is beyond MAX_REACH."""
    if stride**stages > MAX_REACH or growth ** (depth - 1) > MAX_REACH:
        raise ModelError(
            f"{stages} stages of stride {stride} with {depth} blocks of dilations growing by {growth} reach over more than "
            f"{MAX_REACH:,} frames: check the configuration."
        )


def check_memory(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, device: torch.device, where: object
) -> None:
    """Raise ModelError where tensors (on any device, also meta) need more memory than is free on `device`.

    `dtype` is the precision in which floating ones will be held; None is their own.
    """
    count = sum(t.numel() for t in tensors.values())
    needed = sum(
        t.numel() * (dtype.itemsize if dtype and t.is_floating_point() else t.itemsize) for t in tensors.values()
    )
    free = free_memory(device)
    if free is not None and needed > free:
        raise ModelError(
            f"{where} has {count:,} parameters, which take {needed / 1e9:,.1f} GB; {free / 1e9:,.1f} GB are free on "
            f"{device.type}. Use a machine with more memory, a smaller model, or a generator in dtype bf16."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where the system doesn't say.

    Of a CPU: what Linux and Windows call available, the whole memory of other systems. In a container that may take less
    than its machine has (Docker's `--memory`, Slurm), what is left of that.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    if sys.platform == "win32":
        return _windows_memory()
    page = Path("/proc/meminfo")
    if page.is_file():
        for line in page.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                free = int(value.split()[0]) << 10
                left = _container_memory()
                return free if left is None else min(free, left)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _container_memory(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """What is left of the memory that Linux allows this process's control groups; None without a limit.

    A group is limited by those above it too. Pages of files count as used but are given back when memory is short.
    """
    try:
        groups = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    least = None
    for _, controllers, name in (group for group in groups if len(group) == 3):
        if controllers == "":  # version 2
            top, files = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, files = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in name.split("/") if part not in ("", "..")]
        for folder in (top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            try:
                limit, used = (int((folder / file).read_text(encoding="ascii")) for file in files[:2])
                lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            except (
                OSError,
                ValueError,
            ):  # no limit is "max"; the top of version 2 and what a container hides have no file
                continue
            cached = sum(int(line.split()[1]) for line in lines if line.split()[:1] == [files[2]])
            left = max(0, limit - used + cached)
            least = left if least is None else min(least, left)
    return least


def _windows_memory() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "pages", "free_pages", "virtual", "free_virtual", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    known = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.available) if known else None
