"""Speed of T2M-GPT's transformer at its published size: `python benchmarks/t2mgpt.py --check`.

One CPU thread, random weights: the time does not depend on them. 49 tokens are 196 frames. Processor time stands beside the
time on the clock, since it does not change as much with what else the machine does. `--check` makes the same greedy tokens
without a cache, everything computed anew at each step as the original program does. That program takes 11.6 s for 49 tokens
on one thread; the figure was given to this project, it isn't measured here.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vadis.generators import T2MGPT

ORIGINAL_SECONDS = 11.6


def measure(call: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """What the call gives, and its best seconds by the clock and of the processor."""
    times, result = [], None
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        result = call()
        times.append((time.perf_counter() - start, time.process_time() - start_cpu))
    return result, {"seconds": min(t for t, _ in times), "cpu_seconds": min(t for _, t in times)}


@torch.no_grad()
def uncached(model: T2MGPT, text: Tensor, tokens: int) -> Tensor:
    """Greedy tokens `(S,)` without a cache; END is never taken."""
    made = torch.zeros(1, 0, dtype=torch.long)
    for _ in range(tokens):
        made = torch.cat([made, model(text, made)[:, -1, : model.end_id].argmax(-1, keepdim=True)], dim=1)
    return made[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=49)
    parser.add_argument("--batch", type=int, default=16, help="rows of the batched measurement")
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with tokens made without a cache (slow)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = T2MGPT().eval()
    text = torch.randn(options.batch, model.config.clip_dim)
    results: dict[str, Any] = {"original_seconds": ORIGINAL_SECONDS, "tokens": options.tokens, "batch": options.batch}

    def run(label: str, call: Callable[[], Any], repeats: int = options.repeats) -> Any:
        result, results[label] = measure(call, repeats)
        if not options.json:
            print(
                f"{label:24}" + "".join(f"  {name} {value:.2f}" for name, value in results[label].items()), flush=True
            )
        return result

    def tokens(rows: int) -> list[Tensor]:
        return model.generate(text[:rows], num_tokens=options.tokens)[0]

    tokens(1)  # warms up
    first = run("float32", lambda: tokens(1))[0]
    if options.check:
        anew = run("float32, no cache", lambda: uncached(model, text[:1], options.tokens), 1)
        results["equal_without_cache"] = bool(torch.equal(first, anew))
    batch = run(f"float32, batch of {options.batch}", lambda: tokens(options.batch), 1)
    results["first_of_batch_equal"] = bool(torch.equal(first, batch[0]))
    model.lower_precision("int8")
    tokens(1)
    small = run("int8", lambda: tokens(1))[0]
    run(f"int8, batch of {options.batch}", lambda: tokens(options.batch), 1)
    for kind in ("float32", "int8"):
        many, one = results[f"{kind}, batch of {options.batch}"], results[kind]
        results[f"{kind}_batch_gain"] = {n: options.batch * one[n] / many[n] for n in ("seconds", "cpu_seconds")}
    results["int8_equal_tokens"] = float((small == first).float().mean())
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        for name in results.keys() - {"original_seconds", "tokens", "batch"}:
            if not isinstance(results[name], dict) or name.endswith("gain"):
                print(f"{name:24}  {results[name]}")


if __name__ == "__main__":
    main()
