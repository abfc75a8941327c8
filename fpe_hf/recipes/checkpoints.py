"""Checkpoints of the Trainer: which are whole, which to go on from, and what with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..checkpoint.files import read_json, stored_plan
from ..checkpoint.plan import FPEQuantizationConfig
from ..checkpoint.saving import refresh_plan
from ..closing import close_as
from ..files import write_whole
from ..planning.spec import OPEN

STATE, OPTIMIZER = "trainer_state.json", "optimizer.pt"
_NAME = re.compile(r"checkpoint-(\d+)")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps that was written to its end.

    The Trainer writes `trainer_state.json` last, so a process that was killed, or ran out of disk,
    leaves a checkpoint without it, or with a part of it.
    """
    if not folder.is_dir():
        return None
    named = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return next((path for _, path in sorted(named, reverse=True) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint is there."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    weights = list(checkpoint.glob("*.safetensors"))
    return isinstance(state, dict) and all(map(_is_whole_file, weights))


def _is_whole_file(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says, which opening it checks."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def close_like(model: Any, checkpoint: Path) -> None:
    """Closes the budget of an open model if a checkpoint of it was written after that; the weights
    of its blocks are empty then, to be loaded next.

    Raises:
        CheckpointError: The checkpoint holds no plan of a widened model.
        ConfigError: It is that of another model.
    """
    plan = stored_plan(read_json(checkpoint / "config.json"))
    specs = FPEQuantizationConfig(**(plan or {})).specs
    if all(spec.layout != OPEN for spec in specs):
        close_as(model, specs)
        refresh_plan(model)


def remove_partial(folder: Path) -> None:
    """Removes checkpoints that are not whole: the Trainer would count and rotate them."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name) and not is_whole(path):
                shutil.rmtree(path)


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(file, json.dumps(content, indent=1) + "\n")
