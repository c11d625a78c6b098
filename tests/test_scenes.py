"""Scene corpora: pieces found by numbers, motions that get where they should, rooms nobody bumps into, pictures, errors."""

import dataclasses
import hashlib
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk
from hypothesis import given, settings
from hypothesis import strategies as st

from vadis import rotation
from vadis.cli import main
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.scenes import SceneOptions, build_scenes, facing, walks_to
from vadis.data.scenes import build as build_module
from vadis.data.scenes.layout import BODY, BRIGHT, COLOURS, SIZES, Thing
from vadis.data.scenes.motions import SEAT, Walker
from vadis.data.scenes.phrases import PHRASES, instructions
from vadis.data.scenes.pieces import Library
from vadis.data.scenes.render import Camera, SceneRenderer
from vadis.data.scenes.report import scene_facts, scene_report, scene_sheet
from vadis.errors import FileError, MissingExtra, VadisError
from vadis.motion import Motion
from vadis.representations import representation
from vadis.skeleton import smpl22

OPTIONS = SceneOptions(
    rooms=6, seed=2, width=80, height=64, captions=3, kinds={"walk": 1, "around": 1, "turn": 1, "sit": 1}
)


def standing(frames: int, turned: float = 0.0, down: float = 0.0) -> Motion:
    """Standing with the arms down; turns by `turned` radians in the middle second, or bends the knees by `down`."""
    skeleton = smpl22()
    t = torch.arange(frames) / 30
    ease = ((t - 0.5) / (t[-1] - 1.0)).clamp(0, 1)
    ease = ease * ease * (3 - 2 * ease)
    vectors = torch.zeros(frames, 22, 3)
    for side, sign in (("left", -1), ("right", 1)):
        vectors[:, skeleton.index(f"{side}_shoulder"), 2] = sign * 1.35
        for part, share in (("hip", -1.0), ("knee", 2.0), ("ankle", -1.0)):
            vectors[:, skeleton.index(f"{side}_{part}"), 0] = share * down * ease + 0.02 * share
    vectors[:, skeleton.index("neck"), 1] = 0.02 * torch.sin(t)
    rotations = rotation.from_rotvec(vectors)
    rotations[:, 0] = rotation.yaw(turned * ease) @ rotations[:, 0]
    motion = Motion(skeleton, torch.zeros(frames, 3), rotations, 30.0)
    feet = motion.positions[:, [skeleton.index("left_foot"), skeleton.index("right_foot")]].mean(1)
    return motion.replace(root=-feet * torch.tensor([0.0, 1.0, 0.0])).canonicalize()


def setting_off() -> Motion:
    """A walk that begins from a stand: its first strides are played ever faster."""
    walk = procedural_walk(150, turn=0.0)
    stand = standing(40)
    blend = ((torch.arange(100) - 20) / 24).clamp(0, 1)
    where = torch.cumsum(blend, 0)
    low = where.floor().long()
    root = torch.lerp(walk.root[low], walk.root[low + 1], (where - low)[:, None])
    turns = rotation.slerp(walk.rotations[low], walk.rotations[low + 1], (where - low)[:, None])
    turns = rotation.slerp(stand.rotations[:1].expand(100, -1, -1, -1), turns, blend[:, None])
    return walk.replace(root=root, rotations=turns).canonicalize()


def write_source(path: Path, names: tuple[str, ...]) -> Corpus:
    rep = representation("ms272")
    clips = {
        "start": (setting_off(), "a person stands and then walks off"),
        "walk": (procedural_walk(200, turn=0.0), "a person walks forward"),
        "stand": (standing(90), "a person stands still"),
        "turn": (standing(75, turned=1.5), "a person turns around to the left"),
        "squat": (standing(60, down=1.3), "a person squats"),
        "dance": (procedural_walk(200, turn=0.0), "a dancer walks like a waltz"),
    }
    with CorpusWriter(path, rep.name, rep.fps) as writer:
        for name in names:
            motion, text = clips[name]
            writer.add(
                name, rep.encode(motion), [Caption(text, 0.0, motion.seconds)], split="train", group=name,
                source=f"made {name}", licence="CC0" if name == "walk" else "CC-BY",
            )  # fmt: skip
    return Corpus.open(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Corpus:
    names = ("start", "walk", "stand", "turn", "squat", "dance")
    return write_source(tmp_path_factory.mktemp("scenes") / "source", names)


@pytest.fixture(scope="module")
def walker(source) -> Walker:
    return Walker(Library(source))


@pytest.fixture(scope="module")
def renderer():
    try:
        with SceneRenderer(80, 64) as made:
            yield made
    except (VadisError, MissingExtra) as error:
        pytest.skip(f"needs an offscreen OpenGL: {error}")


@pytest.fixture(scope="module")
def made(source, renderer, tmp_path_factory) -> Corpus:
    return build_scenes(source, tmp_path_factory.mktemp("made") / "rooms", OPTIONS, progress=False)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*")) if p.is_file()
    }  # fmt: skip


class TestJudge:
    @given(angle=st.floats(-3.1, 3.1), aim=st.floats(-3.1, 3.1), far=st.floats(0.5, 6), heading=st.floats(-3, 3))
    @settings(max_examples=40, deadline=None)
    def test_a_straight_way(self, angle, aim, far, heading):
        motion = standing(20)
        steps = torch.linspace(0, far, 20)[:, None] * torch.tensor([math.sin(angle), 0.0, math.cos(angle)])
        motion = motion.replace(root=motion.root + steps)
        motion = motion.transform(rotation.yaw(torch.tensor(heading)), torch.tensor([3.0, 0.0, -2.0]))
        target = (4 * math.cos(aim), 4 * math.sin(aim))
        arrival = walks_to(motion, target)
        assert arrival.direction_error == pytest.approx(abs(math.remainder(angle - aim, 2 * math.pi)), abs=2e-3)
        end = (far * math.cos(angle), far * math.sin(angle))
        assert arrival.distance_left == pytest.approx(math.dist(end, target), abs=1e-3)
        way = math.atan2(target[1] - end[1], target[0] - end[0])
        if math.dist(end, target) > 0.1:
            assert facing(motion, target) == pytest.approx(abs(math.remainder(way, 2 * math.pi)), abs=2e-2)

    def test_staying_has_no_direction(self):
        arrival = walks_to(standing(20), (2.0, 0.0))
        assert arrival.direction_error == math.pi and arrival.distance_left == pytest.approx(2.0, abs=1e-4)

    def test_a_turned_body_faces_left(self):
        assert facing(standing(75, turned=math.pi / 2), (0.0, 3.0)) == pytest.approx(0, abs=0.02)
        assert facing(standing(75, turned=math.pi / 2), (3.0, 0.0)) == pytest.approx(math.pi / 2, abs=0.02)

    @pytest.mark.parametrize("target", [(0.0, 0.0), (math.nan, 1.0), (1.0, 2.0, 3.0), (math.inf, 0.0)])
    def test_targets_that_are_no_places(self, target):
        with pytest.raises(VadisError, match="target"):
            walks_to(standing(20), target)


class TestPieces:
    def test_kinds_are_found_and_mirrored(self, source):
        library = Library(source)
        for kind, clip in (("starts", "start"), ("turns", "turn"), ("squats", "squat")):
            assert {piece.clip for piece in getattr(library, kind)} == {clip}, kind
        assert {piece.clip for piece in library.walks} == {"walk", "start"}  # not the dance, by its caption
        for kind in ("starts", "walks", "stands", "turns", "squats"):
            pieces = getattr(library, kind)
            assert len(pieces) % 2 == 0
            one, other = pieces[0], pieces[len(pieces) // 2]
            assert torch.allclose(one.motion.mirror().root, other.motion.root, atol=1e-5)
        left, right = (float(p.motion.heading[-1] - p.motion.heading[0]) for p in library.turns)
        assert left == pytest.approx(1.5, abs=0.1) and right == pytest.approx(-left, abs=1e-3)

    def test_a_corpus_without_walking(self, tmp_path):
        with pytest.raises(VadisError, match="stands and then walks off"):
            Library(write_source(tmp_path / "c", ("stand", "turn", "dance")))

    def test_kinds_that_lack_pieces(self, tmp_path, renderer):
        corpus = write_source(tmp_path / "c", ("start", "walk", "stand"))
        assert Walker(Library(corpus)).kinds == ("walk", "around")
        with pytest.raises(VadisError, match="no recordings for turn, sit"):
            build_scenes(corpus, tmp_path / "out", SceneOptions(rooms=1), progress=False)


class TestMotions:
    @pytest.mark.parametrize("kind", ["walk", "around", "turn", "sit"])
    def test_each_kind_does_what_it_is_called(self, walker, kind):
        drawn = 0
        for seed in range(6):
            rng = random.Random(seed)
            route = walker.draw(kind, rng, 1.8, walker.library.starts[0])
            if route is None:
                continue
            drawn += 1
            motion = route.cleaned().motion
            end = math.dist((0, 0), route.end[:2])
            assert torch.isfinite(motion.root).all() and motion.seconds < 12
            assert torch.diff(motion.positions, dim=0).norm(dim=-1).max() * 30 < 8
            assert float(torch.diff(motion.root[-5:], dim=0).norm(dim=-1).max()) * 30 < 0.3
            if kind == "turn":
                assert end < 0.4 and 0.5 < abs(route.end[2]) < 2.0
            else:
                assert end > 0.8
            if kind == "sit":
                assert SEAT[0] - 0.06 < float(motion.root[-1, 1]) < SEAT[1] + 0.06
                assert route.arrived < motion.num_frames - 20
            else:
                assert float(motion.root[-1, 1]) > 0.8
        assert drawn >= 4

    def test_the_same_draw_is_the_same(self, walker):
        one, two = (walker.draw("walk", random.Random(4), 1.5, walker.library.starts[0]) for _ in range(2))
        assert one is not None and two is not None and torch.equal(one.motion.rotations, two.motion.rotations)

    def test_an_unknown_kind(self, walker):
        with pytest.raises(VadisError, match="fly"):
            walker.draw("fly", random.Random(0), 1.0, walker.library.starts[0])


class TestLayout:
    @given(
        shape=st.sampled_from(list(SIZES)), turned=st.floats(0, 3), x=st.floats(-2, 2), y=st.floats(-2, 2),
        seed=st.integers(0, 1000),
    )  # fmt: skip
    @settings(max_examples=60, deadline=None)
    def test_clearance_is_the_distance_to_the_footprint(self, shape, turned, x, y, seed):
        thing = Thing(shape, "red", 0.5, -0.3, 0.3, 0.2, turned)
        own = np.random.default_rng(seed).uniform(-0.3, 0.3, (4000, 2))
        if not thing.square:
            own = own[np.hypot(*own.T) <= 0.3]
        c, s = math.cos(turned), math.sin(turned)
        inside = own @ np.array([[c, s], [-s, c]]) + [0.5, -0.3]
        nearest = np.hypot(inside[:, 0] - x, inside[:, 1] - y).min()
        assert thing.clearance(np.array([[x, y]])) == pytest.approx(nearest, abs=0.05)
        assert thing.clearance(inside[:1]) == 0

    @pytest.mark.parametrize("kind", list(PHRASES))
    def test_instructions_name_the_thing_in_different_words(self, kind):
        texts = instructions(kind, "the red box", "the grey cylinder", random.Random(1), 6)
        assert len(set(texts)) == 6 and all("the red box" in t and "{" not in t for t in texts)
        assert texts[0] == PHRASES[kind][0].format(it="the red box", other="the grey cylinder")
        assert all("grey cylinder" in t for t in texts) == (kind == "around")


class TestPictures:
    def test_a_thing_is_drawn_where_the_camera_says(self, renderer):
        for place in ((2.0, 0.8), (3.0, -1.2), (1.0, 1.2)):
            thing = Thing("ball", "red", *place, 0.3, 0.3)
            camera = Camera(azimuth=0.3)
            picture = renderer.draw([thing], None, camera).astype(int)
            assert picture.shape == (64, 80, 3)
            red = (picture[..., 0] > 1.6 * picture[..., 1]) & (picture[..., 0] > 1.6 * picture[..., 2])
            rows, columns = red.nonzero()
            assert len(rows) == pytest.approx(renderer.seen(1)[0], rel=0.5)
            expected = camera.project(np.array([[*place, 0.3]]), 80, 64)[0]
            assert np.allclose([columns.mean() + 0.5, rows.mean() + 0.5], expected, atol=1.5)

    @pytest.mark.parametrize("colour", BRIGHT)
    def test_colours_look_like_themselves(self, renderer, colour):
        picture = renderer.draw([Thing("block", colour, 1.5, 0.9, 0.4, 0.3)]) / 255.0
        top = Camera().project(np.array([[1.5, 0.9, 0.6]]), 80, 64)[0].astype(int)
        seen = picture[top[1], top[0]]
        shades = {name: np.array(COLOURS[name]) / np.linalg.norm(COLOURS[name]) for name in COLOURS}
        assert max(shades, key=lambda name: float(shades[name] @ seen)) == colour

    def test_the_body_stands_at_the_origin(self, renderer):
        with_body = renderer.draw([], standing(5)).astype(int)
        changed = np.abs(with_body - renderer.draw([]).astype(int)).sum(-1) > 60
        chest = Camera().project(np.array([[0.0, 0.0, 1.1]]), 80, 64)[0].astype(int)
        assert changed[chest[1], chest[0]] and 40 < changed.sum() < 600

    def test_hidden_things_are_not_seen(self, renderer):
        near, far = Thing("block", "red", 1.0, 0, 0.5, 0.7), Thing("ball", "blue", 2.0, 0, 0.15, 0.15)
        renderer.draw([near, far])
        assert renderer.seen(2)[1] == 0 and renderer.seen(2)[0] > 100

    def test_too_many_things(self, renderer):
        with pytest.raises(VadisError, match="at most 4 things"):
            renderer.draw([Thing("ball", "red", 1, k / 2, 0.1, 0.1) for k in range(5)])

    def test_sizes_and_extras(self, monkeypatch):
        with pytest.raises(VadisError, match="16 to 2048"):
            SceneRenderer(8, 8)
        monkeypatch.setitem(sys.modules, "mujoco", None)
        with pytest.raises(MissingExtra, match=r"vadis\[scenes\]"):
            SceneRenderer(80, 64)


class TestCorpus:
    def test_rooms_and_rows(self, made):
        import PIL.Image

        assert len(made) >= 8 and made.about["about"]["scenes"]["seed"] == 2
        for group in set(made.column("group")):
            clips = list(made.subset(group=group))
            assert len(clips) == 2 and len({c.extra["colour"] for c in clips}) == 2
            assert len({c.split for c in clips}) == 1 and len({c.extra["image"] for c in clips}) == 1
            assert abs(math.remainder(clips[0].extra["direction"] - clips[1].extra["direction"], 2 * math.pi)) > 0.5
            with PIL.Image.open(made.path / clips[0].extra["image"]) as picture:
                assert picture.size == (80, 64) and picture.mode == "RGB"
            for clip in clips:
                extra = clip.extra
                assert len(clip.captions) == 3 and all(
                    f"the {extra['colour']} {extra['shape']}" in caption.text for caption in clip.captions
                )
                assert math.hypot(*extra["target"]) == pytest.approx(extra["distance"], abs=1e-3)
                assert math.atan2(*extra["target"][::-1]) == pytest.approx(extra["direction"], abs=1e-3)
                assert "made start" in clip.source and "CC-BY" in clip.licence and "start" in extra["pieces"]

    def test_motions_do_what_is_asked(self, made):
        rep = representation("ms272")
        for clip in made:
            motion, target = rep.decode(clip.features), tuple(clip.extra["target"])
            arrival = walks_to(motion, target)
            if clip.extra["task"] == "turn":
                assert facing(motion, target) < math.radians(18)
            else:
                assert arrival.direction_error < math.radians(18)
                assert arrival.distance_left < (0.3 if clip.extra["task"] == "sit" else 1.2)
            if clip.extra["task"] == "sit":
                seat = clip.extra["things"][
                    [c.extra["colour"] for c in made.subset(group=clip.group)].index(clip.extra["colour"])
                ]
                assert 0.05 < float(motion.root[-1, 1]) - 2 * seat["half_height"] < 0.2

    def test_the_report(self, made):
        report = scene_report(made)
        assert report["collisions"] == 0 and report["clips"] == len(made)
        assert sum(kind["clips"] for kind in report["kinds"].values()) == len(made)
        assert min(kind["clearance"][0] for kind in report["kinds"].values()) > BODY - 0.1
        assert 0 <= report["chance"] < 1 and json.dumps(report)

    def test_a_report_of_another_corpus(self, source):
        with pytest.raises(VadisError, match="not a scene corpus"):
            scene_report(source)

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("things", [{"shape": "box"}], "things.0.colour"),
            ("things", [], "things: list should have at least 1 item"),
            ("target", [0.0], "target.1: field required"),
            ("azimuth", "left", "azimuth: input should be a valid number"),
            ("colour", "pink", "colour: input should be 'red'"),
            ("image", 3, "image: input should be a valid string"),
        ],
    )
    def test_facts_that_can_t_be_are_named(self, made, field, value, said):
        clip = made[0]
        assert scene_facts(made, clip)["task"] == clip.extra["task"]
        with pytest.raises(FileError, match=rf"index\.parquet, clip '{clip.id}', extra: {said}"):
            scene_facts(made, dataclasses.replace(clip, extra=clip.extra | {field: value}))

    def test_the_sheet(self, made, tmp_path):
        import PIL.Image

        with PIL.Image.open(scene_sheet(made, tmp_path / "sheet.png", rooms=3, columns=2)) as sheet:
            assert sheet.width == 2 * (160 + 4) and sheet.height > 2 * 128

    @pytest.mark.parametrize("stop_at", [0, 5])
    def test_interrupted_work_gives_the_same_bytes(self, source, made, tmp_path, monkeypatch, stop_at):
        count, add = 0, CorpusWriter.add

        def stopping(self, *args, **kwargs):
            nonlocal count
            count += 1
            if count > stop_at:
                raise KeyboardInterrupt
            add(self, *args, **kwargs)

        monkeypatch.setattr(build_module.CorpusWriter, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            build_scenes(source, tmp_path / "rooms", OPTIONS, progress=False)
        assert not (tmp_path / "rooms").exists()
        monkeypatch.undo()
        build_scenes(source, tmp_path / "rooms", OPTIONS, progress=False)
        assert digest(tmp_path / "rooms") == digest(made.path)

    def test_the_verb(self, source, tmp_path, capsys, renderer):
        out = tmp_path / "rooms"
        words = ["data", "scenes", str(source.path), str(out), "--rooms", "2", "--width", "64", "--height", "48"]
        assert main([*words, "--around", "0", "--turn", "0", "--sit", "0", "--sheet", str(tmp_path / "s.png")]) == 0
        printed = capsys.readouterr()
        assert printed.out.strip() == str(out) and "0 collisions" in printed.err
        assert (tmp_path / "s.png").stat().st_size > 1000
        assert {json.loads(e)["task"] for e in Corpus.open(out).column("extra")} == {"walk"}

    @pytest.mark.parametrize(
        "bad", [{"rooms": 0}, {"val_share": 0.6, "test_share": 0.5}, {"kinds": {"swim": 1}}, {"kinds": {}}, {"most_turn": -1}]
    )  # fmt: skip
    def test_options_that_make_no_sense(self, bad):
        with pytest.raises(VadisError):
            SceneOptions(**bad)
