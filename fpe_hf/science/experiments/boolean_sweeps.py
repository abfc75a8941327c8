"""How the gain depends on alpha, clauses, neurons and the time of the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..comparison import AFTER, BEFORE, CLAUSE, BooleanTask, compare
from ..report import Report, Row, new_figure
from ..trials import DENSE, RANDOM, Arm, Outcome

TASK = BooleanTask()


@dataclass(frozen=True)
class Sweep:
    """A quantity and what the paper reports about it.

    Attributes:
        values: Settings of the quantity.
        expected: The paper's statement.
        less: Where the statement has the smaller gain.
        more: Where it has the larger one.
        positive: Where the statement has a gain above zero.
    """

    values: tuple[int, ...]
    expected: str
    less: int
    more: int
    positive: int | None = None


SWEEPS = {
    "alpha": Sweep((2, 3, 4), "the gain grows from 2 to 4", 2, 4),
    "clauses": Sweep((4, 8, 16, 24, 32), "the gain grows, then saturates near 16", 8, 16),
    "neurons": Sweep((4, 8, 16, 32), "the gain shrinks", 32, 4),
    "split after epoch": Sweep(
        (0, 5, 25, 45), "earlier is better, late still beats dense", 45, 5, positive=45
    ),
}


def run(full: bool) -> Report:
    """Runs the four sweeps."""
    seeds = 20 if full else 8
    rows = [
        _row(sweep, alpha if sweep == "alpha" else value, arm, outcome, outcomes[DENSE, 1])
        for sweep in SWEEPS
        for value, outcomes in _outcomes(sweep, seeds).items()
        for (arm, alpha), outcome in outcomes.items()
        if arm != DENSE
    ]
    return _report(rows)


def _report(rows: list[Row]) -> Report:
    lines = []
    for name, sweep in SWEEPS.items():
        for arm in (RANDOM, CLAUSE):
            own = [row for row in rows if row["sweep"] == name and row["arm"] == arm]
            gains = ", ".join(f"{r['value']}: {r['gain']:+.1f} ± {r['gain ci95']:.1f}" for r in own)
            lines.append(f"- {name}, {arm}: {gains}. {_verdict(sweep, own)}")
    text = (
        "Gains in test accuracy over the dense networks of the same seeds, in points, around the "
        f"setting of the Boolean table; {rows[0]['seeds']} seeds.\n\n" + "\n".join(lines)
    )
    return Report("Boolean sweeps", text, rows, {"boolean-sweeps": _figure(rows)})


def _outcomes(sweep: str, seeds: int) -> dict[int, Mapping[Arm, Outcome]]:
    """Outcomes by value; those of all alphas come together, under the first."""
    values = SWEEPS[sweep].values
    if sweep == "alpha":
        return {values[0]: compare(TASK, alphas=values, seeds=seeds)}
    if sweep == "split after epoch":
        epochs = BEFORE.epochs + AFTER.epochs
        return {
            start: compare(
                TASK,
                seeds=seeds,
                before=replace(BEFORE, epochs=start),
                after=replace(AFTER, epochs=epochs - start),
            )
            for start in values
        }
    tasks = {
        value: replace(TASK, clauses=value) if sweep == "clauses" else replace(TASK, neurons=value)
        for value in values
    }
    return {value: compare(task, seeds=seeds) for value, task in tasks.items()}


def _verdict(sweep: Sweep, rows: list[Row]) -> str:
    """Compares gains as if they came from independent formulas."""
    by_value = {row["value"]: row for row in rows}
    less, more = by_value[sweep.less], by_value[sweep.more]
    difference = more["gain"] - less["gain"]
    apart = abs(difference) > less["gain ci95"] + more["gain ci95"]
    if difference <= 0:
        found = "**it is the other way round" + ("**" if apart else ", the intervals overlap**")
    else:
        found = "so it is here" if apart else "so it is here, **but the intervals overlap**"
    told = f"Paper: {sweep.expected}; at {sweep.more} against {sweep.less} {found}."
    if sweep.positive is not None:
        late = by_value[sweep.positive]
        if late["gain"] <= late["gain ci95"]:
            told += f" **At {sweep.positive} there is no clear gain.**"
    return told


def _row(sweep: str, value: int, arm: str, outcome: Outcome, dense: Outcome) -> Row:
    gain = outcome.gain(dense)
    return {
        "sweep": sweep,
        "value": value,
        "arm": arm,
        "accuracy": outcome.mean.value,
        "ci95": outcome.mean.half_width,
        "dense": dense.mean.value,
        "dense ci95": dense.mean.half_width,
        "gain": gain.value,
        "gain ci95": gain.half_width,
        "seeds": gain.count,
    }


def _figure(rows: list[Row]) -> object:
    figure, axes = new_figure(len(SWEEPS), width=3.2, height=3.0)
    for ax, sweep in zip(axes, SWEEPS, strict=True):
        for arm in (RANDOM, CLAUSE):
            own = [row for row in rows if row["sweep"] == sweep and row["arm"] == arm]
            values, gains = [r["value"] for r in own], [r["gain"] for r in own]
            ax.errorbar(values, gains, [r["gain ci95"] for r in own], marker="o", label=arm)
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.set_xticks(SWEEPS[sweep].values)
        ax.set_xlabel(sweep)
    axes[0].set_ylabel("gain (points)")
    axes[0].legend(frameon=False)
    return figure
