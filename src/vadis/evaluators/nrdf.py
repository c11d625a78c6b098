"""Pose quality by a neural field (NRDF, He et al., 2024): the learned distance of a pose to plausible human poses.

One small network a joint reads its rotation and the features of its parent; the 21 x 6 features of a pose go through a
plain network to one distance. MBench's value is ten times the mean over the frames of a clip.

The published benchmark feeds 24 joints into 21 places: the world orientation of the pelvis takes the place of the first
hip and every joint is one place off. `joints="literal"` repeats that to compare with published values; `joints="body"`
feeds the 21 body joints.

Shapes: N poses, J joints.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis import rotation
from vadis.checkpoint import load_strictly
from vadis.component import Component
from vadis.config import build_config
from vadis.errors import ShapeError, VadisError
from vadis.sizes import CONFIG, Positive, Width
from vadis.skeleton import SMPL22_PARENTS

PARENTS = tuple(parent - 1 if parent > 0 else -1 for parent in SMPL22_PARENTS[1:])
"""Parent of each of the 21 body joints among themselves; -1 for those that hang on the pelvis."""


@dataclass(frozen=True, config=CONFIG)
class PoseFieldConfig:
    """The published field."""

    type: Literal["nrdf"] = "nrdf"
    parents: Annotated[tuple[int, ...], Field(min_length=1, max_length=1024)] = PARENTS
    """Parent of every joint, -1 for none; a parent comes before its children."""
    features: Width = 6
    """Values a joint passes on."""
    hidden: Width = 10
    """Width of the network of a joint."""
    widths: Annotated[tuple[Width, ...], Field(max_length=64)] = (256, 512, 1024, 512, 256, 64)
    """Widths of the distance network."""
    beta: Positive = 100.0
    """Sharpness of softplus."""

    def __post_init__(self) -> None:
        if any(not -1 <= parent < joint for joint, parent in enumerate(self.parents)) or not self.parents:
            raise ValueError("every parent must come before its children, -1 for none")


class _Joints(nn.Module):
    """A small network for each joint: `inputs[j]` → hidden → `out`, named as published."""

    def __init__(self, inputs: list[int], hidden: int, out: int, beta: float) -> None:
        super().__init__()
        self.net = nn.ModuleList(nn.Module() for _ in inputs)
        for module, width in zip(self.net, inputs, strict=True):
            act = nn.Softplus(beta)
            module.net = nn.Sequential(nn.Linear(width, hidden), act, nn.Linear(hidden, out), act)

    def step(self, joint: int, x: Tensor) -> Tensor:
        return self.net[joint].net(x)  # type: ignore[operator, union-attr]


class PoseField(Component):
    """Distance of poses to the manifold of plausible ones. `dec` is never used; published files hold it."""

    kind = "evaluator"
    config_class = PoseFieldConfig

    def __init__(self, config: PoseFieldConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or PoseFieldConfig()
        has_parent = [parent >= 0 for parent in c.parents]
        self.enc = _Joints([4 + c.features * more for more in has_parent], c.hidden, c.features, c.beta)
        self.dec = _Joints([c.features + 4 * more for more in has_parent], c.hidden, 4, c.beta)
        widths = (c.features * len(c.parents), *c.widths, 1)
        self.dfnet = nn.Module()
        for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            self.dfnet.add_module(f"lin{k}", nn.Linear(a, b))
        self.act = nn.Softplus(c.beta)

    def encode(self, quaternions: Tensor) -> Tensor:
        """Features `(N, 6 J)` of unit quaternions `(N, J, 4)`, real part first."""
        features: list[Tensor] = []
        for joint, parent in enumerate(self.config.parents):
            own = quaternions[:, joint]
            features.append(self.enc.step(joint, own if parent < 0 else torch.cat([own, features[parent]], -1)))
        return torch.cat(features, -1)

    def forward(self, quaternions: Tensor) -> Tensor:
        """Distances `(N,)` of poses given as unit quaternions `(N, J, 4)`, real part first and not negative."""
        joints = len(self.config.parents)
        if quaternions.ndim != 3 or quaternions.shape[1:] != (joints, 4):
            raise ShapeError(f"poses must be quaternions (N, {joints}, 4); got {tuple(quaternions.shape)}.")
        x = self.encode(quaternions)
        for layer in self.dfnet.children():
            x = self.act(layer(x))
        return x[:, 0]

    @torch.no_grad()
    def pose_quality(self, rotations: Any, joints: Literal["body", "literal"] = "body") -> Tensor:
        """Ten times the distance of every pose `(T,)`; lower is better, a clip's value is the mean.

        rotations: local rotations `(T, 22 or 24, 3, 3)` in SMPL order, the pelvis first; `Motion.rotations` of smpl22.
        Raises ShapeError for other shapes, VadisError for NaN or another `joints`.
        """
        matrices = torch.as_tensor(rotations, dtype=torch.float32, device=self.device)
        count = len(self.config.parents)
        if matrices.ndim != 4 or matrices.shape[-2:] != (3, 3) or not count < matrices.shape[1] <= count + 3:
            raise ShapeError(
                f"pose quality needs local rotations (T, {count + 1}, 3, 3) in SMPL order, pelvis first; got "
                f"{tuple(matrices.shape)}. Retarget to smpl22 first."
            )
        if joints not in ("body", "literal"):
            raise VadisError(f"joints={joints!r}: use body (right) or literal (as the published benchmark does).")
        bad = (~torch.isfinite(matrices).flatten(1).all(1)).nonzero()[:, 0]
        if len(bad):
            raise VadisError(f"{len(bad)} poses hold NaN or infinite rotations, the first is frame {int(bad[0])}.")
        first = 1 if joints == "body" else 0
        quaternions = rotation.to_quat_wxyz(matrices[:, first : first + count])
        return 10 * self(torch.where(quaternions[..., :1] < 0, -quaternions, quaternions))


def from_nrdf(state: dict[str, Tensor], **options: Any) -> PoseField:
    """The field of a published `checkpoint_epoch_best.tar`, strictly; `options` are fields of `PoseFieldConfig`."""
    field = PoseField(build_config(PoseFieldConfig, options, "nrdf options"))
    load_strictly(field, state)
    return field.eval()
