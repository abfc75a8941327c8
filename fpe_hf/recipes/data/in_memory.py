"""Examples of equal shapes as tensors in memory, read a batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = dict[str, Tensor]


class InMemory(Dataset[Batch]):
    """Examples whose columns are tensors.

    A loader asks it for whole batches (`__getitems__`): to put single examples together again takes
    longer than a step of a small model.

    Args:
        columns: Name -> tensor `[examples, ...]`.
    """

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    @classmethod
    def of(cls, dataset: Any) -> InMemory | None:
        """The examples of a `datasets.Dataset`, or `None` if some column is not one tensor."""
        columns = dataset.with_format("torch")[:]
        whole = all(isinstance(column, Tensor) for column in columns.values())
        return cls(dict(columns)) if whole and columns else None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self):
            raise IndexError(index)
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        chosen = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        return {name: column[chosen] for name, column in self.columns.items()}


def stack(rows: list[Batch] | Batch) -> Batch:
    """A batch of examples of equal shapes; one that is a batch already stays as it is."""
    if isinstance(rows, dict):
        return rows
    return {name: _stacked([row[name] for row in rows]) for name in rows[0]}


def _stacked(values: list[Any]) -> Tensor:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    whole = np.stack(values)
    return torch.from_numpy(whole.astype(np.float32) if whole.dtype == np.float64 else whole)
