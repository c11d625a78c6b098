"""`vadis benchmark stream`."""

import time
from dataclasses import dataclass
from typing import Any

from vadis.cli.common import check_number, print_json, say

TEXTS = (
    "a person walks forward", "a person turns around to the left", "a person sits down", "a person stands up again",
    "a person waves with the right hand", "a person jumps in place", "a person runs in a circle", "a person kicks with the left leg",
    "a person steps back slowly", "a person bows", "a person raises both arms", "a person dances happily",
    "a person picks something up from the floor", "a person throws a ball", "a person stretches", "a person stands still",
)  # fmt: skip
"""Motion of every kind; none is pushed twice in a run, so that each is read by the text encoder."""


@dataclass(frozen=True)
class BenchmarkStream:
    """How long a latent takes (decoder and root included), and how soon the body follows a new text (encoding included).

    vadis benchmark stream --model vadis-mini-stream --threads 1
    """

    model: str = "vadis-mini-stream"
    """A bundled model, a folder, or a Hub id."""
    texts: int = 16
    """Texts pushed one after the other."""
    latents: int = 22
    """Latents made for each; 22 are three seconds at four frames per latent."""
    seed: int = 0
    """Seed of the stream."""
    threads: int = 1
    """Threads of the model on a CPU."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:N."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""
    json: bool = False
    """Print JSON instead of lines."""

    def run(self) -> None:
        check_number("--texts", self.texts, 1, 10_000)
        check_number("--latents", self.latents, 1, 100_000)
        check_number("--threads", self.threads, 1, 1024)
        import torch

        from vadis.pipelines.load import load_pipeline

        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        pipe = load_pipeline(self.model, device=self.device, allow_download=self.allow_download)
        pipe.check_can("live", self.model)
        pipe.warm()
        say(f"{self.model} loaded in {time.perf_counter() - started:.1f} s; {self.texts} × {self.latents} latents …")
        page = {"model": self.model, "threads": self.threads, "device": self.device} | self._measure(pipe)
        if self.json:
            print_json(page)
            return
        real, wall, cpu, answer = (
            page["latent_of_motion_ms"],
            page["latent_ms"],
            page["latent_cpu_ms"],
            page["answer_ms"],
        )
        print(f"one latent is {real:.0f} ms of motion ({page['frames_per_latent']} frames)")
        for name, row in (("a latent", wall), ("a latent, CPU time", cpu), ("text to first frames", answer)):
            print(f"{name:<22}p50 {row['p50']:7.1f} ms   p95 {row['p95']:7.1f} ms   max {row['max']:7.1f} ms")
        print(f"{page['times_real_time']:.2f} × real time")

    def _measure(self, pipe: Any) -> dict[str, Any]:
        stream = pipe.live("a person stands", seed=self.seed)
        for _ in range(3):  # the first passes allocate
            stream.next_frames()
        wall, cpu, answers = [], [], []
        for k in range(self.texts):
            lap = k // len(TEXTS)
            pushed = time.perf_counter()
            stream.push_text(TEXTS[k % len(TEXTS)] + (f" for the {lap + 1}th time" if lap else ""))
            for i in range(self.latents):
                begun, used = time.perf_counter(), time.process_time()
                stream.next_frames()
                wall.append(time.perf_counter() - begun)
                cpu.append(time.process_time() - used)
                if i == 0:
                    answers.append(time.perf_counter() - pushed)
        frames, fps = pipe.tokenizer.frames_per_token, pipe.tokenizer.fps
        return {
            "frames_per_latent": frames,
            "latent_of_motion_ms": 1000 * frames / fps,
            "latent_ms": _spread(wall),
            "latent_cpu_ms": _spread(cpu),
            "answer_ms": _spread(answers),
            "times_real_time": round(len(wall) * frames / fps / sum(wall), 3),
        }


def _spread(seconds: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum in milliseconds."""
    import numpy as np

    return {
        "p50": round(1000 * float(np.percentile(seconds, 50)), 2),
        "p95": round(1000 * float(np.percentile(seconds, 95)), 2),
        "max": round(1000 * max(seconds), 2),
        "count": len(seconds),
    }
