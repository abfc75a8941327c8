"""From YAML and `key=value` to a `Recipe`, with errors that name the line and the nearest key."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..config import FPEConfig
from ..errors import ConfigError, RecipeError, did_you_mean
from .schema import SET_BY_RECIPE, Recipe, Widen

Path_ = tuple[str | int, ...]
_SHOWN_KEYS = 24


def read_recipe(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and checks all that can be checked without data or model.

    Args:
        file: YAML file.
        overrides: `key.sub=value` assignments; values are YAML.

    Raises:
        RecipeError: The file is no recipe, or an assignment does not fit.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}.") from error
    return parse_recipe(text, overrides, name=str(file))


def parse_recipe(text: str, overrides: Sequence[str] = (), *, name: str = "recipe") -> Recipe:
    """As `read_recipe`, from the text itself.

    Args:
        text: YAML.
        overrides: See `read_recipe`.
        name: What to call it in messages.
    """
    lines = _lines(text, name)
    raw = yaml.safe_load(text)
    if not isinstance(raw, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of {', '.join(_keys(Recipe))}.")
    for assignment in overrides:
        lines[_assign(raw, assignment)] = f"the assignment {assignment!r}"
    return check_recipe(raw, lines, name)


def check_recipe(raw: Mapping[str, Any], lines: Mapping[Path_, str], name: str) -> Recipe:
    """Validates plain values.

    Args:
        raw: What YAML holds.
        lines: Path of a key -> where it stands, in words.
        name: What to call the recipe in messages.

    Raises:
        RecipeError: Something does not fit; every complaint has a line of its own.
    """
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        found = {_place(raw, tuple(e["loc"])): e for e in error.errors()}
        complaints = [_complaint(path, details, raw) for path, details in found.items()]
    else:
        complaints = list(_check_train(recipe.train))
        complaints += _check_sweep(recipe)
    if complaints:
        shown = (f"{name}{_where(path, lines)}: {text}" for path, text in complaints)
        raise RecipeError("\n".join(shown))
    return recipe


# -- where things stand ------------------------------------------------------------------------


def _lines(text: str, name: str) -> dict[Path_, str]:
    """The line of every key; refuses what YAML itself refuses, and repeated keys."""
    lines: dict[Path_, str] = {}
    seen: set[int] = set()

    def walk(node: yaml.Node, path: Path_) -> None:
        if isinstance(node, yaml.CollectionNode):
            if id(node) in seen:  # ten nested aliases can stand for billions of values
                line = node.start_mark.line + 1
                raise RecipeError(f"{name}, line {line}: aliases (*name) of lists are refused.")
            seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                own = (*path, key.value)
                line = key.start_mark.line + 1
                if own in lines:
                    raise RecipeError(
                        f"{name}, line {line}: {_dotted(own)} is there twice ({lines[own]})."
                    )
                lines[own] = f"line {line}"
                walk(value, own)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines[*path, index] = f"line {item.start_mark.line + 1}"
                walk(item, (*path, index))

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None:
            walk(root, ())
        yaml.safe_load(text)  # for what only shows when values are made
    except RecipeError:
        raise
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: this is not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise RecipeError(f"{name}: this is not YAML that can be read: {error}") from error
    return lines


def _where(path: Path_, lines: Mapping[Path_, str]) -> str:
    while path:
        if path in lines:
            return f", {lines[path]}"
        path = path[:-1]
    return ""


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _assign(raw: dict[str, Any], assignment: str) -> Path_:
    key, equals, value = assignment.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise RecipeError(f"{assignment!r} is no assignment: write key.sub=value.")
    set_key(raw, key, _value(value, assignment))
    return tuple(parts)


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key of plain values, making the sections above it.

    Raises:
        RecipeError: A section above it is no section.
    """
    *above, last = key.split(".")
    section = raw
    for part in above:
        inner = section.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{key!r}: {part!r} holds {inner!r}, which has no keys below it.")
        section = inner
    section[last] = value


def _value(text: str, assignment: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{assignment!r}: the value is not YAML.") from error


# -- complaints --------------------------------------------------------------------------------


def _place(raw: Any, location: tuple[str | int, ...]) -> Path_:
    """A location of pydantic without the names of the alternatives it has tried."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            if index + 1 < len(location) or not isinstance(raw, Mapping):
                continue
        path.append(part)
    return tuple(path)


def _complaint(path: Path_, error: Any, raw: Any) -> tuple[Path_, str]:
    name = _dotted(path)
    if error["type"] == "extra_forbidden":
        section = _section(path[:-1])
        return path, _unknown(name, str(path[-1]), _keys(section) if section else ())
    if error["type"] == "missing":
        return path, f"{name} is missing."
    message = error["msg"].removeprefix("Value error, ")
    cause = error.get("ctx", {}).get("error")
    if path[:1] == ("widen",) and isinstance(cause, ConfigError):
        return _widen_complaint(path, str(cause))
    given = "" if isinstance(error["input"], (Mapping, list)) else f" (it is {error['input']!r})"
    lead = f"{name}: " if name else ""
    nearest = ""
    if error["type"] == "literal_error":
        words = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        nearest = did_you_mean(str(error["input"]), words)
    return path, f"{lead}{message}{given}.{nearest}"


def _widen_complaint(path: Path_, message: str) -> tuple[Path_, str]:
    """A complaint of `FPEConfig`, at the key it is about."""
    fields = [field.name for field in dataclasses.fields(FPEConfig)]
    key = re.split(r"[='\[]", message.removeprefix("'"))[0]
    if "is not a field of FPEConfig" in message:
        return (*path, key), _unknown(f"widen.{key}", key, (*_keys(Widen), *fields))
    return ((*path, key) if key in fields else path), f"widen: {message}"


def _unknown(name: str, key: str, accepted: Iterable[str]) -> str:
    accepted = sorted(accepted)
    shown = ", ".join(accepted[:_SHOWN_KEYS]) + (", ..." if accepted[_SHOWN_KEYS:] else "")
    return f"{name} is no key of a recipe.{did_you_mean(key, accepted)} Accepted here: {shown}."


def _section(path: Path_) -> type[BaseModel] | None:
    """The model that describes the section at a path."""
    section: Any = Recipe
    for part in path:
        field = section.model_fields.get(part) if section is not None else None
        section = _model_of(field.annotation) if field is not None else None
    return typing.cast("type[BaseModel] | None", section)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
    models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return models[0] if models else None


def _keys(section: type[BaseModel]) -> tuple[str, ...]:
    return tuple(section.model_fields)


# -- train and sweep ---------------------------------------------------------------------------


def _check_train(train: Mapping[str, Any]) -> Iterable[tuple[Path_, str]]:
    """Names and types of arguments of the Trainer."""
    hints = training_fields()
    for key, value in train.items():
        path = ("train", key)
        if key in SET_BY_RECIPE:
            yield path, f"train.{key} is set by the recipe: use {SET_BY_RECIPE[key]}."
        elif key not in hints:
            yield path, _unknown(f"train.{key}", key, hints.keys() - SET_BY_RECIPE.keys())
        else:
            problem = _type_problem(hints[key], value)
            if problem:
                yield path, f"train.{key}: {problem} (it is {value!r})."


def training_fields() -> dict[str, Any]:
    """The arguments of transformers' `TrainingArguments` and their types."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {f.name: hints[f.name] for f in dataclasses.fields(TrainingArguments) if f.init}


def training_values(train: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer in their own types.

    YAML reads `1e-4` as a word, and the `no` of the strategies as false.
    """
    hints = training_fields()
    return {
        key: "no" if value is False and key.endswith("_strategy") else _typed(hints[key], value)
        for key, value in train.items()
    }


def _typed(hint: Any, value: Any) -> Any:
    if not _plain(hint) or value is None:
        return value
    return TypeAdapter(hint).validate_python(value)


def _type_problem(hint: Any, value: Any) -> str | None:
    if not _plain(hint) or value is None:
        return None
    options = get_args(hint) or (hint,)
    if isinstance(value, bool) and bool not in options and str not in options:
        return "a number is wanted, not a boolean"
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        return error.errors()[0]["msg"]
    return None


def _plain(hint: Any) -> bool:
    """Whether a type is made of numbers, words and booleans, which pydantic can judge."""
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return all(_plain(option) for option in options) and not any(
            isinstance(option, type) and issubclass(option, Enum) for option in options
        )
    return hint in (int, float, bool, str)


def _check_sweep(recipe: Recipe) -> Iterable[tuple[Path_, str]]:
    """The keys of a sweep exist; their values are checked when they are run."""
    for key in recipe.sweep:
        parts = key.split(".")
        section = _section(tuple(parts[:-1]))
        open_ended = parts[0] in ("train", "widen") or parts[:2] == ["model", "config"]
        known = section is not None and parts[-1] in _keys(section)
        if parts[0] == "sweep" or not (open_ended or known):
            keys = [*_keys(Recipe)] if section is None else _keys(section)
            yield ("sweep", key), _unknown(f"sweep.{key}", parts[-1], keys)
        elif parts[0] == "widen" and len(parts) == 2:
            fields = (*_keys(Widen), *(f.name for f in dataclasses.fields(FPEConfig)))
            if parts[1] not in fields:
                yield ("sweep", key), _unknown(f"sweep.{key}", parts[1], fields)


def json_schema() -> dict[str, Any]:
    """A JSON Schema of recipes, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "fpe_hf recipe"
    arguments = {
        name: TypeAdapter(hint).json_schema() if _plain(hint) else {}
        for name, hint in training_fields().items()
        if name not in SET_BY_RECIPE
    }
    schema["properties"]["train"] |= {"properties": arguments, "additionalProperties": False}
    config = TypeAdapter(FPEConfig).json_schema()
    widen = schema["$defs"][Widen.__name__]
    widen["properties"] |= config["properties"]
    widen["additionalProperties"] = False
    schema["$defs"] |= config.get("$defs", {})
    return schema
