"""The table of readers; each group is imported when one of its readers is asked for."""

from importlib import import_module

from fuzzing.run import Reader

GROUPS = ("motions", "data", "settings", "models", "requests")


def _all() -> dict[str, Reader]:
    found: dict[str, Reader] = {}
    for group in GROUPS:
        found |= import_module(f"fuzzing.{group}").READERS
    return found


def names() -> list[str]:
    """The readers' names in the order in which they are run."""
    return list(_all())


def find(name: str) -> Reader:
    """The reader of that name."""
    return _all()[name]
