"""The element kernel equals the dense reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch.nn import functional

from fpe_hf.kernels import gpu
from kernels.projections import assert_close, project, trained_layers
from planning.cases import KINDS, make_case

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest error, relative to the largest value: some roundings of the dtype."""

OPTIONS: dict[str, dict[str, Any]] = {
    "random": {"split": "random", "coupling": 0.0},
    "feature": {"split": "feature", "coupling": 0.3, "bias": "child"},
    "learned": {"coupling": 1.0, "learn_coupling": True},
    "no bias": {"coupling": 1.0, "biased": False},
}


def element_case(kind: str, fan_out: str, options: str, **more: Any) -> Any:
    sizes = {"d": 37, "h": 19, "o": 21, "alpha": 3, **more}
    return make_case(kind, layout="element", fan_out=fan_out, **{**OPTIONS[options], **sizes})


@pytest.mark.parametrize(("fan_out", "options"), list(product(["replicate", "partition"], OPTIONS)))
@pytest.mark.parametrize("kind", KINDS)
def test_equals_reference(triton_device: str, kind: str, fan_out: str, options: str) -> None:
    for layer, reference in trained_layers(element_case(kind, fan_out, options), triton_device):
        x = torch.randn(3, layer.in_features, device=triton_device)
        with torch.no_grad():
            assert_close(project(layer, x), reference(x.double().cpu()), 1e-5)


@pytest.mark.parametrize(("alpha", "d", "h"), [(2, 300, 140), (5, 140, 40), (16, 50, 20)])
def test_long_rows(triton_device: str, alpha: int, d: int, h: int) -> None:
    """More columns than a program takes at once, so that positions carry over."""
    case = make_case(d=d, h=h, o=17, alpha=alpha, layout="element", fan_out="replicate", zeros=0.1)
    for layer in case.layers():
        x = torch.randn(2, layer.in_features, device=triton_device)
        wanted = functional.linear(
            x.double(), layer.dense_weight().double(), layer.dense_bias().double()
        )
        with torch.no_grad():
            assert_close(project(layer.to(triton_device), x), wanted.detach().cpu(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16])
def test_half_precision(triton_device: str, dtype: torch.dtype) -> None:
    case = element_case("plain", "partition", "random", dtype=dtype)
    for layer, reference in trained_layers(case, triton_device):
        x = torch.randn(3, layer.in_features, device=triton_device).to(dtype)
        with torch.no_grad():
            output = project(layer, x)
        assert output.dtype == dtype
        assert_close(output, reference(x.double().cpu()), TOLERANCES[dtype])


def test_no_tokens_and_memory_in_any_order(triton_device: str) -> None:
    layer, reference = next(
        trained_layers(element_case("plain", "replicate", "random"), triton_device)
    )
    with torch.no_grad():
        assert project(layer, torch.randn(0, 37, device=triton_device)).shape == (0, 57)
        x = torch.randn(37, 2, 3, device=triton_device).permute(1, 2, 0)
        output = project(layer, x)
    assert output.shape == (2, 3, 57)
    assert_close(output, reference(x.double().cpu()), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("alpha", [2, 4, 8])
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_real_sizes(
    cuda: str, dtype: torch.dtype, fan_out: str, alpha: int, tokens: int, triton_device: str
) -> None:
    case = make_case(
        d=768, h=3072, o=768, alpha=alpha, layout="element", fan_out=fan_out, dtype=dtype
    )
    for layer in case.layers():
        layer.to(cuda)
        x = torch.randn(tokens, layer.in_features, device=cuda).to(dtype)
        with torch.no_grad():
            assert gpu.element_usable(x, layer.weight, alpha)
            output = project(layer, x)
            layer.double()
            wanted = functional.linear(x.double(), layer.dense_weight(), layer.dense_bias())
        assert_close(output, wanted.cpu(), TOLERANCES[dtype])


@pytest.mark.gpu
def test_cuda_graph(cuda: str, triton_device: str) -> None:
    layer = element_case("plain", "partition", "random").layers()[0].to(cuda)
    x = torch.randn(1, layer.in_features, device=cuda)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            project(layer, x)  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = project(layer, x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(captured, project(layer, x))
