"""Training MotionVLA: `task: motionvla`, instructions with scene images on a vision-language model.

Two phases, as published: new rows only (`model.tuning: rows`), then low-rank additions to the linear layers of the language
part (`tuning: lora`, `model.start`: what the first phase exported). The vision tower stays as it is unless `lora.vision`.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT
from vadis.data.corpus import Corpus
from vadis.errors import FileError, ModelError, VadisError
from vadis.language.ms_swift import read_rows
from vadis.language.vla.model import IGNORED, MotionVLA
from vadis.language.vla.prompts import MAX_VISUAL_TOKENS, Prompt, ScenePacker, collate
from vadis.places import inside
from vadis.training.config import Batch, Frames, Recipe
from vadis.training.language_loss import Places, places
from vadis.training.language_model import LanguageModel, LanguageModelConfig, build_language_model
from vadis.training.language_task import LanguageLoss
from vadis.training.task import Task


@dataclass(frozen=True, config=STRICT)
class SceneData:
    """Scene images, instructions and motions: of a corpus with an `image` column, or of MotionVLA's JSON lines."""

    corpus: str | None = None
    """Folder of a corpus, such as `vadis data scenes` makes."""
    rows: str | None = None
    """File of JSON lines with DSFT tokens, instead of a corpus."""
    validation_rows: str | None = None
    image_root: str | None = None
    """Folder where the images of `rows` lie now."""
    batch: Batch = 4
    max_tokens: int = Field(default=2048, ge=8, le=1_000_000)
    """Longer items are left out whole, never cut."""
    max_visual_tokens: Frames = MAX_VISUAL_TOKENS
    min_visual_tokens: Frames = 4
    duration: bool = True
    """Say the length in the instruction."""
    image_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of the items that lose their image, which guidance needs."""
    train_split: str = "train"
    validation_split: str = "val"

    def __post_init__(self) -> None:
        if (self.corpus is None) == (self.rows is None):
            raise VadisError("data: give a corpus or rows, one of them.")
        if self.min_visual_tokens > self.max_visual_tokens:
            raise VadisError("data: min_visual_tokens is above max_visual_tokens.")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SceneRecipe(Recipe):
    """Train a vision-language model to move in scenes."""

    task: Literal["motionvla"] = "motionvla"
    data: SceneData
    model: LanguageModelConfig
    loss: LanguageLoss = Field(default_factory=lambda: LanguageLoss(places="answer"))


@plain_dataclass(frozen=True, eq=False)
class SceneItem:
    """One motion: its sentences, where its picture is, its tokens and its length."""

    texts: tuple[str, ...]
    image: str | None
    tokens: Any
    seconds: float


def corpus_items(path: str, split: str, tokenizer: Any) -> list[SceneItem]:
    """Items of a corpus; its motions are tokenised now. Raises VadisError where it has no captions or other features."""
    corpus = Corpus.open(path)
    if corpus.representation != tokenizer.representation:
        raise VadisError(
            f"{path} holds {corpus.representation}, the motion tokenizer reads {tokenizer.representation}."
        )
    clips = [clip for clip in corpus.subset(split) if clip.captions]
    if not clips:
        raise VadisError(f"{path} has no clip with captions in the split {split!r}.")
    features = [torch.as_tensor(clip.features) for clip in clips]
    if tokenizer.two_streams:
        coded: Sequence[Any] = tokenizer.encode_batch(features)
        lengths = [encoded.T for encoded in coded]
    else:
        coded = tokenizer.encode(features)
        lengths = [len(tokens) * tokenizer.frames_per_token for tokens in coded]
    items = []
    for clip, tokens, frames in zip(clips, coded, lengths, strict=True):
        image = clip.extra.get("image")
        if not isinstance(image, str | None):
            raise FileError(f"{path}, clip {clip.id!r:.60}: its image is {image!r:.40}; expected the name of a file.")
        place = None if image is None else str(inside(corpus.path, image, f"{path}, a clip's image"))
        items.append(SceneItem(tuple(c.text for c in clip.captions), place, tokens, frames / tokenizer.fps))
    return items


def row_items(path: str, tokenizer: Any, image_root: str | None) -> list[SceneItem]:
    """Items of MotionVLA's JSON lines. Raises VadisError unless the tokenizer is DSFT and every row says its length."""
    if not tokenizer.two_streams:
        raise VadisError("rows hold DSFT tokens: the motion tokenizer must be DSFT.")
    items = []
    for row in read_rows(path, fps=tokenizer.fps, image_root=image_root, vocab_sizes=tokenizer.vocab_sizes):
        seconds = row.encoded.T / tokenizer.fps if row.encoded.T else row.seconds or 0.0
        items.append(SceneItem((row.text,), row.image, row.encoded, seconds))
    if not items:
        raise VadisError(f"{path} holds no rows.")
    return items


class _Seeing:
    """A `LanguageModel` for `places` whose states are those of a batch with images."""

    def __init__(self, model: LanguageModel, vla: MotionVLA, batch: dict[str, Tensor]) -> None:
        self._model, self._vla, self._batch = model, vla, batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def states(self, ids: Tensor, position_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        inputs = {k: v for k, v in self._batch.items() if k != "labels"}
        positions, _ = self._vla.backbone.positions(inputs)
        return self._vla.backbone.hidden(inputs, positions).last_hidden_state


class SceneTask(Task):
    """Next-token prediction of motion after an image and an instruction."""

    recipe_class = SceneRecipe
    model: LanguageModel

    def __init__(self, recipe: SceneRecipe) -> None:
        import vadis

        super().__init__(recipe)
        data = recipe.data
        tokenizer = vadis.load(recipe.model.tokenizer)
        self.train, self.held_out = self._items(data, tokenizer)
        texts = [text for item in self.train for text in item.texts]
        self.model = build_language_model(recipe.model, tokenizer, texts, seed=recipe.seed)
        self.vla = MotionVLA(self.model.plain, self.model.text_tokenizer, self.model.vocabulary, tokenizer)
        if self.vla.backbone.facts is None and any(item.image for item in self.train):
            raise ModelError(
                f"{recipe.model.backbone} sees nothing: take a vision-language model, or data without images."
            )
        self.vla.packer = ScenePacker(self.model.text_tokenizer, self.vla.backbone.facts, data.max_visual_tokens,
                                      data.min_visual_tokens)  # fmt: skip
        self.room = min(data.max_tokens, self.model.context)
        pad = self.model.text_tokenizer.pad_token_id
        self.pad = int(self.model.vocabulary.end if pad is None else pad)
        self._survey()

    def _items(self, data: SceneData, tokenizer: Any) -> tuple[list[SceneItem], list[SceneItem]]:
        if data.corpus is not None:
            held_out = corpus_items(data.corpus, data.validation_split, tokenizer)
            return corpus_items(data.corpus, data.train_split, tokenizer), held_out
        assert data.rows is not None
        items = row_items(data.rows, tokenizer, data.image_root)
        if data.validation_rows is not None:
            return items, row_items(data.validation_rows, tokenizer, data.image_root)
        cut = max(1, len(items) // 10)
        return items[cut:] or items, items[:cut]

    def _survey(self) -> None:
        """Leave out what is too long, say how much that is; raise VadisError when nothing is left, FileError for an image
        that can't be read."""
        for name in ("train", "held_out"):
            items = getattr(self, name)
            kept = [item for item in items if self._length(item) <= self.room]
            if not kept:
                raise VadisError(
                    f"no {name} item fits into {self.room} ids: set data.max_tokens higher or data.max_visual_tokens lower."
                )
            if len(kept) < len(items):
                warnings.warn(f"{len(items) - len(kept)} of {len(items)} {name} items are longer than {self.room} ids and "
                              "are left out: set data.max_tokens higher.", stacklevel=3)  # fmt: skip
            setattr(self, name, kept)
        missing = [
            item.image for item in (*self.train, *self.held_out) if item.image and not Path(item.image).is_file()
        ]
        if missing:
            raise FileError(f"{len(missing)} images are missing, the first is {missing[0]}: set data.image_root.")

    def _length(self, item: SceneItem) -> int:
        """Ids of an item at most: the visual tokens of an image are not counted one by one."""
        visual = self.recipe.data.max_visual_tokens + 2 if item.image else 0
        longest = max(item.texts, key=len)
        seconds = item.seconds if self.recipe.data.duration else None
        return len(self.vla.prompt(longest, None, seconds).ids) + visual + len(self.vla.answer(item.tokens))

    # ---- batches

    def _prompt(self, item: SceneItem, text: str, blind: bool) -> Prompt:
        seconds = item.seconds if self.recipe.data.duration else None
        return self.vla.prompt(text, None if blind else item.image, seconds)

    def _tensors(self, prompts: Sequence[Prompt], items: Sequence[SceneItem]) -> dict[str, Tensor]:
        answers = [self.vla.answer(item.tokens) for item in items]
        batch = collate(prompts, self.pad, "right", answers)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            place = slice(len(prompt.ids), len(prompt.ids) + len(answer))
            labels[row, place] = torch.tensor(answer)
        if self.recipe.loss.places == "motion":
            labels = labels.masked_fill(~self.vla.vocabulary.is_motion(labels.clamp_min(0)), IGNORED)
        elif self.recipe.loss.places == "whole":
            spoken = (batch["attention_mask"] > 0) & (batch["mm_token_type_ids"] == 0)
            labels = torch.where(spoken, batch["input_ids"], IGNORED)
        return batch | {"labels": labels}

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        items = [rng.choice(self.train) for _ in range(self.recipe.data.batch)]
        drop = self.recipe.data.image_dropout
        return self._tensors([self._prompt(i, rng.choice(i.texts), rng.random() < drop) for i in items], items)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = self._places(batch)
        return {"total": found.losses.mean(), "accuracy": found.hits.float().mean()}

    def _places(self, batch: dict[str, Tensor]) -> Places:
        seeing: Any = _Seeing(self.model, self.vla, batch)
        return places(seeing, batch, self.recipe.loss.vocabulary == "motion")

    # ---- validation

    def validate(self) -> dict[str, float]:
        """Loss and accuracy of held-out motions with their own image, with another item's, and with none: what the picture is
        worth."""
        size, count = self.recipe.data.batch, self.recipe.validation_batches
        items = self.held_out[: size * count]
        seen = [item for item in items if item.image]
        metrics: dict[str, float] = {}
        for name in ("", "_shuffled_images", "_without_images") if seen else ("",):
            chosen = items if not name else seen
            shown = chosen[len(chosen) // 2 :] + chosen[: len(chosen) // 2] if name == "_shuffled_images" else chosen
            found = []
            for start in range(0, len(chosen), size):
                part, others = chosen[start : start + size], shown[start : start + size]
                prompts = [
                    self.vla.prompt(i.texts[0], None if name == "_without_images" else o.image,
                                    i.seconds if self.recipe.data.duration else None)
                    for i, o in zip(part, others, strict=True)
                ]  # fmt: skip
                batch = {k: v.to(self.device) for k, v in self._tensors(prompts, part).items()}
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                    found.append(self._places(batch))
            metrics[f"loss{name}"] = float(torch.cat([f.losses for f in found]).mean())
            if not name:
                metrics["accuracy"] = float(torch.cat([f.hits for f in found]).float().mean())
        return metrics

    def export(self, folder: Path) -> None:
        """The model as `MotionVLA.load` reads it."""
        from vadis.component_files import write_json

        self.model.save(folder)
        write_json(folder / "scene_packer.json", self.vla.packer.settings())
