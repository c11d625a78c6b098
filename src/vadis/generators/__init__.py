"""Generators: text and other conditions to motion tokens, one file a family."""

from vadis.generators.motionmillion import MotionMillion, MotionMillionConfig

__all__ = ["MotionMillion", "MotionMillionConfig"]
