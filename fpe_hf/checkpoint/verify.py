"""Checks the files of a checkpoint against the plan in its config, before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..layers import FPELayer
from ..modules import fpe_layers
from .limits import check_backing
from .loading import is_saved_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.quantizers.base import HfQuantizer

_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}


def verify_files(model: PreTrainedModel, files: Sequence[str], quantizer: HfQuantizer) -> None:
    """Checks every tensor of every widened layer in safetensors files.

    Args:
        model: A model with empty widened layers.
        files: Paths of its checkpoint's shards.
        quantizer: The quantizer that loads it.

    Raises:
        CheckpointError: A file is broken; a tensor is missing, of the wrong shape or dtype, or
            holds indices out of range; a checksum does not match.
    """
    with model_tensors(model, files, quantizer) as tensors:
        check_backing(model, tensors, sum(os.path.getsize(file) for file in files))
        if is_saved_class(model):
            check_present(model, tensors)
        verify_layers(model, tensors)


def check_present(model: PreTrainedModel, tensors: Container[str]) -> None:
    """Checks that a checkpoint has every tensor of the model that is not tied to another.

    Raises:
        CheckpointError: One is missing.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    ignored = model._keys_to_ignore_on_load_missing or ()
    for name in model.state_dict():
        expected = name not in tied and not any(re.search(pattern, name) for pattern in ignored)
        if expected and name not in tensors:
            raise CheckpointError(f"tensor {name!r} is missing from the checkpoint.")


def verify_layers(
    model: PreTrainedModel, tensors: dict[str, tuple[Any, str]], *, numbers: bool = True
) -> None:
    """Checks the tensors of every widened layer; see `verify_files`.

    Args:
        model: A model with empty widened layers.
        tensors: Name in the model -> (open file, name in the file).
        numbers: Read the numbers, too; else only names, shapes and dtypes are checked.
    """
    for name, layer in fpe_layers(model):
        _check_headers(name, layer, tensors)
        if numbers:
            _check_numbers(name, layer, tensors)


@contextmanager
def model_tensors(
    model: PreTrainedModel, files: Sequence[str], quantizer: HfQuantizer
) -> Iterator[dict[str, tuple[Any, str]]]:
    """Opens a checkpoint: name in the model -> (open file, name in the file)."""
    with ExitStack() as stack:
        tensors: dict[str, tuple[Any, str]] = {}
        for file in files:
            opened = stack.enter_context(open_safetensors(file))
            keys = list(opened.keys())
            for key, known in zip(keys, _model_keys(model, keys, quantizer), strict=True):
                tensors[known] = (opened, key)
        _add_twins(model, tensors)
        yield tensors


def _add_twins(model: PreTrainedModel, tensors: dict[str, tuple[Any, str]]) -> None:
    """Lets a tensor stand for the tied ones, too: transformers saves one of them."""
    twins: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), []).append(name)
    for names in twins.values():
        held = next((tensors[name] for name in names if name in tensors), None)
        if held is not None:
            tensors.update({name: held for name in names if name not in tensors})


def open_safetensors(file: str, backend: str = "mmap") -> Any:
    """Opens a safetensors file.

    Args:
        file: Its path.
        backend: How numbers are read, `"mmap"` or `"pread"`.

    Raises:
        CheckpointError: It is not one, or it is truncated.
    """
    from safetensors import SafetensorError, safe_open

    if not str(file).endswith(".safetensors"):
        raise CheckpointError(
            f"{file!r} is not a safetensors file: widened models are read from nothing else."
        )
    try:
        return safe_open(file, framework="pt", backend=backend)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file!r} is broken or truncated: {error}.") from error


def _model_keys(model: PreTrainedModel, keys: Iterable[str], quantizer: HfQuantizer) -> list[str]:
    """Names in the model for names in a file, as transformers will map them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import rename_source_key

    known = model.state_dict()
    renamings = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    prefix = model.base_model_prefix
    renamed = []
    for key in keys:
        name, _ = rename_source_key(key, renamings, [], prefix, known)
        if name not in known:
            name, _ = rename_source_key(key, [], [], prefix, known)
        renamed.append(name)
    return renamed


def _check_headers(name: str, layer: FPELayer, files: dict[str, tuple[Any, str]]) -> None:
    """Checks what the files say about one layer's tensors."""
    for tensor, empty in layer.stored().items():
        full = layer.key(name, tensor)
        if full not in files:
            raise CheckpointError(f"tensor {full!r} is missing from the checkpoint.")
        file, key = files[full]
        view = file.get_slice(key)
        found = tuple(view.get_shape())
        if found != tuple(empty.shape):
            raise CheckpointError(
                f"tensor {full!r} has shape {found}; the plan says {tuple(empty.shape)}."
            )
        accepted = _FLOATS if empty.is_floating_point() else (_INTEGERS[empty.dtype],)
        if view.get_dtype() not in accepted:
            raise CheckpointError(
                f"tensor {full!r} has dtype {view.get_dtype()}; accepted: {', '.join(accepted)}."
            )


def _check_numbers(name: str, layer: FPELayer, files: dict[str, tuple[Any, str]]) -> None:
    """Reads one layer's tensors and checks them."""
    tensors: dict[str, Tensor] = {}
    for tensor in layer.stored():
        file, key = files[layer.key(name, tensor)]
        tensors[tensor] = file.get_tensor(key)
    layer.verify(name, tensors)
