from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fpe_hf import splits
from fpe_hf.errors import CheckpointError
from fpe_hf.layers import ElementDown, ElementUp, FPELayer
from fpe_hf.layers.element import check_keep, check_packed
from fpe_hf.packing import pack, unpack
from planning.cases import Case, cases, make_case


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


@given(cases(layout="element"))
def test_what_was_built_passes_its_own_check(case: Case) -> None:
    for layer in case.layers():
        layer.check("mlp")
        layer.reset_derived()
        layer.check("mlp")


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
    down.weight = torch.nn.Parameter(down.weight[:-1].detach())
    with pytest.raises(CheckpointError, match=r"'mlp\.down\.weight'.* not a multiple of alpha=2"):
        down.check("mlp.down")


def test_a_drawn_division_is_restored() -> None:
    for layer in make_case(fan_out="partition").layers():
        assert isinstance(layer, (ElementUp, ElementDown))
        assert layer.owner is not None
        drawn = layer.owner.clone()
        layer.owner.zero_()
        layer.reset_derived()
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
