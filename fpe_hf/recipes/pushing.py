"""Pushing what a run has made: the best widened model, with the facts about it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..files import scratch
from ..hub import Pushed, push_to_hub
from .claiming import RECIPE
from .results import RESULTS, Results, model_folder
from .schema import Recipe

_BESIDE = (RECIPE, RESULTS, "report.md", "*.png")


def push_run(recipe: Recipe, results: Results) -> Pushed:
    """Pushes the widened model of the best seed, its card, the recipe and the report.

    Args:
        recipe: The recipe, with `output.push`.
        results: What came out of it.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    push = recipe.output.push
    assert push is not None
    run = recipe.output.folder
    base = recipe.model.name_or_path
    with scratch(".push-", run) as place:
        folder = place / "model"
        best = results.best()
        shutil.copytree(model_folder(run, best.arm, best.seed), folder)
        for pattern in _BESIDE:
            for file in run.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        return push_to_hub(
            folder,
            push.repo_id,
            private=push.private,
            revision=push.revision,
            base_model=None if base is None or Path(base).exists() else base,
        )
