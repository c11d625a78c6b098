"""Two-bone legs: where hip, knee and ankle sit in a skeleton, and inverse kinematics of all frames at once.

Shapes: T frames, J joints, F = 2 legs, left first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import SkeletonError
from vadis.skeleton import Skeleton

_REACH = 0.9995  # share of a leg's length that the ankle may be away from the hip: a straight knee has no direction
_POLE = 0.02  # metres: knees nearer to the line from hip to ankle than this are pulled forward of it


@dataclass(frozen=True)
class Legs:
    """Joint indices `(left, right)`; `toe` repeats the ankle where a skeleton has no toes."""

    hip: tuple[int, int]
    knee: tuple[int, int]
    ankle: tuple[int, int]
    toe: tuple[int, int]

    @property
    def has_toes(self) -> bool:
        return self.toe != self.ankle


def find_legs(skeleton: Skeleton) -> Legs:
    """The legs of a human skeleton, recognised by its names; SkeletonError when hip, knee and ankle aren't one chain."""
    from vadis.retargeting import recognize_skeleton

    mapping = recognize_skeleton(skeleton)
    if mapping is None:
        raise SkeletonError(
            f"no legs found in {skeleton}: put it on the 22 joints first, vadis.retarget(motion, 'smpl22', joints=…)."
        )
    place: dict[str, tuple[int, int]] = {}
    for part in ("hip", "knee", "ankle", "foot"):
        named = [mapping.joints.get(f"{side}_{part}") for side in ("left", "right")]
        if None in named:
            place[part] = place["ankle"]
        else:
            place[part] = (skeleton.index(str(named[0])), skeleton.index(str(named[1])))
    for upper, lower in (("hip", "knee"), ("knee", "ankle"), ("ankle", "foot")):
        joined = all(skeleton.parents[b] == a for a, b in zip(place[upper], place[lower], strict=True))
        if not joined and lower == "foot":
            place["foot"] = place["ankle"]
        elif not joined:
            raise SkeletonError(
                f"{upper} and {lower} of {skeleton} have joints between them; put the motion on the 22 joints first: "
                "vadis.retarget(motion, 'smpl22')."
            )
    return Legs(place["hip"], place["knee"], place["ankle"], place["foot"])


def place_feet(
    rotations: Tensor, root: Tensor, skeleton: Skeleton, legs: Legs, ankles: Tensor, toes: Tensor | None = None
) -> Tensor:
    """Local rotations `(T, J, 3, 3)` whose ankles are at `ankles` `(T, F, 3)` and whose toes point at `toes`.

    Knees keep to the plane that they bend in, feet keep their world rotation but for the turn towards `toes`; no other
    joint changes. An ankle beyond the leg's reach is brought to the nearest place within it.
    """
    world = skeleton.global_rotations(rotations)
    joints = skeleton.forward_kinematics(rotations, root, world)
    hip, knee, ankle = (joints[:, list(part)] for part in (legs.hip, legs.knee, legs.ankle))
    aim = within_reach(hip, ankles, skeleton, legs)
    bent = bend(hip, knee, ankle, aim, hip[:, :1] - hip[:, 1:])
    thigh = rotation.between(knee - hip, bent - hip) @ world[:, list(legs.hip)]
    shin = rotation.between(ankle - knee, aim - bent) @ world[:, list(legs.knee)]
    foot = world[:, list(legs.ankle)]
    if toes is not None and legs.has_toes:
        foot = rotation.between(joints[:, list(legs.toe)] - ankle, toes - aim) @ foot
    out = rotations.clone()
    above = world[:, [skeleton.parents[j] for j in legs.hip]]
    out[:, list(legs.hip)] = above.transpose(-1, -2) @ thigh
    out[:, list(legs.knee)] = thigh.transpose(-1, -2) @ shin
    out[:, list(legs.ankle)] = shin.transpose(-1, -2) @ foot
    return out


def leg_lengths(skeleton: Skeleton, legs: Legs) -> tuple[Tensor, Tensor]:
    """Lengths `(F,)` of thighs and shins in metres, float64."""
    size = skeleton.offsets.double().norm(dim=-1)
    return size[list(legs.knee)], size[list(legs.ankle)]


def within_reach(hip: Tensor, ankles: Tensor, skeleton: Skeleton, legs: Legs) -> Tensor:
    """Ankles `(T, F, 3)` moved along the line to the hip where they are further (or nearer) than the leg allows."""
    thigh, shin = leg_lengths(skeleton, legs)
    line = ankles - hip
    far = line.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    most = _REACH * (thigh + shin)[:, None]
    least = 1.02 * (thigh - shin).abs()[:, None]
    return hip + line * (far.clamp(least, most) / far)


def bend(hip: Tensor, knee: Tensor, ankle: Tensor, aim: Tensor, left: Tensor) -> Tensor:
    """Knees `(T, F, 3)` for ankles moved from `ankle` to `aim`, at unchanged bone lengths and on the same side.

    `left` `(T, 1, 3)` is the direction from the right to the left hip: nearly straight legs bend forward of it.
    """
    thigh, shin = (knee - hip).norm(dim=-1, keepdim=True), (ankle - knee).norm(dim=-1, keepdim=True)
    old, new = _unit(ankle - hip), aim - hip
    far = new.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    new = new / far
    side = knee - hip - ((knee - hip) * old).sum(-1, keepdim=True) * old
    out = side.norm(dim=-1, keepdim=True)
    forward = torch.linalg.cross(_unit(left).expand_as(old), -old, dim=-1)
    pole = side + (_POLE - out).clamp_min(0) * _unit(forward)
    pole = (rotation.between(old, new) @ pole[..., None])[..., 0]
    pole = _unit(pole - (pole * new).sum(-1, keepdim=True) * new)
    along = (far.square() + thigh.square() - shin.square()) / (2 * far)
    height = (thigh.square() - along.square()).clamp_min(0).sqrt()
    return hip + along * new + height * pole


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-9)
