"""Saving and loading a language model that speaks motion.

    folder/config.json, model.safetensors, tokenizer.json …   a folder of transformers, which its Auto classes open
    folder/motion_vocabulary.json                             which ids are motion, and of which motion tokenizer
    folder/adapter_config.json, adapter_model.safetensors     where the model has an adapter of `peft`

A delta is what is needed beside a backbone that others have too (`"smollm2-135m"`): the new rows and the adapter.

    folder/motion_vocabulary.json, new_rows.safetensors [, adapter_config.json, adapter_model.safetensors]
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vadis.component_files import write_json
from vadis.errors import FileError, MissingExtra, ModelError, VadisError, about
from vadis.files import atomic_folder
from vadis.foreign import open_adapter
from vadis.language.backbones import (
    find_language_folder,
    is_ours,
    load_backbone,
    load_folder,
    quiet_transformers,
    readable,
)
from vadis.language.init_embeddings import head_of, resize, tied
from vadis.language.vocabulary import (
    FILE,
    MotionTokenizerFacts,
    MotionVocabulary,
    length_names,
    marker_names,
    read_page,
    symbol_names,
)
from vadis.places import HUB_ID, HubName, commit_of, named_in_file
from vadis.records import checked, read_json

ROWS = "new_rows.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_OF_ADAPTER = (".lora_", ".modules_to_save.", "token_adapter.trainable_tokens_")


def save_language_model(folder: str | Path, model: Any, text_tokenizer: Any, vocabulary: MotionVocabulary) -> None:
    """Write a folder that `load_language_model`, transformers' Auto classes and `peft` open; an older one is replaced.

    An adapter of `peft` is stored beside the weights it was trained on, not merged into them. Raises ModelError where
    model, text tokenizer and vocabulary don't belong together.
    """
    check_together(model, text_tokenizer, vocabulary)
    _check_place(folder)
    base = plain_model(model)
    with atomic_folder(folder) as temporary, quiet_transformers():
        base.save_pretrained(temporary, state_dict=None if base is model else _plain_state(base))
        text_tokenizer.save_pretrained(temporary)
        adapter = base is not model and _save_adapter(model, temporary)
        readable(temporary)
        vocabulary.save(temporary, adapter=adapter)


def load_language_model(
    folder: str | Path,
    motion_tokenizer: Any = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    base: str | Path | None = None,
    trainable: bool = False,
    allow_download: bool = False,
) -> tuple[Any, Any, MotionVocabulary]:
    """(model in eval mode, text tokenizer, vocabulary) of a saved folder or delta, on disk or on the Hub.

    Args:
        motion_tokenizer: the one that will be used; checked against the one that the model was trained with.
        base: of a delta, where its backbone is, instead of the name it was saved with.
        trainable: an adapter can be trained on.
        allow_download: fetch the backbone that a delta names on the Hub.

    Raises ModelError where parts are missing or don't belong together, FileError for damaged files.
    """
    from vadis.devices import pick_device, pick_dtype

    folder, precision = find_language_folder(folder), pick_dtype(dtype)
    vocabulary, page = MotionVocabulary.load(folder), read_page(folder)
    if motion_tokenizer is not None:
        check_motion_tokenizer(vocabulary, motion_tokenizer)
    if page.get("adapter") and not all((folder / n).is_file() for n in (ADAPTER, ADAPTER_CONFIG)):
        raise ModelError(
            f"{folder} was saved with an adapter, which is not there: the copy of the folder is not whole."
        )
    if "delta" in page:
        model, text_tokenizer = _load_delta(folder, vocabulary, page["delta"], base, allow_download)
    else:
        model, text_tokenizer = load_folder(folder, precision, adapter=False)
    with about(folder):
        check_together(model, text_tokenizer, vocabulary)
    if page.get("adapter"):
        model = _load_adapter(folder, model, trainable)
    return model.to(device=pick_device(device), dtype=precision).eval(), text_tokenizer, vocabulary


def save_delta(
    folder: str | Path,
    model: Any,
    text_tokenizer: Any,
    vocabulary: MotionVocabulary,
    base: str,
    *,
    dtype: torch.dtype | None = None,
    check: bool = True,
) -> None:
    """Write only what `base` lacks: the vocabulary, the new rows and the adapter.

    Args:
        base: what `load_backbone` is to load: a name of ours or a Hub id, whose commit is kept. Of a folder the name is
            kept, but whoever loads the delta must give `base` again.
        dtype: precision of the stored rows and adapter; None keeps the model's, which gives equal logits to the bit.
        check: load the base and raise ModelError unless all old weights are its own, to the bit.
    """
    check_together(model, text_tokenizer, vocabulary)
    plain = plain_model(model)
    state = _plain_state(plain)
    if check:
        _check_unchanged(state, plain, base, vocabulary)
    stored = _stored_rows(plain, state, vocabulary, dtype)
    from safetensors.torch import save_file

    _check_place(folder)
    with atomic_folder(folder) as temporary, quiet_transformers():
        save_file(stored, temporary / ROWS, {"format": "pt"})
        adapter = plain is not model and _save_adapter(model, temporary, dtype)
        readable(temporary)
        delta = {"base": str(base), "dtype": str(plain.dtype).removeprefix("torch.")}
        if HUB_ID.fullmatch(str(base)) and (commit := commit_of(plain.name_or_path)):
            delta["revision"] = commit
        delta["embedding_sha256"] = _old_rows_hash(plain, vocabulary)
        vocabulary.save(temporary, adapter=adapter, delta=delta)


# ---- checks


def _check_place(folder: str | Path) -> None:
    """Raise FileError where writing would take the place of something else."""
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / FILE).is_file()):
        raise FileError(f"{folder} is a file or holds other files: name a new folder to save the model to.")


def check_motion_tokenizer(vocabulary: MotionVocabulary, motion_tokenizer: Any) -> None:
    """Raise ModelError unless the language model was trained with this motion tokenizer."""
    vocabulary.layout.check(motion_tokenizer)
    own, given = vocabulary.tokenizer, MotionTokenizerFacts.of(motion_tokenizer)
    for name in ("type", "representation", "fps", "frames_per_token", "sha256"):
        ours, theirs = getattr(own, name), getattr(given, name)
        if ours != theirs:
            short = (str(ours)[:12], str(theirs)[:12]) if name == "sha256" else (ours, theirs)
            raise ModelError(
                f"this language model was trained with another motion tokenizer (its {name} is {short[0]}, here {short[1]}): "
                "its tokens would mean other motions. Use the tokenizer that it was trained with."
            )


def check_together(model: Any, text_tokenizer: Any, vocabulary: MotionVocabulary) -> None:
    """Raise ModelError unless rows, names and ids of model, text tokenizer and vocabulary agree."""
    plain = plain_model(model)
    if getattr(plain, "_hf_peft_config_loaded", False):
        raise ModelError("transformers has put an adapter into this model: load it with load_language_model instead.")
    if hasattr(plain.get_input_embeddings(), "rows"):
        raise ModelError("the new rows are still laid over the tables: merge_rows(model) first.")
    rows, heads = (len(_weight(module)) for module in (plain.get_input_embeddings(), head_of(plain)))
    said = plain.config.get_text_config().vocab_size
    if not rows == heads == said == vocabulary.size:
        raise ModelError(
            f"the embedding has {rows:,} rows, the head {heads:,}, the config says {said:,} and the motion vocabulary "
            f"{vocabulary.size:,}: they don't belong together."
        )
    names = vocabulary_names(vocabulary)
    known = text_tokenizer.get_vocab()
    wrong = [name for name, id_ in names.items() if known.get(name) != id_]
    if wrong:
        raise ModelError(
            f"the text tokenizer gives {wrong[0]} the id {known.get(wrong[0])}, the motion vocabulary {names[wrong[0]]} "
            f"({len(wrong)} such names): they don't belong together."
        )


def vocabulary_names(vocabulary: MotionVocabulary) -> dict[str, int]:
    """The names that the text tokenizer must have, with their ids."""
    begin, end, sep = marker_names(vocabulary.layout)
    names = {begin: vocabulary.begin, end: vocabulary.end}
    if sep is not None and vocabulary.sep is not None:
        names[sep] = vocabulary.sep
    if vocabulary.mode == "extend":
        names |= dict(zip(symbol_names(vocabulary.layout), vocabulary.symbol_ids.tolist(), strict=True))
    if vocabulary.length_ids is not None:
        names |= dict(zip(length_names(vocabulary.layout), vocabulary.length_ids.tolist(), strict=True))
    return names


# ---- models with and without an adapter


def plain_model(model: Any) -> Any:
    """The model of transformers inside one of `peft`; others as they are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _weight(module: Any) -> Tensor:
    """The matrix of an embedding or head, that of the base where an adapter is around it."""
    module = getattr(module, "token_adapter", module)
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return (module.original_module if hasattr(module, "original_module") else module).weight


def _tied(plain: Any) -> bool:
    return _weight(head_of(plain)) is _weight(plain.get_input_embeddings())


def _plain_state(plain: Any) -> dict[str, Tensor]:
    """The base's weights under their own names; rows that an adapter trains (`trainable_token_indices`) are put in."""
    state = {}
    for name, value in plain.state_dict().items():
        if not any(part in name for part in _OF_ADAPTER):
            for wrapper in (".token_adapter.", ".base_layer.", ".original_module."):
                name = name.replace(wrapper, ".")
            state[name] = value
    for name, module in plain.named_modules():
        if hasattr(module, "token_adapter"):
            rows = module.token_adapter
            state[f"{name}.weight"] = rows.get_merged_weights(rows.active_adapters).detach()
    if _tied(plain):
        embedding, head = _table_names(plain)
        state[head] = state[embedding]
    return state


def _table_names(plain: Any) -> tuple[str, str]:
    """Names of the matrices of embedding and head in the state."""
    names = {id(module): name for name, module in plain.named_modules()}
    embedding, head = plain.get_input_embeddings(), head_of(plain)
    return f"{names[id(embedding)]}.weight", f"{names[id(head)]}.weight"


def _save_adapter(model: Any, folder: Path, dtype: torch.dtype | None = None) -> bool:
    """Write the adapter without its new rows, which are the base's by now; whether anything is left of it."""
    from safetensors.torch import load_file, save_file

    if len(model.peft_config) != 1:
        raise ModelError(f"the model has the adapters {', '.join(model.peft_config)}: keep one, or merge them.")
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a template without content
    state = {k: v for k, v in load_file(folder / ADAPTER).items() if "trainable_tokens" not in k}
    if not state:
        for name in (ADAPTER, ADAPTER_CONFIG):
            (folder / name).unlink()
        return False
    save_file(
        {name: value.to(dtype or value.dtype) for name, value in state.items()}, folder / ADAPTER, {"format": "pt"}
    )
    config = read_json(folder / ADAPTER_CONFIG) | {"base_model_name_or_path": None}
    write_json(
        folder / ADAPTER_CONFIG,
        config | ({"trainable_token_indices": None} if "trainable_token_indices" in config else {}),
    )
    return True


def _load_adapter(folder: Path, model: Any, trainable: bool) -> Any:
    """The model with its adapter, every tensor of which must be there and fit."""
    try:
        from peft import get_peft_model_state_dict
    except ImportError as error:
        raise MissingExtra("this model has an adapter, which needs peft: pip install 'vadis[llm]'") from error
    stored = _tensors(folder / ADAPTER)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is checked below
            adapted = open_adapter(model, folder, trainable=trainable)
    except VadisError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"the adapter in {folder} does not fit its model ({reason}): save or download it again."
        ) from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if wanted != set(stored):
        lacking, strange = sorted(wanted - set(stored)), sorted(set(stored) - wanted)
        raise ModelError(
            f"the adapter in {folder} is not whole: {len(lacking)} tensors are missing ({', '.join(lacking[:2])}), "
            f"{len(strange)} are foreign ({', '.join(strange[:2])}). Save or download it again."
        )
    return adapted


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises FileError for a damaged one or values that are not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is missing or damaged ({error}): save or download the model again.") from error
    for name, value in state.items():
        if not bool(torch.isfinite(value.float()).all()):
            raise FileError(f"{path} holds values of {name} that are not finite: save or download the model again.")
    return state


# ---- whole folders and deltas


def _stored_rows(
    plain: Any, state: dict[str, Tensor], vocabulary: MotionVocabulary, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The new rows of each matrix, and one for the padding, all of whose rows are equal."""
    embedding, head = _table_names(plain)
    ids, padding = vocabulary.new_ids(), _padding(vocabulary)
    tables = {"embedding": state[embedding]} | ({} if _tied(plain) else {"head": state[head]})
    bias = state.get(head.removesuffix("weight") + "bias")
    stored = {}
    for name, table in (tables | ({} if bias is None else {"head_bias": bias})).items():
        rows = table.detach().cpu().to(dtype or table.dtype)
        stored[name] = rows[ids].contiguous()
        if len(padding):
            stored[f"{name}_padding"] = rows[padding[:1]].contiguous()
            if not torch.equal(rows[padding], rows[padding[:1]].expand_as(rows[padding])):
                raise ModelError(
                    "rows that are only padding have been trained: save the whole model with save_language_model."
                )
    return stored


def _padding(vocabulary: MotionVocabulary) -> Tensor:
    """Ids that stand for nothing."""
    ids = torch.arange(vocabulary.size)
    return ids[~vocabulary.text_mask() & ~vocabulary.is_motion(ids)]


@dataclass(frozen=True)
class _Delta:
    """Which backbone a delta is for; more may stand there."""

    base: str
    dtype: Literal["float32", "bfloat16", "float16"]
    embedding_sha256: str


def _load_delta(
    folder: Path, vocabulary: MotionVocabulary, delta: Any, base: str | Path | None, allow_download: bool
) -> tuple[Any, Any]:
    from vadis.language.vocabulary import add_names

    checked(_Delta, delta, f"{folder / FILE}: delta", FileError)
    name = base or _base_named(folder, delta, allow_download)
    model, text_tokenizer = load_backbone(name, dtype=delta["dtype"])
    count, size = len(text_tokenizer), model.get_input_embeddings().weight.shape[0]
    if (count, size) != (vocabulary.text_count, vocabulary.text_size):
        raise ModelError(
            f"the backbone {name} has {count:,} text ids and {size:,} rows; the delta was made for {vocabulary.text_count:,} "
            f"and {vocabulary.text_size:,}. Name the right one with base=."
        )
    order = sorted(vocabulary_names(vocabulary).items(), key=lambda pair: pair[1])
    add_names(text_tokenizer, [name for name, _ in order])
    resize(model, vocabulary.size)
    if _old_rows_hash(model, vocabulary) != delta["embedding_sha256"]:
        raise ModelError(f"the weights of {name} are not those that the delta in {folder} was trained on.")
    _fill(folder, model, vocabulary)
    return model, text_tokenizer


def _base_named(folder: Path, delta: dict[str, Any], allow_download: bool) -> str | Path | HubName:
    """What a delta says of its backbone; raises ModelError unless it is ours, in the folder, or may be fetched."""
    name = delta["base"]
    return named_in_file(
        name, f"{folder / FILE}: delta.base", known=[name] if isinstance(name, str) and is_ours(name) else [],
        folder=folder, revision=delta.get("revision"), allow_download=allow_download,
        otherwise="give the backbone yourself: base=FOLDER",
    )  # fmt: skip


def _fill(folder: Path, model: Any, vocabulary: MotionVocabulary) -> None:
    stored, ids, padding = _tensors(folder / ROWS), vocabulary.new_ids(), _padding(vocabulary)
    tables = {"embedding": model.get_input_embeddings().weight}
    if not tied(model):
        tables["head"] = head_of(model).weight
    if head_of(model).bias is not None:
        tables["head_bias"] = head_of(model).bias
    wanted = {name: (len(ids), *table.shape[1:]) for name, table in tables.items()}
    if len(padding):
        wanted |= {f"{name}_padding": (1, *table.shape[1:]) for name, table in tables.items()}
    found = {name: tuple(value.shape) for name, value in stored.items()}
    if wanted != found:
        raise ModelError(f"{folder / ROWS} holds {found}; the model needs {wanted}: save or download it again.")
    with torch.no_grad():
        for name, table in tables.items():
            table[ids] = stored[name].to(table)
            if len(padding):
                table[padding] = stored[f"{name}_padding"].to(table)


def _old_rows_hash(model: Any, vocabulary: MotionVocabulary) -> str:
    """sha256 of the text rows that keep their meaning."""
    kept = vocabulary.text_mask().nonzero()[:, 0]
    rows = _weight(model.get_input_embeddings()).detach().cpu()[kept].contiguous()
    return hashlib.sha256(rows.view(torch.uint8).numpy().tobytes()).hexdigest()


def _check_unchanged(state: dict[str, Tensor], plain: Any, base: str, vocabulary: MotionVocabulary) -> None:
    original, _ = load_backbone(base, dtype=plain.dtype)
    kept = vocabulary.text_mask()[: vocabulary.text_size]
    for name, value in original.state_dict().items():
        ours = state.get(name)
        if ours is not None and ours.shape != value.shape and len(ours) == vocabulary.size:
            ours = ours[: vocabulary.text_size]
        if ours is not None and len(value) == vocabulary.text_size and ours.shape == value.shape:
            ours, value = ours[kept], value[kept]
        if ours is None or not torch.equal(ours.cpu(), value):
            raise ModelError(
                f"{name} differs from that of {base}: a delta can only hold new rows and an adapter. Save the whole model "
                "with save_language_model."
            )
