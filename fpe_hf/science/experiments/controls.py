"""What else could explain the gain: overlapping inputs, DropConnect, masks that move."""

from __future__ import annotations

from dataclasses import replace

from ..comparison import AFTER, BEFORE, CLAUSE, BooleanTask, warm_up
from ..report import Report, Row, new_figure
from ..splitting import OVERLAP, expand
from ..statistics import gained
from ..training import MovingMasks
from ..trials import DENSE, RANDOM, Outcome

ALPHAS, DROP_RATES = (2, 4), (0.1, 0.5)
WORSE, EQUAL = "worse", "no clear difference"
EXPECTED = {
    OVERLAP: (WORSE, (WORSE,)),
    "RigL": ("masks that move do not change the conclusion", (EQUAL,)),
    "SET": ("masks that move do not change the conclusion", (EQUAL,)),
    "DropConnect": ("equal or worse", (WORSE, EQUAL)),
}
"""Control -> what the paper says of it against disjoint random inputs, and which words fit that."""


def run(full: bool) -> Report:
    """Trains the controls and what they are compared with, from the same warm-up."""
    seeds = 20 if full else 10
    task = BooleanTask()
    problems = task.draw(seeds)
    warm = warm_up(task, problems, BEFORE)
    trainings = {
        RANDOM: AFTER,
        "RigL": replace(AFTER, moving=MovingMasks("gradient")),
        "SET": replace(AFTER, moving=MovingMasks("random")),
    }
    found: dict[tuple[str, int], Outcome] = {}
    found[DENSE, 1] = problems.outcome(problems.train(warm, AFTER))
    for rate in DROP_RATES:
        dropped = problems.train(warm, replace(AFTER, drop_connect=rate))
        found[f"DropConnect {rate}", 1] = problems.outcome(dropped)
    for alpha in ALPHAS:
        for split in (RANDOM, CLAUSE, OVERLAP):
            expanded = expand(warm, alpha, problems.splits(split, len(warm)))
            arms = trainings if split == RANDOM else {split: AFTER}
            for name, training in arms.items():
                found[name, alpha] = problems.outcome(problems.train(expanded, training))
    numbers = {int(n) for outcome in found.values() for n in outcome.networks.numbers()}
    rows: list[Row] = [
        {
            "arm": arm,
            "alpha": alpha,
            "accuracy": outcome.mean.value,
            "ci95": outcome.mean.half_width,
            "seeds": seeds,
        }
        for (arm, alpha), outcome in found.items()
    ]
    lines = []
    for alpha in ALPHAS:
        random = found[RANDOM, alpha]
        for name in (OVERLAP, *list(trainings)[1:]):
            lines.append(f"- {name}, alpha {alpha}: {_told(name, found[name, alpha], random)}")
        for rate in DROP_RATES:
            name = f"DropConnect {rate}"
            lines.append(f"- {name}, against alpha {alpha}: {_told(name, found[name, 1], random)}")
    text = (
        "All networks hold the same count of numbers when they are tested: "
        f"{', '.join(map(str, sorted(numbers)))}. "
        "*Overlap* draws the inputs of each child on its own, so siblings share some. "
        "*DropConnect* trains the dense parent, leaving out each weight in each step with the "
        "given probability. *RigL* and *SET* start from the random split and move masks.\n\n"
        "Differences from the random split with fixed masks:\n\n" + "\n".join(lines)
    )
    return Report("Controls", text, rows, {"controls": _figure(rows)})


def _told(name: str, control: Outcome, random: Outcome) -> str:
    """The paired difference, seed by seed, and what the paper says about it."""
    difference = control.gain(random)
    word = gained(control.accuracy, random.accuracy).word or EQUAL
    word = EQUAL if word == "identical" else word
    expected, accepted = EXPECTED[name.split()[0]]
    told = word if word in accepted else f"**{word}**"
    return f"{difference} points, {told} (paper: {expected})."


def _figure(rows: list[Row]) -> object:
    figure, (ax,) = new_figure(width=6.0, height=4.2)
    names = [f"{row['arm']} (alpha {row['alpha']})" for row in rows]
    errors = [row["ci95"] for row in rows]
    ax.errorbar([row["accuracy"] for row in rows], range(len(rows)), xerr=errors, fmt="o")
    ax.set_yticks(range(len(rows)), names)
    ax.invert_yaxis()
    ax.set_xlabel("test accuracy (%)")
    return figure
