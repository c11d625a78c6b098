"""The mannequin: a smooth body grown by code from any skeleton of the smpl22 tree. No licensed body model is involved.

Every limb is a loft: an elliptical tube along a bone whose radii and centre follow a hand-drawn profile. Lofts melt into
one another (smooth minimum), the zero surface is polygonised (`surface`), and skin weights follow from how far along
its chain of bones a vertex lies. Profiles are in metres of a 1.75 m body and scale with the skeleton.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from vadis.body.surface import Array, relax, sample, subdivide, surface_nets, unit, vec
from vadis.errors import SkeletonError
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton

_REFERENCE_SPAN = 1.575  # head joint to ball of the foot of the default skeleton; the profiles were drawn on it
_SOLE = 0.016  # the sole lies this far below the ball joint
CELL = 0.0160
"""Grid spacing in metres of the polygoniser on a 1.75 m body."""


@dataclass(frozen=True, eq=False)
class Mannequin:
    """A skinned mesh at rest: V vertices, F triangles, rest pose with the pelvis joint at the origin.

    vertices `(V, 3)` float32 metres; faces `(F, 3)` int64, counter-clockwise from outside; normals `(V, 3)`;
    joints `(V, 4)` int64 and weights `(V, 4)` float32, sorted from the strongest, sum 1; colors `(V, 3)` in [0, 1], linear;
    `sole` is the height of the soles at rest, in metres (negative).
    """

    skeleton: Skeleton
    vertices: Array
    faces: NDArray[np.int64]
    normals: Array
    joints: NDArray[np.int64]
    weights: Array
    colors: Array
    sole: float

    @property
    def dense_weights(self) -> Array:
        """Skin weights `(V, J)`, one column a joint."""
        dense = np.zeros((len(self.vertices), self.skeleton.num_joints), np.float32)
        np.add.at(dense, (np.arange(len(dense))[:, None], self.joints), self.weights)  # unused slots repeat the root
        return dense

    def pose(self, motion: Motion, frames: list[int] | NDArray[np.int64] | None = None) -> tuple[Array, Array]:
        """World vertices and normals `(T, V, 3)` of some frames (default: all) by linear blend skinning."""
        index = torch.arange(motion.num_frames) if frames is None else torch.as_tensor(frames)
        world, place = motion.global_rotations[index], motion.positions[index]
        return self._skin(world, place)

    def _skin(self, world: Tensor, place: Tensor) -> tuple[Array, Array]:
        shift = place - (world @ self.skeleton.rest_positions[:, :, None])[..., 0]
        affine = torch.cat([world, shift[..., None]], -1).flatten(2)  # (T, J, 12)
        blend = torch.from_numpy(self.dense_weights) @ affine  # (T, V, 12)
        blend = blend.view(*blend.shape[:2], 3, 4)
        rest, normal = torch.from_numpy(self.vertices)[:, :, None], torch.from_numpy(self.normals)[:, :, None]
        posed = (blend[..., :3] @ rest)[..., 0] + blend[..., 3]
        return posed.numpy(), unit((blend[..., :3] @ normal)[..., 0].numpy())


@dataclass(frozen=True, eq=False)
class _Loft:
    """An elliptical tube from `start` to `stop`; rows of `profile` are (t, half width, half depth, shift along width,
    shift along depth); rounded ends reach `caps` metres beyond the stations."""

    start: Array
    stop: Array
    width: Array
    profile: tuple[tuple[float, ...], ...]
    caps: tuple[float, float]
    scale: float

    @cached_property
    def table(self) -> Array:
        """The profile `(129, 4)` at even steps, in metres."""
        rows = np.array([(*row, 0.0, 0.0)[:5] for row in self.profile])
        before, after = rows[1] * (-1, 1, 1, 1, 1), rows[-2] * (-1, 1, 1, 1, 1) + (2, 0, 0, 0, 0)
        rows = np.stack([before, *rows, after])  # mirrored ends: no slope there, so the caps join smoothly
        smooth = PchipInterpolator(rows[:, 0], rows[:, 1:])(np.linspace(0, 1, 129))
        return (smooth * self.scale).astype(np.float32)

    def distance(self, points: Array) -> Array:
        """First-order distance of points `(N, 3)` to the tube."""
        axis = self.stop - self.start
        length = max(float(np.linalg.norm(axis)), 1e-6)
        axis = axis / length
        width = unit(self.width - axis * (self.width @ axis))
        frame = np.stack([axis, width, np.cross(axis, width)], 1).astype(np.float32)
        local = (points - self.start) @ frame  # along, width, depth
        t = np.clip(local[:, 0] / length, 0, 1)
        where = t * (len(self.table) - 1)
        low = np.minimum(where.astype(np.int32), len(self.table) - 2)
        rest = where - low
        a, b, da, db = (self.table.T[k][low] + rest * np.diff(self.table.T[k])[low] for k in range(4))
        cap = np.where(local[:, 0] < 0, vec(self.caps[0] * self.scale), vec(self.caps[1] * self.scale))
        x, y, z = (local[:, 0] - t * length) / cap, (local[:, 1] - da) / a, (local[:, 2] - db) / b
        size = np.sqrt(x * x + y * y + z * z)
        x, y, z = x / cap, y / a, z / b
        return size * (size - 1) / np.maximum(np.sqrt(x * x + y * y + z * z), 1e-6)


def _melt(a: Array, b: Array, k: float) -> Array:
    """Smooth minimum (cubic): blends where the two differ by less than `k` metres."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * h * (k / 6)


def _smoothstep(x: Array) -> Array:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


class _Body:
    """The lofts of one skeleton, as fields: trunk, and per side an arm and a leg."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.rest = skeleton.rest_positions.numpy().astype(np.float32)
        self.joint = {name: j for j, name in enumerate(SMPL22_NAMES)}
        rest, joint = self.rest, self.joint
        feet = (rest[joint["left_foot"]] + rest[joint["right_foot"]]) / 2
        self.scale = float(np.clip((rest[joint["head"], 1] - feet[1]) / _REFERENCE_SPAN, 0.1, 10))
        self.sole = float(min(rest[joint["left_foot"], 1], rest[joint["right_foot"], 1])) - _SOLE * self.scale
        self.trunk = self._trunk()
        self.arms = {side: self._arm(side) for side in ("left", "right")}
        self.legs = {side: self._leg(side) for side in ("left", "right")}

    def at(self, name: str, *shift: float) -> Array:
        """A joint's rest position, moved by `shift` (scaled metres)."""
        return self.rest[self.joint[name]] + np.array(shift or (0, 0, 0), np.float32) * self.scale

    def loft(self, start: Array, stop: Array, width: tuple[float, float, float], caps: tuple[float, float],
             *profile: tuple[float, ...]) -> _Loft:  # fmt: skip
        return _Loft(start, stop, np.array(width, np.float32), profile, caps, self.scale)

    def _trunk(self) -> list[_Loft]:
        s = self.scale
        hip = abs(self.at("left_hip")[0] - self.at("right_hip")[0]) / 2 / s - 0.09  # how much wider than it was drawn
        arm = abs(self.at("left_shoulder")[0] - self.at("right_shoulder")[0]) / 2 / s - 0.185
        low = (self.at("left_hip") + self.at("right_hip")) / 2
        neck, head = self.at("neck"), self.at("head")
        x = (1.0, 0.0, 0.0)

        def up(point: Array, *shift: float) -> Array:
            return point + vec(shift) * s

        # the axis points up, so depth (axis x width) is backwards
        parts = [
            self.loft(up(low, 0, -0.045, 0), up(neck, 0, -0.015, 0.004), x, (0.045, 0.030),
                      (0.00, 0.095 + hip, 0.074, 0, 0.004), (0.14, 0.150 + hip, 0.101, 0, 0.008),
                      (0.24, 0.149 + hip, 0.099, 0, 0.002), (0.38, 0.124 + hip / 2, 0.085, 0, -0.006),
                      (0.55, 0.134 + arm / 2, 0.093, 0, -0.003), (0.68, 0.150 + arm * 0.8, 0.102, 0, 0.000),
                      (0.80, 0.152 + arm * 0.8, 0.101, 0, 0.003), (0.91, 0.134 + arm * 0.8, 0.090, 0, 0.005),
                      (1.00, 0.096 + arm / 2, 0.072, 0, 0.006)),
            self.loft(up(neck, 0, -0.045, 0.0), up(head, 0, 0.050, -0.008), x, (0.03, 0.03),
                      (0.0, 0.064, 0.060), (0.45, 0.052, 0.054), (1.0, 0.050, 0.056)),
            self.loft(up(head, 0, 0.026, 0.016), up(head, 0, 0.126, 0.016), x, (0.038, 0.074),
                      (0.0, 0.044, 0.056, 0, -0.018), (0.5, 0.065, 0.083, 0, -0.003), (1.0, 0.074, 0.095, 0, 0.008)),
        ]  # fmt: skip
        for side, sign in (("left", 1.0), ("right", -1.0)):
            parts += [
                self.loft(up(neck, sign * 0.015, -0.012, -0.002), self.at(f"{side}_shoulder", -sign * 0.015, 0.006, 0),
                          (0, 0, 1), (0.04, 0.04),
                          (0.0, 0.052, 0.044), (0.5, 0.060, 0.050), (1.0, 0.056, 0.048)),
                self.loft(self.at(f"{side}_hip", -sign * 0.012, 0.020, -0.034), self.at(f"{side}_hip", -sign * 0.010, -0.040, -0.034),
                          x, (0.055, 0.055), (0.0, 0.068, 0.064), (1.0, 0.070, 0.068)),
            ]  # fmt: skip
        return parts

    def _arm(self, side: str) -> list[_Loft]:
        s, z = self.scale, (0.0, 0.0, 1.0)
        shoulder, elbow, wrist = (self.at(f"{side}_{n}") for n in ("shoulder", "elbow", "wrist"))
        along = unit(wrist - elbow)

        def hand(reach: float, forward: float = 0.0, drop: float = 0.0) -> Array:
            return wrist + (along * reach + vec([0, -drop, forward])) * s

        # width lies along z, across the palm; depth is its thickness
        return [
            self.loft(shoulder, elbow, z, (0.054, 0.036),
                      (0.0, 0.059, 0.055), (0.25, 0.055, 0.053), (0.6, 0.045, 0.045), (1.0, 0.035, 0.034)),
            self.loft(elbow, wrist, z, (0.036, 0.022),
                      (0.0, 0.036, 0.034), (0.28, 0.044, 0.039), (0.65, 0.034, 0.029), (1.0, 0.029, 0.022)),
            self.loft(hand(0.010), hand(0.090), z, (0.020, 0.020),
                      (0.0, 0.030, 0.020), (0.5, 0.040, 0.0195), (1.0, 0.042, 0.017)),
            self.loft(hand(0.080, 0, 0.001), hand(0.162, -0.002, 0.020), z, (0.020, 0.022),
                      (0.0, 0.041, 0.0165), (0.6, 0.037, 0.0150), (1.0, 0.028, 0.0130)),
            self.loft(hand(0.026, 0.020, 0.002), hand(0.092, 0.064, 0.018), (0, 1, 0), (0.018, 0.016),
                      (0.0, 0.018, 0.021), (0.6, 0.015, 0.017), (1.0, 0.0135, 0.0140)),
        ]  # fmt: skip

    def _leg(self, side: str) -> list[_Loft]:
        sign = 1.0 if side == "left" else -1.0
        s, x = self.scale, (1.0, 0.0, 0.0)
        hip, knee, ankle, ball = (self.at(f"{side}_{n}") for n in ("hip", "knee", "ankle", "foot"))
        ground = self.sole + 0.002 * s
        toward = unit(vec([ball[0] - ankle[0], 0, ball[2] - ankle[2]]))
        heel = vec([ankle[0], ground + 0.036 * s, ankle[2]]) - toward * 0.030 * s
        toe = vec([ball[0], ground + 0.020 * s, ball[2]]) + toward * 0.060 * s
        # along a leg depth (axis x width) is forwards, along a foot it is up
        return [
            self.loft(hip, knee, x, (0.070, 0.045),
                      (0.0, 0.078, 0.085, 0.000, 0.000), (0.3, 0.076, 0.085, -0.002 * sign, 0.004),
                      (0.65, 0.060, 0.067, -0.002 * sign, 0.008), (1.0, 0.044, 0.048, 0, 0.006)),
            self.loft(knee, ankle, x, (0.045, 0.035),
                      (0.0, 0.043, 0.047, 0, 0.004), (0.30, 0.053, 0.058, 0.002 * sign, -0.010),
                      (0.6, 0.043, 0.046, 0, -0.006), (1.0, 0.032, 0.039, 0, -0.002)),
            self.loft(heel, toe, x, (0.034, 0.028),
                      (0.0, 0.034, 0.040, 0, 0.000), (0.25, 0.037, 0.046, 0, 0.010), (0.5, 0.042, 0.040, 0, 0.008),
                      (0.78, 0.049, 0.030, 0, 0.002), (1.0, 0.041, 0.022, 0, 0.000)),
        ]  # fmt: skip

    def parts(self, points: Array) -> dict[str, Array]:
        """Fields of the trunk and the four limbs at points `(N, 3)`."""
        s = self.scale

        def union(lofts: list[_Loft], k: float) -> Array:
            value = lofts[0].distance(points)
            for loft in lofts[1:]:
                value = _melt(value, loft.distance(points), k * s)
            return value

        fields = {"trunk": union(self.trunk, 0.055)}
        for side in ("left", "right"):
            fields[f"{side}_arm"] = union(self.arms[side], 0.022)
            leg = union(self.legs[side], 0.035)
            fields[f"{side}_leg"] = -_melt(-leg, points[:, 1] - self.sole, 0.014 * s)  # cut flat below the foot
        return fields

    def field(self, points: Array) -> Array:
        """The whole body. Limbs melt into the trunk, never into each other: thighs and arms stay apart."""
        f, s = self.parts(points), self.scale
        sides = [
            _melt(_melt(f["trunk"], f[f"{side}_arm"], 0.05 * s), f[f"{side}_leg"], 0.06 * s)
            for side in ("left", "right")
        ]
        return np.minimum(*sides)

    def box(self) -> tuple[Array, Array]:
        ends = np.stack(
            [
                p
                for lofts in (self.trunk, *self.arms.values(), *self.legs.values())
                for f in lofts
                for p in (f.start, f.stop)
            ]
        )
        return ends.min(0) - 0.2 * self.scale, ends.max(0) + 0.2 * self.scale


# The chains that share out the skin: (joint, half width of the blend in metres), from the trunk outwards.
_SPINE = (("pelvis", 0.0), ("spine1", 0.055), ("spine2", 0.05), ("spine3", 0.045), ("neck", 0.035), ("head", 0.035))
_ARM = (("spine3", 0.0), ("collar", 0.05), ("shoulder", 0.050), ("elbow", 0.036), ("wrist", 0.020))
_LEG = (("pelvis", 0.0), ("hip", 0.075), ("knee", 0.048), ("ankle", 0.034), ("foot", 0.022))


def _chain(body: _Body, points: Array, chain: tuple[tuple[str, float], ...], prefix: str) -> Array:
    """Weights `(V, 22)` along one chain: at every joint a smooth step across the plane that halves the bend."""
    names = [n if n in body.joint else f"{prefix}_{n}" for n, _ in chain]
    places = [body.at(n) for n in names]
    steps = [np.ones(len(points), np.float32)]
    for k in range(1, len(chain)):
        before = places[k] - places[k - 1]
        after = places[k + 1] - places[k] if k + 1 < len(chain) else before
        direction = unit(unit(before) + unit(after))
        if names[k] == "head":  # the chin is in front of the neck and no higher than it, yet it belongs to the head
            direction = unit(vec([0, 1, 0.55]))
        elif names[k].endswith("hip"):
            direction = unit(after)
        elif names[k].endswith("collar"):
            direction = unit(after * vec([1, 0, 0]))
        width = chain[k][1] * body.scale
        step = _smoothstep(((points - places[k]) @ direction / width + 1) / 2)
        steps.append(np.minimum(step, steps[-1]))
    weights = np.zeros((len(points), len(SMPL22_NAMES)), np.float32)
    for k, name in enumerate(names):
        weights[:, body.joint[name]] += steps[k] - (steps[k + 1] if k + 1 < len(names) else 0)
    return weights


def _skin_weights(body: _Body, points: Array) -> Array:
    """Dense weights `(V, 22)`: each limb's chain, faded into the spine's where limb and trunk are equally close."""
    fields = body.parts(points)
    total = _chain(body, points, _SPINE, "")
    middle = (body.at("left_hip") + body.at("right_hip"))[0] / 2
    for side, sign in (("left", 1.0), ("right", -1.0)):
        for limb, chain in (("arm", _ARM), ("leg", _LEG)):
            share = _smoothstep(0.5 + (fields["trunk"] - fields[f"{side}_{limb}"]) / (0.06 * body.scale))
            if limb == "leg":  # at the midline both thighs hand over to the pelvis, so neither pulls the other's skin
                share = share * _smoothstep((points[:, 0] - middle) * sign / (0.03 * body.scale))
            else:
                share = share * _smoothstep((points[:, 0] - middle) * sign / (0.06 * body.scale))
            total = total * (1 - share[:, None]) + _chain(body, points, chain, side) * share[:, None]
    return total


_CLAY, _FACE = (0.66, 0.65, 0.63), (0.36, 0.38, 0.41)  # linear RGB
_TINTS = {"left": (0.22, 0.46, 0.66), "right": (0.82, 0.40, 0.22)}


def _colors(body: _Body, points: Array, weights: Array) -> Array:
    """Clay, cooling towards the left hand and foot, warming towards the right ones, with a darker face."""
    color = np.tile(vec(_CLAY), (len(points), 1))
    for side, tint in _TINTS.items():
        for names in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle", "foot")):
            first, last = body.at(f"{side}_{names[0]}"), body.at(f"{side}_{names[2]}")
            axis = last - first
            along = np.clip((points - first) @ axis / max(float(axis @ axis), 1e-9), 0, 1)
            share = weights[:, [body.joint[f"{side}_{n}"] for n in names]].sum(1)
            color += (share * along**2)[:, None] * (vec(tint) - color)
    local = (points - body.at("head", 0, 0.085, 0.020)) / body.scale
    mask = 1 - np.sqrt((local[:, 0] / 0.062) ** 2 + (local[:, 1] / 0.075) ** 2)
    face = _smoothstep(0.5 + mask * 6) * (local[:, 2] > 0) * weights[:, body.joint["head"]]
    return (color + face[:, None] * (vec(_FACE) - color)).astype(np.float32)


def build_mannequin(skeleton: Skeleton, cell: float = CELL) -> Mannequin:
    """Grow the mannequin on a skeleton of the smpl22 tree (any bone lengths); kept in memory, so ask as often as you like.

    Args:
        skeleton: names and parents of smpl22, T-pose rest.
        cell: grid spacing in metres on a 1.75 m body; halving it makes four times the vertices.

    Raises SkeletonError for any other tree.
    """
    if skeleton.names != SMPL22_NAMES or skeleton.parents != SMPL22_PARENTS:
        raise SkeletonError(
            f"the mannequin needs the 22 joints of smpl22; this is {skeleton}. Convert with vadis.retarget(motion, 'smpl22')."
        )
    return _grow(tuple(skeleton.offsets.flatten().tolist()), cell)


@lru_cache(maxsize=8)
def _grow(offsets: tuple[float, ...], cell: float) -> Mannequin:
    skeleton = Skeleton(SMPL22_NAMES, SMPL22_PARENTS, torch.tensor(offsets).view(-1, 3), "smpl22")
    body = _Body(skeleton)
    grid, origin = sample(body.field, *body.box(), cell * body.scale)
    vertices, faces = surface_nets(grid, origin, cell * body.scale)
    where = body.parts(vertices)
    fine = np.zeros(len(vertices), bool)
    for side in ("left", "right"):  # hands and head deserve more triangles than thighs
        wrist, elbow = body.at(f"{side}_wrist"), body.at(f"{side}_elbow")
        fine |= ((vertices - wrist) @ unit(wrist - elbow) > 0) & (where[f"{side}_arm"] < where["trunk"])
    fine |= vertices[:, 1] > body.at("head", 0, 0.01, 0)[1]
    vertices, faces = subdivide(vertices, faces, fine)
    vertices, normals = relax(body.field, vertices, faces, cell * body.scale)
    dense = _skin_weights(body, vertices)
    joints = np.argsort(-dense, 1, kind="stable")[:, :4]
    weights = np.take_along_axis(dense, joints, 1).astype(np.float32)
    weights[weights < 0.004] = 0
    weights /= weights.sum(1, keepdims=True)
    joints[weights == 0] = 0  # unused slots point at the root, as glTF asks
    return Mannequin(skeleton, vertices, faces, normals, joints, weights, _colors(body, vertices, dense), body.sole)
