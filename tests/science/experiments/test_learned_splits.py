from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from fpe_hf.errors import ConfigError, MissingDataError
from fpe_hf.science.arms import ARMS, Run
from fpe_hf.science.experiments import learned_splits, run_experiment
from fpe_hf.science.experiments.learned_splits import PARTS, REDUCED, TASKS

NAME = "learned-splits"


def trained(run: Run, score: float) -> dict[str, Any]:
    course = [{"step": step, "nonzeros": 9, "capacity": 0.1, "cosine": 0.2} for step in (1, 2)]
    figures = {"whole": 1.0, "together": 0.7, "chance": 0.5} if run.task == "formulas" else {}
    return {
        **asdict(run),
        "score": score,
        "metric": "loss" if run.task.startswith("language") else "accuracy",
        "nonzeros": 9,
        "steps": 2,
        "flops": 10,
        "seconds": 0.1,
        "course": course,
        **figures,
    }


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """What has been trained: learned arms are 5 above dense, in accuracy as in loss."""
    done: list[Run] = []

    def train(run: Run, task: object) -> dict[str, Any]:
        done.append(run)
        return trained(run, 50.0 + run.seed + 5 * (run.arm == "learned"))

    monkeypatch.setattr(learned_splits, "train_run", train)
    nothing: Callable[[int], object] = lambda seed: seed  # noqa: E731
    monkeypatch.setattr(learned_splits, "TASKS", dict.fromkeys(TASKS, nothing))
    return done


def test_trainings_are_kept_and_not_repeated(runs: list[Run], tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    first = run_experiment(NAME, rows=rows, parts=["cnn"])
    assert len(runs) == len(list(rows.iterdir())) == len(PARTS["cnn"].runs) * PARTS["cnn"].seeds
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    stored = rows / f"{runs[0].name}.json"
    assert json.loads(stored.read_text()) == trained(runs[0], 50.0)
    (rows / f"{runs[-1].name}.json").unlink()
    del runs[:-1]
    again = run_experiment(NAME, rows=rows, parts=["cnn"])
    assert len(runs) == 2
    assert runs[0] == runs[1]
    assert again.text == first.text


def test_the_report_compares_with_dense_seed_by_seed(runs: list[Run]) -> None:
    report = run_experiment(NAME, full=True)
    assert set(report.figures) == {"learned-splits", "learned-splits-course"}
    assert len({run.name for run in runs}) == len(runs)
    by_arm = {
        (row["task"], row["width"], row["arm"], row["alpha"], row["opened"]): row
        for row in report.rows
        if row["closed"] == 0.7
    }
    earlier = [row for row in report.rows if row["closed"] != 0.7]
    assert len(by_arm) + len(earlier) == len(report.rows)
    learned = by_arm["heads", 8, "learned", 4, 0.2]
    assert (learned["gain"], learned["gain ci95"], learned["seeds"]) == (5, 0, 5)
    assert by_arm["language", 64, "learned", 4, 0.0]["gain"] == -5
    assert by_arm["language-6x", 64, "learned", 4, 0.0]["seeds"] == 1
    assert by_arm["formulas", 8, "clause", 2, 0.0]["seeds"] == 20
    assert "learned (alpha 4, opened at 20%) +5.0 ± 0.0" in report.text
    assert "**-5.000 ± 0.000**" in report.text
    assert "clause (alpha 2) 70.0 (50.0)" in report.text
    assert "nan" not in report.markdown()


def test_every_run_is_known() -> None:
    for part in (*PARTS.values(), *REDUCED.values()):
        assert part.seeds > 0
        for run in part.runs:
            assert run.task in TASKS
            assert run.arm in ARMS
    for task, width in product(("heads", "pixels"), (8, 16, 32)):
        arms = [
            r.arm
            for r in PARTS[task].runs
            if (r.width, r.alpha, r.opened, r.closed) == (width, 4, 0.0, 0.7)
        ]
        assert sorted(arms) == sorted({*ARMS} - {"dense", "clause"})


def test_missing_data_leave_a_part_out(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(seed: int) -> object:
        raise MissingDataError("no pixels here")

    monkeypatch.setitem(learned_splits.TASKS, "pixels", missing)
    report = run_experiment(NAME)
    assert "- pixels: no pixels here" in report.text
    assert {row["task"] for row in report.rows} == {"heads", "formulas"}
    with pytest.raises(MissingDataError, match="no pixels here"):
        run_experiment(NAME, parts=["pixels"])


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'heads'"):
        run_experiment(NAME, parts=["hedas"])
    with pytest.raises(ConfigError, match="theory has no parts"):
        run_experiment("theory", parts=["heads"])
