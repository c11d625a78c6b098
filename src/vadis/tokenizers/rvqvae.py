"""MoMask's residual VQ-VAE: the auto-encoder of T2M-GPT around Q codebooks, each coding what the ones before left over.

Guo et al., 2024 (arXiv 2312.00063). Tokens `(B, S, Q)`, coarse level first; any number of first levels decodes.

Shapes: B clips, T frames, D features, S token steps, Q levels, C channels.
"""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.config import build_config
from vadis.errors import FileError, ModelError, ShapeError, VadisError
from vadis.sizes import CONFIG, Codebook, Dropout, Groups, NotNegative
from vadis.tokenizers.base import Quantized, Quantizer
from vadis.tokenizers.codebook import EMACodebook, several_processes
from vadis.tokenizers.conv import ConvConfig, ConvTokenizer, infer_conv, load_published
from vadis.tokenizers.vqvae import lost_means, our_names, source_fields

OPTIONS = ("dilation_growth_rate", "mu", "quantize_dropout_prob", "shared_codebook", "vq_act", "vq_norm")
"""Keys of the published opt.txt that the tensors do not tell."""


class ResidualVQ(Quantizer):
    """Q codebooks one after the other: `r_0 = x`, `r_(q+1) = r_q - code_q(r_q)`, the sum of the codes comes out.

    Args:
        levels: Q.
        size: K codes a level.
        dim: C.
        shared: one codebook for all levels, which then learns Q times a step.
        dropout: probability of a training batch that keeps the first s levels only, s uniform in 1 … Q.
        temperature: of the draw of codes in training; 0 takes the nearest.
        decay: of the running means.

    Shape:
        x (B, S, C) -> vectors (B, S, C), tokens (B, S, Q); -1 where a level was dropped.

    Straight-through at every level, as published: the gradient that reaches `x` is the number of levels times that of
    `vectors`. Losses are means over the levels that ran.
    """

    def __init__(
        self,
        levels: int,
        size: int,
        dim: int,
        shared: bool = False,
        dropout: float = 0.2,
        temperature: float = 0.5,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.vocab_size, self.dropout, self.temperature = size, dropout, temperature
        first = EMACodebook(size, dim, decay=decay)
        others = [first if shared else EMACodebook(size, dim, decay=decay) for _ in range(levels - 1)]
        self.layers = nn.ModuleList([first, *others])

    def code_vectors(self) -> list[Tensor]:
        """The codebook (K, d) of each level."""
        return [layer.codebook.detach().float().cpu() for layer in self.layers]  # type: ignore[union-attr]

    def forward(self, x: Tensor, levels: int | None = None) -> Quantized:
        """Quantise with the first `levels` levels; None: all, or in training as many as `dropout` leaves."""
        if levels is None:
            levels = self._kept(x.device) if self.training else len(self.layers)
        residual, vectors = x, torch.zeros_like(x)
        tokens = torch.full((*x.shape[:-1], len(self.layers)), -1, device=x.device)
        losses: list[dict[str, Tensor]] = []
        for level in range(levels):
            before, temperature = residual, self.temperature if self.training else 0.0
            codes, tokens[..., level], terms = self.layers[level](before, temperature)
            residual, vectors = before - codes.detach(), vectors + codes
            losses.append(dict(terms))
        return Quantized(vectors, tokens, {n: torch.stack([row[n] for row in losses]).mean() for n in losses[0]})

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Tokens `(B, S, Q)` or of the first levels only to the sum of their codes `(B, S, C)`; -1 adds nothing."""
        return torch.stack(self.codes(tokens)).sum(0)

    def codes(self, tokens: Tensor) -> list[Tensor]:
        """The code of each level `(B, S, C)`."""
        return [self.layers[q].dequantize(level) for q, level in enumerate(tokens.unbind(-1))]  # type: ignore[operator]

    def _kept(self, device: torch.device) -> int:
        """How many levels this training batch keeps, the same in all processes."""
        if not self.dropout:
            return len(self.layers)
        draw = torch.rand(2, device=device)
        if several_processes():
            dist.broadcast(draw, 0)
        drop, place = draw.tolist()
        return 1 + int(place * len(self.layers)) if drop < self.dropout else len(self.layers)


@dataclass(frozen=True, config=CONFIG)
class RVQTokenizerConfig(ConvConfig):
    """The defaults are the released MoMask tokenizer: 4 frames per step, 6 levels of 512 codes."""

    type: Literal["rvq"] = "rvq"
    dropout: Dropout = 0.2
    """In the residual blocks, while training."""
    num_quantizers: Groups = 6
    codebook_size: Codebook = 512
    shared_codebook: bool = False
    """One codebook for all levels."""
    quantize_dropout: float = Field(default=0.2, ge=0, le=1)
    """Probability of a training batch that keeps only its first levels."""
    sample_temperature: NotNegative = 0.5
    """Codes are drawn while training, in proportion to exp(-squared distance / temperature); 0: always the nearest."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the running means."""


class RVQTokenizer(ConvTokenizer):
    """The convolutional auto-encoder around a residual quantiser."""

    config_class = RVQTokenizerConfig
    config: RVQTokenizerConfig

    def _quantizer(self) -> ResidualVQ:
        c = self.config
        return ResidualVQ(
            c.num_quantizers, c.codebook_size, c.code_dim, c.shared_codebook, c.quantize_dropout,
            c.sample_temperature, c.decay,
        )  # fmt: skip

    @property
    def tokens_per_step(self) -> int:
        return self.config.num_quantizers

    @property
    def _token_rank(self) -> int:
        return 2  # also with one level

    def _encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Tokens; with `levels` only of the first levels, -1 for the others: `tokenizer.encode(features, levels=3)`."""
        if levels is not None and not 1 <= levels <= self.config.num_quantizers:
            raise VadisError(f"levels={levels}: this tokenizer has 1 to {self.config.num_quantizers}.")
        tokens = super()._encode(x)
        return (
            tokens if levels is None else tokens.index_fill(-1, torch.arange(levels, tokens.shape[-1]).to(tokens), -1)
        )

    def _check_token_shape(self, tokens: Tensor) -> None:
        count = tokens.shape[-1] if tokens.ndim in (2, 3) else 0
        if not 1 <= count <= self.config.num_quantizers:
            raise ShapeError(
                f"tokens must be (S, Q) or (B, S, Q) with 1 to {self.config.num_quantizers} levels Q; this array has shape "
                f"{tuple(tokens.shape)}."
            )
        super()._check_token_shape(torch.empty_like(tokens[..., :1]).expand(*tokens.shape[:-1], self.tokens_per_step))

    def _check_tokens(self, batch: Tensor, steps: list[int]) -> Tensor:
        """-1 says that a level is absent; the first one never is."""
        batch = batch.long()
        for row, count in enumerate(steps):
            first = batch[row, :count, 0]
            if count and int(first.min()) == -1:
                step = int((first == -1).nonzero()[0])
                raise VadisError(
                    f"step {step} of clip {row} has no token of level 0: if that is padding, give lengths; other levels "
                    "may be absent (-1)."
                )
        super()._check_tokens(torch.where(batch == -1, 0, batch), steps)
        return batch


def from_momask(
    state: dict[str, Tensor],
    *,
    mean: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    **options: Any,
) -> RVQTokenizer:
    """Build the tokenizer from a published MoMask state dict (`encoder.…`, `decoder.…`, `quantizer.layers.…`).

    Sizes are read off the tensors; what they do not tell may be given as `options`, by our names or those of opt.txt,
    which is read where it lies beside the file. Codebooks that are all equal are one shared codebook unless
    `shared_codebook` says otherwise. Raises ModelError for names that are missing or left over.
    """
    pattern = re.compile(r"quantizer\.layers\.(\d+)\.codebook")
    books = {int(match[1]): value for name, value in state.items() if (match := pattern.fullmatch(name))}
    if sorted(books) != list(range(len(books))) or not books or books[0].ndim != 2:
        raise ModelError(f"not a MoMask tokenizer: its codebooks quantizer.layers.N are {sorted(books) or 'missing'}.")
    options = our_names(options)
    same = len(books) > 1 and all(torch.equal(books[0], book) for book in books.values())
    if options.setdefault("shared_codebook", same) and len(books) > 1 and not same:
        raise ModelError("shared_codebook is set, but the codebooks of the checkpoint differ: leave it out.")
    found = infer_conv(state, options) | {"num_quantizers": len(books), "codebook_size": len(books[0])}
    config = build_config(RVQTokenizerConfig, found | source_fields(found["feature_dim"], options) | options, "options")
    tokenizer = RVQTokenizer(config)
    for level, book in books.items():
        layer: Any = tokenizer.quantizer.layers[level] if level < len(tokenizer.quantizer.layers) else None
        if layer is not None:
            state = state | lost_means(layer, f"quantizer.layers.{level}.", book)
    return load_published(tokenizer, state, mean, std)


def options_beside(weights: Path) -> dict[str, Any]:
    """Options in the published opt.txt of a run, which lies in the folder of the weights or the one above."""
    for folder in (weights.parent, weights.parent.parent):
        if (folder / "opt.txt").is_file():
            try:
                text = (folder / "opt.txt").read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise FileError(f"can't read {folder / 'opt.txt'} as text: remove it and give options.") from error
            pairs = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            return {key.strip(): _value(value.strip()) for key, value in pairs.items() if key.strip() in OPTIONS}
    return {}


def _value(text: str) -> Any:
    """A word of opt.txt: None, True, False, a number or the word itself."""
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
