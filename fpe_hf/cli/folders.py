"""Folders of saved models: written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from ..checkpoint.files import check_regular, module_folders
from ..errors import CheckpointError
from ..files import recover, whole_folder
from .tables import printable


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
    modules = module_folders(target)
    strange = any(entry.is_dir() and entry.name not in modules for entry in entries)
    if not (target / "config.json").is_file() or strange:
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
