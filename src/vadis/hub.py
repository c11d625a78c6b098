"""Saving and loading: one component a folder, several in a bundle, the same call for disk and Hub.

    folder/config.json          {"vadis": "1", "kind": "tokenizer", "type": "fsq", ...the flat config...}
    folder/model.safetensors    (or model-00001-of-0000N.safetensors with an index, above 5 GB)
    bundle/model_index.json     {"_class_name": ..., "_vadis_version": ..., "tokenizer": ["vadis", "FSQTokenizer"], ...}
    bundle/tokenizer/ ...       a component folder each; {"hub": id} for a part that is fetched, null for none

Loading is strict and runs no code from the folder. Published checkpoints come in through `vadis.importing`.
"""

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vadis.checkpoint import check_fit, load_strictly
from vadis.component import MotionTokenizer, Part
from vadis.errors import FileError, ModelError, about
from vadis.files import atomic_folder, atomic_write
from vadis.io.arrays import finite, read_npy
from vadis.locks import only_run
from vadis.places import HUB_ID, HubName, check_links, commit_of
from vadis.places import relative_name as _inside
from vadis.records import checked, read_json
from vadis.safetensors_files import Entry, read_header, read_safetensors
from vadis.sizes import check_memory, check_numbers

log = logging.getLogger("vadis.hub")
"""Says which commit a model of the Hub is; the command line shows it."""

FORMAT = "1"
SHARD_BYTES = 5_000_000_000
MAX_ARRAY = 64 << 20
"""Bytes of a .npy file of statistics."""
COMPONENTS = {
    "causal_tae": "vadis.tokenizers.causal_tae:CausalTAE",
    "dsft": "vadis.tokenizers.dsft:DSFTTokenizer",
    "fsq": "vadis.tokenizers.fsq:FSQTokenizer",
    "lfq1d": "vadis.tokenizers.lfq:LFQTokenizer",
    "lfq2d": "vadis.tokenizers.lfq2d:LFQ2DTokenizer",
    "vq": "vadis.tokenizers.vqvae:VQTokenizer",
    "rvq": "vadis.tokenizers.rvqvae:RVQTokenizer",
    "mg_vq": "vadis.tokenizers.mg_vqvae:MGVQTokenizer",
    "motionmillion": "vadis.generators.motionmillion:MotionMillion",
    "t2mgpt": "vadis.generators.t2mgpt:T2MGPT",
    "motionstreamer": "vadis.generators.motionstreamer:MotionStreamer",
    "kinematic_planner": "vadis.generators.planner:KinematicPlanner",
    "nrdf": "vadis.metrics.nrdf:PoseField",
    "tmr": "vadis.evaluators.tmr:TMREvaluator",
    "guo": "vadis.evaluators.guo:GuoEvaluator",
}
"""`type` in config.json → class."""
BUNDLES = {
    "TextToMotionPipeline": "vadis.pipelines.text_to_motion:TextToMotionPipeline",
    "MotionStreamPipeline": "vadis.pipelines.stream:MotionStreamPipeline",
    "MotionVLAPipeline": "vadis.pipelines.motionvla:MotionVLAPipeline",
    "MotionLanguagePipeline": "vadis.pipelines.motion_language:MotionLanguagePipeline",
}
"""`_class_name` in model_index.json → class with `from_pretrained(folder, dtype=, device=, **overrides)`."""
DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
          "float16": torch.float16, "fp16": torch.float16}  # fmt: skip


def resolve(target: str) -> Any:
    """The object that `module:name` stands for."""
    module, name = target.split(":")
    return getattr(import_module(module), name)


def component_classes() -> dict[str, type]:
    """Every class of COMPONENTS by its `type`; imports their modules."""
    return {name: resolve(target) for name, target in COMPONENTS.items()}


# ---- saving


def save_pretrained(component: Part, folder: str | Path) -> None:
    """Write config, weights and a card to `folder`; every file is complete or absent, other files there stay.

    The config goes last, so a folder that has it is whole. An existing card is kept.
    """
    folder = Path(folder)
    if folder.is_file():
        raise FileError(f"{folder} is a file: name a folder to save to.")
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            _write_component(component, temporary)
    else:
        with only_run(folder):
            _write_component(component, folder)


def _write_component(component: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    shards = _shards(component.state_dict())
    names = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    for name, shard in zip(names, shards, strict=True):
        with atomic_write(folder / name) as temporary:
            save_file({key: value.detach().contiguous() for key, value in shard.items()}, temporary, {"format": "pt"})
    if len(shards) > 1:
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    for old in [*folder.glob("model*.safetensors"), folder / "model.safetensors.index.json"]:
        if old.name not in names and not (old.suffix == ".json" and len(shards) > 1):
            old.unlink(missing_ok=True)
    config = asdict(component.config)
    kind = {"vadis": FORMAT, "kind": component.kind, "type": config.pop("type")}
    if not (folder / "README.md").exists():
        with atomic_write(folder / "README.md") as temporary:
            temporary.write_text(_card(component, kind, config), encoding="utf-8")
    write_json(folder / "config.json", kind | config)


def _shards(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in files of at most SHARD_BYTES; tensors that share memory are listed once."""
    shards: list[dict[str, Tensor]] = [{}]
    size, seen = 0, set()
    for name, tensor in state.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _card(component: nn.Module, kind: dict[str, Any], config: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in config.items())
    return (
        f"---\nlibrary_name: vadis\ntags:\n- human-motion\n- {kind['type']}\n---\n\n# {type(component).__name__}\n\n"
        f"A vadis {kind['kind']} with {sum(p.numel() for p in component.parameters()):,} parameters. "
        "Load it with `vadis.load(folder)`.\n\nTraining data, licence and numbers: to be filled in by its author.\n\n"
        f"| setting | value |\n| --- | --- |\n{rows}\n"
    )


def write_json(path: Path, page: Mapping[str, Any]) -> None:
    """A JSON file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Written:
    """A part of a bundle that writes its own folder, and what the index says of it."""

    write: Callable[[Path], None]
    """Makes the folder that it is given, which doesn't exist yet."""
    library: str
    class_name: str


def save_bundle(
    folder: str | Path,
    class_name: str,
    parts: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None = None,
    card: str = "",
    **extra: Any,
) -> None:
    """Write a bundle: `parts` name → component, `Written`, folder of transformers to be copied, {"hub": id} or None.

    `extra` goes into model_index.json with a leading `_`.

    An older bundle at `folder` is replaced as a whole, but its card is kept unless there is another.
    """
    import vadis

    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise FileError(f"{folder} holds other files: name a new folder to save the bundle to.")
    index: dict[str, Any] = {"_class_name": class_name, "_vadis_version": vadis.__version__}
    index |= {f"_{name}": value for name, value in extra.items()}
    with atomic_folder(folder) as temporary:
        for name, part in parts.items():
            if isinstance(part, Part):
                if part.own_files:
                    part.save_pretrained(temporary / _inside(name))
                else:
                    _write_component(part, _make(temporary / _inside(name)))
                index[name] = ["vadis", type(part).__name__]
            elif isinstance(part, Written):
                part.write(temporary / _inside(name))
                index[name] = [part.library, part.class_name]
            elif isinstance(part, Path):
                _copy_plain(part, _make(temporary / _inside(name)))
                index[name] = ["transformers", "PreTrainedModel"]
            else:
                index[name] = part
        if generation_config is not None:
            write_json(temporary / "generation_config.json", generation_config)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        elif (folder / "README.md").is_file():
            (temporary / "README.md").write_bytes((folder / "README.md").read_bytes())
        write_json(temporary / "model_index.json", index)


def _copy_plain(source: Path, folder: Path) -> None:
    """The pages, weights and words of a folder of transformers, and nothing else that lies in it."""
    check_links(source)
    for file in source.iterdir():
        if file.suffix in (".json", ".safetensors", ".model", ".txt"):
            shutil.copyfile(file, folder / file.name)


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# ---- loading


def load(
    source: str | Path | HubName,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    allow_download: bool = False,
    **overrides: Any,
) -> Any:
    """The component or pipeline at a folder, bundled name or Hub id, in eval mode.

    A bundled name stands for the bundled model even where a folder of that name lies; write `./name` or give a Path for
    the folder. `allow_download` fetches what a file inside the folder names on the Hub (a text encoder, a backbone).

    `dtype` ("bf16", "fp16", "fp32") applies to generators; tokenizers and rotary tables stay float32. `device`: "cpu",
    "cuda", "auto". `overrides` go to a pipeline's `from_pretrained` (e.g. `text_encoder=`). A path that exists is never
    looked up on the Hub. Raises ModelError or FileError.
    """
    folder = find_folder(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    if (folder / "model_index.json").is_file() and not (folder / "mm_config.json").is_file():
        options = {"dtype": dtype, "device": device, "allow_download": allow_download}
        return pipeline_class(folder).from_pretrained(folder, **options, **overrides)
    if overrides:
        raise ModelError(f"{folder} is a single component, which takes no {', '.join(overrides)}: leave it out.")
    return load_component(folder, dtype=dtype, device=device, strict=strict)


def pipeline_class(folder: Path) -> Any:
    """The class of the pipeline whose bundle a folder is. Raises ModelError for one that vadis doesn't know."""
    name = read_json(folder / "model_index.json").get("_class_name")
    if not isinstance(name, str) or name not in BUNDLES:
        raise ModelError(
            f"{folder} is a {name!r:.60}; vadis knows {', '.join(BUNDLES)}. See `vadis import` for other layouts."
        )
    return resolve(BUNDLES[name])


def load_pipeline(source: str | Path | HubName, **options: Any) -> Any:
    """The pipeline of that name, folder or Hub id; options as in `load`. Raises ModelError for a part of a model."""
    from vadis.pipelines.base import Pipeline

    loaded = load(source, **options)
    if not isinstance(loaded, Pipeline):
        raise ModelError(f"{source} holds a {type(loaded).__name__}, which is one part of a model: name a whole one.")
    return loaded


def load_tokenizer(source: str | Path | HubName, **options: Any) -> Any:
    """The tokenizer of that name, folder or Hub id, or that of the pipeline there; ModelError for anything else."""
    from vadis.pipelines.base import Pipeline

    loaded = load(source, **options)
    tokenizer = loaded.tokenizer if isinstance(loaded, Pipeline) else loaded
    if not isinstance(tokenizer, MotionTokenizer):
        raise ModelError(f"{source} holds a {type(tokenizer).__name__}, not a tokenizer or a pipeline with one.")
    return tokenizer


def load_component(
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
) -> Any:
    """The component in a folder on disk; see `load`."""
    folder = Path(folder)
    check_links(folder)
    with about(folder):
        return _load_component(folder, dtype, pick_device(device), strict)


def _load_component(folder: Path, dtype: str | torch.dtype | None, target: torch.device, strict: bool) -> Any:
    path = folder / "config.json"
    if not path.is_file() or "vadis" not in (page := read_json(path)):
        raise ModelError(f"{folder} is no vadis model{_foreign(folder)}.")
    if page["vadis"] != FORMAT:
        raise ModelError(f"{folder} has format {page['vadis']!r}; this vadis reads {FORMAT!r}: update vadis.")
    kind = page.get("type")
    if not isinstance(kind, str) or kind not in COMPONENTS:
        raise ModelError(f"{folder} has the type {kind!r:.60}; this vadis knows {', '.join(sorted(COMPONENTS))}.")
    cls = resolve(COMPONENTS[kind])
    if page.get("kind", cls.kind) != cls.kind:
        raise ModelError(f"{path}: kind is {page['kind']!r:.60}; a model of the type {kind} is a {cls.kind}.")
    if cls.own_files:
        return cls.from_folder(folder)
    known = {field.name for field in fields(cls.config_class)}
    unknown = sorted(set(page) - known - {"vadis", "kind"})
    if unknown:
        warnings.warn(f"{path}: ignoring unknown fields {', '.join(unknown)[:200]}.", stacklevel=4)
    check_numbers(page, path)
    config = checked(cls.config_class, {k: v for k, v in page.items() if k in known}, path, ModelError)
    precision = None if cls.keep_float32 else pick_dtype(dtype)
    headers = weight_headers(folder)
    with torch.device("meta"):
        module = cls(config)
    check_fit(module, {name: entry for header in headers.values() for name, entry in header.items()}, strict=strict)
    check_memory(module.state_dict(), precision, target, folder)
    if cls.meta_safe and strict:
        load_strictly(module, read_weights(headers, target, precision), assign=True)
    else:
        module = cls(config)
        load_strictly(module, read_weights(headers, torch.device("cpu"), None), strict=strict)
        module = module.to(device=target, dtype=precision)
    return module.eval()


def weight_headers(folder: Path) -> dict[Path, dict[str, Entry]]:
    """What the weight files of a component folder hold, without reading a weight."""
    index = folder / "model.safetensors.index.json"
    where: dict[str, str] | None = None
    if index.is_file():
        where = checked(dict[str, str], read_json(index).get("weight_map"), f"{index}: weight_map", ModelError)
    names = ["model.safetensors"] if where is None else sorted(set(where.values()))
    headers: dict[Path, dict[str, Entry]] = {}
    for name in names:
        path = folder / _inside(name)
        if not path.is_file():
            raise ModelError(
                f"the weights are missing: there is no {name} in {folder}. Download or save the model again."
            )
        headers[path] = read_header(path)
        if where is not None and set(headers[path]) != {key for key, shard in where.items() if shard == name}:
            raise ModelError(f"{path} holds other tensors than {index.name} says: download or save the model again.")
    return headers


def read_weights(
    headers: Mapping[Path, dict[str, Entry]], device: torch.device, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """All tensors of a component folder, each file moved and cast as soon as it is read."""
    state: dict[str, Tensor] = {}
    for path, header in headers.items():
        for key, tensor in read_safetensors(path, header).items():
            state[key] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    return state


_Part = tuple[str, str] | dict[str, str | None] | None
"""What a bundle's index may say of a part: [library, class], {"hub": id…}, nothing."""


def load_bundle(
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """The parts of a bundle by name: components loaded, other entries ({"hub": id}, pairs of other libraries, None) as written.

    A part given in `overrides` is taken instead and not read. A planner stays on the CPU, like the text encoder that it reads.
    """
    folder = Path(folder)
    check_links(folder)
    path = folder / "model_index.json"
    parts: dict[str, Any] = {}
    for name, entry in read_json(path).items():
        if name.startswith("_"):
            continue
        try:
            checked(_Part, entry, path)
        except FileError:
            raise ModelError(
                f'{path}: {name:.60} is {entry!r:.60}; expected [library, class], {{"hub": id}} or null.'
            ) from None
        if name in overrides:
            parts[name] = overrides[name]
        elif isinstance(entry, list) and entry[0] == "vadis":
            where = "cpu" if name == "planner" else device
            with about(path):
                place = folder / _inside(name)
            parts[name] = load_component(place, dtype=dtype, device=where)
            if type(parts[name]).__name__ != entry[1]:
                raise ModelError(f"{path}: {name} is a {type(parts[name]).__name__}, not a {entry[1]}.")
        else:
            parts[name] = entry
    return parts | {name: part for name, part in overrides.items() if name not in parts}


def check_parts(
    folder: Path, parts: Mapping[str, Any], given: Mapping[str, Any], generators: tuple[str, ...], continuous: bool
) -> None:
    """Raise ModelError unless a bundle has a tokenizer and a generator of these types, and no planner of another kind.

    `continuous`: the tokenizer makes latents. Parts that the caller has `given` are taken as they are.
    """
    from vadis.tokenizers.base import Tokenizer

    path = folder / "model_index.json"
    for kind in ("tokenizer", "generator", "planner"):
        part = parts.get(kind)
        if kind in given or (kind == "planner" and part is None):
            continue
        if getattr(part, "kind", None) != kind:
            found = (
                "missing" if part is None else f"{part!r:.60}" if isinstance(part, list | dict) else type(part).__name__
            )
            raise ModelError(f'{path}: {kind} is {found}; expected ["vadis", CLASS] of a {kind}.')
    tokenizer, generator = parts["tokenizer"], parts["generator"]
    if "generator" not in given and generator.config.type not in generators:
        raise ModelError(
            f"{path}: the generator is a {type(generator).__name__}, which this kind of pipeline can't use."
        )
    if "tokenizer" not in given and not (isinstance(tokenizer, Tokenizer) and tokenizer.continuous == continuous):
        raise ModelError(f"{path}: the tokenizer is a {type(tokenizer).__name__}, which this generator can't use.")


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    root = Path(__file__).parent / "models"
    return sorted(p.name for p in root.glob("*") if (p / "model_index.json").is_file() or (p / "config.json").is_file())


def find_folder(source: str | Path | HubName, **hub_options: Any) -> Path:
    """Where a model that the user named is on disk: a bundled name, a folder, or a Hub id (fetched when it isn't cached).

    A bundled name comes first; a Path is always a folder. Raises ModelError, also for links that leave the folder.
    """
    if isinstance(source, HubName):
        return fetch(source.id, **hub_options | {"revision": source.revision})
    if isinstance(source, str) and source in bundled_models():
        warn_of_namesake(source, "bundled model")
        return Path(__file__).parent / "models" / source
    path = Path(source)
    if path.is_dir():
        check_links(path)
        return path
    if path.is_file():
        raise ModelError(
            f"{path} is a file; a model is a folder. A published checkpoint: `vadis import KIND {path} FOLDER`."
        )
    name = str(source)
    if not HUB_ID.fullmatch(name):
        bundled = ", ".join(bundled_models()) or "none in this installation"
        raise ModelError(
            f"no model {name!r}: it is no folder, no bundled model ({bundled}) and no Hub id (owner/name)."
        )
    return fetch(name, **hub_options)


def warn_of_namesake(name: str, kind: str) -> None:
    """Warn where a folder lies here that has the name of something of ours, which is taken instead."""
    if Path(name).is_dir():
        warnings.warn(f"{name} is the {kind}; to load the folder of that name write ./{name}.", stacklevel=3)


def fetch(name: str, **hub_options: Any) -> Path:
    """The snapshot of a Hub id in the cache, downloaded when it isn't there; which commit it is goes to the log.

    Raises ModelError where it can't be had.
    """
    from huggingface_hub import snapshot_download

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        hub_options["local_files_only"] = True
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.npy", "*.npz", "*.md"]
        options: dict[str, Any] = {"allow_patterns": patterns} | hub_options
        folder = Path(snapshot_download(name, **options))
    except Exception as error:  # many kinds: no network, no such id, gated, not in the cache
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"can't get {name} from the Hub ({reason}). Check the id and the network, or give a folder."
        ) from error
    log.info("%s of the Hub, revision %s", name, commit_of(folder))
    check_links(folder)
    return folder


def _foreign(folder: Path) -> str:
    """What to do with a folder of another library."""
    if (folder / "mm_config.json").is_file():
        return f": it is a Motius folder. Convert it once: `vadis import motius-gotozero {folder} FOLDER`"
    if (folder / "config.json").is_file():
        return ": its config.json is of another library. See `vadis import` for the layouts that can be converted"
    return ": it has no config.json and no model_index.json"


def pick_device(device: str | torch.device | None) -> torch.device:
    """A torch device; "auto" is the GPU where there is one, None the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device or "cpu")
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"the device {device} was asked for, but there is no usable GPU: use cpu or auto.")
    return found


def pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating torch dtype from its name; None stays None."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


# ---- files and the Hub


def read_array(path: str | Path) -> np.ndarray:
    """A float array from a .npy file; raises FileError for damaged files and values that aren't finite."""
    path = Path(path)
    return finite(read_npy(path, MAX_ARRAY), str(path))


def push(model: Any, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a component or pipeline (anything with `save_pretrained`) to the Hub; the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        model.save_pretrained(folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with vadis"))


__all__ = ["bundled_models", "load", "load_bundle", "load_component", "push", "save_bundle", "save_pretrained"]
