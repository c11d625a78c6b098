"""The 276-dim representation of ViMoGen: Z up, world joints, SMPL rotations, every step to the next frame.

T frames give T - 1 rows. Per row t, with R the rotation of the pelvis in the world and p the joints:

    0:126    local rotations of joints 1..21, 6D columns interleaved
    126:192  22 world joint positions
    192:258  steps of all joints from t to t + 1
    258:264  R_t
    264:270  V_t = R_{t+1} R_t^T, so that R_{t+1} = V_t R_t
    270:273  translation_t of the body model
    273:276  its step from t to t + 1

The body faces +Y at frame 0 with its left side towards -X, the pelvis above the origin and the lowest joint of the clip
at height 0. The translation is *not* the pelvis: pelvis = translation + `REST_PELVIS`, whatever the rotation.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.representations.base import Representation, Source, frozen
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton, smpl22

REST_PELVIS = (0.00312325, -0.35140744, 0.01203655)
"""What separates translation and pelvis in every published file, metres."""
SLICES = {
    "joint_rotations": slice(0, 126),
    "joint_positions": slice(126, 192),
    "joint_velocities": slice(192, 258),
    "root_rotation": slice(258, 264),
    "root_rotation_velocity": slice(264, 270),
    "translation": slice(270, 273),
    "translation_velocity": slice(273, 276),
}
_JOINTS, _LEFT_HIP, _RIGHT_HIP = 22, 1, 2
_LAYOUT: rotation.SixD = "columns_interleaved"
_TURN = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
"""(x, y, z) -> (-x, z, y): Z up facing +Y to Y up facing +Z and back; a proper rotation and its own inverse."""
_CAMERA = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)


class Body276(NamedTuple):
    """Z-up body parameters: `root` (..., T, 3, 3), `local` (..., T, 21, 3, 3), `joints` (..., T, 22, 3), `translation`."""

    root: Tensor
    local: Tensor
    joints: Tensor
    translation: Tensor


class ViMoGen276(Representation):
    """276 numbers per frame, Z up, 22 SMPL joints; 20 frames/s unless a file's notes say otherwise."""

    name = "vimogen276"
    dim = 276
    fps = 20.0
    slices = frozen(SLICES)
    groups = tuple(SLICES.values())

    def __init__(self) -> None:
        self._offset = torch.tensor(REST_PELVIS, dtype=torch.float64)
        mirror = smpl22().mirror_indices
        flip, six = torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0])
        vectors = (mirror[:, None] * 3 + torch.arange(3)).flatten()
        turns = ((mirror[1:, None] - 1) * 6 + torch.arange(6)).flatten()
        self._mirror_columns = torch.cat([turns, 126 + vectors, 192 + vectors, torch.arange(258, 276)])
        signs = [six.repeat(21), flip.repeat(44), six.repeat(2), flip.repeat(2)]
        self._mirror_signs = torch.cat(signs)

    # -- to features

    def encode(self, motion: Motion, floor: bool = True, **options: Any) -> Tensor:
        """Features `(T - 1, 276)` float32.

        Args:
            motion: on smpl22 at 20 frames/s; where it stands and which way it faces doesn't matter.
            floor: put the lowest joint of the clip at height 0; otherwise the pelvis of frame 0.

        Raises SkeletonError for another tree, VadisError for another frame rate, ShapeError for a single frame.
        """
        self.check_motion(motion, smpl22())
        return self.encode_arrays(motion.rotations.double(), motion.positions.double(), floor).float()

    def encode_arrays(self, rotations: Tensor, positions: Tensor, floor: bool = True) -> Tensor:
        """Features `(T - 1, 276)` from local rotations `(T, 22, 3, 3)` and world joints `(T, 22, 3)`, Y up, metres."""
        if positions.ndim != 3 or positions.shape[1:] != (_JOINTS, 3) or rotations.shape != (*positions.shape, 3):
            raise ShapeError(
                f"{self.name} needs rotations (T, 22, 3, 3) and positions (T, 22, 3); got {tuple(rotations.shape)} and "
                f"{tuple(positions.shape)}."
            )
        turn = _TURN.to(positions)
        joints = positions @ turn.T
        translation = joints[:, 0] - self._offset.to(positions)
        body = Body276(turn.to(rotations) @ rotations[:, 0], rotations[:, 1:], joints, translation)
        return self.assemble(self.canonical(body, floor)[0])

    def canonical(self, body: Body276, floor: bool = True) -> tuple[Body276, Tensor, Tensor]:
        """The body above the origin, facing +Y at frame 0; with the turn `(3, 3)` and then the shift `(3,)` applied."""
        offset = self._offset.to(body.joints)
        across = (body.joints[0, _RIGHT_HIP] - body.joints[0, _LEFT_HIP]) * torch.tensor([1.0, 1.0, 0.0]).to(offset)
        if not across.norm() > 1e-8:
            raise VadisError("the hips of frame 0 lie above each other: there is no facing direction to turn to +Y.")
        across = across / across.norm()
        up = torch.tensor([0.0, 0.0, 1.0]).to(offset)
        turn = torch.stack([across, torch.linalg.cross(up, across), up])
        joints = body.joints @ turn.T
        shift = -joints[0, 0]
        if floor:
            shift = torch.stack([shift[0], shift[1], -joints[..., 2].min()])
        translation = (body.translation + offset) @ turn.T - offset + shift
        return Body276(turn.to(body.root) @ body.root, body.local, joints + shift, translation), turn, shift

    def assemble(self, body: Body276) -> Tensor:
        """Features `(T - 1, 276)` of a body as it stands."""
        if len(body.joints) < 2:
            raise ShapeError(f"{self.name} holds steps to the next frame: it needs 2 frames or more, got 1.")
        root, joints, translation = body.root, body.joints, body.translation
        step = root[1:] @ root[:-1].transpose(-1, -2)
        parts = [
            rotation.to_6d(body.local[:-1], _LAYOUT).flatten(1),
            joints[:-1].flatten(1),
            torch.diff(joints, dim=0).flatten(1),
            rotation.to_6d(root[:-1], _LAYOUT),
            rotation.to_6d(step, _LAYOUT),
            translation[:-1],
            torch.diff(translation, dim=0),
        ]
        return torch.cat([part.to(joints) for part in parts], dim=-1)

    def from_camera(self, root: Tensor, joints: Tensor, translation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Root rotations, joints and translations seen by a camera (x right, y down, z forward) in Z-up axes."""
        turn = _CAMERA.to(joints)
        offset = self._offset.to(joints)
        return turn.to(root) @ root, joints @ turn.T, (translation + offset) @ turn.T - offset

    # -- from features

    def body(self, features: Tensor, integrate: bool = False, last_frame: bool = False) -> Body276:
        """The Z-up body of features `(T, 276)`.

        Args:
            integrate: take rotation, translation and joints of frame 0 only and add up the steps, as the original's
                pictures and benchmark exports do. Every joint drifts by itself, so a network's output comes apart.
            last_frame: also the frame that the last row's steps lead to, with the local rotations of the last row.
        """
        x = self.check(features, 2)
        root = rotation.from_6d(x[:, 258:264], _LAYOUT)
        turns = rotation.from_6d(x[:, 264:270], _LAYOUT)
        local = rotation.from_6d(x[:, :126].unflatten(-1, (21, 6)), _LAYOUT)
        joints, translation = x[:, 126:192].unflatten(-1, (_JOINTS, 3)), x[:, 270:273]
        steps = x[:, 192:258].unflatten(-1, (_JOINTS, 3))
        if integrate:
            root = rotation.running_product(torch.cat([root[:1], turns[:-1]]).double()).to(root)
            joints = torch.cat([joints[:1], steps[:-1]]).double().cumsum(0).to(joints)
            translation = torch.cat([translation[:1], x[:-1, 273:276]]).double().cumsum(0).to(translation)
        if last_frame:
            root = torch.cat([root, turns[-1:] @ root[-1:]])
            joints = torch.cat([joints, joints[-1:] + steps[-1:]])
            translation = torch.cat([translation, translation[-1:] + x[-1:, 273:276]])
            local = torch.cat([local, local[-1:]])
        return Body276(root, local, joints, translation)

    def arrays(self, features: Tensor, integrate: bool = False, last_frame: bool = False) -> tuple[Tensor, Tensor]:
        """Local rotations `(T, 22, 3, 3)` and world joints `(T, 22, 3)`, Y up facing +Z, of features `(T, 276)`."""
        body = self.body(features, integrate, last_frame)
        turn = _TURN.to(body.root)
        return torch.cat([(turn @ body.root)[:, None], body.local], dim=1), body.joints @ turn.T

    def positions(self, features: Tensor, integrate: bool = False) -> Tensor:
        """World joints `(..., T, 22, 3)` in metres, Y up facing +Z, from the position columns (or their steps)."""
        x = self.check(features)
        joints = x[..., 126:192].unflatten(-1, (_JOINTS, 3))
        if integrate:
            steps = x[..., 192:258].unflatten(-1, (_JOINTS, 3))
            path = torch.cat([joints[..., :1, :, :], steps[..., :-1, :, :]], dim=-3).double()
            joints = path.cumsum(-3).to(x)
        return joints @ _TURN.to(x).T

    def decode(
        self,
        features: Tensor,
        source: Source = "rotations",
        fps: float | None = None,
        skeleton: Skeleton | None = None,
        integrate: bool = False,
        last_frame: bool = False,
        **options: Any,
    ) -> Motion:
        """The motion of features `(T, 276)`, Y up; its root is the pelvis of the position columns.

        Args:
            source: "rotations" poses `skeleton` by the rotation columns; "positions" follows the joints with bones of the
                lengths found there and takes only the twist about bones from the rotations.
            fps: frame rate of the features, which they don't store; 20 if not given.
            skeleton: with 22 SMPL joints; the default is smpl22 for rotations and `estimate_skeleton` for positions.
            integrate, last_frame: see `body`.
        """
        if source not in ("rotations", "positions"):
            raise VadisError(f"source must be 'rotations' or 'positions'; got {source!r}.")
        local, joints = self.arrays(features, integrate, last_frame)
        meta = {"representation": self.name, "source": source}
        if source == "positions":
            from vadis.representations.solve import solve_rotations

            skeleton = self.estimate_skeleton(features) if skeleton is None else skeleton
            local = solve_rotations(joints.double(), skeleton, local.double())
            meta["note"] = "rotations solved from positions"
        skeleton = smpl22() if skeleton is None else skeleton
        return Motion(skeleton, joints[:, 0].float(), local.float(), float(fps or self.fps), meta)

    def estimate_skeleton(self, features: Tensor) -> Skeleton:
        """smpl22 with the rest offsets that rotations and positions of features `(T, 276)` agree on."""
        local, joints = self.arrays(features)
        return measured_offsets(local, joints)

    def mirror(self, features: Tensor) -> Tensor:
        """Features `(..., T, 276)` with left and right exchanged; twice is the identity."""
        features = self.check(features)
        out = features[..., self._mirror_columns] * self._mirror_signs.to(features)
        out[..., 270] -= 2 * REST_PELVIS[0]  # the translation is mirrored about its pelvis
        return out


def measured_offsets(rotations: Tensor, joints: Tensor) -> Skeleton:
    """smpl22 with the rest offsets of local rotations `(T, 22, 3, 3)` and world joints `(T, 22, 3)`.

    Exact when all frames are of one body; otherwise the mean direction with the mean bone length.
    """
    base = smpl22()
    parents = torch.tensor(SMPL22_PARENTS[1:])
    world = base.global_rotations(rotations.double())
    bones = joints[:, 1:].double() - joints[:, parents].double()
    rest = (world[:, parents].transpose(-1, -2) @ bones[..., None])[..., 0].mean(0)
    rest = rest * (bones.norm(dim=-1).mean(0) / rest.norm(dim=-1).clamp_min(1e-9))[:, None]
    offsets = torch.cat([torch.zeros_like(rest[:1]), rest]).float().cpu()
    return Skeleton(SMPL22_NAMES, SMPL22_PARENTS, offsets, base.name)
