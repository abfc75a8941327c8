"""Layers called through the kernels, beside their dense references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fpe_hf.kernels import gpu
from fpe_hf.kernels.gpu_shapes import BlockShape, ElementShape
from fpe_hf.layers import BlockDown, BlockUp, ElementDown, ElementUp, FPELayer
from layers.reference import DenseReference
from planning.cases import Case


def trained_layers(case: Case, device: str) -> Iterator[tuple[FPELayer, DenseReference]]:
    """The layers with numbers as after training, and their references in float64 on the CPU."""
    generator = torch.Generator().manual_seed(1)
    for layer in case.layers():
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += (0.1 * noise).to(parameter.dtype)
        reference = DenseReference(case.plan, layer.index, dict(layer.named_parameters()))
        yield layer.to(device), reference


def has_kernel(layer: FPELayer) -> bool:
    """Not if it is a plain matrix product: a whole fan-out."""
    return not isinstance(layer, BlockDown) or layer.outputs is not None


def project(layer: FPELayer, x: Tensor, **options: Any) -> Tensor:
    """What the layer computes, by the kernels."""
    spec = layer.spec
    if isinstance(layer, BlockUp):
        shape = BlockShape.of_up(spec)
        coupling = layer.couplings()
        return gpu.up(
            x, layer.weight, layer.inputs, layer.bias, shape, coupling=coupling, **options
        )
    if isinstance(layer, BlockDown):
        assert layer.outputs is not None
        return gpu.down(x, layer.weight, layer.outputs, layer.bias, BlockShape.of_down(spec))
    assert isinstance(layer, (ElementUp, ElementDown))
    up = isinstance(layer, ElementUp)
    elements = (ElementShape.of_up if up else ElementShape.of_down)(spec, layer.bits)
    starts = None if layer.keep is None else gpu.row_starts(layer.keep, elements)
    coupling = None
    if isinstance(layer, ElementUp):
        mu = layer.couplings()
        coupling = mu.flatten() if isinstance(mu, Tensor) else x.new_tensor([mu])
        coupling = coupling if isinstance(mu, Tensor) or mu else None
    return gpu.element(
        x, layer.weight, layer.keep, layer.owner, starts, layer.bias, elements, coupling=coupling
    )


def assert_equivalent(
    layer: FPELayer, reference: DenseReference, x: Tensor, upstream: Tensor, tolerance: float
) -> None:
    """Equal outputs and gradients up to `tolerance`, relative to the largest value of each."""
    inputs = [x.detach().requires_grad_(), x.detach().double().cpu().requires_grad_()]
    outputs = [project(layer, inputs[0]), reference(inputs[1])]
    assert outputs[0].dtype == x.dtype
    assert_close(outputs[0], outputs[1], tolerance)
    outputs[0].backward(upstream)
    outputs[1].backward(upstream.double().cpu())
    assert_close(inputs[0].grad, inputs[1].grad, tolerance)
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, reference.tensors[name].grad, tolerance)


def assert_close(actual: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert actual is not None
    assert expected is not None
    expected = expected.detach()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.double().cpu(), expected, rtol=0.0, atol=tolerance * max(scale, 1e-3)
    )
