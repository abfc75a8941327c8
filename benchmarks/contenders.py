"""What is measured beside the dense parent: the naive ways, and ours in every layout."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fpe_hf
from fpe_hf.config import AUTO, LAYOUTS
from fpe_hf.modules import fpe_layers

from .masked import mask
from .results import TRAIN
from .sparse import SparseBlock
from .timing import Call

DENSE = "dense"
RIVALS = ("masked", "csr")

WAYS: Mapping[str, Mapping[str, Any]] = {
    "partition": {"fan_out": "partition"},
    "replicate": {"fan_out": "replicate"},
    "exact": {"fan_out": "partition", "coupling": 1.0},
}
"""How outgoing weights are divided and children coupled."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""By how much outputs and gradients may differ from the reference, in units of its largest."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a widened block or model.

    Attributes:
        kind: `dense`, one of `RIVALS`, or a layout of `FPEConfig`.
        tiles: Tiles of a block, for the layout `block`.
        way: A key of `WAYS`, for the layouts.
    """

    kind: str
    tiles: int = 0
    way: str = ""

    @property
    def name(self) -> str:
        """As written in tables: `block 4 tiles exact`, `masked`."""
        tiles = f"{self.tiles} tile" + ("s" if self.tiles > 1 else "") if self.tiles else ""
        return " ".join(word for word in (self.kind, tiles, self.way) if word)

    @property
    def ours(self) -> bool:
        """Whether it is a layout of fpe_hf."""
        return bool(self.way)

    def fields(self, alpha: int, hidden: int) -> dict[str, Any]:
        """Fields of `FPEConfig`. The naive ways run what `element replicate` computes.

        Args:
            alpha: Children per parent.
            hidden: Hidden neurons of the dense parent.
        """
        if not self.ours:
            return Contender("element", way="replicate").fields(alpha, hidden)
        fields: dict[str, Any] = {"alpha": alpha, "layout": self.kind, **WAYS[self.way]}
        if self.tiles > 1:
            fields["tile_size"] = -(-hidden // self.tiles)
        return fields

    def bytes(self, weights: int, alpha: int) -> int:
        """The most bytes that building it, checking it and a training step take, about.

        Args:
            weights: Bytes of the dense parent's weights.
            alpha: Children per parent.
        """
        wide = {"masked": 5, "csr": 3, "element": 2}.get(self.kind, 0)
        return weights * (3 + alpha * (2 + wide))  # its dense form is there, too


def contenders(
    layouts: tuple[str, ...], tiles: tuple[int, ...], ways: tuple[str, ...]
) -> Iterator[Contender]:
    """Ours, in every way.

    Args:
        layouts: Layouts; those that fpe_hf does not know are left out.
        tiles: Numbers of tiles, for the layout `block`.
        ways: Keys of `WAYS`.
    """
    for way in ways:
        for layout in (name for name in layouts if name in (*LAYOUTS, AUTO)):
            for number in tiles if layout == "block" else (0,):
                yield Contender(layout, number, way)


class WrongResult(AssertionError):
    """A contender does not compute what it stands for; its time would mean nothing."""


def widened(parent: nn.Module, fields: Mapping[str, Any], example: Any = None) -> nn.Module:
    """A widened copy of a model.

    Args:
        parent: The dense model; it stays as it is.
        fields: Of `FPEConfig`.
        example: Example inputs, for a model that is not of transformers.
    """
    inputs = None if example is None else (example,)
    return fpe_hf.widen(copy.deepcopy(parent), example_inputs=inputs, **fields)


def build(
    contender: Contender, parent: nn.Module, alpha: int, hidden: int, example: Tensor | None
) -> tuple[nn.Module, nn.Module]:
    """The module of a contender, and its dense form.

    Args:
        contender: Which.
        parent: The dense block or model.
        alpha: Children per parent.
        hidden: Hidden neurons of the dense parent.
        example: Example inputs, for a model that is not of transformers.
    """
    ours = widened(parent, contender.fields(alpha, hidden), example)
    dense = fpe_hf.to_dense(ours)
    if contender.ours:
        return ours, dense
    if contender.kind == "csr":
        return SparseBlock(dense), dense
    wider = {name for name, _ in fpe_layers(ours)}
    return mask(dense, wider), dense


def block_call(module: nn.Module, x: Tensor, mode: str) -> Call:
    """What is timed: a pass without gradients, or forward and backward with fresh gradients.

    Args:
        module: The block.
        x: Its input.
        mode: `FORWARD` or `TRAIN`.

    Returns:
        A function that returns the outputs, or the gradient of the inputs.
    """
    if mode != TRAIN:

        def forward() -> Tensor:
            with torch.no_grad():
                y: Tensor = module(x)
            return y

        return forward

    x = x.detach().requires_grad_()  # as the layers before it need
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    grad = torch.ones_like(x)

    def train() -> Tensor | None:
        for leaf in leaves:
            leaf.grad = None
        module(x).backward(grad)
        return x.grad

    return train


def check(name: str, what: str, found: Tensor, expected: Tensor) -> None:
    """Compares results.

    Args:
        name: Of the contender, for the message.
        what: What they are, in words.
        found: What it computed.
        expected: What it should have.

    Raises:
        WrongResult: They differ by more than rounding.
    """
    error = float((found - expected).abs().max().float() / expected.abs().max().float())
    if not error <= TOLERANCE[expected.dtype]:  # NaN is wrong, too
        raise WrongResult(f"{name}: {what} differ by {error:.2g} of the largest.")


def check_block(contender: Contender, module: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """Compares a block with its dense form: outputs, and gradients of inputs where there are any.

    Args:
        contender: What it is.
        module: The block.
        dense: A stock module with the same outputs.
        x: Inputs.

    Raises:
        WrongResult: They differ by more than rounding.
    """
    check(contender.name, "outputs", block_call(module, x, "")(), block_call(dense, x, "")())
    try:
        gradient = block_call(module, x, TRAIN)()
    except (RuntimeError, NotImplementedError):
        return  # a note in the table will say so
    finally:
        module.zero_grad(set_to_none=True)
    check(contender.name, "gradients", gradient, block_call(dense, x, TRAIN)())
