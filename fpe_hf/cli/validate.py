"""`fpe-hf validate`: checks the files of a widened model without trusting them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .folders import check_place, looked_for
from .options import Token
from .tables import printable, working

if TYPE_CHECKING:
    from ..checkpoint.validate import ValidationReport


def validate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder or Hub id of a widened model.",
            metavar="DIR_OR_REPO",
            callback=check_place,
        ),
    ],
    revision: Annotated[
        str, typer.Option(help="Branch, tag or commit of a model on the Hub.")
    ] = "main",
    token: Token = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Of a model on the Hub, download the weights and check them, too."
        ),
    ] = False,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Check the files of this variant, as `from_pretrained(variant=...)` loads them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Checks the files of a widened model.

    They are not trusted: the config, every index, the shape of every tensor and the checksum of
    every widened layer are checked. Nothing in them is run, and no more than one layer is in
    memory at a time. Of a model on the Hub, only the config and the headers of the weight files
    are fetched and checked, unless --full is given.
    """
    if Path(model).is_dir():
        report = check_folder(Path(model), variant)
        typer.echo(_verdict(model, report))
        _say_open(report)
        return
    with looked_for(model), working(f"Checking {model}"):
        from ..hub.remote import validate_repo

        found = validate_repo(model, revision=revision, token=token, numbers=full, variant=variant)
    typer.echo(_verdict(f"{model} at {found.commit}", found.checkpoint))
    _say_open(found.checkpoint)
    if not full:
        typer.echo("Headers only: no index and no checksum was checked. --full does that.")
    if found.never_read:
        typer.echo(printable("Never read in loading: " + ", ".join(found.never_read)))


def _say_open(report: ValidationReport) -> None:
    if report.open is not None:
        typer.echo(
            f"The budget is open: the blocks hold up to {report.open:.2f} times their parents' "
            "non-zeros until training closes it."
        )


def _verdict(where: str, report: ValidationReport) -> str:
    return (
        f"OK: {where} holds a widened {report.model_class} "
        f"(blocks: {len(report.blocks)}, tensors: {report.tensors}, files: {len(report.files)})"
    )


def check_folder(folder: Path, variant: str | None = None) -> ValidationReport:
    """Validates the folder of a widened model.

    Raises:
        CheckpointError: Anything is wrong with it.
    """
    with working(f"Checking {folder}"):
        from ..checkpoint.validate import validate_checkpoint

        return validate_checkpoint(folder, variant=variant, limited=True)
