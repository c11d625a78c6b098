"""BVH: the text format of motion capture. Any hierarchy, channel order and unit; joints may carry positions too.

Position channels replace the joint's OFFSET (for the root as well). A `Motion` moves only its root: constant positions
of other joints become their offsets, a moving hip under a static root becomes the root, and anything else that moves is
averaged and said in `meta["moving_offsets"]`.
"""

from pathlib import Path

import numpy as np
import torch

from vadis import rotation
from vadis.errors import FileError
from vadis.motion import Motion
from vadis.skeleton import Skeleton

UNITS = {"cm": 0.01, "m": 1.0, "mm": 0.001, "inch": 0.0254, "asf": 0.0254 / 0.45}
"""Metres per file unit, in the order in which they are tried; "asf" is the CMU database's own length unit."""


def longest_chain(skeleton: Skeleton) -> float:
    """Length of the longest chain of bones from the root, about 1.1 m for a human at any pose."""
    lengths = skeleton.offsets.norm(dim=-1).tolist()
    reach = [0.0] * skeleton.num_joints
    for j, p in enumerate(skeleton.parents[1:], start=1):
        reach[j] = reach[p] + lengths[j]
    return max(reach)


def guess_unit(skeleton: Skeleton) -> str | None:
    """Name of the length unit in which this skeleton has the size of a person, or None."""
    size = longest_chain(skeleton)
    fits = [unit for unit, metres in UNITS.items() if 0.5 <= size * metres <= 2.0]
    return min(fits, key=lambda u: abs(np.log(size * UNITS[u] / 1.15))) if fits else None


class _Joint:
    def __init__(self, name: str, parent: int):
        self.name, self.parent = name, parent
        self.offset: list[float] = [0.0, 0.0, 0.0]
        self.channels: list[str] = []
        self.end_site: list[float] | None = None


def _parse_hierarchy(lines: list[str], path: str) -> tuple[list[_Joint], int]:
    """Joints in file order and the number of the line after MOTION."""
    joints: list[_Joint] = []
    stack: list[int] = []
    in_end = False

    def fail(number: int, why: str) -> FileError:
        return FileError(f"{path}, line {number + 1}: {why}.")

    def numbers(words: list[str], count: int, number: int) -> list[float]:
        try:
            values = [float(w) for w in words]
        except ValueError:
            raise fail(number, f"expected {count} numbers, found {' '.join(words)[:60]!r}") from None
        if len(values) != count or not np.isfinite(values).all():
            raise fail(number, f"expected {count} finite numbers, found {' '.join(words)[:60]!r}")
        return values

    pending: int | None = None
    for number, line in enumerate(lines):
        words = line.split()
        if not words:
            continue
        head = words[0].upper()
        if head == "MOTION":
            if stack:
                raise fail(number, f"{len(stack)} joints are still open: a closing brace is missing")
            if not joints:
                raise fail(number, "no ROOT joint before MOTION")
            return joints, number + 1
        if head in ("ROOT", "JOINT"):
            if head == "JOINT" and not stack:
                raise fail(number, "a JOINT outside of any ROOT")
            if head == "ROOT" and joints:
                raise fail(number, "a second ROOT; files with several bodies are not supported, split them first")
            name = " ".join(words[1:]).rstrip("{").strip() or f"joint{len(joints)}"
            joints.append(_Joint(name, stack[-1] if stack else -1))
            pending = len(joints) - 1
        elif head == "END":
            in_end = True
        elif head == "{":
            if not in_end:
                if pending is None:
                    raise fail(number, "an opening brace without a joint")
                stack.append(pending)
                pending = None
        elif head == "}":
            if in_end:
                in_end = False
            elif stack:
                stack.pop()
            else:
                raise fail(number, "a closing brace too many")
        elif head == "OFFSET":
            values = numbers(words[1:], 3, number)
            if in_end and stack:
                joints[stack[-1]].end_site = values
            elif stack:
                joints[stack[-1]].offset = values
            else:
                raise fail(number, "an OFFSET outside of any joint")
        elif head == "CHANNELS":
            if not stack or in_end:
                raise fail(number, "CHANNELS outside of any joint")
            names = [w[0].upper() + w[1:].lower() for w in words[2:]]
            known = {a + k for a in "XYZ" for k in ("position", "rotation")}
            if len(words) < 2 or words[1] != str(len(names)) or not set(names) <= known or len(set(names)) != len(names):
                raise fail(number, f"channels that can't be read: {' '.join(words[1:])[:80]!r}")
            joints[stack[-1]].channels = names
        elif head != "HIERARCHY":
            raise fail(number, f"expected a BVH keyword, found {line.strip()[:40]!r}")
        if words[-1].endswith("{") and head in ("ROOT", "JOINT", "END") and len(words) > 1:
            if head != "END" and pending is not None:
                stack.append(pending)
                pending = None
    raise FileError(f"{path}: no MOTION section; the file is cut off or not a BVH file.")


def load_bvh(path: str | Path, unit: str | None = None) -> Motion:
    """Read a BVH file.

    Args:
        path: the file.
        unit: a name in `UNITS`; by default the one in which the skeleton has the size of a person.

    Raises FileError, naming the line, when the file is damaged.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror}.") from error
    lines = text.splitlines()
    joints, at = _parse_hierarchy(lines, path.name)
    while at < len(lines) and not lines[at].strip():
        at += 1
    try:
        frames = int(lines[at].split(":")[1])
        frame_time = float(lines[at + 1].split(":")[1])
    except (IndexError, ValueError):
        raise FileError(f"{path.name}, line {at + 1}: expected 'Frames: N' and 'Frame Time: seconds' after MOTION.") from None
    if frames < 1 or not 1e-5 < frame_time < 10:
        raise FileError(f"{path.name}: {frames} frames of {frame_time} s; expected at least one frame and a time above 0.")
    count = sum(len(j.channels) for j in joints)
    values = np.fromstring(" ".join(lines[at + 2 :]), sep=" ", dtype=np.float64)
    if values.size != frames * count:
        raise FileError(f"{path.name}: {frames} frames of {count} channels need {frames * count} numbers, found {values.size}.")
    if not np.isfinite(values).all():
        raise FileError(f"{path.name}: the motion holds NaN or infinite values.")
    return _assemble(joints, values.reshape(frames, count), frame_time, unit, path)


def _snap_fps(frame_time: float) -> float:
    fps = 1.0 / frame_time
    return float(round(fps)) if abs(fps - round(fps)) < 2e-4 * fps else fps


def _assemble(joints: list[_Joint], values: np.ndarray, frame_time: float, unit: str | None, path: Path) -> Motion:
    frames, total = len(values), len(joints)
    offsets = np.array([j.offset for j in joints])
    rotations = torch.eye(3).expand(frames, total, 3, 3).clone()
    translations: dict[int, np.ndarray] = {}
    column = 0
    for j, joint in enumerate(joints):
        block = values[:, column : column + len(joint.channels)]
        column += len(joint.channels)
        turns = [k for k, c in enumerate(joint.channels) if c.endswith("rotation")]
        if turns:
            order = "".join(joint.channels[k][0] for k in turns)
            rotations[:, j] = rotation.from_euler(torch.from_numpy(np.radians(block[:, turns])), order).float()
        moves = [k for k, c in enumerate(joint.channels) if c.endswith("position")]
        if moves:
            moved = np.tile(offsets[j], (frames, 1))
            moved[:, ["XYZ".index(joint.channels[k][0]) for k in moves]] = block[:, moves]
            translations[j] = moved
    root_path = translations.get(0, np.tile(offsets[0], (frames, 1)))
    offsets[0] = 0
    names, parents = _unique([j.name for j in joints]), [j.parent for j in joints]
    ends = {j: joint.end_site for j, joint in enumerate(joints) if joint.end_site is not None}
    meta: dict[str, object] = {"file": path.name}
    size = max(np.linalg.norm(offsets, axis=1).max(), 1e-9)
    for j, moved in translations.items():
        if j:
            spread = float(np.abs(moved - moved.mean(0)).max())
            only_child = parents[j] == 0 and parents.count(0) == 1 and j == 1
            if spread > 1e-3 * size and only_child:  # a hip that travels below a static root: make it the root
                world = rotations[:, 0].double().numpy()
                root_path = root_path + (world @ moved[..., None])[..., 0]
                rotations[:, 1] = rotations[:, 0] @ rotations[:, 1]
                meta["dropped_root"] = names[0]
                continue
            offsets[j] = moved.mean(0)
            if spread > 1e-3 * size:
                meta.setdefault("moving_offsets", {})[names[j]] = spread  # type: ignore[index]
    start = 1 if "dropped_root" in meta else 0
    offsets[start] = 0
    skeleton = Skeleton(
        tuple(names[start:]),
        tuple(p - start if j > start else -1 for j, p in enumerate(parents) if j >= start),
        torch.tensor(offsets[start:], dtype=torch.float32),
        end_sites={j - start: torch.tensor(e, dtype=torch.float32) for j, e in ends.items() if j >= start},
    )
    unit = unit or guess_unit(skeleton) or "cm"
    scale = UNITS[unit]
    skeleton = Skeleton(
        skeleton.names,
        skeleton.parents,
        skeleton.offsets * scale,
        end_sites={j: e * scale for j, e in skeleton.end_sites.items()},
    )
    meta["unit"] = unit
    root = torch.tensor(root_path * scale, dtype=torch.float32)
    return Motion(skeleton, root, rotations[:, start:].contiguous(), _snap_fps(frame_time), meta)


def _unique(names: list[str]) -> list[str]:
    """Names with a suffix on repetitions."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result
