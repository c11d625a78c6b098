"""Protocols: what is measured on what, written down. A protocol is a small YAML file in `protocols/`, or one of your own.

Two numbers compare only when protocol, evaluator and data are the same; a report carries all three.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from vadis.config import build_config
from vadis.errors import FileError, ModelError, VadisError
from vadis.plugins import Table
from vadis.records import read_yaml

FOLDER = Path(__file__).parent / "protocols"
Task = Literal["text", "reconstruction", "prompts", "stream"]
SET_METRICS = ("fid", "retrieval", "diversity", "multimodality", "errors", "codebook", "seams", "obeyed")
"""Groups of figures of a whole set of motions, its tokens or its seams."""
CLIP_METRICS = Table(
    "vadis.metrics",
    {
        "physical": "vadis.evaluation.clip_metrics:PHYSICAL",
        "ground": "vadis.evaluation.clip_metrics:GROUND",
        "mbench": "vadis.evaluation.clip_metrics:MBENCH",
    },
)
"""Groups of figures of single clips → `ClipMetrics`. A new one is a line here, or an entry point of its own package."""
PROTOCOLS = Table("vadis.protocols", {})
"""Protocols of other packages: a `Protocol`, or the path of a YAML file. Those of vadis lie in `protocols/`."""


Frames = Annotated[int, Field(ge=4, le=1_000_000)]
Several = Annotated[int, Field(ge=2, le=100_000)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Protocol:
    """One way to evaluate. The defaults are those of MotionStreamer's evaluation on 272 features."""

    name: str
    title: str = ""
    """What it is, in a line."""
    task: Task = "text"
    """text: a motion for each caption; reconstruction: encode and decode; prompts: a file of prompts, no reference motion;
    stream: two captions in a row."""
    prompts: str | None = None
    """For prompts: a file beside the protocols of vadis that is taken when no data is given."""
    representation: str = "ms272"
    items: Literal["spans", "clips"] = "spans"
    """Captioned parts count as items of their own, or whole clips only."""
    long: Literal["drop", "cut"] = "drop"
    """Items above `max_frames` are dropped, or cut into equal parts."""
    min_frames: Frames = 60
    max_frames: Frames = 299
    caption: Literal["random", "first"] = "random"
    unit: int = Field(default=4, ge=1, le=1_000_000)
    """Lengths are cut to a multiple of this."""
    shorten: float = Field(default=1 / 3, ge=0, le=1)
    """Chance that a further unit is taken off."""
    length: Literal["reference", "own"] = "reference"
    """Predictions of another length are cut or held to the length asked for, or measured as they are."""
    text: Literal["plain", "tokens"] = "plain"
    """What the evaluator reads: the sentence, or its `word/POS` tokens where the data has them."""
    pool: Several = 32
    repeats: int = Field(default=20, ge=1, le=10_000)
    """Seeds; figures are means over them, with mean ± 1.96 sd / √repeats."""
    metrics: tuple[str, ...] = ("fid", "retrieval", "diversity", "physical", "ground")
    physical: Literal["compat", "native"] = "compat"
    evaluator: str | None = "vadis-mini-evaluator"
    """Used when none is named; null: one must be named."""
    seam_seconds: float = Field(default=1.0, gt=0, le=3600)
    """Length of the window around a seam."""
    multimodal_prompts: Several = 100
    multimodal_motions: Several = 30
    joints_fps: float = Field(default=20.0, ge=1, le=10_000)
    """Frame rate of predictions that are joint positions (prompts only)."""
    note: str = ""
    """What a reader must know before comparing the figures."""

    def __post_init__(self) -> None:
        if self.max_frames < self.min_frames:
            raise ValueError(f"max_frames {self.max_frames} is below min_frames {self.min_frames}")
        if self.prompts is not None and self.prompts not in {path.name for path in FOLDER.glob("*.json")}:
            raise ValueError(f"there is no file of prompts {self.prompts!r:.60} beside the protocols of vadis")
        known = (*SET_METRICS, *CLIP_METRICS)
        if unknown := [name for name in self.metrics if name not in known]:
            raise ValueError(f"there are no metrics {unknown[0]!r:.60}; known are {', '.join(known)}")


def protocol_names() -> list[str]:
    """Names of the protocols that come with vadis and with other packages."""
    return sorted({*(path.stem for path in FOLDER.glob("*.yaml")), *PROTOCOLS})


def load_protocol(source: str | Path | Protocol, **changes: Any) -> Protocol:
    """A protocol by name or from a YAML file, with some fields changed.

    Raises VadisError for an unknown name, FileError or ModelError for a file with wrong fields.
    """
    own = FOLDER / f"{source}.yaml"
    if isinstance(source, str) and not own.is_file() and source in PROTOCOLS:
        source = PROTOCOLS[source]
    if isinstance(source, Protocol):
        fields, where = asdict(source), ""
    else:
        path = own if "/" not in str(source) and own.is_file() else Path(source)
        if not path.is_file():
            raise VadisError(
                f"no protocol {str(source)!r}: use {', '.join(protocol_names())}, or the path of a YAML file."
            )
        fields, where = {"name": path.stem} | read_yaml(path), f"{path}, "
        if wrong := [key for key in fields if not isinstance(key, str)]:
            raise FileError(f"{path}: {wrong[0]!r:.40} is not a field of a protocol.")
    where += f"protocol {fields['name']!s:.60}"
    if flag := next((key for key, value in (fields | changes).items() if isinstance(value, bool)), None):
        raise ModelError(f"{where}: {flag}: expected another value than true or false.")
    return build_config(Protocol, fields | changes, where)
