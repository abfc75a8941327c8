"""What is known about a saved model, for its card. What is not known stays `None`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import module_folders
from .results import Evaluation, read_results

if TYPE_CHECKING:
    from ..auditing import AuditReport

_RECIPES = ("recipe.yaml", "recipe.yml", "recipe.json", "recipe.toml")
_REPORT = "report.md"
_FIGURES = (".png", ".svg")


@dataclass(frozen=True)
class License:
    """A licence, in the words of a model card.

    Attributes:
        id: The Hub's short name of it; `"other"` if it has none.
        name: Its own name, if the Hub has none.
        link: Where it can be read.
        of_base: Whether it is known as that of the base model.
    """

    id: str
    name: str | None = None
    link: str | None = None
    of_base: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """Everything a model card says.

    Attributes:
        model_class: Name of the class that loads the model.
        task: The Hub's name of what the class does.
        config: Fields of the `FPEConfig` that widened it.
        version: Version of fpe_hf that widened it.
        audit: The count of its non-zeros.
        base_model: Hub id of the dense parent.
        license: Licence of the base model, or the one that was given.
        evaluations: Results of a comparison that this model is part of.
        recipe: Name of the recipe file.
        report: Name of the report.
        figures: Names of the pictures.
        dense: Whether this is the stock variant, with the zeros filled in.
        modules: Whether sentence-transformers loads it, with the modules around it.
    """

    model_class: str
    task: str | None
    config: dict[str, Any]
    version: str
    audit: AuditReport
    base_model: str | None = None
    license: License | None = None
    evaluations: tuple[Evaluation, ...] = ()
    recipe: str | None = None
    report: str | None = None
    figures: tuple[str, ...] = ()
    dense: bool = False
    modules: bool = False


def collect_facts(
    model: Any,
    folder: Path,
    *,
    base_model: str | None = None,
    license: License | None = None,
    dense: bool = False,
) -> ModelFacts:
    """Puts together what a model and the files beside it say.

    Args:
        model: The widened model.
        folder: What will be pushed: a recipe run may have left results and figures there.
        base_model: Hub id of the dense parent.
        license: Licence.
        dense: Whether the stock variant is described.

    Raises:
        BudgetError: The model breaks an invariant: nothing is said about it then.
        CheckpointError: The results in the folder cannot be read.
    """
    from ..auditing import audit
    from ..checkpoint.saving import plan_of

    report = audit(model, strict=True)
    plan = plan_of(model)
    assert plan is not None
    modules = bool(module_folders(folder))
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return ModelFacts(
        model_class=type(model).__name__,
        task="sentence-similarity" if modules else task_of(type(model).__name__),
        config=dict(plan.config),
        version=plan.fpe_hf_version,
        audit=report,
        base_model=base_model,
        license=license,
        evaluations=read_results(folder),
        recipe=next((name for name in _RECIPES if name in names), None),
        report=_REPORT if _REPORT in names else None,
        figures=tuple(name for name in names if name.endswith(_FIGURES)),
        dense=dense,
        modules=modules,
    )


def task_of(model_class: str) -> str | None:
    """The Hub's name of what a class does, as far as transformers knows it."""
    from transformers.modelcard import TASK_MAPPING

    for task, classes in TASK_MAPPING.items():
        for names in classes.values():
            if model_class in ((names,) if isinstance(names, str) else names):
                return str(task)
    return None
