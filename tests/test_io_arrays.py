"""`.npz` of SMPL parameters and plain `.npy` arrays."""

import json
import random

import numpy as np
import pytest
import torch

import vadis
from vadis import rotation
from vadis.errors import FileError, SkeletonError, VadisError
from vadis.io.amass import PELVIS, load_amass
from vadis.io.bvh import Z_UP, load_bvh
from vadis.io.npy import load_npy, sidecar
from vadis.representations import representation

# -- npz


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("width", [66, 156, 165])
def test_smpl_round_trip_is_exact(walk, tmp_path, up, width):
    again = vadis.load_motion(walk.save(tmp_path / "walk.npz", up=up, width=width))
    torch.testing.assert_close(again.root, walk.root, atol=3e-7, rtol=0)
    torch.testing.assert_close(again.rotations, walk.rotations, atol=3e-7, rtol=0)
    torch.testing.assert_close(again.skeleton.offsets, walk.skeleton.offsets)
    assert again.fps == walk.fps and again.skeleton.name == "smpl22"
    assert ("dropped" in again.meta) == (width > 66)
    with np.load(tmp_path / "walk.npz", allow_pickle=False) as file:  # what a program for AMASS finds
        assert file["poses"].shape == (walk.num_frames, width) and float(file["mocap_framerate"]) == walk.fps
        pelvis = file["trans"] + PELVIS["smplx" if width == 165 else "smplh"]
    np.testing.assert_allclose(pelvis if up == "y" else pelvis @ Z_UP.numpy().T, walk.root.numpy(), atol=1e-6)


def plain(walk, **extra):
    """The arrays of a file as pose estimators write them: Y up, nothing but poses and translations."""
    vectors = rotation.to_rotvec(walk.rotations).numpy()
    return {"poses": vectors.reshape(walk.num_frames, 66), "trans": walk.root.numpy(), "fps": 30.0} | extra


def saved(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays.items() if v is not None})
    return tmp_path / "x.npz"


def test_layouts_of_others(walk, tmp_path):
    base = plain(walk)
    parts = {"root_orient": base["poses"][:, :3], "pose_body": base["poses"][:, 3:], "poses": None}
    matrices = {
        "global_orient": walk.rotations[:, :1].numpy(),
        "body_pose": walk.rotations[:, 1:].numpy(),
        "poses": None,
    }
    shaped = {"pose": base["poses"].reshape(-1, 22, 3), "poses": None, "transl": base["trans"], "trans": None}
    expected = load_amass(saved(tmp_path, base))
    for change in (parts, matrices, shaped, {"fps": None, "mocap_frame_rate": np.array([30.0])}):
        motion = load_amass(saved(tmp_path, base | change))
        torch.testing.assert_close(motion.positions, expected.positions, atol=1e-5, rtol=0)
    assert "up_axis" not in expected.meta and expected.meta["pelvis_offset"] == "approximate"
    assert load_amass(saved(tmp_path, base | {"trans": None})).meta["no_translation"]
    assert load_amass(saved(tmp_path, base | {"fps": None}), fps=50).fps == 50


def test_z_up_is_found_by_how_the_body_stands(walk, tmp_path):
    turned = walk.transform(Z_UP.T, torch.zeros(3))
    motion = load_amass(saved(tmp_path, plain(turned)))
    assert motion.meta["up_axis"] == "z"
    expected = load_amass(saved(tmp_path, plain(walk)))
    torch.testing.assert_close(motion.rotations, expected.rotations, atol=1e-5, rtol=0)
    assert "up_axis" not in load_amass(saved(tmp_path, plain(turned)), up="y").meta


def test_amass_excerpt_gives_the_published_joints(parity_root, tmp_path):
    """Raw AMASS poses with the subject's own bones: the joints of the original program, once both are canonical."""
    with np.load(parity_root / "representation_272/real_excerpt/data.npz") as file:
        data = {k: file[k] for k in ("raw_poses", "raw_trans", "raw_fps", "rest_offsets", "joints22")}
    offsets = data["rest_offsets"].copy()
    offsets[0] = 0
    arrays = {"poses": data["raw_poses"], "trans": data["raw_trans"], "mocap_framerate": data["raw_fps"]}
    motion = load_amass(saved(tmp_path, arrays | {"joint_offsets": offsets}))
    assert motion.meta["up_axis"] == "z"
    motion = motion.replace(root=motion.root[::4], rotations=motion.rotations[::4])
    joints = torch.from_numpy(data["joints22"]).float()
    mine = motion.transform(rotation.yaw(-motion.heading[0]), torch.zeros(3)).positions
    torch.testing.assert_close(mine - mine[:1, :1], joints - joints[:1, :1], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": None}, "stores no frame rate .*: pass fps="),
        ({"fps": np.array(0.0)}, "0 frames per second"),
        ({"poses": None}, "holds no SMPL poses"),
        ({"poses": np.zeros((90, 60))}, "expected .T, 66. or more"),
        ({"poses": np.zeros((0, 66)), "trans": np.zeros((0, 3))}, "expected .T, 66. or more"),
        ({"poses": np.full((90, 66), np.nan)}, "NaN"),
        ({"trans": np.zeros((89, 3))}, "90 poses but translations of shape .89, 3."),
        ({"trans": np.zeros(())}, "90 poses but translations of shape ..;"),
        ({"poses": np.array(["x"] * 90)}, "expected numbers"),
        ({"poses": np.array([{}], dtype=object)}, "Python objects"),
    ],
)
def test_bad_npz(walk, tmp_path, change, message):
    with pytest.raises(FileError, match=message):
        load_amass(saved(tmp_path, plain(walk) | change))


def test_object_arrays_that_are_not_needed_do_no_harm(walk, tmp_path):
    path = saved(tmp_path, plain(walk, labels=np.array([{"a": 1}], dtype=object), gender=np.array("female")))
    assert load_amass(path).meta["gender"] == "female"


def test_other_skeletons_are_refused(mini_bvh, tmp_path):
    with pytest.raises(SkeletonError, match="retarget"):
        load_bvh(mini_bvh[0]).save(tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


# -- npy


def test_joints_round_trip(walk, tmp_path):
    again = vadis.load_motion(walk.save(tmp_path / "walk.npy"))
    assert again.fps == 30 and "fps_assumed" not in again.meta
    torch.testing.assert_close(again.positions, walk.positions, atol=1e-4, rtol=0)
    sidecar(tmp_path / "walk.npy").unlink()
    again = vadis.load_motion(tmp_path / "walk.npy")
    assert again.fps == 20 and again.meta["fps_assumed"] is True


@pytest.mark.parametrize("name", ["ms272", "ms272_absroot"])
def test_features_round_trip(walk, tmp_path, name):
    again = vadis.load_motion(walk.save(tmp_path / "walk.npy", representation=name))
    assert again.meta["representation"] == name
    torch.testing.assert_close(again.positions, walk.positions, atol=1e-4, rtol=0)
    assert np.load(tmp_path / "walk.npy").dtype == np.float32


def test_features_are_known_by_their_width(walk, tmp_path):
    np.save(tmp_path / "a.npy", representation("ms272").encode(walk).numpy())
    motion = load_npy(tmp_path / "a.npy")
    assert motion.fps == 30 and motion.meta["representation"] == "ms272"
    np.save(tmp_path / "b.npy", representation("hml263").encode(walk.resample(20)).numpy())
    motion = load_npy(tmp_path / "b.npy")
    assert motion.fps == 20 and motion.meta["representation"] == "hml263"


def test_joints_in_other_axes_units_and_shapes(walk, tmp_path):
    joints = walk.positions.numpy()
    for array in (
        joints.reshape(-1, 66),
        joints * 1000,
        joints * 100,
        joints @ Z_UP.numpy(),
        joints[None],
        np.concatenate([joints, joints[:, :2]], axis=1),
    ):
        np.save(tmp_path / "x.npy", array)
        motion = load_npy(tmp_path / "x.npy", fps=30)
        torch.testing.assert_close(motion.positions, walk.positions, atol=2e-4, rtol=0)


def test_smpl_tables(walk, tmp_path):
    vectors = rotation.to_rotvec(walk.rotations).reshape(-1, 66).numpy()
    table = np.zeros((walk.num_frames, 85))
    table[:, :66], table[:, 72:75] = vectors, walk.root.numpy()
    np.save(tmp_path / "85.npy", table)
    motion = load_npy(tmp_path / "85.npy", fps=30)
    torch.testing.assert_close(motion.rotations, walk.rotations, atol=1e-5, rtol=0)
    torch.testing.assert_close(motion.root - motion.root[0], walk.root - walk.root[0], atol=1e-5, rtol=0)
    np.save(tmp_path / "66.npy", vectors)
    motion = load_npy(tmp_path / "66.npy", fps=30)
    assert motion.meta["no_translation"] and motion.meta["representation"] == "smpl"
    torch.testing.assert_close(motion.rotations, walk.rotations, atol=1e-5, rtol=0)


def test_normalised_features_are_refused(walk, tmp_path):
    features = representation("ms272").encode(walk)
    np.save(tmp_path / "x.npy", ((features - features.mean(0)) / (features.std(0) + 0.01)).numpy())
    with pytest.raises(FileError, match="Undo the normalisation first"):
        load_npy(tmp_path / "x.npy")


def test_batches_ask_for_an_index(walk, tmp_path):
    features = representation("ms272").encode(walk).numpy()
    np.save(tmp_path / "x.npy", np.stack([features, features[::-1]]))
    with pytest.raises(FileError, match="2 clips, it seems. Pass index=0"):
        load_npy(tmp_path / "x.npy")
    torch.testing.assert_close(load_npy(tmp_path / "x.npy", index=0).positions, walk.positions, atol=1e-4, rtol=0)
    with pytest.raises(FileError, match="there is no clip 2"):
        load_npy(tmp_path / "x.npy", index=2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((10, 7)), "not a known kind of motion"),
        (np.zeros((0, 272)), "is empty"),
        (np.zeros(5), "not a known kind"),
        (np.array(3.0), "not a known kind"),
        (np.zeros((4, 22, 3)), "a body of 0 m"),
        (np.full((4, 272), np.inf), "NaN, infinite"),
        (np.array(["a", "b"]), "expected numbers"),
        (np.zeros((4, 272), dtype=complex), "complex128 values; expected numbers"),
        (np.array([{}, 1], dtype=object), "Files with Python objects can run code"),
    ],
)
def test_bad_npy(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(FileError, match=message):
        load_npy(tmp_path / "x.npy")


def test_sidecars(walk, tmp_path):
    path = walk.save(tmp_path / "x.npy", representation="ms272")
    notes = json.loads(sidecar(path).read_text())
    assert notes["fps"] == 30 and len(notes["joint_offsets"]) == 22
    with pytest.raises(FileError, match="describes an older file"):
        walk.save(path, notes=False)
    for text in ("{", "[]", '{"fps": -1}', '{"fps": "x"}', '{"joint_offsets": [1]}', '{"representation": "mystery"}'):
        sidecar(path).write_text(text)
        with pytest.raises(VadisError):
            load_npy(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_any_mutation_loads_or_raises_our_error(walk, tmp_path, suffix):
    rng = random.Random(1)
    path = tmp_path / f"x{suffix}"
    short = walk.crop(0, 4)
    short.save(path, **({"notes": False} if suffix == ".npy" else {}))
    data = path.read_bytes()
    for _ in range(250):
        body = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(body), 400) if rng.random() < 0.7 else len(body))
            if rng.random() < 0.7:
                body[at] = rng.randrange(256)
            else:
                del body[at : at + rng.randint(1, 50)]
        path.write_bytes(bytes(body))
        try:
            motion = vadis.load_motion(path, fps=30)
        except VadisError as error:
            assert str(error)
        else:
            assert torch.isfinite(motion.root).all()
