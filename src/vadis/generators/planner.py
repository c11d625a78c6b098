"""From a sentence to a kinematic plan: how fast, which way, how high, which hand. A distribution, not a guess.

A small transformer reads the token features of a frozen text encoder and the requested length, and gives a mean and a
standard deviation for every attribute of a plan (`vadis.kinematics`). What the sentence leaves open gets a wide
distribution. Two uses: values that the sentence determines condition the generator, and the likelihood of what a sample
really does ranks several samples of it.

Shapes: B texts, L text tokens, P plan rows, A attributes.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.component import Component
from vadis.errors import ModelError
from vadis.kinematics import ATTRIBUTES, PLAN_ROWS, mirror_plan
from vadis.sizes import CONFIG, Dropout, Heads, Layers, Name, Positions, Width

PlanKind = Literal["mean", "bank"]
_CAP = 12.0  # squared deviations count up to here in a score, so that one odd attribute can't decide alone
_WHOLE = 2.0  # weight of the row of the whole clip against each quarter


@dataclass(frozen=True, config=CONFIG)
class KinematicPlannerConfig:
    """A planner for token features of `text_dim` values."""

    type: Literal["kinematic_planner"] = "kinematic_planner"
    text_dim: Width = 384
    width: Width = 192
    layers: Layers = 3
    heads: Heads = 4
    dropout: Dropout = 0.1
    match_width: Width = 64
    """Size of the space in which sentences and plans are compared."""
    bank_size: int = Field(default=0, ge=0, le=10_000_000)
    """Plans of real motion that travel with the planner, for `propose`."""
    rows: Positions = PLAN_ROWS
    attributes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1024)] = ATTRIBUTES

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ModelError(f"width {self.width} must be a multiple of heads {self.heads}.")


class Plan(NamedTuple):
    """A normal distribution over plans in normalised units."""

    mean: Tensor
    """(B, P, A)."""
    log_std: Tensor
    """(B, P, A), 0 is as wide as the training data."""


class _TextTower(nn.Module):
    """Token features to one vector: a few learned queries look over the tokens."""

    def __init__(self, dim: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(dim, heads)
        self.value = nn.Linear(dim, width)
        self.out = nn.Sequential(nn.Linear(heads * width, 256), nn.GELU(), nn.Linear(256, out))

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
        weight = self.key(text).masked_fill(~inside[..., None], -1e4).softmax(dim=1)  # (B, L, heads)
        return self.out((weight.transpose(1, 2) @ F.gelu(self.value(text))).flatten(1))


class KinematicPlanner(Component):
    """Text token features to a distribution over kinematic plans; `center` and `scale` (P, A) normalise plans."""

    kind = "planner"
    config_class = KinematicPlannerConfig
    keep_float32 = True
    center: Tensor
    scale: Tensor
    bank: Tensor

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
        self.match_text = _TextTower(c.text_dim, 128, 4, c.match_width)
        self.match_plan = nn.Sequential(
            nn.Linear(c.rows * len(c.attributes), 384), nn.GELU(), nn.Dropout(c.dropout), nn.Linear(384, 256), nn.GELU(),
            nn.Linear(256, c.match_width),
        )  # fmt: skip
        self.log_temperature = nn.Parameter(torch.tensor(2.7))
        self.register_buffer("center", torch.zeros(c.rows, len(c.attributes)))
        self.register_buffer("bank", torch.zeros(c.bank_size, c.rows, len(c.attributes)))
        self.register_buffer("scale", torch.ones(c.rows, len(c.attributes)))

    def set_statistics(self, plans: Tensor) -> None:
        """Take the normalisation from training plans `(N, P, A)`."""
        self.center.copy_(plans.mean(0))
        self.scale.copy_(plans.std(0).clamp_min(1e-3))

    def normalize(self, plans: Tensor) -> Tensor:
        """Plans `(..., P, A)` in physical units to zero mean and unit variance, clipped to five deviations."""
        return ((plans - self.center) / self.scale).clamp(-5, 5)

    def normalize_rows(self, rows: Tensor) -> Tensor:
        """First rows of plans `(..., A)`, alone, as `normalize` does."""
        return ((rows - self.center[0]) / self.scale[0]).clamp(-5, 5)

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

    def embed_text(self, text: Tensor, text_lengths: Tensor) -> Tensor:
        """Unit vectors `(B, E)` of sentences, to be compared with those of plans."""
        return F.normalize(self.match_text(text, text_lengths), dim=-1)

    def embed_plan(self, plans: Tensor) -> Tensor:
        """Unit vectors `(..., E)` of plans `(..., P, A)` in physical units."""
        return F.normalize(self.match_plan(self.normalize(plans).flatten(-2)), dim=-1)

    def match_loss(self, text: Tensor, text_lengths: Tensor, plans: Tensor, same: Tensor) -> Tensor:
        """Contrastive loss (InfoNCE, both ways) of matching pairs; every mirrored plan is one more wrong answer.

        `same` (B, B) bool: pairs that say the same sentence and don't count against each other.
        """
        words = self.embed_text(text, text_lengths)
        bodies = self.embed_plan(torch.cat([plans, mirror_plan(plans, self.config.attributes)]))
        scale = self.log_temperature.clamp(max=3.4).exp()
        logits = scale * words @ bodies.T  # (B, 2 B)
        own = torch.arange(len(words), device=words.device)
        hide = same & ~torch.eye(len(words), dtype=torch.bool, device=words.device)
        logits = logits.masked_fill(F.pad(hide, (0, len(words))), -1e4)
        back = logits[:, : len(words)].T
        return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(back, own))

    @torch.no_grad()
    def match(self, text: Tensor, text_lengths: Tensor, plans: Tensor) -> Tensor:
        """Cosine `(B, N)` between each text and what N samples do, plans `(B, N, P, A)`."""
        return (self.embed_text(text, text_lengths)[:, None] * self.embed_plan(plans)).sum(-1)

    @torch.no_grad()
    def propose(
        self, text: Tensor, text_lengths: Tensor, seconds: float, count: int, seed: int, nearest: int = 24
    ) -> tuple[Tensor, Tensor]:
        """`count` normalised plans `(count, P, A)` of real motions that match one text `(1, L, C)`, and what is told of them.

        Drawn, by how well they match, from the `nearest` plans of the bank among those of about the asked length. Their
        own durations and distances are not told. Raises ModelError for a planner without a bank.
        """
        plans, weight = self._nearest(text, text_lengths, seconds, nearest)
        noise = torch.Generator().manual_seed(seed)
        plans = plans[torch.multinomial(weight.cpu(), count, replacement=True, generator=noise)]
        told = torch.ones_like(plans, dtype=torch.bool)
        names = self.config.attributes
        for name in ("seconds", "forward_distance", "left_distance"):
            told[..., names.index(name)] = False
        return plans, told

    @torch.no_grad()
    def agree(
        self, text: Tensor, text_lengths: Tensor, seconds: float, nearest: int = 12, certain: float = 0.75
    ) -> tuple[Tensor, Tensor]:
        """What real motions that match one text `(1, L, C)` have in common: normalised plan `(1, P, A)` and its mask.

        The mean of the `nearest` plans of the bank by how well they match; true where their deviation is below `certain`.
        Raises ModelError for a planner without a bank.
        """
        plans, weight = self._nearest(text, text_lengths, seconds, nearest)
        share = (weight / weight.sum())[:, None, None]
        mean = (share * plans).sum(0)
        deviation = (share * (plans - mean).square()).sum(0).sqrt()
        return mean[None], (deviation < certain)[None]

    def _nearest(self, text: Tensor, text_lengths: Tensor, seconds: float, count: int) -> tuple[Tensor, Tensor]:
        """The best matching plans of the bank `(count, P, A)`, normalised, and their weights, 1 for the best."""
        if not self.config.bank_size:
            raise ModelError("this planner has no bank of plans (bank_size 0): use `plan`.")
        length = self.bank[:, 0, self.config.attributes.index("seconds")]
        cosine = self.embed_plan(self.bank) @ self.embed_text(text, text_lengths)[0]
        cosine = torch.where((length / seconds).log().abs() < 0.4, cosine, cosine - 0.5)
        top = cosine.topk(min(count, self.config.bank_size))
        weight = (self.log_temperature.clamp(max=3.4).exp() * (top.values - top.values[0])).exp()
        return self.normalize(self.bank[top.indices]), weight

    @torch.no_grad()
    def score(self, text: Tensor, text_lengths: Tensor, seconds: Tensor, plans: Tensor) -> Tensor:
        """How well plans `(B, N, P, A)` of N samples fit each text: `(B, N)`, higher is better, 0 at best."""
        plan = self(text, text_lengths, seconds)
        deviation = (self.normalize(plans) - plan.mean[:, None]) * torch.exp(-plan.log_std)[:, None]
        rows = deviation.square().clamp(max=_CAP).mean(-1)
        weight = torch.tensor([_WHOLE] + [1.0] * (self.config.rows - 1), device=rows.device)
        return -0.5 * (rows * weight).sum(-1) / weight.sum()


def with_plan(vectors: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Sentence vectors `(B, H)` followed by the known values of plan rows `(B, A)` and by what is known: `(B, H + 2 A)`."""
    return torch.cat([vectors, values.masked_fill(~mask, 0), mask.to(vectors)], dim=-1)


class PlannedSentences:
    """A text encoder whose sentence vectors tell the plan of the next seconds too, as a planner draws it from the text.

    Args:
        encoder: a text encoder whose token features the planner reads.
        seconds: what the plan tells of.
        plan: what real motions that match the text have in common (bank), or the planner's mean.
        certain: values are told where their deviation is below this, in units of the training data.
    """

    def __init__(
        self, encoder: Any, planner: KinematicPlanner, seconds: float, plan: PlanKind = "bank", certain: float = 0.75
    ) -> None:
        self.encoder, self.planner, self.seconds, self.plan, self.certain = encoder, planner, seconds, plan, certain

    def sentence(self, texts: str | Sequence[str]) -> Tensor:
        """Vectors `(B, H + 2 A)`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens, lengths = self.encoder.encode(texts)
        if self.plan == "bank":
            rows = [
                self.planner.agree(tokens[i : i + 1, :n], torch.tensor([n]), self.seconds, certain=self.certain)
                for i, n in enumerate(map(int, lengths))
            ]
            values, mask = (torch.cat([row[k] for row in rows]) for k in (0, 1))
        else:
            values, mask = self.planner.plan(tokens, lengths, torch.full((len(texts),), self.seconds), self.certain)
        return with_plan(self.encoder.sentence(texts), values[:, 0], mask[:, 0])

    def null_sentence(self) -> Tensor:
        """(H + 2 A,): no text, no plan."""
        return F.pad(self.encoder.null_sentence(), (0, 2 * len(self.planner.config.attributes)))
