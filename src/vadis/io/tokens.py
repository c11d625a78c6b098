"""Token files: tokens or latents of one clip with what is needed to decode them, as `.npz` without pickles."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from vadis.errors import FileError
from vadis.files import atomic_write
from vadis.io.arrays import Npz
from vadis.records import checked, parse_json

MAX_PAGE_BYTES = 1 << 20
MAX_FRAMES = 100_000_000


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class _Page:
    """What stands beside the tokens."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    representation: Annotated[str, Field(min_length=1, max_length=100)]
    fps: Annotated[float, Field(ge=0.1, le=10_000)]
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]


@dataclass(frozen=True)
class TokenFile:
    """Tokens of one clip and where they come from.

    tokens: `(S,)` or `(S, G)` integers, or latents `(S, C)`. model: what `vadis.load` takes. sha256: of the model's
    weights; tokens mean nothing to another model.
    """

    tokens: np.ndarray
    model: str
    sha256: str
    representation: str
    fps: float
    frames: int

    def save(self, path: str | Path) -> None:
        """Write the file, atomically."""
        page = {k: v for k, v in asdict(self).items() if k != "tokens"}
        with atomic_write(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, tokens=self.tokens, about=np.frombuffer(json.dumps(page).encode(), np.uint8))

    @classmethod
    def load(cls, path: str | Path) -> "TokenFile":
        """Read a file; raises FileError for any other file, and for tokens or facts that can't be."""
        path = Path(path)
        with Npz(path) as stored:
            if not {"tokens", "about"} <= set(stored.keys()):
                raise FileError(f"{path.name} is not a token file: make one with `vadis tokenize`.")
            tokens, about = stored["tokens"], stored["about"]
        where = f"{path.name}, array 'about'"
        if about.dtype != np.uint8 or about.ndim != 1 or about.size > MAX_PAGE_BYTES:
            raise FileError(f"{where} holds {about.dtype} {about.shape}; expected the bytes of a JSON page.")
        page = checked(_Page, parse_json(about.tobytes(), where), where)
        name = f"{path.name}, array 'tokens'"
        if tokens.dtype.kind not in "iuf" or tokens.ndim not in (1, 2) or not tokens.size:
            raise FileError(
                f"{name} holds {tokens.dtype} {tokens.shape}; expected tokens (S,) or (S, G), or latents (S, C)."
            )
        if tokens.dtype.kind == "f" and not np.isfinite(tokens).all():
            raise FileError(f"{name} holds NaN or infinite latents: make the file again with `vadis tokenize`.")
        return cls(tokens, **asdict(page))
