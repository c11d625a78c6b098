"""What figures mean: real motion damaged on purpose, and the training caption that is nearest. No model is involved.

A metric that does not see a damage can't be trusted to see it in a model.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import VadisError
from vadis.evaluation.protocol import Protocol
from vadis.evaluation.reference import Draw, Reference
from vadis.evaluation.sources import Source, fit_length
from vadis.motion import Motion
from vadis.representations import representation

FLOAT_METRES = 0.10
NOISE_DEGREES, NOISE_METRES = 1.0, 0.002
SLIDE_SPEED = 0.30  # metres a second that the whole body is dragged along, to its own left and back
SMOOTHING = 0.25  # seconds of the Gaussian (one standard deviation is a fourth of it)

Damage = Callable[[Motion, torch.Generator], Motion]


def _noise(motion: Motion, generator: torch.Generator) -> Motion:
    """Independent noise on every joint rotation and on the root, every frame."""
    angles = np.radians(NOISE_DEGREES) * torch.randn(*motion.rotations.shape[:2], 3, generator=generator)
    root = motion.root + NOISE_METRES * torch.randn(motion.root.shape, generator=generator)
    return motion.replace(root=root, rotations=motion.rotations @ rotation.from_rotvec(angles))


def _float(motion: Motion, generator: torch.Generator) -> Motion:
    return motion.replace(root=motion.root + torch.tensor([0.0, FLOAT_METRES, 0.0]))


def _slide(motion: Motion, generator: torch.Generator) -> Motion:
    """The whole body dragged sideways, one second to the left and one back, so that feet slide but little is travelled."""
    t = torch.arange(motion.num_frames) / motion.fps
    along = SLIDE_SPEED * (1 - ((t % 2) - 1).abs())
    return motion.replace(root=motion.root + torch.stack([along, 0 * along, 0 * along], -1))


def _frozen(motion: Motion, generator: torch.Generator) -> Motion:
    """The middle pose, held."""
    k = motion.num_frames // 2
    rotations = motion.rotations[k : k + 1].expand(motion.num_frames, -1, -1, -1)
    return motion.replace(root=motion.root[k : k + 1].expand(motion.num_frames, -1), rotations=rotations)


def _smooth(motion: Motion, generator: torch.Generator) -> Motion:
    """Every quantity averaged over a quarter of a second: what a tokenizer without detail does."""
    sigma = SMOOTHING * motion.fps / 4
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    flat = torch.cat([motion.root, rotation.to_6d(motion.rotations, "rows").flatten(1)], dim=1)
    padded = torch.cat([flat[:1].expand(reach, -1), flat, flat[-1:].expand(reach, -1)])
    smooth = torch.nn.functional.conv1d(padded.T[:, None], (kernel / kernel.sum())[None, None])[:, 0].T
    turns = rotation.from_6d(smooth[:, 3:].unflatten(1, (-1, 6)), "rows")
    return motion.replace(root=smooth[:, :3], rotations=turns)


def _mirrored(motion: Motion, generator: torch.Generator) -> Motion:
    """Left and right exchanged, captions as they are."""
    return motion.mirror().replace(skeleton=motion.skeleton)


DAMAGES: dict[str, Damage] = {
    "noise": _noise, "float": _float, "slide": _slide, "frozen": _frozen, "smooth": _smooth, "mirrored": _mirrored,
}  # fmt: skip
WHAT = {
    "real": "the recordings themselves",
    "shuffled": "the recording of another item",
    "noise": f"joints turned by {NOISE_DEGREES:g}° and the root moved by {1000 * NOISE_METRES:g} mm at random, every frame",
    "float": f"lifted by {100 * FLOAT_METRES:g} cm",
    "slide": f"the whole body dragged at {SLIDE_SPEED:g} m/s",
    "frozen": "the middle pose, held",
    "smooth": f"averaged over {SMOOTHING:g} s",
    "mirrored": "left and right exchanged under the same caption",
    "nearest": "the training clip whose caption is nearest (MiniLM)",
}
"""Names of baselines and what they are."""


class BaselineSource(Source):
    """One of `WHAT` on the recordings of a reference. Raises VadisError for another name or a protocol that it can't serve."""

    def __init__(self, kind: str, protocol: Protocol, reference: Reference) -> None:
        if kind not in WHAT:
            raise VadisError(f"no baseline {kind!r}: use {', '.join(WHAT)}.")
        if reference.read is None or protocol.task == "stream":
            raise VadisError(f"baselines need recorded single motions; protocol {protocol.name} has none.")
        if kind in DAMAGES and protocol.representation != "ms272":
            raise VadisError(f"damaged motions are made of ms272 features; this is {protocol.representation}.")
        self.kind, self.reference, self.protocol = kind, reference, protocol
        self.name, self.identity = f"baseline {kind}", f"{kind} 2"
        self.own_length = kind == "shuffled"  # holding the last pose would be a second damage
        self.paired = protocol.task == "reconstruction"
        self.random = kind in ("shuffled", "noise", "nearest")
        self._bank = _CaptionBank(reference) if kind == "nearest" else None
        self._shuffles: dict[int, list[Draw]] = {}

    def prepare(self, draws: Sequence[Draw], seed: int) -> list[Draw]:
        if self.kind == "shuffled":  # everyone gets the recording of somebody else: a cycle through a random order
            order = torch.randperm(len(draws), generator=torch.Generator().manual_seed(seed)).tolist()
            others = dict(zip(order, order[1:] + order[:1], strict=True))
            self._shuffles[seed] = [draws[others[i]] for i in range(len(draws))]
        return list(draws)

    def predict(self, draws: Sequence[Draw], seed: int, start: int) -> list[Tensor]:
        if self._bank is not None:
            return [self._bank.nearest(d.texts[0].text) for d in draws]
        if self.kind == "shuffled":
            return [self.reference.features(self._shuffles[seed][start + i]) for i in range(len(draws))]
        if self.kind == "real":
            return [self.reference.features(d) for d in draws]
        return [self._damaged(self.reference.features(d), 1_000_003 * seed + start + i) for i, d in enumerate(draws)]

    def _damaged(self, features: Tensor, seed: int) -> Tensor:
        rep = representation(self.protocol.representation)
        motion = DAMAGES[self.kind](rep.decode(features), torch.Generator().manual_seed(seed))
        with warnings.catch_warnings():  # lying bodies have no heading: the recording had been warned about
            warnings.simplefilter("ignore")
            return rep.encode(motion, floor=False)


class _CaptionBank:
    """Captions of a corpus' train split as sentence vectors, and the motions they are about."""

    def __init__(self, reference: Reference) -> None:
        from vadis.text_encoders import text_encoder

        if reference.source is None:
            raise VadisError("nearest-caption retrieval needs a corpus with a train split as data; a folder has none.")
        self.corpus = reference.source.subset("train")
        rows = [(c["text"], row, c["start"], c["end"]) for row, cs in enumerate(self.corpus.column("captions")) for c in cs
                if c["kind"] == "whole" and c["end"] - c["start"] >= 1]  # fmt: skip
        if not rows:
            raise VadisError(f"the train split of {self.corpus.path} has no captions of whole clips to retrieve.")
        self.rows, self.encoder = rows, text_encoder("minilm")
        self.vectors = torch.nn.functional.normalize(self.encoder.sentence([r[0] for r in rows]), dim=-1)
        self._queries: dict[str, int] = {}

    def nearest(self, text: str) -> Tensor:
        if text not in self._queries:
            query = torch.nn.functional.normalize(self.encoder.sentence([text])[0], dim=-1)
            self._queries[text] = int((self.vectors @ query).argmax())
        _, row, start, end = self.rows[self._queries[text]]
        fps = self.corpus.fps
        frames = int(self.corpus.frames[row])
        x = self.corpus.frames_of(row, round(start * fps), min(round(end * fps), frames))
        return x if len(x) >= 4 else fit_length(x, 4, self.corpus.representation)
