from __future__ import annotations

import pytest
import torch

from fpe_hf.science.networks import init_networks
from fpe_hf.science.noise import noisy_inputs, noisy_weights
from fpe_hf.science.splitting import expand


def test_noise_of_level_zero_changes_nothing() -> None:
    networks = expand(init_networks(2, [10, 4, 3]), 2)
    x = torch.rand(5, 10)
    assert torch.equal(noisy_inputs(x, 0.0), x)
    for before, after in zip(networks.weights, noisy_weights(networks, 0.0).weights, strict=True):
        assert torch.equal(before, after)


def test_noise_has_the_size_that_was_asked_for_and_spares_what_does_not_exist() -> None:
    networks = expand(init_networks(1, [400, 40, 200]), 2)
    noisy = noisy_weights(networks, 0.5)
    for weight, mask, other in zip(networks.weights, networks.masks, noisy.weights, strict=True):
        assert not bool(other[~mask].any())
        size = weight[mask].square().mean().sqrt()
        noise = (other - weight)[mask]
        assert float(noise.std() / size) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(networks.biases[0], noisy.biases[0])
    x = torch.zeros(100, 100)
    assert float(noisy_inputs(x, 0.3).std()) == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(noisy_inputs(x, 0.3), noisy_inputs(x, 0.3, seed=1))
