"""The evaluator of Guo et al. (CVPR 2022) for HumanML3D-263 and KIT-251, which most published tables are computed with.

Convolutions turn four frames into a movement vector, a recurrent network turns those into an embedding; another reads
word vectors and parts of speech. Embeddings are compared by Euclidean distance and not normalised.

The convolutions see the clip padded with zeros to 196 frames, so its last movement vectors depend on the padding; it is
kept, since published numbers have it. Clips are cut to a multiple of four frames.

Shapes: B clips, T frames, D features, S movement vectors, L words, H width, E values of an embedding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.checkpoint import load_strictly
from vadis.config import build_config
from vadis.errors import ModelError
from vadis.evaluators.base import Evaluator
from vadis.evaluators.guo_words import POS_CLASSES, Vocabulary, read_vocabulary, split_words
from vadis.sizes import CONFIG, Frames, Name, Positions, Width

CONTACTS = 4  # the last columns, which the evaluator doesn't look at


@dataclass(frozen=True, config=CONFIG)
class GuoConfig:
    """The published evaluator for HumanML3D; feature_dim 251, representation kit251 for KIT-ML."""

    type: Literal["guo"] = "guo"
    representation: Name = "hml263"
    feature_dim: int = Field(default=263, gt=CONTACTS, le=65_536)
    movement_width: Width = 512
    """Values of a movement vector, and channels of the convolutions."""
    motion_width: Width = 1024
    text_width: Width = 512
    embedding_dim: Width = 512
    word_dim: Width = 300
    unit_length: Literal[4] = 4
    """Frames a movement vector: two convolutions of stride 2."""
    padded_frames: int = Field(default=196, ge=4, le=1_000_000, multiple_of=4)
    max_words: Positions = 20
    vocabulary: Annotated[tuple[Name, ...], Field(max_length=1_000_000)] = ()
    """Words by row of the word vectors, which are part of the weights."""
    min_frames: int = Field(default=4, ge=4, le=1_000_000)
    max_frames: Frames = 199

    def __post_init__(self) -> None:
        if self.min_frames > self.max_frames:
            raise ModelError(f"min_frames {self.min_frames} is above max_frames {self.max_frames}.")


class MovementEncoder(nn.Module):
    """Features without contacts (B, T, D - 4) to movement vectors (B, T / 4, H)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv1d(features, width, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2),
            nn.Conv1d(width, width, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.out_net = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_net(self.main(x.transpose(1, 2)).transpose(1, 2))


class MovementDecoder(nn.Module):
    """The mirror of the movement encoder, for training it: movement vectors (B, S, H) to features (B, 4 S, D - 4)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose1d(width, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.ConvTranspose1d(width, features, 4, 2, 1), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.out_net = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_net(self.main(x.transpose(1, 2)).transpose(1, 2))


class _Recurrent(nn.Module):
    """A bidirectional GRU over packed sequences with learned first states; its two last states make the embedding."""

    def __init__(self, inputs: int, width: int, out: int, middle: int) -> None:
        super().__init__()
        self.input_emb = nn.Linear(inputs, width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.hidden = nn.Parameter(torch.randn(2, 1, width))
        self.output_net = nn.Sequential(
            nn.Linear(2 * width, middle), nn.LayerNorm(middle), nn.LeakyReLU(0.2), nn.Linear(middle, out)
        )

    def read(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (B, S, C) of `lengths` (B,) >= 1 to embeddings (B, E), in the order given."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.input_emb(x), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, last = self.gru(packed, self.hidden.repeat(1, len(x), 1))  # (2, B, H)
        return self.output_net(torch.cat([last[0], last[1]], dim=-1))


class MotionEncoder(_Recurrent):
    """Movement vectors (B, S, H) to embeddings (B, E)."""

    def __init__(self, config: GuoConfig) -> None:
        super().__init__(config.movement_width, config.motion_width, config.embedding_dim, config.motion_width)

    def forward(self, movements: Tensor, lengths: Tensor) -> Tensor:
        return self.read(movements, lengths)


class TextEncoder(_Recurrent):
    """Word vectors (B, L, 300) and classes of words one-hot (B, L, 15) to embeddings (B, E)."""

    def __init__(self, config: GuoConfig) -> None:
        super().__init__(config.word_dim, config.text_width, config.embedding_dim, config.text_width)
        self.pos_emb = nn.Linear(len(POS_CLASSES), config.word_dim)

    def forward(self, words: Tensor, classes: Tensor, lengths: Tensor) -> Tensor:
        return self.read(words + self.pos_emb(classes), lengths)


class GuoEvaluator(Evaluator):
    """Motion and text to one space; see `Evaluator`.

    A sentence is either tokens as in the data set's files ("a/DET man/NOUN walk/VERB") or free text, which takes spaCy
    with its small English model; published numbers are computed with the tokens.
    """

    config_class = GuoConfig
    config: GuoConfig
    word_vectors: Tensor

    def __init__(self, config: GuoConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or GuoConfig()
        self.movement_encoder = MovementEncoder(c.feature_dim - CONTACTS, c.movement_width)
        self.motion_encoder = MotionEncoder(c)
        self.text_encoder = TextEncoder(c)
        self.register_buffer("word_vectors", torch.zeros(len(c.vocabulary), c.word_dim))
        self._register_statistics(c.feature_dim)
        self.words = Vocabulary(c.vocabulary, c.max_words)

    @property
    def dim(self) -> int:
        return self.config.embedding_dim

    def movements(self, features: Tensor) -> Tensor:
        """Movement vectors (B, T / 4, H) of normalised features (B, T, D), as long as they are padded."""
        return self.movement_encoder(features[..., :-CONTACTS])

    def perceive(self, features: Tensor) -> Tensor:
        """The movement vectors, which tell moments apart."""
        return self.movements(features)

    def pad(self, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As the published loader does: cut to whole movement vectors, normalised, zeros up to 196 frames."""
        unit, room = self.config.unit_length, self.config.padded_frames
        whole = [clip[: min(len(clip) // unit * unit, room)] for clip in clips]
        padded, lengths = super().pad(whole)
        return F.pad(padded, (0, 0, 0, room - padded.shape[1])), lengths

    def encode_motion(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.motion_encoder(self.movements(features), lengths // self.config.unit_length)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.text_encoder(*self.read_text(texts))

    def read_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Word vectors (B, L, 300), classes one-hot (B, L, 15) and numbers of words (B,). Raises ModelError, VadisError."""
        if not self.config.vocabulary:
            raise ModelError(
                "this evaluator has no word vectors, so it can't read text: import it again with "
                "--option glove=FOLDER, the folder of our_vab_data.npy, our_vab_words.pkl and our_vab_idx.pkl."
            )
        rows, classes, lengths = zip(*(self.words.read(split_words(text)) for text in texts), strict=True)
        one_hot = F.one_hot(torch.tensor(classes), len(POS_CLASSES)).float()
        vectors = self.word_vectors[torch.tensor(rows, device=self.device)]
        return vectors, one_hot.to(self.device), torch.tensor(lengths, device=self.device)


# ---- the published checkpoint


def from_guo(
    payload: Mapping[str, Any],
    *,
    mean: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    glove: str | Path | None = None,
    **options: Any,
) -> GuoEvaluator:
    """The evaluator of a published file (`text_mot_match/model/finest.tar`): a dict of three state dicts, used whole.

    `glove`: folder of the published word vectors. `mean`, `std` (D,): the evaluator's own statistics, not those of a
    generator; without them features must be normalised already. `options`: fields of GuoConfig. Sizes are read off the
    tensors. Raises ModelError or FileError.
    """
    parts = ("movement_encoder", "text_encoder", "motion_encoder")
    found = payload if isinstance(payload, Mapping) else {}
    absent = [part for part in parts if not isinstance(found.get(part), Mapping)]
    if absent:
        raise ModelError(
            f"not an evaluator of Guo et al.: no {', '.join(absent)} among {list(found)[:8] or 'nothing'}."
        )
    if (mean is None) != (std is None):
        raise ModelError("give both mean and std, or neither.")
    state = {f"{part}.{name}": value for part in parts for name, value in payload[part].items()}
    words, vectors = read_vocabulary(glove) if glove is not None else ((), None)
    config = build_config(GuoConfig, _sizes(state) | {"vocabulary": words} | options, "options")
    evaluator = GuoEvaluator(config)
    if mean is not None and std is not None:
        evaluator.set_statistics(mean, std)
    state |= {"mean": evaluator.mean, "std": evaluator.std}
    state["word_vectors"] = evaluator.word_vectors if vectors is None else vectors
    load_strictly(evaluator, state)
    return evaluator.eval()


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        width, features = state["movement_encoder.main.0.weight"].shape[:2]
        found: dict[str, Any] = {
            "feature_dim": features + CONTACTS,
            "movement_width": width,
            "motion_width": state["motion_encoder.hidden"].shape[-1],
            "text_width": state["text_encoder.hidden"].shape[-1],
            "embedding_dim": state["text_encoder.output_net.3.weight"].shape[0],
            "word_dim": state["text_encoder.pos_emb.weight"].shape[0],
        }
    except (KeyError, AttributeError, ValueError) as error:
        raise ModelError(f"not an evaluator of Guo et al.: can't find the sizes of its layers ({error}).") from None
    if found["feature_dim"] == 251:
        found["representation"] = "kit251"
    return found
