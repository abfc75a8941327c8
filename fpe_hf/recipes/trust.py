"""What in a recipe would run code that comes with neither fpe_hf nor the libraries it uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import RecipeError, did_you_mean
from .evaluation import OFFLINE
from .schema import Recipe


def code_in(recipe: Recipe) -> dict[str, str]:
    """Code that a recipe names: name -> key.

    Metrics that do not come with fpe_hf are Python files, here or on the Hub; attention kernels
    are compiled code on the Hub.
    """
    found = {name: "evaluate.metrics" for name in recipe.metrics if name not in OFFLINE}
    return found | dict.fromkeys(_kernels(recipe.model.config), "model.config")


def check_code(recipe: Recipe, allowed: Sequence[str] = ()) -> None:
    """Refuses a recipe that names code, unless that code was allowed by name.

    Raises:
        RecipeError: It does.
    """
    for name, key in code_in(recipe).items():
        if name not in allowed:
            hint = ""
            if key == "evaluate.metrics":
                hint = f" or use what needs none ({', '.join(OFFLINE)})"
                hint += f".{did_you_mean(name, OFFLINE)}"
            raise RecipeError(
                f"{key}: {name!r} is code of someone, and would be run. If you trust it, allow it "
                f"by name (--allow-code {name}){hint or '.'}"
            )


def _kernels(value: Any, key: str = "") -> Iterator[str]:
    """What is given as the implementation of a layer and is an address."""
    if isinstance(value, dict):
        for name, inner in value.items():
            named = key if key.endswith("_implementation") else str(name)
            yield from _kernels(inner, named)
    elif isinstance(value, str) and key.endswith("_implementation") and "/" in value:
        yield value
