from __future__ import annotations

import pytest
import torch

from fpe_hf.science.gains import gain_figure, gain_rows, select, told

ACCURACIES = {
    ("dense", 1): torch.tensor([70.0, 80.0]),
    ("random", 2): torch.tensor([75.0, 87.0]),
    ("random", 4): torch.tensor([60.0, 70.0]),
}


def test_gains_are_paired_by_seed() -> None:
    rows = gain_rows(ACCURACIES, neurons=8)
    assert [row["gain"] for row in rows] == [0.0, 6.0, -10.0]
    assert rows[1]["gain ci95"] == pytest.approx(12.706, abs=1e-3)  # t of 1 degree, deviation 1.414
    assert rows[2]["gain ci95"] == 0.0
    assert rows[1]["accuracy"] == 81.0
    assert list(rows[0])[:3] == ["neurons", "arm", "alpha"]
    assert select(rows, arm="random", alpha=4) == [rows[2]]


def test_gains_are_told_by_the_rule() -> None:
    rows = gain_rows(ACCURACIES, neurons=8)
    assert [row["beside dense"] for row in rows] == ["", "no clear difference", "worse"]


def test_what_is_worse_is_told_in_bold() -> None:
    rows = gain_rows(ACCURACIES, neurons=8)[1:]
    assert told(rows, "alpha") == "2: +6.0 ± 12.7, **4: -10.0 ± 0.0**"


def test_a_figure_has_a_line_per_arm_and_axes_per_panel() -> None:
    rows = [
        row
        for classes in (10, 20)
        for neurons in (4, 8)
        for row in gain_rows(ACCURACIES, classes=classes, neurons=neurons)
    ]
    figure = gain_figure(rows, "neurons", "classes")
    assert [ax.get_title() for ax in figure.axes] == ["10 classes", "20 classes"]
    assert [len(ax.containers) for ax in figure.axes] == [2, 2]
    assert len(gain_figure(rows[:3], "neurons").axes) == 1
