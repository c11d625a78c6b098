"""Speed of the LFQ tokenizers on one core, and how far joints move when a part's tokens are exchanged.

    python benchmarks/lfq.py
    python benchmarks/lfq.py --model runs/lfq-2d-small/model --data corpora/mini

With `--model`, an lfq2d tokenizer of ms272: windows of held-out clips get one part of the next window, and the table says
how far the decoded joints of each part move, root-relative, in mm.
"""

import argparse
import time
from collections.abc import Callable

import torch

from vadis import load
from vadis.data.corpus import Corpus
from vadis.tokenizers import LFQ2DTokenizer, LFQ2DTokenizerConfig, LFQTokenizer, LFQTokenizerConfig, Tokenizer
from vadis.tokenizers.parts import BODY

MS272 = {"representation": "ms272", "feature_dim": 272, "fps": 30.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a trained lfq2d tokenizer")
    parser.add_argument("--data", help="corpus folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model:
        exchange(load(options.model), Corpus.open(options.data).subset("val"))
        return
    for name, tokenizer in {
        "lfq1d": LFQTokenizer(),
        "lfq2d": LFQ2DTokenizer(),
        "lfq1d small": LFQTokenizer(LFQTokenizerConfig(width=308, code_dim=308, groups=6, **MS272)),
        "lfq2d small": LFQ2DTokenizer(LFQ2DTokenizerConfig(width=192, **MS272)),
    }.items():
        speed(name, tokenizer.eval())


def speed(name: str, tokenizer: Tokenizer) -> None:
    """Processor time of encoding and decoding 64 and 196 frames, the best of four."""
    print(f"{name}, {sum(p.numel() for p in tokenizer.parameters()):,} parameters")
    for frames in (64, 196):
        clip = torch.randn(frames, tokenizer.config.feature_dim)
        tokens = tokenizer.encode(clip)
        encode, decode = best(tokenizer.encode, clip), best(tokenizer.decode, tokens)
        print(f"  {frames} frames: encode {1000 * encode:.0f} ms, decode {1000 * decode:.0f} ms", flush=True)


def best(call: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> float:
    times = []
    for _ in range(4):
        start = time.thread_time()
        call(value)
        times.append(time.thread_time() - start)
    return min(times)


def exchange(tokenizer: LFQ2DTokenizer, corpus: Corpus) -> None:
    """The table of joint displacements, rows: exchanged part, columns: part whose joints move."""
    clips = corpus.windows(24, 96, torch.Generator().manual_seed(0))
    tokens = tokenizer.encode(clips)
    decoded = joints(tokenizer.decode(tokens))
    error = (decoded - joints(clips[:, : decoded.shape[1]])).norm(dim=-1).mean()
    print(f"reconstruction {1000 * error:.0f} mm\n{'':<12}" + "".join(f"{part:>12}" for part in BODY))
    for part in tokenizer.parts:
        mixed = joints(tokenizer.decode(tokenizer.replace_part(tokens, tokens.roll(1, 0), part)))
        moved = 1000 * (mixed - decoded).norm(dim=-1).mean((0, 1))  # (22,)
        print(f"{part:<12}" + "".join(f"{moved[list(where)].mean():>12.0f}" for where in BODY.values()), flush=True)


def joints(features: torch.Tensor) -> torch.Tensor:
    """Root-relative joints (B, T, 22, 3) of 272 features."""
    return features[..., 8:74].unflatten(-1, (22, 3))


if __name__ == "__main__":
    main()
