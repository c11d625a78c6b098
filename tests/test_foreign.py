"""Folders of other libraries: nothing in them is run, imported or fetched, whatever stands on stdin."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vadis.errors import FileError, ModelError, VadisError
from vadis.foreign import PAGES, adapter_fields, check_folder

SRC = Path(__file__).parents[1] / "src"
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64, "torch_dtype": "bfloat16",
    "rope_scaling": None, "pretraining_tp": 1, "use_cache": True, "_name_or_path": "someone/something",
}  # fmt: skip


def write(folder: Path, **pages: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages.items():
        (folder / f"{name}.json").write_text(json.dumps(page))
    return folder


# ---- one door


OWN = {"MotionLM", "MGVQTokenizer"}
"""Classes of ours whose `from_pretrained` goes through the door."""
PLACES = {
    "from_pretrained": {"foreign.py", "loading.py"},  # loading.py: our pipelines
    "from_file": {"foreign.py", "torch_files.py"},  # torch_files.py: a file mapped into memory
    "torch.load": set(),
    "pickle": {"torch_files.py", "evaluators/guo_words.py"},
    "snapshot_download": {"hub.py"},
    "hf_hub_download": {"evaluators/tmr.py"},
    "from_config": {"foreign.py"},
}
"""What reads foreign files or fetches them → the only modules that may."""


def uses(tree: ast.AST) -> set[str]:
    """Which of PLACES a module does; no Auto class is ever called by its own name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            names = {alias.name for alias in node.names} | {module}
            found |= names & {"pickle"}
        if isinstance(node, ast.Name) and node.id in PLACES:
            found.add(node.id)
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if (node.attr in PLACES and owner not in OWN) or (owner, node.attr) == ("torch", "load"):
                found.add("torch.load" if node.attr == "load" else node.attr)
            if node.attr == "load_adapter" or (node.attr == "from_config" and owner != "cls"):
                found.add(node.attr)
    return found


def test_nothing_else_opens_foreign_files() -> None:
    for path in sorted((SRC / "vadis").rglob("*.py")):
        name = path.relative_to(SRC / "vadis").as_posix()
        for use in uses(ast.parse(path.read_text(encoding="utf-8"))):
            assert name in PLACES.get(use, ()), (
                f"{name} uses {use}: go through vadis.foreign, vadis.loading or vadis.checkpoint"
            )


def test_pickles_are_read_with_care_and_code_is_never_trusted() -> None:
    for path in (SRC / "vadis").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert given["weights_only"] == "True" or given["pickle_module"] == "_PICKLE", path
            if ast.unparse(node.func) == "np.load":
                assert given.get("allow_pickle", "False") == "False", path
            assert given.get("trust_remote_code", "False") == "False", path
    door = ast.parse((SRC / "vadis/foreign.py").read_text(encoding="utf-8"))
    calls = [
        ast.unparse(n)
        for n in ast.walk(door)
        if isinstance(n, ast.Call) and "from_pretrained(" in ast.unparse(n.func) + "("
    ]
    reading = [call for call in calls if ".from_pretrained(None" not in call and "PeftModel" not in call]
    assert reading and all("trust_remote_code=False" in call for call in reading)


# ---- pages


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("config", {"auto_map": {"AutoConfig": "marker.Marker"}}),
    ("config", {"text_config": {"auto_map": {"AutoModel": "marker.Marker"}}}),
    ("config", {"parts": [{"deep": {"auto_map": {"AutoModel": "owner/name--marker.Marker"}}}]}),
    ("config", {"custom_pipelines": {"text": {"impl": "marker.Marker"}}}),
    ("config", {"trust_remote_code": True}),
    ("config", {"_attn_implementation": "owner/kernel"}),
    ("config", {"attn_implementation": "owner/kernel@main:forward"}),
    ("config", {"text_config": {"attn_implementation": {"vision": "owner/kernel"}}}),
    ("config", {"_attn_implementation_internal": "flash_attention_2"}),
    ("config", {"experts_implementation": "owner/kernel"}),
    ("config", {"kernel_config": {"RMSNorm": "owner/kernel:RMSNorm"}}),
    ("config", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    ("config", {"configuration_files": ["config.4.0.0.json"]}),
    ("config", {"transformers_weights": "../other.safetensors"}),
    ("config", {"vision_config": {"backbone": "resnet18", "use_pretrained_backbone": True}}),
    ("config", {"vision_config": {"model_type": "timm_wrapper", "architecture": "resnet18"}}),
    ("config", {"vision_config": {"architecture": "hf-hub:owner/name"}}),
    ("config", {"dtype": "load"}),
    ("config", {"tokenizer_class": "pipeline"}),
    ("config", {"text_config": {"num_hidden_layers": 1_000_000_000}}),
    ("config", {"num_labels": 1_000_000_000}),
    ("generation_config", {"custom_generate": "owner/name"}),
    ("generation_config", {"compile_config": {"backend": "marker"}}),
    ("generation_config", {"penalty_alpha": 0.6, "top_k": 4}),
    ("generation_config", {"num_beam_groups": 2}),
    ("tokenizer_config", {"auto_map": {"AutoTokenizer": ["marker.Marker", None]}}),
    ("tokenizer_config", {"tokenizer_class": "AutoTokenizer"}),
    ("tokenizer_config", {"tokenizer_class": "marker.Marker"}),
    ("tokenizer_config", {"vocab_file": "/etc/hostname"}),
    ("tokenizer_config", {"fast_tokenizer_files": ["tokenizer.4.0.json"]}),
    ("tokenizer_config", {"sp_model_kwargs": {"model_file": "/etc/hostname"}}),
    ("tokenizer_config", {"init_inputs": ["/etc/hostname"]}),
    ("special_tokens_map", {"vocab_file": "/etc/hostname"}),
    ("processor_config", {"auto_map": {"AutoProcessor": "marker.Marker"}}),
    ("processor_config", {"processor_class": "pipeline"}),
    ("processor_config", {"depth_image_processor": {"image_processor_type": "pipeline", "task": "text-generation"}}),
    ("processor_config", {"audio_tokenizer": {"audio_tokenizer_name_or_path": "owner/name"}}),
    ("preprocessor_config", {"auto_map": {"AutoImageProcessor": "marker.Marker"}}),
    ("preprocessor_config", {"feature_extractor_type": "AutoFeatureExtractor"}),
    ("preprocessor_config", {"repo_path": "owner/name", "class_info_file": "a.json"}),
    ("video_preprocessor_config", {"video_processor_type": "pipeline"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("page", "fields"), HOSTILE, ids=lambda value: value if isinstance(value, str) else next(iter(value))
)
def test_pages_that_name_code_or_lead_elsewhere_are_refused(page: str, fields: dict[str, Any], tmp_path: Path) -> None:
    assert f"{page}.json" in PAGES
    write(tmp_path, config=LLAMA)
    check_folder(tmp_path)
    for folder in (tmp_path, tmp_path / "inner"):
        write(folder, **{page: (LLAMA if page == "config" else {}) | fields})
        with pytest.raises(ModelError, match=rf"{page}\.json .*: it is not loaded"):
            check_folder(tmp_path)
        (folder / f"{page}.json").unlink()


def test_ordinary_pages_pass(tmp_path: Path) -> None:
    """Fields as published folders have them, odd but harmless ones too."""
    generation = {"bos_token_id": 1, "do_sample": True, "num_beam_groups": 1, "penalty_alpha": None, "top_p": 0.9}
    tokenizer = {
        "tokenizer_class": "LlamaTokenizerFast", "name_or_path": "google/t5", "sp_model_kwargs": {}, "tokenizer_file": None,
        "special_tokens_map_file": "/home/someone/special_tokens_map.json", "auto_map": None, "model_max_length": 512,
        "added_tokens_decoder": {"0": {"content": "<s>", "special": True}}, "chat_template": "{{ messages }}",
    }  # fmt: skip
    picture = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "patch_size": 16,
    }
    for number, attention in enumerate(("eager", "sdpa", {"text_config": "sdpa"}, None)):
        config = LLAMA | {"_attn_implementation": attention, "vision_config": {"dtype": "torch.float16"}}
        folder = write(
            tmp_path / str(number), config=config, generation_config=generation, tokenizer_config=tokenizer,
            preprocessor_config=picture, special_tokens_map={"eos_token": "</s>"},
        )  # fmt: skip
        (folder / "train_script.py").write_text("raise SystemExit")  # code that nobody reads
        check_folder(folder)


def test_damaged_pages_say_which(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(FileError, match=r"config\.json must hold a JSON object"):
        check_folder(tmp_path)


LORA = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none",
    "megatron_config": None, "megatron_core": "megatron.core", "loftq_config": {}, "layer_replication": None,
    "base_model_name_or_path": "owner/name", "auto_mapping": None, "init_lora_weights": True, "inference_mode": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"megatron_core": "marker", "megatron_config": {"a": 1}},
        {"megatron_core": "marker"},
        {"auto_mapping": {"base_model_class": "Marker", "parent_library": "marker"}},
        {"peft_type": "XLORA"},
        {
            "peft_type": "PROMPT_TUNING",
            "tokenizer_name_or_path": "owner/name",
            "tokenizer_kwargs": {"trust_remote_code": True},
        },
        {"corda_config": {"cache_file": "marker.pt"}},
        {"layer_replication": [[0, 1_000_000]]},
        {"init_lora_weights": "pissa"},
        {"task_type": "SEQ_CLS"},
        {"target_modules": ["q_proj", 0.5]},
        {"target_modules": "(a+)+x"},
        {"r": "4"},
        {"something_new": "x"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_adapters_are_loras_and_nothing_more(fields: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, config=LLAMA, adapter_config=LORA)
    check_folder(tmp_path)
    noted = LORA | {
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"}
    }
    for page in (LORA, noted):  # peft 0.20 notes the class of the model, which is at hand already
        assert not {"base_model_name_or_path", "auto_mapping"} & set(
            adapter_fields(page, tmp_path / "adapter_config.json")
        )
    write(tmp_path, adapter_config=LORA | fields)
    with pytest.raises(ModelError, match=r"adapter_config\.json: "):
        check_folder(tmp_path)


# ---- every loader


SCRIPT = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
root = Path(sys.argv[1])
import vadis
from vadis.errors import VadisError
from vadis.foreign import open_adapter, open_foreign, open_model
from vadis.language.backbones import load_backbone
from vadis.language.checkpoints import load_language_model
from vadis.language.motion_lm import MotionLM
from vadis.text_encoders import ENCODERS
from vadis.evaluation.judges import LocalVLM
import transformers, torch
from vadis.loading import load_component

LOADERS = {
    "backbone": load_backbone, "language model": load_language_model, "pipeline": vadis.load, "writer": MotionLM.from_pretrained,
    "component": load_component, "judge": lambda folder: LocalVLM(str(folder)),
    "adapter": lambda folder: open_adapter(torch.nn.Linear(2, 2), folder),
    "distilbert": lambda folder: open_model(transformers.DistilBertModel, folder),
    "processor": lambda folder: open_foreign(transformers.AutoProcessor, folder),
    "tokenizer": lambda folder: open_foreign(transformers.AutoTokenizer, folder),
    "configuration": lambda folder: open_foreign(transformers.AutoConfig, folder),
} | {name: (lambda folder, kind=kind: kind(folder)) for name, kind in ENCODERS.items()}
for folder in sorted(root.iterdir()):
    for name, load in LOADERS.items():
        try:
            load(folder)
            print("loaded", folder.name, name)
        except VadisError as error:
            assert len(str(error)) <= 300
        except Exception as error:
            print("raw", folder.name, name, repr(error))
"""


def hostile_folders(root: Path, marker: Path) -> int:
    """Folders of each kind of code that a model can bring; each piece of code would make a file `marker-…`."""
    code = f"import uuid\nopen(r'{marker}-' + uuid.uuid4().hex, 'w').close()\nclass Marker: pass\ndef generate(*a, **k): pass\n"
    names = (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoProcessor",
        "AutoImageProcessor",
    )
    mapped = dict.fromkeys(names, "marker_module.Marker") | {
        "AutoTokenizer": ["marker_module.Marker", "marker_module.Marker"]
    }
    unknown = LLAMA | {"model_type": "marker"}
    folders = {
        "auto_map": {"config": unknown | {"auto_map": mapped}},
        "auto_map_nested": {"config": LLAMA | {"text_config": unknown | {"auto_map": mapped}}},
        "tokenizer": {"config": LLAMA, "tokenizer_config": {"auto_map": mapped}},
        "processor": {"config": LLAMA, "processor_config": {"auto_map": mapped, "processor_class": "Marker"}},
        "image_processor": {"config": LLAMA, "preprocessor_config": {"auto_map": mapped}},
        "custom_generate": {"config": LLAMA},
        "adapter": {"config": LLAMA, "adapter_config": LORA | {"megatron_core": "marker_module", "megatron_config": {"a": 1}}},
        "auto_mapping": {"adapter_config": LORA | {"auto_mapping": {"parent_library": "marker_module", "base_model_class": "Marker"}}},
        "kernel": {"config": LLAMA | {"_attn_implementation": "owner/marker"}},
    }  # fmt: skip
    for name, pages in folders.items():
        write(root / name, **pages)
        write(root / f"{name}_bundle" / "language_model", **pages)
        index = {
            "_class_name": "MotionLanguagePipeline",
            "_vadis_version": "0",
            "language_model": ["transformers", "Marker"],
        }
        write(root / f"{name}_bundle", model_index=index)
        write(root / f"{name}_bundle" / "tokenizer", config={"vadis": "1", "type": "fsq"} | pages.get("config", {}))
        for folder in (root / name, root / f"{name}_bundle" / "language_model"):
            (folder / "marker_module.py").write_text(code)
            (folder / "tokenizer.json").write_text("{}")
            (folder / "adapter_model.safetensors").write_bytes(b"")
            (folder / "motion_vocabulary.json").write_text("{}")
            if name == "custom_generate":
                (folder / "custom_generate").mkdir()
                (folder / "custom_generate" / "generate.py").write_text(code)
    return 2 * len(folders)


def test_no_folder_runs_code_whatever_stands_on_stdin(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    count = hostile_folders(tmp_path / "models", tmp_path / "marker")
    assert count == len(list((tmp_path / "models").iterdir()))
    code = tmp_path / "models" / "auto_map" / "marker_module.py"
    subprocess.run([sys.executable, str(code)], check=True)
    (marker,) = tmp_path.glob("marker-*")  # it would be seen
    marker.unlink()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(SRC), str(code.parent)])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "models")], input="y\n" * 1000, capture_output=True, text=True,
        env=environment, cwd=code.parent, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.glob("marker-*"))
    assert "Do you wish to run" not in done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("loaded", "raw"))] == []


def test_weights_are_never_pickles(tmp_path: Path) -> None:
    import torch

    from vadis.language.backbones import load_backbone

    model, tokenizer = load_backbone("tiny-llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_backbone(tmp_path)[0].num_parameters() == model.num_parameters()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(VadisError, match="there is no model.safetensors in"):
        load_backbone(tmp_path)


def test_a_config_asks_for_no_more_weights_than_there_are(tmp_path: Path) -> None:
    from vadis.language.backbones import load_backbone

    model, tokenizer = load_backbone("tiny-llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    page = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"intermediate_size": 1_000_000}, r"describes a model of [\d,]+ weights; [\d,]+ are in the folder"),
        ({"eos_token_id": 10**30}, "a number that no model can hold"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(page | changes))
        with pytest.raises(ModelError, match=message):
            load_backbone(tmp_path)
