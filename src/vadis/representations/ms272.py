"""The 272-dim representation of MotionStreamer and MotionMillion: heading-free joints and true local rotations.

Per frame t, with H the rotation that removes the heading of the pelvis' z axis:

    0:2      root step from t-1 to t in x and z, seen with the heading of frame t-1 (metres per frame)
    2:8      heading removal of t relative to t-1, 6D rows (the absolute variant: relative to frame 0)
    8:74     22 joint positions, heading of t removed, pelvis at x = z = 0, heights above the clip's floor
    74:140   change of the previous block since t-1 (not a rotated world velocity)
    140:272  22 local rotations, 6D rows; the pelvis' has its heading removed

Row 0 holds zeros and the identity where a frame t-1 would be needed. Heading is not unique when the pelvis' z axis
is vertical (lying, handstand): block values then jump, as in the published data.
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.representations.base import Representation, Source, frozen
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton, smpl22

JOINTS = 22
SLICES = {
    "root_velocity": slice(0, 2),
    "heading_velocity": slice(2, 8),
    "joint_positions": slice(8, 74),
    "joint_velocities": slice(74, 140),
    "joint_rotations": slice(140, 272),
}
_VERTICAL = 0.995  # sine of the pelvis z axis' elevation beyond which its heading means nothing
_MIRROR_6D = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0)  # reflecting x negates the entries that mix x with y or z


class MS272(Representation):
    """272 numbers per frame, 30 frames/s, 22 SMPL joints.

    Args:
        root: what columns 2:8 hold, the heading change since the frame before ("delta", all published data sets) or
            since frame 0 ("absolute", the MotionVQVAE model card).
    """

    dim = 272
    fps = 30.0
    groups = tuple(SLICES.values())

    def __init__(self, root: Literal["delta", "absolute"] = "delta") -> None:
        self.root = root
        self.name = "ms272" if root == "delta" else "ms272_absroot"
        names = {"heading_velocity": "heading"} if root == "absolute" else {}
        self.slices = frozen({names.get(k, k): v for k, v in SLICES.items()})
        mirror = smpl22().mirror_indices
        flip = torch.tensor([-1.0, 1.0, 1.0]).repeat(JOINTS)
        six = torch.tensor(_MIRROR_6D)
        vectors = (mirror[:, None] * 3 + torch.arange(3)).flatten()
        rotations = (mirror[:, None] * 6 + torch.arange(6)).flatten()
        self._mirror_columns = torch.cat([torch.arange(8), 8 + vectors, 74 + vectors, 140 + rotations])
        self._mirror_signs = torch.cat([torch.tensor([-1.0, 1.0]), six, flip, flip, six.repeat(JOINTS)])

    # -- Motion to features

    def encode(self, motion: Motion, floor: bool = True, **options: Any) -> Tensor:
        """Features `(T, 272)` float32.

        Args:
            motion: on smpl22 at 30 frames/s; where it stands and which way it faces doesn't matter.
            floor: put the lowest joint of the whole clip at height 0, as in all published data; otherwise heights
                are kept as they are.

        Raises SkeletonError for another tree and VadisError for another frame rate, naming the cure.
        """
        self.check_motion(motion, smpl22())
        upright = motion.rotations[:, 0, 1, 2].abs() < _VERTICAL
        if not upright.all():
            warnings.warn(
                f"the pelvis points straight up or down in {int((~upright).sum())} of {len(upright)} frames: its heading "
                "is not defined there, and features may jump.",
                stacklevel=2,
            )
        return self.encode_arrays(motion.rotations[None], motion.positions[None], floor=floor)[0].float()

    def check_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Warn when statistics `(272,)` can't come from this kind of heading columns.

        Delta headings deviate by about 0.007, absolute ones by 0.3 to 0.6.
        """
        spread = float(torch.as_tensor(std)[2:8].mean())
        looks = "absolute" if spread > 0.1 else "delta"
        if looks != self.root:
            warnings.warn(
                f"statistics with a deviation of {spread:.3g} in columns 2:8 look like {looks} headings, but "
                f"{self.name} has {self.root} ones: check the `root` of the model's configuration.",
                stacklevel=2,
            )

    def encode_arrays(
        self, rotations: Tensor, positions: Tensor, lengths: Tensor | None = None, floor: bool = True
    ) -> Tensor:
        """Features `(B, T, 272)` from local rotations `(B, T, 22, 3, 3)` and world joints `(B, T, 22, 3)` in metres.

        The joints needn't come from our skeleton. Rows from `lengths` `(B,)` on are zero. The dtype is that of
        `positions`. No turn to +Z is made first: every column is the same for all starting headings and places.
        """
        if positions.ndim != 4 or positions.shape[2:] != (JOINTS, 3) or rotations.shape != (*positions.shape, 3):
            raise ShapeError(
                f"{self.name} needs rotations (B, T, 22, 3, 3) and positions (B, T, 22, 3); got "
                f"{tuple(rotations.shape)} and {tuple(positions.shape)}."
            )
        batch, frames = positions.shape[:2]
        out = torch.zeros(batch, frames, self.dim, dtype=positions.dtype, device=positions.device)
        root = rotations[:, :, 0]
        theta = rotation.heading(root.double())  # (B, T)
        cos, sin = torch.cos(theta).to(out.dtype), torch.sin(theta).to(out.dtype)

        local = positions.clone()
        local[..., 0::2] -= positions[:, :, :1, 0::2]
        if floor:
            local[..., 1] -= _lowest(positions[..., 1], lengths)[:, None, None]
        still = _turn_back(local, cos[..., None], sin[..., None])
        out[..., 8:74] = still.flatten(2)
        torch.sub(out[:, 1:, 8:74], out[:, :-1, 8:74], out=out[:, 1:, 74:140])

        step = positions[:, 1:, 0] - positions[:, :-1, 0]
        out[:, 1:, 0:2] = _turn_back(step, cos[:, :-1], sin[:, :-1])[..., 0::2]
        turn = torch.diff(theta, dim=1) if self.root == "delta" else theta[:, 1:] - theta[:, :1]
        out[:, 1:, 2:8] = _heading_rows(turn).to(out.dtype)
        out[:, 0, 2:8] = _heading_rows(torch.zeros(batch, dtype=theta.dtype, device=theta.device)).to(out.dtype)

        out[..., 140:] = rotations[..., :2, :].reshape(batch, frames, 132)
        out[..., 140:146] = _turn_back_rows(root, cos, sin).to(out.dtype)
        if lengths is not None:
            out[torch.arange(frames, device=out.device) >= lengths.to(out.device)[:, None]] = 0
        return out

    def encode_rotations(
        self,
        rotations: Tensor,
        root: Tensor,
        skeleton: Skeleton | None = None,
        lengths: Tensor | None = None,
        floor: bool = True,
    ) -> Tensor:
        """`encode_arrays` with joints by forward kinematics from pelvis positions `(B, T, 3)` on smpl22 or `skeleton`."""
        joints = (skeleton or smpl22()).forward_kinematics(rotations, root)
        return self.encode_arrays(rotations, joints, lengths, floor)

    # -- features to Motion

    def root_path(self, features: Tensor, yaw_only: bool = True) -> tuple[Tensor, Tensor]:
        """Heading removals `(..., T, 3, 3)` and pelvis positions `(..., T, 3)`, float64, of features `(..., T, 272)`.

        With `yaw_only` the heading rows count as turns about the vertical only, so that the small tilt in a
        network's output can't pile up and make the body lean; without it they are multiplied as published code
        does. Both are the same on encoded motion.
        """
        x = self.check(features).double()
        step = rotation.from_6d(x[..., 2:8], "rows")
        if yaw_only:
            angle = torch.atan2(step[..., 0, 2], step[..., 0, 0])
            heads = rotation.yaw(angle.cumsum(-1) if self.root == "delta" else angle)
        else:
            heads = rotation.running_product(step) if self.root == "delta" else step
        move = torch.stack([x[..., 0], torch.zeros_like(x[..., 0]), x[..., 1]], dim=-1)
        moved = (heads[..., :-1, :, :].transpose(-1, -2) @ move[..., 1:, :, None])[..., 0]
        path = torch.cat([move[..., :1, :], moved], dim=-2).cumsum(-2)
        return heads, torch.stack([path[..., 0], x[..., 9], path[..., 2]], dim=-1)

    def positions(self, features: Tensor, yaw_only: bool = True) -> Tensor:
        """World joints `(..., T, 22, 3)` in metres from the position block; batches are recovered clip by clip."""
        heads, path = self.root_path(features, yaw_only)
        still = features[..., 8:74].double().unflatten(-1, (JOINTS, 3))
        world = still @ heads  # v @ H is transpose(H) applied to v
        world[..., 0::2] += path[..., None, 0::2]
        return world.to(features.dtype)

    def rotations(self, features: Tensor, yaw_only: bool = True) -> tuple[Tensor, Tensor]:
        """Local rotations `(..., T, 22, 3, 3)` and pelvis positions `(..., T, 3)` from the rotation block."""
        heads, path = self.root_path(features, yaw_only)
        local = rotation.from_6d(features[..., 140:].unflatten(-1, (JOINTS, 6)), "rows")
        turned = heads.transpose(-1, -2) @ local[..., 0, :, :].double()
        local = torch.cat([turned.to(local.dtype)[..., None, :, :], local[..., 1:, :, :]], dim=-3)
        return local, path.to(features.dtype)

    def decode(
        self,
        features: Tensor,
        source: Source = "rotations",
        fps: float | None = None,
        skeleton: Skeleton | None = None,
        yaw_only: bool = True,
        **options: Any,
    ) -> Motion:
        """The motion of features `(T, 272)`; its root is the pelvis position.

        Args:
            source: "rotations" uses the rotation block on `skeleton`; "positions" follows the joints of the position
                block with bones of the lengths found there and takes only the twist about bones from the rotations.
            fps: frame rate of the features, 30 if not given.
            skeleton: with 22 SMPL joints; the default is smpl22 for rotations and `estimate_skeleton(features)` for
                positions. Encoded motion of another body needs its own skeleton to stand at its height.
            yaw_only: see `root_path`.
        """
        features = self.check(features, 2)
        if source not in ("rotations", "positions"):
            raise VadisError(f"source must be 'rotations' or 'positions'; got {source!r}.")
        local, root = self.rotations(features, yaw_only)
        meta = {"representation": self.name, "source": source}
        if source == "positions":
            from vadis.representations.solve import solve_rotations

            joints = self.positions(features, yaw_only)
            skeleton = self.estimate_skeleton(features) if skeleton is None else skeleton
            local = solve_rotations(joints.double(), skeleton, local.double())
            meta["note"] = "rotations solved from positions"
        skeleton = smpl22() if skeleton is None else skeleton
        return Motion(skeleton, root.float(), local.float(), float(fps or self.fps), meta)

    def estimate_skeleton(self, features: Tensor) -> Skeleton:
        """smpl22 with the rest offsets that rotations and positions of features `(T, 272)` agree on.

        Real features hold one body exactly (offsets constant to 1e-6 m). In generated features the two blocks differ:
        the mean direction is kept and given the mean bone length.
        """
        x = self.check(features, 2).double()
        base = smpl22()
        world = base.global_rotations(rotation.from_6d(x[:, 140:].unflatten(-1, (JOINTS, 6)), "rows"))
        joints = x[:, 8:74].unflatten(-1, (JOINTS, 3))
        parents = torch.tensor(SMPL22_PARENTS[1:])
        bones = joints[:, 1:] - joints[:, parents]
        rest = (world[:, parents].transpose(-1, -2) @ bones[..., None])[..., 0].mean(0)  # (21, 3)
        rest = rest * (bones.norm(dim=-1).mean(0) / rest.norm(dim=-1).clamp_min(1e-9))[:, None]
        offsets = torch.cat([torch.zeros_like(rest[:1]), rest]).float().cpu()
        return Skeleton(SMPL22_NAMES, SMPL22_PARENTS, offsets, base.name)

    # -- edits on features

    def mirror(self, features: Tensor) -> Tensor:
        """Features `(..., T, 272)` with left and right exchanged; twice is the identity."""
        features = self.check(features)
        return features[..., self._mirror_columns] * self._mirror_signs.to(features)

    def recanonicalise(self, window: Tensor) -> Tensor:
        """A window cut from longer features `(..., T, 272)` made to start at the origin by a row 0 like that of a clip.

        Models are trained on windows that are *not* treated so.
        """
        window = self.check(window).clone()
        if self.root == "absolute":
            heads = rotation.from_6d(window[..., 2:8].double(), "rows")
            window[..., 2:8] = rotation.to_6d(heads @ heads[..., :1, :, :].transpose(-1, -2), "rows").to(window)
        window[..., 0, 0:2] = 0
        window[..., 0, 2:8] = torch.tensor([1.0, 0, 0, 0, 1, 0]).to(window)
        window[..., 0, 74:140] = 0
        return window

    def to_absolute(self, features: Tensor) -> Tensor:
        """The same features with columns 2:8 as the heading removal since the first row (the "absolute root" form)."""
        if self.root == "absolute":
            return self.check(features)
        features = self.check(features).clone()
        heads = rotation.running_product(rotation.from_6d(features[..., 2:8].double(), "rows"))
        features[..., 2:8] = rotation.to_6d(heads, "rows").to(features)
        return features

    def to_delta(self, features: Tensor) -> Tensor:
        """The same features with columns 2:8 as frame-to-frame changes; row 0 becomes the identity."""
        features = self.check(features)
        if self.root == "delta":
            return features
        features = features.clone()
        heads = rotation.from_6d(features[..., 2:8].double(), "rows")
        turns = heads[..., 1:, :, :] @ heads[..., :-1, :, :].transpose(-1, -2)
        features[..., 1:, 2:8] = rotation.to_6d(turns, "rows").to(features)
        features[..., 0, 2:8] = torch.tensor([1.0, 0, 0, 0, 1, 0]).to(features)
        return features


def _lowest(heights: Tensor, lengths: Tensor | None) -> Tensor:
    """Lowest joint `(B,)` of each clip over its valid frames, heights `(B, T, J)`."""
    low = heights.amin(-1)
    if lengths is not None:
        padding = torch.arange(low.shape[1], device=low.device) >= lengths.to(low.device)[:, None]
        low = low.masked_fill(padding, float("inf"))
    return low.amin(-1)


def _turn_back(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `(..., 3)` about Y by minus the heading whose cosine and sine `(...)` are given."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([cos * x - sin * z, y, sin * x + cos * z], dim=-1)


def _turn_back_rows(matrix: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """First two rows `(..., 6)` of Ry(-heading) @ matrix."""
    cos, sin = cos.to(matrix.dtype)[..., None], sin.to(matrix.dtype)[..., None]
    return torch.cat([cos * matrix[..., 0, :] - sin * matrix[..., 2, :], matrix[..., 1, :]], dim=-1)


def _heading_rows(turn: Tensor) -> Tensor:
    """6D rows of Ry(-turn): `(...)` to `(..., 6)`."""
    cos, sin, zero, one = torch.cos(turn), torch.sin(turn), torch.zeros_like(turn), torch.ones_like(turn)
    return torch.stack([cos, zero, -sin, zero, one, zero], dim=-1)
