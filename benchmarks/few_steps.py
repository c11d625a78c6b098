"""How few sampler steps a streaming model needs: distance of its latents to the 50-step result, and what an evaluator sees.

    python benchmarks/few_steps.py CORPUS [--model vadis-mini-stream] [--prompts 100] [--out few_steps.json]

Prompts are one caption for each stretch that the evaluator's training held out, near-duplicates left out (the generator may
have seen their motion; samplers are compared here). Distances: the same states and the same starting noise are given to every
sampler, and its latents compared with those of the same sampler, and of the second-order one, at as many steps as there are
(48: both start at step 47 of 0 … 49): median over latents of the root mean square, in standard deviations of the latents. The
published sampler draws noise on its way, so its row shows how far two draws are from each other.
Metrics: whole motions as long as the real ones; R@1 in pools of 32, Fréchet distance to the real stretches, jitter and foot slide
as ratios to them. Prints Markdown. On the bundled model's size about 15 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mini_evaluator import RECIPE, described, distinct, scores
from torch import Tensor

import vadis
from vadis.evaluation.prompt_physics import foot_slide, jitter
from vadis.metrics.distribution import frechet_distance, gaussian
from vadis.text_encoders import MiniLMEncoder
from vadis.training.pairs import Pairs
from vadis.training.tasks import load_recipe

STEPS = (5, 8, 10, 15, 20)
MOST = 48
VARIANTS = (*((sampler, n) for n in (*STEPS, MOST) for sampler in ("ddim", "dpm")), ("ancestral", 50))
LONGEST = 240  # frames of a prompt's motion


def held_out(corpus: str, count: int) -> tuple[list[str], list[Tensor]]:
    """At most `count` captions and the real features (T, D) that they describe."""
    recipe: Any = load_recipe(RECIPE, [f"data.corpus={corpus}", "data.drawn=0"])
    items, texts = distinct(described(Pairs(recipe.data, "", 0).held_out), MiniLMEncoder(), recipe.loss.duplicates)
    spread = torch.linspace(0, len(items) - 1, min(count, len(items))).round().long().tolist()
    return [texts[i] for i in spread], [items[i].features(0, min(items[i].frames, LONGEST)) for i in spread]


@torch.no_grad()
def distances(pipe: Any, texts: list[str], latents: int = 12, seed: int = 0) -> dict[str, dict[str, float]]:
    """Distance of every variant's latents to the many-step results, given the same states and noise."""
    generator, scale = pipe.generator, pipe.config.guidance_scale
    text, null = torch.stack([pipe.sentence(t) for t in texts]), pipe.sentence("")
    made, _ = generator.generate(
        text, num_latents=latents, null_text=null, guidance_scale=scale, sampler="dpm", steps=MOST, seed=seed
    )
    history = torch.stack(made)[:, :-1]
    states = [generator(rows, history).flatten(0, 1) for rows in (text, null.expand(len(texts), -1))]
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(states[0]), 51, generator.config.latent_dim, generator=draw)

    def sampled(sampler: str, n: int, noise: Tensor) -> Tensor:
        steps = None if sampler == "ancestral" else n
        return generator.head.sample(torch.cat(states), noise, guidance_scale=scale, sampler=sampler, steps=steps)

    found = {f"{sampler} {n}": sampled(sampler, n, noise) for sampler, n in VARIANTS}
    again = sampled("ancestral", 50, torch.randn(noise.shape, generator=draw))
    unit = found[f"dpm {MOST}"].std(0)

    def apart(a: Tensor, b: Tensor) -> float:
        return float(((a - b) / unit).square().mean(-1).sqrt().median())

    page = {}
    for name, value in found.items():
        own = again if name.startswith("ancestral") else found[f"{name.split()[0]} {MOST}"]
        page[name] = {"own": apart(value, own), "dpm": apart(value, found[f"dpm {MOST}"])}
    return page


class Measure:
    """Figures of motions against the real stretches of the same captions."""

    def __init__(self, texts: list[str], real: list[Tensor]) -> None:
        self.evaluator: Any = vadis.load("vadis-mini-evaluator")
        self.text, self.representation = self.evaluator.embed_text(texts), vadis.representation("ms272")
        self.reference = gaussian(self.evaluator.embed_motion(real).double().numpy())
        self.unit = {"jitter": 1.0, "slide": 1.0}
        self.unit = {name: self(real)[name] for name in self.unit}

    def __call__(self, clips: list[Tensor]) -> dict[str, float]:
        motion, motions = self.evaluator.embed_motion(clips), [self.representation.decode(clip) for clip in clips]
        return {
            "R@1": scores(self.text, motion)[0],
            "Fréchet": float(frechet_distance(*self.reference, *gaussian(motion.double().numpy()))),
            "jitter": float(torch.tensor([jitter(m) for m in motions]).mean()) / self.unit["jitter"],
            "slide": float(torch.tensor([foot_slide(m) for m in motions]).mean()) / self.unit["slide"],
        }


def generated(pipe: Any, texts: list[str], real: list[Tensor], sampler: Any, steps: int, seed: int) -> list[Tensor]:
    """Features of a motion for each caption, as long as the real one."""
    pipe.config = replace(pipe.config, sampler=sampler, steps=None if sampler == "ancestral" else steps)
    return pipe(texts, seconds=[len(clip) / pipe.tokenizer.fps for clip in real], seed=seed).features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--model", default="vadis-mini-stream")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1, help="motions of each prompt")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = vadis.load(options.model)
    texts, real = held_out(options.corpus, options.prompts)
    apart, measure = distances(pipe, texts), Measure(texts, real)
    rows: dict[str, dict[str, float]] = {"real": measure(real)}
    rows["real, through the auto-encoder"] = measure([pipe.tokenizer.reconstruct(clip)[: len(clip)] for clip in real])
    for sampler, n in VARIANTS:
        began = time.process_time()
        runs = [measure(generated(pipe, texts, real, sampler, n, 1000 * seed)) for seed in range(options.seeds)]
        mean = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        rows[f"{sampler} {n}"] = mean | {"seconds": time.process_time() - began}
    print(
        f"{len(texts)} prompts, {sum(map(len, real)) / pipe.tokenizer.fps:.0f} s of motion, {options.seeds} of each\n"
    )
    print("| sampler, steps | to its own 48 | to dpm 48 | R@1 | Fréchet | jitter | foot slide |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        far = [f"{apart[name][key]:.3f}" for key in ("own", "dpm")] if name in apart else ["", ""]
        cells = [f"{row[key]:.3f}" for key in ("R@1", "Fréchet")] + [f"× {row[key]:.2f}" for key in ("jitter", "slide")]
        print(f"| {' | '.join([name, *far, *cells])} |")
    if options.out:
        options.out.write_text(json.dumps({"distance": apart, "metrics": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
