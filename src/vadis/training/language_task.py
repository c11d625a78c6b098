"""Training a language model on instructions of text and motion: `task: language`."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT
from vadis.errors import ModelError, VadisError
from vadis.language.add_motion import MotionVocabulary
from vadis.language.instruction_sampler import InstructionData, Instructions, TokenSource
from vadis.language.instructions import EncodedItem, InstructionItem, encode, instruction
from vadis.language.packing import Rows, length_groups, pack_rows, pad_rows
from vadis.training.config import Batch, Recipe
from vadis.training.english import SAMPLE
from vadis.training.language_loss import Places, places, text_perplexity
from vadis.training.language_model import LanguageModel, LanguageModelConfig, build_language_model
from vadis.training.task import Task

SURVEY = 200
"""Items looked at before the training, to say how many are too long."""


@dataclass(frozen=True, config=STRICT)
class LanguageData(InstructionData):
    """Instructions drawn from tokenised corpora, and how they become batches."""

    batch: Batch = 16
    """Items a process and batch; with `packing` rows of `max_tokens`."""
    max_tokens: int = Field(default=2048, ge=8, le=1_000_000)
    """Longer items are left out whole, never cut."""
    packing: bool = False
    """Several items a row, each blind to the others. Not for linear attention (Qwen3.5)."""
    bucket: Batch = 4
    """Without packing: a batch is a slice of this many batches sorted by length, so that little is padding; 1: no sorting."""
    validation_split: str = "val"
    validation_corpora: tuple[TokenSource, ...] | None = None
    """Null: those of training."""


@dataclass(frozen=True, config=STRICT)
class LanguageLoss:
    """What is asked of the model."""

    places: Literal["whole", "motion", "answer"] = "whole"
    """The loss is on everything, on spans of motion, or on the answer."""
    vocabulary: Literal["full", "motion"] = "full"
    """At places of motion the model chooses among all ids, or among those of motion."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LanguageRecipe(Recipe):
    """Train a language model to write and read motion."""

    task: Literal["language"] = "language"
    data: LanguageData
    model: LanguageModelConfig
    loss: LanguageLoss = Field(default_factory=LanguageLoss)


class LanguageTask(Task):
    """Next-token prediction on instructions of text and motion."""

    recipe_class = LanguageRecipe
    can_shard = True
    model: LanguageModel

    def __init__(self, recipe: LanguageRecipe) -> None:
        import vadis

        super().__init__(recipe)
        data, model = recipe.data, recipe.model
        if model.half_base and recipe.precision != "bf16":
            raise ModelError(
                "model.half_base keeps frozen weights in bfloat16: set precision to bf16, or half_base to false."
            )
        self.train = Instructions(data)
        held_out = data if data.validation_corpora is None else _with(data, corpora=data.validation_corpora)
        self.held_out = Instructions(held_out, split=data.validation_split)
        tokenizer = vadis.load(model.tokenizer)
        self.model = build_language_model(model, tokenizer, self._texts(), [SAMPLE], recipe.seed)
        self.vocabulary: MotionVocabulary = self.model.vocabulary
        self.train.check(self.vocabulary)
        self.held_out.check(self.vocabulary)
        self._check_packing()
        self.room = min(data.max_tokens, self.model.context)
        self.pad = int(self.model.text_tokenizer.pad_token_id or self.model.text_tokenizer.eos_token_id or 0)
        self._survey()
        self.english = self.model.text_tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        self.english_before = self._english() if model.tuning != "scratch" else None

    def _texts(self) -> Iterator[str]:
        """All sentences, which a remapped vocabulary must leave alone."""
        for corpus in (*self.train.sources, *self.held_out.sources):
            for row in range(len(corpus)):
                for _, text in corpus.sentences(row):
                    yield text

    def _check_packing(self) -> None:
        config = self.model.plain.config.get_text_config()
        if self.recipe.data.packing and "linear_attention" in (getattr(config, "layer_types", None) or ()):
            raise ModelError(
                f"{type(self.model.plain).__name__} has linear attention, which sees across packed items: set data.packing "
                "to false."
            )

    def _survey(self) -> None:
        """Warn of items that are too long; raise VadisError when all are."""
        import warnings

        rng = random.Random(0)
        lengths = [len(self._encode(self.train.draw(rng))) for _ in range(SURVEY)]
        self.tokens_per_item = sum(lengths) / len(lengths)
        share = sum(n > self.room for n in lengths) / len(lengths)
        if share == 1:
            raise VadisError(
                f"no item fits into {self.room} ids (they have {min(lengths)} and more): set data.max_tokens higher, or take a "
                "tokenizer of fewer tokens."
            )
        if share > 0.01:
            warnings.warn(
                f"{100 * share:.0f} % of the items are longer than {self.room} ids and are left out: set data.max_tokens "
                "higher.",
                stacklevel=3,
            )

    def data_facts(self) -> dict[str, int]:
        tokens = sum(int(corpus.steps.sum()) * corpus.tokens(0).shape[-1] if corpus.about["grouped"] else int(corpus.steps.sum())
                     for corpus in self.train.sources)  # fmt: skip
        data = self.recipe.data
        a_row = max(1.0, self.room / self.tokens_per_item) if data.packing else 1.0
        return {"items": len(self.train), "tokens": tokens, "items_per_step": int(data.batch * a_row)}

    # ---- batches

    def _encode(self, item: InstructionItem) -> EncodedItem:
        return encode(item, self.vocabulary, self.model.text_tokenizer)

    def _fitting(self, rng: random.Random) -> EncodedItem:
        while len(item := self._encode(self.train.draw(rng))) > self.room:
            pass
        return item

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        if data.packing:
            items, filled = [], 0
            while filled < data.batch * self.room:
                items.append(self._fitting(rng))
                filled += len(items[-1])
            return self._tensors(
                pack_rows(items, self.room, pad=self.pad, loss=self.recipe.loss.places, rows=data.batch)
            )
        items = [self._fitting(rng) for _ in range(data.batch * data.bucket)]
        chosen = rng.choice(length_groups([len(item) for item in items], data.batch))
        return self._tensors(self._padded([items[i] for i in chosen], self.recipe.loss.places))

    def _padded(self, items: list[EncodedItem], loss: Any) -> Rows:
        return pad_rows(items, self.room, pad=self.pad, loss=loss)

    def _tensors(self, rows: Rows) -> dict[str, Tensor]:
        """Right-padded rows of one item need neither a mask nor positions: nothing looks ahead."""
        made = {"input_ids": rows.input_ids, "labels": rows.labels}
        if any(len(items) > 1 for items in rows.items):
            made |= {"position_ids": rows.position_ids, "segment_ids": rows.segment_ids}
        return made

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = places(self.model, batch, self.recipe.loss.vocabulary == "motion")
        return {
            "total": found.losses.mean(),
            "accuracy": found.hits.float().mean(),
            "places": torch.tensor(float(len(found.losses))),
            "tokens": torch.tensor(float(batch["input_ids"].numel())),
        }

    # ---- validation

    def validate(self) -> dict[str, float]:
        """Loss and accuracy of held-out answers in the wording of evaluation, the loss of motion without its text (how much
        the text tells), and the perplexity of plain English now and before the training."""
        wanted = [task for task, share in self.recipe.data.tasks.items() if share > 0]
        first = "text_to_motion" if "text_to_motion" in wanted else wanted[0]
        metrics = self._answers(first)
        if first == "text_to_motion":
            metrics["loss_without_text"] = self._answers(first, without_text=True)["loss"]
        if "motion_to_text" in wanted and first != "motion_to_text":
            metrics |= {f"caption_{k}": v for k, v in self._answers("motion_to_text").items()}
        metrics["english_perplexity"] = self._english()
        if self.english_before is not None:
            metrics["english_perplexity_before"] = self.english_before
        return metrics

    def _answers(self, task: str, without_text: bool = False) -> dict[str, float]:
        data, found = self.recipe.data, []
        items = list(self.held_out.fixed(task, self.recipe.validation_batches * data.batch))
        if without_text:
            prompt = instruction("unconditional").prompt
            items = [InstructionItem(prompt, item.answer, "unconditional") for item in items]
        rows = [row for item in items if len(row := self._encode(item)) <= self.room]
        if not rows:
            raise VadisError(f"no held-out item fits into {self.room} ids: set data.max_tokens higher.")
        for group in length_groups([len(row) for row in rows], data.batch):
            batch = self._tensors(self._padded([rows[i] for i in group], "answer"))
            batch = {k: v.to(self.device) for k, v in batch.items()}
            with self._precision():
                found.append(places(self.model, batch, self.recipe.loss.vocabulary == "motion"))
        every = Places(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        return {"loss": float(every.losses.mean()), "accuracy": float(every.hits.float().mean())}

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    @torch.no_grad()
    def _english(self) -> float:
        """Perplexity of a small text."""
        ids = self.vocabulary.encode_text(self.model.text_tokenizer, SAMPLE)[: self.model.context]
        training = self.model.training
        self.model.eval()
        with self._precision():
            mask = self.vocabulary.text_mask().to(self.device)
            found = text_perplexity(self.model.plain, ids, len(self.english), mask)
        self.model.train(training)
        return found

    def export(self, folder: Path) -> None:
        """The model as `load_language_model` reads it, with the motion tokenizer named."""
        self.model.save(folder)


def _with(data: LanguageData, **changes: Any) -> LanguageData:
    from dataclasses import replace

    return replace(data, **changes)
