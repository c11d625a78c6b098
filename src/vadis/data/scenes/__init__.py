"""Rooms, pictures of them, instructions, and motions that follow them: a training set that anybody can make again."""

from vadis.data.scenes.build import SceneOptions, build_scenes
from vadis.data.scenes.judge import Arrival, facing, walks_to

__all__ = ["Arrival", "SceneOptions", "build_scenes", "facing", "walks_to"]
