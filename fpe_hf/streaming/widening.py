"""Widening a checkpoint on disk, a block at a time: the model itself is never in memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..auditing import AuditReport, audit, audit_block, join_reports
from ..checkpoint.files import model_place
from ..checkpoint.loading import load_model
from ..checkpoint.saving import record_plan
from ..config import FPEConfig
from ..conversion import check_fresh, replace_block, warn_unless_exact, widen
from ..discovery import MLPBlock, find_mlps
from ..errors import DiscoveryError
from ..modules import fpe_layers, take_weights
from ..planning import BlockSpec, plan_block
from ..selection import select_blocks
from .shards import ShardWriter
from .stock import NotStreamableError, StockReader, forget, quiet, stock_files, stock_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARD_BYTES = 10**9
_BATCH_BYTES = 2**28


@dataclass(frozen=True)
class WidenedCheckpoint:
    """What `widen_checkpoint` has written.

    Attributes:
        model_class: Name of the model's class.
        report: The audit of its blocks.
    """

    model_class: str
    report: AuditReport


def widen_checkpoint(
    source: str | os.PathLike[str],
    folder: Path,
    config: FPEConfig,
    *,
    dtype: str = "auto",
    max_shard_size: int = SHARD_BYTES,
    revision: str = "main",
) -> WidenedCheckpoint:
    """Widens a checkpoint into another, with the tensors that loading and `widen` would give.

    It takes the memory of one file to write and, beside it, about three times that of a block.

    Args:
        source: Hub id or local folder of a stock model.
        folder: Where to write; it must be empty.
        config: What to do.
        dtype: Type of the weights; `"auto"` keeps the one they are stored in.
        max_shard_size: Largest file to write, in bytes. A tensor that is larger has one to itself.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The class and the audit of the widened model.

    Raises:
        NotStreamableError: The checkpoint can only be read as a whole.
        FPEError: As `fpe_hf.widen` does; and `BudgetError` if an invariant does not hold.
    """
    from transformers.utils.hub import resolve_revision

    source = model_place(source)
    commit = resolve_revision(source, revision)
    files = stock_files(source, commit)
    model = _skeleton(source, dtype, commit)
    check_fresh(model)
    try:
        found = find_mlps(model)
    except DiscoveryError as error:
        raise NotStreamableError(f"its code runs on real weights only ({error})") from error
    selected = select_blocks(found, config)
    with stock_tensors(files) as slices:
        stream = _Stream(model, StockReader(model, slices), ShardWriter(folder, max_shard_size))
        specs, report = stream.widen(selected)
    record_plan(model, config, specs)
    with quiet():
        model.save_pretrained(folder, state_dict={})  # everything but the weights
    stream.finish()
    warn_unless_exact(specs)
    return WidenedCheckpoint(type(model).__name__, report)


def widen_in_memory(
    source: str | os.PathLike[str],
    folder: Path,
    config: FPEConfig,
    *,
    dtype: str = "auto",
    max_shard_size: int = SHARD_BYTES,
    revision: str = "main",
) -> WidenedCheckpoint:
    """Does what `widen_checkpoint` does with the whole model in memory, for any checkpoint."""
    model = widen(load_model(source, dtype=dtype, revision=revision), config)
    report = audit(model).raise_for_breach(allow_open=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return WidenedCheckpoint(type(model).__name__, report)


def _skeleton(source: str | os.PathLike[str], dtype: str, revision: str | None) -> PreTrainedModel:
    """The model as `from_pretrained` makes it, without numbers."""
    with quiet():
        model = load_model(source, dtype=dtype, revision=revision, device_map="meta")
    config: Any = model.config
    if getattr(config, "transformers_weights", None) or type(config).extra_files:
        raise NotStreamableError("its weights are in files of unusual names")
    return model


class _Stream:
    """Takes tensors from a reader, through a model, to a writer."""

    def __init__(self, model: PreTrainedModel, reader: StockReader, writer: ShardWriter) -> None:
        self._model = model
        self._reader = reader
        self._writer = writer

    def widen(
        self, selected: Sequence[tuple[MLPBlock, FPEConfig]]
    ) -> tuple[list[BlockSpec], AuditReport]:
        """Writes all tensors of the widened model.

        Args:
            selected: The blocks to widen, with the configuration of each.

        Returns:
            The specs of the blocks in the order of `selected`, and their audit in the order in
            which the model holds them.
        """
        owners = self._owners([block for block, _ in selected])
        sizes = {name: tensor.nbytes for name, tensor in self._model.state_dict().items()}
        results: dict[int, tuple[BlockSpec, AuditReport]] = {}
        progress = tqdm(total=len(self._reader.names), desc="Widening", unit="tensor", leave=False)
        with progress:
            for place, names in self._batches(owners, sizes):
                self._writer.make_room(sum(map(sizes.__getitem__, names)))
                self._reader.load(names)
                if place is not None:
                    results[place] = self._widen_block(*selected[place])
                self._write()
                progress.update(len(names))
        specs = [results[place][0] for place in range(len(selected))]
        return specs, join_reports(report for _, report in results.values())

    def finish(self) -> None:
        """Writes what is left, and the index."""
        self._writer.finish(self._model.num_parameters())

    def _owners(self, blocks: Sequence[MLPBlock]) -> dict[str, int]:
        """Name of a tensor -> place of the block it belongs to."""
        owners: dict[str, int] = {}
        for place, block in enumerate(blocks):
            for name in map(self._reader.first, _parameters(self._model, block)):
                if owners.setdefault(name, place) != place:
                    raise NotStreamableError(f"{name!r} belongs to two blocks")
        return owners

    def _batches(
        self, owners: dict[str, int], sizes: dict[str, int]
    ) -> Iterator[tuple[int | None, list[str]]]:
        """What to load together: the tensors of a block, with its place, or a few others."""
        names = self._reader.names
        of_block: dict[int, list[str]] = {}
        for name in names:
            if name in owners:
                of_block.setdefault(owners[name], []).append(name)
        batch: list[str] = []
        for name in names:
            place = owners.get(name)
            full = sum(map(sizes.__getitem__, batch)) + sizes[name] > _BATCH_BYTES
            if batch and (place is not None or full):
                yield None, batch
                batch = []
            if place is None:
                batch.append(name)
            elif place in of_block:
                yield place, of_block.pop(place)
        if batch:
            yield None, batch

    def _widen_block(self, block: MLPBlock, config: FPEConfig) -> tuple[BlockSpec, AuditReport]:
        """Replaces a loaded block by its widened one."""
        plan = plan_block(block, take_weights(self._model, block), config)
        replace_block(self._model, block, plan)
        layers = {n: layer for n, layer in fpe_layers(self._model) if layer.spec is plan.spec}
        return plan.spec, audit_block(layers, plan.spec).raise_for_breach(allow_open=True)

    def _write(self) -> None:
        """Hands all tensors that hold numbers to the writer, as `save_pretrained` would do."""
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        state = self._model.state_dict()
        held = {name: tensor for name, tensor in state.items() if not tensor.is_meta}
        for name in self._model._keys_to_ignore_on_save or ():
            held.pop(name, None)
        for name, tensor in remove_tied_weights_from_state_dict(held, self._model).items():
            self._writer.add(name, tensor)
        forget(self._model)
        _return_memory()


def _return_memory() -> None:
    """Hands what is free back to the system: glibc keeps it, in pieces too small for tensors."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _parameters(model: PreTrainedModel, block: MLPBlock) -> list[str]:
    """Names of the parameters of a block's projections."""
    names = [*block.ups, block.down]
    if block.experts > 1:
        return [*names, *(name for name in block.bias_names if name is not None)]
    return [
        f"{name}.{own}" for name in names for own, _ in model.get_submodule(name).named_parameters()
    ]
