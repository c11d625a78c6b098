"""Prompts of an image and an instruction, as a vision-language model reads them.

An image becomes patches, and `merge²` neighbouring patches one visual token. The prompt holds one placeholder a visual
token, between the family's vision markers; the model puts the image's features there. Any family whose config has Qwen's
names (qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5) is understood.

Shapes: B prompts, L ids of the longest, P patches of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from vadis.errors import ModelError, VadisError
from vadis.images import Image, load_image
from vadis.records import checked

MAX_VISUAL_TOKENS = 256
"""Of one image, MotionVLA's limit."""


@dataclass(frozen=True)
class VisionFacts:
    """What a prompt must know about a vision tower; ids of the text tokenizer, sizes in pixels or patches."""

    image_id: int
    start_id: int
    end_id: int
    patch: int
    merge: int
    temporal: int
    family: str

    @classmethod
    def of(cls, config: Any) -> "VisionFacts":
        """From a transformers config. Raises ModelError for a model that sees nothing."""
        vision = getattr(config, "vision_config", None)
        names = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
        if vision is None or any(getattr(config, name, None) is None for name in names):
            raise ModelError(
                f"a {getattr(config, 'model_type', 'model')} model takes no images: use one of the families qwen3_5, "
                "qwen3_vl, qwen2_5_vl, qwen2_vl, or give text only."
            )
        image, start, end = (int(getattr(config, name)) for name in names)
        rows = getattr(config, "text_config", config).vocab_size
        if not all(0 <= token < rows for token in (image, start, end)):
            raise ModelError(
                f"the config's tokens for images are {image}, {start} and {end}; the text has 0 to {rows - 1:,}: download or save "
                "the model again."
            )
        sizes = [vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size]
        patch, merge, temporal = (int(s if isinstance(s, int) else s[0]) for s in sizes)
        return cls(image, start, end, patch, merge, temporal, config.model_type)

    @property
    def pixels(self) -> int:
        """Pixels that one visual token covers."""
        return (self.patch * self.merge) ** 2


@dataclass(frozen=True, eq=False)
class Pixels:
    """One image as the vision tower reads it: `values` (patches, numbers a patch) float32 and `grid` (1, 3) int64.

    `features` (tokens, H): what the tower makes of it, where that is known already (`SceneBackbone.look`).
    """

    values: Tensor
    grid: Tensor
    merge: int
    features: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Visual tokens, `t * h * w / merge²`."""
        return int(self.grid.prod()) // self.merge**2


@dataclass(frozen=True, eq=False)
class Prompt:
    """The ids of one prompt and the image that its placeholders stand for."""

    ids: list[int]
    pixels: Pixels | None = None
    image_id: int | None = None

    @property
    def types(self) -> list[int]:
        """1 at placeholders of the image, 0 elsewhere."""
        return [int(self.pixels is not None and i == self.image_id) for i in self.ids]

    def without_image(self) -> "Prompt":
        """The same words without the image, its placeholders and the markers around them."""
        if self.pixels is None:
            return self
        places = [i for i, kind in enumerate(self.types) if kind]
        return Prompt([*self.ids[: places[0] - 1], *self.ids[places[-1] + 2 :]])


_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _Settings:
    """What may stand in scene_packer.json."""

    max_visual_tokens: Annotated[int, Field(ge=1, le=65_536)] = MAX_VISUAL_TOKENS
    min_visual_tokens: Annotated[int, Field(ge=1, le=65_536)] = 4
    image_mean: tuple[_Share, _Share, _Share] = (0.5, 0.5, 0.5)
    image_std: tuple[_Share, _Share, _Share] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if min(self.image_std) <= 0:
            raise ValueError("a deviation is above 0")


@dataclass
class ScenePacker:
    """Images and instructions to what a vision-language model reads.

    Args:
        text_tokenizer: of transformers; its chat template is used where it has one.
        facts: of the vision tower; None for a model that reads text only.
        max_visual_tokens: larger images are scaled down to this.
        min_visual_tokens: smaller ones are scaled up to this.
        image_mean, image_std: of a channel on the scale 0 … 1; Qwen3's are one half.
    """

    text_tokenizer: Any
    facts: VisionFacts | None
    max_visual_tokens: int = MAX_VISUAL_TOKENS
    min_visual_tokens: int = 4
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    _processor: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.min_visual_tokens <= self.max_visual_tokens:
            raise VadisError(
                f"visual tokens from {self.min_visual_tokens} to {self.max_visual_tokens}: give 1 ≤ least ≤ most."
            )

    def settings(self) -> dict[str, Any]:
        """What `from_settings` needs, as plain values."""
        names = ("max_visual_tokens", "min_visual_tokens", "image_mean", "image_std")
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}

    @classmethod
    def from_settings(
        cls, text_tokenizer: Any, facts: VisionFacts | None, settings: dict[str, Any], where: str = "settings"
    ) -> "ScenePacker":
        """A packer with saved settings. Raises ModelError for values that can't be."""
        known = {name: value for name, value in settings.items() if name in cls(text_tokenizer, facts).settings()}
        checked(_Settings, known, where, ModelError)
        try:
            return cls(text_tokenizer, facts, **{n: tuple(v) if isinstance(v, list) else v for n, v in known.items()})
        except VadisError as error:
            raise ModelError(f"{where}: {error}") from None

    @property
    def processor(self) -> Any:
        """transformers' PIL image processor with the sizes of the tower."""
        if self._processor is None:
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

            f = self._facts()
            self._processor = Qwen2VLImageProcessorPil(
                patch_size=f.patch, merge_size=f.merge, temporal_patch_size=f.temporal,
                size={"shortest_edge": self.min_visual_tokens * f.pixels,
                      "longest_edge": self.max_visual_tokens * f.pixels},
                image_mean=list(self.image_mean), image_std=list(self.image_std),
            )  # fmt: skip
        return self._processor

    def pixels(self, image: Image) -> Pixels:
        """One image, read by `load_image`, as patches."""
        f = self._facts()
        loaded = load_image(image)
        side = f.patch * f.merge
        if max(loaded.size) > self.max_visual_tokens * side:  # a strip would keep more tokens than allowed
            least = max(1, round(min(loaded.size) * self.max_visual_tokens * side / max(loaded.size)))
            long = self.max_visual_tokens * side
            loaded = loaded.resize((long, least) if loaded.width > loaded.height else (least, long))
        made = self.processor(images=[loaded], return_tensors="pt")
        found = Pixels(made["pixel_values"].float(), made["image_grid_thw"].long(), f.merge)
        if found.tokens > self.max_visual_tokens:
            raise VadisError(
                f"an image of {loaded.width} × {loaded.height} needs {found.tokens} visual tokens; at most "
                f"{self.max_visual_tokens} are read: crop it to a less extreme shape."
            )
        return found

    def prompt(self, text: str, image: Image | Pixels | None = None) -> Prompt:
        """The ids up to where the answer begins, image first, then `text`.

        Raises VadisError for an empty text or one that spells a special token, and what `load_image` raises.
        """
        if not isinstance(text, str) or not text.strip():
            raise VadisError("the instruction is empty: say what the person does, e.g. 'walk to the red box'.")
        self._check_text(text)
        pixels = image if isinstance(image, Pixels) or image is None else self.pixels(image)
        ids = self._chat(text, pixels is not None)
        if pixels is None:
            return Prompt(ids)
        f = self._facts()
        if ids.count(f.image_id) != 1:
            raise ModelError(
                f"the chat template of {self.text_tokenizer.name_or_path} wrote {ids.count(f.image_id)} placeholders for one image: it is not the template of "
                f"a {f.family} model."
            )
        where = ids.index(f.image_id)
        ids = [*ids[:where], *[f.image_id] * pixels.tokens, *ids[where + 1 :]]
        return Prompt(ids, pixels, f.image_id)

    def _chat(self, text: str, image: bool) -> list[int]:
        """The ids of the user's turn with at most one placeholder, and the start of the answer."""
        tokenizer, marks = self.text_tokenizer, ""
        if image:
            f = self._facts()
            names = tokenizer.convert_ids_to_tokens([f.start_id, f.image_id, f.end_id])
            if None in names:
                raise ModelError(
                    f"{tokenizer.name_or_path}: the text tokenizer lacks the vision tokens that config.json names."
                )
            marks = "".join(names)
        page = f"{marks}{text}\n"
        if getattr(tokenizer, "chat_template", None):
            turn = [{"role": "user", "content": f"{marks}{text}"}]  # what templates make of a list of image and text
            try:
                page = tokenizer.apply_chat_template(
                    turn, add_generation_prompt=True, tokenize=False, enable_thinking=False
                )
            except Exception as error:  # a template is a program of its folder, and may raise anything
                place = getattr(tokenizer, "name_or_path", "") or "the text tokenizer"
                raise ModelError(
                    f"the chat template of {place} fails ({error}): use the folder of a model that chats."
                ) from error
        return list(tokenizer(page, add_special_tokens=False)["input_ids"])

    def _check_text(self, text: str) -> None:
        """No special token may come from a user's words: it would stand for an image or for motion."""
        special = set(getattr(self.text_tokenizer, "all_special_ids", ()))
        special |= set(getattr(self.text_tokenizer, "added_tokens_decoder", {}))
        if self.facts is not None:
            special |= {self.facts.image_id, self.facts.start_id, self.facts.end_id}
        found = [i for i in self.text_tokenizer(text, add_special_tokens=False)["input_ids"] if i in special]
        if found:
            name = self.text_tokenizer.convert_ids_to_tokens(found[0])
            raise VadisError(f"the instruction spells the special token {name!r}: leave it out.")

    def _facts(self) -> VisionFacts:
        if self.facts is None:
            raise VadisError("this model reads text only: leave the image out.")
        return self.facts


def collate(
    prompts: Sequence[Prompt], pad_id: int, side: str = "left", answers: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """A batch for the model: `input_ids`, `attention_mask`, `mm_token_type_ids` (B, L) int64 and, where any prompt has an
    image, `image_grid_thw` (images, 3) and `pixel_values` (P, numbers), or `image_features` (tokens, H) where those of all
    images are known. `answers`: ids to append to each prompt."""
    tails = [list(a) for a in answers] if answers is not None else [[] for _ in prompts]
    rows = [[*p.ids, *tail] for p, tail in zip(prompts, tails, strict=True)]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        start = length - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
        types[i, start : start + len(prompt.ids)] = torch.tensor(prompt.types)
    batch = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
    seen = [p.pixels for p in prompts if p.pixels is not None]
    if seen:
        features = [p.features for p in seen if p.features is not None]
        if len(features) == len(seen):
            batch["image_features"] = torch.cat(features)
        else:
            batch["pixel_values"] = torch.cat([p.values for p in seen])
        batch["image_grid_thw"] = torch.cat([p.grid for p in seen])
    return batch
