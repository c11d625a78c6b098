"""vadis: one toolkit for large human-motion models. Names are imported when first used, so `import vadis` is instant."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Motion": "vadis.motion",
    "Skeleton": "vadis.skeleton",
    "load_motion": "vadis.io",
    "save_motion": "vadis.io",
    "retarget": "vadis.retargeting",
    "representation": "vadis.representations",
    "load": "vadis.loading",
    "models": "vadis.catalog",
    "import_checkpoint": "vadis.importing",
    "evaluate": "vadis.evaluation.evaluate",
    "VadisError": "vadis.errors",
}
__all__ = ["__version__", *_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vadis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
