"""A package of somebody else adds one of each kind by entry points and nothing else; a broken one is named and passed over."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import procedural_walk

import vadis
from vadis import plugins
from vadis.cli import main
from vadis.component_files import save_pretrained
from vadis.errors import VadisError
from vadis.evaluation.protocol import load_protocol, protocol_names
from vadis.evaluation.report import metrics
from vadis.loading import COMPONENTS, component_classes
from vadis.plugins import Table
from vadis.representations import names, representation

CODE = '''
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from vadis.component import Component
from vadis.evaluation.clip_metrics import ClipMetrics, Metric
from vadis.evaluation.protocol import Protocol
from vadis.io import Format, load_motion, save_motion
from vadis.generators.motionmillion import MotionMillion, MotionMillionConfig
from vadis.representations.smpl135 import SMPL135
from vadis.sizes import CONFIG
from vadis.tokenizers.base import Tokenizer


def toy135():
    """Representation: another name for smpl135's columns."""
    made = SMPL135(name="smpl135")
    made.name = "toy135"
    return made


@dataclass(frozen=True, config=CONFIG)
class SignConfig:
    type: Literal["toy_sign"] = "toy_sign"
    representation: str = "ms272"
    fps: float = 30.0
    feature_dim: int = 272


class SignTokenizer(Tokenizer):
    """Tokenizer: one bit a frame, whether the root is above its mean height."""

    config_class = SignConfig
    frames_per_token = 1
    vocab_size = 2
    encoder_context = decoder_context = (0, 0)

    def __init__(self, config=None):
        super().__init__(config)
        self.pose = torch.nn.Parameter(torch.zeros(2, self.config.feature_dim))

    def _encode(self, x):
        return (x[..., 9] > 0).long()

    def _decode(self, tokens):
        return self.pose[tokens]


@dataclass(frozen=True, config=CONFIG)
class ToyConfig(MotionMillionConfig):
    type: Literal["toy_generator"] = "toy_generator"


class ToyGenerator(MotionMillion):
    """Generator: MotionMillion's under another name."""

    config_class = ToyConfig


@dataclass(frozen=True, config=CONFIG)
class HeightConfig:
    type: Literal["toy_evaluator"] = "toy_evaluator"
    representation: str = "ms272"


class HeightEvaluator(Component):
    """Evaluator: stands for any part with a place of its own."""

    kind = "evaluator"
    config_class = HeightConfig

    def __init__(self, config=None):
        super().__init__()
        self.config = config or HeightConfig()
        self.weight = torch.nn.Parameter(torch.ones(2))


def highest(joints, fps, mode):
    return {"toy_highest": np.array([float(j[..., 1].max()) for j in joints])}


def load_toy(path, fps: float | None = None):
    return load_motion(path.with_suffix(".npz"))


def save_toy(motion, path):
    path.write_text(f"toy of {motion.num_frames} frames")
    save_motion(motion, path.with_suffix(".npz"))


FORMAT = Format(load_toy, save_toy)
HIGHEST = ClipMetrics({"toy_highest": Metric("Highest joint", "higher", 2, "m")}, highest)
PROTOCOL = Protocol(name="toy", metrics=("toy_metrics", "ground"), repeats=1, evaluator=None)
'''
POINTS = """
[vadis.representations]
toy135 = toy_motion:toy135
broken135 = toy_broken:make
[vadis.formats]
toy = toy_motion:FORMAT
broken = toy_broken:FORMAT
[vadis.tokenizers]
toy_sign = toy_motion:SignTokenizer
broken_sign = toy_broken:Tokenizer
toy_wrong = toy_motion:toy135
[vadis.generators]
toy_generator = toy_motion:ToyGenerator
[vadis.evaluators]
toy_evaluator = toy_motion:HeightEvaluator
[vadis.metrics]
toy_metrics = toy_motion:HIGHEST
[vadis.protocols]
toy = toy_motion:PROTOCOL
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package: two modules and its metadata on the path."""
    site = tmp_path / "site"
    info = site / "toy_motion-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-motion\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (site / "toy_motion.py").write_text(CODE)
    (site / "toy_broken.py").write_text("raise RuntimeError('made for another vadis')\n")
    monkeypatch.syspath_prepend(str(site))
    _forget()
    yield
    for name in ("toy_motion", "toy_broken"):
        sys.modules.pop(name, None)
    _forget()


def _forget() -> None:
    plugins._added.cache_clear()
    representation.cache_clear()


def test_a_representation() -> None:
    assert "toy135" in names()
    rep, walk = representation("toy135"), procedural_walk(30, 20.0)
    made = rep.decode(rep.encode(walk.resample(rep.fps)))
    assert rep.name == "toy135" and made.num_frames == walk.resample(rep.fps).num_frames


def test_a_format(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    walk = procedural_walk(30)
    walk.save(tmp_path / "walk.toy")
    assert (tmp_path / "walk.toy").read_text() == "toy of 30 frames"
    assert (vadis.load_motion(tmp_path / "walk.toy").positions - walk.positions).abs().max() < 1e-4
    assert main(["convert", str(tmp_path / "walk.toy"), str(tmp_path / "a.bvh")]) == 0
    assert main(["convert", str(tmp_path / "a.bvh"), "-o", str(tmp_path / "b.toy")]) == 0
    assert (tmp_path / "b.toy").read_text() == "toy of 30 frames"
    with pytest.raises(VadisError, match="broken of the package toy-motion can't be used"):
        vadis.load_motion(tmp_path / "walk.broken")
    with pytest.warns(UserWarning, match="broken of the package"), pytest.raises(VadisError, match=r"one of .*\.toy"):
        vadis.load_motion(tmp_path / "walk.xyz")
    capsys.readouterr()


def test_a_tokenizer_a_generator_and_an_evaluator(tmp_path: Path) -> None:
    for kind in ("toy_sign", "toy_generator", "toy_evaluator"):
        cls = COMPONENTS[kind]
        config = cls.config_class(n_layer=1, n_head=2, n_embd=16, nb_code=4) if kind == "toy_generator" else None
        save_pretrained(cls(config).eval(), tmp_path / kind)
        again = vadis.load(tmp_path / kind)
        assert type(again) is cls
        assert type(cls.from_pretrained(tmp_path / kind)) is cls
    tokenizer = vadis.load(tmp_path / "toy_sign")
    features = representation("ms272").encode(procedural_walk(30))
    tokens = tokenizer.encode(features)
    assert tokens.shape == (30,) and tokenizer.decode(tokens).shape == (30, 272)


def test_a_metric_and_a_protocol(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from vadis.data.corpus import Caption, CorpusWriter
    from vadis.evaluation.evaluate import evaluate

    assert "toy" in protocol_names() and load_protocol("toy", repeats=3).repeats == 3
    assert metrics()["toy_highest"].label == "Highest joint"
    rep = representation("ms272")
    with CorpusWriter(tmp_path / "walks", rep.name, 30.0) as writer:
        for i in range(3):
            about = {"split": "test", "group": str(i), "source": "made", "licence": "CC0-1.0"}
            writer.add(f"walk-{i}", rep.encode(procedural_walk(80, turn=i)), [Caption("a walk", 0, 2.6)], **about)
    report = evaluate("baseline:real", "toy", tmp_path / "walks", evaluator="none", out=tmp_path / "out")
    assert 1.3 < report.result["toy_highest"].mean < 2 and "Highest joint (m)" in report.markdown()
    assert main(["evaluate", "--baseline", "real", "--data", str(tmp_path / "walks"), "--protocol", "toy", "--evaluator",
                 "none"]) == 0  # fmt: skip
    assert "Highest joint (m)" in capsys.readouterr().out
    assert "Highest joint" in (tmp_path / "out" / "report.html").read_text()


def test_what_cannot_be_imported_is_named_and_the_rest_works() -> None:
    broken = (
        "broken135 of the package toy-motion can't be used .RuntimeError: made for another vadis.: update or uninstall"
    )
    with pytest.raises(VadisError, match=broken):
        representation("broken135")
    with pytest.raises(VadisError, match="toy_wrong of the package toy-motion can't be used .* is not a subclass of"):
        COMPONENTS["toy_wrong"]
    with pytest.warns(UserWarning, match="package toy-motion can't be used"):
        found = component_classes()
    assert "toy_sign" in found and "fsq" in found and not {"broken_sign", "toy_wrong"} & set(found)


def test_names_of_vadis_come_first_and_nothing_is_imported_early() -> None:
    table = Table("vadis.tokenizers", {"toy_sign": "vadis.tokenizers.fsq:FSQTokenizer"})
    assert table["toy_sign"].__name__ == "FSQTokenizer" and len(table) == 3
    assert list(table)[:2] == ["toy_sign", "broken_sign"] and "toy_motion" not in sys.modules
    assert "nothing" not in table
    with pytest.raises(KeyError):
        table["nothing"]


def test_recipes_take_families_of_another_package() -> None:
    """The types that a recipe may name are known when training is first imported, so in a process of its own."""
    code = textwrap.dedent(
        """
        from vadis.training.tokenizer_task import FAMILIES
        from vadis.training.tasks import GENERATORS

        print(FAMILIES["toy_sign"].__name__, GENERATORS["toy_generator"].__name__, "broken_sign" in FAMILIES)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["SignTokenizer", "ToyGenerator", "False"], done.stderr
    assert "broken_sign of the package toy-motion" in done.stderr
