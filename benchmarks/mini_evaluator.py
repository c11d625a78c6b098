"""Can an evaluator tell real clips apart? Retrieval on recordings it never saw, and what damage does to its figures.

    python benchmarks/mini_evaluator.py CORPUS                    # the bundled evaluator on its own held-out recordings
    python benchmarks/mini_evaluator.py CORPUS --model FOLDER

CORPUS is the corpus of mini-evaluator, whose split says what is held out. Beside the evaluator stands a plain
baseline: ridge regression from means and deviations of a clip's features to MiniLM's sentence vector, fitted on the same
training stretches. Every damage should lower retrieval or raise the Fréchet distance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import vadis
from vadis import rotation
from vadis.data.captions import mirror_text
from vadis.errors import VadisError
from vadis.metrics.distribution import frechet_distance, gaussian
from vadis.metrics.retrieval import r_precision
from vadis.representations import representation
from vadis.text_encoders import MiniLMEncoder
from vadis.training.pairs import Pairs, Stretch
from vadis.training.tasks import load_recipe

RECIPE = Path(__file__).parent.parent / "src/vadis/recipes" / "mini-evaluator.yaml"
ROUNDS, LONGEST = 50, 300


def described(items: list[Stretch]) -> list[Stretch]:
    """Those with sentences of the best kind."""
    best = max(max(item.weights) for item in items)
    return [item for item in items if max(item.weights) == best]


def distinct(items: list[Stretch], encoder: MiniLMEncoder, threshold: float) -> tuple[list[Stretch], list[str]]:
    """Stretches and the first of their best sentences, near-duplicates of earlier sentences left out."""
    texts = [item.texts[item.weights.index(max(item.weights))] for item in items]
    vectors, kept = encoder.sentence(texts), []
    for i in range(len(items)):
        if not kept or float((vectors[kept] @ vectors[i]).max()) <= threshold:
            kept.append(i)
    return [items[i] for i in kept], [texts[i] for i in kept]


def scores(text: Tensor, motion: Tensor) -> list[float]:
    """R@1, R@2, R@3 in pools of 32 over random shuffles, and the mean distance of matched pairs."""
    rows = [r_precision(text, motion, seed=seed) for seed in range(ROUNDS)]
    return torch.tensor([[*row.top, row.matching_distance] for row in rows]).mean(0).tolist()


def damaged(clips: list[Tensor]) -> dict[str, list[Tensor]]:
    """The clips with noise on the joint rotations, trembling, frozen, played backwards, mirrored."""
    rep, generator = representation("ms272"), torch.Generator().manual_seed(0)
    motions = [rep.decode(clip) for clip in clips]

    def shaken(angle: float) -> list[Tensor]:
        found = []
        for motion in motions:
            noise = angle * torch.randn(motion.rotations.shape[:3], generator=generator)[..., :3]
            found.append(rep.encode(motion.replace(rotations=motion.rotations @ rotation.from_rotvec(noise))))
        return found

    return {
        "noise of 0.05 rad on every joint": shaken(0.05),
        "noise of 0.2 rad on every joint": shaken(0.2),
        "frozen in the first pose": [clip[:1].expand(len(clip), -1).contiguous() for clip in clips],
        "played backwards": [
            rep.encode(m.replace(root=m.root.flip(0), rotations=m.rotations.flip(0)).canonicalize()) for m in motions
        ],
        "mirrored, captions as they were": [rep.mirror(clip) for clip in clips],
    }


def baseline(pairs: Pairs, encoder: MiniLMEncoder, clips: list[Tensor], texts: list[str]) -> list[float]:
    """Retrieval of a ridge regression from summaries of clips to sentence vectors."""
    train = described(pairs.train)

    def summary(features: list[Tensor]) -> Tensor:
        return torch.stack([torch.cat([x.mean(0), x.std(0)]) for x in features])

    x = summary([item.features(0, min(item.frames, LONGEST)) for item in train])
    mean, std = x.mean(0), x.std(0).clamp_min(1e-3)
    x = (x - mean) / std
    y = encoder.sentence([item.texts[item.weights.index(max(item.weights))] for item in train])
    weights = torch.linalg.solve(x.T @ x + 3000.0 * torch.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    made = (summary(clips) - mean) / std @ weights
    unit = torch.nn.functional.normalize
    return scores(unit(encoder.sentence(texts) - y.mean(0), dim=-1), unit(made, dim=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--model", default="vadis-mini-evaluator")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    recipe = load_recipe(RECIPE, [f"data.corpus={arguments.corpus}", "data.drawn=0"])
    pairs, encoder, evaluator = Pairs(recipe.data, "", 0), MiniLMEncoder(), vadis.load(arguments.model)  # type: ignore[attr-defined]
    everything = described(pairs.held_out)
    items, texts = distinct(everything, encoder, recipe.loss.duplicates)  # type: ignore[attr-defined]
    if len(items) < 64:
        raise VadisError(f"only {len(items)} held-out stretches: too few for pools of 32.")
    clips = [item.features(0, min(item.frames, LONGEST)) for item in items]
    motion, text = evaluator.embed_motion(clips), evaluator.embed_text(texts)
    table = {"chance": [1 / 32, 2 / 32, 3 / 32, None], "baseline": [*baseline(pairs, encoder, clips, texts)[:3], None]}
    table["real clips"] = scores(text, motion)
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(0))
    table["captions shuffled"] = scores(text[order], motion)
    seen, said = distinct(described(pairs.train), encoder, recipe.loss.duplicates)  # type: ignore[attr-defined]
    known = evaluator.embed_motion([item.features(0, min(item.frames, LONGEST)) for item in seen])
    table["training clips"] = scores(evaluator.embed_text(said), known)
    reference = gaussian(motion.double().numpy())
    distance = {"real clips": 0.0, "training clips": frechet_distance(*reference, *gaussian(known.double().numpy()))}
    for name, features in damaged(clips).items():
        made = evaluator.embed_motion(features)
        table[name] = scores(text, made)
        distance[name] = frechet_distance(*reference, *gaussian(made.double().numpy()))
    sides = [(clip, t) for clip, t in zip(clips, texts, strict=True) if mirror_text(t) != t]
    own = evaluator.embed_motion([clip for clip, _ in sides])
    both = [evaluator.embed_text([f(t) for _, t in sides]) for f in (str, mirror_text)]
    right = ((own - both[0]).norm(dim=-1) < (own - both[1]).norm(dim=-1)).float().mean().item()
    if arguments.json:
        print(json.dumps({"items": len(items), "table": table, "frechet": distance, "sides": [right, len(sides)]}))
        return
    print(f"{len(items)} held-out stretches with distinct captions ({len(everything)} with near-duplicates)\n")
    print("| | R@1 | R@2 | R@3 | MM-Dist | Fréchet |\n| --- | --- | --- | --- | --- | --- |")
    for name, row in table.items():
        cells = [f"{value:.3f}" if value is not None else "–" for value in row]
        print(f"| {name} | {' | '.join(cells)} | {f'{distance[name]:.3f}' if name in distance else '–'} |")
    print(f"\nleft and right told apart: {100 * right:.0f} % of {len(sides)} captions that name a side")


if __name__ == "__main__":
    main()
