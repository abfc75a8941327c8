from __future__ import annotations

import re
from pathlib import Path

from fpe_hf.science.page import write_page
from fpe_hf.science.report import Report, new_figure


def report(title: str) -> Report:
    figure, (ax,) = new_figure()
    ax.plot([0, 1])
    rows = [{"arm": "dense", "accuracy": 71.23456}, {"arm": "random", "accuracy": float("nan")}]
    return Report(title, f"Text of {title}.", rows, {title.lower(): figure}, seconds=60.0)


def test_everything_is_on_one_page(tmp_path: Path) -> None:
    reports = {"theory": report("Theory"), "cnn": report("CNN")}
    for _ in range(2):  # a second time over the first
        write_page(reports, {"fashion-mnist": "it is not here"}, tmp_path, scale="reduced")
    text = (tmp_path / "index.md").read_text()
    assert text.startswith("# ")
    assert "in 2 minutes" in text
    assert "- fashion-mnist: it is not here" in text
    for title in ("Theory", "CNN"):
        assert f"## {title}\n\nText of {title}.\n" in text
    assert "| dense | 71.23 |\n| random |  |" in text
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / image).is_file()


def test_the_html_needs_no_other_file(tmp_path: Path) -> None:
    write_page({"cnn": report("CNN")}, {}, tmp_path, scale="full")
    html = (tmp_path / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 1
    assert sources[0].startswith("data:image/svg+xml;base64,")
    assert "<td>71.23</td>" in html


def test_the_same_results_make_the_same_figures(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_page({"cnn": report("CNN")}, {}, tmp_path / folder, scale="full")
    a, b = ((tmp_path / folder / "figures" / "cnn.svg").read_bytes() for folder in "ab")
    assert a == b
