from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fpe_hf.recipes.evaluation import from_loss, make_compute_metrics


def test_the_bundled_metrics() -> None:
    ranked = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]])
    outcome = SimpleNamespace(predictions=ranked, label_ids=np.array([0, 1, 1, 2]))
    compute = make_compute_metrics(["accuracy", "f1", "top5_accuracy", "loss", "perplexity"])
    assert compute is not None
    expected = {"accuracy": 0.5, "f1": (2 / 3 + 2 / 3 + 0) / 3, "top5_accuracy": 1.0}
    assert compute(outcome) == pytest.approx(expected)


def test_those_of_the_loss_need_no_predictions() -> None:
    assert make_compute_metrics(["loss", "perplexity"]) is None
    assert from_loss("perplexity", 0.0) == 1.0
    assert from_loss("perplexity", 1e6) == float("inf")
