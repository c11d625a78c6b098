"""Tables of families: what vadis brings, and what other installed packages add by entry points.

A package adds, for example, a tokenizer by a line of its pyproject.toml:

    [project.entry-points."vadis.tokenizers"]
    mine = "my_package.tokenizer:MyTokenizer"

Nothing of a package is imported before its name is used. Names of vadis come first.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vadis.errors import VadisError


@cache
def _added(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name; the first of a name counts."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if found.setdefault(point.name, point).value != point.value:
            warnings.warn(
                f"{point.name} of {group} is in {_package(found[point.name])} and in {_package(point)}: the first is taken.",
                stacklevel=2,
            )
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def resolve(target: str) -> Any:
    """The object that `module:name` stands for."""
    module, name = target.split(":")
    return getattr(import_module(module), name)


class Table(Mapping[str, Any]):
    """Name → object, imported when it is asked for.

    Args:
        groups: entry points that add to it, such as "vadis.tokenizers".
        own: name → "module:object" of vadis.
        check: raises VadisError for an object of a package that can't be one of this table.
    """

    def __init__(
        self, groups: str | tuple[str, ...], own: dict[str, str], check: Callable[[str, Any], None] | None = None
    ) -> None:
        self.groups, self.own = (groups,) if isinstance(groups, str) else groups, own
        self._check = check

    def __contains__(self, name: object) -> bool:
        return name in self.own or (isinstance(name, str) and self._point(name) is not None)

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        for group in self.groups:
            yield from (name for name in _added(group) if name not in self.own)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> Any:
        """The object. Raises KeyError for an unknown name, VadisError for a package's that can't be imported or used."""
        if name in self.own:
            return resolve(self.own[name])
        point = self._point(name)
        if point is None:
            raise KeyError(name)
        try:
            made = point.load()
            if self._check is not None:
                self._check(name, made)
        except Exception as error:  # whatever a stranger's module raises at its import
            reason = (str(error).splitlines() or [""])[0]
            raise VadisError(
                f"{name} of the package {_package(point)} can't be used ({type(error).__name__}: {reason:.150}): update or "
                "uninstall that package."
            ) from error
        return made

    def usable(self) -> Iterator[tuple[str, Any]]:
        """Names and objects; what a package brings and can't be imported is passed over with a warning."""
        for name in self:
            try:
                yield name, self[name]
            except VadisError as error:
                if name in self.own:
                    raise
                warnings.warn(str(error), stacklevel=2)

    def _point(self, name: str) -> EntryPoint | None:
        return next((_added(group)[name] for group in self.groups if name in _added(group)), None)
