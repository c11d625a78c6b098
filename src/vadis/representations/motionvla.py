"""The 263 + 18 numbers that MotionVLA's converter makes of ViMoGen-276, mistakes included; for its checkpoints only.

The first 263 columns are laid out as HumanML3D's but are not HumanML3D features: the data are Z up while the code takes
Y for up, the heading is applied with the wrong sign, positions are relative to the pelvis, contacts have another threshold
and order. No HumanML3D model or evaluator can read them; `vadis.representations.conversions` holds the right road.
"""

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError
from vadis.representations.vimogen276 import ViMoGen276

PHYSICAL = {"root_rotation": slice(0, 6), "translation": slice(6, 9), "root_rotation_velocity": slice(9, 15),
            "translation_velocity": slice(15, 18)}  # fmt: skip
"""Columns of the 18 residual numbers, copied from the 276."""
CONTACT = 2e-5
"""Squared step in metres below which the original calls a foot joint still."""
_FEET = (8, 11, 7, 10)  # right before left
_REP = ViMoGen276()


def from_vimogen276(features: Tensor) -> tuple[Tensor, Tensor]:
    """The 263 numbers and the 18 beside them, `(..., T, 263)` and `(..., T, 18)`, of features `(..., T, 276)`."""
    x, s = _REP.check(features), _REP.slices
    turn = _turn(x[..., s["root_rotation"]])
    joints = x[..., s["joint_positions"]].unflatten(-1, (22, 3))
    steps = x[..., s["joint_velocities"]].unflatten(-1, (22, 3))
    increment = rotation.from_6d(x[..., s["root_rotation_velocity"]], "columns_interleaved")
    step = (turn @ x[..., s["translation_velocity"], None])[..., 0]
    still = steps[..., list(_FEET), :].square().sum(-1) < CONTACT
    base = [
        rotation.to_rotvec(increment)[..., 1:2],
        step[..., 0::2],
        x[..., s["translation"]][..., 1:2],
        ((joints[..., 1:, :] - joints[..., :1, :]) @ turn.transpose(-1, -2)).flatten(-2),
        x[..., s["joint_rotations"]],
        (steps @ turn.transpose(-1, -2)).flatten(-2),
        still.to(x.dtype),
    ]
    return torch.cat(base, dim=-1), torch.cat([x[..., s[name]] for name in PHYSICAL], dim=-1)


def to_vimogen276(base: Tensor, physical: Tensor) -> Tensor:
    """Features `(..., T, 276)` of what `from_vimogen276` made.

    As in the original the translation is taken for the pelvis, so every joint comes back displaced by minus
    `REST_PELVIS` (0.35 m); all other columns come back as they were.
    """
    if base.shape[-1] != 263 or physical.shape != (*base.shape[:-1], 18):
        raise ShapeError(f"needs (..., T, 263) and (..., T, 18); got {tuple(base.shape)} and {tuple(physical.shape)}.")
    part = {name: physical[..., columns] for name, columns in PHYSICAL.items()}
    turn = _turn(part["root_rotation"])
    joints = base[..., 4:67].unflatten(-1, (21, 3)) @ turn + part["translation"][..., None, :]
    part["joint_positions"] = torch.cat([part["translation"], joints.flatten(-2)], dim=-1)
    part["joint_velocities"] = (base[..., 193:259].unflatten(-1, (22, 3)) @ turn).flatten(-2)
    part["joint_rotations"] = base[..., 67:193]
    return torch.cat([part[name] for name in _REP.slices], dim=-1)


def _turn(six: Tensor) -> Tensor:
    """Turn about Y by the "heading" of root rotations `(..., 6)`, with the original's sign."""
    return rotation.yaw(rotation.heading(rotation.from_6d(six, "columns_interleaved")))
