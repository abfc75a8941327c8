"""Which weight row made each element of an activation.

The output of a projection starts a lineage: an index tensor of the activation's shape that
holds, for every element, the row of the weight that made it. As long as every element depends on
one row per projection the lineage is `Live`; an operation that mixes rows makes it `Ended`, which
travels on only to say why. How operations pass a lineage on is said in `rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Call:
    """One call of a projection during the traced forward pass.

    Attributes:
        projection: Dotted name of the module.
        rows: Rows of its weight.
        value: Stands for the value it read; equal for calls that read the same value.
        leaks: How its output was used other than on the way into a projection.
        joined: Whether its output was added to other activations, as a residual block's is, or
            handed back by a part of a model that ran alone; `None` if nobody watched.
        scales: Whether its output was multiplied with other activations, as a gate's is.
        transposed: Whether the projection, a parameter that stacks the weights of experts, holds
            `[in, out]` matrices; `None` for a module.
        bias: Experts: dotted name of the parameter that was added.
    """

    projection: str
    rows: int
    value: object
    leaks: list[str] = field(default_factory=list)
    joined: bool | None = None
    scales: bool = False
    transposed: bool | None = None
    bias: str | None = None


@dataclass(frozen=True)
class Op:
    """A nonlinear operation: its name, and the leaf module it ran in (dotted name, class)."""

    name: str
    module: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Track:
    """The rows of one call in a tensor, and what happened to its values since.

    Attributes:
        call: The call that made the values.
        rows: Row index of every element, of the tensor's shape; `NO_ROW` where there is none.
        ops: Nonlinear operations the values went through.
        reshaped: Whether the hidden axis was cut and put together again, or merged with another.
    """

    call: Call
    rows: Tensor
    ops: tuple[Op, ...] = ()
    reshaped: bool = False


@dataclass(frozen=True, eq=False)
class Live:
    """Every element depends on one row per track, and on nothing else that varies with it."""

    tracks: tuple[Track, ...]


@dataclass(frozen=True, eq=False)
class Ended:
    """The values depend on several rows of `calls`; `reason` says through what.

    Attributes:
        calls: The calls whose rows were mixed.
        reason: What mixed them, in words.
        ops: Nonlinear operations seen on the way, before or after.
        statistic: Whether only a statistic over the rows is left (a mean, a norm), so that
            operations on it are no activation.
    """

    calls: tuple[Call, ...]
    reason: str
    ops: tuple[Op, ...] = ()
    statistic: bool = False


Lineage = Live | Ended
Outcome = Lineage | None | list[Lineage | None]


@dataclass(frozen=True)
class Step:
    """One dispatched operation, as the rules see it.

    Attributes:
        func: The operator overload.
        args: Positional arguments.
        kwargs: Keyword arguments.
        output: What it returned.
        lineage: Looks up the lineage that a tensor had before the operation.
        parameter: Looks up the name of a tensor that is a parameter or buffer of the model.
        module: The leaf module it ran in (dotted name, class name), if any.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    lineage: Callable[[Tensor], Lineage | None]
    parameter: Callable[[Tensor], str | None]
    module: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """The operator's name without namespace, overload and in-place underscore."""
        return operator_name(self.func)

    @property
    def place(self) -> str:
        """The operation, for a sentence: by its leaf module's class, else by its name."""
        return f"{self.module[1]} ({self.name})" if self.module else self.name

    @property
    def result(self) -> Tensor:
        """What it returned, or the first of the tensors it returned."""
        return next(iter(tensors(self.output)))

    def operands(self) -> list[tuple[Tensor, Lineage | None]]:
        """Every tensor argument with its lineage."""
        return [(tensor, self.lineage(tensor)) for tensor in tensors((self.args, self.kwargs))]


def operator_name(func: Any) -> str:
    """`aten::relu_` -> `relu`."""
    name: str = func._schema.name.rpartition("::")[2]
    return name[:-1] if func._schema.is_mutable and name.endswith("_") else name


def tensors(value: Any) -> Iterable[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def live_tracks(lineages: Iterable[Lineage | None]) -> list[Track]:
    """The tracks of all lineages that are live."""
    return [track for lineage in lineages if isinstance(lineage, Live) for track in lineage.tracks]


def begin(call: Call, shape: Sequence[int], axis: int = -1) -> Live:
    """The lineage of a projection's output, whose channels lie along `axis`."""
    sizes = [1] * len(shape)
    sizes[axis] = call.rows
    rows = torch.arange(call.rows, dtype=torch.int32, device="cpu").view(sizes).expand(tuple(shape))
    return Live((Track(call, rows),))
