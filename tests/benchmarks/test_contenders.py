"""Every contender computes what it stands for, or is not timed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.blocks import SHAPES, Shape, make_parent, make_tokens
from benchmarks.contenders import (
    RIVALS,
    WAYS,
    Contender,
    WrongResult,
    block_call,
    build,
    check_block,
    contenders,
)
from benchmarks.results import TRAIN
from fpe_hf.config import AUTO, LAYOUTS

CPU = torch.device("cpu")
PLAIN, GATED = Shape(32, 48), Shape(32, 48, gated=True)
OURS = list(contenders((*LAYOUTS, AUTO), (1, 3), tuple(WAYS)))
ALL = [*(Contender(kind) for kind in RIVALS), *OURS]


def made(contender: Contender, shape: Shape = PLAIN) -> tuple[nn.Module, nn.Module, Tensor]:
    """A contender's module, its dense form, and tokens."""
    parent = make_parent(shape, torch.float32, CPU)
    x = make_tokens(shape, 5, torch.float32, CPU)
    return *build(contender, parent, 2, shape.hidden, x), x


@pytest.mark.parametrize("contender", ALL, ids=lambda c: c.name)
def test_it_equals_its_dense_form(contender: Contender) -> None:
    shape = GATED if contender.tiles != 3 else PLAIN
    module, dense, x = made(contender, shape)
    check_block(contender, module, dense, x)
    parent = make_parent(shape, torch.float32, CPU)
    if contender.way == "exact":
        check_block(contender, module, parent, x)
    else:
        with pytest.raises(WrongResult):
            check_block(contender, module, parent, x)


def test_masks_are_multiplied_in_where_weights_are_trained() -> None:
    module, dense, x = made(Contender("masked"))
    expected, layer = dense(x), module[0].fc1
    with torch.no_grad():
        assert torch.equal(module(x), expected)
        layer.weight += 1 - layer.mask  # where the mask is zero
    torch.testing.assert_close(module(x), expected)


def test_tiles_divide_the_hidden_neurons() -> None:
    for tiles in (1, 3):
        module, _, _ = made(Contender("block", tiles, "replicate"))
        assert module[0].fc1.spec.tile_count == tiles
    assert all(s.hidden % 8 == 0 and s.inputs % 8 == 0 for s in SHAPES)


class Off(nn.Module):
    """A module that is wrong by a little, in its outputs or only in its gradients."""

    def __init__(self, module: nn.Module, outputs: float, gradients: float) -> None:
        super().__init__()
        self.module, self.outputs, self.gradients = module, outputs, gradients

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x) * (1 + self.outputs)
        return y + self.gradients * (y - y.detach())


@pytest.mark.parametrize(
    ("outputs", "gradients", "what"),
    [(0.01, 0.0, "outputs"), (0.0, 0.01, "gradients"), (float("nan"), 0.0, "outputs")],
)
def test_wrong_results_are_noticed(outputs: float, gradients: float, what: str) -> None:
    dense, x = make_parent(PLAIN, torch.float32, CPU), make_tokens(PLAIN, 5, torch.float32, CPU)
    check_block(Contender("masked"), Off(dense, 0.0, 0.0), dense, x)
    with pytest.raises(WrongResult, match=f"masked: {what} differ"):
        check_block(Contender("masked"), Off(dense, outputs, gradients), dense, x)


def test_a_training_call_starts_from_no_gradients() -> None:
    parent, x = make_parent(PLAIN, torch.float32, CPU), make_tokens(PLAIN, 5, torch.float32, CPU)
    call = block_call(parent, x, TRAIN)
    first = call().clone()
    grads = [p.grad.clone() for p in parent.parameters()]
    assert torch.equal(call(), first)
    assert all(map(torch.equal, grads, (p.grad for p in parent.parameters())))
    assert x.grad is None  # that of a copy is computed


def test_names_tell_contenders_apart() -> None:
    assert Contender("block", 1, "exact").name == "block 1 tile exact"
    assert Contender("block", 4, "replicate").name == "block 4 tiles replicate"
    assert len({c.name for c in ALL}) == len(ALL)
