"""What looks like an MLP in a stack but is none of its feed-forward blocks is left alone, and every
activation is followed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from fpe_hf.discovery import MLPBlocks, find_mlps

D, H = 8, 16
Body = Callable[["Layer", Tensor], Tensor]


class Layer(nn.Module):
    """A feed-forward block, and beside it a small MLP that `body` uses for something else."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, H), nn.Linear(H, D)
        self.small = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, D))
        self.norm, self.scale = nn.LayerNorm(D), nn.Parameter(torch.ones(D))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.relu(self.up(x)))
        return x + self.body(self, x)


class Stack(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(body) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def find(body: Body) -> MLPBlocks:
    return find_mlps(Stack(body), (torch.zeros(2, 5, D),))


def _route(self: Layer, x: Tensor) -> Tensor:
    weights, chosen = self.small(x).topk(2)
    return weights.sum(-1, keepdim=True) * x + chosen.sum()


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: x * self.small(x).sigmoid(),  # a gate
        lambda self, x: x * self.small(x.mean(1, keepdim=True)),  # squeeze and excite
        lambda self, x: x * self.small(x).softmax(-1),  # a router
        lambda self, x: self.small(x[:, :1]) @ x.mT @ x,  # a hypernetwork
        lambda self, x: torch.relu(self.small(x)) @ x.mT @ x,
        _route,
    ],
)
def test_other_uses_of_an_mlp_are_offered_only(body: Body) -> None:
    found = find(body)
    assert [block.up for block in found] == ["layers.0.up", "layers.1.up"]
    misses = [miss for miss in found.near_misses if miss.block is not None]
    assert [miss.up for miss in misses] == [("layers.0.small.0",), ("layers.1.small.0",)]
    assert all("not added to hidden states" in miss.reason for miss in misses)


class Excited(nn.Module):
    """A convolutional layer whose only MLP weighs its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(D, D, 3, padding=1)
        self.weigh = nn.Sequential(nn.Conv2d(D, 4, 1), nn.ReLU(), nn.Conv2d(4, D, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.weigh(x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("model", [nn.Sequential(Excited(), Excited()), Excited()])
def test_gates_are_offered_only_even_where_there_is_nothing_else(model: nn.Module) -> None:
    found = find_mlps(model, (torch.zeros(2, D, 5, 5),))
    assert found == []
    assert {miss.block.parents for miss in found.near_misses if miss.block} == {4}


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: self.small(x),
        lambda self, x: self.norm(self.small(x)) * self.scale,
        lambda self, x: 0.5 * self.small(x.view(-1, D)).view_as(x),
        lambda self, x: self.small(x) * x[..., :1].sigmoid(),  # the weight of an expert
        lambda self, x: self.small(x.flip(1)).roll(1, 1),
        lambda self, x: torch.stack([self.small(x), self.norm(x)]).sum(0),
    ],
)
def test_what_is_added_to_the_stream_is_a_block(body: Body) -> None:
    assert len(find(body)) == 4


# -- activations -----------------------------------------------------------------------------------

SKIPPED = {"linear", "identity"}


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - SKIPPED))
def test_every_activation_of_transformers(name: str) -> None:
    model = nn.Sequential(nn.Linear(D, H), ACT2FN[name], nn.Linear(H, D))
    assert len(find_mlps(model, (torch.zeros(2, D),))) == 1


TORCH = [
    nn.ELU(), nn.Hardshrink(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.LeakyReLU(),
    nn.LogSigmoid(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.RReLU(), nn.SELU(), nn.CELU(),
    nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.SiLU(), nn.Mish(), nn.Softplus(), nn.Softshrink(),
    nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Threshold(0.1, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("act", TORCH, ids=str)
def test_every_activation_of_torch(act: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(D, H), act, nn.Linear(H, D))
    assert len(find_mlps(model, (torch.zeros(2, D),))) == 1


def test_parameter_per_channel_is_refused() -> None:
    model = nn.Sequential(nn.Linear(D, H), nn.PReLU(H), nn.Linear(H, D))
    found = find_mlps(model, (torch.zeros(2, D),))
    assert found == []
    assert "parameter per hidden channel" in found.near_misses[0].reason


class Clamped(nn.Module):
    """The gate of gpt-oss."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(D, 2 * H), nn.Linear(H, D)

    def forward(self, x: Tensor) -> Tensor:
        both = self.both(x)
        gate, up = both[..., ::2].clamp(max=7.0), both[..., 1::2].clamp(min=-7.0, max=7.0)
        down: Tensor = self.down((up + 1) * gate * torch.sigmoid(gate * 1.702))
        return down


def test_clamped_and_scaled_gate() -> None:
    (block,) = find_mlps(Clamped(), (torch.zeros(2, D),))
    assert block.fused == "interleaved"
