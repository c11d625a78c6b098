"""Rows of ids through a causal language model of transformers: prompts of different lengths padded on the left, then one or
more ids a step with the key-value cache. A row never sees its companions or the padding.

Shapes: P prompts, R rows, L ids, H width, V ids of the model.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadis.errors import ModelError
from vadis.language.checkpoints import plain_model
from vadis.language.init_embeddings import head_of


class CausalModel:
    """A causal language model as a trunk and a head, so that logits are computed only where they are wanted."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.plain = plain_model(model)
        """Without the wrapper of an adapter, whose layers are inside all the same."""

    @property
    def device(self) -> torch.device:
        return self.plain.get_input_embeddings().weight.device

    @property
    def context(self) -> int:
        """Positions that the model was made for."""
        return int(getattr(self.plain.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    @cached_property
    def separable(self) -> bool:
        """The head is one matrix over what the trunk gives, tried once: some models scale or bend their logits."""
        head, trunk = head_of(self.plain), self.plain.base_model
        if type(head) is not nn.Linear or trunk is self.plain:
            return False
        ids = torch.arange(3, device=self.device)[None]
        with torch.no_grad():
            whole = self.plain(input_ids=ids, use_cache=False).logits
            return torch.allclose(whole, head(trunk(input_ids=ids, use_cache=False)[0]), rtol=1e-3, atol=1e-3)

    def rows_of_head(self, ids: Tensor | None) -> tuple[Tensor, Tensor | None] | Tensor | None:
        """What `logits` needs to know of the ids (U,) that are wanted; None: all."""
        if ids is None or not self.separable:
            return ids
        head = head_of(self.plain)
        return head.weight.detach()[ids], None if head.bias is None else head.bias.detach()[ids]

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any], rows: Any) -> Tensor:
        """Float32 logits `(R, U)` behind the last id of each row; `rows` as `rows_of_head` gives them."""
        if not self.separable:
            made = self.plain(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
            return (made if rows is None else made[:, rows]).float()
        hidden = self.plain.base_model(**inputs, use_cache=True)[0][:, -1]
        made = head_of(self.plain)(hidden) if rows is None else functional.linear(hidden, *rows)
        return made.float()

    def to_int8(self) -> None:
        """Weights of the layers as 8-bit integers, in place (CPU only; the head stays). The model can't be trained then.

        Raises ModelError for models without linear layers of torch (GPT-2) and on another device.
        """
        from vadis.language.int8 import to_int8

        if self.device.type != "cpu":
            raise ModelError(f"int8 is for the CPU, the model is on {self.device}: use bfloat16.")
        to_int8(self.plain.base_model)


class CachedRows:
    """The state of one run: what the rows have read. `logits` after the prompts, then after each `step`.

    Args:
        model: trunk and head.
        prompts: ids of each prompt, none empty.
        rows: which prompt each row goes on from, (R,).
        wanted: ids (U,) whose logits are wanted, None for all.
    """

    def __init__(
        self, model: CausalModel, prompts: Sequence[Sequence[int]], rows: Sequence[int], wanted: Tensor | None = None
    ) -> None:
        self.model, device = model, model.device
        self._head = model.rows_of_head(None if wanted is None else wanted.to(device))
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        self.cache = self._new_cache()
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": self.cache}
        logits = model.logits(inputs, self._head)
        self.mask, self.position = mask, mask.sum(1)
        index = torch.as_tensor(rows, device=device)
        self.logits = logits[index]
        """(R, U) float32."""
        if index.tolist() != list(range(len(prompts))):
            self.keep(index)

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.plain.config)

    def step(self, ids: Tensor) -> Tensor:
        """Read ids `(R, n)` and give the logits `(R, U)` behind the last one."""
        count = ids.shape[1]
        self.mask = functional.pad(self.mask, (0, count), value=1)
        positions = self.position[:, None] + torch.arange(count, device=ids.device)
        self.position = self.position + count
        self.logits = self.model.logits(
            {
                "input_ids": ids,
                "attention_mask": self.mask,
                "position_ids": positions,
                "past_key_values": self.cache,
            },
            self._head,
        )
        return self.logits

    def keep(self, index: Tensor) -> None:
        """Rows `index` of the present ones take the place of all."""
        self.cache.reorder_cache(index)
        self.mask, self.position = self.mask[index], self.position[index]
