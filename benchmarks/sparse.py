"""A widened block on the sparse formats of PyTorch, in the way that is fastest there.

Measured: a product with the sparse matrix on the left (`[out, in] @ [in, tokens]`) is several times
faster than `functional.linear`, and 32-bit indices spare a conversion at every call. So activations
stay transposed from the first product to the last.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .blocks import activation, projections

_BLOCK_SIZES = (32, 16, 8, 4, 2, 1)


class SparseBlock(nn.Module):
    """A dense block whose matrices are mostly zeros, in CSR or BSR.

    BSR needs its non-zeros in blocks. In a block whose parents all share one split they are, once
    inputs and outputs are sorted by child: that is done to the tokens at both ends.

    Args:
        dense: The block, zeros filled in.
        alpha: Children per parent; only needed for BSR.
        layout: `torch.sparse_csr` or `torch.sparse_bsr`.
    """

    def __init__(self, dense: nn.Module, alpha: int, layout: torch.layout) -> None:
        super().__init__()
        ups, down = projections(dense)
        self.order: Tensor | None = None
        self.back: Tensor | None = None
        matrices = [projection.weight.detach() for projection in (*ups, down)]
        if layout == torch.sparse_bsr:
            read = matrices[0].unflatten(0, (alpha, -1)).ne(0).any(1)
            written = matrices[-1].unflatten(1, (alpha, -1)).ne(0).any(2).t()
            self.order, rows = _by_child(read), _by_child(written)
            self.back = rows.argsort()
            matrices = [m[:, self.order] for m in matrices[:-1]] + [matrices[-1][rows]]
            size = next(s for s in _BLOCK_SIZES if dense_width(dense) % (alpha * s) == 0)
            packed = [_bsr(matrix, size) for matrix in matrices]
        else:
            packed = [_csr(matrix) for matrix in matrices]
        self.weights = nn.ParameterList(packed)
        biases = [projection.bias for projection in (*ups, down)]
        if self.back is not None and biases[-1] is not None:
            biases[-1] = nn.Parameter(biases[-1].detach()[self.back.argsort()])
        self.biases = nn.ParameterList(b for b in biases if b is not None)
        self._activation = activation(dense)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` -> `[..., inputs]`."""
        columns = x.reshape(-1, x.shape[-1]).t()
        if self.order is not None:
            columns = columns.index_select(0, self.order)
        z = [self._project(i, columns) for i in range(len(self.weights) - 1)]
        y = self._project(len(self.weights) - 1, self._activation(*z))
        if self.back is not None:
            y = y.index_select(0, self.back)
        return y.t().reshape(x.shape)

    def _project(self, index: int, columns: Tensor) -> Tensor:
        z: Tensor = self.weights[index] @ columns
        return z + self.biases[index].unsqueeze(1) if len(self.biases) else z


def dense_width(block: nn.Module) -> int:
    """Inputs of a dense block."""
    return projections(block)[1].out_features


def _by_child(uses: Tensor) -> Tensor:
    """Sorts features by the child that uses them: bool `[alpha, features]` -> `[features]`."""
    return uses.int().argmax(0).argsort(stable=True)


def _csr(matrix: Tensor) -> nn.Parameter:
    with warnings.catch_warnings(action="ignore"):  # that the format is in beta
        wide = matrix.to_sparse_csr()
        index = (wide.crow_indices().int(), wide.col_indices().int())
        values = wide.values()
        return nn.Parameter(torch.sparse_csr_tensor(*index, values, matrix.shape))


def _bsr(matrix: Tensor, size: int) -> nn.Parameter:
    with warnings.catch_warnings(action="ignore"):
        wide = matrix.to_sparse_bsr((size, size))
        index = (wide.crow_indices().int(), wide.col_indices().int())
        tensor = torch.sparse_bsr_tensor(*index, wide.values(), matrix.shape)
        return nn.Parameter(tensor)
