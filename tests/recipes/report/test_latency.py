from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import fpe_hf
from fpe_hf.models.classifiers import MLPClassifier
from fpe_hf.models.configs import MLPClassifierConfig
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.report import latency as module
from fpe_hf.recipes.report import measure_latency, measure_saved


class Slow(nn.Module):
    """Takes a given time, and notes how it is called."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds = seconds
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor, **kwargs: Any) -> None:
        assert kwargs == {"return_loss": True}
        self.calls.append((len(x), self.training, torch.is_inference_mode_enabled()))
        clock.now += self.seconds


class Clock:
    """Time passes when a slow model runs, and never else."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


clock = Clock()


@pytest.fixture
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 0.1)
    monkeypatch.setattr(module, "Timer", partial(Timer, timer=clock))


@pytest.mark.usefixtures("_slow")
def test_both_are_timed_on_the_same_inputs() -> None:
    dense, widened = Slow(0.002), Slow(0.006)
    widened.eval()
    found = measure_latency(dense, widened, {"x": torch.zeros(4, 3), "return_loss": True})
    assert [timing.examples for timing in found.timings] == [1, 4]
    for timing in found.timings:
        assert len(timing.dense) == len(timing.widened) >= 5
        assert timing.medians == pytest.approx((0.002, 0.006))
        assert timing.ratio == pytest.approx(3)
        assert timing.middle[0] <= timing.ratio <= timing.middle[1]
    assert {examples for examples, _, _ in dense.calls} == {1, 4}
    assert dense.calls == widened.calls
    assert all(call[1:] == (False, True) for call in dense.calls)
    assert dense.training
    assert not widened.training
    assert (found.threads, found.dtype) == (torch.get_num_threads(), "float32")
    assert found.device.startswith("cpu")


@pytest.mark.usefixtures("_slow")
def test_one_example_is_one_batch_size() -> None:
    found = measure_latency(Slow(0.1), Slow(0.1), {"x": torch.zeros(1, 3), "return_loss": True})
    assert [timing.examples for timing in found.timings] == [1]


@pytest.mark.usefixtures("_slow")
def test_models_are_taken_in_turns() -> None:
    order: list[str] = []

    class Noting(Slow):
        def forward(self, x: Tensor, **kwargs: Any) -> None:
            super().forward(x, **kwargs)
            order.append("dense" if self is dense else "widened")

    dense, widened = Noting(0.006), Noting(0.006)
    measure_latency(dense, widened, {"x": torch.zeros(1, 3), "return_loss": True})
    changes = sum(one != other for one, other in pairwise(order))
    assert changes >= 5


def test_models_that_a_run_saved(tmp_path: Path) -> None:
    config = MLPClassifierConfig(num_features=16, hidden_sizes=[8], num_labels=3)
    dense = MLPClassifier(config)
    example = {"features": torch.randn(2, 16)}
    dense.save_pretrained(tmp_path / "dense")
    widened = fpe_hf.widen(dense, alpha=2, targets=["layers"], example_inputs=example)
    widened.save_pretrained(tmp_path / "fpe")
    recipe = parse_recipe(
        """
        model: {task: feature-classification, config: {model_type: mlp_classifier}}
        data: {source: digits}
        output: {folder: out}
        """
    )
    found = measure_saved(recipe, tmp_path / "dense", tmp_path / "fpe", example)
    assert [timing.examples for timing in found.timings] == [1, 2]
    assert all(seconds > 0 for timing in found.timings for seconds in timing.medians)
