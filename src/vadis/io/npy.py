"""Plain `.npy` arrays: features of a named representation, joint positions, or tables of SMPL parameters.

The width tells what an array is; a sidecar `NAME.npy.json` (written by default, never needed) adds the frame rate, the
representation and the skeleton. Joints alone have no rotations: those are solved, twist about bones by hinge rules, on a
body with the bone lengths found in the data.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.errors import FileError
from vadis.files import atomic_write
from vadis.io.amass import from_smpl_table, standing_axis
from vadis.io.arrays import finite, read_npy
from vadis.io.bvh import Z_UP, snap_fps
from vadis.motion import Motion
from vadis.records import checked, read_json
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton, smpl22

FEATURES = {263: "hml263", 251: "kit251", 272: "ms272", 276: "vimogen276", 426: "vimogen276", 135: "smpl135"}
"""Representation that an array of this width most likely holds (426: ViMoGen's sample files, 276 plus camera)."""
TABLES = {85: slice(72, 75), 322: slice(309, 312)}
"""Width of SMPL tables -> columns of the translation: SMPL-85 and Motion-X; the pose comes first."""
JOINTS_FPS = 20.0
"""HumanML3D's rate, assumed for joint positions that come without one."""
Offset = Annotated[float, Field(ge=-1000, le=1000)]
"""Metres from a joint to its parent."""
_SIX_D = {
    "ms272": slice(140, 272),
    "ms272_absroot": slice(140, 272),
    "hml263": slice(67, 193),
    "vimogen276": slice(0, 126),
}
_SIX_D |= {"smpl135": slice(3, 135), "motionclip135": slice(3, 135), "kit251": slice(64, 184)}


@dataclass(frozen=True, config=ConfigDict(extra="ignore", allow_inf_nan=False))
class _Notes:
    """What a sidecar may say; people add notes of their own."""

    representation: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    fps: Annotated[float, Field(ge=0.1, le=10_000)] | None = None
    joint_names: Annotated[list[str], Field(max_length=4096)] | None = None
    joint_offsets: Annotated[list[tuple[Offset, Offset, Offset]], Field(min_length=22, max_length=22)] | None = None


def sidecar(path: str | Path) -> Path:
    """Where the notes to an `.npy` file are."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The notes beside an `.npy` file, {} when there are none; FileError when they are damaged."""
    place = sidecar(path)
    if not place.is_file():
        return {}
    notes = read_json(place, max_bytes=1 << 20)
    checked(_Notes, notes, f"{place.name}, the notes to {path.name}")
    return notes


def load_npy(
    path: str | Path,
    representation: str | None = None,
    fps: float | None = None,
    source: str | None = None,
    up: str | None = None,
    index: int | None = None,
    max_bytes: int = 4 << 30,
) -> Motion:
    """Read features `(T, D)`, joints `(T, 22, 3)` or `(T, 66)`, or SMPL tables `(T, 66 | 85 | 322)` as a motion.

    Args:
        path: the `.npy` file.
        representation: name of the features, "joints" or "smpl"; by default what the sidecar or the shape says.
        fps: frame rate; by default the sidecar's, else that of the representation; joints and tables without one
            count as 20 (HumanML3D's rate), and `meta["fps_assumed"]` says so.
        source: "rotations" or "positions" for features that hold both.
        up: "y" or "z" for joints and tables; by default how the body stands.
        index: which clip of a batch `(B, T, …)`.
        max_bytes: refuse larger files.

    Raises FileError for a shape that fits nothing, NaN, or values that can't be what they are taken for.
    """
    path = Path(path)
    if up not in (None, "y", "z"):
        raise FileError(f"unknown up axis {up!r}: use 'y' or 'z'.")
    array, kind, stored, notes = _read(path, representation, fps, index, max_bytes)
    meta: dict[str, Any] = {"file": path.name, "representation": kind}
    if kind in ("joints", "smpl"):
        rate = snap_fps(1 / float(stored)) if stored is not None else JOINTS_FPS
        motion = (
            _joints(array, rate, up, meta, path.name) if kind == "joints" else _table(array, rate, up, meta, path.name)
        )
    else:
        from vadis.representations import representation as find

        rep = find(kind)
        features = _features(array, kind, path.name)
        options: dict[str, Any] = {} if source is None else {"source": source}
        if (skeleton := _stored_skeleton(notes)) is not None:
            options["skeleton"] = skeleton
        motion = rep.decode(features, fps=float(stored or rep.fps), **options)
    if stored is None and kind in ("joints", "smpl"):
        meta["fps_assumed"] = True
    return motion.replace(meta=motion.meta | meta)


def load_features(
    path: str | Path,
    representation: str | None = None,
    fps: float | None = None,
    index: int | None = None,
    max_bytes: int = 4 << 30,
) -> tuple[Tensor, str, float, Skeleton | None] | None:
    """Features `(T, D)`, their representation, frame rate and skeleton (None when not noted); arguments as in `load_npy`.

    None when the file holds joints or an SMPL table instead. Raises what `load_npy` raises.
    """
    path = Path(path)
    array, kind, stored, notes = _read(path, representation, fps, index, max_bytes)
    if kind in ("joints", "smpl"):
        return None
    from vadis.representations import representation as find

    rate = float(stored or find(kind).fps)
    return _features(array, kind, path.name), kind, rate, _stored_skeleton(notes)


def _read(
    path: Path, representation: str | None, fps: float | None, index: int | None, max_bytes: int
) -> tuple[np.ndarray, str, float | None, dict[str, Any]]:
    """The array of one clip, what it holds, its frame rate where known, and the notes beside it."""
    notes = read_sidecar(path)
    array = finite(_one_clip(read_npy(path, max_bytes), index, path.name), path.name)
    kind = representation or notes.get("representation") or guess_array(array)
    if kind in ("ms272", "smpl135") and not representation and "representation" not in notes:  # two share each width
        from vadis.representations.guess import guess

        kind = guess(array)[0].name
    if not isinstance(kind, str):
        raise FileError(
            f"{path.name} has the shape {array.shape}, which is not a known kind of motion: known are (T, 22, 3) joints, "
            f"SMPL tables (T, 66, 85 or 322) and features (T, {', '.join(map(str, sorted(FEATURES)))})."
        )
    stored = fps if fps is not None else notes.get("fps")
    if stored is not None and not (isinstance(stored, int | float) and 0.1 <= stored <= 10_000):
        raise FileError(f"{path.name}: {stored!r} frames per second can't be right; expected 0.1 to 10000.")
    return array, kind, stored, notes


def _features(array: np.ndarray, kind: str, name: str) -> Tensor:
    """The array as features of `kind`, which it must fit in shape and size of its values."""
    from vadis.representations import representation as find

    dim = find(kind).dim
    if array.ndim != 2 or (array.shape[1] != dim and not (array.shape[1] == 426 and dim == 276)):
        raise FileError(f"{name} has the shape {array.shape}; {kind} features are (T, {dim}).")
    features = torch.from_numpy(array[:, :dim].copy()).float()
    if (why := looks_normalized(features, kind)) is not None:
        raise FileError(f"{name} can't be {kind} features in physical units: {why}. Undo the normalisation first.")
    return features


def guess_array(array: np.ndarray) -> str | None:
    """What an array of motion holds, by its shape (and bone lengths for 66 columns); None when unknown."""
    if array.ndim == 3 and array.shape[2] == 3 and array.shape[1] in (22, 24, 52, 55):
        return "joints"
    if array.ndim != 2:
        return None
    if array.shape[1] == 66:
        return "joints" if _rigid(array.reshape(-1, 22, 3)) else "smpl"
    if array.shape[1] in TABLES:
        return "smpl"
    return FEATURES.get(array.shape[1])


def _rigid(joints: np.ndarray) -> bool:
    """Whether the bones between joints `(T, 22, 3)` hardly change their lengths and are as long as a person's."""
    bones = np.linalg.norm(joints[:, 1:] - joints[:, SMPL22_PARENTS[1:]], axis=-1)  # (T, 21)
    mean = bones.mean(0)
    return bool(
        0.03 < np.median(mean) < 600
        and np.median(bones.std(0) / np.maximum(mean, 1e-9)) < 0.2
        and mean[:3].min() > 1e-3
    )


def looks_normalized(features: Tensor, kind: str) -> str | None:
    """Why features `(T, D)` can't be in physical units (their 6D rotations aren't nearly unit vectors), or None."""
    if kind not in _SIX_D:
        return None
    block = features[:, _SIX_D[kind]].unflatten(-1, (-1, 6))
    length = float(block.square().sum(-1).sqrt().mean())
    if abs(length - 2**0.5) < 0.3:
        return None
    return (
        f"its 6D rotations have a mean length of {length:.2f} instead of 1.41, as if normalised by mean and deviation"
    )


def _one_clip(array: np.ndarray, index: int | None, name: str) -> np.ndarray:
    clips = array.ndim == 4 or (array.ndim == 3 and array.shape[2] != 3)
    if clips and (index is not None or array.shape[0] == 1):
        if not -array.shape[0] <= (index or 0) < array.shape[0]:
            raise FileError(f"{name} holds {array.shape[0]} clips; there is no clip {index}.")
        array = array[index or 0]
    elif clips:
        raise FileError(
            f"{name} has the shape {array.shape}: {array.shape[0]} clips, it seems. Pass index=0 for the first."
        )
    if array.shape[:1] == (0,):
        raise FileError(f"{name} is empty: its shape is {array.shape}.")
    return array


def _stored_skeleton(notes: dict[str, Any]) -> Skeleton | None:
    offsets = notes.get("joint_offsets")
    if offsets is None:
        return None
    return smpl22().with_offsets(torch.tensor(offsets, dtype=torch.float32))


def _joints(array: np.ndarray, fps: float, up: str | None, meta: dict[str, Any], name: str) -> Motion:
    if array.ndim == 2 and array.shape[1] % 3 == 0:
        array = array.reshape(len(array), -1, 3)
    if array.ndim != 3 or array.shape[1] < 22 or array.shape[2] != 3:
        raise FileError(f"{name} has the shape {array.shape}; joint positions are (T, 22, 3).")
    if array.shape[1] > 22:
        meta["dropped"] = f"{array.shape[1] - 22} joints (hands, face)"
    joints = torch.from_numpy(array[:, :22].copy())
    if (up or standing_axis(joints)) == "z":
        joints, meta["up_axis"] = joints @ Z_UP.double().T, "z"
    skeleton = measured_skeleton(joints)
    height = skeleton.rest_height
    if 30 < height < 3000:  # millimetres or centimetres
        unit = 0.01 if height < 300 else 0.001
        joints, meta["unit"] = joints * unit, "cm" if unit == 0.01 else "mm"
        skeleton = skeleton.with_offsets(skeleton.offsets * unit)
    elif not 0.1 < height <= 30:
        raise FileError(
            f"{name} holds joints of a body of {height:.3g} m; expected metres, centimetres or millimetres."
        )
    from vadis.representations.solve import solve_rotations

    rotations = solve_rotations(joints, skeleton)
    meta["note"] = "rotations solved from positions"
    return Motion(skeleton, joints[:, 0].float(), rotations.float(), fps, meta)


def measured_skeleton(joints: Tensor) -> Skeleton:
    """smpl22 in T-pose with the median bone lengths of joints `(T, 22, 3)`."""
    base = smpl22()
    lengths = (joints[:, 1:] - joints[:, list(SMPL22_PARENTS[1:])]).norm(dim=-1).median(0).values
    rest = base.offsets[1:] / base.offsets[1:].norm(dim=-1, keepdim=True) * lengths[:, None].float()
    return base.with_offsets(torch.cat([torch.zeros(1, 3), rest]))


def _table(array: np.ndarray, fps: float, up: str | None, meta: dict[str, Any], name: str) -> Motion:
    if array.ndim == 3:
        array = array.reshape(len(array), -1)
    if array.ndim != 2 or array.shape[1] < 66:
        raise FileError(f"{name} has the shape {array.shape}; SMPL tables are (T, 66) or wider.")
    trans = TABLES.get(array.shape[1])
    rotations, root = from_smpl_table(array, trans, name)
    meta["pelvis_offset" if trans else "no_translation"] = "approximate" if trans else True
    motion = Motion(smpl22(), root.float(), rotations.float(), fps, meta)
    if (up or standing_axis(motion.positions)) == "z":
        turned = torch.cat([Z_UP.double() @ rotations[:, :1], rotations[:, 1:]], dim=1)
        motion = motion.replace(root=(root @ Z_UP.double().T).float(), rotations=turned.float())
        motion.meta["up_axis"] = "z"
    return motion


def save_npy(
    motion: Motion, path: str | Path, representation: str | None = None, notes: bool = True, **options: Any
) -> Path:
    """Write features of a representation, or joint positions `(T, J, 3)` in metres, as float32.

    Args:
        motion: for a representation on its skeleton and at its frame rate.
        path: the file.
        representation: a name that `vadis.representation` knows; None or "joints" for positions.
        notes: also write the sidecar `NAME.npy.json` with frame rate, representation, joint names and offsets.
        options: of the representation's `encode`.

    Raises what `encode` raises for a motion that doesn't fit, and FileError for a path that can't be written.
    """
    path = Path(path)
    if not notes and sidecar(path).is_file():  # notes of an older file under this name would describe the new one
        raise FileError(f"{sidecar(path)} describes an older file of this name: delete it, or write with notes=True.")
    if representation in (None, "joints"):
        array = motion.positions.float().numpy()
    else:
        from vadis.representations import representation as find

        array = find(representation).encode(motion, **options).float().cpu().numpy()
    name = representation or "joints"
    if motion.skeleton.names != SMPL22_NAMES and name == "joints":
        name = f"joints of {motion.skeleton.name or 'an unnamed skeleton'}"
    return write_array(array, path, name, motion.fps, motion.skeleton, notes)


def write_array(
    array: np.ndarray, path: Path, representation: str, fps: float, skeleton: Skeleton | None, notes: bool = True
) -> Path:
    """Write an array and, with `notes`, the sidecar that says what it holds. Raises FileError."""
    page: dict[str, Any] = {"representation": representation, "fps": fps}
    if skeleton is not None:
        page["joint_names"] = list(skeleton.names)
        page["joint_offsets"] = [[round(value, 7) for value in row] for row in skeleton.offsets.tolist()]
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    if notes:
        with atomic_write(sidecar(path)) as temporary:
            temporary.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    return path
