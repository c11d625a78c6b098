"""Speed of the metrics on one core: `OMP_NUM_THREADS=1 python benchmarks/metrics.py [--seconds 1]`.

Random embeddings and smooth random joints; CPU time of the process, so that other work on the machine hardly counts. Baselines:
60 ms for the physical metrics and 55 ms for MBench's of a clip of 200 frames are what this project was given for the
original programs, which aren't run here; for the rest the project's targets stand in their place.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from vadis.evaluators.nrdf import PoseField
from vadis.metrics import codebook_usage, fid, ground_quality, mbench_metrics, mpjpe, physical_metrics, r_precision
from vadis.metrics.penetration import body_penetration


def milliseconds(run: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median and best CPU time over repeated runs after one for warming up."""
    run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.process_time()
        run()
        times.append(1000 * (time.process_time() - start))
    return sorted(times)[len(times) // 2], min(times)


def smooth_joints(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Joints `(T, 22, 3)` in metres that swing, with toes that touch the floor and leave it."""
    t = np.arange(frames)[:, None, None] / 30
    joints = rng.normal(size=(1, 22, 3)) + 0.2 * np.sin(
        rng.uniform(2, 6, (1, 22, 3)) * t + rng.uniform(0, 6, (1, 22, 3))
    )
    joints += np.asarray([0.5, 0.0, 0.5]) * t
    joints[:, [10, 11], 1] = np.maximum(joints[:, [10, 11], 1] - joints[:, [10, 11], 1].mean(0), 0)
    return joints.astype(np.float32)


def sphere(rings: int = 83) -> tuple[np.ndarray, np.ndarray]:
    """A closed mesh of about as many triangles as SMPL's 13,776."""
    u, v = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, rings + 1), indexing="ij")
    vertices = np.stack([np.sin(u) * np.cos(v), np.cos(u), np.sin(u) * np.sin(v)], -1).reshape(-1, 3)
    a = (np.arange(rings)[:, None] * (rings + 1) + np.arange(rings)).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + rings + 1], 1), np.stack([a + 1, a + rings + 2, a + rings + 1], 1)])
    return vertices.round(5).astype(np.float32), faces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    mix = 0.1 * rng.normal(size=(256, 256))
    real, made = rng.normal(size=(4042, 256)) @ mix, rng.normal(size=(4042, 256)) @ mix
    clip = smooth_joints(200, rng)
    clips = [smooth_joints(200, rng) for _ in range(50)]
    tokens = rng.integers(0, 64000, 1_000_000)
    vertices, faces = sphere()
    field, poses = PoseField().eval(), torch.eye(3).expand(200, 22, 3, 3)
    joints = torch.from_numpy(np.stack(clips))

    table: list[tuple[str, Callable[[], object], int, float | None, str]] = [
        ("FID, 4,042 x 256", lambda: fid(real, made, floor_repeats=0), 1, 300, "target"),
        ("FID with its floor", lambda: fid(real, made), 1, 300, "target"),
        ("R-precision, 4,032 pairs", lambda: r_precision(real[:4032], made[:4032]), 1, 200, "target"),
        ("physical, one clip of 200 frames", lambda: physical_metrics(clip), 1, 60, "original"),
        ("physical, a clip of 50 at once", lambda: physical_metrics(clips), 50, 60, "original"),
        ("physical native, of 50", lambda: physical_metrics(clips, fps=60, mode="native"), 50, 60, "original"),
        ("MBench joints, one clip", lambda: mbench_metrics(clip, fps=20, mode="compat"), 1, 55, "original"),
        ("MBench joints, a clip of 50", lambda: mbench_metrics(clips, fps=20, mode="compat"), 50, 55, "original"),
        ("ground quality, a clip of 50", lambda: ground_quality(clips, fps=30), 50, None, ""),
        ("MPJPE, a clip of 50", lambda: mpjpe(joints, joints + 0.01), 50, None, ""),
        ("PA-MPJPE, a clip of 50", lambda: mpjpe(joints, joints + 0.01, "procrustes"), 50, None, ""),
        ("codebook use, 1,000,000 of 64,000", lambda: codebook_usage(tokens, 64000), 1, None, ""),
        ("pose quality, 200 frames", lambda: field.pose_quality(poses), 1, None, ""),
        (f"body penetration, {len(faces):,} faces", lambda: body_penetration(vertices, faces), 1, None, ""),
    ]
    results = {}
    for name, run, parts, baseline, kind in table:
        median, best = (value / parts for value in milliseconds(run, options.seconds))
        results[name] = {"median_ms": round(median, 3), "best_ms": round(best, 3)}
        ratio = ""
        if baseline:
            results[name][f"faster_than_{kind}"] = round(baseline / median, 1)
            ratio = f"{baseline / median:7.1f} x faster than the {kind} ({baseline:g} ms)"
        if not options.json:
            print(f"{name:36s} {median:9.3f} ms  (best {best:.3f}) {ratio}")
    if options.json:
        print(json.dumps({"threads": 1, "milliseconds": results}))


if __name__ == "__main__":
    main()
