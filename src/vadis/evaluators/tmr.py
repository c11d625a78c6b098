"""TMR on 272 features, MotionStreamer's evaluator (Xiao et al., 2025; TMR: Petrovich et al., ICCV 2023).

A transformer reads the motion, another reads token features of a frozen language model; each gives a normal distribution
and its mean is the embedding. The published model reads DistilBERT, whose weights are in its checkpoint, and its
embeddings are not normalised. The small one that comes with vadis reads MiniLM, takes several frames per step and gives
unit vectors.

Shapes: B clips, T frames, D features, S steps, L text tokens, H width, E values of an embedding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import load_strictly
from vadis.config import build_config
from vadis.errors import MissingExtra, ModelError
from vadis.evaluators.base import Evaluator
from vadis.evaluators.layers import DistributionEncoder, Normal, SequenceDecoder, inside, moments, sinusoids
from vadis.sizes import CONFIG, Codes, Dropout, Frames, Heads, Layers, Name, Positions, Width

TOKENIZER = "distilbert/distilbert-base-uncased"


@dataclass(frozen=True, config=CONFIG)
class DistilBertConfig:
    """Sizes of the language model; the defaults are distilbert-base-uncased."""

    vocab_size: Codes = 30522
    positions: Positions = 512
    width: Width = 768
    ff: Width = 3072
    layers: Layers = 6
    heads: Heads = 12

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")


@dataclass(frozen=True, config=CONFIG)
class TMRConfig:
    """The published evaluator for 272 features (its file of settings asks for 6 heads; 4 were trained)."""

    type: Literal["tmr"] = "tmr"
    representation: Name = "ms272"
    feature_dim: Width = 272
    width: int = Field(default=256, ge=2, le=65_536, multiple_of=2)
    layers: Layers = 4
    heads: Heads = 4
    ff: Width = 1024
    dropout: Dropout = 0.1
    patch: Positions = 1
    """Frames a step; what is left at the end of a clip is not read."""
    embedding_dim: Width | None = None
    """Values of an embedding; null: `width` of them, without a layer in between."""
    normalize: bool = False
    """Embeddings of length 1, so that distances order pairs as the cosine does."""
    summary: bool = False
    """Mean and deviation of a clip's features, and the mean of a sentence's tokens, count directly as well."""
    text_encoder: Literal["distilbert", "minilm"] = "distilbert"
    """The frozen language model; MiniLM is not part of the weights."""
    text_layers: Layers | None = None
    """Layers over the text; null: as many as over the motion."""
    distilbert: DistilBertConfig = Field(default_factory=DistilBertConfig)
    decoder: bool = True
    """Keep the decoder, which only training needs."""
    min_frames: Frames = 20
    max_frames: Frames = 300

    def __post_init__(self) -> None:
        if self.min_frames > self.max_frames:
            raise ModelError(f"min_frames {self.min_frames} is above max_frames {self.max_frames}.")
        if self.width % self.heads:
            raise ModelError(f"width {self.width} must be a multiple of heads {self.heads}.")


class MotionEncoder(DistributionEncoder):
    """Normalised features to a distribution."""

    def __init__(self, config: TMRConfig) -> None:
        c = config
        super().__init__(c.width, c.layers, c.heads, c.ff, c.dropout, c.embedding_dim)
        self.summary = None
        if c.summary:
            ends = nn.Linear(2 * c.feature_dim, c.width), nn.Linear(c.width, c.embedding_dim or c.width)
            self.summary = nn.Sequential(nn.Dropout(c.dropout), ends[0], nn.GELU(), nn.Dropout(c.dropout), ends[1])
        self.patch = c.patch
        self.skel_embedding = nn.Linear(c.patch * c.feature_dim, c.width)

    def forward(self, features: Tensor, lengths: Tensor) -> Normal:
        """Features (B, T, D), lengths (B,) in frames."""
        steps = features.shape[1] // self.patch
        x = features[:, : steps * self.patch].reshape(len(features), steps, -1)
        shift: Tensor | float = 0.0
        if self.summary is not None:
            shift = self.summary(torch.cat(moments(features, inside(lengths, features.shape[1])), dim=-1))
        return self.read(self.skel_embedding(x), inside(lengths // self.patch, steps), shift)


class TextEncoder(DistributionEncoder):
    """Token features of the language model to a distribution."""

    def __init__(self, config: TMRConfig) -> None:
        c = config
        tokens = c.distilbert.width if c.text_encoder == "distilbert" else 384
        super().__init__(c.width, c.text_layers or c.layers, c.heads, c.ff, c.dropout, c.embedding_dim)
        self.summary = nn.Linear(tokens, c.embedding_dim or c.width) if c.summary else None
        self.text_model = _distilbert(c.distilbert) if c.text_encoder == "distilbert" else None
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(tokens, c.width))

    def forward(self, tokens: Tensor, visible: Tensor) -> Normal:
        """Token features (B, L, C) and which of them belong to each sentence (B, L) bool."""
        shift: Tensor | float = 0.0
        if self.summary is not None:
            mean, _ = moments(tokens, visible)
            shift = self.summary(F.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5)  # values of about unit size
        return self.read(self.projection(tokens), visible, shift)

    def train(self, mode: bool = True) -> "TextEncoder":
        """The language model stays frozen and in evaluation mode."""
        super().train(mode)
        if self.text_model is not None:
            self.text_model.eval()
        return self


def _distilbert(sizes: DistilBertConfig) -> Any:
    try:
        from transformers import DistilBertConfig as Settings
        from transformers import DistilBertModel
    except ImportError as error:
        raise MissingExtra("this evaluator reads text with DistilBERT: pip install 'vadis[text]'") from error
    s = sizes
    settings = Settings(
        vocab_size=s.vocab_size, max_position_embeddings=s.positions, dim=s.width, hidden_dim=s.ff, n_layers=s.layers,
        n_heads=s.heads,
    )  # fmt: skip
    return DistilBertModel(settings).requires_grad_(False)


class TMREvaluator(Evaluator):
    """Motion and text to one space; see `Evaluator`."""

    config_class = TMRConfig
    config: TMRConfig

    def __init__(self, config: TMRConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or TMRConfig()
        self.motionencoder = MotionEncoder(c)
        self.textencoder = TextEncoder(c)
        if c.decoder:
            self.motiondecoder = SequenceDecoder(c.width, c.layers, c.heads, c.ff, c.dropout, c.feature_dim)
        self._register_statistics(c.feature_dim)
        self._language: Any = None

    @property
    def dim(self) -> int:
        return self.config.embedding_dim or self.config.width

    def encode_motion(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.finish(self.motionencoder(features, lengths).mean)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.finish(self.textencoder(*self.read_text(texts)).mean)

    def finish(self, mean: Tensor) -> Tensor:
        """The embedding of a distribution with that mean (B, E)."""
        return F.normalize(mean, dim=-1) if self.config.normalize else mean

    @property
    def language(self) -> Any:
        """What reads sentences first, loaded when it is needed: a MiniLM, or the tokenizer of DistilBERT."""
        if self._language is None:
            if self.config.text_encoder == "minilm":
                from vadis.text_encoders import MiniLMEncoder

                self._language = [MiniLMEncoder(device=self.device)]  # a list, so that it is no submodule and not saved
            else:
                self._language = [_tokenizer()]
        return self._language[0]

    @torch.no_grad()
    def read_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token features (B, L, C) of the frozen language model, and which belong to each sentence (B, L) bool."""
        if self.config.text_encoder == "minilm":
            tokens, lengths = self.language.encode(texts)
            return tokens.to(self.device), inside(lengths.to(self.device), tokens.shape[1])
        rows = self.token_ids(texts)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        return self.read_ids(ids, inside(lengths, ids.shape[1]))

    def token_ids(self, texts: Sequence[str]) -> list[Tensor]:
        """DistilBERT's token ids (L,) of each sentence, at most as many as it has positions."""
        limit = self.config.distilbert.positions
        rows = [encoding.ids for encoding in self.language.encode_batch(list(texts))]
        return [torch.tensor(ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]) for ids in rows]

    def read_ids(self, ids: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Token features (B, L, C) of DistilBERT for token ids (B, L), and `visible` (B, L) bool again."""
        model: Any = self.textencoder.text_model
        return model(input_ids=ids, attention_mask=visible.long()).last_hidden_state, visible


def _tokenizer() -> Any:
    """DistilBERT's tokenizer from the Hub or its cache; raises ModelError when it can't be had."""
    from huggingface_hub import hf_hub_download

    from vadis.foreign import tokenizer_of

    try:
        path = hf_hub_download(TOKENIZER, "tokenizer.json")
    except Exception as error:  # many kinds: no network, not in the cache
        raise ModelError(
            f"this evaluator needs the tokenizer {TOKENIZER}, which is neither cached nor can it be downloaded "
            f"({(str(error).splitlines() or [''])[0]:.120}). Download it once while online."
        ) from error
    tokenizer = tokenizer_of(Path(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


# ---- the published checkpoint


def from_motionstreamer(
    state: Mapping[str, Tensor],
    *,
    mean: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    **options: Any,
) -> TMREvaluator:
    """The evaluator of a published file (`epoch=99.ckpt`), every tensor of its three networks used once.

    Sizes are read off the tensors; `options` (fields of TMRConfig; `heads`, and `text_heads` of the language model) say
    what they don't tell. The sentence model and the counters in the file are left aside. `mean` and `std` (272,) are those
    of HumanML3D-272; without them features must be normalised already. Raises ModelError.
    """
    parts = ("motionencoder.", "textencoder.", "motiondecoder.")
    ours = {name: value for name, value in state.items() if name.startswith(parts)}
    if not any(name.startswith(parts[0]) for name in ours) or not any(name.startswith(parts[1]) for name in ours):
        raise ModelError(f"not a MotionStreamer evaluator: no motionencoder and textencoder among {sorted(state)[:8]}.")
    if (mean is None) != (std is None):
        raise ModelError("give both mean and std, or neither.")
    evaluator = TMREvaluator(build_config(TMRConfig, _sizes(ours, options), "options"))
    for name in [name for name in ours if name.endswith("sequence_pos_encoding.pe")]:
        table = ours.pop(name).squeeze(1).float()
        if not torch.allclose(table, sinusoids(*table.shape), atol=1e-2):  # far positions differ by rounding
            raise ModelError(f"{name} is not the sinusoidal table that this evaluator was published with.")
    if mean is not None and std is not None:
        evaluator.set_statistics(mean, std)
    load_strictly(evaluator, {**ours, "mean": evaluator.mean, "std": evaluator.std})
    return evaluator.eval()


def _sizes(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields that the tensors tell, under the options."""
    layers = {int(n.split(".")[3]) for n in state if n.startswith("motionencoder.seqTransEncoder.layers.")}
    deep = {int(n.split(".")[4]) for n in state if n.startswith("textencoder.text_model.transformer.layer.")}
    rest, bert = dict(options), "textencoder.text_model."
    try:
        width, features = state["motionencoder.skel_embedding.weight"].shape
        language = {
            "vocab_size": state[f"{bert}embeddings.word_embeddings.weight"].shape[0],
            "positions": state[f"{bert}embeddings.position_embeddings.weight"].shape[0],
            "width": state[f"{bert}embeddings.word_embeddings.weight"].shape[1],
            "ff": state[f"{bert}transformer.layer.0.ffn.lin1.weight"].shape[0],
            "layers": len(deep),
            "heads": rest.pop("text_heads", 12),
        }
        ff = state["motionencoder.seqTransEncoder.layers.0.linear1.weight"].shape[0]
    except KeyError as error:
        raise ModelError(f"not a MotionStreamer evaluator: it has no {error.args[0]}.") from None
    found = {"width": width, "feature_dim": features, "layers": len(layers), "ff": ff, "distilbert": language}
    return found | {"decoder": any(n.startswith("motiondecoder.") for n in state)} | rest
