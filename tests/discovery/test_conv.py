"""1x1 convolutions are linear projections of every position."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fpe_hf.discovery import MLPBlocks, find_mlps

D, H = 8, 16
IMAGE, SIGNAL = torch.zeros(2, D, 5, 6), torch.zeros(2, D, 7)


class Transposed(nn.Module):
    """Up by a Linear over the last axis, down by a convolution over the first."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, H), nn.Conv1d(H, D, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.up(x.transpose(1, 2)).relu()
        down: torch.Tensor = self.down(hidden.transpose(1, 2))
        return down


def find(*layers: nn.Module, x: torch.Tensor = IMAGE) -> MLPBlocks:
    return find_mlps(nn.Sequential(*layers), (x,))


def test_blocks_of_pointwise_convolutions() -> None:
    for conv, x in ((nn.Conv1d, SIGNAL), (nn.Conv2d, IMAGE)):
        (block,) = find(conv(D, H, 1), nn.GELU(), conv(H, D, 1), x=x)
        assert (block.in_features, block.parents, block.out_features) == (D, H, D)


def test_gated_linear_unit_over_the_channels() -> None:
    (block,) = find(nn.Conv1d(D, 2 * H, 1), nn.GLU(dim=1), nn.Conv1d(H, D, 1), x=SIGNAL)
    assert (block.kind, block.fused, block.parents) == ("fused", "halves", H)


def test_linear_and_convolution_mixed() -> None:
    (block,) = find_mlps(Transposed(), (SIGNAL,))
    assert (block.up, block.down) == ("up", "down")


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.BatchNorm2d(H), "its own statistics"),
        (nn.GroupNorm(2, H), "normalises"),
        (nn.Conv2d(H, H, 3, padding=1, groups=H), "convolution"),
        (nn.Flatten(2), "not all along the axis"),
    ],
)
def test_refused_for_what_lies_between(between: nn.Module, reason: str) -> None:
    down = nn.Linear(30, 4) if isinstance(between, nn.Flatten) else nn.Conv2d(H, D, 1)
    (miss,) = find(nn.Conv2d(D, H, 1), nn.ReLU(), between, down).near_misses
    assert reason in miss.reason


def test_convolutions_by_groups_are_refused_as_such() -> None:
    found = find(nn.Conv2d(D, H, 1), nn.ReLU(), nn.Conv2d(H, D, 1, groups=4))
    assert found == []
    assert "2 is a convolution by groups" in found.near_misses[0].reason


def test_larger_kernels_are_no_projections() -> None:
    found = find(nn.Conv2d(D, H, 3), nn.ReLU(), nn.Conv2d(H, D, 1))
    assert found == []
    assert found.near_misses == []
