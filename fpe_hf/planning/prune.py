"""Which weights stay: the largest magnitudes, exactly as many as the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_HALF = 1 << 16
_CHUNK = 1 << 18  # keys made at a time: they stay in cache


def keep_largest(
    singles: Sequence[Tensor], groups: Tensor, copies: int, keep: int
) -> tuple[list[Tensor], Tensor]:
    """Prunes the smallest magnitudes over several matrices together (paper section 3, step 4).

    Each entry of `groups` stands for `copies` equal weights, kept or pruned together; if that
    leaves a remainder, it is made up with the next smallest entries of `singles`. Zeros are
    always pruned.

    Args:
        singles: Weights that count once each, any shapes.
        groups: Weights that count `copies` times each.
        copies: See `groups`.
        keep: Number of weights to keep, copies counted.

    Returns:
        Masks of kept entries (bool, the shapes of `singles` and `groups`). They keep exactly
        `keep` weights, or all non-zeros if there are fewer; less by under `copies` if no single is
        left to make up the remainder.
    """
    dtypes = {weight.dtype for weight in (*singles, groups)}
    short = len(dtypes) == 1 and dtypes <= {torch.bfloat16, torch.float16}
    ones = [_Keys(weight, short) for weight in singles]
    group = _Keys(groups, short)
    weighted = [*((keys, 1) for keys in ones), (group, copies)]
    drop = sum(keys.nonzeros() * factor for keys, factor in weighted) - keep
    if drop <= 0:
        return [keys.above(0) for keys in ones], group.above(0)
    threshold, below = _threshold(weighted, drop)
    masks = [keys.above(threshold) for keys in ones]
    group_mask = group.above(threshold)
    drop -= below
    ties = group.places(threshold)
    dropped_groups = min(drop // copies, len(ties))
    group_mask.view(-1)[ties[dropped_groups:]] = True
    drop -= dropped_groups * copies
    for keys, mask in zip(ones, masks, strict=True):
        ties = keys.places(threshold)
        dropped = min(drop, len(ties))
        mask.view(-1)[ties[dropped:]] = True
        drop -= dropped
    if drop:
        _make_up(ones, masks, group, group_mask, drop)
    return masks, group_mask


class _Keys:
    """Magnitudes of a matrix as integers in the same order, made a few at a time.

    They are the bits of a non-negative number: of a float32, or if `short` of the weight's own type
    of 16 bits.
    """

    def __init__(self, weight: Tensor, short: bool) -> None:
        self.shape = weight.shape
        self._rows = torch.atleast_2d(weight.detach()).flatten(0, -2)
        self.short = short

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """The place of the first and the keys, in row-major order: int16 or int32."""
        columns = self._rows.shape[1]
        step = max(1, _CHUNK // max(1, columns))
        for start in range(0, len(self._rows), step):
            magnitude = self._rows[start : start + step].abs()
            if not self.short:
                magnitude = magnitude.float()
            bits = torch.int16 if self.short else torch.int32
            yield start * columns, magnitude.contiguous().view(bits).view(-1)

    def nonzeros(self) -> int:
        """How many keys are not zero."""
        return sum(int(keys.count_nonzero()) for _, keys in self.parts())

    def above(self, limit: int) -> Tensor:
        """Which keys are above a limit: bool, of the matrix's shape."""
        mask = torch.empty(self.shape, dtype=torch.bool, device=self._rows.device)
        flat = mask.view(-1)
        for first, keys in self.parts():
            torch.gt(keys, limit, out=flat[first : first + len(keys)])
        return mask

    def places(self, value: int) -> Tensor:
        """Places of the keys of one value, ascending (int64)."""
        found = [(keys == value).nonzero().squeeze(1) + first for first, keys in self.parts()]
        return torch.cat([*found, self._rows.new_empty(0, dtype=torch.int64)])


def _threshold(weighted: Sequence[tuple[_Keys, int]], drop: int) -> tuple[int, int]:
    """The `drop`-th smallest non-zero key, and the weighted count of non-zero keys below it.

    A radix selection in passes of 16 bits, of which short keys need one: exact and linear.
    """
    high, below = 0, 0
    if weighted[0][0].short:
        low_counts = _count(weighted, lambda keys: keys)
    else:
        high_counts = _count(weighted, lambda keys: (keys >> 16)[keys != 0])
        high, below = _digit(high_counts, drop)
        low_counts = _count(weighted, lambda keys: keys[keys >> 16 == high] & (_HALF - 1))
    if high == 0:
        low_counts[0] = 0
    low_digit, below_low = _digit(low_counts, drop - below)
    return (high << 16) | low_digit, below + below_low


def _count(weighted: Sequence[tuple[_Keys, int]], digits: Callable[[Tensor], Tensor]) -> Tensor:
    """How often each digit of 16 bits occurs, weighted: int64 `[2**16]`."""
    counts = torch.zeros(_HALF, dtype=torch.int64, device="cpu")
    for matrix, copies in weighted:
        for _, keys in matrix.parts():
            counts += copies * torch.bincount(digits(keys), minlength=_HALF).cpu()
    return counts


def _digit(counts: Tensor, rank: int) -> tuple[int, int]:
    """The digit of the `rank`-th smallest key (from 1), and the count of keys with lower ones."""
    cumulative = counts.cumsum(0)
    digit = int(torch.searchsorted(cumulative, rank))
    return digit, int(cumulative[digit] - counts[digit])


def _make_up(
    ones: Sequence[_Keys],
    masks: Sequence[Tensor],
    group: _Keys,
    group_mask: Tensor,
    drop: int,
) -> None:
    """Prunes `drop` more singles, the smallest that are left; a whole group if there are none."""
    left = sum(int(mask.count_nonzero()) for mask in masks)
    if left < drop:
        _drop_smallest(group, group_mask)
        return
    gone = sum(keys.nonzeros() for keys in ones) - left
    limit, _ = _threshold([(keys, 1) for keys in ones], gone + drop)
    for keys, mask in zip(ones, masks, strict=True):
        before = int(mask.count_nonzero())
        mask &= keys.above(limit - 1)
        drop -= before - int(mask.count_nonzero())
    for keys, mask in zip(ones, masks, strict=True):
        ties = keys.places(limit)[:drop]
        mask.view(-1)[ties] = False
        drop -= len(ties)


def _drop_smallest(group: _Keys, mask: Tensor) -> None:
    """Prunes the first of the smallest groups that are kept."""
    keys = torch.cat([part for _, part in group.parts()])
    keys[~mask.view(-1)] = torch.iinfo(keys.dtype).max
    mask.view(-1)[keys.argmin()] = False


def keep_columns(norms: Tensor, counts: Sequence[int], groups: Tensor) -> list[Tensor]:
    """The most important columns of every group.

    Args:
        norms: Importance of every column `[columns]`.
        counts: How many columns each group keeps.
        groups: Group of every column `[columns]`.

    Returns:
        For each group the indices of its kept columns, ascending (int64).
    """
    kept = []
    for group, count in enumerate(counts):
        members = (groups == group).nonzero().squeeze(1)
        best = norms[members].argsort(descending=True, stable=True)[:count]
        kept.append(members[best].sort().values)
    return kept
