from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fpe_hf import splits
from fpe_hf.errors import CheckpointError
from fpe_hf.layers import ElementDown, ElementUp, FPELayer
from fpe_hf.layers.element import check_keep, check_packed
from fpe_hf.packing import pack, unpack
from layers.reference import down_matrix, up_bias, up_matrix
from planning.cases import make_case


def by_row(weight: Tensor, alpha: int, *, seed: int, shared: bool) -> Tensor:
    """A division that differs from parent to parent without being drawn."""
    _, rows, columns = weight.shape
    return (torch.arange(rows)[:, None] + torch.arange(columns)) % alpha


@pytest.fixture
def codes_layer(monkeypatch: pytest.MonkeyPatch) -> FPELayer:
    """An up layer that stores a child for each of 5 * 7 entries, in 2 bits each (alpha 3)."""
    monkeypatch.setitem(splits._SPLITS, "by-row", by_row)
    layer = make_case(alpha=3, split="by-row").layers()[0]
    assert "owner" in layer.state_dict()
    return layer


@given(st.data())
def test_any_flipped_bit_of_a_mask_is_found(data: st.DataObject) -> None:
    layer = data.draw(st.sampled_from(make_case().layers()))
    assert isinstance(layer, (ElementUp, ElementDown))
    assert layer.keep is not None
    place = data.draw(st.integers(0, len(layer.keep) - 1))
    layer.keep[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CheckpointError, match=r"'mlp\.x\.keep'"):
        layer.check("mlp.x")


def test_a_child_out_of_range_is_found(codes_layer: FPELayer) -> None:
    assert isinstance(codes_layer, ElementUp)
    codes_layer.owner[3] |= 0b11
    with pytest.raises(CheckpointError, match=r"'mlp\.up\.owner' holds child 3, but there are 3"):
        codes_layer.check("mlp.up")


def test_bits_after_the_last_entry_are_found(codes_layer: FPELayer) -> None:
    assert isinstance(codes_layer, ElementUp)
    codes_layer.owner[-1] |= 0b01000000
    with pytest.raises(CheckpointError, match=r"'mlp\.up\.owner' has bits set after"):
        codes_layer.check("mlp.up")


def test_a_damaged_shared_division_is_found() -> None:
    layer = make_case(alpha=3, split="feature").layers()[0]
    assert isinstance(layer, ElementUp)
    assert len(layer.owner) == 2  # 7 entries in 2 bits each
    layer.owner[0] = 0xFF
    with pytest.raises(CheckpointError, match=r"'mlp\.up\.owner' holds child 3"):
        layer.check("mlp.up")


def test_copies_that_do_not_come_in_full_are_found() -> None:
    down = make_case(alpha=2).layers()[-1]
    down.values -= 1
    with pytest.raises(CheckpointError, match=r"'mlp\.down\.weight'.* not a multiple of alpha=2"):
        down.check("mlp.down")


def test_a_drawn_division_is_restored() -> None:
    for layer in make_case(fan_out="partition").layers():
        assert isinstance(layer, (ElementUp, ElementDown))
        assert layer.owner is not None
        drawn = layer.owner.clone()
        layer.owner.zero_()
        layer.settle()
        assert torch.equal(layer.owner, drawn)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(2, 20), st.data())
def test_check_packed_returns_the_codes(
    bits_power: int, count: int, limit: int, data: st.DataObject
) -> None:
    bits = 2 ** (bits_power - 1)
    limit = min(limit, 2**bits)
    codes = data.draw(st.lists(st.integers(0, limit - 1), min_size=count, max_size=count))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert check_packed("x", packed, bits, count, limit).tolist() == codes
    if max(codes) > 0:
        with pytest.raises(CheckpointError, match=f"'x' holds child {max(codes)}"):
            check_packed("x", packed, bits, count, max(codes))


def test_check_keep_counts_large_masks() -> None:
    mask = torch.ones(100_003, dtype=torch.bool)
    check_keep("x", pack(mask, 1), 100_003, 100_003)
    with pytest.raises(CheckpointError, match="'x' keeps 100003 entries, but 100002 were"):
        check_keep("x", pack(mask, 1), 100_003, 100_002)


def test_masks_cost_one_bit_per_entry() -> None:
    up, down = make_case(d=7, h=5, o=6).layers()
    assert isinstance(up, ElementUp)
    assert isinstance(down, ElementDown)
    assert up.keep is not None
    assert down.keep is not None
    assert (len(up.keep), len(down.keep)) == (5, 4)  # 35 and 30 entries
    assert int(unpack(up.keep, 1, 35).sum()) == up.weight.numel()


PAIRS = list(product(["replicate", "partition"], [{}, {"coupling": 0.3}, {"learn_coupling": True}]))


class Pair:
    """A small widened MLP in the `element` layout, and the same in stock operations."""

    def __init__(self, fan_out: str, options: dict[str, Any]) -> None:
        case = make_case(d=6, h=3, o=4, alpha=3, fan_out=fan_out, dtype=torch.float64, **options)
        self.up, self.down = case.layers()
        self.ours = nn.Sequential(self.up, nn.GELU(), self.down)
        self.case = case
        self.numbers = {n: p.detach().clone() for n, p in self.ours.named_parameters()}
        self.x = torch.randn(2, 6, dtype=torch.float64)

    def mine(self, numbers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(self.ours, numbers, x)

    def stock(self, numbers: dict[str, Tensor], x: Tensor) -> Tensor:
        plan, spec = self.case.plan, self.case.spec
        coupling = numbers.get("0.coupling", spec.coupling)
        first = up_matrix(plan, 0, numbers["0.weight"], coupling)
        hidden = functional.linear(x, first, up_bias(spec, numbers["0.bias"]))
        second = down_matrix(plan, numbers["2.weight"])
        return functional.linear(functional.gelu(hidden), second, numbers["2.bias"])


def changed(pair: Pair, function: Any, name: str) -> Any:
    """The loss as a function of one parameter."""
    return lambda value: function({**pair.numbers, name: value}, pair.x).square().sum()


@pytest.mark.parametrize(("fan_out", "options"), PAIRS)
def test_second_derivatives_are_those_of_stock(fan_out: str, options: dict[str, Any]) -> None:
    pair = Pair(fan_out, options)
    for name, value in pair.numbers.items():
        for function in (
            torch.autograd.functional.hessian,
            lambda f, v: torch.autograd.functional.hessian(f, v, vectorize=True),
            lambda f, v: torch.func.jacrev(torch.func.grad(f))(v),
            lambda f, v: torch.func.jvp(torch.func.grad(f), (v,), (torch.ones_like(v),))[1],
        ):
            found, expected = (
                function(changed(pair, own, name), value) for own in (pair.mine, pair.stock)
            )
            assert expected.norm() > 0 or not value.numel()
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("fan_out", "options"), PAIRS)
def test_a_gradient_penalty_is_that_of_stock(fan_out: str, options: dict[str, Any]) -> None:
    pair = Pair(fan_out, options)
    found = []
    for function in (pair.mine, pair.stock):
        numbers = {n: p.clone().requires_grad_() for n, p in pair.numbers.items()}
        x = pair.x.clone().requires_grad_()
        [to_x] = torch.autograd.grad(function(numbers, x).sum(), x, create_graph=True)
        loss = function(numbers, x).square().sum() + to_x.square().sum()
        found.append(torch.autograd.grad(loss, list(numbers.values())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("fan_out", "options"), PAIRS)
@torch.no_grad()
def test_maps_over_models_and_tokens(fan_out: str, options: dict[str, Any]) -> None:
    pair = Pair(fan_out, options)
    several = {n: torch.stack([p, 2 * p, -p]) for n, p in pair.numbers.items()}
    found = torch.func.vmap(pair.mine, (0, None))(several, pair.x)
    for number in range(3):
        own = {n: p[number] for n, p in several.items()}
        torch.testing.assert_close(found[number], pair.stock(own, pair.x))


@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_copies_and_inference_first(fan_out: str, reentrant: bool) -> None:
    pair = Pair(fan_out, {})
    with torch.inference_mode():
        pair.ours(pair.x)
    copies = [deepcopy(pair.ours), pickle.loads(pickle.dumps(pair.ours)), pair.ours]
    x = pair.x.clone().requires_grad_()
    expected: Tensor | None = None
    for model in copies:
        x.grad = None
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        assert x.grad is not None
        expected = x.grad if expected is None else expected
        assert torch.equal(x.grad, expected)


def test_threads_share_a_layer() -> None:
    for fan_out in ("replicate", "partition"):
        layer = make_case(d=64, h=32, o=64, fan_out=fan_out).layers()[1].requires_grad_(False)
        tokens = [torch.randn(n, layer.in_features) for n in (1, 2, 5, 100) for _ in range(8)]
        expected = [layer(x) for x in tokens]
        with ThreadPoolExecutor(8) as pool:
            assert all(map(torch.equal, pool.map(layer, tokens), expected))
