"""The figures in README.md and docs/ are those of the results, and bold ones are better."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from fpe_hf.comparing import Difference, compare, half_width

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "learned-splits.md"
ROWS = json.loads((ROOT / "docs" / "learned-splits.json").read_text(encoding="utf-8"))

Scores = dict[str, float]


def scores(task: str, width: int, arm: str, alpha: int, **when: float) -> Scores:
    wanted = {"task": task, "width": width, "arm": arm, "alpha": alpha}
    wanted |= {"opened": 0.0, "closed": 0.7, **when}
    found = [row for row in ROWS if all(row[name] == value for name, value in wanted.items())]
    return dict(found[0]["scores"]) if found else {}


def beside(ours: Scores, theirs: Scores, task: str) -> Difference:
    """One arm beside another, seed by seed."""
    seeds = [seed for seed in ours if seed in theirs]
    loss = task.startswith("language")
    return compare(
        [ours[seed] for seed in seeds],
        [theirs[seed] for seed in seeds],
        lower_is_better=loss,
        scale=None if loss else 100.0,
    )


def told(gain: Difference, digits: int) -> str:
    text = f"{gain.gain:+.{digits}f}".replace("-", "−")
    if len(gain.gains) < 2:
        return text
    return f"{text} ± {statistics.stdev(gain.gains) / len(gain.gains) ** 0.5:.{digits}f}"


def cells(task: str, width: int, alpha: int, arms: str, bold: str) -> list[tuple[str, int]]:
    """Dense, and the gains of arms, each with the number of seeds."""
    digits = 3 if task.startswith("language") else 2
    dense = scores(task, width, "dense", 1)
    found = [(f"{statistics.fmean(dense.values()):.{digits}f}", len(dense))]
    for arm in arms.split():
        ours = scores(task, width, arm, alpha)
        if not ours:
            found.append(("", 0))
            continue
        gain = beside(ours, dense, task)
        text = told(gain, digits)
        better = arm == bold and gain.word == "better"
        found.append((f"**{text}**" if better else text, len(gain.gains)))
    return found


HEADS = "head on 384 embeddings, 50 classes"
TABLE = [
    (HEADS, "heads", 8, 2),
    (HEADS, "heads", 8, 4),
    (HEADS, "heads", 16, 4),
    (HEADS, "heads", 32, 4),
    ("FashionMNIST pixels", "pixels", 8, 4),
    ("FashionMNIST pixels", "pixels", 16, 4),
    ("FashionMNIST pixels", "pixels", 32, 4),
    ("FashionMNIST, five layers", "deep-8", 8, 4),
    ("FashionMNIST, five layers", "deep-16", 16, 4),
    ("FashionMNIST, CNN", "cnn", 8, 4),
    ("FashionMNIST, ViT", "vit", 16, 4),
    ("Boolean formulas (13 seeds)", "formulas", 8, 2),
    ("characters, loss, 2,000 steps", "language", 64, 4),
    ("6,000 steps (1 seed)", "language-3x", 64, 4),
    ("12,000 steps (1 seed)", "language-6x", 64, 4),
]
ARMS = "random random-at-once learned overlap wide-dense dense-longer"


@pytest.mark.parametrize(("label", "task", "width", "alpha"), TABLE)
def test_learned_splits(label: str, task: str, width: int, alpha: int) -> None:
    named = re.search(r"\((\d+) seeds?\)", label)
    usual = int(named[1]) if named else 5
    found = [
        text if count in (0, usual) else f"{text} ({count})"
        for text, count in cells(task, width, alpha, ARMS, "learned")
    ]
    line = f"| {label} | {width} | {alpha} | {' | '.join(found)} |"
    assert line in PAGE.read_text(encoding="utf-8").splitlines()


README = [
    ("head on text embeddings, 8 neurons", "heads", 8),
    ("16 neurons", "heads", 16),
    ("32 neurons", "heads", 32),
    ("FashionMNIST, 8 neurons", "pixels", 8),
    ("five layers of 16", "deep-16", 16),
    ("CNN, head of 8", "cnn", 8),
    ("vision transformer from scratch", "vit", 16),
    ("causal LM from scratch, loss, 2,000 steps", "language", 64),
]


@pytest.mark.parametrize(("label", "task", "width"), README)
def test_readme(label: str, task: str, width: int) -> None:
    found = [
        text if count in (0, 5) else f"{text}, {count} seeds"
        for text, count in cells(
            task, width, 4, "random learned dense-longer wide-dense", "learned"
        )
    ]
    line = re.sub(" +", " ", f"| {label} | {' | '.join(found)} |")
    page = (ROOT / "README.md").read_text(encoding="utf-8").replace(" (lower is plus)", "")
    assert line in page.splitlines()


def test_what_the_text_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for width, when in (
        (8, {"opened": 0.2}),
        (8, {"opened": 0.5}),
        (8, {"closed": 0.5}),
        (16, {"closed": 0.5}),
        (32, {"closed": 0.5}),
    ):
        ours = scores("heads", width, "learned", 4, **when)
        gain = beside(ours, scores("heads", width, "dense", 1), "heads")
        assert told(gain, 2).removeprefix("+") in text
    clause, learned = (scores("formulas", 8, arm, 2) for arm in ("clause", "learned"))
    assert f"{told(beside(learned, clause, 'formulas'), 1).removeprefix('+')} points behind" in text


def bold_cells(page: str) -> list[tuple[str, str]]:
    """Lines of tables, and the gains in them that are bold."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    pattern = r"\*\*([+−][\d.]+ ± [\d.]+)\*\*"
    return [(line, cell) for line in lines if "|" in line for cell in re.findall(pattern, line)]


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md", "docs/learned-splits.md"])
def test_bold_gains_are_better(page: str) -> None:
    """By what is printed: the mean, its standard error and the number of seeds."""
    assert bold_cells(page)
    for line, cell in bold_cells(page):
        mean, error = (float(part) for part in cell.replace("−", "-").split(" ± "))
        named = re.search(r"(\d+) seeds", line)
        seeds = int(named[1]) if named else 5
        unit = half_width([0.0] * (seeds - 1) + [1.0])
        assert unit is not None
        half = error * unit * seeds  # the standard error of one 1 among zeros is 1 / seeds
        assert Difference((mean,), 100.0, half).word == "better", line


def recipe_rows(page: str) -> list[list[str]]:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| recipe | dense, %"))
    table = lines[first + 2 : first + 12]
    return [line.split("|")[2:] for line in table]


def test_readme_and_recipes_show_the_same() -> None:
    assert recipe_rows("README.md") == recipe_rows("docs/recipes.md")


def test_every_row_of_the_results_is_whole() -> None:
    assert len(ROWS) == 97
    for row in ROWS:
        values: Any = row["scores"].values()
        assert values, row
        assert row["metric"] in ("accuracy", "loss")
        assert all(0 < value <= 100 for value in values)
