"""Generators: text and other conditions to motion tokens or latents, one file a family."""

from vadis.generators.motionmillion import MotionMillion, MotionMillionConfig
from vadis.generators.motionstreamer import MotionStreamer, MotionStreamerConfig
from vadis.generators.t2mgpt import T2MGPT, T2MGPTConfig

__all__ = ["T2MGPT", "MotionMillion", "MotionMillionConfig", "MotionStreamer", "MotionStreamerConfig", "T2MGPTConfig"]
