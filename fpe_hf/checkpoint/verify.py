"""Checks the files of a checkpoint against the plan in its config, before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..layers import FPELayer, UpLayer
from ..layers.base import are_apart
from ..layers.checksum import was_averaged
from ..modules import fpe_layers
from ..planning import BlockSpec
from .files import weight_files
from .limits import check_backing
from .loading import is_saved_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.quantizers.base import HfQuantizer

_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = {
    torch.bool: ("BOOL",),
    torch.uint8: ("U8",),
    torch.int32: ("I32", "I16"),
    torch.int64: ("I64",),
}


Tensors = dict[str, tuple[Any, str]]
"""Name of a tensor -> (open file, name in the file)."""


def verify_model(
    model: PreTrainedModel,
    opened: Tensors,
    quantizer: HfQuantizer,
    *,
    stored: int,
    numbers: bool = True,
    strict: bool = False,
) -> None:
    """Checks that a checkpoint has what a model needs, and every tensor of its widened layers.

    Args:
        model: A model with empty widened layers.
        opened: The checkpoint; see `open_tensors`.
        quantizer: The quantizer that loads it.
        stored: Bytes in the files.
        numbers: Read the numbers, too; else only names, shapes and dtypes are checked.
        strict: Refuse what loading can live with: tensors of another shape beside the widened
            layers, tensors that the model's class makes anew, and layers without a checksum.

    Raises:
        CheckpointError: A tensor is missing, of the wrong shape or dtype, or holds indices out of
            range; a checksum does not match; a tensor is there twice.
    """
    tensors = _named_in_model(model, opened, quantizer)
    known = model.state_dict()
    shapes = {name: _shape(*tensors[name]) for name in known if name in tensors}
    check_backing(model, [n for n, found in shapes.items() if found == known[n].shape], stored)
    if strict or is_saved_class(model):
        _check_present(model, known, tensors)
    for name, found in shapes.items() if strict else ():
        if found != known[name].shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {found}; the model has {tuple(known[name].shape)}."
            )
    _verify_layers(model, tensors, numbers=numbers, summed=strict)


def verify_checkpoint(model: nn.Module, folder: Path) -> None:
    """Checks a checkpoint of the Trainer, which it loads by the names in memory.

    Args:
        model: The widened model that it is going to be loaded into.
        folder: The checkpoint.

    Raises:
        CheckpointError: As `verify_model`.
    """
    files = [str(folder / name) for name in weight_files(folder, {})]
    with open_tensors(files) as tensors:
        _add_twins(model, tensors)
        _verify_layers(model, tensors)


def _check_present(model: PreTrainedModel, known: Iterable[str], tensors: Container[str]) -> None:
    """Checks that a checkpoint has every tensor of the model that is not tied to another."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    ignored = model._keys_to_ignore_on_load_missing or ()
    for name in known:
        expected = name not in tied and not any(re.search(pattern, name) for pattern in ignored)
        if expected and name not in tensors:
            raise CheckpointError(f"tensor {name!r} is missing from the checkpoint.")


def _verify_layers(
    model: nn.Module, tensors: Tensors, *, numbers: bool = True, summed: bool = False
) -> None:
    """Checks the tensors of every widened layer; see `verify_model`.

    Args:
        model: A model with empty widened layers.
        tensors: The checkpoint, by names in the model.
        numbers: Read the numbers, too.
        summed: Refuse layers whose checksum says that it could not be computed.
    """
    gates: dict[BlockSpec, UpLayer] = {}
    for name, layer in fpe_layers(model):
        _check_headers(name, layer, tensors)
        held = _check_numbers(name, layer, tensors, summed) if numbers else None
        if isinstance(held, UpLayer) and _is_divided_twice(layer.spec):
            gate = gates.pop(layer.spec, None)
            if gate is None:
                gates[layer.spec] = held
            elif not are_apart([gate, held]):
                raise CheckpointError(
                    f"{' and '.join(layer.spec.ups)} give one input to two children of a parent."
                )


def _is_divided_twice(spec: BlockSpec) -> bool:
    """Whether gate and up each say which child reads an input."""
    stored = spec.layout == "block" or spec.assignment != "hash"
    return stored and len(spec.ups) == 2


def _named_in_model(model: PreTrainedModel, opened: Tensors, quantizer: HfQuantizer) -> Tensors:
    """The tensors of a checkpoint by their names in the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import dot_natural_key

    known = model.state_dict()
    renamings = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    tensors: Tensors = {}
    for key in sorted(opened, key=dot_natural_key):
        name, _ = name_in_model(key, renamings, [], model.base_model_prefix, known)
        if name in tensors and name in known:
            raise CheckpointError(
                f"{tensors[name][1]!r} and {key!r} in the files are the same tensor, {name!r}: "
                "remove one."
            )
        tensors[name] = opened[key]
    _add_twins(model, tensors)
    return tensors


@contextmanager
def open_tensors(files: Sequence[str]) -> Iterator[Tensors]:
    """Opens safetensors files, by the names of their tensors there.

    Raises:
        CheckpointError: A file is broken, or two hold tensors of the same name.
    """
    with ExitStack() as stack:
        tensors: Tensors = {}
        for file in files:
            opened = stack.enter_context(open_safetensors(file))
            for key in list(opened.keys()):
                if key in tensors:
                    raise CheckpointError(f"{key!r} is in two files, one of them {file!r}.")
                tensors[key] = (opened, key)
        yield tensors


def _add_twins(model: nn.Module, tensors: Tensors) -> None:
    """Lets a tensor stand for the tied ones, too: transformers saves one of them."""
    twins: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), []).append(name)
    for names in twins.values():
        held = next((tensors[name] for name in names if name in tensors), None)
        if held is not None:
            tensors.update({name: held for name in names if name not in tensors})


def stored_bytes(files: Sequence[str]) -> int:
    """Bytes in files."""
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


def _shape(file: Any, key: str) -> tuple[int, ...]:
    return tuple(file.get_slice(key).get_shape())


def _check_headers(name: str, layer: FPELayer, files: Tensors) -> None:
    """Checks what the files say about one layer's tensors."""
    for tensor, empty in layer.stored().items():
        full = layer.key(name, tensor)
        if full not in files:
            raise CheckpointError(f"tensor {full!r} is missing from the checkpoint.")
        file, key = files[full]
        found = _shape(file, key)
        if found != tuple(empty.shape):
            raise CheckpointError(
                f"tensor {full!r} has shape {found}; the plan says {tuple(empty.shape)}."
            )
        accepted = _FLOATS if empty.is_floating_point() else _INTEGERS[empty.dtype]
        dtype = file.get_slice(key).get_dtype()
        if dtype not in accepted:
            raise CheckpointError(
                f"tensor {full!r} has dtype {dtype}; accepted: {', '.join(accepted)}."
            )


def _check_numbers(name: str, layer: FPELayer, files: Tensors, summed: bool) -> FPELayer | None:
    """Reads one layer's tensors and checks them; returns a layer that holds them."""
    tensors: dict[str, Tensor] = {}
    for tensor in layer.stored():
        file, key = files[layer.key(name, tensor)]
        tensors[tensor] = file.get_tensor(key)
    if was_averaged(tensors["checksum"], layer.mark):
        raise CheckpointError(
            f"the checksum of {name!r} is an average, so nothing vouches for its indices. Have a "
            "model of this plan load_state_dict the averages, and save_pretrained it."
        )
    held = layer.verify(name, tensors)
    if summed and tensors["checksum"].tolist() == layer.unsummed:
        raise CheckpointError(
            f"{name!r} has no checksum, as its parts were on several devices when it was saved: "
            "load the model with fpe_hf.from_pretrained, look at it, and save_pretrained it again."
        )
    return held
