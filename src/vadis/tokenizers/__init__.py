"""Tokenizers: features to tokens and back, one file a family."""

from vadis.tokenizers.fsq import FSQ, FSQOutput, FSQTokenizer, FSQTokenizerConfig

__all__ = ["FSQ", "FSQOutput", "FSQTokenizer", "FSQTokenizerConfig"]
