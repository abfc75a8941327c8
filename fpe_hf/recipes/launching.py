"""From the name of a recipe to its report: what `fpe-hf run` and `accelerate launch` both do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RecipeError, did_you_mean
from .library import find_recipe
from .parsing import read_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .results import Results
    from .schema import Recipe


def open_recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by the path of its file, or by its name if it comes with the package.

    Args:
        name: Path or name.
        assignments: `key.sub=value`, each taking the place of what the file says.

    Raises:
        RecipeError: There is no such recipe, or it cannot be run.
    """
    return read_recipe(find_recipe(name), assignments)


def launch(recipe: Recipe, *, resume: bool = False, say: Callable[[str], None] = print) -> Results:
    """Runs a recipe, writes its report, and pushes the model if the recipe says so.

    Args:
        recipe: What to do.
        resume: Go on where an earlier run in the same folder stopped.
        say: Takes lines of progress.

    Raises:
        RecipeError: See `run_recipe`.
        Interrupted: See `run_recipe`.
    """
    from accelerate import PartialState

    from .report import write_report
    from .running import run_recipe

    with _quiet():
        results = run_recipe(recipe, resume=resume, say=say)
        if PartialState().is_main_process:
            write_report(results, recipe.output.folder)
            say(f"Report: {recipe.output.folder / 'report.html'}")
            if recipe.output.push is not None:
                say(f"Pushed to {_push(recipe, results)}")
    return results


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


def _push(recipe: Recipe, results: Results) -> str:
    """Pushes the best widened model with its card, the recipe and the report."""
    raise NotImplementedError


def model_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where a run keeps the trained model of an arm."""
    return folder / f"seed-{seed}" / arm / "model"


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
