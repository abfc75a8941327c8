"""Every contender computes what it stands for, or is not timed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.blocks import SHAPES, Shape, make_parent, make_tokens, projections
from benchmarks.contenders import (
    DENSE,
    FLOOR,
    RIVALS,
    WAYS,
    Contender,
    WrongResult,
    block_call,
    build,
    check,
    contenders,
    widened,
)
from benchmarks.sparse import SparseBlock
from fpe_hf import to_dense
from fpe_hf.config import AUTO, LAYOUTS

CPU = torch.device("cpu")
SMALL = {"plain": Shape(32, 48), "gated": Shape(32, 48, gated=True)}
OURS = list(contenders(("element", "block", "auto"), (1, 3), tuple(WAYS)))
ALL = [*(Contender(kind) for kind in RIVALS), *OURS]


@pytest.fixture(params=SMALL)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SMALL[request.param]


@pytest.mark.parametrize("contender", ALL, ids=lambda c: c.name)
def test_it_equals_its_dense_form(contender: Contender, shape: Shape) -> None:
    parent = make_parent(shape, torch.float32, CPU)
    x = make_tokens(shape, 5, torch.float32, CPU)
    module = build(contender, parent, shape, 2, x)  # raises if it differs
    assert module is not parent
    assert module(x).shape == x.shape
    if contender.way == "exact":
        torch.testing.assert_close(module(x), parent(x), rtol=0, atol=1e-5)


def test_the_naive_ways_run_the_same_matrices(shape: Shape) -> None:
    parent = make_parent(shape, torch.float32, CPU)
    x = make_tokens(shape, 5, torch.float32, CPU)
    outputs = [
        build(Contender(kind), parent, shape, 2, x)(x) for kind in ("masked", "premasked", "csr")
    ]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=1e-5)


def test_masks_are_multiplied_in_again_in_every_pass() -> None:
    shape = SMALL["plain"]
    x = make_tokens(shape, 5, torch.float32, CPU)
    masked = build(Contender("masked"), make_parent(shape, torch.float32, CPU), shape, 2, x)
    expected = masked(x)
    layer = masked[0].fc1
    with torch.no_grad():
        layer.weight += 1 - layer.mask  # where the mask is zero
    torch.testing.assert_close(masked(x), expected)


def test_bsr_holds_no_more_numbers_than_the_parent(shape: Shape) -> None:
    parent = make_parent(shape, torch.float32, CPU)
    x = make_tokens(shape, 5, torch.float32, CPU)
    module = build(Contender("bsr"), parent, shape, 2, x)
    assert isinstance(module, SparseBlock)
    ups, down = projections(parent)
    stored = sum(weight.detach().values().numel() for weight in module.weights)
    assert stored == sum(projection.weight.numel() for projection in (*ups, down))


def test_dense_and_floor_share_the_parent() -> None:
    shape = SMALL["plain"]
    parent = make_parent(shape, torch.float32, CPU)
    x = make_tokens(shape, 5, torch.float32, CPU)
    assert build(Contender(DENSE), parent, shape, 2, x) is parent
    shared = build(Contender(FLOOR), parent, shape, 2, x).parameters()
    assert set(shared) == set(parent.parameters())


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
    shape = SMALL["plain"]
    x = make_tokens(shape, 5, torch.float32, CPU)
    dense = make_parent(shape, torch.float32, CPU)
    check("right", Off(dense, 0.0, 0.0), dense, x)
    with pytest.raises(WrongResult, match=f"wrong: {what} differ"):
        check("wrong", Off(dense, outputs, gradients), dense, x)


def test_a_training_call_starts_from_no_gradients() -> None:
    shape = SMALL["plain"]
    parent = make_parent(shape, torch.float32, CPU)
    x = make_tokens(shape, 5, torch.float32, CPU)
    call = block_call(parent, x, "train")
    call()
    first = [p.grad.clone() for p in parent.parameters()]
    call()
    for grad, parameter in zip(first, parent.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    assert x.grad is None  # that of a copy is computed


def test_tiles_divide_the_hidden_neurons() -> None:
    shape = SMALL["plain"]
    parent, x = make_parent(shape, torch.float32, CPU), make_tokens(shape, 5, torch.float32, CPU)
    for tiles in (1, 3):
        fields = Contender("block", tiles, "replicate").fields(2, shape.hidden)
        assert widened(parent, fields, x)[0].fc1.spec.tile_count == tiles


def test_layouts_that_are_not_known_are_left_out() -> None:
    kinds = {c.kind for c in contenders(("element", "none such"), (1,), ("replicate",))}
    assert kinds == {"element"}
    assert {c.kind for c in OURS} == {*LAYOUTS, AUTO}


def test_names_tell_contenders_apart() -> None:
    assert Contender("block", 1, "exact").name == "block 1 tile exact"
    assert Contender("block", 4, "replicate").name == "block 4 tiles replicate"
    assert len({c.name for c in ALL}) == len(ALL)


def test_the_widths_divide_for_every_alpha_and_number_of_tiles() -> None:
    assert all(s.hidden % 8 == 0 and s.inputs % 8 == 0 for s in SHAPES)


def test_widening_leaves_the_parent_alone() -> None:
    shape = SMALL["plain"]
    parent, x = make_parent(shape, torch.float32, CPU), make_tokens(shape, 5, torch.float32, CPU)
    before = parent(x)
    to_dense(widened(parent, {"alpha": 4, "layout": "block"}, x))
    assert torch.equal(parent(x), before)
