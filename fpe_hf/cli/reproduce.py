"""`fpe-hf reproduce`: regenerates the paper's results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .tables import working

if TYPE_CHECKING:
    from ..science.report import Report

_ALL = "all"
_PLACE = Path("build/reproduce")


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="boolean-table, boolean-sweeps, metrics-vs-gain, controls, theory, embeddings, "
            "fashion-mnist, deep-mlp, cnn, robustness, interpretability, learned-splits, or all.",
            metavar="NAME",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Folder to write; an earlier result in it is replaced. [default: {_PLACE}/NAME]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        Literal["reduced", "full"], typer.Option(help="How many seeds and settings.")
    ] = "reduced",
    fashion_mnist: Annotated[
        Path | None,
        typer.Option(
            "--fashion-mnist",
            help="Folder of the four IDX files of FashionMNIST. [default: "
            "$FPE_HF_FASHION_MNIST, or where Debian's dataset-fashion-mnist puts them]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            help="Only this part of learned-splits (heads, pixels, deep, cnn, vit, language, "
            "language-longer, formulas), with all its seeds; may be given several times.",
            metavar="PART",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Regenerates a result of the paper.

    Writes a table, a figure, and a text: what agrees with the paper and what does not. What
    learned-splits has trained is kept in OUT-rows and is not trained again.
    """
    import os

    from ..pictures import FOLDER_VARIABLE

    if fashion_mnist is not None:
        os.environ[FOLDER_VARIABLE] = str(fashion_mnist)
    if name == _ALL:
        if part:
            raise typer.BadParameter(
                "'all' has no parts: name a reproduction.", param_hint="--part"
            )
        _reproduce_all(out or _PLACE, scale)
    else:
        _reproduce(name, out or _PLACE / name, scale, part or [])


def _reproduce(name: str, folder: Path, scale: str, parts: Sequence[str] = ()) -> Report:
    from ..science.experiments import run_experiment

    rows = folder.with_name(f"{folder.name}-rows")
    with working(f"Running {name}"):
        report = run_experiment(name, full=scale == "full", rows=rows, parts=parts)
    report.write(folder)
    typer.echo(report.text + f"\n\nWritten to {folder} in {report.seconds:.0f} s.")
    return report


def _reproduce_all(folder: Path, scale: str) -> None:
    """What cannot run for want of data is left out, and named."""
    from ..errors import MissingDataError
    from ..science.experiments import NAMES
    from ..science.page import write_page

    reports, left_out = {}, {}
    for name in NAMES:
        try:
            reports[name] = _reproduce(name, folder / name, scale)
        except MissingDataError as error:
            left_out[name] = str(error)
            typer.echo(f"{name} is left out: {error}", err=True)
    write_page(reports, left_out, folder, scale=scale)
    typer.echo(f"All on one page: {folder / 'index.html'} and {folder / 'index.md'}.")
