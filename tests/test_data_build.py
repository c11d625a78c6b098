"""Building a corpus from six real clips and their captions: splits, determinism, resuming, what is left out and why, mirrors."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import procedural_walk

from vadis.data import build
from vadis.data.build import BuildOptions, assign_splits, build_corpus, describe, prepare, read_captions, read_manifest
from vadis.data.captions import mirror_text
from vadis.data.corpus import Caption, Corpus
from vadis.errors import FileError, VadisError
from vadis.io import load_motion
from vadis.io.bvh_writer import save_bvh as write_bvh
from vadis.representations import representation
from vadis.retargeting import retarget

OPTIONS = BuildOptions(mirror=True, validation_every=3, group=r"^(\d+)_|^(dm)_")
NAMES = ["02_01", "13_11", "35_17", "49_07", "90_05", "dm_backflip"]


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def make(data: Path, out: Path, options: BuildOptions = OPTIONS) -> Corpus:
    captions = [data / "captions.jsonl", data / "captions_described.jsonl"]
    return build_corpus([data / "mini"], out, captions, data / "manifest.jsonl", options, progress=False)


@pytest.fixture(scope="module")
def corpus(shared_data, tmp_path_factory) -> Corpus:
    return make(shared_data, tmp_path_factory.mktemp("build") / "mini")


@pytest.mark.filterwarnings("ignore:the pelvis points straight up")  # in mid-backflip
class TestCorpus:
    def test_every_clip_and_its_mirror(self, corpus):
        assert corpus.ids == [name for n in NAMES for name in (n, f"M{n}")]
        assert corpus.about["representation"] == "ms272" and corpus.fps == 30 and corpus.dim == 272
        assert corpus.about["rejected"] == {}
        licences = {c.id: c.licence for c in corpus}
        assert licences["02_01"] == "CMU" and licences["dm_backflip"] != "unknown"

    def test_features_are_those_of_the_retargeted_clip(self, corpus, mini_bvh):
        rep = representation("ms272")
        for path in mini_bvh[:2]:
            expected = rep.encode(retarget(load_motion(path)).resample(30))
            clip = corpus.find(path.stem)
            assert clip.features.shape == expected.shape
            assert (clip.features - expected).abs().max() < 2e-3  # kept in half precision
            assert clip.extra["skeleton"] == "cmu31" and clip.extra["start"] == 0

    def test_mirrored_copies_swap_words_and_features(self, corpus):
        rep, words = representation("ms272"), 0
        for name in NAMES:
            clip, other = corpus.find(name), corpus.find(f"M{name}")
            assert (rep.mirror(clip.features) - other.features).abs().max() < 5e-3
            assert [c.text for c in other.captions] == [mirror_text(c.text) for c in clip.captions]
            assert [(c.start, c.end, c.kind) for c in other.captions] == [
                (c.start, c.end, c.kind) for c in clip.captions
            ]
            assert other.extra["mirrored"] and (other.split, other.group) == (clip.split, clip.group)
            words += sum(a.text != b.text for a, b in zip(clip.captions, other.captions, strict=True))
        assert words > 5

    def test_captions_keep_kind_and_span(self, corpus):
        clip = corpus.find("02_01")
        kinds = {c.kind for c in clip.captions}
        assert {"cmu-index", "label", "whole", "detailed", "upper", "lower"} <= kinds
        assert sum(c.kind == "whole" for c in clip.captions) % 4 == 0
        assert all(0 <= c.start < c.end <= len(clip.features) / 30 + 0.05 for c in clip.captions)

    def test_groups_are_never_parted(self, corpus):
        split = dict(zip(corpus.ids, corpus.column("split"), strict=True))
        assert set(split.values()) == {"train", "val"} and list(split.values()).count("val") == 4
        groups = {}
        for group, part in zip(corpus.column("group"), corpus.column("split"), strict=True):
            assert groups.setdefault(group, part) == part
        assert set(groups) == {"02", "13", "35", "49", "90", "dm"}

    def test_described(self, corpus):
        about = describe(corpus)
        assert about["clips"] == 12 and about["hours"] == pytest.approx(corpus.hours, abs=1e-4)
        assert sum(about["hours_by"]["split"].values()) == pytest.approx(about["hours"], abs=2e-4)
        assert about["captions"]["whole"] > 20 and about["words"] > 50


@pytest.mark.filterwarnings("ignore:the pelvis points straight up")
class TestDeterminism:
    def test_twice_gives_the_same_bytes(self, corpus, shared_data, tmp_path):
        make(shared_data, tmp_path / "mini")
        assert digest(tmp_path / "mini") == digest(corpus.path)

    @pytest.mark.parametrize("stop_at", [0, 1, 4])
    def test_interrupted_work_goes_on_where_it_stopped(self, corpus, shared_data, tmp_path, monkeypatch, stop_at):
        loaded = []

        def interrupted(path):
            if len(loaded) == stop_at:
                raise KeyboardInterrupt
            loaded.append(Path(path).stem)
            return load_motion(path)

        monkeypatch.setattr(build, "load_motion", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(shared_data, tmp_path / "mini")
        assert not (tmp_path / "mini").exists()
        again = []
        monkeypatch.setattr(build, "load_motion", lambda path: (again.append(Path(path).stem), load_motion(path))[1])
        make(shared_data, tmp_path / "mini")
        assert again == NAMES[max(stop_at - 1, 0) :]  # only the last one is looked at again
        assert digest(tmp_path / "mini") == digest(corpus.path)
        assert [p.name for p in tmp_path.iterdir()] == ["mini"]

    def test_what_other_options_left_behind_is_not_taken_up(self, corpus, shared_data, tmp_path, monkeypatch):
        def interrupted(path):
            if Path(path).stem == "49_07":
                raise KeyboardInterrupt
            return load_motion(path)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build, "load_motion", interrupted)
            make(shared_data, tmp_path / "mini", BuildOptions())
        make(shared_data, tmp_path / "mini")
        assert digest(tmp_path / "mini") == digest(corpus.path)

    def test_an_archive_gives_what_the_folder_gives(self, corpus, shared_data, tmp_path):
        archive = Path(shutil.make_archive(str(tmp_path / "mini"), "zip", shared_data, "mini"))
        options = BuildOptions(validation_every=0, limit=2)
        from_zip = build_corpus([archive], tmp_path / "a", options=options, progress=False)
        assert from_zip.ids == NAMES[:2] and set(from_zip.column("split")) == {"train"}
        assert torch.equal(from_zip[0].features, corpus.find("02_01").features)

    def test_splits_do_not_depend_on_the_order(self):
        groups = [f"g{k}" for k in range(50)]
        one, two = assign_splits(groups, 12), assign_splits(groups[::-1] + groups, 12)
        assert one == two and list(one.values()).count("val") == 4
        assert set(assign_splits(groups, 0).values()) == {"train"}
        assert set(assign_splits(groups, 1).values()) == {"val"}


class TestLeftOut:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        """A good walk, a short one, one with a jump, a damaged file and one on an unknown skeleton."""
        folder = tmp_path / "in"
        folder.mkdir()
        walk = procedural_walk(150)
        write_bvh(walk, folder / "good.bvh")
        write_bvh(walk.crop(0, 12), folder / "short.bvh")
        root = walk.root.clone()
        root[60:] += torch.tensor([4.0, 0.0, 0.0])
        root[70:] += torch.tensor([4.0, 0.0, 0.0])
        write_bvh(walk.replace(root=root), folder / "jumps.bvh")
        (folder / "broken.bvh").write_text("HIERARCHY\nROOT Hips\n{\n")
        strange = walk.replace(
            skeleton=type(walk.skeleton)(
                tuple(f"b{j}" for j in range(22)), walk.skeleton.parents, walk.skeleton.offsets
            )
        )
        write_bvh(strange, folder / "strange.bvh")
        return folder

    def test_counted_by_reason(self, folder, tmp_path):
        out = build_corpus([folder], tmp_path / "out", options=BuildOptions(validation_every=0), progress=False)
        assert out.ids == ["good", "jumps.0", "jumps.1"]
        assert out.frames.tolist() == [150, 60, 80] or out.frames.tolist() == [149, 59, 79]
        rejected = out.about["rejected"]
        assert rejected.pop("shorter than the minimum") == 1
        assert rejected.pop("short piece between glitches") == 1
        assert sum(rejected.values()) == 2 and any(r.startswith("FileError") for r in rejected)
        assert any(r.startswith("SkeletonError") for r in rejected)
        assert out.find("jumps.1").extra["start"] == pytest.approx(70 / 30, abs=1e-3)

    def test_nothing_left(self, folder, tmp_path):
        with pytest.raises(VadisError, match=r"would be empty .*shorter than the minimum"):
            build_corpus([folder], tmp_path / "out", options=BuildOptions(min_seconds=60), progress=False)
        assert not (tmp_path / "out").exists()

    def test_parts_below_their_floor(self):
        walk = procedural_walk(90)
        root = walk.root.clone()
        root[88:, 1] -= 0.6  # two frames sink: too few to move the floor, too slow for a glitch at 10 frames/s
        parts, reasons = prepare(walk.replace(root=root, fps=10.0), 30, BuildOptions())
        assert parts == [] and reasons == ["far below the floor"]

    def test_true_frame_rates_come_from_the_manifest(self, folder, tmp_path):
        manifest = tmp_path / "facts.jsonl"
        manifest.write_text(
            json.dumps({"clip": "good", "fps": 60, "licence": "CC0-1.0", "source": "here", "subject": "7"}) + "\n"
        )
        out = build_corpus(
            [folder / "good.bvh"],
            tmp_path / "out",
            manifest=manifest,
            options=BuildOptions(validation_every=0),
            progress=False,
        )
        assert out.frames.tolist() == [75]
        clip = out[0]
        assert (clip.licence, clip.source, clip.extra["subject"]) == ("CC0-1.0", "here", "7")


class TestCaptions:
    def test_shifted_to_parts(self):
        captions = [
            Caption("all", 0, 0, "whole"),
            Caption("first", 0, 2, "whole"),
            Caption("across", 1.5, 3.5, "whole"),
            Caption("last", 4, 5, "x"),
        ]
        assert [(c.text, c.start, c.end) for c in build._shift(captions, 0.0, 5.0, 5.0)] == [
            ("all", 0, 5), ("first", 0, 2), ("across", 1.5, 3.5), ("last", 4, 5)]  # fmt: skip
        assert [(c.text, c.start, c.end) for c in build._shift(captions, 2.0, 3.0, 5.0)] == [
            ("all", 0, 3), ("across", 0, 1.5), ("last", 2, 3)]  # fmt: skip

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", "JSON"),
            ("[1]", "object"),
            ('{"text": "x"}', "clip"),
            ('{"clip": "a", "start_s": "soon", "text": "x"}', "start_s: input should be a valid number"),
            ("null", "object"),
            ('{"clip": "a", "text": "x", "start_s": NaN}', "start_s: input should be a finite number"),
            ('{"clip": "a", "text": "x", "end_s": 1e999}', "end_s: input should be a finite number"),
            ('{"clip": "a", "text": "x", "start_s": -1}', "start_s: input should be greater than or equal to 0"),
            ('{"clip": "a", "text": "x", "start_s": 3, "end_s": 2}', "begins at 3 s and ends at 2 s"),
            ('{"clip": "a", "text": 5}', "text: input should be a valid string"),
            ('{"clip": "a", "whole": "x"}', "whole"),
            ('{"clip": "a"}', "it needs text, or whole"),
            ('{"clip": "a", "text": ' + "[" * 3000 + "]" * 3000 + "}", "text|JSON"),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path, line, said):
        path = tmp_path / "texts.jsonl"
        path.write_text('{"clip": "a", "text": "ok"}\n\n' + line + "\n")
        with pytest.raises(FileError, match=rf"texts\.jsonl, line 3: not a caption row: .*{said}"):
            read_captions([path])

    def test_lines_end_at_newlines_only(self, tmp_path):
        path = tmp_path / "texts.jsonl"
        path.write_text(
            '{"clip": "a", "text": "one\u2028two\u0085three"}\r\n{"clip": 7, "text": "x"}', encoding="utf-8"
        )
        assert {name: [c.text for c in found] for name, found in read_captions([path]).items()} == {
            "a": ["one\u2028two\u0085three"], "7": ["x"]}  # fmt: skip
        path.write_bytes(b'{"clip": "a", "text": "x"}\n{"clip": "a", "text": "\xff"}\n')
        with pytest.raises(FileError, match=r"texts\.jsonl, line 2"):
            read_captions([path])

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('{"clip": "a", "fps": -1}', "fps"),
            ('{"clip": "a", "fps": 1e6}', "fps: input should be less than or equal to 10000"),
            ('{"clip": "a", "fps": "30"}', "fps: input should be a valid number"),
            ('{"clip": "a", "weight": NaN}', "NaN is not a JSON number"),
            ('{"clip": "a", "weight": 1e999}', "beyond"),
            ('{"clip": "a", "licence": 3}', "licence"),
            ('{"clip": "b", "fps": 60}', "'b' is given twice"),
            ('{"fps": 60}', "clip"),
        ],
    )
    def test_bad_manifests_are_named(self, tmp_path, line, said):
        path = tmp_path / "facts.jsonl"
        path.write_text('{"clip": "b", "fps": 30, "subject": {"id": 1}}\n' + line + "\n")
        with pytest.raises(FileError, match=rf"facts\.jsonl, line 2.*{said}"):
            read_manifest(path)

    def test_read(self, tmp_path):
        path = tmp_path / "texts.jsonl"
        rows = [{"clip": "a", "text": " walks ", "source": "label", "start_s": 1, "end_s": 2}, {"clip": "a", "text": "  "},
                {"clip": "b", "whole": ["one", "two"], "detailed": "three", "upper": "", "lower": "four"}]  # fmt: skip
        path.write_text("\n".join(map(json.dumps, rows)))
        found = read_captions([path])
        assert found["a"] == [Caption("walks", 1.0, 2.0, "label")]
        assert [(c.text, c.kind) for c in found["b"]] == [
            ("one", "whole"),
            ("two", "whole"),
            ("three", "detailed"),
            ("four", "lower"),
        ]

    def test_missing_files(self, tmp_path):
        with pytest.raises(FileError, match="can't read the captions"):
            read_captions([tmp_path / "none.jsonl"])
        with pytest.raises(FileError, match="can't read the manifest"):
            read_manifest(tmp_path / "none.jsonl")
        (tmp_path / "bad.jsonl").write_text("[]\n")
        with pytest.raises(FileError, match="can't read the manifest"):
            read_manifest(tmp_path / "bad.jsonl")
        assert read_manifest(None) == {}

    def test_none_vanishes_silently(self, mini_bvh, tmp_path):
        whole = load_motion(mini_bvh[4]).seconds
        rows = [{"clip": "a", "text": "walks"}, {"clip": "a", "text": "later", "start_s": 900, "end_s": 901},
                {"clip": "a", "text": "on", "start_s": 0.5, "end_s": whole + 0.5},
                {"clip": "a", "text": "rounded", "start_s": 0.5, "end_s": whole + 0.01},
                {"clip": "ghost", "text": "one"}, {"clip": "ghost", "whole": ["two", "three"]}]  # fmt: skip
        (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        shutil.copy(mini_bvh[4], tmp_path / "a.bvh")
        said: list[str] = []
        made = build_corpus(
            [tmp_path / "a.bvh"], tmp_path / "out", [tmp_path / "texts.jsonl"], progress=False, say=said.append
        )
        assert said == ["passed over: 3 captions of 1 clips that are not among the sources, such as 'ghost'"]
        assert made.about["rejected"] == {
            "caption of a time that its clip doesn't have": 1,
            "end of a caption's time that its clip doesn't have": 1,
        }
        assert [c.text for c in made[0].captions] == ["walks", "on", "rounded"]
        assert all(c.end <= whole + 0.001 for c in made[0].captions)


class TestSources:
    def test_none(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileError, match="no motion files in"):
            build_corpus([tmp_path / "empty"], tmp_path / "out", progress=False)
        with pytest.raises(FileError, match="no file or folder"):
            build_corpus([tmp_path / "absent"], tmp_path / "out", progress=False)

    def test_names_that_clash(self, mini_bvh, tmp_path):
        with pytest.raises(FileError, match="1 clip names occur twice in the sources"):
            build_corpus([mini_bvh[4], mini_bvh[4]], tmp_path / "out", progress=False)
        for name in ("a", "Ma"):
            shutil.copy(mini_bvh[4], tmp_path / f"{name}.bvh")
        with pytest.raises(FileError, match="mirrored copies would take the names of Ma"):
            build_corpus(
                [tmp_path / "a.bvh", tmp_path / "Ma.bvh"],
                tmp_path / "out",
                options=BuildOptions(mirror=True),
                progress=False,
            )

    def test_bad_options(self, mini_bvh, tmp_path):
        with pytest.raises(VadisError, match=r"group='\(' is not a regular expression"):
            build_corpus([mini_bvh[4]], tmp_path / "out", options=BuildOptions(group="("), progress=False)
        with pytest.raises(VadisError, match="ms999"):
            build_corpus([mini_bvh[4]], tmp_path / "out", options=BuildOptions(representation="ms999"), progress=False)

    def test_other_representations(self, mini_bvh, tmp_path):
        options = BuildOptions(representation="hml263", validation_every=0)
        out = build_corpus([mini_bvh[4]], tmp_path / "out", options=options, progress=False)
        assert out.fps == 20 and out.dim == 263 and np.isfinite(out[0].features.numpy()).all()
