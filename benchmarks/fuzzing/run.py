"""Running cases in a worker process that may not hang, grow, write elsewhere or reach the network."""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzzing.formats import damage_file
from fuzzing.rewrite import rewrite_file
from fuzzing.values import Wrong, check, digest

CPU_SECONDS = 5
WALL_SECONDS = 120
"""After this a worker that doesn't answer is ended; many programs may share the processors."""
GROWTH = 1 << 30
HARMLESS_EVERY = 10
"""Each tenth case is a harmless rewrite."""
BAD = ("raw", "wrong", "unequal", "slow", "fat", "dead", "escaped", "unclear")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Reader:
    """One way into vadis.

    `make` writes small valid inputs, a folder each, below the folder given; `read` opens one of these folders, uses what
    it read a little, and returns it. `files` are the patterns of files that are damaged. A refusal must name one of the
    folder's files, the folder, or one of `also`; where a reader isn't given a path, `named` is false.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ("**/*",)
    also: tuple[str, ...] = ()
    named: bool = True
    rewrites: bool = True


@dataclass
class Result:
    """How one case went: `outcome` is refused, accepted, equal (a harmless rewrite), or one of BAD."""

    reader: str
    case: int
    outcome: str
    input: str = ""
    damage: str = ""
    error: str = ""
    where: str = ""
    message: str = ""
    warned: bool = False
    seconds: float = 0.0
    megabytes: int = 0


class _Slow(BaseException):
    """The case has used its processor time."""


class _Escaped(BaseException):
    """The case tried to write outside its folder, to reach the network or to start a program."""


# ---- the worker


class Worker:
    """Runs the cases of one reader in this process, below `home`. It is meant for a process of its own: see `run`."""

    def __init__(self, name: str, reader: Reader, home: Path) -> None:
        self.name, self.reader, self.home = name, reader, home
        self.inputs, self.place = home / "inputs", home / "case"
        if not self.inputs.exists():
            making = home / "making"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            reader.make(making)
            making.rename(self.inputs)
        self.varieties = sorted(p.name for p in self.inputs.iterdir())
        self.digests = {}
        for variety in self.varieties:  # what is valid must be read; this also imports what reading needs
            self._lay(variety)
            value = reader.read(self.place)
            check(value)
            self.digests[variety] = digest(value, self.place)
        self.idle = _resident("VmRSS")
        self.escaped = ""

    def _lay(self, variety: str) -> None:
        shutil.rmtree(self.home / "case", ignore_errors=True)
        self.place = self.home / "case" / variety
        shutil.copytree(self.inputs / variety, self.place)

    def run(self, number: int) -> Result:
        """Case `number`, which is the same at any time and in any order."""
        rng = random.Random(f"{self.name} {number}")
        result = Result(self.name, number, "accepted")
        variety = rng.choice(self.varieties)
        self._lay(variety)
        files = sorted({p for pattern in self.reader.files for p in self.place.glob(pattern) if p.is_file()})
        file = rng.choice(files)
        result.input = f"{variety}/{file.relative_to(self.place)}"
        harmless = None
        if self.reader.rewrites and number % HARMLESS_EVERY == HARMLESS_EVERY - 1:
            harmless = rewrite_file(file, rng)
        result.damage = harmless or damage_file(file, rng)
        names = {self.place.name, *(p.name for p in self.place.rglob("*")), file.name, *self.reader.also}
        self._read(result, variety if harmless else None, names)
        return result

    def _read(self, result: Result, same_as: str | None, names: set[str]) -> None:
        """Open what lies in the folder; with `same_as` it must be what that variety is."""
        from vadis.errors import VadisError

        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
        self.escaped = ""
        started = time.process_time()
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                _guarded.append(self)
                try:
                    value = self.reader.read(self.place)
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    _guarded.clear()
            result.warned = bool(warned)
            check(value)
            if same_as:
                result.outcome = "equal" if digest(value, self.place) == self.digests[same_as] else "unequal"
        except VadisError as error:
            result.outcome = "unequal" if same_as else "refused"
            self._note(result, error)
            if fault := self._fault(str(error), names):
                result.outcome, result.where = "unclear", fault
        except Wrong as error:
            result.outcome, result.message = "wrong", str(error)
            result.where = re.split(r" is |: ", str(error))[0]
        except _Slow as error:
            result.outcome = "slow"
            self._note(result, error)
        except _Escaped:
            pass
        except BaseException as error:
            out = isinstance(error, MemoryError) or "allocate memory" in str(error)
            result.outcome = "fat" if out else "raw"
            self._note(result, error)
        result.seconds = round(time.process_time() - started, 3)
        result.megabytes = max(0, _resident("VmHWM") - self.idle) >> 20
        if result.seconds > CPU_SECONDS:
            result.outcome = "slow"
        if result.megabytes > GROWTH >> 20:
            result.outcome = "fat"
        if self.escaped:
            result.outcome, result.where = "escaped", self.escaped

    def _note(self, result: Result, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/vadis/" in f.filename] or frames
        last = ours[-1]
        result.error = type(error).__name__
        result.where = f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"
        result.message = str(error).encode("utf-8", "replace").decode()[:400]

    def _fault(self, message: str, names: set[str]) -> str:
        if len(message) > 300:
            return "message of more than 300 characters"
        if CONTROL.search(message):
            return "message of several lines or with control characters"
        if self.reader.named and not any(name in message for name in names):
            return "message that names no file"
        return ""


_guarded: list[Worker] = []


def _watch(event: str, details: tuple[Any, ...]) -> None:
    """An audit hook: while a case runs, nothing is written outside its folder, started, or sent."""
    if not _guarded:
        return
    worker = _guarded[0]
    touched: tuple[Any, ...] = ()
    if event == "open":
        path, mode, flags = details
        if isinstance(path, str | bytes | os.PathLike) and (
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(str(mode or "")) & set("wax+")
        ):
            touched = (path,)
    elif event in (
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.rename",
        "os.symlink",
        "os.link",
        "os.truncate",
        "shutil.rmtree",
    ):
        touched = tuple(d for d in details[:2] if isinstance(d, str | bytes | os.PathLike))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"):
        worker.escaped = f"{event} {details[0]!r:.80}"
        raise _Escaped(worker.escaped)
    for path in touched:
        if not os.path.abspath(os.fsdecode(path)).startswith((str(worker.home), "/dev/null")):
            worker.escaped = f"{event} {os.fsdecode(path)[:80]}"
            raise _Escaped(worker.escaped)


def _resident(field: str) -> int:
    """Bytes of this process's memory: `VmRSS` now, `VmHWM` at most."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


def _serve(name: str, find: Callable[[str], Reader], home: Path, numbers: list[int], pipes: tuple[Any, Any]) -> None:
    """The worker process: a result for each number, in order."""
    runner, pipe = pipes
    runner.close()  # else this process would not notice that the runner has ended
    sys.dont_write_bytecode = True
    os.environ |= {
        "HOME": str(home),
        "HF_HOME": str(home / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home),
    }
    tempfile.tempdir = str(home)
    os.chdir(home)
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1) if os.environ.get("FUZZ_SHOW") else (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    import torch

    torch.set_num_threads(1)

    def slow(*_: Any) -> None:
        raise _Slow(f"more than {CPU_SECONDS} s")

    signal.signal(signal.SIGPROF, slow)
    try:
        worker = Worker(name, find(name), home)
    except BaseException:
        pipe.send(traceback.format_exc())
        return
    sys.addaudithook(_watch)
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    most = (int(found[1]) << 10 if found else 0) + 6 * GROWTH  # asked for, not used: what is used is measured
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in numbers:
        try:
            pipe.send(asdict(worker.run(number)))
        except Exception:  # a fault of the harness itself
            pipe.send(f"case {number}: {traceback.format_exc()}")


# ---- the runner


def run(name: str, find: Callable[[str], Reader], numbers: list[int], batch: int = 1000) -> Iterator[Result]:
    """The results of the given cases of the reader that `find` knows as `name`, in order.

    A worker process runs up to `batch` cases; one that dies or doesn't answer is replaced, and the case it had counts as
    dead or slow.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        rest = list(numbers)
        while rest:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(name, find, Path(temporary), rest[:batch], (ours, theirs)), daemon=True
            )
            process.start()
            theirs.close()
            try:
                for _ in range(min(batch, len(rest))):
                    outcome = "dead"
                    try:
                        if ours.poll(WALL_SECONDS):
                            answer = ours.recv()
                            if isinstance(answer, str):
                                raise SystemExit(f"{name}: the harness failed.\n{answer}")
                            yield Result(**answer)
                            rest.pop(0)
                            continue
                        outcome = "slow"
                    except EOFError:
                        pass
                    process.kill()
                    process.join()
                    yield Result(name, rest.pop(0), outcome, where=f"exit {process.exitcode}")
                    break
            finally:
                process.kill()
                process.join()


def finished(state: Path | None) -> list[Result]:
    """The results in a state file; an unfinished last line doesn't count."""
    results = []
    for line in state.read_text(encoding="utf-8").split("\n") if state and state.is_file() else []:
        try:
            results.append(Result(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return results
