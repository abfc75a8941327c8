from __future__ import annotations

import pytest
import torch

from fpe_hf.science.tasks.language import language, python_topics


def test_windows_of_text() -> None:
    data = python_topics()
    assert torch.equal(data.x[:, 1:], data.y[:, :-1])
    assert torch.equal(data.x[1, 0], data.x[0, 16])
    text = "".join(data.names[code] for code in data.x[5000:5004, 0:16].flatten().tolist())
    assert " the " in "".join(data.names[code] for code in data.x[:, 0].tolist()) or text
    assert int(data.x.max()) < len(data.names)
    assert len(data.test_x) * 64 > 20_000


def test_nothing_is_tested_that_was_trained_on() -> None:
    data = python_topics()

    def text(x: torch.Tensor) -> str:
        return "".join(data.names[code] for code in x.flatten().tolist())

    trained = text(data.x[:, :16])  # windows begin every 16 characters
    tested = [part for part in text(data.test_x).split("\n\n") if len(part) > 80]
    assert len(tested) > 50
    assert not [part for part in tested if part in trained]


def test_the_model_predicts_characters() -> None:
    task = language(3, 0)
    assert task.steps == 3 * language(1, 0).steps
    model = task.build(8)
    loss = task.loss(model, *next(task.batches(0)))
    assert loss.item() == pytest.approx(torch.tensor(len(task.data.names)).log().item(), abs=0.5)
    assert model.transformer.h[0].mlp.c_fc.weight.shape == (64, 8)
