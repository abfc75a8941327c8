"""Which files of a folder make up a model: those that transformers reads when it loads it."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MODULES = "modules.json"
QUANT_METHOD = "fpe"
MAX_JSON_BYTES = 64 * 2**20

_FILE_NAME = re.compile(r"[^/\\\0]{1,200}\.safetensors")
_FOLDER_NAME = re.compile(r"[\w-][\w.-]{0,200}", re.ASCII)
_ELSEWHERE = ("transformers_weights", "configuration_files")
_ADAPTER = "adapter_config.json"


def of_variant(name: str, variant: str | None) -> str:
    """The name of a weight file or an index in a variant, as transformers makes it."""
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def check_regular(folder: Path) -> None:
    """Checks that nothing in a folder can be read for ever, as pipes and devices can.

    Raises:
        CheckpointError: An entry is neither a file nor a folder, or a config is larger than any.
    """
    if not folder.is_dir():
        return
    places = [folder, *(folder / name for name in module_folders(folder))]
    for entry in (entry for place in places if place.is_dir() for entry in place.iterdir()):
        if not (entry.is_file() or entry.is_dir()) and entry.exists():
            raise CheckpointError(f"{entry} is no regular file: remove it.")
    for name in (CONFIG, INDEX):
        if (folder / name).is_file():
            check_json_size(folder / name, (folder / name).stat().st_size)


def check_json_size(file: str | Path, size: int) -> None:
    """Checks that a JSON file is not larger than any config or index.

    Raises:
        CheckpointError: It is.
    """
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{file} has {size:,} bytes; accepted: up to {MAX_JSON_BYTES:,}.")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: It cannot be read, is something else, or is larger than any config.
    """
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise OSError("it is no regular file")
        check_json_size(file, about.st_size)
        content = json.loads(file.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object.")
    return content


def module_folders(folder: Path) -> list[str]:
    """Names of the folders in which sentence-transformers keeps the modules of a model, in order.

    `"."` stands for the folder itself. Without a `modules.json` that can be read there are none.
    """
    if not (folder / MODULES).is_file():
        return []
    try:
        check_json_size(folder / MODULES, (folder / MODULES).stat().st_size)
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        paths = [module["path"] or "." for module in modules]
    except (OSError, ValueError, RecursionError, TypeError, KeyError, CheckpointError):
        return []
    return [path for path in paths if path == "." or _is_folder_name(path)]


def _is_folder_name(path: object) -> bool:
    return isinstance(path, str) and _FOLDER_NAME.fullmatch(path) is not None


def model_folder(folder: Path) -> Path:
    """Where in a folder the model itself is.

    Older versions of sentence-transformers keep it in a folder such as `0_Transformer`.
    """
    first = module_folders(folder)[:1]
    if first and not (folder / CONFIG).exists() and (folder / first[0] / CONFIG).is_file():
        return folder / first[0]
    return folder


def model_place(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Where `from_pretrained` finds a model: see `model_folder`. A Hub id stays what it is."""
    return model_folder(Path(name_or_path)) if os.path.isdir(name_or_path) else name_or_path


def stored_plan(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan in the content of a config, if that describes a widened model."""
    plan = config.get("quantization_config")
    widened = isinstance(plan, dict) and plan.get("quant_method") == QUANT_METHOD
    return plan if widened else None


def weight_files(
    folder: Path,
    config: Mapping[str, Any],
    variant: str | None = None,
    names: Collection[str] | None = None,
) -> list[str]:
    """Names of the safetensors files that hold a model's weights.

    What could be read in two ways is refused: else other files might be checked than are loaded.

    Args:
        folder: The folder. Its index is read, if it has one.
        config: The content of its config.
        variant: The variant, as `from_pretrained` takes it.
        names: Names of all files, if they are not all in the folder.

    Raises:
        CheckpointError: The index is broken, names what is not a file in the folder, a file is
            missing, or there are several ways to read the folder.
    """
    names = os.listdir(folder) if names is None else names
    single, index = (of_variant(name, variant) for name in (SINGLE, INDEX))
    for key in _ELSEWHERE:
        if config.get(key) is not None:
            raise CheckpointError(
                f"{folder / CONFIG} has {key}={config[key]!r}, which lets transformers read other "
                "files than usual: remove it."
            )
    if _ADAPTER in names:
        raise CheckpointError(
            f"{folder} holds {_ADAPTER}, by which transformers loads the model named there: move "
            "the adapter to a folder of its own."
        )
    if index not in names:
        return _there([single], names)
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index} has no weight_map.")
    shards = sorted({str(name) for name in weight_map.values()})
    for name in shards:
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(
                f"{folder / index} names {name!r}, which is not a file in the folder."
            )
    if single in names:
        raise CheckpointError(
            f"{folder} holds both {single} and {index}: remove the one that is out of date."
        )
    return _there(shards, names)


def _there(files: list[str], names: Collection[str]) -> list[str]:
    for name in files:
        if name not in names:
            raise CheckpointError(f"{name} is missing beside {CONFIG}.")
    return files
