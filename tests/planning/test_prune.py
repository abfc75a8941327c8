from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fpe_hf.planning.prune import keep_columns, keep_largest

FEW_VALUES = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0, 2.0, 3.0])
ANY_VALUE = st.floats(-1e4, 1e4, width=16) | st.sampled_from([0.0, -0.0, 1e-44, 3e-44, 1e-7])
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Tensor], Tensor, int, int]:
    dtype = draw(st.sampled_from(DTYPES))
    values = draw(st.sampled_from([FEW_VALUES, ANY_VALUE]))

    def matrix(*shape: int) -> Tensor:
        size = math.prod(shape)
        numbers = draw(st.lists(values, min_size=size, max_size=size))
        return torch.tensor(numbers, dtype=dtype).view(shape)

    h = draw(st.integers(1, 4))
    d = draw(st.integers(0, 5))
    singles = [matrix(draw(st.integers(1, 2)), h, d) for _ in range(draw(st.integers(1, 2)))]
    groups = matrix(draw(st.integers(1, 4)), h)
    copies = draw(st.integers(1, 5))
    total = nonzeros([(single, 1) for single in singles] + [(groups, copies)])
    return singles, groups, copies, draw(st.integers(0, total + 2))


def magnitudes(weight: Tensor) -> list[float]:
    return weight.double().abs().view(-1).tolist()


def nonzeros(weighted: list[tuple[Tensor, int]]) -> int:
    return sum(copies * sum(v != 0 for v in magnitudes(w)) for w, copies in weighted)


def prune_one_by_one(
    singles: list[Tensor], groups: Tensor, copies: int, keep: int
) -> tuple[list[list[bool]], list[bool], int]:
    """The documented rule: go through the entries from small to large, the copied ones first
    among equals, and prune whatever still fits in the number to prune.

    Returns:
        What is kept, flat; and the number that could not be pruned because no single was left.
    """
    tensors = [groups, *singles]
    kept = [[value != 0 for value in magnitudes(tensor)] for tensor in tensors]
    order = sorted(
        (value, which, place)
        for which, tensor in enumerate(tensors)
        for place, value in enumerate(magnitudes(tensor))
        if value != 0
    )
    left = nonzeros([(groups, copies)] + [(single, 1) for single in singles]) - keep
    for _, which, place in order:
        cost = copies if which == 0 else 1
        if cost <= left:
            kept[which][place] = False
            left -= cost
    return kept[1:], kept[0], max(0, left)


@given(problems())
def test_equals_pruning_one_by_one(problem: tuple[list[Tensor], Tensor, int, int]) -> None:
    singles, groups, copies, keep = problem
    masks, group_mask = keep_largest(singles, groups, copies, keep)
    assert [mask.shape for mask in masks] == [single.shape for single in singles]
    assert group_mask.shape == groups.shape
    kept = sum(int(mask.sum()) for mask in masks) + copies * int(group_mask.sum())
    single_masks, expected_groups, stuck = prune_one_by_one(singles, groups, copies, keep)
    if stuck:
        assert keep - copies < kept < keep
    else:
        assert [mask.view(-1).tolist() for mask in masks] == single_masks
        assert group_mask.view(-1).tolist() == expected_groups


@given(problems())
def test_keeps_exactly_as_many_as_asked(problem: tuple[list[Tensor], Tensor, int, int]) -> None:
    singles, groups, copies, keep = problem
    masks, group_mask = keep_largest(singles, groups, copies, keep)
    kept = sum(int(mask.sum()) for mask in masks) + copies * int(group_mask.sum())
    there_are = nonzeros([(groups, copies)] + [(single, 1) for single in singles])
    wanted = min(keep, there_are)
    singles_left = sum(int(mask.sum()) for mask in masks)
    assert kept == wanted or (singles_left < copies and wanted - copies < kept < wanted)
    for weight, mask in zip([*singles, groups], [*masks, group_mask], strict=True):
        assert not mask[weight == 0].any()


@given(problems())
def test_never_keeps_the_smaller_of_two_alike(
    problem: tuple[list[Tensor], Tensor, int, int],
) -> None:
    singles, groups, copies, keep = problem
    masks, group_mask = keep_largest(singles, groups, copies, keep)
    single_values = torch.cat([single.reshape(-1) for single in singles]).double().abs()
    single_kept = torch.cat([mask.reshape(-1) for mask in masks])
    group_values = groups.reshape(-1).double().abs()
    for values, kept in ((single_values, single_kept), (group_values, group_mask.reshape(-1))):
        if kept.any() and not kept.all():
            assert values[kept].min() >= values[~kept].max()
    if group_mask.any():
        made_up = single_values[~single_kept] > group_values[group_mask.reshape(-1)].min()
        assert made_up.sum() < copies


def test_a_remainder_is_made_up_with_the_next_singles() -> None:
    singles = [torch.tensor([[5.0, 4.0, 3.0, 9.0]])]
    groups = torch.tensor([[1.0, 2.0, 8.0]])
    masks, group_mask = keep_largest(singles, groups, copies=3, keep=8)  # 13 in all, 5 to prune
    assert group_mask.tolist() == [[False, True, True]]
    assert masks[0].tolist() == [[True, False, False, True]]


def test_a_whole_group_goes_when_no_single_is_left() -> None:
    masks, group_mask = keep_largest([torch.zeros(2, 2)], torch.tensor([[3.0, 1.0, 2.0]]), 4, 10)
    assert not masks[0].any()
    assert group_mask.tolist() == [[True, False, True]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_on_many_weights(dtype: torch.dtype) -> None:
    """Low precision makes thousands of ties; the radix selection must split them exactly."""
    generator = torch.Generator().manual_seed(0)
    singles = [torch.randn(2, 50, 60, generator=generator).to(dtype) for _ in range(2)]
    groups = torch.randn(40, 50, generator=generator).to(dtype)
    for keep in (1, 5_000, 13_999, 17_999):
        masks, group_mask = keep_largest(singles, groups, 3, keep)
        assert sum(int(mask.sum()) for mask in masks) + 3 * int(group_mask.sum()) == keep
        kept = torch.cat([single[mask] for single, mask in zip(singles, masks, strict=True)])
        pruned = torch.cat([single[~mask] for single, mask in zip(singles, masks, strict=True)])
        assert not len(kept) or kept.abs().min() >= pruned.abs().max()


def test_takes_weights_in_any_memory_order() -> None:
    single, groups = torch.randn(1, 6, 5), torch.randn(4, 6)
    transposed = single.transpose(1, 2).contiguous().transpose(1, 2)
    masks, group_mask = keep_largest([transposed], groups.t().contiguous().t(), 2, 40)
    expected, expected_groups = keep_largest([single], groups, 2, 40)
    assert torch.equal(masks[0], expected[0])
    assert torch.equal(group_mask, expected_groups)


@given(st.data())
def test_keep_columns_takes_the_largest_of_each_group(data: st.DataObject) -> None:
    values = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0])
    norms = data.draw(st.lists(values, min_size=1, max_size=12))
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(norms), max_size=len(norms)))
    counts = [data.draw(st.integers(0, groups.count(group))) for group in range(3)]
    kept = keep_columns(torch.tensor(norms), counts, torch.tensor(groups))
    for group, count in enumerate(counts):
        members = [place for place, own in enumerate(groups) if own == group]
        best = sorted(members, key=lambda place: (-norms[place], place))[:count]
        assert kept[group].tolist() == sorted(best)
        assert kept[group].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(seed=st.integers(0, 999), copies=st.integers(1, 5), share=st.floats(0.05, 1.0))
def test_short_keys_keep_what_those_of_float32_keep(
    dtype: torch.dtype, seed: int, copies: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(size, 9, generator=generator).to(dtype) for size in (7, 5, 6)]
    weights[seed % 3][::2] *= 0  # both zeros
    *singles, groups = weights
    keep = max(1, int(share * (sum(s.numel() for s in singles) + copies * groups.numel())))
    short = keep_largest(singles, groups, copies, keep)
    long = keep_largest([single.float() for single in singles], groups.float(), copies, keep)
    assert all(map(torch.equal, short[0], long[0]))
    assert torch.equal(short[1], long[1])


def test_mixed_types_are_compared_as_float32() -> None:
    halves = torch.tensor([1.0, 3.0], dtype=torch.float16)
    masks, group_mask = keep_largest([halves], torch.tensor([2.0, 4.0]), 1, 2)
    assert masks[0].tolist() == [False, True]
    assert group_mask.tolist() == [False, True]
