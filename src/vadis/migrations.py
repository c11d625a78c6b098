"""Names that folders of earlier versions use, and what they are called today; one table a file."""

from collections.abc import Mapping
from typing import Any

from vadis.errors import ModelError

GENERATION_FIELDS = {"guidance": "guidance_scale"}
"""`generation_config.json`: MotionVLA's pipeline up to 0.1.0 had a name of its own for the guidance scale."""


def renamed(page: Mapping[str, Any], names: Mapping[str, str], where: object) -> dict[str, Any]:
    """`page` with today's names. Raises ModelError where it has a field under both."""
    made: dict[str, Any] = {}
    for name, value in page.items():
        today = names.get(name, name)
        if today != name and today in page:
            raise ModelError(f"{where}: {name} and {today} are the same setting: keep {today}.")
        made[today] = value
    return made
