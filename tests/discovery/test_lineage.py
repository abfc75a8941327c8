from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fpe_hf.discovery import rules
from fpe_hf.discovery.lineage import Call, Ended, Lineage, Live, Step, begin
from fpe_hf.discovery.rows import channels as channels_of

SHAPE, ROWS = (2, 3, 8), 8


class Follower(TorchDispatchMode):
    """Applies the rules to plain operations, without a model."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.call = Call("up", start.shape[-1], object())
        self.known: list[tuple[Tensor, Lineage | None]] = [(start, begin(self.call, start.shape))]

    def of(self, tensor: Tensor) -> Lineage | None:
        return next((known for other, known in reversed(self.known) if other is tensor), None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        step = Step(func, args, kwargs or {}, output, self.of, lambda tensor: None)
        if any(known is not None for _, known in step.operands()):
            outcome = rules.follow(step)
            outputs = [output] if isinstance(output, Tensor) else list(output)
            outcomes = outcome if isinstance(outcome, list) else [outcome] * len(outputs)
            self.known += zip(outputs, outcomes, strict=True)
        return output


def follow(function: Callable[[Tensor], Tensor], shape: tuple[int, ...] = SHAPE) -> Lineage | None:
    start = torch.rand(shape)
    follower = Follower(start)
    with torch.no_grad(), follower:
        output = function(start)
    return follower.of(output)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.reshape(-1, x.shape[-1]),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, -1),
    "slice": lambda x: x[..., 1::2],
    "select": lambda x: x[0],
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "expand": lambda x: x[None].expand(4, *x.shape),
    "clone": lambda x: x.clone(),
    "to": lambda x: x.to(torch.float64),
    "contiguous": lambda x: x.transpose(0, 1).contiguous(),
    "chunk": lambda x: x.chunk(2, -1)[1],
    "split": lambda x: x.split([3, 5], -1)[0],
    "unbind": lambda x: x.unbind(0)[1],
    "stack": lambda x: torch.stack([x, x], 1),
    "cat": lambda x: torch.cat([x[..., 3:], x[..., :3]], -1),
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(2, -1),
    "tokens by index": lambda x: x[torch.tensor([1, 0, 1])],
    "tokens by mask": lambda x: x[torch.tensor([True, False])],
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "split heads": lambda x: x.view(2, 3, 2, 4).transpose(1, 2),
}


@pytest.mark.parametrize("name", MOVES)
def test_moved_elements_keep_their_rows(name: str) -> None:
    """The oracle: run the same operation on a tensor that holds its own row numbers."""
    numbers = torch.arange(ROWS, dtype=torch.float32).expand(SHAPE)
    lineage = follow(MOVES[name])
    assert isinstance(lineage, Live)
    (track,) = lineage.tracks
    assert torch.equal(track.rows.to(torch.float64), MOVES[name](numbers).to(torch.float64))
    assert track.ops == ()


@given(st.permutations(range(3)), st.sampled_from(sorted(MOVES)), st.sampled_from(sorted(MOVES)))
def test_moves_compose(order: list[int], first: str, second: str) -> None:
    def moves(x: Tensor) -> Tensor:
        moved = MOVES[first](x.permute(order))
        return MOVES[second](moved) if moved.shape == SHAPE else moved

    numbers = torch.arange(ROWS, dtype=torch.float32).expand(SHAPE).contiguous()
    try:
        expected = moves(numbers)
    except (RuntimeError, IndexError, ValueError):
        return  # Not possible on this order of axes.
    lineage = follow(moves)
    if isinstance(lineage, Live):
        (track,) = lineage.tracks
        assert torch.equal(track.rows.to(torch.float64), expected.to(torch.float64))
    else:
        assert "index" in f"{first} {second}" or "tokens" in f"{first} {second}"


def test_index_tensors_are_compact() -> None:
    lineage = follow(lambda x: torch.cat([x, x], 1).clone())
    assert isinstance(lineage, Live)
    assert lineage.tracks[0].rows.untyped_storage().nbytes() <= 4 * ROWS * 4


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (torch.relu, ["relu"]),
        (torch.nn.functional.gelu, ["gelu"]),
        (torch.nn.functional.hardswish, ["hardswish"]),
        (torch.nn.functional.logsigmoid, ["log_sigmoid_forward"]),
        (lambda x: x * 2 + 1, []),
        (lambda x: x / 2 - x, []),
        (lambda x: x * x, ["mul"]),
        (lambda x: x * torch.sigmoid(1.702 * x), ["sigmoid", "mul"]),
        (lambda x: x.masked_fill(torch.ones(2, 3, 1, dtype=torch.bool), 0.0), []),
        (lambda x: torch.where(x > 0, x, 0.0), ["gt", "where"]),
        (lambda x: x.clone().clamp_(max=1), ["clamp"]),
        (lambda x: x.mean(1), []),
        (lambda x: x.amax((0, 1)), ["amax"]),
        (lambda x: x.softmax(0), ["_softmax"]),
    ],
)
def test_live_with_operations(function: Callable[[Tensor], Tensor], ops: list[str]) -> None:
    lineage = follow(function)
    assert isinstance(lineage, Live)
    (track,) = lineage.tracks
    assert [op.name for op in track.ops] == ops
    channels = channels_of(track.rows)
    assert channels is not None
    assert channels.tolist() == list(range(ROWS))


def test_halves_are_two_tracks() -> None:
    def gated(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return torch.relu(gate) * up

    lineage = follow(gated)
    assert isinstance(lineage, Live)
    first, second = lineage.tracks
    assert [op.name for op in first.ops] == ["relu"]
    assert second.ops == ()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.nn.functional.layer_norm(x, (8,)), "normalises over the hidden axis"),
        (lambda x: x - x.mean(-1, keepdim=True), "reduces over the hidden axis"),
        (lambda x: torch.relu(x) * torch.rand(8), "another activation"),
        (lambda x: torch.relu(x).sort(-1).values, "may mix the hidden channels"),
        (lambda x: torch.relu(x)[..., torch.arange(8)], "picks hidden channels"),
        (lambda x: torch.conv1d(x.mT, torch.rand(8, 8, 1)), "convolution"),
        (lambda x: x.relu() + x.roll(1, -1) + x.roll(2, -1), "meet in each hidden channel"),
    ],
)
def test_ended_with_reason(function: Callable[[Tensor], Tensor], reason: str) -> None:
    lineage = follow(function)
    assert isinstance(lineage, Ended)
    assert reason in lineage.reason


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ torch.rand(8, 8),
        lambda x: x + torch.rand(SHAPE),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
    ],
)
def test_forgotten(function: Callable[[Tensor], Tensor]) -> None:
    assert follow(function) is None


def test_statistics_are_no_activation() -> None:
    lineage = follow(lambda x: x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt())
    assert isinstance(lineage, Ended)
    assert lineage.statistic
    assert lineage.ops == ()


def test_the_first_cause_is_told() -> None:
    lineage = follow(lambda x: torch.relu(x - x.mean(-1, keepdim=True)).sort(-1).values)
    assert isinstance(lineage, Ended)
    assert "reduces" in lineage.reason


def test_channels_along_another_axis() -> None:
    rows = begin(Call("up", ROWS, object()), (2, ROWS, 3), axis=1).tracks[0].rows
    channels = channels_of(rows, axis=1)
    assert channels is not None
    assert channels.tolist() == list(range(ROWS))
    assert channels_of(rows) is None
