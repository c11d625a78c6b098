"""Looking at motions: the mannequin, pictures (`contact_sheet`), web pages (`write_page`) and the live viewer (`view`)."""

from importlib import import_module
from typing import Any

_LAZY = {
    "Mannequin": "vadis.body.mannequin",
    "build_mannequin": "vadis.body.mannequin",
    "contact_sheet": "vadis.viewer.sheet",
    "write_page": "vadis.viewer.page",
    "view": "vadis.viewer.live",
}
__all__ = [*_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vadis.viewer' has no attribute {name!r}")
