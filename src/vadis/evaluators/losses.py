"""What evaluators are trained with: KL divergences, the contrastive loss of TMR, the margin loss of Guo et al.

Shapes: B pairs, E values of an embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vadis.evaluators.layers import Normal


def kl_divergence(a: Normal, b: Normal | None = None) -> Tensor:
    """KL(a, b), mean over batch and values; without `b`, against the standard normal distribution."""
    mean, std = (torch.zeros_like(a.mean), torch.ones_like(a.std)) if b is None else (b.mean, b.std)
    return (torch.log(std / a.std) + (a.std.square() + (a.mean - mean).square()) / (2 * std.square()) - 0.5).mean()


def near_duplicates(similarity: Tensor, threshold: float = 0.85, upper: float | None = None) -> Tensor:
    """(B, B) bool, false on the diagonal: captions too alike to be held against each other.

    `similarity` (B, B) is the cosine of sentence embeddings. The published code also demands less than `upper` = 1.0 in
    float32, which lets identical captions through or not as rounding has it; None, the default, has no such hole.
    """
    alike = similarity > threshold
    if upper is not None:
        alike = alike & (similarity < upper)
    return alike & ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)


def info_nce(motion: Tensor, text: Tensor, temperature: float = 0.1, hidden: Tensor | None = None) -> Tensor:
    """Contrastive loss of TMR on cosines, both ways: motions (B, E), their texts (B, E), pairs `hidden` (B, B) left out."""
    logits = F.normalize(motion, dim=-1) @ F.normalize(text, dim=-1).T
    if hidden is not None:
        logits = logits.masked_fill(hidden, -torch.inf)
    logits = logits / temperature
    own = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def margin_losses(text: Tensor, motion: Tensor, shift: int, margin: float = 10.0) -> tuple[Tensor, Tensor]:
    """Loss of matching pairs (squared distance) and of pairs with motions moved on by `shift` rows (squared lack of margin).

    A shift of 0, which the published code draws now and then, would push matching pairs apart.
    """
    near = F.pairwise_distance(text, motion)
    far = F.pairwise_distance(text, motion.roll(-shift, dims=0))
    return near.square().mean(), F.relu(margin - far).square().mean()
