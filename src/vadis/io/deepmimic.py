"""DeepMimic clips (Peng et al., 2018): JSON with 44 numbers per frame for a humanoid of 15 joints that faces +X at rest.

A frame is its duration, the root's position and rotation, then local rotations: quaternions w, x, y, z for ball joints,
one angle in radians about z for knees and elbows; wrists don't turn. Y up, metres. The order is chest, neck, right hip,
knee, ankle, shoulder, elbow, then the same on the left.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import FileError
from vadis.motion import Motion
from vadis.records import parse_json, read_bytes
from vadis.skeleton import Skeleton, chain_offsets

_JOINTS: tuple[tuple[str, int, tuple[float, float, float], int], ...] = (  # name, parent, offset (m), values per frame
    ("root", -1, (0.0, 0.0, 0.0), 4),
    ("chest", 0, (0.0, 0.236151, 0.0), 4),
    ("neck", 1, (0.0, 0.223894, 0.0), 4),
    ("right_hip", 0, (0.0, 0.0, 0.084887), 4),
    ("right_knee", 3, (0.0, -0.421546, 0.0), 1),
    ("right_ankle", 4, (0.0, -0.40987, 0.0), 4),
    ("right_shoulder", 1, (-0.02405, 0.2435, 0.18311), 4),
    ("right_elbow", 6, (0.0, -0.274788, 0.0), 1),
    ("right_wrist", 7, (0.0, -0.258947, 0.0), 0),
    ("left_hip", 0, (0.0, 0.0, -0.084887), 4),
    ("left_knee", 9, (0.0, -0.421546, 0.0), 1),
    ("left_ankle", 10, (0.0, -0.40987, 0.0), 4),
    ("left_shoulder", 1, (-0.02405, 0.2435, -0.18311), 4),
    ("left_elbow", 12, (0.0, -0.274788, 0.0), 1),
    ("left_wrist", 13, (0.0, -0.258947, 0.0), 0),
)
WIDTH = 4 + sum(values for *_, values in _JOINTS)  # 44
_MAX_FRAMES = 1_000_000


def humanoid() -> Skeleton:
    """The humanoid of the published clips: 15 joints, arms hanging, facing +X, right side +Z."""
    offsets = chain_offsets([offset for _, _, offset, _ in _JOINTS])
    return Skeleton(tuple(n for n, *_ in _JOINTS), tuple(p for _, p, *_ in _JOINTS), offsets, "deepmimic15")


def load_deepmimic(
    path: str | Path, character: str | Path | None = None, fps: float | None = None, max_bytes: int = 1 << 30
) -> Motion:
    """Read a DeepMimic clip.

    Args:
        path: the `.json` file.
        character: a character file with other bone lengths for the same joints.
        fps: frame rate to use instead of the stored frame durations. Uneven durations are resampled to their median.
        max_bytes: refuse larger files.

    `meta["loop"]` holds the file's loop mode. Raises FileError for a damaged file or one of another kind.
    """
    path = Path(path)
    page = _read_json(path, max_bytes)
    if not isinstance(page, dict) or not isinstance(page.get("Frames"), list):
        raise FileError(f"{path.name} is JSON but not a DeepMimic clip: there is no list called 'Frames'.")
    if not isinstance(loop := page.get("Loop"), str | None):
        raise FileError(f"{path.name}: 'Loop' is {loop!r:.60}; expected text such as 'wrap' or 'none'.")
    rows = page["Frames"]
    if not 0 < len(rows) <= _MAX_FRAMES:
        raise FileError(f"{path.name}: {len(rows)} frames; expected 1 to {_MAX_FRAMES}.")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != WIDTH:
            found = f"{len(row)} numbers" if isinstance(row, list) else type(row).__name__
            raise FileError(f"{path.name}: frame {number} has {found}; the humanoid needs {WIDTH} numbers per frame.")
        if not all(type(value) in (int, float) and abs(value) < 1e9 for value in row):  # False for NaN and infinity
            raise FileError(f"{path.name}: frame {number} holds something that isn't a finite number.")
    values = torch.tensor(np.array(rows, dtype=np.float64))
    skeleton = humanoid() if character is None else _character(Path(character), max_bytes)
    root, rotations = _decode(values, path.name)
    meta = {"file": path.name, "loop": loop}
    durations = values[:-1, 0] if len(values) > 1 else values[:, 0]
    if fps is None:
        step = float(durations.median())
        if not 1e-5 < step < 10:
            raise FileError(f"{path.name}: frames last {step} s; expected 0.00001 to 10 s, or pass fps=.")
        if float((durations - step).abs().max()) > 0.02 * step:
            if float(durations.min()) < 0 or float(durations.sum()) > 100 * step * len(values):
                raise FileError(
                    f"{path.name}: frame durations from {durations.min():g} to {durations.max():g} s; pass fps=."
                )
            root, rotations = _resample(root, rotations, durations, step)
            meta["resampled"] = "uneven frame durations"
        from vadis.io.bvh import snap_fps

        fps = snap_fps(step)
    return Motion(skeleton, root.float(), rotations.float(), float(fps), meta)


def _read_json(path: Path, max_bytes: int) -> Any:
    return parse_json(read_bytes(path, max_bytes), path.name)


def _decode(values: Tensor, file: str) -> tuple[Tensor, Tensor]:
    """Root path `(T, 3)` and local rotations `(T, 15, 3, 3)`, float64, of frames `(T, 44)`."""
    rotations = torch.eye(3, dtype=torch.float64).repeat(len(values), len(_JOINTS), 1, 1)
    column = 4
    for j, (name, _, _, width) in enumerate(_JOINTS):
        block = values[:, column : column + width]
        column += width
        if width == 1:
            rotations[:, j] = rotation.from_euler(block, "Z")
        elif width == 4:
            lengths = block.norm(dim=-1)
            if (lengths < 0.1).any():
                frame = int((lengths < 0.1).nonzero()[0])
                raise FileError(f"{file}: frame {frame} has a quaternion of length {lengths[frame]:.3g} for {name}.")
            rotations[:, j] = rotation.from_quat_wxyz(block)
    return values[:, 1:4], rotations


def _resample(root: Tensor, rotations: Tensor, durations: Tensor, step: float) -> tuple[Tensor, Tensor]:
    times = torch.cat([torch.zeros(1, dtype=torch.float64), durations.cumsum(0)])
    wanted = torch.arange(int(float(times[-1]) / step + 1e-6) + 1) * step
    high = torch.searchsorted(times, wanted).clamp(1, len(times) - 1)
    low = high - 1
    weight = ((wanted - times[low]) / (times[high] - times[low]).clamp_min(1e-9)).clamp(0, 1)
    path = torch.lerp(root[low], root[high], weight[:, None])
    return path, rotation.slerp(rotations[low], rotations[high], weight[:, None])


def _character(path: Path, max_bytes: int) -> Skeleton:
    """The humanoid with the bone lengths of a DeepMimic character file."""
    base, page = humanoid(), _read_json(path, max_bytes)
    try:
        joints = page["Skeleton"]["Joints"]
        found = {str(j["Name"]): (int(j["Parent"]), [float(j[f"Attach{a}"]) for a in "XYZ"]) for j in joints}
        parents = [str(joints[found[name][0]]["Name"]) if found[name][0] >= 0 else "" for name in base.names]
    except (KeyError, TypeError, ValueError, IndexError):
        raise FileError(f"{path.name} is not a DeepMimic character file of the humanoid's 15 joints.") from None
    if parents != [base.names[p] if p >= 0 else "" for p in base.parents]:
        raise FileError(f"{path.name} connects its joints otherwise than the humanoid: only bone lengths may differ.")
    offsets = chain_offsets([found[name][1] for name in base.names])
    offsets[0] = 0
    if not torch.isfinite(offsets).all():
        raise FileError(f"{path.name} holds attachment points that aren't finite numbers.")
    return base.with_offsets(offsets)
