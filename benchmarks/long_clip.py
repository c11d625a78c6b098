"""Peak memory and speed of coding one long clip, each tokenizer in a process of its own.

    python benchmarks/long_clip.py [--minutes 60] [--families vq fsq …]

Networks have their published sizes and random weights (lfq2d: width 192). Memory is the process's peak resident size,
which includes Python and torch (the line "nothing" shows those) and the clip itself, in and out.
"""

import argparse
import resource
import subprocess
import sys
import time

FAMILIES = ("nothing", "vq", "rvq", "mg_vq", "fsq", "lfq1d", "lfq2d", "causal_tae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.minutes)
        return
    print(f"{'family':<12}{'frames':>9}{'peak GB':>9}{'encode × real time':>20}{'decode × real time':>20}", flush=True)
    for family in options.families:
        command = [sys.executable, __file__, "--one", family, "--minutes", str(options.minutes)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def one(family: str, minutes: float) -> None:
    import torch

    from vadis.loading import component_classes

    if family == "nothing":
        report(family, 0, 0.0, 0.0)
        return
    cls = component_classes()[family]
    torch.manual_seed(0)
    tokenizer = cls(cls.config_class(**({"width": 192} if family == "lfq2d" else {}))).eval()
    seconds = 60 * minutes
    clip = torch.randn(round(seconds * tokenizer.fps), tokenizer.config.feature_dim)
    start = time.perf_counter()
    tokens = tokenizer.encode(clip)
    middle = time.perf_counter()
    made = tokenizer.decode(tokens)
    assert made.shape == clip[: len(made)].shape
    report(family, len(clip), seconds / (middle - start), seconds / (time.perf_counter() - middle))


def report(family: str, frames: int, encode: float, decode: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{family:<12}{frames:>9,}{peak:>9.2f}{encode:>20,.0f}{decode:>20,.0f}")


if __name__ == "__main__":
    main()
