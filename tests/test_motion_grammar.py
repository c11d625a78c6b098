"""The motion automaton: nothing ill-formed can be made, everything well-formed can, alone and inside transformers and vLLM."""

import functools
import inspect
import itertools

import pytest
import torch
from conftest import procedural_walk
from hypothesis import given, settings
from hypothesis import strategies as st

from vadis.errors import MissingExtra, ShapeError, VadisError
from vadis.language.grammar import MotionGrammar, MotionLogitsProcessor
from vadis.language.layout import MotionLayout
from vadis.language.vocabulary import MotionTokenizerFacts, MotionVocabulary
from vadis.tokenizers.dsft import DSFTTokenizer

TEXT = 7
FACTS = MotionTokenizerFacts("vq", "0", "ms272", 30.0, 4)
LAYOUTS = [
    MotionLayout("flat", 1, 5),
    MotionLayout("flat", 3, 4, grouped=True),
    MotionLayout("flat", 3, 4, "part", grouped=True),
    MotionLayout("flat", 2, 4, "part", shared=True, grouped=True),
    MotionLayout("flat", 2, 4, shared=True, grouped=True),
    MotionLayout("delayed", 3, 4, grouped=True),
    MotionLayout("delayed", 2, 3, shared=True, grouped=True),
]


def vocabulary(layout: MotionLayout, lengths: int = 0, scattered: bool = True) -> MotionVocabulary:
    """Ids behind TEXT text ids, symbols in mixed order."""
    two = layout.kind == "two_stream"
    count = layout.size + 2 + two + lengths
    ids = TEXT + torch.arange(count)
    if scattered:
        ids = ids[torch.randperm(count, generator=torch.Generator().manual_seed(1))]
    n = layout.size
    return MotionVocabulary(
        layout, "extend", ids[:n], int(ids[n]), int(ids[n + 1]), int(ids[n + 2]) if two else None, TEXT, TEXT,
        TEXT + count + 3, FACTS, ids[n + 2 + two :] if lengths else None,
    )  # fmt: skip


def make(grammar: MotionGrammar, seed: int, limit: int = 20_000) -> list[list[int]]:
    """Ids of every row under random logits."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = [[] for _ in range(grammar.rows)]
    for _ in range(limit):
        mask = grammar.mask()
        assert mask.any(1).all()
        over = grammar.done.tolist()
        ids = torch.randn(mask.shape, generator=generator).masked_fill(~mask, -torch.inf).argmax(1)
        grammar.advance(ids)
        for row, token, was in zip(rows, ids.tolist(), over, strict=True):
            if not was:
                row.append(token)
        if grammar.done.all():
            return rows
    raise AssertionError("the grammar does not end")


def follow(grammar: MotionGrammar, ids: list[int]) -> None:
    """Go the way of `ids`, each of which must be allowed."""
    for token in ids:
        assert grammar.mask()[0, token], f"{token} is forbidden after {int(grammar.position[0])} symbols"
        grammar.advance(torch.tensor([token]))
    assert bool(grammar.done[0])


class TestOneStream:
    @settings(max_examples=120, deadline=None)
    @given(
        st.sampled_from(LAYOUTS),
        st.integers(1, 4),
        st.integers(1, 5),
        st.integers(0, 4),
        st.integers(0, 2**31),
        st.booleans(),
    )
    def test_nothing_ill_formed_can_be_made(self, layout, rows, shortest, more, seed, exact):
        words = vocabulary(layout)
        wanted = [shortest + i % (more + 1) for i in range(rows)] if exact else None
        grammar = MotionGrammar(words, rows, length=wanted, shortest=shortest, longest=shortest + more)
        for i, row in enumerate(make(grammar, seed)):
            assert row[0] == words.begin and row[-1] == words.end and not set(row[1:-1]) & {words.begin, words.end}
            tokens = words.tokens(row)  # strict
            assert len(tokens) == wanted[i] if wanted else shortest <= len(tokens) <= shortest + more
        assert not grammar.lost.any()

    @settings(max_examples=120, deadline=None)
    @given(
        st.sampled_from(LAYOUTS),
        st.integers(1, 6),
        st.integers(0, 2**31),
        st.sampled_from(["free", "exact", "between"]),
    )
    def test_everything_well_formed_can(self, layout, steps, seed, how):
        words = vocabulary(layout)
        shape = (steps, layout.groups) if layout.grouped else (steps,)
        tokens = torch.randint(layout.codes, shape, generator=torch.Generator().manual_seed(seed))
        limits = {"free": {}, "exact": {"length": steps}, "between": {"shortest": steps, "longest": steps + 2}}
        follow(MotionGrammar(words, **limits[how]), words.ids(tokens))

    @pytest.mark.parametrize("layout", [
        MotionLayout("flat", 1, 2), MotionLayout("flat", 2, 2), MotionLayout("flat", 2, 2, shared=True),
        MotionLayout("flat", 2, 2, "part"), MotionLayout("flat", 3, 1, "part"), MotionLayout("flat", 2, 2, "part", shared=True),
        MotionLayout("delayed", 2, 2), MotionLayout("delayed", 2, 2, shared=True), MotionLayout("delayed", 3, 1, shared=True),
    ])  # fmt: skip
    @pytest.mark.parametrize("limits", [{}, {"length": 2}, {"shortest": 2}, {"longest": 1}])
    def test_exactly_the_well_formed_rows_of_a_small_layout(self, layout, limits):
        """Every string of symbols up to a length is tried at once, one a row."""
        words = vocabulary(layout, scattered=False)
        n = next(n for n in range(1, 99) if (layout.size + 1) ** (n + 1) > 150_000)
        strings = torch.tensor(list(itertools.product(range(layout.size + 1), repeat=n)))  # the last one is the end
        grammar = MotionGrammar(words, len(strings), **limits)
        grammar.advance(torch.full((len(strings),), words.begin))
        for column in strings.T:
            grammar.advance_slots(torch.where(column == layout.size, layout.size + 1, column), strict=False)
        ends = (strings == layout.size).long()
        accepted = (grammar.done & ~grammar.lost & ends.any(1)).nonzero()[:, 0]
        made = {tuple(s[: int(ends[i].argmax())].tolist()) for i in accepted.tolist() for s in [strings[i]]}
        low, high = limits.get("length", limits.get("shortest", 1)), limits.get("length", limits.get("longest", 99))
        wanted = set()
        for steps in range(low, high + 1):
            if layout.length(steps) >= n:
                break
            for codes in itertools.product(range(layout.codes), repeat=steps * layout.groups):
                tokens = torch.tensor(codes).reshape(steps, layout.groups)
                wanted.add(tuple(layout.flatten(tokens).tolist()))
        assert made == wanted and (wanted or limits)

    def test_rows_have_their_own_lengths_and_move_with_their_index(self):
        words = vocabulary(LAYOUTS[0])
        grammar = MotionGrammar(words, 2, length=[1, 3])
        grammar.advance(torch.tensor([words.begin] * 2))
        code = int(words.symbol_ids[2])
        grammar.advance(torch.tensor([code, code]))
        assert grammar.mask()[0].nonzero()[:, 0].tolist() == [words.end]
        grammar.reorder(torch.tensor([1, 1, 0]))
        mask = grammar.mask()
        assert grammar.rows == 3 and torch.equal(mask[0], mask[1])
        assert not mask[0, words.end] and mask[2, words.end]
        grammar.advance(torch.tensor([code, -1, words.end]))
        assert grammar.position.tolist() == [2, 1, 1] and grammar.done.tolist() == [False, False, True]

    def test_a_forbidden_id_is_named_or_ends_the_row(self):
        words = vocabulary(LAYOUTS[1])
        grammar = MotionGrammar(words)
        with pytest.raises(VadisError, match=r"row 0: an id that is not a motion id can't stand before the motion"):
            grammar.advance(torch.tensor([0]))
        grammar.advance(torch.tensor([words.begin]))
        wrong = int(words.symbol_ids[4])
        with pytest.raises(VadisError, match=rf"the id {wrong} can't stand in the motion, after 0 symbols"):
            grammar.advance(torch.tensor([wrong]))
        grammar.advance(torch.tensor([wrong]), strict=False)
        assert bool(grammar.lost[0]) and bool(grammar.done[0])

    def test_what_may_follow_the_end(self):
        words = vocabulary(LAYOUTS[0])
        grammar = MotionGrammar(words, length=1, finish=[0, 3])
        follow(grammar, words.ids(torch.tensor([1])))
        assert sorted(grammar.mask()[0].nonzero()[:, 0].tolist()) == sorted([0, 3, words.end])
        grammar.advance(torch.tensor([3]))
        assert bool(grammar.done[0]) and not bool(grammar.lost[0])

    @pytest.mark.parametrize(("options", "message"), [
        ({"length": 0}, "a motion of length 0 can't be made"), ({"shortest": 4, "longest": 3}, "no motion is 4 to 3 long"),
        ({"shortest": 0}, "give 1 <="),
    ])  # fmt: skip
    def test_lengths_that_are_none(self, options, message):
        with pytest.raises(VadisError, match=message):
            MotionGrammar(vocabulary(LAYOUTS[0]), **options)
        with pytest.raises(ShapeError, match="one number or 1"):
            MotionGrammar(vocabulary(LAYOUTS[0]), length=[1, 2])


class TestFixed:
    @settings(max_examples=80, deadline=None)
    @given(st.sampled_from(LAYOUTS), st.integers(1, 5), st.integers(0, 2**31))
    def test_fixed_symbols_stand_where_they_should(self, layout, steps, seed):
        words, generator = vocabulary(layout), torch.Generator().manual_seed(seed)
        shape = (steps, layout.groups) if layout.grouped else (steps,)
        source = layout.flatten(torch.randint(layout.codes, shape, generator=generator))
        keep = torch.rand(len(source), generator=generator) < 0.5
        grammar = MotionGrammar(words, 2, length=steps, fixed=torch.where(keep, source, -1))
        for row in make(grammar, seed):
            made = words.symbols(row[1:-1])
            assert torch.equal(made[keep], source[keep])
            words.tokens(row)

    def test_a_beginning_needs_no_length(self):
        words = vocabulary(LAYOUTS[1])
        start = torch.tensor([0, 5, 9, 1, 6])
        for seed in range(5):
            row = make(MotionGrammar(words, fixed=start, longest=4), seed)[0]
            assert words.symbols(row[1:6]).tolist() == start.tolist() and 2 <= len(words.tokens(row)) <= 4

    @pytest.mark.parametrize(("layout", "options", "message"), [
        (0, {"fixed": torch.tensor([1, -1, 1]), "length": 2}, "the motion ends before it"),
        (0, {"fixed": torch.tensor([1, 1, 1]), "longest": 2}, "3 steps are fixed"),
        (1, {"fixed": torch.tensor([4]), "length": 2}, "symbol 4 can't be fixed at place 0 of row 0: the layout has 0 to 3"),
        (2, {"fixed": torch.tensor([1])}, "only in motions of a given length"),
        (5, {"fixed": torch.tensor([1])}, "only in motions of a given length"),
    ])  # fmt: skip
    def test_what_cannot_be_fixed(self, layout, options, message):
        with pytest.raises(VadisError, match=message):
            MotionGrammar(vocabulary(LAYOUTS[layout]), **options)
        with pytest.raises(ShapeError, match="fixed must be"):
            MotionGrammar(vocabulary(LAYOUTS[0]), rows=2, fixed=torch.zeros(3, 4))


@functools.cache
def dsft(codec: str = "integer") -> DSFTTokenizer:
    """Fitted to a few walks; a small alphabet with merges."""
    from vadis.representations import representation

    rep = representation("ms272")
    clips = [rep.encode(procedural_walk(frames, turn=turn)) for frames, turn in ((60, 0.0), (64, 0.5), (72, -0.5))]
    scale = (2.0, 2.0) if codec == "integer" else (1.0, 1.0)
    return DSFTTokenizer.fit(clips, "ms272", K=(2, 3), scale=scale, vocab=(400, 400), codec=codec)  # type: ignore[arg-type]


@functools.cache
def dsft_words(lengths: int = 0, codec: str = "integer") -> MotionVocabulary:
    return vocabulary(MotionLayout.of(dsft(codec)), lengths)


class TestTwoStreams:
    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(1, 90), min_size=1, max_size=3), st.integers(0, 2**31))
    def test_every_row_decodes_without_repair(self, frames, seed):
        words, tokenizer = dsft_words(), dsft()
        grammar = MotionGrammar(words, len(frames), tokenizer=tokenizer, length=frames)
        assert grammar.exact
        for row, count in zip(make(grammar, seed), frames, strict=True):
            encoded = words.tokens(row, frames=count)
            assert tokenizer.decode(encoded, on_error="strict").shape == (count, 272)

    @settings(max_examples=15, deadline=None)
    @given(st.integers(1, 80), st.floats(-1, 1), st.booleans())
    def test_every_clip_can_be_made(self, frames, turn, lengths):
        from vadis.representations import representation

        words, tokenizer = dsft_words(256 if lengths else 0), dsft()
        frames = 4 * -(-frames // 4) if lengths else frames
        encoded = tokenizer.encode(representation("ms272").encode(procedural_walk(frames, turn=turn)))
        follow(MotionGrammar(words, tokenizer=tokenizer, length=None if lengths else frames), words.ids(encoded))

    @settings(max_examples=10, deadline=None)
    @given(st.integers(1, 60), st.integers(0, 2**31))
    def test_single_integers_are_always_enough(self, frames, seed):
        """Any way of cutting the integers into ids is well-formed, also the one without merges."""
        words, tokenizer = dsft_words(), dsft()
        generator = torch.Generator().manual_seed(seed)
        shapes = tokenizer.integer_shapes(frames)
        base, phys = (torch.randint(codec.alphabet_size, (k * d,), generator=generator)
                      for codec, (k, d) in zip(tokenizer.codecs, shapes, strict=True))  # fmt: skip
        ids = [words.begin, *words.symbol_ids[base].tolist(), words.sep]
        ids += [*words.symbol_ids[words.layout.codes + phys].tolist(), words.end]
        follow(MotionGrammar(words, tokenizer=tokenizer, length=frames), ids)

    def test_the_length_token_says_the_length(self):
        words, tokenizer = dsft_words(256), dsft()
        for options, allowed in (
            ({}, range(4, 1025, 4)),
            ({"length": 40}, [40]),
            ({"shortest": 9, "longest": 21}, [12, 16, 20]),
        ):
            grammar = MotionGrammar(words, tokenizer=tokenizer, **options)
            grammar.advance(torch.tensor([words.begin]))
            assert grammar.mask()[0].nonzero()[:, 0].tolist() == sorted(words.length_id(t) for t in allowed)
        grammar = MotionGrammar(words, 4, tokenizer=tokenizer, longest=60)
        for row in make(grammar, 3):
            encoded = words.tokens(row)
            assert encoded.T <= 60 and tokenizer.decode(encoded).shape == (encoded.T, 272)
        assert (grammar.frames() % 4 == 0).all()
        with pytest.raises(VadisError, match="multiples of 4 up to 1024 frames, and none of them is 41"):
            MotionGrammar(words, tokenizer=tokenizer, length=41)
        with pytest.raises(VadisError, match="none of them is 5 to 7"):
            MotionGrammar(words, tokenizer=tokenizer, shortest=5, longest=7)

    def test_names_that_the_tokenizer_lacks_are_forbidden(self):
        base, phys = dsft().vocab_sizes
        words = vocabulary(MotionLayout("two_stream", codes=base + 50, phys_codes=phys + 60))
        for row in make(MotionGrammar(words, 3, tokenizer=dsft(), length=[20, 40, 60]), 5):
            place = row.index(words.sep)
            assert words.symbols(row[1:place]).max() < base
            assert words.symbols(row[place + 1 : -1]).max() - words.layout.codes < phys

    def test_bytes_end_and_decode_with_repair(self):
        words, tokenizer = dsft_words(codec="bytelevel"), dsft("bytelevel")
        grammar = MotionGrammar(words, 2, tokenizer=tokenizer, length=[30, 50])
        assert not grammar.exact
        for row, frames in zip(make(grammar, 0), (30, 50), strict=True):
            made = tokenizer.decode(words.tokens(row, frames=frames), on_error="repair")
            assert made.shape == (frames, 272) and torch.isfinite(made).all()

    def test_without_a_tokenizer_the_phases_hold(self):
        words = vocabulary(MotionLayout("two_stream", codes=5, phys_codes=4))
        for row in make(MotionGrammar(words, 6), 1):
            encoded = words.tokens(row, frames=30)
            assert len(encoded.base_ids) and len(encoded.phys_ids)

    def test_what_it_needs(self):
        with pytest.raises(VadisError, match="DSFT needs the number of frames"):
            MotionGrammar(dsft_words(), tokenizer=dsft())
        with pytest.raises(VadisError, match="none can be fixed"):
            MotionGrammar(dsft_words(), tokenizer=dsft(), length=30, fixed=torch.tensor([1]))
        with pytest.raises(VadisError, match="another tokenizer"):
            MotionGrammar(vocabulary(MotionLayout("two_stream", codes=5, phys_codes=4)), tokenizer=dsft(), length=30)
        with pytest.raises(VadisError, match="needs a DSFT tokenizer, not a object"):
            MotionGrammar(dsft_words(), tokenizer=object(), length=30)


class TestTransformers:
    @pytest.fixture
    def gpt2(self):
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        return transformers.GPT2LMHeadModel(config).eval()

    @pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[2], LAYOUTS[5]])
    @pytest.mark.parametrize("how", [
        {"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 3}, {"do_sample": True, "num_beams": 2},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 3}, {"do_sample": True, "num_return_sequences": 3},
    ])  # fmt: skip
    def test_inside_generate(self, gpt2, layout, how):
        words = vocabulary(layout)
        prompts = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6]])
        grammar = MotionGrammar(words, 2, length=[2, 3], finish=[0])
        processor = MotionLogitsProcessor(grammar, beams=how.get("num_beams", 1))
        torch.manual_seed(1)
        made = gpt2.generate(
            prompts, attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), max_new_tokens=30, pad_token_id=0,
            eos_token_id=words.end, logits_processor=[processor], **how,
        )[:, 4:]  # fmt: skip
        count = how.get("num_return_sequences", 1)
        assert len(made) == 2 * count
        for i, row in enumerate(made.tolist()):
            row = row[: row.index(words.end) + 1]
            assert len(words.tokens(row)) == (2, 3)[i // count]

    def test_beams_of_two_streams_keep_their_counts(self, gpt2):
        """What is left to say differs between beams and can't be seen from their last id."""
        words, tokenizer = dsft_words(), dsft()
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        size = words.size + 5  # rows beyond the vocabulary are never chosen
        config = transformers.GPT2Config(
            vocab_size=size, n_positions=2048, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(10)
        grammar = MotionGrammar(words, 1, tokenizer=tokenizer, length=1, finish=[0])
        made = model.generate(
            torch.tensor([[1, 2]]), max_new_tokens=600, pad_token_id=0, eos_token_id=words.end, do_sample=True, num_beams=3,
            num_return_sequences=3, logits_processor=[MotionLogitsProcessor(grammar, beams=3)],
        )[:, 2:]  # fmt: skip
        for row in made.tolist():
            encoded = words.tokens(row[: row.index(words.end) + 1], frames=1)
            assert tokenizer.decode(encoded, on_error="strict").shape == (1, 272)

    def test_one_processor_serves_one_call(self):
        words = vocabulary(LAYOUTS[0])
        processor = MotionLogitsProcessor(MotionGrammar(words, 2))
        scores = processor(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, words.size))
        assert torch.isfinite(scores[0]).nonzero()[:, 0].tolist() == [words.begin]
        with pytest.raises(VadisError, match="make a new one for each call"):
            processor(torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, words.size))
        with pytest.raises(ShapeError, match="generate has 3 rows, the grammar 2"):
            MotionLogitsProcessor(MotionGrammar(words, 2))(
                torch.zeros(3, 3, dtype=torch.long), torch.zeros(3, words.size)
            )

    def test_beams_must_be_said(self):
        words = vocabulary(LAYOUTS[0])
        processor = MotionLogitsProcessor(MotionGrammar(words, 1), beams=2)
        rows = torch.zeros(2, 1, dtype=torch.long)
        processor(rows, torch.zeros(2, words.size))
        rows = torch.tensor([[0, words.begin], [0, words.begin]])
        processor(rows, torch.zeros(2, words.size))
        a, b, c = (int(i) for i in words.symbol_ids[:3])
        processor(torch.cat([rows, torch.tensor([[a], [b]])], 1), torch.zeros(2, words.size))
        with pytest.raises(VadisError, match="a beam has no parent"):
            processor(torch.tensor([[0, words.begin, c, a], [0, words.begin, a, a]]), torch.zeros(2, words.size))


class TestVLLM:
    def test_the_processor_of_a_request(self):
        from vadis.language.grammar_vllm import MotionRequestProcessor

        words = vocabulary(LAYOUTS[5])
        processor = MotionRequestProcessor(words, length=2, finish=[0])
        assert (
            len(inspect.signature(processor).parameters) == 2
        )  # vLLM tells (output, logits) from (prompt, output, logits)
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):  # the engine may begin a request anew
            output: list[int] = []
            while not output or output[-1] != words.end:
                logits = torch.randn(words.size + 4, generator=generator)
                made = processor(output, logits)
                assert made.shape == logits.shape
                output.append(int(made.argmax()))
            assert len(words.tokens(output)) == 2

    def test_settings_of_a_request(self):
        from vadis.language.grammar_vllm import motion_settings

        assert motion_settings(None) is None and motion_settings({"other": 1}) is None
        assert motion_settings({"motion": {"length": 5}}) == {"length": 5}
        for wrong in (5, {"steps": 5}, {"length": 0}, {"length": True}, {"longest": "9"}):
            with pytest.raises(VadisError, match="extra_args"):
                motion_settings({"motion": wrong})

    def test_without_vllm(self):
        import importlib.util

        from vadis.language import grammar_vllm as motion_grammar_vllm

        if importlib.util.find_spec("vllm") is None:
            with pytest.raises(MissingExtra, match="needs vLLM"):
                motion_grammar_vllm.MotionAdapter  # noqa: B018
        else:
            assert motion_grammar_vllm.MotionAdapter.__name__ == "MotionAdapter"
