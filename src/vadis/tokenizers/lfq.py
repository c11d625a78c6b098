"""Lookup-free quantisation (Yu et al., 2023) and the 1-D tokenizer of "Quo Vadis, Motion Generation?" (Table 11).

A code is the signs of its channels, so nothing has to be looked up and 2^14 codes cost 14 numbers. The entropy penalty asks
for sure codes (small entropy of a row) that are all used (large entropy of the mean over rows). Since the codes are all
sign vectors, both are exact without a list of them: a row's distribution is a product over bits, and the mean over rows is
one matrix product of the distributions of its two halves. N rows cost N * 2^(bits / 2) numbers, not N * 2^bits.

Shapes: B clips, S token steps, G groups, N rows (all steps of a batch), W width of the network.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vadis.sizes import CONFIG, Groups, NotNegative, Positive
from vadis.tokenizers.base import Quantized, Quantizer, TokenizerOutput, grid_vectors
from vadis.tokenizers.conv import ConvConfig, ConvTokenizer
from vadis.tokenizers.perceptual import Perceptual

BitOrder = Literal["msb", "lsb"]
SMALLEST = 1e-5  # probabilities are clamped to it inside logarithms, as in the library that published runs use
BLOCK = 256  # rows whose codes are listed at once


class LFQ(Quantizer):
    """The signs of linear projections.

    Args:
        bits: channels of a code; the vocabulary is 2^bits.
        dim: width of the input; a linear layer on either side when it differs from groups * bits.
        groups: tokens per step, each of `bits` channels.
        bit_order: "msb": the first channel is the highest bit (the library's order); "lsb": the lowest (the paper's).
        inv_temperature: how sharp the distributions of the entropies are.
        diversity_gamma: weight of the mean's entropy against the rows'.
        clamped_entropy: the entropy of rows with probabilities below 1e-5 clamped, as the library has it, instead of the
            exact one. It lists all codes (in blocks): slow, for comparisons.

    Shape:
        x (..., dim) -> vectors (..., dim), tokens (...) or (..., G) int64; losses "commitment" and "entropy", which are
        means over all rows.

    Straight-through: signs pass gradients as they are; 0 counts as negative. Always float32, also under autocast.
    """

    mask: Tensor

    def __init__(
        self,
        bits: int = 14,
        dim: int | None = None,
        groups: int = 1,
        bit_order: BitOrder = "msb",
        inv_temperature: float = 100.0,
        diversity_gamma: float = 1.0,
        clamped_entropy: bool = False,
    ) -> None:
        super().__init__()
        self.bits, self.groups, self.vocab_size = bits, groups, 2**bits
        self.inv_temperature, self.diversity_gamma = inv_temperature, diversity_gamma
        self.clamped_entropy = clamped_entropy
        channels = bits * groups
        dim = channels if dim is None else dim
        self.project_in = nn.Linear(dim, channels) if dim != channels else nn.Identity()
        self.project_out = nn.Linear(channels, dim) if dim != channels else nn.Identity()
        mask = 2 ** torch.arange(bits)
        self.register_buffer("mask", mask.flip(0) if bit_order == "msb" else mask)

    def project(self, x: Tensor) -> Tensor:
        """Values `(..., G * bits)` whose signs are the code."""
        return self.project_in(x.float())

    def tokens_from_codes(self, codes: Tensor) -> Tensor:
        """Codes or values `(..., G * bits)` to tokens `(...)` or `(..., G)`; only the signs count."""
        bits = (codes > 0).unflatten(-1, (self.groups, self.bits))
        tokens = (bits * self.mask).sum(-1)
        return tokens if self.groups > 1 else tokens[..., 0]

    def code_vectors(self) -> list[Tensor]:
        """The grid (K, d) of each group."""
        return grid_vectors(self)

    def codes_from_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens to codes `(..., G * bits)` of -1 and 1, the inverse of `tokens_from_codes`."""
        grouped = tokens if self.groups > 1 else tokens[..., None]
        return ((grouped[..., None] & self.mask) != 0).flatten(-2) * 2.0 - 1.0

    def forward(self, x: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            z = self.project(x)
            codes = torch.where(z > 0, 1.0, -1.0)
            losses = {"commitment": F.mse_loss(z, codes), "entropy": self.entropy(z)}
            return Quantized(self.project_out(codes + (z - z.detach())), self.tokens_from_codes(codes), losses)

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Tokens `(...)` or `(..., G)` to vectors `(..., dim)`."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.project_out(self.codes_from_tokens(tokens))

    def entropy(self, z: Tensor) -> Tensor:
        """The penalty on values `(..., G * bits)`: mean entropy of the rows minus gamma times the entropy of their mean."""
        return self.row_entropy(z) - self.diversity_gamma * self.mean_entropy(z)

    def row_entropy(self, z: Tensor) -> Tensor:
        """Mean entropy, in nats, of the rows' distributions over codes; with groups, of one group on average."""
        if self.clamped_entropy:
            return self._listed_row_entropy(z)
        logits = (4 * self.inv_temperature * z).abs()  # of a bit and its opposite; the entropy is even
        return self.bits * (F.softplus(-logits) + logits * torch.sigmoid(-logits)).mean()

    def mean_entropy(self, z: Tensor) -> Tensor:
        """Entropy, in nats, of the mean over all rows of their distributions; with groups, their average."""
        first, second = self._halves(z)
        mean = torch.einsum("ngi,ngj->gij", first, second) / len(first)
        return _clamped_entropy(mean).sum() / self.groups

    def _listed_row_entropy(self, z: Tensor) -> Tensor:
        first, second = (half.flatten(0, 1) for half in self._halves(z))  # groups are rows like others here

        def block(a: Tensor, b: Tensor) -> Tensor:
            return _clamped_entropy(a[:, :, None] * b[:, None, :]).sum()

        pairs = zip(first.split(BLOCK), second.split(BLOCK), strict=True)
        return torch.stack([checkpoint(block, a, b, use_reentrant=False) for a, b in pairs]).sum() / len(first)

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Distributions `(N, G, 2^bits_of_the_half)` over the codes of the first and of the last half of the bits."""
        rows = z.reshape(-1, self.groups, self.bits)
        cut = self.bits // 2
        first, second = (
            (2 * self.inv_temperature * (half @ _signs(half).T)).softmax(-1)
            for half in (rows[..., :cut], rows[..., cut:])
        )
        return first, second


def _signs(like: Tensor) -> Tensor:
    """All sign vectors `(2^n, n)` of the width of `like`."""
    n = like.shape[-1]
    bits = torch.arange(2**n, device=like.device)[:, None] >> torch.arange(n, device=like.device) & 1
    return bits.to(like) * 2 - 1


def _clamped_entropy(p: Tensor) -> Tensor:
    return -p * p.clamp(min=SMALLEST).log()


@dataclass(frozen=True, config=CONFIG)
class LFQTokenizerConfig(ConvConfig):
    """1D-LFQ: the published convolutional auto-encoder with 2^14 codes, one token for 4 frames."""

    type: Literal["lfq1d"] = "lfq1d"
    bits: int = Field(default=14, ge=1, le=20)
    """The vocabulary is 2^bits. The paper prints 2^16 = 16384; its tables have 16384 = 2^14."""
    groups: Groups = 1
    """Tokens per step, published 1; six make as many bits as the 2-D tokenizer has."""
    bit_order: BitOrder = "msb"
    """Of the first channel in a token; "lsb" is the paper's formula."""
    inv_temperature: Positive = 100.0
    diversity_gamma: NotNegative = 1.0


class LFQTokenizer(Perceptual, ConvTokenizer):
    """The convolutional auto-encoder around LFQ; losses "commitment", "entropy" and, once set, "perceptual"."""

    config_class = LFQTokenizerConfig
    config: LFQTokenizerConfig

    def _quantizer(self) -> LFQ:
        c = self.config
        return LFQ(c.bits, c.code_dim, c.groups, c.bit_order, c.inv_temperature, c.diversity_gamma)

    @property
    def tokens_per_step(self) -> int:
        return self.config.groups

    def forward(self, x: Tensor) -> TokenizerOutput:
        return self.with_perceptual(x, super().forward(x))
