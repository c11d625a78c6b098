"""A picture of what a scene model does: held-out rooms, and the ways it goes for each of their instructions.

python benchmarks/motionvla_picture.py --scenes SCENES --model RUN/model -o paths.png
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np

import vadis
from vadis.data.corpus import Corpus
from vadis.data.scenes import walks_to
from vadis.data.scenes.layout import COLOURS


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rooms", type=int, default=5)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("-o", "--out", type=Path, required=True)
    a = parser.parse_args()
    pipe, corpus = vadis.load(a.model), Corpus.open(a.scenes)
    groups: dict[str, list] = {}
    for clip in corpus.subset("test"):
        groups.setdefault(clip.group, []).append(clip)
    rooms = [clips for clips in groups.values() if len(clips) == 2][: a.rooms]
    figure, axes = plt.subplots(2, len(rooms), figsize=(2.6 * len(rooms), 4.9), height_ratios=(1, 1.35))
    hits, spent = [], []
    for column, clips in enumerate(rooms):
        image = corpus.path / clips[0].extra["image"]
        axes[0, column].imshow(Image.open(image))
        floor = axes[1, column]
        for thing in clips[0].extra["things"]:
            floor.plot(-thing["left"], thing["forward"], "s", color=COLOURS.get(thing["colour"], (0.4,) * 3), ms=9)
        for clip in clips:
            clock = time.perf_counter()
            seconds = len(clip.features) // 4 * 4 / pipe.fps
            out = pipe([clip.captions[0].text] * a.samples, image=image, seconds=seconds, seed=0)
            spent.append(time.perf_counter() - clock)
            for motion in out.motion:
                root = motion.canonicalize().root
                floor.plot(
                    -root[:, 0], root[:, 2], color=COLOURS.get(clip.extra["colour"], (0.4,) * 3), lw=1, alpha=0.8
                )
                hits.append(math.degrees(walks_to(motion, clip.extra["target"]).direction_error) < 30)
        floor.plot(0, 0, "k^", ms=7)
        floor.set_xlim(-4, 4)
        floor.set_ylim(-2.5, 5.5)
        floor.set_aspect("equal")
        floor.grid(alpha=0.3)
        floor.tick_params(labelsize=6)
        axes[0, column].axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(a.out, dpi=100)
    print(f"{np.mean(hits):.2f} of {len(hits)} within 30 degrees; {np.median(spent):.1f} s for {a.samples} samples")


if __name__ == "__main__":
    main()
