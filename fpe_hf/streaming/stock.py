"""Reading a stock checkpoint into a model on the meta device, a few tensors at a time.

transformers names tensors in files otherwise than in memory, and merges or splits some of them.
All of that is left to its own loader, which is handed a part of the checkpoint at a time.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checkpoint.files import INDEX, SINGLE
from ..checkpoint.verify import name_in_model, open_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TIED_ROWS = 4096


class NotStreamableError(Exception):
    """A checkpoint can only be read as a whole. The message is the reason, in words."""


def stock_files(name_or_path: str | os.PathLike[str], revision: str | None) -> list[str]:
    """Paths of the weight files that `from_pretrained` would read, downloaded if they must be.

    Args:
        name_or_path: Hub id or local folder.
        revision: Branch, tag or commit on the Hub.

    Raises:
        NotStreamableError: They are not safetensors, or more than one model's.
    """
    from transformers.utils import cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    def find(file: str) -> str | None:
        options = {"_raise_exceptions_for_missing_entries": False}
        found: str | None = cached_file(name_or_path, file, revision=revision, **options)
        return found

    if find("adapter_config.json") is not None:
        raise NotStreamableError("it is an adapter of another model")
    single = find(SINGLE)
    if single is not None:
        return [single]
    index = find(INDEX)
    if index is None:
        raise NotStreamableError("it has no safetensors files")
    files: list[str] = get_checkpoint_shard_files(name_or_path, index, revision=revision)[0]
    return files


@contextmanager
def stock_tensors(files: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Opens safetensors files: name in the files -> slice that is read when it is indexed.

    They are read, not mapped: pages of a mapped file would count as this process's memory.
    """
    with ExitStack() as stack:
        slices: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(open_safetensors(file, backend="pread"))
            slices.update((key, opened.get_slice(key)) for key in opened.keys())  # noqa: SIM118
        yield slices


class StockReader:
    """Loads tensors of a checkpoint into a model that has none.

    Args:
        model: The model, loaded onto the meta device from the same checkpoint.
        slices: Its files; see `stock_tensors`.

    Attributes:
        names: Every name in the model's state dict that is saved, in order. Of parameters that are
            tied to each other, the first is listed.

    Raises:
        NotStreamableError: A tensor of the model is not in the files, or does not come from them
            in a way that is understood.
    """

    def __init__(self, model: PreTrainedModel, slices: dict[str, Any]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self._model = model
        self._slices = slices
        self._conversions = get_model_conversion_mapping(model)
        self._keys = self._keys_by_name()
        self._tie_equal()
        self._tied = _places(model)
        ignored = set(model._keys_to_ignore_on_save or ())
        saved = (name for name in model.state_dict() if name not in ignored)
        self.names = list(dict.fromkeys(map(self.first, saved)))
        for name in self.names:
            if self._provider(name) is None:
                raise NotStreamableError(f"{name!r} is not in its files")

    def first(self, name: str) -> str:
        """The name in `names` of a tensor, which may be tied to others."""
        return self._tied[name][0] if name in self._tied else name

    def load(self, names: Collection[str]) -> None:
        """Loads tensors into the model.

        Args:
            names: Names in the model.

        Raises:
            NotStreamableError: They could not be made from the files.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        providers = {name: self._provider(name) or name for name in names}
        keys = dict.fromkeys(key for own in providers.values() for key in self._keys.get(own, ()))
        # No dtype: the tensors of the model have the right ones, from the first loading.
        settings = LoadStateDictConfig(device_map={"": "cpu"}, weight_mapping=self._conversions)
        with quiet():
            report, _ = convert_and_load_state_dict_in_model(
                self._model, {key: self._slices[key] for key in keys}, settings
            )
        missing = [own for own in providers.values() if own in report.missing_keys]
        if missing or report.mismatched_keys or report.conversion_errors:
            wrong = [*missing, *sorted(report.mismatched_keys, key=str), *report.conversion_errors]
            raise NotStreamableError(f"{wrong[0]!r} could not be made from its files")
        wanted = {place for name in names for place in self._tied.get(name, [name])}
        forget(self._model, keep=wanted)
        for name, provider in providers.items():
            tensor = _get(self._model, provider)
            for place in self._tied.get(name, ()):
                _set(self._model, place, tensor)

    def _provider(self, name: str) -> str | None:
        """The name, among those tied to `name`, under which the files have the tensor."""
        return next((own for own in self._tied.get(name, [name]) if own in self._keys), None)

    def _keys_by_name(self) -> dict[str, list[str]]:
        """Name in the model -> names in the files of what the loader makes it of."""
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
        )

        known = self._model.state_dict()
        prefix = self._model.base_model_prefix
        renamings = [entry for entry in self._conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._conversions if isinstance(entry, WeightConverter)]
        for entry in renamings:
            if hasattr(entry, "_active"):
                raise NotStreamableError("its tensors are renamed depending on each other")
        targets = {source: c.target_patterns for c in converters for source in c.source_patterns}
        keys: dict[str, list[str]] = defaultdict(list)
        for key in sorted(self._slices, key=dot_natural_key):
            name, source = name_in_model(key, renamings, converters, prefix, known)
            first, *more = targets[source] if source is not None else [name]
            for made in (name, *(name.replace(first, other) for other in more)):
                if made in known:
                    keys[made].append(key)
        return keys

    def _tie_equal(self) -> None:
        """Ties what should be tied and is in the files twice, if it is equal, as transformers does.

        Loaded onto the meta device it could not compare them.
        """
        for target, source in dict(self._model.all_tied_weights_keys).items():
            tensors = _get(self._model, target), _get(self._model, source)
            if tensors[0] is tensors[1]:
                continue
            keys = [self._keys.get(name, []) for name in (target, source)]
            if [len(own) for own in keys] != [1, 1]:
                raise NotStreamableError(
                    f"{target!r} is tied to {source!r}, but merged from others"
                )
            if _equal(*(self._slices[own[0]] for own in keys)):
                _set(self._model, target, tensors[1])


def _equal(one: Any, other: Any) -> bool:
    """Whether two slices of files are equal, read a few rows at a time."""
    shape = one.get_shape()
    if shape != other.get_shape() or one.get_dtype() != other.get_dtype():
        return False
    rows = shape[0]
    parts = [slice(start, min(start + _TIED_ROWS, rows)) for start in range(0, rows, _TIED_ROWS)]
    return all(torch.equal(one[part], other[part]) for part in parts)


def _places(model: nn.Module) -> dict[str, list[str]]:
    """Name of a tied parameter -> the names of all that it is tied to, itself included."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)].append(name)
    return {name: names for names in places.values() if len(names) > 1 for name in names}


def _get(model: nn.Module, name: str) -> Any:
    host, _, own = name.rpartition(".")
    return getattr(model.get_submodule(host), own)


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    host, _, own = name.rpartition(".")
    module = model.get_submodule(host)
    tensors: dict[str, Any] = module._buffers if own in module._buffers else module._parameters
    tensors[own] = tensor


def forget(model: nn.Module, keep: Collection[str] = ()) -> None:
    """Puts empty tensors on the meta device in the place of those that hold numbers.

    What was tied stays tied.

    Args:
        model: The model.
        keep: Names of tensors to leave alone.
    """
    empty: dict[int, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for tensors in (module._parameters, module._buffers):
            for own, tensor in tensors.items():
                name = f"{prefix}.{own}" if prefix else own
                if tensor is None or tensor.is_meta or name in keep:
                    continue
                if id(tensor) not in empty:
                    meta = torch.empty_like(tensor, device="meta")
                    learns = tensor.requires_grad
                    parameter = isinstance(tensor, nn.Parameter)
                    empty[id(tensor)] = nn.Parameter(meta, learns) if parameter else meta
                tensors[own] = empty[id(tensor)]


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the progress bars of transformers meanwhile: there would be one for every block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
