"""Folders of saved models: written whole or not at all, with the small files that belong there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

import typer

from ..checkpoint.files import check_regular
from ..errors import CheckpointError
from ..files import recover, whole_folder
from .tables import printable

_COMPANIONS = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map*",
    "added_tokens*",
    "*preprocessor_config.json",
    "processor_config.json",
    "feature_extractor*",
    "generation_config.json",
    "chat_template*",
    "spiece.model",
    "sentencepiece*",
    "normalizer.json",
)
_DATA_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".jsonl", ".tiktoken")


def check_place(model: str) -> str:
    """Refuses what can only be a local folder and is none, before anyone asks the Hub for it.

    Raises:
        typer.BadParameter: There is no such folder, or it holds what can be read for ever.
    """
    place = Path(model)
    if place.is_file():
        raise typer.BadParameter(f"{model!r} is a file; give the folder it is in.")
    if not place.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise typer.BadParameter(f"there is no folder {model!r}.")
    try:
        check_regular(place)
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from error
    return model


@contextmanager
def looked_for(model: str) -> Iterator[None]:
    """Has an error at what may be a folder or a Hub id also say that there is no such folder.

    Args:
        model: What was asked for.
    """
    try:
        yield
    except OSError:
        if not os.path.lexists(model):
            typer.echo(
                printable(f"There is no folder {model!r} here: it was looked for on the Hub."),
                err=True,
            )
        raise


@contextmanager
def new_folder(
    out: Path, *, overwrite: bool, source: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """A folder to write to that takes its place when all went well, and vanishes otherwise.

    Args:
        out: Where it will be.
        overwrite: Replace a saved model that is there.
        source: What is read meanwhile; it must not be replaced.

    Yields:
        An empty folder near `out`.

    Raises:
        FileExistsError: Something is at `out` that must not be replaced.
        OSError: No folder can be made there.
    """
    target = out.resolve()
    recover(target)
    _check_free(out, target, overwrite, source)
    created = [parent for parent in target.parents if not parent.exists()]
    try:
        _make_parent(target, out)
        with whole_folder(target, replace=overwrite) as new:
            yield new
    except BaseException:
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise


def _check_free(
    out: Path, target: Path, overwrite: bool, source: str | os.PathLike[str] | None
) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise FileExistsError(f"{out} exists and is not a folder.")
    if source is not None:
        read = Path(source).resolve()
        if read.exists() and (read == target or target in read.parents):
            raise FileExistsError(f"{out} holds the model that is read: choose another folder.")
    entries = list(target.iterdir())
    if not entries:
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists and is not empty; --overwrite replaces it.")
    if not (target / "config.json").is_file() or any(entry.is_dir() for entry in entries):
        raise FileExistsError(
            f"{out} is not just a saved model (a config.json, and no folders inside): "
            "--overwrite would lose more than that. Remove it yourself, or choose another folder."
        )


def _make_parent(target: Path, out: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{out} cannot be made: Not a directory.") from error
    except OSError as error:
        raise OSError(f"{out} cannot be made: {error.strerror}.") from error


def copy_companions(
    source: str | os.PathLike[str], folder: Path, revision: str | None = None
) -> None:
    """Copies tokenizer, processor and generation files, as far as there are any.

    Args:
        source: Folder or Hub id of the model they belong to.
        folder: Where to put them. Files that are there already are left alone.
        revision: Branch, tag or commit on the Hub.
    """
    origin = Path(source)
    if not origin.is_dir():
        downloaded = _download_companions(str(source), revision)
        if downloaded is None:
            return
        origin = downloaded
    for file in sorted(origin.iterdir()):
        if _is_companion(file) and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _is_companion(file: Path) -> bool:
    fits = any(fnmatchcase(file.name, pattern) for pattern in _COMPANIONS)
    return fits and file.suffix in _DATA_SUFFIXES and file.is_file()


def _download_companions(name: str, revision: str | None) -> Path | None:
    """Folder with the companions of a model on the Hub, `None` if they cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*_COMPANIONS]))
    except Exception:  # they are a courtesy: without them, the model is still complete
        return None
