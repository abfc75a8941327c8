"""The ready recipes, which come with the package: listed, found by name, copied."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from ..errors import RecipeError, did_you_mean

_SUFFIX = ".yaml"
_INSTALLED = Path(__file__).parent / "ready"
_CHECKOUT = Path(__file__).parents[2] / "recipes"


@cache
def library_folder() -> Path:
    """Where the ready recipes are: in the installed package, or at the top of the repository.

    Raises:
        RecipeError: The installation holds none.
    """
    for folder in (_INSTALLED, _CHECKOUT):
        if any(folder.glob(f"*{_SUFFIX}")):
            return folder
    raise RecipeError(f"{_INSTALLED} holds no recipes: fpe-hf is not installed whole.")


def recipe_names() -> tuple[str, ...]:
    """Names of the ready recipes, sorted."""
    return tuple(sorted(file.stem for file in library_folder().glob(f"*{_SUFFIX}")))


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: Path of a file, or name of a ready recipe. A file of that path goes first.

    Raises:
        RecipeError: There is neither.
    """
    file = Path(name)
    if file.is_file():
        return file
    if name in recipe_names():
        return library_folder() / f"{name}{_SUFFIX}"
    raise RecipeError(
        f"{name!r} is neither a file nor a ready recipe."
        f"{did_you_mean(file.stem, recipe_names())} Ready are {', '.join(recipe_names())}."
    )


def summary(name: str) -> str:
    """What a recipe does, in one line.

    Args:
        name: See `find_recipe`.
    """
    content = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
    return str(content["description"])


def copy_recipe(name: str, target: Path) -> Path:
    """Copies a recipe, to be changed.

    Args:
        name: See `find_recipe`.
        target: File to write, or the folder for a file of the recipe's name.

    Returns:
        The file written.

    Raises:
        RecipeError: There is no such recipe, or the target exists or cannot be written.
    """
    source = find_recipe(name)
    file = target / source.name if target.is_dir() else target
    if file.exists():
        raise RecipeError(f"{file} exists and is left as it is: choose another file.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read_bytes())
    except OSError as error:
        raise RecipeError(f"{file} cannot be written: {error}.") from error
    return file
