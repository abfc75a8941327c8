"""Every model type of transformers goes through all steps of the coverage harness."""

from __future__ import annotations

from collections import Counter

import pytest

from tools.coverage.pool import sweep
from tools.coverage.report import WIDENED
from tools.coverage.types import model_types

PASSES = 650
SHARE = 0.97


@pytest.mark.nightly
def test_sweep() -> None:
    records = list(sweep(model_types(), steps="all", jobs=2, limit=240))
    assert len(records) == len(model_types())
    counts = Counter(record["status"] for record in records)
    failed = {r["type"]: f"{r['step']}: {r['error']}" for r in records if r["status"] == "fail"}
    assert counts["pass"] >= SHARE * sum(counts[status] for status in WIDENED), failed
    assert counts["pass"] >= PASSES, counts


@pytest.mark.nightly
def test_pool_survives_a_type_that_hangs() -> None:
    (record,) = sweep(["bert"], steps="all", jobs=1, limit=0.01)
    assert record["status"] == "fail"
    assert "took more than" in record["error"]
