"""HumanML3D-263 and KIT-251 (Guo et al., 2022): heading-free joints, twist-free rotations, velocities, contacts.

T frames give T - 1 rows. With h_t the heading quaternion of frame t (world to body-facing):

    0        half of the turn from t to t + 1, as the arcsine of a quaternion's y
    1:3      root step from t to t + 1 in x and z, seen with h_{t+1}
    3        root height
    4:67     joints 1.. relative to the root's place on the floor, seen with h_t; y stays the height
    67:193   rotations of joints 1.. from their rest axes, 6D columns: minimal turns without twist, *not* SMPL rotations
    193:259  steps of all joints from t to t + 1, seen with h_t
    259:263  contacts of left ankle, left foot, right ankle, right foot (KIT: the other pair of foot joints)

Two mistakes of the original are part of the format, since every checkpoint depends on them: the hip vector points the
wrong way in the heading, and the turn has the wrong sign for the one frame in which the heading passes 180 degrees from
the start. `fix_heading=True` corrects both; features made so need statistics and models of their own.

The original's uniform skeleton (inverse, then forward kinematics with other bone lengths) keeps bone directions, so
here bones are simply re-scaled; and a bone's rotation depends on its own direction and that of the bone before it only,
so that all joints of all frames of all clips are computed at once.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.representations.base import Representation, Source, frozen
from vadis.representations.hml_layouts import HML263, KIT251, KIT_FROM_SMPL22, TOE, Layout
from vadis.representations.solve import fit_skeleton, solve_rotations
from vadis.skeleton import smpl22

SIGMA = 20.0
"""Standard deviation in frames of the Gaussian that smooths the facing direction."""
RADIUS = 80
_HANDS_LEFT = (22, 23, 24, 34, 35, 36, 25, 26, 27, 31, 32, 33, 28, 29, 30)
_HANDS_RIGHT = (43, 44, 45, 46, 47, 48, 40, 41, 42, 37, 38, 39, 49, 50, 51)


class HumanML(Representation):
    """The HumanML3D features of one joint layout: `hml263` (metres, 20 frames/s) or `kit251` (millimetres, 12.5).

    Args:
        layout: joints, chains and contacts.
        fix_heading: correct the two heading mistakes of the original. Statistics and models don't carry over.
    """

    def __init__(self, layout: str = "hml263", fix_heading: bool = False) -> None:
        self.layout: Layout = {"hml263": HML263, "kit251": KIT251}[layout]
        self.name, self.fps, self.fix_heading = self.layout.name, self.layout.fps, fix_heading
        j = self.layout.joints
        edges = [0, 1, 3, 4, 4 + 3 * (j - 1), 4 + 9 * (j - 1), 4 + 9 * (j - 1) + 3 * j, 8 + 9 * (j - 1) + 3 * j]
        names = (
            "root_yaw_velocity", "root_linear_velocity", "root_height", "joint_positions", "joint_rotations",
            "joint_velocities", "foot_contacts",
        )  # fmt: skip
        self.slices = frozen({n: slice(a, b) for n, a, b in zip(names, edges[:-1], edges[1:], strict=True)})
        self.groups = tuple(self.slices.values())
        self.dim = edges[-1]

    @property
    def metadata(self) -> dict[str, Any]:
        """What must agree between features, statistics and models."""
        return {"representation": self.name, "fps": self.fps, "fix_heading": self.fix_heading}

    @property
    def target_offsets(self) -> Tensor:
        """Rest offsets `(J, 3)` of the default target skeleton in file units (for kit251 our own body's)."""
        return self.layout.target_offsets

    def offsets_of(self, joints: Tensor) -> Tensor:
        """Rest offsets `(..., J, 3)` with the bone lengths of joints `(..., J, 3)` of one frame."""
        bones = joints[..., 1:, :] - joints[..., list(self.layout.parents[1:]), :]
        rest = bones.norm(dim=-1, keepdim=True) * self.layout.directions[1:].to(joints)
        return torch.cat([torch.zeros_like(joints[..., :1, :]), rest], dim=-2)

    # -- Motion and joints to features

    def encode(
        self, motion: Motion, target_offsets: Tensor | None = None, fix_heading: bool | None = None, **options: Any
    ) -> Tensor:
        """Features `(T - 1, D)` float32 of a motion on smpl22 at the data set's frame rate.

        Raises SkeletonError for another tree and VadisError for another frame rate, naming the cure.
        """
        self.check_motion(motion, smpl22())
        joints = motion.positions
        if self.name == "kit251":
            toes = joints[:, [11, 10]] + motion.global_rotations[:, [11, 10]] @ torch.tensor(TOE)
            joints = joints[:, list(KIT_FROM_SMPL22)]
            joints[:, [15, 20]] = toes
        return self.encode_positions(joints * self.layout.metre, target_offsets, fix_heading)

    def encode_positions(
        self,
        joints: Tensor,
        target_offsets: Tensor | None = None,
        fix_heading: bool | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Features `(..., T - 1, D)` float32 from world joints `(T, J, 3)` or `(B, T, J, 3)` in file units.

        Args:
            joints: at least J joints (more are cut), two frames or more.
            target_offsets: `(J, 3)` rest offsets of the body that every clip is brought to, along the rest axes.
            fix_heading: overrides the representation's setting.
            lengths: `(B,)` valid frames of each clip, 2 or more; rows from `lengths - 1` on are zero.

        A row depends on 80 frames to either side through the smoothed heading, so cut before encoding or not at all.
        """
        count = self.layout.joints
        clips = joints if joints.ndim == 4 else joints[None]
        if clips.ndim != 4 or clips.shape[3] != 3 or clips.shape[2] < count or clips.shape[1] < 2:
            raise ShapeError(
                f"{self.name} is made from joints (T, {count}, 3) or (B, T, {count}, 3) with at least 2 frames; got "
                f"{tuple(joints.shape)}."
            )
        canonical = self.canonical_positions(clips, target_offsets, lengths)
        features = self._features(canonical, self.fix_heading if fix_heading is None else fix_heading, lengths)
        return features if joints.ndim == 4 else features[0]

    def uniform_positions(self, joints: Tensor, target_offsets: Tensor | None = None) -> Tensor:
        """Joints `(..., T, J, 3)` of a body with the target's bone lengths and the same bone directions."""
        lay = self.layout
        joints = joints[..., : lay.joints, :].float()
        target = self.target_offsets if target_offsets is None else torch.as_tensor(target_offsets)
        target, directions = target.to(joints), lay.directions.to(joints)
        size = (target * directions).sum(-1)  # bone lengths
        off_axis = (size[:, None] * directions - target).abs().max()
        if target.shape != directions.shape or off_axis > 1e-4 * lay.metre:
            raise ShapeError(
                f"target offsets of {self.name} are ({lay.joints}, 3) along the rest axes (`offsets_of`); got "
                f"{tuple(target.shape)}."
            )
        bones = joints[..., 1:, :] - joints[..., list(lay.parents[1:]), :]
        reach = bones.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        legs = [k - 1 for k in lay.lower_legs]
        scale = size[list(lay.lower_legs)].abs().sum() / reach[..., :1, legs, :].sum(-2, keepdim=True)  # of frame 0
        scaled = torch.cat([joints[..., :1, :] * scale[..., :1, :, :], bones * (size[1:, None] / reach)], dim=-2)
        tree = lay.ancestry.to(joints, copy=True)
        tree[:, 0] = 1
        return (scaled.transpose(-1, -2) @ tree.T).transpose(-1, -2)

    def canonical_positions(
        self, joints: Tensor, target_offsets: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Joints `(B, T, J, 3)` on the target skeleton, on the floor, frame 0 above the origin and facing +Z."""
        joints = self.uniform_positions(joints, target_offsets)
        low = joints[..., 1].amin(-1)
        if lengths is not None:
            low = low.masked_fill(_beyond(lengths, low), float("inf"))
        first = joints[:, :1, :1]
        origin = torch.stack([first[..., 0], low.amin(-1)[:, None, None], first[..., 2]], dim=-1)
        right_hip, left_hip, right_arm, left_arm = (joints[:, :1, k] for k in self.layout.face)
        cos, sin = _heading_half(_forward(right_hip - left_hip, right_arm - left_arm))
        return _turn(joints - origin, cos[..., None], sin[..., None])

    def _features(self, joints: Tensor, fix_heading: bool, lengths: Tensor | None) -> Tensor:
        lay = self.layout
        batch, frames = joints.shape[:2]
        cos, sin = self.headings(joints, fix_heading, lengths)  # (B, T)
        rows = frames - 1
        out = torch.empty(batch, rows, self.dim, dtype=joints.dtype, device=joints.device)

        now, then = joints[:, :-1], joints[:, 1:]
        step = then - now
        c0, s0, c1, s1 = cos[:, :-1], sin[:, :-1], cos[:, 1:], sin[:, 1:]
        turn = s1 * c0 - c1 * s0  # y of h_{t+1} * conj(h_t)
        if fix_heading:
            turn = turn * torch.where(c1 * c0 + s1 * s0 < 0, -1.0, 1.0)
        out[..., 0] = torch.asin(turn.clamp(-1, 1))
        out[..., 1:3] = _turn(step[:, :, 0], c1, s1)[..., 0::2]
        out[..., 3] = now[:, :, 0, 1]
        here = now[:, :, 1:].clone()
        here[..., 0::2] -= now[:, :, :1, 0::2]
        out[..., self.slices["joint_positions"]] = _turn(here, c0[..., None], s0[..., None]).flatten(2)
        rotations = self._bone_rotations(now, c0, s0)
        out[..., self.slices["joint_rotations"]] = rotations.flatten(2)
        out[..., self.slices["joint_velocities"]] = _turn(step, c0[..., None], s0[..., None]).flatten(2)
        feet = step[:, :, list(lay.contacts)].square().sum(-1)
        out[..., self.slices["foot_contacts"]] = (feet < lay.contact_threshold).to(out.dtype)
        if lengths is not None:
            out[_beyond(lengths - 1, out[..., 0])] = 0
        return out

    def headings(
        self, joints: Tensor, fix_heading: bool = False, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Smoothed heading quaternions (w, 0, y, 0) of canonical joints `(B, T, J, 3)` as w and y `(B, T)`."""
        right_hip, left_hip, right_arm, left_arm = (joints[:, :, k] for k in self.layout.face)
        hips = right_hip - left_hip if fix_heading else left_hip - right_hip
        forward = _forward(hips, right_arm - left_arm)  # (B, T, 2)
        cos, sin = _heading_half(_smooth(forward, lengths))
        cos[:, 0], sin[:, 0] = 1, 0
        return cos, sin

    def _bone_rotations(self, joints: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """6D columns `(B, T, J - 1, 6)` of each bone's turn from its rest axis, relative to the bone before it."""
        lay = self.layout
        v = joints[:, :, 1:] - joints[:, :, list(lay.parents[1:])]
        v = v / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        vx, vy, vz = v.unbind(-1)
        ux, uy, uz = lay.directions[1:].to(v).unbind(-1)
        w = 1 + ux * vx + uy * vy + uz * vz
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        norm = (w * w + x * x + y * y + z * z).sqrt()
        opposite = norm < 1e-6  # NaN or noise in the original; a half turn about any axis across the bone here
        norm = norm + opposite
        zero = torch.zeros_like(cos)
        root = (cos, zero, sin, zero)  # the heading stands in for the bone before the first of a chain
        bone = [torch.cat([r[..., None], q / norm], dim=-1) for r, q in zip(root, (w, x, y, z), strict=True)]
        if opposite.any():
            bone[1][..., 1:] += opposite * uy.abs() + opposite * uz.abs()
            bone[2][..., 1:] += opposite * ux.abs()
        before = list(lay.before[1:])
        aw, ax, ay, az = (q[..., before] for q in bone)
        bw, bx, by, bz = (q[..., 1:] for q in bone)
        qw = aw * bw + ax * bx + ay * by + az * bz  # conj(a) * b
        qx = aw * bx - ax * bw - ay * bz + az * by
        qy = aw * by - ay * bw - az * bx + ax * bz
        qz = aw * bz - az * bw - ax * by + ay * bx
        first = (1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy + qw * qz), 2 * (qx * qz - qw * qy))
        second = (2 * (qx * qy - qw * qz), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz + qw * qx))
        return torch.stack([*first, *second], dim=-1)

    # -- features to joints and Motion

    def root_path(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Heading quaternions `(..., T, 4)` (w, x, y, z) and root positions `(..., T, 3)` in file units.

        The last row's velocities have no frame to lead to. Summed in float64.
        """
        x = self.check(features).double()
        half = torch.cat([torch.zeros_like(x[..., :1, 0]), x[..., :-1, 0].cumsum(-1)], dim=-1)
        cos, sin = torch.cos(half), torch.sin(half)
        step = torch.stack([x[..., :-1, 1], torch.zeros_like(x[..., :-1, 0]), x[..., :-1, 2]], dim=-1)
        path = _turn(step, cos[..., 1:], -sin[..., 1:]).cumsum(-2)
        path = torch.cat([torch.zeros(*x.shape[:-2], 1, 3, dtype=x.dtype, device=x.device), path], dim=-2)
        root = torch.stack([path[..., 0], x[..., 3], path[..., 2]], dim=-1)
        quat = torch.stack([cos, torch.zeros_like(cos), sin, torch.zeros_like(cos)], dim=-1)
        return quat.to(features.dtype), root.to(features.dtype)

    def recover_from_positions(self, features: Tensor) -> Tensor:
        """World joints `(..., T, J, 3)` in file units from the position columns ("ric"), the input of published metrics."""
        features = self.check(features)
        quat, root = self.root_path(features)
        local = features[..., self.slices["joint_positions"]].unflatten(-1, (self.layout.joints - 1, 3))
        world = _turn(local, quat[..., 0, None], -quat[..., 2, None])
        world[..., 0::2] += root[..., None, 0::2]
        return torch.cat([root[..., None, :], world], dim=-2)

    def recover_from_rotations(self, features: Tensor, target_offsets: Tensor | None = None) -> Tensor:
        """World joints `(..., T, J, 3)` in file units from the rotation columns and the target's bone lengths."""
        features = self.check(features)
        quat, root = self.root_path(features)
        offsets = (self.target_offsets if target_offsets is None else target_offsets).to(features)
        six = features[..., self.slices["joint_rotations"]].unflatten(-1, (self.layout.joints - 1, 6))
        local = rotation.from_6d(six, "columns")
        joints = [root] * self.layout.joints
        for chain in self.layout.chains:
            turn = rotation.from_quat_wxyz(quat)
            for parent, child in pairwise(chain):
                turn = torch.einsum("...ij,...jk->...ik", turn, local[..., child - 1, :, :])
                joints[child] = joints[parent] + (turn @ offsets[child][:, None])[..., 0]
        return torch.stack(joints, dim=-2)

    def positions(self, features: Tensor) -> Tensor:
        """World joints `(..., T, J, 3)` in metres from the position columns."""
        return self.recover_from_positions(features) / self.layout.metre

    def decode(
        self,
        features: Tensor,
        source: Source = "positions",
        fps: float | None = None,
        target_offsets: Tensor | None = None,
        **options: Any,
    ) -> Motion:
        """A motion that follows the joints of features `(T, D)`.

        The format holds no twist about bones, so joint rotations are solved from the joints with either `source`
        (`meta["note"]` says so). hml263 gives smpl22 and kit251 a 21-joint skeleton, both with the clip's bone lengths.
        """
        features = self.check(features, 2)
        if source not in ("rotations", "positions"):
            raise VadisError(f"source must be 'rotations' or 'positions'; got {source!r}.")
        if source == "positions":
            joints = self.recover_from_positions(features)
        else:
            joints = self.recover_from_rotations(features, target_offsets)
        joints = joints.double() / self.layout.metre
        skeleton = fit_skeleton(joints, self.layout.body)
        rotations = solve_rotations(joints, skeleton)
        meta = {**self.metadata, "source": source, "note": "rotations solved from positions"}
        return Motion(skeleton, joints[:, 0].float(), rotations.float(), float(fps or self.fps), meta)

    # -- mirroring

    def mirror_joints(self, joints: Tensor) -> Tensor:
        """Raw joints `(..., J, 3)` with left and right exchanged, before encoding; 52 SMPL-H joints include hands."""
        swap = torch.arange(joints.shape[-2])
        body = self.layout.body.mirror_indices
        swap[: len(body)] = body
        if self.name == "hml263" and joints.shape[-2] > 24:
            left, right = torch.tensor(_HANDS_LEFT), torch.tensor(_HANDS_RIGHT)
            swap[left], swap[right] = right, left
        return joints[..., swap, :] * torch.tensor([-1.0, 1.0, 1.0]).to(joints)

    def mirror(self, features: Tensor) -> Tensor:
        """Features `(..., T, D)` with left and right exchanged; twice is the identity.

        The target skeleton isn't quite symmetric, so mirroring joints before encoding (as the data set does) gives
        positions that differ by millimetres.
        """
        features = self.check(features)
        swap = self.layout.body.mirror_indices
        flip = torch.tensor([-1.0, 1.0, 1.0]).to(features)
        six = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0]).to(features)
        out = features.clone()
        out[..., :2] = -features[..., :2]
        for name, signs in (("joint_positions", flip), ("joint_rotations", six), ("joint_velocities", flip)):
            block = features[..., self.slices[name]].unflatten(-1, (-1, len(signs)))
            order = swap if name == "joint_velocities" else swap[1:] - 1
            out[..., self.slices[name]] = (block[..., order, :] * signs).flatten(-2)
        contacts = self.slices["foot_contacts"]
        out[..., contacts] = features[..., contacts].roll(2, dims=-1)
        return out


def _beyond(lengths: Tensor, like: Tensor) -> Tensor:
    """True `(B, T)` where a frame lies past its clip's length; `like` gives T and the device."""
    return torch.arange(like.shape[1], device=like.device) >= lengths.to(like.device)[:, None]


def _forward(hips: Tensor, shoulders: Tensor) -> Tensor:
    """x and z `(..., 2)` of Y x across, across being the direction of the sum of two vectors `(..., 3)`."""
    across = hips + shoulders
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return torch.stack([across[..., 2], -across[..., 0]], dim=-1)


def _heading_half(forward: Tensor) -> tuple[Tensor, Tensor]:
    """w and y of the smallest turn from forward (x, z) `(..., 2)` onto +Z."""
    forward = forward / forward.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    w, y = 1 + forward[..., 1], -forward[..., 0]
    norm = (w * w + y * y).sqrt()
    opposite = norm < 1e-6
    return w / (norm + opposite), y / (norm + opposite) + opposite


def _turn(vectors: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Vectors `(..., 3)` turned by quaternions (w, 0, y, 0) given as `(...)`."""
    cos, sin = w * w - y * y, 2 * w * y
    vx, vy, vz = vectors.unbind(-1)
    return torch.stack([cos * vx + sin * vz, vy, cos * vz - sin * vx], dim=-1)


def _smooth(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Gaussian over time of `(B, T, C)`, each clip's first and last valid value continued beyond its ends."""
    batch, frames, channels = values.shape
    reach = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (reach / SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).to(values.device)
    last = torch.full((batch, 1), frames - 1) if lengths is None else lengths[:, None].cpu() - 1
    where = torch.minimum(torch.arange(-RADIUS, frames + RADIUS)[None].clamp(min=0), last).to(values.device)
    padded = values.double().transpose(1, 2).gather(2, where[:, None].expand(-1, channels, -1))
    smooth = torch.nn.functional.conv1d(padded.reshape(batch * channels, 1, -1), kernel[None, None])
    return smooth.reshape(batch, channels, frames).transpose(1, 2).to(values.dtype)
