"""Parameters that stack the matrices of a mixture's experts, and what a model computes with them.

A tensor cut from such a parameter, by the index of an expert or whole, is a weight: its lineage
says along which of its axes the rows and the columns of the matrices lie. A product of an
activation with a weight is then a call of a projection that happens to have no module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fpe_hf.discovery import rules
from fpe_hf.discovery.lineage import Call, Lineage, Live, Step, Track, begin, live_tracks, tensors
from fpe_hf.discovery.rows import channels, compact

_FACTORS = {
    "mm": 0,
    "bmm": 0,
    "matmul": 0,
    "_grouped_mm": 0,
    "grouped_mm_fallback": 0,
    "addmm": 1,
    "baddbmm": 1,
}
"""Products -> the place of their first factor; what comes before it is added."""

_TRACEABLE = "batched_mm"
"""The experts implementation of transformers whose shapes depend on no values."""


@contextlib.contextmanager
def traceable_experts(model: nn.Module) -> Iterator[None]:
    """Has transformers' experts computed in the one way that fake tensors allow."""
    hosts = [module for module in model.modules() if hasattr(module, "_apply_gate")]
    configs = {id(host.config): host.config for host in hosts if hasattr(host, "config")}
    field = "_experts_implementation_internal"
    before = {key: getattr(config, field, None) for key, config in configs.items()}
    try:
        for config in configs.values():
            setattr(config, field, _TRACEABLE)
        yield
    finally:
        for key, config in configs.items():
            setattr(config, field, before[key])


@dataclass(frozen=True)
class Product:
    """A product of an activation with the weights of experts.

    Attributes:
        parameter: Dotted name of the parameter that stacks them.
        activation: The other factor.
        axis: The axis of the activation that is contracted, and of the result's channels.
        rows: Number of the result's channels.
        transposed: Whether the parameter holds `[in, out]` matrices.
        bias: Dotted name of the parameter whose rows are added, if any.
    """

    parameter: str
    activation: Tensor
    axis: int
    rows: int
    transposed: bool
    bias: str | None


class Stacks:
    """Follows what is cut from parameters that may stack the weights of experts.

    Attributes:
        misused: Name of a parameter -> what else was done with it.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        self.misused: dict[str, str] = {}
        self._weights: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for name, tensor in parameters:
            if tensor.dim() in (2, 3):
                self._weights[tensor] = _axes(name, tensor)

    def of(self, tensor: Tensor) -> Lineage | None:
        """The lineage of a weight: a track for each axis of the stacked matrices (or biases)."""
        lineage: Lineage | None = self._weights.get(tensor)
        return lineage

    def names(self, step: Step) -> list[str]:
        """The parameters that the operands of `step` are cut from."""
        tracks = live_tracks(self.of(tensor) for tensor, _ in step.operands())
        return list(dict.fromkeys(track.call.projection for track in tracks))

    def move(self, step: Step) -> bool:
        """Follows `step` if it only moves (parts of) a weight; whether it did."""
        rule = rules.RULES.get(step.name)
        if rule not in rules.MOVES or self.of(step.args[0]) is None:
            return False
        resized = rule is rules._reshape and _sizes(step.args[0]) != _sizes(step.output)
        if resized and step.args[0].dim() == 2:
            return self._cut(step)
        outcome = rules.follow(replace(step, lineage=self.of))
        lineages = outcome if isinstance(outcome, list) else [outcome]
        for tensor, lineage in zip(tensors(step.output), lineages, strict=True):
            if not isinstance(lineage, Live) or (resized and _reshaped(lineage)):
                return False
            self._weights[tensor] = lineage
        return True

    def _cut(self, step: Step) -> bool:
        """A matrix of all experts is cut into theirs: followed, but only to be refused."""
        lineage = self.of(step.args[0])
        if not isinstance(lineage, Live) or len(lineage.tracks) != 1 or step.output.dim() != 3:
            return False
        name = lineage.tracks[0].call.projection
        self.misused[name] = "is cut into the matrices of its experts at places fixed in the code"
        self._weights[step.output] = _axes(name, step.output)
        return True

    def product(self, step: Step) -> Product | None:
        """What `step` is as a product with experts' weights, if it is one."""
        place = _FACTORS.get(step.name)
        if place is None:
            return None
        left, right = step.args[place : place + 2]
        if self.of(left) is not None and self.of(right) is not None:
            return None
        weight, activation, axis = (left, right, -2) if self.of(left) else (right, left, -1)
        matrix = self._matrix(weight, axis)
        if matrix is None:
            return None
        rows, columns = matrix
        bias = self.bias(step.args[0], step.result.shape, axis, rows.call.rows) if place else None
        if place and bias is None:
            return None
        transposed = columns.call.value == 1
        name = rows.call.projection
        return Product(name, activation, axis, rows.call.rows, transposed, bias)

    def _matrix(self, weight: Tensor, axis: int) -> tuple[Track, Track] | None:
        """The tracks of the axis that makes channels and of the one that is contracted."""
        lineage = self.of(weight)
        if not isinstance(lineage, Live) or len(lineage.tracks) != 2:
            return None
        rows = next((track for track in lineage.tracks if _lies_along(track, axis)), None)
        columns = next((track for track in lineage.tracks if _lies_along(track, -3 - axis)), None)
        return None if rows is None or columns is None else (rows, columns)

    def bias(self, tensor: Tensor, shape: torch.Size, axis: int, rows: int) -> str | None:
        """The parameter that `tensor` is cut from, if it has a number for each channel."""
        lineage = self.of(tensor)
        if not isinstance(lineage, Live) or len(lineage.tracks) != 1:
            return None
        track = lineage.tracks[0]
        whole = replace(track, rows=compact(track.rows.expand(shape)))
        fits = track.call.rows == rows and _lies_along(whole, axis)
        return track.call.projection if fits else None


def _axes(name: str, tensor: Tensor) -> Live:
    """The lineage of a stack: its axes but the first, each labelled with its number."""
    starts = (
        begin(Call(name, tensor.size(axis), axis), tensor.shape, axis)
        for axis in range(1, tensor.dim())
    )
    return Live(tuple(track for live in starts for track in live.tracks))


def _reshaped(lineage: Live) -> bool:
    return any(track.reshaped for track in lineage.tracks)


def _sizes(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size > 1]


def _lies_along(track: Track, axis: int) -> bool:
    """Whether all of the track's rows lie along `axis`, in order."""
    rows = channels(track.rows, axis)
    return (
        rows is not None
        and len(rows) == track.call.rows
        and torch.equal(rows, torch.arange(len(rows), dtype=rows.dtype, device="cpu"))
    )
