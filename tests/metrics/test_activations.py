from __future__ import annotations

from collections import Counter
from math import exp, isnan, log

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fpe_hf.errors import ConfigError
from fpe_hf.metrics import (
    class_entropy,
    class_means,
    class_selectivity,
    effective_rank,
    participation_ratio,
    polysemanticity,
    top_purity,
)


@st.composite
def responses(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    classes, each, neurons = (draw(st.integers(low, 4)) for low in (2, 1, 1))
    labels = torch.arange(classes).repeat(each)
    entry = st.integers(0, 3).map(float)
    rows = draw(
        st.lists(
            st.lists(entry, min_size=neurons, max_size=neurons),
            min_size=len(labels),
            max_size=len(labels),
        )
    )
    return torch.tensor(rows), labels


@given(responses(), st.sampled_from([0.25, 0.5, 1.0]))
def test_class_metrics_against_their_definitions(
    case: tuple[Tensor, Tensor], threshold: float
) -> None:
    activations, labels = case
    found = class_means(activations, labels)
    selectivity, entropy = (f(activations, labels) for f in (class_selectivity, class_entropy))
    load = polysemanticity(activations, labels, threshold=threshold)
    for neuron in range(activations.shape[1]):
        means = [float(activations[labels == c, neuron].mean()) for c in range(len(found[0]))]
        assert found[neuron].tolist() == pytest.approx(means)
        best = max(means)
        if best == 0:
            assert float(selectivity[neuron]) == 0
            assert isnan(float(entropy[neuron]))
            assert int(load[neuron]) == 0
            continue
        rest = (sum(means) - best) / (len(means) - 1)
        assert float(selectivity[neuron]) == pytest.approx((best - rest) / (best + rest), abs=1e-5)
        shares = [m / sum(means) for m in means if m]
        expected = -sum(p * log(p) for p in shares) / log(len(means))
        assert float(entropy[neuron]) == pytest.approx(expected, abs=1e-5)
        margins = [abs(m - threshold * best) for m in means]
        if min(m for m in margins if m != 0) > 1e-5 if any(margins) else True:
            assert int(load[neuron]) == sum(m >= threshold * best - 1e-6 for m in means)


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 99))
def test_dimensions_against_their_definitions(examples: int, neurons: int, seed: int) -> None:
    x = torch.randn(examples, neurons, generator=torch.Generator().manual_seed(seed))
    values = np.linalg.svd((x - x.mean(0)).double().numpy(), compute_uv=False)
    shares = [v / values.sum() for v in values if v > 1e-12]
    assume(shares)
    assert effective_rank(x) == pytest.approx(exp(-sum(p * log(p) for p in shares)), rel=1e-3)
    eigenvalues = values**2
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert participation_ratio(x) == pytest.approx(expected, rel=1e-4)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99), st.data())
def test_purity_is_the_count_among_the_strongest(
    examples: int, neurons: int, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.rand(examples, neurons, generator=generator)
    labels = torch.randint(3, (examples,), generator=generator)
    count = data.draw(st.integers(1, examples))
    found = top_purity(activations, labels, count=count)
    for neuron in range(neurons):
        order = sorted(range(examples), key=lambda e: -float(activations[e, neuron]))
        most = max(Counter(int(labels[e]) for e in order[:count]).values())
        assert float(found[neuron]) == pytest.approx(most / count)


def test_a_neuron_per_class_is_selective() -> None:
    activations, labels = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
    assert class_selectivity(activations, labels).tolist() == [1.0] * 4
    assert class_entropy(activations, labels).tolist() == [0.0] * 4
    assert polysemanticity(activations, labels).tolist() == [1] * 4
    assert top_purity(activations, labels, count=3).tolist() == [1.0] * 4


def test_labels_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"classes \[1\]"):
        class_means(torch.zeros(2, 3), torch.tensor([0, 2]))
    with pytest.raises(ConfigError, match="do not fit"):
        class_means(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ConfigError, match="count=3"):
        top_purity(torch.zeros(2, 3), torch.tensor([0, 1]), count=3)
