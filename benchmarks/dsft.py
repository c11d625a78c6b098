"""DSFT measured: `python benchmarks/dsft.py speed|streams|rate --corpus CORPUS [--json FILE]`.

speed    encode and decode of 80-frame clips on one core, one at a time and in batches, beside the original's figures
streams  one stream against two at equal measured bits on held-out clips
rate     more coefficients with coarser steps, shorter windows: error against bits

The corpus is one of `vadis data build`; tokenizers are fitted on windows of its train split and measured on windows of its val
split. Bits are tokens times log2 of the ids of their stream. The original's speed (1.4 ms and 0.33 ms a clip, one CPU thread,
276 columns) is given, not measured here.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch

from vadis.data.corpus import Corpus
from vadis.representations import representation
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.tokenizers.dsft.split import SplitSpec, split_for

ORIGINAL = {"encode": 1.4, "decode": 0.35}
"""Milliseconds a clip."""


def windows(corpus: Corpus, split: str, frames: int, most: int | None = None) -> list[np.ndarray]:
    """Pieces of `frames` frames of all clips of a split, or `most` of them, evenly picked."""
    part = corpus.subset(split)
    found = []
    for row in range(len(part)):
        x = part.frames_of(row).numpy()
        found += [x[i : i + frames] for i in range(0, len(x) - frames + 1, frames)]
    return found if most is None else found[:: max(1, len(found) // most)][:most]


def best_ms(run: Callable[[], object], clips: int, repeats: int = 7) -> float:
    """Milliseconds of processor time a clip, the best of some runs."""
    run()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)
    return 1000 * min(spent) / clips


def speed(options: argparse.Namespace, corpus: Corpus) -> list[dict[str, Any]]:
    """Times a clip; the coder of the byte-pair merges is kept to one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    train, clips = windows(corpus, "train", 80, 600), windows(corpus, "val", 80)
    start = time.process_time()
    tok = DSFTTokenizer.fit(train, corpus.representation, fps=corpus.fps)
    print(f"fit on {len(train)} clips of 80 frames: {time.process_time() - start:.1f} s; {tok.vocab_sizes} ids")
    many = (clips * (1 + 1000 // len(clips)))[:1000]
    codes, batch = [tok.encode(x) for x in clips], tok.encode_batch(many)
    rows = []
    for what, single, together in (
        ("encode", lambda: [tok.encode(x) for x in clips], lambda: tok.encode_batch(many)),
        ("decode", lambda: [tok.decode(e) for e in codes], lambda: tok.decode_batch(batch)),
    ):
        one, all_ = best_ms(single, len(clips)), best_ms(together, len(many))
        target = ORIGINAL[what]
        rows.append({"what": what, "single_ms": one, "batched_ms": all_, "target_ms": target,
                     "single_ratio": target / one, "batched_ratio": target / all_})  # fmt: skip
        print(
            f"{what}  single {one:.3f} ms ({target / one:.1f} x {target} ms)  batched {all_:.3f} ms ({target / all_:.1f} x)"
        )
    return rows


def measure(tok: DSFTTokenizer, clips: list[np.ndarray]) -> dict[str, float]:
    """Rate and errors, with the velocity error of the decoded joints in the world besides that of the velocity columns."""
    found = tok.report(clips)
    rep = representation(tok.representation)
    errors = []
    for x, made in zip(clips, tok.reconstruct(clips), strict=True):
        real, decoded = (torch.diff(rep.positions(y), dim=0) * tok.fps for y in (torch.from_numpy(x), made))
        errors.append(float((decoded - real).norm(dim=-1).mean()))
    return found | {"joint_velocity_mm_s": 1000 * float(np.mean(errors))}


SHOWN = {"bits_per_second": "bits/s", "tokens_per_second": "tokens/s", "local_mm": "local mm", "global_mm": "global mm",
         "velocity_mm_s": "velocity mm/s", "joint_velocity_mm_s": "joint velocity mm/s"}  # fmt: skip


def heading(first: str) -> None:
    print(f"| {first} | " + " | ".join(SHOWN.values()) + " |\n|" + " --- |" * (len(SHOWN) + 1))


def show(name: str, row: dict[str, float]) -> None:
    print(f"| {name} | " + " | ".join(f"{row[key]:.0f}" if "/s" in SHOWN[key] else f"{row[key]:.1f}" for key in SHOWN) + " |",
          flush=True)  # fmt: skip


def streams(options: argparse.Namespace, corpus: Corpus) -> list[dict[str, Any]]:
    """Single stream against split: measured curves, then the single stream's error at the bits of each split."""
    train = windows(corpus, "train", options.frames, options.clips)
    held_out = windows(corpus, "val", options.frames)
    print(
        f"{len(train)} windows of {options.frames} frames fitted, {len(held_out)} held out, scale {options.scale:g}\n"
    )
    one = SplitSpec("single", ((0, corpus.dim),))
    settings = [(one, (k, 1)) for k in (3, 5, 8, 12, 18, 25)]
    settings += [(split_for(corpus.representation), k) for k in ((3, 15), (5, 15), (5, 25), (10, 25), (20, 40))]
    rows: list[dict[str, Any]] = []
    heading("streams, K")
    for split, k in settings:
        tok = DSFTTokenizer.fit(
            train, corpus.representation, k, (options.scale, options.scale), split=split, fps=corpus.fps
        )
        row = {"split": split.name, "K": k, **measure(tok, held_out)}
        rows.append(row)
        show(f"single {k[0]}" if split is one else f"split {k[0]}/{k[1]}", row)
    single = [r for r in rows if r["split"] == "single"]
    print(
        "\nerror of the split over that of the single stream at the same bits (interpolated in log bits and log error)\n"
    )
    errors = ("local_mm", "global_mm", "velocity_mm_s", "joint_velocity_mm_s")
    print("| split | bits/s | " + " | ".join(SHOWN[e] for e in errors) + " |\n|" + " --- |" * 6)
    for row in rows:
        if row["split"] == "single":
            continue
        rates = np.log([r["bits_per_second"] for r in single])
        here = np.log(row["bits_per_second"])
        if not rates[0] <= here <= rates[-1]:
            continue
        for error in errors:
            row[f"{error}_ratio"] = row[error] / np.exp(np.interp(here, rates, np.log([r[error] for r in single])))
        ratios = " | ".join(f"{row[f'{error}_ratio']:.2f}" for error in errors)
        print(f"| {row['K'][0]}/{row['K'][1]} | {row['bits_per_second']:.0f} | {ratios} |")
    return rows


def rate(options: argparse.Namespace, corpus: Corpus) -> list[dict[str, Any]]:
    """Settings of scale, K and window on the same held-out clips."""
    longest = 240
    held_out = windows(corpus, "val", longest)
    print(f"{len(held_out)} held-out clips of {longest} frames, coded in windows\n")
    settings = [(240, (5, 25), 10), (240, (40, 60), 10), (120, (5, 25), 10), (60, (5, 25), 10),
                (240, (40, 60), 3), (240, (40, 60), 1.5), (120, (20, 30), 1.5), (60, (10, 15), 1.5),
                (240, (60, 100), 1)]  # fmt: skip
    rows: list[dict[str, Any]] = []
    heading("window, K, scale")
    for frames, k, scale in settings:
        train = windows(corpus, "train", frames, options.clips * 120 // frames)
        tok = DSFTTokenizer.fit(train, corpus.representation, k, (scale, scale), fps=corpus.fps, window=frames)
        rows.append({"window": frames, "K": k, "scale": scale, **measure(tok, held_out)})
        show(f"{frames}, {k[0]}/{k[1]}, {scale:g}", rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "streams", "rate"))
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--frames", type=int, default=120, help="frames of a window (streams)")
    parser.add_argument("--clips", type=int, default=200, help="windows to fit on")
    parser.add_argument("--scale", type=float, default=10.0, help="integers per unit (streams)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    work = {"speed": speed, "streams": streams, "rate": rate}[options.what]
    rows = work(options, Corpus.open(options.corpus))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
