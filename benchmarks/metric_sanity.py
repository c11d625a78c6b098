"""Do the metrics move the way they should? Real clips, damaged on purpose, under an evaluator and the physical metrics.

    python benchmarks/metric_sanity.py --corpus corpora/mini -o sanity.md
    python benchmarks/metric_sanity.py --corpus corpora/mini --predictions results/mini/work/predictions/seed-000 \
        --sets all --limit 96 -o sanity.md

The items are measured twice: those that the bundled evaluator never saw (its own split), and all of them. A metric of
single clips sees a damage when the mean difference between damaged and real clip is more than three standard errors from
zero; FID when it exceeds twice the value of two real samples of this size; R@1 when it loses more than two standard
deviations of a share. `docs/metric_trust.md` explains the result.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import numpy as np

from vadis.data.corpus import Corpus
from vadis.evaluation.baselines import WHAT
from vadis.evaluation.evaluate import evaluate
from vadis.evaluation.report import METRICS, Report
from vadis.training.pairs import split_groups

SETTINGS = {"kinds": ("whole",), "pictures": 0, "generations": 1}
DAMAGES = ("noise", "float", "slide", "frozen", "smooth", "mirrored", "shuffled")
CLIP_METRICS = (
    "slide",
    "floating",
    "jitter",
    "dynamic",
    "skate",
    "hover",
    "unsupported",
    "contact",
    "acceleration",
    "jerk",
)
SHOWN = ("fid", "r1", "r3", "matching", "diversity", *CLIP_METRICS)
SHOULD = {
    "noise": "fid slide floating jitter dynamic skate acceleration jerk", "float": "hover unsupported contact",
    "slide": "slide skate floating", "frozen": "fid r1 matching jitter dynamic acceleration jerk",
    "smooth": "jitter acceleration jerk", "mirrored": "r1 matching", "shuffled": "r1 matching",
}  # fmt: skip
"""What a metric that measures what its name says must see; anything else may move or not."""


SIDES = re.compile(r"\b(left|right|(counter|anti)?-?clockwise)\b", re.IGNORECASE)


def measure(
    corpus: Corpus, split: str, evaluator: str, predictions: Path | None, out: Path | None, limit: int | None
) -> dict[str, Report]:
    """A report for each row of the table."""
    found: dict[str, Report] = {}
    options = SETTINGS | {"evaluator": evaluator, "split": split, "limit": limit}
    for name in ("real", *DAMAGES, "nearest"):
        clock = time.perf_counter()
        where = None if out is None else out / (split if limit is None else f"{split}-{limit}") / name
        found[name] = evaluate(f"baseline:{name}", "ms272", corpus, out=where, **options)
        print(f"{split} {name}: {time.perf_counter() - clock:.0f} s {found[name].timing}", file=sys.stderr, flush=True)
    if predictions is not None:
        found["model"] = evaluate(predictions, "ms272", corpus, partial=True, **options)
    return found


def table(reports: dict[str, Report]) -> list[str]:
    """Every row's figures."""
    first = reports["real"]
    shown = [k for k in SHOWN if k in first.result]
    unit = {k: f" ({METRICS[k].unit})" if METRICS[k].unit else "" for k in shown}
    lines = [
        "| | n | " + " | ".join(METRICS[k].label + unit[k] for k in shown) + " |",
        "| --- | ---: |" + " ---: |" * len(shown),
    ]
    if "fid" in first.real:
        floor = first.real["fid"]
        lines.append(f"| real against real (FID) | | {floor.text(3)} |" + " |" * (len(shown) - 1))
    for name, report in reports.items():
        cells = [f"{report.result[k].mean:.{METRICS[k].digits}f}" if k in report.result else "—" for k in shown]
        lines.append(f"| {name} | {report.items} | " + " | ".join(cells) + " |")
    return lines


def change(report: Report, key: str) -> tuple[float, float]:
    """Mean difference of a clip metric between made and real clips, in standard errors, and relative to the real mean."""
    made, real = (
        np.array([np.nan if v is None else v for v in report.clips[f"{n}/{key}"]], float) for n in ("made", "real")
    )
    difference = (made - real)[np.isfinite(made - real)]
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean() / max(error, 1e-12)), float(difference.mean() / max(abs(np.nanmean(real)), 1e-12))


def seen(report: Report, key: str) -> tuple[bool, str]:
    """Whether a metric notices what was done, and the change in words."""
    n = report.items
    if key == "fid":
        value, floor = report.result[key].mean, report.real[key].mean
        return value > 2 * floor, f"{value / floor:.1f} × floor"
    if key == "r1":
        a, b = report.real[key].mean, report.result[key].mean
        return a - b > 2 * np.sqrt(max(a * (1 - a), 0.25 / n) / n), f"{a:.2f} → {b:.2f}"
    if key == "matching":
        a, b = report.real[key].mean, report.result[key].mean
        distance = np.array(report.clips["distance"], float)
        return b - a > 2 * distance.std(ddof=1) / np.sqrt(n), f"{100 * (b / a - 1):+.0f} %"
    errors, relative = change(report, key)
    return abs(errors) > 3, f"{100 * relative:+.0f} %"


def verdicts(reports: dict[str, Report]) -> list[str]:
    """Which metric sees which damage; a required one that isn't seen is marked."""
    keys = [k for k in ("fid", "r1", "matching", *CLIP_METRICS) if k in reports["real"].result]
    lines = ["| | " + " | ".join(DAMAGES) + " |", "| --- |" + " --- |" * len(DAMAGES)]
    for key in keys:
        cells = []
        for damage in DAMAGES:
            if key not in reports[damage].result:
                cells.append("—")
                continue
            yes, words = seen(reports[damage], key)
            required = key in SHOULD[damage].split()
            cells.append(
                f"**{words}**" if yes and required else words if yes else f"{words}, MISSED" if required else "·"
            )
        lines.append(f"| {METRICS[key].label} | " + " | ".join(cells) + " |")
    return lines


def needed(reports: dict[str, Report]) -> str:
    """Items from which FID would be twice what two real samples give, since that shrinks with their number."""
    rows = [(d, reports[d]) for d in DAMAGES if "fid" in reports[d].result]
    least = {d: 2 * r.real["fid"].mean * r.items / max(r.result["fid"].mean, 1e-9) for d, r in rows}
    shown = ", ".join(f"{d} {n:,.0f}" if n < 1e5 else f"{d} never" for d, n in least.items())
    return f"FID would see these damages from about this many items on: {shown}."


def sides(reports: dict[str, Report]) -> str:
    """How often a caption that names a side is nearer to its recording than to the mirrored one."""
    a, b = reports["real"].clips, reports["mirrored"].clips
    rows = [k for k, text in enumerate(a["text"]) if SIDES.search(text)]
    nearer = sum(a["distance"][k] < b["distance"][k] for k in rows)
    return f"Of {len(rows)} captions that name a side, {nearer} ({100 * nearer / max(1, len(rows)):.0f} %) are nearer to their recording than to its mirror image."  # fmt: skip


def resolution(reports: dict[str, Report]) -> list[str]:
    """The smallest difference between two models that counts, when each is measured on this many other clips."""
    report = reports["real"]
    n = report.items
    lines = ["| | real | smallest difference | of real |", "| --- | ---: | ---: | ---: |"]
    for key in CLIP_METRICS:
        values = np.array([np.nan if v is None else v for v in report.clips[f"real/{key}"]], float)
        least, mean = 2 * np.sqrt(2) * np.nanstd(values, ddof=1) / np.sqrt(n), float(np.nanmean(values))
        d = METRICS[key].digits
        lines.append(
            f"| {METRICS[key].label} | {mean:.{d}f} | {least:.{d}f} | {100 * least / max(abs(mean), 1e-12):.0f} % |"
        )
    if "r1" in report.real:
        p = report.real["r1"].mean
        least = 2 * np.sqrt(2 * p * (1 - p) / n)
        lines.append(f"| R@1 | {p:.3f} | {least:.3f} | {100 * least / p:.0f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="ms272 corpus")
    parser.add_argument("--evaluator", default="vadis-mini-evaluator")
    parser.add_argument("--split-seed", type=int, default=7, help="of the evaluator's held-out clips")
    parser.add_argument("--held-out-every", type=int, default=5)
    parser.add_argument(
        "--predictions", type=Path, help="motions of a model for the same items (partial sets are fine)"
    )
    parser.add_argument(
        "--sets", nargs="+", default=["val", "all"], choices=["val", "all"], help="held-out items, all items"
    )
    parser.add_argument("--limit", type=int, help="only about this many items of each set, evenly picked")
    parser.add_argument("--work", type=Path, help="folder to keep the reports in; a second run goes on there")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    corpus = Corpus.open(args.corpus)
    corpus = corpus.with_splits(split_groups(corpus.column("group"), args.split_seed, args.held_out_every))
    lines: list[str] = []
    titles = {"val": "Clips that the evaluator never saw", "all": "All clips"}
    for split in args.sets:
        reports = measure(corpus, split, args.evaluator, args.predictions, args.work, args.limit)
        lines += [f"## {titles[split]}: {reports['real'].items} items\n", *table(reports), ""]
        lines += ["### What each metric sees\n", *verdicts(reports), "", sides(reports), "", needed(reports), ""]
        lines += ["### What can be told apart\n", *resolution(reports), ""]
    lines += ["Rows: " + "; ".join(f"*{k}* {v}" for k, v in WHAT.items()) + "."]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
