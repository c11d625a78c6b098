"""The folder of one component, and of a bundle of several: written whole or not at all, read strictly.

    folder/config.json          {"vadis": "1", "kind": "tokenizer", "type": "fsq", ...the flat config...}
    folder/model.safetensors    (or model-00001-of-0000N.safetensors with an index, above 5 GB)
    bundle/model_index.json     {"_class_name": ..., "_vadis_version": ..., "tokenizer": ["vadis", "FSQTokenizer"], ...}
    bundle/tokenizer/ ...       a component folder each; {"hub": id} for a part that is fetched, null for none

Which class a folder is of is looked up by `vadis.loading`; reading runs no code from the folder.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vadis.checkpoint import check_fit, load_strictly
from vadis.devices import pick_dtype
from vadis.errors import FileError, ModelError
from vadis.files import atomic_folder, atomic_write, free_folder
from vadis.locks import only_run
from vadis.places import check_links, relative_name
from vadis.records import checked, read_json
from vadis.safetensors_files import Entry, read_header, read_safetensors
from vadis.sizes import check_memory, check_numbers

FORMAT = "1"
SHARD_BYTES = 5_000_000_000


# ---- writing


def save_pretrained(component: Any, folder: str | Path) -> None:
    """Write config, weights and a card to `folder`, a new one or that of an older component, whose other files stay.

    The config goes last, so a folder that has it is whole. An existing card is kept.
    """
    folder = Path(folder)
    if folder.is_file():
        raise FileError(f"{folder} is a file: name a folder to save to.")
    free_folder(folder, "config.json")
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
            if part is None or isinstance(part, dict | list):
                index[name] = part
            elif isinstance(part, Written):
                part.write(temporary / relative_name(name))
                index[name] = [part.library, part.class_name]
            elif isinstance(part, Path):
                _copy_plain(part, _make(temporary / relative_name(name)))
                index[name] = ["transformers", "PreTrainedModel"]
            else:
                part.save_pretrained(temporary / relative_name(name))
                index[name] = ["vadis", type(part).__name__]
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


# ---- reading


def read_page(folder: Path) -> dict[str, Any]:
    """The config.json of a component. Raises ModelError for a folder that is none, or of another format."""
    path = folder / "config.json"
    if not path.is_file() or "vadis" not in (page := read_json(path)):
        raise ModelError(f"{folder} is not a vadis model{_foreign(folder)}.")
    if page["vadis"] != FORMAT:
        raise ModelError(f"{folder} has format {page['vadis']!r}; this vadis reads {FORMAT!r}: update vadis.")
    return page


def read_component(cls: Any, folder: Path, dtype: str | torch.dtype | None, target: torch.device, strict: bool) -> Any:
    """The component of class `cls` in a folder, in eval mode; see `vadis.load`."""
    path, page = folder / "config.json", read_page(folder)
    if page.get("kind", cls.kind) != cls.kind:
        raise ModelError(
            f"{path}: kind is {page['kind']!r:.60}; a model of the type {page.get('type')} is a {cls.kind}."
        )
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
        path = folder / relative_name(name)
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


def _foreign(folder: Path) -> str:
    """What to do with a folder of another library."""
    if (folder / "mm_config.json").is_file():
        return f": it is a Motius folder. Convert it once: `vadis import motius-gotozero {folder} FOLDER`"
    if (folder / "config.json").is_file():
        return ": its config.json is of another library. See `vadis import` for the layouts that can be converted"
    return ": it has no config.json and no model_index.json"
