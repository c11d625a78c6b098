"""Cross-entropy of a language model at the places that count, without computing logits anywhere else.

Letters: B rows, N ids of a row, P places, H width, V ids of the model, M ids of motion.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vadis.language.packing import IGNORED, block_mask
from vadis.training.language_model import LanguageModel
from vadis.training.new_rows import rows_of

CHUNK = 1024
"""Places whose logits over all ids are held at once."""


class Places(NamedTuple):
    """What is asked for and how the model did, (P,) each: which ids are motion, losses, hits."""

    motion: Tensor
    losses: Tensor
    hits: Tensor


def places(model: LanguageModel, batch: dict[str, Tensor], motion_only: bool) -> Places:
    """Losses of all places of a batch (`input_ids`, `labels`, and where rows are packed `position_ids`, `segment_ids`).

    With `motion_only` a place of motion chooses among motion ids alone; places of text choose among all ids always.
    """
    mask = None
    if "segment_ids" in batch:
        mask = block_mask(batch["segment_ids"], _compute_dtype(model))
    states = model.states(batch["input_ids"], batch.get("position_ids"), mask)
    wanted = batch["labels"][:, 1:]
    asked = wanted != IGNORED
    states, wanted = states[:, :-1][asked], wanted[asked]
    motion = model.is_motion(wanted)
    head = model.get_output_embeddings()
    losses, hits = torch.zeros(len(wanted), device=states.device), torch.zeros_like(motion)
    short = motion if motion_only else torch.zeros_like(motion)
    for chosen, motion_rows in ((short, True), (~short, False)):
        if bool(chosen.any()):
            loss, hit = _among(head, states[chosen], wanted[chosen], model.motion_ids if motion_rows else None)
            losses, hits = losses.masked_scatter(chosen, loss), hits.masked_scatter(chosen, hit)
    return Places(motion, losses, hits)


def _among(head: Any, states: Tensor, wanted: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses and hits (P,) among `ids` (M,), ascending, or all ids."""
    if ids is not None:
        weight, bias = rows_of(head, ids)
        logits = F.linear(states, weight.to(states.dtype), bias)
        return _losses(logits, torch.searchsorted(ids, wanted))
    if len(wanted) <= CHUNK or not torch.is_grad_enabled():
        parts = [_losses(head(s), w) for s, w in zip(states.split(CHUNK), wanted.split(CHUNK), strict=True)]
    else:  # logits of one piece at a time, computed anew on the way back
        parts = [
            checkpoint(lambda s, w: _losses(head(s), w), s, w, use_reentrant=False)
            for s, w in zip(states.split(CHUNK), wanted.split(CHUNK), strict=True)
        ]
    return torch.cat([loss for loss, _ in parts]), torch.cat([hit for _, hit in parts])


def _losses(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    return F.cross_entropy(logits, wanted, reduction="none"), logits.detach().argmax(-1) == wanted


def _compute_dtype(model: LanguageModel) -> torch.dtype:
    device = next(model.parameters()).device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


@torch.no_grad()
def text_perplexity(model: Any, ids: list[int], count: int, text_mask: Tensor) -> float:
    """exp of the loss of a text's ids per each of `count` (its tokens in the original vocabulary), choosing among the ids of
    text (V,) bool only, so that a model is comparable with itself before it learned motion."""
    row = torch.tensor([ids], device=text_mask.device)
    states = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0, :-1]
    head, total = model.get_output_embeddings(), 0.0
    for s, w in zip(states.split(CHUNK), row[0, 1:].split(CHUNK), strict=True):
        logits = head(s).float().masked_fill(~text_mask, -torch.inf)
        total += float(F.cross_entropy(logits, w, reduction="sum"))
    return float(torch.tensor(total / max(count - 1, 1)).exp())
