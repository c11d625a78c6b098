"""Split weights on two processes of one machine: the same training as without, files that hold whole tensors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_language_training import motion_tokenizer, recipe, tokenizer_folder, tokens_folder  # noqa: F401 - fixtures
from test_training import corpus, encoded, generator_recipe  # noqa: F401 - fixtures
from torch import nn

import vadis
from vadis.errors import VadisError
from vadis.language.checkpoints import load_language_model
from vadis.training import train
from vadis.training.sharding import blocks

pytest.importorskip("peft")


def on_two_processes(recipe: Path, *overrides: str) -> None:  # noqa: F811
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "vadis",
        "train",
        str(recipe),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words, *overrides], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def values(run: Path) -> list[dict[str, float]]:
    skipped = ("seconds", "steps_per_second")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in skipped} for row in rows]


@pytest.mark.parametrize(
    "settings",
    [
        ("model.tuning=full", "ema=0.9", "accumulate=2"),
        ("model.tuning=lora", "model.lora.dropout=0", "model.checkpointing=true", "data.packing=true"),
    ],
)
def test_split_weights_train_as_whole_ones_do(recipe, tmp_path, settings):  # noqa: F811
    split = equal_runs(recipe, tmp_path, *settings)
    model, _, _ = load_language_model(split / "model")
    assert all(p.isfinite().all() for p in model.parameters())


def test_split_weights_of_a_motion_generator(generator_recipe, tmp_path):  # noqa: F811
    split = equal_runs(generator_recipe, tmp_path, "model.n_layer=3", "best=loss")
    for name in ("model", "best"):
        assert all(p.isfinite().all() for p in vadis.load(split / name).parameters())


def equal_runs(recipe: Path, folder: Path, *settings: str) -> Path:  # noqa: F811
    """Train with whole and with split weights, compare logs and files, and return the split run."""
    runs = [folder / "whole", folder / "split"]
    for run, shard in zip(runs, ("false", "true"), strict=True):
        on_two_processes(recipe, f"run={run}", f"shard={shard}", *settings)
    for a, b in zip(*map(values, runs), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    names = sorted(path.name for path in (runs[0] / "checkpoint").glob("*.safetensors"))
    assert "model.safetensors" in names
    for name in names:
        whole, split = (load_file(run / "checkpoint" / name) for run in runs)
        assert whole.keys() == split.keys() and len(whole) > 2
        for key, value in whole.items():
            assert value.shape == split[key].shape and torch.allclose(value, split[key], atol=2e-4), key
    return runs[1]


def test_a_split_run_goes_on_whole_and_the_other_way_round(recipe, tmp_path):  # noqa: F811
    """Dropout is off: two processes and one would draw it differently, not wrongly."""
    run, settings = tmp_path / "run", ("model.tuning=full", "ema=0.9", "model.lora.dropout=0")
    on_two_processes(recipe, f"run={run}", "shard=true", "stop_at=3", *settings)
    on_two_processes(recipe, f"run={run}", "shard=false", "stop_at=4", "resume=auto", *settings)
    on_two_processes(recipe, f"run={run}", "shard=true", "resume=auto", *settings)
    unbroken = tmp_path / "unbroken"
    on_two_processes(recipe, f"run={unbroken}", "shard=true", *settings)
    ours, theirs = (load_file(r / "checkpoint/model.safetensors") for r in (run, unbroken))
    assert all(torch.allclose(ours[k], theirs[k], atol=2e-4) for k in theirs)
    train(recipe, [f"run={run}", "shard=true", "resume=auto", "steps=6", *settings])  # one process: nothing to split
    assert json.loads((run / "checkpoint/state.json").read_text())["step"] == 6


def test_models_whose_loss_reaches_into_their_blocks_are_refused(recipe):  # noqa: F811
    from vadis.training.language_task import LanguageTask

    LanguageTask.can_shard = False
    try:
        with pytest.raises(VadisError, match="leave shard out"):
            train(recipe, ["shard=true"])
    finally:
        LanguageTask.can_shard = True


def test_blocks_are_the_members_of_the_outermost_lists():
    inner = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.ReLU()]))
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "trunk": nn.ModuleList([inner, nn.Linear(2, 3)])})
    assert blocks(model) == [inner, model["trunk"][1]]
