"""The block kernels equal the dense reference, forward and backward.

Without a GPU they run in Triton's interpreter, which cannot multiply bfloat16.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fpe_hf.kernels import gpu, gpu_plain
from fpe_hf.kernels.gpu_shapes import BlockShape
from kernels.projections import assert_close, assert_equivalent, has_kernel, project, trained_layers
from planning.cases import make_case

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error, relative to the largest value: some roundings of the dtype."""

OPTIONS: dict[str, dict[str, Any]] = {
    "one tile": {"coupling": 0.0},
    "tiles": {"coupling": 0.0, "tile_size": 8, "bias": "child"},
    "coupled": {"coupling": 1.0, "tile_size": 8},
    "learned": {"coupling": 1.0, "learn_coupling": True, "tile_size": 20, "biased": False},
}


def block_case(kind: str, fan_out: str, options: str, **more: Any) -> Any:
    sizes = {"d": 23, "h": 20, "o": 19, "alpha": 3, **more}
    return make_case(kind, layout="block", fan_out=fan_out, **{**OPTIONS[options], **sizes})


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("kind", "fan_out", "tokens"),
    [("plain", "partition", 5), ("plain", "replicate", 40), ("interleaved", "partition", 40)],
)
def test_forward_and_gradients(
    triton_device: str, kind: str, fan_out: str, tokens: int, options: str
) -> None:
    case = block_case(kind, fan_out, options)
    for layer, reference in trained_layers(case, triton_device):
        if has_kernel(layer):
            x = torch.randn(tokens, layer.in_features, device=triton_device)
            upstream = torch.randn(tokens, layer.out_features, device=triton_device)
            assert_equivalent(layer, reference, x, upstream, TOLERANCES[torch.float32])


@st.composite
def shapes(draw: st.DrawFn) -> BlockShape:
    """Projections of all kinds, unequal children included."""
    up = draw(st.booleans())
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any))
    parents = draw(st.integers(1, 40))
    sources = draw(st.integers(1, 2)) if up else 1
    return BlockShape(
        features=sum(counts) + draw(st.sampled_from([0, 3])),
        parents=parents,
        tile_size=draw(st.integers(-(-parents // 3), parents)),
        counts=tuple(counts),
        sources=sources,
        interleaved=sources == 2 and draw(st.booleans()),
        up=up,
    )


@given(shape=shapes(), tokens=st.sampled_from([1, 3, 33]), coupled=st.booleans())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_products_equal_plain_operations(
    triton_device: str, shape: BlockShape, tokens: int, coupled: bool
) -> None:
    from fpe_hf.kernels import triton_block as kernels

    device = triton_device
    index = torch.stack([torch.randperm(shape.features)[: shape.indexed] for _ in shape.tiles])
    index = index.to(device, torch.int16)
    narrow = torch.randn(tokens, shape.features, device=device)
    weight = torch.randn(shape.weights, device=device)
    hidden = torch.randn(
        tokens, shape.sources * shape.parents if coupled else shape.wide, device=device
    )

    def double(*tensors: Tensor) -> list[Tensor]:
        return [t.double() if t.is_floating_point() else t for t in tensors]

    actual, _ = kernels.gather_blocks(narrow, index, weight, None, shape, coupled=coupled)
    expected, _ = gpu_plain.gather_blocks(
        *double(narrow, index, weight), None, shape, coupled=coupled
    )
    assert_close(actual, expected.cpu(), 1e-5)
    actual = kernels.scatter_blocks(hidden, index, weight, None, shape, shared=coupled)
    expected = gpu_plain.scatter_blocks(*double(hidden, index, weight), None, shape, shared=coupled)
    assert_close(actual, expected.cpu(), 1e-5)
    actual = kernels.weight_blocks(hidden, narrow, index, shape, shared=coupled)
    expected = gpu_plain.weight_blocks(*double(hidden, narrow, index), shape, shared=coupled)
    assert_close(actual, expected.cpu(), 1e-5)


def test_many_programs(triton_device: str) -> None:
    """Several programs along every axis, more than swizzling groups."""
    case = make_case(
        d=137, h=131, o=135, alpha=2, layout="block", fan_out="partition", coupling=0.0
    )
    for layer in case.layers():
        x = torch.randn(601, layer.in_features, device=triton_device, requires_grad=True)
        layer.to(triton_device)
        output = project(layer, x)
        matrix, bias = layer.dense_weight().detach().double(), layer.dense_bias().detach().double()
        assert_close(output, functional.linear(x.detach().double(), matrix, bias).cpu(), 1e-5)
        upstream = torch.randn_like(output)
        output.backward(upstream)
        assert_close(x.grad, (upstream.double() @ matrix).cpu(), 1e-5)
        full = layer.dense_weight()
        (wanted,) = torch.autograd.grad(full, layer.weight, upstream.t() @ x.detach())
        assert_close(layer.weight.grad, wanted.double().cpu(), 1e-5)


@pytest.mark.parametrize("activation", gpu.ACTIVATIONS)
def test_activations(triton_device: str, activation: str) -> None:
    case = block_case("plain", "partition", "tiles")
    layer, reference = next(trained_layers(case, triton_device))
    x = torch.randn(4, layer.in_features, device=triton_device)
    apply = {
        "none": lambda z: z,
        "relu": functional.relu,
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    }[activation]
    inputs = [x.clone().requires_grad_(), x.double().cpu().requires_grad_()]
    outputs = [project(layer, inputs[0], activation=activation), apply(reference(inputs[1]))]
    assert_close(outputs[0], outputs[1], 1e-5)
    for output in outputs:
        output.square().sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, 1e-5)
    assert_close(layer.weight.grad, reference.tensors["weight"].grad, 1e-5)


def test_no_tokens(triton_device: str) -> None:
    for layer, _ in trained_layers(block_case("plain", "partition", "tiles"), triton_device):
        x = torch.randn(2, 0, layer.in_features, device=triton_device, requires_grad=True)
        output = project(layer, x)
        assert output.shape == (2, 0, layer.out_features)
        output.sum().backward()
        assert x.grad is not None
        assert layer.weight.grad is not None
        assert not layer.weight.grad.any()


def test_memory_in_any_order(triton_device: str) -> None:
    for layer, reference in trained_layers(
        block_case("plain", "partition", "tiles"), triton_device
    ):
        columns = torch.randn(layer.in_features, 6, device=triton_device).t()
        rows = torch.randn(2, 6, layer.in_features + 3, device=triton_device)[:, ::2, 3:]
        for x in (columns, rows):
            upstream = torch.ones((), device=triton_device).expand(
                *x.shape[:-1], layer.out_features
            )
            assert_equivalent(layer, reference, x, upstream, 1e-5)
            layer.zero_grad()
            reference.tensors = {
                name: tensor.detach().requires_grad_() for name, tensor in reference.tensors.items()
            }


def test_half_precision(triton_device: str) -> None:
    case = block_case("plain", "partition", "tiles", dtype=torch.float16)
    for layer, reference in trained_layers(case, triton_device):
        x = torch.randn(6, layer.in_features, device=triton_device).half()
        upstream = torch.randn(6, layer.out_features, device=triton_device).half()
        assert_equivalent(layer, reference, x, upstream, TOLERANCES[torch.float16])


SIZES = {"(768, 3072)": (768, 3072), "odd": (770, 3001)}


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 300, 2048])
@pytest.mark.parametrize("alpha", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_real_sizes(
    cuda: str, dtype: torch.dtype, size: str, alpha: int, tokens: int, triton_device: str
) -> None:
    """Against the layers' dense matrices in float64: the reference's loops would take minutes."""
    d, h = SIZES[size]
    case = make_case(
        d=d, h=h, o=d, alpha=alpha, layout="block", fan_out="partition", tile_size=1024, dtype=dtype
    )
    for layer in case.layers():
        layer.to(cuda)
        x = torch.randn(tokens, layer.in_features, device=cuda).to(dtype).requires_grad_()
        upstream = torch.randn(tokens, layer.out_features, device=cuda).to(dtype)
        output = project(layer, x)
        output.backward(upstream)
        double = layer.double()
        wanted = functional.linear(x.detach().double(), double.dense_weight(), double.dense_bias())
        assert_close(output, wanted.cpu(), TOLERANCES[dtype])
        gradient = upstream.double() @ double.dense_weight()
        assert_close(x.grad, gradient.cpu(), TOLERANCES[dtype])
        leaf = layer.weight.detach().clone().requires_grad_()
        full = torch.func.functional_call(_Dense(layer), {"layer.weight": leaf}, ())
        (own,) = torch.autograd.grad(full, leaf, upstream.double().t() @ x.detach().double())
        assert_close(layer.weight.grad, own.cpu(), TOLERANCES[dtype])


class _Dense(nn.Module):
    """A layer's matrix as the output of a module."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        matrix: Tensor = self.layer.dense_weight()
        return matrix


@pytest.mark.gpu
def test_cuda_graph(cuda: str, triton_device: str) -> None:
    case = block_case("plain", "partition", "tiles", dtype=torch.bfloat16)
    up, down = (layer.to(cuda) for layer in case.layers())
    x = torch.randn(64, up.in_features, device=cuda, dtype=torch.bfloat16)

    def run() -> Tensor:
        return project(down, project(up, x, activation="gelu"))

    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(captured, run())


@pytest.mark.gpu
def test_compiled_chain(cuda: str, triton_device: str) -> None:
    case = block_case("plain", "partition", "tiles")
    up, down = (layer.to(cuda) for layer in case.layers())
    x = torch.randn(64, up.in_features, device=cuda, requires_grad=True)

    def chain(x: Tensor) -> Tensor:
        return project(down, functional.gelu(project(up, x)))

    expected = chain(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    output = torch.compile(chain, fullgraph=True)(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), x)[0], gradient)
