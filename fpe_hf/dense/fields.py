"""The numeric fields of a transformers config and of its parts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ConfigField:
    """A numeric field of a config or of one of its parts, or an entry of a list of numbers.

    Attributes:
        path: Names of the parts that lead to it.
        name: Its name in the last of them.
        index: Which entry of the list, if it is one.
    """

    path: tuple[str, ...]
    name: str
    index: int | None = None

    def get(self, config: Any) -> Any:
        """The value in a config."""
        value = vars(self._part(config))[self.name]
        return value if self.index is None else value[self.index]

    def set(self, config: Any, value: Any) -> None:
        """Sets the value in a config, which may refuse it with an error of its own."""
        part = self._part(config)
        if self.index is not None:
            entries = list(vars(part)[self.name])
            entries[self.index] = value
            value = entries
        setattr(part, self.name, value)

    def _part(self, config: Any) -> Any:
        for name in self.path:
            config = getattr(config, name)
        return config

    def __str__(self) -> str:
        entry = "" if self.index is None else f"[{self.index}]"
        return ".".join((*self.path, self.name)) + entry


def numeric_fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[ConfigField]:
    """Every field of a config that is a number, a list of numbers, or unset."""
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if _is_config(value):
            yield from numeric_fields(value, (*path, name))
        elif value is None or _is_number(value):
            yield ConfigField(path, name)
        elif isinstance(value, (list, tuple)) and all(map(_is_number, value)):
            yield from (ConfigField(path, name, index) for index in range(len(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def stock_config(config: Any) -> Any:
    """A copy of a config that says nothing of fpe_hf."""
    stock = copy.deepcopy(config)
    _forget_plans(stock)
    return stock


def _forget_plans(config: Any) -> None:
    """Takes plans out of a config and its parts, which may have been models of their own."""
    vars(config).pop("quantization_config", None)
    for part in filter(_is_config, vars(config).values()):
        _forget_plans(part)


def _is_config(value: object) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "model_type")


def reloaded(config: Any) -> Any:
    """A config as it is after saving and loading."""
    return type(config).from_dict(config.to_dict())


def assign(config: Any, wanted: Any) -> None:
    """Makes the numbers of a config and its parts those of `wanted`, keeping the objects."""
    _forget_plans(config)
    own = set(numeric_fields(config))
    for item in numeric_fields(wanted):
        if item in own and item.get(config) != item.get(wanted):
            item.set(config, item.get(wanted))
