"""Bytes are counted by hand where that can be done."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.blocks import Shape, make_parent, make_tokens
from benchmarks.memory import activation_bytes, memory_of, state_bytes

CPU = torch.device("cpu")
SHAPE, TOKENS = Shape(32, 48), 7


def test_a_block_keeps_its_hidden_neurons_before_and_after_the_activation() -> None:
    parent = make_parent(SHAPE, torch.float32, CPU)
    x = make_tokens(SHAPE, TOKENS, torch.float32, CPU).requires_grad_()
    hidden = 4 * TOKENS * SHAPE.hidden
    assert activation_bytes(lambda: parent(x), parent, [x]) == 2 * hidden
    assert activation_bytes(lambda: parent(x), parent) == 2 * hidden + 4 * x.numel()
    found = memory_of(parent, x)
    assert found["activations"] == 2 * hidden
    assert found.keys() == {"activations", "state"}  # peaks are for GPUs


def test_a_storage_counts_once() -> None:
    x = torch.randn(10, requires_grad=True)

    def step() -> torch.Tensor:
        y = x.exp()
        return y * y.view(10) * y.flip(0).flip(0)

    kept = activation_bytes(step, nn.Identity(), [x])
    assert kept == 4 * 10 * 3  # exp, its square, and the flipped copy


def test_state_is_weights_gradients_two_moments_and_all_that_a_module_holds() -> None:
    linear = nn.Linear(8, 4)
    linear.register_buffer("index", torch.zeros(5, dtype=torch.uint8))
    linear.cache = {"order": [torch.zeros(6)]}
    x = torch.randn(3, 8)
    found = state_bytes(linear, lambda: linear(x).sum().backward())
    numbers = 8 * 4 + 4
    assert found == 4 * 4 * numbers + 5 + 4 * 6 + 2 * 4  # and a step counter for each parameter
    assert linear.weight.grad is None
