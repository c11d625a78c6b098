"""A Llama in a GGUF file, as a model and a text tokenizer of transformers; the file is gone through once.

transformers reads such files too, in several passes that take five times as long, and loses how SmolLM2 reads digits.
Weights are those of `gguf.dequantize`, float32.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vadis.errors import FileError
from vadis.foreign import model_of

_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_SPECIAL = 3  # kind of a token that is no text
_PRE = "smollm"


def read_llama(file: Path) -> tuple[Any, Any]:
    """(LlamaForCausalLM, tokenizer) of a GGUF file with SmolLM2's kind of tokenizer.

    Raises FileError for another architecture, or tensors that are missing or left over.
    """
    from gguf import GGUFReader
    from transformers import LlamaForCausalLM

    reader = GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    kinds = (facts.get("general.architecture"), facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre"))
    if kinds != ("llama", "gpt2", _PRE):
        raise FileError(f"the file holds {kinds}; expected a llama with the tokenizer gpt2, {_PRE}.")
    weights = _weights(reader, facts)
    config = _config(facts, tied="lm_head.weight" not in weights)
    model, report = model_of(LlamaForCausalLM, config, weights, file, dtype=torch.float32, output_loading_info=True)
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise FileError(f"tensors are missing, left over or of another size: {wrong[:3]}.")
    return model.eval(), _tokenizer(facts)


def _config(facts: dict[str, Any], tied: bool) -> Any:
    from transformers import LlamaConfig

    heads = facts["llama.attention.head_count"]
    return LlamaConfig(
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        head_dim=facts["llama.embedding_length"] // heads,
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        dtype=torch.float32,
    )


def _weights(reader: Any, facts: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict, under transformers' names."""
    from gguf import dequantize

    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    state = {}
    for tensor in reader.tensors:
        name, kind = tensor.name.rsplit(".", 1)
        block = name.split(".") if name.startswith("blk.") else []
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if block and block[-1] in heads:
            value = _unpair(value, heads[block[-1]])
        ours = f"model.layers.{block[1]}.{_PARTS.get(block[2], name)}" if block else _WHOLE.get(name, name)
        state[f"{ours}.{kind}"] = value
    return state


def _unpair(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix with the two halves of a rotation apart; the file has them side by side."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _tokenizer(facts: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = facts["tokenizer.ggml.token_type"]
    special = [name for name, kind in zip(names, kinds, strict=True) if kind == _SPECIAL]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    bos, eos, unknown, padding = (
        names[facts[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos", "unknown", "padding")
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token=unknown, pad_token=padding
    )
    tokenizer.chat_template = facts["tokenizer.chat_template"]
    tokenizer.model_max_length = facts["llama.context_length"]
    return tokenizer
