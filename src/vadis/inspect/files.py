"""What is this file? `describe(path)` looks at names, shapes and values and says what it holds and what to do with it.

Nothing is executed and nothing large is kept: of weights only names and shapes matter.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vadis.errors import FileError, VadisError
from vadis.inspect.models import describe_checkpoint, describe_folder
from vadis.io.arrays import Npz, read_npy
from vadis.io.bvh import longest_chain
from vadis.motion import Motion
from vadis.records import parse_json, read_bytes


@dataclass
class FileReport:
    """What `describe` found.

    `kind` is a short name ("bvh", "features", "bundle"), `summary` one sentence, `facts` label -> value in reading order, `next`
    what can be done with it, `warnings` what can't be as it claims or was guessed.
    """

    path: str
    kind: str
    summary: str
    facts: dict[str, Any] = field(default_factory=dict)
    next: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(map(len, self.facts), default=0)
        lines = [f"{self.path}: {self.summary}"]
        lines += [f"  {label.ljust(width)}  {value}" for label, value in self.facts.items()]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        lines += [f"  next: {step}" for step in self.next]
        return "\n".join(lines)


def describe(path: str | Path) -> FileReport:
    """Recognise a motion file, an array, a checkpoint, a model folder, a corpus or an archive.

    Raises FileError when the path is missing or the file is damaged (naming the line where there are lines).
    """
    path = Path(path)
    if path.is_dir():
        return describe_folder(path, FileReport)
    if not path.exists():
        raise FileError(f"no file or folder {path}: check the path.")
    if path.stat().st_size == 0:
        raise FileError(f"{path.name} is empty.")
    from vadis.io.archive import is_archive

    if is_archive(path) and not _is_torch_zip(path):
        return _archive(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _npy(path)
    if suffix == ".npz":
        return _npz(path)
    if suffix in (".bvh", ".amc"):
        return _motion_file(path)
    if suffix == ".asf":
        return _asf(path)
    if suffix == ".json":
        return _json(path)
    if suffix in (".glb", ".gltf"):
        return _gltf(path)
    if suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".zip"):
        return describe_checkpoint(path, FileReport)
    return _other(path)


def _is_torch_zip(path: Path) -> bool:
    """Whether a `.zip` or `.tar` is really a checkpoint that torch wrote."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as zipped:
        return any(name.endswith("/data.pkl") for name in zipped.namelist()[:50])


def motion_facts(motion: Motion) -> tuple[dict[str, Any], list[str]]:
    """Facts about a motion, and warnings about values that a person's motion hardly has."""
    from vadis.retargeting import recognize_skeleton

    mapping = recognize_skeleton(motion.skeleton)
    facts: dict[str, Any] = {
        "frames": f"{motion.num_frames} at {motion.fps:g}/s = {motion.seconds:.2f} s",
        "skeleton": f"{motion.skeleton.num_joints} joints, "
        + (f"recognised as {mapping.kind}" if mapping else "not recognised as human"),
    }
    if "unit" in motion.meta:
        facts["unit"] = motion.meta["unit"]
    facts["up axis"] = motion.meta.get("up_axis", "y")
    size = longest_chain(motion.skeleton)
    facts["longest chain"] = f"{size:.2f} m of bones from the root; about 1.1 m in an adult"
    path = motion.root[1:] - motion.root[:-1]
    travelled = float(path[:, [0, 2]].norm(dim=-1).sum())
    facts["root path"] = f"{travelled:.2f} m, height {motion.root[:, 1].min():.2f} to {motion.root[:, 1].max():.2f} m"
    warnings = []
    if mapping is None:
        warnings.append("no human skeleton is recognised by its joint names; retargeting needs joints={…}.")
    elif not 0.5 < size < 2:
        warnings.append(f"a body whose longest chain is {size:.3g} m: pass unit= if the guessed unit is wrong.")
    if motion.num_frames > 2:
        speed = (motion.positions[1:] - motion.positions[:-1]).norm(dim=-1).amax(-1) * motion.fps
        fast = (speed > 14).nonzero()[:, 0] + 1
        from_rest = (motion.rotations[:2] - torch.eye(3)).abs().amax((2, 3)).mean(1)
        if float(from_rest[0]) < 0.3 * float(from_rest[1]) and len(fast) and int(fast[0]) == 1:
            warnings.append("frame 0 is the rest pose, not motion: read with drop_first_frame=True.")
            fast = fast[1:]
        if len(fast):
            warnings.append(
                f"{len(fast)} frames in which a joint is faster than 14 m/s (first: {int(fast[0])}): glitches, or a wrong frame "
                "rate or unit."
            )
        if float(speed.max()) < 1e-4:
            warnings.append("nothing moves.")
    for key, text in (
        ("moving_offsets", "joints that move against their parents were averaged"),
        ("no_translation", "there is no translation: the body moves on the spot"),
        ("ignored_translations", "translations of bones were ignored"),
    ):
        if key in motion.meta:
            names = motion.meta[key] if isinstance(motion.meta[key], dict | list) else ""
            warnings.append(f"{text}{': ' + ', '.join(list(names)[:8]) if names else ''}.")
    if motion.meta.get("fps_assumed"):
        warnings.append(f"the file stores no frame rate; {motion.fps:g}/s is assumed, pass fps= if it is wrong.")
    return facts, warnings


def _next_for_motion(path: Path) -> list[str]:
    return [
        f"vadis view {path.name}",
        f"vadis convert {path.name} {path.stem}_ms272.npy --to ms272",
        f"vadis.retarget(vadis.load_motion({path.name!r})) puts it on the 22 joints of the models",
    ]


def _motion_file(path: Path) -> FileReport:
    from vadis.io import load_motion

    motion = load_motion(path)
    kind = path.suffix[1:].lower()
    facts, warnings = motion_facts(motion)
    name = {"bvh": "BVH motion", "amc": "ASF/AMC motion", "json": "DeepMimic clip", "npz": "SMPL poses"}.get(
        kind, "motion"
    )
    if "asf" in motion.meta:
        facts["asf"] = motion.meta["asf"]
    if "dropped_root" in motion.meta:
        facts["root"] = f"{motion.meta['dropped_root']} stands still and was left out"
    return FileReport(str(path), kind, f"{name}, {motion.seconds:.1f} s", facts, _next_for_motion(path), warnings)


def _asf(path: Path) -> FileReport:
    amc = sorted(p.name for p in path.parent.glob("*.[aA][mM][cC]"))
    facts = {"motions beside it": ", ".join(amc[:5]) or "none"}
    return FileReport(str(path), "asf", "ASF skeleton without motion", facts, ["load an .amc file that belongs to it"])


def _json(path: Path) -> FileReport:
    page = parse_json(read_bytes(path, 256 << 20), path.name)
    if isinstance(page, dict) and isinstance(page.get("Frames"), list):
        report = _motion_file(path)
        report.facts["loop"] = page.get("Loop")
        return report
    if isinstance(page, dict) and isinstance(page.get("Skeleton"), dict):
        return FileReport(
            str(path),
            "deepmimic-character",
            "DeepMimic character file",
            {},
            ["pass it as character= when loading a clip"],
        )
    what = f"object with {', '.join(list(page)[:8])}" if isinstance(page, dict) else type(page).__name__
    return FileReport(str(path), "json", f"JSON that is not motion ({what[:120]})")


def _npz(path: Path) -> FileReport:
    with Npz(path) as file:
        keys = file.keys()
        shapes = {}
        for key in keys[:40]:
            try:
                shapes[key] = str(file[key].shape)
            except FileError as error:
                shapes[key] = f"unreadable ({str(error)[:60]}…)"
    facts = {"arrays": ", ".join(f"{k} {s}" for k, s in shapes.items())}
    try:
        report = _motion_file(path)
    except VadisError as error:
        if "holds no SMPL poses" not in str(error) and "frame rate" not in str(error):
            raise
        return FileReport(str(path), "npz", "NumPy arrays", facts, [], [str(error)])
    report.facts |= facts
    report.next.insert(0, "hands and face are dropped, bones are those of smpl22: no body model is needed")
    if report.facts.get("up axis") == "z":
        report.summary += ", Z up as in AMASS (turned when read)"
    return report


def _npy(path: Path) -> FileReport:
    from vadis.io.npy import FEATURES, guess_array, looks_normalized, read_sidecar
    from vadis.representations.guess import guess

    array = read_npy(path)
    notes = read_sidecar(path)
    facts: dict[str, Any] = {"shape": array.shape, "dtype": str(array.dtype)}
    if notes:
        facts["sidecar"] = ", ".join(f"{k}={notes[k]}" for k in ("representation", "fps") if k in notes)
    if array.dtype.kind not in "fiu" or array.size == 0:
        return FileReport(
            str(path), "npy", f"array of {array.dtype}", facts, [], ["it holds no numbers that could be motion."]
        )
    report = FileReport(str(path), "npy", "array", facts)
    values = array.astype(np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        report.warnings.append(f"{bad} values are NaN or infinite: it can't be loaded as motion.")
        values = np.nan_to_num(values)
    clips = values.ndim == 4 or (values.ndim == 3 and values.shape[2] != 3)
    if clips:
        facts["clips"] = values.shape[0]
        values = values[0]
        report.next.append("load_motion(path, index=0) reads one clip")
    if array.dtype.kind in "iu" and values.ndim <= 2 and values.size and values.min() >= 0:
        report.kind, report.summary = (
            "tokens",
            f"integers from {int(values.min())} to {int(values.max())}: motion tokens, it seems",
        )
        report.next = [f"vadis detokenize {path.name} --tokenizer MODEL"]
        return report
    if values.ndim == 1 and values.size in FEATURES:
        report.kind = "statistics"
        name = "deviation" if (values >= 0).all() else "mean"
        report.summary = f"one vector of {values.size} values: the {name} of {FEATURES[values.size]} features, it seems"
        report.next = ["pass it as mean= or std= when importing a checkpoint"]
        return report
    kind = notes.get("representation") or guess_array(values)
    if kind is None or values.ndim < 2:
        report.warnings.append("this shape is not a known kind of motion.")
        return report
    candidates = guess(values) if values.ndim == 2 else []
    if candidates:
        facts["looks like"] = "; ".join(f"{c.name} ({c.confidence:.0%}): {c.reason}" for c in candidates[:2])
        kind = notes.get("representation") or candidates[0].name
    report.kind = "joints" if kind == "joints" else "smpl" if kind == "smpl" else "features"
    known = {"joints": "joint positions", "smpl": "SMPL axis-angle parameters"}
    report.summary = f"{known.get(kind, f'{kind} features')}, {len(values)} frames"
    if kind not in known:
        report.warnings += _feature_warnings(values, str(kind), looks_normalized)
        report.next += [f"vadis view {path.name}", f"vadis convert {path.name} {path.stem}.bvh"]
    if not bad and not clips and not any("normalis" in warning for warning in report.warnings):
        from vadis.io import load_motion

        try:
            more, warnings = motion_facts(load_motion(path))
            report.facts |= more
            report.warnings += warnings
            report.next = report.next or _next_for_motion(path)
        except VadisError as error:
            report.warnings.append(str(error))
    return report


def _feature_warnings(values: np.ndarray, kind: str, looks_normalized: Any) -> list[str]:
    from vadis.representations import names, representation

    if kind not in names():
        return [f"{kind} is not a representation of this version."]
    features = torch.from_numpy(values).float()
    warnings = []
    if features.shape[-1] >= representation(kind).dim and (why := looks_normalized(features, kind)) is not None:
        warnings.append(f"the values look normalised, not physical ({why}): undo mean and deviation before use.")
    height = {"ms272": 9, "ms272_absroot": 9, "hml263": 3, "smpl135": 1, "motionclip135": 1}.get(kind)
    if height is not None and not 0.05 < float(features[:, height].median()) < 2:
        warnings.append(
            f"the pelvis is at a height of {float(features[:, height].median()):.2f} m; 0.1 to 1.2 m is usual."
        )
    if kind == "hml263" and not bool(
        ((features[:, -4:].abs() < 0.3) | ((features[:, -4:] - 1).abs() < 0.3)).float().mean() > 0.9
    ):
        warnings.append("the last four columns should be foot contacts near 0 or 1.")
    return warnings


def _gltf(path: Path) -> FileReport:
    with path.open("rb") as file:
        head = file.read(20)
        size = int.from_bytes(head[12:16], "little") if head[:4] == b"glTF" else min(path.stat().st_size, 64 << 20)
        if head[:4] != b"glTF":
            file.seek(0)
        text = file.read(min(size, 256 << 20))
    page = parse_json(text, f"the page of {path.name}")
    try:
        animations = page.get("animations", [])
        facts = {
            "animations": ", ".join(str(a.get("name", "unnamed"))[:40] for a in animations[:5]) or "none",
            "skins": ", ".join(f"{len(s.get('joints', []))} joints" for s in page.get("skins", [])[:5]) or "none",
            "meshes": len(page.get("meshes", [])),
            "made by": str(page.get("asset", {}).get("generator", "unknown"))[:80],
        }
    except (AttributeError, TypeError):  # lists and objects where the standard has others
        raise FileError(f"{path.name} is not a glTF file: its JSON page has another form.") from None
    from vadis.io import suffixes

    readable = path.suffix.lower() in suffixes("read")
    step = (
        _next_for_motion(path)
        if readable
        else ["open it in Blender or a glTF viewer; to get motion into vadis, export BVH"]
    )
    return FileReport(str(path), "glb", "glTF scene" + (" with animation" if animations else ""), facts, step)


def _archive(path: Path) -> FileReport:
    from vadis.io.archive import iter_motion_files

    counts: dict[str, int] = {}
    first: list[str] = []
    for name, _ in iter_motion_files(path):
        suffix = Path(name).suffix.lower()
        counts[suffix] = counts.get(suffix, 0) + 1
        first = [*first, name][:3]
    facts = {"motion files": ", ".join(f"{n} {s}" for s, n in counts.items()) or "none", "first": ", ".join(first)}
    return FileReport(str(path), "archive", "archive of motion files", facts, [f"vadis data build {path.name} …"])


def _other(path: Path) -> FileReport:
    known = {
        ".c3d": (
            "marker recording (C3D)",
            "markers have no skeleton: solve them in a motion-capture tool and export BVH",
        ),
        ".fbx": ("FBX scene", "FBX is a closed format: export BVH or GLB from Blender or Maya"),
        ".pkl": (
            "Python pickle",
            "pickles can run code and are not read: save the arrays with numpy.savez in the program that made it",
        ),
        ".trc": ("marker recording (TRC)", "markers have no skeleton: solve them first and export BVH"),
        ".mot": ("OpenSim motion", "export BVH from OpenSim"),
    }
    what, step = known.get(path.suffix.lower(), ("unknown file", ""))
    warnings = [] if step else [f"the suffix {path.suffix!r} is unknown."]
    with path.open("rb") as file:
        head = file.read(200)
    if not step and head.lstrip().upper().startswith(b"HIERARCHY"):
        what, step, warnings = "BVH motion under another name", f"rename it to {path.stem}.bvh", []
    elif not step and head.startswith(b"\x93NUMPY"):
        what, step, warnings = "NumPy array under another name", f"rename it to {path.stem}.npy", []
    return FileReport(str(path), "other", what, {"bytes": path.stat().st_size}, [step] if step else [], warnings)
