"""What every evaluator offers: motions and sentences to vectors of one space, at the same distance scale.

Numbers of different evaluators can't be compared: each has its own space, so a figure names its evaluator.

Shapes: B clips of a pass, N clips of a call, T frames, D features, E values of an embedding.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vadis.checkpoint import MIN_STD
from vadis.component import Component
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.representations import Representation, representation

Array = Tensor | np.ndarray


class Evaluator(Component):
    """Two encoders, one of motion features and one of sentences.

    Features come in physical units; `mean` and `std` (D,) are the evaluator's own and applied inside. Config fields every
    evaluator has: `representation`, `feature_dim`, `min_frames`, `max_frames` (the lengths it was trained for).
    """

    kind: ClassVar[str] = "evaluator"
    keep_float32 = True
    mean: Tensor
    std: Tensor

    def _register_statistics(self, dim: int) -> None:
        representation(self.config.representation)  # raises for one that there isn't
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    @property
    def representation(self) -> Representation:
        """The features it reads."""
        return representation(self.config.representation)

    @property
    def fps(self) -> float:
        """Frames a second of the features it reads."""
        return self.representation.fps

    @property
    def min_frames(self) -> int:
        return self.config.min_frames

    @property
    def max_frames(self) -> int:
        return self.config.max_frames

    @property
    @abstractmethod
    def dim(self) -> int:
        """E, values of an embedding."""

    @abstractmethod
    def encode_motion(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (B, E) of normalised features (B, T, D), zero after each clip's length (B,)."""

    @abstractmethod
    def perceive(self, features: Tensor) -> Tensor:
        """What a perceptual loss compares of normalised features `(B, T, D)`; the embeddings unless a family says better."""
        return self.encode_motion(features, torch.full((len(features),), features.shape[1], device=features.device))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (B, E) of sentences."""

    def set_statistics(self, mean: Array, std: Array) -> None:
        """Take the normalisation; raises ModelError for a wrong size or a deviation that isn't positive."""
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(np.asarray(value), dtype=torch.float32)
            own = getattr(self, name)
            if tensor.shape != own.shape:
                raise ModelError(
                    f"{name} has the shape {tuple(tensor.shape)}; this evaluator needs {tuple(own.shape)}."
                )
            if not torch.isfinite(tensor).all() or (name == "std" and not (tensor >= MIN_STD).all()):
                raise ModelError(f"{name} must be finite{' and above zero' if name == 'std' else ''}: check the file.")
            own.copy_(tensor)

    def normalize(self, features: Tensor) -> Tensor:
        """Features (..., D) in the evaluator's units."""
        return (features - self.mean) / self.std

    @torch.no_grad()
    def embed_motion(
        self, motions: Sequence[Array] | Array, lengths: Sequence[int] | Array | None = None, batch_size: int = 64
    ) -> Tensor:
        """Embeddings (N, E) on the CPU of N clips: a list of (T, D) arrays, or (N, T, D) with lengths (N,).

        Features in physical units at `fps`. A clip's embedding does not depend on the others in the call. Raises
        ShapeError for a wrong width and VadisError for values that aren't finite and for lengths outside `min_frames` to
        `max_frames`, naming the clip.
        """
        clips = self._check_motions(motions, lengths)
        order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
        out = torch.empty(len(clips), self.dim)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            padded, sizes = self.pad([clips[i] for i in rows])
            out[rows] = self.encode_motion(padded, sizes).float().cpu()
        return out

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str] | str, batch_size: int = 64) -> Tensor:
        """Embeddings (N, E) on the CPU of N sentences; raises VadisError for one that is empty, too long or no string."""
        from vadis.text_encoders import check_prompts

        sentences = check_prompts(texts)
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        out = torch.empty(len(sentences), self.dim)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            out[rows] = self.encode_text([sentences[i] for i in rows]).float().cpu()
        return out

    def pad(self, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Clips (T, D) in physical units to normalised features (B, T, D), zero after their lengths (B,)."""
        normal = [self.normalize(clip.to(self.device, torch.float32)) for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips], device=self.device)
        return torch.nn.utils.rnn.pad_sequence(normal, batch_first=True), lengths

    def _check_motions(self, motions: Sequence[Array] | Array, lengths: Sequence[int] | Array | None) -> list[Tensor]:
        if isinstance(motions, Tensor | np.ndarray):
            array: Any = motions
            if array.ndim != 3 or lengths is None:
                raise ShapeError(
                    f"an array of clips has the shape (N, T, {self.config.feature_dim}) and comes with lengths (N,); this "
                    f"one is {tuple(array.shape)}{'' if lengths is not None else ' without lengths'}. Or give a list."
                )
            sizes = [int(n) for n in lengths]
            if len(sizes) != len(array) or any(not 0 < n <= array.shape[1] for n in sizes):
                raise ShapeError(
                    f"{len(array)} clips of at most {array.shape[1]} frames don't go with the {len(sizes)} lengths "
                    f"given ({', '.join(map(str, sizes[:8]))}…)."
                )
            motions = [clip[:n] for clip, n in zip(array, sizes, strict=True)]
        elif lengths is not None:
            raise ShapeError("lengths belong to an array (N, T, D); a list of clips has none.")
        if not len(motions):
            raise VadisError("no motion was given to embed: expected at least one clip.")
        return [self._check_clip(clip, i) for i, clip in enumerate(motions)]

    def _check_clip(self, clip: Array, number: int) -> Tensor:
        if clip.ndim != 2:
            raise ShapeError(
                f"clip {number} has the shape {tuple(clip.shape)}; expected (T, {self.config.feature_dim})."
            )
        x = self.representation.check(clip, ndim=2)
        if not torch.isfinite(x).all():
            raise VadisError(f"clip {number} has values that are not finite: repair or leave out the clip.")
        if not self.min_frames <= len(x) <= self.max_frames:
            raise VadisError(
                f"clip {number} has {len(x)} frames; this evaluator was trained for {self.min_frames} to "
                f"{self.max_frames} at {self.fps:g} frames/s. Crop it, or leave it out."
            )
        return x
