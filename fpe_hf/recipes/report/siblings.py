"""How far the children of FPE's parents have parted, in a line of the report."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from ..results import Results


def siblings_line(results: Results) -> list[str]:
    """A paragraph, or none if nothing was measured."""
    parts = [
        f"{before:.3f} to {after:.3f} in {kind}"
        for kind in ("weights", "activations")
        for before, after in _means(results, kind)
    ]
    if not parts:
        return []
    return [
        "How far the children of a neuron have parted in the FPE model, before and after training, "
        f"mean over blocks and seeds: {', '.join(parts)}. 0 says that they are equal: the model is "
        "its dense parent in disguise."
    ]


def _means(results: Results, kind: str) -> Iterator[tuple[float, float]]:
    """The distance before and after training, if it was measured."""
    by_time = [
        [
            own[kind]
            for run in results.of_arm("fpe")
            for own in run.siblings.get(time, ())
            if own[kind] is not None
        ]
        for time in ("before", "after")
    ]
    if all(by_time):
        before, after = map(fmean, by_time)
        yield before, after
