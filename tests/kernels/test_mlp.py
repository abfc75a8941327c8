"""The MLP in C equals the projections one by one, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fpe_hf.kernels import few, mlp, native
from fpe_hf.layers.hidden import eager_hidden
from planning.cases import KINDS, Case, cases, make_case

pytestmark = pytest.mark.skipif(native.library("mlp") is None, reason="no C compiler for mlp.c")

Function = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


FUNCTIONS: dict[str, Function] = {
    "relu": functional.relu,
    "silu": functional.silu,
    "quick_gelu": quick_gelu,
    "gelu": functional.gelu,
    "gelu_tanh": tanh_gelu,
}


@pytest.fixture(autouse=True)
def _small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny blocks run in several chunks and parts, and a few tokens as one operation, too."""
    monkeypatch.setattr(few, "MOST_TOKENS", 0)
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


def run(model: MLP, x: Tensor) -> Iterator[Tensor]:
    """Output, and gradients of the inputs and of every parameter."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    yield output.detach()
    output.backward(torch.sin(torch.arange(output.numel(), dtype=x.dtype)).view_as(output))
    for tensor in (x, *model.parameters()):
        assert tensor.grad is not None
        yield tensor.grad.clone()


calls: list[str] = []


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    known = mlp._Call.run

    def count(self: Any, function: str, *args: Any) -> None:
        calls.append(function)
        known(self, function, *args)

    monkeypatch.setattr(mlp._Call, "run", count)


TOLERANCE = 2e-5
"""Of the largest number of a tensor, or of 1: sums may cancel."""


def assert_same(model: MLP, x: Tensor) -> None:
    calls.clear()
    found = list(run(model, x))
    assert calls == ["fpe_mlp", "fpe_mlp_back"]
    with torch.no_grad():
        assert torch.equal(model(x), found[0])
    with eager_hidden():
        expected = list(run(model.double(), x.double()))
    for own, wanted in zip(found, expected, strict=True):
        assert own.dtype == torch.float32
        error = (own.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)
        assert error < TOLERANCE


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
