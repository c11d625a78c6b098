"""`Motion`: one body moving. A skeleton, its root path, local joint rotations and a frame rate; every edit returns a new one.

World: right-handed, Y up, metres. A canonical motion starts above the origin facing +Z, its left side towards +X.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import ShapeError, SkeletonError, VadisError
from vadis.plugins import resolve
from vadis.skeleton import Skeleton

MAX_FPS = 100_000
MAX_FRAMES = 10_000_000
"""Of a motion that is resampled: four days at 30 frames per second."""


@dataclass(frozen=True, eq=False)
class Motion:
    """A body moving through time; immutable.

    Args:
        skeleton: the joint tree (J joints).
        root: `(T, 3)` float32, world position of joint 0 in metres.
        rotations: `(T, J, 3, 3)` float32, local to the parent; joint 0's are world rotations.
        fps: frames per second.
        meta: free notes that travel along (source, licence, caption, …).

    Raises ShapeError for arrays that don't fit, VadisError for NaN or infinite values or a frame rate that isn't positive.
    """

    skeleton: Skeleton
    root: Tensor
    rotations: Tensor
    fps: float
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames, joints = self.root.shape[0], self.skeleton.num_joints
        if self.root.shape != (frames, 3) or self.rotations.shape != (frames, joints, 3, 3):
            raise ShapeError(
                f"a motion of {joints} joints needs root (T, 3) and rotations (T, {joints}, 3, 3); got "
                f"{tuple(self.root.shape)} and {tuple(self.rotations.shape)}."
            )
        if frames == 0:
            raise ShapeError("a motion needs at least one frame; got none.")
        if not (0 < self.fps < MAX_FPS):
            raise VadisError(f"frames per second must be positive, and less than {MAX_FPS:,}; got {self.fps}.")
        if not (torch.isfinite(self.root).all() and torch.isfinite(self.rotations).all()):
            bad = ~(torch.isfinite(self.root).all(-1) & torch.isfinite(self.rotations).flatten(1).all(-1))
            first = int(bad.nonzero()[0])
            raise VadisError(
                f"{int(bad.sum())} of {frames} frames hold NaN or infinite values, the first is frame {first}."
            )

    def __len__(self) -> int:
        """Frames."""
        return self.num_frames

    def __getitem__(self, frames: slice) -> "Motion":
        """Some of the frames: `motion[30:90]`. With a step every so many, at a frame rate that much lower.

        Raises VadisError for a single number, a step below 1, and where no frame is left.
        """
        if not isinstance(frames, slice):
            raise VadisError(f"motion[{frames!r:.40}]: give a range of frames, such as motion[30:90] or motion[30:31].")
        if frames.step is not None and frames.step < 1:
            raise VadisError(f"a step of {frames.step} frames: give 1 or more; time can't run backwards.")
        if not len(picked := range(self.num_frames)[frames]):
            raise VadisError(f"no frame is left of {self.num_frames}: {frames.start} to {frames.stop} holds none.")
        return self.replace(root=self.root[frames], rotations=self.rotations[frames], fps=self.fps / picked.step)

    def __eq__(self, other: object) -> bool:
        """Whether both move alike, to the bit: skeleton, root, rotations and frame rate. Notes (`meta`) don't count."""
        if not isinstance(other, Motion):
            return NotImplemented
        return (
            self.fps == other.fps
            and _same_bones(self.skeleton, other.skeleton)
            and torch.equal(self.root, other.root)
            and torch.equal(self.rotations, other.rotations)
        )

    def __hash__(self) -> int:
        return hash((self.num_frames, self.fps, self.skeleton.names, self.root[-1].numpy().tobytes()))

    @property
    def num_frames(self) -> int:
        return self.root.shape[0]

    @property
    def seconds(self) -> float:
        """Duration in seconds, one frame period per frame."""
        return self.num_frames / self.fps

    @cached_property
    def global_rotations(self) -> Tensor:
        """World joint rotations `(T, J, 3, 3)`."""
        return self.skeleton.global_rotations(self.rotations)

    @cached_property
    def positions(self) -> Tensor:
        """World joint positions `(T, J, 3)` in metres, by forward kinematics."""
        return self.skeleton.forward_kinematics(self.rotations, self.root, self.global_rotations)

    @cached_property
    def heading(self) -> Tensor:
        """Heading of the root's z axis `(T,)` in radians, unwrapped over time."""
        return rotation.unwrap(rotation.heading(self.rotations[:, 0]))

    def replace(self, **changes: Any) -> "Motion":
        """A copy with some fields changed."""
        return replace(self, **changes)

    def resample(self, fps: float) -> "Motion":
        """The motion at another frame rate: linear root path, slerp for rotations, the first frame kept.

        The last frame is the last moment of the new rate that lies within the motion; nothing is made up beyond it.
        """
        if not 0 < fps < MAX_FPS:
            raise VadisError(f"frames per second must be positive, and less than {MAX_FPS:,}; got {fps}.")
        if self.seconds * fps > MAX_FRAMES:
            raise VadisError(
                f"{self.seconds:.6g} s at {fps:g} frames per second are {self.seconds * fps:.3g} frames; at most "
                f"{MAX_FRAMES:,} are made: ask for a lower rate."
            )
        if abs(fps - self.fps) < 1e-6 * fps:
            return self.replace(fps=float(fps))
        count = (
            int((self.num_frames - 1) * fps / self.fps + 1e-4) + 1
        )  # 1e-4: rates such as 119.88 are rounded in files
        where = (torch.arange(count, dtype=torch.float64) * (self.fps / fps)).clamp(max=self.num_frames - 1)
        low = where.floor().long().clamp(max=max(self.num_frames - 2, 0))
        high = (low + 1).clamp(max=self.num_frames - 1)
        weight = (where - low).float()
        root = torch.lerp(self.root[low], self.root[high], weight[:, None])
        rotations = self.rotations[low]
        inner = (weight > 1e-6).nonzero()[:, 0]  # integer ratios need no interpolation at all
        if len(inner):
            turned = rotation.slerp(rotations[inner], self.rotations[high[inner]], weight[inner, None])
            rotations = rotations.index_copy(0, inner, turned)
        return self.replace(root=root, rotations=rotations, fps=float(fps))

    def transform(self, turn: Tensor, shift: Tensor) -> "Motion":
        """Move the whole motion: rotate by `turn` `(3, 3)` about the origin, then translate by `shift` `(3,)` metres."""
        rotations = torch.cat([turn @ self.rotations[:, :1], self.rotations[:, 1:]], dim=1)
        return self.replace(root=self.root @ turn.T + shift, rotations=rotations)

    def canonicalize(self, floor: bool = True) -> "Motion":
        """Frame 0 faces +Z above the origin; with `floor` the lowest joint of the whole motion is put at height 0."""
        turned = self.transform(rotation.yaw(-self.heading[0]), torch.zeros(3))
        low = turned.positions[..., 1].min() if floor else torch.zeros(())
        return turned.replace(root=turned.root - torch.stack([turned.root[0, 0], low, turned.root[0, 2]]))

    def crop(self, start: int = 0, stop: int | None = None) -> "Motion":
        """Frames `start` to `stop` (python slice rules); VadisError when nothing is left."""
        root = self.root[start:stop]
        if len(root) == 0:
            raise VadisError(f"frames {start}:{stop} of a motion of {self.num_frames} frames are empty.")
        return self.replace(root=root, rotations=self.rotations[start:stop])

    def mirror(self) -> "Motion":
        """Swap left and right: reflect the world in x and exchange the joints of either side, bone lengths included."""
        swap = self.skeleton.mirror_indices
        flip = torch.tensor([-1.0, 1.0, 1.0])
        rotations = self.rotations[:, swap] * flip[:, None] * flip
        return self.replace(skeleton=self.skeleton.mirror(), root=self.root * flip, rotations=rotations)

    def retime(self, speed: float) -> "Motion":
        """Play faster (`speed` > 1) or slower at an unchanged frame rate."""
        return self.replace(fps=self.fps * speed).resample(self.fps)

    @staticmethod
    def concatenate(motions: Sequence["Motion"], blend: int = 0, align: bool = True) -> "Motion":
        """Play motions one after another on the same skeleton and frame rate.

        Args:
            motions: at least one.
            blend: frames of overlap that are cross-faded (slerp and lerp with a smooth weight) at every seam.
            align: carry each motion to the place and heading where the one before ends; heights are kept.

        Raises SkeletonError or VadisError when trees or frame rates differ or a part is shorter than its blends.
        """
        if blend < 0:
            raise VadisError(f"blend={blend}: give the frames of overlap, 0 or more.")
        if not motions:
            raise VadisError("nothing to concatenate: give at least one motion.")
        result = motions[0]
        for motion in motions[1:]:
            if not motion.skeleton.same_tree(result.skeleton):
                raise SkeletonError(
                    f"can't join {motion.skeleton} to {result.skeleton}: retarget them to one skeleton first."
                )
            if abs(motion.fps - result.fps) > 1e-3:
                raise VadisError(
                    f"can't join {motion.fps:g} to {result.fps:g} frames/s: resample them to one rate first."
                )
            if blend > min(motion.num_frames, result.num_frames):
                raise VadisError(f"a blend of {blend} frames needs parts at least that long.")
            result = _join(result, motion, blend, align)
        return result

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write to a file; the suffix decides: `.bvh`, `.glb`, `.npz`, `.npy`, or to look at `.png`, `.html`, `.gif`, `.mp4`.

        `options` are those of the format's writer (see `vadis.io`).
        """
        from vadis.io import save_motion

        return save_motion(self, path, **options)

    def _repr_html_(self) -> str:
        """A player for notebooks, whole in itself; see `vadis.viewer.notebook`."""
        return resolve("vadis.viewer.notebook:player")(self)

    def __repr__(self) -> str:
        return f"Motion({self.num_frames} frames at {self.fps:g}/s = {self.seconds:.2f} s, {self.skeleton})"


def _same_bones(one: Skeleton, other: Skeleton) -> bool:
    same = (one.names, one.parents) == (other.names, other.parents) and torch.equal(one.offsets, other.offsets)
    return same and one.end_sites.keys() == other.end_sites.keys()


def _join(first: Motion, second: Motion, blend: int, align: bool) -> Motion:
    if align:
        seam = first.num_frames - max(blend, 1)  # the frame of `first` where frame 0 of `second` is laid
        second = second.transform(rotation.yaw(first.heading[seam] - second.heading[0]), torch.zeros(3))
        move = first.root[seam] - second.root[0]
        if not blend:  # keep going: one more step at the speed of the last frame
            move = move + (first.root[-1] - first.root[-2] if first.num_frames > 1 else 0)
        second = second.replace(root=second.root + move * torch.tensor([1.0, 0.0, 1.0]))
    if not blend:
        parts = (torch.cat([first.root, second.root]), torch.cat([first.rotations, second.rotations]))
        return first.replace(root=parts[0], rotations=parts[1])
    t = (torch.arange(blend) + 1) / (blend + 1)
    weight = t * t * (3 - 2 * t)
    root = torch.lerp(first.root[-blend:], second.root[:blend], weight[:, None])
    rotations = rotation.slerp(first.rotations[-blend:], second.rotations[:blend], weight[:, None])
    return first.replace(
        root=torch.cat([first.root[:-blend], root, second.root[blend:]]),
        rotations=torch.cat([first.rotations[:-blend], rotations, second.rotations[blend:]]),
    )
