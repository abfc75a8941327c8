"""Checks a saved model without trusting it: nothing is run, imported or allocated by its say-so."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..discovery import find_mlps
from ..errors import CheckpointError, DiscoveryError
from ..planning import BlockSpec
from ..planning.spec import OPEN
from .files import CONFIG, check_regular, read_json, stored_plan, weight_files
from .limits import (
    bounded_parameters,
    check_counts,
    check_plan,
    limited_resources,
    parameter_limit,
)
from .loading import blocks_of, empty_model, insert_empty_layers
from .plan import FPEQuantizationConfig
from .quantizer import FPEQuantizer
from .verify import open_tensors, verify_model


@dataclass(frozen=True)
class ValidationReport:
    """What a valid checkpoint holds.

    Attributes:
        path: The folder.
        model_class: Class it will be loaded as.
        blocks: Its widened blocks.
        files: Its weight files.
        tensors: Number of tensors in them.
        numbers: Whether the numbers of the widened layers were checked, or only the headers.
    """

    path: Path
    model_class: str
    blocks: tuple[BlockSpec, ...]
    files: tuple[Path, ...]
    tensors: int
    numbers: bool = True

    @property
    def open(self) -> float | None:
        """How many times their parents' non-zeros the blocks may hold, if any budget is open."""
        if not any(spec.layout == OPEN for spec in self.blocks):
            return None
        most = sum(spec.nonzeros for spec in self.blocks)
        return most / max(1, sum(spec.parent_nonzeros for spec in self.blocks))


def validate_checkpoint(
    path: str | Path,
    *,
    numbers: bool = True,
    variant: str | None = None,
    limited: bool = False,
) -> ValidationReport:
    """Checks the config and every tensor of a widened model's folder.

    Args:
        path: The folder.
        numbers: Read the numbers of the widened layers, to check their indices and checksums.
        variant: Which files to check, as `from_pretrained` takes it.
        limited: Limit the memory and time of this process while a model is built by the config.

    Returns:
        What it holds.

    Raises:
        CheckpointError: Anything is missing, damaged, contradictory or from a newer format.
    """
    folder = Path(path)
    check_regular(folder)
    config = read_json(folder / CONFIG)
    fields = stored_plan(config)
    if fields is None:
        raise CheckpointError(f"{folder / CONFIG} does not describe a widened model.")
    check_counts(config, str(folder / CONFIG))
    plan = FPEQuantizationConfig(**fields)
    files = [folder / name for name in weight_files(folder, config, variant)]
    stored = sum(file.stat().st_size for file in files)
    with open_tensors([str(file) for file in files]) as opened:
        check_plan(plan.specs, stored)
        with limited_resources() if limited else nullcontext():
            model = _empty_model(folder, len(opened))
            _check_blocks(model, plan.specs)
            insert_empty_layers(model, plan.specs)
        quantizer = FPEQuantizer(plan)
        verify_model(model, opened, quantizer, stored=stored, numbers=numbers, strict=True)
        return ValidationReport(
            folder, type(model).__name__, plan.specs, tuple(files), len(opened), numbers
        )


def _empty_model(folder: Path, tensors: int) -> Any:
    """The stock model on the meta device, which takes no memory whatever sizes are claimed."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        del config.quantization_config
        with bounded_parameters(parameter_limit(tensors)):
            return empty_model(config)
    except CheckpointError:
        raise
    except Exception as error:  # a config of unknown content makes transformers raise anything
        raise CheckpointError(
            f"{folder / CONFIG} does not describe a model that transformers can build: "
            f"{type(error).__name__}: {error}"
        ) from error


def _check_blocks(model: Any, specs: Sequence[BlockSpec]) -> None:
    """Checks that the stock model runs the projections of every block one after the other.

    Other projections may have fitting shapes, such as those of attention. What no run reaches as a
    whole cannot be told.
    """
    try:
        found = find_mlps(model)
    except DiscoveryError:
        return
    known = {(frozenset((*block.ups, block.down)), block.fused) for block in found.with_requested}
    for spec, names in blocks_of(model, specs):
        own = frozenset(names.values())
        if (own, spec.fused) not in known and any(own <= run for run in found.runs):
            raise CheckpointError(
                f"block {spec.name!r} of the FPE config is no MLP block of {type(model).__name__}: "
                f"{spec.down!r} does not read an activation of {' and '.join(spec.ups)}."
            )
