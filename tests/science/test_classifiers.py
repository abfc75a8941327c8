from __future__ import annotations

from dataclasses import replace

import torch

from fpe_hf.science.classifiers import compare_classifiers, hidden_activations, warm_up
from fpe_hf.science.data import Labelled, digits
from fpe_hf.science.training import Training

BRIEF = Training(epochs=2, lr=0.01)


def small() -> Labelled:
    return digits().first_classes(4).first_examples(300, 100)


def test_all_arms_hold_as_many_numbers() -> None:
    arms = [("random", 2), ("feature", 2), ("random", 3)]
    found = compare_classifiers(small(), [6, 5], arms, seeds=2, half=BRIEF)
    assert list(found) == [("dense", 1), *arms]
    dense = found["dense", 1].networks
    assert [weight.shape[1:] for weight in dense.weights] == [(6, 64), (5, 6), (4, 5)]
    for (_, alpha), outcome in found.items():
        assert torch.equal(outcome.networks.numbers(), dense.numbers())
        assert outcome.networks.weights[1].shape[1:] == (5 * alpha, 6 * alpha)
        assert outcome.accuracy.shape == (2,)
        assert float(outcome.accuracy.min()) > 0


def test_arms_that_share_a_batch_are_trained_as_if_alone() -> None:
    arms = [("random", 2), ("overlap", 2)]
    together = compare_classifiers(small(), [6], arms, seeds=2, half=BRIEF)
    for arm in arms:
        alone = compare_classifiers(small(), [6], [arm], seeds=2, half=BRIEF)[arm]
        assert torch.equal(alone.networks.masks[0], together[arm].networks.masks[0])
        for a, b in zip(alone.networks.weights, together[arm].networks.weights, strict=True):
            torch.testing.assert_close(a, b)


def test_training_teaches() -> None:
    found = compare_classifiers(small(), [8], [], seeds=2, half=replace(BRIEF, epochs=10))
    assert found["dense", 1].mean.value > 80


def test_hidden_activations() -> None:
    data = small()
    networks = warm_up(data, [6], 2, BRIEF)
    found = hidden_activations(networks, data.test_x)
    assert found.shape == (2, len(data.test_y), 6)
    x = data.test_x.flatten(1)
    expected = (x @ networks.weights[0][1].T + networks.biases[0][1]).relu()
    torch.testing.assert_close(found[1], expected)
