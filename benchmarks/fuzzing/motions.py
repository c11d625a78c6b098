"""Readers of motion: files of every format, arrays with their notes, archives, token files, and `vadis info` on them."""

import json
import math
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzzing.run import Reader
from vadis import rotation
from vadis.inspect.files import describe
from vadis.io import load_motion, save_motion
from vadis.io.archive import iter_motion_files
from vadis.io.npy import load_features, save_npy
from vadis.io.tokens import TokenFile
from vadis.motion import Motion
from vadis.representations import names as representation_names
from vadis.representations import representation
from vadis.skeleton import smpl22

ASF = """# a leg
:version 1.10
:name LEG
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 1 2 3
   orientation 0 30 0
:bonedata
  begin
     id 1
     name thigh
     direction 0.6 -0.8 0
     length 10
     axis 10 20 30 ZYX
     dof rz rx
     limits (-160.0 20.0)
            (-70.0 70.0)
  end
  begin
     id 2
     name shin
     direction 0 -1 0
     length 12
     axis 0 45 0 XYZ
     dof rx ry rz
  end
:hierarchy
  begin
    root thigh
    thigh shin
  end
"""
AMC = "#!OML:ASF leg\n:FULLY-SPECIFIED\n:DEGREES\n" + "".join(
    f"{t}\nroot 1 2 {3 + t} 10 20 {30 + t}\nthigh {40 + t} 50\nshin {11 - t} -12 13.5\n" for t in range(1, 6)
)


def walk(frames: int = 24, fps: float = 30.0, seed: int = 0) -> Motion:
    """A body that swings its limbs and moves ahead; the same for the same seed."""
    skeleton = smpl22()
    t = torch.arange(frames) / fps
    draw = torch.Generator().manual_seed(seed)
    size, phase = torch.rand(2, skeleton.num_joints, 3, generator=draw) * torch.tensor([0.4, 6.0])[:, None, None]
    vectors = size * torch.sin(2 * math.pi * t[:, None, None] + phase)
    vectors[:, 0] *= 0.2
    root = torch.stack([0.1 * torch.sin(t), 0.95 + 0.01 * torch.cos(9 * t), 1.2 * t], -1)
    return Motion(skeleton, root, rotation.from_rotvec(vectors), fps, {"caption": "a person walks"}).canonicalize()


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    return folder


# ---- files of one motion


def _make_bvh(root: Path) -> None:
    save_motion(walk(6), _folder(root, "smpl22") / "clip.bvh")
    save_motion(walk(3).resample(20), _folder(root, "slow") / "clip.bvh")


def _make_amc(root: Path) -> None:
    folder = _folder(root, "leg")
    (folder / "leg.asf").write_text(ASF)
    (folder / "leg.amc").write_text(AMC)


def _make_deepmimic(root: Path) -> None:
    def frame(t: int) -> list[float]:
        turn = [math.cos(0.05 * t), math.sin(0.05 * t), 0.0, 0.0]
        row = [0.033333, 0.1, 0.9, 0.2 + 0.01 * t, *turn * 4, -0.3 - 0.01 * t]
        return [*row, *turn * 2, 0.5, *turn, -0.2, *turn * 2, 0.5]

    page = {"Loop": "wrap", "Frames": [frame(t) for t in range(5)]}
    (_folder(root, "clip") / "clip.json").write_text(json.dumps(page))


def _make_glb(root: Path) -> None:
    save_motion(walk(8), _folder(root, "bones") / "clip.glb", body=False)
    save_motion(walk(4), _folder(root, "body") / "clip.glb", body=True)


def _make_npz(root: Path) -> None:
    motion = walk(6)
    save_motion(motion, _folder(root, "vadis") / "clip.npz")
    poses = rotation.to_rotvec(motion.rotations).reshape(6, 66).numpy()
    wide = np.concatenate([poses, np.zeros((6, 90), np.float32)], 1)
    np.savez(_folder(root, "amass") / "clip.npz", poses=wide, trans=motion.root.numpy(), betas=np.zeros(16), gender="neutral",
             mocap_framerate=np.float64(60))  # fmt: skip
    np.savez(_folder(root, "matrices") / "clip.npz", global_orient=motion.rotations[:, :1].numpy(),
             body_pose=motion.rotations[:, 1:].numpy(), transl=motion.root.numpy(), fps=30)  # fmt: skip


def _read(name: str) -> Callable[[Path], Any]:
    """Reads the motion of that name in a folder, and where its joints go."""

    def read(folder: Path) -> Any:
        motion = load_motion(folder / name)
        return {"motion": motion, "positions": motion.positions, "seconds": motion.seconds}

    return read


def _make_arrays(root: Path) -> None:
    motion = walk(24)
    for name in representation_names():
        rate = representation(name).fps
        save_npy(motion.resample(rate), _folder(root, name) / "clip.npy", representation=name)
    np.save(_folder(root, "joints") / "clip.npy", motion.positions.numpy())
    np.save(
        _folder(root, "table") / "clip.npy", np.concatenate([rotation.to_rotvec(motion.rotations).reshape(24, 66)], 1)
    )


def _read_array(folder: Path) -> Any:
    path = folder / "clip.npy"
    return {"motion": load_motion(path), "features": load_features(path)}


# ---- several motions


def _make_archive(root: Path) -> None:
    files = _folder(root, "files")
    for number in range(3):
        save_motion(walk(3, seed=number), files / "some" / f"{number}.bvh")
    np.save(files / "joints.npy", walk(4).positions.numpy())
    with zipfile.ZipFile(_folder(root, "zip") / "clips.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(files.rglob("*.*")):
            packed.write(path, path.relative_to(files))
    for kind in ("gz", "xz"):
        with tarfile.open(_folder(root, kind) / f"clips.tar.{kind}", f"w:{kind}") as packed:
            packed.add(files, "files")
    shutil.move(files, _folder(root, "folder") / "clips")


def _read_archive(folder: Path) -> Any:
    source = folder / {"zip": "clips.zip", "folder": "clips"}.get(folder.name, f"clips.tar.{folder.name}")
    return {name: load_motion(path) for name, path in iter_motion_files(source, max_bytes=1 << 28)}


def _make_tokens(root: Path) -> None:
    for name, tokens in (
        ("ids", np.arange(12)),
        ("groups", np.arange(12).reshape(4, 3)),
        ("latents", np.ones((4, 3), np.float32)),
    ):
        TokenFile(tokens, "a/model", "0" * 64, "ms272", 30.0, 48).save(_folder(root, name) / "clip.npz")


def _read_tokens(folder: Path) -> Any:
    return TokenFile.load(folder / "clip.npz")


# ---- vadis info


def _make_all(root: Path) -> None:
    for name, make in (("bvh", _make_bvh), ("amc", _make_amc), ("json", _make_deepmimic), ("glb", _make_glb), ("npz", _make_npz),
                       ("npy", _make_arrays), ("archive", _make_archive), ("tokens", _make_tokens)):  # fmt: skip
        make(root / name)
        for folder in (root / name).iterdir():
            folder.rename(root / f"{name}-{folder.name}")
        (root / name).rmdir()


def _info(folder: Path) -> Any:
    return [describe(path).to_dict() for path in sorted(folder.iterdir())]


READERS = {
    "bvh": Reader(_make_bvh, _read("clip.bvh")),
    "amc": Reader(_make_amc, _read("leg.amc")),
    "deepmimic": Reader(_make_deepmimic, _read("clip.json")),
    "glb": Reader(_make_glb, _read("clip.glb")),
    "npz": Reader(_make_npz, _read("clip.npz")),
    "npy": Reader(_make_arrays, _read_array),
    "archive": Reader(_make_archive, _read_archive, also=("0.bvh", "1.bvh", "2.bvh", "joints.npy"), rewrites=False),
    "tokens": Reader(_make_tokens, _read_tokens),
    "info": Reader(_make_all, _info, rewrites=False),
}
