"""The cost table from which `layout="auto"` chooses: ratios to the dense parent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fpe_hf.files import write_whole

from .blocks import SHAPES
from .results import FORWARD, TRAIN, Results, Row

WIDTHS = {shape.name: shape.inputs for shape in SHAPES}


def write_costs(results: Results, path: Path) -> None:
    """Writes the table as compact JSON, one row a line.

    Args:
        results: What was measured.
        path: Where.
    """
    place = results.environment
    threads = max(row.threads for row in results.rows)
    name = place.get("gpu") or f"{place['processor']}, {threads} thread(s)"
    head: dict[str, Any] = {"device": place["device"], "measured_on": name}
    head |= {name: place[name] for name in ("torch", "fpe_hf", "date")}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in cost_rows(results.rows))
    opening = json.dumps(head, separators=(",", ":")).removesuffix("}")
    write_whole(path, f'{opening},"rows":[\n{lines}\n]}}\n')


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
        if row.layout in ("element", "block") and row.mode in (FORWARD, TRAIN) and row.ratio
    ]
