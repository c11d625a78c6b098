"""MBench's joint metrics, pose-distance field, mesh penetration and reply parsing against the original program."""

from pathlib import Path

import numpy as np
import pytest

from vadis.metrics.clips import pack
from vadis.metrics.feet import watch_feet
from vadis.metrics.mbench import NAMES, mbench_metrics

from .fixtures import arrays, manifest, manifests


def folders(topic: str) -> list:
    """The folders of one part of the topic: its name says what the manifest holds."""
    return [p for p in manifests("mbench_metrics") if p.values[0] is None or topic in manifest(p.values[0])]


@pytest.mark.parametrize("folder", folders("values"))
def test_joint_metrics(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    for case, expected in about["values"].items():
        result = mbench_metrics(data[f"{case}/joints"], fps=20, mode="compat")
        for field, name in NAMES.items():
            value = float(getattr(result, field)[0])
            if expected[name] is None:
                assert np.isnan(value), f"{case} {name}"
            elif name == "Foot_Floating":
                assert value == expected[name], f"{case} {name}"
            else:
                assert value == pytest.approx(expected[name], abs=1e-5), f"{case} {name}"
        if f"{case}/contact" in data:
            assert np.array_equal(result.contact, data[f"{case}/contact"].bool().numpy()), case
        if "_no_contact_ranges" in expected:
            feet = watch_feet(pack(data[f"{case}/joints"]), 2, 0.0)
            runs = [np.stack(feet.runs(~feet.contact[:, foot]), 1).tolist() for foot in (0, 1)]
            assert runs == expected["_no_contact_ranges"], case


@pytest.mark.parametrize("folder", folders("values"))
def test_all_clips_at_once_give_the_same(folder: Path) -> None:
    about, data = manifest(folder), arrays(folder)
    cases = list(about["values"])
    together = mbench_metrics([data[f"{case}/joints"] for case in cases], fps=20, mode="compat")
    for row, case in enumerate(cases):
        alone = mbench_metrics(data[f"{case}/joints"], fps=20, mode="compat")
        for field in NAMES:
            np.testing.assert_allclose(getattr(together, field)[row], getattr(alone, field)[0], rtol=1e-6, err_msg=case)
