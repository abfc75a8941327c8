"""The parent model of a recipe, the same for every arm of a seed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from ..errors import RecipeError
from .preprocessing import Prepared, model_config
from .schema import Recipe

_AUTO_CLASSES = {
    "feature-classification": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "image-text-contrastive": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
}


def auto_class(recipe: Recipe) -> Any:
    """The auto class of the recipe's task."""
    import transformers

    return getattr(transformers, _AUTO_CLASSES[recipe.model.task])


def build_parent(recipe: Recipe, prepared: Prepared, seed: int) -> Any:
    """The model that all arms of a seed start from.

    Args:
        recipe: The recipe.
        prepared: The data: they decide the number of classes and of features.
        seed: Of the weights that are drawn.

    Raises:
        RecipeError: It cannot be loaded or built, or its head does not fit the classes.
    """
    from transformers import set_seed

    set_seed(seed)
    kind = auto_class(recipe)
    labels = _label_fields(prepared)
    if recipe.model.name_or_path is None:
        own = recipe.model.config or {}
        _check_classes(own.get("num_labels"), prepared, "model.config.num_labels")
        if prepared.num_features:
            labels["num_features"] = prepared.num_features
        config = model_config(recipe, **labels)
        try:
            model = kind.from_config(config, trust_remote_code=False)
        except Exception as error:  # models raise what they like at sizes they do not like
            raise RecipeError(f"model.config: {' '.join(str(error).split())[:300]}") from error
    else:
        model = _pretrained(recipe, prepared, kind, labels)
    _check_inputs(model, recipe)
    _freeze(model, recipe.model.freeze)
    return model


def _check_inputs(model: Any, recipe: Recipe) -> None:
    """`AutoModel` builds a model of any kind, whatever the task gives it to read."""
    task, kind = recipe.model.task, model.config.model_type
    if task == "feature-classification" and model.main_input_name != "features":
        raise RecipeError(
            f"model: {kind!r} takes no features; model.task={task!r} is for 'mlp_classifier'."
        )
    if task == "image-text-contrastive" and not hasattr(model, "get_image_features"):
        raise RecipeError(
            f"model: {kind!r} has no towers for images and texts, as 'clip' and 'siglip' have; "
            f"model.task={task!r} needs them."
        )


def _label_fields(prepared: Prepared) -> dict[str, Any]:
    if not prepared.classes:
        return {}
    names = dict(enumerate(prepared.classes))
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


def _pretrained(recipe: Recipe, prepared: Prepared, kind: Any, labels: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    place, revision = recipe.model.name_or_path, recipe.model.revision or "main"
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        trained_head = any(
            "Classification" in name for name in getattr(config, "architectures", None) or ()
        )
        if trained_head and prepared.classes:
            _check_classes(config.num_labels, prepared, f"model.name_or_path={place!r}")
        return kind.from_pretrained(
            place, revision=revision, dtype="auto", trust_remote_code=False, **labels
        )
    except RecipeError:
        raise
    except Exception as error:  # whatever is raised at files that are damaged or of another kind
        raise RecipeError(
            f"model.name_or_path: {place!r} cannot be loaded as {kind.__name__} "
            f"({' '.join(str(error).split())[:300]})."
        ) from error


def _check_classes(number: int | None, prepared: Prepared, where: str) -> None:
    if number is not None and prepared.classes and number != len(prepared.classes):
        raise RecipeError(
            f"{where}: the model has a head for {number} classes, but the data have "
            f"{len(prepared.classes)} ({', '.join(prepared.classes[:4])}, ...)."
        )


def _freeze(model: Any, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        names = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
        ]
        if not names:
            raise RecipeError(f"model.freeze: {pattern!r} names no parameter.")
        for _, parameter in names:
            parameter.requires_grad_(False)
