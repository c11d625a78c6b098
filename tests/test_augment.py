"""A larger corpus from a tiny one: deterministic, resumable, smooth, captioned, by every recipe."""

import hashlib
import random
from pathlib import Path

import pytest
import torch
from conftest import procedural_walk

from vadis import rotation
from vadis.data import augment
from vadis.data.augment import RECIPES, Augmenter, AugmentOptions, augment_corpus
from vadis.data.captions import mirror_text
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.glitches import MAX_SPEED
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.representations import representation
from vadis.skeleton import smpl22

OPTIONS = AugmentOptions(clips=14, validation_clips=4, seed=3)


def standing(frames: int = 120, gesture: float = 0.0) -> Motion:
    """Standing with the arms down; the left arm swings when `gesture` is given (radians)."""
    skeleton = smpl22()
    t = torch.arange(frames) / 30
    vectors = torch.zeros(frames, 22, 3)
    vectors[:, skeleton.index("left_shoulder"), 2] = -1.35 + gesture * (1 - torch.cos(4 * t))
    vectors[:, skeleton.index("right_shoulder"), 2] = 1.35
    vectors[:, skeleton.index("neck"), 1] = 0.02 * torch.sin(t)
    return Motion(skeleton, torch.zeros(frames, 3), rotation.from_rotvec(vectors), 30.0).canonicalize()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Corpus:
    rep = representation("ms272")
    clips = {
        "walk": (procedural_walk(120, turn=0.0), "a person walks forward"),
        "curve": (procedural_walk(150, turn=0.5), "someone walks along a curve to the left"),
        "run": (procedural_walk(180, turn=0.0).retime(2.0), "a person runs"),
        "stand": (standing(), "a person stands still"),
        "wave": (standing(150, gesture=0.9), "the man waves the left arm"),
        "dance": (procedural_walk(300, turn=1.0), "a person dances around to the left"),
    }
    path = tmp_path_factory.mktemp("augment") / "tiny"
    with CorpusWriter(path, rep.name, rep.fps) as writer:
        for name, (motion, text) in clips.items():
            for split in ("train", "val"):
                captions = [
                    Caption(text, 0.0, motion.seconds, "whole"),
                    Caption(f"{text}, slowly", 0.0, motion.seconds, "detailed"),
                ]
                writer.add(
                    f"{split}-{name}",
                    rep.encode(motion),
                    captions,
                    split=split,
                    group=f"{split}-{name}",
                    source="test",
                    licence="CC0",
                )
    return Corpus.open(path)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Corpus:
    return augment_corpus(source, tmp_path_factory.mktemp("made") / "many", OPTIONS, progress=False)


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


class TestCorpus:
    def test_counts_splits_and_notes(self, made):
        assert made.about["splits"] == {"train": 14, "val": 4} and made.about["rejected"] == {}
        assert made.about["about"]["options"]["clips"] == 14
        for clip in made:
            assert clip.extra["recipe"] in RECIPES and clip.source == clip.extra["recipe"]
            assert clip.split == "train" or clip.extra["recipe"] in ("segment", "crop")

    def test_clips_are_captioned_smooth_and_of_fair_length(self, made):
        rep = representation("ms272")
        for clip in made:
            motion = rep.decode(clip.features)
            assert 1.6 <= motion.seconds <= 9.7
            assert torch.diff(motion.positions, dim=0).norm(dim=-1).max() * 30 < MAX_SPEED + 0.5
            assert clip.captions and all(
                c.text.strip() and (c.start, c.end) == (0.0, motion.seconds) for c in clip.captions
            )

    def test_the_same_again_byte_for_byte(self, source, made, tmp_path):
        augment_corpus(source, tmp_path / "many", OPTIONS, progress=False)
        assert digest(tmp_path / "many") == digest(made.path)

    def test_another_seed_gives_others(self, source, made, tmp_path):
        options = AugmentOptions(clips=2, validation_clips=0, seed=4)
        other = augment_corpus(source, tmp_path / "many", options, progress=False)
        assert len(other) == 2 and not torch.equal(other[0].features[:30], made[0].features[:30])

    @pytest.mark.parametrize("stop_at", [1, 9])
    def test_interrupted_work_is_taken_up_again(self, source, made, tmp_path, monkeypatch, stop_at):
        count, add = 0, CorpusWriter.add

        def stopping(self, *args, **kwargs):
            nonlocal count
            count += 1
            if count > stop_at:
                raise KeyboardInterrupt
            add(self, *args, **kwargs)

        monkeypatch.setattr(augment.CorpusWriter, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            augment_corpus(source, tmp_path / "many", OPTIONS, progress=False)
        assert not (tmp_path / "many").exists()
        monkeypatch.undo()
        augment_corpus(source, tmp_path / "many", OPTIONS, progress=False)
        assert digest(tmp_path / "many") == digest(made.path)


@pytest.fixture(scope="module")
def augmenter(source) -> Augmenter:
    return Augmenter(source, "train", AugmentOptions(downweight={"train-dance": 0.2}))


class TestRecipes:
    @pytest.mark.parametrize("recipe", list(RECIPES))
    def test_each_works_and_keeps_to_the_facts(self, augmenter, recipe):
        found = 0
        for seed in range(30):
            rng = random.Random(seed)
            drawn = augmenter.draw(recipe, rng)
            if drawn is None:
                continue
            motion, captions = drawn
            found += 1
            assert 1.6 <= motion.seconds <= 11 and torch.isfinite(motion.positions).all()
            assert len({c.text for c in captions if c.kind == "automatic"}) == sum(
                c.kind == "automatic" for c in captions
            )
            kinds = {c.kind for c in captions}
            assert kinds <= {"automatic", "whole", "detailed", "label", "segment-label"}
            if recipe in ("crop", "bend", "reverse", "gesture", "still"):
                assert kinds == {"automatic"}  # what people said need not be true any more
            if found == 6:
                break
        assert found >= 3

    def test_the_same_draw_is_the_same(self, augmenter):
        one, two = (augmenter.draw("segment", random.Random(5)) for _ in range(2))
        assert one is not None and two is not None
        assert torch.equal(one[0].rotations, two[0].rotations) and one[1] == two[1]

    def test_mirrored_draws_swap_the_words(self, augmenter):
        said = set()
        for seed in range(60):
            drawn = augmenter.draw("segment", random.Random(seed))
            for caption in drawn[1] if drawn else ():
                if caption.kind == "whole" and "curve" in caption.text:
                    turned = float(drawn[0].heading[-1] - drawn[0].heading[0])
                    said.add(caption.text)
                    assert ("left" in caption.text) == (turned > 0), (caption.text, turned)
        text = "someone walks along a curve to the left"
        assert said == {text, mirror_text(text)}

    def test_reversed_walks_go_backward(self, augmenter):
        texts = []
        for seed in range(12):
            drawn = augmenter.draw("reverse", random.Random(seed))
            texts += [c.text for c in drawn[1]] if drawn else []
        assert texts and not any("walks forward" in t for t in texts)
        assert sum(any(w in t for w in ("back", "retreat", "reverse")) for t in texts) > len(texts) / 3

    def test_downweighted_recordings_come_up_less(self, source):
        def share(weights: dict[str, float]) -> float:
            pieces = Augmenter(source, "train", AugmentOptions(downweight=weights)).pool.pieces
            return sum(p.weight for p in pieces if p.clip == "train-dance") / sum(p.weight for p in pieces)

        assert share({"train-dance": 0.1}) < 0.3 * share({})

    def test_a_split_without_captions(self, tmp_path):
        rep = representation("ms272")
        with CorpusWriter(tmp_path / "c", rep.name, rep.fps) as writer:
            writer.add("a", rep.encode(procedural_walk()), split="train", group="a", source="t", licence="CC0")
        with pytest.raises(VadisError, match="has no captioned stretch"):
            augment_corpus(Corpus.open(tmp_path / "c"), tmp_path / "out", progress=False)
