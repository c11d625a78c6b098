"""From one representation straight to another, with a statement of what the road lost.

Every road passes through `Body`, world joints and local rotations side by side, so that a format that holds both (272,
276) keeps both, even where a network made them disagree. Nothing is guessed silently: frame rates, bones and made-up
rotations are in the report. 263 and 251 hold no SMPL rotations; where a target wants them they are solved from the joints.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.representations import Source, representation
from vadis.representations.hml263 import HumanML
from vadis.representations.ms272 import MS272
from vadis.representations.smpl135 import SMPL135
from vadis.representations.solve import fit_skeleton, solve_rotations
from vadis.representations.vimogen276 import ViMoGen276, measured_offsets
from vadis.skeleton import Skeleton, smpl22


@dataclass(frozen=True)
class Body:
    """One clip of the 22 joints: world `joints` `(T, 22, 3)` in metres, Y up, and `rotations` `(T, 22, 3, 3)` where known."""

    joints: Tensor
    rotations: Tensor | None
    fps: float
    bones: str
    """Whose bone lengths the joints have."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did and lost. Errors are measured by reading the result back, at the times of the source.

    Joint errors are in millimetres after laying the clips on each other by one turn about the vertical and one shift;
    None where they could not be measured. Rotation errors are angles of local rotations in degrees, None where either side
    holds none.
    """

    source: str
    target: str
    route: tuple[str, ...]
    lossless: bool
    frames_in: int
    frames_out: int
    fps_in: float
    fps_out: float
    bones: str
    joints_from: str | None = None
    dropped: tuple[str, ...] = ()
    made_up: tuple[str, ...] = ()
    joint_error_mean_mm: float | None = None
    joint_error_max_mm: float | None = None
    rotation_error_mean_deg: float | None = None
    rotation_error_max_deg: float | None = None
    blocks_differ_mm: float | None = None
    """Mean distance in the source between its joints and its rotations posed on its bones: 0 in encoded motion."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{' → '.join(self.route)}: {'lossless' if self.lossless else 'lossy'}",
            f"  frames      {self.frames_in} at {self.fps_in:g}/s → {self.frames_out} at {self.fps_out:g}/s",
            f"  bones       {self.bones}",
        ]
        if self.joint_error_mean_mm is not None:
            lines.append(
                f"  joints      {self.joint_error_mean_mm:.3g} mm off, at most {self.joint_error_max_mm:.3g} mm"
            )
        if self.rotation_error_mean_deg is not None:
            turned = f"{self.rotation_error_mean_deg:.3g}° off, at most {self.rotation_error_max_deg:.3g}°"
            lines.append(f"  rotations   {turned}")
        if self.blocks_differ_mm is not None and self.blocks_differ_mm > 0.1:
            lines.append(f"  source      its joints and its rotations disagree by {self.blocks_differ_mm:.3g} mm")
        lines += [f"  dropped     {text}" for text in self.dropped] + [f"  made up     {text}" for text in self.made_up]
        return "\n".join(lines)


class Conversion(NamedTuple):
    """Features `(T', D')` float32 of the target, what the way there lost, and the bones of the body where known."""

    features: Tensor
    report: ConversionReport
    skeleton: Skeleton | None = None


def convert(
    features: Tensor | np.ndarray,
    source: str,
    target: str,
    *,
    fps: float | None = None,
    fps_out: float | None = None,
    skeleton: Skeleton | None = None,
    joints_from: Source = "positions",
    target_offsets: Tensor | None = None,
) -> Conversion:
    """Features of one clip in another representation.

    Args:
        features: `(T, D)` of `source`, in physical units.
        source, target: names that `vadis.representation` knows.
        fps: frame rate of the features; the source's published rate by default. Features don't hold it.
        fps_out: frame rate of the result; the target's published rate by default. Joints are resampled linearly,
            rotations along the shortest arc, time 0 kept.
        skeleton: bones on which rotations are posed. Needed where a source holds rotations only and the target wants
            joints; with `joints_from="rotations"` the clip's own bones are the default.
        joints_from: "positions" believes the joints that a source stores; "rotations" poses `skeleton` (published 263
            features were made so, on the zero-shape SMPL-H body).
        target_offsets: rest offsets `(22, 3)` that 263 features are brought to; the data set's by default.

    Raises VadisError for unknown names, values that aren't finite or bones that would have to be guessed, ShapeError for
    arrays that don't fit.
    """
    rep, goal = representation(source), representation(target)
    x = rep.check(features, 2)
    if not torch.isfinite(x).all():
        bad = ~torch.isfinite(x).all(1)
        raise VadisError(f"{int(bad.sum())} of {len(x)} frames hold NaN or infinite values; nothing was converted.")
    for name, value in (("fps", fps), ("fps_out", fps_out)):
        if value is not None and not 0 < value < 100_000:
            raise VadisError(f"{name}={value}: frames per second must be positive.")
    rate = float(fps or rep.fps)
    same_family = rep.dim == goal.dim
    out_rate = float(fps_out or (rate if same_family else goal.fps))
    if same_family and out_rate == rate:
        made = _relabel(x, source, target)
        exact = ConversionReport(source, target, (source, target), True, len(x), len(made), rate, rate, "unchanged")
        return Conversion(made, exact, skeleton)
    body = read_body(x, source, rate, skeleton, joints_from, joints_wanted=not isinstance(goal, SMPL135))
    resampled = resample_body(body, out_rate)
    made = write_body(resampled, target, target_offsets)
    stored = not isinstance(rep, SMPL135)
    report = measure(body, made, target, out_rate, source=source, joints_from=joints_from if stored else "rotations")
    bones = skeleton if body.rotations is None else measured_offsets(body.rotations, body.joints)
    return Conversion(made, report, bones)


def _relabel(x: Tensor, source: str, target: str) -> Tensor:
    """Features of the same width and meaning under another name."""
    if source == target:
        return x.float()
    if source.startswith("ms272"):
        rep = MS272("delta" if source == "ms272" else "absolute")
        return (rep.to_absolute(x) if target == "ms272_absroot" else rep.to_delta(x)).float()
    return SMPL135(source).to_layout(x, target).float()


# -- the two ends


def read_body(
    features: Tensor,
    source: str,
    fps: float,
    skeleton: Skeleton | None = None,
    joints_from: Source = "positions",
    joints_wanted: bool = True,
) -> Body:
    """The joints and rotations of features `(T, D)`, float64; see `convert` for the arguments."""
    rep, x = representation(source), features.double()
    if joints_from not in ("positions", "rotations"):
        raise VadisError(f"joints_from must be 'positions' or 'rotations'; got {joints_from!r}.")
    if isinstance(rep, SMPL135):
        if skeleton is None and joints_wanted:
            raise VadisError(
                f"{source} holds no bone lengths: pass skeleton= (vadis.skeleton.smpl22() for the body of vadis)."
            )
        local, root = rep.arrays(x)
        body = skeleton or smpl22()
        return Body(body.forward_kinematics(local, root), local, fps, "the given skeleton" if skeleton else "not held")
    if isinstance(rep, HumanML):
        if source == "kit251":
            from vadis.retargeting import retarget

            motion = retarget(rep.decode(features, fps=fps), "smpl22")
            return Body(motion.positions.double(), None, fps, "of the file, on the 22 joints")
        joints = rep.positions(x) if joints_from == "positions" else rep.recover_from_rotations(x)
        return Body(joints, None, fps, "of the file: the target body of HumanML3D")
    if isinstance(rep, ViMoGen276):
        local, joints = rep.arrays(x)
    else:
        assert isinstance(rep, MS272)
        joints, local = rep.positions(x), rep.rotations(x)[0]
    if joints_from == "positions":
        return Body(joints, local, fps, "as stored")
    bones = skeleton or measured_offsets(local, joints)
    posed = bones.forward_kinematics(local, joints[:, 0])
    return Body(posed, local, fps, "the given skeleton" if skeleton else "measured from the clip")


def write_body(body: Body, target: str, target_offsets: Tensor | None = None) -> Tensor:
    """Features `(T', D)` float32 of a body in another representation, at the body's frame rate."""
    rep = representation(target)
    if isinstance(rep, HumanML) and target != "kit251":
        return rep.encode_positions(body.joints, target_offsets).float()
    local = body.rotations
    if local is None:
        local = solve_rotations(body.joints, fit_skeleton(body.joints, smpl22()))
    if isinstance(rep, HumanML):  # toe tips need rotations: through a motion on the body's own bones
        bones = measured_offsets(local, body.joints)
        motion = Motion(bones, body.joints[:, 0].float(), local.float(), rep.fps)
        return rep.encode(motion, target_offsets)
    if isinstance(rep, SMPL135):
        return rep.encode_arrays(local, body.joints[:, 0]).float()
    if isinstance(rep, ViMoGen276):
        return rep.encode_arrays(local, body.joints).float()
    assert isinstance(rep, MS272)
    return rep.encode_arrays(local[None], body.joints[None])[0].float()


# -- time


def resample_joints(joints: Tensor, fps: float, fps_out: float) -> Tensor:
    """Joints `(T, J, 3)` at another rate by linear interpolation, as HumanML3D converters do it.

    An integer ratio takes every k-th frame; otherwise there are `round((T - 1) / fps * fps_out) + 1` frames, the last
    held where it would lie beyond the end.
    """
    low, high, weight = _when(len(joints), fps, fps_out)
    return torch.lerp(joints[low], joints[high], weight[:, None, None].to(joints))


def resample_body(body: Body, fps_out: float) -> Body:
    """The body at another rate; rotations along the shortest arc."""
    if abs(body.fps - fps_out) < 1e-6 * fps_out:
        return body
    low, high, weight = _when(len(body.joints), body.fps, fps_out)
    local = body.rotations
    if local is not None:
        local = rotation.slerp(local[low], local[high], weight[:, None].to(local))
    return Body(resample_joints(body.joints, body.fps, fps_out), local, fps_out, body.bones)


def _when(frames: int, fps: float, fps_out: float) -> tuple[Tensor, Tensor, Tensor]:
    """For every frame of the new rate the old ones before and after it and the weight of the latter."""
    ratio = fps / fps_out
    count = round((frames - 1) / ratio) + 1
    if abs(ratio - round(ratio)) < 1e-6:
        count = (frames - 1) // round(ratio) + 1
    where = (torch.arange(count, dtype=torch.float64) * ratio).clamp(max=frames - 1)
    low = where.floor().long().clamp(max=max(frames - 2, 0))
    return low, (low + 1).clamp(max=frames - 1), where - low


# -- the loss


def compare(motion: Motion, again: Motion, target: str) -> ConversionReport:
    """What a motion kept on its way through a file of the kind `target`, joints matched by name, frames by number.

    Raises VadisError when the two have different trees.
    """
    if not again.skeleton.same_tree(motion.skeleton):
        raise VadisError(f"can't compare {motion.skeleton} with {again.skeleton}: their joints differ.")
    frames = min(motion.num_frames, again.num_frames)
    turn, aligned = lay_on(again.positions[:frames].double(), motion.positions[:frames].double())
    off = (aligned - motion.positions[:frames]).norm(dim=-1) * 1000
    local = again.rotations[:frames].double()
    local = torch.cat([turn @ local[:, :1], local[:, 1:]], dim=1)
    angles = rotation.to_rotvec(local.transpose(-1, -2) @ motion.rotations[:frames].double()).norm(dim=-1).rad2deg()
    dropped = () if frames == motion.num_frames else (f"the last {motion.num_frames - frames} frame(s)",)
    same_bones = bool((again.skeleton.offsets - motion.skeleton.offsets).abs().max() < 1e-5)
    return ConversionReport(
        "motion", target, ("motion", target), bool(off.max() < 0.01 and angles.max() < 0.05) and not dropped,
        motion.num_frames, again.num_frames, motion.fps, again.fps, "kept" if same_bones else "changed", None, dropped,
        (), float(off.mean()), float(off.max()), float(angles.mean()), float(angles.max()),
    )  # fmt: skip


def measure(
    body: Body, made: Tensor, target: str, fps_out: float, source: str = "motion", joints_from: str | None = None
) -> ConversionReport:
    """What features `made` `(T', D)` of `target` keep of a body, by reading them back at the body's own times."""
    bones = None if body.rotations is None else measured_offsets(body.rotations, body.joints)
    back = read_body(made, target, fps_out, skeleton=bones or fit_skeleton(body.joints, smpl22()))
    covered = 1 + int((len(back.joints) - 1) * body.fps / fps_out + 1e-6)
    covered = min(covered, len(body.joints))
    when = (torch.arange(covered, dtype=torch.float64) * fps_out / body.fps).clamp(max=len(back.joints) - 1)
    low = when.floor().long().clamp(max=max(len(back.joints) - 2, 0))
    high, weight = (low + 1).clamp(max=len(back.joints) - 1), when - low
    joints = torch.lerp(back.joints[low], back.joints[high], weight[:, None, None].to(back.joints))
    turn, aligned = lay_on(joints, body.joints[:covered])
    off = (aligned - body.joints[:covered]).norm(dim=-1) * 1000
    angles = None
    if body.rotations is not None and back.rotations is not None:
        local = rotation.slerp(back.rotations[low], back.rotations[high], weight[:, None].to(back.rotations))
        local = torch.cat([turn @ local[:, :1], local[:, 1:]], dim=1)
        relative = local.transpose(-1, -2) @ body.rotations[:covered]
        angles = rotation.to_rotvec(relative).norm(dim=-1).rad2deg()
    dropped, made_up = _fields(body, source, target, covered)
    exact = bool(off.max() < 0.01) and not dropped and not made_up and (angles is None or bool(angles.max() < 0.05))
    rates = () if body.fps == fps_out else (f"{body.fps:g} → {fps_out:g} frames/s",)
    differ = None
    if bones is not None:
        differ = float((bones.forward_kinematics(body.rotations, body.joints[:, 0]) - body.joints).norm(dim=-1).mean())
    return ConversionReport(
        source, target, (source, *rates, target), exact, len(body.joints), len(made), body.fps, fps_out, body.bones,
        joints_from, dropped, made_up, float(off.mean()), float(off.max()),
        None if angles is None else float(angles.mean()), None if angles is None else float(angles.max()),
        None if differ is None else 1000 * differ,
    )  # fmt: skip


def _fields(body: Body, source: str, target: str, covered: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the target has no room for, and what it needs and the source doesn't hold."""
    dropped, made_up = [], []
    rep = representation(target)
    if covered < len(body.joints):
        dropped.append(f"the last {len(body.joints) - covered} frame(s) of {len(body.joints)}")
    if isinstance(rep, HumanML):
        dropped.append("bone lengths (every body becomes the data set's)")
        if body.rotations is not None:
            dropped.append("joint rotations (twist about bones isn't held)")
    elif body.rotations is None:
        made_up.append("joint rotations, solved from the joints (twist by hinge rules)")
    if isinstance(rep, SMPL135):
        dropped.append("body shape and joint positions")
    return tuple(dropped), tuple(made_up)


def lay_on(joints: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The turn about Y `(3, 3)` and the joints `(T, J, 3)` so turned and shifted that they lie nearest to `target`."""
    middle, goal = joints.mean((0, 1)), target.mean((0, 1))
    a, b = joints - middle, target - goal
    sine = (a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2]).sum()
    cosine = (a[..., 0] * b[..., 0] + a[..., 2] * b[..., 2]).sum()
    turn = rotation.yaw(torch.atan2(sine, cosine))
    return turn, a @ turn.T + goal
