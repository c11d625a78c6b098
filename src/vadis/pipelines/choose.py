"""Which of several candidates does best what a sentence says."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vadis.cancel import stop_if_cancelled
from vadis.kinematics import kinematic_plan
from vadis.motion import Motion


def best_match(
    planner: Any,
    text: Tensor,
    motions: Sequence[Motion],
    seconds: float | None = None,
    likelihood: float = 0.0,
    roughness: float = 0.0,
) -> tuple[int, float | None]:
    """The motion that does best what a text `(1, L, C)` says by a planner, and its cosine; (0, None) where one is under 8 frames.

    `likelihood` (needs `seconds`) and `roughness` are weights as in `GenerationConfig`.
    """
    if min(m.num_frames for m in motions) < 8:
        return 0, None
    plans = torch.stack([_plan_of(m) for m in motions])
    lengths = torch.tensor([text.shape[1]])
    score = total = planner.match(text, lengths, plans[None])[0]
    if likelihood:
        total = score + likelihood * planner.score(text, lengths, torch.tensor([seconds]), plans[None])[0]
    if roughness and len(motions) > 1:
        rough = torch.tensor([_roughness(m) for m in motions])
        total = total - roughness * (rough / rough.mean(0)).mean(-1)
    best = int(total.argmax())
    return best, round(float(score[best]), 4)


def _plan_of(motion: Motion) -> Tensor:
    stop_if_cancelled()
    return kinematic_plan(motion.positions, motion.fps)


def _roughness(motion: Motion) -> list[float]:
    """Jitter (m/s³) and toe slide (m/s) of a motion, plus small constants that keep quiet motions from mattering."""
    p = motion.positions
    jitter = float(torch.diff(p, n=3, dim=0).norm(dim=-1).mean()) * motion.fps**3
    toes = p[:, [10, 11]]
    step = torch.diff(toes, dim=0) * motion.fps
    down = toes[:-1, :, 1] < 0.05
    slide = float(step[..., [0, 2]].norm(dim=-1)[down].mean()) if bool(down.any()) else 0.0
    return [jitter + 10.0, slide + 0.05]
