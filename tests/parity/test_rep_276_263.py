"""ViMoGen-276 against the original programs: building, inverses, the roads from 272 and to 263, MotionVLA's literal one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.fixtures import arrays, manifests
from torch import Tensor

from vadis import rotation
from vadis.representations import motionvla
from vadis.representations.hml263 import HumanML
from vadis.representations.ms272 import MS272
from vadis.representations.vimogen276 import REST_PELVIS, Body276, ViMoGen276

REP = ViMoGen276()
FOLDERS = manifests("rep_276_263")


def having(*names: str) -> list[Any]:
    """(folder, case prefix) of all cases that hold these arrays; one skip where there is none."""
    found = []
    for parameter in FOLDERS:
        folder = parameter.values[0]
        if folder is None:
            return [pytest.param(None, None, marks=parameter.marks)]
        keys = set(arrays(folder))
        prefixes = sorted({k.rpartition("/")[0] for k in keys})
        for prefix in (p + "/" if p else "" for p in prefixes):
            if all(prefix + name in keys for name in names):
                found.append(pytest.param(folder, prefix, id=f"{parameter.id}/{prefix.rstrip('/')}"))
    reason = f"no parity fixture with {', '.join(names)}"
    return found or [pytest.param(None, None, marks=pytest.mark.skip(reason=reason))]


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=atol, rtol=0)


def same_turns(ours: Tensor, vectors: Tensor, atol: float) -> None:
    """Rotations against axis-angle vectors, which are not unique near half turns."""
    close(ours, rotation.from_rotvec(vectors.double().unflatten(-1, (-1, 3))).reshape(ours.shape), atol)


def given_body(z: dict[str, Tensor]) -> Body276:
    root = rotation.from_rotvec(z["in_global_orient"].double())
    local = rotation.from_rotvec(z["in_body_pose"].double().unflatten(-1, (21, 3)))
    return Body276(root, local, z["in_joints_zup"].double(), z["in_transl"].double())


@pytest.mark.parametrize(("folder", "case"), having("in_global_orient", "in_joints_zup", "collect_no_canon"))
def test_assembly(folder: Path, case: str) -> None:
    z = arrays(folder, case)
    close(REP.assemble(given_body(z)), z["collect_no_canon"], 2e-5)


@pytest.mark.parametrize("floor", [0, 1])
@pytest.mark.parametrize(("folder", "case"), having("in_global_orient", "canon_floor0", "canon_floor1"))
def test_canonical(folder: Path, case: str, floor: int) -> None:
    z = arrays(folder, case)
    body, turn, shift = REP.canonical(given_body(z), floor=bool(floor))
    close(turn, z[f"canon_R{floor}"], 2e-5)
    close(shift, z[f"canon_dt{floor}"][0], 2e-5)
    close(REP.assemble(body), z[f"canon_floor{floor}"], 2e-5)


@pytest.mark.parametrize(("folder", "case"), having("canon_floor0", "mbench_joints_yup_floor0"))
def test_benchmark_export(folder: Path, case: str) -> None:
    z = arrays(folder, case)
    close(REP.positions(z["canon_floor0"], integrate=True), z["mbench_joints_yup_floor0"], 2e-5)


def inverses() -> list[Any]:
    """(folder, stem) of every stored inverse, such as `w0/inv_vel1_eq0`."""
    found = []
    for parameter in FOLDERS:
        if parameter.values[0] is None:
            return [pytest.param(None, None, marks=parameter.marks)]
        stems = [k.removesuffix("_joints") for k in arrays(parameter.values[0]) if "inv_vel" in k and "_joints" in k]
        found += [pytest.param(parameter.values[0], stem, id=f"{parameter.id}/{stem}") for stem in sorted(stems)]
    return found or [pytest.param(None, None, marks=pytest.mark.skip(reason="no parity fixture with inverses"))]


@pytest.mark.parametrize(("folder", "stem"), inverses())
def test_inverse(folder: Path, stem: str) -> None:
    case, _, options = stem.partition("inv_vel")
    integrate, last = options.startswith("1"), options.endswith("eq1")
    z = arrays(folder, case)
    given = z["motion276"] if "motion276" in z else z["canon_floor1"]
    body = REP.body(given, integrate=integrate, last_frame=last)
    stem = stem.removeprefix(case)
    close(body.joints, z[f"{stem}_joints"], 2e-5)
    close(body.translation, z[f"{stem}_transl"], 2e-5)
    # where it makes the last frame, the original always adds up the rotations' steps, whatever it does with the rest
    same_turns(REP.body(given, integrate or last, last).root, z[f"{stem}_go"], 1e-4)
    if "body_pose" in z:
        same_turns(body.local, z["body_pose"], 1e-4)


@pytest.mark.parametrize(("folder", "case"), having("vec272", "vec276", "joints_yup"))
def test_from_272(folder: Path, case: str) -> None:
    z = arrays(folder, case)
    ms272 = MS272()
    joints = ms272.positions(z["vec272"].double())
    close(joints, z["joints_yup"], 1e-5)
    ours = REP.encode_arrays(ms272.rotations(z["vec272"].double())[0], joints)
    close(ours, z["vec276"], 1e-5)


@pytest.mark.parametrize(("folder", "case"), having("joints_yup", "vec263", "global_positions", "recovered"))
def test_263_of_joints(folder: Path, case: str) -> None:
    z = arrays(folder, case)
    hml = HumanML()
    target = hml.offsets_of(z["joints_yup"][0])
    canonical = hml.canonical_positions(z["joints_yup"][None], target)[0]
    close(canonical, z["global_positions"], 2e-4)
    ours = hml.encode_positions(z["joints_yup"], target)
    feet = torch.diff(canonical[:, list(hml.layout.contacts)].double(), dim=0).square().sum(-1)
    sure = (feet - hml.layout.contact_threshold).abs() > 1e-6
    assert torch.equal(ours[:, -4:][sure], z["vec263"][:, -4:][sure])
    close(ours[:, :-4], z["vec263"][:, :-4], 2e-4)
    close(hml.positions(z["vec263"]), z["recovered"], 2e-5)


@pytest.mark.parametrize(("folder", "case"), having("motion276", "base263", "phys18", "rec276"))
def test_motionvla_literal(folder: Path, case: str) -> None:
    z = arrays(folder, case)
    base, physical = motionvla.from_vimogen276(z["motion276"])
    close(base[..., :259], z["base263"][..., :259], 1e-5)
    assert torch.equal(base[..., 259:], z["base263"][..., 259:])
    close(physical, z["phys18"], 1e-5)
    back = motionvla.to_vimogen276(z["base263"], z["phys18"])
    close(back, z["rec276"], 1e-5)
    lost = (back - z["motion276"])[:, 126:192].unflatten(-1, (22, 3))
    close(
        lost, -torch.tensor(REST_PELVIS).expand_as(lost), 1e-4
    )  # the original's mistake: translation taken for pelvis
