"""The one door for models of other libraries: transformers, tokenizers and peft read a folder only through here.

Those libraries let a configuration name Python code, packages to import and things to download. So before one of them
sees a folder its JSON pages are read here, and any field that could do such a thing is refused. Then `trust_remote_code`
is False in every call, weights come from safetensors only, and nothing is looked up on the Hub.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError

from vadis.errors import FileError, MissingExtra, ModelError
from vadis.places import check_links
from vadis.records import checked, read_json

MAX_PAGE = 32 << 20
"""Bytes of a JSON page; a tokenizer's with ten thousand named tokens has two million."""
MAX_TOKENIZER = 256 << 20
"""Bytes of tokenizer.json."""
PAGES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "audio_tokenizer_config.json", "adapter_config.json",
)  # fmt: skip
"""Pages from which transformers takes names of classes, options and files."""

_CODE = {
    "auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "code_revision", "use_kernels",
    "kernel_config", "allow_all_kernels", "compile_config",
}  # fmt: skip
"""Fields that name code to be run: classes beside the weights, functions and kernels of the Hub, compilers."""
_ELSEWHERE = {
    "configuration_files", "fast_tokenizer_files", "transformers_weights", "gguf_file", "init_inputs",  # other pages
    "backbone", "backbone_kwargs", "use_pretrained_backbone", "repo_path", "class_info_file",  # the Hub, or timm's
    "audio_tokenizer", "audio_tokenizer_class", "audio_tokenizer_name_or_path", "index_path", "passages_path",
    "sp_model_kwargs", "mecab_kwargs", "sudachi_kwargs", "jumanpp_kwargs",  # options with paths
}  # fmt: skip
"""Fields that lead to files outside the folder, or to pages in it that are not looked at here."""
_QUANTIZED = {"quantization_config", "compression_config"}
"""They import packages and fetch kernels; such weights don't fit training and merging here anyway."""
_DECODING = {"penalty_alpha", "dola_layers", "constraints", "force_words_ids"}
"""Ways of decoding whose code transformers fetches from the Hub."""
_DTYPE = re.compile(r"(torch\.)?(auto|float|half|float(16|32|64)|bfloat16|u?int8)")
_CLASSES = {
    "tokenizer_class": re.compile(r"(?!Auto)\w*(Tokenizer|TokenizerFast|Backend)"),
    "processor_class": re.compile(r"(?!Auto)\w+Processor"),
    "image_processor_type": re.compile(r"(?!Auto)\w+(ImageProcessor(Fast|Pil)?|FeatureExtractor)"),
    "video_processor_type": re.compile(r"(?!Auto)\w+VideoProcessor"),
    "feature_extractor_type": re.compile(r"(?!Auto)\w+(FeatureExtractor|Processor)"),
    "audio_processor_type": re.compile(r"(?!Auto)\w+(FeatureExtractor|Processor)"),
}
"""What a class named in a page must be called: transformers would call any of its objects with the page's values."""
_IMPLEMENTATIONS = {"eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm"}
"""Attention and expert layers that torch itself computes; other names may be kernels of the Hub."""
MAX_REPEATS = 4096
"""Layers, experts, classes: each is an object of its own before any weight is looked at."""
_REPEATS = re.compile(r"layer|depth|expert|block|num_labels|num_stages")
_DOWNLOADING = {"timm_backbone", "timm_wrapper"}
"""Kinds of model whose parts another library makes, from its own Hub names."""


# ---- pages


def check_folder(folder: Path) -> None:
    """Raise ModelError unless no page of a model folder, or of a folder in it, names code or anything outside.

    Links that leave the folder are refused too. Raises FileError for a page that can't be read.
    """
    check_links(folder)
    if (folder / "custom_generate").exists():
        raise ModelError(f"{folder} brings code of its own (custom_generate): it is not run. Don't use this folder.")
    for name in PAGES:
        for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
            if path.is_file():
                check_page(read_json(path, max_bytes=MAX_PAGE), path)


def check_page(page: Mapping[str, Any], path: Path) -> None:
    """Raise ModelError unless the page of that file names neither code nor anything outside its folder."""
    if path.name == "adapter_config.json":
        adapter_fields(page, path)
        return
    for name, value in _fields(page):
        if reason := _reason(name, value, path.name):
            shown = name if isinstance(value, dict | list) else f"{name}: {value!r:.60}"
            raise ModelError(f"{path} {reason} ({shown}): it is not loaded. {_ADVICE}")


_ADVICE = "Use a folder of plain weights that transformers loads without trust_remote_code."


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth; `records` has limited the depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name, inner
            yield from _fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner)


def _reason(name: str, value: Any, page: str) -> str | None:
    """Why a field is refused, None where it is not."""
    if name == "vision_config" and not value:
        return "says nothing of how the model sees, and the sizes that transformers would take are too large"
    if name.endswith("_heads") and isinstance(value, int) and value < 1:
        return "has no attention heads"
    if page == "config.json" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "has a number that no model can hold"
    if not value:
        return None
    if name in _CODE:
        return "names code to be run"
    if name in _ELSEWHERE or (page in ("tokenizer_config.json", "special_tokens_map.json") and _names_file(name)):
        return "leads to other files or options"
    if name in _QUANTIZED:
        return "holds quantized weights, which need other packages"
    if name in _DECODING or (name == "num_beam_groups" and value != 1):
        return "asks for a way of decoding whose code would be fetched"
    if name in _CLASSES and not (isinstance(value, str) and _CLASSES[name].fullmatch(value)):
        return "names a class of another kind"
    if name.endswith(("attn_implementation", "experts_implementation", "_implementation_internal")):
        wanted = value.values() if isinstance(value, dict) else [value]
        if not all(inner is None or (isinstance(inner, str) and inner in _IMPLEMENTATIONS) for inner in wanted):
            return "asks for a kernel that would be fetched"
    if name in ("dtype", "torch_dtype") and isinstance(value, str) and not _DTYPE.fullmatch(value):
        return "names a type that is none"
    if name == "model_type" and not isinstance(value, str):
        return "names a type that is none"
    if _REPEATS.search(name) and isinstance(value, int) and value > MAX_REPEATS:
        return f"promises more than {MAX_REPEATS:,} parts"
    if name == "model_type" and value in _DOWNLOADING:
        return "is made of parts that another library fetches"
    if name == "architecture" and isinstance(value, str) and not re.fullmatch(r"[\w.]+", value):
        return "is made of parts that another library fetches"
    return None


def _names_file(name: str) -> bool:
    # Published tokenizers often say where their special_tokens_map_file once was; transformers passes over it.
    return name.endswith(("_file", "_files", "_dir")) and name != "special_tokens_map_file"


# ---- models, tokenizers, processors


def open_foreign(kind: Any, folder: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained(folder)` of a class of transformers, once the folder is known to name no code.

    Args:
        kind: a class of transformers: a configuration, tokenizer or processor, or one of its Auto classes.
        folder: a folder on disk; nothing is looked up on the Hub.
        options: go to `from_pretrained`.

    Raises ModelError for a folder that is refused or that transformers can't load, FileError for damaged files.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: name the folder of a model.")
    check_folder(folder)
    with _in_one_line(kind, folder):
        made = kind.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True, **options)
    if callable(getattr(made, "convert_ids_to_tokens", None)):  # a text tokenizer
        _read_a_word(made, folder)
    return made


def _read_a_word(read: Callable[[str], Any], where: Path) -> None:
    """Raise FileError unless a text tokenizer reads a word: some damage shows at the first text only."""
    try:
        read("walk")
    except BaseException as error:
        if not _of_the_library(error):
            raise
        raise FileError(
            f"{where}: the text tokenizer can't read a word ({str(error)[:80]}): download it again."
        ) from error


def _of_the_library(error: BaseException) -> bool:
    """Whether an error comes from what was called; a panic of a library in Rust is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def _in_one_line(kind: Any, where: object) -> Iterator[None]:
    """What transformers raises as errors of ours."""
    try:
        yield
    except SafetensorError as error:
        raise FileError(f"the weights in {where} are damaged ({error}): download or save the model again.") from error
    except BaseException as error:  # whatever its models, tokenizers and json raise
        if not _of_the_library(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"can't load {kind.__name__} from {where}: {reason}") from error


def open_model(kind: Any, folder: str | Path, **options: Any) -> Any:
    """`open_foreign` of a model, whose weights are taken from safetensors only."""
    return open_foreign(kind, folder, use_safetensors=True, **options)


def model_of(kind: Any, config: Any, state: Mapping[str, Any], where: object, **options: Any) -> Any:
    """A model of transformers with the tensors in `state`, which come from `where`: no folder is read.

    Raises ModelError where they don't fit.
    """
    with _in_one_line(kind, where):
        return kind.from_pretrained(None, config=config, state_dict=state, **options)


def weights_of(kind: Any, config: Any, where: object) -> int:
    """How many weights the model of a configuration has. Nothing is allocated. Raises ModelError where there is none."""
    import torch
    import transformers

    with _in_one_line(kind, where), torch.device("meta"):
        automatic = kind is transformers.AutoModelForCausalLM
        model = kind.from_config(config, trust_remote_code=False) if automatic else kind(config)
    return sum(parameter.numel() for parameter in model.parameters())


def tokenizer_of(path: Path) -> Any:
    """The `tokenizers.Tokenizer` in a tokenizer.json.

    Raises MissingExtra without the package, FileError for a file that is missing, too large or damaged.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("reading text needs tokenizers: pip install 'vadis[text]'") from error
    check_links(path.parent, only=path)
    size = path.stat().st_size if path.is_file() else -1
    if not 0 <= size <= MAX_TOKENIZER:
        raise FileError(f"{path} is {'missing' if size < 0 else f'too large ({size:,} bytes)'}: download it again.")
    try:
        made = Tokenizer.from_file(str(path))
    except BaseException as error:  # tokenizers raises nothing more specific
        if not _of_the_library(error):
            raise
        raise FileError(f"{path} is not a complete tokenizer.json ({str(error)[:80]}): download it again.") from error
    _read_a_word(made.encode, path)
    return made


# ---- adapters of peft

Names = Annotated[list[str], Field(max_length=10_000)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class _Lora:
    """Fields of a LoRA that are taken from the file."""

    r: Annotated[int, Field(ge=1, le=65_536)] = 8
    lora_alpha: Annotated[float, Field(ge=0, le=1e6)] = 8
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    target_modules: str | Names | None = None
    exclude_modules: str | Names | None = None
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: Names | None = None
    layers_to_transform: int | Annotated[list[int], Field(max_length=10_000)] | None = None
    layers_pattern: str | Names | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=65_536)]] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(ge=0, le=1e6)]] | None = None
    target_parameters: Names | None = None
    lora_bias: bool = False
    init_lora_weights: bool | Literal["gaussian"] = True
    """Other ways change the base."""
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    task_type: Literal["CAUSAL_LM"] | None = None


_ADAPTER_READ = {field.name for field in fields_of(_Lora)}
_REPEATED, _NESTED = re.compile(r"(?<!\\)[*+{]"), re.compile(r"\)\s*[*+{]")
"""Where a regular expression repeats, and where it repeats a group: peft tries such patterns on every name."""
_ADAPTER_PASSED_OVER = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}
"""Fields that the model at hand answers, whatever the file says."""
_ADAPTER_AT_REST = {"peft_type": "LORA", "megatron_core": "megatron.core", "qalora_group_size": 16}
"""Fields that must say this or nothing; every other field must say nothing."""


def adapter_fields(page: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of an adapter_config.json that make a LoRA. Raises ModelError for another kind or any further field.

    Other fields of peft name modules to import, files with covariances, tokenizers and models to fetch.
    """
    if page.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {page.get('peft_type')!r:.60}; only LORA is read.")
    for name, value in page.items():
        if name in _ADAPTER_READ | _ADAPTER_PASSED_OVER or value == _ADAPTER_AT_REST.get(name, ...):
            continue
        if name == "auto_mapping" and _names_transformers(value):
            continue
        if value is not None and value is not False and value not in ({}, []):
            raise ModelError(f"{path}: {name} is {value!r:.60}, which vadis does not read: set it to null.")
    fields = {name: page[name] for name in sorted(_ADAPTER_READ & set(page)) if page[name] is not None}
    checked(_Lora, fields, path, ModelError)
    for name in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        for pattern in [value] if isinstance(value := fields.get(name, ()), str) else value:
            if len(_REPEATED.findall(pattern)) > 3 or _NESTED.search(pattern):
                raise ModelError(
                    f"{path}: {name} has a pattern that may take for ever ({pattern!r:.60}): list the names."
                )
    return fields


def _names_transformers(value: Any) -> bool:
    """Whether it is what peft notes of an adapter without a task: the class of the model, which is at hand already."""
    library = value.get("parent_library") if isinstance(value, dict) else None
    return isinstance(library, str) and library.split(".")[0] == "transformers"


def open_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The model of peft around `model` with the LoRA in a folder, whose settings are made here from checked fields.

    Raises MissingExtra without peft, ModelError for settings that are refused, and what peft raises.
    """
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise MissingExtra("this model has an adapter, which needs peft: pip install 'vadis[llm]'") from error
    check_links(folder)
    path = folder / "adapter_config.json"
    fields = adapter_fields(read_json(path, max_bytes=MAX_PAGE), path)
    config = LoraConfig(inference_mode=not trainable, **fields)
    return PeftModel.from_pretrained(
        model, str(folder.absolute()), config=config, is_trainable=trainable, local_files_only=True
    )
