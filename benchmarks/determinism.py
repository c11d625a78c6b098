"""How far the same seed may lead to other motion: runs, batches and threads compared, for every bundled model.

    python benchmarks/determinism.py [--prompts 8] [--latents 40]

Draws come from the seed alone, so what is left are the last bits of sums, which kernels add in another order for another
number of rows or threads. For tokens that is nothing, until two scores lie so close that the last bit decides: then the
rest of the motion is another. Streams of latents have no such border; their differences stay small and are stated here.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

import vadis

PROMPTS = (
    "a person walks forward", "a person waves with the right hand", "a person jumps", "a man runs in a circle",
    "someone sits down", "a person kicks with the left leg", "a person turns around", "a person dances",
)  # fmt: skip
STREAM_PROMPTS = PROMPTS[:4]


def apart(a: Any, b: Any) -> float:
    """Largest distance of a joint in metres."""
    if a.positions.shape != b.positions.shape:
        return float("inf")
    return float((a.positions - b.positions).norm(dim=-1).max())


def of_calls(name: str, prompts: tuple[str, ...]) -> dict[str, list[float]]:
    """Metres between motions of equal prompt and seed: made again, in a batch, and with two threads instead of one."""
    pipe = vadis.load(name)
    settings: dict[str, Any] = {"seconds": 3.0}
    torch.set_num_threads(1)
    alone = [pipe(text, seed=i, **settings).motion for i, text in enumerate(prompts)]
    again = [pipe(text, seed=i, **settings).motion for i, text in enumerate(prompts[:2])]
    batch = pipe(list(prompts), seed=0, **settings).motion
    torch.set_num_threads(2)
    threads = [pipe(text, seed=i, **settings).motion for i, text in enumerate(prompts)]
    torch.set_num_threads(1)
    return {
        "made again": [apart(a, b) for a, b in zip(alone, again, strict=False)],
        "in a batch": [apart(a, b) for a, b in zip(alone, batch, strict=True)],
        "two threads": [apart(a, b) for a, b in zip(alone, threads, strict=True)],
    }


def stream_rows(pipe: Any, texts: tuple[str, ...], seeds: list[int], latents: int) -> list[Tensor]:
    """Features (T, D) of live streams that share one batch, as the server makes them."""
    c = pipe.config
    null = pipe.sentence("") if c.guidance_scale != 1 else None
    names = ("guidance_scale", "sampler", "steps", "temperature", "keep", "max_step")
    rows = pipe.generator.streams(len(texts), null_text=null, **{name: getattr(c, name) for name in names})
    decoder = pipe.tokenizer.stream_decoder(len(texts))
    for row, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        rows.start(row, pipe.sentence(text), None, seed)
    order = list(range(len(texts)))
    with torch.no_grad():
        parts = [decoder.push(rows.step(order)[:, None], order) for _ in range(latents)]
    return list(torch.cat(parts, 1))


def of_streams(name: str, latents: int) -> dict[str, list[float]]:
    """As `of_calls`, for streams of so many latents: the whole batch, each stream alone, and two threads."""
    pipe = vadis.load(name)
    seeds = list(range(len(STREAM_PROMPTS)))
    torch.set_num_threads(1)
    batch = stream_rows(pipe, STREAM_PROMPTS, seeds, latents)
    alone = [stream_rows(pipe, (text,), [i], latents)[0] for i, text in enumerate(STREAM_PROMPTS)]
    again = stream_rows(pipe, STREAM_PROMPTS[:1], seeds[:1], latents)
    torch.set_num_threads(2)
    threads = [stream_rows(pipe, (text,), [i], latents)[0] for i, text in enumerate(STREAM_PROMPTS)]
    torch.set_num_threads(1)
    decode = pipe.representation.decode
    motions = [decode(x) for x in alone]
    return {
        "made again": [apart(motions[0], decode(again[0]))],
        "in a batch": [apart(a, decode(b)) for a, b in zip(motions, batch, strict=True)],
        "two threads": [apart(a, decode(b)) for a, b in zip(motions, threads, strict=True)],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--latents", type=int, default=40)
    parser.add_argument("--models", nargs="*", default=["vadis-mini", "vadis-mini-lm", "vadis-mini-stream"])
    args = parser.parse_args()
    print(
        "| model | compared with one alone, one thread | motions | equal to the bit | same tokens | largest distance of those |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.models:
        stream = name == "vadis-mini-stream"
        found = of_streams(name, args.latents) if stream else of_calls(name, PROMPTS[: args.prompts])
        for what, values in found.items():
            near = [v for v in values if v < 1e-3]
            same = "–" if stream else f"{len(near)}"
            worst = max(values if stream else near, default=0.0)
            print(
                f"| {name} | {what} | {len(values)} | {sum(v == 0 for v in values)} | {same} | {1e6 * worst:.1f} µm |",
                flush=True,
            )


if __name__ == "__main__":
    main()
