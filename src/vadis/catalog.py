"""The models that come with the package, as a list: what `vadis.models()` and `vadis models` say. Needs no torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from vadis.records import read_json

FOLDER = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ModelRow:
    """One bundled model."""

    name: str
    kind: str
    """Class of the pipeline, or type of the component."""
    megabytes: float
    licence: str
    summary: str
    """The first sentence of its card."""

    def __str__(self) -> str:
        return f"{self.name}: {self.summary} ({self.kind}, {self.megabytes:.0f} MB, {self.licence})"


def models() -> list[ModelRow]:
    """The bundled models; `vadis.load(name)` loads one."""
    return [_row(folder) for folder in sorted(FOLDER.iterdir()) if (folder / "README.md").is_file()]


def _row(folder: Path) -> ModelRow:
    index = folder / "model_index.json"
    page = read_json(index if index.is_file() else folder / "config.json")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    card = (folder / "README.md").read_text(encoding="utf-8")
    licence = re.search(r"^license:\s*(\S+)", card, re.MULTILINE)
    first = card.partition(f"# {folder.name}\n")[2].strip().partition("\n\n")[0]
    return ModelRow(
        folder.name,
        str(page.get("_class_name") or page.get("type")),
        size / 1e6,
        licence[1] if licence else "not stated",
        re.split(r"[.:](?: |$)", " ".join(first.split()), maxsplit=1)[0],
    )
