"""The kinematic plan of a motion: what a body does, in numbers that a sentence can state or imply.

A plan has five rows: the whole clip, then its four quarters. Each row holds the `ATTRIBUTES` below, in physical units
(metres, metres per second, radians), measured on 22 joint positions. Directions are those of the body: "forward" and
"left" follow the hips and shoulders, displacements use the heading at the start of the row's interval.

The plan conditions the bundled generator, is what the planner predicts from text, and is what automatic captions say.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError
from vadis.skeleton import SMPL22_NAMES

ATTRIBUTES = (
    "forward_speed", "left_speed", "speed", "yaw", "absolute_yaw", "forward_distance", "left_distance",
    "pelvis_height", "pelvis_height_min", "pelvis_height_max", "airborne", "flight_height",
    "left_hand_speed", "right_hand_speed", "left_foot_speed", "right_foot_speed",
    "left_hand_height", "right_hand_height", "left_hand_height_max", "right_hand_height_max",
    "left_foot_height_max", "right_foot_height_max", "lean_forward", "lean_left", "upright_min", "head_height_min",
    "left_hand_reach", "right_hand_reach", "left_hand_out", "right_hand_out", "hands_distance", "feet_distance_max",
    "seconds",
)  # fmt: skip
"""Columns of a plan. Hand heights are relative to the pelvis, foot heights to the floor; `airborne` is a share of time;
hand and foot speeds are relative to the pelvis in the heading frame; `reach` is forward of and `out` sideways from the
pelvis; `upright_min` is the vertical part of the unit vector from pelvis to neck (1 upright, 0 lying, -1 upside down)."""

PLAN_ROWS = 5


def _swap_side(name: str) -> str:
    if name in ("left_speed", "left_distance"):  # directions, not sides: they change sign
        return name
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(side):
            return other + name.removeprefix(side)
    return name


_J = {name: j for j, name in enumerate(SMPL22_NAMES)}
_FLIGHT = 0.12  # metres above the floor that the lowest foot joint must reach for both feet to count as off the ground


def body_heading(positions: Tensor) -> Tensor:
    """Heading `(..., T)` in radians, unwrapped, of the line through hips and shoulders of `(..., T, 22, 3)` positions."""
    across = positions[..., _J["left_hip"], :] - positions[..., _J["right_hip"], :]
    across = across + positions[..., _J["left_shoulder"], :] - positions[..., _J["right_shoulder"], :]
    return rotation.unwrap(torch.atan2(-across[..., 2], across[..., 0]))


def _turn(vector: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """(forward, left) components of the horizontal part of world vectors `(..., 3)` for bodies heading at `angle`."""
    c, s = torch.cos(angle), torch.sin(angle)
    return s * vector[..., 0] + c * vector[..., 2], c * vector[..., 0] - s * vector[..., 2]


def _row(p: Tensor, angle: Tensor, floor: float, fps: float) -> Tensor:
    pelvis = p[:, 0]
    step = torch.diff(pelvis, dim=0) * fps if len(p) > 1 else torch.zeros(1, 3)
    forward, left = _turn(step, angle[: len(step)])
    moved_forward, moved_left = _turn(pelvis[-1] - pelvis[0], angle[0])
    turned = torch.diff(angle) if len(p) > 1 else torch.zeros(1)
    local = p - pelvis[:, None]
    ahead, side = _turn(local, angle[:, None])
    frame = torch.stack([ahead, local[..., 1], side], dim=-1)  # (T, 22, 3) in the heading frame
    speed = torch.diff(frame, dim=0).norm(dim=-1).mul(fps).mean(0) if len(p) > 1 else torch.zeros(22)
    feet = [_J["left_ankle"], _J["right_ankle"], _J["left_foot"], _J["right_foot"]]
    lowest = p[:, feet, 1].min(dim=1).values - floor
    trunk = frame[:, _J["neck"]] / frame[:, _J["neck"]].norm(dim=-1, keepdim=True).clamp_min(1e-6)
    hands = (_J["left_wrist"], _J["right_wrist"])
    toes = (_J["left_foot"], _J["right_foot"])
    values = [
        forward.mean(), left.mean(), step[:, [0, 2]].norm(dim=-1).mean(), angle[-1] - angle[0], turned.abs().sum(),
        moved_forward, moved_left,
        pelvis[:, 1].mean() - floor, pelvis[:, 1].min() - floor, pelvis[:, 1].max() - floor,
        (lowest > _FLIGHT).float().mean(), lowest.max(),
        *(speed[j] for j in hands), *(speed[j] for j in toes),
        *(frame[:, j, 1].mean() for j in hands), *(frame[:, j, 1].max() for j in hands),
        *(p[:, j, 1].max() - floor for j in toes),
        trunk[:, 0].mean(), trunk[:, 2].mean(), trunk[:, 1].min(), p[:, _J["head"], 1].min() - floor,
        *(frame[:, j, 0].max() for j in hands),
        frame[:, hands[0], 2].max(), -frame[:, hands[1], 2].min(),
        (p[:, hands[0]] - p[:, hands[1]]).norm(dim=-1).mean(),
        (p[:, toes[0]] - p[:, toes[1]]).norm(dim=-1).max(),
        torch.tensor(len(p) / fps),
    ]  # fmt: skip
    return torch.stack([v.float() for v in values])


def kinematic_plan(positions: Tensor, fps: float) -> Tensor:
    """The plan `(5, A)` float32 of world joint positions `(T, 22, 3)` in metres: whole clip, then four quarters.

    Raises ShapeError for other shapes or fewer than 8 frames.
    """
    positions, angle, floor = _measured(positions)
    frames = len(positions)
    edges = [round(k * (frames - 1) / 4) for k in range(5)]
    rows = [_row(positions, angle, floor, fps)]
    rows += [_row(positions[a : b + 1], angle[a : b + 1], floor, fps) for a, b in zip(edges, edges[1:], strict=False)]
    return torch.stack(rows)


def plan_rows(positions: Tensor, fps: float, spans: Sequence[tuple[int, int]]) -> Tensor:
    """First rows of the plans of some frames `[a, b)` of positions `(T, 22, 3)`: `(spans, A)` float32.

    The floor is the whole clip's. Raises ShapeError as `kinematic_plan`.
    """
    positions, angle, floor = _measured(positions)
    return torch.stack([_row(positions[a:b], angle[a:b], floor, fps) for a, b in spans])


def _measured(positions: Tensor) -> tuple[Tensor, Tensor, float]:
    """Positions in float32, headings `(T,)`, height of the floor."""
    if positions.ndim != 3 or positions.shape[1:] != (22, 3) or len(positions) < 8:
        raise ShapeError(f"a plan needs positions (T >= 8, 22, 3); got {tuple(positions.shape)}.")
    positions = positions.float()
    floor = float(positions[..., 1].min(dim=1).values.quantile(0.05))
    return positions, body_heading(positions), floor


def mirror_plan(plan: Tensor, attributes: tuple[str, ...] = ATTRIBUTES) -> Tensor:
    """The plan `(..., A)`, in physical units, of the left-right mirrored motion; `attributes` names its columns."""
    swapped = [_swap_side(name) for name in attributes]
    order = [attributes.index(other) if other in attributes else k for k, other in enumerate(swapped)]
    sign = [-1.0 if name in ("left_speed", "yaw", "left_distance", "lean_left") else 1.0 for name in attributes]
    return plan[..., order] * torch.tensor(sign, dtype=plan.dtype, device=plan.device)
