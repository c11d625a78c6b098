"""Generators: text and other conditions to motion tokens or latents, one file a family."""

from vadis.generators.motionmillion import MotionMillion, MotionMillionConfig
from vadis.generators.motionstreamer import MotionStreamer, MotionStreamerConfig

__all__ = ["MotionMillion", "MotionMillionConfig", "MotionStreamer", "MotionStreamerConfig"]
