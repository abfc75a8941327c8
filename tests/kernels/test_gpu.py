"""The registered operators and the functions around them, on any device and without Triton."""

from __future__ import annotations

import logging
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fpe_hf.kernels import gpu, gpu_ops, gpu_plain
from fpe_hf.kernels.gpu_shapes import BlockShape
from kernels.projections import assert_close, assert_equivalent, has_kernel, project, trained_layers
from planning.cases import KINDS, make_case

OPTIONS: dict[str, dict[str, Any]] = {
    "0": {"coupling": 0.0, "bias": "child"},
    "0.3": {"coupling": 0.3},
    "1": {"coupling": 1.0},
    "1, child biases": {"coupling": 1.0, "bias": "child"},
    "learned": {"coupling": 1.0, "learn_coupling": True, "biased": False},
}


def block_case(kind: str = "plain", fan_out: str = "partition", **more: Any) -> Any:
    options = {"d": 9, "alpha": 3, "tile_size": 2, "dtype": torch.float64, **more}
    return make_case(kind, layout="block", fan_out=fan_out, **options)


@pytest.mark.parametrize(("fan_out", "options"), list(product(["replicate", "partition"], OPTIONS)))
@pytest.mark.parametrize("kind", KINDS)
def test_block_layout_equals_reference(kind: str, fan_out: str, options: str) -> None:
    case = block_case(kind, fan_out, **OPTIONS[options])
    for layer, reference in trained_layers(case, "cpu"):
        if has_kernel(layer):
            x = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
            upstream = torch.randn(2, 3, layer.out_features, dtype=torch.float64)
            assert_equivalent(layer, reference, x, upstream, 1e-12)


@pytest.mark.parametrize(("fan_out", "options"), list(product(["replicate", "partition"], OPTIONS)))
@pytest.mark.parametrize("kind", KINDS)
def test_element_layout_equals_reference(kind: str, fan_out: str, options: str) -> None:
    case = make_case(
        kind, d=9, alpha=3, layout="element", fan_out=fan_out, dtype=torch.float64,
        **OPTIONS[options],
    )  # fmt: skip
    for layer, reference in trained_layers(case, "cpu"):
        x = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
        assert_close(project(layer, x), reference(x), 1e-12)


@pytest.mark.parametrize("activation", gpu.ACTIVATIONS)
def test_gradients_through_activations(activation: str) -> None:
    layer = block_case().layers()[0]
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        shape = BlockShape.of_up(layer.spec)
        return gpu.up(x, weight, layer.inputs, bias, shape, activation=activation)

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))


def test_unknown_activation() -> None:
    layer = block_case().layers()[0]
    with pytest.raises(ValueError, match="activation='tanh'; accepted: none, relu"):
        project(layer, torch.randn(1, 9, dtype=torch.float64), activation="tanh")


def test_operators_are_well_registered() -> None:
    up, down = block_case().layers()
    shape = BlockShape.of_up(up.spec).to_list()
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    arguments = (x, up.inputs, up.weight, up.bias, shape, False, "gelu", True)
    torch.library.opcheck(gpu_ops.gather_blocks, arguments)
    hidden = torch.randn(3, 15, dtype=torch.float64, requires_grad=True)
    shape = BlockShape.of_down(down.spec).to_list()
    arguments = (hidden, down.outputs, down.weight, down.bias, shape, False)
    torch.library.opcheck(gpu_ops.scatter_blocks, arguments)


class _Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = block_case(dtype=torch.float32).layers()

    def forward(self, x: Tensor) -> Tensor:
        return project(self.down, project(self.up, x, activation="gelu"))


def test_compiles_to_one_graph() -> None:
    chain, x = _Chain(), torch.randn(4, 9, requires_grad=True)
    expected = chain(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    output = torch.compile(chain, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), x)[0], gradient)


def test_exports() -> None:
    chain, x = _Chain().eval(), torch.randn(4, 9)
    tokens = torch.export.Dim("tokens", min=2, max=64)
    exported = torch.export.export(chain, (x,), dynamic_shapes=({0: tokens},)).module()
    other = torch.randn(7, 9)
    torch.testing.assert_close(exported(other), chain(other))


def test_follows_autocast() -> None:
    up = block_case(dtype=torch.float32).layers()[0]
    x = torch.randn(4, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = project(up, x)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert up.weight.grad.dtype == torch.float32


def test_a_kernel_that_fails_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def fail(name: str, package: str | None = None) -> None:
        tried.append(name)
        raise RuntimeError("out of registers")

    monkeypatch.setattr(gpu_ops, "_failed", False)
    monkeypatch.setattr(gpu_ops, "_runs_triton", lambda tensor: not gpu_ops._failed)
    monkeypatch.setattr(gpu_ops.importlib, "import_module", fail)
    layer, reference = next(trained_layers(block_case(), "cpu"))
    x = torch.randn(3, 9, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(project(layer, x), reference(x))
    assert tried == [".triton_block"]
    assert [record.getMessage() for record in caplog.records] == [
        "A Triton kernel failed (RuntimeError: out of registers). Widened layers use plain PyTorch "
        "operations from now on: slower."
    ]


def test_a_kernel_that_computes_something_else_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first result of every function and dtype is compared with that of plain operations."""

    class Wrong:
        calls = 0

        @classmethod
        def gather_blocks(cls, *args: Any, **options: Any) -> Any:
            cls.calls += 1
            out, pre = gpu_plain.gather_blocks(*args, **options)
            return out * (1 if cls.calls < 3 else 1.01), pre

    monkeypatch.setattr(gpu_ops, "_failed", False)
    monkeypatch.setattr(gpu_ops, "_checked", set())
    monkeypatch.setattr(gpu_ops, "_runs_triton", lambda tensor: not gpu_ops._failed)
    monkeypatch.setattr(gpu_ops.torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(gpu_ops.importlib, "import_module", lambda *args: Wrong)
    layer, reference = next(trained_layers(block_case(dtype=torch.float32), "cpu"))
    x = torch.randn(3, 9)
    for _ in range(2):  # right, and right unchecked
        torch.testing.assert_close(project(layer, x), reference(x.double()).float())
    assert not caplog.records
    monkeypatch.setattr(gpu_ops, "_checked", set())
    torch.testing.assert_close(project(layer, x), reference(x.double()).float())
    assert "computed something else in gather_blocks" in caplog.text
    torch.testing.assert_close(project(layer, x), reference(x.double()).float())
    assert Wrong.calls == 3


def test_no_kernels_on_the_cpu() -> None:
    layer = block_case(dtype=torch.float32).layers()[0]
    x = torch.randn(1, 9)
    assert not gpu.usable(x, layer.weight, 3)
    with torch.no_grad():
        assert not gpu.element_usable(x, layer.weight, 3)
