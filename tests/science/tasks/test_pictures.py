from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional

import fpe_hf
from fpe_hf.science.data import Labelled, digits
from fpe_hf.science.tasks import Task, pictures


def small() -> Labelled:
    data = digits().first_examples(300, 100)
    x, test_x = (functional.interpolate(t, size=28) for t in (data.x, data.test_x))
    return replace(data, x=x, test_x=test_x)


@pytest.mark.parametrize(
    "make", [pictures.pixels, partial(pictures.deep, 4), pictures.cnn, pictures.vit]
)
def test_models_learn_and_can_be_widened(
    make: Callable[[int], Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_images", small)
    monkeypatch.setattr(pictures, "_flat", pictures._flat.__wrapped__)
    task = make(0)
    assert task.steps > 0
    model = task.build(4)
    x, y = next(task.batches(0))
    assert 2 < task.loss(model, x, y).item() < 3
    assert 0 <= task.score(model) <= 100
    blocks = fpe_hf.find_mlps(model, task.example_inputs)
    assert {block.parents for block in blocks} == {4}
    widened = fpe_hf.widen(model, alpha=2, bias="child", example_inputs=task.example_inputs)
    assert fpe_hf.audit(widened).ok
    torch.testing.assert_close(task.score(widened), task.score(widened))
