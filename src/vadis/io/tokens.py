"""Token files: tokens or latents of one clip with what is needed to decode them, as `.npz` without pickles."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vadis.errors import FileError
from vadis.files import atomic_write


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
        """Read a file; raises FileError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                about: dict[str, Any] = json.loads(bytes(stored["about"]))
                return cls(tokens=stored["tokens"], **about)
        except OSError as error:
            raise FileError(f"can't read {path}: {error.strerror or error}.") from error
        except Exception as error:  # a damaged archive fails in many ways
            raise FileError(f"{path} is no token file ({str(error)[:100]}): make one with `vadis tokenize`.") from error
