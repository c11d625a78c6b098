"""Saving and loading DSFT tokenizers: our folder, and the original's.

    folder/config.json         {"vadis": "1", "kind": "tokenizer", "type": "dsft", "representation", "fps"}
    folder/dsft.json           the whole configuration, alphabets, sizes, clips used, hashes
    folder/base.merges.npz     (n, 2) int32, and phys.merges.npz; with codec "bytelevel" the folders base/ and phys/ instead
    folder/stats.npz           mean, std and reach (D,), where the tokenizer has them

The original's folder is base/ and phys/, each with tokenizer.json, tokenizer_config.json and fast_config.json; it says neither
representation nor frame rate. Loading checks sizes and hashes and runs no code from the folder.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from vadis.config import build_config
from vadis.errors import FileError, ModelError, about
from vadis.files import atomic_folder, atomic_write, free_folder
from vadis.io.arrays import Npz
from vadis.locks import only_run
from vadis.records import checked, read_json
from vadis.sizes import Codes, Name
from vadis.tokenizers.dsft.codec import ByteLevelBPE, Codec, IntegerBPE
from vadis.tokenizers.dsft.sequence import STREAMS, Encoded, from_tokenized, tokenized_page
from vadis.tokenizers.dsft.split import SplitSpec, split_for, split_of_sizes
from vadis.tokenizers.dsft.transform import DSFTConfig, fps_of, whole_frames
from vadis.torch_files import read_torch

VERSION = 1
MAX_ARRAY = 256 << 20
"""Bytes of an array."""


def _page(tok: Any) -> dict[str, Any]:
    """What dsft.json says, hashes included."""
    page: dict[str, Any] = {"format": VERSION, **asdict(tok.config)}
    for stream, codec in zip(STREAMS, tok.codecs, strict=True):
        facts: dict[str, Any] = {"vocab_size": codec.vocab_size, "sha256": codec.digest}
        if isinstance(codec, IntegerBPE):
            facts |= {"low": codec.low, "high": codec.high, "row_width": codec.row_width}
        page[stream] = facts
    page["statistics"] = _statistics_hash(tok) if tok.has_statistics else None
    page["clips"] = tok.clips
    return page


def _statistics_hash(tok: Any) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in (tok.mean, tok.std, tok.reach))).hexdigest()


def digest(tok: Any) -> str:
    """sha256 of everything that decides which tokens a clip gets."""
    page = {key: value for key, value in _page(tok).items() if key not in ("clips", "window")}
    return hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()


def save(tok: Any, folder: str | Path) -> None:
    """Write the tokenizer; every file is whole or absent, config.json comes last."""
    folder = Path(folder)
    if folder.is_file():
        raise FileError(f"{folder} is a file: name a folder to save to.")
    free_folder(folder, "config.json")
    if folder.exists():
        with only_run(folder):
            _write(tok, folder)
    else:
        with atomic_folder(folder) as temporary:
            _write(tok, temporary)


def _write(tok: Any, folder: Path) -> None:
    for stream, codec, K, scale, columns in zip(
        STREAMS, tok.codecs, tok.config.K, tok.config.scale, tok.config.split.columns, strict=True
    ):
        if isinstance(codec, IntegerBPE):
            codec.save(folder / f"{stream}.merges.npz")
        else:
            codec.save(folder / stream, scale, K, len(columns))
    if tok.has_statistics:
        with atomic_write(folder / "stats.npz") as temporary:
            np.savez(temporary, mean=tok.mean.numpy(), std=tok.std.numpy(), reach=tok.reach.numpy())
    kind = {"vadis": "1", "kind": "tokenizer", "type": "dsft", "representation": tok.representation, "fps": tok.fps}
    for name, page in (("dsft.json", _page(tok)), ("config.json", kind)):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")


def load(folder: str | Path, make: Callable[..., Any]) -> Any:
    """The tokenizer of a folder, ours or the original's; `make` is the class DSFTTokenizer. Raises FileError or ModelError for damaged ones."""
    folder = Path(folder)
    if not (folder / "dsft.json").is_file():
        if (folder / "base" / "fast_config.json").is_file():
            return read_original(folder, make)
        raise FileError(f"{folder} holds no DSFT tokenizer (neither dsft.json nor base/fast_config.json).")
    path = folder / "dsft.json"
    page = _read_page(path)
    known = DSFTConfig.__dataclass_fields__
    config = checked(DSFTConfig, {k: v for k, v in page.items() if k in known}, path, ModelError)
    facts = checked(_Facts, {k: v for k, v in page.items() if k not in known}, path)
    with about(folder):
        codecs = [_read_codec(folder, stream, getattr(facts, stream), config) for stream in STREAMS]
        mean, std, reach = _read_statistics(folder / "stats.npz") if facts.statistics else (None, None, None)
        tok = make(config, (codecs[0], codecs[1]), mean, std, reach, facts.clips)
    if facts.statistics and _statistics_hash(tok) != facts.statistics:
        raise FileError(
            f"{folder / 'stats.npz'} is not the file that this tokenizer was saved with (its hash differs)."
        )
    return tok


def _read_page(path: Path) -> dict[str, Any]:
    page = read_json(path)
    if page.get("format") != VERSION:
        raise ModelError(f"{path} has format {page.get('format')!r:.60}; this vadis reads {VERSION}: update vadis.")
    needed = {"split", "K", "scale", "codec", "clips", "statistics", *STREAMS}
    if missing := sorted(needed - set(page)):
        raise FileError(f"{path} lacks {', '.join(missing)}: save or download the tokenizer again.")
    return page


_Edge = Annotated[int, Field(ge=-(2**31), lt=2**31)]


@dataclass(frozen=True)
class _Stream:
    """What dsft.json says of the codec of a stream; low, high and row_width with codec "integer" only."""

    vocab_size: Codes
    sha256: Name
    low: _Edge = 0
    high: _Edge = 0
    row_width: Annotated[int, Field(ge=0, le=1_000_000)] = 0


@dataclass(frozen=True)
class _Facts:
    """What dsft.json says beside the configuration."""

    format: int
    base: _Stream
    phys: _Stream
    statistics: Name | None
    clips: Annotated[int, Field(ge=0, lt=2**53)]


def _read_codec(folder: Path, stream: str, facts: _Stream, config: DSFTConfig) -> Codec:
    if config.codec == "integer":
        path = folder / f"{stream}.merges.npz"
        codec = IntegerBPE.load(path, facts.low, facts.high, facts.row_width, facts.sha256)
        if codec.vocab_size != facts.vocab_size:
            raise FileError(f"{path} makes {codec.vocab_size} ids; dsft.json says {facts.vocab_size}.")
        return codec
    codec, said = ByteLevelBPE.load(folder / stream)
    which = STREAMS.index(stream)
    mine = {"scale": config.scale[which], "K": config.K[which], "action_dim": len(config.split.columns[which])}
    if said != mine or codec.digest != facts.sha256:
        raise FileError(f"{folder / stream} is not what this tokenizer was saved with: save or download it again.")
    return codec


def _read_statistics(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with Npz(path, MAX_ARRAY) as file:
        found = [file.numbers(name) for name in ("mean", "std", "reach")]
    if any(array is None for array in found):
        raise FileError(f"{path} must hold mean, std and reach: save or download the tokenizer again.")
    mean, std, reach = (array.astype(np.float32) for array in found if array is not None)
    return mean, std, reach


def read_original(
    folder: str | Path,
    make: Callable[..., Any],
    representation: str | None = None,
    split: SplitSpec | str | None = None,
    fps: float | None = None,
    mean: Any = None,
    std: Any = None,
) -> Any:
    """The original's folder of `base/` and `phys/`.

    The widths of the streams tell the representation (vimogen276, hml263, ms272) unless it is given; HumanML3D gets the
    meaningful split, `split="upstream_shifted"` that of the published script. With `mean` and `std` features are z-scored
    first; the released code does not. Raises FileError for damaged folders, ShapeError for widths that fit no split.
    """
    folder = Path(folder)
    (base, about_base), (phys, about_phys) = (ByteLevelBPE.load(folder / stream) for stream in STREAMS)
    widths = about_base["action_dim"], about_phys["action_dim"]
    if split is None and representation is None:
        chosen = split_of_sizes(*widths)
        representation = chosen.name
    else:
        representation = representation or "hml263"
        chosen = split_for(representation, split)
    if tuple(len(columns) for columns in chosen.columns) != widths:
        raise ModelError(f"{folder} has streams of {widths[0]} and {widths[1]} columns; they don't fit {chosen.name}.")
    if (mean is None) != (std is None):
        raise ModelError("give both mean and std, or neither.")
    fields: dict[str, Any] = {
        "representation": representation, "split": chosen, "K": (about_base["K"], about_phys["K"]),
        "scale": (about_base["scale"], about_phys["scale"]), "codec": "bytelevel",
        "normalize": "none" if mean is None else "zscore", "fps": fps or fps_of(representation),
    }  # fmt: skip
    with about(folder):
        return make(build_config(DSFTConfig, fields), (base, phys), mean, std)


# ---- tokenised clips


def save_tokens(path: str | Path, encoded: Encoded, tok: Any) -> None:
    """Write the tokens of one clip as .npz, with the tokenizer's hash."""
    with atomic_write(path) as temporary:
        np.savez(temporary, **tokenized_page(encoded, tok.hash))


def load_tokens(path: str | Path, tok: Any | None = None) -> Encoded:
    """The tokens in a .npz file of ours or a .pt file of the original.

    Raises FileError for damaged files, VadisError when the file names another tokenizer than `tok`.
    """
    path = Path(path)
    with about(f"can't read {path} as a tokenised clip"):
        return from_tokenized(_read_clip(path), tok.hash if tok else None)


def _read_clip(path: Path) -> dict[str, Any]:
    """What a file holds of a tokenised clip, each value of its type."""
    if path.suffix == ".pt":
        stored = read_torch(path)
    else:
        with Npz(path, MAX_ARRAY) as file:
            stored = {key: file[key] for key in file.keys()}  # noqa: SIM118 - not a dict
    if not isinstance(stored, dict):
        raise FileError(f"expected a dictionary, not a {type(stored).__name__}.")
    page: dict[str, Any] = {"tokenizer": _text(stored.get("tokenizer"))}
    for key in ("T", "seq", "base_len", "phys_len"):
        page[key] = _whole_numbers(stored.get(key), row=key == "seq", where=key)
    whole_frames(page["T"])
    return page


def _text(value: Any) -> str | None:
    return None if value is None else str(value.item() if isinstance(value, np.ndarray) and value.size == 1 else value)


def _whole_numbers(value: Any, *, row: bool, where: str) -> Any:
    """A row of whole numbers as int64, or one alone as int; raises FileError for anything else."""
    plain = isinstance(value, int | list | np.ndarray | Tensor)
    if isinstance(value, list) and not all(type(n) is int and abs(n) < 2**62 for n in value):
        plain = False
    array = np.asarray(value) if plain and not isinstance(value, bool) else None
    if array is None or not (array.dtype.kind in "iu" or (row and array.size == 0)) or array.ndim != (1 if row else 0):
        raise FileError(f"{where} must be {'a row of whole numbers' if row else 'one whole number'}.")
    return array.astype(np.int64) if row else int(array)
