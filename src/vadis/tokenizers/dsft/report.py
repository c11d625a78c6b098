"""What a DSFT tokenizer costs and loses on a set of clips."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadis.errors import VadisError
from vadis.representations import names, representation
from vadis.tokenizers.frequency import relative_rmse


def joint_errors(name: str, real: Tensor, made: Tensor) -> dict[str, float]:
    """Mean joint errors of features `(T, D)` in millimetres and their velocity error in millimetres per second.

    `local_mm` and `velocity_mm_s` compare the position and velocity columns (ViMoGen-276, whose positions are in the world,
    with the root laid on the root), `global_mm` the joints in the world that follow from root and position columns.
    """
    rep = representation(name)
    local, speed = [], []
    for x in (real, made):
        joints = x[..., rep.slices["joint_positions"]].unflatten(-1, (-1, 3))
        local.append(joints - joints[..., :1, :] if name == "vimogen276" else joints)
        speed.append(x[..., rep.slices["joint_velocities"]].unflatten(-1, (-1, 3)))
    world = rep.positions(made) - rep.positions(real)
    unit = 1 if name == "kit251" else 1000  # KIT counts in millimetres
    errors = {
        "local_mm": unit * (local[1] - local[0]).norm(dim=-1).mean(),
        "global_mm": 1000 * world.norm(dim=-1).mean(),
        "velocity_mm_s": unit * rep.fps * (speed[1] - speed[0]).norm(dim=-1).mean(),
    }
    return {key: float(value) for key, value in errors.items()}


def report(tok: Any, clips: Iterable[Tensor | np.ndarray]) -> dict[str, float]:
    """Tokens a frame and second, bits a second, errors (means over clips), share of clipped integers; by stream where it says so.

    Raises VadisError for no clips.
    """
    rows: list[dict[str, float]] = []
    frames = tokens = clipped = integers = 0
    bits = 0.0
    for clip in clips:
        real = torch.as_tensor(clip).float()
        pieces = tok.encode_batch(tok.windows(real))
        made = torch.cat(tok.decode_batch(pieces))
        x, y = real.numpy(), made.numpy()
        row = {"rmse": float(np.sqrt(np.mean(np.square(x - y)))), "rrmse": relative_rmse(x, y)}
        for stream, columns in zip(("base", "phys"), tok.config.split.columns, strict=True):
            if len(columns):
                row[f"rmse_{stream}"] = float(np.sqrt(np.mean(np.square(x[:, columns] - y[:, columns]))))
                row[f"rrmse_{stream}"] = relative_rmse(x[:, columns], y[:, columns])
            row[f"tokens_per_frame_{stream}"] = sum(len(getattr(p, f"{stream}_ids")) for p in pieces) / len(x)
        if tok.representation in names() and {"joint_positions", "joint_velocities"} <= set(
            representation(tok.representation).slices
        ):
            row |= joint_errors(tok.representation, real, made)
        rows.append(row)
        frames, tokens = frames + len(x), tokens + sum(p.num_tokens for p in pieces)
        clipped += sum(p.clipped for p in pieces)
        integers += sum(k * d for p in pieces for k, d in tok.integer_shapes(p.T))
        bits += sum(tok.bits_of(p) for p in pieces)
    if not rows:
        raise VadisError("no clip to report on: give at least one.")
    rate = {
        "clips": float(len(rows)), "frames": float(frames), "tokens_per_frame": tokens / frames,
        "tokens_per_second": tokens / frames * tok.fps, "bits_per_second": bits / frames * tok.fps,
        "clipped_share": clipped / max(integers, 1),
    }  # fmt: skip
    return rate | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
