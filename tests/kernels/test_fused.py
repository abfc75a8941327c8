"""An MLP computed piece by piece equals the same in plain torch, derivatives of any order too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fpe_hf.kernels import fused
from fpe_hf.kernels.fused import MLP, plain
from fpe_hf.layers import FPELayer
from planning.cases import KINDS, Case, cases, make_case

GRADIENT_SEED = 1


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny blocks are cut into several pieces, too."""
    monkeypatch.setattr(fused, "MOST_TOKENS", 4)
    monkeypatch.setattr(fused, "PIECE", 10)


def gated(*sources: Tensor, overwrite: bool = False) -> Tensor:
    if overwrite:
        return sources[0].copy_(gated(*sources))
    if len(sources) == 1:
        return functional.gelu(sources[0])
    return functional.silu(sources[0]) * sources[1]


def operands(layers: list[FPELayer]) -> tuple[Tensor | None, ...]:
    *ups, down = (layer for layer in layers)
    found: list[Any] = []
    for up in ups:
        found += [up.inputs, up.weight, up.bias, up.coupling]
    return (*found, down.outputs, down.weight, down.bias)


def gradients(result: Tensor, leaves: list[Tensor], **more: Any) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(GRADIENT_SEED)
    upstream = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    return torch.autograd.grad(result, leaves, upstream.to(result.dtype), **more)


def assert_equal_to_plain(case: Case, tokens: int, recompute: bool = False) -> None:
    given_ = operands(case.layers())
    dtype = case.parent.down.dtype
    x = torch.randn(tokens, case.spec.in_features, dtype=dtype, requires_grad=True)
    mlp = MLP(case.spec, gated, recompute)
    leaves = [x, *(t for t in given_ if t is not None and t.requires_grad)]
    found, expected = fused.fused(mlp, x, *given_), plain(mlp, x, *given_)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, leaves), gradients(expected, leaves))
    with torch.no_grad():
        torch.testing.assert_close(fused.fused(mlp, x, *given_), expected)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=cases(layout="block", dtype=torch.float64),
    tokens=st.integers(0, 9),
    recompute=st.booleans(),
)
def test_values_and_gradients(case: Case, tokens: int, recompute: bool) -> None:
    assert_equal_to_plain(case, tokens, recompute)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coupling", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
def test_one_parent_and_many_children(kind: str, coupling: float, fan_out: str) -> None:
    case = make_case(
        kind, 256, 1, 256, layout="block", alpha=64, fan_out=fan_out, coupling=coupling,
        dtype=torch.float64,
    )  # fmt: skip
    assert_equal_to_plain(case, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives(kind: str, recompute: bool) -> None:
    case = make_case(kind, 8, 5, 6, layout="block", tile_size=3, alpha=2, dtype=torch.float64)
    given_ = operands(case.layers())
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(t for t in given_ if t is not None and t.requires_grad)]
    penalties = []
    for way in (fused.fused, plain):
        result = way(MLP(case.spec, gated, recompute), x, *given_)
        first = gradients(result, leaves, create_graph=True)
        penalty = sum((own.square().sum() for own in first), start=x.new_zeros(()))
        penalties.append(torch.autograd.grad(penalty, leaves, allow_unused=True))
    torch.testing.assert_close(*penalties)


def test_hessian_and_jacobians() -> None:
    case = make_case("plain", 4, 3, 4, layout="block", dtype=torch.float64)
    given_ = operands(case.layers())
    x = torch.randn(2, 4, dtype=torch.float64)
    for of in (
        lambda way: torch.autograd.functional.hessian(lambda x: way(x).square().sum(), x),
        lambda way: torch.autograd.functional.jacobian(way, x),
        lambda way: torch.autograd.functional.jacobian(way, x, vectorize=True),
    ):
        ways = [
            lambda x, way=way: way(MLP(case.spec, gated), x, *given_)
            for way in (fused.fused, plain)
        ]
        found, expected = map(of, ways)
        assert bool(expected.any())
        torch.testing.assert_close(found, expected)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    case = make_case("gated", 8, 5, 6, layout="block", dtype=torch.float64)
    up, gate, down = case.layers()
    for layer in (up, gate, down):
        layer.requires_grad_(False)
    gate.bias.requires_grad_()  # type: ignore[union-attr]
    result = fused.fused(
        MLP(case.spec, gated), torch.randn(3, 8).double(), *operands([up, gate, down])
    )
    result.sum().backward()
    assert gate.bias.grad is not None  # type: ignore[union-attr]
    assert all(p.grad is None for layer in (up, down) for p in layer.parameters())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_precisions(dtype: torch.dtype, tolerance: float) -> None:
    case = make_case("gated", 12, 7, 9, layout="block", alpha=3, dtype=dtype)
    exact = [
        t.double() if t is not None and t.is_floating_point() else t
        for t in operands(case.layers())
    ]
    x = torch.randn(9, 12).to(dtype)
    found = fused.fused(MLP(case.spec, gated), x, *operands(case.layers()))
    expected = plain(MLP(case.spec, gated), x.double(), *exact)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    x.requires_grad_()
    given_ = operands(case.layers())
    leaves = [x, *(t for t in given_ if t is not None and t.requires_grad)]
    fine = [t.detach().double().requires_grad_() for t in leaves]
    wide = [
        fine[[id(t) for t in leaves].index(id(t))] if id(t) in map(id, leaves) else t
        for t in given_
    ]
    own = gradients(fused.fused(MLP(case.spec, gated), x, *given_), leaves)
    wanted = gradients(plain(MLP(case.spec, gated), fine[0], *wide), fine)
    for gradient, exact_gradient in zip(own, wanted, strict=True):
        assert gradient.dtype == dtype
        error = (gradient - exact_gradient).abs().max()
        assert error < tolerance * exact_gradient.abs().max()


def test_sums_of_16_bits_are_rounded_once() -> None:
    case = make_case(d=16, h=256, o=16, layout="block", alpha=4, dtype=torch.bfloat16)
    given_ = operands(case.layers())
    exact = [t.double() if t is not None and t.is_floating_point() else t for t in given_]
    x = torch.randn(64, 16, dtype=torch.bfloat16)
    expected = plain(MLP(case.spec, gated), x.double(), *exact)
    errors = [
        float((way(MLP(case.spec, gated), x, *given_) - expected).norm())
        for way in (fused.fused, plain)
    ]
    assert errors[0] < 1.2 * errors[1]  # in pieces of ten hidden activations


def test_sums_are_kept_or_computed_again() -> None:
    case = make_case(d=12, h=70, o=9, layout="block", alpha=3, dtype=torch.float64)
    x, given_ = torch.randn(64, 12, dtype=torch.float64), operands(case.layers())
    hidden = 64 * 3 * 70 * 8
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    for recompute in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            fused.fused(MLP(case.spec, gated, recompute), x, *given_)
        own = sum(t.nbytes for t in (x, *given_) if t is not None)
        assert sum(kept) == own + (0 if recompute else hidden)
