"""The rows of a table and the file that holds them, written anew after every case."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BLOCK, MODEL = "block", "model"


@dataclass(frozen=True)
class Row:
    """How long one contender took in one case, beside the dense parent.

    Attributes:
        kind: `BLOCK` or `MODEL`.
        name: Of the block's shape or of the model.
        contender: Its name.
        layout: Its kind: a layout, or `dense`, `floor`, `masked`, ...
        tiles: Tiles, or 0.
        way: Key of `WAYS`, or empty.
        alpha: Children per parent.
        dtype: Of the weights.
        tokens: Tokens in the batch (of a model: texts or images).
        mode: `forward` or `train`.
        ratio: Median over rounds of its time to the dense parent's; `None` if not measured.
        low: First quartile of the ratios.
        high: Third quartile.
        rounds: How many.
        seconds: Median of its own time.
        floor: Median over rounds of the floor's time to its own; `None` for models.
        items_per_second: Tokens (texts, images) per second.
        note: Why it was not measured.
    """

    kind: str
    name: str
    contender: str
    layout: str
    tiles: int
    way: str
    alpha: int
    dtype: str
    tokens: int
    mode: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    seconds: float | None = None
    floor: float | None = None
    items_per_second: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What no two rows share."""
        case = (self.kind, self.name, self.alpha, self.dtype, self.tokens, self.mode)
        return (*case, self.contender)


@dataclass(frozen=True)
class Memory:
    """What one training step of a block keeps in memory, as multiples of the dense parent's.

    Attributes:
        name: Of the block's shape.
        contender: Its name.
        alpha: Children per parent.
        dtype: Of the weights.
        tokens: Tokens in the batch.
        activations: Bytes kept for backward.
        state: Bytes of weights, index tensors, gradients and AdamW's state.
        peak: Bytes by which the step's peak exceeds what is held before it: allocated memory on a
            GPU, resident memory of a fresh process on a CPU; `None` if not measured.
        bytes: The same three in bytes.
        note: Why something was not measured.
    """

    name: str
    contender: str
    alpha: int
    dtype: str
    tokens: int
    activations: float | None = None
    state: float | None = None
    peak: float | None = None
    bytes: dict[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What no two rows share."""
        return (self.name, self.alpha, self.dtype, self.tokens, self.contender)


@dataclass
class Results:
    """Everything that a run measured.

    Attributes:
        path: The file, `NAME.json`.
        command: What was run.
        environment: On what.
        rows: Times.
        memory: Memory of training steps.
    """

    path: Path
    command: str
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in content["rows"]]
        memory = [Memory(**row) for row in content["memory"]]
        return cls(path, content["command"], content["environment"], rows, memory)

    @property
    def known(self) -> set[tuple[Any, ...]]:
        """Keys of what is measured."""
        return {row.key for row in self.rows} | {row.key for row in self.memory}

    def add(self, rows: Iterable[Row] = (), memory: Iterable[Memory] = ()) -> None:
        """Adds what is new, and saves everything."""
        known = self.known
        self.rows += [row for row in rows if row.key not in known]
        self.memory += [row for row in memory if row.key not in known]
        self.save()

    def save(self) -> None:
        """Writes the file: whole, or not at all."""
        head = json.dumps({"command": self.command, "environment": self.environment}, indent=1)
        lists = [
            f' "{name}": [' + ",".join(f"\n  {json.dumps(_rounded(row))}" for row in rows) + "\n ]"
            for name, rows in (("rows", self.rows), ("memory", self.memory))
        ]
        write(self.path, head.removesuffix("\n}") + ",\n" + ",\n".join(lists) + "\n}\n")


def write(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def _rounded(row: Row | Memory) -> dict[str, Any]:
    """Fields that say something, floats with four digits."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in asdict(row).items()
        if value is not None and value != "" and value != {}
    } | ({"way": row.way} if isinstance(row, Row) else {})
