"""Markdown: tables, and texts in which nothing is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


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
