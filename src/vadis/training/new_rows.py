"""New rows of a frozen table: an embedding and a head whose rows of chosen ids are a small Parameter laid over it.

Only the new rows get gradients and optimiser state, so old rows stay as they are bit for bit, whatever the optimiser
does, and no dense gradient of the whole table is ever made. A model with one table for both (tied) gets one Parameter for
both. Letters: V rows of the table, H width, n new rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vadis.errors import ModelError
from vadis.language.init_embeddings import head_of, tied


class RowsEmbedding(nn.Module):
    """Looks ids up in `weight` (V, H), frozen, or, those of `ids` (n,), in `rows` (n, H)."""

    slot: Tensor

    def __init__(self, weight: Tensor, ids: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.rows = nn.Parameter(weight.detach()[ids].float().clone())
        slot = torch.full((len(weight),), -1)
        slot[ids] = torch.arange(len(ids))
        self.register_buffer("slot", slot, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        slot = self.slot[ids]
        new = F.embedding(slot.clamp_min(0), self.rows)
        old = F.embedding(ids, self.weight).to(new.dtype)
        return torch.where((slot >= 0)[..., None], new, old)


class RowsHead(nn.Module):
    """Logits (…, V) of states (…, H): `weight` (V, H), frozen, with `rows` (n, H) in place of those of `ids` (n,)."""

    ids: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, ids: Tensor, rows: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.bias, self.rows = weight, bias, rows
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        logits = F.linear(states, self.weight.to(states.dtype), self.bias)
        new = F.linear(states, self.rows, None if self.bias is None else self.bias[self.ids])
        return logits.index_copy(-1, self.ids, new.to(logits.dtype))


def lay_rows(model: Any, ids: Tensor) -> None:
    """Freeze the tables of a causal LM of transformers and train the rows of `ids` instead; changes `model`.

    Raises ModelError for an embedding or a head that is more than a table.
    """
    embedding, head = model.get_input_embeddings(), head_of(model)
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
        raise ModelError(
            f"{type(model).__name__} has a {type(embedding).__name__} and a {type(head).__name__}; new rows alone are trained "
            "on plain tables: use tuning: full, or rows: all."
        )
    one = tied(model)
    for table in (embedding, head):
        table.requires_grad_(False)
    model.set_input_embeddings(laid := RowsEmbedding(embedding.weight, ids))
    own = laid.rows if one else nn.Parameter(head.weight.detach()[ids].float().clone())
    model.set_output_embeddings(RowsHead(head.weight, head.bias, ids, own))


@contextmanager
def plain_tables(model: Any) -> Iterator[None]:
    """Inside, `model` has plain layers whose tables hold the laid rows, as files want them; a model without such rows stays."""
    laid, laid_head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(laid, RowsEmbedding):
        yield
        return
    size, width = laid.weight.shape
    table = nn.Embedding(size, width, device="meta")
    table.weight = laid.weight
    linear = nn.Linear(width, size, bias=laid_head.bias is not None, device="meta")
    linear.weight, linear.bias = laid_head.weight, laid_head.bias
    with torch.no_grad():  # old rows in these places are never read
        for weight, rows in ((laid.weight, laid.rows), (laid_head.weight, laid_head.rows)):
            weight[laid_head.ids] = rows.to(weight.dtype)
    model.set_input_embeddings(table)
    model.set_output_embeddings(linear)
    try:
        yield
    finally:
        model.set_input_embeddings(laid)
        model.set_output_embeddings(laid_head)


def rows_of(head: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows (n, H) of a head for all ids of motion, ascending, and their biases (n,); with gradients where they are trained."""
    weight = head.rows if isinstance(head, RowsHead) else head.weight[ids]
    return weight, None if head.bias is None else head.bias[ids]
