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
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vadis.component import build_config
from vadis.errors import FileError, ModelError, VadisError
from vadis.files import atomic_folder, atomic_write
from vadis.locks import only_run
from vadis.tokenizers.dsft import STREAMS, DSFTTokenizer, fps_of
from vadis.tokenizers.dsft_codec import ByteLevelBPE, Codec, IntegerBPE
from vadis.tokenizers.dsft_sequence import Encoded, from_tokenized, tokenized_page
from vadis.tokenizers.dsft_split import SplitSpec, split_for, split_of_sizes
from vadis.tokenizers.dsft_transform import DSFTConfig

VERSION = 1


def _page(tok: DSFTTokenizer) -> dict[str, Any]:
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


def _statistics_hash(tok: DSFTTokenizer) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in (tok.mean, tok.std, tok.reach))).hexdigest()


def digest(tok: DSFTTokenizer) -> str:
    """sha256 of everything that decides which tokens a clip gets."""
    page = {key: value for key, value in _page(tok).items() if key not in ("clips", "window")}
    return hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()


def save(tok: DSFTTokenizer, folder: str | Path) -> None:
    """Write the tokenizer; every file is whole or absent, config.json comes last."""
    folder = Path(folder)
    if folder.is_file():
        raise FileError(f"{folder} is a file: name a folder to save to.")
    if folder.exists():
        with only_run(folder):
            _write(tok, folder)
    else:
        with atomic_folder(folder) as temporary:
            _write(tok, temporary)


def _write(tok: DSFTTokenizer, folder: Path) -> None:
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


def load(folder: str | Path) -> DSFTTokenizer:
    """The tokenizer of a folder, ours or the original's. Raises FileError or ModelError for damaged ones."""
    folder = Path(folder)
    if not (folder / "dsft.json").is_file():
        if (folder / "base" / "fast_config.json").is_file():
            return from_original(folder)
        raise FileError(f"{folder} holds no DSFT tokenizer (neither dsft.json nor base/fast_config.json).")
    page = _read_page(folder / "dsft.json")
    known = DSFTConfig.__dataclass_fields__
    config = build_config(DSFTConfig, {k: v for k, v in page.items() if k in known}, str(folder / "dsft.json"))
    codecs = [_read_codec(folder, stream, page, config) for stream in STREAMS]
    mean, std, reach = _read_statistics(folder / "stats.npz") if page["statistics"] else (None, None, None)
    tok = DSFTTokenizer(config, (codecs[0], codecs[1]), mean, std, reach, page["clips"])
    if page["statistics"] and _statistics_hash(tok) != page["statistics"]:
        raise FileError(
            f"{folder / 'stats.npz'} is not the file that this tokenizer was saved with (its hash differs)."
        )
    return tok


def _read_page(path: Path) -> dict[str, Any]:
    from vadis.hub import read_json

    page = read_json(path)
    if page.get("format") != VERSION:
        raise ModelError(f"{path} has format {page.get('format')!r}; this vadis reads {VERSION}: update vadis.")
    needed = {"split", "K", "scale", "codec", "clips", "statistics", *STREAMS}
    if missing := sorted(needed - set(page)):
        raise FileError(f"{path} lacks {', '.join(missing)}: save or download the tokenizer again.")
    return page


def _read_codec(folder: Path, stream: str, page: Mapping[str, Any], config: DSFTConfig) -> Codec:
    try:
        facts = dict(page[stream])
        sha = str(facts["sha256"])
        bounds = [int(facts[k]) for k in ("low", "high", "row_width")] if config.codec == "integer" else []
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{folder / 'dsft.json'}: {stream} is damaged ({error}).") from error
    if config.codec == "integer":
        return IntegerBPE.load(folder / f"{stream}.merges.npz", bounds[0], bounds[1], bounds[2], sha)
    codec, facts = ByteLevelBPE.load(folder / stream)
    which = STREAMS.index(stream)
    said = {"scale": config.scale[which], "K": config.K[which], "action_dim": len(config.split.columns[which])}
    if facts != said or codec.digest != sha:
        raise FileError(f"{folder / stream} is not what this tokenizer was saved with: save or download it again.")
    return codec


def _read_statistics(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["mean"], file["std"], file["reach"]
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise FileError(f"can't read {path} ({str(error)[:120]}): save or download the tokenizer again.") from error


def from_original(
    folder: str | Path,
    representation: str | None = None,
    split: SplitSpec | str | None = None,
    fps: float | None = None,
    mean: Any = None,
    std: Any = None,
) -> DSFTTokenizer:
    """The original's folder of `base/` and `phys/`.

    The widths of the streams tell the representation (vimogen276, hml263, ms272) unless it is given; HumanML3D gets the
    meaningful split, `split="upstream_shifted"` that of the published script. With `mean` and `std` features are z-scored
    first; the released code does not. Raises FileError for damaged folders, ShapeError for widths that fit no split.
    """
    folder = Path(folder)
    (base, about), (phys, about_phys) = (ByteLevelBPE.load(folder / stream) for stream in STREAMS)
    widths = about["action_dim"], about_phys["action_dim"]
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
        "representation": representation, "split": chosen, "K": (about["K"], about_phys["K"]),
        "scale": (about["scale"], about_phys["scale"]), "codec": "bytelevel",
        "normalize": "none" if mean is None else "zscore", "fps": fps or fps_of(representation),
    }  # fmt: skip
    return DSFTTokenizer(build_config(DSFTConfig, fields), (base, phys), mean, std)


# ---- tokenised clips


def save_tokens(path: str | Path, encoded: Encoded, tok: DSFTTokenizer) -> None:
    """Write the tokens of one clip as .npz, with the tokenizer's hash."""
    with atomic_write(path) as temporary:
        np.savez(temporary, **tokenized_page(encoded, tok.hash))


def load_tokens(path: str | Path, tok: DSFTTokenizer | None = None) -> Encoded:
    """The tokens in a .npz file of ours or a .pt file of the original.

    Raises FileError for damaged files, VadisError when the file names another tokenizer than `tok`.
    """
    path = Path(path)
    try:
        if path.suffix == ".pt":
            import torch

            page = torch.load(path, map_location="cpu", weights_only=True)
            page = {key: np.asarray(value) for key, value in page.items()}
        else:
            with np.load(path, allow_pickle=False) as file:
                page = {key: file[key] for key in file.files}
        return from_tokenized(page, tok.hash if tok else None)
    except VadisError:
        raise
    except Exception as error:  # torch and numpy raise many kinds for damaged files
        raise FileError(f"can't read {path} as a tokenised clip ({str(error)[:120]}).") from error
