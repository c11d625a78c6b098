"""Tokenizers: features to tokens and back, one file a family."""

from vadis.tokenizers.base import Tokenizer, TokenizerOutput
from vadis.tokenizers.causal_tae import CausalTAE, CausalTAEConfig
from vadis.tokenizers.fsq import FSQ, FSQTokenizer, FSQTokenizerConfig

__all__ = ["FSQ", "CausalTAE", "CausalTAEConfig", "FSQTokenizer", "FSQTokenizerConfig", "Tokenizer", "TokenizerOutput"]
