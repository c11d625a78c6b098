"""What every road between representations loses, measured on motion files.

    python benchmarks/conversions.py walk.bvh run.bvh jump.bvh

Prints a Markdown table: mean joint error in millimetres and mean rotation error in degrees (`-` where the target or the
source holds no rotations), both after laying the clips on each other by one turn about the vertical and one shift.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import torch

import vadis
from vadis.representations.conversions import ConversionReport, convert
from vadis.skeleton import smpl22

NAMES = ("ms272", "ms272_absroot", "vimogen276", "smpl135", "motionclip135", "hml263", "kit251")


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that there are."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def cell(reports: Sequence[ConversionReport]) -> str:
    """Errors of one road over all clips; "exact" where nothing but columns changed."""
    if all(r.lossless and r.joint_error_mean_mm is None for r in reports):
        return "exact"
    joints, turns = mean([r.joint_error_mean_mm for r in reports]), mean([r.rotation_error_mean_deg for r in reports])
    joints = 0.0 if joints is None else joints
    text = "0" if joints < 0.005 else f"{joints:.2g}" if joints < 10 else f"{joints:.0f}"
    return f"{text} / " + ("-" if turns is None else "0" if turns < 0.005 else f"{turns:.2g}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="motion files of people, any format that vadis reads")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each file, from its start")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    motions = [vadis.retarget(vadis.load_motion(f), "smpl22") for f in options.files]
    motions = [m.crop(0, min(m.num_frames, round(options.seconds * m.fps))) for m in motions]
    features: dict[str, list[torch.Tensor]] = {}
    for name in NAMES:
        rep = vadis.representation(name)
        features[name] = [rep.encode(m.resample(rep.fps)) for m in motions]
    print("| from \\ to | " + " | ".join(NAMES) + " |\n| --- |" + " --- |" * len(NAMES))
    for source in NAMES:
        cells = []
        for target in NAMES:
            reports = [convert(x, source, target, skeleton=smpl22()).report for x in features[source]]
            cells.append("" if source == target else cell(reports))
        print(f"| {source} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
