"""Readers of models: component folders of every family, bundles, language models, checkpoints, and what lies beside them."""

import itertools
import json
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import peft  # noqa: F401 - here and not in every worker
import torch
import transformers  # noqa: F401

import vadis
from fuzzing.data import small_corpus
from fuzzing.motions import walk
from fuzzing.parts import (
    TOKENIZERS,
    features,
    language_model,
    small_dsft,
    small_evaluator,
    small_generator,
    small_planner,
    small_tokenizer,
    words,
)
from fuzzing.run import Reader
from fuzzing.values import Made
from vadis import component_files
from vadis.checkpoint import read_state_dict
from vadis.evaluators.guo_words import read_vocabulary
from vadis.evaluators.nrdf import PoseField, PoseFieldConfig
from vadis.inspect.files import describe
from vadis.pipelines.motion_language import MotionLanguageConfig, MotionLanguagePipeline
from vadis.pipelines.stream import MotionStreamPipeline, StreamConfig
from vadis.pipelines.text_to_motion import GenerationConfig, TextToMotionPipeline
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.tokenizers.dsft.files import load_tokens, save_tokens

PROMPT = "a person walks"


# ---- components


def _components() -> dict[str, Any]:
    found: dict[str, Any] = {name.replace(" ", "-"): small_tokenizer(name) for name in TOKENIZERS}
    found |= {name: small_generator(name) for name in ("motionmillion", "t2mgpt", "motionstreamer")}
    found |= {"planner": small_planner(), "tmr": small_evaluator("tmr"), "guo": small_evaluator("guo")}
    return found | {"nrdf": PoseField(PoseFieldConfig(widths=(16, 8))).eval()}


def _make_components(root: Path) -> None:
    for name, component in _components().items():
        component.save_pretrained(root / name)


def _make_sharded(root: Path) -> None:
    usual, component_files.SHARD_BYTES = component_files.SHARD_BYTES, 40_000
    try:
        small_generator("t2mgpt").save_pretrained(root / "t2mgpt")
        small_tokenizer("fsq").save_pretrained(root / "fsq")
    finally:
        component_files.SHARD_BYTES = usual


def _read_component(folder: Path) -> Any:
    component = vadis.load(folder)
    return {"model": component, "config": component.config, "made": Made(_use(component))}


def _use(component: Any) -> Any:
    """What a component makes of small inputs that fit it."""
    c = component.config
    if component.kind == "tokenizer":
        width = getattr(c, "feature_dim", 272)
        return component.decode(component.encode(features(32) if width == 272 else torch.zeros(32, width)))
    if c.type in ("motionmillion", "t2mgpt"):
        plan = {"plan": torch.zeros(1, c.plan_tokens, c.plan_dim)} if c.plan_dim else {}
        text = torch.ones(1, c.clip_dim) if c.type == "t2mgpt" else torch.ones(1, 3, c.clip_dim)
        return component.generate(text, seed=0, max_tokens=3, **plan)
    if c.type == "motionstreamer":
        return component.generate(torch.ones(1, c.text_dim), num_latents=2, seed=0, guidance_scale=1.0)
    if c.type == "kinematic_planner":
        return component.plan(torch.ones(1, 3, c.text_dim), torch.tensor([3]), torch.tensor([2.0]))
    if c.type == "nrdf":
        return component.pose_quality(walk(3).rotations)
    rep = component.representation
    clip = rep.encode(walk(60).resample(rep.fps))
    return component.embed_motion([clip[: max(component.min_frames, 24)]])


# ---- bundles


def _make_pipelines(root: Path) -> None:
    settings = GenerationConfig(seconds=1.0, samples=2, guidance_scale=2.0, max_seconds=2.0)
    parts = {
        "tokenizer": small_tokenizer("fsq groups"),
        "generator": small_generator("motionmillion"),
        "planner": small_planner(),
    }
    TextToMotionPipeline(**parts, text_encoder=words(), config=settings).save_pretrained(root / "text")
    stream = StreamConfig(steps=2, min_latents=2, text_encoder="minilm")
    MotionStreamPipeline(
        small_tokenizer("causal_tae"), small_generator("motionstreamer"), text_encoder=words(), config=stream
    ).save_pretrained(root / "stream")


def _read_pipeline(folder: Path) -> Any:
    pipe = vadis.load(folder, text_encoder=words())
    out = pipe(PROMPT, seconds=1.0, seed=0)
    return {"config": pipe.config, "motion": out.motion, "features": out.features, "tokens": out.tokens}


def _make_language_pipelines(root: Path) -> None:
    tokenizer = small_tokenizer("vq")
    for name, form in (("whole", "full"), ("delta", "delta")):
        tokenizer.save_pretrained(root / "parts" / name / "tokenizer")
        language_model(root / "parts" / name / "lm", form)
        parts = (root / "parts" / name / "lm", root / "parts" / name / "tokenizer")
        MotionLanguagePipeline.assemble(root / name, *parts, MotionLanguageConfig(seconds=1.0, max_seconds=2.0))
    shutil.rmtree(root / "parts")


def _read_language_pipeline(folder: Path) -> Any:
    pipe = vadis.load(folder)
    out = pipe(PROMPT, seconds=0.5, seed=0)
    return {"config": pipe.config, "motion": out.motion, "features": out.features}


def _make_scene_pipeline(root: Path) -> None:
    from vadis.language.backbones import load_backbone
    from vadis.language.vla.model import MotionVLA
    from vadis.pipelines.motionvla import MotionVLAPipeline

    MotionVLAPipeline(MotionVLA.build(*load_backbone("tiny-qwen3_5-vision"), small_dsft("vimogen276"))).save_pretrained(
        root / "scene"
    )


def _read_scene_pipeline(folder: Path) -> Any:
    pipe = vadis.load(folder)

    def start() -> Any:  # a whole motion takes seconds
        prompt = pipe.vla.prompt("walk", image=np.zeros((32, 32, 3), np.uint8))
        return next(itertools.islice(pipe.vla.stream([prompt], 4, seed=0), 5, None))

    return {"config": pipe.config, "ids": Made.by(start)}


def _make_language_models(root: Path) -> None:
    for form in ("full", "adapter", "delta"):
        language_model(root / form, form)


def _read_language_model(folder: Path) -> Any:
    from vadis.language.checkpoints import load_language_model

    model, text, vocabulary = load_language_model(folder)
    ids = torch.tensor([[*text(PROMPT)["input_ids"], int(vocabulary.new_ids()[0])]])
    with torch.no_grad():
        return {"logits": Made(model(input_ids=ids).logits), "layout": vocabulary.layout, "facts": vocabulary.tokenizer}


# ---- DSFT, words, text encoders, images


def _make_dsft(root: Path) -> None:
    small_dsft().save_pretrained(root / "integer")
    noise = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 272, generator=noise).cumsum(0) / 5 for n in (40, 60)]
    DSFTTokenizer.fit(clips, "ms272", vocab=(600, 600), codec="bytelevel").save_pretrained(root / "bytes")
    for name in ("integer", "bytes"):
        tokenizer = vadis.load(root / name)
        save_tokens(root / name / "clip.npz", tokenizer.encode(features(32)), tokenizer)


def _read_dsft(folder: Path) -> Any:
    tokenizer = vadis.load(folder)
    encoded = load_tokens(folder / "clip.npz", tokenizer)
    return {"config": tokenizer.config, "encoded": asdict(encoded), "decoded": Made(tokenizer.decode(encoded))}


def _make_words(root: Path) -> None:
    (root / "words").mkdir()
    known = ["sos", "eos", "unk", "a", "person", "walk"]
    np.save(
        root / "words" / "our_vab_data.npy", np.random.default_rng(0).normal(size=(len(known), 300)).astype(np.float32)
    )
    for name, value in (("words", known), ("idx", {word: i for i, word in enumerate(known)})):
        (root / "words" / f"our_vab_{name}.pkl").write_bytes(pickle.dumps(value))


def _make_text_encoder(root: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    (root / "clip").mkdir()
    ids = {word: i for i, word in enumerate(["a", "person", "walks", "<unk>", "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, ids[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    tokenizer.save(str(root / "clip" / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=12)
    config = CLIPTextConfig(vocab_size=len(ids), eos_token_id=ids["<end>"], bos_token_id=ids["<start>"], **sizes)
    CLIPTextModelWithProjection(config).save_pretrained(root / "clip")


def _read_text_encoder(folder: Path) -> Any:
    from vadis.text_encoders import ClipEncoder

    return Made(ClipEncoder(folder).encode([PROMPT, "a"]))


def _make_images(root: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for kind in ("png", "jpg", "webp"):
        (root / kind).mkdir()
        Image.fromarray(noise).save(root / kind / f"room.{kind}")


def _read_image(folder: Path) -> Any:
    from vadis.images import load_image

    return np.asarray(load_image(folder / f"room.{folder.name}"))


# ---- checkpoints


def _make_checkpoints(root: Path) -> None:
    from safetensors.torch import save_file

    state = {"layer.weight": torch.randn(6, 4), "layer.bias": torch.randn(6), "steps": torch.tensor(3)}
    for name in ("zip", "legacy", "safetensors"):
        (root / name).mkdir()
    torch.save({"net": state, "nb_iter": 7}, root / "zip" / "model.pt")
    torch.save({"state_dict": state}, root / "legacy" / "model.pt", _use_new_zipfile_serialization=False)
    save_file(state, root / "safetensors" / "model.safetensors")


def _read_checkpoint(folder: Path) -> Any:
    path = folder / ("model.safetensors" if folder.name == "safetensors" else "model.pt")
    return {"state": Made(read_state_dict(path)), "report": describe(path).to_dict()["facts"]}


def _published(tokenizer: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights under the names that their authors gave them."""
    ours = ("mean", "std", "code_sum", "code_count", "initialised")
    return {prefix + name: value for name, value in tokenizer.state_dict().items() if name.split(".")[-1] not in ours}


def _make_imports(root: Path) -> None:
    for name in ("fsq", "vq", "rvq/model", "mg_vq", "field", "dsft"):
        (root / name).mkdir(parents=True)
    for name in ("fsq", "vq", "rvq", "mg_vq"):
        for part in ("mean", "std"):
            np.save(root / name / f"{part}.npy", getattr(small_tokenizer(name), part).numpy())
    torch.save({"net": _published(small_tokenizer("fsq"), "vqvae.")}, root / "fsq" / "fsq.pth")
    torch.save({"net": _published(small_tokenizer("vq"))}, root / "vq" / "net_last.pth")
    torch.save({"vq_model": _published(small_tokenizer("rvq")), "ep": 7}, root / "rvq" / "model" / "net_best_fid.tar")
    (root / "rvq" / "opt.txt").write_text(
        "--- Options ---\nbatch_size: 256\nmu: 0.9\nshared_codebook: False\n--- End ---"
    )
    state = _published(small_tokenizer("mg_vq"), "model.vqvae.")
    state["model.vqvae.quantizer.codebooks"] = state.pop("model.vqvae.quantizer.codebook")
    torch.save(state, root / "mg_vq" / "pytorch_model.bin")
    page = {
        "input_dim": 272,
        "width": 16,
        "depth": small_tokenizer("mg_vq").config.depth,
        "code_dim": 16,
        "num_groups": 4,
        "fps": 30,
    }
    (root / "mg_vq" / "config.json").write_text(json.dumps(page))
    torch.save(
        {"model_state_dict": PoseField(PoseFieldConfig(widths=(16, 8))).state_dict()}, root / "field" / "field.pt"
    )
    made = DSFTTokenizer.fit(
        [features(48), features(60)], "ms272", vocab=(600, 600), codec="bytelevel", normalize="none"
    )
    made.save_pretrained(root / "dsft")


IMPORTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fsq": ("motionmillion-fsq", "fsq.pth", {"levels": (5, 5, 5)}), "vq": ("t2mgpt-vqvae", "net_last.pth", {}),
    "rvq": ("momask-rvq", "", {"representation": "ms272"}), "mg_vq": ("motion-vqvae", "", {}),
    "field": ("nrdf", "field.pt", {"widths": (16, 8)}), "dsft": ("dsft", "", {}),
}  # fmt: skip
"""Input → kind of the checkpoint, its file and options."""


def _read_import(folder: Path) -> Any:
    kind, name, options = IMPORTS[folder.name]
    made = vadis.import_checkpoint(kind, folder / name, **options)
    if folder.name == "dsft":
        return {"config": made.config, "decoded": Made.by(lambda: made.decode(made.encode(features(32))))}
    return {"model": made, "config": made.config, "made": Made(_use(made))}


def _make_runs(root: Path) -> None:
    from vadis.training import train

    run = root / "run"
    small_corpus(run / "corpus", 6)
    recipe = {
        "task": "tokenizer", "run": str(run / "run"), "steps": 2, "device": "cpu", "resume": "auto",
        "data": {"corpus": str(run / "corpus"), "window": 16, "batch": 2},
        "model": {"width": 16, "code_dim": 8, "down_t": 1, "depth": 1, "levels": [5, 5, 5, 5], "groups": 2},
        "validate_every": 2, "validation_batches": 1, "checkpoint_every": 2, "log_every": 2,
    }  # fmt: skip
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    train(run / "recipe.yaml")


def _read_run(folder: Path) -> Any:
    """Go on for one step from the checkpoint."""
    from vadis.training import train

    words = [f"run={folder / 'run'}", f"data.corpus={folder / 'corpus'}", "steps=3"]
    return vadis.load(train(folder / "recipe.yaml", words))


def _describe(folder: Path) -> Any:
    return describe(folder).to_dict()


def _make_folders(root: Path) -> None:
    _make_pipelines(root)
    for name in ("vq", "guo"):
        _components()[name].save_pretrained(root / name)
    language_model(root / "full", "full")
    small_corpus(root / "corpus")


READERS = {
    "component": Reader(_make_components, _read_component, files=("**/*.json", "**/*.safetensors")),
    "sharded": Reader(_make_sharded, _read_component, files=("**/*.json", "**/*.safetensors")),
    "pipeline": Reader(_make_pipelines, _read_pipeline, files=("**/*.json", "**/*.safetensors")),
    "language-pipeline": Reader(_make_language_pipelines, _read_language_pipeline),
    "scene-pipeline": Reader(_make_scene_pipeline, _read_scene_pipeline),
    "language-model": Reader(_make_language_models, _read_language_model),
    "dsft": Reader(_make_dsft, _read_dsft),
    "words": Reader(_make_words, lambda folder: read_vocabulary(folder)),
    "text-encoder": Reader(_make_text_encoder, _read_text_encoder),
    "image": Reader(_make_images, _read_image),
    "checkpoint": Reader(_make_checkpoints, _read_checkpoint),
    "import": Reader(_make_imports, _read_import),
    "resume": Reader(_make_runs, _read_run, files=("run/**/*",)),
    "model-info": Reader(_make_folders, _describe, rewrites=False),
}
