"""Encoding speed of the representations on one core: `python benchmarks/representations.py [--seconds 2]`.

263 features start from joints, 272 features from joint rotations with forward kinematics included. The input is random
smooth motion. The baseline for 263 is the figure this project was given for the original HumanML3D conversion (9,900
frames/s); the original isn't run here. For 272 there is no such figure, so the project's target stands in its place.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from vadis import rotation
from vadis.representations.hml263 import HumanML
from vadis.representations.ms272 import MS272
from vadis.skeleton import smpl22

ORIGINAL_263 = 9_900
"""Frames/s of the original HumanML3D conversion, input joints; given, not measured here."""
TARGET_272 = 60_000


def frames_per_second(run: Callable[[], object], frames: int, seconds: float) -> tuple[float, float]:
    """Median and best rate over repeated runs after one for warming up."""
    run()
    rates, end = [], time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        rates.append(frames / (time.perf_counter() - start))
    return sorted(rates)[len(rates) // 2], max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    total = options.clips * options.frames

    generator = torch.Generator().manual_seed(0)
    swing = torch.randn(options.clips, 1, 22, 3, generator=generator)
    phase = torch.arange(options.frames)[None, :, None, None] / 30
    rotations = rotation.from_rotvec(0.5 * swing * torch.sin(2 * phase + swing))
    root = torch.cat([phase[..., 0] * 1.2, 0 * phase[..., 0] + 0.9, 0 * phase[..., 0]], -1).expand(
        options.clips, -1, -1
    )
    joints = smpl22().forward_kinematics(rotations, root)
    kit_joints = 1000 * joints[:, :, :21]
    hml, kit, ms = HumanML("hml263"), HumanML("kit251"), MS272()
    features_272, features_263 = ms.encode_arrays(rotations, joints), hml.encode_positions(joints)

    table: list[tuple[str, Callable[[], object], float | None, str]] = [
        ("hml263 from joints", lambda: hml.encode_positions(joints), ORIGINAL_263, "original"),
        ("ms272 from rotations (with FK)", lambda: ms.encode_rotations(rotations, root), TARGET_272, "target"),
        ("ms272 from rotations and joints", lambda: ms.encode_arrays(rotations, joints), None, ""),
        ("kit251 from joints", lambda: kit.encode_positions(kit_joints), None, ""),
        ("ms272 to joints (positions)", lambda: ms.positions(features_272), None, ""),
        ("hml263 to joints (positions)", lambda: hml.recover_from_positions(features_263), None, ""),
    ]
    results = {}
    for name, run, baseline, kind in table:
        median, best = frames_per_second(run, total, options.seconds)
        results[name] = {"median": round(median), "best": round(best)}
        ratio = ""
        if baseline:
            results[name][f"ratio_to_{kind}"] = round(median / baseline, 2)
            ratio = f"{median / baseline:6.1f} x {kind} ({baseline:,.0f})"
        if not options.json:
            print(f"{name:34s} {median:10,.0f} frames/s  (best {best:,.0f}) {ratio}")
    if options.json:
        print(
            json.dumps({"clips": options.clips, "frames": options.frames, "threads": 1, "frames_per_second": results})
        )


if __name__ == "__main__":
    main()
