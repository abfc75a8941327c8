"""The typer application: registers the subcommands and turns exceptions into exit codes.

Modules of this package import torch and transformers inside functions only, to keep `--help` quick.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import FPEError
from ..files import end_cleanly
from ..version import __version__
from .export import export
from .inspect import inspect
from .push import push
from .recipes import recipes
from .report import report
from .reproduce import reproduce
from .run import run, sweep, validate_recipe
from .tables import printable
from .validate import validate
from .widen import widen

_PROGRAM = "fpe-hf"
_SHOWN_LINES = 2


class _Commands(TyperGroup):
    """Reports what a subcommand raises as an error message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise  # typer's own
        except Exception as error:
            if ctx.params["debug"]:
                raise
            typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
            typer.echo(_message(error), err=True)
            raise typer.Exit(1) from error


def _message(error: Exception) -> str:
    """What to tell the user: our own messages whole, the first lines of those of others."""
    if isinstance(error, FPEError):
        return printable(str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:_SHOWN_LINES]
    if isinstance(error, OSError) and lines:
        return printable("\n".join(lines))
    hint = f"({_PROGRAM} --debug shows where this happened.)"
    told = [f"{type(error).__name__}: {lines[0] if lines else ''}", *lines[1:]]
    return printable("\n".join([*told, hint]))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
for _command in (
    widen,
    inspect,
    export,
    push,
    validate,
    run,
    validate_recipe,
    sweep,
    report,
    reproduce,
):
    app.command()(_command)
app.add_typer(recipes, name="recipes")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{_PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Widens the MLPs of Hugging Face models at a fixed number of non-zero parameters."""


def main() -> None:
    """Runs the command line. Exit codes: 0 all is well, 1 an error, 2 wrong usage."""
    end_cleanly()
    app(prog_name=_PROGRAM)
