"""Sweeps: a recipe at every point of its grid, in parallel processes and on several machines.

Optuna hands out the points: workers that share a storage share the work, and a point whose worker
died is handed out again. Every point is a run of its own, which resumes where it stopped.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import write_whole
from .checkpoints import write_json
from .launching import launch, open_recipe
from .results import RESULTS, Results
from .schema import Recipe
from .trust import check_code

TABLE = "sweep.csv"
_HEARTBEAT = 30  # seconds between signs of life of a worker
_POINT = "point"


@dataclass(frozen=True)
class Sweep:
    """What a worker needs to know; all of it survives pickling.

    Attributes:
        name: Path or name of the recipe.
        assignments: As for `fpe-hf run`.
        folder: The recipe's output folder; every point gets one below it.
        storage: Address of Optuna's storage.
        allow_code: Names of the code in the recipe that may be run.
    """

    name: str
    assignments: tuple[str, ...]
    folder: Path
    storage: str
    allow_code: tuple[str, ...]


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
    storage: str | None = None,
    say: Callable[[str], None] = print,
    allow_code: Sequence[str] = (),
) -> Path:
    """Runs all points that are not done yet.

    Args:
        name: Path or name of the recipe.
        assignments: `key.sub=value`.
        jobs: Processes on this machine.
        storage: Address of Optuna's storage, for several machines; by default a file in the output
            folder.
        say: Takes lines of progress.
        allow_code: Names of the code in the recipe that may be run.

    Returns:
        The table of results, one row per point and arm.

    Raises:
        RecipeError: The recipe cannot be run at some point of the grid; nothing has been run then.
    """
    _need_optuna()
    recipe = open_recipe(name, assignments)
    points = grid(recipe)
    for point in points:  # all complaints before any work
        check_code(open_recipe(name, [*assignments, *_assign(point)]), allow_code)
    folder = recipe.output.folder
    folder.mkdir(parents=True, exist_ok=True)
    storage = storage or f"sqlite:///{folder.resolve()}/sweep.db"
    sweep = Sweep(name, tuple(assignments), folder, storage, tuple(allow_code))
    _hand_out(sweep, points)
    if jobs == 1:
        _work(sweep, say)
    else:
        context = get_context("spawn")
        workers = [context.Process(target=_work, args=(sweep,)) for _ in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RecipeError("A worker of the sweep failed; its message is above. Run it again.")
    return write_table(folder, points)


def _need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise RecipeError("Sweeps need Optuna: pip install 'fpe-hf[sweep]'.") from error


def _assign(point: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in point.items()]


def place(folder: Path, point: Mapping[str, Any]) -> Path:
    """The folder of a point: named by its values, so that it stays the same if the grid grows."""
    words = "_".join(f"{key.rpartition('.')[2]}-{_word(v)}" for key, v in sorted(point.items()))
    return folder / words


def _word(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return "".join(c if c.isalnum() or c in ".-" else "+" for c in text).strip("+")


def _study(sweep: Sweep) -> Any:
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are raised, too
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = RDBStorage(
        sweep.storage,
        heartbeat_interval=_HEARTBEAT,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        engine_kwargs={"connect_args": {"timeout": 60}} if "sqlite" in sweep.storage else {},
    )
    return optuna.create_study(study_name=sweep.folder.name, storage=storage, load_if_exists=True)


def _hand_out(sweep: Sweep, points: list[dict[str, Any]]) -> None:
    """Puts every point that is not done, nor handed out already, into the queue."""
    import optuna

    study = _study(sweep)
    optuna.storages.fail_stale_trials(study)
    open_states = (optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING)
    waiting = [trial.user_attrs[_POINT] for trial in study.get_trials(states=open_states)]
    for point in points:
        done = (place(sweep.folder, point) / RESULTS).is_file()
        if not done and point not in waiting:
            study.enqueue_trial({}, user_attrs={_POINT: point})


def _work(sweep: Sweep, say: Callable[[str], None] = print) -> None:
    """Takes points from the queue until it is empty."""
    import optuna

    study = _study(sweep)

    def objective(trial: Any) -> float:
        point = trial.user_attrs[_POINT]
        folder = place(sweep.folder, point)
        # Points are not pushed: each would take the place of the one before.
        place_of_point = f"output={json.dumps({'folder': str(folder)})}"
        own = [*sweep.assignments, *_assign(point), place_of_point]
        recipe = open_recipe(sweep.name, own)
        say(f"{folder.name} (process {os.getpid()})")
        results = launch(
            recipe,
            resume=folder.exists(),
            say=lambda line: say(f"  {line}"),
            allow_code=sweep.allow_code,
        )
        write_json(folder / "point.json", point)
        return results.best().metrics[results.metrics[0]]

    while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        study.optimize(objective, n_trials=1)


def write_table(folder: Path, points: list[dict[str, Any]]) -> Path:
    """Writes one row per point and arm, of all points that are done."""
    file = folder / TABLE
    with io.StringIO(newline="") as stream:
        writer = csv.writer(stream)
        keys = list(points[0])
        values = ("metric", "mean", "std", "gain", "gain_error", "nonzeros", "seeds")
        writer.writerow([*keys, "arm", *values])
        for point in points:
            own = place(folder, point)
            if not (own / RESULTS).is_file():
                continue
            results = Results.read(own)
            for s in results.summary():
                cells = (results.metrics[0], s.mean, s.std, s.gain, s.gain_error, s.nonzeros)
                writer.writerow([*(point[key] for key in keys), s.arm, *cells, len(s.values)])
        write_whole(file, stream.getvalue())
    return file
