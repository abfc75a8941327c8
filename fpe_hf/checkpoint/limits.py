"""Bounds on what a checkpoint may ask for, checked before memory or time is spent on it.

A config is a few kilobytes and can claim anything. What it claims is held against the files: how
many tensors there are, and how many bytes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..planning import BlockSpec

MAX_PARAMETERS = 50_000
MAX_COUNT = 1_000_000
MAX_TILES = 1_000_000
UNBACKED_BYTES = 2**30

# Parameters of a stock model per tensor in its files: tied ones are built, but stored once.
_PARAMETERS_PER_TENSOR = 4


def check_counts(config: Mapping[str, Any], where: str = "config.json") -> None:
    """Checks the counts in a raw config: some make transformers build a list of that length.

    Args:
        config: The config as read from JSON.
        where: Name of the file, for the message.

    Raises:
        CheckpointError: A number of layers, labels or the like is above `MAX_COUNT`.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            if name != "quantization_config":
                check_counts(value, f"{name} in {where}")
        elif _is_count(name) and isinstance(value, int) and value > MAX_COUNT:
            raise CheckpointError(
                f"{name}={value} in {where} is above {MAX_COUNT:,}; no model has as many."
            )


def _is_count(name: str) -> bool:
    return name.startswith(("num_", "n_")) or "layer" in name or "depth" in name


def check_tiles(specs: Iterable[BlockSpec]) -> None:
    """Checks that no block is cut into more tiles than a model can have.

    Raises:
        CheckpointError: A block has more than `MAX_TILES`.
    """
    for spec in specs:
        tiles = spec.experts * -(-spec.parents // spec.tile_size) if spec.tile_size else 1
        if tiles > MAX_TILES:
            raise CheckpointError(
                f"block {spec.name!r} of the FPE config has {tiles:,} tiles; accepted: up to "
                f"{MAX_TILES:,}."
            )


def parameter_limit(tensors: int) -> int:
    """How many parameters a model may have whose files hold this many tensors."""
    return _PARAMETERS_PER_TENSOR * (tensors + 1)


@contextmanager
def bounded_parameters(limit: int) -> Iterator[None]:
    """Stops the building of a model that has more parameters than it can have.

    Args:
        limit: Number of parameter tensors, in any module that is built meanwhile.

    Raises:
        CheckpointError: The limit is passed.
    """
    count = 0

    def count_one(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter is not None
        if count > limit:
            raise CheckpointError(
                f"the config describes a model of more than {limit:,} parameter tensors, which "
                "its files cannot hold."
            )

    handle = register_module_parameter_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()


def check_backing(model: PreTrainedModel, tensors: Container[str], stored: int) -> None:
    """Checks that what a model needs besides the tensors of its files stays small.

    Heads that are new, tied weights and tables of positions are made when a model is loaded. They
    may take as much as the files do, and `UNBACKED_BYTES` more.

    Args:
        model: The model, without memory (meta device).
        tensors: Names in the model that the files hold.
        stored: Bytes in the files.

    Raises:
        CheckpointError: More would have to be allocated.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    needed = dict(model.named_parameters()) | dict(model.named_buffers())
    unbacked = {
        name: tensor.numel() * tensor.element_size()
        for name, tensor in needed.items()
        if name not in tensors and name not in tied
    }
    total = sum(unbacked.values())
    if total > stored + UNBACKED_BYTES:
        largest = max(unbacked, key=lambda name: unbacked[name])
        raise CheckpointError(
            f"the config asks for {total:,} bytes that are not in the files, most of them for "
            f"{largest!r}; the files hold {stored:,} bytes."
        )
