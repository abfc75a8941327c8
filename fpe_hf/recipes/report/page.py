"""Writes the report: one HTML file with all in it, and Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ...files import write_whole
from ...markup import plain, table
from ..results import Results
from .content import Report, compose
from .environment import environment
from .latency import Latency
from .tables import Table

HTML, MARKDOWN = "report.html", "report.md"


def write_report(
    results: Results,
    folder: Path,
    latency: Latency | None = None,
    made_with: Mapping[str, str] | None = None,
) -> None:
    """Writes `report.html`, `report.md` and the pictures of the latter, `report-NAME.png`.

    Args:
        results: What came out of a run.
        folder: An existing folder; an earlier report in it is replaced.
        latency: From `measure_saved` or `measure_latency`.
        made_with: The environment of the run, name -> value; by default that of this process.
    """
    report = compose(results, latency, made_with or environment())
    for picture in report.pictures:
        write_whole(folder / picture_file(picture.name), picture.light)
    for name in (HTML, MARKDOWN):
        write_whole(folder / name, render(report, name))


def render(report: Report, name: str) -> str:
    """The text of `report.html` or `report.md`."""
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": _data_uri,
        "fence": _fence,
        "md": plain,
        "md_table": _markdown_table,
        "picture_file": picture_file,
    }
    return environment.get_template(name).render(report=report)


def picture_file(name: str) -> str:
    """File name of a picture."""
    return f"report-{name}.png"


def _markdown_table(content: Table) -> str:
    header, *rows = [[plain(cell) for cell in row] for row in (content.header, *content.rows)]
    return table(header, rows, content.texts)


def _fence(code: str) -> str:
    """A code fence that nothing in the code can close."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    return "`" * max(3, longest + 1)


def _data_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(png).decode())
