"""Reconstruction losses of motion tokenizers on z-normalised features, and the integrated root path.

The published MotionMillion loss is SmoothL1 (beta 1, mean) over all features plus half of it on the joint positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vadis.errors import ModelError


@dataclass(frozen=True)
class FeatureBlocks:
    """Which features of a representation are joint positions and root motion."""

    positions: slice
    root: slice


BLOCKS = {
    "ms272": FeatureBlocks(positions=slice(8, 74), root=slice(0, 8)),
    "ms272_absroot": FeatureBlocks(positions=slice(8, 74), root=slice(0, 8)),
    "hml263": FeatureBlocks(positions=slice(4, 67), root=slice(0, 4)),
    "kit251": FeatureBlocks(positions=slice(4, 64), root=slice(0, 4)),
}


def root_path(features: Tensor) -> tuple[Tensor, Tensor]:
    """Integrate the root of un-normalised ms272 features `(B, T, 272)`.

    Returns the root's x, z in metres `(B, T, 2)` and its turning in radians `(B, T)`, both relative to row 0 (whose own
    displacement belongs to the frame before the window and is left out).
    """
    turn = torch.atan2(features[..., 4], features[..., 2])  # per frame; minus the change of the facing angle
    turn = torch.cat([torch.zeros_like(turn[:, :1]), turn[:, 1:]], dim=1).cumsum(dim=1)
    before = -turn[:, :-1]  # row t holds a displacement seen from the heading of row t-1
    x, z = features[:, 1:, 0], features[:, 1:, 1]
    cos, sin = before.cos(), before.sin()
    step = torch.stack([cos * x + sin * z, cos * z - sin * x], dim=-1)
    return F.pad(step, (0, 0, 1, 0)).cumsum(dim=1), -turn


def reconstruction_losses(
    target: Tensor,
    output: Tensor,
    representation: str = "ms272",
    *,
    feature_weight: float = 1.0,
    block_weights: Mapping[str, float] | None = None,
    position_weight: float = 0.5,
    velocity_weight: float = 0.0,
    acceleration_weight: float = 0.0,
    root_weight: float = 0.0,
    path_weight: float = 0.0,
    heading_weight: float = 0.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> dict[str, Tensor]:
    """SmoothL1 terms between normalised features `(B, T, D)`; "total" is their weighted sum.

    Only "features" (weight 1) and "positions" (0.5) are on in the published model. "velocity" and "acceleration" are the
    first and second temporal differences of the positions, "root" the root block. "path" (metres) and "heading"
    (radians) compare the integrated root and need `mean` and `std`; they exist for ms272. `block_weights` adds a term a
    named block of the representation (its `slices`), each the mean over that block: with `feature_weight` 0, blocks count
    by weight and not by their number of columns. A term of weight 0 is not computed. Raises ModelError when a term does
    not exist for `representation`.
    """
    weights = {
        "positions": position_weight,
        "velocity": velocity_weight,
        "acceleration": acceleration_weight,
        "root": root_weight,
        "path": path_weight,
        "heading": heading_weight,
    }
    used = [name for name, weight in weights.items() if weight]
    blocks = BLOCKS.get(representation)
    if blocks is None and used:
        raise ModelError(
            f"the loss terms {', '.join(used)} are not defined for {representation}: set their weights to 0."
        )
    terms = {"features": F.smooth_l1_loss(output, target)} if feature_weight else {}
    if blocks is not None:
        real, made = target[..., blocks.positions], output[..., blocks.positions]
        pairs = {
            "positions": lambda: (made, real),
            "velocity": lambda: (made.diff(dim=1), real.diff(dim=1)),
            "acceleration": lambda: (made.diff(n=2, dim=1), real.diff(n=2, dim=1)),
            "root": lambda: (output[..., blocks.root], target[..., blocks.root]),
        }
        terms.update({name: F.smooth_l1_loss(*pair()) for name, pair in pairs.items() if weights[name]})
    if path_weight or heading_weight:
        if representation != "ms272" or mean is None or std is None:
            raise ModelError(
                f"the path and heading losses need ms272 features and their mean and std, not {representation}."
            )
        made_path, made_heading = root_path(output * std + mean)
        real_path, real_heading = root_path(target * std + mean)
        if path_weight:
            terms["path"] = F.smooth_l1_loss(made_path, real_path)
        if heading_weight:
            terms["heading"] = F.smooth_l1_loss(made_heading, real_heading)
    if block_weights:
        columns = _named_blocks(representation, block_weights)
        terms.update({name: F.smooth_l1_loss(output[..., c], target[..., c]) for name, c in columns.items()})
    every = {"features": feature_weight} | weights | dict(block_weights or {})
    total = sum((every[name] * term for name, term in terms.items()), output.new_zeros(()))
    return {"total": total, **terms}


def _named_blocks(representation: str, weights: Mapping[str, float]) -> dict[str, slice]:
    """Columns of the blocks that have a weight; raises ModelError for a name the representation does not have."""
    from vadis.representations import representation as find

    slices = find(representation).slices
    unknown = [name for name in weights if name not in slices]
    if unknown:
        raise ModelError(f"{representation} has no block {', '.join(unknown)}; its blocks are {', '.join(slices)}.")
    return {name: slices[name] for name, weight in weights.items() if weight}
