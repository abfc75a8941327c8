"""Checks the files of a checkpoint against the plan in its config, before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..layers import FPELayer
from ..layers.checksum import was_averaged
from ..modules import fpe_layers
from .files import weight_files
from .limits import check_backing
from .loading import is_saved_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.quantizers.base import HfQuantizer

_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = {torch.uint8: ("U8",), torch.int32: ("I32", "I16"), torch.int64: ("I64",)}


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
        check_backing(model, tensors, stored_bytes(files))
        if is_saved_class(model):
            check_present(model, tensors)
        verify_layers(model, tensors)


def verify_checkpoint(model: nn.Module, folder: Path) -> None:
    """Checks a checkpoint of the Trainer, which it loads by the names in memory.

    Args:
        model: The widened model that it is going to be loaded into.
        folder: The checkpoint.

    Raises:
        CheckpointError: As `verify_files`.
    """
    files = [str(folder / name) for name in weight_files(folder, {})]
    with open_tensors(files) as tensors:
        _add_twins(model, tensors)
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
    model: nn.Module,
    tensors: dict[str, tuple[Any, str]],
    *,
    numbers: bool = True,
    summed: bool = False,
) -> None:
    """Checks the tensors of every widened layer; see `verify_files`.

    Args:
        model: A model with empty widened layers.
        tensors: Name in the model -> (open file, name in the file).
        numbers: Read the numbers, too; else only names, shapes and dtypes are checked.
        summed: Refuse layers whose checksum says that it could not be computed.
    """
    for name, layer in fpe_layers(model):
        _check_headers(name, layer, tensors)
        if numbers:
            _check_numbers(name, layer, tensors, summed)


@contextmanager
def model_tensors(
    model: PreTrainedModel, files: Sequence[str], quantizer: HfQuantizer
) -> Iterator[dict[str, tuple[Any, str]]]:
    """Opens a checkpoint: name in the model -> (open file, name in the file)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import dot_natural_key

    known = model.state_dict()
    renamings = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    tensors: dict[str, tuple[Any, str]] = {}
    with open_tensors(files) as opened:
        for key in sorted(opened, key=dot_natural_key):
            name, _ = name_in_model(key, renamings, [], model.base_model_prefix, known)
            if name in tensors and name in known:
                raise CheckpointError(
                    f"{tensors[name][1]!r} and {key!r} in the files are the same tensor, {name!r}: "
                    "remove one."
                )
            tensors[name] = opened[key]
        _add_twins(model, tensors)
        yield tensors


@contextmanager
def open_tensors(files: Sequence[str]) -> Iterator[dict[str, tuple[Any, str]]]:
    """Opens safetensors files: name in a file -> (open file, name in the file).

    Raises:
        CheckpointError: A file is broken, or two hold tensors of the same name.
    """
    with ExitStack() as stack:
        tensors: dict[str, tuple[Any, str]] = {}
        for file in files:
            opened = stack.enter_context(open_safetensors(file))
            for key in list(opened.keys()):
                if key in tensors:
                    raise CheckpointError(f"{key!r} is in two files, one of them {file!r}.")
                tensors[key] = (opened, key)
        yield tensors


def _add_twins(model: nn.Module, tensors: dict[str, tuple[Any, str]]) -> None:
    """Lets a tensor stand for the tied ones, too: transformers saves one of them."""
    twins: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), []).append(name)
    for names in twins.values():
        held = next((tensors[name] for name in names if name in tensors), None)
        if held is not None:
            tensors.update({name: held for name in names if name not in tensors})


def stored_bytes(files: Sequence[str]) -> int:
    """Bytes in safetensors files.

    Raises:
        CheckpointError: One is broken, or it is truncated.
    """
    for file in files:
        with open_safetensors(file):
            pass
    return sum(map(os.path.getsize, files))


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


def name_in_model(
    key: str,
    renamings: list[Any],
    converters: list[Any],
    prefix: str,
    known: Mapping[str, Tensor],
) -> tuple[str, str | None]:
    """The name in the model for a name in a file, as transformers' loader finds it.

    Args:
        key: The name in the file.
        renamings: What renames tensors of the model.
        converters: What merges and splits them.
        prefix: The model's `base_model_prefix`.
        known: The model's state dict.

    Returns:
        The name, and the pattern of the converter that is meant, if one is.
    """
    from transformers.core_model_loading import rename_source_key

    name, source = rename_source_key(key, renamings, converters, prefix, known)
    if name not in known and key in known:
        name, source = rename_source_key(key, [], [], prefix, known)
    return name, source


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
        accepted = _FLOATS if empty.is_floating_point() else _INTEGERS[empty.dtype]
        if view.get_dtype() not in accepted:
            raise CheckpointError(
                f"tensor {full!r} has dtype {view.get_dtype()}; accepted: {', '.join(accepted)}."
            )


def _check_numbers(
    name: str, layer: FPELayer, files: dict[str, tuple[Any, str]], summed: bool
) -> None:
    """Reads one layer's tensors and checks them."""
    tensors: dict[str, Tensor] = {}
    for tensor in layer.stored():
        file, key = files[layer.key(name, tensor)]
        tensors[tensor] = file.get_tensor(key)
    if was_averaged(tensors["checksum"], layer.mark):
        raise CheckpointError(
            f"the checksum of {name!r} is an average, so nothing vouches for its indices. Have a "
            "model of this plan load_state_dict the averages, and save_pretrained it."
        )
    layer.verify(name, tensors)
    if summed and tensors["checksum"].tolist() == layer.unsummed:
        raise CheckpointError(
            f"{name!r} has no checksum, as its parts were on several devices when it was saved: "
            "load the model with fpe_hf.from_pretrained, look at it, and save_pretrained it again."
        )
