"""From a sentence to a kinematic plan: how fast, which way, how high, which hand. A distribution, not a guess.

A small transformer reads the token features of a frozen text encoder and the requested length, and gives a mean and a
standard deviation for every attribute of a plan (`vadis.metrics.kinematics`). What the sentence leaves open gets a wide
distribution. Two uses: values that the sentence determines condition the generator, and the likelihood of what a sample
really does ranks several samples of it.

Shapes: B texts, L text tokens, P plan rows, A attributes.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.component import Component
from vadis.metrics.kinematics import ATTRIBUTES, PLAN_ROWS

_CAP = 12.0  # squared deviations count up to here in a score, so that one odd attribute can't decide alone
_WHOLE = 2.0  # weight of the row of the whole clip against each quarter


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class KinematicPlannerConfig:
    """A planner for token features of `text_dim` values."""

    type: Literal["kinematic_planner"] = "kinematic_planner"
    text_dim: int = 384
    width: int = 192
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1
    rows: int = PLAN_ROWS
    attributes: tuple[str, ...] = ATTRIBUTES


class Plan(NamedTuple):
    """A normal distribution over plans in normalised units."""

    mean: Tensor
    """(B, P, A)."""
    log_std: Tensor
    """(B, P, A), 0 is as wide as the training data."""


class KinematicPlanner(Component):
    """Text token features to a distribution over kinematic plans; `center` and `scale` (P, A) normalise plans."""

    kind = "planner"
    config_class = KinematicPlannerConfig
    keep_float32 = True
    center: Tensor
    scale: Tensor

    def __init__(self, config: KinematicPlannerConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or KinematicPlannerConfig()
        self.text_in = nn.Linear(c.text_dim, c.width)
        self.length_in = nn.Linear(1, c.width)
        self.queries = nn.Parameter(0.02 * torch.randn(c.rows, c.width))
        self.place = nn.Parameter(0.02 * torch.randn(160, c.width))
        layer = nn.TransformerEncoderLayer(
            c.width, c.heads, 3 * c.width, c.dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, c.layers, norm=nn.LayerNorm(c.width), enable_nested_tensor=False)
        self.out = nn.Linear(c.width, 2 * len(c.attributes))
        self.register_buffer("center", torch.zeros(c.rows, len(c.attributes)))
        self.register_buffer("scale", torch.ones(c.rows, len(c.attributes)))

    def set_statistics(self, plans: Tensor) -> None:
        """Take the normalisation from training plans `(N, P, A)`."""
        self.center.copy_(plans.mean(0))
        self.scale.copy_(plans.std(0).clamp_min(1e-3))

    def normalize(self, plans: Tensor) -> Tensor:
        """Plans `(..., P, A)` in physical units to zero mean and unit variance, clipped to five deviations."""
        return ((plans - self.center) / self.scale).clamp(-5, 5)

    def forward(self, text: Tensor, text_lengths: Tensor, seconds: Tensor) -> Plan:
        """Text features `(B, L, C)` with lengths `(B,)` and requested seconds `(B,)` to a distribution over plans."""
        batch, length = text.shape[:2]
        tokens = self.text_in(text) + self.place[:length]
        when = self.length_in(torch.log(seconds)[:, None])[:, None]
        queries = self.queries.expand(batch, -1, -1) + when
        padding = torch.arange(length, device=text.device) >= text_lengths[:, None]
        padding = F.pad(padding, (self.config.rows, 0))
        hidden = self.encoder(torch.cat([queries, tokens], dim=1), src_key_padding_mask=padding)
        mean, log_std = self.out(hidden[:, : self.config.rows]).chunk(2, dim=-1)
        return Plan(mean, 2.5 * torch.tanh(log_std / 2.5) - 0.5)

    def loss(self, text: Tensor, text_lengths: Tensor, seconds: Tensor, plans: Tensor) -> Tensor:
        """Negative log-likelihood of plans `(B, P, A)` in physical units, robust to outliers (Student's t, 5 degrees)."""
        plan = self(text, text_lengths, seconds)
        squared = ((self.normalize(plans) - plan.mean) * torch.exp(-plan.log_std)) ** 2
        return (3.0 * torch.log1p(squared / 5.0) + plan.log_std).mean()

    @torch.no_grad()
    def plan(self, text: Tensor, text_lengths: Tensor, seconds: Tensor, certain: float = 0.75) -> tuple[Tensor, Tensor]:
        """Normalised plan `(B, P, A)` and the mask of what the text determines: standard deviation below `certain`."""
        plan = self(text, text_lengths, seconds)
        return plan.mean, torch.exp(plan.log_std) < certain

    @torch.no_grad()
    def score(self, text: Tensor, text_lengths: Tensor, seconds: Tensor, plans: Tensor) -> Tensor:
        """How well plans `(B, N, P, A)` of N samples fit each text: `(B, N)`, higher is better, 0 at best."""
        plan = self(text, text_lengths, seconds)
        deviation = (self.normalize(plans) - plan.mean[:, None]) * torch.exp(-plan.log_std)[:, None]
        rows = deviation.square().clamp(max=_CAP).mean(-1)
        weight = torch.tensor([_WHOLE] + [1.0] * (self.config.rows - 1), device=rows.device)
        return -0.5 * (rows * weight).sum(-1) / weight.sum()
