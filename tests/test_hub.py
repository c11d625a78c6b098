"""Saving, loading, importing: bit-equal results, strictness, and folders and files that mean harm."""

import json
import os
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vadis
from vadis import component_files
from vadis.checkpoint import read_state_dict
from vadis.component_files import save_bundle
from vadis.errors import FileError, ModelError
from vadis.generators import MotionMillion, MotionMillionConfig
from vadis.loading import load_bundle
from vadis.places import HubName
from vadis.tokenizers import FSQTokenizer, FSQTokenizerConfig


def tokenizer(**changes: object) -> FSQTokenizer:
    torch.manual_seed(0)
    fields = dict(width=16, code_dim=16, depth=2, levels=(8, 8, 8))
    model = FSQTokenizer(FSQTokenizerConfig(**(fields | changes))).eval()
    model.set_statistics(torch.linspace(-1, 1, 272), torch.linspace(0.5, 2, 272))
    return model


def generator(**changes: object) -> MotionMillion:
    torch.manual_seed(0)
    fields = dict(n_layer=2, n_head=2, n_embd=32, block_size=64, clip_dim=12, nb_code=512)
    return MotionMillion(MotionMillionConfig(**(fields | changes))).eval()


EXTENDED = dict(groups=2, plan_dim=3, plan_tokens=2, length_conditioning=True, null_text=True, tie_weights=True)


@pytest.mark.parametrize("changes", [{}, {"groups": 3, "patch_size": 2, "norm": "BN", "activation": "gelu"}])
def test_a_saved_tokenizer_gives_the_same_bits(tmp_path: Path, changes: dict[str, object]) -> None:
    model = tokenizer(**changes)
    model.save_pretrained(tmp_path / "tok")
    again = vadis.load(tmp_path / "tok", dtype="bf16")  # tokenizers stay float32
    assert isinstance(again, FSQTokenizer) and again.config == model.config and not again.training
    features = torch.randn(2, 20, 272)
    assert torch.equal(again.encode(features), model.encode(features))
    assert torch.equal(again.decode(model.encode(features)), model.decode(model.encode(features)))
    page = json.loads((tmp_path / "tok" / "config.json").read_text())
    assert (page["vadis"], page["kind"], page["type"], page["fps"]) == ("1", "tokenizer", "fsq", 30.0)
    assert sorted(p.name for p in (tmp_path / "tok").iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("changes", [{}, EXTENDED])
def test_a_saved_generator_gives_the_same_bits(tmp_path: Path, changes: dict[str, object]) -> None:
    model = generator(**changes)
    model.save_pretrained(tmp_path / "gen")
    again = MotionMillion.from_pretrained(tmp_path / "gen")
    text = torch.randn(2, 5, 12)
    one, two = (m.generate(text, num_tokens=9, temperature=1.0, seed=3)[0] for m in (model, again))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    again.loss(
        dict(text=text, text_lengths=torch.tensor([5, 5]), tokens=torch.stack(one), lengths=torch.tensor([9, 9]))
    )["total"].backward()
    half = vadis.load(tmp_path / "gen", dtype="bf16")
    assert {t.dtype for t in half.state_dict().values()} == {torch.bfloat16}
    with pytest.raises(ModelError, match="holds a model of the type .motionmillion., not a FSQTokenizer"):
        FSQTokenizer.from_pretrained(tmp_path / "gen")


def test_large_models_are_split_and_old_files_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = generator()
    model.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(component_files, "SHARD_BYTES", 60_000)
    model.save_pretrained(tmp_path)
    files = sorted(p.name for p in tmp_path.glob("model*"))
    assert len(files) > 2 and "model.safetensors" not in files and (tmp_path / "notes.txt").read_text() == "mine"
    again = vadis.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    monkeypatch.undo()
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("model*")] == ["model.safetensors"]


def _edit(folder: Path, **changes: Any) -> None:
    page = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(page))


def test_loading_is_strict(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tokenizer()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    first = dict(weights)
    missing = [first.pop(name) for name in list(first) if name.startswith("decoder")]
    first["surplus.weight"] = torch.zeros(3)
    save_file(first, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=rf"missing decoder\.model.* and {len(missing) - 10} more; unexpected surplus\.weight"
    ):
        vadis.load(tmp_path)
    assert isinstance(vadis.load(tmp_path, strict=False), FSQTokenizer)
    save_file(weights, tmp_path / "model.safetensors")
    _edit(tmp_path, width=32)
    with pytest.raises(
        ModelError, match=r"wrong shapes: encoder\.model\.1\.weight \(16, 272, 3\) instead of \(32, 272, 3\)"
    ):
        vadis.load(tmp_path)


def test_configs_are_checked(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    _edit(tmp_path, colour="red")
    with pytest.warns(UserWarning, match="ignoring unknown fields colour"):
        vadis.load(tmp_path)
    for changes, message in (
        ({"vadis": "9"}, "has format '9'"),
        ({"vadis": "1", "width": -4}, "width: .*greater than or equal to 1"),
        ({"width": 16, "patch_size": 3}, "patch_size 3 must be a power of two"),
        ({"patch_size": 1, "type": "unheard"}, "has the type 'unheard'"),
    ):
        _edit(tmp_path, **changes)
        with pytest.raises(ModelError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vadis.load(tmp_path)
    (tmp_path / "config.json").write_text("{nonsense")
    with pytest.raises(FileError, match="as JSON"):
        vadis.load(tmp_path)


def test_what_is_not_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="no config.json and no model_index.json"):
        vadis.load(tmp_path)
    with pytest.raises(ModelError, match="not a folder, a bundled model"):
        vadis.load("nothing-like-this")
    with pytest.raises(ModelError, match="can't get nobody/nothing-at-all from the Hub"):
        vadis.load("nobody/nothing-at-all", cache_dir=tmp_path / "cache")
    (tmp_path / "fsq.pth").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        vadis.load(tmp_path / "fsq.pth")
    tokenizer().save_pretrained(tmp_path / "tok")
    (tmp_path / "tok" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights are missing: there is no model\.safetensors"):
        vadis.load(tmp_path / "tok")
    (tmp_path / "tok" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(FileError, match="not a whole safetensors file"):
        vadis.load(tmp_path / "tok")
    generator().save_pretrained(tmp_path / "gen")
    with pytest.raises(ModelError, match="unknown dtype 'int3'"):
        vadis.load(tmp_path / "gen", dtype="int3")
    with pytest.raises(ModelError, match="unknown device 'gpu7'"):
        vadis.load(tmp_path / "gen", device="gpu7")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b", "C:\\x", "..\\x"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    tokenizer().save_pretrained(tmp_path / "tok")
    (tmp_path / "tok" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"mean": name}}))
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        vadis.load(tmp_path / "tok")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model_index.json").write_text(json.dumps({"_class_name": "X", name: ["vadis", "FSQTokenizer"]}))
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        load_bundle(bundle)


def test_bundles_keep_their_parts(tmp_path: Path) -> None:
    parts = {
        "tokenizer": tokenizer(),
        "generator": generator(),
        "text_encoder": {"hub": "google/flan-t5-xl"},
        "critic": None,
    }
    save_bundle(tmp_path / "b", "TextToMotionPipeline", parts, {"max_tokens": 9}, text_encoder_name="flan-t5-xl")
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    assert index["tokenizer"] == ["vadis", "FSQTokenizer"] and index["_text_encoder_name"] == "flan-t5-xl"
    mine = object()
    again = load_bundle(tmp_path / "b", dtype="bf16", text_encoder=mine)
    assert again["text_encoder"] is mine and again["critic"] is None
    assert again["generator"].lm_head.weight.dtype == torch.bfloat16 and again["tokenizer"].mean.dtype == torch.float32
    with pytest.raises(FileError, match="holds other files"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("years of work")
        save_bundle(tmp_path / "other", "TextToMotionPipeline", parts)
    assert (tmp_path / "other" / "thesis.tex").is_file()


# ---- published files


def published(model: FSQTokenizer) -> dict[str, Tensor]:
    return {f"vqvae.{n}": t.clone() for n, t in model.state_dict().items() if n not in ("mean", "std")}


def test_a_published_file_with_statistics_beside_it(tmp_path: Path) -> None:
    model = tokenizer()
    state = {f"module.{name}": value for name, value in published(model).items()}
    torch.save({"net": state, "nb_iter": 7}, tmp_path / "fsq.zip")
    with pytest.warns(UserWarning, match="holds no mean and std"):
        vadis.import_checkpoint("motionmillion-fsq", tmp_path / "fsq.zip", levels=(8, 8, 8))
    for name in ("mean", "std"):
        np.save(tmp_path / f"{name}.npy", getattr(model, name).numpy())
    again = vadis.import_checkpoint("motionmillion-fsq", tmp_path / "fsq.zip", nb_code=512)
    features = torch.randn(20, 272)
    assert again.config == model.config and torch.equal(again.encode(features), model.encode(features))
    with pytest.raises(ModelError, match=r"3 channels are ambiguous: give levels=\[8, 6, 5\] or \[8, 8, 8\]"):
        vadis.import_checkpoint("motionmillion-fsq", tmp_path / "fsq.zip")


def test_importing_is_strict() -> None:
    state = published(tokenizer())
    for name, message in (("vqvae.quantizer.project_out.bias", "missing quantizer.project_out.bias"),):
        with pytest.raises(ModelError, match=message):
            vadis.import_checkpoint("motionmillion-fsq", {n: t for n, t in state.items() if n != name}, nb_code=512)
    with pytest.raises(ModelError, match="unexpected names"):
        vadis.import_checkpoint("motionmillion-fsq", state | {"other": torch.zeros(2)}, nb_code=512)
    with pytest.raises(ModelError, match="unexpected decoder.model.9.bias"):
        vadis.import_checkpoint(
            "motionmillion-fsq", state | {"vqvae.decoder.model.9.bias": torch.zeros(2)}, nb_code=512
        )
    with pytest.raises(ModelError, match="give n_head="):
        vadis.import_checkpoint("motionmillion-ar", generator().state_dict())
    with pytest.raises(ModelError, match="not a MotionMillion AR checkpoint"):
        vadis.import_checkpoint("motionmillion-ar", state)
    with pytest.raises(ModelError, match="unknown checkpoint kind 'vq'"):
        vadis.import_checkpoint("vq", state)
    with pytest.raises(ModelError, match="options: .*colour"):
        vadis.import_checkpoint("motionmillion-ar", generator().state_dict(), n_head=2, colour="red")


def test_optimizer_leftovers_are_read_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("deepspeed.runtime.zero")

    class Loss:
        pass

    Loss.__module__, Loss.__qualname__ = "deepspeed.runtime.zero", "Loss"
    module.Loss = Loss
    model = generator()
    with monkeypatch.context() as patch:
        for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero"):
            patch.setitem(sys.modules, name, module)
        leftover = Loss()
        leftover.scale = [1, {"a": torch.ones(2)}]
        state = {f"module.{n}": t for n, t in model.state_dict().items()}
        for zipped in (True, False):
            path = tmp_path / f"ar_{zipped}.pth"
            torch.save({"trans": state, "optimizer": leftover}, path, _use_new_zipfile_serialization=zipped)
    assert "deepspeed" not in sys.modules
    for path in sorted(tmp_path.glob("ar_*.pth")):
        again = vadis.import_checkpoint("motionmillion-ar", path, n_head=2, block_size=64)
        assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


class Attack:
    """Would run a command if unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "getattr"])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "was-here", tmp_path / "model.pth"
    payload = {"net": {"a": torch.zeros(2)}, "extra": Attack(f"touch {mark}")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload | {"net": {}}))
    elif form == "getattr":  # reaching a function through builtins
        path.write_bytes(b"cbuiltins\ngetattr\n(cbuiltins\nopen\nS'write'\ntR.")
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises((ModelError, FileError), match="refused|can't be read"):
        read_state_dict(path)
    assert not mark.exists()
    if form in ("zip", "legacy"):
        with pytest.raises(ModelError, match=r"it asks to import (posix|nt)\.system"):
            read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", bytes(range(7, 255, 4))])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises((FileError, ModelError), match=rf"{name}"):
            read_state_dict(tmp_path / name)
    with pytest.raises(FileError, match="no checkpoint at"):
        read_state_dict(tmp_path / "absent.pth")


def test_a_motius_folder_becomes_a_bundle(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, small, large = (
        tmp_path / "motius",
        tokenizer(),
        generator(n_head=8, n_layer=8, n_embd=512, block_size=301, init_std=0.02),
    )
    source.mkdir()
    save_file(published(small), source / "fsq.safetensors")
    save_file(large.state_dict(), source / "ar.safetensors")
    np.save(source / "mean.npy", small.mean.numpy())
    np.save(source / "std.npy", small.std.numpy())
    vqvae = {"nb_code": 512, "activation": "relu", "norm": "LN", "dilation_growth_rate": 3, "patch_size": 1, "input_dim": 272,
             "patch_method": "haar", "quantizer": "FSQ"}  # fmt: skip
    page = {"model_type": "motionmillion", "text_model_name": "google/flan-t5-xl", "text_encoder": {"source": "google/flan-t5-xl"},
            "config": {"vqvae": vqvae, "ar": {"config_name": "44M", "block_size": 301, "clip_dim": 12}}}  # fmt: skip
    (source / "mm_config.json").write_text(json.dumps(page))
    (source / "model_index.json").write_text(json.dumps({"_class_name": "MotionMillionPipeline"}))
    with pytest.raises(ModelError, match="vadis import motius-gotozero"):
        vadis.load(source)
    imported = vadis.import_checkpoint("motius-gotozero", source)
    imported.save_pretrained(tmp_path / "bundle")
    parts = load_bundle(tmp_path / "bundle")
    assert parts["text_encoder"] == {"hub": "google/flan-t5-xl"} and parts["generator"].config.n_head == 8
    features = torch.randn(20, 272)
    assert torch.equal(parts["tokenizer"].encode(features), small.encode(features))
    text = torch.randn(1, 4, 12)
    assert torch.equal(parts["generator"].generate(text, max_tokens=6)[0][0], large.generate(text, max_tokens=6)[0][0])
    pipe = vadis.load(tmp_path / "bundle")
    assert (pipe.config.text_encoder, pipe._text_source, pipe.config.seconds) == (
        "flan-t5-xl",
        HubName("google/flan-t5-xl"),
        None,
    )

    class Numbers:  # any object with `encode` will do as text encoder
        def encode(self, texts):
            return torch.ones(len(texts), 3, 12), torch.full((len(texts),), 3)

    out = vadis.load(tmp_path / "bundle", text_encoder=Numbers())("a person walks")
    assert out.features.shape == (2 * len(out.tokens), 272) and out.stopped_by in ("end", "cap")
    (source / "ar.safetensors").unlink()
    with pytest.raises(ModelError, match=r"there is no ar\.safetensors"):
        vadis.import_checkpoint("motius-gotozero", source)


@pytest.mark.parametrize("name", ["vadis-mini", "vadis-mini-stream"])
def test_planners_stay_beside_their_text_encoder(name):
    """The encoder runs on the CPU whatever the device of the networks; "meta" stands for a GPU here."""
    pipe = vadis.load(name, device="meta")
    devices = [next(part.parameters()).device.type for part in (pipe.planner, pipe.generator, pipe.tokenizer)]
    assert devices == ["cpu", "meta", "meta"]
