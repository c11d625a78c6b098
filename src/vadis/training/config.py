"""What every recipe holds; `vadis.config` reads and builds them.

`Recipe` holds what every training needs; a task adds `data`, `model` and `loss` (see `tasks.py`).
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from vadis.config import STRICT

# Upper limits of settings that make memory or time, far above what any training has had.
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""Of an optimiser, or from one event of a run to the next."""
Batch = Annotated[int, Field(ge=1, le=1_000_000)]
"""Items at once, or batches of a step."""
Frames = Annotated[int, Field(ge=1, le=1_000_000)]
"""Frames, token steps or tokens of an item or row."""
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW."""

    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[Below1, Below1] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    """Applied to every parameter, as the published recipes do, unless `decay_matrices_only`."""
    decay_matrices_only: bool = False
    """Leave biases, norms and embeddings' one-dimensional parameters undecayed."""
    eps: float = Field(default=1e-8, gt=0)
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null: not clipped."""


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """Learning rate: a linear warm-up, then a constant, a cosine or steps."""

    kind: Literal["cosine", "constant", "step"] = "cosine"
    warmup: int = Field(default=0, ge=0, le=1_000_000_000)
    """Steps; step i has lr * (i + 1) / (warmup + 1)."""
    floor: Share = 0.0
    """The cosine's lowest value, as a share of lr."""
    decay_steps: Steps | None = None
    """Steps from the end of the warm-up to the cosine's lowest point (beyond it the cosine rises again, as in the
    published code). Null: the lowest point is the end of the run, by steps or `max_seconds`, whichever comes first."""
    milestones: tuple[int, ...] = ()
    """For `step`: optimiser steps after the warm-up at which lr is multiplied by `factor`."""
    factor: float = Field(default=0.1, gt=0)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Recipe:
    """What every training has. `task` chooses the rest."""

    task: str
    run: str = Field(default="runs/unnamed", min_length=1)
    """Folder of checkpoints, logs and the trained model."""
    seed: int = Field(default=0, ge=0)
    steps: Steps
    """Optimiser steps of the whole run; the schedule ends here."""
    stop_at: Steps | None = None
    """End this session at that step, with a checkpoint and the schedule untouched (a time slot of a cluster)."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Budget over all sessions: training stops when it is spent, and the schedule is squeezed to end there."""
    accumulate: Batch = 1
    """Batches a step on every process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    shard: bool = False
    """Split weights, gradients and optimiser state over the processes (FSDP2), for models too large for one GPU."""
    device: Literal["auto", "cpu"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads of torch; null: torch decides."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema: float | None = Field(default=0.999, gt=0, lt=1)
    """Decay of the average of the weights, which is what gets exported; ramped, see `ema.py`. Null: off."""
    validate_every: Steps = 1000
    validation_batches: Batch = 8
    best: str | None = None
    """A validation metric; the model with its lowest value is kept in `best/` beside the last one."""
    checkpoint_every: Steps = 1000
    """Steps from one checkpoint to the next."""
    checkpoint_seconds: float | None = Field(default=None, gt=0)
    """Also after so many seconds without one: what a kill can cost. When checkpoints are written changes no result."""
    log_every: Steps = 50
    logger: Literal["none", "trackio", "tensorboard"] = "none"
    """Besides `log.jsonl`, which is always written."""
    resume: Annotated[Literal["no", "auto"], BeforeValidator(lambda value: "no" if value is False else value)] = "no"
    """`auto` continues from the run's checkpoint, if there is one. YAML reads a bare `no` as false, which is taken too."""
