"""Training a tokenizer of any family on windows of one corpus, or of several with shares."""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import STRICT, as_dict, chosen_by_type
from vadis.data.corpus import Corpus
from vadis.errors import ModelError, VadisError
from vadis.loading import component_classes, load
from vadis.metrics.codebook import codebook_usages
from vadis.metrics.reconstruction import reconstruction_errors
from vadis.representations import representation
from vadis.tokenizers.base import Tokenizer
from vadis.tokenizers.causal_tae import CausalTAE
from vadis.tokenizers.codebook import EMACodebook
from vadis.tokenizers.fsq import FSQTokenizerConfig
from vadis.tokenizers.pca_init import init_from_pca
from vadis.tokenizers.perceptual import Perceptual
from vadis.training.config import Batch, Recipe
from vadis.training.task import Task

CLIPS, CLIP_SECONDS = 24, 5.0  # validation clips that are coded as a whole
INIT_WINDOWS = 512  # for the principal components


@dataclass(frozen=True, config=STRICT)
class WindowData:
    """Random windows of feature corpora."""

    corpus: str | None = None
    """Folder made by `vadis data build` or `vadis data augment`; or else `corpora`."""
    corpora: dict[str, float] = Field(default_factory=dict)
    """Several folders and their shares of a batch, in any unit. Mean and deviation are those of the first."""
    validation_corpus: str | None = None
    """The one whose `validation_split` is held out; null: the first. Recordings that were held out when corpora were
    derived from it stay held out."""
    window: int = Field(default=96, ge=2, le=1_000_000)
    """Frames; shorter clips are left out."""
    batch: Batch = 64
    """Windows a process and batch."""
    mirror: float = Field(default=0.0, ge=0, le=1)
    """Probability of a left-right mirrored window."""
    train_split: str | None = "train"
    """Null: all clips."""
    validation_split: str | None = "val"

    def __post_init__(self) -> None:
        if (self.corpus is None) == (not self.corpora):
            raise VadisError("give one corpus as data.corpus, or several with shares as data.corpora, not both")
        if any(share <= 0 for share in self.corpora.values()):
            raise VadisError("every share in data.corpora must be greater than 0: leave the others out")

    @property
    def shares(self) -> dict[str, float]:
        """Share of a batch by folder; they add up to 1."""
        shares = self.corpora or {str(self.corpus): 1.0}
        return {path: share / sum(shares.values()) for path, share in shares.items()}


@dataclass(frozen=True, config=STRICT)
class ReconstructionLoss:
    """Weights of the terms of `Tokenizer.loss`; the defaults are MotionMillion's."""

    kind: Literal["reconstruction"] = "reconstruction"
    feature_weight: float = 1.0
    """All features alike."""
    block_weights: dict[str, float] = Field(default_factory=dict)
    """A term for each named block of the representation (root_velocity, joint_positions…)."""
    position_weight: float = 0.5
    velocity_weight: float = 0.0
    acceleration_weight: float = 0.0
    root_weight: float = 0.0
    path_weight: float = 0.0
    heading_weight: float = 0.0
    posed_position_weight: float = 0.0
    """Joints posed by the decoded rotations against the recorded joints, in position deviations."""
    posed_velocity_weight: float = 0.0
    """Their change from frame to frame, in velocity deviations."""
    pooled_root_weight: float = 0.0
    """Root errors averaged over 8, 32 and 64 frames, which see the drift of the path."""
    foot_velocity_weight: float = 0.0
    """World velocities of posed ankles and toes, in cm a frame: against sliding feet."""
    commitment_weight: float = 0.0
    """Latents against their codes; families with a codebook (T2M-GPT: 0.02, LFQ: 0.25)."""
    entropy_weight: float = 0.0
    """Entropy penalty of lookup-free quantisation."""
    perceptual_weight: float = 0.0
    """Embeddings of a frozen motion encoder, target against reconstruction."""


@dataclass(frozen=True, config=STRICT)
class SigmaVAELoss:
    """MotionStreamer's loss of the causal auto-encoder: reconstruction with the best sigma, root and KL terms."""

    kind: Literal["sigma_vae"] = "sigma_vae"
    root_weight: float = 7.0
    kl_weight: float = 1.0
    posed_position_weight: float = Field(default=0.0, ge=0)
    """This and the following as in ReconstructionLoss, but at the size of a likelihood: 1 counts as much as all features."""
    posed_velocity_weight: float = Field(default=0.0, ge=0)
    pooled_root_weight: float = Field(default=0.0, ge=0)
    foot_velocity_weight: float = Field(default=0.0, ge=0)


FAMILIES = {name: cls for name, cls in component_classes().items() if issubclass(cls, Tokenizer)}
TokenizerConfig = chosen_by_type({name: cls.config_class for name, cls in FAMILIES.items()}, "fsq")
"""The config of any family, chosen by `type`."""
TokenizerLoss = Annotated[
    Annotated[ReconstructionLoss, Tag("reconstruction")] | Annotated[SigmaVAELoss, Tag("sigma_vae")],
    Discriminator(
        lambda loss: loss.get("kind", "reconstruction") if isinstance(loss, dict) else getattr(loss, "kind", None)
    ),
]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TokenizerRecipe(Recipe):
    """Train a tokenizer on windows of corpora; `model.type` says its family (default fsq)."""

    task: Literal["tokenizer"] = "tokenizer"
    data: WindowData
    model: TokenizerConfig = Field(default_factory=FSQTokenizerConfig)  # type: ignore[valid-type]
    loss: TokenizerLoss = Field(default_factory=ReconstructionLoss)
    start: str | None = None
    """Folder of a saved tokenizer of the same config whose weights and statistics training starts from."""
    freeze: tuple[str, ...] = ()
    """Parameters whose names begin so stay as they are: `[encoder, quantizer]` trains a decoder and keeps all tokens valid."""
    perceptual: str | None = None
    """Folder, bundled name or Hub id of the evaluator by which `loss.perceptual_weight` compares."""
    init: Literal["random", "pca", "balanced"] = "random"
    """pca: start from the best linear code of the data (`vadis.tokenizers.pca_init`); needs model.down_t 0. balanced:
    random weights of better scale, for causal_tae."""


class TokenizerTask(Task):
    """A tokenizer: windows, z-normalised with the first corpus' statistics, which travel with the model."""

    recipe_class = TokenizerRecipe
    model: Tokenizer

    def __init__(self, recipe: TokenizerRecipe) -> None:
        super().__init__(recipe)
        data = recipe.data
        corpora = {path: Corpus.open(path) for path in data.shares}
        for path, corpus in corpora.items():
            if corpus.representation != recipe.model.representation or corpus.fps != recipe.model.fps:
                raise ModelError(
                    f"{path} holds {corpus.representation} at {corpus.fps:g} fps; the recipe's model is for "
                    f"{recipe.model.representation} at {recipe.model.fps:g} fps. "
                    "Set model.representation and model.fps, or data.corpus."
                )
        first = next(iter(corpora.values()))
        chosen = data.validation_corpus
        if chosen is not None and chosen not in corpora:
            raise VadisError(f"data.validation_corpus {chosen!r} is none of {', '.join(corpora)}.")
        self.train = [corpus.subset(data.train_split) for corpus in corpora.values()]
        self.held_out = (corpora[chosen] if chosen else first).subset(data.validation_split)
        self.ends = np.cumsum(list(data.shares.values()))
        self.representation = representation(first.representation)
        self.model = FAMILIES[recipe.model.type](recipe.model)
        self.model.set_statistics(first.mean, first.std)
        self.weights: dict[str, Any] = as_dict(recipe.loss)
        if self.model.continuous != (self.weights.pop("kind", None) == "sigma_vae"):
            wanted = "sigma_vae" if self.model.continuous else "reconstruction"
            raise VadisError(f"a {recipe.model.type} tokenizer is trained with other terms: set loss.kind to {wanted}.")
        if recipe.perceptual is not None:
            if not isinstance(self.model, Perceptual):
                raise ModelError(f"a {recipe.model.type} tokenizer has no perceptual loss: leave out `perceptual`.")
            self.model.set_perceptual(load(recipe.perceptual))
        if recipe.start is not None:
            self._start_from(recipe.start)
        for prefix in recipe.freeze:
            self._freeze(prefix)
        if recipe.init == "balanced":
            if not isinstance(self.model, CausalTAE):
                raise ModelError(f"a {recipe.model.type} tokenizer has no init: balanced, only causal_tae has.")
            self.model.init_balanced()
        if recipe.init == "pca":
            init_from_pca(self.model, self._windows(INIT_WINDOWS, torch.Generator().manual_seed(recipe.seed)))

    def _freeze(self, prefix: str) -> None:
        frozen: list[Any] = [p.requires_grad_(False) for n, p in self.model.named_parameters() if n.startswith(prefix)]
        for name, module in self.model.named_modules():
            if name.startswith(prefix) and isinstance(module, EMACodebook):  # its codes move without gradients
                module.frozen = True
                frozen.append(module)
        if not frozen:
            raise VadisError(f"freeze: no parameter of this model begins with {prefix!r}.")

    def _start_from(self, folder: str) -> None:
        saved = load(folder)
        if not isinstance(saved, Tokenizer) or saved.config != self.recipe.model:
            raise ModelError(f"{folder} holds another model than the recipe's: copy its config.json to `model:`.")
        self.model.load_state_dict(saved.state_dict())

    def _windows(self, count: int, generator: torch.Generator) -> Tensor:
        """Random windows `(count, T, D)` with each corpus' share as near as whole numbers allow, exact on average."""
        window = self.recipe.data.window
        if len(self.train) == 1:
            return self.train[0].windows(count, window, generator)
        places = (np.arange(count) + float(torch.rand((), generator=generator))) / count
        counts = np.bincount(np.searchsorted(self.ends[:-1], places, side="right"), minlength=len(self.train))
        parts = [c.windows(int(n), window, generator) for c, n in zip(self.train, counts, strict=True) if n]
        return torch.cat(parts)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        data = self.recipe.data
        features = self._windows(data.batch, generator)
        if data.mirror:
            chosen = torch.rand(data.batch, generator=generator) < data.mirror
            if chosen.any():
                features[chosen] = self.representation.mirror(features[chosen])
        return {"features": features}

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms, _ = self.model.loss((batch["features"] - self.model.mean) / self.model.std, **self.weights)
        return terms

    def validate(self) -> dict[str, float]:
        """Loss terms and what decoded motion is worth.

        "position_mm" is the error of decoded joint positions, "perplexity" and "codes_used" tell how the codebook is used;
        "pose_mm", "global_mm" and "jitter_ratio" (`reconstruction_errors`) are of clips of 5 s, coded as a whole.
        """
        data, rows, tokens = self.recipe.data, [], []
        where = self.representation.slices.get("joint_positions")
        for generator in self.held_out_batches():
            features = self.held_out.windows(data.batch, data.window, generator).to(self.device)
            terms, output = self.model.loss((features - self.model.mean) / self.model.std, **self.weights)
            row = {("loss" if name == "total" else name): float(value) for name, value in terms.items()}
            if where is not None:
                made = output.reconstruction.float() * self.model.std + self.model.mean
                error = (made - features[:, : made.shape[1]])[..., where].unflatten(-1, (-1, 3)).norm(dim=-1)
                row["position_mm"] = 1000 * float(error.mean())
            rows.append(row)
            tokens.append(output.tokens)
        result = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        if not self.model.continuous:
            result |= self._usage(torch.cat(tokens))
        return result | self._clip_errors()

    def _usage(self, tokens: Tensor) -> dict[str, float]:
        """Perplexity and share of codes used, the mean over groups or levels."""
        columns = tokens.reshape(-1, self.model.tokens_per_step)
        usages = codebook_usages(columns, self.model.vocab_size, ignore=-1)
        return {
            "perplexity": sum(u.perplexity for u in usages) / len(usages),
            "codes_used": sum(u.utilisation for u in usages) / len(usages),
        }

    def _clip_errors(self) -> dict[str, float]:
        frames = min(round(CLIP_SECONDS * self.model.fps), int(self.held_out.frames.max()))
        real = self.held_out.windows(CLIPS, frames, torch.Generator().manual_seed(1))
        made = self.model.reconstruct(real).cpu()
        return reconstruction_errors(real[:, : made.shape[1]], made[:, :frames], self.representation.name)
