"""`from_pretrained`: a saved model, by the class its config names, with distrust."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..checkpoint.files import check_regular, model_place, stored_plan, weight_files
from ..checkpoint.limits import MAX_PARAMETERS, bounded_parameters, check_counts, parameter_limit
from ..checkpoint.loading import empty_model, load_model
from ..checkpoint.verify import open_tensors
from ..errors import CheckpointError, ConfigError, FPEError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PLACE = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")


def from_pretrained(name_or_path: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Loads a widened or dense model with the class that its config names.

    What `AutoModel*.from_pretrained` does, without the need to know which one. The config is
    checked first: what it claims must be possible, and code of a repository is never run.

    Args:
        name_or_path: Hub id or local folder.
        **kwargs: As `transformers.AutoModel.from_pretrained` takes them: `revision`, `token`,
            `dtype`, `device_map`, `cache_dir`, `local_files_only` and others.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: The config or the files are damaged, contradict each other, claim what
            cannot be, or need code from the repository.
        ConfigError: `trust_remote_code` was asked for.
        OSError: The model cannot be found or read.

    Example:
        >>> model = fpe_hf.from_pretrained("user/name", revision="v1")
    """
    if kwargs.pop("trust_remote_code", False):
        raise ConfigError(
            "trust_remote_code=True is not accepted: fpe_hf never runs code from a repository. "
            "Load the model with transformers, if you trust it, and pass the model on."
        )
    place = {name: kwargs[name] for name in _PLACE if name in kwargs}
    if "subfolder" not in kwargs:
        name_or_path = model_place(name_or_path)
    folder = Path(name_or_path, kwargs.get("subfolder") or "")
    check_regular(folder)
    config = _checked_config(name_or_path, place)
    widened = stored_plan(config) is not None
    most = MAX_PARAMETERS
    if widened and folder.is_dir():
        names = weight_files(folder, config, kwargs.get("variant"))
        with open_tensors([str(folder / name) for name in names]) as tensors:
            most = parameter_limit(len(tensors))
    with bounded_parameters(most), _typed_errors(name_or_path, widened):
        return load_model(name_or_path, **kwargs)


def skeleton(name_or_path: str | os.PathLike[str]) -> nn.Module:
    """A dense model on the meta device, of which only the config is read; a widened one whole.

    Args:
        name_or_path: Hub id or local folder.

    Raises:
        CheckpointError: See `from_pretrained`.
        OSError: There is no such model.
    """
    from transformers import AutoConfig

    place = model_place(name_or_path)
    check_regular(Path(place))
    if stored_plan(_checked_config(place, {})) is not None:
        model: nn.Module = from_pretrained(place, dtype="auto")
        return model
    with bounded_parameters(MAX_PARAMETERS):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        model = empty_model(config)
    return model


def _checked_config(name_or_path: str | os.PathLike[str], place: dict[str, Any]) -> dict[str, Any]:
    """The content of a config; what it claims is checked before anything is built by it."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    where = f"the config of {os.fspath(name_or_path)!r}"
    try:
        fields, _ = PreTrainedConfig.get_config_dict(name_or_path, **place)
    except RecursionError as error:
        raise CheckpointError(f"{where} cannot be read: {error}.") from error
    check_counts(fields, where)
    kind = fields.get("model_type")
    if kind is not None and kind not in list(CONFIG_MAPPING.keys()):
        raise CheckpointError(
            f"model_type={kind!r} in {where} is not known to transformers, and fpe_hf never runs "
            "code from a repository. A newer transformers may know it."
        )
    config: dict[str, Any] = fields
    return config


@contextmanager
def _typed_errors(name_or_path: str | os.PathLike[str], widened: bool) -> Iterator[None]:
    """Has what transformers raises at the files of a widened model be an error of ours.

    Raises:
        CheckpointError: The model cannot be loaded.
    """
    try:
        yield
    except (FPEError, OSError, ImportError):
        raise
    except Exception as error:
        if not widened:
            raise
        raise CheckpointError(
            f"{os.fspath(name_or_path)!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
