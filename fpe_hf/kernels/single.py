"""One token in the `block` layout, without gradients: matrix-vector products and little else.

For one token the products of a small block take no longer than a few dozen calls of Python, so what
can be prepared is prepared, and kept as long as the numbers stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..planning import BlockSpec
from .block import LARGE, DownPart, UpPart, is_coupled

MOST_MATRICES = 64
"""With more of them, a batch is quicker."""


class SingleUp:
    """An up projection of one token.

    Args:
        up: The only part of the projection, see `applies`.
    """

    def __init__(self, up: UpPart) -> None:
        run = up.runs[0]
        self._matrices = run.matrices.flatten(0, 1).unbind()
        self._index = up.index
        self._size = run.size
        self._bias: Tensor | None = None
        if up.bias is not None:
            shape = (*run.matrices.shape[:2], *up.bias.shape[2:])
            self._bias = up.bias.expand(shape).flatten()

    def __call__(self, x: Tensor) -> Tensor:
        """`[in_features]` -> `[hidden]`."""
        read = x.index_select(0, self._index).split(self._size)
        hidden = torch.cat(list(map(torch.mv, self._matrices, read)))
        return hidden if self._bias is None else hidden.add_(self._bias)


class SingleDown:
    """A down projection of one token.

    Args:
        spec: The block.
        down: The only part of the projection, see `applies`.
        bias: `[out_features]` or `None`.
    """

    def __init__(self, spec: BlockSpec, down: DownPart, bias: Tensor | None) -> None:
        matrices = down.runs[0].matrices
        self._matrices = matrices.flatten(0, 1).unbind()
        self._size = matrices.shape[-1]
        outputs = torch.arange(spec.out_features, device=matrices.device, dtype=torch.int32)
        everything = outputs.expand(matrices.shape[0], -1)
        self._index = (everything if down.index is None else down.index).flatten()
        self._base = matrices.new_zeros(spec.out_features) if bias is None else bias

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[hidden]` -> `[out_features]`."""
        rows = list(map(torch.mv, self._matrices, hidden.split(self._size)))
        return self._base.index_add(0, self._index, torch.cat(rows))


def applies(spec: BlockSpec, parts: Sequence[UpPart] | Sequence[DownPart]) -> bool:
    """Whether a projection can be computed this way: a few large matrices of one shape.

    Args:
        spec: The block.
        parts: The projection.
    """
    if len(parts) > 1 or len(parts[0].runs) > 1 or spec.fused is not None or is_coupled(spec):
        return False
    tiles, children, rows, columns = parts[0].runs[0].matrices.shape
    return tiles * children <= MOST_MATRICES and rows * columns >= LARGE
