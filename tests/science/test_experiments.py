from __future__ import annotations

import csv
import importlib
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from fpe_hf.cli.app import app
from fpe_hf.errors import ConfigError, MissingDataError
from fpe_hf.science import experiments
from fpe_hf.science.comparison import BooleanTask, compare
from fpe_hf.science.data import digits
from fpe_hf.science.experiments import learned_splits, run_experiment
from fpe_hf.science.report import Report, new_figure
from fpe_hf.science.splitting import clause_split
from fpe_hf.science.statistics import fit_line, mean
from fpe_hf.science.tasks import Task, mlp
from fpe_hf.science.training import Training

SMALL = BooleanTask(inputs=12, clauses=3, literals=2, examples=200, test_examples=100, neurons=3)


def test_all_arms_hold_as_many_numbers() -> None:
    brief = Training(epochs=1)
    splits = ("random", "clause", "overlap")
    found = compare(SMALL, splits, alphas=(2, 3), seeds=2, before=brief, after=brief)
    assert len(found) == 7
    dense = found["dense", 1].networks.numbers()
    for outcome in found.values():
        assert torch.equal(outcome.networks.numbers(), dense)
        assert outcome.accuracy.shape == (2,)
        assert 0 < outcome.capacity <= 1
        assert 0 <= outcome.cosine <= 1


def test_expansion_helps_where_features_interfere() -> None:
    task = replace(SMALL, inputs=32, clauses=8, neurons=8, examples=2000, test_examples=1000)
    brief = Training(epochs=10, lr=0.02)
    found = compare(task, ("clause",), seeds=6, before=Training(epochs=2, lr=0.02), after=brief)
    assert found["clause", 2].mean.value > found["dense", 1].mean.value + 2
    assert found["clause", 2].capacity > found["dense", 1].capacity


def test_statistics() -> None:
    found = mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found.value == 2.5
    assert found.half_width == pytest.approx(2.0542, abs=1e-3)  # 3.182 * 1.291 / 2
    assert found.apart(mean(torch.tensor([9.0, 9.5])))
    line = fit_line([0, 1, 2], [1, 3, 5])
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((2, 1, 1))


def report(value: float) -> Report:
    figure, (ax,) = new_figure()
    ax.plot([0, 1], [0, value])
    rows = [{"arm": "a", "accuracy": value}, {"arm": "b", "accuracy": 1.0}]
    return Report("A title", "Some text.", rows, {"figure": figure})


def test_a_report_is_written_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "place"
    for value in (0.25, 0.5):
        report(value).write(folder)
        page = (folder / "README.md").read_text()
        assert page.startswith("# A title\n\nSome text.\n\n![A title](figure.svg)")
        assert f"| a | {value} |" in page
        with (folder / "table.csv").open() as file:
            assert [row["accuracy"] for row in csv.DictReader(file)] == [str(value), "1.0"]
        ElementTree.parse(folder / "figure.svg")
        assert [entry.name for entry in folder.parent.iterdir()] == ["place"]


def test_a_report_replaces_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else"):
        report(0.5).write(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_unknown_experiments_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'theory'"):
        run_experiment("teory")


def test_the_command_writes_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "run_experiment", lambda name, **more: report(0.5))
    result = CliRunner().invoke(app, ["reproduce", "theory", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "Some text." in result.output
    assert (tmp_path / "out" / "table.csv").is_file()


def test_the_command_writes_all_that_can_run_on_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **more: object) -> Report:
        if "FPE_HF_FASHION_MNIST" in os.environ and name == "fashion-mnist":
            raise MissingDataError(f"not in {os.environ['FPE_HF_FASHION_MNIST']}")
        return report(0.5)

    monkeypatch.setattr(experiments, "run_experiment", run)
    monkeypatch.setenv("FPE_HF_FASHION_MNIST", "elsewhere")  # restored afterwards
    command = ["reproduce", "all", "-o", str(tmp_path), "--fashion-mnist", "some/folder"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "index.md").read_text()
    assert text.count("Some text.") == len(experiments.NAMES) - 1
    assert "- fashion-mnist: not in some/folder" in text
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "theory" / "table.csv").is_file()
    assert not (tmp_path / "fashion-mnist").exists()


def test_what_is_missing_is_an_error_for_one_experiment(tmp_path: Path) -> None:
    command = ["reproduce", "robustness", "--fashion-mnist", str(tmp_path)]
    result = CliRunner().invoke(app, command, env={"FPE_HF_FASHION_MNIST": ""})
    assert result.exit_code == 1
    assert "apt install dataset-fashion-mnist" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.NAMES)
def test_every_experiment_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = BooleanTask.draw
    short = {"examples": 500, "test_examples": 200}
    monkeypatch.setattr(BooleanTask, "draw", lambda task, seeds: draw(replace(task, **short), 2))
    module = importlib.import_module(f"fpe_hf.science.experiments.{name.replace('-', '_')}")
    data = digits().first_examples(300, 100)
    flat = replace(data, x=data.x.flatten(1), test_x=data.test_x.flatten(1))
    tiny = Task(flat, lambda width: mlp(64, [width], 10), 20, 32, lr=0.01, first="0")
    tiny = replace(tiny, clauses=clause_split([[0, 1]]))
    for attribute, value in {
        "HALF": Training(epochs=1),
        "EPOCHS": 1,
        "WIDTHS": (4, 8),
        "CLASSES": (4, 10),
        "digits": lambda: data,
        "fashion_mnist": lambda: data,
        "docstring_embeddings": lambda: data,
        "TASKS": dict.fromkeys(learned_splits.TASKS, lambda seed: tiny),
    }.items():
        if hasattr(module, attribute):
            monkeypatch.setattr(module, attribute, value)
    found = run_experiment(name)
    assert found.rows
    assert found.figures
    assert found.seconds > 0
    assert found.cpu_seconds > 0
    assert "nan" not in found.text
