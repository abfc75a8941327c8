"""I6: with coupling 1 and a partitioned fan-out a widened block computes what its parent did."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fpe_hf.config import FPEConfig
from fpe_hf.discovery import MLPBlock
from fpe_hf.layers import FPELayer, build_layers
from fpe_hf.modules import replace_module, stock_kind, take_weights
from fpe_hf.planning import plan_block
from planning.cases import KINDS, make_block

EXACT = {"coupling": 1.0, "fan_out": "partition"}
LAYOUTS: list[dict[str, Any]] = [
    {"layout": "element"},
    {"layout": "element", "split": "feature"},
    {"layout": "block"},
    {"layout": "block", "tile_size": 3},
]


class MLP(nn.Module):
    """A block of any kind, in stock modules."""

    def __init__(
        self,
        kind: str,
        act: str,
        sizes: tuple[int, int, int] = (12, 8, 10),
        *,
        conv1d: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        d, h, o = sizes

        def linear(inputs: int, outputs: int) -> nn.Module:
            return Conv1D(outputs, inputs) if conv1d else nn.Linear(inputs, outputs, bias=bias)

        self.kind = kind
        self.act = getattr(nn.functional, act)
        self.up = linear(d, 2 * h if kind in ("halves", "interleaved") else h)
        if kind == "gated":
            self.gate = linear(d, h)
        self.down = linear(h, o)
        for parameter in self.parameters():  # Conv1D's biases are zero, its weights tiny
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if self.kind == "gated":
            hidden = self.act(self.gate(x)) * up
        elif self.kind == "halves":
            gate, up = up.chunk(2, -1)
            hidden = self.act(gate) * up
        elif self.kind == "interleaved":
            hidden = self.act(up[..., ::2]) * up[..., 1::2]
        else:
            hidden = self.act(up)
        output: Tensor = self.down(hidden)
        return output


def block_of(mlp: MLP) -> MLPBlock:
    down = mlp.down
    inputs, outputs = (
        (mlp.up.weight.shape[0], down.weight.shape[1])
        if isinstance(down, Conv1D)
        else (mlp.up.weight.shape[1], down.weight.shape[0])
    )
    parents = down.weight.numel() // outputs
    block = make_block(mlp.kind, inputs, parents, outputs)
    names = {"name": "", "up": "up", "down": "down", "gate": block.gate and "gate"}
    return MLPBlock(**{**vars(block), **names})


def widened(mlp: MLP, **config: Any) -> MLP:
    block, wide = block_of(mlp), copy.deepcopy(mlp)
    parent = take_weights(wide, block)
    plan = plan_block(block, parent, FPEConfig(**config))
    stocks = {name: stock_kind(wide.get_submodule(name)) for name in (*block.ups, block.down)}
    for name, layer in build_layers(plan, parent, stocks).items():
        replace_module(wide, wide.get_submodule(name), layer)
    return wide


@pytest.mark.parametrize(
    "options", LAYOUTS, ids=lambda options: "-".join(map(str, options.values()))
)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_start(kind: str, options: dict[str, Any]) -> None:
    for alpha, act in ((2, "gelu"), (3, "relu"), (5, "silu")):
        mlp = MLP(kind, act).double()
        wide = widened(mlp, alpha=alpha, **EXACT, **options)
        x = torch.randn(6, 12, dtype=torch.float64)
        torch.testing.assert_close(wide(x), mlp(x), rtol=1e-12, atol=1e-12)
        assert isinstance(wide.up, FPELayer)
        assert wide.up.out_features == alpha * (8 if wide.up.spec.fused is None else 16)
        assert count(wide) == count(mlp)


def count(module: nn.Module) -> int:
    return sum(int(parameter.count_nonzero()) for parameter in module.parameters())


@pytest.mark.parametrize("layout", ["element", "block"])
def test_exact_start_in_single_precision_at_a_true_width(layout: str) -> None:
    mlp = MLP("plain", "gelu", (256, 512, 256))
    x = torch.randn(4, 256)
    torch.testing.assert_close(
        widened(mlp, layout=layout, **EXACT)(x), mlp(x), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    "options", [{"coupling": 0.0}, {"coupling": 0.9}, {"fan_out": "replicate"}]
)
@pytest.mark.parametrize("layout", ["element", "block"])
def test_other_starts_are_not_exact(layout: str, options: dict[str, Any]) -> None:
    """So that the tests above would notice."""
    mlp = MLP("plain", "gelu")
    x = torch.randn(6, 12)
    wide = widened(mlp, **{**EXACT, **options}, layout=layout)
    assert (wide(x) - mlp(x)).abs().max() > 1e-3


@pytest.mark.parametrize("options", LAYOUTS[::2], ids=["element", "block"])
@pytest.mark.parametrize(("kind", "fan_out"), list(product(KINDS, ["replicate", "partition"])))
def test_conv1d_is_widened_as_the_linear_of_the_same_weights(
    kind: str, fan_out: str, options: dict[str, Any]
) -> None:
    conv = MLP(kind, "gelu", conv1d=True)
    linear = MLP(kind, "gelu")
    transposed = {
        name: tensor.t() if name.endswith("weight") else tensor
        for name, tensor in conv.state_dict().items()
    }
    linear.load_state_dict(transposed)
    x = torch.randn(6, 12)
    torch.testing.assert_close(conv(x), linear(x))
    config = {**options, "fan_out": fan_out, "coupling": 0.3}
    wide_conv, wide_linear = widened(conv, **config), widened(linear, **config)
    assert torch.equal(wide_conv(x), wide_linear(x))
    assert isinstance(wide_conv.down, FPELayer)
    assert isinstance(wide_linear.down, FPELayer)
    assert (wide_conv.down.stock, wide_linear.down.stock) == ("conv1d", "linear")


def test_blocks_without_biases_start_exact_too() -> None:
    mlp = MLP("halves", "silu", bias=False)
    x = torch.randn(6, 12)
    for options in LAYOUTS:
        torch.testing.assert_close(widened(mlp, **EXACT, **options)(x), mlp(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_the_children_gives_the_parent_back(kind: str, layout: dict[str, Any]) -> None:
    mlp = MLP(kind, "gelu")
    wide = widened(mlp, alpha=3, **EXACT, **layout)
    for name, layer in wide.named_children():
        assert isinstance(layer, FPELayer)
        assert layer.mergeable
        stock = mlp.get_submodule(name)
        torch.testing.assert_close(layer.merged_weight(), stock.weight, rtol=0, atol=0)
        torch.testing.assert_close(layer.merged_bias(), stock.bias, rtol=0, atol=0)
        places = layer.children_places()
        assert places.shape == (3, 8)
        assert places.flatten().sort().values.tolist() == list(range(24))
