"""Motion-135: the pelvis' place and 22 local rotations of a frame, in the two layouts that circulate under one name.

    0:3      pelvis position in the world, metres
    3:9      world rotation of the pelvis, 6D
    9:135    local rotations of joints 1..21, 6D

`smpl135` interleaves the first two columns of every matrix (`a b d e g h`; HY-Motion, DART, InterHuman), `motionclip135`
writes them one after the other (`a d g b e h`; the MotionCLIP evaluator). Both are Y up. Body shape isn't held: joints need
a skeleton. BABEL-135 is neither.
"""

from typing import Any

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.representations.base import Representation, Source, frozen
from vadis.skeleton import Skeleton, smpl22

SLICES = {"root_translation": slice(0, 3), "root_rotation": slice(3, 9), "joint_rotations": slice(9, 135)}
_LAYOUTS: dict[str, rotation.SixD] = {"smpl135": "columns_interleaved", "motionclip135": "columns"}
_SIGNS = {"columns_interleaved": (1.0, -1.0, -1.0, 1.0, -1.0, 1.0), "columns": (1.0, -1.0, -1.0, -1.0, 1.0, 1.0)}


class SMPL135(Representation):
    """135 numbers per frame, 22 SMPL joints, 30 frames/s (263 round trips of HumanML3D have 20; see `fps=`).

    Args:
        name: "smpl135" or "motionclip135", which decides the 6D layout.
    """

    dim = 135
    fps = 30.0
    slices = frozen(SLICES)
    groups = tuple(SLICES.values())

    def __init__(self, name: str = "smpl135") -> None:
        self.name = name
        self.layout: rotation.SixD = _LAYOUTS[name]
        mirror = smpl22().mirror_indices
        turns = 3 + (mirror[:, None] * 6 + torch.arange(6)).flatten()
        self._mirror_columns = torch.cat([torch.arange(3), turns])
        self._mirror_signs = torch.cat([torch.tensor([-1.0, 1.0, 1.0]), torch.tensor(_SIGNS[self.layout]).repeat(22)])

    def encode(self, motion: Motion, canonical: bool = True, **options: Any) -> Tensor:
        """Features `(T, 135)` float32.

        Args:
            motion: on smpl22 at 30 frames/s.
            canonical: first put frame 0 above the origin facing +Z and the lowest joint of the clip at height 0, as in
                published data; otherwise the motion stays where it is.

        Raises SkeletonError for another tree and VadisError for another frame rate, naming the cure.
        """
        self.check_motion(motion, smpl22())
        motion = motion.canonicalize() if canonical else motion
        return self.encode_arrays(motion.rotations, motion.root).float()

    def encode_arrays(self, rotations: Tensor, root: Tensor) -> Tensor:
        """Features `(..., T, 135)` from local rotations `(..., T, 22, 3, 3)` and pelvis positions `(..., T, 3)`."""
        if rotations.shape != (*root.shape[:-1], 22, 3, 3) or root.shape[-1] != 3:
            raise ShapeError(
                f"{self.name} needs rotations (..., T, 22, 3, 3) and pelvis positions (..., T, 3); got "
                f"{tuple(rotations.shape)} and {tuple(root.shape)}."
            )
        return torch.cat([root, rotation.to_6d(rotations, self.layout).flatten(-2).to(root)], dim=-1)

    def arrays(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Local rotations `(..., T, 22, 3, 3)` and pelvis positions `(..., T, 3)` of features `(..., T, 135)`."""
        x = self.check(features)
        return rotation.from_6d(x[..., 3:].unflatten(-1, (22, 6)), self.layout), x[..., :3]

    def positions(self, features: Tensor, skeleton: Skeleton | None = None) -> Tensor:
        """World joints `(..., T, 22, 3)` in metres on `skeleton`, smpl22 by default."""
        local, root = self.arrays(features)
        return (skeleton or smpl22()).forward_kinematics(local, root)

    def decode(
        self,
        features: Tensor,
        source: Source = "rotations",
        fps: float | None = None,
        skeleton: Skeleton | None = None,
        **options: Any,
    ) -> Motion:
        """The motion of features `(T, 135)` on `skeleton`, smpl22 by default.

        Raises VadisError for `source="positions"`: none are stored.
        """
        if source != "rotations":
            raise VadisError(f"{self.name} holds rotations only; leave out source={source!r}.")
        local, root = self.arrays(self.check(features, 2))
        meta = {"representation": self.name, "source": source}
        return Motion(skeleton or smpl22(), root.float(), local.float(), float(fps or self.fps), meta)

    def mirror(self, features: Tensor) -> Tensor:
        """Features `(..., T, 135)` with left and right exchanged; twice is the identity."""
        features = self.check(features)
        return features[..., self._mirror_columns] * self._mirror_signs.to(features)

    def to_layout(self, features: Tensor, name: str) -> Tensor:
        """The same numbers in the order of the other 135 representation, exactly."""
        if name not in _LAYOUTS:
            raise VadisError(f"no 135 layout {name!r}; known are {', '.join(_LAYOUTS)}.")
        x = self.check(features)
        if _LAYOUTS[name] == self.layout:
            return x
        table = x[..., 3:].unflatten(-1, (22, 3, 2) if self.layout == "columns_interleaved" else (22, 2, 3))
        return torch.cat([x[..., :3], table.transpose(-1, -2).flatten(-3)], dim=-1)
