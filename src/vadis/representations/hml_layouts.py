"""The two joint layouts of the HumanML3D features: 22 SMPL joints in metres, 21 KIT joints in millimetres.

A layout lists chains of joints as the inverse kinematics walks them, and for each joint the axis along which its bone
(from the parent) lies in the rest pose. These rest poses are a device of the format, not T-poses of a body: HumanML3D's
arms hang down, KIT's right hip points to the left.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton, smpl22

_AXES = {"+X": (1.0, 0, 0), "-X": (-1.0, 0, 0), "+Y": (0, 1.0, 0), "-Y": (0, -1.0, 0), "+Z": (0, 0, 1.0)}


@dataclass(frozen=True, eq=False)
class Layout:
    """Which joint is where in the features of one data set.

    Attributes:
        name: of the representation.
        fps: frames per second of the data set.
        metre: file units per metre.
        chains: joints from parent to child; a later chain may start at a joint of an earlier one.
        axes: rest direction of the bone that ends in joint 1, 2, …
        face: right hip, left hip, right shoulder, left shoulder.
        lower_legs: joints whose bones set the scale between two bodies.
        contacts: foot joints of the contact columns, left ones first.
        contact_threshold: squared step in file units below which a foot joint rests.
        lengths: bones of the data set's target skeleton in metres, joints 1, 2, …
        body: a T-pose of our own with the same joints, in metres, for motions decoded from the features.
    """

    name: str
    fps: float
    metre: float
    chains: tuple[tuple[int, ...], ...]
    axes: str
    face: tuple[int, int, int, int]
    lower_legs: tuple[int, int]
    contacts: tuple[int, int, int, int]
    contact_threshold: float
    lengths: tuple[float, ...]
    body: Skeleton

    @property
    def joints(self) -> int:
        return self.body.num_joints

    @cached_property
    def directions(self) -> Tensor:
        """Rest direction `(J, 3)` of the bone that ends in each joint; zero for joint 0."""
        return torch.tensor([(0.0, 0.0, 0.0), *(_AXES[axis] for axis in self.axes.split())])

    @cached_property
    def parents(self) -> tuple[int, ...]:
        up = {child: parent for chain in self.chains for parent, child in pairwise(chain)}
        return tuple(up.get(j, -1) for j in range(self.joints))

    @cached_property
    def before(self) -> tuple[int, ...]:
        """For each joint the one before it in its chain, 0 at its start: arms start from the root's heading."""
        previous = [0] * self.joints
        for chain in self.chains:
            for parent, child in pairwise(chain[1:]):
                previous[child] = parent
        return tuple(previous)

    @cached_property
    def ancestry(self) -> Tensor:
        """`(J, J)` float32, 1 where the column's bone lies between the root and the row's joint."""
        table = torch.eye(self.joints)
        for chain in self.chains:
            for parent, child in pairwise(chain):
                table[child] += table[parent]
        table[:, 0] = 0
        return table

    @cached_property
    def target_offsets(self) -> Tensor:
        """Rest offsets `(J, 3)` of the data set's target skeleton in file units."""
        return self.directions * torch.tensor([0.0, *self.lengths])[:, None] * self.metre


_HML_LENGTHS = (  # metres, the bones of the data set's clip 000021
    0.1031, 0.1099, 0.1316, 0.3936, 0.3902, 0.1432, 0.4324, 0.4256, 0.0574, 0.1434, 0.1494, 0.2194, 0.1375, 0.1434,
    0.1030, 0.1316, 0.1230, 0.2568, 0.2631, 0.2660, 0.2699,
)  # fmt: skip
HML263 = Layout(
    name="hml263",
    fps=20.0,
    metre=1.0,
    chains=((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21), (9, 13, 16, 18, 20)),
    axes="+X -X +Y -Y -Y +Y -Y -Y +Y +Z +Z +Y +X -X +Z -Y -Y -Y -Y -Y -Y",
    face=(2, 1, 17, 16),
    lower_legs=(5, 8),
    contacts=(7, 10, 8, 11),
    contact_threshold=0.002,
    lengths=_HML_LENGTHS,
    body=smpl22(),
)

KIT_FROM_SMPL22 = (0, 3, 9, 12, 15, 17, 19, 21, 16, 18, 20, 2, 5, 8, 11, 11, 1, 4, 7, 10, 10)
"""smpl22 joint for each KIT joint; the toe tips 15 and 20 lie `TOE` ahead of the ball of the foot."""
TOE = (0.0, 0.0, 0.07)


def _kit_body() -> Skeleton:
    """The 21 KIT joints on our own body: the tree of the data set with positions from smpl22's T-pose."""
    parents = (-1, 0, 1, 2, 3, 3, 5, 6, 3, 8, 9, 0, 11, 12, 13, 14, 0, 16, 17, 18, 19)
    names = [SMPL22_NAMES[j] for j in KIT_FROM_SMPL22]
    names[15], names[20] = "right_toe", "left_toe"
    rest = smpl22().rest_positions[list(KIT_FROM_SMPL22)].clone()
    rest[[15, 20]] += torch.tensor(TOE)
    offsets = torch.cat([torch.zeros(1, 3), rest[1:] - rest[list(parents[1:])]])
    return Skeleton(tuple(names), parents, offsets, "kit21")


_KIT_BODY = _kit_body()

KIT251 = Layout(
    name="kit251",
    fps=12.5,
    metre=1000.0,
    chains=((0, 11, 12, 13, 14, 15), (0, 16, 17, 18, 19, 20), (0, 1, 2, 3, 4), (3, 5, 6, 7), (3, 8, 9, 10)),
    axes="+Y +Y +Y +Y +X -Y -Y -X -Y -Y +X -Y -Y +Z +Z -X -Y -Y +Z +Z",
    face=(11, 16, 5, 8),
    lower_legs=(17, 18),
    contacts=(19, 20, 14, 15),
    contact_threshold=0.05,
    lengths=tuple(_KIT_BODY.offsets[1:].norm(dim=-1).tolist()),  # clip 03950 itself can't be had: our own body
    body=_KIT_BODY,
)

assert HML263.parents == SMPL22_PARENTS
