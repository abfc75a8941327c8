"""The page of a run: targets, all ratios, memory, plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .plots import write_plots
from .results import BLOCK, Memory, Results, Row, write
from .targets import ALPHAS, NOT_MEASURED, judge, targets

Item = TypeVar("Item", bound=Row | Memory)
Key = TypeVar("Key")

_MODES = {"forward": "forward", "train": "forward+backward"}
_METHOD = """Times are ratios to the eager dense parent, measured in turns in one process: medians
over rounds of the ratio within a round, quartiles in brackets, and the share of the floor reached.
The floor is the parent's matrix products plus the activation on `alpha` times more elements.
`docs/benchmarks.md` describes the method."""


def write_report(results: Results) -> str:
    """Writes the page `NAME.md` and the plots beside `NAME.json`.

    Args:
        results: What was measured.

    Returns:
        The page's table of targets, for the terminal.
    """
    path = results.path.with_suffix(".md")
    plots = write_plots(results.rows, results.path.with_suffix(""))
    summary = target_table(results)
    parts = [
        f"# Benchmarks: {results.path.stem}",
        f"Written by `{results.command}`.",
        _environment(results),
        _METHOD,
        "## Targets",
        summary,
        *_worst(results),
        *(f"![{plot.stem}]({plot.name})" for plot in plots),
        *_times(results.rows),
        *_memory(results.memory),
    ]
    write(path, "\n\n".join(parts) + "\n")
    return f"{summary}\n\n{path}"


def target_table(results: Results) -> str:
    """The targets, and how each stands: the worst of its rows beside its limit."""
    device = results.environment["device"]
    lines = [
        [target.text, *(str(judge(target, results.rows, a, device)) for a in ALPHAS)]
        for target in targets(device)
    ]
    return _table(["worst of", *(f"alpha {alpha}" for alpha in ALPHAS)], lines)


def _worst(results: Results) -> Iterable[str]:
    """Where the targets are missed."""
    device = results.environment["device"]
    lines = []
    for target in targets(device):
        for alpha in ALPHAS:
            verdict = judge(target, results.rows, alpha, device)
            row = verdict.row
            if row is not None and not verdict.passed:
                where = f"{row.name}, {row.tokens} {_unit(row)}, {row.dtype}, {_MODES[row.mode]}"
                lines.append(
                    f"- {target.text}, alpha {alpha}: {verdict} in {row.contender}, {where}"
                )
    return ["Missed:", "\n".join(lines)] if lines else []


def _environment(results: Results) -> str:
    return ", ".join(f"{key} {value}" for key, value in results.environment.items() if value) + "."


def _times(rows: Sequence[Row]) -> Iterable[str]:
    by_case = _grouped(rows, lambda r: (r.kind, r.name, r.dtype, r.mode, r.tokens))
    title = ""
    for (kind, name, dtype, mode, tokens), own in by_case.items():
        if title != f"## {name}, {dtype}":
            title = f"## {name}, {dtype}"
            yield title
        what = _MODES[mode] if kind == BLOCK else mode.replace("train", "training step")
        yield f"### {name}, {dtype}: {what}, {tokens} {_unit(own[0])}"
        yield _by_alpha(own, _time_cell)
        failures = {(r.contender, r.note) for r in own if r.note}
        if failures:
            yield "\n".join(f"- {who}: {NOT_MEASURED}: {why}" for who, why in sorted(failures))


def _memory(rows: Sequence[Memory]) -> Iterable[str]:
    by_case = _grouped(rows, lambda r: (r.name, r.dtype, r.tokens))
    if by_case:
        yield "## Memory of a training step, multiples of the dense parent's"
        yield (
            "Activations kept for backward; weights, index tensors, gradients and AdamW's state; "
            "peak above what is held before the step."
        )
    for (name, dtype, tokens), own in by_case.items():
        yield f"### {name}, {dtype}, {tokens} tokens"
        yield _by_alpha(own, _memory_cell)


def _by_alpha(rows: Sequence[Item], cell: Callable[[Item], str]) -> str:
    """A table with a line per contender and a column per alpha."""
    found: dict[tuple[str, int], str] = {(row.contender, row.alpha): cell(row) for row in rows}
    alphas: list[int] = sorted({row.alpha for row in rows})
    names: list[str] = list(dict.fromkeys(row.contender for row in rows))
    lines = [[who, *(found.get((who, a), NOT_MEASURED) for a in alphas)] for who in names]
    return _table(["contender", *(f"alpha {alpha}" for alpha in alphas)], lines)


def _time_cell(row: Row) -> str:
    if row.ratio is None or row.seconds is None:
        return NOT_MEASURED
    text = f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]"
    if row.floor is not None and row.layout != "floor":
        text += f", floor {row.floor:.0%}"
    if row.kind != BLOCK:
        text += f", {row.items_per_second:.3g} {_unit(row)}/s"
    return text


def _memory_cell(row: Memory) -> str:
    found = {"activations": row.activations, "state": row.state, "peak": row.peak}
    parts = [f"{name} {value:.2f}" for name, value in found.items() if value is not None]
    return ", ".join(parts) or NOT_MEASURED


def _unit(row: Row) -> str:
    if row.kind == BLOCK:
        return "tokens" if row.tokens > 1 else "token"
    return "images" if row.name.startswith("clip") else "texts"


def _grouped(rows: Sequence[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Rows by key, in the order in which keys first appear."""
    groups: dict[Key, list[Item]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
