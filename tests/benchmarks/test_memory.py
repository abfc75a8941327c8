"""Bytes are counted by hand where that can be done."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from benchmarks.blocks import Shape, make_parent, make_tokens
from benchmarks.cases import Group
from benchmarks.contenders import Contender, block_call
from benchmarks.counting import memory_rows
from benchmarks.memory import activation_bytes, fresh_process, resident_peak_bytes, state_bytes

CPU = torch.device("cpu")
SHAPE, TOKENS = Shape(32, 48), 7


def test_a_block_keeps_its_hidden_neurons_before_and_after_the_activation() -> None:
    parent = make_parent(SHAPE, torch.float32, CPU)
    x = make_tokens(SHAPE, TOKENS, torch.float32, CPU).requires_grad_()
    hidden = 4 * TOKENS * SHAPE.hidden
    assert activation_bytes(lambda: parent(x), parent, [x]) == 2 * hidden
    assert activation_bytes(lambda: parent(x), parent) == 2 * hidden + 4 * x.numel()


def test_a_storage_counts_once() -> None:
    x = torch.randn(10, requires_grad=True)

    def step() -> torch.Tensor:
        y = x.exp()
        return y * y.view(10) * y.flip(0).flip(0)

    kept = activation_bytes(step, nn.Identity(), [x])
    assert kept == 4 * 10 * 3  # exp, its square, and the flipped copy


def test_state_is_weights_gradients_and_two_moments() -> None:
    linear = nn.Linear(8, 4)
    linear.register_buffer("index", torch.zeros(5, dtype=torch.uint8))
    x = torch.randn(3, 8)
    found = state_bytes(linear, block_call_like(linear, x))
    numbers = 8 * 4 + 4
    assert found == 4 * 4 * numbers + 5 + 2 * 4  # and a step counter for each parameter
    assert linear.weight.grad is None


def block_call_like(module: nn.Module, x: torch.Tensor):  # type: ignore[no-untyped-def]
    return lambda: module(x).sum().backward()


def test_a_tensor_that_is_no_buffer_counts_too() -> None:
    linear = nn.Linear(8, 4, bias=False)
    alone = state_bytes(linear, block_call_like(linear, torch.randn(3, 8)))
    linear.cache = {"order": [torch.zeros(6)]}
    assert state_bytes(linear, block_call_like(linear, torch.randn(3, 8))) == alone + 24


def test_the_peak_of_resident_memory_is_that_of_the_step() -> None:
    megabyte = 2**20
    del_me = torch.ones(64 * megabyte)  # an earlier peak does not count
    del del_me
    found = resident_peak_bytes(lambda: torch.ones(16 * megabyte))
    assert 60 * megabyte < found < 80 * megabyte


def test_a_fresh_process_is_another_one() -> None:
    assert fresh_process(os.getpid) != os.getpid()


def test_rows_are_multiples_of_the_dense_parents() -> None:
    parent = make_parent(SHAPE, torch.float32, CPU)
    twice = nn.Sequential(*make_parent(SHAPE, torch.float32, CPU), *parent)
    modules = {Contender("dense"): parent, Contender("masked"): twice}
    notes = {Contender("bsr"): "no kernel"}
    group = Group(SHAPE, 2, "fp32")
    rows = {r.contender: r for r in memory_rows(group, modules, notes, TOKENS, CPU, peak=False)}
    assert rows["dense"].activations == rows["dense"].state == 1.0
    assert rows["masked"].state == pytest.approx(2.0)
    assert rows["masked"].activations > 2.0  # the tokens in the middle, too
    assert rows["bsr"].note == "no kernel"
    assert rows["masked"].peak is None


def test_what_cannot_train_keeps_a_note() -> None:
    class NoBackward(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not implemented")

    modules = {Contender("bsr"): NoBackward(2, 2)}
    (row,) = memory_rows(Group(SHAPE, 2, "fp32"), modules, {}, TOKENS, CPU, peak=False)
    assert row.note == "RuntimeError: not implemented"


def test_a_call_of_a_block_runs() -> None:
    block_call(make_parent(SHAPE, torch.float32, CPU), torch.randn(1, 2, 32), "forward")()
