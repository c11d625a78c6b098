"""The half of `vadis info` that looks at weights and folders: names and shapes, sizes, licences, importable layouts."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vadis.records import read_json
from vadis.safetensors_files import read_header

Shapes = Mapping[str, tuple[int, ...]]
_LAYOUTS: tuple[tuple[str, tuple[str, ...], str], ...] = (  # importer, names that must all occur (regex), what it is
    (
        "motionmillion-fsq",
        (r"^vqvae\.encoder\.model\.", r"^vqvae\.quantizer\.project_in\."),
        "MotionMillion FSQ tokenizer",
    ),
    ("t2mgpt-vqvae", (r"^vqvae\.encoder\.model\.", r"^vqvae\.quantizer\.codebook$"), "T2M-GPT VQ-VAE"),
    ("motion-vqvae", (r"^encoder\.model\.", r"^decoder\.model\."), "MotionVQVAE tokenizer"),
    ("motionstreamer-tae", (r"^tae\.encoder\.", r"^tae\.decode_proj\."), "MotionStreamer causal autoencoder"),
    ("motionstreamer-ar", (r"^transformer\.h\.0\.attn\.c_attn", r"^diff_loss\."), "MotionStreamer generator"),
    ("motionmillion-ar", (r"^transformer\.h\.0\.attn\.c_attn", r"^lm_head\."), "MotionMillion generator"),
    ("t2mgpt-gpt", (r"^trans_base\.tok_emb\.", r"^trans_head\."), "T2M-GPT generator"),
    ("ms272-evaluator", (r"^motionencoder\.skel_embedding\.", r"^textencoder\."), "evaluator for 272-dim features"),
    ("momask-rvq", (r"^encoder\.model\.", r"^quantizer\.layers\.0\."), "MoMask residual VQ-VAE"),
    ("guo-evaluator", (r"movement_encoder|^main\.0\.weight$",), "evaluator of Guo et al. for 263-dim features"),
)


def importable_kind(names: list[str]) -> tuple[str, str] | None:
    """(importer, description) of the published layout whose names these are, or None."""
    clean = [name.removeprefix("module.") for name in names]
    order = sorted(_LAYOUTS, key=lambda layout: layout[0] == "motion-vqvae")  # the loosest rule last
    for kind, patterns, what in order:
        if all(any(re.search(pattern, name) for name in clean) for pattern in patterns):
            return kind, what
    return None


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name from the header of a safetensors file; no weights are read."""
    return {name: entry.shape for name, entry in read_header(path).items()}


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def weight_facts(shapes: Shapes) -> dict[str, Any]:
    """Number of tensors and parameters and the memory they take."""
    total = sum(_count(shape) for shape in shapes.values())
    return {
        "tensors": len(shapes),
        "parameters": f"{total:,}",
        "memory": f"{human_bytes(4 * total)} in float32, {human_bytes(2 * total)} in bfloat16",
    }


def describe_checkpoint(path: Path, report: Callable[..., Any]) -> Any:
    """A report on a file of weights: names and shapes, and which importer reads it."""
    if path.suffix.lower() == ".safetensors":
        shapes = safetensors_shapes(path)
    else:
        from vadis.checkpoint import read_state_dict

        shapes = {name: tuple(tensor.shape) for name, tensor in read_state_dict(path).items()}
    facts = weight_facts(shapes) | {"first names": ", ".join(list(shapes)[:4])}
    found = importable_kind(list(shapes))
    if found is None:
        beside = (path.parent / "config.json").is_file()
        step = [f"vadis info {path.parent}: the folder with its config.json is the model"] if beside else []
        warnings = [] if beside else ["no published layout with an importer here has these names."]
        return report(str(path), "checkpoint", "weights of an unknown model", facts, step, warnings)
    kind, what = found
    return report(
        str(path), "checkpoint", f"published checkpoint: {what}", facts, [f"vadis import {kind} {path.name} FOLDER"]
    )


def licence(folder: Path) -> str | None:
    """The licence that a model card (`README.md`) declares in its header."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    found = re.search(r"^licen[sc]e:\s*(.+)$", card.read_text("utf-8", "replace")[:20_000], re.MULTILINE)
    return found[1].strip().strip("'\"") if found else None


def describe_folder(path: Path, report: Callable[..., Any]) -> Any:
    """A report on a model, bundle, corpus or a folder of motion files."""
    if (path / "model_index.json").is_file():
        return _bundle(path, report)
    if (path / "corpus.json").is_file():
        page = read_json(path / "corpus.json")
        facts = {k: v for k, v in page.items() if isinstance(v, str | int | float) and not isinstance(v, bool)}
        return report(str(path), "corpus", "corpus of motion and captions", facts, [f"vadis data stats {path}"])
    if (path / "config.json").is_file():
        return _component(path, report)
    if (path / "mm_config.json").is_file():
        return report(
            str(path),
            "artifact",
            "hftrainer or Motius model folder",
            {},
            [f"vadis import motius-gotozero {path} FOLDER"],
        )
    from vadis.io.archive import iter_motion_files

    counts: dict[str, int] = {}
    for name, _ in iter_motion_files(path):
        suffix = Path(name).suffix.lower()
        counts[suffix] = counts.get(suffix, 0) + 1
    if not counts:
        return report(
            str(path), "folder", "folder without motion files or a model", {}, [], ["nothing in it is known to vadis."]
        )
    facts = {"motion files": ", ".join(f"{n} {s}" for s, n in sorted(counts.items()))}
    return report(str(path), "folder", "folder of motion files", facts, [f"vadis data build {path} …"])


def _weights(path: Path) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Shapes of all safetensors files in a folder, and warnings about other kinds of weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        shapes |= safetensors_shapes(file)
    others = [p.name for p in sorted(path.iterdir()) if p.suffix in (".bin", ".pth", ".pt", ".ckpt")]
    return shapes, [f"weights in {name}: import them, they are not read in place." for name in others if not shapes]


def _component(path: Path, report: Callable[..., Any]) -> Any:
    config = read_json(path / "config.json")
    shapes, warnings = _weights(path)
    ours = "vadis" in config
    facts: dict[str, Any] = {k: config[k] for k in ("kind", "type", "representation", "fps") if k in config}
    if not ours and "model_type" in config:
        facts["model_type"] = config["model_type"]
    facts |= weight_facts(shapes) if shapes else {}
    facts["licence"] = licence(path) or "not stated"
    if not shapes and not warnings:
        warnings.append("there are no weights in the folder.")
    if ours:
        return report(
            str(path),
            "model",
            f"vadis {config.get('kind', 'component')}",
            facts,
            [f"vadis.load({str(path)!r})"],
            warnings,
        )
    step = []
    if (path / "pytorch_model.bin").is_file() and (path / "mean.npy").is_file():
        step = [f"vadis import motion-vqvae {path} FOLDER"]
    elif shapes and (found := importable_kind(list(shapes))):
        step = [f"vadis import {found[0]} {path} FOLDER"]
    return report(str(path), "model", "model folder of another library", facts, step, warnings)


def _bundle(path: Path, report: Callable[..., Any]) -> Any:
    index = read_json(path / "model_index.json")
    facts: dict[str, Any] = {"pipeline": index.get("_class_name", "unknown")}
    total: dict[str, tuple[int, ...]] = {}
    warnings: list[str] = []
    for name, entry in index.items():
        if name.startswith("_") or entry is None:
            continue
        if isinstance(entry, dict) and "hub" in entry:
            commit = f" at {entry['revision']}" if entry.get("revision") else ""
            facts[name] = f"{entry['hub']}{commit} (on the Hub; fetched with --allow-download)"
            continue
        folder = path / name
        if folder.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            shapes, more = _weights(folder)
            total |= {f"{name}.{key}": shape for key, shape in shapes.items()}
            warnings += more
            what = entry[1] if isinstance(entry, list) and len(entry) == 2 else name
            facts[name] = f"{what}, {sum(map(_count, shapes.values())):,} parameters"
        else:
            facts[name] = "not in the folder"
    facts |= weight_facts(total) if total else {}
    if (path / "generation_config.json").is_file():
        settings = read_json(path / "generation_config.json")
        facts["settings"] = ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items())
    facts["licence"] = licence(path) or "not stated"
    if "_vadis_version" in index:
        step = [f'vadis generate "…" --model {path}', f"vadis.load({str(path)!r})"]
    else:
        step, warnings = [], [*warnings, "made by another library: only the importers of `vadis import` read it."]
    return report(str(path), "bundle", "pipeline of several components", facts, step, warnings)
