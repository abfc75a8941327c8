"""The tables of the report, as texts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from ..results import Results
from .latency import Latency
from .units import signed, size, with_spread

INTERFERENCE = {
    "feature_capacity": "feature capacity",
    "mean_cosine": "mean cosine",
    "gram_off_diagonal_energy": "off-diagonal energy",
}
"""Interference metrics -> what they are called."""

COMPARED = ("dense", "fpe")
"""Arms whose interference is shown."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: Names of the columns.
        rows: Cells, as many per row as there are columns.
        texts: How many columns at the left hold texts; the others hold numbers.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1


def arms_table(results: Results) -> Table:
    """Every arm over the seeds: metrics, gain over dense, non-zeros and steps."""
    main = results.metrics[0]
    by_metric = {
        metric: {entry.arm: entry for entry in results.summary(metric)}
        for metric in results.measured
    }
    rows = []
    for arm in results.arms:
        runs, entry = results.of_arm(arm), by_metric[main][arm]
        values = [
            with_spread(metric, entries[arm].mean, entries[arm].std if len(runs) > 1 else None)
            for metric, entries in by_metric.items()
        ]
        gain = "" if arm == "dense" else signed(main, entry.gain, entry.gain_ci95)
        steps = sorted({run.steps for run in runs})
        rows.append(
            (
                arm,
                *values,
                gain,
                entry.verdict or "",
                f"{entry.nonzeros:,}" if entry.nonzeros else _UNKNOWN,
                " to ".join(f"{count:,}" for count in dict.fromkeys((steps[0], steps[-1]))),
            )
        )
    header = ("arm", *by_metric, f"{main}: gain over dense", "beside dense", "non-zeros", "steps")
    return Table(header, tuple(rows))


def classes_table(results: Results) -> Table | None:
    """Accuracy by class of dense and FPE, means over the seeds; `None` if it is not known.

    Of more than 20 classes, the ten where FPE loses most and the ten where it gains most.
    """
    counted = {
        arm: [run.outcomes.by_class for run in results.of_arm(arm) if run.outcomes]
        for arm in COMPARED
    }
    if not all(counted.values()):
        return None
    rows: list[tuple[int, int, float, float]] = []
    for place, (_, examples) in enumerate(counted["dense"][0]):
        if examples:
            dense, fpe = (
                statistics.fmean(by_class[place][0] / examples for by_class in counted[arm])
                for arm in COMPARED
            )
            rows.append((place, examples, dense, fpe))
    rows.sort(key=lambda row: row[3] - row[2])
    if len(rows) > 2 * _ENDS:
        rows = [*rows[:_ENDS], *rows[-_ENDS:]]
    named = dict(enumerate(results.class_names))
    return Table(
        ("class", "examples", *COMPARED, "difference"),
        tuple(
            (
                named.get(place, str(place)),
                f"{examples:,}",
                f"{dense:.1%}",
                f"{fpe:.1%}",
                f"{100 * (fpe - dense):+.1f}",
            )
            for place, examples, dense, fpe in rows
        ),
    )


_ENDS = 10


def costs_table(results: Results) -> Table:
    """What every arm takes to train and to deploy, means over the seeds."""
    dense = _mean(results, "dense", "flops")
    rows = []
    for arm in results.arms:
        numbers = {name: _mean(results, arm, name) for name in _COSTS}
        flops = numbers["flops"]
        rows.append(
            (
                arm,
                f"{flops:.3g} ({flops / dense:.2f}×)" if flops and dense else _UNKNOWN,
                f"{numbers['seconds']:.1f}",
                _count(numbers["peak_parameters"]),
                _count(numbers["nonzeros"]),
                size(round(numbers["disk_bytes"])) if numbers["disk_bytes"] else _UNKNOWN,
            )
        )
    header = ("arm", "training FLOPs", "training seconds", "peak trainable parameters")
    return Table((*header, "final non-zeros", "bytes on disk"), tuple(rows))


_COSTS = ("flops", "seconds", "peak_parameters", "nonzeros", "disk_bytes")
_UNKNOWN = "not counted"


def _mean(results: Results, arm: str, name: str) -> float:
    return statistics.fmean(getattr(run, name) for run in results.of_arm(arm))


def _count(number: float) -> str:
    return f"{round(number):,}" if number else _UNKNOWN


def blocks_table(results: Results) -> Table | None:
    """Non-zeros and bytes of every widened block, the totals first; `None` if not counted."""
    audit = next((run.audit for run in results.of_arm("fpe") if run.audit), None)
    if audit is None:
        return None
    rows = []
    for block in (audit["total"], *audit["blocks"]):
        parent = block["parent_bytes"]
        rows.append(
            (
                block["name"],
                block["layout"],
                f"{block['parents']:,} to {block['children']:,}",
                f"{block['parent_nonzeros']:,}",
                f"{block['nonzeros']:,}",
                f"{block['coverage']:.1%}",
                size(parent),
                *(
                    f"{size(count)} ({count / max(parent, 1):.2f}×)"
                    for count in (block["memory_bytes"], block["disk_bytes"])
                ),
            )
        )
    header = ("block", "layout", "neurons", "parent non-zeros", "non-zeros", "coverage")
    return Table((*header, "parent bytes", "bytes in memory", "bytes on disk"), tuple(rows), 2)


def interference_table(results: Results) -> Table | None:
    """Interference before and after the training, means over seeds; `None` if not measured."""
    rows = [
        (
            projection,
            arm,
            *(f"{before:.4f} to {after:.4f}" for before, after in values.values()),
        )
        for arm in COMPARED
        for projection, values in interference_means(results, arm).items()
    ]
    # Arms of a projection side by side, projections in the model's order.
    order = list(dict.fromkeys(projection for projection, *_ in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    return Table(("projection", "arm", *INTERFERENCE.values()), tuple(rows), 2) if rows else None


def interference_means(results: Results, arm: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Projection -> metric -> means over seeds, before and after the training."""
    measured: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in results.of_arm(arm):
        after = {entry["name"]: entry for entry in run.interference.get("after", ())}
        for entry in run.interference.get("before", ()):
            if entry["name"] not in after:
                continue
            of_projection = measured.setdefault(entry["name"], {name: [] for name in INTERFERENCE})
            for name, pairs in of_projection.items():
                pairs.append((entry[name], after[entry["name"]][name]))
    return {
        projection: {name: _mean_pair(pairs) for name, pairs in by_metric.items()}
        for projection, by_metric in measured.items()
    }


def _mean_pair(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    before, after = zip(*pairs, strict=True)
    return statistics.fmean(before), statistics.fmean(after)


def latency_table(latency: Latency) -> Table:
    """Time of a forward pass by batch size."""
    rows = []
    for timing in latency.timings:
        low, high = timing.middle
        rows.append(
            (
                f"{timing.examples:,}",
                *(f"{1000 * seconds:.3g}" for seconds in timing.medians),
                f"{timing.ratio:.2f}",
                f"{low:.2f} to {high:.2f}",
                str(len(timing.dense)),
            )
        )
    header = ("examples", "dense (ms)", "widened (ms)", "widened / dense")
    return Table((*header, "middle half of the ratios", "rounds"), tuple(rows), 0)


def environment_table(environment: Mapping[str, str]) -> Table:
    """What the run was made with."""
    return Table(("what", "value"), tuple(environment.items()), 2)
