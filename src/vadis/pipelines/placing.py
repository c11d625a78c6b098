"""Pieces of features placed in the world one by one, so that together they are the motion of the whole.

Shapes: n frames of a piece, D features.
"""

from typing import Any

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ModelError
from vadis.motion import Motion
from vadis.representations.ms272 import MS272
from vadis.skeleton import smpl22


class RunningRoot:
    """Heading and place carried over pieces of ms272 features; `vadis.server.rows` does the same for many bodies at once."""

    def __init__(self, name: str = "ms272") -> None:
        if name != "ms272":
            raise ModelError(f"pieces of {name} can't be placed in the world one by one: use an ms272 tokenizer.")
        self.representation = MS272()
        self.turn = torch.eye(3, dtype=torch.float64)
        """Removes the heading so far."""
        self.place = torch.zeros(2, dtype=torch.float64)
        """x and z in metres."""

    @property
    def heading(self) -> float:
        """Radians, counter-clockwise seen from above, 0 towards +Z."""
        return -float(torch.atan2(self.turn[0, 2], self.turn[0, 0]))

    def add(self, features: Tensor, fps: float) -> Motion:
        """The next features `(n, 272)` as a motion."""
        rows = features.detach().cpu().double()
        before = rows[:1].clone()
        before[:, :2], before[:, 2:8] = self.place, rotation.to_6d(self.turn, "rows")
        rows = torch.cat([before, rows])
        local, root = self.representation.rotations(rows)
        self.turn = self.representation.root_path(rows)[0][-1]
        self.place = root[-1, [0, 2]]
        return Motion(smpl22(), root[1:].float(), local[1:].float(), fps)


class Placer:
    """The same for any representation: a piece is decoded with the frame before it, and put where that frame is already.

    Representations write a frame's step and turn relative to its neighbour, so what was decoded twice differs by a turn about
    the vertical and a shift on the floor, which are undone.
    """

    def __init__(self, rep: Any, fps: float, source: str = "rotations") -> None:
        self.representation, self.fps, self.source = rep, fps, source
        self._last: Tensor | None = None
        """Features `(1, D)` of the last frame."""
        self._joints = torch.zeros(0)
        """`(J, 3)`, where its joints are."""

    def add(self, features: Tensor) -> Motion:
        """The next features `(n, D)` as a motion."""
        rows = features.detach().cpu()
        given = len(rows)
        if self._last is not None:
            rows = torch.cat([self._last, rows])
        motion = self.representation.decode(rows, source=self.source).replace(fps=self.fps)
        joints = self.representation.positions(rows.double())
        if self._last is not None:
            turn, shift = _turn_and_shift(joints[0], self._joints)
            joints = joints @ turn.T + shift
            root, rotations = motion.root.double() @ turn.T + shift, motion.rotations.clone()
            rotations[:, 0] = (turn @ rotations[:, 0].double()).to(rotations)
            motion = motion.replace(root=root.float(), rotations=rotations).crop(1, 1 + given)
        self._last, self._joints = rows[-1:].clone(), joints[-1]
        return motion


def _turn_and_shift(joints: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The turn about the vertical `(3, 3)` and the shift on the floor `(3,)` that bring joints `(J, 3)` nearest to `there`."""
    middle, wanted = joints.mean(0), there.mean(0)
    a, b = joints - middle, there - wanted
    sine = (a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]).sum()
    angle = torch.atan2(sine, (a[:, 0] * b[:, 0] + a[:, 2] * b[:, 2]).sum())
    turn = torch.eye(3, dtype=joints.dtype)
    turn[0, 0] = turn[2, 2] = angle.cos()
    turn[0, 2], turn[2, 0] = angle.sin(), -angle.sin()
    shift = wanted - turn @ middle
    shift[1] = 0.0  # heights are written as they are
    return turn, shift


def join(pieces: list[Motion]) -> Motion:
    """Pieces of one stream as a motion."""
    first = pieces[0]
    return Motion(
        first.skeleton,
        torch.cat([piece.root for piece in pieces]),
        torch.cat([piece.rotations for piece in pieces]),
        first.fps,
    )
