"""Seconds a latent (0.133 s of motion) of MotionStreamer at its published size: `python benchmarks/motionstreamer.py`.

One CPU thread, random weights: the time does not depend on them. A latent is one transformer step of both branches of
guidance, the diffusion head's steps and one step of the streaming decoder. CPU time is given beside the time on the clock,
since it does not change with what else the machine does. The original program takes 5.7 s a latent on one thread; that
figure was given to this project, it isn't measured here.
"""

import argparse
import json
import time
from typing import Any

import torch

from vadis.generators import MotionStreamer
from vadis.tokenizers import CausalTAE

ORIGINAL_SECONDS = 5.7
SAMPLERS = {"ancestral, 50 steps": ("ancestral", None), "ddim, 15 steps": ("ddim", 15), "dpm, 20 steps": ("dpm", 20),
            "dpm, 10 steps": ("dpm", 10), "dpm, 5 steps": ("dpm", 5)}  # fmt: skip


def measure(model: Any, tokenizer: Any, sampler: str, steps: int | None, rows: int, latents: int) -> dict[str, float]:
    """Best seconds a step over `latents` steps, after one for warming up, and the share of the decoder."""
    null = torch.zeros(model.config.text_dim)
    streams = model.streams(rows, null_text=null, guidance_scale=4.0, sampler=sampler, steps=steps)
    decoder = tokenizer.stream_decoder(rows)
    for row in range(rows):
        streams.start(row, torch.randn(model.config.text_dim), seed=row)
    clock, cpu, decoding = [], [], []
    for _ in range(latents + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        made = streams.step()
        middle = time.process_time()
        decoder.push(torch.nan_to_num(made)[:, None].clamp(-10, 10))
        clock.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        decoding.append(time.process_time() - middle)
    return {"seconds": min(clock[1:]), "cpu_seconds": min(cpu[1:]), "decoder_cpu_seconds": min(decoding[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=4, help="latents of each measurement")
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="streams in a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--head", choices=["float32", "bfloat16", "int8"], default="float32", help="precision of the head"
    )
    parser.add_argument("--compile", action="store_true", help="compile the head's network")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, tokenizer = MotionStreamer().eval(), CausalTAE().eval()
    model.head.lower_precision(options.head)
    if options.compile:
        model.head.compile_steps()
    results = {}
    for rows in options.rows:
        for name, (sampler, steps) in SAMPLERS.items():
            label = name if rows == 1 else f"{name}, {rows} streams"
            results[label] = measure(model, tokenizer, sampler, steps, rows, options.latents)
            if not options.json:
                found = results[label]
                print(f"{label:32} {found['seconds']:6.3f} s  {found['cpu_seconds']:6.3f} s CPU "
                      f"(decoder {found['decoder_cpu_seconds']:.3f})", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps({"original_seconds": ORIGINAL_SECONDS, "head": options.head} | results, indent=2))


if __name__ == "__main__":
    main()
