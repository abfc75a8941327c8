"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WidenedFolder = Annotated[
    Path,
    typer.Argument(help="Folder of a widened model.", metavar="DIR", exists=True, file_okay=False),
]
Token = Annotated[
    str | None,
    typer.Option(
        help="Access token. [default: that of `hf auth login`, or HF_TOKEN]", show_default=False
    ),
]
