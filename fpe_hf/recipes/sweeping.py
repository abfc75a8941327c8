"""Sweeps: a recipe at every point of its grid, in parallel processes and on several machines.

Every point is a run of its own, whose folder is held while it runs: workers that share the output
folder take the points that are neither done nor held. A run that was interrupted goes on.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..errors import InUseError, RecipeError
from ..files import write_whole
from .checkpoints import write_json
from .launching import launch, open_recipe
from .report.sweep import read_points, write_sweep
from .results import POINT, RESULTS, Results
from .schema import Recipe
from .trust import check_code

TABLE = "sweep.csv"


def grid(recipe: Recipe) -> list[dict[str, Any]]:
    """The points of a sweep, as dotted key -> value, in the recipe's order.

    Raises:
        RecipeError: The recipe has no sweep.
    """
    if not recipe.sweep:
        raise RecipeError("The recipe has no sweep: section; add one, as in {widen.alpha: [2, 4]}.")
    return [
        dict(zip(recipe.sweep, values, strict=True))
        for values in itertools.product(*recipe.sweep.values())
    ]


def run_sweep(
    name: str,
    assignments: Sequence[str] = (),
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    allow_code: Sequence[str] = (),
) -> Path:
    """Runs all points that are not done yet, and that no other process is running.

    Args:
        name: Path or name of the recipe.
        assignments: `key.sub=value`.
        jobs: Processes on this machine.
        say: Takes lines of progress.
        allow_code: Names of the code in the recipe that may be run.

    Returns:
        The table of results, one row per point and arm.

    Raises:
        RecipeError: The recipe cannot be run at some point of the grid; nothing has been run then.
    """
    recipe = open_recipe(name, assignments)
    points = grid(recipe)
    for point in points:  # all complaints before any work
        check_code(open_recipe(name, [*assignments, *_assign(point)]), allow_code)
    folder = recipe.output.folder
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(_work, name, tuple(assignments), folder, points, tuple(allow_code))
    if jobs == 1:
        work(say)
    else:
        context = get_context("spawn")
        workers = [context.Process(target=work) for _ in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RecipeError("A worker of the sweep failed; its message is above. Run it again.")
    table = write_table(folder, points)
    if done := read_points(folder):
        say(f"Report: {write_sweep(done, folder)}")
    return table


def _assign(point: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in point.items()]


def place(folder: Path, point: Mapping[str, Any]) -> Path:
    """The folder of a point: named by its values, so that it stays the same if the grid grows."""
    words = "_".join(f"{key.rpartition('.')[2]}-{_word(v)}" for key, v in sorted(point.items()))
    return folder / words


def _word(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return "".join(c if c.isalnum() or c in ".-" else "+" for c in text).strip("+")


def _work(
    name: str,
    assignments: tuple[str, ...],
    folder: Path,
    points: list[dict[str, Any]],
    allow_code: tuple[str, ...],
    say: Callable[[str], None] = print,
) -> None:
    """Runs the points that are free, one after the other."""
    for point in points:
        own = place(folder, point)
        if (own / RESULTS).is_file():
            write_json(own / POINT, point)
            continue
        # Points are not pushed: each would take the place of the one before.
        output = f"output={json.dumps({'folder': str(own)})}"
        recipe = open_recipe(name, [*assignments, *_assign(point), output])
        say(f"{own.name} (process {os.getpid()})")
        try:
            launch(recipe, resume=True, say=lambda line: say(f"  {line}"), allow_code=allow_code)
        except InUseError:
            say(f"  {own.name} is being run by another process")
            continue
        write_json(own / POINT, point)


def write_table(folder: Path, points: list[dict[str, Any]]) -> Path:
    """Writes one row per point and arm, of all points that are done."""
    file = folder / TABLE
    with io.StringIO(newline="") as stream:
        writer = csv.writer(stream)
        keys = list(points[0])
        values = ("metric", "mean", "std", "gain", "gain_ci95", "verdict", "nonzeros", "seeds")
        writer.writerow([*keys, "arm", *values])
        for point in points:
            own = place(folder, point)
            if not (own / RESULTS).is_file():
                continue
            results = Results.read(own)
            for s in results.summary():
                cells = (results.metrics[0], s.mean, s.std, s.gain, s.gain_ci95, s.verdict)
                tail = (s.nonzeros, len(s.values))
                writer.writerow([*(point[key] for key in keys), s.arm, *cells, *tail])
        write_whole(file, stream.getvalue())
    return file
