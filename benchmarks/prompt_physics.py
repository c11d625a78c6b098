"""What obedience to prompts is worth: a model beside the clip with the nearest caption and a random clip of a corpus.

    python benchmarks/prompt_physics.py --corpus corpora/mini
    python benchmarks/prompt_physics.py --set dev --seeds 1     # the prompts that settings were chosen on

A model alone is measured by `vadis evaluate MODEL --protocol prompt-physics`. Jitter and foot slide are ratios to real
clips. The `test` prompts were not looked at while settings were chosen; the `dev` prompts were.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from vadis.evaluation.prompt_physics import DEV, TEST, Body, Prompt, foot_slide, jitter
from vadis.motion import Motion

Maker = Callable[[Prompt, int], Motion]


def judge(
    name: str, make: Maker, prompts: tuple[Prompt, ...], seeds: int, timed: bool = True, first_seed: int = 0
) -> dict[str, object]:
    """Run every prompt with every seed; pass rates, the failures by kind, jitter, slide and length error."""
    passed, by_kind, failures = [], defaultdict(list), []
    jitters, slides, off, took = [], [], [], []
    for prompt in prompts:
        for seed in range(first_seed, first_seed + seeds):
            start = time.perf_counter()
            motion = make(prompt, seed)
            took.append(time.perf_counter() - start)
            ok = bool(prompt.check(Body(motion.positions, motion.fps)))
            passed.append(ok)
            by_kind[prompt.kind].append(ok)
            if not ok:
                failures.append(prompt.text)
            jitters.append(jitter(motion))
            slides.append(foot_slide(motion))
            off.append(abs(motion.num_frames / motion.fps - prompt.seconds))
    mean = torch.tensor(passed, dtype=torch.float64).mean().item()
    per_prompt = torch.tensor(passed, dtype=torch.float64).view(len(prompts), seeds).mean(1)
    return {
        "system": name,
        "prompts": len(prompts),
        "seeds": seeds,
        "obeyed": round(mean, 3),
        "standard_error": round(float(per_prompt.std() / len(prompts) ** 0.5), 3),
        "jitter": round(torch.tensor(jitters).median().item(), 2),
        "foot_slide": round(torch.tensor(slides).mean().item(), 4),
        "length_error_max_s": round(max(off), 3),
        "seconds_per_prompt": round(sum(took) / len(took), 2) if timed else None,
        "by_kind": {k: f"{sum(v)}/{len(v)}" for k, v in by_kind.items()},
        "failed": sorted({f"{t} ({failures.count(t)}/{seeds})" for t in failures}),
    }


def retrieval(corpus_path: Path) -> tuple[Maker, Maker, list[Motion]]:
    """Nearest human caption and random clip of the training split, at the asked length where they are long enough."""
    import random

    import vadis
    from vadis.data.corpus import Corpus
    from vadis.text_encoders import MiniLMEncoder

    corpus = Corpus.open(corpus_path)
    rep = vadis.representation(corpus.about["representation"])
    encoder = MiniLMEncoder()
    rows = [
        (c, t) for c in corpus.subset(split="train") for t in c.captions if t.kind in ("whole", "label", "detailed")
    ]
    embedded = encoder.sentence([t.text for _, t in rows])

    def cut(row: int, prompt: Prompt) -> Motion:
        clip, caption = rows[row]
        first = round(caption.start * rep.fps)
        return rep.decode(
            clip.features[
                first : max(first + 16, first + round(min(prompt.seconds, caption.end - caption.start) * rep.fps))
            ]
        )

    def nearest(prompt: Prompt, seed: int) -> Motion:
        return cut(int((embedded @ encoder.sentence([prompt.text])[0]).argmax()), prompt)

    def anything(prompt: Prompt, seed: int) -> Motion:
        return cut(random.Random(f"{seed}{prompt.text}").randrange(len(rows)), prompt)

    real = [rep.decode(c.features) for c in corpus if len(c.features) > 30]
    return nearest, anything, real


def main() -> None:
    """Command line; prints one JSON object a system and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vadis-mini")
    parser.add_argument("--set", choices=("test", "dev"), default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="corpus for retrieval, random clips and the real jitter and slide")
    parser.add_argument("--skip-model", action="store_true")
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    options = parser.parse_args()
    prompts = TEST if options.set == "test" else DEV
    results = []
    if not options.skip_model:
        import vadis

        pipe = vadis.load(options.model)
        for name, extra in (("single sample", {"samples": 1}), ("default", {})):
            make = lambda p, s, e=extra: pipe(p.text, seconds=p.seconds, seed=s, **e).motion  # noqa: E731
            results.append(
                judge(f"{options.model}, {name}", make, prompts, options.seeds, first_seed=options.first_seed)
            )
            print(json.dumps(results[-1], indent=1), flush=True)
    if options.corpus:
        nearest, anything, real = retrieval(options.corpus)
        results.append(judge("nearest caption", nearest, prompts, 1))
        results.append(judge("random clip", anything, prompts, options.seeds))
        floor = {
            "jitter": float(torch.tensor([jitter(m) for m in real]).median()),
            "slide": float(torch.tensor([foot_slide(m) for m in real]).mean()),
        }
        for result in results:
            result["jitter_ratio"] = round(result["jitter"] / floor["jitter"], 3)
            result["slide_ratio"] = round(result["foot_slide"] / floor["slide"], 3)
        print(
            json.dumps(results[-2:], indent=1),
            f"\nreal clips: jitter {floor['jitter']:.2f} m/s³, slide {floor['slide']:.4f} m/s",
            file=sys.stderr,
        )
    for result in results:
        ratios = (
            f", jitter ×{result['jitter_ratio']}, slide ×{result['slide_ratio']}" if "jitter_ratio" in result else ""
        )
        print(f"{result['system']:32s} obeyed {result['obeyed']:.3f} ± {result['standard_error']:.3f}{ratios}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
