"""T2M-GPT's VQ-VAE: a convolutional auto-encoder around one codebook with running means and reset.

Zhang et al., 2023 (arXiv 2301.06052). MotionGPT uses the same network.

Shapes: B clips, T frames, D features, S token steps, C channels.
"""

import warnings
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from vadis.config import build_config
from vadis.errors import ModelError
from vadis.sizes import CONFIG, Codebook
from vadis.tokenizers.base import KNOWN_DIMS
from vadis.tokenizers.codebook import CodebookUpdate, EMACodebook
from vadis.tokenizers.conv import ConvConfig, ConvTokenizer, infer_conv, load_published

PUBLISHED_NAMES = {
    "nb_code": "codebook_size",
    "mu": "decay",
    "quantizer": "update",
    "vq_act": "activation",
    "vq_norm": "norm",
    "quantize_dropout_prob": "quantize_dropout",
}
"""Option of the published programs → field of our configs."""


@dataclass(frozen=True, config=CONFIG)
class VQTokenizerConfig(ConvConfig):
    """The defaults are the released T2M-GPT tokenizer: 4 frames a token, 512 codes."""

    type: Literal["vq"] = "vq"
    codebook_size: Codebook = 512
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the running means."""
    update: CodebookUpdate = "ema_reset"


class VQTokenizer(ConvTokenizer):
    """The convolutional auto-encoder around one codebook."""

    config_class = VQTokenizerConfig
    config: VQTokenizerConfig

    def _quantizer(self) -> EMACodebook:
        c = self.config
        return EMACodebook(c.codebook_size, c.code_dim, decay=c.decay, update=c.update)


def from_t2mgpt(
    state: dict[str, Tensor],
    *,
    mean: Tensor | np.ndarray | None = None,
    std: Tensor | np.ndarray | None = None,
    **options: Any,
) -> VQTokenizer:
    """Build the tokenizer from a published T2M-GPT state dict (names with or without `vqvae.`), every name used once.

    Sizes are read off the tensors. What they do not tell may be given as `options`, by our names or the published ones
    (`activation`, `dilation_growth_rate`, `norm` "GN", `mu`, `quantizer`…). Training can go on from the imported codes;
    their running means, which no published file holds, are set to the average. Raises ModelError for names that are missing or left over.
    """
    if all(name.startswith("vqvae.") for name in state):
        state = {name.removeprefix("vqvae."): value for name, value in state.items()}
    options = our_names(options)
    if options.get("update") == "orig":
        options["update"] = "gradient"
    state = {n.replace("quantizer.embedding.weight", "quantizer.codebook"): v for n, v in state.items()}
    codebook = state.get("quantizer.codebook")
    if codebook is None or codebook.ndim != 2:
        raise ModelError("not a T2M-GPT tokenizer: quantizer.codebook (K, C) is missing.")
    found = infer_conv(state, options) | {"codebook_size": len(codebook)}
    config = build_config(VQTokenizerConfig, found | source_fields(found["feature_dim"], options) | options, "options")
    tokenizer = VQTokenizer(config)
    return load_published(tokenizer, state | lost_means(tokenizer.quantizer, "quantizer.", codebook), mean, std)


def our_names(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the published programs under our names."""
    options = {PUBLISHED_NAMES.get(name, name): value for name, value in options.items()}
    options.pop("output_emb_width", None)  # repeats code_dim
    return options


def source_fields(feature_dim: int, options: dict[str, Any]) -> dict[str, Any]:
    """Representation and frame rate that belong to a number of features, which a checkpoint does not state."""
    from vadis.representations import representation

    name = options.get("representation", KNOWN_DIMS.get(feature_dim))
    if name is None:
        warnings.warn(
            f"{feature_dim} features per frame are not a known representation: give representation= and fps=.",
            stacklevel=4,
        )
        return {}
    return {"representation": name, "fps": representation(name).fps}


def lost_means(codebook: EMACodebook, prefix: str, codes: Tensor, uses: float = 8.0) -> dict[str, Tensor]:
    """The state of a codebook beside its codes, which no published file holds.

    Each code counts as used as often as the average one in a published batch (`uses`: 256 windows of 16 steps over 512
    codes), so that training goes on without losing those that the next batch happens not to use.
    """
    own = {"initialised": codebook.initialised.new_ones(())}
    if codebook.update != "gradient":
        own |= {"code_sum": uses * codes.float(), "code_count": codebook.code_count.new_full(codes.shape[:-1], uses)}
    return {prefix + name: value for name, value in own.items()}
