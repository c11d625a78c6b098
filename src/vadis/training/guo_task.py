"""Training the evaluator of Guo et al. in its two published stages: an autoencoder of short movements, then the match of
whole motions with sentences by a margin on distances, the movement encoder frozen."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.component_files import save_pretrained
from vadis.config import STRICT
from vadis.errors import ModelError
from vadis.evaluators.guo import CONTACTS, GuoConfig, GuoEvaluator, MovementDecoder
from vadis.evaluators.guo_words import read_vocabulary, split_words
from vadis.evaluators.losses import margin_losses
from vadis.loading import load
from vadis.metrics.retrieval import r_precision
from vadis.representations import representation
from vadis.training.config import Recipe
from vadis.training.pairs import PairData, Pairs, Sentences
from vadis.training.task import Task


@dataclass(frozen=True, config=STRICT)
class GuoLoss:
    sparsity: float = 1e-3
    """Mean absolute movement vector."""
    smoothness: float = 1e-3
    """Mean absolute difference of neighbouring movement vectors."""
    margin: float = 10.0
    """Pairs that don't belong together should be at least this far apart."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GuoRecipe(Recipe):
    """Train the movement encoder (`stage: movement`), then the rest on top of it (`stage: match`)."""

    task: Literal["guo-evaluator"] = "guo-evaluator"
    stage: Literal["movement", "match"] = "match"
    start: str | None = None
    """For `match`: folder of the evaluator whose movement encoder was trained."""
    glove: str | None = None
    """For `match`: folder of the published word vectors."""
    data: PairData
    window: int = Field(default=24, ge=8, le=1_000_000, multiple_of=4)
    """For `movement`: frames a sample."""
    emphasis: float = Field(default=25.0, gt=0)
    """The deviations of root and contact columns are divided by this, as in the published evaluator's statistics."""
    model: GuoConfig = Field(default_factory=GuoConfig)
    loss: GuoLoss = Field(default_factory=GuoLoss)


class _MovementAutoencoder(nn.Module):
    def __init__(self, evaluator: GuoEvaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.decoder = MovementDecoder(evaluator.config.feature_dim - CONTACTS, evaluator.config.movement_width)
        frozen = (evaluator.motion_encoder, evaluator.text_encoder)
        for module in frozen:
            module.requires_grad_(False)


class GuoTask(Task):
    """One of the two stages; what it leaves is a whole evaluator, in the first stage with two untrained networks."""

    recipe_class = GuoRecipe

    def __init__(self, recipe: GuoRecipe) -> None:
        super().__init__(recipe)
        self.pairs = Pairs(recipe.data, recipe.run, recipe.seed)
        corpus, model = self.pairs.corpus, recipe.model
        if (corpus.representation, corpus.dim) != (model.representation, model.feature_dim):
            raise ModelError(
                f"{recipe.data.corpus} holds {corpus.representation} ({corpus.dim} values); the model is for "
                f"{model.representation} ({model.feature_dim})."
            )
        if recipe.stage == "movement":
            self.evaluator = GuoEvaluator(model)
            _initialize(self.evaluator)
            self.evaluator.set_statistics(*self._statistics())
            self.autoencoder = _MovementAutoencoder(self.evaluator)
            _initialize(self.autoencoder.decoder)
            self.model = self.autoencoder
            return
        self.evaluator = self._with_words()
        self.model = self.evaluator
        self.sentences = Sentences(self.pairs.texts(), self._read)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        corpus, slices = self.pairs.corpus, representation(self.recipe.model.representation).slices
        std = corpus.std.clone()
        std[: slices["joint_positions"].start] /= self.recipe.emphasis
        std[slices["foot_contacts"]] /= self.recipe.emphasis
        return corpus.mean, std

    def _with_words(self) -> GuoEvaluator:
        """The evaluator of the first stage with word vectors and newly drawn networks over its movement encoder."""
        recipe = self.recipe
        if recipe.start is None or recipe.glove is None:
            raise ModelError(
                "stage=match needs start=, the folder that stage=movement made, and glove=, the word vectors."
            )
        first = load(recipe.start)
        if not isinstance(first, GuoEvaluator):
            raise ModelError(f"{recipe.start} holds a {type(first).__name__}, not an evaluator of Guo et al.")
        words, vectors = read_vocabulary(recipe.glove)
        evaluator = GuoEvaluator(replace(recipe.model, vocabulary=words))
        if vectors.shape != evaluator.word_vectors.shape:
            raise ModelError(
                f"the word vectors have {vectors.shape[1]} values; model.word_dim is {recipe.model.word_dim}."
            )
        evaluator.word_vectors.copy_(vectors)
        _initialize(evaluator)
        evaluator.movement_encoder.load_state_dict(first.movement_encoder.state_dict())
        evaluator.movement_encoder.requires_grad_(False)
        evaluator.set_statistics(first.mean, first.std)
        return evaluator

    def _read(self, texts: list[str]) -> list[Tensor]:
        """Rows and classes (L, 2) of every sentence."""
        found = [self.evaluator.words.read(split_words(text)) for text in texts]
        return [torch.tensor([rows[:n], classes[:n]]).T for rows, classes, n in found]

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        if self.recipe.stage == "movement":
            windows = self.pairs.corpus.subset(data.train_split).windows(data.batch, self.recipe.window, generator)
            return {"windows": windows}
        clips, numbers, _ = self.pairs.draw(self.sentences, generator)
        shift = torch.randint(1, max(len(clips), 2), (), generator=generator)
        return self._padded(clips) | self.sentences.batch(numbers) | {"shift": shift}

    def _padded(self, clips: list[Tensor]) -> dict[str, Tensor]:
        device = self.device
        features, lengths = self.evaluator.pad([clip.to(device) for clip in clips])
        return {"features": features, "lengths": lengths}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.recipe.loss
        if self.recipe.stage == "movement":
            x = self.evaluator.normalize(batch["windows"])
            movements = self.evaluator.movements(x)
            terms = {
                "reconstruction": F.l1_loss(self.autoencoder.decoder(movements), x[..., :-CONTACTS]),
                "sparsity": movements.abs().mean(),
                "smoothness": (movements[:, 1:] - movements[:, :-1]).abs().mean(),
            }
            extra = weights.sparsity * terms["sparsity"] + weights.smoothness * terms["smoothness"]
            return {"total": terms["reconstruction"] + extra, **terms}
        text, motion = self._embed(batch)
        near, far = margin_losses(text, motion, int(batch["shift"]), weights.margin)
        return {"total": near + far, "near": near, "far": far}

    def _embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        e = self.evaluator
        e.movement_encoder.eval()  # frozen, its dropout too
        with torch.no_grad():
            movements = e.movements(batch["features"])
        motion = e.motion_encoder(movements, batch["lengths"] // e.config.unit_length)
        rows, classes = batch["text"].unbind(-1)
        one_hot = F.one_hot(classes, e.text_encoder.pos_emb.in_features).to(movements)
        return e.text_encoder(e.word_vectors[rows], one_hot, batch["text_lengths"]), motion

    def validate(self) -> dict[str, float]:
        """Loss on held-out data; for `match` also R-precision in pools of 32."""
        recipe, data = self.recipe, self.recipe.data
        if recipe.stage == "movement":
            held_out = self.pairs.corpus.subset(data.validation_split)
            rows = [
                self.loss({"windows": held_out.windows(data.batch, recipe.window, generator).to(self.device)})
                for generator in self.held_out_batches()
            ]
            return {"loss": sum(float(row["total"]) for row in rows) / len(rows)}
        items = self.pairs.held_out
        limit = self.evaluator.max_frames
        numbers = torch.tensor([self.sentences.number[item.texts[0]] for item in items])
        texts, motions = [], []
        for start in range(0, len(items), 32):
            clips = [item.features(0, min(item.frames, limit)) for item in items[start : start + 32]]
            inputs = self._padded(clips) | self.sentences.batch(numbers[start : start + 32])
            text, motion = self._embed({name: value.to(self.device) for name, value in inputs.items()})
            texts.append(text.float().cpu())
            motions.append(motion.float().cpu())
        text, motion = torch.cat(texts), torch.cat(motions)
        near, far = margin_losses(text, motion, 1, recipe.loss.margin)
        pool = min(32, len(items))
        scored = r_precision(text, motion, pool=pool, top_k=min(3, pool), seed=0)
        return {"loss": float(near + far)} | {f"r{k + 1}": value for k, value in enumerate(scored.top)}

    def export(self, folder: Path) -> None:
        save_pretrained(self.evaluator, folder)


def _initialize(module: nn.Module) -> None:
    """Xavier-normal weights of linear layers and convolutions, biases zero, as published."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
