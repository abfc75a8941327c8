from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import fpe_hf
from fpe_hf.modules import nonzeros
from fpe_hf.science.arms import ARMS, Run, flops_per_step, train_run
from fpe_hf.science.data import digits
from fpe_hf.science.tasks import Task, mlp

STEPS = 40


def task() -> Task:
    data = digits().first_examples(300, 100)
    data = replace(data, x=data.x.flatten(1), test_x=data.test_x.flatten(1))
    return Task(data, lambda width: mlp(64, [width], 10), STEPS, 32, lr=0.03, first="0")


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    arms = [arm for arm in ARMS if arm != "clause"]
    return {arm: train_run(Run("digits", 6, arm, 3), task()) for arm in arms}


def test_arms_end_with_as_many_nonzeros(rows: dict[str, dict[str, Any]]) -> None:
    dense = nonzeros(mlp(64, [6], 10))
    wide = nonzeros(mlp(64, [18], 10))
    found = {arm: row["nonzeros"] for arm, row in rows.items()}
    assert found.pop("wide-dense") == wide
    assert set(found.values()) == {dense}


def test_what_training_costs_is_counted(rows: dict[str, dict[str, Any]]) -> None:
    narrow, wide = flops_per_step(task(), 6), flops_per_step(task(), 18)
    assert narrow == 2 * 32 * 6 * (2 * 64 + 3 * 10)  # inputs need no gradients
    assert rows["dense"]["flops"] == STEPS * narrow
    assert (
        rows["wide-dense"]["flops"]
        == rows["learned"]["flops"]
        == STEPS * wide
        == STEPS * 3 * narrow
    )
    assert rows["random"]["flops"] == STEPS // 2 * (narrow + wide)
    assert rows["dense-longer"]["flops"] == rows["learned"]["flops"]
    assert rows["dense-longer"]["steps"] == 3 * STEPS


def test_the_course_is_looked_at(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        assert len(row["course"]) == 20
        assert row["course"][-1]["nonzeros"] == row["nonzeros"]
        assert all(0 < point["capacity"] < 1 for point in row["course"])
    found = [point["nonzeros"] for point in rows["learned"]["course"]]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 * found[-1]


def test_runs_repeat(rows: dict[str, dict[str, Any]]) -> None:
    for arm in ("random", "learned"):
        torch.rand(3)
        again = train_run(Run("digits", 6, arm, 3), task())
        assert {**again, "seconds": 0} == {**rows[arm], "seconds": 0}
    other = train_run(Run("digits", 6, "random", 3, seed=1), task())
    assert other["course"] != rows["random"]["course"]


def test_arms_see_the_same_examples() -> None:
    batches = [task().batches(3) for _ in range(2)]
    for _ in range(30):
        (x, y), (other_x, other_y) = map(next, batches)
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
        assert len(y) == 32


def test_training_teaches(rows: dict[str, dict[str, Any]]) -> None:
    assert all(row["score"] > 30 for row in rows.values())


def test_a_split_may_come_later() -> None:
    row = train_run(Run("digits", 6, "learned", 3, opened=0.5), task())
    first, last = row["course"][0]["nonzeros"], row["course"][-1]["nonzeros"]
    assert first == last == nonzeros(mlp(64, [6], 10))
    assert max(point["nonzeros"] for point in row["course"]) > 2 * last


def test_masked_weights_are_no_nonzeros() -> None:
    widened = fpe_hf.widen(mlp(8, [4], 3), alpha=2, example_inputs=(torch.zeros(1, 8),))
    assert nonzeros(widened) == nonzeros(mlp(8, [4], 3))


def test_names_of_runs() -> None:
    assert Run("heads", 8, "learned", 4, 0.2, 3).name == "heads-8-learned-a4-at0.2-s3"
    assert Run("heads", 8, "dense", 1).name == "heads-8-dense-a1-s0"
