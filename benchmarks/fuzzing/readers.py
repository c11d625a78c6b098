"""The table of readers, in groups that are imported when one of their readers is asked for."""

from importlib import import_module

from fuzzing.run import Reader

GROUPS = ("motions", "data", "settings", "requests", "models")
"""The last one takes a few seconds to import."""


def names() -> list[str]:
    """The readers' names in the order in which they are run."""
    return [name for group in GROUPS for name in import_module(f"fuzzing.{group}").READERS]


def find(name: str) -> Reader:
    """The reader of that name; raises KeyError for an unknown one."""
    for group in GROUPS:
        readers = import_module(f"fuzzing.{group}").READERS
        if name in readers:
            return readers[name]
    raise KeyError(name)
