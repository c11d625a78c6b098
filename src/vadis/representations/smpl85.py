"""SMPL-85, the intermediate form of the 272-dim data sets: 66 pose, 6 zero, 3 translation, 10 shape numbers.

Rotations are axis-angle vectors in radians, lengths metres. The translation is *not* the pelvis position:
`pelvis = translation + rest pelvis(shape)`. Rest joints belong to licensed body models, so they are always passed in:
`rest_offsets` `(22, 3)` holds the rest pelvis in row 0 and the bone vectors from the parent in the others.
"""

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError, VadisError
from vadis.motion import Motion
from vadis.representations.ms272 import MS272
from vadis.skeleton import Skeleton, smpl22

POSE, TRANSLATION, SHAPE = slice(0, 66), slice(72, 75), slice(75, 85)
_Y_UP = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]], dtype=torch.float64)


def from_amass(
    poses: Tensor,
    translation: Tensor,
    betas: Tensor,
    fps: float,
    target_fps: float = 30.0,
    start: int | None = None,
    stop: int | None = None,
) -> Tensor:
    """SMPL-85 `(T, 85)` float32, Y up, from the arrays of an AMASS file as the published data sets were made.

    Args:
        poses: `(T_raw, >= 66)` axis-angle, Z up. translation: `(T_raw, 3)`. betas: `(>= 10,)`.
        fps: of the file. Every `int(fps / target_fps)`-th frame is kept, so 100 becomes 33.3 labelled 30 and
            59.94 stays: use `Motion.resample` where the true rate matters.
        start, stop: cut in frames of the target rate, python slice rules.

    Raises VadisError for a file slower than the target rate.
    """
    stride = int(fps / target_fps)
    if stride < 1:
        raise VadisError(
            f"frames can't be dropped from {fps:g} to {target_fps:g} frames/s: load it as a Motion and resample."
        )
    poses, translation = torch.as_tensor(poses)[::stride], torch.as_tensor(translation)[::stride]
    poses, translation = poses[start:stop].double(), translation[start:stop].double()
    out = torch.zeros(len(poses), 85)
    out[:, POSE] = poses[:, :66].float()
    out[:, :3] = rotation.to_rotvec(_Y_UP @ rotation.from_rotvec(poses[:, :3])).float()
    out[:, TRANSLATION] = (translation @ _Y_UP.T).float()
    out[:, SHAPE] = torch.as_tensor(betas)[:10].float()
    return out


def mirror(smpl: Tensor) -> Tensor:
    """SMPL-85 `(..., 85)` with left and right exchanged; the shape stays, though bodies aren't quite symmetric."""
    smpl = _check(smpl)
    out = smpl.clone()
    pose = smpl[..., POSE].unflatten(-1, (22, 3))[..., smpl22().mirror_indices, :]
    out[..., POSE] = (pose * torch.tensor([1.0, -1.0, -1.0]).to(smpl)).flatten(-2)
    out[..., 72] = -smpl[..., 72]
    return out


def face_z(smpl: Tensor) -> Tensor:
    """Turn a clip `(T, 85)` about Y so that the pelvis' z axis faces +Z in the first frame; nothing is recentred."""
    smpl = _check(smpl)
    root = rotation.from_rotvec(smpl[:, :3].double())
    turn = rotation.yaw(-rotation.heading(root[0]))
    out = smpl.clone()
    out[:, :3] = rotation.to_rotvec(turn @ root).to(smpl)
    out[:, TRANSLATION] = (smpl[:, TRANSLATION].double() @ turn.T).to(smpl)
    return out


def rotations(smpl: Tensor) -> Tensor:
    """Local rotations `(..., 22, 3, 3)` of SMPL-85 `(..., 85)`."""
    return rotation.from_rotvec(_check(smpl)[..., POSE].unflatten(-1, (22, 3)))


def joints(smpl: Tensor, rest_offsets: Tensor) -> Tensor:
    """World joints `(T, 22, 3)` in the dtype of `smpl`, computed in float64."""
    smpl = _check(smpl)
    root = smpl[..., TRANSLATION].double() + rest_offsets[0].double()
    return _skeleton(rest_offsets).forward_kinematics(rotations(smpl.double()), root).to(smpl)


def to_motion(smpl: Tensor, rest_offsets: Tensor, fps: float = 30.0) -> Motion:
    """The motion of SMPL-85 `(T, 85)` on the body with these rest offsets."""
    smpl = _check(smpl)
    root = smpl[:, TRANSLATION].double() + rest_offsets[0].double()
    skeleton = _skeleton(rest_offsets.float())
    return Motion(skeleton, root.float(), rotations(smpl.double()).float(), fps, {"shape": smpl[0, SHAPE].tolist()})


def from_motion(motion: Motion, rest_pelvis: Tensor, shape: Tensor | None = None) -> Tensor:
    """SMPL-85 `(T, 85)` float32 of a motion on smpl22.

    Args:
        rest_pelvis: `(3,)` metres, rest pelvis of the SMPL body that will be posed. Zeros give the translations of the
            original 272 code, whose bodies then stand too low by that vector.
        shape: up to 10 shape coefficients; zero by default.
    """
    if not motion.skeleton.same_tree(smpl22()):
        raise VadisError(f"SMPL-85 needs a motion on smpl22, not {motion.skeleton}: vadis.retarget(motion, 'smpl22').")
    return from_arrays(motion.rotations, motion.root - rest_pelvis, shape).float()


def from_features(features: Tensor, representation: MS272, rest_pelvis: Tensor, yaw_only: bool = True) -> Tensor:
    """SMPL-85 `(..., T, 85)` of ms272 features in their own precision; see `from_motion` for `rest_pelvis`."""
    local, pelvis = representation.rotations(features, yaw_only)
    return from_arrays(local, pelvis - rest_pelvis.to(pelvis))


def from_arrays(local: Tensor, translation: Tensor, shape: Tensor | None = None) -> Tensor:
    """SMPL-85 `(..., 85)` from local rotations `(..., 22, 3, 3)` and translations `(..., 3)`."""
    out = torch.zeros(*translation.shape[:-1], 85, dtype=translation.dtype)
    out[..., POSE] = rotation.to_rotvec(local).flatten(-2).to(out)
    out[..., TRANSLATION] = translation
    if shape is not None:
        out[..., 75 : 75 + min(len(shape), 10)] = shape[:10].to(out)
    return out


def _skeleton(rest_offsets: Tensor) -> Skeleton:
    return smpl22().with_offsets(torch.cat([torch.zeros_like(rest_offsets[:1]), rest_offsets[1:22]]))


def _check(smpl: Tensor) -> Tensor:
    if smpl.ndim < 2 or smpl.shape[-1] != 85:
        raise ShapeError(f"SMPL-85 has the shape (T, 85); this array is {tuple(smpl.shape)}.")
    return smpl
