"""`fpe-hf report`: writes the report of a run, or of a sweep, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .tables import printable


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            help="output.folder of a finished run, or of a sweep.",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
        ),
    ],
) -> None:
    """Writes the report of a run or sweep again.

    It goes by the results in the folder. Nothing is trained.
    """
    from ..recipes.report import report_again

    typer.echo(printable(f"Report: {report_again(folder)}"))
