"""Errors that speak to the user: what was wrong, what was expected, what to do. The CLI prints them without a traceback."""


class VadisError(ValueError):
    """Base of every error that a user's input can cause."""


class FileError(VadisError):
    """A file that is missing, damaged, too large, or not what its name says."""


class ShapeError(VadisError):
    """An array whose shape does not fit what was asked of it."""


class SkeletonError(VadisError):
    """A joint tree that can't be understood or mapped."""


class ModelError(VadisError):
    """A model folder, checkpoint or configuration that can't be used."""


class MissingExtra(VadisError):
    """An optional package is not installed; the message names the extra to install."""
