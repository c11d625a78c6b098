"""Feet that stand still while they carry the body: foot-slide clean-up in physical units.

1. Smoothing takes off jitter.
2. Contacts: how surely each ankle and toe rests, from its speed in m/s and its height above the floor of the clip.
3. One least-squares problem finds corrections of the root's path, ankles and toes over the whole clip: resting joints stop,
   swinging ones clear the floor, nothing is below it; corrections are small and smooth in time, a foot stays rigid. What
   both feet share becomes a correction of the pelvis. Weights are continuous, so that nothing needs to be blended.
4. The pelvis sinks a little where a leg would have to be longer than it is; legs follow by two-bone inverse kinematics.

`method="compat"` is the published algorithm of MotionMillion with its faults, see `remove_sliding`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.motion_editing.legs import Legs, find_legs, leg_lengths, place_feet
from vadis.motion_editing.smoothing import calm_motion, smooth_motion

Method = Literal["native", "compat"]


@dataclass(frozen=True)
class FootContact:
    """When a foot joint counts as resting: surely below the first value, surely not above the second, smooth between."""

    toe_height: tuple[float, float] = (0.03, 0.06)
    """Metres above the floor."""
    ankle_height: tuple[float, float] = (0.03, 0.06)
    """Metres above the ankle's height when the foot stands flat."""
    speed: tuple[float, float] = (0.4, 1.1)
    """Metres a second, in any direction."""
    still: tuple[float, float] = (0.15, 0.3)
    """Metres a second over a third of a second: a joint that hardly moves rests at any height (stairs, a chair)."""
    clearance: float = 0.03
    """Metres that a foot joint is above its resting height while it swings."""
    swing: tuple[float, float] = (0.6, 1.2)
    """Metres a second: a joint surely swings above the second value."""


@dataclass(frozen=True)
class Stiffness:
    """Weights of the least-squares problem against 1 for the squared speed of a resting joint (metres a 1/30 s)."""

    root: float = 1e-2
    legs: float = 1e-3
    """Squared size of the corrections of the root's path, and of ankles and toes, in metres."""
    root_smooth: float = 0.5
    legs_smooth: float = 0.01
    """Squared second differences of the corrections."""
    rigid: float = 1.0
    """Squared difference of the corrections of ankle and toe of one foot."""
    sunk: float = 0.3
    """Squared depth of any foot joint under the floor, and of a swinging one under its clearance."""


def clean_feet(
    motion: Motion,
    method: Method = "native",
    *,
    floor: float | None = None,
    smooth: float | Literal["auto"] | None = "auto",
    contact: FootContact | None = None,
    stiffness: Stiffness | None = None,
    window: int = 5,
) -> Motion:
    """The motion with feet that don't slide while they rest on the floor.

    Args:
        motion: metres, Y up, any human skeleton whose names are recognised.
        method: "native", or "compat" for the published algorithm, whose result has twice the frame rate.
        floor: height of the floor; by default taken from the clip's feet.
        smooth: hertz above which motion counts as noise, or None to leave it as it is; "auto" takes off as much as
            `calm_motion` says (native only).
        contact, stiffness: see the classes (native only).
        window: frames of the smoothing filter (compat only).

    Raises SkeletonError when no legs are found, VadisError for an unknown method or a clip of fewer than 4 frames.
    """
    if method not in ("native", "compat"):
        raise VadisError(f"method={method!r}: use native, or compat for the published algorithm.")
    if motion.num_frames < 4:
        raise VadisError(f"foot contacts need at least 4 frames; the motion has {motion.num_frames}.")
    legs = find_legs(motion.skeleton)
    if method == "compat":
        from vadis.motion_editing.remove_sliding import remove_sliding

        (left, right), (left_toe, right_toe) = legs.ankle, legs.toe
        return remove_sliding(motion, (left, left_toe, right, right_toe), window)
    contact, stiffness = contact or FootContact(), stiffness or Stiffness()
    if smooth is not None:
        motion = calm_motion(motion) if smooth == "auto" else smooth_motion(motion, smooth)
    joints = motion.positions.double()
    feet = torch.stack([joints[:, list(legs.ankle)], joints[:, list(legs.toe)]], dim=2)  # (T, F, 2, 3) ankle, toe
    rest = resting_heights(motion, legs)
    ground = floor_height(feet, rest) if floor is None else float(floor)
    weights = contact_weights(feet, ground + rest, motion.fps, contact)
    swing = swing_weights(feet, motion.fps, contact)
    root_shift, foot_shift = corrections(feet, weights, swing, ground + rest, motion.fps, contact.clearance, stiffness)
    root = motion.root.double() + root_shift
    targets = feet + foot_shift
    rotations = motion.rotations.double()
    root = sink(root, rotations, motion, legs, targets[:, :, 0], weights.amax(2))
    local = place_feet(rotations, root, motion.skeleton, legs, targets[:, :, 0], targets[:, :, 1])
    return motion.replace(root=root.to(motion.root), rotations=local.to(motion.rotations))


# -- contacts


def resting_heights(motion: Motion, legs: Legs) -> Tensor:
    """Heights `(2,)` of ankle and toe above the sole's lowest joint when the foot stands as in the rest pose."""
    if not legs.has_toes:
        return torch.zeros(2, dtype=torch.float64)
    drop = -motion.skeleton.offsets[list(legs.toe), 1].double().mean()
    return torch.stack([drop, torch.zeros_like(drop)]).clamp_min(0)


def floor_height(feet: Tensor, rest: Tensor) -> float:
    """Height of the floor: the lowest foot joint (less its resting height) of the lowest twentieth of the frames."""
    return float((feet[..., 1] - rest).amin((1, 2)).quantile(0.05))


def contact_weights(feet: Tensor, heights: Tensor, fps: float, contact: FootContact) -> Tensor:
    """How surely each joint of `feet` `(T, F, 2, 3)` rests, `(T, F, 2)` in [0, 1].

    The speed is that over three frames, and the height is above `heights` `(2,)`.
    """
    speed = _speed(feet, fps)
    above = feet[..., 1] - heights
    low = torch.stack(
        [_fall(above[..., 0], contact.ankle_height), _fall(above[..., 1], contact.toe_height)], dim=-1
    )  # fmt: skip
    reach = min(max(1, round(fps / 6)), (len(feet) - 1) // 2)
    far = feet[2 * reach :] - feet[: len(feet) - 2 * reach]
    long = far.norm(dim=-1) * fps / (2 * reach)
    long = torch.cat([long[:1].expand(reach, -1, -1), long, long[-1:].expand(reach, -1, -1)])
    return torch.maximum(low * _fall(speed, contact.speed), _fall(long, contact.still))


def swing_weights(feet: Tensor, fps: float, contact: FootContact) -> Tensor:
    """How surely each joint of `feet` `(T, F, 2, 3)` swings over the floor, `(T, F, 2)` in [0, 1]."""
    return 1 - _fall(_speed(feet * torch.tensor([1.0, 0.0, 1.0]).to(feet), fps), contact.swing)


def _speed(feet: Tensor, fps: float) -> Tensor:
    """Speeds `(T, F, 2)` in metres a second over three frames."""
    step = torch.diff(feet, dim=0).norm(dim=-1) * fps
    return torch.cat([step[:1], (step[1:] + step[:-1]) / 2, step[-1:]])


def _fall(value: Tensor, edges: tuple[float, float]) -> Tensor:
    """1 below the first edge, 0 above the second, a smooth step between."""
    t = ((edges[1] - value) / (edges[1] - edges[0])).clamp(0, 1)
    return t * t * (3 - 2 * t)


# -- corrections


def corrections(
    feet: Tensor,
    weights: Tensor,
    swing: Tensor,
    heights: Tensor,
    fps: float,
    clearance: float,
    stiffness: Stiffness,
) -> tuple[Tensor, Tensor]:
    """Shifts of the root's path `(T, 3)` and of ankles and toes `(T, F, 2, 3)`, those of the root included.

    All coordinates are found by sparse least squares over the whole clip; x and z share one factorisation.
    """
    path = feet.flatten(1, 2).numpy()  # (T, 4, 3)
    sure = weights.flatten(1).numpy()
    ground = np.tile(heights.numpy(), feet.shape[1])
    across = _Problem(sure, fps, stiffness)
    across.stop(path[..., [0, 2]])
    upright = _Problem(sure, fps, stiffness, root=50 * stiffness.legs)
    upright.stop(path[..., 1:2])
    deep = (path[..., 1] < ground).astype(float)
    upright.settle(path[..., 1:2] - ground[:, None], stiffness.sunk * deep)
    low = path[..., 1:2] - ground[:, None] - clearance
    upright.settle(low, stiffness.sunk * swing.flatten(1).numpy() * (low[..., 0] < 0))
    flat, tall = across.solve(), upright.solve()
    shift = torch.from_numpy(np.stack([flat[..., 0], tall[..., 0], flat[..., 1]], axis=-1))  # (T, 5, 3)
    return shift[:, 0], (shift[:, :1] + shift[:, 1:]).unflatten(1, feet.shape[1:3])


class _Problem:
    """Least squares over T frames of 1 + K unknowns each: the root's shift, then those of K foot joints relative to it.

    The normal equations only link frames up to two apart; they are kept as blocks `(3, T, 1 + K, 1 + K)` by distance.
    """

    def __init__(self, sure: np.ndarray, fps: float, stiffness: Stiffness, root: float | None = None) -> None:
        frames, count = sure.shape
        self.scale = fps / 30
        self.between = np.minimum(sure[1:], sure[:-1])  # a joint rests from one frame to the next
        keep = np.array([stiffness.root if root is None else root] + [stiffness.legs] * count)
        smooth = np.diag([stiffness.root_smooth] + [stiffness.legs_smooth] * count) * self.scale**4
        second = np.zeros((3, frames))  # the diagonals of the squared second differences
        for shift, factor in enumerate((1.0, -2.0, 1.0)):
            second[0, shift : frames - 2 + shift] += factor**2
        second[1, : frames - 2] -= 2
        second[1, 1 : frames - 1] -= 2
        second[2, : frames - 2] = 1
        self.blocks = second[..., None, None] * smooth
        self.blocks[0] += np.diag(keep)
        for ankle in range(1, 1 + count, 2):
            self.blocks[0][:, ankle : ankle + 2, ankle : ankle + 2] += stiffness.rigid * np.array([[1, -1], [-1, 1]])
        self.right: np.ndarray | float = 0.0

    def stop(self, path: np.ndarray) -> None:
        """Joints at `path` `(T, K, C)` should not move while they rest."""
        for k, pick in enumerate(self._picks(path)):
            weight = self.between[:, k] * self.scale**2
            linked = weight[:, None, None] * np.outer(pick, pick)
            self.blocks[0, :-1] += linked
            self.blocks[0, 1:] += linked
            self.blocks[1, :-1] -= linked
            pull = weight[:, None] * np.diff(path[:, k], axis=0)
            pull = np.concatenate([pull, 0 * pull[:1]]) - np.concatenate([0 * pull[:1], pull])
            self.right = self.right + pick[:, None] * pull[:, None]

    def settle(self, off: np.ndarray, weight: np.ndarray) -> None:
        """Joints that are `off` `(T, K, C)` from where they belong should get there, as `weight` `(T, K)` says."""
        for k, pick in enumerate(self._picks(off)):
            self.blocks[0] += weight[:, k, None, None] * np.outer(pick, pick)
            self.right = self.right - pick[:, None] * (weight[:, k, None] * off[:, k])[:, None]

    @staticmethod
    def _picks(path: np.ndarray) -> np.ndarray:
        """For each joint the row that adds the root's shift and its own."""
        count = path.shape[1]
        return np.concatenate([np.ones((count, 1)), np.eye(count)], axis=1)

    def solve(self) -> np.ndarray:
        """The shifts `(T, 1 + K, C)`."""
        from scipy.linalg import solveh_banded

        frames, size = self.blocks.shape[1:3]
        band = np.zeros((3 * size, frames, size))  # lower form: band[i - j, j]
        for apart in range(3):
            for row in range(size):
                for column in range(size):
                    if apart * size + row - column >= 0:
                        band[apart * size + row - column, :, column] = self.blocks[apart, :, row, column]
        right = np.asarray(self.right)
        found = solveh_banded(band.reshape(3 * size, -1), right.reshape(frames * size, -1), lower=True)
        return found.reshape(right.shape)


# -- the pelvis


def sink(root: Tensor, rotations: Tensor, motion: Motion, legs: Legs, ankles: Tensor, sure: Tensor) -> Tensor:
    """The root's path `(T, 3)` lowered, smoothly, where a resting ankle `(T, F, 3)` would be out of the leg's reach."""
    joints = motion.skeleton.forward_kinematics(rotations, root)
    hip = joints[:, list(legs.hip)]
    reach = 0.998 * torch.stack(leg_lengths(motion.skeleton, legs)).sum(0)
    line = hip - ankles
    across = line[..., [0, 2]].square().sum(-1)
    upright = (reach.square() - across).clamp_min(0).sqrt()
    held = (motion.positions[:, list(legs.hip)].double() - motion.positions[:, list(legs.ankle)].double()).norm(dim=-1)
    before = (held - reach).clamp_min(0)  # legs that were straight already may stay so
    drop = ((line[..., 1] - upright - before).clamp(0, 0.08) * sure).amax(1)
    if not bool((drop > 1e-4).any()):
        return root
    width = max(1, round(0.1 * motion.fps))
    wide = torch.nn.functional.max_pool1d(drop[None], 2 * width + 1, 1, width)[0]
    kernel = torch.hann_window(2 * width + 3, periodic=False, dtype=drop.dtype)[1:-1]
    padded = torch.nn.functional.pad(wide[None, None], (width, width), mode="replicate")
    smooth = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])[0, 0]
    return root - smooth[:, None] * torch.tensor([0.0, 1.0, 0.0], dtype=root.dtype)
