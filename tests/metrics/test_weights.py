from __future__ import annotations

from itertools import combinations
from math import isnan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

import fpe_hf
from fpe_hf.errors import ConfigError
from fpe_hf.metrics import (
    Interference,
    feature_capacity,
    gram_off_diagonal_energy,
    interference,
    mean_cosine,
)
from tiny_moe import MIXTURES, tiny_mixture

ENTRIES = st.integers(-3, 3).map(float)
MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=ENTRIES).map(torch.from_numpy)
)

CHUNKS = st.integers(1, 7)


@given(MATRICES, CHUNKS)
def test_feature_capacity(weight: Tensor, chunk: int) -> None:
    found = feature_capacity(weight, chunk=chunk)
    columns = weight.T.tolist()
    for i, own in enumerate(columns):
        numerator = sum(a * a for a in own) ** 2
        total = sum(sum(a * b for a, b in zip(own, c, strict=True)) ** 2 for c in columns)
        assert float(found[i]) == pytest.approx(numerator / total if total else 0.0)


@given(MATRICES, CHUNKS)
def test_mean_cosine(weight: Tensor, chunk: int) -> None:
    rows = [row for row in weight if row.any()]
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in combinations(rows, 2)]
    plain = mean_cosine(weight, chunk=chunk)
    absolute = mean_cosine(weight, absolute=True, chunk=chunk)
    if not cosines:
        assert isnan(plain)
        assert isnan(absolute)
        return
    assert plain == pytest.approx(np.mean(cosines), abs=1e-12)
    assert absolute == pytest.approx(np.mean(np.abs(cosines)), abs=1e-12)


@given(MATRICES, CHUNKS)
def test_gram_off_diagonal_energy(weight: Tensor, chunk: int) -> None:
    gram = weight.T @ weight
    total = float(gram.square().sum())
    found = gram_off_diagonal_energy(weight, chunk=chunk)
    if total == 0:
        assert isnan(found)
        return
    diagonal = float(gram.diagonal().square().sum())
    assert found == pytest.approx((total - diagonal) / total, abs=1e-12)


def test_orthogonal_inputs_do_not_interfere() -> None:
    weight = torch.eye(5)
    assert feature_capacity(weight).tolist() == [1.0] * 5
    assert mean_cosine(weight) == 0.0
    assert gram_off_diagonal_energy(weight) == 0.0


def test_whole_models_plain_and_widened() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    (plain,) = interference(model, ["0"])
    assert plain.name == "0"
    assert plain.neurons == 8
    assert plain.feature_capacity == pytest.approx(float(feature_capacity(model[0].weight).mean()))
    example = (torch.zeros(1, 12),)
    widened = fpe_hf.widen(model, alpha=2, fan_out="partition", example_inputs=example)
    (found,) = interference(widened)
    weight = widened[0].dense_weight()
    assert found.neurons == 16
    assert found.mean_cosine == mean_cosine(weight)
    assert found.gram_off_diagonal_energy == gram_off_diagonal_energy(weight)
    assert found.feature_capacity > plain.feature_capacity


@pytest.mark.parametrize("family", MIXTURES)
def test_stacked_experts_one_by_one(family: str) -> None:
    def measured() -> dict[str, Interference]:
        return {own.name: own for own in interference(model)}

    model = tiny_mixture(family)
    plain = measured()
    fpe_hf.widen(model, alpha=2, split="learned")
    opened = measured()
    fpe_hf.BudgetSchedule(model, 10).close()
    closed = measured()
    # Those of switch are modules, each with a name of its own.
    assert family == "switch" or any(name.endswith("[1]") for name in plain)
    assert opened.keys() == closed.keys() == plain.keys()
    for name, own in plain.items():
        assert opened[name].neurons == closed[name].neurons == 2 * own.neurons
        assert own.feature_capacity < closed[name].feature_capacity


def test_a_matrix_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"shape \(3,\)"):
        feature_capacity(torch.zeros(3))


@pytest.mark.slow
def test_a_large_layer_fits() -> None:
    weight = torch.randn(4096, 16384)
    assert 0 < float(feature_capacity(weight, chunk=256).mean()) < 1
    assert abs(mean_cosine(weight)) < 0.01
    assert 0 < gram_off_diagonal_energy(weight, chunk=256) < 1
