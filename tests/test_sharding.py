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
from torch import nn

from vadis.errors import VadisError
from vadis.generators.motion_language_files import load_language_model
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
    runs = {}
    for name, shard in (("whole", "false"), ("split", "true")):
        runs[name] = tmp_path / name
        on_two_processes(recipe, f"run={runs[name]}", f"shard={shard}", *settings)
    for a, b in zip(values(runs["whole"]), values(runs["split"]), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    files = ["checkpoint/model.safetensors", *(["checkpoint/ema.safetensors"] if "ema=0.9" in settings else [])]
    for name in files:
        whole, split = (load_file(run / name) for run in runs.values())
        assert whole.keys() == split.keys() and len(whole) > 2
        for key, value in whole.items():
            assert value.shape == split[key].shape and torch.allclose(value, split[key], atol=2e-4), key
    model, _, _ = load_language_model(runs["split"] / "model")
    assert all(p.isfinite().all() for p in model.parameters())


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
