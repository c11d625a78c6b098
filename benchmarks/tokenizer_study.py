"""Train every tokenizer family at one small budget on one corpus, then measure all of them on its held-out clips.

    python benchmarks/tokenizer_study.py --data corpora/mini --out runs/bench [--only vq rvq] [--threads 1]

Trainings are `vadis train bench/FAMILY` with the overrides below; one that has ended is not repeated, one
that was broken off goes on. The table, the plots and the answers to three questions are written to OUT/report: does 2-D
beat 1-D at equal bits and parameters, where do VQ and RVQ stop gaining with the size of the codebook, and what do the
parts of DSFT's rate buy. About 5 minutes a training on one CPU core, 20 for lfq2d.
"""

import argparse
import json
from pathlib import Path

SIZES = (256, 1024, 4096, 16384)
"""Codebook sizes of the sweep."""

# name → (recipe, overrides)
RUNS = {
    "vq 512": ("vq", ()),  # unused codes are replaced at every step, as published
    "rvq 6x512": ("rvq", ()),
    "mg_vq 32x512": ("mg_vq", ()),
    "fsq 4x625": ("fsq", ()),
    "lfq1d 1x14 bit": ("lfq1d", ()),
    "lfq1d 6x14 bit": ("lfq1d", ("model.groups=6",)),
    "causal_tae 16": ("causal_tae", ()),
    "lfq2d 6x14 bit": ("lfq2d", ()),
    "lfq1d 6x14 bit, plain": (  # 2-D's stages, start and number of parameters
        "lfq1d",
        ("model.groups=6", "init=random", "model.use_patcher=false", "model.patch_size=1", "model.down_t=2",
         "model.activation=relu", "model.smoothing=0", "model.width=152", "model.code_dim=152"),
    ),
    "fsq 1x15360": ("fsq", ("model.levels=[8,8,8,6,5]", "model.groups=1")),
    **{f"vq {k}": ("vq", (f"model.codebook_size={k}",)) for k in SIZES},
    **{f"vq {k}, no reset": ("vq", (f"model.codebook_size={k}", "model.update=ema")) for k in (512, *SIZES[1:])},
    **{f"rvq 6x{k}": ("rvq", (f"model.codebook_size={k}",)) for k in SIZES[:-1]},
}  # fmt: skip
DSFT = ((5, 25), (10, 25), (20, 40), (40, 60))
"""K of base and phys."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="corpus folder")
    parser.add_argument("--out", default="runs/bench", help="folder of the trainings and the report")
    parser.add_argument("--only", nargs="*", default=None, help="names of runs, by their first word")
    parser.add_argument("--steps", type=int, default=None, help="instead of the recipes' steps")
    parser.add_argument("--report-only", action="store_true", help="measure what has been trained")
    parser.add_argument("--evaluator", default=None, help="folder or name, for FID")
    options = parser.parse_args()
    out = Path(options.out)
    if not options.report_only:
        for name in chosen(options.only):
            train(name, out, options.data, options.steps)
        fit_dsft(out, options.data)
    report(out, options.data, options.evaluator)


def chosen(only: list[str] | None) -> list[str]:
    return [name for name in RUNS if only is None or name in only or name.split()[0] in only]


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.replace("'", "")).strip("-").replace("--", "-")


def train(name: str, out: Path, data: str, steps: int | None) -> None:
    from vadis.training import train as start

    recipe, overrides = RUNS[name]
    folder = out / slug(name)
    page = folder / "run.json"
    if page.is_file() and json.loads(page.read_text())["state"] == "finished":
        return
    print(f"--- {name}", flush=True)
    settings = [*overrides, f"run={folder}", f"data.corpus={data}", "resume=auto"]
    start(f"bench/{recipe}", settings + ([f"steps={steps}"] if steps else []))


def fit_dsft(out: Path, data: str) -> None:
    from vadis.data.corpus import Corpus
    from vadis.tokenizers.dsft import DSFTTokenizer

    corpus = Corpus.open(data).subset("train")
    window = round(10.5 * corpus.fps)
    clips = [clip[i : i + window] for clip in (c.features for c in corpus) for i in range(0, len(clip), window)]
    clips = [clip for clip in clips if len(clip) >= 60]
    for k in DSFT:
        folder = out / slug(f"dsft {k[0]} {k[1]}")
        if not folder.is_dir():
            DSFTTokenizer.fit(clips, corpus.representation, K=k).save_pretrained(folder)


def report(out: Path, data: str, evaluator: str | None) -> None:
    from vadis.cli import main as vadis

    models = [f"{name}={out / slug(name) / 'model'}" for name in RUNS if (out / slug(name) / "model").is_dir()]
    models += [f"dsft {a}/{b}={out / slug(f'dsft {a} {b}')}" for a, b in DSFT if (out / slug(f"dsft {a} {b}")).is_dir()]
    words = ["benchmark", "tokenizers", "--data", data, "--models", *models, "-o", str(out / "report")]
    if vadis(words + (["--evaluator", evaluator] if evaluator else [])):
        raise SystemExit("the benchmark failed")
    sizes_plot(out / "report")


def sizes_plot(folder: Path) -> None:
    """Error and code use of VQ and RVQ against the size of the codebook."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    pages = [json.loads(p.read_text())["report"] for p in folder.glob("*.json")]
    for label in ("vq", "vq, no reset", "rvq"):
        of_family = [
            r for r in pages if r["family"] == label.split(",")[0] and ("no reset" in r["name"]) == ("," in label)
        ]
        rows = sorted(of_family, key=lambda r: r["vocab_size"])
        sizes = [r["vocab_size"] for r in rows]
        axes[0].plot(sizes, [r["local_mm"] for r in rows], "o-", label=label)
        axes[1].plot(sizes, [r["utilisation"] for r in rows], "o-", label=label)
        axes[2].plot(sizes, [r["perplexity"] for r in rows], "o-", label=label)
    for axis, label in zip(axes, ("local joint error, mm", "share of codes used", "perplexity"), strict=True):
        axis.set(xscale="log", xlabel="codes a codebook", ylabel=label)
        axis.grid(alpha=0.3)
    axes[2].set_yscale("log")
    axes[0].legend()
    figure.savefig(folder / "codebook_size.png", dpi=110)


if __name__ == "__main__":
    main()
