"""From the name of a recipe to its report: what `fpe-hf run` and `accelerate launch` both do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, did_you_mean
from .library import find_recipe
from .parsing import read_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .preprocessing import Prepared
    from .results import Results
    from .schema import Recipe

_TIMED = 32  # examples in the batch whose latency is measured


def open_recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by the path of its file, or by its name if it comes with the package.

    Args:
        name: Path or name.
        assignments: `key.sub=value`, each taking the place of what the file says.

    Raises:
        RecipeError: There is no such recipe, or it cannot be run.
    """
    return read_recipe(find_recipe(name), assignments)


def launch(
    recipe: Recipe,
    *,
    resume: bool = False,
    resume_from: str | None = None,
    say: Callable[[str], None] = print,
    allow_code: Sequence[str] = (),
) -> Results:
    """Runs a recipe, writes its report, and pushes the model if the recipe says so.

    Args:
        recipe: What to do.
        resume: Go on where an earlier run in the same folder stopped.
        resume_from: Go on with a run that `output.push.checkpoints` uploaded to this repository.
        say: Takes lines of progress.
        allow_code: Names of the code in the recipe that may be run.

    Raises:
        RecipeError: See `run_recipe`.
        Interrupted: See `run_recipe`.
    """
    from .running import run_recipe
    from .trust import check_code

    check_code(recipe, allow_code)  # before anything is fetched
    with _quiet():
        if resume_from is not None:
            _fetch(resume_from, recipe.output.folder)
        return run_recipe(
            recipe,
            resume=resume or resume_from is not None,
            say=say,
            finish=lambda results, prepared: _finish(recipe, results, prepared, say),
            callbacks=_callbacks(recipe),
            allow_code=allow_code,
        )


def _callbacks(recipe: Recipe) -> list[Any]:
    push = recipe.output.push
    if push is None or not push.checkpoints:
        return []
    from .mirror import MirrorCallback

    return [MirrorCallback(recipe.output.folder, push)]


def _finish(
    recipe: Recipe, results: Results, prepared: Prepared, say: Callable[[str], None]
) -> None:
    """Writes the report of a run, and pushes the model if that is wanted."""
    from .report import keep_measured, measure_saved, report_again
    from .results import model_folder

    folder = recipe.output.folder
    seed = recipe.compare.seeds[0]
    latency = measure_saved(
        recipe,
        model_folder(folder, "dense", seed),
        model_folder(folder, "fpe", seed),
        prepared.example_inputs(_TIMED),
    )
    keep_measured(folder, latency)
    report_again(folder)
    say(f"Report: {folder / 'report.html'}")
    if recipe.output.push is not None:
        from .pushing import push_run

        say(f"Pushed: {push_run(recipe, results).url}")


def _fetch(repo_id: str, folder: Path) -> None:
    """Downloads a run, on one process of each machine."""
    from accelerate import PartialState

    from .mirror import download_run

    state = PartialState()
    if state.is_local_main_process:
        download_run(repo_id, folder)
    state.wait_for_everyone()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the progress bars of loading and saving: there is one per checkpoint."""
    from datasets.utils.logging import disable_progress_bar as quiet_datasets
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    quiet_datasets()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


_CONFIGS = Path(__file__).parent / "accelerate"


def accelerate_config(name: str) -> Path:
    """The file of a packaged config for `accelerate launch --config_file`.

    Args:
        name: `cpu`, `gpu`, `ddp`, `ddp-cpu`, `fsdp2`, `zero2` or `zero3`.

    Raises:
        RecipeError: There is no such config.
    """
    file = _CONFIGS / f"{name}.yaml"
    names = sorted(path.stem for path in _CONFIGS.glob("*.yaml"))
    if name not in names:
        raise RecipeError(
            f"There is no accelerate config {name!r}; accepted: {', '.join(names)}."
            f"{did_you_mean(name, names)}"
        )
    return file
