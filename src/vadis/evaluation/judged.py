"""MBench's two questions to somebody who looks: does a clip show its label among ten, does it match its description?

Who looks is passed in (`vadis.evaluation.judges`); without a judge nothing is rendered and nothing is sent.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vadis.errors import VadisError
from vadis.evaluation.judge import JudgeScore, RenderedClip, condition_consistency, generalizability
from vadis.evaluation.protocol import Protocol
from vadis.evaluation.reference import Draw
from vadis.representations import representation

GENERALIZABILITY = "Motion_Generalizability"
"""Dimension of a prompt file whose clips are asked about; those with `auxiliary_info` (distractors) are chosen among."""


class _Rendered(Sequence[RenderedClip]):
    """Pictures of predictions, drawn when a judge asks for them."""

    def __init__(self, clips: Sequence[Tensor], rows: Sequence[int], protocol: Protocol) -> None:
        self.about = (0.0, "none")
        self.clips, self.rows, self.rep = clips, rows, representation(protocol.representation)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> RenderedClip:  # type: ignore[override]
        from vadis.evaluation.judges import render_clip

        features = self.clips[self.rows[i]]
        if features.ndim != 2:
            raise VadisError("joint positions can't be rendered for a judge: give predictions as ms272 features.")
        clip = render_clip(self.rep.decode(features))
        self.about = (clip.fps, clip.renderer)
        return clip

    def __iter__(self) -> Iterator[RenderedClip]:
        """How the clips were drawn, without drawing them again: a score asks for that when all have been seen."""
        return (RenderedClip(np.zeros((0, 0, 0, 3), np.uint8), *self.about) for _ in self.rows)


def judged(judge: Any, clips: Sequence[Tensor], draws: Sequence[Draw], protocol: Protocol) -> dict[str, JudgeScore]:
    """Scores by metric key of the items of a prompt file that ask for a judge. Raises VadisError when none does."""
    found: dict[str, JudgeScore] = {}
    rows = [i for i, d in enumerate(draws) if d.item.options]
    if rows:
        labels, others = [draws[i].texts[0].text for i in rows], [draws[i].item.options for i in rows]
        found["condition_consistency"] = condition_consistency(judge, _Rendered(clips, rows, protocol), labels, others)
    rows = [i for i, d in enumerate(draws) if d.item.group == GENERALIZABILITY]
    if rows:
        texts = [draws[i].texts[0].text for i in rows]
        found["generalizability"] = generalizability(judge, _Rendered(clips, rows, protocol), texts)
    if not found:
        raise VadisError(
            f"no prompt asks for a judge: entries need auxiliary_info (distractors) or the dimension {GENERALIZABILITY}."
        )
    return found
