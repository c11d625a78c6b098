"""How well a language model that speaks motion says what held-out clips show: token F1 of its captions.

    python benchmarks/mini_lm.py corpora/mini [--model vadis-mini-lm] [--limit 25]

Each caption is compared with all descriptions of its clip and the best counts; "shuffled" compares with those of other clips, which
is what a caption that fits anything would get. Text to motion is measured by `vadis evaluate` and `prompt_physics.py`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter

import torch

import vadis
from vadis.data.corpus import Corpus

KINDS = ("whole", "label", "automatic")


def words(text: str) -> Counter[str]:
    """The words of a sentence and how often each occurs."""
    return Counter(re.findall(r"[a-z]+", text.lower()))


def f1(made: str, references: list[str]) -> float:
    """Token F1 of a sentence against the nearest of several."""
    best = 0.0
    for reference in references:
        a, b = words(made), words(reference)
        same = sum((a & b).values())
        best = max(best, 2 * same / max(sum(a.values()) + sum(b.values()), 1))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--model", default="vadis-mini-lm")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe, corpus = vadis.load(options.model), Corpus.open(options.corpus).subset(options.split)
    most = int(pipe.config.max_seconds * corpus.fps)
    rows, said = [], []
    for row, captions in enumerate(corpus.column("captions")):
        texts = [c["text"] for c in captions if c["kind"] in KINDS]
        if texts and len(rows) < options.limit:
            rows.append(row)
            said.append(texts)
    tokens = [pipe.tokenizer.encode(corpus.frames_of(row)[:most]) for row in rows]
    made = pipe.caption(tokens)
    for text, references in list(zip(made, said, strict=True))[:8]:
        print(f"{text!r}  for  {references[0]!r}")
    own = sum(map(f1, made, said)) / len(made)
    others = [f1(text, said[j]) for i, text in enumerate(made) for j in range(len(said)) if j != i]
    page = {
        "clips": len(made),
        "f1": round(own, 3),
        "shuffled": round(sum(others) / len(others), 3),
        "different": len(set(made)),
    }
    print(json.dumps(page))


if __name__ == "__main__":
    main()
