"""Overlap reports find what is there twice, however it was cut, turned, mirrored or reworded, and nothing else."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import procedural_walk

from vadis import rotation
from vadis.cli import main
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.minhash import near_pairs
from vadis.data.motion_overlap import local_poses, motion_pairs, quick_moments
from vadis.data.overlap import overlap
from vadis.data.text_stats import length_bins, text_stats, unknown_words, words_of
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.representations import representation


def wandering(seed: int, frames: int = 150) -> Motion:
    """A walk whose joints also swing at random slow frequencies: two seeds never look alike."""
    walk = procedural_walk(frames, turn=0.1 * seed)
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(frames) / 30
    joints = walk.skeleton.num_joints
    rate = 0.3 + 0.9 * torch.rand(joints, 3, generator=generator)
    phase = 6.28 * torch.rand(joints, 3, generator=generator)
    swing = 0.35 * torch.sin(6.28 * rate * t[:, None, None] + phase)
    swing[:, 0] = 0
    return walk.replace(rotations=walk.rotations @ rotation.from_rotvec(swing)).canonicalize()


def write(path, clips: dict[str, Motion], captions: dict[str, list[str]] | None = None, split=lambda _: "train"):
    rep = representation("ms272")
    with CorpusWriter(path) as writer:
        for name, motion in clips.items():
            sentences = [Caption(t, 0.0, motion.seconds) for t in (captions or {}).get(name, [])]
            writer.add(name, rep.encode(motion), sentences, split=split(name), group=name, source="t", licence="CC0-1.0")  # fmt: skip
    return Corpus.open(path)


@pytest.fixture(scope="module")
def clips() -> dict[str, Motion]:
    return {f"c{seed}": wandering(seed) for seed in range(8)}


def test_words():
    assert words_of("He doesn't WALK; he runs (fast)!") == ["he", "doesn't", "walk", "he", "runs", "fast"]
    assert words_of(" … ") == []


def test_text_stats_count_what_is_there():
    stats = text_stats([["A man walks.", "a man walks"], ["a man runs away"], []])
    assert (stats.captions, stats.different, stats.clips, stats.clips_without) == (3, 2, 3, 1)
    assert (stats.words, stats.vocabulary, stats.once) == (10, 5, 2) and stats.lengths == {3: 2, 4: 1}
    assert stats.top_words[:2] == (("a", 3), ("man", 3)) and stats.top_bigrams[0] == ("a man", 3)
    assert stats.growth[-1] == (3, 5) and stats.mean_length == 3.33
    assert "3 captions (2 different) of 3 clips" in stats.markdown()
    assert length_bins({3: 1, 40: 2}) == [("0–4", 1)] + [(f"{5 * k}–{5 * k + 4}", 0) for k in range(1, 8)] + [("40–44", 2)]  # fmt: skip
    with pytest.raises(VadisError, match="no clip"):
        text_stats([])


def test_unknown_words():
    unknown = unknown_words(["a man walks"], ["a man dances", "a man walks", "dances dances"])
    assert unknown.words == 3 and unknown.share == 3 / 8 and unknown.vocabulary == 1
    assert unknown.captions_share == 2 / 3 and unknown.top == (("dances", 3),)


def test_near_pairs_are_those_of_a_full_comparison():
    draw = random.Random(0)
    words = [f"w{i}" for i in range(300)]
    base = [" ".join(draw.choices(words, k=draw.randint(4, 14))) for _ in range(400)]
    base += [" ".join(t.split()[1:]) for t in base[:80]] + [f"{t} extra" for t in base[40:120]] + ["", "..."]
    texts = list(dict.fromkeys(base))
    sets = [set(words_of(t)) for t in texts]
    expected = {
        (a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        for a in range(len(texts)) for b in range(a + 1, len(texts)) if sets[a] & sets[b]
    }  # fmt: skip
    expected = {pair: j for pair, j in expected.items() if j >= 0.8}
    pairs, jaccard = near_pairs(texts)
    assert len(expected) > 100 and {tuple(p) for p in pairs.tolist()} == set(expected)
    for pair, value in zip(pairs.tolist(), jaccard, strict=True):
        assert value == pytest.approx(expected[tuple(pair)])
    side = np.arange(len(texts)) % 3 == 0
    crossing, _ = near_pairs(texts, tested=side)
    assert all(side[b] and not side[a] for a, b in crossing)
    assert {tuple(sorted(p)) for p in crossing.tolist()} == {(a, b) for a, b in expected if side[a] != side[b]}
    with pytest.raises(VadisError, match="between 0.6 and 1"):
        near_pairs(texts, 0.3)


def test_templates_by_the_thousand_stay_small():
    texts = [f"a person walks {n} steps to the left and then stops and waits for a while there" for n in range(3000)]
    pairs, _ = near_pairs(texts)
    assert len(pairs) < 3000 * 64 * 20 and len(set(pairs.ravel().tolist())) == 3000
    side = np.arange(3000) >= 2990
    assert set(near_pairs(texts, tested=side)[0][:, 1].tolist()) == set(range(2990, 3000))


def test_local_poses_do_not_depend_on_place_and_heading(clips):
    rep = representation("ms272")
    motion = clips["c1"]
    moved = motion.transform(rotation.yaw(torch.tensor(1.9)), torch.tensor([3.0, 0.0, -2.0]))
    one, two = (local_poses(rep.encode(m), "ms272") for m in (motion, moved))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    assert len(quick_moments(one, 30)) >= 2
    still = one[:1].expand(90, -1, -1)
    assert len(quick_moments(still, 30)) == 0 and len(quick_moments(one[:10], 30)) == 0


def test_cut_turned_and_noisy_copies_are_found(tmp_path, clips):
    part = clips["c2"].crop(31, 121).transform(rotation.yaw(torch.tensor(-2.0)), torch.tensor([1.0, 0.0, 1.0]))
    noise = rotation.from_rotvec(0.004 * torch.randn(150, 22, 3, generator=torch.Generator().manual_seed(0)))
    rough = clips["c5"].replace(rotations=clips["c5"].rotations @ noise)
    reference = write(tmp_path / "train", clips)
    tested = write(tmp_path / "test", {"cut": part, "rough": rough, "new": wandering(99), "flip": clips["c3"].mirror()})
    pairs = {p.second: p for p in motion_pairs(reference, tested)}
    assert {n: p.first for n, p in pairs.items()} == {"cut": "c2", "rough": "c5"}
    cut = pairs["cut"]
    assert cut.share == 1 and cut.first_start == pytest.approx(31 / 30, abs=0.01) and cut.mean_mm < 1
    assert 0.5 < pairs["rough"].mean_mm < 10 and pairs["rough"].seconds > 4.8
    found = {p.second: p for p in motion_pairs(reference, tested, mirrored=True)}
    assert set(found) == {"cut", "rough", "flip"} and found["flip"].mirrored and found["flip"].first == "c3"
    assert not found["cut"].mirrored and found["flip"].mean_mm < 1


def test_inside_one_corpus(tmp_path, clips):
    corpus = write(tmp_path / "c", clips | {"again": clips["c4"].crop(20)}, split=lambda n: "val" if n == "again" else "train")  # fmt: skip
    pairs = motion_pairs(corpus)
    assert [(p.first, p.second) for p in pairs] == [("c4", "again")]
    assert pairs[0].first_start == pytest.approx(20 / 30, abs=0.01) and pairs[0].second_start == 0
    report = overlap(corpus)
    assert report.across == 1 and report.copied_clips == 2 and report.near_clips == 2 and report.second is None


def test_the_report(tmp_path, clips):
    texts = {
        "c0": ["A person walks forward with long steps.", "walk"],
        "c1": ["a person walks forward with long steps", "a man turns around"],
        "c6": ["a person walks forward with long slow steps"],
        "c7": ["Walk!", "somebody pirouettes"],
    }
    corpus = write(tmp_path / "c", clips, texts, split=lambda n: "test" if n in ("c6", "c7") else "train")
    report = overlap(corpus.subset("train"), corpus.subset("test"), motion=False)
    assert [(s.text, s.first, s.second) for s in report.same_texts] == [("walk", ("c0",), ("c7",))]
    (near,) = report.near_texts
    assert near.first == ("c0", "c1") and near.second == ("c6",) and near.jaccard == pytest.approx(7 / 8, abs=1e-3)
    assert report.same_share == 1 / 3 and report.near_share == 2 / 3
    assert report.unknown is not None and dict(report.unknown.top) == {"pirouettes": 1, "slow": 1, "somebody": 1}
    assert report.motion is None and "| 33.33 % |" in report.markdown()
    inside = overlap(corpus, motion=False)
    assert {s.text for s in inside.same_texts} == {"walk", "a person walks forward with long steps"}
    assert inside.same_share == 4 / 7
    with pytest.raises(VadisError, match="no caption of kind label"):
        overlap(corpus, kinds=["label"], motion=False)
    with pytest.raises(VadisError, match="millimetres"):
        overlap(corpus, millimetres=0)


def test_the_commands(tmp_path, clips, capsys):
    some = {k: clips[k] for k in ("c0", "c1", "c2")} | {"copy": clips["c1"].crop(10)}
    corpus = tmp_path / "c"
    write(corpus, some, {"c0": ["walk on"], "copy": ["walk on"]}, split=lambda n: "test" if n == "copy" else "train")
    page = tmp_path / "r.md"
    assert main(["data", "overlap", str(corpus), "--splits", "train", "test", "-o", str(page)]) == 0
    text = page.read_text()
    assert "| captions of c/test whose words occur in c/train | 100.00 % |" in text and "1 of 1" in text
    capsys.readouterr()
    assert main(["data", "overlap", str(corpus), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["across"] == 1 and facts["motion"][0]["first"] == "c1" and facts["motion"][0]["second"] == "copy"
    assert main(["data", "stats", str(corpus), "--text", "--split", "train"]) == 0
    assert "1 captions (1 different) of 3 clips" in capsys.readouterr().out
    assert main(["data", "overlap", str(corpus), "--splits", "train", "nowhere"]) == 2
    assert main(["data", "overlap", str(corpus), "--splits", "train", "train"]) == 2
    assert "two different splits" in capsys.readouterr().err


def test_what_is_really_repeated_in_the_shared_motions(shared_data, tmp_path):
    """Six real clips and a turned copy of one: only the copy is one recording."""
    import vadis

    motions = {p.stem: vadis.retarget(vadis.load_motion(p), "smpl22").resample(30) for p in sorted((shared_data / "mini").glob("*.bvh"))}  # fmt: skip
    longest = max(motions, key=lambda n: motions[n].num_frames)
    copy = motions[longest].crop(7).transform(rotation.yaw(torch.tensor(0.7)), torch.zeros(3))
    corpus = write(tmp_path / "c", {n: m.canonicalize() for n, m in motions.items()} | {"copy": copy.canonicalize()})
    close = [p for p in motion_pairs(corpus) if p.mean_mm < 5]
    assert [(p.first, p.second) for p in close] == [(longest, "copy")]
