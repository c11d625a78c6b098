"""Language models that speak motion, in use: rows that don't depend on one another, lengths, streams, captions, given motion."""

import functools
from typing import Any

import pytest
import torch
from conftest import procedural_walk

from vadis.errors import ModelError, ShapeError, VadisError
from vadis.language.causal_lm import CachedRows, CausalModel
from vadis.language.layout import MotionLayout
from vadis.language.motion_lm import MotionLM
from vadis.loading import component_classes
from vadis.tokenizers.dsft import DSFTTokenizer

pytest.importorskip("transformers")
BACKBONES = ("tiny-gpt2", "tiny-llama", "tiny-qwen3_5", "tiny-qwen3_5-vision")
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vq": ("vq", dict(code_dim=8, codebook_size=24), {}),
    "rvq": ("rvq", dict(code_dim=8, codebook_size=12, num_quantizers=3), {}),
    "rvq delayed": ("rvq", dict(code_dim=8, codebook_size=12, num_quantizers=3), {"kind": "delayed"}),
    "lfq2d": ("lfq2d", dict(bits=4), {}),
    "lfq2d by part": ("lfq2d", dict(bits=4), {"order": "part", "shared": False}),
}
SENTENCES = [
    "a person walks forward and then turns left slowly",
    "someone jumps",
    "the figure sits down, stands up and waves",
]


@functools.cache
def motion_tokenizer(family: str) -> Any:
    if family == "dsft":
        from vadis.representations import representation

        clips = [
            representation("ms272").encode(procedural_walk(n, turn=t)) for n, t in ((60, 0.0), (64, 0.5), (72, -0.5))
        ]
        return DSFTTokenizer.fit(clips, "ms272", K=(1, 2), scale=(2.0, 2.0), vocab=(300, 300))
    kind, fields, _ = FAMILIES[family]
    cls = component_classes()[kind]
    torch.manual_seed(0)
    tokenizer = cls(cls.config_class(representation="ms272", feature_dim=272, fps=30.0, width=8, **fields))
    for name, buffer in tokenizer.named_buffers():
        if name.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape) * 0.2)
    return tokenizer.eval()


def make(
    backbone: str = "tiny-llama", family: str = "vq", mode: str = "extend", tokenizer: Any = None, **options: Any
) -> MotionLM:
    """A random model whose logits differ enough between ids to be telling."""
    from vadis.language.add_motion import extend, remap
    from vadis.language.backbones import load_backbone

    tokenizer = tokenizer or motion_tokenizer(family)
    model, text = load_backbone(backbone)
    layout = MotionLayout.of(tokenizer, **({} if family == "dsft" else FAMILIES[family][2]))
    if mode == "extend":
        vocabulary = extend(model, text, layout, tokenizer, **options)
    else:
        vocabulary = remap(model, text, layout, tokenizer, SENTENCES)
    with torch.no_grad():
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "layers." in name:
                weight.mul_(6)  # new layers hardly look at what came before
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(
            0.3 * torch.randn(head.weight.shape)
        )  # tied, it would repeat the last id for ever
    return MotionLM(model, text, vocabulary, tokenizer)


@functools.cache
def shared(backbone: str = "tiny-llama", family: str = "vq") -> MotionLM:
    return make(backbone, family)


def alike(one: Any, two: Any) -> bool:
    if hasattr(one, "base_ids"):
        return one.T == two.T and torch.equal(one.base_ids, two.base_ids) and torch.equal(one.phys_ids, two.phys_ids)
    return torch.equal(one, two)


class TestRows:
    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "guidance_scale": 1.5}])
    def test_a_row_does_not_depend_on_its_companions(self, backbone, sampling):
        lm, steps = shared(backbone), [9, 3, 14]
        seeds = {"seed": [5, 6, 7]} if sampling else {}
        together, stopped = lm.generate(SENTENCES, steps=steps, **sampling, **seeds)
        assert [len(t) for t in together] == steps and stopped == ["length"] * 3
        for i, sentence in enumerate(SENTENCES):
            one = {"seed": [5 + i]} if sampling else {}
            (alone,), _ = lm.generate(sentence, steps=steps[i], **sampling, **one)
            assert torch.equal(alone, together[i])
        assert len(set(torch.cat(together).tolist())) > 6

    @pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}])
    def test_rows_that_end_themselves(self, sampling):
        lm = shared()
        with torch.no_grad():
            head = lm.model.get_output_embeddings().weight
            kept = head.clone()
            head[lm.vocabulary.end] *= 2
        together, stopped = lm.generate(
            SENTENCES * 2, longest=40, seed=[1, 2, 3, 4, 5, 6] if sampling else None, **sampling
        )
        lengths = [len(t) for t in together]
        for i, sentence in enumerate(SENTENCES * 2):
            (alone,), _ = lm.generate(sentence, longest=40, seed=[i + 1] if sampling else None, **sampling)
            assert torch.equal(alone, together[i])
        with torch.no_grad():
            head.copy_(kept)
        assert set(stopped) == {"end"} and max(lengths) <= 40 and (not sampling or len(set(lengths)) > 2)

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_the_cache_changes_nothing(self, backbone):
        """Greedy tokens are those of the whole model run anew over all ids for every id."""
        lm = shared(backbone)
        prompt = lm.prompt(caption=SENTENCES[2])
        (tokens,), _ = lm.generate([prompt], steps=12)
        ids = torch.tensor([[*prompt, lm.vocabulary.begin]])
        for token in tokens.tolist():
            with torch.no_grad():
                logits = lm.model(input_ids=ids, use_cache=False).logits[0, -1]
            best = int(logits[lm.vocabulary.symbol_ids].argmax())
            assert best == token
            ids = torch.cat([ids, lm.vocabulary.symbol_ids[best].view(1, 1)], 1)

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_several_ids_at_once_are_as_one_after_another(self, backbone):
        model = CausalModel(shared(backbone).model)
        prompts = [[1, 2, 3, 4, 5], [9, 8]]
        block, single = CachedRows(model, prompts, [0, 1, 1]), CachedRows(model, prompts, [0, 1, 1])
        ids = torch.tensor([[5, 6, 7], [7, 6, 5], [1, 2, 3]])
        made = block.step(ids)
        for column in ids.T:
            last = single.step(column[:, None])
        assert torch.allclose(made, last, atol=1e-4)
        assert torch.allclose(block.step(ids[:, :1]), single.step(ids[:, :1]), atol=1e-4)

    def test_only_motion_rows_of_the_head_are_computed(self):
        lm = shared()
        assert lm.causal.separable
        wanted = lm.vocabulary.symbol_ids[:5]
        some, every = (CachedRows(lm.causal, [[1, 2, 3]], [0], w).logits for w in (wanted, None))
        assert some.shape == (1, 5) and torch.allclose(some, every[:, wanted], atol=1e-5)

    def test_a_head_that_does_more_is_asked_as_a_whole(self):
        lm = make()
        plain = lm.causal.plain
        forward = plain.forward

        def scaled(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            out.logits = out.logits * 3
            return out

        plain.forward = scaled
        assert not lm.causal.separable
        assert torch.equal(lm.generate("walk", steps=6)[0][0], shared().generate("walk", steps=6)[0][0])

    def test_samples_of_a_prompt_differ_and_stay(self):
        lm = shared()
        one, _ = lm.generate(SENTENCES[:2], steps=8, temperature=1.0, seed=3, samples_per_row=3)
        assert len(one) == 6 and len({tuple(t.tolist()) for t in one}) == 6
        two, _ = lm.generate(SENTENCES[1], steps=8, temperature=1.0, seed=3, samples_per_row=2)
        assert torch.equal(one[3], two[0]) and torch.equal(one[4], two[1])

    def test_guidance_leads_away_from_the_plain_prompt(self):
        lm = shared()
        weak, strong = (lm.generate(SENTENCES, steps=10, guidance_scale=s)[0] for s in (1.0, 4.0))
        assert not all(torch.equal(a, b) for a, b in zip(weak, strong, strict=True))
        plain, _ = lm.generate(SENTENCES, steps=10, guidance_scale=0.0)
        (none,), _ = lm.generate([lm.prompt("unconditional")], steps=10)
        assert all(torch.equal(none, tokens) for tokens in plain)


class TestLengths:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(("unit", "value", "steps"), [("steps", 5, 5), ("frames", 21, 6), ("seconds", 0.7, 6)])
    def test_asked_for_in_any_unit(self, family, unit, value, steps):
        lm = shared("tiny-gpt2", family)
        per_token = lm.vocabulary.tokenizer.frames_per_token
        wanted = steps if per_token == 4 else {"steps": 5}.get(unit, -(-21 // per_token))
        (tokens,), (why,) = lm.generate("walk", **{unit: value})
        assert len(tokens) == wanted and why == "length"
        features = lm.motion_tokenizer.decode(tokens)
        assert features.shape == (wanted * per_token, 272)

    def test_without_one_the_model_ends_within_the_context(self):
        lm = make()
        with torch.no_grad():
            lm.model.get_output_embeddings().weight[lm.vocabulary.end] = 0  # never the best
        lm.model.config.max_position_embeddings = 40
        prompt = lm.prompt(caption="walk")
        (tokens,), (why,) = lm.generate([prompt])
        assert len(prompt) + 1 + len(tokens) <= 40 and why == "end" and len(tokens) >= 20
        (short,), _ = lm.generate([prompt], longest=7, shortest=7)
        assert len(short) == 7

    @pytest.mark.parametrize(("settings", "message"), [
        ({"steps": 0}, "a motion's length is a positive number"), ({"seconds": -1.0}, "positive number"),
        ({"seconds": float("nan")}, "positive number"), ({"steps": 2.5}, "give a whole number"),
        ({"steps": 3, "seconds": 1}, "give one of steps, seconds"), ({"steps": [1, 2]}, "2 lengths for 1 prompts"),
        ({"steps": 10**6}, "the model's context is 2,048"), ({"steps": 3, "temperature": -1}, "temperature -1"),
        ({"steps": 3, "samples_per_row": 0}, "samples_per_row 0"), ({"steps": 3, "guidance_scale": -1}, "guidance_scale -1"),
    ])  # fmt: skip
    def test_settings_that_mean_nothing(self, settings, message):
        with pytest.raises(VadisError, match=message):
            shared().generate("walk", **settings)

    @pytest.mark.parametrize(("prompts", "message"), [
        ([], "there is no prompt"), ("", "prompt 1 is empty"), (["walk", "  "], "prompt 2 is empty"),
        ([[]], "prompt 1 has no ids"), ([[1, 10**6]], "prompt 1 has ids outside"),
        ([[1] * 2048], "prompt 1 has 2,048 ids and"),
    ])  # fmt: skip
    def test_prompts_that_are_none(self, prompts, message):
        with pytest.raises(VadisError, match=message):
            shared().generate(prompts, steps=3)


class TestDSFT:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_exact_lengths_decode_without_repair(self, temperature):
        lm = shared("tiny-gpt2", "dsft")
        made, why = lm.generate(SENTENCES, frames=[30, 41, 8], temperature=temperature, seed=1)
        assert why == ["length"] * 3
        for encoded, frames in zip(made, (30, 41, 8), strict=True):
            assert encoded.num_tokens > 2 and frames == encoded.T
            assert lm.motion_tokenizer.decode(encoded, on_error="strict").shape == (frames, 272)
        (alone,), _ = lm.generate(SENTENCES[1], frames=41, temperature=temperature, seed=1)
        assert alike(alone, made[1])

    def test_length_tokens(self):
        lm = make("tiny-llama", "dsft", length_tokens=True)
        (free, again), why = lm.generate(SENTENCES[:2], longest=40)
        assert why == ["end", "end"] and free.T % 4 == 0 and free.T <= 40 and again.T <= 40
        assert lm.motion_tokenizer.decode(free, on_error="strict").shape == (free.T, 272)
        (asked,), _ = lm.generate("walk", seconds=0.9)
        assert asked.T == 28

    def test_a_row_without_room_is_capped_and_can_be_repaired(self):
        lm = make("tiny-llama", "dsft")
        prompt = lm.prompt(caption="walk")
        lm.model.config.max_position_embeddings = len(prompt) + lm._least_ids(30) + 2
        (encoded,), (why,) = lm.generate([prompt], frames=30, temperature=1.0, seed=0)
        assert why == "cap"
        assert lm.motion_tokenizer.decode(encoded, on_error="repair").shape == (30, 272)
        lm.model.config.max_position_embeddings = len(prompt) + 10
        with pytest.raises(VadisError, match="the model's context is"):
            lm.generate([prompt], frames=30)

    def test_what_it_cannot_do(self):
        lm = shared("tiny-gpt2", "dsft")
        encoded = lm.generate("walk", frames=20)[0][0]
        for act in (lambda: lm.predict(encoded), lambda: lm.in_between(encoded, encoded, frames=60)):
            with pytest.raises(VadisError, match="DSFT's speak of the whole motion at once"):
                act()
        with pytest.raises(VadisError, match="don't come in the order of time"):
            next(lm.stream("walk", frames=20))
        with pytest.raises(VadisError, match="give frames or seconds"):
            lm.generate("walk")
        with pytest.raises(VadisError, match="give frames or seconds instead of steps"):
            lm.generate("walk", steps=4)
        with pytest.raises(ModelError, match="needs the DSFT tokenizer"):
            MotionLM(lm.model, lm.text_tokenizer, lm.vocabulary)


class TestStream:
    @pytest.mark.parametrize("family", ["vq", "rvq", "rvq delayed", "lfq2d"])
    @pytest.mark.parametrize("length", [{"steps": 9}, {"longest": 30}])
    def test_steps_come_one_by_one_and_are_those_of_the_whole(self, family, length):
        lm = shared("tiny-gpt2", family)
        settings = {"temperature": 1.0, "seed": 2, **length}
        (whole,), _ = lm.generate("someone jumps", **settings)
        pieces = list(lm.stream("someone jumps", **settings))
        assert torch.equal(torch.cat(pieces), whole)
        assert len(pieces) > len(whole) // 2

    def test_order_of_parts_has_no_stream(self):
        with pytest.raises(VadisError, match="don't come in the order of time"):
            next(shared("tiny-gpt2", "lfq2d by part").stream("walk", steps=3))


class TestGiven:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("asked", [True, False])
    def test_predict_and_in_between(self, family, asked):
        lm = shared("tiny-gpt2", family)
        (source,), _ = lm.generate(SENTENCES[0], steps=10, temperature=1.0, seed=9)
        made = lm.predict(source[:3], caption="turn left", asked=asked, steps=10)
        assert made.shape == source.shape and torch.equal(made[:3], source[:3]) and not torch.equal(made, source)
        made = lm.in_between(source[:2], source[-3:], asked=asked, steps=12)
        assert len(made) == 12 and torch.equal(made[:2], source[:2]) and torch.equal(made[-3:], source[-3:])

    def test_a_prediction_may_end_itself(self):
        lm = shared("tiny-gpt2", "vq")
        start = torch.tensor([1, 2, 3])
        for asked in (True, False):
            made = lm.predict(start, asked=asked, longest=20)
            assert torch.equal(made[:3], start) and len(made) <= 23

    @pytest.mark.parametrize("family", ["lfq2d", "lfq2d by part"])
    @pytest.mark.parametrize("asked", [True, False])
    def test_parts(self, family, asked):
        lm = shared("tiny-gpt2", family)
        (source,), _ = lm.generate(SENTENCES[0], steps=7, temperature=1.0, seed=9)
        names = lm.motion_tokenizer.parts
        made = lm.edit_parts(source, [names[1], 3], caption="wave", asked=asked, temperature=1.0, seed=4)
        same = (made == source).all(0).tolist()
        assert [i for i, s in enumerate(same) if not s] == [1, 3]
        every = lm.edit_parts(source, names, asked=asked)
        assert every.shape == source.shape

    def test_tokenizers_without_parts_say_so(self):
        with pytest.raises(VadisError, match="the tokens of vq are one-dimensional, each stands for the whole body"):
            shared().edit_parts(torch.tensor([1, 2]), ["torso"])
        with pytest.raises(VadisError, match="the 3 tokens per step of rvq are not parts of the body"):
            shared("tiny-gpt2", "rvq").edit_parts(torch.zeros(2, 3, dtype=torch.long), [0])
        lm = shared("tiny-gpt2", "lfq2d")
        with pytest.raises(ModelError, match="no part 'tail'"):
            lm.edit_parts(torch.zeros(2, 6, dtype=torch.long), ["tail"])
        with pytest.raises(VadisError, match="name at least one of"):
            lm.edit_parts(torch.zeros(2, 6, dtype=torch.long), [])

    def test_what_does_not_fit(self):
        lm = shared()
        tokens = torch.tensor([1, 2, 3, 4])
        with pytest.raises(VadisError, match="4 token steps are given and the whole motion is to have 4"):
            lm.predict(tokens, steps=4)
        with pytest.raises(VadisError, match="give steps, frames or seconds"):
            lm.in_between(tokens[:1], tokens[1:])
        with pytest.raises(VadisError, match="must be 0 to"):
            lm.predict(torch.tensor([99]), steps=4)
        with pytest.raises(ShapeError, match="fixed must be"):
            lm.generate("walk", steps=3, fixed=torch.zeros(2, 3, 4))
        with pytest.raises(ShapeError, match="1 rows of fixed symbols for 2 prompts"):
            lm.generate(["walk", "run"], steps=3, fixed=[torch.zeros(3, dtype=torch.long)])


class TestCaptions:
    @pytest.mark.parametrize("mode", ["extend", "remap"])
    def test_text_holds_no_motion_and_ends(self, mode):
        lm = make("tiny-llama", "vq", mode)
        motions = [torch.tensor([1, 2, 3]), torch.tensor([5] * 9), torch.tensor([7, 8])]
        greedy = lm.caption(motions, max_tokens=12)
        assert len(greedy) == 3 and all(isinstance(text, str) and text for text in greedy)
        assert not any("mot" in text and "<" in text for text in greedy)
        for motion, text in zip(motions, greedy, strict=True):
            assert lm.caption(motion, max_tokens=12) == text  # alone as in a batch
        drawn = lm.caption(motions[0], temperature=1.5, seed=1, samples_per_row=4, max_tokens=8)
        assert len(set(drawn)) > 1
        assert drawn == lm.caption(motions[0], temperature=1.5, seed=1, samples_per_row=4, max_tokens=8)

    def test_it_stops_at_the_end_of_the_text(self):
        lm = make()
        with torch.no_grad():
            head = lm.model.get_output_embeddings().weight
            head[lm.text_tokenizer.eos_token_id] = 0
            head[lm.vocabulary.symbol_ids] *= 100
            long = len(lm._write([lm.prompt("unconditional")], [0], None, 30, (0.0, None, None))[0])
            head[:] = 0
            (one,) = lm._write([lm.prompt("unconditional")], [0], None, 30, (1.0, None, None))
        assert long == 30
        assert len(one) >= 1  # never empty, even where the end is as likely as all else

    def test_what_it_refuses(self):
        lm = shared()
        with pytest.raises(VadisError, match="max_tokens 0"):
            lm.caption(torch.tensor([1]), max_tokens=0)
        with pytest.raises(VadisError, match="must be 0 to"):
            lm.caption(torch.tensor([1, 99]))
        with pytest.raises(VadisError, match="the model's context is"):
            lm.caption(torch.ones(2040, dtype=torch.long))


class TestBelongingTogether:
    def test_another_tokenizer(self):
        lm = shared()
        other = component_classes()["vq"](motion_tokenizer("vq").config)
        with pytest.raises(ModelError, match="trained with another motion tokenizer"):
            MotionLM(lm.model, lm.text_tokenizer, lm.vocabulary, other)

    def test_a_saved_model_says_the_same(self, tmp_path):
        from vadis.language.checkpoints import save_language_model

        lm = shared()
        save_language_model(tmp_path / "lm", lm.model, lm.text_tokenizer, lm.vocabulary)
        again = MotionLM.from_pretrained(tmp_path / "lm", lm.motion_tokenizer)
        assert torch.equal(lm.generate("walk", steps=9)[0][0], again.generate("walk", steps=9)[0][0])
        small = MotionLM.from_pretrained(tmp_path / "lm", lm.motion_tokenizer, precision="int8")
        assert len(small.generate("walk", steps=9)[0][0]) == 9
        half = MotionLM.from_pretrained(tmp_path / "lm", lm.motion_tokenizer, precision="bfloat16")
        assert len(half.generate("walk", steps=9)[0][0]) == 9
        with pytest.raises(VadisError, match="unknown precision 'int4'"):
            MotionLM.from_pretrained(tmp_path / "lm", precision="int4")  # type: ignore[arg-type]

    def test_int8_needs_linear_layers(self):
        with pytest.raises(ModelError, match="no linear layers of torch to turn into int8"):
            make("tiny-gpt2").causal.to_int8()

    @pytest.mark.parametrize("backbone", ["tiny-llama", "tiny-qwen3_5"])
    def test_int8_is_near_and_keeps_rows_apart(self, backbone):
        lm = make(backbone)
        ids = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            exact = lm.model(input_ids=ids).logits
            lm.causal.to_int8()
            made = lm.model(input_ids=ids).logits
        assert 0 < (made - exact).norm() / exact.norm() < 0.3
        together, _ = lm.generate(SENTENCES, steps=[9, 3, 14])
        for i, sentence in enumerate(SENTENCES):
            assert torch.equal(lm.generate(sentence, steps=[9, 3, 14][i])[0][0], together[i])

    @pytest.mark.parametrize("bias", [True, False])
    def test_int8_layers(self, bias):
        from vadis.language.int8 import Int8Linear

        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 32, bias=bias)
        x = torch.randn(3, 5, 64) * torch.tensor([1.0, 1e3, 1e-3]).view(3, 1, 1)
        exact, made = layer(x), Int8Linear(layer)(x)
        error = (made - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert made.shape == exact.shape and error.max() < 0.05
        assert torch.equal(Int8Linear(layer)(x[2]), made[2])

    def test_an_adapter_is_used_merged_or_not(self, tmp_path):
        peft = pytest.importorskip("peft")
        from vadis.language.checkpoints import save_language_model

        lm = make()
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        adapted = peft.get_peft_model(lm.model, config)
        around = MotionLM(adapted, lm.text_tokenizer, lm.vocabulary, lm.motion_tokenizer)
        save_language_model(tmp_path / "lm", adapted, lm.text_tokenizer, lm.vocabulary)
        merged = MotionLM.from_pretrained(tmp_path / "lm", lm.motion_tokenizer)
        assert torch.equal(around.generate(SENTENCES[0], steps=9)[0][0], merged.generate(SENTENCES[0], steps=9)[0][0])


@pytest.mark.slow
def test_smollm2_writes_and_reads_motion() -> None:
    pytest.importorskip("gguf")
    from vadis.errors import MissingExtra
    from vadis.language.add_motion import extend
    from vadis.language.backbones import load_backbone, smollm2_file

    try:
        smollm2_file()
    except MissingExtra as missing:
        pytest.skip(str(missing))
    tokenizer = motion_tokenizer("vq")
    model, text = load_backbone("smollm2-135m")
    lm = MotionLM(model, text, extend(model, text, MotionLayout.of(tokenizer), tokenizer), tokenizer)
    assert lm.causal.separable and lm.causal.context == 8192
    together, _ = lm.generate(SENTENCES[:2], steps=[5, 8])
    for sentence, tokens in zip(SENTENCES, together, strict=False):
        assert torch.equal(lm.generate(sentence, steps=len(tokens))[0][0], tokens)
    said = lm.caption(together, max_tokens=6)
    assert all(said) and not any("<" in sentence for sentence in said)
