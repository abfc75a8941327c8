from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from fpe_hf.recipes.report import tables
from fpe_hf.recipes.report.latency import Latency, Timing
from recipes.report.runs import make_results


def test_arms() -> None:
    results = make_results({"dense": [0.5, 0.5], "fpe": [0.6, 0.7]})
    found = tables.arms_table(results)
    assert found.header == (
        "arm",
        "accuracy",
        "loss",
        "accuracy: gain over dense",
        "beside dense",
        "non-zeros",
        "steps",
    )
    assert found.rows == (
        ("dense", "50.00% ± 0.00%", "0.500 ± 0.000", "", "", "1,610", "40"),
        (
            "fpe",
            "65.00% ± 7.07%",
            "0.350 ± 0.071",
            "+15.00 ± 75.00",  # 63.53 over 2 seeds, 39.87 at most for 20 examples
            "no clear difference",
            "1,610",
            "40",
        ),
    )


def test_arms_of_one_seed_show_no_spread() -> None:
    found = tables.arms_table(make_results({"dense": [0.5], "fpe": [0.6]}))
    assert found.rows[1] == (
        "fpe",
        "60.00%",
        "0.400",
        "+10.00 ± 41.35",
        "no clear difference",
        "1,610",
        "40",
    )


def test_what_differs_between_seeds_or_is_not_known() -> None:
    results = make_results({"dense": [0.5, 0.5], "fpe": [0.6, 0.7]})
    results.runs[0] = dataclasses.replace(results.runs[0], steps=30, nonzeros=0)
    assert tables.arms_table(results).rows[0][5:] == ("not counted", "30 to 40")


def test_costs() -> None:
    found = tables.costs_table(make_results({"dense": [0.5, 0.5], "fpe": [0.6, 0.7]}))
    assert found.header == (
        "arm",
        "training FLOPs",
        "training seconds",
        "peak trainable parameters",
        "final non-zeros",
        "bytes on disk",
    )
    assert found.rows == (
        ("dense", "1e+06 (1.00×)", "2.5", "1,610", "1,610", "6.6 KiB"),
        ("fpe", "2.5e+06 (2.50×)", "2.5", "1,610", "1,610", "6.6 KiB"),
    )


def test_costs_of_an_earlier_version_are_not_known() -> None:
    results = make_results({"dense": [0.5]})
    results.runs[0] = dataclasses.replace(
        results.runs[0], flops=0.0, peak_parameters=0, disk_bytes=0
    )
    row = tables.costs_table(results).rows[0]
    assert row == ("dense", "not counted", "2.0", "not counted", "1,610", "not counted")


def test_blocks() -> None:
    found = tables.blocks_table(make_results({"dense": [0.5], "fpe": [0.6]}))
    assert found is not None
    assert found.rows[0][:2] == ("total", "")
    assert found.rows[1] == (
        "layers",
        "element",
        "8 to 16",
        "1,610",
        "1,608",
        "87.5%",
        "6.3 KiB",
        "9.4 KiB (1.50×)",
        "6.3 KiB (1.00×)",
    )


def test_blocks_that_were_not_counted() -> None:
    results = make_results({"dense": [0.5], "fpe": [0.6]})
    results.runs[1] = dataclasses.replace(results.runs[1], audit=None)
    assert tables.blocks_table(results) is None


def test_interference_is_the_mean_over_seeds() -> None:
    found = tables.interference_table(make_results({"dense": [0.5, 0.5], "fpe": [0.6, 0.7]}))
    assert found is not None
    cells = ("0.7000 to 0.9000", "0.0700 to 0.0900", "0.3000 to 0.1000")
    assert found.rows == (("layers.0", "dense", *cells), ("layers.0", "fpe", *cells))


def test_interference_that_was_not_measured() -> None:
    results = make_results({"dense": [0.5], "fpe": [0.6]})
    results.runs[0].interference["after"] = []
    found = tables.interference_table(results)
    assert found is not None
    assert [row[1] for row in found.rows] == ["fpe"]
    results.runs[1].interference.clear()
    assert tables.interference_table(results) is None


def test_latency() -> None:
    timing = Timing(8, (0.001, 0.002, 0.001, 0.001, 0.001), (0.002, 0.002, 0.003, 0.002, 0.004))
    found = tables.latency_table(Latency((timing,), "cpu", 1, "float32"))
    assert found.rows == (("8", "1", "2", "2.00", "2.00 to 3.00", "5"),)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4))
def test_every_row_has_a_cell_per_column(pairs: list[tuple[float, float]]) -> None:
    dense, fpe = zip(*pairs, strict=True)
    results = make_results({"dense": dense, "fpe": fpe})
    for table in (
        tables.arms_table(results),
        tables.costs_table(results),
        tables.blocks_table(results),
        tables.interference_table(results),
        tables.environment_table({"torch": "2"}),
    ):
        assert table is not None
        assert all(len(row) == len(table.header) for row in table.rows)
