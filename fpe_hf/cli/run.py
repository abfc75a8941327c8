"""`fpe-hf run`, `fpe-hf validate-recipe` and `fpe-hf sweep`."""

from __future__ import annotations

from typing import Annotated

import typer

from .tables import printable

Recipe = Annotated[str, typer.Argument(help="File, or name of a ready recipe.", metavar="RECIPE")]
Assignments = Annotated[
    list[str] | None,
    typer.Argument(help="Take the place of what the recipe says.", metavar="KEY.SUB=VALUE..."),
]

AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        help="Code that the recipe names and that may be run, such as a metric; repeatable.",
        metavar="NAME",
        show_default=False,
    ),
]


def run(
    recipe: Recipe,
    assignments: Assignments = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run in the folder stopped.")
    ] = False,
    resume_from: Annotated[
        str | None,
        typer.Option(
            "--resume-from",
            help="Go on with a run that was uploaded to the Hub (output.push.checkpoints).",
            metavar="USER/NAME",
        ),
    ] = None,
    allow_code: AllowCode = None,
) -> None:
    """Runs a recipe and writes the report.

    Every arm is trained with every seed, for the same steps on the same batches.
    """
    from ..recipes.launching import launch, open_recipe

    opened = open_recipe(recipe, assignments or ())
    from ..recipes.training import Interrupted

    try:
        launch(
            opened,
            resume=resume,
            resume_from=resume_from,
            say=typer.echo,
            allow_code=allow_code or (),
        )
    except Interrupted as stop:
        typer.echo(f"Stopped: {stop}; --resume goes on.", err=True)
        raise typer.Exit(143) from stop


def validate_recipe(recipe: Recipe, assignments: Assignments = None) -> None:
    """Checks a recipe. Nothing is loaded, downloaded or trained."""
    from ..recipes.launching import open_recipe
    from ..recipes.trust import code_in

    opened = open_recipe(recipe, assignments or ())
    arms, seeds = opened.compare.arms, opened.compare.seeds
    lines = [
        f"OK: {opened.model.task} on {opened.data.source}; arms {', '.join(arms)}; "
        f"{len(seeds)} seed(s); output in {opened.output.folder}",
        *(f"It names code, which runs only with --allow-code {name}" for name in code_in(opened)),
    ]
    typer.echo(printable("\n".join(lines)))


def sweep(
    recipe: Recipe,
    assignments: Assignments = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = 1,
    allow_code: AllowCode = None,
) -> None:
    """Runs a recipe at every point of its sweep section. Points that are done are left alone."""
    from ..recipes.sweeping import run_sweep

    table = run_sweep(
        recipe, assignments or (), jobs=jobs, say=typer.echo, allow_code=allow_code or ()
    )
    typer.echo(f"Results: {table}")
