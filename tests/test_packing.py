from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.packing import (
    code_bits,
    pack,
    pack_states,
    packed_bytes,
    smallest_int,
    states_bytes,
    take_kept,
    unpack,
    unpack_states,
)

BITS = st.sampled_from([1, 2, 4, 8])


@given(BITS, st.data())
def test_round_trip(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(len(codes), bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(BITS, st.data())
def test_the_first_code_is_in_the_lowest_bits(bits: int, data: st.DataObject) -> None:
    """The file format: all bytes together are one little-endian number."""
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    assert int.from_bytes(bytes(packed.tolist()), "little") == number


def test_masks_of_any_shape_are_packed_row_by_row() -> None:
    mask = torch.zeros(2, 3, 2, dtype=torch.bool)
    mask[0, 1, 0] = mask[1, 2, 1] = True
    assert pack(mask, 1).tolist() == [0b00000100, 0b00001000]
    assert torch.equal(unpack(pack(mask, 1), 1, 12).view(2, 3, 2).bool(), mask)
    turned = mask.permute(2, 0, 1)
    assert torch.equal(unpack(pack(turned, 1), 1, 12).view(2, 2, 3).bool(), turned)


@given(st.integers(0, 9), st.integers(1, 4), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_what_is_kept_is_taken(
    rows: int, children: int, columns: int, shared: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, children, rows, generator=generator).permute(2, 1, 0)
    keep = torch.rand(rows, 1 if shared else children, columns, generator=generator) < 0.6
    keep = keep.expand(weight.shape)
    taken = take_kept(weight, keep)
    assert torch.equal(taken, weight[keep])


def test_code_bits_are_the_fewest_that_fill_bytes() -> None:
    expected = {2: 1, 3: 2, 4: 2, 5: 4, 16: 4, 17: 8, 256: 8}
    assert {values: code_bits(values) for values in expected} == expected


@pytest.mark.parametrize(
    ("limit", "dtype"),
    [
        (1, torch.uint8),
        (256, torch.uint8),
        (257, torch.int32),
        (32769, torch.int32),
    ],
)
def test_smallest_int_holds_the_largest_index_and_no_more(limit: int, dtype: torch.dtype) -> None:
    assert smallest_int(limit) == dtype
    assert torch.tensor(limit - 1).to(dtype).item() == limit - 1


@given(st.integers(2, 257), st.integers(0, 2000), st.integers(0, 2**16))
def test_states_round_trip(states: int, count: int, seed: int) -> None:
    values = torch.randint(states, (count,), generator=torch.Generator().manual_seed(seed))
    packed = pack_states(values, states)
    assert packed.dtype == torch.uint8
    assert len(packed) == states_bytes(count, states)
    assert torch.equal(unpack_states(packed, states, count).long(), values)


def test_states_of_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpe_hf.packing._PIECE", 16)
    values = torch.arange(1000) % 5
    assert torch.equal(unpack_states(pack_states(values, 5), 5, 1000).long(), values)


@pytest.mark.parametrize(
    ("states", "bits"), [(2, 1.0), (3, 27 / 17), (4, 2.0), (5, 7 / 3), (9, 3.2)]
)
def test_states_waste_little(states: int, bits: float) -> None:
    assert states_bytes(24_000, states) * 8 / 24_000 == pytest.approx(bits, rel=1e-3)


def test_bytes_that_were_never_packed_give_no_state() -> None:
    assert int(unpack_states(torch.full((7,), 255, dtype=torch.uint8), 5, 24).max()) >= 5
