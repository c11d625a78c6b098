"""Training an evaluator of the TMR kind: contrast of motions and sentences, and, as published, reconstruction from both."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT
from vadis.errors import ModelError
from vadis.evaluators.layers import Normal, inside
from vadis.evaluators.losses import info_nce, kl_divergence
from vadis.evaluators.tmr import TMRConfig, TMREvaluator
from vadis.metrics.retrieval import r_precision
from vadis.training.config import Recipe
from vadis.training.pairs import PairData, Pairs, Sentences, Stretch
from vadis.training.task import Task


@dataclass(frozen=True, config=STRICT)
class EvaluatorLoss:
    """Weights of the terms; the defaults are the published ones."""

    reconstruction: float = 1.0
    """From the motion's and from the text's latent sample, smooth L1, mean over everything including padding."""
    kl: float = 1e-5
    """Of the two distributions to each other and to the standard normal one."""
    latent: float = 1e-5
    """Smooth L1 between the two samples."""
    contrastive: float = 0.1
    temperature: float = Field(default=0.1, gt=0)
    duplicates: float = 0.85
    """Sentences with a higher cosine don't count against each other."""
    duplicates_upper: float | None = None
    """1.0 repeats the published rule, which misses identical sentences as rounding has it."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class EvaluatorRecipe(Recipe):
    """Train an evaluator on a corpus with captions."""

    task: Literal["evaluator"] = "evaluator"
    data: PairData
    model: TMRConfig = Field(default_factory=TMRConfig)
    loss: EvaluatorLoss = Field(default_factory=EvaluatorLoss)
    text_model: str = "distilbert/distilbert-base-uncased"
    """Folder or Hub id of the weights of the language model, when it is DistilBERT; it stays frozen."""
    sentence_model: str | None = None
    """Folder or Hub id of the MiniLM that tells near-duplicates (published: paraphrase-MiniLM-L6-v2). Null: the usual one."""


class EvaluatorTask(Task):
    """Pairs of motion and text against all others of the batch. Statistics are those of the corpus."""

    recipe_class = EvaluatorRecipe
    model: TMREvaluator

    def __init__(self, recipe: EvaluatorRecipe) -> None:
        super().__init__(recipe)
        model, loss = recipe.model, recipe.loss
        if (loss.reconstruction or loss.latent) and (not model.decoder or model.embedding_dim):
            raise ModelError(
                "reconstruction takes model.decoder: true and model.embedding_dim: null; or set loss.reconstruction and "
                "loss.latent to 0."
            )
        if model.decoder and not loss.reconstruction:
            raise ModelError(
                "a decoder that isn't trained: set model.decoder to false, or loss.reconstruction above 0."
            )
        self.pairs = Pairs(recipe.data, recipe.run, recipe.seed)
        corpus = self.pairs.corpus
        if (corpus.representation, corpus.dim) != (model.representation, model.feature_dim):
            raise ModelError(
                f"{recipe.data.corpus} holds {corpus.representation} ({corpus.dim} values); the model is for "
                f"{model.representation} ({model.feature_dim})."
            )
        self.model = TMREvaluator(model)
        self.model.set_statistics(corpus.mean, corpus.std)
        if model.text_encoder == "distilbert":
            self._load_language()
        self.sentences = Sentences(self.pairs.texts(), self._read, self._vectors)

    def _load_language(self) -> None:
        from transformers import DistilBertModel

        from vadis.foreign import open_model
        from vadis.hub import find_folder

        language = self.model.textencoder.text_model
        assert language is not None  # it is what text_encoder "distilbert" stands for
        try:
            pretrained = open_model(DistilBertModel, find_folder(self.recipe.text_model))
            language.load_state_dict(pretrained.state_dict())
        except (OSError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0][:160]
            raise ModelError(f"can't take the language model {self.recipe.text_model} ({reason}).") from error

    def _read(self, texts: list[str]) -> list[Tensor]:
        """Token features (L, C) in float16 of MiniLM, computed once; token ids (L,) for DistilBERT."""
        if self.recipe.model.text_encoder == "distilbert":
            return self.model.token_ids(texts)
        encoded = dict(self.model.language.encode_each(texts))
        return [encoded[i].half() for i in range(len(texts))]

    def _vectors(self, texts: list[str], inputs: list[Tensor]) -> Tensor:
        if self.recipe.model.text_encoder == "minilm" and self.recipe.sentence_model is None:
            return F.normalize(torch.stack([row.float().mean(0) for row in inputs]), dim=-1)
        from vadis.text_encoders import MiniLMEncoder

        return MiniLMEncoder(self.recipe.sentence_model).sentence(texts)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        clips, numbers, stretch = self.pairs.draw(self.sentences, generator)
        loss = self.recipe.loss
        hidden = self.sentences.hidden(numbers, stretch, loss.duplicates, loss.duplicates_upper)
        mean, std = self.pairs.corpus.mean, self.pairs.corpus.std
        features = torch.nn.utils.rnn.pad_sequence([(clip - mean) / std for clip in clips], batch_first=True)
        lengths = torch.tensor([len(clip) for clip in clips])
        return {"features": features, "lengths": lengths, "hidden": hidden} | self.sentences.batch(numbers)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        weights, model = self.recipe.loss, self.model
        features, lengths = batch["features"], batch["lengths"]
        motion = in_groups(model.motionencoder, features, lengths)
        text = in_groups(self._encode_text, batch["text"], batch["text_lengths"])
        contrastive = info_nce(motion.mean, text.mean, weights.temperature, batch["hidden"])
        kl = kl_divergence(text, motion) + kl_divergence(motion, text) + kl_divergence(text) + kl_divergence(motion)
        terms = {"contrastive": contrastive, "kl": kl}
        total = weights.contrastive * contrastive + weights.kl * kl
        if weights.reconstruction or weights.latent:
            from_motion, from_text = motion.sample(), text.sample()
            terms["latent"] = F.smooth_l1_loss(from_text, from_motion)
            decoded = [model.motiondecoder(z, lengths) for z in (from_motion, from_text)]
            terms["reconstruction"] = torch.stack([F.smooth_l1_loss(x, features) for x in decoded]).sum()
            total = total + weights.reconstruction * terms["reconstruction"] + weights.latent * terms["latent"]
        return {"total": total, **terms}

    def _encode_text(self, inputs: Tensor, lengths: Tensor) -> Normal:
        visible = inside(lengths, inputs.shape[1])
        if not inputs.is_floating_point():
            with torch.no_grad():
                inputs, _ = self.model.read_ids(inputs, visible)
        return self.model.textencoder(inputs, visible)

    def _examined(self) -> tuple[list[Stretch], Tensor]:
        """Held-out stretches with a sentence of the best kind, no two of the sentences alike, and the sentences' numbers."""
        model, best = self.recipe.model, max(max(item.weights) for item in self.pairs.held_out)
        items, numbers = [], []
        for item in self.pairs.held_out:
            if max(item.weights) < best or item.frames < model.min_frames:
                continue
            number = self.sentences.number[item.texts[item.weights.index(best)]]
            rows = self.sentences.vectors[[*numbers, number]]
            if (rows[:-1] @ rows[-1] <= self.recipe.loss.duplicates).all():
                items.append(item)
                numbers.append(number)
        return items, torch.tensor(numbers)

    def validate(self) -> dict[str, float]:
        """R-precision on held-out stretches in pools of 32 (`validation_batches` shuffles), and how many there are."""
        items, numbers = self._examined()
        limit = self.recipe.model.max_frames
        motion = self.model.embed_motion([item.features(0, min(item.frames, limit)) for item in items])
        rows = []
        for part in numbers.split(64):
            inputs = {name: value.to(self.device) for name, value in self.sentences.batch(part).items()}
            normal = self._encode_text(inputs["text"], inputs["text_lengths"])
            rows.append(self.model.finish(normal.mean).float().cpu())
        text, pool = torch.cat(rows), min(32, len(items))
        rounds = range(self.recipe.validation_batches)
        tops = [r_precision(text, motion, pool=pool, top_k=min(3, pool), seed=seed).top for seed in rounds]
        top = torch.tensor(tops).mean(0).tolist()
        return {f"r{k + 1}": value for k, value in enumerate(top)} | {"miss": 1 - top[-1], "items": len(items)}


def in_groups(encode: Callable[[Tensor, Tensor], Normal], x: Tensor, lengths: Tensor, groups: int = 4) -> Normal:
    """`encode(x, lengths)` of sequences (B, S, …) in groups of about equal length, so that little is padding; B is kept."""
    order = lengths.argsort()
    parts = [
        encode(x[rows, : int(lengths[rows].max())], lengths[rows]) for rows in order.chunk(min(groups, len(order)))
    ]
    back = order.argsort()
    return Normal(torch.cat([part.mean for part in parts])[back], torch.cat([part.std for part in parts])[back])
