"""DSFT: exact coding of integers, sequences and what is wrong with them, files, splits, input that is refused."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vadis
from vadis.errors import FileError, ModelError, ShapeError, VadisError
from vadis.motion import Motion
from vadis.tokenizers.dsft import DSFTTokenizer, sequence
from vadis.tokenizers.dsft.codec import ByteLevelBPE, IntegerBPE
from vadis.tokenizers.dsft.files import load_tokens, save_tokens
from vadis.tokenizers.dsft.sequence import Encoded, Finding, Issue, MalformedMotion
from vadis.tokenizers.dsft.split import SPLITS, SplitSpec
from vadis.tokenizers.frequency import analyze, truncate


def smooth(frames: int, dim: int, seed: int, amount: float = 1.0) -> np.ndarray:
    """A random clip of slow waves around an offset, float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None] / 30
    waves = sum(rng.normal(size=dim) * np.sin(2 * np.pi * f * t + rng.uniform(0, 6, dim)) / f for f in (0.3, 0.7, 1.5))
    return (amount * waves + rng.normal(size=dim) * 0.1 + 1).astype(np.float32)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [smooth(40 + 8 * (i % 4), 272, i) for i in range(12)]


@pytest.fixture(scope="module")
def tok(clips: list[np.ndarray]) -> DSFTTokenizer:
    return DSFTTokenizer.fit(clips, "ms272", vocab=(2048, 2048))


@pytest.fixture(scope="module")
def integer_codec() -> IntegerBPE:
    rng = np.random.default_rng(0)
    return IntegerBPE.fit([np.rint(rng.laplace(0, 3, 300)).astype(int) for _ in range(20)], 256)


# ---- codecs


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-200, 200), max_size=200))
def test_integer_codec_is_lossless_up_to_clipping(integer_codec: IntegerBPE, values: list[int]) -> None:
    symbols = np.array(values, dtype=np.int64)
    ids, clipped = integer_codec.encode(symbols)
    inside = np.clip(symbols, integer_codec.low, integer_codec.high)
    assert np.array_equal(integer_codec.decode(ids), inside)
    assert clipped == (inside != symbols).sum()
    assert integer_codec.lengths[ids].sum() == len(values)


def test_integer_codec_applies_the_merges_in_order() -> None:
    """Byte-pair coding by its definition, one merge after the other over the whole string."""
    rng = np.random.default_rng(1)
    strings = [rng.integers(-3, 4, 120) for _ in range(10)]
    codec = IntegerBPE.fit(strings, 120)
    for symbols in strings:
        ids = list(symbols - codec.low)
        for number, (a, b) in enumerate(codec.merges.tolist()):
            i = 0
            while i + 1 < len(ids):
                if ids[i] == a and ids[i + 1] == b:
                    ids[i : i + 2] = [codec.alphabet_size + number]
                i += 1
        assert codec.encode(symbols)[0].tolist() == ids


def test_bounded_tokens_do_not_cross_rows() -> None:
    strings = [np.tile([1, 2, 3, 4, 5], 12) for _ in range(5)]
    codec = IntegerBPE.fit(strings, 64, row_width=5)
    ids, _ = codec.encode(strings[0])
    ends = np.cumsum(codec.lengths[ids])
    assert set(range(5, 61, 5)) <= set(ends.tolist())
    assert np.array_equal(codec.decode(ids), strings[0])
    assert codec.lengths[ids].max() == 5


def test_damaged_merges_are_refused(integer_codec: IntegerBPE) -> None:
    wrong = integer_codec.merges.copy()
    wrong[0] = 9999
    with pytest.raises(ModelError, match="does not exist"):
        IntegerBPE(integer_codec.low, integer_codec.high, wrong)
    with pytest.raises(ModelError, match="same integers"):
        IntegerBPE(0, 3, np.array([[0, 1], [0, 1]]))
    with pytest.raises(ModelError, match="alphabet"):
        IntegerBPE(0, 30_000, np.zeros((0, 2)))


def test_outliers_leave_room_for_merges() -> None:
    codec = IntegerBPE.fit([np.concatenate([np.tile([1, 2, 3], 50), [9000, -9000]])], 256)
    assert codec.alphabet_size < 0.8 * 256 and len(codec.merges) > 0
    ids, clipped = codec.encode(np.array([1, 2, 3, 9000]))
    assert clipped == 1 and codec.decode(ids).tolist() == [1, 2, 3, codec.high]


def test_vocabularies_that_are_too_small_are_refused() -> None:
    with pytest.raises(VadisError, match="can't hold"):
        IntegerBPE.fit([np.arange(5000, 6000)], 256)
    with pytest.raises(VadisError, match="exceed"):
        ByteLevelBPE.fit([np.arange(500)], 256)
    with pytest.raises(VadisError, match="at least one"):
        IntegerBPE.fit([], 256)


def test_byte_codec_refuses_what_the_original_crashes_on() -> None:
    codec = ByteLevelBPE.fit([np.arange(10), np.arange(10)], 300)
    with pytest.raises(VadisError, match="below 0"):
        codec.encode(np.array([-1]))
    with pytest.raises(VadisError, match="too large"):
        codec.encode(np.array([0xD900]))


# ---- coding clips


def test_integers_come_back_exactly(tok: DSFTTokenizer, clips: list[np.ndarray]) -> None:
    for x in clips[:4]:
        encoded = tok.encode(x)
        integers = tok.transform(x)
        assert encoded.clipped == 0
        assert torch.equal(tok.inverse_transform(integers, len(x)), tok.decode(encoded))
        assert np.array_equal(tok.codecs[0].decode(encoded.base_ids.numpy()), integers[0].flatten())


def test_decoding_is_truncation_up_to_rounding(clips: list[np.ndarray]) -> None:
    fine = DSFTTokenizer.fit(clips, "ms272", K=(20, 20), scale=(30, 30), vocab=(4096, 4096))
    x = clips[0]
    expected = truncate((x - fine.mean.numpy()) / fine.std.numpy(), 20) * fine.std.numpy() + fine.mean.numpy()
    # Half a unit of each of 20 coefficients, all of them in one frame.
    bound = 0.5 / 30 * 20 * np.sqrt(2 / len(x)) * fine.std.numpy() + 1e-4
    assert (np.abs(fine.decode(fine.encode(x)).numpy() - expected) <= bound).all()


def test_the_root_is_coded_in_finer_steps(clips: list[np.ndarray]) -> None:
    drift = []
    for precision in (1, 3):
        tok = DSFTTokenizer.fit(clips, "ms272", K=(5, 64), scale=(1, 1), root_precision=precision)
        made = [tok.decode(encoded).numpy() for encoded in tok.encode_batch(clips)]
        gaps = [np.abs((x - y)[:, :8].sum(axis=0)).mean() for x, y in zip(clips, made, strict=True)]
        drift.append(np.mean(gaps))
    assert drift[1] < 0.6 * drift[0]


@pytest.mark.parametrize("frames", [1, 2, 3, 10, 300])
def test_any_length_is_coded(tok: DSFTTokenizer, frames: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # longer clips have larger coefficients than those it was fitted on
        encoded = tok.encode(smooth(frames, 272, 3))
    made = tok.decode(encoded.base_ids, encoded.phys_ids, encoded.T)
    assert made.shape == (frames, 272) and torch.isfinite(made).all()


def test_batches_equal_single_clips(tok: DSFTTokenizer, clips: list[np.ndarray]) -> None:
    together, alone = tok.encode_batch(clips), [tok.encode(x) for x in clips]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.base_ids, b.base_ids) and torch.equal(a.phys_ids, b.phys_ids) and a.T == b.T
    for a, b in zip(tok.decode_batch(together), alone, strict=True):
        torch.testing.assert_close(a, tok.decode(b), atol=1e-5, rtol=0)


def test_wild_clips_are_clipped_with_a_warning(tok: DSFTTokenizer) -> None:
    with pytest.warns(UserWarning, match="clipped"):
        encoded = tok.encode(smooth(60, 272, 5, amount=50))
    assert encoded.clipped > 0
    made = tok.decode(encoded)
    assert ((made - tok.mean).abs() <= 1.001 * tok.reach).all() and (tok.reach >= 9.99 * tok.std).all()


def test_a_motion_is_brought_into_the_representation(tok: DSFTTokenizer, walk: Motion) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert walk.num_frames == tok.encode(walk).T


def test_single_stream_and_windows(clips: list[np.ndarray]) -> None:
    one = SplitSpec("single", ((0, 272),))
    tok = DSFTTokenizer.fit(clips, "ms272", K=(10, 1), split=one, vocab=(1024, 1024), window=20)
    x = np.concatenate(clips[:2])
    assert tok.reconstruct(x).shape == x.shape
    encoded = tok.encode(clips[0])
    assert len(encoded.phys_ids) == 0
    assert tok.parse(tok.to_sequence(encoded), encoded.T).issues == ()
    pieces = [tok.encode(piece) for piece in tok.windows(x)]
    assert tok.bits(x) == pytest.approx(sum(len(p.base_ids) for p in pieces) * np.log2(tok.vocab_sizes[0]))
    with pytest.raises(VadisError, match="window"):
        DSFTTokenizer.fit(clips, "ms272", window=1)


def test_report_of_rate_and_error(clips: list[np.ndarray]) -> None:
    rough = DSFTTokenizer.fit(clips, "ms272", vocab=(2048, 2048)).report(clips)
    fine = DSFTTokenizer.fit(clips, "ms272", K=(30, 30), scale=(40, 40), vocab=(4096, 4096)).report(clips)
    assert fine["local_mm"] < rough["local_mm"] and fine["rrmse_base"] < rough["rrmse_base"]
    assert fine["bits_per_second"] > rough["bits_per_second"]
    assert rough["clipped_share"] == 0 and rough["clips"] == len(clips)
    total = rough["tokens_per_frame_base"] + rough["tokens_per_frame_phys"]
    assert rough["tokens_per_second"] == pytest.approx(30 * rough["tokens_per_frame"])
    assert total == pytest.approx(rough["tokens_per_frame"], rel=0.1)


# ---- sequences


def test_sequences_and_texts_come_back(tok: DSFTTokenizer, clips: list[np.ndarray]) -> None:
    encoded = tok.encode(clips[0])
    for length in (False, True):
        numbers, text = tok.to_sequence(encoded, length), tok.to_text(encoded, length)
        assert numbers[0] == 0 and numbers[-1] == 1 and (numbers == 32099).sum() == 1
        for tokens in (numbers, text):
            again = tok.from_sequence(tokens, None if length else encoded.T)
            assert torch.equal(again.base_ids, encoded.base_ids) and torch.equal(again.phys_ids, encoded.phys_ids)
            assert again.T == encoded.T
    with pytest.raises(VadisError, match="no length token"):
        tok.from_sequence(tok.to_sequence(encoded))
    with pytest.raises(VadisError, match="crop"):
        tok.to_sequence(Encoded(encoded.base_ids, encoded.phys_ids, 41), length_token=True)


def issues_of(tok: DSFTTokenizer, tokens: object, T: int) -> set[Issue]:
    return {finding.issue for finding in tok.parse(tokens, T).issues}


def test_every_fault_of_a_sequence_is_named(tok: DSFTTokenizer, clips: list[np.ndarray]) -> None:
    encoded = tok.encode(clips[0])
    T, good = encoded.T, list(tok.to_sequence(encoded))
    cut = good.index(32099)
    base, phys = good[1:cut], good[cut + 1 : -1]
    assert issues_of(tok, good, T) == set()
    assert issues_of(tok, good[1:], T) == {Issue.MISSING_BOS}
    assert issues_of(tok, good[:-1], T) == {Issue.MISSING_EOS}
    assert issues_of(tok, [0, *base, *phys, 1], T) == {Issue.MISSING_SEP}
    assert issues_of(tok, [0, 5, *base, 32099, *phys, 1], T) == {Issue.FOREIGN_TOKEN}
    assert issues_of(tok, [0, *base, 32099, *phys, 32100, 1], T) == {Issue.BASE_AFTER_SEP}
    assert issues_of(tok, [0, *base, phys[0], 32099, *phys, 1], T) == {Issue.PHYS_BEFORE_SEP}
    assert issues_of(tok, [0, *base, 32099, 32099, *phys, 1], T) == {Issue.REPEATED_MARKER}
    assert issues_of(tok, [0, 32099, *phys, 1], T) == {Issue.EMPTY_BASE, Issue.WRONG_LENGTH}
    assert issues_of(tok, [0, *base, 32099, 1], T) == {Issue.EMPTY_PHYS, Issue.WRONG_LENGTH}
    assert issues_of(tok, [0, *base, 32100 + tok.vocab_sizes[0], 32099, *phys, 1], T) == {Issue.FOREIGN_TOKEN}
    assert issues_of(tok, [0, 32100, *base[1:], 32099, *phys, 1], T) >= {Issue.CLIPPED}
    assert issues_of(tok, "hello <mot_bos> <mot_b_9999>", T) >= {Issue.FOREIGN_TOKEN, Issue.MISSING_SEP}
    assert Finding(Issue.WRONG_LENGTH, "base", 0, 5 * 198) in tok.parse([0, 32099, *phys, 1], T).issues


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from([0, 1, 32099, -1]), st.integers(32000, 40600)), max_size=60))
def test_no_sequence_makes_parsing_or_repair_fail(tok: DSFTTokenizer, numbers: list[int]) -> None:
    parsed = tok.parse(numbers, 40)
    assert parsed.issues
    for how in ("repair", "zero"):
        made = tok.decode(parsed, on_error=how)
        assert made.shape == (40, 272) and torch.isfinite(made).all()
    with pytest.raises(MalformedMotion) as caught:
        tok.decode(parsed)
    assert caught.value.issues


def test_repair_fills_with_zero_and_cuts(tok: DSFTTokenizer, clips: list[np.ndarray]) -> None:
    encoded = tok.encode(clips[0])
    T, integers = encoded.T, tok.transform(clips[0])
    few = encoded.base_ids[: len(encoded.base_ids) // 2]
    kept = int(tok.codecs[0].lengths[few].sum())
    halved = integers[0].flatten().clone()
    halved[kept:] = 0
    expected = tok.inverse_transform((halved.view(5, 198), integers[1]), T)
    torch.testing.assert_close(tok.decode(few, encoded.phys_ids, T, on_error="repair"), expected)
    mean_pose = halved.view(5, 198).clone()
    mean_pose[1:] = 0
    expected = tok.inverse_transform((mean_pose, integers[1]), T)
    torch.testing.assert_close(tok.decode(few, encoded.phys_ids, T, on_error="zero"), expected)
    more = torch.cat([encoded.base_ids, encoded.base_ids])
    torch.testing.assert_close(tok.decode(more, encoded.phys_ids, T, on_error="repair"), tok.decode(encoded))


def test_length_is_never_guessed(tok: DSFTTokenizer, clips: list[np.ndarray]) -> None:
    encoded = tok.encode(clips[0])
    with pytest.raises(VadisError, match="needs T"):
        tok.decode(encoded.base_ids, encoded.phys_ids)
    with pytest.raises(MalformedMotion, match="wrong_length"):
        tok.decode(encoded.base_ids, encoded.phys_ids, 3)
    for wrong in (0, -1, 2.5, 10**9):
        with pytest.raises(VadisError, match="whole number"):
            tok.decode(encoded.base_ids, encoded.phys_ids, wrong)


# ---- files


def test_saved_and_loaded_tokenizers_are_the_same(tok: DSFTTokenizer, clips: list[np.ndarray], tmp_path: Path) -> None:
    tok.save_pretrained(tmp_path / "tok")
    for again in (vadis.load(tmp_path / "tok"), DSFTTokenizer.load(tmp_path / "tok")):
        assert again.config == tok.config and again.hash == tok.hash and again.clips == len(clips)
        assert torch.equal(again.encode(clips[1]).phys_ids, tok.encode(clips[1]).phys_ids)
        assert torch.equal(again.mean, tok.mean) and torch.equal(again.std, tok.std)


def test_byte_level_tokenizers_are_saved_in_both_layouts(clips: list[np.ndarray], tmp_path: Path) -> None:
    tok = DSFTTokenizer.fit(clips, "ms272", codec="bytelevel", vocab=(2048, 2048))
    assert tok.config.normalize == "none"
    tok.save(tmp_path / "tok")
    x = clips[2]
    ours = vadis.load(tmp_path / "tok")
    assert ours.hash == tok.hash and torch.equal(ours.encode(x).base_ids, tok.encode(x).base_ids)
    for name in ("dsft.json", "config.json"):
        (tmp_path / "tok" / name).unlink()
    theirs = vadis.import_checkpoint("dsft", tmp_path / "tok")
    assert theirs.representation == "ms272"
    assert torch.equal(theirs.encode(x).base_ids, tok.encode(x).base_ids)
    with pytest.raises(ModelError, match="don't fit"):
        vadis.import_checkpoint("dsft", tmp_path / "tok", representation="hml263")


def test_the_commands_fit_and_analyze(
    clips: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("matplotlib")
    from vadis.cli import main
    from vadis.data.corpus import CorpusWriter

    with CorpusWriter(tmp_path / "corpus") as writer:
        for i, x in enumerate(clips):
            split = "val" if i % 4 == 0 else "train"
            writer.add(f"clip{i}", x, split=split, group=f"clip{i}", source="made up", licence="none")
    words = [
        "fit",
        "dsft",
        str(tmp_path / "corpus"),
        "-o",
        str(tmp_path / "tok"),
        "--k",
        "4",
        "12",
        "--window",
        "1",
        "--json",
    ]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    tok = vadis.load(tmp_path / "tok")
    assert tok.config.K == (4, 12) and tok.config.window == 30 and found["clips"] == 3 and found["local_mm"] > 0
    assert main(["analyze", "frequency", str(tmp_path / "corpus"), "-o", str(tmp_path / "out"), "--k-total", "30"]) == 0
    assert "joint_velocities" in capsys.readouterr().out
    for name in ("frequency.png", "reconstruction.png", "channels.csv", "groups.csv", "clips.csv", "report.json"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    assert main(["analyze", "frequency", str(tmp_path / "nothing.npy"), "-o", str(tmp_path / "out")]) == 2


def test_damaged_folders_are_refused(tok: DSFTTokenizer, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        tok.save_pretrained(tmp_path / name)
        return tmp_path / name

    with pytest.raises(FileError, match="no DSFT tokenizer"):
        DSFTTokenizer.load(tmp_path)
    folder = fresh("cut")
    data = (folder / "base.merges.npz").read_bytes()
    (folder / "base.merges.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileError, match="base.merges"):
        DSFTTokenizer.load(folder)
    folder = fresh("other")
    merges = tok.codecs[0].merges.copy()[:-1]
    np.savez(folder / "base.merges.npz", merges=merges)
    with pytest.raises(FileError, match="hash"):
        DSFTTokenizer.load(folder)
    folder = fresh("statistics")
    np.savez(folder / "stats.npz", mean=tok.mean.numpy() + 1, std=tok.std.numpy(), reach=tok.reach.numpy())
    with pytest.raises(FileError, match="hash"):
        DSFTTokenizer.load(folder)
    folder = fresh("split")
    page = json.loads((folder / "dsft.json").read_text())
    page["split"]["base_slices"][0][1] += 1
    (folder / "dsft.json").write_text(json.dumps(page))
    with pytest.raises(VadisError):
        DSFTTokenizer.load(folder)
    folder = fresh("gone")
    (folder / "stats.npz").unlink()
    with pytest.raises(FileError, match="stats"):
        DSFTTokenizer.load(folder)


def test_stored_clips_know_their_tokenizer(tok: DSFTTokenizer, clips: list[np.ndarray], tmp_path: Path) -> None:
    encoded = tok.encode(clips[0])
    save_tokens(tmp_path / "a.npz", encoded, tok)
    again = load_tokens(tmp_path / "a.npz", tok)
    assert torch.equal(again.base_ids, encoded.base_ids) and again.T == encoded.T
    other = DSFTTokenizer.fit(clips, "ms272", K=(4, 25), vocab=(1024, 1024))
    with pytest.raises(VadisError, match="another tokenizer"):
        load_tokens(tmp_path / "a.npz", other)
    page = sequence.tokenized_page(encoded, tok.hash)
    torch.save(
        {k: torch.from_numpy(v) if k == "seq" else v for k, v in page.items() if k != "tokenizer"}, tmp_path / "a.pt"
    )
    assert torch.equal(load_tokens(tmp_path / "a.pt", tok).phys_ids, encoded.phys_ids)
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(FileError, match="tokenised clip"):
        load_tokens(tmp_path / "b.npz")


# ---- splits, analysis, refusals


def test_splits_hold_every_column_once() -> None:
    sizes = {"vimogen276": (201, 75), "hml263": (190, 73), "ms272": (198, 74), "upstream_shifted": (190, 73)}
    for name, (base, phys) in sizes.items():
        split = SPLITS[name]
        assert (len(split.base), len(split.phys)) == (base, phys)
        assert sorted([*split.base, *split.phys]) == list(range(base + phys))
    with pytest.raises(VadisError, match="exactly once"):
        SplitSpec("twice", ((0, 4),), ((3, 6),))
    with pytest.raises(VadisError, match="exactly once"):
        SplitSpec("hole", ((0, 4),), ((5, 6),))
    with pytest.raises(VadisError, match="no split"):
        DSFTTokenizer.fit([np.zeros((10, 4))], "unknown", fps=30)


def test_any_representation_with_a_split_of_its_own(tmp_path: Path) -> None:
    clips = [np.concatenate([smooth(60, 6, i), np.random.default_rng(i).normal(size=(60, 3))], 1) for i in range(6)]
    split = SplitSpec.from_frequency(clips, k_total=50)
    assert split.base.tolist() == list(range(6)) and split.phys.tolist() == [6, 7, 8]
    tok = DSFTTokenizer.fit(clips, "mine", split=split, fps=60, vocab=(1024, 1024))
    tok.save_pretrained(tmp_path / "mine")
    assert vadis.load(tmp_path / "mine").config.split == split
    assert tok.report(clips)["tokens_per_second"] > 0


def test_analysis_separates_slow_from_fast() -> None:
    t = np.arange(120)[:, None] / 30
    x = np.concatenate([np.sin(2 * np.pi * 0.25 * t), np.sin(2 * np.pi * 5 * t), np.ones_like(t) + 3], 1)
    found = analyze([x, x], fps=30)
    assert found.below_hertz[0] > 0.95 and found.below_hertz[1] < 0.1
    assert found.ratio[2] == pytest.approx(1) and found.ratio_moving[2] == pytest.approx(0, abs=1e-6)
    assert found.clips == 2 and found.frames == 240
    with pytest.raises(VadisError, match="longer clips"):
        analyze([x[:30]], fps=30)


def test_unusable_input_is_refused(tok: DSFTTokenizer, clips: list[np.ndarray]) -> None:
    x = clips[0]
    bad = x.copy()
    bad[7, 3] = np.nan
    with pytest.raises(VadisError, match="frame 7"):
        tok.encode(bad)
    with pytest.raises(ShapeError, match="hml263"):
        tok.encode(x[:, :263])
    with pytest.raises(ShapeError):
        tok.encode(x[:0])
    with pytest.raises(ShapeError, match="empty"):
        tok.encode([])
    with pytest.raises(VadisError, match="frames per second"):
        tok.encode(x, fps=20)
    with pytest.raises(VadisError, match="convert"):
        tok.encode(x, representation="hml263")
    with pytest.raises(MalformedMotion, match="foreign"):
        tok.decode([99_999], [0], 40)
    with pytest.raises(ShapeError, match="integers"):
        tok.decode([0.5], [0], 40)
    with pytest.raises(ShapeError, match="mean"):
        tok.set_statistics(np.zeros(5), np.ones(5))
    with pytest.raises(VadisError, match="std"):
        tok.set_statistics(np.zeros(272), -np.ones(272))
    with pytest.raises(VadisError, match="4096"):
        DSFTTokenizer.fit(clips, "ms272", vocab=(5000, 4096))
    with pytest.raises(VadisError, match="nothing to fit"):
        DSFTTokenizer.fit([], "ms272")
    with pytest.raises(ModelError, match="K must"):
        DSFTTokenizer.fit(clips, "ms272", K=(0, 5))
