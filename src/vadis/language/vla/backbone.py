"""What the families of vision-language models share, as MotionVLA needs it: positions, hidden states, logits of some ids.

Shapes: B prompts, R rows, L ids of the longest prompt, H width, V ids of the model.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vadis.errors import ModelError
from vadis.language.checkpoints import plain_model
from vadis.language.vla.prompts import Prompt, VisionFacts


class SceneBackbone:
    """A vision-language model whose position ids are always given, never left to its memory.

    transformers keeps the offset of the last call's image in the model, so a call without an image after one with an image
    would be placed wrongly. Here every call says its own positions.
    """

    def __init__(self, model: Any) -> None:
        self.model = plain_model(model)  # low-rank additions sit inside it
        config = self.model.config
        self.facts = VisionFacts.of(config) if getattr(config, "vision_config", None) is not None else None
        self.body = self.model.base_model
        """The network below the head."""

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def context(self) -> int:
        """Positions that the model was made for."""
        config = getattr(self.model.config, "text_config", self.model.config)
        return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)

    def positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Positions (3, B, L) in time, height and width, or (B, L) of a text model, and the next free one of each row (B,)."""
        mask = batch["attention_mask"]
        if self.facts is None or "image_grid_thw" not in batch:
            flat = (mask.cumsum(1) - 1).clamp_min(0)
            return (flat if self.facts is None else flat.expand(3, -1, -1)), mask.sum(1)
        made, delta = self.body.get_rope_index(
            batch["input_ids"], mm_token_type_ids=batch["mm_token_type_ids"], image_grid_thw=batch["image_grid_thw"],
            attention_mask=mask,
        )  # fmt: skip
        return made, mask.sum(1) + delta[:, 0]

    def hidden(self, batch: dict[str, Tensor], positions: Tensor, cache: Any = None, keep: bool = False) -> Any:
        """Output of the body: `last_hidden_state` (B, L, H) and, with `keep` or a cache, `past_key_values`."""
        inputs: dict[str, Any] = {k: v for k, v in batch.items() if self.facts is not None or k != "mm_token_type_ids"}
        if "image_features" in inputs:
            inputs["mm_encoder_outputs"] = {"image": SimpleNamespace(pooler_output=[inputs.pop("image_features")])}
        if "image_grid_thw" not in inputs:
            inputs.pop("mm_token_type_ids", None)
        return self.body(**inputs, position_ids=positions, past_key_values=cache, use_cache=keep)

    @torch.no_grad()
    def look(self, prompt: Prompt) -> Prompt:
        """The prompt with the features of its image, for a frozen vision tower that need not see it again.

        Raises ModelError for a family whose images speak to deeper layers too.
        """
        if prompt.pixels is None or prompt.pixels.features is not None:
            return prompt
        pixels = prompt.pixels
        seen = self.body.get_image_features(
            pixels.values.to(self.device), pixels.grid.to(self.device), return_dict=True
        )
        if getattr(seen, "deepstack_features", None) is not None:
            raise ModelError("this family puts image features into deeper layers too: they can't be kept.")
        features = torch.cat(list(seen.pooler_output)).float().cpu()
        return replace(prompt, pixels=replace(pixels, features=features))

    def step(self, ids: Tensor, where: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Hidden states (R, H) behind one more id of each row, `ids` and `where` (R,), `mask` (R, all so far)."""
        positions = where[:, None] if self.facts is None else where[:, None].expand(3, -1, -1)
        batch = {"input_ids": ids[:, None], "attention_mask": mask}
        return self.hidden(batch, positions, cache, keep=True).last_hidden_state[:, -1]

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (…, V) of hidden states (…, H), or of some ids only."""
        head = self.model.get_output_embeddings()
        if rows is None:
            return head(hidden)
        bias = getattr(head, "bias", None)
        return functional.linear(hidden, head.weight[rows], None if bias is None else bias[rows])
