from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fpe_hf.errors import RecipeError
from fpe_hf.recipes import library
from fpe_hf.recipes.library import copy_recipe, find_recipe, library_folder, recipe_names, summary
from fpe_hf.recipes.parsing import read_recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_says_what_it_does(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    assert summary(name) == recipe.description
    assert 10 < len(recipe.description) <= 100
    assert recipe.output.folder == Path("runs", name)


@pytest.mark.parametrize("name", recipe_names())
def test_every_point_of_a_sweep_is_valid(name: str) -> None:
    file = find_recipe(name)
    for key, values in read_recipe(file).sweep.items():
        for value in values:
            read_recipe(file, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])


def test_recipes_are_in_the_table_of_their_folder() -> None:
    table = (library_folder() / "README.md").read_text(encoding="utf-8")
    assert [name for name in recipe_names() if f"`{name}`" not in table] == []


def test_a_file_goes_before_a_ready_recipe_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("digits-vit") == library_folder() / "digits-vit.yaml"
    Path("digits-vit").write_text("mine")
    assert find_recipe("digits-vit").read_text() == "mine"


@pytest.mark.parametrize("name", ["digits-vti", "digits-vti.yaml", "mine/digits-vti.yml"])
def test_an_unknown_name_is_told_the_nearest(name: str) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'digits-vit'"):
        find_recipe(name)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="neither a file nor a ready recipe"):
        find_recipe(str(tmp_path))


def test_a_copy_is_the_recipe_byte_for_byte(tmp_path: Path) -> None:
    original = find_recipe("bert-sst2").read_bytes()
    assert copy_recipe("bert-sst2", tmp_path / "new" / "mine.yaml").read_bytes() == original
    assert copy_recipe("bert-sst2", tmp_path) == tmp_path / "bert-sst2.yaml"


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    with pytest.raises(RecipeError, match=r"mine\.yaml exists"):
        copy_recipe("bert-sst2", file)
    assert file.read_text() == "mine"


def test_a_copy_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        copy_recipe("bert-sst2", tmp_path / "file" / "mine.yaml")


def test_the_installed_recipes_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.yaml").write_text("description: The only one")
    monkeypatch.setattr(library, "_INSTALLED", tmp_path)
    library_folder.cache_clear()
    try:
        assert recipe_names() == ("one",)
        assert summary("one") == "The only one"
    finally:
        library_folder.cache_clear()


def test_an_installation_without_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_INSTALLED", tmp_path)
    monkeypatch.setattr(library, "_CHECKOUT", tmp_path)
    library_folder.cache_clear()
    try:
        with pytest.raises(RecipeError, match="not installed whole"):
            recipe_names()
    finally:
        library_folder.cache_clear()
