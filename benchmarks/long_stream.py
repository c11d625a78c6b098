"""An hour of one stream: memory, the path of the root, and whether the motion drifts.

    python benchmarks/long_stream.py [--model vadis-mini-stream] [--seconds 3600] [--figure hour.png] [--out hour.json]

The stream runs as fast as it can, on one thread; its text changes every 3 s, in a random order that the seed decides. Nothing of
the motion is kept but means over each minute. Prints JSON: memory after each minute, the largest step of the root within
pieces and between them, means of the first and last ten minutes, and the trend of body and latents over the hour.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vadis
from vadis.cli.benchmark_stream import TEXTS
from vadis.pipelines.base import MotionChunk
from vadis.server.metrics import resident_bytes

MINUTE = 60.0
COLUMNS = ("memory", "seconds", "speed", "jerk", "pelvis", "lowest", "latent", "offset", "step", "joint", "turn")
"""A row a minute: MB; seconds of the processor; mean joint speed (m/s) and jerk (m/s³) in the body's own place; heights of the pelvis and of
the lowest joint (m); norm of a latent; from the origin (m); largest step of the root within pieces and between them (m); how far
the carried heading is from a rotation."""


class Minute:
    """Sums over one minute of a stream."""

    def __init__(self) -> None:
        self.sums, self.step, self.joint, self.began = [], 0.0, 0.0, time.process_time()

    def add(self, piece: MotionChunk, places: torch.Tensor, fps: float) -> None:
        """`places` (3 + n, J, 3): joints of the piece, after the last three frames before it."""
        root = places[:, 0]
        step = torch.diff(root, dim=0).norm(dim=-1)[2:]
        self.joint, self.step = max(self.joint, float(step[0])), max(self.step, float(step[1:].max()))
        own = places - root[:, None] * torch.tensor([1.0, 0.0, 1.0])
        speed = torch.diff(own, dim=0)[2:].norm(dim=-1).mean() * fps
        jerk = torch.diff(own, n=3, dim=0).norm(dim=-1).mean() * fps**3
        low = own[3:, :, 1].amin(1).mean()
        self.sums.append([float(x) for x in (speed, jerk, own[3:, 0, 1].mean(), low, piece.tokens.norm())])

    def row(self, stream: Any) -> list[float]:
        """The finished minute in the order of COLUMNS."""
        gc.collect()
        turn = float((stream.root.turn @ stream.root.turn.T - torch.eye(3)).abs().max())
        ends = [float(stream.root.place.norm()), self.step, self.joint, turn]
        took = time.process_time() - self.began
        return [resident_bytes() / 1e6, took, *np.mean(self.sums, axis=0).tolist(), *ends]


def run(pipe: Any, seconds: float, every: float, seed: int, say: Any) -> np.ndarray:
    """Stream for so long; (minutes, len(COLUMNS)). Raises AssertionError at a number that is not finite."""
    fps, n = float(pipe.tokenizer.fps), pipe.tokenizer.frames_per_token
    stream, draw = pipe.live(seed=seed), random.Random(seed)
    before, rows, minute = None, [], Minute()
    for latent in range(round(seconds * fps / n)):
        if latent % round(every * fps / n) == 0:
            stream.push_text(draw.choice(TEXTS))
        piece = stream.next_frames()
        assert piece.start == latent * n
        finite = (piece.tokens, piece.features, piece.motion.root, piece.motion.rotations)
        assert all(bool(x.isfinite().all()) for x in finite), f"not finite at {piece.start / fps:.1f} s"
        places = piece.motion.positions
        places = torch.cat([places[:1].expand(3, -1, -1) if before is None else before, places])
        minute.add(piece, places, fps)
        before = places[-3:].clone()
        if (latent + 1) % round(MINUTE * fps / n) == 0:
            rows.append(minute.row(stream))
            say(f"{len(rows)} min: {rows[-1][0]:.1f} MB, {rows[-1][1]:.1f} s")
            minute = Minute()
    return np.array(rows)


def summary(table: np.ndarray) -> dict[str, Any]:
    """Figures over the whole run, and the last ten minutes against the first ten."""
    of = {name: table[:, k] for k, name in enumerate(COLUMNS)}
    minutes = np.arange(len(table), dtype=float)
    tail = slice(min(5, len(table) // 2), None)  # the first minutes allocate
    page: dict[str, Any] = {
        "minutes": len(table),
        "times_real_time_by_processor": round(60 * len(table) / float(of["seconds"].sum()), 2),
        "memory_mb": {"first": of["memory"][0], "last": of["memory"][-1], "largest": of["memory"].max(), "an_hour": trend(minutes[tail], of["memory"][tail])[0]},
        "root_step_m": {"within_pieces": of["step"].max(), "between_pieces": of["joint"].max()},
        "farthest_m": of["offset"].max(),
        "heading_error": of["turn"].max(),
    }  # fmt: skip
    part = min(10, max(1, len(table) // 2))
    for name in ("speed", "jerk", "pelvis", "lowest", "latent"):
        first, last = of[name][:part], of[name][-part:]
        slope, error = trend(minutes, of[name])
        page[name] = {"first": first.mean(), "last": last.mean(), "an_hour": slope, "error_of_that": error}
    return _rounded(page)


def trend(minutes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Change in an hour by a straight line, and the standard error of that; nan for fewer than four minutes."""
    if len(minutes) < 4:
        return float("nan"), float("nan")
    (slope, _), covariance = np.polyfit(minutes, values, 1, cov=True)
    return 60 * float(slope), 60 * float(covariance[0, 0] ** 0.5)


def _rounded(page: Any) -> Any:
    if isinstance(page, dict):
        return {name: _rounded(value) for name, value in page.items()}
    return float(f"{page:.5g}")


def draw(table: np.ndarray, path: Path) -> None:
    """Memory, heights, speed and latents over the minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    of, minutes = {name: table[:, k] for k, name in enumerate(COLUMNS)}, np.arange(1, len(table) + 1)
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex=True, layout="constrained")
    curves = (("memory of the process, MB", ("memory",)), ("height of pelvis and lowest joint, m", ("pelvis", "lowest")),
              ("mean joint speed, m/s", ("speed",)), ("norm of a latent", ("latent",)))  # fmt: skip
    for axis, (title, names) in zip(axes.flat, curves, strict=True):
        for name in names:
            axis.plot(minutes, of[name], color="#5682a3", linewidth=1.5)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylim(min(0.0, *(of[name].min() for name in names)), 1.15 * max(of[name].max() for name in names))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis in axes[1]:
        axis.set_xlabel("minutes of motion")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vadis-mini-stream")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--every", type=float, default=3.0, help="seconds of a text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = vadis.load(options.model)
    table = run(pipe, options.seconds, options.every, options.seed, lambda line: print(line, flush=True))
    page = summary(table)
    print(json.dumps(page, indent=1))
    if options.figure:
        draw(table, options.figure)
    if options.out:
        options.out.write_text(
            json.dumps({**page, "columns": COLUMNS, "table": table.tolist()}) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
