"""`fpe-hf recipes`: the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipes = typer.Typer(no_args_is_help=True, help="Lists, shows and copies the ready recipes.")

Name = Annotated[str, typer.Argument(help="Name of a recipe.", metavar="NAME")]


@recipes.command("ls")
def list_recipes() -> None:
    """Lists the ready recipes."""
    from ..recipes.library import recipe_names, summary
    from .tables import print_table

    print_table(("recipe", "what it does"), [(n, summary(n)) for n in recipe_names()], left=2)


@recipes.command("show")
def show_recipe(name: Name) -> None:
    """Prints a recipe."""
    from ..recipes.library import find_recipe

    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes.command("cp")
def copy_recipe(
    name: Name,
    file: Annotated[Path, typer.Argument(help="Where to put it.", metavar="FILE")],
) -> None:
    """Copies a recipe, to be changed. An existing file is not replaced."""
    from ..recipes.library import copy_recipe as copy

    typer.echo(f"Copied {name} to {copy(name, file)}")


@recipes.command("schema")
def print_schema() -> None:
    """Prints the JSON Schema of recipes, for editors."""
    import json

    from ..recipes.parsing import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@recipes.command("config")
def accelerate_config(
    name: Annotated[
        str,
        typer.Argument(help="cpu, gpu, ddp, ddp-cpu, fsdp2, zero2 or zero3.", metavar="NAME"),
    ],
) -> None:
    """Prints the path of a config for `accelerate launch --config_file`."""
    from ..recipes.launching import accelerate_config as find

    typer.echo(find(name))
