"""DSFT against the original: transform integers, byte-level tokens, ill-formed input, sequences, chat rows, frequency reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vadis
from vadis.errors import VadisError
from vadis.tokenizers import frequency
from vadis.tokenizers.dsft import sequence
from vadis.tokenizers.dsft.codec import ByteLevelBPE, IntegerBPE
from vadis.tokenizers.dsft.split import SPLITS
from vadis.tokenizers.dsft.tokenizer import DSFTConfig, DSFTTokenizer, DSFTTransform, SplitSpec

from .fixtures import arrays, manifest, manifests

STREAMS = ("base", "phys")


def folders(word: str) -> list[Any]:
    """The folders of the kind asked for; every folder of this topic must be of exactly one kind."""
    result = []
    for parameter in manifests("dsft"):
        if (folder := parameter.values[0]) is None:
            return [parameter]
        page = manifest(folder)
        kinds = {
            "transform": "identity symbol coder" in page.get("how", ""),
            "bpe": "ill_formed" in page,
            "sequence": "tokenized_json" in page,
            "frequency": "literal_report" in page,
        }
        assert sum(kinds.values()) == 1, f"{folder}: a kind of fixture that this test does not know"
        result += [parameter] if kinds[word] else []
    return result


def numbers(folder: Path, prefix: str = "") -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in arrays(folder, prefix).items()}


def split_of(case: dict[str, Any], data: dict[str, np.ndarray]) -> SplitSpec:
    name = {276: "276", 272: "272"}.get(case["dim"])
    if name is None:
        name = "263_upstream" if "upstream" in case["name"] else "263_semantic"
    return SplitSpec.from_columns(name, data[f"split{name}_base"], data[f"split{name}_phys"])


@pytest.mark.parametrize("folder", folders("transform"))
def test_transform_integers_and_reconstruction(folder: Path) -> None:
    cases, data = manifest(folder)["cases"], numbers(folder)
    for case in cases:
        config = DSFTConfig(
            representation="other", fps=20, split=split_of(case, data), K=(case["K_base"], case["K_phys"]),
            scale=(case["scale"], case["scale"]), normalize="none",
        )  # fmt: skip
        stage, x = DSFTTransform(config), data[f"{case['name']}/motion"]
        integers = stage.transform(x)
        for stream, made, columns in zip(STREAMS, integers, config.split.columns, strict=True):
            expected = data[f"{case['name']}/{stream}_int"]
            gap = np.abs(made.numpy() - expected)
            assert gap.max() <= 1 and gap.sum() <= case[stream]["near_half_integer_coefs"], (case["name"], stream)
            coefficients = frequency.cosine_basis(len(x), len(expected)) @ x[:, columns]
            target = data[f"{case['name']}/{stream}_coef"]
            assert np.abs(coefficients - target).max() <= 1e-5 * np.abs(target).max()
        stored = [data[f"{case['name']}/{stream}_int"] for stream in STREAMS]
        made = stage.inverse_transform(stored, len(x)).numpy()
        for stream, columns in zip(STREAMS, config.split.columns, strict=True):
            assert np.abs(made[:, columns] - data[f"{case['name']}/{stream}_recon"]).max() <= 1e-5


@pytest.mark.parametrize("folder", folders("transform"))
def test_known_splits_are_those_of_the_original(folder: Path) -> None:
    data = numbers(folder)
    names = {"276": "vimogen276", "263_upstream": "upstream_shifted", "263_semantic": "hml263", "272": "ms272"}
    for key, name in names.items():
        for stream, columns in zip(STREAMS, SPLITS[name].columns, strict=True):
            if f"split{key}_{stream}" in data:
                assert np.array_equal(columns, data[f"split{key}_{stream}"])


@pytest.mark.parametrize("folder", folders("bpe"))
def test_byte_level_tokens_and_decoding(folder: Path) -> None:
    page, data = manifest(folder), numbers(folder)
    tok = vadis.import_checkpoint("dsft", folder / "tokenizer")
    for case in page["cases"]:
        x = data[f"{case['name']}/motion"]
        if "error" in case:
            with pytest.raises(VadisError, match="smallest"):
                tok.encode(x)
            continue
        encoded = tok.encode(x)
        made = tok.decode(encoded.base_ids, encoded.phys_ids, encoded.T).numpy()
        for stream, columns in zip(STREAMS, tok.config.split.columns, strict=True):
            assert np.array_equal(getattr(encoded, f"{stream}_ids"), data[f"{case['name']}/{stream}_tokens"])
            assert np.abs(made[:, columns] - data[f"{case['name']}/{stream}_recon"]).max() <= 1e-4
        assert tok.encode_batch([x, x])[1].base_ids.tolist() == encoded.base_ids.tolist()


@pytest.mark.parametrize("folder", folders("bpe"))
def test_ill_formed_tokens_decode_as_in_the_original(folder: Path) -> None:
    page, data = manifest(folder), numbers(folder)
    tok = DSFTTokenizer.load(folder / "tokenizer")
    for case in page["ill_formed"]:
        ids = data[f"ill/{case['name']}_ids"]
        codec = tok.codecs[0]
        assert isinstance(codec, ByteLevelBPE)
        assert np.array_equal(codec.decode(ids) - codec.min_token, data[f"ill/{case['name']}_codepoints"])
        expected = data[f"ill/{case['name']}_recon_T80"]
        made = tok.decode(ids, [], 80).numpy()[:, tok.config.split.base]
        assert np.abs(made - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
        for how in ("repair", "zero"):
            assert torch.isfinite(tok.decode(ids, [], 80, on_error=how)).all()


@pytest.mark.parametrize("folder", folders("bpe"))
def test_fitting_gives_the_original_tokenizer_and_files(folder: Path, tmp_path: Path) -> None:
    page, data = manifest(folder), numbers(folder)
    for stream in STREAMS:
        clips = np.split(data[f"train/{stream}_ints"], np.cumsum(data[f"train/{stream}_len"])[:-1])
        made = ByteLevelBPE.fit(clips, page["config"][f"{stream}_vocab"])
        stored, facts = ByteLevelBPE.load(folder / "tokenizer" / stream)
        assert made.min_token == stored.min_token == page[stream]["min_token"]
        assert made.vocab_size == page[stream]["vocab_size"]
        made.save(tmp_path / stream, facts["scale"], facts["K"], facts["action_dim"])
        for file in ("tokenizer.json", "fast_config.json", "tokenizer_config.json"):
            text = (folder / "tokenizer" / stream / file).read_text(encoding="utf-8")
            assert json.loads((tmp_path / stream / file).read_text(encoding="utf-8")) == json.loads(text)


@pytest.mark.parametrize("folder", folders("bpe"))
def test_integer_codec_is_lossless_and_not_longer(folder: Path) -> None:
    """On every clip of the fixture: the same integers back, at most 1.05 times the tokens of the byte codec."""
    page, data = manifest(folder), numbers(folder)
    original = DSFTTokenizer.load(folder / "tokenizer")
    for stream in STREAMS:
        clips = np.split(data[f"train/{stream}_ints"].astype(np.int64), np.cumsum(data[f"train/{stream}_len"])[:-1])
        codec = IntegerBPE.fit(clips, page["config"][f"{stream}_vocab"])
        ids, clipped = codec.encode_batch(clips)
        assert not any(clipped)
        assert all(np.array_equal(codec.decode(i), clip) for i, clip in zip(ids, clips, strict=True))
        theirs = original.codecs[STREAMS.index(stream)]
        assert sum(map(len, ids)) <= 1.05 * sum(len(theirs.encode(clip)[0]) for clip in clips)
        for case in page["cases"]:
            integers = original.transform(data[f"{case['name']}/motion"])[STREAMS.index(stream)].flatten().numpy()
            ids_of_case, cut = codec.encode(integers)
            assert np.array_equal(codec.decode(ids_of_case), np.clip(integers, codec.low, codec.high))
            assert cut == ((integers < codec.low) | (integers > codec.high)).sum()


@pytest.mark.parametrize("folder", folders("bpe"))
def test_native_tokenizer_survives_the_ill_formed_sequences(folder: Path) -> None:
    page, data = manifest(folder), numbers(folder)
    clips = [data[f"{case['name']}/motion"] for case in page["cases"] if "error" not in case]
    original = DSFTTokenizer.load(folder / "tokenizer")
    tok = DSFTTokenizer.fit(clips, original.representation, scale=(2, 2))
    for case in page["ill_formed"]:
        ids = data[f"ill/{case['name']}_ids"]
        for how in ("repair", "zero"):
            made = tok.decode(ids, ids, 80, on_error=how)
            assert torch.isfinite(made).all()
            assert ((made - tok.mean).abs() <= 1.001 * tok.reach).all()
        parsed = tok.parse(np.concatenate([[0], ids + sequence.BASE, [sequence.SEP], ids + sequence.PHYS, [1]]), 80)
        assert parsed.issues


@pytest.mark.parametrize("folder", folders("sequence"))
def test_sequences_and_chat_rows(folder: Path) -> None:
    page, data = manifest(folder), numbers(folder)
    tok = DSFTTokenizer.load((folder / page["tokenizer"]).resolve())
    texts = {}
    for name in sorted({key.split("/")[0] for key in data if key.endswith("/seq")}):
        encoded = tok.encode(data[f"{name}/motion"])
        made = tok.to_sequence(encoded)
        assert np.array_equal(made, data[f"{name}/seq"])
        assert [encoded.T, len(encoded.base_ids), len(encoded.phys_ids)] == data[f"{name}/meta"].tolist()
        texts[name] = tok.to_text(encoded)
        assert np.array_equal(sequence.text_to_numbers(texts[name]), made)
    options = page["prepare_args"]
    items = [(item, sequence.split_rows([item], 1)[0][0]) for item in page["tokenized_json"]]
    train, valid = sequence.split_rows([item for item, _ in items], options["split"], options["seed"])
    for found, expected in ((train, page["train_rows"]), (valid, page["val_rows"])):
        images = [
            item.get("image_path") and f"{options['image_output_dir']}/{Path(item['image_path']).name}"
            for item in found
        ]
        rows = [sequence.chat_row(i["text"], texts[i["id"]], image) for i, image in zip(found, images, strict=True)]
        assert rows == expected
    names = sequence.token_names()
    facts = page["motion_tokens"]
    assert len(names) == facts["lines"] and names[:5] == facts["first5"] and names[-1] == facts["last"]


@pytest.mark.parametrize("folder", folders("frequency"))
def test_frequency_analysis(folder: Path) -> None:
    page, data = manifest(folder), numbers(folder)
    config, atol = page["config"], float(page["tolerance"].split()[0])
    for group in page["groups"]:
        name = group["name"]
        clips = [data[f"{name}/clip{i}"] for i in range(len(group["clips"]))]
        energies = frequency.energy_map(clips, config["K_total"])
        ratio = frequency.low_frequency_ratio(energies, config["K_threshold"])
        np.testing.assert_allclose(energies, data[f"{name}/energy_map"], atol=atol, rtol=0)
        np.testing.assert_allclose(ratio, data[f"{name}/low_freq_ratio"], atol=atol, rtol=0)
        split = SplitSpec.from_frequency(clips, config["split_threshold"], config["K_threshold"], config["K_total"])
        assert np.array_equal(split.base, data[f"{name}/base_dims"])
        assert np.array_equal(split.phys, data[f"{name}/phys_dims"])
        for stream, columns in zip(STREAMS, split.columns, strict=True):
            curve = frequency.coverage(energies, columns)
            np.testing.assert_allclose(curve, data[f"{name}/cum_{stream}"], atol=atol, rtol=0)
            assert frequency.coefficients_for(curve) == group[f"k_{stream}_86"]
            assert curve[config["K_threshold"] - 1] == pytest.approx(group[f"{stream}_at_5"], abs=atol)


@pytest.mark.parametrize("folder", folders("frequency"))
def test_published_and_true_error_report(folder: Path) -> None:
    page, data = manifest(folder), numbers(folder)
    x = data["h263_eval_clip"]
    made = frequency.published_errors(x, data["mean263"], data["std263"], SPLITS["upstream_shifted"])
    assert made == pytest.approx(page["literal_report"], abs=1e-6)
    positions = vadis.representation("hml263").slices["joint_positions"]
    true = frequency.truncation_errors(x, SPLITS["hml263"], positions=positions)
    assert true["mpjpe"] == pytest.approx(page["correct_local_mpjpe_m"], abs=1e-6)
