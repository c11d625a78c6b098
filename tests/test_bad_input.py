"""Bad input at the command line: one sentence on stderr, an exit code that isn't 0, and nothing left on disk."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vadis.cli import main
from vadis.motion import Motion
from vadis.skeleton import Skeleton


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail cleanly; the sentence it printed. `results/` below tmp_path must stay empty."""
    (tmp_path / "results").mkdir()

    def check(*words: object) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        err = capsys.readouterr().err
        sentences = [line for line in err.splitlines() if line.startswith("vadis: ")]
        assert code == 2, f"exit code {code}: {err}"
        assert len(sentences) == 1 and err.splitlines()[-1] == sentences[0], err
        assert "Traceback" not in err and len(sentences[0]) < 500, err
        assert not list((tmp_path / "results").rglob("*")), "something was left on disk"
        return sentences[0]

    return check


@pytest.fixture
def bvh(walk: Motion, tmp_path: Path) -> str:
    """A short good BVH file, as text to damage."""
    return walk.crop(0, 20).save(tmp_path / "good.bvh").read_text()


def feature_file(walk: Motion, path: Path) -> np.ndarray:
    from vadis.representations import representation

    array = representation("ms272").encode(walk).numpy()
    np.save(path, array)
    return array


DAMAGE: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "spaces": lambda text: b" \n\n\t",
    "header cut": lambda text: text[:200].encode(),
    "frames cut": lambda text: text[: int(len(text) * 0.9)].encode(),
    "NaN": lambda text: text[:-40].encode() + b" nan nan nan\n",
    "words": lambda text: text.replace("OFFSET", "OFFSET banana", 1).encode(),
    "a billion frames": lambda text: text.replace("Frames: 20", "Frames: 1000000000").encode(),
    "negative frames": lambda text: text.replace("Frames: 20", "Frames: -3").encode(),
    "frame time 0": lambda text: text.replace("Frame Time: ", "Frame Time: 0 #").encode(),
    "binary": lambda text: bytes(range(256)) * 40,
    "another format": lambda text: b'{"Frames": [[1, 2',
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("verb", ["convert", "retarget", "info", "view"])
def test_damaged_bvh(kind: str, verb: str, bvh: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    bad, result = tmp_path / "bad.bvh", tmp_path / "results" / "x.bvh"
    bad.write_bytes(DAMAGE[kind](bvh))
    words = {
        "convert": ("convert", bad, result),
        "retarget": ("retarget", bad, "-o", result),
        "info": ("info", bad),
        "view": ("view", bad, "-o", result.with_suffix(".png")),
    }[verb]
    assert "bad.bvh" in fails(*words)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :271],
        lambda x: x[:0],
        lambda x: x[0],
        lambda x: np.where(np.arange(272) == 50, np.nan, x),
        lambda x: x * 1e12,
        lambda x: (x - x.mean(0)) / (x.std(0) + 1e-6),
        lambda x: x.astype(object),
        lambda x: np.array(["motion"] * 5),
        lambda x: x.reshape(2, 3, 5, -1),
    ],
    ids=["271 columns", "no frames", "one dimension", "NaN", "huge", "normalised", "objects", "words", "4 dimensions"],
)
def test_damaged_features(change: Callable, walk: Motion, tmp_path: Path, fails: Callable[..., str]) -> None:
    good = feature_file(walk, tmp_path / "good.npy")
    np.save(tmp_path / "bad.npy", change(good), allow_pickle=True)
    message = fails("convert", tmp_path / "bad.npy", tmp_path / "results" / "x.bvh", "--from", "ms272")
    assert "bad.npy" in message


def test_a_truncated_array(walk: Motion, tmp_path: Path, fails: Callable[..., str]) -> None:
    feature_file(walk, tmp_path / "good.npy")
    data = (tmp_path / "good.npy").read_bytes()
    for share in (0.0, 0.001, 0.5, 0.99):
        (tmp_path / "bad.npy").write_bytes(data[: int(len(data) * share)])
        fails("convert", tmp_path / "bad.npy", tmp_path / "results" / "x.bvh")


def test_an_array_that_claims_to_be_huge(tmp_path: Path, fails: Callable[..., str]) -> None:
    with (tmp_path / "bad.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 272)})
    fails("convert", tmp_path / "bad.npy", tmp_path / "results" / "x.bvh")
    fails("info", tmp_path / "bad.npy")


def test_damaged_npz_and_json(tmp_path: Path, fails: Callable[..., str]) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "rate.npz", poses=np.zeros((5, 72)), trans=np.zeros((5, 3)), mocap_framerate=0)
    np.savez(tmp_path / "short.npz", poses=np.zeros((5, 72)), trans=np.zeros((4, 3)), mocap_framerate=30)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "rate.npz").read_bytes()[:300])
    (tmp_path / "cut.json").write_text('{"Loop": "wrap", "Frames": [[0.1, 0, 0')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "few.json").write_text(json.dumps({"Loop": "none", "Frames": [[0.1, 0.0, 0.9]]}))
    names = ("other.npz", "rate.npz", "short.npz", "cut.npz", "cut.json", "deep.json", "few.json")
    for name in names:
        assert name in fails("convert", tmp_path / name, tmp_path / "results" / "x.bvh")


def test_an_amc_without_its_skeleton(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "07_01.amc").write_text(":FULLY-SPECIFIED\n:DEGREES\n1\nroot 0 0 0 0 0 0\n")
    assert ".asf" in fails("convert", tmp_path / "07_01.amc", tmp_path / "results" / "x.bvh", "--fps", 120)


def test_unknown_skeleton(tmp_path: Path, fails: Callable[..., str]) -> None:
    snake = Skeleton(("a", "b", "c", "d"), (-1, 0, 1, 2), torch.tensor([[0.0, 0, 0]] + [[0, 0.3, 0.0]] * 3), "snake")
    Motion(snake, torch.zeros(9, 3), torch.eye(3).expand(9, 4, 3, 3).clone(), 30.0).save(tmp_path / "snake.bvh")
    message = fails("retarget", tmp_path / "snake.bvh", "-o", tmp_path / "results" / "x.bvh")
    assert "left_hip" in message
    fails("convert", tmp_path / "snake.bvh", tmp_path / "results" / "x.npy", "--to", "ms272")
    assert "no-such" in fails(
        "retarget", tmp_path / "snake.bvh", "-o", tmp_path / "results" / "x.bvh", "--joint", "pelvis", "no-such"
    )


def test_one_frame(walk: Motion, tmp_path: Path, fails: Callable[..., str]) -> None:
    """A single pose can be converted and shown, but has no velocities and is no clip for a corpus."""
    pose = walk.crop(0, 1).save(tmp_path / "pose.bvh")
    assert main(["convert", str(pose), str(tmp_path / "pose.npz")]) == 0
    assert main(["retarget", str(pose), "-o", str(tmp_path / "again.bvh")]) == 0
    assert main(["info", str(pose)]) == 0
    assert "frame" in fails("convert", pose, tmp_path / "results" / "x.npy", "--to", "hml263")


@pytest.mark.parametrize("name", ["../evil.bvh", "/evil.bvh", "a/../../evil.bvh", "C:\\evil.bvh", "..\\evil.bvh"])
def test_path_tricks_in_archives(name: str, bvh: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    pytest.importorskip("pyarrow", reason="needs vadis[train]")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, bvh)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(bvh)
        archive.addfile(member, io.BytesIO(bvh.encode()))
    for source in ("a.zip", "a.tar.gz"):
        assert "refused" in fails("data", "build", tmp_path / source, tmp_path / "results" / "corpus")
    assert not list(tmp_path.parent.glob("evil*")) and not list(tmp_path.glob("evil*"))


def test_damaged_archives_and_folders_without_motion(tmp_path: Path, fails: Callable[..., str]) -> None:
    pytest.importorskip("pyarrow", reason="needs vadis[train]")
    (tmp_path / "a.tar.xz").write_bytes(b"not an archive")
    (tmp_path / "empty").mkdir()
    corpus = tmp_path / "results" / "corpus"
    fails("data", "build", tmp_path / "a.tar.xz", corpus)
    fails("data", "build", tmp_path / "empty", corpus)
    fails("data", "build", tmp_path / "nothing", corpus)
    fails("data", "build", tmp_path / "empty")
    fails("data", "build", tmp_path / "a.tar.xz", corpus, "--group", "(")
    for verb in ("check", "stats"):
        fails("data", verb, tmp_path / "empty")


@pytest.mark.parametrize("seconds", ["0", "-3", "nan", "inf", "1e6", "1000000"])
def test_impossible_lengths(seconds: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    message = fails("generate", "a person walks", f"--seconds={seconds}", "-o", tmp_path / "results" / "x.bvh")
    assert "--seconds must be between" in message


@pytest.mark.parametrize("prompt", ["", "   \n", "walk " * 2000], ids=["empty", "blank", "10,000 characters"])
def test_impossible_prompts(prompt: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "prompt" in fails("generate", prompt, "-o", tmp_path / "results" / "x.bvh")


@pytest.mark.parametrize(
    "words",
    [("--count", 0), ("--samples", 0), ("--seed", -1), ("--top-p", 0), ("--top-p", 1.5), ("--top-k", 0),
     ("--temperature", -1), ("--guidance", "nan"), ("--fps", 0)],
)  # fmt: skip
def test_impossible_settings(words: tuple, tmp_path: Path, fails: Callable[..., str]) -> None:
    flag, value = words
    assert flag in fails("generate", "a person walks", f"{flag}={value}", "-o", tmp_path / "results" / "x.bvh")


def test_missing_weights(tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = tmp_path / "results" / "x.bvh"
    assert "no-such-model" in fails("generate", "a person walks", "--model", "no-such-model", "-o", result)
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("generate", "a person walks", "--model", empty, "-o", result)
    (empty / "config.json").write_text('{"vadis": "1", "kind": "tokenizer", "type": "fsq"}')
    fails("generate", "a person walks", "--model", empty, "-o", result)
    (empty / "config.json").write_text("{not json")
    fails("generate", "a person walks", "--model", empty, "-o", result)


def test_damaged_checkpoints(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "bad.pth").write_bytes(b"\x80\x04 not a checkpoint")
    torch.save({"net": {"something.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    for name in ("bad.pth", "other.pth", "nothing.pth"):
        fails("import", "motionmillion-fsq", tmp_path / name, tmp_path / "results" / "model")
    assert "motionmillion-fsq" in fails(
        "import", "no-such-kind", tmp_path / "other.pth", tmp_path / "results" / "model"
    )


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "results" / "ran",)

    torch.save({"net": Trap()}, tmp_path / "trap.pth")
    fails("import", "motionmillion-fsq", tmp_path / "trap.pth", tmp_path / "results" / "model")


def test_recipes(tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="needs vadis[train]")
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.yaml"
    for text in ("", "- a\n- b\n", "task: [", "task: juggling\nsteps: 3\n", "task: tokenizer\nstebs: 3\n"):
        recipe.write_text(text)
        fails("train", recipe, "--out", tmp_path / "results" / "run")
    recipe.write_text(f"task: tokenizer\nsteps: 3\ndata: {{corpus: {tmp_path / 'nothing'}}}\n")
    fails("train", recipe, "--out", tmp_path / "results" / "run")
    fails("train", recipe, "steps")
    fails("train", tmp_path / "nothing.yaml")


def test_outputs_that_cannot_be_written(walk: Motion, tmp_path: Path, fails: Callable[..., str]) -> None:
    good = walk.save(tmp_path / "walk.bvh")
    (tmp_path / "folder.bvh").mkdir()
    fails("convert", good, tmp_path / "folder.bvh")
    fails("convert", good, good / "below-a-file.bvh")
    fails("convert", good, tmp_path / "results" / "x.fbx")
    fails("convert", tmp_path, tmp_path / "results" / "x.bvh")
    assert "--fps" in fails("convert", good, tmp_path / "results" / "x.bvh", "--fps", 0)
