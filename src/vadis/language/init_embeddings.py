"""New rows of a language model's embedding and head for motion symbols, drawn from what the old rows look like.

    normal      a draw with the mean and the covariance of the old rows: as long and as directed as theirs. (transformers'
                `mean_resizing` does the same with the covariance times 1e-9, which leaves all new rows nearly equal.)
    mean_noise  the mean of the old rows and a little noise, a twentieth of each channel's spread
    codebook    the code that a symbol stands for, projected at random and given the mean and covariance of the old rows:
                codes near one another in the codebook start near one another

Every draw comes from a generator of its own, so a seed says all. Letters: V rows, H width, n new rows.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vadis.errors import ModelError
from vadis.language.layout import MotionLayout
from vadis.tokenizers.base import Quantizer
from vadis.tokenizers.dsft.codec import IntegerBPE

Init = Literal["normal", "mean_noise", "codebook"]
NOISE = 0.05
PIECE = 16_384  # rows at a time, so that a large vocabulary is never copied whole


def resize(model: Any, size: int) -> None:
    """Give a model `size` rows, its head too; tied stays tied, the old rows stay as they are."""
    if model.get_input_embeddings().weight.shape[0] == size:
        return
    with torch.random.fork_rng(devices=[]):  # transformers draws the new rows first, which are written over
        model.resize_token_embeddings(size, mean_resizing=False)


def draw_rows(
    model: Any, ids: Tensor, known: int, init: Init, seed: int, codes: list[tuple[int, Tensor]] | None = None
) -> None:
    """Write new rows at `ids` (n,), of the embedding and, where it is not tied to it, the head.

    Args:
        known: the first rows, which belong to text; all statistics are theirs.
        codes: for "codebook", (place in `ids` of the first of them, vectors (k, d)) of each codebook.

    Rows behind the known ones that are not in `ids` are padding and get the mean.
    """
    embedding, head = model.get_input_embeddings().weight, head_of(model)
    for k, weight in enumerate([embedding] if tied(model) else [embedding, head.weight]):
        noise = torch.Generator().manual_seed(2 * seed + k)
        z = torch.randn(len(ids), weight.shape[1], generator=noise)
        if init == "codebook":
            for first, vectors in codes or []:
                z[first : first + len(vectors)] = _project(vectors, weight.shape[1], noise)
        _write(weight, ids, known, z, init)
    if head is not None and getattr(head, "bias", None) is not None:
        with torch.no_grad():
            head.bias[ids.to(head.bias.device)] = head.bias[:known].mean()


def head_of(model: Any) -> nn.Linear:
    """The output head. Raises ModelError for a model without one."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output head: use a causal language model.")
    return head


def tied(model: Any) -> bool:
    """Embedding and head are one matrix."""
    return head_of(model).weight is model.get_input_embeddings().weight


@torch.no_grad()
def _write(weight: Tensor, ids: Tensor, known: int, z: Tensor, init: Init) -> None:
    mean, covariance = _statistics(weight[:known])
    if init == "mean_noise":
        rows = mean + NOISE * covariance.diagonal().clamp_min(0).sqrt() * z
    else:
        values, vectors = torch.linalg.eigh(covariance.double())
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T  # symmetric, so no sign is left to chance
        rows = mean + z @ root.float()
    weight[known:] = mean.to(weight)
    weight[ids.to(weight.device)] = rows.to(weight)


def _statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (H,) and covariance (H, H) of rows, float32 on the CPU."""
    mean = sum(part.float().sum(0) for part in weight.split(PIECE)) / len(weight)
    covariance = sum((part.float() - mean).T @ (part.float() - mean) for part in weight.split(PIECE)) / len(weight)
    return torch.as_tensor(mean).cpu(), torch.as_tensor(covariance).cpu()


def _project(vectors: Tensor, width: int, noise: torch.Generator) -> Tensor:
    """Vectors (k, d) to (k, width) with about unit variance, their differences kept in proportion."""
    scaled = vectors.float() - vectors.float().mean(0)
    scaled = scaled / scaled.square().mean().sqrt().clamp_min(1e-8)
    return scaled @ torch.randn(vectors.shape[1], width, generator=noise) / vectors.shape[1] ** 0.5


def code_vectors(motion_tokenizer: Any, layout: MotionLayout) -> list[tuple[int, Tensor]]:
    """For each codebook (its first symbol, vectors (K, d)). Raises ModelError where a tokenizer's codes have none."""
    if layout.kind == "two_stream":
        return [(first, _stream(codec)) for codec, first in _streams(motion_tokenizer, layout)]
    quantizers = [m for m in motion_tokenizer.children() if isinstance(m, Quantizer)]
    if not quantizers:
        raise ModelError(f"{type(motion_tokenizer).__name__} has no codebook to start from: use init='normal'.")
    books = quantizers[0].code_vectors()
    if layout.shared or len(books) == 1 < layout.groups:
        starts = [0] if layout.shared else [g * layout.codes for g in range(layout.groups)]
        return [(start, books[0]) for start in starts]
    return [(g * layout.codes, book) for g, book in enumerate(books)]


def _streams(tokenizer: Any, layout: MotionLayout) -> list[tuple[Any, int]]:
    codecs = tokenizer.codecs
    if not all(isinstance(codec, IntegerBPE) for codec in codecs):
        raise ModelError("the ids of this DSFT tokenizer stand for bytes, not for integers: use init='normal'.")
    return list(zip(codecs, (0, layout.codes), strict=True))


def _stream(codec: IntegerBPE) -> Tensor:
    """Each id's integers in five numbers (V, 5): mean, first, last, largest in size, and how many, each to unit spread."""
    parts = [torch.from_numpy(codec.decode(torch.tensor([i]).numpy())).float() for i in range(codec.vocab_size)]
    rows = [torch.stack([p.mean(), p[0], p[-1], p.abs().max(), torch.tensor(len(p)).log2()]) for p in parts]
    table = torch.stack(rows)
    return (table - table.mean(0)) / table.std(0, correction=0).clamp_min(1e-6)
