"""Weight files and configurations from strangers: what they state is compared with the file, the module and the memory."""

import collections
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vadis
from vadis import component_files, sizes
from vadis.checkpoint import load_strictly, read_file, read_state_dict
from vadis.errors import FileError, ModelError, VadisError
from vadis.generators.motionmillion import SIZES, MotionMillionConfig
from vadis.generators.t2mgpt import T2MGPT, T2MGPTConfig
from vadis.safetensors_files import read_header, read_safetensors
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.torch_files import read_torch

CASES = Path(__file__).parent.parent / "shared" / "cases"


def small() -> T2MGPT:
    torch.manual_seed(0)
    return T2MGPT(T2MGPTConfig(n_layer=1, n_head=2, n_embd=16, mlp_ratio=1, block_size=8, clip_dim=8, nb_code=16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ---- configurations


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n_embd", 10**30, "n_embd: .*65536"),
        ("n_embd", 1_000_000, "n_embd: .*less than or equal to 65536"),
        ("n_layer", 2**31, "n_layer: .*less than or equal to 512"),
        ("n_layer", "1", "n_layer: .*valid integer"),
        ("n_layer", True, "n_layer: .*valid integer"),
        ("nb_code", 10**9, "nb_code: .*less than or equal to"),
        ("n_head", 3, "n_embd 16 must be"),
        ("dropout", "0.1", "dropout: .*valid number"),
        ("nb_code", 10_000_000, "wrong shapes: .*Check the file and the config"),
        ("type", ["t2mgpt"], "has the type"),
        ("kind", "tokenizer", "kind is 'tokenizer'"),
        ("vadis", {}, "has format"),
    ],
)
def test_a_config_that_promises_something_else_is_refused(folder: Path, field: str, value: Any, words: str) -> None:
    page = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(page))
    with pytest.raises(ModelError, match=words) as caught:
        vadis.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ['{"vadis": "1", "vadis": "1"}', '{"vadis": NaN}', "[" * 100_000, "[]", "\ud83d", ""])
def test_pages_that_are_no_strict_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError, match=r"config\.json"):
        vadis.load(folder)


def test_published_sizes_are_within_the_limits() -> None:
    for name in SIZES:
        assert MotionMillionConfig.from_size(name).nb_code == 64000


def test_harmless_rewrites_load_equal(folder: Path) -> None:
    page = json.loads((folder / "config.json").read_text())
    before = vadis.load(folder)
    for text in (
        json.dumps(dict(reversed(page.items()))),
        json.dumps(page, indent=7) + "\r\n\n",
        json.dumps(page).replace('"dropout": 0.1', '"dropout": 1e-1'),
        json.dumps(page | {"dropout": 0}),
    ):
        (folder / "config.json").write_text(text)
        after = vadis.load(folder)
        assert after.config.n_embd == before.config.n_embd
        assert all(torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda _: 1000)
    monkeypatch.setattr(component_files, "read_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match=r"has [\d,]+ parameters, which take .* GB; .* GB are free on cpu"):
        vadis.load(folder)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    """Groups of version 2 (nested, the tighter one counts), of version 1, without a limit, and hidden ones."""

    def group(folder: Path, names: tuple[str, str, str], limit: object, used: int, cached: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names[:2], (limit, used), strict=True):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")

    mine = tmp_path / "mine"
    second = ("memory.max", "memory.current", "inactive_file")
    group(tmp_path / "job", second, 1000, 700, 100)
    group(tmp_path / "job/step", second, "max", 300, 0)
    mine.write_text("0::/job/step\n")
    assert sizes._container_memory(tmp_path, mine) == 400
    group(tmp_path / "job/step", second, 350, 300, 0)
    assert sizes._container_memory(tmp_path, mine) == 50
    mine.write_text("0::/elsewhere\n")
    assert sizes._container_memory(tmp_path, mine) is None
    group(tmp_path / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), 900, 1000, 30)
    mine.write_text("9:name=systemd:/\n4:cpu,memory:/docker/a\n0::/\n")
    assert sizes._container_memory(tmp_path, mine) == 0
    assert sizes._container_memory(tmp_path, tmp_path / "none") is None


def test_free_memory_is_known_here() -> None:
    free = sizes.free_memory(torch.device("cpu"))
    assert free is None or free > 1 << 20


# ---- safetensors


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def rewrite(path: Path, page: Any, cut: int = 0, more: bytes = b"") -> None:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(page).encode()
    body = data[8 + size : len(data) - cut] + more
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "I32"}, "wrong types: .* int32 instead of float32"),
        ({"dtype": "F4"}, "unknown type 'F4'"),
        ({"dtype": 7}, "dtype: .*string"),
        ({"shape": [2**40, 2**40]}, "bytes, which are not F32"),
        ({"shape": [-1]}, "greater than or equal to 0"),
        ({"shape": ["8"]}, "valid integer"),
        ({"data_offsets": [0, 2**62]}, "data_offsets"),
        ({"data_offsets": [10**9, 10**9 + 512]}, "begins at byte"),
    ],
)
def test_headers_are_compared_with_the_file(folder: Path, change: dict[str, Any], words: str) -> None:
    path = folder / "model.safetensors"
    page = header_of(path)
    name = next(name for name, entry in page.items() if name != "__metadata__" and entry["shape"] == [16, 8])
    page[name] |= change
    rewrite(path, page)
    with pytest.raises(VadisError, match=words):
        vadis.load(folder)


def test_cut_and_prolonged_files_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-4], data + b"\0" * 4, data[:4], b"\xff" * 16, b""):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="safetensors"):
            read_header(path)
    path.write_bytes(data)
    assert {n: t.shape for n, t in read_safetensors(path).items()} == {n: e.shape for n, e in read_header(path).items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    model = small()
    with torch.no_grad():
        model.logits.weight[3, 2] = value
    component_files.save_pretrained(model, folder)
    with pytest.raises(ModelError, match=r"the weights logits\.weight hold NaN, infinite or absurdly large"):
        vadis.load(folder)
    with pytest.raises(ModelError, match=r"logits\.weight"):
        load_strictly(small(), model.state_dict())


def test_a_deviation_is_above_zero(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    mini = Path(vadis.__file__).parent / "models" / "vadis-mini" / "tokenizer"
    (tmp_path / "config.json").write_bytes((mini / "config.json").read_bytes())
    state = read_safetensors(mini / "model.safetensors")
    for value in (0.0, -1.0, 1e-30):
        state["std"] = torch.full_like(state["std"], value)
        save_file(state, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match="std, a deviation to divide by, must be above"):
            vadis.load(tmp_path)


def test_shards_hold_what_the_index_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component_files, "SHARD_BYTES", 4000)
    small().save_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    page = json.loads(index.read_text())
    assert isinstance(vadis.load(folder), T2MGPT)
    first, last = min(page["weight_map"].values()), max(page["weight_map"].values())
    moved = {n: (last if shard == first else shard) for n, shard in page["weight_map"].items()}
    for changed, words in (
        (moved, "other tensors than model.safetensors.index.json says"),
        (page["weight_map"] | {"x": first}, "other tensors"),
        (page["weight_map"] | {"x": "../x.safetensors"}, "leads out"),
        (page["weight_map"] | {"x": 1}, "weight_map.*valid string"),
        ([], "weight_map: .*object"),
    ):
        index.write_text(json.dumps(page | {"weight_map": changed}))
        with pytest.raises(VadisError, match=words):
            vadis.load(folder)


# ---- torch's own files


class Foreign:
    """Stands in a pickle for an object of any class."""

    def __init__(self, make: Any, *arguments: Any) -> None:
        self.made = make, arguments

    def __reduce__(self) -> Any:
        return self.made


def everything() -> dict[str, Any]:
    base = torch.arange(60.0).reshape(6, 10)
    return {
        "base": base, "view": base[2:4, 1:5], "turned": base.T, "half": torch.ones(3).half(), "bf": torch.ones(3).bfloat16(),
        "count": torch.tensor(3), "yes": torch.tensor([True]), "none": torch.empty(0, 4), "wide": torch.arange(4).expand(3, 4),
        "weight": torch.nn.Parameter(torch.ones(2)), "eight": torch.ones(4).to(torch.float8_e4m3fn),
        "od": torch.nn.Linear(2, 3).state_dict(), "plain": {"x": 1, "y": [1.5, None, "tä", b"ab", (1, 2)], "s": {1, 2}},
        "dd": collections.defaultdict(list, {"q": [1]}),
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torch_files_are_read_as_torch_reads_them(tmp_path: Path, archive: bool, protocol: int) -> None:
    path = tmp_path / "a.pt"
    torch.save(everything(), path, _use_new_zipfile_serialization=archive, pickle_protocol=protocol)
    assert same(everything() | {"od": {}}, read_torch(path) | {"od": {}})
    assert [t.shape for t in read_torch(path)["od"].values()] == [(3, 2), (3,)]


@pytest.mark.parametrize("case", ["ckpt_lightning_omegaconf", "ckpt_deepspeed"])
@pytest.mark.skipif(not CASES.is_dir(), reason="shared cases are not here")
def test_leftovers_of_training_libraries(case: str) -> None:
    expected = json.loads((CASES / case / "expected.json").read_text())["state_dict"]
    state = read_state_dict(CASES / case / "input.ckpt")
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


def repacked(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with its members as `change(name, data)` makes them; None leaves one out."""
    out = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return out


def test_archives_state_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(1000.0)}, path)

    def kept(_: str, data: bytes) -> bytes:
        return data

    def record(change: Any) -> Any:
        return lambda name, data: change(data) if "/data/" in name else data

    def page(change: Any) -> Any:
        return lambda name, data: change(data) if name.endswith("data.pkl") else data

    assert torch.equal(read_torch(repacked(path, kept))["w"], torch.arange(1000.0))  # not aligned any more
    for changed, words in (
        (repacked(path, kept, zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        (lambda: repacked(path, record(lambda data: data[:-4])), "3,996 bytes, which are not 1,000 numbers"),
        (lambda: repacked(path, record(lambda data: data + b"\0" * 4)), "4,004 bytes, which are not 1,000 numbers"),
        (lambda: repacked(path, record(lambda _: None)), "no record '0'"),
        (lambda: repacked(path, page(lambda _: None)), "without data.pkl"),
        (lambda: repacked(path, page(lambda data: data.replace(b"\xe8\x03", b"\xff\xff"))), "bytes, which are not"),
        (lambda: repacked(path, page(lambda data: data[:-9])), "can't be read as a torch file"),
        (lambda: repacked(path, lambda n, d: b"big" if n.endswith("byteorder") else d), "byte order"),
    ):
        file = changed() if callable(changed) else changed
        with pytest.raises(FileError, match=words):
            read_torch(file)


def test_tensors_stay_inside_their_storage(tmp_path: Path) -> None:
    from torch._utils import _rebuild_tensor_v2

    whole = torch.arange(6.0)
    arguments = [
        ((0, (7,), (1,)), "reads number 6 of a storage of 6"),
        ((5, (2,), (1,)), "reads number 6 of a storage of 6"),
        ((0, (2, 2), (5, 1)), "reads number 6"),
        ((-1, (2,), (1,)), "impossible size"),
        ((0, (2,), (1, 1)), "impossible size"),
        ((0, (2.0,), (1,)), "impossible size"),
        ((0, (20_000_000,), (0,)), "20,000,000 elements is stored as 6"),
    ]
    for archive in (True, False):
        for given, words in arguments:
            path = tmp_path / "a.pt"
            storage = torch.storage.TypedStorage(
                wrap_storage=whole.untyped_storage(), dtype=whole.dtype, _internal=True
            )
            value = Foreign(_rebuild_tensor_v2, storage, *given, False, collections.OrderedDict())
            torch.save({"w": value}, path, _use_new_zipfile_serialization=archive)
            with pytest.raises(FileError, match=words):
                read_torch(path)


def test_old_files_state_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for damaged, words in (
        (data[:-8], "cut off"),
        (data[: len(data) - 4000 - 4], "can't be read as a torch file"),
        (data[:40], "can't be read as a torch file"),
        (data.replace(struct.pack("<Q", 1000), struct.pack("<Q", 999)), "999 numbers, not as many"),
        (data.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f", 1), "its tensors take|can't be read"),
        (b"no torch file", "can't be read as a torch file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=words):
            read_torch(path)


def test_only_harmless_names_are_followed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for made in (
        Foreign(Path.touch, marker),
        Foreign(open, str(marker), "w"),
        Foreign(torch.save, 1, str(marker)),
        Foreign(eval, f"open({str(marker)!r}, 'w')"),
        Foreign(torch.load, str(marker)),
    ):
        for archive in (True, False):
            torch.save({"w": torch.ones(2), "x": made}, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
            with pytest.raises(VadisError, match="asks to import|can't be read"):
                read_file(tmp_path / "a.pt")
    assert not marker.exists()


def test_builders_make_no_memory_of_a_number(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": [Foreign(bytearray, 1 << 44), Foreign(bytes, 1 << 44)]}, tmp_path / "a.pt")
    assert not any(isinstance(x, bytes | bytearray) for x in read_torch(tmp_path / "a.pt")["x"])


# ---- DSFT and word vectors


@pytest.fixture(scope="module")
def dsft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noise = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 272, generator=noise).cumsum(0) / 5 for n in (40, 60)]
    folder = tmp_path_factory.mktemp("dsft") / "model"
    DSFTTokenizer.fit(clips, "ms272", vocab=(600, 600)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"K": ["5", 25]}, "K.0: .*valid integer"),
        ({"K": [5, 10**12]}, "K.1: .*less than or equal"),
        ({"scale": [1, 0]}, "scale and root_precision must be positive"),
        ({"fps": -1}, "fps: .*greater than 0"),
        ({"split": {"name": "x", "base_slices": [[0, 10**12]]}}, "columns"),
        ({"split": {"name": "x", "base_slices": [[0, 272]], "y": 1}}, "split.y"),
        ({"base": {"sha256": "x", "vocab_size": 600, "low": 0, "high": 10**10}}, "base.high"),
        ({"base": None}, "base: "),
        ({"clips": "many"}, "clips: .*valid integer"),
        ({"statistics": "x"}, "stats.npz is not the file"),
    ],
)
def test_dsft_pages(dsft: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    for file in dsft.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    page = json.loads((dsft / "dsft.json").read_text())
    (tmp_path / "dsft.json").write_text(json.dumps(page | change))
    with pytest.raises(VadisError, match=words) as caught:
        vadis.load(tmp_path)
    assert tmp_path.name in str(caught.value)


@pytest.mark.parametrize(
    ("merges", "words"),
    [
        (np.zeros((3, 2), np.float32), "whole numbers"),
        (np.zeros((3, 3), np.int32), "whole numbers"),
        (np.full((3, 2), 2**40), "id that can't exist"),
        (np.full((3, 2), -1), "id that can't exist"),
        (np.array([[0, 0], *([n, n] for n in range(1, 60))]), "stand for more than|does not exist"),
    ],
)
def test_dsft_merges(dsft: Path, tmp_path: Path, merges: np.ndarray, words: str) -> None:
    for file in dsft.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    size = (page := json.loads((dsft / "dsft.json").read_text()))["base"]["high"] - page["base"]["low"] + 1
    if "stand" in words:  # each merge doubles the one before
        merges = np.array([[0, 0], *([size + n, size + n] for n in range(59))])
    np.savez(tmp_path / "base.merges.npz", merges=merges)
    with pytest.raises(VadisError, match=words) as caught:
        vadis.load(tmp_path)
    assert "base.merges.npz" in str(caught.value)


def test_word_vectors_are_finite_and_plain(tmp_path: Path) -> None:
    from vadis.evaluators.guo_words import read_vocabulary

    words = ["sos", "eos", "unk", "walk"]
    vectors = np.zeros((4, 300), np.float32)
    for name, value in (("words", words), ("idx", {word: i for i, word in enumerate(words)})):
        (tmp_path / f"our_vab_{name}.pkl").write_bytes(pickle.dumps(value))
    np.save(tmp_path / "our_vab_data.npy", vectors)
    assert read_vocabulary(tmp_path)[0] == tuple(words)
    vectors[1, 2] = np.nan
    np.save(tmp_path / "our_vab_data.npy", vectors)
    with pytest.raises(FileError, match=r"our_vab_data\.npy holds 1 NaN"):
        read_vocabulary(tmp_path)
    (tmp_path / "our_vab_words.pkl").write_bytes(pickle.dumps(Foreign(Path.touch, tmp_path / "marker")))
    with pytest.raises(FileError, match="was refused"):
        read_vocabulary(tmp_path)
    assert not (tmp_path / "marker").exists()


# ---- bundles


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer": "x"}, "tokenizer"),
        ({"tokenizer": ["vadis", "Other"]}, "tokenizer is a FSQTokenizer, not a Other"),
        ({"generator": None}, "generator is missing"),
        ({"generator": ["transformers", "X"]}, "generator is"),
        ({"planner": ["vadis"]}, "planner"),
        ({"_class_name": ["X"]}, "vadis knows"),
    ],
)
def test_bundles_have_the_parts_that_they_need(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    mini = Path(vadis.__file__).parent / "models" / "vadis-mini"
    for name in ("tokenizer", "generator"):
        (tmp_path / name).mkdir()
        for file in (mini / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    page = json.loads((mini / "model_index.json").read_text())
    page = {name: entry for name, entry in page.items() if name != "planner"}
    (tmp_path / "model_index.json").write_text(json.dumps(page | change))
    with pytest.raises(ModelError, match=words) as caught:
        vadis.load(tmp_path)
    assert tmp_path.name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"samples": 10**9}, "samples"), ({"seconds": 1e9}, "seconds"), ({"temperature": "0.9"}, "temperature")],
)
def test_settings_of_a_bundle(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    from vadis.pipelines.text_to_motion import GenerationConfig
    from vadis.records import checked

    with pytest.raises(ModelError, match=words):
        checked(GenerationConfig, change, tmp_path, ModelError)


def test_numbers_beyond_any_setting_are_refused(tmp_path: Path) -> None:
    from vadis.tokenizers.causal_tae import CausalTAE, CausalTAEConfig

    CausalTAE(CausalTAEConfig(width=16, latent_dim=4)).save_pretrained(tmp_path)
    page = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(page | {"log_variance_range": [-30.0, 1e39]}))
    with pytest.raises(ModelError, match="config.json holds 1e.39: no setting is beyond 1e.30"):
        vadis.load(tmp_path)


def test_an_optimizer_whose_numbers_cannot_be(tmp_path: Path) -> None:
    """Steps and means of squares are never negative; weights would turn complex or NaN in the first step."""
    from vadis.training.checkpoint_files import load_optimizer

    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for name, value in (("step", torch.tensor(-0.5)), ("exp_avg_sq", torch.full((2, 2), -1.0))):
        page = optimizer.state_dict()
        page["state"] = {k: dict(v) for k, v in page["state"].items()}
        page["state"][0][name] = value
        torch.save(page, tmp_path / "optimizer.pt")
        with pytest.raises(
            FileError, match="optimizer.pt: what it keeps of parameter 0 is damaged: delete the checkpoint"
        ):
            load_optimizer(optimizer, tmp_path / "optimizer.pt")
