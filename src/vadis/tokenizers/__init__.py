"""Tokenizers: features to tokens and back, one file a family."""

from vadis.tokenizers.base import Tokenizer, TokenizerOutput
from vadis.tokenizers.fsq import FSQ, FSQTokenizer, FSQTokenizerConfig

__all__ = ["FSQ", "FSQTokenizer", "FSQTokenizerConfig", "Tokenizer", "TokenizerOutput"]
