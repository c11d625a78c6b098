"""Evaluators: embeddings depend on the clip alone, bad input is refused, saving and training work, the bundled one tells clips apart."""

import io
import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis.data.corpus import Caption, CorpusWriter
from vadis.errors import FileError, MissingExtra, ModelError, ShapeError, VadisError
from vadis.evaluators import GuoConfig, GuoEvaluator, TMRConfig, TMREvaluator
from vadis.evaluators.guo_words import Vocabulary, read_vocabulary, split_words
from vadis.evaluators.losses import info_nce, margin_losses, near_duplicates
from vadis.evaluators.tmr import DistilBertConfig
from vadis.representations import representation
from vadis.training import train
from vadis.training.pairs import split_groups
from vadis.training.tasks import TASKS, load_recipe

BERT = DistilBertConfig(vocab_size=50, positions=12, width=16, ff=16, layers=1, heads=2)
TINY = {"width": 16, "layers": 1, "heads": 2, "ff": 16, "min_frames": 8, "max_frames": 120}
WORDS = ("sos", "eos", "unk", "a", "man", "walk", "left", "stairs")


def tmr(**options) -> TMREvaluator:
    torch.manual_seed(0)
    return TMREvaluator(TMRConfig(**{**TINY, "distilbert": BERT, **options})).eval()


def small(**options) -> TMREvaluator:
    """The shape of the bundled one: MiniLM, patches, unit vectors."""
    settings = {
        "text_encoder": "minilm",
        "decoder": False,
        "patch": 8,
        "embedding_dim": 6,
        "normalize": True,
        "summary": True,
    }
    return tmr(**{**settings, **options})


def guo(**options) -> GuoEvaluator:
    torch.manual_seed(0)
    sizes = {"movement_width": 8, "motion_width": 8, "text_width": 8, "embedding_dim": 6, "word_dim": 4}
    evaluator = GuoEvaluator(GuoConfig(**{**sizes, "vocabulary": WORDS, **options})).eval()
    evaluator.word_vectors.normal_()
    return evaluator


def clips(evaluator, *frames: int) -> list[torch.Tensor]:
    rep = evaluator.representation
    return [rep.encode(procedural_walk(n + 1, fps=rep.fps, turn=0.1 * i))[:n] for i, n in enumerate(frames)]


@pytest.mark.parametrize("make", [tmr, small, guo], ids=["tmr", "small", "guo"])
def test_an_embedding_depends_on_the_clip_alone(make):
    """Not on the company, the order, the batch size or the padding; arrays with lengths give what lists give."""
    evaluator = make()
    motions = clips(evaluator, 40, 24, 96, 57)
    together = evaluator.embed_motion(motions)
    assert together.shape == (4, evaluator.dim) and together.dtype == torch.float32
    alone = torch.cat([evaluator.embed_motion([clip]) for clip in motions])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(evaluator.embed_motion(motions[::-1], batch_size=3).flip(0), alone, atol=2e-5, rtol=1e-4)
    padded = torch.nn.utils.rnn.pad_sequence(motions, batch_first=True, padding_value=7.0)
    sizes = [len(clip) for clip in motions]
    torch.testing.assert_close(evaluator.embed_motion(padded.numpy(), sizes), together, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("make", [tmr, small, guo], ids=["tmr", "small", "guo"])
def test_features_are_normalised_inside(make):
    evaluator, plain = make(), make()
    (clip,) = clips(evaluator, 40)
    mean, std = torch.randn(clip.shape[1]), torch.rand(clip.shape[1]) + 0.5
    evaluator.set_statistics(mean, std.numpy())
    expected = plain.embed_motion([(clip - mean) / std])
    torch.testing.assert_close(evaluator.embed_motion([clip]), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="above zero"):
        evaluator.set_statistics(mean, torch.zeros_like(std))
    with pytest.raises(ModelError, match=r"shape \(3,\)"):
        evaluator.set_statistics(mean[:3], std)


@pytest.mark.parametrize("make", [tmr, small, guo], ids=["tmr", "small", "guo"])
def test_a_saved_evaluator_is_the_same(make, tmp_path):
    evaluator = make()
    evaluator.save_pretrained(tmp_path / "e")
    again = vadis.load(tmp_path / "e", dtype="fp16")  # lower precision is for generators
    assert again.config == evaluator.config and again.mean.dtype == torch.float32
    motions = clips(evaluator, 30, 50)
    assert torch.equal(again.embed_motion(motions), evaluator.embed_motion(motions))
    from vadis.inspect.files import describe

    assert "evaluator" in describe(tmp_path / "e").summary


def test_bad_motion_is_refused_with_the_clip_named():
    evaluator = tmr()
    good = clips(evaluator, 20, 20)
    broken = good[1].clone()
    broken[3, 5] = float("nan")
    with pytest.raises(VadisError, match="clip 1 has values that are not finite"):
        evaluator.embed_motion([good[0], broken])
    with pytest.raises(ShapeError, match="263 values look like hml263"):
        evaluator.embed_motion([torch.zeros(20, 263)])
    with pytest.raises(VadisError, match="clip 0 has 5 frames; this evaluator was trained for 8 to 120 at 30 frames/s"):
        evaluator.embed_motion([good[0][:5]])
    with pytest.raises(VadisError, match="has 121 frames"):
        evaluator.embed_motion([torch.zeros(121, 272)])
    with pytest.raises(VadisError, match="at least one clip"):
        evaluator.embed_motion([])
    with pytest.raises(ShapeError, match="without lengths"):
        evaluator.embed_motion(torch.zeros(2, 20, 272))
    with pytest.raises(ShapeError, match="2 clips of at most 20 frames"):
        evaluator.embed_motion(torch.zeros(2, 20, 272), [20, 21])
    with pytest.raises(ShapeError, match="a list of clips has none"):
        evaluator.embed_motion(good, [20, 20])
    with pytest.raises(VadisError, match="prompt 2 is empty"):
        evaluator.embed_text(["a person walks", " "])


def test_sentences_of_the_small_evaluator():
    """MiniLM's features: one vector a sentence whatever the company, of length 1 as `normalize` asks."""
    evaluator = small()
    sentences = ["a person walks forward", "jump", "someone sits down slowly and stands up again after a while"]
    text = evaluator.embed_text(sentences)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    alone = torch.cat([evaluator.embed_text(sentence) for sentence in sentences])
    torch.testing.assert_close(text, alone, atol=1e-5, rtol=1e-4)
    assert not any(name.startswith("textencoder.text_model") for name in evaluator.state_dict())


def test_words_of_the_263_evaluator():
    evaluator = guo()
    text = evaluator.embed_text(["a/DET man/NOUN walk/VERB left/ADV", "man/NOUN sit/VERB"])
    assert text.shape == (2, 6) and torch.isfinite(text).all()
    rows, classes, length = Vocabulary(WORDS).read(["walk/NOUN", "stairs/NOUN", "man/NOUN", "zebra/NOUN"])
    assert rows[:6] == [0, 5, 7, 4, 2, 1] and classes[:6] == [14, 12, 1, 1, 14, 14]
    assert length == 6 and len(rows) == 22 and set(rows[6:]) == {2}
    assert Vocabulary(WORDS).read(["a/DET"] * 30)[2] == 22
    with pytest.raises(VadisError, match="tag every word or none"):
        split_words("a/DET man walks")
    with pytest.raises(ModelError, match="glove=FOLDER"):
        guo(vocabulary=()).embed_text(["a/DET"])


@pytest.mark.skipif(find_spec("spacy") is not None, reason="spaCy is installed")
def test_free_text_without_a_tagger_says_what_to_do():
    with pytest.raises(MissingExtra, match="pip install spacy"):
        guo().embed_text(["a man walks"])


def test_the_263_evaluator_sees_the_padding_and_whole_movements_only():
    """The published loader pads with zeros in normalised units up to 196 frames, and cuts to a multiple of four."""
    evaluator = guo()
    evaluator.set_statistics(torch.full((263,), 0.5), torch.ones(263))
    (clip,) = clips(evaluator, 50)
    padded, lengths = evaluator.pad([clip])
    assert padded.shape == (1, 196, 263) and lengths.tolist() == [48]
    assert padded[0, 48:].abs().max() == 0 and torch.allclose(padded[0, :48], clip[:48] - 0.5)
    assert torch.equal(evaluator.embed_motion([clip]), evaluator.embed_motion([clip[:48]]))


# ---- losses


def test_identical_sentences_are_filtered_whatever_their_rounding():
    similarity = torch.tensor([[1.0, 1.0000001, 0.9], [1.0000001, 1.0, 0.2], [0.9, 0.2, 1.0]])
    ours = near_duplicates(similarity)
    assert ours.tolist() == [[False, True, True], [True, False, False], [True, False, False]]
    assert not near_duplicates(similarity, upper=1.0)[0, 1]  # the published rule lets it through


def test_contrastive_loss_knows_its_pairs():
    text = torch.eye(4)
    assert info_nce(text, text) < 0.01 < info_nce(text.flip(0), text)
    alike = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert info_nce(alike, alike).item() == pytest.approx(np.log(2), abs=1e-5)
    hidden = ~torch.eye(2, dtype=torch.bool)
    assert info_nce(alike, alike, hidden=hidden).item() == pytest.approx(0, abs=1e-6)


def test_margin_loss_is_of_squared_distances():
    text = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    near, far = margin_losses(text, text + 1e-6, shift=1, margin=10.0)
    assert near.item() < 1e-9 and far.item() == pytest.approx(25.0, rel=1e-3)


# ---- importers


def published_272(evaluator: TMREvaluator) -> dict[str, torch.Tensor]:
    from vadis.evaluators.layers import sinusoids

    state = {n: t for n, t in evaluator.state_dict().items() if n not in ("mean", "std")}
    table = sinusoids(5000, evaluator.config.width)[:, None]
    parts = ("motionencoder", "textencoder", "motiondecoder")
    return state | {f"{part}.sequence_pos_encoding.pe": table for part in parts}


def test_a_lightning_file_is_read_without_running_it(tmp_path):
    """Optimizer state, callbacks and settings lie in the file beside the weights; it is read by a restricted reader."""
    evaluator = tmr()
    payload = {"epoch": 99, "state_dict": published_272(evaluator), "callbacks": {"ModelCheckpoint": {"best": None}},
               "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4}]}]}  # fmt: skip
    torch.save(payload, tmp_path / "epoch=99.ckpt")
    np.save(tmp_path / "mean.npy", np.zeros(272))
    np.save(tmp_path / "std.npy", np.full(272, 2.0))
    options = {"heads": 2, "text_heads": 2, "min_frames": 8, "max_frames": 120}
    again = vadis.import_checkpoint("ms272-evaluator", tmp_path / "epoch=99.ckpt", **options)
    assert float(again.std[0]) == 2  # found beside the file
    again.set_statistics(torch.zeros(272), torch.ones(272))
    motions = clips(evaluator, 30)
    assert again.config == evaluator.config
    assert torch.equal(again.embed_motion(motions), evaluator.embed_motion(motions))


def test_an_evaluator_with_other_tensors_is_refused():
    state = published_272(tmr())
    lacking = {n: t for n, t in state.items() if n != "textencoder.mu_token"}
    with pytest.raises(ModelError, match="missing textencoder.mu_token"):
        vadis.import_checkpoint("ms272-evaluator", lacking, heads=2, text_heads=2)
    with pytest.raises(ModelError, match="unexpected motionencoder.extra"):
        vadis.import_checkpoint(
            "ms272-evaluator", state | {"motionencoder.extra": torch.zeros(1)}, heads=2, text_heads=2
        )
    bent = state | {"motionencoder.sequence_pos_encoding.pe": torch.ones(5000, 1, 16)}
    with pytest.raises(ModelError, match="not the sinusoidal table"):
        vadis.import_checkpoint("ms272-evaluator", bent, heads=2, text_heads=2)
    with pytest.raises(ModelError, match="not a MotionStreamer evaluator"):
        vadis.import_checkpoint("ms272-evaluator", {"net.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="both mean and std"):
        vadis.import_checkpoint("ms272-evaluator", state, heads=2, text_heads=2, mean=np.zeros(272))


def glove_folder(folder: Path) -> Path:
    folder.mkdir()
    np.save(folder / "our_vab_data.npy", np.random.default_rng(0).normal(size=(len(WORDS), 4)))
    (folder / "our_vab_words.pkl").write_bytes(pickle.dumps(list(WORDS[::-1])))
    (folder / "our_vab_idx.pkl").write_bytes(pickle.dumps({word: i for i, word in enumerate(WORDS)}))
    return folder


def test_the_263_evaluator_comes_in_with_its_words(tmp_path):
    evaluator = guo()
    parts = {
        p: dict(getattr(evaluator, p).state_dict()) for p in ("movement_encoder", "text_encoder", "motion_encoder")
    }
    torch.save(
        {**parts, "opt_text_encoder": {"state": {}, "param_groups": []}, "epoch": 3, "iter": 4}, tmp_path / "finest.tar"
    )
    again = vadis.import_checkpoint(
        "guo-evaluator",
        tmp_path / "finest.tar",
        glove=glove_folder(tmp_path / "glove"),
        mean=np.zeros(263),
        std=np.ones(263),
    )
    assert again.config.vocabulary == WORDS and again.config.feature_dim == 263
    motions = clips(evaluator, 40)
    assert torch.equal(again.embed_motion(motions), evaluator.embed_motion(motions))
    assert again.embed_text(["a/DET man/NOUN"]).shape == (1, 6)
    with pytest.raises(ModelError, match="no movement_encoder"):
        vadis.import_checkpoint("guo-evaluator", {"text_encoder": parts["text_encoder"]})


def test_word_pickles_that_want_to_run_code_are_refused(tmp_path):
    folder = glove_folder(tmp_path / "glove")

    class Evil:
        def __reduce__(self):
            return (io.StringIO, ("run",))

    (folder / "our_vab_words.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileError, match=r"it asks to import _?io"):
        read_vocabulary(folder)


# ---- training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "corpus"
    rep = representation("ms272")
    with CorpusWriter(path) as writer:
        for i in range(12):
            features = rep.encode(procedural_walk(60 + 2 * i, turn=0.3 * (i % 5) - 0.6))
            side = ("right", "slightly right", "straight", "slightly left", "left")[i % 5]
            captions = [
                Caption(f"a person walks {side}", 0, 2.0, "whole"),
                Caption(f"take {i} steps", 0, 1.5, "detailed"),
            ]
            split = "val" if i % 4 == 3 else "train"
            writer.add(f"w{i}", features, captions, split=split, group=f"g{i // 2}", source="test", licence="CC0-1.0")
    return path


@pytest.fixture
def recipe(corpus, tmp_path) -> Path:
    page = {
        "task": "evaluator", "run": str(tmp_path / "run"), "steps": 30, "device": "cpu",
        "data": {"corpus": str(corpus), "batch": 6, "split_seed": 3, "held_out_every": 3, "unit": 8, "mirror": 0.5,
                 "mirrored_negatives": 3, "max_frames": 64},
        "model": {**TINY, "text_encoder": "minilm", "decoder": False, "patch": 8, "embedding_dim": 8, "normalize": True,
                  "dropout": 0.0},
        "loss": {"reconstruction": 0, "latent": 0, "contrastive": 1.0},
        "optimizer": {"lr": 3e-3}, "validate_every": 30, "validation_batches": 2, "checkpoint_every": 30, "log_every": 10,
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(page))  # JSON is YAML
    return path


def test_an_evaluator_learns_its_pairs(recipe):
    task = TASKS["evaluator"](load_recipe(recipe))
    torch.manual_seed(0)
    batch = {"features": torch.randn(5, 24, 272), "lengths": torch.tensor([24, 16, 24, 16, 8]),
             "text": torch.randn(5, 4, 384), "text_lengths": torch.tensor([4, 3, 2, 4, 4]),
             "hidden": torch.zeros(5, 5, dtype=torch.bool)}  # fmt: skip
    optimizer = torch.optim.Adam(task.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        losses.append(task.loss(batch)["contrastive"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_a_run_leaves_an_evaluator_and_its_figures(recipe, tmp_path):
    model = vadis.load(train(recipe, ["steps=4", "validate_every=2", "best=miss"]))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    check = next(row for row in log if "validation/r1" in row)
    assert 0 <= check["validation/r1"] <= check["validation/r3"] <= 1 and check["validation/items"] >= 2
    assert model.embed_text(["a person walks left"]).shape == (1, 8)
    assert not torch.equal(model.std, torch.ones(272))  # the corpus's
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_held_out_groups_are_the_seeds_own(recipe):
    """No group on both sides, another seed another split, and the file's own splits without a seed."""
    groups = [f"g{i}" for i in range(40)]
    first, second = split_groups(groups, 1, 5), split_groups(groups, 2, 5)
    assert first.count("val") == second.count("val") == 8 and first != second
    assert split_groups(groups[::-1], 1, 5)[::-1] == first
    task = TASKS["evaluator"](load_recipe(recipe))
    sides = [
        {item.corpus.column("group")[item.row] for item in part} for part in (task.pairs.train, task.pairs.held_out)
    ]
    assert not sides[0] & sides[1] and len(sides[1]) == 2
    own = TASKS["evaluator"](load_recipe(recipe, ["data.split_seed=null"]))
    assert {item.corpus.ids[item.row] for item in own.pairs.held_out} == {"w3", "w7", "w11"}


def test_mirrored_sentences_count_as_wrong_and_the_same_motion_does_not(recipe):
    task = TASKS["evaluator"](load_recipe(recipe))
    sentences = task.sentences
    left, right, plain = (sentences.number[f"a person walks {s}"] for s in ("left", "right", "straight"))
    assert sentences.mirrored[left] == right and sentences.mirrored[plain] == plain
    numbers, stretch = torch.tensor([left, right, plain, plain, left]), torch.tensor([0, 0, 1, 2, 1])
    hidden = sentences.hidden(numbers, stretch, 0.85, None)
    assert not hidden[0, 1] and not hidden[1, 0]  # nearly the same words, and the hardest negatives
    assert hidden[2, 3] and hidden[0, 4] and hidden[2, 4]  # the same sentence; the same motion
    assert not hidden.diagonal().any()
    batch = task.batch(0, torch.Generator().manual_seed(0))
    assert len(batch["lengths"]) == len(batch["text_lengths"]) == len(batch["hidden"]) > 6
    assert (batch["lengths"] % 8 == 0).all() and batch["features"].shape[1] <= 64


def test_reconstruction_reaches_every_trained_parameter(recipe):
    settings = ["model.decoder=true", "model.embedding_dim=null", "loss.reconstruction=1", "loss.latent=1"]
    task = TASKS["evaluator"](load_recipe(recipe, settings))
    terms = task.loss(task.batch(0, torch.Generator().manual_seed(0)))
    assert set(terms) == {"total", "contrastive", "kl", "latent", "reconstruction"}
    terms["total"].backward()
    idle = [n for n, p in task.model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle
    with pytest.raises(ModelError, match=r"model\.decoder: true"):
        TASKS["evaluator"](load_recipe(recipe, ["loss.reconstruction=1"]))
    with pytest.raises(ModelError, match=r"loss\.reconstruction above 0"):
        TASKS["evaluator"](load_recipe(recipe, ["model.decoder=true", "model.embedding_dim=null"]))


def test_the_two_stages_of_the_263_evaluator(tmp_path):
    rep = representation("hml263")
    with CorpusWriter(tmp_path / "corpus", "hml263", rep.fps) as writer:
        for i in range(6):
            features = rep.encode(procedural_walk(61 + 8 * i, fps=20, turn=0.2 * i - 0.5))
            captions = [Caption(f"a/DET man/NOUN walk/VERB {('left', 'stairs')[i % 2]}/NOUN", 0, 3)]
            split = "val" if i > 3 else "train"
            writer.add(f"w{i}", features, captions, split=split, group=f"g{i}", source="test", licence="CC0-1.0")
    sizes = {"movement_width": 8, "motion_width": 8, "text_width": 8, "embedding_dim": 6, "word_dim": 4}
    page = {"task": "guo-evaluator", "device": "cpu", "steps": 4, "ema": None, "model": sizes, "optimizer": {"lr": 1e-3},
            "data": {"corpus": str(tmp_path / "corpus"), "batch": 3, "max_frames": 199}, "best": "loss",
            "validate_every": 2, "validation_batches": 1, "log_every": 2}  # fmt: skip
    path = tmp_path / "guo.yaml"
    path.write_text(json.dumps(page))
    first = vadis.load(train(path, ["stage=movement", f"run={tmp_path / 'first'}"]))
    slices = rep.slices
    assert torch.allclose(first.std[slices["foot_contacts"]] * 25, _corpus_std(tmp_path)[slices["foot_contacts"]])
    with pytest.raises(ModelError, match="needs start="):
        train(path, [f"run={tmp_path / 'none'}"])
    glove = glove_folder(tmp_path / "glove")
    second = vadis.load(
        train(path, [f"run={tmp_path / 'second'}", f"start={tmp_path / 'first' / 'best'}", f"glove={glove}"])
    )
    start = vadis.load(tmp_path / "first" / "best").movement_encoder.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in second.movement_encoder.state_dict().items())
    assert second.embed_text(["a/DET man/NOUN"]).shape == (1, 6)


def _corpus_std(folder: Path) -> torch.Tensor:
    from vadis.data.corpus import Corpus

    return Corpus.open(folder / "corpus").std


# ---- the bundled one


def test_the_bundled_evaluator_knows_a_walk_and_alike_sentences():
    evaluator = vadis.load("vadis-mini-evaluator")
    sentences = [
        "a person walks forward",
        "someone walks ahead",
        "a person does a cartwheel",
        "a man lies on the floor",
    ]
    text = evaluator.embed_text(sentences)
    assert text[0] @ text[1] > 0.7 > text[0] @ text[2]
    (clip,) = clips(evaluator, 90)
    motion = evaluator.embed_motion([clip])[0]
    near = text @ motion
    assert near[0] > near[2] and near[0] > near[3]
    noise = evaluator.std * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    moved = [(evaluator.embed_motion([clip + scale * noise])[0] - motion).norm() for scale in (0.1, 0.5, 2.0)]
    assert moved[0] < moved[1] < moved[2]
