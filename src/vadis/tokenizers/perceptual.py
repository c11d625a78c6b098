"""A loss between what a frozen motion encoder sees in a clip and in its reconstruction."""

from typing import Any

import torch
from torch import Tensor, nn

from vadis.errors import ModelError
from vadis.evaluators.base import Evaluator
from vadis.tokenizers.base import TokenizerOutput


class Perceptual:
    """Adds `set_perceptual` to a tokenizer; the loss "perceptual" exists once an encoder is set."""

    _perceptual: tuple[Any] | None = None  # in a tuple: not a part of the model, never saved

    def set_perceptual(self, encoder: Any) -> None:
        """Compare clips with their reconstructions by `encoder`, None: no longer.

        It is a function or module of features `(B, T, D)` in physical units to vectors of any shape, or an evaluator of
        `vadis.evaluators`: of Guo et al.'s the movement vectors are compared, of others the embeddings. A module is frozen
        and set to evaluation. Raises ModelError for an evaluator of another representation and for what can't be called.
        """
        if encoder is None:
            self._perceptual = None
            return
        if isinstance(encoder, nn.Module):
            encoder.requires_grad_(False).eval()
        if isinstance(encoder, Evaluator):
            own, other = self.representation, encoder.config.representation  # type: ignore[attr-defined]
            if own != other:
                raise ModelError(f"the evaluator reads {other}, the tokenizer {own}: take an evaluator of {own}.")
        elif not callable(encoder):
            raise ModelError(f"a {type(encoder).__name__} can't be called: give an evaluator, a module or a function.")
        self._perceptual = (encoder,)

    def with_perceptual(self, x: Tensor, output: TokenizerOutput) -> TokenizerOutput:
        """`output` with the mean absolute difference of the encoder's answers, where there is an encoder.

        x (B, T, D) are the normalised features that `output` was made of. Always float32.
        """
        if self._perceptual is None:
            return output
        if isinstance(module := self._perceptual[0], nn.Module):
            module.to(x.device)
        mean, std = self.mean, self.std  # type: ignore[attr-defined]
        with torch.autocast(x.device.type, enabled=False):
            made = output.reconstruction.float()
            with torch.no_grad():
                wanted = self._embed(x[:, : made.shape[1]].float() * std + mean)
            loss = (self._embed(made * std + mean) - wanted).abs().mean()
        return output._replace(losses={**output.losses, "perceptual": loss})

    def _embed(self, features: Tensor) -> Tensor:
        assert self._perceptual is not None
        encoder: Any = self._perceptual[0]
        return encoder.perceive(encoder.normalize(features)) if isinstance(encoder, Evaluator) else encoder(features)
