"""The MLP in C equals the projections one by one, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from fpe_hf.kernels import few, mlp, native
from fpe_hf.layers.hidden import eager_hidden
from layers.running import run
from planning.cases import KINDS, Case, cases, make_case

pytestmark = pytest.mark.skipif(native.library("mlp") is None, reason="no C compiler for mlp.c")

Function = Callable[[Tensor], Tensor]


FUNCTIONS = {
    name: ACT2FN[name] for name in ("relu", "silu", "quick_gelu", "gelu", "gelu_new", "relu2")
}


@pytest.fixture(autouse=True)
def _small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny blocks run in several chunks and parts, and a few tokens as one operation, too."""
    monkeypatch.setattr(few, "MOST_TOKENS", {})
    monkeypatch.setattr(mlp, "CHUNK_TOKENS", 64)
    monkeypatch.setattr(mlp, "PART_NUMBERS", 1)


class MLP(nn.Module):
    """The layers of a case as a model has them."""

    def __init__(self, case: Case, function: Function = functional.gelu) -> None:
        super().__init__()
        *ups, self.down = case.layers()
        self.ups = nn.ModuleList(ups)
        self.kind, self.function = case.block.fused or case.block.kind, function

    def forward(self, x: Tensor) -> Tensor:
        pre = [up(x) for up in self.ups]
        if self.kind == "halves":
            pre = list(pre[0].chunk(2, -1))
        elif self.kind == "interleaved":
            pre = [pre[0][..., ::2], pre[0][..., 1::2]]
        hidden = self.function(pre[0])
        made: Tensor = self.down(hidden * pre[1] if len(pre) > 1 else hidden)
        return made


calls: list[str] = []


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    known = mlp._Call.run

    def count(self: Any, function: str, *args: Any) -> None:
        calls.append(function)
        known(self, function, *args)

    monkeypatch.setattr(mlp._Call, "run", count)


OUTPUT, GRADIENT = 5e-6, 1e-4
"""Errors, in units of a tensor's largest number, or of 1. Gradients sum over tokens, and cancel."""


def assert_same(model: MLP, x: Tensor) -> None:
    calls.clear()
    found = list(run(model, x))
    assert calls == ["fpe_mlp", "fpe_mlp_back"]
    with torch.no_grad():
        assert torch.equal(model(x), found[0])
    with eager_hidden():
        expected = list(run(model.double(), x.double()))
    for place, (own, wanted) in enumerate(zip(found, expected, strict=True)):
        assert own.dtype == torch.float32
        error = (own.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)
        assert error < (GRADIENT if place else OUTPUT)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"coupling": 0.3, "bias": "child"},
    {"coupling": 1.0},
    {"coupling": 1.0, "bias": "child"},
    {"coupling": 0.9, "learn_coupling": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_and_gradients(
    kind: str, recompute: bool, fan_out: str, options: dict[str, Any]
) -> None:
    case = make_case(
        kind, 22, 17, 19, layout="block", tile_size=10, alpha=3, fan_out=fan_out, **options
    )
    model = MLP(case)
    for up in model.ups:
        up.recompute = recompute
    assert_same(model, torch.randn(3, 30, 22))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cases(layout="block"), st.sampled_from(list(FUNCTIONS)), st.integers(1, 150), st.booleans())
def test_any_shape(case: Case, name: str, tokens: int, small: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, "PART_NUMBERS", 1 if small else 1 << 16)
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, case.spec.in_features, generator=generator)
        assert_same(MLP(case, FUNCTIONS[name]), x)


@pytest.mark.parametrize("coupling", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
def test_more_than_is_taken_at_a_time(
    monkeypatch: pytest.MonkeyPatch, fan_out: str, coupling: float
) -> None:
    """Products of hundreds of terms and rows, of several chunks of tokens."""
    monkeypatch.undo()
    monkeypatch.setattr(mlp, "CHUNK_TOKENS", 128)
    case = make_case(
        d=1000, h=530, o=900, layout="block", alpha=2, fan_out=fan_out, coupling=coupling
    )
    model, x = MLP(case), torch.randn(300, 1000)
    found = list(run(model, x))
    with eager_hidden():
        expected = list(run(model.double(), x.double()))
    for own, wanted in zip(found, expected, strict=True):
        error = (own.double() - wanted).norm() / wanted.norm()
        assert error < 2e-6


@pytest.mark.parametrize("name", FUNCTIONS)
def test_extremes(name: str) -> None:
    """Numbers of any size, and NaN, go through the activation as in float64."""
    model = MLP(make_case(d=8, h=2, o=4, layout="block", alpha=2, biased=False), FUNCTIONS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    sizes = torch.tensor([0.0, 1e-30, -1e-30, 30.0, -30.0, 1e4, -1e4, 1e9, -1e9, torch.nan])
    x = torch.zeros(len(sizes), 8)
    x[:, 0] = sizes
    assert (model.ups[0](x) != 0).any(1).sum() > 7
    *finite, nan = next(run(model, x))
    with eager_hidden():
        *expected, _ = next(run(model.double(), x.double()))
    torch.testing.assert_close(
        torch.stack(finite).double(), torch.stack(expected), rtol=2e-6, atol=2e-6
    )
    assert nan.isnan().any()


def test_threads_change_nothing() -> None:
    case = make_case("gated", 40, 37, 29, layout="block", alpha=3, tile_size=20)
    model, x = MLP(case, functional.silu), torch.randn(200, 40)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(list(run(model, x)))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_frozen_parameters_get_no_gradient() -> None:
    model = MLP(make_case(d=12, h=7, o=9, layout="block", alpha=3))
    model.down.weight.requires_grad_(False)
    for name, parameter in model.ups[0].named_parameters():
        parameter.requires_grad_(name == "bias")
    model(torch.randn(20, 12)).sum().backward()
    grads = {name: p.grad is not None for name, p in model.named_parameters()}
    assert grads == {
        "down.weight": False,
        "down.bias": True,
        "ups.0.weight": False,
        "ups.0.bias": True,
    }
    assert calls == ["fpe_mlp", "fpe_mlp_back"]


def test_the_backward_pass_can_be_repeated() -> None:
    model, x = MLP(make_case("gated", 12, 7, 9, layout="block", alpha=3)), torch.randn(20, 12)
    loss = model(x).square().sum()
    once = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    again = torch.autograd.grad(loss, list(model.parameters()))
    for one, two in zip(once, again, strict=True):
        assert torch.equal(one, two)


def test_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 6)
    assert mlp.fits(x, x)
    assert not mlp.fits(x, x.double())
    assert not mlp.fits(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not mlp.fits(x)
    monkeypatch.setattr(native, "library", lambda name: None)
    assert not mlp.fits(x)
