"""An output folder belongs to one recipe, and to one run of it at a time."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..errors import InUseError, RecipeError
from ..files import Lock, remove_parts, write_whole
from .schema import Recipe

RECIPE = "recipe.yaml"
"""The recipe as it was run, in its output folder."""
_LOCK = ".lock"
_MAY_CHANGE = ("output.push", "description", "sweep", "output.folder")


@contextmanager
def claimed(folder: Path, recipe: Recipe, resume: bool, state: Any) -> Iterator[None]:
    """Holds a folder for a recipe: the main process first, then all processes of the run together.

    Args:
        folder: The folder, made if need be.
        recipe: The recipe.
        resume: Go on with an earlier run of the same recipe.
        state: accelerate's state.

    Raises:
        RecipeError: The folder holds something else, or a run of another recipe.
        InUseError: Another process holds it.
    """
    with ExitStack() as held:
        if state.is_main_process:
            held.enter_context(claim(folder, recipe, resume))
        state.wait_for_everyone()
        if not state.is_main_process:
            held.enter_context(hold(folder, shared=True))
        yield


@contextmanager
def claim(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """As `claimed`, for a single process."""
    _check(folder, recipe, resume)  # before anything is made in a folder of someone else
    with hold(folder) as lock:
        if not _check(folder, recipe, resume):
            plain = recipe.model_dump(mode="json")
            write_whole(folder / RECIPE, yaml.safe_dump(plain, sort_keys=False))
        remove_parts(folder)
        if lock is not None:
            lock.share()
        yield


@contextmanager
def hold(folder: Path, *, shared: bool = False) -> Iterator[Lock | None]:
    """Keeps all others out of a folder, which is made if need be.

    Args:
        folder: The folder.
        shared: Hold it together with the other processes of a run.

    Raises:
        InUseError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(folder / _LOCK, shared=shared)
    except BlockingIOError as error:
        raise InUseError(
            f"output.folder: {folder} is in use by {error}. Wait until it is done or end it, or "
            "choose another folder."
        ) from error
    except OSError as error:
        logging.getLogger("fpe_hf").warning(
            "%s cannot be locked (%s): make sure that no other process runs there.", folder, error
        )
        yield None
        return
    with lock:
        if not shared:
            lock.sign(f"process {os.getpid()} on {socket.gethostname()}")
        yield lock


def is_free(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but what was made in claiming it."""
    ours = (_LOCK, f".{RECIPE}.*.part")
    return not folder.exists() or all(any(map(p.match, ours)) for p in folder.iterdir())


def _check(folder: Path, recipe: Recipe, resume: bool) -> bool:
    """Whether a folder holds a run that may be gone on with; if not, it is free."""
    if is_free(folder):
        return False
    if not resume:
        raise RecipeError(
            f"output.folder: {folder} exists and is not empty; --resume goes on with it, "
            "or choose another."
        )
    file = folder / RECIPE
    if not file.is_file():
        raise RecipeError(f"output.folder: {folder} holds no run of a recipe (no {RECIPE}).")
    _check_same(yaml.safe_load(file.read_text(encoding="utf-8")), recipe, file)
    return True


def _check_same(old: dict[str, Any], recipe: Recipe, file: Path) -> None:
    """Refuses to resume under other settings."""
    before, after = _flat(old), _flat(recipe.model_dump(mode="json"))
    changed = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise RecipeError(
            f"--resume: the recipe differs from that of the run ({file}): {'; '.join(changed)}. "
            "Restore it, or choose another output.folder."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
