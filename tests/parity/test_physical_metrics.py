"""Slide, Float, Jitter, Dynamic and Penet against the original program, on every clip with stored joints."""

from pathlib import Path

import pytest

from vadis.metrics.physical import physical_metrics

from .fixtures import arrays, cases, manifest

FIELDS = {"Slide": "slide", "Float": "floating", "Jitter": "jitter", "Dynamic": "dynamic", "Penet": "penetration"}


@pytest.mark.parametrize(("folder", "case"), cases("conversions_272"))
def test_same_values(folder: Path, case: str) -> None:
    about, joints = manifest(folder)["cases"][case], arrays(folder, f"{case}.")["joints"]
    result = physical_metrics(joints, mode="compat")
    atol = about.get("atol", {}).get("physical", 1e-5)
    for name, expected in about["physical_raw"].items():
        assert float(getattr(result, FIELDS[name])[0]) == pytest.approx(expected, abs=atol), name
    table = result.table()
    for name, expected in about["physical_table"].items():
        assert table[name] == pytest.approx(expected, abs=1000 * atol), name


@pytest.mark.parametrize(("folder", "case"), cases("conversions_272"))
def test_floating_counts_the_same_frames(folder: Path, case: str) -> None:
    about, joints = manifest(folder)["cases"][case], arrays(folder, f"{case}.")["joints"]
    frames = float(physical_metrics(joints).floating[0]) * len(joints)
    assert frames == pytest.approx(about["physical_raw"]["Float"] * len(joints), abs=1e-6)
