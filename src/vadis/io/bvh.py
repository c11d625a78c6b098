"""BVH: the text format of motion capture. Any hierarchy, channel order and unit; joints may carry positions too.

Position channels replace the joint's OFFSET (for the root as well). A `Motion` moves only its root: constant positions
of other joints become their offsets, a moving hip under a static root becomes the root, and anything else that moves is
averaged and said in `meta["moving_offsets"]`. `vadis.io.bvh_writer` is the other direction.
"""

import re
from pathlib import Path

import numpy as np
import torch

from vadis import rotation
from vadis.errors import FileError
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, Skeleton, smpl22

UNITS = {"cm": 0.01, "m": 1.0, "mm": 0.001, "inch": 0.0254, "asf": 0.0254 / 0.45}
"""Metres per file unit; "asf" is the CMU database's own length unit."""
_PERSON = {"m": (0.4, 2.5), "cm": (58, 300), "mm": (400, 3000), "inch": (28, 58), "asf": (10, 28)}
"""Length of the longest chain of bones that makes a file unit plausible; adults measure 1 to 1.4 m."""
MAX_JOINTS = 2000
MAX_VALUES = 200_000_000
Z_UP = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Turns Z-up coordinates into Y-up ones: (x, y, z) -> (x, z, -y)."""
_CHANNELS = {f"{axis}{kind}" for axis in "XYZ" for kind in ("position", "rotation")}
_HEADER = re.compile(r"\s*frames\s*:?\s*(\S+)\s+frame\s+time\s*:?\s*(\S+)[^\S\n]*", re.IGNORECASE)


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
    return next((unit for unit, (low, high) in _PERSON.items() if low <= size < high), None)


class _Joint:
    def __init__(self, name: str, parent: int, line: int):
        self.name, self.parent, self.line = name, parent, line
        self.offset: list[float] | None = None
        self.channels: list[str] = []
        self.end_site: list[float] | None = None


class _Hierarchy:
    """The part above MOTION, statement by statement; `joints` are in file order, parents first."""

    def __init__(self, text: str, file: str):
        self.file, self.joints = file, list[_Joint]()
        stack: list[int | None] = []  # open braces: a joint, or None for an end site
        opening: int | None = None
        awaits_brace = False
        number = 0
        for number, line in enumerate(text.split("\n"), start=1):
            for statement in re.split(r"([{}])", line) if "{" in line or "}" in line else (line,):
                words = statement.split()
                if not words:
                    continue
                head = words[0].upper()
                if awaits_brace and head != "{":
                    raise self._fail(number, f"expected an opening brace, found {statement.strip()[:40]!r}")
                if head in ("ROOT", "JOINT"):
                    if head == "ROOT" and self.joints:
                        raise self._fail(number, "a second ROOT; split files with several bodies first")
                    if head == "JOINT" and (not stack or stack[-1] is None):
                        raise self._fail(number, "a JOINT outside of any ROOT")
                    parent = stack[-1] if stack else None
                    opening, awaits_brace = len(self.joints), True
                    self.joints.append(
                        _Joint(" ".join(words[1:]) or f"joint{opening}", -1 if parent is None else parent, number)
                    )
                    if len(self.joints) > MAX_JOINTS:
                        raise self._fail(number, f"more than {MAX_JOINTS} joints")
                elif head == "END":
                    opening, awaits_brace = None, True
                    if not stack or stack[-1] is None:
                        raise self._fail(number, "an End Site outside of any joint")
                elif head == "{":
                    if not awaits_brace:
                        raise self._fail(number, "an opening brace without a joint")
                    stack.append(opening)
                    awaits_brace = False
                elif head == "}":
                    if not stack:
                        raise self._fail(number, "a closing brace too many")
                    stack.pop()
                elif head == "OFFSET":
                    self._offset(stack, words[1:], number)
                elif head == "CHANNELS":
                    self._channels(stack, words[1:], number)
                elif head != "HIERARCHY":
                    raise self._fail(number, f"expected a BVH keyword, found {statement.strip()[:40]!r}")
        if stack or awaits_brace:
            raise self._fail(number, f"{len(stack)} closing braces are missing before MOTION")
        if not self.joints:
            raise self._fail(number, "no ROOT joint before MOTION")
        for joint in self.joints:
            if joint.offset is None:
                raise self._fail(joint.line, f"joint {joint.name[:40]!r} has no OFFSET")

    def _fail(self, number: int, why: str) -> FileError:
        return FileError(f"{self.file}, line {number}: {why}.")

    def _offset(self, stack: list[int | None], words: list[str], number: int) -> None:
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != 3 or not all(abs(value) < 1e9 for value in values):
            raise self._fail(number, f"OFFSET needs 3 numbers, found {' '.join(words)[:60]!r}")
        if not stack:
            raise self._fail(number, "an OFFSET outside of any joint")
        if stack[-1] is not None:
            self.joints[stack[-1]].offset = values
        elif len(stack) > 1 and (owner := stack[-2]) is not None:
            self.joints[owner].end_site = values

    def _channels(self, stack: list[int | None], words: list[str], number: int) -> None:
        if not stack or stack[-1] is None:
            raise self._fail(number, "CHANNELS outside of any joint")
        names = [word[0].upper() + word[1:].lower() for word in words[1:]]
        if not words or words[0] != str(len(names)) or not set(names) <= _CHANNELS or len(set(names)) != len(names):
            raise self._fail(number, f"channels that can't be read: {' '.join(words)[:80]!r}")
        self.joints[stack[-1]].channels = names


def load_bvh(
    path: str | Path,
    unit: str | None = None,
    *,
    up: str | None = None,
    partial: bool = False,
    drop_first_frame: bool = False,
    max_bytes: int = 4 << 30,
) -> Motion:
    """Read a BVH file.

    Args:
        path: the file.
        unit: a name in `UNITS`; by default the one in which the skeleton has the size of a person.
        up: "y" or "z"; by default z only when both the rest pose and the motion stand along z.
        partial: of a file that is cut off, take the whole frames that are there.
        drop_first_frame: leave out frame 0, which several tools fill with the rest pose.
        max_bytes: refuse larger files.

    Raises FileError, naming the line, when the file is damaged.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise FileError(f"{path.name} has {size} bytes, more than {max_bytes}: pass max_bytes if that is right.")
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror}.") from error
    return parse_bvh(data, path.name, unit, up=up, partial=partial, drop_first_frame=drop_first_frame)


def parse_bvh(
    data: bytes,
    file: str = "BVH data",
    unit: str | None = None,
    *,
    up: str | None = None,
    partial: bool = False,
    drop_first_frame: bool = False,
) -> Motion:
    """The motion in the bytes of a BVH file; `file` is its name in errors. Options and errors as in `load_bvh`."""
    if unit is not None and unit not in UNITS:
        raise FileError(f"unknown unit {unit!r}: use one of {', '.join(UNITS)}.")
    if up not in (None, "y", "z"):
        raise FileError(f"unknown up axis {up!r}: use 'y' or 'z'.")
    text = _decode(data)
    found = re.search(r"^[^\S\n]*MOTION\b", text, re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise FileError(f"{file}: no MOTION section; the file is cut off or not a BVH file.")
    joints = _Hierarchy(text[: found.start()], file).joints
    count = sum(len(joint.channels) for joint in joints)
    if count == 0:
        raise FileError(f"{file}: no joint has any channel, so nothing can move.")
    values, frame_time = _parse_motion(text, found.end(), count, file, partial)
    if drop_first_frame:
        if len(values) < 2:
            raise FileError(f"{file}: one frame only, nothing is left without the first.")
        values = values[1:]
    return _assemble(joints, values, frame_time, unit, up, file)


def _decode(data: bytes) -> str:
    """Text with plain newlines: UTF-8, UTF-16 with a mark, or else Latin-1 (old exporters, names with accents)."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _parse_motion(text: str, at: int, count: int, file: str, partial: bool) -> tuple[np.ndarray, float]:
    """Channel values `(T, count)` float64 and the frame time in seconds."""
    line = text.count("\n", 0, at) + 1
    header = _HEADER.match(text, at)
    try:
        frames, frame_time = (int(header[1]), float(header[2])) if header else (-1, -1.0)
    except ValueError:
        header = None
        frames, frame_time = -1, -1.0
    if header is None:
        raise FileError(f"{file}, line {line}: expected 'Frames: N' and 'Frame Time: seconds' after MOTION.")
    line = text.count("\n", 0, header.end()) + 1
    if frames < 1 or not 1e-5 <= frame_time <= 10:
        raise FileError(
            f"{file}, line {line}: {frames} frames of {frame_time} s; expected at least one frame and a time of 0.00001 to 10 s."
        )
    if frames * count > MAX_VALUES:
        raise FileError(f"{file}, line {line}: {frames} frames of {count} channels are more than {MAX_VALUES} numbers.")
    body = text[header.end() :].strip()
    try:
        values = np.fromstring(body.encode("ascii", "replace"), sep=" ", dtype=np.float64) if body else np.zeros(0)
    except ValueError:
        values = np.zeros(0)
    if values.size != frames * count or not np.isfinite(values).all() or np.abs(values).max() > 1e9:
        values = _by_lines(text, header.end(), line, frames, count, file, partial)
    return values.reshape(-1, count), frame_time


def _by_lines(text: str, at: int, line: int, frames: int, count: int, file: str, partial: bool) -> np.ndarray:
    """The slow road for files that are not in order: names the first line that is wrong, or keeps the good ones before it."""
    rows: list[list[float]] = []
    why = ""
    for number, words in enumerate(map(str.split, text[at:].split("\n")), start=line):
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            why = f"line {number}: {' '.join(words)[:60]!r} holds something that isn't a number"
            break
        if len(row) != count:
            why = f"line {number}: expected {count} numbers, found {len(row)}"
            break
        if not all(abs(value) <= 1e9 for value in row):
            why = f"line {number}: the motion holds NaN, infinite or absurdly large values"
            break
        if len(rows) == frames:
            why = f"line {number}: more than the {frames} frames that the header promises"
            break
        rows.append(row)
    if partial and rows:
        return np.array(rows)
    if not why:
        why = f"the header promises {frames} frames, the file holds {len(rows)}: it is cut off (partial=True reads what is there)"
    raise FileError(f"{file}, {why}." if why.startswith("line") else f"{file}: {why}.")


def snap_fps(frame_time: float) -> float:
    """Frames per second of a frame time that was rounded in print: 0.008333 is 120, 0.033367 is 29.97."""
    fps = 1.0 / frame_time
    for known in (round(fps), 24000 / 1001, 30000 / 1001, 60000 / 1001):
        if known and abs(fps - known) < 2e-4 * fps:
            return float(known)
    return fps


def _assemble(
    joints: list[_Joint], values: np.ndarray, frame_time: float, unit: str | None, up: str | None, file: str
) -> Motion:
    frames, total = len(values), len(joints)
    offsets = np.array([joint.offset for joint in joints], dtype=np.float64)
    rotations = torch.eye(3).expand(frames, total, 3, 3).clone()
    translations: dict[int, np.ndarray] = {}
    turning: dict[str, list[tuple[int, list[int]]]] = {}  # rotation order -> (joint, its columns): one call an order
    column = 0
    for j, joint in enumerate(joints):
        turns = [column + k for k, c in enumerate(joint.channels) if c.endswith("rotation")]
        if turns:
            turning.setdefault("".join(joint.channels[k - column][0] for k in turns), []).append((j, turns))
        moves = [column + k for k, c in enumerate(joint.channels) if c.endswith("position")]
        if moves:
            moved = np.tile(offsets[j], (frames, 1))
            moved[:, ["XYZ".index(joint.channels[k - column][0]) for k in moves]] = values[:, moves]
            translations[j] = moved
        column += len(joint.channels)
    for order, places in turning.items():
        angles = torch.from_numpy(np.radians(values[:, [columns for _, columns in places]]))  # (T, joints, 1 to 3)
        rotations[:, [j for j, _ in places]] = rotation.from_euler(angles, order).float()
    root_path = translations.get(0, np.tile(offsets[0], (frames, 1)))
    offsets[0] = 0
    names, parents = unique_names([joint.name for joint in joints]), [joint.parent for joint in joints]
    meta: dict[str, object] = {"file": file}
    size = max(np.linalg.norm(offsets, axis=1).max(), 1e-9)
    moving: dict[str, float] = {}
    start = 0
    for j, moved in translations.items():
        if j == 0:
            continue
        if j == 1 and _is_hip_below_root(joints):
            # a hip that travels below a root that stands still: make it the root
            world = rotations[:, 0].double().numpy()
            root_path = root_path + (world @ moved[..., None])[..., 0]
            rotations[:, 1] = rotations[:, 0] @ rotations[:, 1]
            meta["dropped_root"] = names[0]
            start = 1
            continue
        spread = float(np.abs(moved - moved.mean(0)).max())
        offsets[j] = moved.mean(0)
        if spread > 1e-3 * size:
            moving[names[j]] = spread
    offsets[start] = 0
    skeleton = Skeleton(
        tuple(names[start:]),
        tuple(p - start if j > start else -1 for j, p in enumerate(parents) if j >= start),
        torch.tensor(offsets[start:], dtype=torch.float32),
        end_sites={
            j - start: torch.tensor(joint.end_site)
            for j, joint in enumerate(joints)
            if j >= start and joint.end_site is not None
        },
    )
    unit = unit or guess_unit(skeleton) or "cm"
    scale = UNITS[unit]
    ends = {j: e * scale for j, e in skeleton.end_sites.items()}
    skeleton = Skeleton(skeleton.names, skeleton.parents, skeleton.offsets * scale, end_sites=ends)
    meta["unit"] = unit
    if moving:
        meta["moving_offsets"] = {name: spread * scale for name, spread in moving.items()}  # metres
    root = torch.tensor(root_path * scale, dtype=torch.float32)
    motion = Motion(skeleton, root, rotations[:, start:].contiguous(), snap_fps(frame_time), meta)
    if up == "z" or (up is None and stands_along_z(motion)):
        motion = change_axes(motion, Z_UP)
        motion.meta["up_axis"] = "z"
    return _in_smpl_order(motion)


def _is_hip_below_root(joints: list[_Joint]) -> bool:
    """Whether the root has one child only and that child has a place of its own in every frame (Bandai-Namco files)."""
    only_child = sum(joint.parent == 0 for joint in joints) == 1
    return only_child and sum(channel.endswith("position") for channel in joints[1].channels) == 3 and len(joints) > 2


def stands_along_z(motion: Motion) -> bool:
    """Whether a body with known joint names stands along z both at rest and, on average, while moving."""
    from vadis.retargeting import recognize_skeleton  # a floor up, only to know which joints are head and feet

    mapping = recognize_skeleton(motion.skeleton)
    if mapping is None:
        return False
    top = motion.skeleton.index(mapping.joints.get("head", mapping.joints["left_shoulder"]))
    feet = [motion.skeleton.index(mapping.joints[f"{side}_ankle"]) for side in ("left", "right")]
    some = motion.crop().replace(
        root=motion.root[:: max(motion.num_frames // 200, 1)],
        rotations=motion.rotations[:: max(motion.num_frames // 200, 1)],
    )
    rest = motion.skeleton.rest_positions
    bodies = (rest[top] - rest[feet].mean(0), (some.positions[:, top] - some.positions[:, feet].mean(1)).mean(0))
    return all(float(body[2]) > 0.8 * float(body.norm()) > 0 for body in bodies)


def change_axes(motion: Motion, turn: torch.Tensor) -> Motion:
    """The same motion in a world, and a rest pose, turned by `turn` `(3, 3)`: every axis is renamed, nothing moves."""
    skeleton = motion.skeleton
    ends = {j: turn @ tip for j, tip in skeleton.end_sites.items()}
    turned = Skeleton(skeleton.names, skeleton.parents, skeleton.offsets @ turn.T, skeleton.name, ends)
    return motion.replace(skeleton=turned, root=motion.root @ turn.T, rotations=turn @ motion.rotations @ turn.T)


def reorder(motion: Motion, names: tuple[str, ...], name: str = "") -> Motion:
    """The same motion with its joints in another parent-before-child order."""
    old = motion.skeleton
    index = [old.index(n) for n in names]
    parents = tuple(-1 if old.parents[j] < 0 else names.index(old.names[old.parents[j]]) for j in index)
    ends = {index.index(j): tip for j, tip in sorted(old.end_sites.items(), key=lambda item: index.index(item[0]))}
    skeleton = Skeleton(names, parents, old.offsets[index], name or old.name, ends)
    return motion.replace(skeleton=skeleton, rotations=motion.rotations[:, index])


def _in_smpl_order(motion: Motion) -> Motion:
    """A file with exactly the 22 SMPL joints gives them in SMPL order (BVH is written branch by branch)."""
    if set(motion.skeleton.names) != set(SMPL22_NAMES) or motion.skeleton.names[0] != SMPL22_NAMES[0]:
        return motion
    up = {
        n: motion.skeleton.names[p] for n, p in zip(motion.skeleton.names[1:], motion.skeleton.parents[1:], strict=True)
    }
    known = smpl22()
    if any(up[n] != known.names[p] for n, p in zip(known.names[1:], known.parents[1:], strict=True)):
        return motion
    return reorder(motion, SMPL22_NAMES, "smpl22")


def unique_names(names: list[str]) -> list[str]:
    """Names with `_2`, `_3`, … on repetitions."""
    taken, result = set(names), list[str]()
    used: set[str] = set()
    for name in names:
        new, k = name, 2
        while new in used or (new != name and new in taken):
            new, k = f"{name}_{k}", k + 1
        used.add(new)
        result.append(new)
    return result
