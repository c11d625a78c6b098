"""DSFT (MotionVLA): motion as the rounded cosine coefficients of two streams; see `vadis.tokenizers.dsft.tokenizer`."""

from vadis.tokenizers.dsft.tokenizer import DSFTTokenizer
from vadis.tokenizers.dsft.transform import DSFTConfig

__all__ = ["DSFTConfig", "DSFTTokenizer"]
