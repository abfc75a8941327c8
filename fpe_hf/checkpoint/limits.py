"""Bounds on what a checkpoint may ask for, checked before memory or time is spent on it.

A config is a few kilobytes and can claim anything. What it claims is held against the files: how
many tensors there are, and how many bytes.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..planning import BlockSpec

MAX_PARAMETERS = 50_000
MAX_COUNT = 1_000_000
MAX_LAYERS = 100_000
MAX_TILES = 1_000_000
UNBACKED_BYTES = 2**30
BUILDING_BYTES = 2**32
BUILDING_SECONDS = 120.0

# Parameters of a stock model per tensor in its files: tied ones are built, but stored once.
_PARAMETERS_PER_TENSOR = 4


def check_counts(config: Mapping[str, Any], where: str = "config.json") -> None:
    """Checks the counts in a raw config: some make transformers build a list of that length.

    Args:
        config: The config as read from JSON.
        where: Name of the file, for the message.

    Raises:
        CheckpointError: A number of layers, labels or the like is above what any model has.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            if name != "quantization_config":
                check_counts(value, f"{name} in {where}")
            continue
        limit = _limit(str(name))
        counts = value if isinstance(value, list) else [value]
        total = sum(max(count, 0) for count in counts if isinstance(count, int))
        if limit is not None and total > limit:
            raise CheckpointError(
                f"{name}={str(value)[:80]} in {where} is above {limit:,}; no model has as many."
            )


_LAYERS = re.compile("layer|depth|block|stage|expert|_points|level")


def _limit(name: str) -> int | None:
    """The largest count that a field of this name may give, if it gives one."""
    if _LAYERS.search(name) and not name.endswith(("_id", "_ids", "_size", "_dim", "_seq")):
        return MAX_LAYERS
    return MAX_COUNT if name.startswith(("num_", "n_")) else None


def check_plan(specs: Iterable[BlockSpec], stored: int | None = None) -> None:
    """Checks that the blocks of a plan, taken together, can be what the files hold.

    Args:
        specs: The blocks; nothing has been built of them yet.
        stored: Bytes in the files, if they are at hand. Every value and every tile takes one.

    Raises:
        CheckpointError: There are more tiles or values than that, or more than `MAX_TILES`.
    """
    tiles = values = 0
    for spec in specs:
        tiles += spec.tile_count
        values += spec.nonzeros
    if tiles > MAX_TILES:
        raise CheckpointError(
            f"the blocks of the FPE config have {tiles:,} tiles; accepted: up to {MAX_TILES:,}."
        )
    if stored is not None and max(tiles, values) > stored:
        raise CheckpointError(
            f"the blocks of the FPE config have {values:,} values in {tiles:,} tiles; files of "
            f"{stored:,} bytes cannot hold as many."
        )


def parameter_limit(tensors: int) -> int:
    """How many parameters a model may have whose files hold this many tensors."""
    return _PARAMETERS_PER_TENSOR * (tensors + 1)


@contextmanager
def limited_resources(
    memory: int = BUILDING_BYTES, seconds: float = BUILDING_SECONDS
) -> Iterator[None]:
    """Has whatever takes more memory or processor time meanwhile fail.

    The limits are those of the process, so this is for one of our own, such as the command's.

    Args:
        memory: Bytes of address space beside those in use (Linux only).
        seconds: Processor time (in the main thread only).

    Raises:
        CheckpointError: More is taken.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform != "linux":
        yield
        return
    import resource
    import signal

    def stop(*args: object) -> None:
        raise CheckpointError(f"building and running the model takes more than {seconds:g} s.")

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    used = pages * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + memory if soft == resource.RLIM_INFINITY else min(soft, used + memory)
    before = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)  # again, where someone has caught it
    try:
        yield
    except MemoryError as error:
        raise CheckpointError(
            f"building and running the model takes more than {memory:,} bytes."
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
