"""DSFT writes poses and rates in two streams that may contradict each other: by how much, and what it takes to agree.

`base` trusts positions and places and derives the rates of them; `phys` trusts the rates and adds them up from the first
frame. MotionVLA keeps both as they are.
"""

from typing import Literal

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.representations import representation
from vadis.representations.vimogen276 import REST_PELVIS

Trust = Literal["base", "phys"]
SUPPORTED = ("vimogen276", "ms272")
_LAYOUT: rotation.SixD = "columns_interleaved"


def disagreement(features: Tensor, name: str) -> float:
    """Mean distance between a joint's step as written and the step between its written positions, mm a frame.

    Of features `(T, D)`; 0 for a single frame. Raises VadisError for a representation without both.
    """
    written, derived = _steps(features, name)
    if not len(derived):
        return 0.0
    return 1000 * float((written - derived).unflatten(-1, (-1, 3)).norm(dim=-1).mean())


def consistent(features: Tensor, name: str, trust: Trust) -> Tensor:
    """Features `(T, D)` whose streams agree. Raises VadisError for a representation that it can't be done for."""
    if trust not in ("base", "phys"):
        raise VadisError(f"trust={trust!r}: say 'base' (positions) or 'phys' (rates).")
    if name == "ms272":
        return _ms272(features, trust)
    _check(name)
    return _vimogen_base(features) if trust == "base" else _vimogen_phys(features)


def _check(name: str) -> None:
    if name not in SUPPORTED:
        raise VadisError(f"{name} features can't be compared with their rates here; {', '.join(SUPPORTED)} can.")


def _steps(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Steps of the joints as written and as positions say, (T - 1, 66) each."""
    _check(name)
    rep = representation(name)
    x = rep.check(features, 2)
    written, places = x[:, rep.slices["joint_velocities"]], x[:, rep.slices["joint_positions"]]
    # ms272 writes the step that led to a frame, vimogen276 the one that leaves it
    return (written[1:] if name == "ms272" else written[:-1]), torch.diff(places, dim=0)


def _ms272(features: Tensor, trust: Trust) -> Tensor:
    """Joint positions and their steps; the root's path is written once only and stays."""
    rep = representation("ms272")
    out = rep.check(features, 2).clone()
    places, steps = rep.slices["joint_positions"], rep.slices["joint_velocities"]
    if trust == "base":
        out[1:, steps] = torch.diff(out[:, places], dim=0)
    else:
        out[1:, places] = out[:1, places] + out[1:, steps].double().cumsum(0).to(out)
    return out


def _vimogen_base(features: Tensor) -> Tensor:
    """Rates derived from places; the last row, which has no next frame, keeps its own."""
    rep = representation("vimogen276")
    out = rep.check(features, 2).clone()
    s = rep.slices
    out[:-1, s["joint_velocities"]] = torch.diff(out[:, s["joint_positions"]], dim=0)
    out[:-1, s["translation_velocity"]] = torch.diff(out[:, s["translation"]], dim=0)
    root = rotation.from_6d(out[:, s["root_rotation"]], _LAYOUT)
    out[:, s["root_rotation"]] = rotation.to_6d(root, _LAYOUT)  # a decoded matrix is not quite a rotation
    out[:-1, s["root_rotation_velocity"]] = rotation.to_6d(root[1:] @ root[:-1].transpose(-1, -2), _LAYOUT)
    return out


def _vimogen_phys(features: Tensor) -> Tensor:
    """The root led by its rates, the body carried along as a whole, then the rates of the joints derived from that."""
    rep = representation("vimogen276")
    out = rep.check(features, 2).clone()
    s = rep.slices
    root = rotation.from_6d(out[:, s["root_rotation"]], _LAYOUT).double()
    turns = rotation.from_6d(out[:, s["root_rotation_velocity"]], _LAYOUT).double()
    led = rotation.running_product(torch.cat([root[:1], turns[:-1]]))
    moves = out[:, s["translation_velocity"]].double()
    place = torch.cat([out[:1, s["translation"]].double(), moves[:-1]]).cumsum(0)
    joints = out[:, s["joint_positions"]].double().unflatten(-1, (22, 3))
    pelvis = place + torch.tensor(REST_PELVIS, dtype=torch.float64)
    carried = (joints - joints[:, :1]) @ (led @ root.transpose(-1, -2)).transpose(-1, -2) + pelvis[:, None]
    out[:, s["root_rotation"]] = rotation.to_6d(led, _LAYOUT).to(out)
    out[:, s["translation"]] = place.to(out)
    out[:, s["joint_positions"]] = carried.flatten(1).to(out)
    return _vimogen_base(out)
