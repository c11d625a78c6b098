"""Damaged and harmlessly rewritten inputs for the readers of vadis: how does each of them take it?

    python benchmarks/fuzz.py READER --cases 10000 --state fuzz.jsonl

READER is a name, several with commas, or `all`; `--list` names them. A case is known by its number: `--only 17` runs case
17 alone and shows it. With `--state` results are kept, and the next call goes on where the last one ended. Every tenth
case is a harmless rewrite (order of keys, spaces, how a number is written) and must load equal; the others are damaged and
must be refused with one clear line, or load as something sound. Exit 1 when a case fails:

    raw       an exception that is no VadisError          slow     more than 5 s of processor time
    wrong     loaded, but what was read can't be          fat      more than 1 GB above the idle process
    unequal   a harmless rewrite loads otherwise          dead     the process died
    unclear   the message isn't one line of at most 300   escaped  wrote outside its folder, started a
              printable characters that names the file             program or reached for the network

Linux only (it reads /proc). Nothing is kept of the inputs; `--keep FOLDER` with `--only` leaves the damaged one there.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzzing.readers import find, names
from fuzzing.run import BAD, Result, Worker, finished, run

COLUMNS = ("refused", "accepted", "equal", *BAD)


def table(results: Sequence[Result]) -> str:
    """A Markdown row for each reader: how many cases went how, and the slowest and largest one."""
    rows = [
        "| reader | cases | " + " | ".join(COLUMNS) + " | slowest s | most MB | s in all |",
        "| --- |" + " ---: |" * (len(COLUMNS) + 4),
    ]
    for name in sorted({r.reader for r in results}):
        ours = [r for r in results if r.reader == name]
        count = Counter(r.outcome for r in ours)
        cells = [
            len(ours),
            *(count[c] for c in COLUMNS),
            f"{max(r.seconds for r in ours):.2f}",
            max(r.megabytes for r in ours),
        ]
        rows.append(f"| {name} | " + " | ".join(map(str, cells)) + f" | {sum(r.seconds for r in ours):.0f} |")
    return "\n".join(rows)


def failures(results: Sequence[Result], most: int = 4) -> str:
    """What failed, by kind and place, with the numbers of a few cases."""
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for r in results:
        if r.outcome in BAD:
            groups[r.reader, r.outcome, r.error, r.where].append(r)
    lines = []
    for (reader, outcome, error, where), group in sorted(groups.items(), key=lambda g: (g[0][0], -len(g[1]))):
        first = group[0]
        numbers = ", ".join(str(r.case) for r in group[:most])
        lines.append(f"{reader}: {outcome} {error} at {where}, {len(group)}× (cases {numbers})")
        lines.append(f"    {first.input}: {first.damage}" + (f"\n    {first.message[:200]!r}" if first.message else ""))
    return "\n".join(lines)


def show(name: str, number: int, keep: Path | None) -> None:
    """Run one case in this process and print how it went."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        worker = Worker(name, find(name), Path(temporary))
        print(json.dumps(asdict(worker.run(number)), indent=2))
        if keep:
            shutil.copytree(worker.place, keep)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="?", default="all", help="a name, several with commas, or all")
    parser.add_argument("--cases", type=int, default=1000, help="cases of each reader (default 1000)")
    parser.add_argument("--state", type=Path, help="JSON Lines file of results, continued when it exists")
    parser.add_argument("--only", type=int, help="run this case alone and show it")
    parser.add_argument("--keep", type=Path, help="with --only: copy the damaged input to this new folder")
    parser.add_argument("--list", action="store_true", help="name the readers and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names()))
        return 0
    wanted = names() if options.reader == "all" else options.reader.split(",")
    for name in wanted:
        try:
            find(name)
        except KeyError:
            parser.error(f"no reader {name}; known are {', '.join(names())}")
    if options.only is not None:
        for name in wanted:
            show(name, options.only, options.keep)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end in order: no worker, no folder is left
    results = [r for r in finished(options.state) if r.reader in wanted and r.case < options.cases]
    done = {(r.reader, r.case) for r in results}
    with open(options.state, "a", encoding="utf-8") if options.state else tempfile.TemporaryFile("w") as state:
        for name in wanted:
            for result in run(name, find, [n for n in range(options.cases) if (name, n) not in done]):
                state.write(json.dumps(asdict(result)) + "\n")
                state.flush()
                results.append(result)
            print(
                f"{name}: {sum(r.reader == name and r.outcome in BAD for r in results)} failed",
                file=sys.stderr,
                flush=True,
            )
    print(table(results))
    print(failures(results))
    return int(any(r.outcome in BAD for r in results))


if __name__ == "__main__":
    sys.exit(main())
