"""Targets: the worst row counts, and what is not measured passes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.results import Row
from benchmarks.targets import ALPHAS, Target, judge, targets, to_rivals


def row(**fields: Any) -> Row:
    usual: dict[str, Any] = {
        "kind": "block",
        "name": "768x3072",
        "contender": "block 1 tile replicate",
        "layout": "block",
        "tiles": 1,
        "way": "replicate",
        "alpha": 2,
        "dtype": "fp32",
        "tokens": 128,
        "mode": "forward",
        "ratio": 1.0,
        "floor": 1.0,
    }
    return Row(**{**usual, **fields})


def target(text: str, device: str = "cpu") -> Target:
    (found,) = [t for t in targets(device) if t.text.startswith(text)]
    return found


FORWARD = "CPU block, forward, 128"


def test_the_worst_row_counts() -> None:
    rows = [
        row(ratio=1.01),
        row(ratio=1.04, contender="block 8 tiles exact", tiles=8, way="exact", tokens=2048),
        row(ratio=9.0, layout="element", contender="element replicate"),
        row(ratio=9.0, tokens=1),
        row(ratio=9.0, mode="train"),
        row(ratio=9.0, name="384x1536"),
        row(ratio=9.0, dtype="bf16"),
        row(ratio=9.0, alpha=4),
        row(ratio=None, note="not built", contender="block 4 tiles replicate"),
    ]
    verdict = judge(target(FORWARD), rows, 2, "cpu")
    assert verdict.worst == 1.04
    assert verdict.row == rows[1]
    assert verdict.passed
    assert str(verdict) == "1.04 (<= 1.05) pass"
    assert not judge(target(FORWARD), rows, 4, "cpu").passed
    assert str(judge(target(FORWARD), rows, 4, "cpu")) == "9.00 (<= 1.15) FAIL"


def test_the_issues_limits() -> None:
    limits = {t.text: tuple(t.limits[a] for a in ALPHAS) for t in targets("cpu")}
    assert list(limits.values()) == [
        (1.05, 1.15, 1.30),
        (1.10, 1.20, 1.40),
        (1.20, 1.30, 1.60),
        (1.05, 1.10, 1.20),
        (1.05, 1.10, 1.20),
        (1.10, 1.20, 1.40),
        (1.10, 1.20, 1.30),
        (0.90, 0.90, 0.85),
        (1.0, 1.0, 1.0),
    ]


def test_gpu_rows_are_not_measured_on_a_cpu() -> None:
    rows = [row(dtype="bf16", tokens=2048)]
    verdict = judge(target("GPU block bf16"), rows, 2, "cpu")
    assert not verdict.passed
    assert str(verdict) == "not measured (<= 1.10)"
    assert judge(target("GPU block bf16", "cuda"), rows, 2, "cuda").passed


def test_few_tokens_on_a_gpu_hold_for_both_layouts() -> None:
    few = target("GPU, 1 to 16", "cuda")
    rows = [row(tokens=1), row(tokens=16, layout="element", ratio=1.2), row(tokens=17, ratio=9.0)]
    assert judge(few, rows, 2, "cuda").worst == 1.2


def test_the_floor_is_a_lower_limit_over_the_rows_of_the_other_targets() -> None:
    floor = target("fraction of the floor")
    rows = [row(floor=0.95), row(floor=0.91, mode="train"), row(floor=0.1, name="384x1536")]
    verdict = judge(floor, rows, 2, "cpu")
    assert (verdict.worst, verdict.passed) == (0.91, True)
    assert not judge(floor, [*rows, row(floor=0.89, tokens=1)], 2, "cpu").passed
    models = row(kind="model", name="minilm", floor=None)
    assert judge(floor, [models], 2, "cpu").worst is None


@pytest.mark.parametrize("name", ["minilm", "clip-b32"])
def test_whole_models(name: str) -> None:
    title = {"minilm": "CPU whole MiniLM", "clip-b32": "CPU whole CLIP"}[name]
    rows = [row(kind="model", name=name, tokens=8, ratio=1.06, alpha=4)]
    assert judge(target(title), rows, 4, "cpu").passed
    assert judge(target(title), rows, 2, "cpu").worst is None


def test_auto_is_held_against_the_fastest_naive_way_of_the_same_case() -> None:
    auto = row(layout="auto", contender="auto replicate", ratio=1.2)
    rivals = [
        row(layout="masked", contender="masked", ratio=2.0),
        row(layout="csr", contender="csr", ratio=1.5),
        row(layout="csr", contender="csr", ratio=0.5, tokens=1),  # another case
        row(layout="bsr", contender="bsr", ratio=None, note="no kernel"),
    ]
    assert to_rivals(auto, rivals) == pytest.approx(0.8)
    assert judge(target('layout="auto"'), [auto, *rivals], 2, "cpu").passed
    faster = row(layout="premasked", contender="premasked", ratio=1.1)
    assert not judge(target('layout="auto"'), [auto, *rivals, faster], 2, "cpu").passed
    assert judge(target('layout="auto"'), [auto], 2, "cpu").worst is None
