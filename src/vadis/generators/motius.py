"""The Hub folders of "Go to Zero" made by hftrainer, now Motius: `mm_config.json`, `fsq.safetensors`, `ar.safetensors`.

The folder becomes a bundle; its text encoder (Flan-T5-XL, several GB) is referred to, or copied when the folder brings it.
"""

from pathlib import Path
from typing import Any

from torch import nn

from vadis.checkpoint import read_state_dict
from vadis.component_files import save_bundle
from vadis.errors import ModelError
from vadis.generators.motionmillion import SIZES, MotionMillion
from vadis.generators.motionmillion import from_motionmillion as generator_from
from vadis.io.arrays import read_array
from vadis.places import HUB_ID
from vadis.records import read_json
from vadis.tokenizers.fsq import FSQTokenizer
from vadis.tokenizers.fsq import from_motionmillion as tokenizer_from

TEXT_ENCODER = "google/flan-t5-xl"


class GoToZero(nn.Module):
    """An imported folder: the tokenizer, the generator, and where the text encoder is."""

    def __init__(self, tokenizer: FSQTokenizer, generator: MotionMillion, text_encoder: Path | str) -> None:
        super().__init__()
        self.tokenizer, self.generator, self.text_encoder = tokenizer, generator, text_encoder

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a bundle that `vadis.load` opens as a text-to-motion pipeline."""
        encoder = self.text_encoder if isinstance(self.text_encoder, Path) else {"hub": self.text_encoder}
        parts = {"tokenizer": self.tokenizer, "generator": self.generator, "text_encoder": encoder}
        settings = {  # the program decodes greedily until END, 150 tokens of 2 frames at most
            "seconds": None, "max_seconds": 10.0, "temperature": 0.0, "guidance_scale": 1.0, "plan": "none",
            "text_encoder": "flan-t5-xl",
        }  # fmt: skip
        save_bundle(folder, "TextToMotionPipeline", parts, settings)


def from_folder(folder: Path, **options: Any) -> GoToZero:
    """Read a Motius folder strictly; `options`: `mean`, `std` instead of the folder's. Raises ModelError for another layout."""
    if not (folder / "mm_config.json").is_file():
        raise ModelError(f"{folder} has no mm_config.json, so it is not a Motius Go-to-Zero folder.")
    page = read_json(folder / "mm_config.json")
    if page.get("model_type") != "motionmillion":
        raise ModelError(f"{folder} holds a {page.get('model_type')!r}; this importer reads 'motionmillion'.")
    config: dict[str, Any] = page.get("config") or {}
    tokenizer_options = _tokenizer_options(config.get("vqvae") or {})
    for name in ("mean", "std"):
        tokenizer_options[name] = options.pop(name) if name in options else read_array(folder / f"{name}.npy")
    if options:
        raise ModelError(f"motius-gotozero takes mean and std only, not {', '.join(options)}.")
    ar = config.get("ar") or {}
    generator_options = {"block_size": ar["block_size"]} if "block_size" in ar else {}
    if (size := ar.get("config_name")) is not None:
        if size not in SIZES:
            raise ModelError(f"mm_config.json: unknown size {size!r}; known are {', '.join(SIZES)}.")
        generator_options["n_head"] = SIZES[size][1]
    tokenizer = tokenizer_from(read_state_dict(_weights(folder, "fsq")), **tokenizer_options)
    generator = generator_from(read_state_dict(_weights(folder, "ar")), **generator_options)
    if tokenizer.vocab_size != generator.config.nb_code:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size} codes, the generator {generator.config.nb_code}: they don't fit."
        )
    text = page.get("text_encoder") or {}
    stored = folder / "text_encoder"
    source = text.get("source") or page.get("text_model_name") or TEXT_ENCODER
    if (stored / "config.json").is_file():
        return GoToZero(tokenizer, generator, stored)
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        raise ModelError(
            f"mm_config.json: the text encoder is {source!r:.80}; expected a Hub id such as {TEXT_ENCODER}."
        )
    return GoToZero(tokenizer, generator, source)


def _weights(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".pt") if (folder / f"{name}{suffix}").is_file()]
    if not found:
        raise ModelError(f"the weights are missing: there is no {name}.safetensors in {folder}. Download it again.")
    return found[0]


def _tokenizer_options(page: dict[str, Any]) -> dict[str, Any]:
    """What the tensors don't tell, under our names."""
    if page.get("quantizer", "FSQ").upper() != "FSQ":
        raise ModelError(f"mm_config.json: the quantizer is {page['quantizer']!r}; only FSQ was published.")
    kept = ("nb_code", "dilation_growth_rate", "patch_size", "patch_method")
    options: dict[str, Any] = {name: page[name] for name in kept if page.get(name) is not None}
    if page.get("activation"):
        options["activation"] = str(page["activation"]).lower()
    if page.get("norm"):
        options["norm"] = page["norm"]
    return options
