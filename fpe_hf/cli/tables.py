"""Tables on stdout, and a sign of life on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..auditing import AuditReport

_ANY_WIDTH = 10_000


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    footer: Sequence[str] | None = None,
) -> None:
    """Prints a table as wide as its cells: cut-up numbers are worse than lines that wrap.

    Args:
        header: Names of the columns.
        rows: Cells.
        left: Number of columns, from the left, to align on the left.
        footer: Cells of a last row, set apart.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        show_footer=footer is not None,
    )
    for place, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if place < left else "right"
        last = Text(printable(footer[place])) if footer else ""
        table.add_column(name, last, justify=justify, no_wrap=True)
    for row in rows:
        # Text, because brackets in names are no markup.
        table.add_row(*(Text(printable(cell).replace("\n", "\\n")) for cell in row))
    Console(width=_ANY_WIDTH).print(table)


def printable(text: str) -> str:
    """A text in which nothing controls a terminal: names come from files of strangers."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def print_audit(report: AuditReport) -> None:
    """Prints an audit, with its verdict below."""
    import typer

    header, rows = report.rows()
    print_table(header, rows[:-1], left=2, footer=rows[-1])
    typer.echo(printable("\n".join(report.breaches) or report.verdict))


def working(what: str) -> AbstractContextManager[object]:
    """Shows on a terminal's stderr that something is going on. Not around other progress bars.

    Args:
        what: In words, as in "Looking for MLP blocks".
    """
    from rich.console import Console
    from rich.markup import escape

    return Console(stderr=True).status(escape(what))
