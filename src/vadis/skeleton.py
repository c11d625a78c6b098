"""Joint trees: names, parents and rest offsets, with forward kinematics.

`SMPL22` is the skeleton that every model here speaks: the first 22 joints of SMPL in SMPL order, standing in a T-pose
(arms along +-X, left is +X, legs down, facing +Z). Its offsets are our own: median bone lengths and directions measured
from the CMU recordings, made left-right symmetric. No licensed body model is involved.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vadis.errors import SkeletonError

SMPL22_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
SMPL22_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)


def _mirror_names(name: str) -> list[str]:
    """What the left-right counterpart of a joint may be called, the surest guess first."""
    guesses = []
    for left, right in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT")):
        guesses += [name.replace(a, b, 1) for a, b in ((left, right), (right, left)) if a in name]
    swap = {"l": "r", "r": "l", "L": "R", "R": "L"}
    for letter in re.finditer(r"(?<![A-Za-z])[lLrR](?![A-Za-z])", name):  # hand_l, thigh.L, L_Hip, Bip01 L Hand
        guesses.append(name[: letter.start()] + swap[letter.group()] + name[letter.end() :])
    if name[:1] in swap:  # Daz and ASF names: lShldr, rShldr, lfemur, rfemur, LThumb
        guesses.append(swap[name[0]] + name[1:])
    return guesses


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A joint tree at rest.

    Args:
        names: J joint names, unique.
        parents: J indices, -1 for the root (joint 0), every parent before its children.
        offsets: `(J, 3)` metres, from the parent in the rest pose; row 0 is zero.
        name: what kind of skeleton it is ("smpl22", "cmu31", …) or "" when unknown.
        end_sites: leaf joint -> `(3,)` metres, tips that carry no rotation (BVH End Site).

    Raises SkeletonError when the tree is not a tree in parent-before-child order.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: Tensor
    name: str = ""
    end_sites: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.names)
        if count == 0 or len(self.parents) != count or tuple(self.offsets.shape) != (count, 3):
            raise SkeletonError(
                f"a skeleton needs equally many names, parents and offsets; got {count}, {len(self.parents)} and "
                f"{tuple(self.offsets.shape)}."
            )
        if self.parents[0] != -1 or any(not 0 <= p < j for j, p in enumerate(self.parents) if j):
            raise SkeletonError("joint 0 must be the only root and every parent must come before its children.")
        if len(set(self.names)) != count:
            double = sorted({n for n in self.names if self.names.count(n) > 1})
            raise SkeletonError(f"joint names must be unique; {', '.join(double[:5])} occur more than once.")

    @property
    def num_joints(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of the joint called `name`; SkeletonError lists the known names otherwise."""
        try:
            return self.names.index(name)
        except ValueError:
            raise SkeletonError(f"no joint {name!r}; this skeleton has {', '.join(self.names)}.") from None

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(c for c, p in enumerate(self.parents) if p == j) for j in range(self.num_joints))

    @cached_property
    def _levels(self) -> tuple[Tensor, list[int], list[Tensor], Tensor]:
        """The tree level by level below the root, for one batched step per level.

        The joints in that order, the size of every level, where the parents of each level stand within the level above,
        and the place of every joint in that order.
        """
        depth = [0] * self.num_joints
        for j, p in enumerate(self.parents[1:], start=1):
            depth[j] = depth[p] + 1
        levels = [[j for j in range(self.num_joints) if depth[j] == d] for d in range(max(depth) + 1)]
        order = [j for level in levels for j in level]
        ups = [torch.tensor([above.index(self.parents[j]) for j in level]) for above, level in pairwise(levels)]
        place = torch.tensor(order).argsort()
        return torch.tensor(order), [len(level) for level in levels], ups, place

    @cached_property
    def _ancestors(self) -> Tensor:
        """`(J, J - 1)`: 1 where bone j (from its parent to joint j + 1) lies on the way from the root to the joint."""
        table = torch.zeros(self.num_joints, self.num_joints - 1)
        for j, p in enumerate(self.parents[1:], start=1):
            table[j] = table[p]
            table[j, j - 1] = 1
        return table

    @cached_property
    def mirror_indices(self) -> Tensor:
        """For every joint the index of its left-right counterpart (itself when it has none)."""
        place = {n: j for j, n in enumerate(self.names)}
        guesses = [[place[m] for m in _mirror_names(n) if m in place] for n in self.names]
        return torch.tensor([found[0] if found else j for j, found in enumerate(guesses)])

    @cached_property
    def rest_positions(self) -> Tensor:
        """Rest joint positions `(J, 3)` in metres, root at the origin."""
        positions = torch.zeros_like(self.offsets)
        for j, p in enumerate(self.parents[1:], start=1):
            positions[j] = positions[p] + self.offsets[j]
        return positions

    @cached_property
    def rest_height(self) -> float:
        """Vertical extent of the rest pose in metres, end sites included."""
        y = [self.rest_positions[:, 1]]
        y += [(self.rest_positions[j] + tip)[None, 1] for j, tip in self.end_sites.items()]
        heights = torch.cat(y)
        return float(heights.max() - heights.min())

    def global_rotations(self, rotations: Tensor) -> Tensor:
        """Local rotations `(..., J, 3, 3)` to world rotations of the same shape, in general a strided view.

        Frames come last in memory while the levels are multiplied: products of many small matrices are several times
        slower as batched matmuls than as a few long vector operations.
        """
        order, sizes, ups, place = self._levels
        device = rotations.device
        x = rotations.reshape(-1, self.num_joints, 3, 3).permute(1, 2, 3, 0).index_select(0, order.to(device))
        local = x.split(sizes)  # each (joints of the level, 3, 3, N)
        world = [local[0]]
        for up, mine in zip(ups, local[1:], strict=True):
            above = world[-1].index_select(0, up.to(device))
            product = above[:, :, 0, None] * mine[:, None, 0]
            product = torch.addcmul(product, above[:, :, 1, None], mine[:, None, 1])
            world.append(torch.addcmul(product, above[:, :, 2, None], mine[:, None, 2]))
        return torch.cat(world).index_select(0, place.to(device)).permute(3, 0, 1, 2).reshape(rotations.shape)

    def local_rotations(self, world: Tensor) -> Tensor:
        """World rotations `(..., J, 3, 3)` to local ones: the inverse of `global_rotations`."""
        parents = torch.tensor(self.parents[1:], dtype=torch.long)
        return torch.cat([world[..., :1, :, :], world[..., parents, :, :].transpose(-1, -2) @ world[..., 1:, :, :]], -3)

    def forward_kinematics(self, rotations: Tensor, root: Tensor, world: Tensor | None = None) -> Tensor:
        """World joint positions `(..., J, 3)` from local rotations `(..., J, 3, 3)` and root positions `(..., 3)`.

        Units are those of the offsets (metres). Pass `world` when the global rotations are known already.
        """
        world = self.global_rotations(rotations) if world is None else world
        count = self.num_joints
        parents = torch.tensor(self.parents[1:], dtype=torch.long, device=world.device)
        turn = world.reshape(-1, count, 3, 3).permute(1, 2, 3, 0).index_select(0, parents)  # (J - 1, 3, 3, N)
        offsets = self.offsets.to(world)[1:, :, None, None]
        bones = turn[:, :, 0] * offsets[:, 0]
        bones = torch.addcmul(bones, turn[:, :, 1], offsets[:, 1])
        bones = torch.addcmul(bones, turn[:, :, 2], offsets[:, 2])
        places = (self._ancestors.to(world) @ bones.flatten(1)).reshape(count, 3, -1).permute(2, 0, 1)
        return places.reshape(*world.shape[:-2], 3) + root[..., None, :]

    def tips(self, positions: Tensor, world: Tensor) -> Tensor:
        """World positions `(..., E, 3)` of the end sites, E in the order of `end_sites`."""
        if not self.end_sites:
            return positions[..., :0, :]
        joints = torch.tensor(list(self.end_sites))
        offsets = torch.stack([self.end_sites[j] for j in self.end_sites]).to(world)
        return positions[..., joints, :] + (world[..., joints, :, :] @ offsets[..., None])[..., 0]

    def with_offsets(self, offsets: Tensor) -> "Skeleton":
        """The same tree with other rest offsets `(J, 3)` in metres."""
        return Skeleton(self.names, self.parents, offsets, self.name, self.end_sites)

    def mirror(self) -> "Skeleton":
        """The reflected body: left bones as long as the right ones were; a symmetric skeleton stays itself."""
        swap, flip = self.mirror_indices, torch.tensor([-1.0, 1.0, 1.0])
        offsets = self.offsets[swap] * flip.to(self.offsets)
        tips = {int(swap[j]): tip * flip.to(tip) for j, tip in self.end_sites.items()}
        same_tips = tips.keys() == self.end_sites.keys() and all(
            torch.equal(t, self.end_sites[j]) for j, t in tips.items()
        )
        if torch.equal(offsets, self.offsets) and same_tips:
            return self
        return Skeleton(self.names, self.parents, offsets, self.name, tips)

    def same_tree(self, other: "Skeleton") -> bool:
        """Whether names and parents agree (offsets may differ)."""
        return self.names == other.names and self.parents == other.parents

    def __repr__(self) -> str:
        return f"Skeleton({self.name or 'unnamed'}, {self.num_joints} joints, height {self.rest_height:.2f} m)"


def chain_offsets(values: Sequence[Sequence[float]]) -> Tensor:
    """Offsets given joint by joint as a float32 `(J, 3)` tensor."""
    return torch.tensor(values, dtype=torch.float32)


_SMPL22_LEFT = {  # metres: medians over 19 CMU subjects in T-pose; the right side is the mirror image
    "left_hip": (0.0935, -0.1018, 0.0398), "left_knee": (0.0, -0.4015, 0.0), "left_ankle": (0.0, -0.4407, 0.0),
    "left_foot": (0.0100, -0.0290, 0.1178), "left_collar": (0.0500, 0.1165, 0.0),
    "left_shoulder": (0.1403, 0.0627, -0.0104), "left_elbow": (0.2909, 0.0, 0.0), "left_wrist": (0.2500, 0.0, 0.0),
}  # fmt: skip
_SMPL22_MIDDLE = {
    "pelvis": (0.0, 0.0, 0.0), "spine1": (0.0, 0.0580, -0.0043), "spine2": (0.0, 0.0580, -0.0042),
    "spine3": (0.0, 0.1165, -0.0033), "neck": (0.0, 0.2131, 0.0105), "head": (0.0, 0.0965, 0.0),
}  # fmt: skip


def smpl22() -> Skeleton:
    """The 22-joint skeleton of every model here, in T-pose, with offsets measured from the CMU recordings."""
    offsets = []
    for name in SMPL22_NAMES:
        if name in _SMPL22_MIDDLE:
            offsets.append(_SMPL22_MIDDLE[name])
        else:
            x, y, z = _SMPL22_LEFT[name.replace("right", "left")]
            offsets.append((-x if name.startswith("right") else x, y, z))
    return Skeleton(SMPL22_NAMES, SMPL22_PARENTS, chain_offsets(offsets), "smpl22")
