"""Tokenizers: features to tokens and back, one file a family."""

from vadis.tokenizers.base import Tokenizer, TokenizerOutput
from vadis.tokenizers.causal_tae import CausalTAE, CausalTAEConfig
from vadis.tokenizers.dsft.tokenizer import DSFTTokenizer
from vadis.tokenizers.fsq import FSQ, FSQTokenizer, FSQTokenizerConfig
from vadis.tokenizers.lfq import LFQ, LFQTokenizer, LFQTokenizerConfig
from vadis.tokenizers.lfq2d import LFQ2DTokenizer, LFQ2DTokenizerConfig
from vadis.tokenizers.mg_vqvae import MGVQTokenizer, MGVQTokenizerConfig, MotionVQVAE
from vadis.tokenizers.rvqvae import RVQTokenizer, RVQTokenizerConfig
from vadis.tokenizers.vqvae import VQTokenizer, VQTokenizerConfig

__all__ = [
    "FSQ",
    "LFQ",
    "CausalTAE",
    "CausalTAEConfig",
    "DSFTTokenizer",
    "FSQTokenizer",
    "FSQTokenizerConfig",
    "LFQ2DTokenizer",
    "LFQ2DTokenizerConfig",
    "LFQTokenizer",
    "LFQTokenizerConfig",
    "MGVQTokenizer",
    "MGVQTokenizerConfig",
    "MotionVQVAE",
    "RVQTokenizer",
    "RVQTokenizerConfig",
    "Tokenizer",
    "TokenizerOutput",
    "VQTokenizer",
    "VQTokenizerConfig",
]
