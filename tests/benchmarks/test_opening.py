from __future__ import annotations

import pytest
import torch

from benchmarks import opening


def test_every_case_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SHAPES", ((8, 16),))
    monkeypatch.setattr(opening, "TOKENS", (4,))
    rows = list(opening.measure_opening(1, 0.2))
    assert [(row["alpha"], row["tokens"]) for row in rows] == [(2, 4), (4, 4)]
    assert all(row["open / wide dense"] > 0 for row in rows)
    about = {"processor": "one", "torch": torch.__version__, "date": "today"}
    told = opening.page({"command": "python", "environment": about, "rows": rows})
    assert told.count("| 8 | 16 |") == 2
