"""Published weights, read without running anything they contain, and loaded strictly.

safetensors through `safetensors_files`; torch's own files, also with the leftovers of DeepSpeed and Lightning, through
`torch_files`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vadis.errors import FileError, ModelError
from vadis.safetensors_files import Entry, read_safetensors
from vadis.torch_files import read_torch

STATE_KEYS = ("net", "trans", "vq_model", "state_dict", "model_state_dict", "model", "ema", "module")
"""Where published training files keep their state dict, in order of preference."""


def read_file(path: str | Path) -> Any:
    """Whatever a safetensors or torch file holds, on the CPU. Raises FileError (missing, damaged) or ModelError (unsafe)."""
    path = Path(path)
    if not path.is_file():
        raise FileError(
            f"no checkpoint at {path}: give the path of a .safetensors, .pth, .pt, .bin, .ckpt or torch .zip file."
        )
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)


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


def _listed(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_fit(module: nn.Module, stated: Mapping[str, Entry], *, strict: bool = True) -> None:
    """Raise ModelError unless tensors of these names, types and shapes are those of `module`, which may be on "meta".

    Every name is used once, nothing is missing, left over, of another shape or of another kind of number. Shared tensors may be listed once. With `strict=False` missing and left-over names are allowed.
    """
    own = module.state_dict(keep_vars=True)
    given = {id(own[name]) for name in stated if name in own}
    missing = [name for name in own if name not in stated and id(own[name]) not in given]
    unexpected = [name for name in stated if name not in own]
    both = [(name, stated[name], own[name]) for name in own if name in stated]
    shapes = [f"{name} {entry.shape} instead of {tuple(t.shape)}" for name, entry, t in both if entry.shape != t.shape]
    kinds = [
        f"{name} {_word(entry.dtype)} instead of {_word(t.dtype)}"
        for name, entry, t in both
        if _kind(entry.dtype) != _kind(t.dtype)
    ]
    problems = [f"missing {_listed(missing)}"] if missing and strict else []
    problems += [f"unexpected {_listed(unexpected)}"] if unexpected and strict else []
    problems += [f"wrong shapes: {_listed(shapes, 1)}"] if shapes else []
    problems += [f"wrong types: {_listed(kinds, 1)}"] if kinds else []
    if problems:
        raise ModelError(
            f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}. Check the file and the config."
        )


MIN_STD = 1e-20
"""Features divided by less are infinite."""
MAX_WEIGHT = 1e18
"""Products of larger weights are infinite; trained ones are below a million."""


def _kind(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise ModelError that names the first tensor with NaN, infinite or absurdly large weights."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            tensor = tensor.float() if tensor.itemsize == 1 else tensor  # torch can't add numbers of 8 bits
            total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
            if -MAX_WEIGHT <= float(total) <= MAX_WEIGHT:
                continue  # NaN and infinite numbers come through a sum, which costs less than a look at each
            least, most = tensor.aminmax()
            if not -MAX_WEIGHT <= float(least) <= float(most) <= MAX_WEIGHT:
                raise ModelError(
                    f"the weights {name} hold NaN, infinite or absurdly large numbers: download or save the model again."
                )


def _unset(tensor: Tensor) -> bool:
    return not tensor.is_meta and bool(tensor.isnan().all())


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, assign: bool = False, strict: bool = True) -> None:
    """Load `state`, which must fit (see `check_fit`) and be finite, else ModelError.

    `assign` takes the tensors over instead of copying them (for modules built on the meta device). With `strict=False`
    missing and left-over names are allowed; wrong shapes never are.
    """
    check_fit(module, {name: Entry(t.dtype, tuple(t.shape)) for name, t in state.items()}, strict=strict)
    own = module.state_dict(keep_vars=True)
    taken = {name: tensor for name, tensor in state.items() if name in own}
    unset = [n for n in getattr(module, "may_be_unset", ()) if n in taken and _unset(taken[n])]
    check_finite({name: tensor for name, tensor in taken.items() if name not in unset})
    std = taken.get("std")
    if std is not None and not std.is_meta and bool((std < MIN_STD).any()):
        raise ModelError(f"the weights std, a deviation to divide by, must be above {MIN_STD:g}: save the model again.")
    module.load_state_dict(taken, strict=False, assign=assign)
