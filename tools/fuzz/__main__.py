"""The command line: tries inputs, or one of them again."""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from .campaign import MEMORY_LIMIT, TIME_LIMIT, run
from .targets import TARGETS


def main(
    inputs: Annotated[int, typer.Option(help="Number of inputs.")] = 10_000,
    seed: Annotated[str, typer.Option(help="Seed of the campaign.")] = "0",
    target: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(TARGETS)}; repeatable. [default: all]")
    ] = None,
    again: Annotated[
        str | None, typer.Option(help="Try the input of this seed again, with its traceback.")
    ] = None,
) -> None:
    """Feeds broken inputs to everything that reads what others wrote."""
    if again is not None:
        with TemporaryDirectory() as place:
            TARGETS[again.split("/")[1]](Path(place)).survives(Random(again))
        return
    logging.getLogger("fpe_hf").setLevel(logging.ERROR)  # models whose budget is open
    outcome = run(inputs, seed, target or TARGETS)
    header = f"{'target':<12}{'inputs':>8}{'accepted':>10}{'crashes':>9}{'slowest':>10}{'total':>9}"
    typer.echo(header)
    for name, tally in outcome.tallies.items():
        slowest, total = f"{1000 * tally.slowest[0]:.0f} ms", f"{tally.seconds:.0f} s"
        counts = f"{tally.inputs:>8,}{tally.accepted:>10,}{len(tally.crashes):>9,}"
        typer.echo(f"{name:<12}{counts}{slowest:>10}{total:>9}")
    slowest, its_seed = max(tally.slowest for tally in outcome.tallies.values())
    typer.echo(
        f"\ninputs tried: {outcome.inputs:,}\ncrashes: {len(outcome.crashes):,}\n"
        f"slowest input: {1000 * slowest:.0f} ms ({its_seed}; limit {TIME_LIMIT:.0f} s)\n"
        f"peak memory: {outcome.peak_bytes / 2**20:.0f} MiB more than at the start "
        f"(limit {MEMORY_LIMIT / 2**20:.0f} MiB)"
    )
    for its_seed, what in outcome.crashes.items():
        typer.echo(f"\n{its_seed}\n{what}", err=True)
    raise typer.Exit(1 if outcome.crashes else 0)


typer.run(main)
