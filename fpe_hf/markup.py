"""Tables as text, Markdown and HTML, and texts in which nothing is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape


def table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table.

    Args:
        header: Names of the columns.
        rows: Cells, in Markdown.
        texts: How many columns at the left hold texts; the others hold numbers.
    """
    rules = ["---" if column < texts else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rules, *rows))


def plain(text: object) -> str:
    """A text on one line that Markdown shows as it is, in tables too."""
    return re.sub(r"([\\`*_\[\]<>|~#&!])", r"\\\1", " ".join(str(text).split()))


def code(value: object) -> str:
    """A value as code, on one line, in tables too."""
    words = " ".join(str(value).split())
    return "`" + words.replace("`", "'").replace("|", "\\|") + "`"


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table as plain text.

    Args:
        header: Names of the columns.
        rows: Cells.
        texts: How many columns at the left hold texts; the others hold numbers.
    """
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < texts else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table in HTML, as notebooks show it.

    Args:
        header: Names of the columns.
        rows: Cells; nothing in them is markup.
        texts: How many columns at the left hold texts; the others hold numbers.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["left" if column < texts else "right" for column in range(len(cells))]
        return "".join(
            f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>\n<tr>{line(header, 'th')}</tr>\n{body}\n</table>"
