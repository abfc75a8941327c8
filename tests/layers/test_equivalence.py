"""I3: every layer equals its dense reference, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from fpe_hf.layers import FPELayer
from layers.reference import DenseReference, packed_down, packed_up
from planning.cases import KINDS, Case, cases, make_case

COUPLINGS: dict[str, dict[str, Any]] = {
    "0": {"coupling": 0.0},
    "0.3": {"coupling": 0.3},
    "1": {"coupling": 1.0},
    "learned": {"coupling": 1.0, "learn_coupling": True},  # trained away from 1
}
BIASES: dict[str, dict[str, Any]] = {
    "shared": {"bias": "shared"},
    "child": {"bias": "child"},
    "none": {"biased": False},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "element": {"layout": "element"},
    "block": {"layout": "block", "tile_size": 2},  # 5 parents: the last tile is smaller
}
FAN_OUTS = ("replicate", "partition")
GRID = list(product(LAYOUTS, FAN_OUTS, COUPLINGS, BIASES))


def grid_case(layout: str, fan_out: str, coupling: str, bias: str, **more: Any) -> Case:
    options = {**LAYOUTS[layout], **COUPLINGS[coupling], **BIASES[bias], **more}
    return make_case(d=9, fan_out=fan_out, alpha=3, **options)


def trained_layers(case: Case) -> Iterator[tuple[FPELayer, DenseReference]]:
    """The layers with numbers as after training (copies differ), and their references."""
    generator = torch.Generator().manual_seed(1)
    for layer in case.layers():
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += (0.1 * noise).to(parameter.dtype)
        yield layer, DenseReference(case.plan, layer.index, dict(layer.named_parameters()))


def assert_equivalent(layer: FPELayer, reference: DenseReference) -> None:
    """Equal outputs, and equal gradients of the input and every parameter."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, layer.in_features, generator=generator, dtype=torch.float64)
    upstream = torch.randn(2, 3, layer.out_features, generator=generator, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(inputs[0]), reference(inputs[1])]
    torch.testing.assert_close(outputs[0], outputs[1])
    for output in outputs:
        output.backward(upstream)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    parameters = dict(layer.named_parameters())
    assert parameters.keys() == reference.tensors.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, reference.tensors[name].grad, msg=name)


@pytest.mark.parametrize(("point", "kind"), zip(GRID, cycle(KINDS)))  # the rest below
def test_forward_and_gradients(point: tuple[str, str, str, str], kind: str) -> None:
    case = grid_case(*point, kind=kind, dtype=torch.float64)
    for layer, reference in trained_layers(case):
        assert_equivalent(layer, reference)


@settings(max_examples=60)
@given(cases(dtype=torch.float64))
def test_forward_and_gradients_of_any_shape(case: Case) -> None:
    for layer, reference in trained_layers(case):
        assert_equivalent(layer, reference)


def test_a_layer_that_has_lost_all_of_its_weights() -> None:
    """Extras so dear that pruning leaves the tiny block no incoming weight."""
    extras = {"alpha": 5, "bias": "child", "learn_coupling": True}
    case = make_case(d=10, h=1, o=5, dtype=torch.float64, **extras)
    assert case.spec.up_values == (0,)
    for layer, reference in trained_layers(case):
        assert_equivalent(layer, reference)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_feature_split(layout: str, coupling: str) -> None:
    case = grid_case(layout, "replicate", coupling, "shared", split="feature", dtype=torch.float64)
    for layer, reference in trained_layers(case):
        assert_equivalent(layer, reference)


@pytest.mark.parametrize(("layout", "fan_out"), list(product(LAYOUTS, FAN_OUTS)))
@pytest.mark.parametrize("coupling", ["0", "learned"])
def test_gradcheck(layout: str, fan_out: str, coupling: str) -> None:
    case = grid_case(layout, fan_out, coupling, "child", kind="interleaved", dtype=torch.float64)
    for layer in case.layers():
        names, numbers = zip(*layer.named_parameters(), strict=True)

        def run(
            x: Tensor,
            *values: Tensor,
            layer: FPELayer = layer,
            names: tuple[str, ...] = names,
        ) -> Any:
            return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        x = torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True)
        assert gradcheck(run, (x, *numbers))


@given(cases())
def test_layers_start_with_the_parents_numbers(case: Case) -> None:
    *ups, down = case.layers()
    for index, up in enumerate(ups):
        assert torch.equal(up.weight, packed_up(case.plan, case.parent, index))
        bias = case.parent.up_biases[index]
        assert (up.bias is None) == (bias is None)
        if bias is not None and case.config.bias == "shared":
            assert torch.equal(up.bias, bias.reshape(-1))
        coupling = dict(up.named_parameters()).get("coupling")
        assert (coupling is not None) == case.config.learn_coupling
        assert coupling is None or bool((coupling == case.config.coupling).all())
    assert torch.equal(down.weight, packed_down(case.plan, case.parent))
    if case.parent.down_bias is not None:
        assert torch.equal(down.bias, case.parent.down_bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bias_per_child_starts_as_the_parents(kind: str, layout: str) -> None:
    per_child, shared = (
        grid_case(layout, "partition", "0", bias, kind=kind).layers()[0].dense_bias()
        for bias in ("child", "shared")
    )
    assert per_child is not None
    assert torch.equal(per_child, shared)


@given(cases(dtype=torch.float64))
def test_dense_weight_and_bias(case: Case) -> None:
    for layer, reference in trained_layers(case):
        torch.testing.assert_close(layer.dense_weight(), reference.weight())
        assert (layer.dense_bias() is None) == (reference.bias() is None)
        if layer.bias is not None:
            assert torch.equal(layer.dense_bias(), reference.bias())


@pytest.mark.parametrize(("layout", "coupling"), list(product(LAYOUTS, COUPLINGS)))
def test_dense_weight_and_bias_are_differentiable(layout: str, coupling: str) -> None:
    case = grid_case(layout, "replicate", coupling, "child", kind="halves", dtype=torch.float64)
    for layer, reference in trained_layers(case):
        factor = torch.randn(layer.out_features, layer.in_features, dtype=torch.float64)
        for own in (layer, reference):
            weight = own.dense_weight() if own is layer else own.weight()
            bias = own.dense_bias() if own is layer else own.bias()
            ((weight * factor).sum() + bias @ factor[:, 0]).backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.grad, reference.tensors[name].grad, msg=name)


TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.mark.parametrize(
    ("point", "dtype"), zip(product(LAYOUTS, FAN_OUTS, COUPLINGS), cycle(TOLERANCES))
)
def test_precisions(point: tuple[str, str, str], dtype: torch.dtype) -> None:
    """Errors, relative to the largest number, are those of the dtype's rounding."""
    case, tolerance = grid_case(*point, "shared", kind="halves", dtype=dtype), TOLERANCES[dtype]
    for layer, reference in trained_layers(case):
        x = torch.randn(8, layer.in_features).to(dtype).requires_grad_()
        wide = x.detach().double().requires_grad_()
        output, expected = layer(x), reference(wide)
        assert output.dtype == dtype
        upstream = torch.randn(output.shape).to(dtype)
        output.backward(upstream)
        expected.backward(upstream.double())
        assert_near(output, expected, tolerance)
        assert_near(x.grad, wide.grad, tolerance)
        for name, parameter in layer.named_parameters():
            assert_near(parameter.grad, reference.tensors[name].grad, tolerance)


def assert_near(found: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert found is not None
    assert expected is not None
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance


@pytest.mark.parametrize("lead", [(), (0,), (1,), (4,), (2, 3), (2, 0, 3), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize(("layout", "fan_out"), list(product(LAYOUTS, FAN_OUTS)))
def test_leading_dimensions_of_any_shape(layout: str, fan_out: str, lead: tuple[int, ...]) -> None:
    case = grid_case(layout, fan_out, "0.3", "shared", dtype=torch.float64)
    for layer, reference in trained_layers(case):
        x = torch.randn(*lead, layer.in_features, dtype=torch.float64, requires_grad=True)
        output = layer(x)
        assert output.shape == (*lead, layer.out_features)
        assert output.is_contiguous()
        torch.testing.assert_close(output, reference(x))
        output.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert layer.weight.grad is not None
        assert bool(layer.weight.grad.any()) == (x.numel() > 0)


@pytest.mark.parametrize(("layout", "fan_out"), list(product(LAYOUTS, FAN_OUTS)))
def test_inputs_in_any_memory_order(layout: str, fan_out: str) -> None:
    case = grid_case(layout, fan_out, "0.3", "shared", dtype=torch.float64)
    for layer, reference in trained_layers(case):
        width = layer.in_features
        for x in (
            torch.randn(width, 6, dtype=torch.float64).t(),
            torch.randn(4, 2 * width, dtype=torch.float64)[:, ::2],
            torch.randn(1, width, dtype=torch.float64).expand(5, width),
            torch.randn(3, width, 2, dtype=torch.float64).transpose(1, 2),
        ):
            assert not x.is_contiguous()
            torch.testing.assert_close(layer(x), reference(x))
