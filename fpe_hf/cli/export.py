"""`fpe-hf export`: from a widened model to a stock one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ExportError
from .folders import new_folder
from .options import WidenedFolder
from .tables import working
from .validate import check_folder


def export(
    folder: WidenedFolder,
    dense: Annotated[
        Path,
        typer.Option(
            "--dense",
            "-o",
            help="Folder to write the stock model to, zeros filled in.",
            metavar="OUT",
        ),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model saved in OUT.")
    ] = False,
) -> None:
    """Saves a widened model as a stock one.

    It computes the same, is as wide as the widened one with the zeros filled in, and loads without
    fpe_hf.
    """
    with new_folder(dense, overwrite=overwrite, source=folder) as staging:
        check_folder(folder)
        from ..checkpoint.loading import load_model
        from ..dense import to_dense
        from ..hub.companions import copy_companions

        widened = load_model(folder, dtype="auto")
        with working("Filling in the zeros"):
            stock = to_dense(widened)
        stock.save_pretrained(staging)
        copy_companions(folder, staging)
        _check_loads(staging)
    typer.echo(f"Saved a stock {type(stock).__name__} to {dense}")


def _check_loads(folder: Path) -> None:
    """Loads a saved model without its numbers.

    Raises:
        ExportError: A tensor is missing, or has the wrong shape.
    """
    from ..checkpoint.loading import load_model

    try:
        load_model(folder, device_map="meta")
    except Exception as error:  # whatever transformers raises at a checkpoint that does not fit
        raise ExportError(f"the stock model was saved, but does not load: {error}") from error
