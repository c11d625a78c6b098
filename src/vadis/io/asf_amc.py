"""Acclaim ASF (skeleton) + AMC (motion), the format of the CMU database.

A bone is a direction and a length in the world's axes at rest, and its channels turn it in an own frame C ("axis"). With M
the rotation of its channels, first channel applied first, the joint at the bone's start has the local rotation C M C^-1.
A joint carries the name of the bone that starts there; the last bones' far ends are end sites. Lengths are divided by the
file's `length` unit and taken as inches (CMU: value / 0.45 * 2.54 cm). The frame rate isn't stored.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import FileError
from vadis.io.bvh import MAX_JOINTS, MAX_VALUES, UNITS, guess_unit
from vadis.motion import Motion
from vadis.skeleton import Skeleton

_ROTATIONS = ("rx", "ry", "rz")
_CHANNELS = ("tx", "ty", "tz", *_ROTATIONS, "l")


class _Bone:
    def __init__(self, name: str, line: int):
        self.name, self.line = name, line
        self.direction, self.length = np.zeros(3), 0.0
        self.axis, self.axis_order = np.zeros(3), "XYZ"
        self.dof: list[str] = []


class _Asf:
    """A parsed ASF file: the root and bones by name, parents, units."""

    def __init__(self, data: bytes, file: str):
        self.file = file
        self.length, self.degrees = 1.0, True
        self.root = _Bone("root", 0)
        self.root.dof = ["tx", "ty", "tz", "rx", "ry", "rz"]
        self.root_position = np.zeros(3)
        self.bones: dict[str, _Bone] = {"root": self.root}
        self.parents: dict[str, str] = {}
        section, bone = "", None
        for number, line in enumerate(
            data.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1
        ):
            words = line.split("#")[0].split()
            if not words:
                continue
            head = words[0].lower()
            if head.startswith(":"):
                section, bone = head, None
                continue
            try:
                if section == ":units":
                    self._unit(head, words)
                elif section == ":root":
                    self._root_line(head, words)
                elif section == ":bonedata":
                    bone = self._bone_line(head, words, bone, number)
                elif section == ":hierarchy" and head not in ("begin", "end"):
                    self._parent_line(words)
            except (ValueError, IndexError) as error:
                why = str(error) if isinstance(error, _Bad) else f"can't read {line.strip()[:60]!r}"
                raise FileError(f"{file}, line {number}: {why}.") from None
        if len(self.bones) < 2 or not self.parents:
            raise FileError(f"{file}: no :bonedata or no :hierarchy section; the file is cut off or not an ASF file.")

    def _unit(self, head: str, words: list[str]) -> None:
        if head == "length":
            self.length = _numbers(words[1:2], 1)[0]
            if self.length <= 0:
                raise _Bad(f"the length unit must be positive, found {words[1]}")
        elif head == "angle":
            self.degrees = not words[1].lower().startswith("rad")

    def _root_line(self, head: str, words: list[str]) -> None:
        if head == "order":
            self.root.dof = _dof(words[1:])
        elif head == "axis":
            self.root.axis_order = _order(words[1])
        elif head == "position":
            self.root_position = _numbers(words[1:], 3)
        elif head == "orientation":
            self.root.axis = _numbers(words[1:], 3)

    def _bone_line(self, head: str, words: list[str], bone: _Bone | None, number: int) -> _Bone | None:
        if head == "begin":
            return _Bone("", number)
        if bone is None:
            raise _Bad(f"{words[0][:40]!r} outside of begin … end")
        if head == "end":
            if not bone.name or bone.name in self.bones:
                raise _Bad(f"the bone has no name of its own: {bone.name!r}")
            if len(self.bones) > MAX_JOINTS:
                raise _Bad(f"more than {MAX_JOINTS} bones")
            self.bones[bone.name] = bone
            return None
        if head == "name":
            bone.name = words[1]
        elif head == "direction":
            bone.direction = _numbers(words[1:], 3)
        elif head == "length":
            bone.length = float(_numbers(words[1:], 1)[0])
        elif head == "axis":
            bone.axis = _numbers(words[1:4], 3)
            bone.axis_order = _order(words[4]) if len(words) > 4 else "XYZ"
        elif head == "dof":
            bone.dof = _dof(words[1:])
        return bone

    def _parent_line(self, words: list[str]) -> None:
        for name in words:
            if name not in self.bones:
                raise _Bad(f"unknown bone {name[:40]!r}")
        for child in words[1:]:
            if child in self.parents or child == "root":
                raise _Bad(f"bone {child[:40]!r} has two parents")
            self.parents[child] = words[0]

    def order(self) -> list[str]:
        """Bone names, root first, branch by branch; FileError when the hierarchy leaves bones unconnected."""
        children: dict[str, list[str]] = {}
        for child, parent in self.parents.items():
            children.setdefault(parent, []).append(child)
        names, todo = [], ["root"]
        while todo:
            names.append(todo.pop())
            todo += reversed(children.get(names[-1], []))
        lost = [name for name in self.bones if name not in names]
        if lost:
            raise FileError(f"{self.file}: bones without a way to the root: {', '.join(lost[:5])}.")
        return names

    def frame(self, bone: _Bone) -> Tensor:
        """The bone's own axes C as a matrix `(3, 3)`, float64."""
        angles = np.radians(bone.axis) if self.degrees else bone.axis
        return _turn(torch.from_numpy(angles), bone.axis_order)


class _Bad(ValueError):
    """A reason to give for a line."""


def _numbers(words: list[str], count: int) -> np.ndarray:
    values = np.array([float(word) for word in words[:count]])
    if len(values) != count or not np.isfinite(values).all() or np.abs(values).max() > 1e9:
        raise _Bad(f"expected {count} finite numbers, found {' '.join(words)[:60]!r}")
    return values


def _order(word: str) -> str:
    if sorted(word.upper()) != ["X", "Y", "Z"]:
        raise _Bad(f"unknown axis order {word[:20]!r}")
    return word.upper()


def _dof(words: list[str]) -> list[str]:
    dof = [word.lower() for word in words]
    if not set(dof) <= set(_CHANNELS) or len(set(dof)) != len(dof):
        raise _Bad(f"unknown channels {' '.join(words)[:60]!r}")
    return dof


def _turn(angles: Tensor, order: str) -> Tensor:
    """Rotation `(..., 3, 3)` by radians `(..., n)` about the axes in `order`, the first one applied first."""
    return rotation.from_euler(angles.flip(-1), order[::-1])


def find_asf(path: Path) -> Path:
    """The skeleton that belongs to an AMC file: the one in its folder whose name the AMC's name begins with, or the only one."""
    found = sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".asf")
    fitting = [p for p in found if re.match(re.escape(p.stem) + r"($|[^0-9A-Za-z])", path.stem, re.IGNORECASE)]
    if fitting:
        return max(fitting, key=lambda p: len(p.stem))
    if len(found) == 1:
        return found[0]
    listed = f"{', '.join(p.name for p in found[:5])} are there" if found else "there is none"
    raise FileError(
        f"{path.name} needs its .asf skeleton beside it, with a name that it begins with; {listed}. Pass asf='PATH'."
    )


def load_amc(
    path: str | Path,
    asf: str | Path | None = None,
    fps: float = 120.0,
    unit: str | None = None,
    max_bytes: int = 4 << 30,
) -> Motion:
    """Read an AMC motion with its ASF skeleton.

    Args:
        path: the `.amc` file.
        asf: the skeleton; by default the fitting file in the same folder.
        fps: frames per second, which the format doesn't store. CMU recorded at 120, subjects 60 and 61 at 60.
        unit: a name in `vadis.io.bvh.UNITS` for plain lengths, instead of inches divided by the file's length unit.
        max_bytes: refuse larger files.

    Raises FileError, naming the line, when either file is damaged or the skeleton can't be found.
    """
    path = Path(path)
    try:
        skeleton_path = Path(asf) if asf is not None else find_asf(path)
        if path.stat().st_size > max_bytes:
            raise FileError(f"{path.name} has more than {max_bytes} bytes: pass max_bytes if that is right.")
        return parse_amc(path.read_bytes(), skeleton_path.read_bytes(), path.name, skeleton_path.name, fps, unit)
    except OSError as error:
        raise FileError(f"can't read {error.filename or path}: {error.strerror}.") from error


def load_asf(path: str | Path, **_: object) -> Motion:
    """An ASF file holds no motion: always a FileError that says which file to load."""
    raise FileError(f"{Path(path).name} is a skeleton without motion: load the .amc file that belongs to it.")


def parse_amc(
    amc: bytes,
    asf: bytes,
    file: str = "AMC data",
    asf_file: str = "ASF data",
    fps: float = 120.0,
    unit: str | None = None,
) -> Motion:
    """The motion in the bytes of an AMC and an ASF file; options and errors as in `load_amc`."""
    if unit is not None and unit not in UNITS:
        raise FileError(f"unknown unit {unit!r}: use one of {', '.join(UNITS)}.")
    body = _Asf(asf, asf_file)
    names = body.order()
    moving = [name for name in names if body.bones[name].dof]
    values, degrees = _parse_frames(amc, body, moving, file)

    ends = {name: body.bones[name].direction * body.bones[name].length for name in names}
    parents = tuple(-1 if name == "root" else names.index(body.parents[name]) for name in names)
    offsets = torch.from_numpy(np.stack([np.zeros(3) if p < 0 else ends[names[p]] for p in parents]))
    leaves = {j: torch.from_numpy(ends[name]) for j, name in enumerate(names) if j and j not in parents}
    scale = UNITS[unit] if unit else _scale(Skeleton(tuple(names), parents, offsets), body.length)
    tips = {j: (tip * scale).float() for j, tip in leaves.items()}
    skeleton = Skeleton(tuple(names), parents, (offsets * scale).float(), "asf", tips)

    frames = len(values["root"])
    rotations = torch.eye(3).expand(frames, len(names), 3, 3).clone()
    root = np.tile(body.root_position, (frames, 1))
    for j, name in enumerate(names):
        bone = body.bones[name]
        if name in values:
            turns = [k for k, c in enumerate(bone.dof) if c in _ROTATIONS]
            block = values[name]
            if turns:
                angles = torch.from_numpy(np.radians(block[:, turns]) if degrees else block[:, turns])
                frame = body.frame(bone)
                turned = frame @ _turn(angles, "".join(bone.dof[k][1].upper() for k in turns)) @ frame.T
                rotations[:, j] = turned.float()
            for k, channel in enumerate(bone.dof if name == "root" else []):
                if channel in ("tx", "ty", "tz"):
                    root[:, "xyz".index(channel[1])] += block[:, k]
    meta: dict[str, object] = {"file": file, "asf": asf_file, "fps_assumed": True}
    ignored = [n for n in moving if n != "root" and not set(body.bones[n].dof) <= set(_ROTATIONS)]
    if ignored:
        meta["ignored_translations"] = ignored
    return Motion(skeleton, torch.tensor(root * scale, dtype=torch.float32), rotations, float(fps), meta)


def _scale(skeleton: Skeleton, length: float) -> float:
    """Metres per file unit: inches over the length unit when that gives a person, else the unit that does."""
    scale = 0.0254 / length
    if guess_unit(skeleton.with_offsets(skeleton.offsets * scale)) == "m":
        return scale
    return UNITS[guess_unit(skeleton) or "cm"]


def _parse_frames(data: bytes, body: _Asf, moving: list[str], file: str) -> tuple[dict[str, np.ndarray], bool]:
    """Channel values `(T, n)` of every bone that moves, and whether angles are degrees."""
    text = data.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    start = re.search(r"^\s*\d+\s*$", text, re.MULTILINE)
    if start is None:
        raise FileError(f"{file}: no frame number on a line of its own; the file is cut off or not an AMC file.")
    head = text[: start.start()].lower()
    degrees = body.degrees if ":radians" not in head and ":degrees" not in head else ":radians" not in head
    text_body = text[start.start() :]
    width = 1 + sum(len(body.bones[name].dof) for name in moving)
    if len(text_body) // 2 > MAX_VALUES * 4:
        raise FileError(f"{file}: more than {MAX_VALUES} numbers.")

    # The fast road: every frame lists the same bones in the same order, so names can be cut out and the rest is a table.
    label = re.compile(r"^[^\S\n]*[A-Za-z_]\S*", re.MULTILINE)
    order = [name.strip() for name in label.findall(text_body)]
    first = order[: len(moving)]
    frames = len(order) // len(moving)
    if sorted(first) == sorted(moving) and order == first * frames:
        try:
            table = np.fromstring(label.sub("", text_body).encode("ascii", "replace"), sep=" ", dtype=np.float64)
        except ValueError:
            table = np.zeros(0)
        if table.size == frames * width and np.isfinite(table).all() and np.abs(table).max() < 1e9:
            table = table.reshape(frames, width)
            if (np.diff(table[:, 0]) == 1).all() and _lines_fit(text_body, [len(body.bones[n].dof) for n in first]):
                edges = np.cumsum([1] + [len(body.bones[name].dof) for name in first])
                return {n: table[:, a:b] for n, a, b in zip(first, edges[:-1], edges[1:], strict=True)}, degrees
    line = text.count("\n", 0, start.start()) + 1
    return _by_lines(text_body, line, body, moving, file), degrees


def _lines_fit(text: str, widths: list[int]) -> bool:
    """Whether the first frame has one bone a line, as wide as the skeleton says (numbers can't slip to a neighbour)."""
    lines = [line.split() for line in text.split("\n", len(widths) + 1)[1 : len(widths) + 1]]
    return [len(words) - 1 for words in lines] == widths


def _by_lines(text: str, line: int, body: _Asf, moving: list[str], file: str) -> dict[str, np.ndarray]:
    """The slow road: bones in any order, blank lines, and an error that names the line."""
    rows: dict[str, list[list[float]]] = {name: [] for name in moving}
    frames = 0
    for number, words in enumerate(map(str.split, text.split("\n")), start=line):
        if not words or words[0].startswith(("#", ":")):
            continue
        if len(words) == 1 and words[0].isdigit():
            missing = next((name for name in moving if len(rows[name]) != frames), None)
            if missing is not None:
                raise FileError(f"{file}, line {number}: frame {frames} has no values for bone {missing!r}.")
            frames += 1
            continue
        if words[0] not in body.bones:
            raise FileError(f"{file}, line {number}: bone {words[0][:40]!r} is not in the skeleton {body.file}.")
        expected = len(body.bones[words[0]].dof)
        try:
            row = [float(word) for word in words[1:]]
        except ValueError:
            row = []
        if len(row) != expected or not all(abs(value) < 1e9 for value in row):
            found = " ".join(words[1:])[:60]
            raise FileError(f"{file}, line {number}: bone {words[0]!r} needs {expected} numbers, found {found!r}.")
        if expected == 0:
            continue
        if len(rows[words[0]]) != frames - 1:
            raise FileError(
                f"{file}, line {number}: bone {words[0]!r} occurs twice in frame {frames}, or a frame number is lost."
            )
        rows[words[0]].append(row)
    for name in moving:
        if len(rows[name]) != frames:
            raise FileError(f"{file}: the last frame has no values for bone {name!r}; the file is cut off.")
    return {name: np.array(row) for name, row in rows.items()}
