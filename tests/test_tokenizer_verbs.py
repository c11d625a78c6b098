"""`vadis tokenize`, `detokenize`, `reconstruct`, `benchmark tokenizers`, and training of every family by `model.type`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk
from test_tokenizer_interface import FAMILIES, FIELDS, tiny

import vadis
from vadis.cli import main
from vadis.component import MotionTokenizer
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.errors import ModelError, VadisError
from vadis.evaluation.compare_tokenizers import held_out_clips, measure
from vadis.io.tokens import TokenFile
from vadis.representations import representation
from vadis.tokenizers import DSFTTokenizer
from vadis.training import train


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "corpus"
    rep = representation("ms272")
    with CorpusWriter(path) as writer:
        for i in range(5):
            features = rep.encode(procedural_walk(75 + 5 * i, turn=0.2 * i - 0.4))
            split = "val" if i > 2 else "train"
            writer.add(
                f"w{i}", features, [Caption("a person walks", 0, 1)], split=split, group=f"g{i}", source="test",
                licence="CC0-1.0",
            )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for family in ("fsq", "vq", "causal_tae"):
        tiny(family).save_pretrained(folder / family)
    return {family: folder / family for family in ("fsq", "vq", "causal_tae")}


@pytest.mark.parametrize("family", ["fsq", "causal_tae"])
def test_tokens_of_a_file_come_back_as_motion(family, models, tmp_path, capsys) -> None:
    source, tokens, out = tmp_path / "walk.bvh", tmp_path / "walk.npz", tmp_path / "again.npz"
    procedural_walk(61, fps=60).save(source)
    assert run("tokenize", source, "-o", tokens, "--model", models[family]) == 0
    stored = TokenFile.load(tokens)
    tokenizer = tiny(family)
    assert stored.frames == 28 and len(stored.tokens) == 28 // tokenizer.frames_per_token
    assert stored.tokens.dtype == (np.float32 if tokenizer.continuous else np.uint16)
    assert run("detokenize", tokens, "-o", out) == 2  # a file can't name a folder
    assert run("detokenize", tokens, "-o", out, "--model", models[family]) == 0
    motion = vadis.load_motion(out)
    expected = representation("ms272").decode(
        tokenizer.decode(torch.as_tensor(stored.tokens.astype(np.float32 if tokenizer.continuous else np.int64))),
        fps=30,
    )
    assert motion.num_frames == 28 and motion.fps == 30
    torch.testing.assert_close(motion.positions, expected.positions, atol=2e-3, rtol=0)


def test_tokens_of_other_weights_and_foreign_files_are_refused(models, tmp_path, capsys) -> None:
    source, tokens = tmp_path / "walk.bvh", tmp_path / "walk.npz"
    procedural_walk(40).save(source)
    assert run("tokenize", source, "-o", tokens, "--model", models["fsq"]) == 0
    assert run("detokenize", tokens, "-o", tmp_path / "x.bvh", "--model", models["vq"]) == 2
    assert "made by other weights" in capsys.readouterr().err
    tokens.write_bytes(tokens.read_bytes()[:200])
    assert run("detokenize", tokens, "-o", tmp_path / "x.bvh") == 2
    assert "is not an .npz file" in capsys.readouterr().err and not (tmp_path / "x.bvh").exists()


def test_a_dsft_model_is_reconstructed_but_fills_no_token_file(corpus, tmp_path, capsys) -> None:
    source = tmp_path / "walk.bvh"
    procedural_walk(60).save(source)
    clips = [clip.features for clip in Corpus.open(corpus)]
    DSFTTokenizer.fit(clips, "ms272", vocab=(4096, 4096)).save_pretrained(tmp_path / "dsft")
    assert run("tokenize", source, "-o", tmp_path / "x.npz", "--model", tmp_path / "dsft") == 2
    assert "don't fit a token file" in capsys.readouterr().err and not (tmp_path / "x.npz").exists()
    assert run("reconstruct", source, "-o", tmp_path / "made.bvh", "--model", tmp_path / "dsft", "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert page["family"] == "dsft" and page["rate"] == "measured" and 0 < page["local_mm"] < 200


def test_reconstruct_writes_both_and_says_the_loss(models, tmp_path, capsys) -> None:
    source = tmp_path / "walk.bvh"
    procedural_walk(60).save(source)
    capsys.readouterr()
    assert run("reconstruct", source, "-o", tmp_path / "made.bvh", "--model", models["fsq"], "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert page["family"] == "fsq" and page["local_mm"] > 1 and (tmp_path / "made.bvh").exists()
    assert run("reconstruct", source, "-o", tmp_path / "x.png", "--model", "vadis-mini-evaluator") == 2


def test_the_bench_measures_once_and_ranks_by_truth(corpus, models, tmp_path, capsys) -> None:
    words = ["benchmark", "tokenizers", "--data", corpus, "--models", *(f"{n}={p}" for n, p in models.items())]
    assert run(*words, "-o", tmp_path / "bench") == 0
    table = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(models)
    assert all((tmp_path / "bench" / f).stat().st_size > 5000 for f in ("rate_distortion.png", "errors.png"))
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "bench").glob("*.json")}
    assert run(*words, "-o", tmp_path / "bench", "--json") == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    pages = json.loads(capsys.readouterr().out)
    assert [p["rate"] for p in pages] == ["nominal", "nominal", "KL rate"]
    assert pages[0]["bits_per_second"] == pytest.approx(2 * np.log2(25) * 7.5)


class _Spoiler(MotionTokenizer):
    """A tokenizer without loss but for what `spoil` does; its clips have different lengths."""

    representation, fps, frames_per_token, tokens_per_step, vocab_size = "ms272", 30.0, 1, 1, 2
    bits_per_second = 1.0
    config = type("Config", (), {"type": "spoiler"})

    def __init__(self, spoil) -> None:
        self.spoil, self.clips = spoil, {}

    def encode(self, features):
        self.clips[len(features)] = features
        return torch.zeros(len(features), dtype=torch.long)

    def decode(self, tokens):
        return self.spoil(self.clips[len(tokens)].clone())


def test_the_measures_see_what_was_done(corpus) -> None:
    """Each error grows with its own damage: nothing, a slower root, noise on the pose."""
    clips = [c[: 70 + i] for i, c in enumerate(held_out_clips(Corpus.open(corpus), seconds=10, shortest=1))]

    def slower(x):
        x[:, :2] *= 0.9
        return x

    def noisy(x):
        x[:, 140:] += 0.03 * torch.randn(x[:, 140:].shape, generator=torch.Generator().manual_seed(0))
        return x

    exact, slow, rough = (measure(_Spoiler(spoil), clips) for spoil in (lambda x: x, slower, noisy))
    assert exact.local_mm < 0.01 and exact.global_mm < 0.01 and exact.rotation_degrees < 0.1
    assert exact.jitter_ratio == pytest.approx(1, abs=1e-3) and exact.skate_ratio == pytest.approx(1, abs=1e-3)
    assert slow.local_mm < 0.01 and slow.drift_mm[1] == pytest.approx(0.1 * 1300, rel=0.05)
    assert slow.velocity_mm_s > 10 * max(exact.velocity_mm_s, 0.1) and slow.rotation_degrees < 0.1
    assert rough.rotation_degrees > 1 and rough.jitter_ratio > 1.5 and rough.local_mm > 1


def test_held_out_clips_say_when_there_are_none(corpus) -> None:
    clips = held_out_clips(Corpus.open(corpus), "val", seconds=1.5, shortest=1.4)
    assert [len(c) for c in clips] == [45, 45, 45, 45]
    with pytest.raises(VadisError, match="no clip of split 'val' has 5 s"):
        held_out_clips(Corpus.open(corpus), "val", shortest=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_by_its_type_and_resumes(family, corpus, tmp_path) -> None:
    recipe = tmp_path / "tiny.json"
    fields = {"type": family, "representation": "ms272", "feature_dim": 272, "fps": 30, "width": 16} | FIELDS[family]
    loss = {"kind": "sigma_vae"} if family == "causal_tae" else {}
    if family in ("vq", "rvq", "mg_vq", "lfq1d", "lfq2d"):
        loss = {"commitment_weight": 0.1} | ({"entropy_weight": 0.1} if family.startswith("lfq") else {})
    page = dict(task="tokenizer", run=str(tmp_path / "run"), steps=6, device="cpu", model=fields, loss=loss,
                data={"corpus": str(corpus), "window": 32, "batch": 4}, validate_every=6, validation_batches=1,
                checkpoint_every=3, log_every=3)  # fmt: skip
    recipe.write_text(json.dumps(page))
    train(recipe, ["stop_at=3"])
    train(recipe, ["resume=auto"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6 and np.isfinite(rows[-1].get("validation/loss", rows[-1].get("loss")))
    broken_off = {p.name: p.read_bytes() for p in (tmp_path / "run" / "checkpoint").glob("model.safetensors")}
    train(recipe, [f"run={tmp_path / 'whole'}"])
    for name, content in broken_off.items():
        assert (tmp_path / "whole" / "checkpoint" / name).read_bytes() == content


def test_a_decoder_alone_is_trained_from_saved_weights(corpus, models, tmp_path) -> None:
    recipe = tmp_path / "tiny.json"
    fields = {"type": "vq", "representation": "ms272", "feature_dim": 272, "fps": 30, "width": 16} | FIELDS["vq"]
    page = dict(task="tokenizer", run=str(tmp_path / "run"), steps=4, device="cpu", model=fields, ema=None,
                start=str(models["vq"]), freeze=["encoder", "quantizer"], validate_every=4, validation_batches=1,
                data={"corpus": str(corpus), "window": 32, "batch": 4})  # fmt: skip
    recipe.write_text(json.dumps(page))
    made, before = vadis.load(train(recipe)), tiny("vq")
    clip = Corpus.open(corpus)[0].features
    assert torch.equal(made.encode(clip), before.encode(clip)) and not torch.equal(
        made.reconstruct(clip), before.reconstruct(clip)
    )
    with pytest.raises(VadisError, match="no parameter of this model begins with 'nothing'"):
        train(recipe, ["freeze=[nothing]", f"run={tmp_path / 'b'}"])
    with pytest.raises(ModelError, match="holds another model than the recipe's"):
        train(recipe, ["model.width=24", f"run={tmp_path / 'c'}"])
