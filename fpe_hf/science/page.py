"""All reproductions on one page: Markdown for the documentation, HTML that stands alone."""

from __future__ import annotations

import base64
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from .report import Report, write_figure

FIGURES = "figures/"
_TITLE = "Reproduction: results"
_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 0.2rem 0.5rem; text-align: left; }
img { max-width: 100%; }
"""


def write_page(
    reports: Mapping[str, Report], left_out: Mapping[str, str], folder: Path, *, scale: str
) -> None:
    """Writes `index.md`, `index.html` and the figures that the former shows.

    Args:
        reports: By name of the reproduction.
        left_out: Names of those that could not run, and why.
        folder: Where; files of the same names are replaced.
        scale: What `fpe-hf reproduce` was told.
    """
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for report in reports.values():
        for name, figure in report.figures.items():
            write_figure(figure, folder / FIGURES / f"{name}.svg")
    text = _markdown(reports, left_out, scale)
    (folder / "index.md").write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(_html(text, folder), encoding="utf-8")


def _markdown(reports: Mapping[str, Report], left_out: Mapping[str, str], scale: str) -> str:
    minutes = sum(report.seconds for report in reports.values()) / 60
    cpu_minutes = sum(report.cpu_seconds for report in reports.values()) / 60
    head = (
        f"# {_TITLE}\n\n"
        f"Written by `fpe-hf reproduce all --scale {scale}` in {minutes:.0f} minutes, "
        f"{cpu_minutes:.0f} minutes of processor time: Python {platform.python_version()}, PyTorch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s) on a CPU. What is unlike the "
        "paper is in bold, and so is every gain over dense networks that is worse than none."
    )
    if left_out:
        head += "\n\nLeft out:\n\n" + "\n".join(
            f"- {name}: {why}" for name, why in left_out.items()
        )
    parts = [f"## {report.title}\n\n{report.body(FIGURES)}" for report in reports.values()]
    return "\n\n".join([head, *parts])


def _html(text: str, folder: Path) -> str:
    from markdown_it import MarkdownIt

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{data}"'

    body = MarkdownIt("commonmark").enable("table").render(text)
    body = re.sub(rf'src="({FIGURES}[^"]+)"', inline, body)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{_TITLE}</title>\n'
        f"<style>{_STYLE}</style>\n{body}</html>\n"
    )
