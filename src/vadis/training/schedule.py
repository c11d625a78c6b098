"""The learning rate, AdamW's groups and the random numbers of a step."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from vadis.training.config import OptimizerConfig, ScheduleConfig


def schedule_factor(schedule: ScheduleConfig, step: int, progress: float) -> float:
    """Share of lr at optimiser step `step` (from 0), with `progress` in [0, 1] of the run."""
    warm = min(1.0, (step + 1) / (schedule.warmup + 1))
    after = max(0, step - schedule.warmup)
    if schedule.kind == "cosine":
        turn = after / schedule.decay_steps if schedule.decay_steps else min(progress, 1.0)
        return warm * (schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * turn)) / 2)
    if schedule.kind == "step":
        return warm * schedule.factor ** sum(after >= m for m in schedule.milestones)
    return warm


def step_generator(seed: int, process: int, batch: int) -> torch.Generator:
    """The random numbers of one batch: a function of its place in the run and of nothing else."""
    mixed = int(np.random.SeedSequence([seed, process, batch]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(mixed >> 1)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """AdamW's groups: all alike, or matrices with weight decay and the rest without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not config.decay_matrices_only:
        return [{"params": trained}]
    flat = [p for p in trained if p.ndim < 2]
    groups = [{"params": [p for p in trained if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]
