"""Recipes come with the package and are found by name."""

from pathlib import Path

import pytest

from vadis.cli import main
from vadis.config import RECIPES, find_recipe, recipe_names
from vadis.errors import FileError


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = recipe_names()
    assert {"mini-tokenizer", "bench/fsq", "studies/scaling-mini"} <= set(names) and RECIPES.parent.name == "vadis"
    assert find_recipe("bench/fsq") == RECIPES / "bench" / "fsq.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-tokenizer").write_text("task: tokenizer")  # a file of the user's own comes first
    assert find_recipe("mini-tokenizer") == Path("mini-tokenizer")
    for wrong in ("mini-tokeniser", "recipes/mini-tokeniser.yaml"):
        with pytest.raises(FileError, match=f"recipe {wrong}: .*Near ones: mini-tokenizer.*`vadis train` lists all"):
            find_recipe(wrong)
    with pytest.raises(FileError, match="vadis brings none of that name"):
        find_recipe("../recipes/mini-tokenizer")


def test_the_verb_lists_them_and_names_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    assert capsys.readouterr().out.split() == recipe_names()
    assert main(["train", "mini-tokeniser"]) == 2
    assert "mini-tokenizer" in capsys.readouterr().err
    assert main(["study", "scaling", "studies/scalings-mini"]) == 2
    assert "studies/scaling-mini" in capsys.readouterr().err
