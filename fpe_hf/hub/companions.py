"""What goes along with a model that is saved anew: every file of its source but its weights."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..checkpoint.files import CONFIG, MODULES, model_folder, module_folders
from ..errors import HubError
from .exchange import exchange

logger = logging.getLogger("fpe_hf")

MAX_BYTES = 2**30
CARD = "README.md"
_WEIGHTS = frozenset(
    ".safetensors .bin .pt .pth .ckpt .pkl .pickle .joblib .h5 .hdf5 .keras .msgpack .ot .onnx "
    ".onnx_data .gguf .ggml .pb .tflite .mlmodel .mar .nemo .distcp .engine".split()
)
_SAFE = ".safetensors"
_EXPORTS = ("openvino_model.",)
_OTHERS = ("adapter_config.json",)


@dataclass(frozen=True)
class Companions:
    """What was copied.

    Attributes:
        copied: Paths of the files in the new folder.
        left: Paths, in the source, of files and folders that might have been expected, too: the
            model card of the dense parent, links out of the folder, files above 1 GiB, folders with
            other weights.
    """

    copied: tuple[str, ...]
    left: tuple[str, ...]


def copy_companions(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Companions:
    """Copies the files that belong to a model besides its config and weights.

    Tokenizer, processor, chat template, generation settings, code (which is never run), a licence,
    and all that sentence-transformers needs: `modules.json` and the folders it names. Not copied
    are weights in any format, folders that hold such, the model card, which describes another
    model, hidden files, and links to elsewhere.

    Args:
        source: Folder or Hub id of the model they belong to.
        folder: Where to put them. Files that are there already are left alone.
        revision: Branch, tag or commit on the Hub.
        token: Access token; otherwise the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        What was copied and what was not.

    Raises:
        HubError: The Hub refused or could not be reached, and its cache has nothing.
        OSError: A file cannot be read or written.

    Example:
        >>> model = fpe_hf.widen("model")
        >>> model.save_pretrained("widened")
        >>> fpe_hf.copy_companions("model", "widened")
    """
    target = Path(folder)
    origin = Path(source)
    if origin.is_dir():
        return _copy(origin, target, _sizes(origin))
    origin, sizes = _download(os.fspath(source), revision, token)
    return _copy(origin, target, sizes)


def _copy(origin: Path, target: Path, sizes: Mapping[str, int | None]) -> Companions:
    """Copies what belongs to a model from among the files of these names."""
    own = model_folder(origin).relative_to(origin).as_posix()  # sentence-transformers' first module
    chosen, left = _choose(sizes, {*module_folders(origin)} - {own}, own)
    copied = []
    for name in chosen:
        place = name.removeprefix(f"{own}/")
        if (target / place).exists():
            continue
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        if name == MODULES and own != ".":
            _move_to_root(origin / name, target / place)
        else:
            shutil.copyfile(origin / name, target / place)
        copied.append(place)
    return Companions(tuple(copied), left)


def _choose(
    sizes: Mapping[str, int | None], modules: Collection[str], own: str
) -> tuple[list[str], tuple[str, ...]]:
    """Which files of a model go along, and which ones or which folders do not and are missed.

    Args:
        sizes: Path of each file -> its size, `None` for links out of the folder.
        modules: Folders of modules that have weights of their own.
        own: The folder the model itself is in.
    """
    heavy = {path.parent.as_posix() for path in map(PurePosixPath, sizes) if _is_weight(path)}
    closed = {place for place in heavy if place.partition("/")[0] not in modules} - {".", own}
    chosen, left = [], dict[str, None]()
    for name, size in sorted(sizes.items()):
        path = PurePosixPath(name)
        home = path.parent.as_posix()
        above = [parent.as_posix() for parent in path.parents]
        shut = next((parent for parent in above if parent in closed), None)
        if any(part.startswith(".") or part == "__pycache__" for part in path.parts):
            continue
        if shut is not None:
            left[f"{shut}/"] = None
        elif home in (".", own) and (path.name in (CONFIG, *_OTHERS) or _is_weight(path)):
            continue  # the model itself, which is saved anew
        elif home not in (".", own) and _is_twice(path, sizes):
            continue
        elif name == CARD or size is None or size > MAX_BYTES:
            left[name] = None
        else:
            chosen.append(name)
    return chosen, tuple(left)


def _is_weight(path: PurePosixPath) -> bool:
    name = path.name
    return (
        path.suffix in _WEIGHTS
        or name.startswith(_EXPORTS)
        or (name.endswith(".index.json") and PurePosixPath(name[:-11]).suffix in _WEIGHTS)
    )


def _is_twice(path: PurePosixPath, sizes: Collection[str]) -> bool:
    """Whether a module has the same weights as safetensors, which are the ones to keep."""
    beside = (PurePosixPath(name) for name in sizes)
    safe = any(other.parent == path.parent and other.suffix == _SAFE for other in beside)
    return safe and path.suffix in _WEIGHTS - {_SAFE}


def _sizes(origin: Path) -> dict[str, int | None]:
    """Path of every file below a folder -> its size; `None` for links out of it.

    A folder of the Hub's cache holds links to its files, which lie beside it.
    """
    home = origin.resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    sizes: dict[str, int | None] = {}
    for place, folders, names in os.walk(origin):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in (*names, *links):
            file = Path(place, name)
            path = file.relative_to(origin).as_posix()
            inside = any(file.resolve().is_relative_to(own) for own in homes)
            if not inside or name in links:
                sizes[path] = None
            elif file.is_file():
                sizes[path] = file.stat().st_size
    return sizes


def _move_to_root(source: Path, target: Path) -> None:
    """Writes a `modules.json` by which the first module is where the widened model is."""
    modules = json.loads(source.read_text(encoding="utf-8"))
    modules[0]["path"] = ""
    target.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")


def _download(
    name: str, revision: str | None, token: str | bool | None
) -> tuple[Path, dict[str, int | None]]:
    """What belongs to a model on the Hub, in its cache; without the Hub, what the cache has."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(token=token, library_name="fpe_hf")

    def look() -> dict[str, int | None]:
        entries = api.list_repo_tree(name, revision=revision, recursive=True)
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}

    def fetch(names: Collection[str]) -> Path:
        wanted = [file.replace("[", "[[]") for file in names]
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=wanted))

    what = f"reading the files of {name!r}"
    try:
        sizes = exchange(what, look, token=token)
        origin = exchange(what, lambda: fetch([CONFIG, MODULES]), token=token)
        chosen, _ = _choose(sizes, module_folders(origin), ".")
        return exchange(what, lambda: fetch(chosen), token=token), sizes
    except HubError as error:
        try:
            place = snapshot_download(
                name, revision=revision, allow_patterns=[CONFIG], local_files_only=True
            )
        except OSError as gone:
            raise error from gone
        logger.warning("%s What goes along is what the cache has of the repository.", error)
        return Path(place), _sizes(Path(place))
