"""Linear layers in 8-bit integers on a CPU: a quarter of the memory to read, for one or few rows at a time.

Inputs are scaled row by row, so a row's result does not depend on its companions, and the few large numbers that language
models have at their first token do not cost the others their precision.
"""

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from vadis.errors import ModelError

STEPS = 63
"""Inputs become integers from -63 to 63: sums of products of more would overflow on processors without VNNI."""


class Int8Linear(nn.Module):
    """A linear layer `(…, in)` to `(…, out)` with 8-bit weights, each output's scaled by itself; can't be trained or saved."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_min(1e-8).double() / 127
        zeros = torch.zeros(len(scales), dtype=torch.long)
        self._apply_packed = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        self._packed = torch.ops.quantized.linear_prepack(
            torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8), None
        )
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12)
        made = cast(Any, self._apply_packed)(x / largest, 1.0 / STEPS, STEPS + 1, self._packed) * largest
        return made if self.bias is None else made + self.bias


def to_int8(module: nn.Module) -> None:
    """Replace every linear layer inside, in place. Raises ModelError where there is none, or this torch can't."""
    found = [(parent, name) for parent in module.modules() for name, child in parent.named_children() if type(child) is nn.Linear]  # fmt: skip
    if not found:
        raise ModelError(f"{type(module).__name__} has no linear layers of torch to turn into int8: use bfloat16.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # announces that this is to move to another package
            made = [Int8Linear(getattr(parent, name)) for parent, name in found]
        made[0](torch.zeros(1, getattr(*found[0]).in_features))
    except (RuntimeError, AttributeError) as error:
        raise ModelError(
            f"int8 does not work with this torch and processor ({str(error)[:100]}): use float32."
        ) from error
    for (parent, name), layer in zip(found, made, strict=True):
        setattr(parent, name, layer)
