"""`find_mlps`, `audit` and `to_dense` of a model, its folder, or its Hub id."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from torch import nn

from . import auditing, dense, discovery
from .auditing import AuditReport
from .discovery import MLPBlocks
from .hub.loading import from_pretrained, skeleton
from .modules import core_of, opened

Model = TypeVar("Model", bound=nn.Module)


def find_mlps(
    model_or_id: nn.Module | str | os.PathLike[str],
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
) -> MLPBlocks:
    """Finds the MLP blocks of a model by running it once.

    The run is on fake tensors: it takes no memory, so the model may be of any size, on any
    device or on the meta device. Only if the model's code depends on values is it run with
    values, on small inputs. Parts of a transformers model that this does not reach, such as the
    tower of another modality, are run alone. The model is left as it was.

    Args:
        model_or_id: Any module; transformers models need no example inputs. Or a Hub id or local
            folder, of which only the config is read. Of a model of sentence-transformers, the
            transformer in it is searched.
        example_inputs: Arguments of `model.forward`, by name or by position, for a model that
            the inputs made by default do not fit.

    Returns:
        The blocks in the order they run; a list that prints as a table. Its `near_misses` holds
        what was refused and why.

    Raises:
        DiscoveryError: The model could not be run.
        OSError: There is no such model.

    Example:
        >>> print(fpe_hf.find_mlps("gpt2"))
    """
    return discovery.find_mlps(core_of(opened(model_or_id, skeleton)), example_inputs)


def audit(model_or_id: nn.Module | str | os.PathLike[str], *, strict: bool = False) -> AuditReport:
    """Counts the non-zeros of a widened model and checks its budget and its division of inputs.

    Args:
        model_or_id: A widened model, or the Hub id or local folder of one.
        strict: Raise at a breach rather than flag it.

    Returns:
        The report, which prints as a table.

    Raises:
        ConfigError: The model has no widened block.
        BudgetError: `strict`, and an invariant does not hold.
        CheckpointError: The files are damaged; see `from_pretrained`.
        OSError: There is no such model.

    Example:
        >>> print(fpe_hf.audit("widened"))
    """
    return auditing.audit(core_of(opened(model_or_id, _load)), strict=strict)


@overload
def to_dense(
    model_or_id: Model,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
) -> Model: ...


@overload
def to_dense(
    model_or_id: str | os.PathLike[str],
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
) -> Any: ...


def to_dense(
    model_or_id: nn.Module | str | os.PathLike[str],
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
) -> Any:
    """Makes a stock model of a widened one: hidden size `alpha * h`, zeros filled in.

    A transformers model must also load by its own config. Some classes fix a block's hidden size
    where no config reaches it (BLOOM's `4 * hidden_size`, for one). With `coupling` fixed at 1 and
    a shared bias, the children of a parent are equal at all times, trained or not: such a block is
    then merged, at the hidden size `h` of its parent, with the same outputs.

    Args:
        model_or_id: A widened model, which is left as it is, or the Hub id or local folder of one.
        example_inputs: As for `widen`: where blocks that stayed dense share a config field with
            widened ones, they must be found again.

    Returns:
        A copy of the same class with stock projections. Saved, it loads without fpe_hf.

    Raises:
        ConfigError: The model has no widened block.
        ExportError: No config of the model's class has the widths it would need, and blocks cannot
            be merged; or weights are computed from others, by a parametrization or for pruning.
        DiscoveryError: The blocks that stayed dense must be found, but the model cannot be traced.
        OverwrittenError: The indices of a layer were overwritten.
        CheckpointError: The files are damaged; see `from_pretrained`.
        OSError: There is no such model.
    """
    model = opened(model_or_id, _load)
    core = core_of(model)
    stock = dense.to_dense(core, example_inputs)
    return stock if core is model else copy.deepcopy(model, {id(core): stock})


def _load(name_or_path: str | os.PathLike[str]) -> nn.Module:
    model: nn.Module = from_pretrained(name_or_path, dtype="auto")
    return model
