"""`vadis.load`: which class a folder is of, and the parts of a bundle.

Loading is strict and runs no code from the folder, whose layout is told in `vadis.component_files`. Published checkpoints
come in through `vadis.importing`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vadis.component import MotionTokenizer, Part
from vadis.component_files import read_component, read_page
from vadis.devices import pick_device
from vadis.errors import FileError, ModelError, about
from vadis.hub import find_folder
from vadis.places import HubName, check_links, relative_name
from vadis.plugins import Table
from vadis.records import checked, read_json


def _check_component(name: str, found: Any) -> None:
    if not (isinstance(found, type) and issubclass(found, Part)):
        raise ModelError(f"{found!r:.60} is not a subclass of vadis.component.Part")


COMPONENTS = Table(
    ("vadis.tokenizers", "vadis.generators", "vadis.evaluators"),
    {
        "causal_tae": "vadis.tokenizers.causal_tae:CausalTAE",
        "dsft": "vadis.tokenizers.dsft.tokenizer:DSFTTokenizer",
        "fsq": "vadis.tokenizers.fsq:FSQTokenizer",
        "lfq1d": "vadis.tokenizers.lfq:LFQTokenizer",
        "lfq2d": "vadis.tokenizers.lfq2d:LFQ2DTokenizer",
        "vq": "vadis.tokenizers.vqvae:VQTokenizer",
        "rvq": "vadis.tokenizers.rvqvae:RVQTokenizer",
        "mg_vq": "vadis.tokenizers.mg_vqvae:MGVQTokenizer",
        "motionmillion": "vadis.generators.motionmillion:MotionMillion",
        "t2mgpt": "vadis.generators.t2mgpt:T2MGPT",
        "motionstreamer": "vadis.generators.motionstreamer:MotionStreamer",
        "kinematic_planner": "vadis.generators.planner:KinematicPlanner",
        "nrdf": "vadis.evaluators.nrdf:PoseField",
        "tmr": "vadis.evaluators.tmr:TMREvaluator",
        "guo": "vadis.evaluators.guo:GuoEvaluator",
    },
    _check_component,
)
"""`type` in config.json → class. A new family is a line here, or an entry point of its own package."""
BUNDLES = Table(
    "vadis.pipelines",
    {
        "TextToMotionPipeline": "vadis.pipelines.text_to_motion:TextToMotionPipeline",
        "MotionStreamPipeline": "vadis.pipelines.stream:MotionStreamPipeline",
        "MotionVLAPipeline": "vadis.pipelines.motionvla:MotionVLAPipeline",
        "MotionLanguagePipeline": "vadis.pipelines.motion_language:MotionLanguagePipeline",
    },
)
"""`_class_name` in model_index.json → class of pipeline."""


def component_classes() -> dict[str, type]:
    """Every class of COMPONENTS by its `type`; imports their modules."""
    return dict(COMPONENTS.usable())


def load(
    source: str | Path | HubName,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    allow_download: bool = False,
    **overrides: Any,
) -> Any:
    """The component or pipeline at a folder, bundled name or Hub id, in eval mode.

    A bundled name stands for the bundled model even where a folder of that name lies; write `./name` or give a Path for
    the folder. `allow_download` fetches what a file inside the folder names on the Hub (a text encoder, a backbone).

    `dtype` ("bf16", "fp16", "fp32") applies to generators; tokenizers and rotary tables stay float32. `device`: "cpu",
    "cuda", "auto". `overrides` go to a pipeline's `from_pretrained` (e.g. `text_encoder=`). A path that exists is never
    looked up on the Hub. Raises ModelError or FileError.
    """
    folder = find_folder(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    if (folder / "model_index.json").is_file() and not (folder / "mm_config.json").is_file():
        options = {"dtype": dtype, "device": device, "allow_download": allow_download}
        return pipeline_class(folder).from_pretrained(folder, **options, **overrides)
    if overrides:
        raise ModelError(f"{folder} is a single component, which takes no {', '.join(overrides)}: leave it out.")
    return load_component(folder, dtype=dtype, device=device, strict=strict)


def pipeline_class(folder: Path) -> Any:
    """The class of the pipeline whose bundle a folder is. Raises ModelError for one that vadis doesn't know."""
    name = read_json(folder / "model_index.json").get("_class_name")
    if not isinstance(name, str) or name not in BUNDLES:
        raise ModelError(
            f"{folder} is a {name!r:.60}; vadis knows {', '.join(BUNDLES)}. See `vadis import` for other layouts."
        )
    return BUNDLES[name]


def load_component(
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
) -> Any:
    """The component in a folder on disk; see `load`."""
    folder = Path(folder)
    check_links(folder)
    with about(folder):
        return _load_component(folder, dtype, pick_device(device), strict)


def _load_component(folder: Path, dtype: str | torch.dtype | None, target: torch.device, strict: bool) -> Any:
    kind = read_page(folder).get("type")
    if not isinstance(kind, str) or kind not in COMPONENTS:
        raise ModelError(f"{folder} has the type {kind!r:.60}; this vadis knows {', '.join(sorted(COMPONENTS))}.")
    return read_component(COMPONENTS[kind], folder, dtype, target, strict)


_Part = tuple[str, str] | dict[str, str | None] | None
"""What a bundle's index may say of a part: [library, class], {"hub": id…}, nothing."""


def load_bundle(
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """The parts of a bundle by name: components loaded, other entries ({"hub": id}, pairs of other libraries, None) as written.

    A part given in `overrides` is taken instead and not read. A planner stays on the CPU, like the text encoder that it reads.
    """
    folder = Path(folder)
    check_links(folder)
    path = folder / "model_index.json"
    parts: dict[str, Any] = {}
    for name, entry in read_json(path).items():
        if name.startswith("_"):
            continue
        try:
            checked(_Part, entry, path)
        except FileError:
            raise ModelError(
                f'{path}: {name:.60} is {entry!r:.60}; expected [library, class], {{"hub": id}} or null.'
            ) from None
        if name in overrides:
            parts[name] = overrides[name]
        elif isinstance(entry, list) and entry[0] == "vadis":
            where = "cpu" if name == "planner" else device
            with about(path):
                place = folder / relative_name(name)
            parts[name] = load_component(place, dtype=dtype, device=where)
            if type(parts[name]).__name__ != entry[1]:
                raise ModelError(f"{path}: {name} is a {type(parts[name]).__name__}, not a {entry[1]}.")
        else:
            parts[name] = entry
    return parts | {name: part for name, part in overrides.items() if name not in parts}


def check_parts(
    folder: Path, parts: Mapping[str, Any], given: Mapping[str, Any], generators: type, continuous: bool
) -> None:
    """Raise ModelError unless a bundle has a tokenizer and a generator of this class, and no planner of another kind.

    `continuous`: the tokenizer makes latents. Parts that the caller has `given` are taken as they are.
    """
    path = folder / "model_index.json"
    for kind in ("tokenizer", "generator", "planner"):
        part = parts.get(kind)
        if kind in given or (kind == "planner" and part is None):
            continue
        if getattr(part, "kind", None) != kind:
            found = (
                "missing" if part is None else f"{part!r:.60}" if isinstance(part, list | dict) else type(part).__name__
            )
            raise ModelError(f'{path}: {kind} is {found}; expected ["vadis", CLASS] of a {kind}.')
    tokenizer, generator = parts["tokenizer"], parts["generator"]
    if "generator" not in given and not isinstance(generator, generators):
        raise ModelError(
            f"{path}: the generator is a {type(generator).__name__}, which this kind of pipeline can't use."
        )
    if "tokenizer" not in given and not (isinstance(tokenizer, MotionTokenizer) and tokenizer.continuous == continuous):
        raise ModelError(f"{path}: the tokenizer is a {type(tokenizer).__name__}, which this generator can't use.")


__all__ = ["load", "load_bundle", "load_component"]
