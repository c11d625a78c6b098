"""`describe`: every kind of file gets a sentence, facts, a next step, and warnings where the numbers don't fit."""

import io
import json
import struct
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vadis.errors import FileError
from vadis.inspect.files import describe
from vadis.inspect.models import human_bytes, importable_kind
from vadis.representations import representation


def test_motion_files(walk, tmp_path):
    walk.save(tmp_path / "w.bvh")
    report = describe(tmp_path / "w.bvh")
    assert report.kind == "bvh" and report.summary == "BVH motion, 3.0 s" and not report.warnings
    assert report.facts["skeleton"] == "22 joints, recognised as smpl22" and report.facts["unit"] == "cm"
    assert any("--to ms272" in step for step in report.next)
    assert json.loads(json.dumps(report.to_dict()))["kind"] == "bvh"
    text = str(report)
    assert "frames         90 at 30/s = 3.00 s" in text and "next: vadis view w.bvh" in text
    walk.save(tmp_path / "w.npz", width=156)
    report = describe(tmp_path / "w.npz")
    assert report.kind == "npz" and "Z up as in AMASS" in report.summary and "poses (90, 156)" in report.facts["arrays"]


def test_a_rest_pose_in_front_and_glitches_are_noticed(walk, tmp_path):
    walk.save(tmp_path / "t.bvh", t_pose_first_frame=True)
    assert any("frame 0 is the rest pose" in w for w in describe(tmp_path / "t.bvh").warnings)
    root = walk.root.clone()
    root[40] += 3
    walk.replace(root=root).save(tmp_path / "g.bvh")
    assert any(
        "2 frames in which a joint is faster than 14 m/s (first: 40)" in w
        for w in describe(tmp_path / "g.bvh").warnings
    )
    walk.replace(root=walk.root[:1].expand(9, 3), rotations=walk.rotations[:1].expand(9, 22, 3, 3)).save(
        tmp_path / "s.bvh"
    )
    assert "nothing moves." in describe(tmp_path / "s.bvh").warnings


def test_arrays(walk, tmp_path):
    features = representation("ms272").encode(walk).numpy()

    def report_of(array):
        np.save(tmp_path / "x.npy", array)
        return describe(tmp_path / "x.npy")

    report = report_of(features)
    assert report.kind == "features" and report.summary == "ms272 features, 90 frames" and not report.warnings
    report = report_of((features - features.mean(0)) / (features.std(0) + 0.01))
    assert any("look normalised" in w for w in report.warnings)
    assert report_of(features[None].repeat(2, 0)).facts["clips"] == 2
    report = report_of(representation("hml263").encode(walk.resample(20)).numpy())
    assert report.summary == "hml263 features, 59 frames" and not report.warnings
    report = report_of(walk.positions.numpy())
    assert report.kind == "joints" and any("20/s is assumed" in w for w in report.warnings)
    assert report_of(walk.positions.numpy().reshape(-1, 66)).kind == "joints"
    assert report_of(np.arange(12).reshape(4, 3)).kind == "tokens"
    assert "the mean of ms272" in report_of(features.mean(0)).summary
    assert "the deviation of ms272" in report_of(features.std(0)).summary
    assert report_of(np.zeros((3, 7))).warnings == ["this shape is not a known kind of motion."]
    assert "ms272 (" in report_of(features).facts["looks like"]
    assert "ms272_absroot" in report_of(representation("ms272_absroot").encode(walk).numpy()).summary
    holes = features.copy()
    holes[3, 5] = np.nan
    assert any("1 values are NaN" in w for w in report_of(holes).warnings)
    for width, name in ((276, "vimogen276"), (251, "kit251"), (135, "smpl135")):
        assert name in report_of(np.random.default_rng(0).normal(size=(9, width)).astype(np.float32)).summary


LAYOUTS = {
    "motionmillion_fsq": "motionmillion-fsq",
    "causal_tae/released_config_synth": "motionstreamer-tae",
    "motionstreamer_ar/tiny": "motionstreamer-ar",
    "vqvae_t2mgpt/gpt_tiny": "t2mgpt-gpt",
    "vqvae_t2mgpt/released": "t2mgpt-vqvae",
    "rvq_momask/tiny": "momask-rvq",
    "mg_vqvae": "motion-vqvae",
}


@pytest.mark.parametrize("folder", LAYOUTS)
def test_published_layouts_are_known_by_their_names(parity_root, folder):
    page = json.loads((parity_root / folder / "manifest.json").read_text())
    names = (
        page.get("state_dict") or page.get("state_dict_released") or next(iter(page["cases"].values()))["state_dict"]
    )
    found = importable_kind([f"module.{name}" for name in names])
    assert found is not None and found[0] == LAYOUTS[folder]


def test_checkpoints(tmp_path):
    names = {"transformer.h.0.attn.c_attn.weight": torch.zeros(6, 2), "lm_head.weight": torch.zeros(5, 2)}
    save_file(names, tmp_path / "a.safetensors")
    report = describe(tmp_path / "a.safetensors")
    assert report.facts["parameters"] == "22" and report.next == ["vadis import motionmillion-ar a.safetensors FOLDER"]
    torch.save({"trans": names}, tmp_path / "a.pth")
    assert describe(tmp_path / "a.pth").next == ["vadis import motionmillion-ar a.pth FOLDER"]
    torch.save({"other": torch.zeros(3)}, tmp_path / "b.pt")
    assert "no published layout" in describe(tmp_path / "b.pt").warnings[0]
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FileError, match="not a whole safetensors file"):
        describe(tmp_path / "c.safetensors")
    assert importable_kind(["something"]) is None
    assert human_bytes(1536) == "1.5 KB" and human_bytes(7e12) == "7000.0 GB"


def test_model_folders(tmp_path):
    bundle = tmp_path / "bundle"
    for part, config in (
        ("tokenizer", {"vadis": "1", "kind": "tokenizer", "type": "fsq"}),
        ("generator", {"vadis": "1"}),
    ):
        (bundle / part).mkdir(parents=True)
        (bundle / part / "config.json").write_text(json.dumps(config))
        save_file({"w": torch.zeros(10, 10)}, bundle / part / "model.safetensors")
    index = {"_class_name": "TextToMotionPipeline", "_vadis_version": "0.1.0", "tokenizer": ["vadis", "FSQTokenizer"],
             "generator": ["vadis", "X"], "text_encoder": {"hub": "a/b"}, "upscaler": None}  # fmt: skip
    (bundle / "model_index.json").write_text(json.dumps(index))
    (bundle / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    report = describe(bundle)
    assert report.kind == "bundle" and report.facts["parameters"] == "200" and report.facts["licence"] == "apache-2.0"
    assert report.facts["tokenizer"] == "FSQTokenizer, 100 parameters" and "fetched" in report.facts["text_encoder"]
    report = describe(bundle / "tokenizer")
    assert report.kind == "model" and report.summary == "vadis tokenizer" and report.facts["licence"] == "not stated"
    (bundle / "model_index.json").write_text("[")
    with pytest.raises(FileError, match="is not valid JSON"):
        describe(bundle)


def test_foreign_folders(walk, tmp_path):
    (tmp_path / "mm_config.json").write_text("{}")
    assert "motius-gotozero" in describe(tmp_path).next[0]
    (tmp_path / "mm_config.json").unlink()
    assert describe(tmp_path).warnings == ["nothing in it is known to vadis."]
    walk.save(tmp_path / "w.bvh")
    assert describe(tmp_path).facts["motion files"] == "1 .bvh"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "mean.npy").write_bytes(b"x")
    assert "motion-vqvae" in describe(tmp_path).next[0]
    (tmp_path / "config.json").unlink()
    (tmp_path / "corpus.json").write_text('{"representation": "ms272", "clips": 3, "mean": [1]}')
    assert describe(tmp_path).facts == {"representation": "ms272", "clips": 3}


def test_other_files(walk, tmp_path):
    page = json.dumps(
        {"animations": [{"name": "walk"}], "skins": [{"joints": [0, 1]}], "asset": {"generator": "x"}}
    ).encode()
    page += b" " * (-len(page) % 4)
    head = b"glTF" + struct.pack("<II", 2, 20 + len(page)) + struct.pack("<I", len(page)) + b"JSON"
    (tmp_path / "a.glb").write_bytes(head + page)
    report = describe(tmp_path / "a.glb")
    assert report.kind == "glb" and report.facts["animations"] == "walk" and report.facts["skins"] == "2 joints"
    (tmp_path / "a.glb").write_bytes(head + page[:10])
    with pytest.raises(FileError, match="a.glb is not valid JSON"):
        describe(tmp_path / "a.glb")
    for name, word in (("a.fbx", "FBX"), ("a.c3d", "markers"), ("a.pkl", "pickles can run code"), ("a.xyz", "unknown")):
        (tmp_path / name).write_bytes(b"data")
        report = describe(tmp_path / name)
        assert word in " ".join([report.summary, *report.next, *report.warnings])
    (tmp_path / "walk.txt").write_bytes(b"HIERARCHY\nROOT")
    assert describe(tmp_path / "walk.txt").next == ["rename it to walk.bvh"]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("set/a.bvh")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"HIER"))
    assert describe(tmp_path / "a.tar.gz").facts["motion files"] == "1 .bvh"
    (tmp_path / "empty.bvh").touch()
    with pytest.raises(FileError, match="is empty"):
        describe(tmp_path / "empty.bvh")
    with pytest.raises(FileError, match="no file or folder"):
        describe(tmp_path / "missing")


def test_originals(shared_data, tmp_path):
    with tarfile.open(shared_data / "originals.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    kinds = {path.name: describe(path) for path in sorted((tmp_path / "originals").iterdir())}
    assert kinds["02_01.amc"].kind == "amc" and "recognised as asf" in kinds["02_01.amc"].facts["skeleton"]
    assert any("120/s is assumed" in w for w in kinds["02_01.amc"].warnings)
    assert kinds["02.asf"].kind == "asf"
    assert kinds["humanoid3d_walk.json"].facts["loop"] == "wrap"
    assert kinds["humanoid3d_character.json"].kind == "deepmimic-character"
    assert any("frame 0 is the rest pose" in w for w in kinds["02_01_as_distributed.bvh"].warnings)
    assert "C3D" in kinds["05_13.c3d"].summary
