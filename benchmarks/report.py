"""The page of a run: ratios, quartiles and times, memory, and what was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from fpe_hf.files import write_whole
from fpe_hf.markup import plain, table

from .contenders import DENSE
from .results import CHECK, EAGER, MEMORY, Results, Row

NOT_MEASURED = "–"
_METHOD = """Times are multiples of the dense parent's, run the same way, measured in turns in one
process: medians over rounds of the ratio within a round. `docs/benchmarks.md` describes the
method."""


def write_report(results: Results) -> str:
    """Writes the page `NAME.md` beside `NAME.json`.

    Args:
        results: What was measured.

    Returns:
        The table for the documentation.
    """
    path = results.path.with_suffix(".md")
    write_whole(path, page(results) + "\n")
    return f"{summary(results)}\n\n{path}"


def summary(results: Results) -> str:
    """A table of ratios, a line on what they are of, and how much is missing."""
    times = [row for row in results.rows if row.mode not in (CHECK, MEMORY)]
    parts = [_place(results), *_tables(times, _ratio)]
    if results.left:
        parts.append(f"{len(results.left)} cases were left out, as the time was over.")
    return "\n\n".join(parts)


def page(results: Results) -> str:
    """Everything, in Markdown."""
    times = [row for row in results.rows if row.mode not in (CHECK, MEMORY)]
    memory = [row for row in results.rows if row.mode == MEMORY]
    parts = [
        f"# Benchmarks: {results.path.stem}",
        f"Written by `{results.command}`.",
        *([f"**{results.about}**"] if results.about else []),
        ", ".join(f"{key} {value}" for key, value in results.environment.items() if value) + ".",
        _METHOD,
        "## Ratios",
        *_tables(times, _ratio),
        "## Quartiles and milliseconds",
        *_tables(times, _details),
        *(["## Memory of a training step, multiples of the dense parent's"] if memory else []),
        *_tables(memory, _memory),
        "## Checks",
        *_checks(results),
        *_missing(results),
    ]
    return "\n\n".join(parts)


def _place(results: Results) -> str:
    about = results.environment
    names = ("gpu", "processor", "cpu capability", "cores", "torch", "commit", "date")
    return ", ".join(f"{name} {about[name]}" for name in names if about.get(name))


def _tables(rows: Sequence[Row], cell: Callable[[Row], str]) -> Iterable[str]:
    """For each dtype, a table with a line per case and contender and a column per alpha and number
    of threads (or way of running)."""
    for dtype in dict.fromkeys(row.dtype for row in rows):
        own = [row for row in rows if row.dtype == dtype]
        cells = {(row.what, row.contender, row.column): cell(row) for row in own}
        columns = list(dict.fromkeys(r.column for r in sorted(own, key=_by_column)))
        lines, last = [], ""
        for what, contender in dict.fromkeys((row.what, row.contender) for row in _by_case(own)):
            found = [cells.get((what, contender, column), NOT_MEASURED) for column in columns]
            lines.append(["" if what == last else what, contender, *found])
            last = what
        yield table([dtype, "", *columns], lines, texts=2)


def _by_column(row: Row) -> tuple[bool, str, int, int]:
    return row.how != EAGER, row.how, row.threads, row.alpha


def _by_case(rows: Iterable[Row]) -> Iterable[Row]:
    """Rows with those of a case together, cases and contenders in the order of their coming."""
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row.what, []).append(row)
    return (row for own in by_case.values() for row in own)


def _ratio(row: Row) -> str:
    if row.seconds is None or row.ratio is None:
        return NOT_MEASURED
    return f"{1e3 * row.seconds:.3g} ms" if row.layout == DENSE else f"{row.ratio:.2f}"


def _details(row: Row) -> str:
    if row.seconds is None:
        return NOT_MEASURED
    return f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}], {1e3 * row.seconds:.3g} ms"


def _memory(row: Row) -> str:
    parts = [f"{name} {value:.2f}" for name, value in row.memory.items()]
    return ", ".join(parts) or NOT_MEASURED


def _checks(results: Results) -> Iterable[str]:
    checks = [row for row in results.rows if row.mode == CHECK and row.layout != DENSE]
    wrong = [row for row in checks if row.note]
    yield (
        f"{len(checks) - len(wrong)} of {len(checks)} contenders could be built and agreed with "
        "their dense form, outputs and gradients, before they were timed; those with an exact "
        "start also with their parent."
    )


def _missing(results: Results) -> Iterable[str]:
    """Why something was not measured."""
    reasons: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row.note:
            reasons.setdefault((row.contender, row.note), []).append(row)
    lines = [
        f"- {who}: {plain(note)} ({len(rows)} times, such as in {rows[0]})"
        for (who, note), rows in reasons.items()
    ]
    if results.left:
        left = "; ".join(f"{what} ({n})" for what, n in Counter(results.left).items())
        lines.append(f"- {len(results.left)} cases, as the time was over: {left}")
    return ["## Not measured", "\n".join(lines)] if lines else []
