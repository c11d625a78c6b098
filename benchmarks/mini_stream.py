"""What the bundled streaming model obeys, how it moves, and what happens where the text changes.

    python benchmarks/mini_stream.py [--model vadis-mini-stream] [--corpus corpora/mini] [--seeds 3] [--streams 2] [--out FILE.json]

Simple prompts are judged by the predicates of `prompt_physics.py`; jitter and foot slide are ratios to real clips with
--corpus. Seams: the text changes every 3 s for 60 s; joint speed, jerk and root steps there against the rest of the same
motion. Speed is measured by `vadis benchmark stream`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from prompt_physics import judge

import vadis
from vadis.evaluation import prompt_physics as physics
from vadis.evaluation.prompt_physics import Prompt
from vadis.motion import Motion

SIMPLE: tuple[Prompt, ...] = (
    Prompt("a person walks forward", 5, physics.walks, "walk"),
    Prompt("a person runs forward", 4, physics.runs, "run"),
    Prompt("a person walks backward", 4, physics.backs, "backward"),
    Prompt("a person turns left", 4, physics.turns(1, 40, 500), "turn"),
    Prompt("a person turns right", 4, physics.turns(-1, 40, 500), "turn"),
    Prompt("a person walks in a circle", 9, physics.circles(), "circle"),
    Prompt("a person jumps up", 3, physics.jumps, "jump"),
    Prompt("a person stands still", 4, physics.stays, "still"),
    Prompt("a person sits down", 4, physics.sinks, "low"),
    Prompt("a person waves with the right hand", 4, physics.hand(physics.RIGHT), "wave"),
    Prompt("a person waves with the left hand", 4, physics.hand(physics.LEFT), "wave"),
    Prompt("a person raises both arms", 4, physics.raises_both, "arms"),
)

CHANGES = (
    "a person walks forward", "a person waves with the right hand", "a person turns left", "a person jumps up",
    "a person runs forward", "a person stands still", "a person sits down", "a person walks backward",
    "a person raises both arms", "a person walks in a circle",
)  # fmt: skip
SECONDS, TIMES = 3.0, 20  # a text's time, and how many follow each other


def stream_motion(pipe: Any, seed: int) -> tuple[Motion, list[int], torch.Tensor]:
    """A minute of motion whose text changes every three seconds, the frames where it does, and the latents' steps."""
    per = pipe.tokenizer.frames_per_token
    latents = round(SECONDS * pipe.tokenizer.fps / per)
    stream, pieces = pipe.live(seed=seed), []
    for k in range(TIMES):
        stream.push_text(CHANGES[k % len(CHANGES)])
        pieces += [stream.next_frames() for _ in range(latents)]
    root, rotations = (torch.cat([getattr(p.motion, name) for p in pieces]) for name in ("root", "rotations"))
    steps = torch.diff(torch.cat([p.tokens for p in pieces]), dim=0).norm(dim=-1)
    motion = Motion(pieces[0].motion.skeleton, root, rotations, pieces[0].motion.fps)
    return motion, [k * latents * per for k in range(1, TIMES)], steps


def seams(motion: Motion, frames: list[int]) -> dict[str, float]:
    """Joint speed (m/s), jerk (m/s³) and root steps within 0.2 s of the seams, and over the whole motion."""
    places, fps = motion.positions, motion.fps
    speed = torch.diff(places, dim=0).norm(dim=-1) * fps
    jerk = torch.diff(places, n=3, dim=0).norm(dim=-1) * fps**3
    step = torch.diff(motion.root, dim=0).norm(dim=-1)
    near = torch.zeros(len(places), dtype=torch.bool)
    for frame in frames:
        near[frame - 3 : frame + 6] = True
    p99, inside = float(speed.flatten().quantile(0.99)), jerk[~near[: len(jerk)]].amax(1)
    return {
        "speed_p99": p99,
        "speed_seams_max_ratio": float(speed[near[: len(speed)]].max()) / p99,
        "speed_inside_max_ratio": float(speed[~near[: len(speed)]].max()) / p99,
        "seams_above_1.5": float(sum(speed[f - 3 : f + 6].max() > 1.5 * p99 for f in frames)) / len(frames),
        "peak_jerk_seams": float(torch.stack([jerk[f - 3 : f + 6].max() for f in frames]).median()),
        "peak_jerk_inside": float(torch.stack([part.max() for part in inside.split(9)]).median()),
        "root_step_seams_max_m": float(step[near[: len(step)]].max()),
        "root_step_inside_max_m": float(step[~near[: len(step)]].max()),
    }


def main() -> None:
    """Command line; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vadis-mini-stream")
    parser.add_argument("--corpus", type=Path, help="corpus of the real clips that jitter and slide are compared with")
    parser.add_argument("--set", choices=("simple", "test", "dev"), default="simple")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument(
        "--config", default="{}", help='settings instead of the model\'s, such as {"keep": 10, "max_step": 5}'
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = vadis.load(options.model)
    pipe.config = replace(pipe.config, **json.loads(options.config))
    prompts = {"simple": SIMPLE, "test": physics.TEST, "dev": physics.DEV}[options.set]
    result: dict[str, Any] = judge(
        options.model, lambda p, s: pipe(p.text, seconds=p.seconds, seed=s).motion, prompts, options.seeds
    )
    if options.corpus:
        from vadis.data.corpus import Corpus

        corpus = Corpus.open(options.corpus)
        rep = vadis.representation(corpus.representation)
        real = [rep.decode(clip.features) for clip in corpus.subset("val") if len(clip.features) > 30]
        result["jitter_ratio"] = result["jitter"] / float(torch.tensor([physics.jitter(m) for m in real]).median())
        result["slide_ratio"] = result["foot_slide"] / float(torch.tensor([physics.foot_slide(m) for m in real]).mean())
    made = [stream_motion(pipe, seed) for seed in range(options.streams)]
    runs = [seams(motion, frames) for motion, frames, _ in made]
    result["seams"] = {name: round(max(run[name] for run in runs), 3) for name in runs[0]} if runs else {}
    if made:  # what `max_step` of the settings may be chosen by
        steps = torch.cat([steps for *_, steps in made])
        result["latent_step"] = {f"p{100 * q:g}": round(float(steps.quantile(q)), 2) for q in (0.5, 0.9, 0.99)}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
