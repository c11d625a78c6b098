"""Instructions: wordings, ids and masks, tokenised corpora, draws; on drawn clips, tiny tokenizers and a tiny language model."""

import json
import random
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vadis.cli import main
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.static_poses import FRAMES, hold_pose, pose_facts, static_corpus
from vadis.errors import FileError, ModelError, VadisError
from vadis.kinematics import kinematic_plan
from vadis.language.add_motion import MotionVocabulary, extend, remap
from vadis.language.backbones import load_backbone
from vadis.language.instruction_sampler import (
    InstructionData,
    Instructions,
    TokenSource,
    in_between_steps,
    prediction_steps,
)
from vadis.language.instructions import InstructionItem, MotionSpan, encode, encode_prompt, given_parts, instruction
from vadis.language.layout import MotionLayout
from vadis.language.templates import (
    CAPTION_FIELDS,
    MOTION_FIELDS,
    PART_QUESTIONS,
    TEMPLATES,
    fields,
    fill,
    pieces,
    usable,
)
from vadis.language.token_corpus import TokenCorpus, source_names, tokenize_corpus
from vadis.loading import component_classes
from vadis.motion import Motion
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.tokenizers.dsft.sequence import Encoded

pytest.importorskip("transformers")
SMALL: dict[str, Any] = {"representation": "ms272", "feature_dim": 272, "fps": 30.0, "width": 16}
SAID = ("a person walks on", "the man goes ahead", "Arms swing.", "Legs step.")


def motion_tokenizer(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    cls = component_classes()[kind]
    return cls(cls.config_class(**(SMALL | options))).eval()


def write_corpus(folder: Path, source: str = "studio", clips: int = 12) -> Corpus:
    """Clips of 32, 40… frames: the first without captions, the second with one for the whole, the rest with all levels."""
    noise = torch.Generator().manual_seed(1)
    with CorpusWriter(folder, "ms272", 30) as writer:
        for i in range(clips):
            frames = 32 + 8 * i
            kinds = ("whole", "detailed", "upper", "lower", "file-name")[: (0, 1)[i] if i < 2 else 5]
            captions = [Caption(f"{(*SAID, 'x')[k]} {i}", 0, 99, kind) for k, kind in enumerate(kinds)]
            features = torch.randn(frames, 272, generator=noise).cumsum(0) * 0.01
            writer.add(
                f"{source}-{i}", features, captions, split="val" if i == clips - 1 else "train", group=f"g{i}",
                source=source if i % 2 else f"{source} two", licence="none",
            )  # fmt: skip
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of two corpora: "one" and "two" of VQ, "parts" of 2-D LFQ, "dsft"."""
    root = tmp_path_factory.mktemp("tokens")
    corpora = {name: write_corpus(root / f"corpus-{name}", name) for name in ("one", "two")}
    makers = {
        "one": motion_tokenizer("vq", code_dim=16, codebook_size=32),
        "two": motion_tokenizer("vq", code_dim=16, codebook_size=32),
        "parts": motion_tokenizer("lfq2d", bits=4),
        "dsft": DSFTTokenizer.fit([clip.features for clip in corpora["one"]], "ms272", K=(2, 2), vocab=(300, 300)),
    }
    for name, tokenizer in makers.items():
        tokenize_corpus(corpora.get(name, corpora["one"]), tokenizer, root / name, progress=False)
    torch.save(makers, root / "tokenizers.pt")
    return root


def tokenizer_of(folder: Path, name: str) -> Any:
    return torch.load(folder / "tokenizers.pt", weights_only=False)[name]


@pytest.fixture(scope="module")
def spoken(folder: Path) -> dict[str, tuple[MotionVocabulary, Any]]:
    """A vocabulary and a text tokenizer for each tokenizer, and "remapped"."""
    made = {}
    for name in ("one", "parts", "dsft"):
        model, text_tokenizer = load_backbone("tiny-gpt2")
        tokenizer = tokenizer_of(folder, name)
        made[name] = extend(model, text_tokenizer, MotionLayout.of(tokenizer), tokenizer), text_tokenizer
    model, text_tokenizer = load_backbone("tiny-llama")
    tokenizer = tokenizer_of(folder, "one")
    layout = MotionLayout.of(tokenizer)
    made["remapped"] = remap(model, text_tokenizer, layout, tokenizer, list(SAID)), text_tokenizer
    return made


# ---- wordings


def test_wordings() -> None:
    assert TEMPLATES["text_to_motion"][0] == "Generate a motion: {caption}"
    plain = usable("text_to_motion", frozenset({"caption"}), frozenset({"frames", "seconds"}))
    assert len(plain) >= 20 and plain[0] == TEMPLATES["text_to_motion"][0]
    assert all(len(templates) >= 8 and len(set(templates)) == len(templates) for templates in TEMPLATES.values())
    needed = {
        "text_to_motion": set(), "motion_to_text": {"motion"}, "prediction": {"start"}, "in_between": {"start", "end"},
        "part_completion": {"given"}, "unconditional": set(),
    }  # fmt: skip
    for task, templates in TEMPLATES.items():
        for template in templates:
            assert fields(template) & MOTION_FIELDS == needed[task], template
            assert task != "unconditional" or not fields(template) & CAPTION_FIELDS
    for halves in ({"upper"}, {"lower"}, {"upper", "lower"}):
        for caption in (set(), {"caption"}):
            assert usable("text_to_motion", frozenset(halves | caption), frozenset()), (halves, caption)
    assert all(fields(t) == {"motion"} for questions in PART_QUESTIONS.values() for t in questions)


@given(st.text(string.ascii_letters + "{}[]<>%$!_0123456789. ", min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_captions_are_put_in_as_they_are(caption: str) -> None:
    assert fill("Generate a motion: {caption}", {"caption": caption}) == (f"Generate a motion: {caption}",)


def test_filling() -> None:
    span = MotionSpan(torch.tensor([1, 2]))
    assert fill("Go from {start} to {end}", {"start": span, "end": span}) == ("Go from ", span, " to ", span)
    assert fill("{given}{frames}", {"given": ["arm ", span, ", ", "leg "], "frames": 8}) == ("arm ", span, ", leg 8")
    assert fill("{caption} Then {upper}", {"caption": "walk", "upper": "{x}"}) == ("walk. Then {x}",)
    assert fill("How {caption}, now.", {"caption": "Walk."}) == ("How Walk, now.",)
    assert instruction("text_to_motion", caption="{seconds} {0}").prompt == ("Generate a motion: {seconds} {0}",)
    for template, said in (("{captoin}", "captoin"), ("{caption", "can't be read"), ("{0}", "field '0'")):
        with pytest.raises(VadisError, match=said):
            pieces(template)
    with pytest.raises(VadisError, match="needs upper"):
        fill("{upper}", {"caption": "x"})
    for wrong in ("", "  ", 5, "x" * 20_001):
        with pytest.raises(VadisError, match="caption"):
            instruction("text_to_motion", caption=wrong)
    with pytest.raises(VadisError, match="no task"):
        instruction("text to motion", caption="x")


# ---- ids


def test_ids_and_masks_of_a_motion(spoken: dict[str, tuple[MotionVocabulary, Any]]) -> None:
    vocabulary, text_tokenizer = spoken["one"]
    tokens = torch.tensor([3, 0, 31])
    item = instruction("text_to_motion", caption="walk", answer=MotionSpan(tokens))
    made = encode(item, vocabulary, text_tokenizer)
    prompt = encode_prompt(item, vocabulary, text_tokenizer)
    words = text_tokenizer("Generate a motion: walk", add_special_tokens=False)["input_ids"]
    span = [vocabulary.begin, *vocabulary.symbol_ids[tokens].tolist(), vocabulary.end]
    assert prompt == [text_tokenizer.bos_token_id, *words]
    assert made.ids.tolist() == [*prompt, *span, text_tokenizer.eos_token_id]
    assert made.prompt_length == len(prompt) and made.ids.dtype == torch.int64
    places = {name: made.targets(name).nonzero()[:, 0].tolist() for name in ("whole", "motion", "answer")}
    first, last = len(prompt), len(made)
    assert places["whole"] == list(range(1, last))
    assert places["motion"] == list(range(first, last - 1))
    assert places["answer"] == list(range(first, last))
    with pytest.raises(VadisError, match="no answer"):
        encode(instruction("text_to_motion", caption="walk"), vocabulary, text_tokenizer)
    with pytest.raises(VadisError, match="no loss"):
        made.targets("all")  # type: ignore[arg-type]


def test_motion_in_a_prompt_and_text_as_answer(spoken: dict[str, tuple[MotionVocabulary, Any]]) -> None:
    vocabulary, text_tokenizer = spoken["one"]
    span = MotionSpan(torch.tensor([5, 6]))
    item = instruction("motion_to_text", motion=span, answer="a man waves")
    made = encode(item, vocabulary, text_tokenizer)
    assert vocabulary.tokens(made.ids[made.motion]).tolist() == [5, 6]
    said = made.ids[made.answer].tolist()
    assert text_tokenizer.decode(said[:-1]) == "a man waves" and said[-1] == text_tokenizer.eos_token_id
    assert not (made.motion & made.answer).any()
    prompt = encode_prompt(item, vocabulary, text_tokenizer)
    assert made.ids[: made.prompt_length].tolist() == prompt
    assert text_tokenizer.decode(prompt[-1:]).endswith("\n")


def test_two_streams(spoken: dict[str, tuple[MotionVocabulary, Any]]) -> None:
    vocabulary, text_tokenizer = spoken["dsft"]
    encoded = Encoded(torch.tensor([1, 2]), torch.tensor([0]), 44)
    made = encode(instruction("text_to_motion", caption="x", answer=MotionSpan(encoded)), vocabulary, text_tokenizer)
    back = vocabulary.tokens(made.ids[made.motion], frames=44)
    assert (back.base_ids.tolist(), back.phys_ids.tolist(), back.T) == ([1, 2], [0], 44)


@pytest.mark.parametrize("options", [{}, {"order": "part"}, {"shared": False}, {"order": "part", "shared": False}])
def test_parts_have_the_ids_that_they_have_in_the_whole(folder: Path, options: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(folder, "parts")
    layout = MotionLayout.of(tokenizer, **options)
    model, text_tokenizer = load_backbone("tiny-gpt2")
    vocabulary = extend(model, text_tokenizer, layout, tokenizer)
    tokens = torch.randint(16, (5, 6), generator=torch.Generator().manual_seed(0))
    item = instruction("part_completion", given=given_parts(tokens, tokenizer.parts, [0, 3]), answer=MotionSpan(tokens))
    texts = [part for part in item.prompt if isinstance(part, str)]
    assert texts == ["Complete the body. Given: root ", f" {tokenizer.parts[3].replace('_', ' ')} "]
    made = encode(item, vocabulary, text_tokenizer)
    ids = made.ids.tolist()
    starts = [i for i, n in enumerate(ids) if n == vocabulary.begin]
    whole = vocabulary.symbol_ids[layout.flatten(tokens)]
    grid = whole.view(5, 6) if layout.order == "time" else whole.view(6, 5).T
    assert [ids[s + 1 : s + 6] for s in starts[:2]] == [grid[:, 0].tolist(), grid[:, 3].tolist()]
    assert ids[starts[2] + 1 : starts[2] + 31] == whole.tolist()


def test_parts_need_a_tokenizer_with_parts(spoken: dict[str, tuple[MotionVocabulary, Any]]) -> None:
    vocabulary, text_tokenizer = spoken["one"]
    item = InstructionItem((MotionSpan(torch.tensor([1, 2]), 0),), ("x",), "part_completion")
    with pytest.raises(VadisError, match="a column of tokens"):
        encode(item, vocabulary, text_tokenizer)


@pytest.mark.parametrize("name", ["one", "dsft", "remapped"])
def test_no_text_becomes_motion(spoken: dict[str, tuple[MotionVocabulary, Any]], name: str) -> None:
    vocabulary, text_tokenizer = spoken[name]
    names = text_tokenizer.convert_ids_to_tokens(vocabulary.new_ids().tolist())
    for attack in [" ".join(names[:60]), "".join(names), f"walk {text_tokenizer.eos_token} on", "<mot></mot><mot_1>"]:
        item = instruction("text_to_motion", caption=attack[:20_000], answer=MotionSpan(torch.tensor([1])))
        prompt = torch.tensor(encode_prompt(item, vocabulary, text_tokenizer))
        assert not vocabulary.is_motion(prompt).any()
        assert not {text_tokenizer.eos_token_id, text_tokenizer.bos_token_id} & set(prompt[1:].tolist())
        assert text_tokenizer.decode(prompt[1:]) == f"Generate a motion: {attack[:20_000]}" or name == "remapped"


# ---- tokenised corpora


def test_tokens_are_those_of_the_tokenizer(folder: Path) -> None:
    corpus = Corpus.open(folder / "corpus-one")
    for name in ("one", "parts", "dsft"):
        tokenizer, tokens = tokenizer_of(folder, name), TokenCorpus.open(folder / name)
        assert len(tokens) == 12 and tokens.streams == (name == "dsft")
        for row in (0, 1, 5):
            assert tokens.value("clip", row) == corpus[row].id
            expected, made = tokenizer.encode(corpus[row].features), tokens.tokens(row)
            if name == "dsft":
                assert torch.equal(made.base_ids, expected.base_ids) and torch.equal(made.phys_ids, expected.phys_ids)
                assert made.T == expected.T
            else:
                assert torch.equal(made, expected)
    assert TokenCorpus.open(folder / "parts").parts == tokenizer_of(folder, "parts").parts
    assert tokens.sentences(0) == [] and tokens.sentences(1) == [("whole", "a person walks on 1")]
    assert tokens.kinds(2) == ["whole", "detailed", "upper", "lower", "file-name"]


def test_dsft_clips_are_cut_to_what_a_length_token_can_say(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "corpus", "ms272", 30) as writer:
        features = torch.randn(47, 272, generator=torch.Generator().manual_seed(0)).cumsum(0) * 0.01
        writer.add("a", features, [], split="train", group="a", source="s", licence="none")
    corpus = Corpus.open(tmp_path / "corpus")
    tokenizer = DSFTTokenizer.fit([features], "ms272", K=(2, 2), vocab=(300, 300))
    tokens = tokenize_corpus(corpus, tokenizer, tmp_path / "tokens", progress=False)
    assert tokens.frames.tolist() == [44]
    assert torch.equal(tokens.tokens(0).base_ids, tokenizer.encode(corpus[0].features[:44]).base_ids)
    with pytest.raises(VadisError, match="nothing of"):
        tokenize_corpus(corpus, tokenizer, tmp_path / "other", captionless=False, progress=False)


def test_an_encoded_corpus_is_read_too(folder: Path, tmp_path: Path) -> None:
    from vadis.data.encoded_corpus import encode_corpus

    class Words:
        name, dim, max_tokens = "words", 4, 8

        def encode_each(self, texts: list[str]) -> Any:
            return ((i, torch.zeros(2, 4)) for i, _ in enumerate(texts))

    corpus = Corpus.open(folder / "corpus-one")
    for name in ("one", "parts"):
        encode_corpus(corpus, tokenizer_of(folder, name), Words(), tmp_path / name, progress=False)
        made, own = TokenCorpus.open(tmp_path / name), TokenCorpus.open(folder / name)
        assert made.facts == own.facts and made.parts == own.parts
        assert len(made) == len(own) - 1  # the clip without captions
        assert torch.equal(made.tokens(3), own.tokens(4)) and made.sentences(3) == own.sentences(4)


def test_damaged_and_foreign_tokens(folder: Path, spoken: Any, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no tokenised corpus"):
        TokenCorpus.open(tmp_path)
    tokens = TokenCorpus.open(folder / "one")
    tokens.check(spoken["one"][0])
    with pytest.raises(ModelError, match="another tokenizer"):
        tokens.check(spoken["dsft"][0])
    for damage in ("{", '{"format": "vadis-tokens", "version": 9}', '{"format": "vadis-tokens", "version": 1}'):
        (tmp_path / "tokens.json").write_text(damage)
        with pytest.raises(FileError):
            TokenCorpus.open(tmp_path)
    for name in ("tokens.npy", "index.parquet", "texts.parquet"):
        (tmp_path / name).write_bytes((folder / "one" / name).read_bytes())
    page = json.loads((folder / "one/tokens.json").read_text())
    (tmp_path / "tokens.json").write_text(json.dumps(page | {"steps": 5}))
    with pytest.raises(FileError, match=r"tokens.npy holds .* expected \(5, any\)"):
        TokenCorpus.open(tmp_path)
    with pytest.raises(VadisError, match="Splits: train, val"):
        tokens.subset("test")
    with pytest.raises(VadisError, match="latents"):
        tokenize_corpus(
            Corpus.open(folder / "corpus-one"), motion_tokenizer_of_latents(), tmp_path / "x", progress=False
        )


def motion_tokenizer_of_latents() -> Any:
    class Latents:
        continuous = True

    return Latents()


# ---- draws


def data(folder: Path, *names: str, **options: Any) -> InstructionData:
    return InstructionData(tuple(TokenSource(str(folder / name)) for name in names or ("one",)), **options)


def test_draws_depend_on_seed_and_step_only(folder: Path) -> None:
    tasks = dict.fromkeys((t for t in TEMPLATES if t != "part_completion"), 1.0)
    reader = Instructions(data(folder, tasks=tasks))
    first = [shown(item) for item in reader.at(3, 7, 20)]
    reader.at(3, 8, 5)
    assert [shown(item) for item in reader.at(3, 7, 20)] == first
    assert [shown(i) for i in Instructions(data(folder, tasks=tasks)).at(3, 7, 20)] == first
    others = [reader.at(4, 7, 20), reader.at(3, 8, 20), reader.at(3, 7, 20, process=1)]
    assert all([shown(item) for item in other] != first for other in others)
    assert {item.task for item in reader.at(0, 0, 100)} == set(tasks)
    assert "one-11" not in {item.clip for item in reader.at(0, 0, 300)}  # of the other split
    assert {item.clip for item in Instructions(data(folder), split="val").at(0, 0, 5)} == {"one-11"}


def shown(item: InstructionItem) -> list[Any]:
    return [p if isinstance(p, str) else (p.tokens.tolist(), p.part) for p in item.prompt + item.answer]


def test_levels_of_captions(folder: Path) -> None:
    reader = Instructions(data(folder))
    corpus, rng = reader.sources[0], random.Random(0)
    drawn = Counter(frozenset(reader.captions(corpus, 5, rng)) for _ in range(4000))
    whole, both = frozenset({"caption"}), frozenset({"caption", "upper", "lower"})
    assert drawn[whole] / 4000 == pytest.approx(0.5, abs=0.03) and drawn[both] / 4000 == pytest.approx(0.3, abs=0.03)
    halves = [drawn[frozenset(some)] / 4000 for some in ({"upper"}, {"lower"}, {"upper", "lower"})]
    assert sum(halves) == pytest.approx(0.2, abs=0.03) and min(halves) > 0.04
    assert len(drawn) == 5
    said = Counter(reader.captions(corpus, 5, rng).get("caption") for _ in range(400))
    assert set(said) == {None, "a person walks on 5", "the man goes ahead 5"}  # never the name of the file
    assert {frozenset(reader.captions(corpus, 1, rng)) for _ in range(50)} == {whole}
    items = [reader.item(corpus, 5, "text_to_motion", rng) for _ in range(200)]
    assert any("Arms swing. 5" in str(i.prompt[0]) and "a person walks on 5" in str(i.prompt[0]) for i in items)
    words = {str(reader.item(corpus, 5, "motion_to_text", rng).answer[0]) for _ in range(200)}
    assert words == {f"{said} 5" for said in SAID}


def test_what_prediction_and_in_between_give_and_ask(folder: Path) -> None:
    reader = Instructions(data(folder, "parts", tasks={"prediction": 1, "in_between": 1, "part_completion": 1}))
    rng = random.Random(0)
    for row in range(len(reader.sources[0])):
        tokens = reader.sources[0].tokens(row)
        for task in reader.data.tasks:
            item = reader.item(reader.sources[0], row, task, rng)
            spans = [part for part in item.prompt if isinstance(part, MotionSpan)]
            answer = item.answer[0]
            assert isinstance(answer, MotionSpan)
            if task == "part_completion":
                assert 1 <= len(spans) < 6 and len({s.part for s in spans}) == len(spans)
                assert torch.equal(answer.tokens, tokens)
            else:
                rest = [s.tokens for s in spans]
                assert torch.equal(torch.cat([rest[0], answer.tokens, *rest[1:]]), tokens)
                share = 0.2 if task == "prediction" else 0.25
                assert all(abs(len(r) - share * len(tokens)) <= 0.5 for r in rest)
    assert [prediction_steps(n) for n in (2, 3, 10, 49)] == [1, 1, 2, 10]
    assert [in_between_steps(n) for n in (3, 4, 5, 8, 49)] == [1, 1, 1, 2, 12]


def test_weights_of_a_mixture(folder: Path) -> None:
    sources = (TokenSource(str(folder / "one"), 3.0), TokenSource(str(folder / "two"), 1.0))
    counts = Counter(item.clip.split("-")[0] for item in Instructions(InstructionData(sources)).at(0, 0, 2000))
    assert counts["one"] / 2000 == pytest.approx(0.75, abs=0.03)
    captioned = {item.clip for item in Instructions(data(folder)).at(0, 0, 300)}
    assert captioned == {f"one-{i}" for i in range(1, 11)}
    free = Instructions(data(folder, tasks={"unconditional": 1.0})).at(0, 0, 300)
    assert {item.clip for item in free} == {f"one-{i}" for i in range(11)}
    assert all(not set(SAID) & set(str(item.prompt[0]).split(". ")) for item in free)


def test_unseen_sources(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "unseen.txt"
    listed.write_text("# a comment\n\n one two \n")
    mixture = data(folder, "one", unseen_sources=str(listed))
    seen, unseen = Instructions(mixture), Instructions(mixture, unseen=True, split="train")
    assert set(seen.sources[0].column("source")) == {"one"}
    assert set(unseen.sources[0].column("source")) == {"one two"}
    assert not {i.clip for i in seen.fixed()} & {i.clip for i in unseen.fixed()}
    with pytest.warns(UserWarning, match="names none of the unseen sources"):
        Instructions(data(folder, "one", "two", unseen_sources=str(listed)))
    listed.write_text("elsewhere\n")
    with pytest.raises(VadisError, match="'elsewhere'. Sources: one, one two"):
        Instructions(data(folder, unseen_sources=str(listed)))
    with pytest.raises(VadisError, match="no list"):
        Instructions(data(folder), unseen=True)
    for content in (b"#\n", b"\xff"):
        listed.write_bytes(content)
        with pytest.raises(FileError, match="list of sources"):
            source_names(listed)


def test_fixed_items_are_those_of_evaluation(folder: Path) -> None:
    reader = Instructions(data(folder))
    items = list(reader.fixed())
    assert [item.clip for item in items] == [f"one-{i}" for i in range(1, 11)]
    assert [item.prompt for item in items] == [(f"Generate a motion: a person walks on {i}",) for i in range(1, 11)]
    assert [item.clip for item in reader.fixed(limit=2)] == ["one-1", "one-6"]
    assert [i.answer for i in reader.fixed("motion_to_text", 1)] == [("a person walks on 1",)]
    plain = Instructions(data(folder, paraphrases=False, caption_levels=(1, 0, 0))).at(0, 0, 50)
    assert all(str(item.prompt[0]).startswith("Generate a motion: ") for item in plain)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("dsft",), {"tasks": {"prediction": 1.0}}, "steps"),
        (("one",), {"tasks": {"part_completion": 1.0}}, "parts of the body"),
        (("one", "dsft"), {}, "same tokenizer"),
        (("one",), {"tasks": {"dance": 1.0}}, "no task 'dance'"),
        (("one",), {"tasks": {"unconditional": 0.0}}, "greater than 0"),
        (("one",), {"caption_levels": (0, 0, 0)}, "caption_levels"),
    ],
)  # fmt: skip
def test_mixtures_that_cannot_be_drawn_from(folder: Path, names: tuple[str], options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Instructions(data(folder, *names, **options))


def test_dsft_items(folder: Path, spoken: dict[str, tuple[MotionVocabulary, Any]]) -> None:
    reader = Instructions(data(folder, "dsft", tasks={"text_to_motion": 1, "motion_to_text": 1, "unconditional": 1}))
    reader.check(spoken["dsft"][0])
    for item in reader.at(0, 0, 20):
        made = encode(item, *spoken["dsft"])
        assert item.frames == spoken["dsft"][0].tokens(made.ids[made.motion], frames=item.frames).T


# ---- static poses


def test_a_held_pose_stands_still_and_is_described(walk: Motion) -> None:
    held = hold_pose(walk, 10)
    assert held.num_frames == FRAMES and torch.equal(held.positions[0], held.positions[-1])
    stance, lean, arms, _ = pose_facts(kinematic_plan(held.positions, held.fps)[0])
    assert (stance, lean, arms) == ("standing", None, {"left": "down", "right": "down"})
    raised = held.rotations.clone()
    shoulder = held.skeleton.index("left_shoulder")
    raised[:, shoulder] = held.rotations[:, shoulder].transpose(-1, -2)  # the same angle, upwards
    facts = pose_facts(kinematic_plan(held.replace(rotations=raised).positions, held.fps)[0])
    assert facts[0] == "standing" and facts[2]["left"] == "up" and facts[2]["right"] == "down"


def test_static_clips_keep_what_their_recording_is(walk: Motion, tmp_path: Path) -> None:
    from vadis.representations import representation

    with CorpusWriter(tmp_path / "corpus", "ms272", 30) as writer:
        for i in range(3):
            features = representation("ms272").encode(walk)
            writer.add(f"w{i}", features, [], split="val" if i else "train", group=f"g{i}", source=f"s{i}", licence="x")
    made = static_corpus(Corpus.open(tmp_path / "corpus"), tmp_path / "static", 6)
    again = static_corpus(Corpus.open(tmp_path / "corpus"), tmp_path / "again", 6)
    for clip, other in zip(made, again, strict=True):
        number = clip.extra["static"][1:]
        assert (clip.group, clip.source, clip.split) == (f"g{number}", f"s{number}", "val" if int(number) else "train")
        assert clip.features.shape == (64, 272) and torch.equal(clip.features, other.features)
        assert clip.captions == other.captions and all(c.kind == "automatic" for c in clip.captions)
        positions = representation("ms272").decode(clip.features).positions
        assert float((positions - positions[:1]).abs().max()) < 1e-3
    with pytest.raises(VadisError, match="1 or more"):
        static_corpus(made, tmp_path / "none", 0)


# ---- verbs


def test_the_verbs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer_of(folder, "dsft").save_pretrained(tmp_path / "dsft")
    corpus, out = str(folder / "corpus-one"), str(tmp_path / "tokens")
    assert main(["data", "tokens", corpus, out, "--tokenizer", str(tmp_path / "dsft")]) == 0
    assert len(TokenCorpus.open(out)) == 12
    capsys.readouterr()
    assert main(["data", "instructions", out, "--count", "2", "--tasks", "text_to_motion", "unconditional"]) == 0
    assert capsys.readouterr().out.count('"motion"') == 2
    assert main(["data", "instructions", out, "--rows", str(tmp_path / "rows"), "--own-splits"]) == 0
    assert (tmp_path / "rows/motion_tokens.txt").exists()
    rows = str(tmp_path / "rows/train.jsonl")
    assert main(["data", "tokens", rows, str(tmp_path / "back"), "--tokenizer", str(tmp_path / "dsft")]) == 0
    back = TokenCorpus.open(tmp_path / "back")
    assert len(back) == 11 and set(back.column("split")) == {"train", "val"}
    assert main(["data", "tokens", rows, str(tmp_path / "no"), "--tokenizer", "vadis-mini"]) == 2
    assert "rows hold tokens of DSFT" in capsys.readouterr().err
    assert main(["data", "instructions", str(folder / "one"), "--rows", str(tmp_path / "no")]) == 2
