"""SMPL parameters in `.npz` files: AMASS (SMPL-H, SMPL-X), pose estimators, and our own, which read back exactly.

The first 22 joints are kept; hands, jaw and eyes are dropped and `meta["dropped"]` says so. No body model is involved:
bones are those of smpl22 unless the file carries `joint_offsets`. SMPL's `trans` isn't the pelvis: the pelvis at rest
depends on the body shape and is added to it, in the axes of the file. Without the body we add that of an average one
(`meta["pelvis_offset"]`), off by a few centimetres, constantly over the clip. AMASS is Z-up; others are judged by how the
body stands.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import FileError, SkeletonError
from vadis.files import atomic_write
from vadis.io.arrays import Npz, finite
from vadis.io.bvh import Z_UP, snap_fps
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, smpl22

BODY = 66
"""Axis-angle values of the first 22 joints."""
PELVIS = {"smplh": (0.0, -0.22, 0.03), "smplx": (0.0, -0.35, 0.01)}
"""Rough rest position of the pelvis in metres for an average body of either model."""
_POSES = ("poses", "pose", "smpl_poses", "fullpose")
_ROOT = ("root_orient", "global_orient", "smpl_root_orient")
_PARTS = ("pose_body", "body_pose", "smpl_body_pose")
_TRANS = ("trans", "transl", "translation", "smpl_trans")
_FPS = ("mocap_framerate", "mocap_frame_rate", "fps", "frame_rate", "framerate")


def load_amass(path: str | Path, fps: float | None = None, up: str | None = None, max_bytes: int = 4 << 30) -> Motion:
    """Read SMPL, SMPL-H or SMPL-X poses.

    Args:
        path: an `.npz` with `poses` (T, 66 or more), or `root_orient`/`global_orient` with `pose_body`/`body_pose`, axis-angle
            or matrices; `trans` or `transl` (T, 3) metres; `mocap_framerate` or the like.
        fps: frame rate when the file has none, or to use instead.
        up: "y" or "z"; by default what the file says, else how the body stands, else Z for files of AMASS.
        max_bytes: refuse larger arrays.

    Raises FileError for a damaged file, one without poses, or a frame rate that is neither stored nor given.
    """
    path = Path(path)
    if up not in (None, "y", "z"):
        raise FileError(f"unknown up axis {up!r}: use 'y' or 'z'.")
    with Npz(path, max_bytes) as file:
        poses, width = _poses(file)
        frames = len(poses)
        trans = file.numbers(*_TRANS)
        rate = file.numbers(*_FPS) if fps is None else np.array(fps)
        offsets, pelvis = file.numbers("joint_offsets"), file.numbers("pelvis_offset")
        names, up = file.text("joint_names"), up or file.text("up_axis")
        model = file.text("surface_model_type") or ("smplx" if width == 165 or "pose_jaw" in file else "smplh")
        betas, gender = file.numbers("betas"), file.text("gender")
        is_amass = any(key in file for key in _FPS[:2])
    if rate is None or rate.size != 1:
        raise FileError(f"{path.name} stores no frame rate ({', '.join(_FPS[:2])}): pass fps=.")
    if names is not None and names != SMPL22_NAMES[0]:
        raise FileError(f"{path.name} names its first joint {names!r}; expected {SMPL22_NAMES[0]!r}.")
    meta: dict[str, object] = {"file": path.name}
    if trans is None:
        trans, meta["no_translation"] = np.zeros((frames, 3)), True
    if trans.size != frames * 3:
        raise FileError(f"{path.name}: {frames} poses but translations of shape {trans.shape}; expected ({frames}, 3).")
    if pelvis is None or pelvis.size != 3:
        pelvis = np.array(PELVIS["smplx" if "smplx" in model else "smplh"])
        meta["pelvis_offset"] = "approximate"
    if width > BODY:
        meta["dropped"] = f"{width // 3 - 22} joints (hands, face)"
    if betas is not None and betas.any():
        meta["betas"] = betas.reshape(-1)[:10].tolist()
    if gender:
        meta["gender"] = gender
    skeleton = smpl22()
    if offsets is not None and offsets.shape == (22, 3):
        skeleton = skeleton.with_offsets(torch.tensor(offsets, dtype=torch.float32))
    root = torch.from_numpy(trans.reshape(frames, 3) + pelvis.reshape(3))
    rate_value = float(rate.reshape(-1)[0])
    if not 0.1 <= rate_value <= 10_000:
        raise FileError(f"{path.name}: {rate_value:g} frames per second can't be right: pass fps=.")
    motion = Motion(skeleton, root.float(), poses.float(), snap_fps(1 / rate_value), meta)
    axis = up if up in ("y", "z") else standing_axis(motion.positions) or ("z" if is_amass else "y")
    if axis == "z":
        rotations = torch.cat([Z_UP.double() @ poses[:, :1], poses[:, 1:]], dim=1)
        motion = motion.replace(root=(root @ Z_UP.double().T).float(), rotations=rotations.float())
        motion.meta["up_axis"] = "z"
    return motion


def standing_axis(positions: Tensor) -> str | None:
    """The axis "y" or "z" along which 22 joints `(T, 22, 3)` stand on average, None when neither is clear."""
    head, feet = SMPL22_NAMES.index("head"), [SMPL22_NAMES.index("left_ankle"), SMPL22_NAMES.index("right_ankle")]
    body = (positions[:, head] - positions[:, feet].mean(1)).mean(0)
    share = body / body.norm().clamp_min(1e-9)
    return "y" if share[1] > 0.7 else "z" if share[2] > 0.7 else None


def _poses(file: Npz) -> tuple[Tensor, int]:
    """Local rotations `(T, 22, 3, 3)` float64 and the number of pose values per frame."""
    whole = file.numbers(*_POSES)
    if whole is None:
        root, body = file.numbers(*_ROOT), file.numbers(*_PARTS)
        if root is None or body is None:
            listed = ", ".join(file.keys()[:12])
            raise FileError(
                f"{file.path.name} holds no SMPL poses ('poses', or 'root_orient' with 'pose_body'); it has {listed}."
            )
        if root.size == 0 or body.size == 0 or root.shape[:1] != body.shape[:1] or not root.ndim:
            raise FileError(f"{file.path.name}: root {root.shape} and body {body.shape} poses differ in frames.")
        frames = root.shape[0]
        whole = np.concatenate([root.reshape(frames, -1), body.reshape(frames, -1)], axis=1)
    if whole.ndim >= 2 and whole.shape[-2:] == (3, 3):
        whole = whole.reshape(whole.shape[0], -1)
    if whole.ndim == 3 and whole.shape[-1] in (3, 9):
        whole = whole.reshape(whole.shape[0], -1)
    if whole.ndim != 2 or len(whole) == 0 or whole.shape[1] < BODY:
        raise FileError(f"{file.path.name}: poses of shape {whole.shape}; expected (T, 66) or more, 3 values a joint.")
    width = whole.shape[1]
    if width % 9 == 0 and _are_matrices(whole):  # 198 = 22 x 9, 216 = 24 x 9
        matrices = torch.from_numpy(whole[:, : 22 * 9].copy()).reshape(-1, 22, 3, 3)
        return matrices, width // 3
    return rotation.from_rotvec(torch.from_numpy(whole[:, :BODY].copy()).reshape(-1, 22, 3)), width


def _are_matrices(values: np.ndarray) -> bool:
    if values.shape[1] < 22 * 9:
        return False
    some = values[:: max(len(values) // 20, 1), : 22 * 9].reshape(-1, 3, 3)
    return bool(np.abs(some @ some.transpose(0, 2, 1) - np.eye(3)).max() < 1e-2)


def save_amass(motion: Motion, path: str | Path, *, up: str = "z", width: int = BODY) -> Path:
    """Write an AMASS-like `.npz`: poses, trans, mocap_framerate, betas, gender, and what makes reading it back exact.

    Args:
        motion: on smpl22; retarget others first.
        path: the file.
        up: "z" as in AMASS, or "y".
        width: 66 values per frame, or 156 (SMPL-H) or 165 (SMPL-X) with resting hands.

    `trans` is what an SMPL-H (width 165: SMPL-X) body of average shape needs to put its pelvis where ours is.
    Raises SkeletonError for another skeleton, FileError for unknown options or a path that can't be written.
    """
    if motion.skeleton.names != SMPL22_NAMES:
        raise SkeletonError(
            f"SMPL files hold the 22 joints of smpl22, not {motion.skeleton}: vadis.retarget(motion) first."
        )
    if up not in ("y", "z") or width not in (BODY, 156, 165):
        raise FileError(f"up={up!r}, width={width}: use 'y' or 'z', and 66, 156 or 165 values per frame.")
    root, rotations = motion.root.double(), motion.rotations.double()
    if up == "z":
        root = root @ Z_UP.double()
        rotations = torch.cat([Z_UP.double().T @ rotations[:, :1], rotations[:, 1:]], dim=1)
    pelvis = np.array(PELVIS["smplx" if width == 165 else "smplh"])
    poses = np.zeros((motion.num_frames, width))
    poses[:, :BODY] = rotation.to_rotvec(rotations).reshape(-1, BODY).numpy()
    path = Path(path)
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        np.savez_compressed(
            out,
            poses=poses,
            trans=root.numpy() - pelvis,
            mocap_framerate=np.array(motion.fps),
            betas=np.zeros(16),
            gender=np.array("neutral"),
            surface_model_type=np.array("smplx" if width == 165 else "smplh"),
            joint_names=np.array(SMPL22_NAMES),
            joint_offsets=motion.skeleton.offsets.numpy(),
            pelvis_offset=pelvis,
            up_axis=np.array(up),
        )
    return path


def from_smpl_table(values: np.ndarray, trans: slice | None, name: str) -> tuple[Tensor, Tensor]:
    """Local rotations `(T, 22, 3, 3)` and pelvis path `(T, 3)` of a plain table of axis-angles `(T, >= 66)`."""
    table = torch.from_numpy(finite(values, name).copy())
    path = torch.zeros(len(table), 3, dtype=table.dtype) if trans is None else table[:, trans]
    if trans is not None:
        path = path + torch.tensor(PELVIS["smplx"], dtype=table.dtype)
    return rotation.from_rotvec(table[:, :BODY].reshape(-1, 22, 3)), path
