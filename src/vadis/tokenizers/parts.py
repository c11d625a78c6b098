"""Splits of a representation's features into body parts, for tokenizers that code each part by itself.

`body`: the root and five parts of the body, each with the positions, rotations and velocities of its joints and legs with
their contacts. `kind`: one part for each kind of number.
"""

from vadis.errors import ModelError
from vadis.representations import Representation
from vadis.representations import representation as find

BODY = {
    "root": (0,),
    "left_leg": (1, 4, 7, 10),
    "right_leg": (2, 5, 8, 11),
    "torso": (3, 6, 9, 12, 15),
    "left_arm": (13, 16, 18, 20),
    "right_arm": (14, 17, 19, 21),
}
"""Joints of the 22-joint skeleton by part."""
MIRRORED = {"left_leg": "right_leg", "right_leg": "left_leg", "left_arm": "right_arm", "right_arm": "left_arm"}
"""The part on the other side; its columns stand in the same order. Parts that are not listed are their own mirror image."""
SPLITS = ("body", "kind")
_JOINTS = 22
_WIDTHS = {"joint_positions": 3, "joint_rotations": 6, "joint_velocities": 3}  # numbers a joint, in the order of a part


def part_columns(representation: str, split: str = "body") -> dict[str, tuple[int, ...]]:
    """Columns of each part, in the order of the parts; together they are every column once.

    Raises ModelError for a split that does not exist, or not for this representation.
    """
    rep = find(representation)
    if split not in SPLITS:
        raise ModelError(f"no split {split!r} into parts: use one of {', '.join(SPLITS)}.")
    return _by_body(rep) if split == "body" else _by_kind(rep)


def _by_body(rep: Representation) -> dict[str, tuple[int, ...]]:
    parts = {name: [] if name != "root" else _others(rep) for name in BODY}
    for block, columns in _blocks(rep).items():
        if block == "foot_contacts":
            half = len(columns) // 2
            parts["left_leg"] += columns[:half]
            parts["right_leg"] += columns[half:]
            continue
        width = _WIDTHS[block]
        first = _JOINTS - len(columns) // width  # some blocks leave the root joint out
        if first not in (0, 1):
            raise ModelError(f"{rep.name} is not of the 22-joint skeleton: use the split kind.")
        for name, joints in BODY.items():
            for joint in joints:
                if joint >= first:
                    parts[name] += columns[width * (joint - first) : width * (joint - first + 1)]
    return {name: tuple(columns) for name, columns in parts.items()}


def _by_kind(rep: Representation) -> dict[str, tuple[int, ...]]:
    kinds = {name.split("_")[1]: columns for name, columns in _blocks(rep).items()}
    return {name: tuple(columns) for name, columns in ({"root": _others(rep)} | kinds).items()}


def _blocks(rep: Representation) -> dict[str, range]:
    """Columns that belong to joints and feet."""
    names = [name for name in (*_WIDTHS, "foot_contacts") if name in rep.slices]
    return {name: range(*rep.slices[name].indices(rep.dim)) for name in names}


def _others(rep: Representation) -> list[int]:
    """Columns of the root: all that belong to no joint and no foot."""
    blocks = _blocks(rep).values()
    return [column for column in range(rep.dim) if not any(column in block for block in blocks)]
