"""Runs that are killed, run twice at once, or meet a full disk: nothing is lost, nothing is left, and it is said in a line."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import procedural_walk

from vadis import files
from vadis.cli import main
from vadis.data.parts import Parts
from vadis.errors import FileError
from vadis.files import WORK, atomic_folder, atomic_write, kept_work, recover, stamp
from vadis.representations import representation

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def program(text: str, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(text), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


# ---- files and folders


def test_what_a_killed_writer_leaves_is_gone_after_the_next(tmp_path: Path) -> None:
    dead = program(
        """
        import os, sys
        from pathlib import Path
        from vadis.files import atomic_folder, atomic_write
        out = Path(sys.argv[1])
        with atomic_folder(out / "folder") as folder, atomic_write(folder / "a"), atomic_write(out / "file.txt") as file:
            file.write_text("half")
            (file.parent / "more").write_text("of the writer's own")
            os.kill(os.getpid(), 9)
        """,
        str(tmp_path),
    )
    assert dead.returncode == -9
    assert names(tmp_path) == [".file.txt.vadis-0", ".folder.vadis-lock", ".folder.vadis-partial"]
    (tmp_path / ".file.txt.mine").write_text("a user's")
    with atomic_write(tmp_path / "file.txt") as file:
        assert not file.exists()
        with atomic_write(tmp_path / "file.txt") as other:  # a second writer has a place of its own
            other.write_text("first")
        assert (tmp_path / "file.txt").read_text() == "first"
        file.write_text("whole")
    with atomic_folder(tmp_path / "folder") as folder:
        assert names(folder) == []
    assert names(tmp_path) == [".file.txt.mine", "file.txt", "folder"]
    assert (tmp_path / "file.txt").read_text() == "whole"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path, monkeypatch, exchange: bool) -> None:
    if not exchange:  # as on Windows
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for content in ("older", "newer"):
        with atomic_folder(tmp_path / "out", ours="page") as folder:
            (folder / "page").write_text(content)
        assert (tmp_path / "disk" / "page").read_text() == content and (tmp_path / "out").is_symlink()
        assert names(tmp_path) == ["disk", "out"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with (
        pytest.raises(FileError, match="has no page: name another folder"),
        atomic_folder(tmp_path / "home", ours="page"),
    ):
        pass
    assert names(tmp_path / "home") == ["letter"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "page").write_text("older")
    real, calls = os.replace, []

    def replace(a: object, b: object) -> None:
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), atomic_folder(out, "the work") as folder:
        (folder / "page").write_text("newer")
    monkeypatch.setattr(os, "replace", real)
    assert names(tmp_path) == [".out.vadis-old", ".out.vadis-partial"]
    recover(out)
    assert (out / "page").read_text() == "older"
    with atomic_folder(out) as folder:
        (folder / "page").write_text("newest")
    assert names(tmp_path) == ["out"] and (out / "page").read_text() == "newest"


def test_work_goes_on_only_for_the_same_work(tmp_path: Path) -> None:
    made: list[int] = []

    def steps(work: str, stop: int) -> list[np.ndarray]:
        with atomic_folder(tmp_path / "out", work) as folder, Parts(folder, "numbers") as parts:
            found = []
            for number in range(4):
                if number == stop:
                    raise RuntimeError
                found += parts.take(lambda n=number: [np.full(3, n), np.arange(n)] if not made.append(n) else [])
            np.save(folder / "all.npy", np.concatenate(found))
            return found

    with pytest.raises(RuntimeError):
        steps("one", 3)
    place = tmp_path / ".out.vadis-partial" / WORK / "numbers.parts"
    place.write_bytes(place.read_bytes()[:-5])  # a kill cuts the last step
    found = steps("one", 9)
    assert made == [0, 1, 2, 2, 3] and names(tmp_path / "out") == ["all.npy"] and names(tmp_path) == ["out"]
    assert [a.tolist() for a in found[4:6]] == [[2, 2, 2], [0, 1]]
    with pytest.raises(RuntimeError):
        steps("one", 2)
    made.clear()
    steps("two", 9)
    assert made == [0, 1, 2, 3]
    with pytest.raises(RuntimeError), kept_work(tmp_path / "walk.bvh", "this") as folder:
        (folder / "part").touch()
        raise RuntimeError
    with kept_work(tmp_path / "walk.bvh", "this") as folder:
        assert "part" in names(folder)
    assert names(tmp_path) == ["out"]


def test_stamps_tell_other_inputs(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = stamp(tmp_path)
    assert before == stamp(tmp_path) and len(before) == 1
    (tmp_path / "a").write_text("12")
    assert before != stamp(tmp_path)


# ---- two at once


VERBS = {
    "data build": "data build {data}/mini {out}",
    "data augment": "data augment {corpus} {out} --clips 3 --validation-clips 0",
    "data encode": "data encode {corpus} {out} --tokenizer vadis-mini",
    "data tokens": "data tokens {corpus} {out} --tokenizer vadis-mini",
    "evaluate": "evaluate --baseline real --data {corpus} --evaluator none --split all -o {out}",
    "fit dsft": "fit dsft {corpus} -o {out} --k 3 5 --vocab 300 300",
}


@pytest.fixture(scope="module")
def corpus(shared_data: Path, tmp_path_factory) -> Path:
    from vadis.data.build import build_corpus

    out = tmp_path_factory.mktemp("corpus") / "corpus"
    build_corpus([shared_data / "mini"], out, [shared_data / "captions_described.jsonl"], progress=False)
    return out


@pytest.mark.parametrize("verb", VERBS)
def test_the_second_run_says_who_holds_the_folder(verb: str, corpus: Path, shared_data: Path, tmp_path: Path) -> None:
    from vadis.cli import main

    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom vadis.locks import only_run\n"
         f"with only_run({str(tmp_path / 'out')!r}):\n print('held', flush=True)\n sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
    words = VERBS[verb].format(data=shared_data, corpus=corpus, out=tmp_path / "out").split()
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("sys.stderr.write", lambda text: said.append(text) or len(text))
        assert main(words) == 2
    assert f"out is being written by process {holder.pid} on " in "".join(said)
    assert names(tmp_path) == [".out.vadis-lock"]
    holder.kill()
    holder.wait()
    if verb in ("data build", "data tokens"):
        assert main(words) == 0  # a dead process holds nothing
        assert names(tmp_path) == ["out"]


def test_two_builds_at_once(shared_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vadis", "data", "build", str(shared_data / "mini"), str(tmp_path / "out")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 2], [0, 0])  # one after the other, if one was slow to start
    assert codes == [0, 0] or any("is being written by process" in text for text in errors)
    from vadis.data.corpus import Corpus

    assert len(Corpus.open(tmp_path / "out")) == 6 and names(tmp_path) == ["out"]


# ---- kills


def test_killed_runs_repeated_give_the_same_bytes(shared_data: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "kills.py"),
        "--data",
        str(shared_data),
        "--json",
        "--kills",
        "2",
    ]
    done = subprocess.run(
        [*command, "--verbs", "build", "encode", "train"], capture_output=True, text=True, timeout=600
    )
    rows = json.loads(done.stdout)
    for row in rows:
        assert not row["problems"] and not row["left"] and row["equal"] == 2, row
    assert len(rows) == 3 and sum(row["kills"] for row in rows) >= 4 and done.returncode == 0


# ---- full disks


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_full_disk_is_named_and_harms_nothing(tmp_path: Path) -> None:
    """A limit of the system on the size of files stands for the full disk; every kind of writer meets it."""
    done = program(
        """
        import json, resource, sys, traceback
        from pathlib import Path
        import numpy as np, pyarrow as pa, pyarrow.parquet as pq, torch
        from PIL import Image
        from safetensors.torch import save_file
        from vadis.errors import FileError
        from vadis.files import atomic_folder, atomic_write
        out, noise = Path(sys.argv[1]), np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
        def torch_save(path):
            with path.open("wb") as file:
                torch.save(torch.from_numpy(noise), file)
        writers = {
            "text.json": lambda path: path.write_text(json.dumps(noise.tolist())),
            "array.npy": lambda path: np.save(path, noise),
            "fortran.npy": lambda path: np.save(path, np.ones((200, 201))[:, ::2].T),
            "arrays.npz": lambda path: np.savez(path, noise=noise),
            "table.parquet": lambda path: pq.write_table(pa.table({"a": noise.ravel()}), path, compression="none"),
            "weights.safetensors": lambda path: save_file({"a": torch.from_numpy(noise)}, path),
            "optimizer.pt": torch_save,
            "picture.png": lambda path: Image.fromarray(noise).save(path),
        }
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        said = {}
        for name, write in writers.items():
            (out / name).write_text("older")
            with atomic_folder(out / "folder") as folder:
                (folder / "page").write_text("older")
            for kind in ("file", "folder"):
                try:
                    if kind == "file":
                        with atomic_write(out / name) as path:
                            write(path)
                    else:
                        with atomic_folder(out / "folder") as folder:
                            write(folder / name)
                except FileError as error:
                    said[f"{name} {kind}"] = str(error)
            assert (out / name).read_text() == (out / "folder" / "page").read_text() == "older"
            (out / name).unlink()
        print(json.dumps(said))
        """,
        str(tmp_path),
    )
    said = json.loads(done.stdout or done.stderr)
    assert len(said) == 16
    for name, text in said.items():
        file, kind = name.split()
        assert text.startswith(f"can't write {tmp_path / (file if kind == 'file' else 'folder')}: "), text
        assert "File too large" in text or "the disk may be full" in text, text
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_the_last_checkpoint_survives_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
task: tokenizer
run: {tmp_path / "run"}
steps: 4
device: cpu
resume: auto
data: {{corpus: {corpus}, validation_corpus: {corpus}, validation_split: train, window: 16, batch: 4}}
model: {{width: 16, code_dim: 8, down_t: 1, depth: 1, levels: [5, 5, 5, 5], groups: 2}}
validate_every: 2
validation_batches: 1
checkpoint_every: 2
log_every: 1
"""
    )
    done = program(
        """
        import resource, sys
        from pathlib import Path
        from vadis.errors import FileError
        from vadis.training import train
        train(sys.argv[1])
        run = Path(sys.argv[2])
        before = {p.name: p.read_bytes() for p in (run / "checkpoint").iterdir()}
        size = len(before["optimizer.pt"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        try:
            train(sys.argv[1], ["steps=8"])
        except FileError as error:
            print(error)
        assert before == {p.name: p.read_bytes() for p in (run / "checkpoint").iterdir()}
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        train(sys.argv[1], ["steps=8"])
        """,
        str(recipe),
        str(tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.startswith(f"can't write {tmp_path / 'run' / 'checkpoint'}: File too large. Free space")
    assert json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["step"] == 8
    assert names(tmp_path / "run") == ["checkpoint", "config.json", "log.jsonl", "model", "run.json"]


# ---- nothing is written over what is read


def test_outputs_that_are_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A verb whose output is its input, lies in it or holds it says so before any work, and the input stays to the byte."""
    from vadis.data.corpus import Caption, CorpusWriter

    rep = representation("ms272")
    with CorpusWriter(tmp_path / "corpus", rep.name, 30.0) as writer:
        for i in range(4):
            about = {"split": "train" if i else "val", "group": str(i), "source": "made", "licence": "CC0-1.0"}
            writer.add(f"walk-{i}", rep.encode(procedural_walk(90, turn=i / 4)), [Caption("a walk", 0, 3)], **about)
    procedural_walk(60).save(tmp_path / "takes" / "a.bvh")
    (tmp_path / "link.bvh").symlink_to(tmp_path / "takes" / "a.bvh")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    corpus, takes, take = tmp_path / "corpus", tmp_path / "takes", tmp_path / "takes" / "a.bvh"
    training = ("train", "mini-tokenizer", f"data.corpora={{{corpus}: 1}}", "data.validation_corpus=null", "steps=1")
    for words, message in (
        (("convert", take, take), "is what is read"),
        (("convert", take, tmp_path / "link.bvh"), "is what is read"),
        (("clean", take, "-o", take), "is what is read"),
        (("retarget", take, "-o", take), "is what is read"),
        (("reconstruct", take, "-o", take), "is what is read"),
        (("data", "build", takes, takes / "corpus"), "lies in"),
        (("data", "build", takes, tmp_path), "holds"),
        (("data", "augment", corpus, corpus), "is what is read"),
        (("data", "augment", corpus, corpus / "more"), "lies in"),
        (("data", "encode", corpus, corpus / "more", "--tokenizer", "vadis-mini"), "lies in"),
        (("data", "tokens", corpus, corpus, "--tokenizer", "vadis-mini"), "is what is read"),
        (("fit", "dsft", corpus, "-o", corpus), "holds other files"),
        (("evaluate", "--baseline", "real", "--data", corpus, "--evaluator", "none", "-o", corpus), "is what is read"),
        (("evaluate", "--baseline", "real", "--data", corpus, "--evaluator", "none", "-o", takes), "holds other files"),
        ((*training, f"run={corpus}"), "holds other files"),
    ):
        assert main([str(word) for word in words]) == 2, words
        assert message in capsys.readouterr().err, words
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
