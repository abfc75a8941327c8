from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from fpe_hf.errors import RecipeError
from fpe_hf.recipes.evaluation import Outcomes
from fpe_hf.recipes.report import Latency, Timing, keep_measured, report_again, write_report
from fpe_hf.recipes.results import Results
from recipes.report.runs import make_results

VOID = {"meta", "img", "source"}
ARMS = {"dense": [0.5, 0.6], "fpe": [0.6, 0.8], "overlap": [0.5, 0.6], "wide-dense": [0.9, 0.9]}
LATENCY = Latency((Timing(1, (0.001,) * 5, (0.002,) * 5),), "cpu (AVX2)", 1, "float32")


class Reader(HTMLParser):
    """Checks that every tag is closed in order; keeps texts and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "srcset", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    return reader


def without_pictures(results: Results) -> Results:
    """The same with nothing to draw, which takes the time."""
    for run in results.runs:
        run.curve.clear()
        run.interference.clear()
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report."""
    path = tmp_path_factory.mktemp("report")
    write_report(make_results(ARMS), path, LATENCY)
    return path


def test_html_holds_all_of_it(folder: Path) -> None:
    reader = read(folder)
    text = "\n".join(reader.texts)
    titles = (
        "Arms|By step|Cost|Widened blocks|Interference|Latency|How to load the model|"
        "Environment|Recipe"
    ).split("|")
    assert [line for line in text.splitlines() if line in titles] == titles
    assert "FPE is better than dense by" in text or "No clear difference between FPE" in text
    assert "cpu (AVX2)" in text
    assert len(reader.links) == 8  # two curves, non-zeros and interference, light and dark
    for link in reader.links:
        start, _, data = link.partition(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_html_needs_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "//" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
    assert not read(folder).tags & {"script", "link", "iframe", "object"}
    assert "@import" not in page
    assert "url(" not in page


def test_markdown_has_its_pictures_beside_it(folder: Path) -> None:
    page = (folder / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert pictures == [
        "report-accuracy-by-step.png",
        "report-loss-by-step.png",
        "report-nonzeros-by-step.png",
        "report-interference.png",
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*pictures, "report.html", "report.md"]
    )
    assert page.startswith(
        "# mlp\\_classifier on digits: FPE beside dense and 2 others\n\nA test · "
    )
    assert "| 1 | 1 | 2 | 2.00 | 2.00 to 2.00 | 5 |" in page
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1


def test_the_recipe_can_be_read_back(tmp_path: Path) -> None:
    results = without_pictures(make_results(ARMS, recipe={"description": "``` # é 'quoted'"}))
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    found = re.search(r"^(`{3,})yaml\n(.*)^\1$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert len(found[1]) == 4
    assert yaml.safe_load(found[2]) == results.recipe


@pytest.mark.parametrize(
    "nasty", ["<script>alert(1)</script>", '"><img src=x onerror=1>', "{{ 7 }}"]
)
def test_what_users_write_stays_text(nasty: str, tmp_path: Path) -> None:
    results = make_results({"dense": [0.5], "fpe": [0.6]}, nasty, recipe={"description": nasty})
    write_report(results, tmp_path)
    reader = read(tmp_path)
    assert nasty in "".join(reader.texts)
    assert "script" not in reader.tags
    assert all(link.startswith("data:image/png") for link in reader.links)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8").partition("## Recipe")[0]
    assert not re.search(r"(?<!\\)<", markdown)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_report(without_pictures(make_results(ARMS)), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for words in ("were not evaluated while", "Not measured for this model.", "Not measured.\n"):
        assert words in text
    assert not list(tmp_path.glob("*.png"))


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("old")
    (tmp_path / "results.json").write_text("kept")
    write_report(without_pictures(make_results(ARMS)), tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# mlp")
    assert (tmp_path / "results.json").read_text() == "kept"


def test_what_fpe_is_and_how_it_is_loaded(tmp_path: Path) -> None:
    learned = {"widen": {"alpha": 4, "split": "learned", "at": {"step": 10}}}
    results = without_pictures(make_results(ARMS, recipe=learned))
    for place, run in enumerate(results.runs):
        results.runs[place] = dataclasses.replace(run, closed=30)
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        "fpe is a learned split with alpha 4, layout element, opened after 10 steps, its budget "
        "closed at step 30." in text
    )
    assert (
        '```python\nimport fpe_hf\n\nmodel = fpe_hf.from_pretrained("seed-1/fpe/model")\n```'
        in text
    )


@pytest.mark.parametrize(("classes", "rows"), [(3, 3), (30, 20)])
def test_accuracy_by_class(classes: int, rows: int, tmp_path: Path) -> None:
    labels = np.arange(4 * classes) % classes
    results = without_pictures(make_results({"dense": [0.5], "fpe": [0.6]}))
    for place, run in enumerate(results.runs):
        wrong = labels < (place if run.arm == "fpe" else 2)
        outcomes = Outcomes.of(np.where(wrong, -1, labels)[:, None], labels)
        results.runs[place] = dataclasses.replace(run, outcomes=outcomes)
    results = dataclasses.replace(results, class_names=tuple(f"c{n}" for n in range(classes)))
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    section = text.partition("## By class")[2].partition("## ")[0]
    assert len(re.findall(r"^[|] c\d", section, re.MULTILINE)) == rows
    assert "| c1 | 4 | 0.0% | 100.0% | +100.0 |" in section
    assert ("the ten at either end" in section) == (classes > 20)


def test_it_is_written_again(tmp_path: Path) -> None:
    without_pictures(make_results(ARMS)).write(tmp_path)
    keep_measured(tmp_path, LATENCY)
    assert report_again(tmp_path) == tmp_path / "report.html"
    assert "cpu (AVX2)" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", '{"runs": 3}'])
def test_what_is_no_run_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(RecipeError, match=r"holds no results\.json|is not what a run writes"):
        report_again(tmp_path)
    assert not list(tmp_path.glob("report*"))


def test_a_sweep_has_a_page(tmp_path: Path) -> None:
    for alpha in (2, 4):
        own = tmp_path / f"alpha-{alpha}"
        own.mkdir()
        make_results({"dense": [0.5, 0.6], "fpe": [0.6, 0.8]}).write(own)
        (own / "point.json").write_text(json.dumps({"widen.alpha": alpha}))
    assert report_again(tmp_path) == tmp_path / "sweep.html"
    reader = Reader()
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    reader.feed(page)
    assert "Sweep of widen.alpha on digits" in reader.texts
    assert page.count("<tr>") == 5
    assert len(reader.links) == 2
