"""The rows of a table and the file that holds them, written anew after every case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fpe_hf.files import write_whole

BLOCK, MODEL = "block", "model"

FORWARD, TRAIN, MEMORY, CHECK = "forward", "train", "memory", "check"
"""A pass without gradients; forward and backward (of whole models, an optimizer step, too); the
memory of a training step; whether a contender computes what it should."""

EAGER, COMPILED, GRAPH = "eager", "compiled", "graph"
"""How PyTorch runs a module: as it stands, by `torch.compile`, or from a CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What contenders are compared in.

    Attributes:
        kind: `BLOCK` or `MODEL`.
        name: Of the block's shape or of the model.
        dtype: Of the weights.
        alpha: Children per parent.
        mode: `FORWARD`, `TRAIN`, `MEMORY` or `CHECK`.
        tokens: Tokens in the batch (of a model: texts or images).
        threads: Of a CPU; 0 on a GPU.
        how: `EAGER`, `COMPILED` or `GRAPH`.
    """

    kind: str
    name: str
    dtype: str
    alpha: int
    mode: str
    tokens: int
    threads: int = 0
    how: str = EAGER

    @property
    def case(self) -> dict[str, Any]:
        """The fields of the case alone, of a row too."""
        return {own.name: getattr(self, own.name) for own in fields(Case)}

    @property
    def what(self) -> str:
        """In words, without dtype, alpha, threads and `how`."""
        mode = self.mode
        if mode == TRAIN:
            mode = "forward and backward" if self.kind == BLOCK else "training step"
        unit = (
            "token" if self.kind == BLOCK else "image" if self.name.startswith("clip") else "text"
        )
        return f"{self.name}: {mode}, {self.tokens} {unit}{'s' * (self.tokens != 1)}"

    @property
    def column(self) -> str:
        """In words: threads, `how` and alpha."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        how = "" if self.threads and self.how == EAGER else self.how
        return ", ".join(word for word in (threads, how, f"alpha {self.alpha}") if word)

    @property
    def group(self) -> str:
        """In words, without mode and tokens."""
        return f"{self.name}, {self.dtype}, {self.column}"

    def __str__(self) -> str:
        return f"{self.what}, {self.dtype}, {self.column}"


@dataclass(frozen=True, kw_only=True)
class Row(Case):
    """What one contender took in one case, beside the dense parent.

    Attributes:
        contender: Its name.
        layout: Its kind: a layout, or `dense`, `masked`, ...
        tiles: Tiles, or 0.
        way: Key of `WAYS`, or empty.
        ratio: Median over rounds of its time to the dense parent's; `None` if not measured.
        low: First quartile of the ratios.
        high: Third quartile.
        rounds: How many.
        seconds: Median of its own time.
        memory: Of a training step, as multiples of the dense parent's: `activations` kept for
            backward; `state`: weights, index tensors, gradients and AdamW's state; `peak` above
            what is allocated before the step, on a GPU.
        bytes: The same in bytes.
        note: Why it was not measured.
    """

    contender: str
    layout: str
    tiles: int = 0
    way: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    seconds: float | None = None
    memory: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What no two rows share."""
        return (*self.case.values(), self.contender)


@dataclass
class Results:
    """Everything that a run measured.

    Attributes:
        path: The file, `NAME.json`.
        command: What was run.
        environment: On what.
        about: What the figures are of, if that is not this version of the code.
        rows: The figures.
        left: Cases for which there was no time, by `Case.group`.
    """

    path: Path
    command: str
    environment: dict[str, Any]
    about: str = ""
    rows: list[Row] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in content.pop("rows")]
        return cls(path, rows=rows, **content)

    @property
    def known(self) -> set[tuple[Any, ...]]:
        """Keys of what is measured."""
        return {row.key for row in self.rows}

    def add(self, rows: Iterable[Row]) -> None:
        """Adds what is new, and saves everything."""
        known = self.known
        self.rows += [row for row in rows if row.key not in known]
        self.save()

    def save(self) -> None:
        """Writes the file: whole, or not at all."""
        head = {"command": self.command, "environment": self.environment, "about": self.about}
        text = json.dumps({**head, "left": self.left}, indent=1).removesuffix("\n}")
        rows = ",\n  ".join(json.dumps(_rounded(row)) for row in self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, f'{text},\n "rows": [\n  {rows}\n ]\n}}\n')


def _rounded(row: Row) -> dict[str, Any]:
    """Fields that say something, floats with four digits."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: short(own) for name, own in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    said = asdict(row).items()
    return {name: short(value) for name, value in said if value not in (None, "", {})}
