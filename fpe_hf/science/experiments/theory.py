"""Collisions and coverage: exact, approximate, and counted in random draws."""

from __future__ import annotations

from itertools import product

from ..report import Report, Row, new_figure
from ..theory import collision_approximation, collision_probability, expected_coverage, simulate

INPUTS, CLAUSES, PARENTS = 32, 4, 8
ALPHAS, LITERALS = (2, 3, 4, 6, 8), (2, 3, 4)
TOLERANCE = 4.0  # standard errors, over 30 comparisons


def run(full: bool) -> Report:
    """Compares the three."""
    draws = 100_000 if full else 20_000
    rows: list[Row] = []
    worst = 0.0
    for literals, alpha in product(LITERALS, ALPHAS):
        collisions, coverage = simulate(
            INPUTS, CLAUSES, literals, PARENTS, alpha, draws=draws, seed=100 * literals + alpha
        )
        exact = collision_probability(INPUTS, literals, alpha)
        covered = expected_coverage(INPUTS, literals, PARENTS, alpha)
        for estimate, value in ((collisions, exact), (coverage, covered)):
            # Too rare to be seen at all: then the count says nothing about the error.
            if estimate.error > 0:
                worst = max(worst, abs(estimate.mean - value) / estimate.error)
        rows.append(
            {
                "literals": literals,
                "alpha": alpha,
                "collision, exact": exact,
                "collision, alpha^-(2k-1)": collision_approximation(literals, alpha),
                "collision, counted": collisions.mean,
                "its standard error": collisions.error,
                "coverage, exact": covered,
                "coverage, counted": coverage.mean,
                "coverage, its standard error": coverage.error,
            }
        )
    verdict = "agree" if worst <= TOLERANCE else "**do not agree**"
    ratios = [r["collision, exact"] / r["collision, alpha^-(2k-1)"] for r in rows]
    text = (
        f"A random split of {INPUTS} inputs. *Collision*: the probability that two disjoint "
        "clauses are whole in the same child of a given parent. *Coverage*: the expected share of "
        f"clauses that are whole in some child of {PARENTS} parents.\n\n"
        f"Exact values and counts over {draws:,} random draws {verdict}: the largest difference is "
        f"{worst:.1f} standard errors among {2 * len(rows)} comparisons (events too rare to "
        "occur are left out). The paper's approximation "
        f"assumes that inputs are divided independently; a balanced split of {INPUTS} inputs "
        f"makes collisions rarer, {min(ratios):.2g} to {max(ratios):.2g} times the approximation. "
        "Coverage is not untouched: it falls with alpha and with the length of the clauses, and "
        "stays near 1 only for short ones."
    )
    return Report("Theory", text, rows, {"theory": _figure(rows)})


def _figure(rows: list[Row]) -> object:
    figure, axes = new_figure(2)
    for literals in LITERALS:
        own = [row for row in rows if row["literals"] == literals]
        alphas = [row["alpha"] for row in own]
        (line,) = axes[0].plot(alphas, [r["collision, exact"] for r in own], label=f"k={literals}")
        colour = line.get_color()
        axes[0].plot(alphas, [r["collision, alpha^-(2k-1)"] for r in own], "--", color=colour)
        axes[1].plot(alphas, [r["coverage, exact"] for r in own], color=colour)
        for ax, what, error in (
            (axes[0], "collision, counted", "its standard error"),
            (axes[1], "coverage, counted", "coverage, its standard error"),
        ):
            points = [r[what] for r in own]
            ax.errorbar(alphas, points, [2 * r[error] for r in own], fmt=".", color=colour)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("collision probability")
    axes[1].set_ylabel("coverage")
    axes[0].legend(frameon=False, title="solid: exact, dashed: paper")
    for ax in axes:
        ax.set_xlabel("alpha")
    return figure
