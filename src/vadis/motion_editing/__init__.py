"""Edits of motions that need more than one line: foot-slide clean-up, smoothing."""

from vadis.motion_editing.feet import FootContact, Stiffness, clean_feet
from vadis.motion_editing.remove_sliding import remove_sliding
from vadis.motion_editing.smoothing import calm_motion, smooth_motion

__all__ = ["FootContact", "Stiffness", "calm_motion", "clean_feet", "remove_sliding", "smooth_motion"]
