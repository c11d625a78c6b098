"""Where a model that a user names is: a bundled name, a folder, or an id of the Hub, whose snapshot is fetched; and uploading."""

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from vadis.errors import ModelError
from vadis.places import HUB_ID, HubName, check_links, commit_of

log = logging.getLogger("vadis.hub")
"""Says which commit a model of the Hub is; the command line shows it."""


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    root = Path(__file__).parent / "models"
    return sorted(p.name for p in root.glob("*") if (p / "model_index.json").is_file() or (p / "config.json").is_file())


def find_folder(source: str | Path | HubName, **hub_options: Any) -> Path:
    """Where a model that the user named is on disk: a bundled name, a folder, or a Hub id (fetched when it isn't cached).

    A bundled name comes first; a Path is always a folder. Raises ModelError, also for links that leave the folder.
    """
    if isinstance(source, HubName):
        return fetch(source.id, **hub_options | {"revision": source.revision})
    if isinstance(source, str) and source in bundled_models():
        warn_of_namesake(source, "bundled model")
        return Path(__file__).parent / "models" / source
    path = Path(source)
    if path.is_dir():
        check_links(path)
        return path
    if path.is_file():
        raise ModelError(
            f"{path} is a file; a model is a folder. A published checkpoint: `vadis import KIND {path} FOLDER`."
        )
    name = str(source)
    if not HUB_ID.fullmatch(name):
        bundled = ", ".join(bundled_models()) or "none in this installation"
        raise ModelError(f"no model {name!r}: not a folder, a bundled model ({bundled}) or a Hub id (owner/name).")
    return fetch(name, **hub_options)


def warn_of_namesake(name: str, kind: str) -> None:
    """Warn where a folder lies here that has the name of something of ours, which is taken instead."""
    if Path(name).is_dir():
        warnings.warn(f"{name} is the {kind}; to load the folder of that name write ./{name}.", stacklevel=3)


def fetch(name: str, **hub_options: Any) -> Path:
    """The snapshot of a Hub id in the cache, downloaded when it isn't there; which commit it is goes to the log.

    Raises ModelError where it can't be had.
    """
    from huggingface_hub import snapshot_download

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        hub_options["local_files_only"] = True
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.npy", "*.npz", "*.md"]
        options: dict[str, Any] = {"allow_patterns": patterns} | hub_options
        folder = Path(snapshot_download(name, **options))
    except Exception as error:  # many kinds: no network, no such id, gated, not in the cache
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if hub_options.get("local_files_only"):
            reason = "it is not in the cache, and HF_HUB_OFFLINE forbids fetching it"
        raise ModelError(
            f"there is no folder {name} here, and vadis can't get {name} from the Hub ({reason}). Check the name and the network."
        ) from error
    log.info("%s of the Hub, revision %s", name, commit_of(folder))
    check_links(folder)
    return folder


def push(model: Any, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a component or pipeline (anything with `save_pretrained`) to the Hub; the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        model.save_pretrained(folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with vadis"))


__all__ = ["bundled_models", "fetch", "find_folder", "push"]
