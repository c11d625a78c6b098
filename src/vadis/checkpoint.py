"""Reading published weights without running anything they contain, and loading them strictly.

safetensors where possible; torch files through the weights-only reader; files with optimizer leftovers (DeepSpeed,
Lightning) through an unpickler that builds tensors, containers and numbers, turns classes of those known leftovers into
inert placeholders, and refuses every other name.
"""

import collections
import pickle
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vadis.errors import FileError, ModelError

STATE_KEYS = ("net", "trans", "vq_model", "state_dict", "model_state_dict", "model", "ema")
"""Where published training files keep their state dict, in order of preference."""

_CONTAINERS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    **{
        ("builtins", t.__name__): t
        for t in (dict, list, tuple, set, frozenset, int, float, complex, bool, str, bytes, bytearray)
    },
}
_CONTAINERS |= {
    ("__builtin__", name): value for (module, name), value in list(_CONTAINERS.items()) if module == "builtins"
}
_TENSOR_BUILDERS = {
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"},
    "torch": {"Size", "device"},
    "torch.nn.parameter": {"Parameter"},
}
_LEFTOVERS = (
    "deepspeed",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "yacs",
    "argparse",
    "numpy",
    "torch.optim",
)


class _Inert:
    """Stands for an object of a training library: takes any arguments and any state, keeps nothing, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def update(self, *_: Any) -> None:
        pass


class _Refused(pickle.UnpicklingError):
    """A name that no checkpoint needs."""


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CONTAINERS:
            return _CONTAINERS[module, name]
        if name in _TENSOR_BUILDERS.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage") and "." not in name:
            return super().find_class(module, name)
        if any(module == m or module.startswith(m + ".") for m in _LEFTOVERS):
            return _Inert
        raise _Refused(f"it asks to import {module}.{name}")


def _restricted_load(file: Any, **options: Any) -> Any:
    return _RestrictedUnpickler(file, **options).load()


_PICKLE = types.ModuleType("restricted_pickle")
_PICKLE.Unpickler, _PICKLE.load = _RestrictedUnpickler, _restricted_load  # type: ignore[attr-defined]


def read_file(path: str | Path) -> Any:
    """Whatever a safetensors or torch file holds, on the CPU. Raises FileError (missing, damaged) or ModelError (unsafe)."""
    path = Path(path)
    if not path.is_file():
        raise FileError(
            f"no checkpoint at {path}: give the path of a .safetensors, .pth, .pt, .bin, .ckpt or torch .zip file."
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise FileError(f"{path} is not a whole safetensors file ({error}): download it again.") from error
    mmap = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        pass  # holds more than tensors: the restricted reader decides
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise FileError(f"{path} can't be read as a torch file ({_first_line(error)}): download it again.") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE, mmap=mmap)
    except _Refused as error:
        raise ModelError(
            f"{path} was refused: {_first_line(error)}. Only tensors are read; save its weights as safetensors."
        ) from error
    except Exception as error:  # a damaged or hostile stream may fail anywhere
        raise FileError(f"{path} can't be read as a torch file ({_first_line(error)}): download it again.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file: found under the usual keys, a leading `module.` removed from its names."""
    return find_state_dict(read_file(path), str(path))


def weights_file(path: str | Path, preferred: tuple[str, ...] = ()) -> Path:
    """`path`, or in a folder the first of the `preferred` names, or else the only weights file. Raises FileError."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in preferred:
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"))
    if not found and (path / "model").is_dir():
        return weights_file(path / "model", preferred)
    if len(found) != 1:
        names = ", ".join(p.name for p in found[:10]) or "none"
        raise FileError(f"{path} must hold one weights file; it has {names}. Give the path of the file.")
    return found[0]


def find_state_dict(payload: Any, label: str = "the checkpoint") -> dict[str, Tensor]:
    """The name → tensor mapping inside what a training program saved. Raises ModelError when there is none."""
    for key in STATE_KEYS:
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
            payload = payload[key]
            break
    if not isinstance(payload, Mapping) or not any(isinstance(v, Tensor) for v in payload.values()):
        raise ModelError(
            f"{label} holds no state dict: expected names and tensors, at the top or under {', '.join(STATE_KEYS)}."
        )
    strange = [
        str(name) for name, value in payload.items() if not isinstance(value, Tensor) or not isinstance(name, str)
    ]
    if strange:
        raise ModelError(
            f"{label} mixes tensors with other values ({', '.join(strange[:10])}): give its state dict alone."
        )
    if all(name.startswith("module.") for name in payload):
        return {name.removeprefix("module."): value for name, value in payload.items()}
    return dict(payload)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, assign: bool = False, strict: bool = True) -> None:
    """Load `state`: every name used once, nothing missing, left over or of another shape, else ModelError with the first ten.

    `assign` takes the tensors over instead of copying them (for modules built on the meta device). Shared tensors may be
    listed once. With `strict=False` missing and left-over names are allowed; wrong shapes never are.
    """
    own = module.state_dict(keep_vars=True)
    given = {id(own[name]) for name in state if name in own}
    missing = [name for name in own if name not in state and id(own[name]) not in given]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = []
    if missing and strict:
        problems.append(f"missing {_listed(missing)}")
    if unexpected and strict:
        problems.append(f"unexpected {_listed(unexpected)}")
    if shapes:
        problems.append(f"wrong shapes: {_listed(shapes)}")
    if problems:
        raise ModelError(
            f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}. Check the file and the config."
        )
    module.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False, assign=assign)
