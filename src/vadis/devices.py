"""Names of devices and precisions, as flags and arguments write them."""

import torch

from vadis.errors import ModelError

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
          "float16": torch.float16, "fp16": torch.float16}  # fmt: skip


def pick_device(device: str | torch.device | None) -> torch.device:
    """A torch device; "auto" is the GPU where there is one, None the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device or "cpu")
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"the device {device} was asked for, but there is no usable GPU: use cpu or auto.")
    return found


def pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating torch dtype from its name; None stays None."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]
