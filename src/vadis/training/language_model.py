"""A language model put together for training on motion: backbone or an earlier phase, motion vocabulary, what is trained.

    full     every weight
    scratch  every weight, from random ones of the same shape
    lora     low-rank additions to all linear layers (arXiv 2106.09685), and the new rows
    rows     the new rows only; every old weight stays as it is, bit for bit

With `rows: all` the last two train the whole embedding and head, as MotionVLA's scripts do.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from vadis.config import STRICT
from vadis.errors import MissingExtra, ModelError
from vadis.language.add_motion import MotionVocabulary, extend, remap
from vadis.language.backbones import load_backbone, shared_name
from vadis.language.checkpoints import load_language_model, plain_model, save_delta, save_language_model
from vadis.language.init_embeddings import Init
from vadis.language.layout import Kind, MotionLayout, Order
from vadis.training.new_rows import RowsHead, lay_rows, plain_tables

VISION = ("visual", "vision_tower", "vision_model", "multi_modal_projector")
"""Names of the parts that read images."""
BENT = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""Settings of models whose logits are more than a product with the head."""


@dataclass(frozen=True, config=STRICT)
class VocabularyConfig:
    """How motion gets its ids; see `vadis.language.add_motion`."""

    mode: Literal["extend", "remap"] = "extend"
    init: Init = "normal"
    multiple: int = Field(default=64, ge=1, le=65_536)
    """The number of rows is rounded up to a multiple of it."""
    kind: Kind | None = None
    """Null: flat, of DSFT two_stream."""
    order: Order = "time"
    shared: bool | None = None
    length_tokens: bool = False
    """DSFT: ids that say how long a motion is."""
    reserve: bool = False
    """DSFT: all 8,195 names of MotionVLA's list."""


@dataclass(frozen=True, config=STRICT)
class LoRAConfig:
    """Low-rank additions."""

    r: int = Field(default=32, ge=1, le=65_536)
    alpha: float = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    vision: bool = False
    """Also in the layers that read images."""


@dataclass(frozen=True, config=STRICT)
class LanguageModelConfig:
    """What is trained, and from where."""

    tokenizer: str
    """Folder of the motion tokenizer."""
    backbone: str = "smollm2-135m"
    """smollm2-135m, a folder or Hub id of a causal language model of transformers, or a tiny random one (tiny-llama…)."""
    start: str | None = None
    """Folder of a model with a motion vocabulary, which an earlier phase exported; then `backbone` and `vocabulary` are
    not looked at."""
    vocabulary: VocabularyConfig = Field(default_factory=VocabularyConfig)
    tuning: Literal["full", "scratch", "lora", "rows"] = "lora"
    rows: Literal["new", "all"] = "new"
    """With lora and rows: train the new rows of embedding and head, or both whole."""
    lora: LoRAConfig = Field(default_factory=LoRAConfig)
    checkpointing: bool = False
    """Gradient checkpointing: less memory for a third more computing."""
    half_base: bool = False
    """Keep frozen weights in bfloat16; only with precision: bf16."""
    allow_download: bool = False
    """Fetch the backbone that `start` names on the Hub."""

    def __post_init__(self) -> None:
        if self.start and self.tuning == "scratch":
            raise ModelError("tuning: scratch starts from random weights: leave start out.")


class LanguageModel(nn.Module):
    """A causal LM of transformers (`model`, of peft where it has LoRA) with its text tokenizer and motion vocabulary.

    Its state dict holds what is trained and nothing else: the rest comes from the backbone. `base` is the name of that
    backbone while its weights are unchanged, else None.
    """

    motion_ids: Tensor
    _motion: Tensor

    def __init__(self, model: Any, text_tokenizer: Any, vocabulary: MotionVocabulary, base: str | None) -> None:
        super().__init__()
        self.model, self.text_tokenizer, self.vocabulary, self.base = model, text_tokenizer, vocabulary, base
        self.register_buffer("motion_ids", vocabulary.new_ids(), persistent=False)
        table = torch.zeros(vocabulary.size, dtype=torch.bool)
        table[self.motion_ids] = True
        self.register_buffer("_motion", table, persistent=False)

    def is_motion(self, ids: Tensor) -> Tensor:
        """Bool of the shape of `ids`."""
        return self._motion[ids]

    @property
    def context(self) -> int:
        """Positions that the model was made for."""
        return int(getattr(self.plain.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    @property
    def plain(self) -> Any:
        """The model of transformers."""
        return plain_model(self.model)

    def states(self, ids: Tensor, position_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Last states (B, N, H) of ids (B, N), right-padded; `mask` is additive (B, 1, N, N)."""
        more = {} if position_ids is None else {"position_ids": position_ids}
        return self.plain.base_model(input_ids=ids, attention_mask=mask, use_cache=False, **more).last_hidden_state

    def get_output_embeddings(self) -> Any:
        return self.plain.get_output_embeddings()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        own = self.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state_dict.items()}:
            odd = sorted(set(own) ^ set(state_dict)) or ["their shapes differ"]
            raise ModelError(
                f"the checkpoint holds other weights than this model trains ({odd[0]}): choose another folder."
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state_dict[name])

    def save(self, folder: str | Path) -> None:
        """Write the model: what the backbone lacks, or where the backbone has changed, all of it. Both are read by
        `load_language_model`."""
        with plain_tables(self.plain):
            if self.base is not None:
                save_delta(folder, self.model, self.text_tokenizer, self.vocabulary, self.base, check=False)
            else:
                save_language_model(folder, self.model, self.text_tokenizer, self.vocabulary)


def build_language_model(
    config: LanguageModelConfig,
    motion_tokenizer: Any,
    texts: Iterable[str] = (),
    general: Iterable[str] = (),
    seed: int = 0,
) -> LanguageModel:
    """The model that a config describes, ready for training; `texts` (captions) and `general` are for remap.

    Raises ModelError where the parts don't fit.
    """
    if config.start:
        base = _delta_base(config.start)
        model, text_tokenizer, vocabulary = load_language_model(
            config.start, motion_tokenizer, trainable=True, allow_download=config.allow_download
        )
    else:
        base: str | None = shared_name(config.backbone)
        model, text_tokenizer = load_backbone(config.backbone, seed=seed)
        if config.tuning == "scratch":
            model = type(model)(model.config)
        vocabulary = _vocabulary(config.vocabulary, model, text_tokenizer, motion_tokenizer, texts, general, seed)
    if bent := [name for name in BENT if getattr(model.config.get_text_config(), name, None) not in (None, 1, 1.0)]:
        raise ModelError(f"{type(model).__name__} bends its logits ({bent[0]}), which this training does not know.")
    model = model.float()
    model = _tuned(model, config, vocabulary)
    if config.tuning in ("full", "scratch") or config.rows == "all":
        base = None
    if config.half_base:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if config.checkpointing:
        plain = plain_model(model)
        enable = getattr(plain, "activation_checkpointing_enable", None) or plain.gradient_checkpointing_enable  # older
        enable({"use_reentrant": False})
    return LanguageModel(model, text_tokenizer, vocabulary, base)


def _vocabulary(
    config: VocabularyConfig, model: Any, text_tokenizer: Any, motion_tokenizer: Any, texts: Iterable[str],
    general: Iterable[str], seed: int,
) -> MotionVocabulary:  # fmt: skip
    layout = MotionLayout.of(motion_tokenizer, config.order, config.kind, config.shared)
    how: dict[str, Any] = {"init": config.init, "multiple": config.multiple, "seed": seed}
    if config.mode == "remap":
        return remap(model, text_tokenizer, layout, motion_tokenizer, texts, general, **how)
    how |= {"length_tokens": config.length_tokens, "reserve": config.reserve}
    return extend(model, text_tokenizer, layout, motion_tokenizer, **how)


def _delta_base(folder: str) -> str | None:
    """The backbone of a delta; None for a whole model, or where only this folder knows it."""
    from vadis.language.vocabulary import read_page

    delta = read_page(folder).get("delta")
    return shared_name(str(delta["base"])) if isinstance(delta, dict) and "base" in delta else None


def _tuned(model: Any, config: LanguageModelConfig, vocabulary: MotionVocabulary) -> Any:
    """The model with exactly the wanted weights trainable."""
    adapted = plain_model(model) is not model
    if config.tuning in ("full", "scratch", "rows") and adapted:
        model = model.merge_and_unload()
        if config.tuning == "rows":
            raise ModelError("start has an adapter: new rows alone are trained before it, not after. Use tuning: lora.")
    if config.tuning in ("full", "scratch"):
        return model.requires_grad_(True)
    if config.tuning == "lora":
        model = _checked_lora(model, config.lora) if adapted else _with_lora(model, config.lora)
    else:
        model.requires_grad_(False)
    plain = plain_model(model)
    if config.rows == "new":
        lay_rows(plain, vocabulary.new_ids())
    else:
        plain.get_input_embeddings().requires_grad_(True)
        plain.get_output_embeddings().requires_grad_(True)
    return model


def linear_layers(model: Any, vision: bool) -> list[str]:
    """Names of all linear layers but the head, and unless `vision` those that read images."""
    head = model.get_output_embeddings()
    found = []
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's name for it
        if linear and module is not head and (vision or not set(VISION) & set(name.split("."))):
            found.append(name)
    return found


def _with_lora(model: Any, config: LoRAConfig) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("tuning: lora needs peft: pip install 'vadis[llm]'") from error
    names = linear_layers(model, config.vision)
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    short = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in ends} == set(names)
    conv = any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in names)
    lora = LoraConfig(
        r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=ends if short else names,  # type: ignore[arg-type]
        fan_in_fan_out=conv, task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, lora)


def _checked_lora(model: Any, config: LoRAConfig) -> Any:
    own = model.peft_config[model.active_adapter]
    if (own.r, own.lora_alpha) != (config.r, config.alpha):
        raise ModelError(
            f"start has LoRA of r {own.r}, alpha {own.lora_alpha:g}; the recipe asks for {config.r}, {config.alpha:g}: set "
            "model.lora to go on with it."
        )
    return model


def merge_language_model(folder: str | Path, out: str | Path, base: str | Path | None = None) -> None:
    """Write the model of `folder` (a delta, or with an adapter) as one whole folder of transformers at `out`."""
    model, text_tokenizer, vocabulary = load_language_model(folder, base=base)
    if plain_model(model) is not model:
        model = model.merge_and_unload()
    save_language_model(out, model, text_tokenizer, vocabulary)


__all__ = ["LanguageModel", "LanguageModelConfig", "RowsHead", "build_language_model", "merge_language_model"]
