"""The cost table from which `layout="auto"` chooses: ratios to the dense parent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .blocks import PLAIN, SHAPES
from .cases import Preset
from .results import Results, Row, write

WIDTHS = {shape.name: shape.inputs for shape in SHAPES}


def costs_preset(dtypes: tuple[str, ...], modes: tuple[str, ...], budget: float) -> Preset:
    """What the table needs: both layouts with a replicated fan-out, at the plain widths.

    Args:
        dtypes: Keys of `DTYPES`.
        modes: `forward`, `train`.
        budget: Seconds per case.
    """
    return Preset(
        shapes=PLAIN,
        dtypes=dtypes,
        modes=modes,
        layouts=("element", "block"),
        ways=("replicate",),
        rivals=(),
        budget=budget,
    )


def write_costs(results: Results, path: Path) -> None:
    """Writes the table as compact JSON, one row a line.

    Args:
        results: What was measured.
        path: Where.
    """
    place = results.environment
    name = place["gpu"] or f"{place['processor']}, {place['threads']} thread(s)"
    head: dict[str, Any] = {"device": place["device"], "measured_on": name}
    head |= {name: place[name] for name in ("torch", "fpe_hf", "date")}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in cost_rows(results.rows))
    opening = json.dumps(head, separators=(",", ":")).removesuffix("}")
    write(path, f'{opening},"rows":[\n{lines}\n]}}\n')


def cost_rows(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows of the table.

    `width` is the number of a block's inputs; its hidden neurons are four times as many. An
    `element` block has no tiles: 0.

    Args:
        rows: What was measured.
    """
    return [
        {
            "layout": row.layout,
            "tiles": row.tiles,
            "alpha": row.alpha,
            "width": WIDTHS[row.name],
            "tokens": row.tokens,
            "dtype": row.dtype,
            "mode": row.mode,
            "ratio": round(row.ratio, 3),
        }
        for row in rows
        if row.layout in ("element", "block") and row.ratio is not None
    ]
