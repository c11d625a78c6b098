"""MG-VQVAE ("MotionVQVAE"): an auto-encoder whose latent is cut into 64 groups, each with a codebook of its own.

After the model card of khania/motion-vqvae (CC BY-NC 4.0); its code is not public, so what the card leaves open (dilations,
activation, contiguous groups, the rule of the running means) follows the code family, T2M-GPT. 64 tokens of 9 bits a step of
4 frames: 4.3 kbit/s at 30 frames per second, against 0.24 kbit/s of one FSQ token of 64,000 codes every 2 frames.

Tokens are `(B, S, G)` in the common interface. The published order is groups first, `(G, B, S)`; it is that of
`MotionVQVAE`, which has the published names, and of the methods ending in `_batch`.

Shapes: B clips, T frames, D features, S token steps, G groups, K codes, d channels of a group.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import build_config
from vadis.errors import ModelError, ShapeError
from vadis.sizes import CONFIG, Codebook, FrameRate, Groups, Name, Width
from vadis.tokenizers.base import Clips
from vadis.tokenizers.codebook import CodebookUpdate, EMACodebook
from vadis.tokenizers.conv import ConvConfig, ConvTokenizer, infer_conv, load_published
from vadis.tokenizers.vqvae import lost_means

PUBLISHED_NAMES = {
    "input_dim": "feature_dim",
    "stages": "down_t",
    "num_groups": "groups",
    "n_groups": "groups",
    "codes": "codebook_size",
    "nb_code": "codebook_size",
    "num_codes": "codebook_size",
    "dilation_growth": "dilation_growth_rate",
    "mu": "decay",
}
"""Names that a published config.json may use → fields of ours."""
NOT_TOLD = ("dilation_growth_rate", "activation", "fps")
"""Fields that no tensor tells and that change the result."""
_LAYER = re.compile(r"(?:.*\.)?(encoder|decoder)\.(?:[A-Za-z_]+\.)?(\d.*)")
_LEFTOVER = re.compile(r"code_?(sum|count)|cluster_size|embed(ding)?_(avg|sum)|ema_|initt?ed|initiali[sz]ed|usage")


@dataclass(frozen=True, config=CONFIG)
class MGVQTokenizerConfig(ConvConfig):
    """The defaults are the model of the card: 73 M parameters, 4 frames per step, 64 tokens of 512 codes a step.

    The card states no frame rate; 30 is that of MotionMillion, its training data.
    """

    type: Literal["mg_vq"] = "mg_vq"
    representation: Name = "ms272_absroot"
    fps: FrameRate = 30.0
    feature_dim: Width = 272
    width: Width = 1024
    groups: Groups = 64
    """Each has code_dim / groups channels."""
    codebook_size: Codebook = 512
    """Codes a group."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the running means."""
    update: CodebookUpdate = "ema_reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_dim % self.groups:
            raise ModelError(f"code_dim {self.code_dim} can't be split into {self.groups} equal groups.")


class MGVQTokenizer(ConvTokenizer):
    """The convolutional auto-encoder around G codebooks, which are one batched operation."""

    config_class = MGVQTokenizerConfig
    config: MGVQTokenizerConfig

    def _quantizer(self) -> EMACodebook:
        c = self.config
        return EMACodebook(c.codebook_size, c.code_dim // c.groups, c.groups, c.decay, c.update)

    @property
    def tokens_per_step(self) -> int:
        return self.config.groups

    @property
    def _token_rank(self) -> int:
        return 2  # also with one group

    def encode_batch(self, motions: Sequence[Clips]) -> tuple[Tensor, Tensor]:
        """Clips `(T_i, D)` to tokens groups first `(G, B, S)`, padded with -1, and the steps of each clip `(B,)`.

        Each clip is coded as if alone.
        """
        rows = self.encode(list(motions))
        lengths = torch.tensor([len(row) for row in rows])
        return groups_first(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)), lengths

    def decode_batch(self, tokens: Tensor | np.ndarray, lengths: Tensor | list[int] | None = None) -> Tensor:
        """Tokens groups first `(G, B, S)` to features `(B, T, D)`; rows shorter than the longest end in zeros."""
        return self.decode(groups_last(torch.as_tensor(tokens)), lengths)

    def get_codebook_embeddings(self) -> Tensor:
        """All codes `(G, K, d)`, a copy."""
        return self.quantizer.embeddings.detach().clone()


def groups_first(tokens: Tensor) -> Tensor:
    """Tokens `(B, S, G)` in the published order `(G, B, S)`."""
    return tokens.permute(2, 0, 1)


def groups_last(tokens: Tensor) -> Tensor:
    """Tokens in the published order `(G, B, S)` to `(B, S, G)`. Raises ShapeError."""
    if tokens.ndim != 3:
        raise ShapeError(f"tokens must be (G, B, S), groups first; this array has shape {tuple(tokens.shape)}.")
    return tokens.permute(1, 2, 0)


class MotionVQVAE:
    """The programming interface of the model card around an `MGVQTokenizer`: features un-normalised, tokens groups first.

    `tokenizer` is the component for everything else (training, saving, the common interface).
    """

    def __init__(self, tokenizer: MGVQTokenizer) -> None:
        self.tokenizer = tokenizer
        self.encode_batch = tokenizer.encode_batch
        self.decode_batch = tokenizer.decode_batch
        self.get_codebook_embeddings = tokenizer.get_codebook_embeddings

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """From a folder or a Hub id, ours or the published layout with `pytorch_model.bin`; options go to its reader."""
        from vadis.hub import find_folder
        from vadis.importing import import_checkpoint

        folder = find_folder(source, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.npy", "*.md"])
        if (folder / "pytorch_model.bin").is_file():
            return cls(import_checkpoint("motion-vqvae", folder, **options))
        return cls(MGVQTokenizer.from_pretrained(folder, **options))

    def encode(self, motion: Clips) -> Tensor:
        """Features `(T, D)` or `(B, T, D)`, or a Motion, to tokens `(G, B, S)`; one clip is a batch of one."""
        tokens = self.tokenizer.encode(motion)
        if isinstance(tokens, list):
            raise ShapeError("give one array of features; clips of different lengths go through encode_batch.")
        return groups_first(tokens if tokens.ndim == 3 else tokens[None])

    def decode(self, tokens: Tensor | np.ndarray) -> Tensor:
        """Tokens `(G, B, S)` to features `(B, 4 S, D)`."""
        return self.decode_batch(tokens)

    def __call__(self, motion: Clips) -> tuple[Tensor, Tensor]:
        """(reconstruction `(B, 4 S, D)`, tokens `(G, B, S)`)."""
        tokens = self.encode(motion)
        return self.decode(tokens), tokens


# ---- the published checkpoint


def from_motion_vqvae(
    state: dict[str, Tensor],
    *,
    mean: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    **options: Any,
) -> MGVQTokenizer:
    """Build the tokenizer from a MotionVQVAE state dict, whose exact names are not public.

    Layers are found by what follows `encoder.` and `decoder.`, whatever stands before; codebooks by their size, as one
    tensor `(G, K, d)` or `(G * K, d)` or G tensors `(K, d)`; leftovers of running means are not used. `options` are fields of
    the config by our names or those of config.json, which is read where it lies beside the file; a default that is assumed
    is said in a warning. Raises ModelError that lists every tensor without a place.
    """
    options = {PUBLISHED_NAMES.get(name, name): value for name, value in options.items()}
    layers, others = {}, {}
    for name, value in state.items():
        match = _LAYER.fullmatch(name)
        (layers if match else others)[f"{match[1]}.model.{match[2]}" if match else name] = value
    found = infer_conv(layers, options)
    statistics = {n: others.pop(n) for n in list(others) if n.split(".")[-1] in ("mean", "std")}
    codes = _codebooks(others, found["code_dim"])
    if mean is None and std is None and len(statistics) == 2:
        mean, std = (next(v for n, v in statistics.items() if n.endswith(end)).flatten() for end in ("mean", "std"))
    found |= {"groups": len(codes), "codebook_size": codes.shape[1]}
    if options.get("code_dim") == codes.shape[2]:  # the card counts the channels of a group
        options["code_dim"] = found["code_dim"]
    told = {name: value for name, value in found.items() if name != "norm"}  # no tensor tells GN from LN
    wrong = [f"{n} {options[n]} (the tensors say {v})" for n, v in told.items() if options.get(n, v) != v]
    if wrong:
        raise ModelError(f"options and tensors differ: {', '.join(wrong)}.")
    config = build_config(MGVQTokenizerConfig, found | options, "options")
    assumed = [f"{name} {getattr(config, name)}" for name in NOT_TOLD if name not in options]
    if assumed:
        warnings.warn(f"the checkpoint does not say {', '.join(assumed)}: these are assumed.", stacklevel=3)
    tokenizer = MGVQTokenizer(config)
    layers["quantizer.codebook"] = codes
    return load_published(tokenizer, layers | lost_means(tokenizer.quantizer, "quantizer.", codes, uses=4.0), mean, std)


def _codebooks(others: dict[str, Tensor], channels: int) -> Tensor:
    """The codes `(G, K, d)` with G * d = channels, which must be all there is beside layers and leftovers of running means.

    Raises ModelError that lists the tensors where they are not.
    """
    found = {name: value for name, value in others.items() if not _LEFTOVER.search(name)}
    shapes = {tuple(value.shape) for value in found.values()}
    if len(shapes) == 1 and channels % (dim := (1, *next(iter(shapes)))[-1]) == 0:
        groups, shape = channels // dim, next(iter(shapes))
        whole = len(found) == 1 and (shape[:-2] == (groups,) or (len(shape) == 2 and shape[0] % groups == 0))
        if whole or (len(found) == groups and len(shape) == 2):
            order = sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
            return torch.cat([found[name].flatten(0, -2) for name in order]).view(groups, -1, dim)
    names = ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items()) or "there are none"
    raise ModelError(
        f"the tensors beside encoder.… and decoder.… must be codebooks, one (G, K, d) or G of (K, d) with G * d = "
        f"{channels}: {names}."
    )


def options_beside(weights: Path) -> dict[str, Any]:
    """The config.json beside the weights; fields that mean nothing here are named in a warning."""
    from vadis.records import read_json

    if not (weights.parent / "config.json").is_file():
        return {}
    page = {PUBLISHED_NAMES.get(n, n): v for n, v in read_json(weights.parent / "config.json").items()}
    known = {n: v for n, v in page.items() if n in MGVQTokenizerConfig.__dataclass_fields__ and n != "type"}
    if unknown := sorted(set(page) - set(known)):
        warnings.warn(f"{weights.parent / 'config.json'}: ignoring {', '.join(unknown)}.", stacklevel=3)
    return known
