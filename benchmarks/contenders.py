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

from .blocks import Shape
from .floor import Floor
from .masked import mask
from .sparse import SparseBlock
from .timing import Call

DENSE, FLOOR = "dense", "floor"
RIVALS = ("masked", "premasked", "csr", "bsr")

WAYS: Mapping[str, Mapping[str, Any]] = {
    "replicate": {"fan_out": "replicate"},
    "partition": {"fan_out": "partition"},
    "exact": {"fan_out": "partition", "coupling": 1.0},
}
"""How outgoing weights are divided and children coupled."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""By how much outputs and gradients may differ from the reference, in units of its largest."""


@dataclass(frozen=True)
class Contender:
    """One way to run a widened block or model.

    Attributes:
        kind: `dense`, `floor`, one of `RIVALS`, or a layout of `FPEConfig`.
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

    def runs(self, mode: str) -> bool:
        """Whether it makes sense in a mode: zeros that are filled in once would be trained."""
        return mode == "forward" or self.kind != "premasked"

    def fields(self, alpha: int, hidden: int) -> dict[str, Any]:
        """Fields of `FPEConfig`.

        Args:
            alpha: Children per parent.
            hidden: Hidden neurons of the dense parent.
        """
        fields: dict[str, Any] = {"alpha": alpha, "layout": self.kind, **WAYS[self.way]}
        if self.tiles > 1:
            fields["tile_size"] = -(-hidden // self.tiles)
        return fields

    def step_bytes(self, shape: Shape, alpha: int, dtype: torch.dtype) -> int:
        """Bytes of weights, gradients and their copies in a training step, about.

        Args:
            shape: Widths of the dense parent.
            alpha: Children per parent.
            dtype: Of the weights.
        """
        wide_copies = {"masked": 5, "premasked": 2, "csr": 2, "bsr": 1, "element": 2}
        return shape.weights * dtype.itemsize * (2 + alpha * wide_copies.get(self.kind, 0))

    def build_bytes(self, shape: Shape, alpha: int, dtype: torch.dtype) -> int:
        """The most bytes that are needed to build and check it, about. Arguments as above."""
        if self.kind in (DENSE, FLOOR):
            return self.step_bytes(shape, alpha, dtype)
        wide = alpha * shape.weights * dtype.itemsize
        return 2 * wide + self.step_bytes(shape, alpha, dtype)  # its dense form is there, too


# The stand-ins for ours in the naive ways: those whose dense form they run.
_REFERENCE = {
    "masked": Contender("element", way="replicate"),
    "premasked": Contender("element", way="replicate"),
    "csr": Contender("element", way="replicate"),
    "bsr": Contender("block", tiles=1, way="partition"),
}


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
    contender: Contender, parent: nn.Module, shape: Shape, alpha: int, example: Tensor
) -> nn.Module:
    """The module of a contender, checked against its dense form.

    Args:
        contender: Which.
        parent: The dense block.
        shape: Its widths.
        alpha: Children per parent.
        example: A few tokens `[1, tokens, inputs]`.

    Raises:
        WrongResult: Outputs or gradients differ from those of the dense form.
    """
    if contender.kind == DENSE:
        return parent
    if contender.kind == FLOOR:
        return Floor(parent, alpha)
    source = _REFERENCE.get(contender.kind, contender)
    ours = widened(parent, source.fields(alpha, shape.hidden), example)
    dense = fpe_hf.to_dense(ours)
    if contender.ours:
        module = ours
    elif contender.kind == "premasked":
        module = copy.deepcopy(dense)
    elif contender.kind == "masked":
        names = [name for name, part in dense.named_modules() if isinstance(part, nn.Linear)]
        module = mask(dense, names)
    else:
        layout = torch.sparse_csr if contender.kind == "csr" else torch.sparse_bsr
        module = SparseBlock(dense, alpha, layout)
    check(contender.name, module, dense, example)
    return module


def block_call(module: nn.Module, x: Tensor, mode: str) -> Call:
    """What is timed: a pass without gradients, or forward and backward with fresh gradients.

    Args:
        module: The block.
        x: Its input.
        mode: `"forward"` or `"train"`.
    """
    if mode == "forward":

        def forward() -> None:
            with torch.no_grad():
                module(x)

        return forward

    x = x.detach().requires_grad_()  # as the layers before it need
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    grad = torch.ones_like(x)

    def train() -> None:
        for leaf in leaves:
            leaf.grad = None
        module(x).backward(grad)

    return train


def check(name: str, module: nn.Module, dense: nn.Module, example: Tensor) -> None:
    """Compares a module with its dense form: outputs, and gradients of the inputs where there are.

    Args:
        name: For the message.
        module: What is measured.
        dense: A stock module with the same outputs.
        example: Inputs.

    Raises:
        WrongResult: They differ by more than rounding.
    """
    expected, expected_grad = _run(dense, example)
    try:
        found, found_grad = _run(module, example)
    except (RuntimeError, NotImplementedError):
        try:  # there may be no backward
            with torch.no_grad():
                found, found_grad = module(example), expected_grad
        except (RuntimeError, NotImplementedError):
            return  # nothing to time, either
    for what, ours, reference in (
        ("outputs", found, expected),
        ("gradients", found_grad, expected_grad),
    ):
        scale = reference.abs().max().float()
        error = float((ours - reference).abs().max().float() / scale)
        if not error <= TOLERANCE[example.dtype]:  # NaN is wrong, too
            raise WrongResult(f"{name}: {what} differ from the dense form's by {error:.2g}.")


def _run(module: nn.Module, example: Tensor) -> tuple[Tensor, Tensor]:
    x = example.detach().clone().requires_grad_()
    y = module(x)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return y.detach(), grad
