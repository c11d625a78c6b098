"""kill -9 at random points of every long run: is the repeated run's result that of an undisturbed one, is anything left?

    python benchmarks/kills.py --data ../shared/data [--kills 10] [--verbs build encode …] [--seed 0] [--json]

Each verb works on six clips of motion capture. It runs undisturbed once. Then, for every kill, it is started again in an
empty folder, or for every other kill of a verb that replaces a folder over an older result, and killed: at a random file
operation (a file of the output or the input opened, made, renamed or removed, counted by an audit hook) or at a random
time, in turn. Then it runs to its end. The columns of the table:

    equal     results of the repeated run equal to the undisturbed one, to the byte (times on a clock apart)
    older     times that an older result was there, and whole, after the kill
    left      files that the repeated run left which the undisturbed one did not
    again     seconds of processor time that kill and repetition cost beyond the undisturbed run, the worst and the mean;
              opening the models and reading the inputs once more counts

Runs are forked from one process, in which everything is imported already. Needs a system with fork.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate")
RECIPE = """
task: tokenizer
steps: 12
device: cpu
threads: 1
resume: auto
data: {window: 16, batch: 4, mirror: 0.5}
model: {width: 16, code_dim: 8, down_t: 1, depth: 1, levels: [5, 5, 5, 5], groups: 2}
optimizer: {lr: 1e-3}
ema: 0.9
best: position_mm
validate_every: 3
validation_batches: 1
checkpoint_every: 3
log_every: 3
"""
VERBS: dict[str, str] = {
    "build": "data build {mini} {out} --captions {described} --manifest {manifest} --mirror --validation-every 3",
    "augment": "data augment {corpus} {out} --clips 12 --validation-clips 3",
    "encode": "data encode {corpus} {out} --tokenizer vadis-mini",
    "tokens": "data tokens {corpus} {out} --tokenizer vadis-mini",
    "train": "train {recipe} run={out} data.corpus={corpus}",
    "evaluate": "evaluate vadis-mini --data {corpus} -o {out} --split all --repeats 1 --samples 1 --pictures 0",
    "generate": "generate {prompts} --seconds 1 --samples 1 --count 3 -o {out}.npz -o {out}.bvh",
}
REPLACES = ("build", "augment", "encode", "tokens")
"""Verbs whose second run takes the place of the first one's result."""


@dataclass
class Row:
    """What happened to one verb."""

    verb: str
    seconds: float
    events: int
    kills: int = 0
    equal: int = 0
    older: str = "-"
    left: list[str] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(words: list[str], log: Path, at_event: int = 0, at_time: float = 0.0) -> tuple[int, float, int]:
    """Run a command in a forked process, killed at its file operation `at_event` or after `at_time` seconds.

    Returns its status (negative: the signal), its processor seconds, and how many file operations it did.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(out, 1)
            os.dup2(out, 2)
            count, root = 0, str(log.parent)

            def hook(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal count
                if event in EVENTS and any(str(a).startswith(root) for a in arguments if isinstance(a, str | Path)):
                    count += 1
                    if count == at_event:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            from vadis.cli import main

            status = main(words)
            sys.stdout.flush()
            os.write(write, str(count).encode())
            os._exit(status)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(99)
    os.close(write)
    if at_time:
        time.sleep(at_time)
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    count = int(os.read(read, 20) or 0)
    os.close(read)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, count


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder by its path, without what a clock decides."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name + "/"] = ""
            continue
        data = path.read_bytes().replace(str(folder).encode(), b"")
        if path.name in ("report.json", "state.json", "run.json"):
            page = json.loads(data)
            for clock in ("timing", "seconds", "command"):
                page.pop(clock, None)
            data = json.dumps(page).encode()
        elif path.name == "log.jsonl":
            rows = [json.loads(line) for line in data.decode().splitlines()]
            data = json.dumps([{k: v for k, v in r.items() if "second" not in k} for r in rows]).encode()
        elif path.name in ("report.md", "report.html"):
            data = b""  # drawn from report.json, with its timing
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def try_verb(verb: str, words: Callable[[Path], list[str]], root: Path, kills: int, seed: int) -> Row:
    """Kill and repeat one verb."""
    draw, log = random.Random(f"{seed}/{verb}"), root / f"{verb}.log"
    undisturbed = root / f"{verb}-undisturbed"
    undisturbed.mkdir()
    started = time.monotonic()
    status, usual, events = run(words(undisturbed / "out"), log)
    row = Row(verb, round(time.monotonic() - started, 2), events)
    if status:
        row.problems.append(f"the undisturbed run ended with {status}: {log.read_text()[-300:]}")
        return row
    expected = contents(undisturbed)
    older = whole = 0
    for number in range(kills):
        place = root / f"{verb}-{number}"
        place.mkdir()
        over = verb in REPLACES and number % 4 > 1
        if over:
            shutil.copytree(undisturbed, place, dirs_exist_ok=True)
        event = draw.randint(1, events) if number % 2 == 0 else 0
        moment = 0.0 if event else draw.uniform(0.02, row.seconds)
        status, first, _ = run(words(place / "out"), log, event, moment)
        point = f"file operation {event}" if event else f"{moment:.2f} s"
        if status != -signal.SIGKILL and status:
            row.problems.append(f"killed at {point}, it ended with {status}: {log.read_text()[-300:]}")
        row.kills += status == -signal.SIGKILL
        if over:
            older += 1
            after = {k: v for k, v in contents(place).items() if k.startswith("out/")}
            whole += after == {k: v for k, v in expected.items() if k.startswith("out/")}
        status, second, _ = run(words(place / "out"), log)
        if status:
            row.problems.append(f"repeated after a kill at {point}, it ended with {status}: {log.read_text()[-300:]}")
            continue
        found = contents(place)
        row.left += sorted(found.keys() - expected.keys())
        same = all(found.get(name) == value for name, value in expected.items())
        row.equal += same
        if not same:
            other = [name for name, value in expected.items() if found.get(name) != value]
            row.problems.append(f"killed at {point}: {', '.join(other[:5])} differ")
        row.again.append(first + second - usual)
        shutil.rmtree(place)
    if older:
        row.older = f"{whole} of {older}"
    return row


def main() -> int:
    """Run the benchmark; 1 when a result differed, something was left or an older result was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mini/*.bvh, captions and a manifest")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import torch

    import vadis.cli.data_augment
    import vadis.cli.data_build
    import vadis.cli.data_encode
    import vadis.cli.evaluate
    import vadis.cli.generate
    import vadis.cli.train
    import vadis.data.encoded_corpus
    import vadis.evaluation.evaluate
    import vadis.training.trainer

    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if set(options.verbs) & {"encode", "evaluate", "generate"}:
        _ = vadis.load("vadis-mini").text_encoder  # imports what opening it in a fork needs
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        root, data = Path(folder), options.data
        (root / "recipe.yaml").write_text(RECIPE)
        places = {
            "mini": data / "mini", "described": data / "captions_described.jsonl", "manifest": data / "manifest.jsonl",
            "corpus": root / "corpus", "recipe": root / "recipe.yaml",
        }  # fmt: skip
        prompts = ["a person walks forward", "someone waves"]

        def words(verb: str, out: Path) -> list[str]:
            filled = [w.format(out=out, **places) if w != "{prompts}" else w for w in VERBS[verb].split()]
            return [text for w in filled for text in (prompts if w == "{prompts}" else [w])]

        status, _, _ = run(words("build", root / "corpus"), root / "corpus.log")
        if status:
            sys.exit((root / "corpus.log").read_text())
        rows = []
        for verb in options.verbs:
            rows.append(try_verb(verb, lambda out, verb=verb: words(verb, out), root, options.kills, options.seed))
            if not options.json:
                show(rows[-1], first=len(rows) == 1)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    bad = [r for r in rows if r.problems or r.left or len(set(r.older.split(" of "))) > 1]
    return 1 if bad else 0


def show(row: Row, first: bool) -> None:
    """A line of the table, and what went wrong."""
    if first:
        print("| verb | undisturbed | file operations | killed | equal | older | left | again, worst | mean |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    worst, mean = (max(row.again), sum(row.again) / len(row.again)) if row.again else (0, 0)
    print(f"| {row.verb} | {row.seconds:.1f} s | {row.events} | {row.kills} | {row.equal} | {row.older} | {len(row.left)} "
          f"| {worst:.1f} s | {mean:.1f} s |", flush=True)  # fmt: skip
    for problem in row.problems:
        print(f"    {problem}", file=sys.stderr)
    for name in sorted(set(row.left)):
        print(f"    left: {name}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
